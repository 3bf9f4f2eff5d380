import os, sys, time
from pathlib import Path
os.environ.setdefault("PANSHARP_STUDY_ROOT", str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch
from pansharp_study.core import load_params
from pansharp_study.simulate import make_materials, load_materials, Stream, cores

def params_of(**changes):
    p = load_params(scale="h100")
    p["synthesize_pairs"] = p["synthesize_pairs"] | {"halo": [0, 0]} | changes
    return p

def materials(params, device, canvases=None, workers=None, cache=None):
    """Paint (or read what another process painted)."""
    from safetensors.torch import save_file, load_file
    p = params["synthesize_pairs"] | ({"canvases": canvases} if canvases else {})
    if cache and Path(cache).is_file():
        found = load_file(cache)
    else:
        found = make_materials(p, params["seed"], workers=cores() if workers is None else workers)
        if cache:
            tmp = str(cache) + ".part"
            save_file({k: v.contiguous() for k, v in found.items()}, tmp); os.replace(tmp, cache)
    return load_materials(found, device)

def median_ms(call, repeats=20, warm=3):
    """Median of CUDA-event times."""
    for _ in range(warm): call()
    if not torch.cuda.is_available():
        t = time.perf_counter(); call(); return 1e3 * (time.perf_counter() - t)
    times = []
    for _ in range(repeats):
        a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        a.record(); call(); b.record(); b.synchronize()
        times.append(a.elapsed_time(b))
    return sorted(times)[len(times) // 2]
