"""How fast pairs are simulated, and where the time goes: `python docs/benchmark_simulate.py [--device cuda]` prints a table and writes docs/benchmark_simulate.csv."""

import argparse
import csv
import platform
import time
from pathlib import Path

import torch

from pansharp_study import simulate
from pansharp_study.core import load_params, seeded


def seconds(run, device, repeats=5):
    """Best of several runs, in seconds."""
    best = float("inf")
    for _ in range(repeats + 1):
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return best


def stages(canvases, bands, n, params, device):
    """Seconds of each part of a batch: crops and bands of the three ways, exposure, optics, electronics."""
    g = seeded("benchmark", device=device)
    library, pictures, (labels, groups), ratio = canvases["library"], canvases["pictures"], canvases["labels"], 4
    out = {
        "mixed": seconds(lambda: simulate.light_from_pictures(pictures, library, bands, n, params, g, spectral=False), device),
        "spectral": seconds(lambda: simulate.light_from_pictures(pictures, library, bands, n, params, g, spectral=True), device),
        "procedural": seconds(lambda: simulate.light_from_labels(labels, groups, library, bands, n, params, g), device),
    }
    x, pan = simulate.light_from_labels(labels, groups, library, bands, n, params, g)
    out["exposure"] = seconds(lambda: simulate.expose(x, pan, params, g), device)
    out["instrument"] = seconds(lambda: simulate.instrument(bands, n, params["size"], params, ratio, g), device)
    out["all, with the shares of params.yaml"] = seconds(lambda: simulate.simulate_pairs(canvases, bands, n, params, g), device)
    return out


def main():
    """Print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, help="pairs at once; default 1024 on a GPU, 32 on a CPU")
    args = parser.parse_args()
    torch.set_num_threads(2)
    device, machine = args.device, torch.cuda.get_device_name() if args.device == "cuda" else f"{platform.machine()} CPU, 2 threads"
    params = {**load_params(scale="h100")["synthesize_pairs"], "canvases": 16, "canvas_size": 512}
    canvases, rows = simulate.load_materials(simulate.make_materials(params, 1), device), []
    full = args.batch or (1024 if device == "cuda" else 32)
    for bands, size, n in [(8, 128, full), (4, 128, full), (12, 128, full), (8, 64, full), (8, 256, max(full // 4, 1)), (8, 128, max(full // 8, 1))]:
        here = {**params, "size": size}
        for part, s in stages(canvases, bands, n, here, device).items():
            rows.append({"machine": machine, "bands": bands, "size": size, "batch": n, "part": part, "pairs_per_s": round(n / s)})
            print(*rows[-1].values(), sep="\t", flush=True)
    path = Path(__file__).with_name("benchmark_simulate.csv")
    old = [r for r in csv.DictReader(path.open())] if path.is_file() else []
    with path.open("w", newline="") as f:
        writer = csv.DictWriter(f, rows[0])
        writer.writeheader()
        writer.writerows([r for r in old if r["machine"] != machine] + rows)


if __name__ == "__main__":
    main()
