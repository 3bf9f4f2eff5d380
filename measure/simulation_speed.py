"""How fast pairs are simulated: python measure/simulation_speed.py [--device cuda] -> results/speed/simulation.csv.

Four tables, to be chosen with --tables; the file keeps those of other machines, and those of this one that are not
measured now:
growth    pairs per second of each part and of the whole, over bands, size and batch
stages    the shares of one simulation call, measured inside it
workers   pictures decoded and procedural scenes painted per second, with 1, 2, 4, ... processes up to the cores
training  what simulating a batch takes of a training step of each network (--networks: others)

Needs torch, numpy, scipy, pandas, Pillow, PyYAML and safetensors only. Three minutes on two cores, ten on a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import os
import platform
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pansharp_study.core import load_params, seeded  # noqa: E402
from pansharp_study.networks.zoo import count_flops, create_model, list_models, options_for  # noqa: E402
from pansharp_study.optics.wald import upsample  # noqa: E402
from pansharp_study.pictures.canvases import Refill  # noqa: E402
from pansharp_study.scenes.samples import list_pictures  # noqa: E402
from pansharp_study.simulation import pairs  # noqa: E402
from pansharp_study.simulation.base_images import load_base_images, make_base_images, scenes_for  # noqa: E402
from pansharp_study.simulation.pairs import (  # noqa: E402
    draw_instrument,
    expose,
    radiance_from_labels,
    radiance_from_rgb,
    simulate_pairs,
)
from pansharp_study.simulation.stream import Stream  # noqa: E402
from pansharp_study.training.loop import captured, make_step  # noqa: E402

TABLES = ("growth", "stages", "workers", "training")
FIELDS = ("table", "machine", "bands", "size", "batch", "workers", "part", "pairs_per_s", "share")


def clock(device: str) -> float:
    """Now, when everything given to the device is done."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds(run, device: str, repeats: int = 5) -> float:
    """Best of several runs after a first one."""
    best = float("inf")
    for _ in range(repeats + 1):
        start = clock(device)
        run()
        best = min(best, clock(device) - start)
    return best


def parts(base_images, bands, n, p, device):
    """The parts of a simulation as calls, each on a whole batch, and the whole."""
    generator = seeded("benchmark", device=device)
    rest = (base_images, bands, n, p, generator)
    x, pan = radiance_from_labels(*rest)
    return {
        "mixed": lambda: radiance_from_rgb(*rest, spectral=False),
        "spectral": lambda: radiance_from_rgb(*rest, spectral=True),
        "procedural": lambda: radiance_from_labels(*rest),
        "exposure": lambda: expose(x, pan, p, generator),
        "instrument": lambda: draw_instrument(bands, n, p["size"], p, 4, generator),
        "all, with the shares of params.yaml": lambda: simulate_pairs(*rest),
    }


