"""Checks variants of the training step against the original and times them. One process per GPU: throughput.py OUT PLAN"""
import csv, json, sys, time, traceback, copy
t0 = time.time()
import common
import torch
import torch._inductor.config as ind
from common import params_of, materials, median_ms, Stream
import fast
from pansharp_study import train, simulate
from pansharp_study.models import create_model, interpolate, count_flops
from pansharp_study.simulate import simulate_pairs, PAIR
from pansharp_study.core import seeded

OUT, PLAN = sys.argv[1], sys.argv[2]
TINY = "--tiny" in sys.argv
cuda = torch.cuda.is_available()
dev = torch.device("cuda" if cuda else "cpu")
card = torch.cuda.get_device_name() if cuda else "cpu"
LIMIT = float(sys.argv[3]) if len(sys.argv) > 3 and not sys.argv[3].startswith("-") else 1e9
rows = []

def say(*a): print(f"[{PLAN} {time.time()-t0:6.1f}s]", *a, flush=True)

def note(**row):
    rows.append({"card": card, "torch": torch.__version__, **row}); say({k: (round(v, 5) if isinstance(v, float) else v) for k, v in row.items()})
    with open(f"{OUT}/throughput_{PLAN}.json", "w") as f: json.dump(rows, f, indent=0)

params = params_of()
if TINY:
    params["synthesize_pairs"] |= {"size": 32, "canvas_size": 64, "canvases": 8}
    params["models"]["bandset"] |= {"width": 8, "depth": 3}
    params["models"]["pannet"] |= {"width": 8, "depth": 2}; params["models"]["fusionnet"] |= {"width": 8, "depth": 2}
found = materials(params, dev, canvases=8 if TINY else 128, workers=0 if TINY else 12)
say("materials")

def batch_of(bands, n, key):
    b = simulate_pairs(found, bands, n, params["synthesize_pairs"], seeded(1, key, device=dev))
    b = {k: b[k] for k in PAIR}
    return b | {"lms": interpolate(b["ms"], 4)}

def reset(**config):
    torch.compiler.reset(); torch.cuda.empty_cache() if cuda else None
    ind.force_layout_optimization = config.get("layout", False)
    ind.max_autotune_pointwise = config.get("pointwise", False)
    ind.coordinate_descent_tuning = config.get("descent", False)
    ind.max_autotune = config.get("autotune", False)
    torch.backends.cudnn.benchmark = config.get("benchmark", False)

def original(model):
    accelerator = train.make_accelerator("cuda" if cuda else "cpu")
    from accelerate.state import AcceleratorState
    run = train.Run(accelerator, model, params["pretrain"] | ({} if cuda else {"compile": False}))
    return run.model, run.step, None

def new(model, cl, compiled, by_kernels=False):
    m = copy.deepcopy(model).to(dev)
    if cl: fast.channels_last(m)
    if by_kernels:
        import kernels
        kernels.use(m.network)
    opt = fast.optimiser_of(m, params["pretrain"]["lr"], params["pretrain"]["weight_decay"])
    avg = [v.detach().clone() for v in m.parameters()]
    raw = fast.make_step(m, opt, avg, params["pretrain"], compiled=compiled)
    return m, (train.captured(raw) if cuda else raw), raw

def profile(step, batch, name, raw=None):
    from torch.profiler import profile, ProfilerActivity
    with profile(activities=[ProfilerActivity.CUDA]) as prof:
        for _ in range(3): step(batch)
        torch.cuda.synchronize()
    table = {}
    for e in prof.events():
        if e.device_type == torch.autograd.DeviceType.CUDA:
            t = table.setdefault(e.name, [0, 0.0]); t[0] += 1; t[1] += e.device_time_total if hasattr(e, "device_time_total") else e.cuda_time_total
    total = sum(t[1] for t in table.values()) or 1
    lines = [f"{t[1]/3e3:9.3f} ms {t[0]//3:5d} x {100*t[1]/total:5.1f} %  {k[:150]}" for k, t in sorted(table.items(), key=lambda kv: -kv[1][1])]
    with open(f"{OUT}/profile_{PLAN}.txt", "a") as f: f.write(f"== {name}: {total/3e3:.2f} ms of kernels, {sum(t[0] for t in table.values())//3} launches per step\n" + "\n".join(lines[:45]) + "\n")
    say(name, f"kernels {total/3e3:.2f} ms; top:"); print("\n".join(l[:130] for l in lines[:14]), flush=True)

