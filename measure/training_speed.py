"""Where the time of a training step goes, for every network, and what a second GPU brings.

One GPU, shares of simulation, forward, backward and the rest:
    python measure/training_speed.py
Several GPUs, samples/s of the network with the most FLOP, and the same on one GPU to compare:
    accelerate launch --multi_gpu --num_processes 2 measure/training_speed.py
    python measure/training_speed.py --scaling

Batches of 32 pairs of 128x128, eight bands, bfloat16, compiled; on one GPU each step is a CUDA graph. Appends to
results/speed/training.csv.
"""

import argparse
import csv
import os
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from pansharp_study.core import load_params
from pansharp_study.networks.guides import interpolate
from pansharp_study.networks.zoo import count_flops, count_parameters, create_model, list_models, options_for
from pansharp_study.simulation.stream import open_stream
from pansharp_study.training.loop import Run, captured, fusion_loss, make_accelerator

FIELDS = (
    "table",
    "machine",
    "torch",
    "network",
    "parameters",
    "gflop_per_sample",
    "gpus",
    "samples_per_s",
    "step_ms",
    "simulation",
    "forward",
    "backward",
    "optimiser",
)
BANDS, REPEATS = 8, 30
VARIANTS = {
    "fusionnet as large as panmamba": ("fusionnet", {"width": 88}),
    "panmamba at full resolution": ("panmamba", {"stride": 1}),
}  # name -> network, options that differ from params.yaml


def milliseconds(call, repeats=REPEATS):
    """Median wall time with the GPU's work included."""
    times = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - start))
    return sorted(times)[len(times) // 2]


def create(name, params):
    """A network of params.yaml, or a variant of one."""
    network, options = VARIANTS.get(name, (name, {}))
    return create_model(network, bands=BANDS, seed=1, **options_for(network, params) | options)


def prepared(name, params, accelerator):
    """A training run of a network, and its stream."""
    model = create(name, params)
    stream = open_stream(
        params,
        BANDS,
        seed=(1, name),
        device=accelerator.device,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
    )
    return Run(accelerator, model, params["pretrain"]), stream


def batch_at(stream, step):
    b = stream(step)
    return b | {"lms": interpolate(b["ms"], 4)}


def parts(run, accelerator):
    """Forward alone, and forward with backward, as graphs of their own."""

    def forward(b):
        return fusion_loss(run.fast(b["ms"], b["pan"], b["lms"], 4, mtf=b["mtf"]).float(), b["gt"], b["lms"])

    def both(b):
        for p in run.parameters:
            p.grad = None
        loss = forward(b)
        accelerator.backward(loss)
        return loss.detach()

    return captured(lambda b: forward(b).detach()), captured(both)


def shares(params, networks):
    """One row per network."""
    for name in networks:
        torch.compiler.reset()
        accelerator = make_accelerator("cuda")
        run, stream = prepared(name, params, accelerator)
        b = batch_at(stream, 0)
        simulating = (
            milliseconds(lambda stream=stream, b=b: (stream.simulate(0), interpolate(b["ms"], 4))) / stream.ahead
        )
        forward, both = parts(run, accelerator)
        times = []
        for call in (forward, both, run.step):
            for _ in range(6):  # compile, settle, capture
                call(b)
            times.append(milliseconds(lambda call=call, b=b: call(b)))
        f, fb, step = times
        whole = step + simulating
        model = create(name, params)
        yield {
            "table": "step",
            "network": name,
            "parameters": count_parameters(model),
            "gflop_per_sample": round(count_flops(model, 64, bands=BANDS) * 4 / 1e9, 2),
            "gpus": 1,
            "samples_per_s": round(1e3 * params["pretrain"]["batch"] / whole),
            "step_ms": round(whole, 2),
            **{
                k: round(v / whole, 3)
                for k, v in (("simulation", simulating), ("forward", f), ("backward", fb - f), ("optimiser", step - fb))
            },
        }


def scaling(params, name, steps=208):
    """Samples per second of training with its stream, on as many GPUs as this was launched on."""
    accelerator = make_accelerator("cuda")
    run, stream = prepared(name, params, accelerator)
    for k in range(24):
        run.step(batch_at(stream, k))
    torch.cuda.synchronize()
    accelerator.wait_for_everyone()
    start = time.perf_counter()
    for k in range(steps):
        run.step(batch_at(stream, 24 + k))
    torch.cuda.synchronize()
    accelerator.wait_for_everyone()
    spent, world = time.perf_counter() - start, accelerator.num_processes
    return accelerator.is_main_process, {
        "table": "scaling",
        "network": name,
        "parameters": count_parameters(run.model),
        "gpus": world,
        "samples_per_s": round(world * steps * params["pretrain"]["batch"] / spent),
        "step_ms": round(1e3 * spent / steps, 2),
    }


def main():
    """Measure, print and append."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scaling", action="store_true", help="samples/s of one network instead of shares of all")
    parser.add_argument("--network", default="bandset", choices=list_models(), help="for --scaling")
    parser.add_argument(
        "--networks", nargs="+", choices=[*list_models(), *VARIANTS], default=[*list_models(), *VARIANTS]
    )
    args = parser.parse_args()
    params = load_params(scale="h100")
    distributed = torch.cuda.device_count() > 1 and "LOCAL_RANK" in os.environ
    if args.scaling or distributed:
        is_main, row = scaling(params, args.network)
        rows = [row] if is_main else []
    else:
        rows = shares(params, args.networks)
    path = Path(__file__).parents[1] / "results" / "speed" / "training.csv"
    for row in rows:
        row |= {"machine": torch.cuda.get_device_name(), "torch": torch.__version__}
        print(*(f"{k}={row[k]}" for k in FIELDS if k in row), flush=True)
        fresh = not path.is_file()
        with path.open("a", newline="") as f:
            writer = csv.DictWriter(f, FIELDS, lineterminator="\n")
            if fresh:
                writer.writeheader()
            writer.writerow(row)


if __name__ == "__main__":
    main()
