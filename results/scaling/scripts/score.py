"""Scores on real development scenes (never held-out): registered, reduced resolution; classical methods once, then each weight file.

score.py OUT.csv WEIGHTS... ; a weight may be NAME@FACTOR (told so many times the nominal MTF gain) or NAME@none (told nothing)
Scenes: the development split of RR_SCENES.csv, and the rows of RR_SCENES_MORE.csv whose split is development and which have a reference.
"""
import csv, os, sys, time
from pathlib import Path
import common
import numpy as np, pandas as pd, torch
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
from types import SimpleNamespace
from pansharp_study import models, real
from pansharp_study.evaluate import score_reduced

REAL, out = Path(sys.argv[2]), Path(sys.argv[1])
CACHE = Path("/tmp/scenes_issue15.pt")
t0 = time.time()

def say(*a): print(f"[{time.time()-t0:6.1f}s]", *a, flush=True)

def scenes():
    if CACHE.is_file():
        return torch.load(CACHE, weights_only=False)
    found = [s for s in real.load_scenes(REAL, "development") if s.gt is not None]
    for row in csv.DictReader((REAL / "RR_SCENES_MORE.csv").open()):
        if row["split"] != "development" or "triple" not in row["preparation"]:
            continue
        z = np.load(REAL / row["files"])
        images = {k: torch.from_numpy(z[k].astype(np.float32)) for k in ("ms", "pan", "gt")}
        images["pan"] = images["pan"].reshape(1, *images["pan"].shape[-2:])
        found += real.prepare(SimpleNamespace(name=row["name"], sensor=row["sensor"], bands=int(row["bands"]), acquisition=row["acquisition"], split=row["split"]), {k: v[None] for k, v in images.items()})
    assert all(s.split == "development" for s in found)
    torch.save(found, CACHE)
    return found

FIELDS = ["weights", "told", "bands", "sensor", "acquisition", "scene", "method", "paradigm", "registered", "sam_deg", "ergas", "q2n", "psnr_db"]
done = set()
if out.is_file():
    done = {(r["weights"], r["told"]) for r in csv.DictReader(out.open())}
else:
    with out.open("w", newline="") as f: csv.writer(f, lineterminator="\n").writerow(FIELDS)

def write(rows):
    with out.open("a", newline="") as f:
        w = csv.DictWriter(f, FIELDS, extrasaction="ignore", lineterminator="\n")
        for r in rows: w.writerow({k: round(v, 6) if isinstance(v, float) else v for k, v in r.items()})

found = scenes()
say(len(found), "scenes", *(f"{s.name} {tuple(s.gt.shape[1:])} {s.sensor.name} shift {tuple(round(v, 2) for v in s.shift)};" for s in found))
if ("classical", "") not in done:
    rows = []
    for s in found:
        for name, (paradigm, by) in real.classical_entries().items():
            for registered in ((True, False) if name == "EXP" else (True,)):
                ms, pan = s.pair(registered)
                with torch.no_grad(): fused = by[None](ms, pan, s.sensor).float()
                rows.append({"weights": "classical", "told": "", "bands": s.sensor.n_bands, "sensor": s.sensor.name, "acquisition": s.acquisition, "scene": s.name, "method": name, "paradigm": "classical", "registered": registered, **score_reduced(fused, s.gt, s.sensor)})
        say("classical", s.name)
    write(rows)
nominal = models.nominal_gain
for item in sys.argv[2:]:
    path, _, told = item.partition("@")
    name = Path(path).stem
    if (name, told) in done: continue
    factor = 0.0 if told == "none" else float(told or 1)
    models.nominal_gain = lambda sensor, like: nominal(sensor, like) * factor
    model, rows = models.load_weights(path), []
    fuse = real.one_call(model)
    for s in found:
        ms, pan = s.pair(True)
        with torch.no_grad(): fused = fuse(ms, pan, s.sensor).float()
        rows.append({"weights": name, "told": told, "bands": s.sensor.n_bands, "sensor": s.sensor.name, "acquisition": s.acquisition, "scene": s.name, "method": "bandset", "paradigm": "zero-shot", "registered": True, **score_reduced(fused, s.gt, s.sensor)})
    write(rows)
    say(name, told, {a: tuple(round(float(np.mean([r[k] for r in rows if r["acquisition"] == a])), 3) for k in ("sam_deg", "ergas")) for a in dict.fromkeys(r["acquisition"] for r in rows)})
