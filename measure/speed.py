"""How fast indices and methods are: python measure/speed.py -> tables on the screen and results/speed/methods.csv.

Q2n here (float64, float32) and in sewar side by side, every index, and every classical method, at growing sizes. All
timings are the best of several repeats that take turns, so that a busy moment of the machine affects all of them. Three
minutes on two cores; --quick takes one minute and writes nothing.

--device cuda measures a GPU instead, at larger sizes too, and waits for it before reading the clock; sewar runs on the
processor only and is left out. The table has one set of rows for each device, and a run replaces its own.

The process keeps the memory it has freed (see KEEP). By default glibc returns every block above 32 MiB to the system
and asks for it again, page by page: from 1024x1024 pixels of eight bands on, this doubles the time of most methods.
--give-back measures that.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import io
import os
import platform
import re
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pansharp_study import metrics  # noqa: E402
from pansharp_study.classical import ABOUT, METHODS  # noqa: E402
from pansharp_study.optics.sensors import get_sensor  # noqa: E402
from pansharp_study.optics.wald import degrade  # noqa: E402

SENSOR = get_sensor("WV3")  # eight bands
KEEP = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**33)}


def device_name(device: str) -> str:
    """What the rows are filed under."""
    return "cpu" if device == "cpu" else torch.cuda.get_device_name(device)


def machine(threads: int, device: str = "cpu") -> str:
    """Processor or GPU, threads and versions, in one line."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*:\s*(.+)$", info.read_text(), flags=re.MULTILINE) if info.is_file() else []
    model = names[0] if names else platform.processor() or platform.machine()
    used = [
        name
        for name in ("torch", "numpy", "sewar")
        if importlib.util.find_spec(name) and (device == "cpu" or name != "sewar")
    ]
    packages = ", ".join(f"{name} {version(name).split('+')[0]}" for name in used)
    if device != "cpu":
        return f"{device_name(device)}, CUDA {torch.version.cuda}; Python {platform.python_version()}, {packages}"
    return f"{model}, {os.cpu_count()} cores, {threads} threads; Python {platform.python_version()}, {packages}"