def growth(base_images, params, device, full):
    """Rates of the parts over bands, size and batch."""
    for bands, size, n in [
        (8, 128, full),
        (4, 128, full),
        (12, 128, full),
        (8, 64, full),
        (8, 256, max(full // 4, 1)),
        (8, 128, max(full // 8, 1)),
    ]:
        for part, call in parts(base_images, bands, n, params | {"size": size}, device).items():
            yield {
                "bands": bands,
                "size": size,
                "batch": n,
                "part": part,
                "pairs_per_s": round(n / seconds(call, device)),
            }


@contextlib.contextmanager
def timed(device: str):
    """While this is open, the parts of simulate_pairs are timed: seconds by name."""
    names = {
        "radiance_from_rgb": "pictures to bands",
        "radiance_from_labels": "procedural scenes to bands",
        "expose": "light, air, exposure",
        "draw_instrument": "matrices of the instruments",
        "apply": "multiplication with them",
        "noise": "noise",
        "quantise": "quantisation",
    }
    spent, kept = defaultdict(float), {name: getattr(pairs, name) for name in names}

    def wrapped(name):
        def call(*args, **options):
            start = clock(device)
            out = kept[name](*args, **options)
            label = (
                names[name]
                if "spectral" not in options
                else ("mixed colours", "material spectra")[options["spectral"]] + " from pictures"
            )
            spent[label] += clock(device) - start
            return out

        return call

    for name in names:
        setattr(pairs, name, wrapped(name))
    try:
        yield spent
    finally:
        for name, function in kept.items():
            setattr(pairs, name, function)


def stages(base_images, params, device, full, repeats=5):
    """Shares of one call with everything on; the device is waited for after each part, which makes the call a
    little longer.
    """
    g, n = seeded("stages", device=device), full
    simulate_pairs(base_images, 8, n, params, g)
    with timed(device) as spent:
        start = clock(device)
        for _ in range(repeats):
            simulate_pairs(base_images, 8, n, params, g)
        whole = clock(device) - start
    spent["the rest"] = whole - sum(spent.values())
    for part, s in spent.items():
        yield {
            "bands": 8,
            "size": params["size"],
            "batch": n,
            "part": part,
            "pairs_per_s": round(n * repeats / s),
            "share": round(s / whole, 3),
        }


def workers(params, cores, scenes_each):
    """Pictures like ImageNet's (JPEG, 500 x 375 pixels) decoded to base images, and scenes painted, per second,
    over the number of processes.
    """
    counts = [2**k for k in range(20) if 2**k < cores] + [cores]
    size = params["base_image_size"]
    with tempfile.TemporaryDirectory() as folder:
        found = list_pictures("pretrain")["path"].tolist()
        for k in range(96):
            with Image.open(found[k % len(found)]) as picture:
                picture.convert("RGB").resize(
                    (500, 375), box=(0, 0, picture.width * (1 - k / 200), picture.height * (1 - k / 200))
                ).save(Path(folder) / f"{k}.JPEG", quality=92)
        for count in counts:
            pool = torch.empty(64, 3, size, size, dtype=torch.uint8)
            with Refill(folder, pool, seed=1, workers=count) as refill:
                refill.step(16 * count)  # until all have begun
                start, n = time.perf_counter(), 150 * count
                refill.step(n)
                yield {
                    "size": size,
                    "workers": count,
                    "part": "pictures decoded",
                    "pairs_per_s": round(n / (time.perf_counter() - start), 1),
                }
    for count in counts:
        n = scenes_each * count
        start = time.perf_counter()
        scenes_for(params | {"procedural_scenes": n}, 1, workers=count)
        yield {
            "size": size,
            "workers": count,
            "part": "scenes painted",
            "pairs_per_s": round(n / (time.perf_counter() - start), 2),
        }


class Plain:
    """What make_step wants of an accelerator."""

    @staticmethod
    def backward(loss):
        loss.backward()

    clip_grad_norm_ = staticmethod(torch.nn.utils.clip_grad_norm_)


def training_step(name, params, device, bands):
    """A step of training as train makes it: bfloat16, compiled and captured on a GPU where params.yaml says so."""
    p = params["pretrain"]
    model = create_model(name, bands=bands, seed=1, **options_for(name, params)).to(device)
    if p["compile"]:
        model.network.compile(dynamic=False)
    cuda = device == "cuda"

    def forward(*args, **told):
        with torch.autocast(device, torch.bfloat16, enabled=cuda):
            return model(*args, **told)

    optimiser = torch.optim.AdamW(
        model.parameters(), lr=torch.tensor(1e-4, device=device) if cuda else 1e-4, fused=cuda, capturable=cuda
    )
    parameters = list(model.parameters())
    step = make_step(Plain, forward, optimiser, parameters, [v.detach().clone() for v in parameters], p)
    return captured(step) if cuda and p["graph"] else step


def training(base_images, params, device, names, repeats):
    """Time of a training step of each network, without simulation, and what simulating its batch in a stream takes
    of it; the network with the most FLOP first.
    """
    bands, p, batch = max(params["band_counts"]), params["synthesize_pairs"], params["pretrain"]["batch"]
    flops = {n: count_flops(create_model(n, bands=bands, seed=1, **options_for(n, params)), 64) for n in names}
    stream = Stream(base_images, bands, p, batch, ("benchmark",))
    simulating = seconds(lambda: stream.simulate(0), device, repeats) / stream.ahead
    row, b = {"bands": bands, "size": p["size"], "batch": batch}, stream(0)
    yield row | {"part": "simulating a batch", "pairs_per_s": round(batch / simulating, 1)}
    for name in sorted(names, key=flops.get, reverse=True):
        step = training_step(name, params, device, bands)

        def whole(step=step):
            step(b | {"lms": upsample(b["ms"], 4)})

        for _ in range(6 if device == "cuda" else 0):  # compiling and capturing
            whole()
        alone = seconds(whole, device, 2 * repeats)
        yield row | {
            "part": f"training step of {name}, scale {params['scale']}",
            "pairs_per_s": round(batch / alone, 1),
            "share": round(simulating / alone, 4),
        }


def main():
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, help="pairs at once; default 1024 on a GPU, 32 on a CPU")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=TABLES)
    parser.add_argument(
        "--networks", nargs="+", choices=list_models(), help="of the table training; default: those of params.yaml"
    )
    parser.add_argument("--scale", help="of the networks; default: h100 on a GPU, laptop on a CPU")
    parser.add_argument(
        "--cores", type=int, default=len(os.sched_getaffinity(0)), help="most processes of the table workers"
    )
    args = parser.parse_args()
    torch.set_num_threads(2)
    device, cuda = args.device, args.device == "cuda"
    machine = torch.cuda.get_device_name() if cuda else f"{platform.machine()} CPU, 2 threads"
    whole = load_params(scale=args.scale or ("h100" if cuda else "laptop"))
    params = load_params(scale="h100")["synthesize_pairs"] | {"procedural_scenes": 16, "corpus": []}
    full, rows = args.batch or (1024 if cuda else 32), []
    made = {"workers": lambda: workers(params, args.cores, 16 if cuda else 4)}
    if set(args.tables) - {"workers"}:
        base_images = load_base_images(make_base_images(params, 1, workers=args.cores), device)
        made |= {
            "growth": lambda: growth(base_images, params, device, full),
            "stages": lambda: stages(base_images, params, device, full),
            "training": lambda: training(
                base_images,
                whole | {"synthesize_pairs": whole["synthesize_pairs"] | {"corpus": []}},
                device,
                args.networks or whole["networks"],
                5 if cuda else 1,
            ),
        }
    for table in args.tables:
        for row in made[table]():
            rows.append(
                {"table": table, "machine": f"{machine}, {args.cores} cores" if table == "workers" else machine, **row}
            )
            print(*(rows[-1].get(k, "") for k in FIELDS), sep="\t", flush=True)
    path = ROOT / "results" / "speed" / "simulation.csv"
    done = {(row["table"], row["machine"]) for row in rows}
    old = (
        [row for row in csv.DictReader(path.open()) if (row["table"], row["machine"]) not in done]
        if path.is_file()
        else []
    )
    with path.open("w", newline="") as f:
        writer = csv.DictWriter(f, FIELDS)
        writer.writeheader()
        writer.writerows(sorted(old + rows, key=lambda row: (TABLES.index(row["table"]), row["machine"])))


if __name__ == "__main__":
    main()