def check(network, bands, **config):
    """float32: loss and gradient of the new step's function against the original's, eager against compiled."""
    reset(**config)
    model = create_model(network, bands=bands, seed=3, **params["models"][network]).to(dev)
    with torch.no_grad():
        for p in model.parameters(): p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)).to(p))
    b = batch_of(bands, 4, "check")
    from pansharp_study.loss import fusion_loss
    def grads(f):
        for p in model.parameters(): p.grad = None
        l = f(); l.backward(); return l.item(), torch.cat([p.grad.flatten() for p in model.parameters()]).double()
    def first(): return fusion_loss(model(b["ms"], b["pan"], b["lms"], 4, mtf=b["mtf_e4"]/1e4).float(), b["gt"], b["lms"])
    def first16():
        with torch.autocast(dev.type, torch.bfloat16): out = model(b["ms"], b["pan"], b["lms"], 4, mtf=b["mtf_e4"]/1e4)
        return fusion_loss(out.float(), b["gt"], b["lms"])
    l0, g0 = grads(first); l16, g16 = grads(first16)
    fast.channels_last(model) if config.get("cl") else None
    up = fast.interpolation(b["ms"].shape[-1], 4, dev)
    f = torch.compile(fast.loss_of, dynamic=False, fullgraph=True) if cuda else fast.loss_of
    l1, g1 = grads(lambda: f(model, b["ms"], b["pan"], b["lms"], b["gt"], b["mtf_e4"]/1e4, up, False))
    l2, g2 = grads(lambda: f(model, b["ms"], b["pan"], b["lms"], b["gt"], b["mtf_e4"]/1e4, up, True))
    rel = lambda a: float((a-g0).norm()/g0.norm())
    note(kind="check", network=network, bands=bands, loss_original=l0, loss_new_rel=abs(l1-l0)/l0, grad_new_rel=rel(g1), grad_bf16_original_rel=rel(g16), grad_bf16_new_rel=rel(g2), config=str(config))

def variant(name, network, bands, n=32, make=original, prof=False, **config):
    if time.time() - t0 > LIMIT: return say("skipped", name)
    try:
        reset(**config); begin = time.time()
        model = create_model(network, bands=bands, seed=1, **(params["models"][network] | config.get("options", {})))
        m, step, raw = make(model)
        b = batch_of(bands, 4 if TINY else n, name)
        for _ in range(7): loss = step(b)
        torch.cuda.synchronize() if cuda else None
        ready = time.time() - begin
        ms = median_ms(lambda: step(b)); again = median_ms(lambda: step(b))
        note(kind="step", variant=name, network=network, options=str(config.get("options", {})), bands=bands, batch=n, step_ms=ms, again_ms=again, pairs_per_s=1e3*n/ms, ready_s=ready, loss=float(loss), peak_gib=torch.cuda.max_memory_allocated()/2**30 if cuda else 0.0)
        if prof and cuda: profile(step, b, f"{name} {network} {bands} bands batch {n}")
        torch.cuda.reset_peak_memory_stats() if cuda else None
    except Exception:
        say("FAILED", name, traceback.format_exc()[-1500:])

