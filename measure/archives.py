"""What the pipeline needs for archives of full size: python measure/archives.py -> results/archives/costs.csv.

Two archives are generated in the layout and size of the published ones, as their papers and public loaders describe
them: QuickBird of NBU_PansharpRSData (500 .mat pairs, 1.3 GB) and GaoFen-2 of PanCollection (four .h5, 22,050 tiles,
7 GB). Their content is simulated (benchmark scenes of this study, repeated, rolled, with noise), so their scores mean
nothing and are not kept. Each is named in `sensors.NAME.data` of a clone of the project, and `dvc repro -s` runs the
stages there, while the memory of all their processes is sampled. Archives and clone are deleted at the end. This needs
the models of `dvc repro pretrain`, and 10 GB of disk.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import psutil
import torch
from scipy.io import savemat

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pansharp_study.core import load_params  # noqa: E402
from pansharp_study.optics.wald import upsample  # noqa: E402
from pansharp_study.scenes.pair import Pair  # noqa: E402
from pansharp_study.simulation.benchmark_scenes import make_scenes  # noqa: E402

STAGES = ("adapt", "report")
BLOCK = 500  # tiles written at once


class Tiles:
    """Tiles of any size from the simulated scenes of a satellite; MS and PAN stay aligned."""

    def __init__(self, name: str, seed: int = 1):
        scenes = make_scenes(name, load_params(ROOT / "params.yaml"))
        full = [{"ms": s["ms"].values, "pan": s["pan"].values[None]} for s in scenes]
        pairs = [Pair.from_scene(s).reduced() for s in scenes]
        small = [{k: getattr(p, k)[0].numpy() for k in ("ms", "pan", "gt")} for p in pairs]
        for x in small:
            x["lms"] = upsample(torch.from_numpy(x["ms"])[None], 4)[0].numpy()
        for x in full:
            x["lms"] = upsample(torch.from_numpy(np.ascontiguousarray(x["ms"], dtype="float32"))[None], 4)[0].numpy()
        self.sources, self.draw = {"full": full, "reduced": small}, np.random.default_rng(seed)

    def one(self, kind: str, side: int, keys: tuple) -> dict:  # key -> (C,h,w), whole DN, side PAN pixels
        """A scene rolled by whole MS pixels, repeated to the size wanted, with noise of one DN."""
        scene = self.sources[kind][self.draw.integers(len(self.sources[kind]))]
        shift, out = self.draw.integers(0, scene["ms"].shape[1:]), {}
        for key in keys:
            step, x = (1, scene[key]) if key == "ms" else (4, scene[key])
            rows, columns = ((np.arange(side * step // 4) + step * s) % n for s, n in zip(shift, x.shape[1:]))
            cut = x[:, rows[:, None], columns]
            out[key] = (cut + self.draw.integers(-1, 2, cut.shape)).clip(1).round()
        return out


def write_nbu(folder: Path, count: int) -> Path:
    """500 pairs, 256x256x4 and 1024x1024, uint16."""
    top, tiles = folder / "NBU_PansharpRSData" / "2 QuickBird", Tiles("QB")
    for name in ("MS_256", "PAN_1024"):
        (top / name).mkdir(parents=True)
    for i in range(1, count + 1):
        x = tiles.one("full", 1024, ("ms", "pan"))
        savemat(top / "MS_256" / f"{i}.mat", {"imgMS": np.moveaxis(x["ms"], 0, -1).astype("uint16")})
        savemat(top / "PAN_1024" / f"{i}.mat", {"imgPAN": x["pan"][0].astype("uint16")})
    return top


def write_pancollection(folder: Path, share: float) -> Path:
    """Tiles of 64 pixels to train and validate, twenty scenes at each resolution to test; float64 (N,C,H,W)."""
    top, tiles = folder / "PanCollection" / "GF2", Tiles("GF2")
    top.mkdir(parents=True)
    files = {
        "train_gf2": ("reduced", 19809, 64),
        "valid_gf2": ("reduced", 2201, 64),
        "test_gf2_multiExm1": ("reduced", 20, 256),
        "test_gf2_OrigScale_multiExm1": ("full", 20, 512),
    }
    for name, (kind, count, side) in files.items():
        keys, count = (("gt",) if kind == "reduced" else ()) + ("lms", "ms", "pan"), max(20, round(count * share))
        with h5py.File(top / f"{name}.h5", "w") as file:
            for start in range(0, count, BLOCK):
                made = [tiles.one(kind, side, keys) for _ in range(min(BLOCK, count - start))]
                for key in keys:
                    if key not in file:
                        file.create_dataset(key, (count, *made[0][key].shape), "float64")
                    file[key][start : start + len(made)] = np.stack([x[key] for x in made])
    return top


def watched(command: list, folder: Path) -> dict:  # seconds, cpu_seconds, peak_mib
    """Run a command and sample the proportional set size of its process tree, once a second."""
    env = {**os.environ, "PANSHARP_STUDY_ROOT": str(folder), "PYTHONPATH": str(folder), "OMP_WAIT_POLICY": "PASSIVE"}
    start, before, peak, text = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN), 0.0, []
    process = subprocess.Popen(
        command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    reader = threading.Thread(target=lambda: text.extend(process.stdout))
    reader.start()
    while process.poll() is None:
        now = 0
        for p in (
            [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            if psutil.pid_exists(process.pid)
            else ()
        ):
            try:
                now += p.memory_full_info().pss
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
        peak = max(peak, now / 2**20)
        time.sleep(1)
    reader.join()
    if process.returncode:
        sys.exit(f"error: {' '.join(command)} failed:\n{''.join(text)[-3000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": round(time.perf_counter() - start), "cpu_seconds": round(spent), "peak_mib": round(peak)}


def clone(folder: Path) -> Path:
    """The project as committed, with the models that are here."""
    models = sorted((ROOT / "models").glob("*.safetensors"))
    if not models:
        sys.exit("error: models/ is empty: run `dvc repro pretrain` first")
    copy = folder / "project"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(copy)], check=True)
    for path in models:
        shutil.copy(path, copy / "models")
    (copy / "data" / "real").mkdir(exist_ok=True)  # the real pair is not needed
    return copy


def check(copy: Path, name: str, data: Path) -> list[dict]:
    """Set one path, run the stages of one satellite."""
    params = copy / "params.yaml"
    params.write_text(re.sub(rf"^(  {name}:\s*\{{)", rf'\g<1>data: "{data}", ', params.read_text(), flags=re.M))
    rows = []
    for stage in STAGES:
        found = watched([sys.executable, "-m", "dvc", "repro", "-s", f"{stage}@{name}"], copy)
        rows.append({"stage": f"{stage}@{name}", **found})
        print(rows[-1], flush=True)
    scores = pd.read_csv(copy / "metrics" / "adapt" / f"{name}.csv")
    kinds = scores.groupby("resolution")["scene"].nunique()
    print(
        f"  scored: {kinds.to_dict()} scenes, {scores['method'].nunique()} methods",
        flush=True,
    )
    return rows


def main():
    """Generate, run, measure, delete."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=1.0, help="of the tiles generated; less than 1 writes no table")
    parser.add_argument(
        "--only", choices=("NBU", "PanCollection"), help="one archive; the rows of the other stay as they are"
    )
    args = parser.parse_args()
    torch.set_num_threads(2)
    table = []
    with tempfile.TemporaryDirectory(prefix="archive_check_") as temporary:
        folder = Path(temporary)
        if shutil.disk_usage(folder).free < 10 * 2**30:
            sys.exit(f"error: {folder} has less than 10 GB free: set TMPDIR to another disk")
        copy = clone(folder)
        for archive, name, write in (
            ("NBU", "QB", lambda: write_nbu(folder, round(500 * args.share))),
            ("PanCollection", "GF2", lambda: write_pancollection(folder, args.share)),
        ):
            if args.only in (None, archive):
                start = time.perf_counter()
                top = write()
                size = sum(p.stat().st_size for p in top.rglob("*") if p.is_file()) / 1e9
                print(f"{archive}: {size:.1f} GB generated in {time.perf_counter() - start:.0f} s", flush=True)
                table += [{"archive": archive, "gb": round(size, 1), **row} for row in check(copy, name, top)]
                shutil.rmtree(top)
    table = pd.DataFrame(table)
    print(table.to_string(index=False))
    if args.share == 1:
        path = ROOT / "results" / "archives" / "costs.csv"
        before = pd.read_csv(path) if path.is_file() else table[:0]
        pd.concat([before[~before["archive"].isin(table["archive"])], table]).to_csv(
            path, index=False, lineterminator="\n"
        )


if __name__ == "__main__":
    main()