def scene(side: int, device: str) -> dict:
    """An eight-band scene of whole DN whose fused image is a noisy truth."""
    generator = torch.Generator().manual_seed(side)
    coarse = torch.rand(1, 8, side // 16, side // 16, generator=generator)
    gt = torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear") * 900 + 100
    gt = (gt + 60 * torch.rand(gt.shape, generator=generator)).round()
    fused = (gt + 20 * torch.randn(gt.shape, generator=generator)).round().clamp(0, SENSOR.peak)
    made = {"gt": gt, "fused": fused, "pan": gt.mean(1, keepdim=True).round(), "ms": degrade(gt, SENSOR.mtf_ms)}
    return {name: x.to(device) for name, x in made.items()}


def wait(device: str):
    """Until the device has done what it was told."""
    if device != "cpu":
        torch.cuda.synchronize(device)


def best(calls: dict, repeats: int, device: str) -> dict:
    """Seconds of each call, the least of several turns."""
    found = dict.fromkeys(calls, float("inf"))
    for turn in range(repeats):
        for name, call in calls.items():
            if turn and found[name] > 10:  # seconds: slow enough to be measured well at once
                continue
            wait(device)
            start = time.perf_counter()
            call()
            wait(device)
            found[name] = min(found[name], time.perf_counter() - start)
    return found


def q2n_calls(side: int, device: str) -> dict:
    """Q2n in two or three ways, on the same numbers."""
    images = scene(side, device)
    f, g = images["fused"], images["gt"]
    fd, gd = f.double(), g.double()
    ours = {"here, float64": lambda: metrics.q2n(fd, gd), "here, float32": lambda: metrics.q2n(f, g)}
    if device != "cpu":
        values = [metrics.q2n(fd, gd).item(), metrics.q2n(f, g).item(), metrics.q2n(fd.cpu(), gd.cpu()).item()]
        assert abs(values[0] - values[2]) < 1e-9 and abs(values[1] - values[2]) < 1e-5, values
        return ours
    import sewar

    fn, gn = (x[0].permute(1, 2, 0).contiguous().numpy() for x in (fd, gd))
    values = [metrics.q2n(fd, gd).item(), metrics.q2n(f, g).item(), sewar.full_ref.q2n(gn, fn)]
    assert abs(values[0] - values[2]) < 1e-9 and abs(values[1] - values[2]) < 1e-5, values
    return {"sewar": lambda: sewar.full_ref.q2n(gn, fn)} | ours


def index_calls(side: int, device: str) -> dict:
    """Every index, on float32 images."""
    x, peak = scene(side, device), SENSOR.peak
    calls = {
        i.__name__: functools.partial(
            i, x["fused"], x["gt"], **({"peak": peak} if i in (metrics.psnr, metrics.ssim) else {})
        )
        for i in (
            metrics.sam,
            metrics.ergas,
            metrics.psnr,
            metrics.rmse,
            metrics.cc,
            metrics.ssim,
            metrics.scc,
            metrics.q,
            metrics.q2n,
        )
    }
    full = (
        metrics.d_lambda,
        metrics.d_s,
        metrics.d_lambda_k,
        metrics.qnr,
        metrics.hqnr,
        metrics.d_rho,
        metrics.r_sam,
        metrics.r_ergas,
        metrics.r_q2n,
    )
    return calls | {i.__name__: functools.partial(i, x["fused"], x["ms"], x["pan"], sensor=SENSOR) for i in full}


def method_calls(side: int, device: str) -> dict:
    """Every classical method, on float32 images."""
    x = scene(side, device)
    return {name: functools.partial(fuse, x["ms"], x["pan"], SENSOR) for name, fuse in METHODS.items()}


PARTS = {  # part: its calls, sides of the (PAN) image, repeats; further sides on a GPU
    "Q2n": (q2n_calls, (256, 512, 1024, 2048), 7, (4096,)),
    "index": (index_calls, (256, 512, 1024), 3, (2048,)),
    "method": (method_calls, (256, 512, 1024), 3, (2048,)),
}


def measure(quick: bool, device: str) -> pd.DataFrame:
    """All timings, one row each."""
    rows = []
    for part, (make, sides, repeats, larger) in PARTS.items():
        for side in sides[:2] if quick else sides + (larger if device != "cpu" else ()):
            with torch.no_grad():
                seconds = best(make(side, device), 2 if quick else repeats, device)
            rows += [
                {
                    "device": device_name(device),
                    "part": part,
                    "name": name,
                    "bands": 8,
                    "side": side,
                    "seconds": s,
                    "mpx_per_s": side**2 / 1e6 / s,
                }
                for name, s in seconds.items()
            ]
            print(f"{part} {side}x{side}: done", file=sys.stderr, flush=True)
    return pd.DataFrame(rows)


def tables(results: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """What a reader wants: seconds by size, ratios to sewar, megapixels a second, growth."""
    out = {}
    for part in PARTS:
        seconds = results[results["part"] == part].pivot(index="name", columns="side", values="seconds")
        seconds = seconds.loc[results.loc[results["part"] == part, "name"].unique()]
        table = seconds.add_suffix(" px: s")
        if part == "Q2n" and "sewar" in seconds.index:
            table = table.join((seconds.loc["sewar"] / seconds).add_suffix(" px: times sewar's speed"))
        else:
            largest = seconds.columns[-1]
            table["Mpx/s"] = largest**2 / 1e6 / seconds[largest]
            table["time for 4x the pixels"] = seconds[largest] / seconds[largest // 2]
        if part == "method":
            table.insert(0, "family", [ABOUT[name]["family"] for name in table.index])
        out[part] = table
    return out


def keep(results: pd.DataFrame, about: str, target: Path):
    """Write the rows of this device beside those of others."""
    name, notes, others = results["device"].iloc[0], [], results.iloc[:0]
    if target.is_file():
        lines = target.read_text(encoding="utf-8").splitlines()
        notes = [line for line in lines if line.startswith("# ") and not line.startswith(f"# {name}: ")]
        others = pd.read_csv(io.StringIO("\n".join(line for line in lines if not line.startswith("#"))), dtype=str)
        others = others[others["device"] != name]
    text = results.to_csv(index=False, float_format="%.4g", lineterminator="\n") + others.to_csv(
        index=False, header=False, lineterminator="\n"
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("\n".join([f"# {name}: {about}", *notes, text]), encoding="utf-8")
    print(f"\nwritten: {target}")


def main() -> int:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--threads",
        type=int,
        default=min(2, os.cpu_count() or 1),
        help="of PyTorch (default: two, if there are two cores)",
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, two repeats, nothing written")
    parser.add_argument(
        "--give-back",
        action="store_true",
        help="let glibc return freed memory at once, as it does by default; nothing written",
    )
    parser.add_argument("--device", default="cpu", help="cpu (default), or cuda")
    parser.add_argument(
        "--out",
        type=Path,
        default=ROOT / "results" / "speed" / "methods.csv",
        help="table to write (default: results/speed/methods.csv)",
    )
    options = parser.parse_args()
    if options.device != "cpu" and not torch.cuda.is_available():
        parser.error(f"--device {options.device}: PyTorch sees no GPU here")
    if (
        options.device == "cpu" and not options.give_back and not KEEP.items() <= os.environ.items()
    ):  # read when a process starts: start again
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | KEEP)
    torch.set_num_threads(options.threads)
    about = machine(options.threads, options.device)
    about += f"; freed memory {'given back' if options.give_back else 'kept'}" if options.device == "cpu" else ""
    print(about)
    results = measure(options.quick, options.device)
    for part, table in tables(results).items():
        print(f"\n{part}, 8 bands\n{table.round(3 if options.device == 'cpu' else 5).to_string()}")
    if not options.quick and not options.give_back:
        keep(results, about, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