def same_matrices():
    import kernels as K
    from pansharp_study import optics
    for k, size, ratio, phase in ((25, 128, 1, None), (35, 128, 1, None), (25, 128, 4, None), (33, 128, 4, 1), (41, 64, 4, None)):
        taps = torch.randn(5, 3, k, device=dev)
        assert torch.equal(K.axis_matrix(taps, size, ratio, phase=phase), optics.axis_matrix(taps, size, ratio, phase=phase)), (k, size, ratio)
    say("matrices are the same")

def simulation():
    if cuda: same_matrices()
    if time.time() - t0 > LIMIT: return
    reset()
    for bands in (8, 4):
        g = seeded(2, bands, device=dev); n = 16 if TINY else 512
        ms = median_ms(lambda: simulate_pairs(found, bands, n, params["synthesize_pairs"], g), repeats=8)
        note(kind="simulation", variant="original", bands=bands, batch=n, step_ms=ms, pairs_per_s=1e3*n/ms)
        if cuda:
            keep = simulate.axis_matrix
            a = simulate_pairs(found, bands, 64, params["synthesize_pairs"], seeded(5, device=dev))
            fast.faster_simulation()
            c = simulate_pairs(found, bands, 64, params["synthesize_pairs"], seeded(5, device=dev))
            ms = median_ms(lambda: simulate_pairs(found, bands, n, params["synthesize_pairs"], g), repeats=8)
            note(kind="simulation", variant="axis_matrix one kernel", bands=bands, batch=n, step_ms=ms, pairs_per_s=1e3*n/ms, same=bool(all(torch.equal(a[k], c[k]) for k in a)))
            simulate.axis_matrix = keep

def ceilings():
    if not cuda: return
    x = torch.randn(2**30, device=dev); y = torch.empty_like(x)
    ms = median_ms(lambda: y.copy_(x)); del x, y
    a, b = (torch.randn(8192, 8192, device=dev, dtype=torch.bfloat16) for _ in range(2))
    mm = median_ms(lambda: a @ b)
    note(kind="ceiling", copy_tb_s=2*4*2**30/ms/1e9, bf16_tflop_s=2*8192**3/mm/1e9)

def test_kernels():
    import kernels as K
    torch.backends.cudnn.allow_tf32 = False
    rel = lambda a, b: float((a.double() - b.double()).norm() / b.double().norm())
    g0 = torch.Generator(device=dev).manual_seed(7)
    rnd = lambda *sh, k=1.0: k * torch.randn(*sh, generator=g0, device=dev)
    for bands in (4, 8, 3):
        n = {4: 40, 8: 64, 3: 33}[bands]  # several tiles per thread block
        w = [rnd(48, 48, 3, 3, k=.06), rnd(48, k=.1), rnd(48, 32, 3, 3, k=.06), rnd(48, k=.1), rnd(48, 32, 3, 3, k=.06), rnd(12, 48, k=.3), rnd(12, k=.3), rnd(48, 12, k=.5), rnd(48, k=.3)]
        mw, mb, ow, ob, pw, sw, sb, ew, eb = w
        x, g = rnd(n, 64, 64, 48).bfloat16(), rnd(n, 64, 64, 48).bfloat16()
        a = K.fwd_cuda(x, *w, bands); torch.cuda.synchronize()
        b = K.fwd_plain(x.float(), *w, bands)
        note(kind="kernels forward", bands=bands, **{k: rel(u, v) for k, u, v in zip(("out", "y", "z", "p", "s", "m1", "h1"), a, b)})
        c = K.bwd_cuda(g, x, *a[1:], mw, ow, pw, sw, ew, bands); torch.cuda.synchronize()
        d = K.bwd_plain(g.float(), x.float(), *(v.float() for v in a[1:]), mw, ow, pw, sw, ew, bands)
        note(kind="kernels backward", bands=bands, **{k: rel(u, v) for k, u, v in zip(("dx", "dmw", "dmb", "dow", "dob", "dpw", "dsw", "dsb", "dew", "deb"), c, d)})
        assert all(rel(u, v) < 2e-2 for u, v in zip((*a, *c), (*b, *d))), "kernels are wrong"
    n, bands = 256, 8
    x, g = rnd(n, 64, 64, 48).bfloat16(), rnd(n, 64, 64, 48).bfloat16()
    a = K.fwd_cuda(x, *w, bands); y, z, p = a[1:4]; out = torch.empty_like(x)
    (mf, md), (of, od), (pf, pd) = K.prepared(mw), K.prepared(ow), K.prepared(pw)
    ps = x.new_empty(n * 8, 48, dtype=torch.float32); pooled = x.new_empty(32, 64, 64, 48)
    for name, f, gflop in (("mix fwd", lambda: K.conv(x, 48, mf, 48, 48, 0, out, 48, bias=mb), 43.5), ("own fwd", lambda: K.conv(y, 48, of, 32, 48, 1, out, 48, bias=ob, extra=pooled, lde=48, psum=ps, bands=bands), 29),
                    ("own dgrad", lambda: K.conv(z, 48, od, 48, 32, 2, out, 48, extra=y, lde=48), 29), ("mix dgrad", lambda: K.conv(z, 48, md, 48, 48, 3, out, 48, extra=g, lde=48), 43.5),
                    ("mix wgrad", lambda: K.wgrad(x, 48, z, 48, 48), 43.5), ("own wgrad", lambda: K.wgrad(y, 48, z, 32, 48), 29),
                    ("pooled wgrad", lambda: K.wgrad(p, 32, pooled, 32, 48), 3.6), ("pooled fwd", lambda: K.conv(p, 32, pf, 32, 48, 4, torch.empty_like(pooled), 48), 3.6), ("prepare", lambda: K.prepared(mw), 0),
                    ("block fwd", lambda: K.fwd_cuda(x, *w, bands), 76), ("block bwd", lambda: K.bwd_cuda(g, x, *a[1:], mw, ow, pw, sw, ew, bands), 152)):
        f(); torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph): f()
        ms = median_ms(graph.replay)
        note(kind="kernel time", name=name, us=1e3 * ms, tflop_s=gflop / ms)
    torch.backends.cudnn.allow_tf32 = True

N = dict(make=lambda m: new(m, True, cuda), layout=True, benchmark=True)
KN = dict(make=lambda m: new(m, True, cuda, True), layout=True, benchmark=True)
W96 = {"width": 96}
plans = {
 "c": lambda: (test_kernels(), simulation(), variant("kernels", "bandset", 8, prof=True, **KN), variant("kernels", "bandset", 4, **KN)),
 "e": lambda: (variant("whole", "pannet", 8, prof=True, **N), variant("whole", "fusionnet", 8, **N), variant("original", "bandset", 8, options=W96)),
 "d": lambda: (variant("whole", "bandset", 8, prof=True, options=W96, **N), simulation(), variant("whole", "bandset", 4, options=W96, **N), variant("whole", "pannet", 8, prof=True, **N), variant("whole", "fusionnet", 8, **N)),
 "a": lambda: (ceilings(), variant("original", "bandset", 8, prof=True), variant("layout", "bandset", 8, layout=True, prof=True),
               variant("layout+benchmark", "bandset", 8, layout=True, benchmark=True), variant("original", "bandset", 4), variant("benchmark", "bandset", 8, benchmark=True),
               variant("original", "pannet", 8), variant("original", "fusionnet", 8)),
 "b": lambda: (check("bandset", 8, layout=True, cl=True), variant("whole", "bandset", 8, prof=True, **N), variant("whole", "bandset", 4, prof=True, **N),
               variant("whole", "bandset", 8, prof=False, options={"width": 96}, **N), variant("whole", "bandset", 8, n=64, **N),
               simulation(), variant("whole", "pannet", 8, prof=True, **N), variant("whole", "fusionnet", 8, **N),
               variant("whole+pointwise", "bandset", 8, pointwise=True, **N)),
}
plans[PLAN]()
say("done")
