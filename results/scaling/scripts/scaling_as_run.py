"""Scaling run: BandSet of one width, warmup-stable-decay, annealed branches at several points. One process per GPU.

scaling.py --width 48 --way kernels --out DIR --deadline SECONDS --points 125000 250000 ... [--resume trunk_a.pt trunk_b.pt]
The trunk: warm-up over WARM steps, then a constant rate. At each point the state is set aside, annealed for SHARE of the steps so far
(rate times 1 - sqrt(k/n)) on pairs of another stream, its weights are written, and the trunk goes on from where it was.
Pairs follow from the step alone (simulate.Stream), so a resumed run sees new ones; 4 and 8 bands take turns.
"""
import argparse, json, math, os, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
BEGIN = time.time()
import common
import torch
import torch._inductor.config as ind
from common import params_of, materials
import fast
from pansharp_study.core import seeded
from pansharp_study.models import count_parameters, create_model, interpolate, save_weights
from pansharp_study.simulate import PAIR, Stream, simulate_pairs

WARM, SHARE = 500, 0.15
BANDS = (4, 8)


class Ahead:
    """Batches by step, simulated one chunk ahead by a thread on a stream of its own."""

    def __init__(self, stream, device, threaded=True):
        self.stream, self.device, self.chunk, self.future, self.made, self.events = stream, device, None, None, {}, []
        self.cuda = device.type == "cuda"
        self.pool = ThreadPoolExecutor(1) if threaded and self.cuda else None
        self.side = torch.cuda.Stream() if self.cuda else None

    def make(self, chunk):
        if not self.cuda:
            self.stream._make(chunk)
            return {k: b | {"lms": interpolate(b["ms"], 4)} for k, b in self.stream.made.items()}, None
        with torch.cuda.stream(self.side):
            self.stream._make(chunk)
            made = {k: b | {"lms": interpolate(b["ms"], 4)} for k, b in self.stream.made.items()}
            event = torch.cuda.Event()
            event.record(self.side)
        return made, event

    def __call__(self, step):
        chunk = step // self.stream.ahead
        if chunk != self.chunk:
            ready = self.future[1].result() if self.future and self.future[0] == chunk else None
            if ready is None and self.future:
                self.future[1].result()  # let the thread end before this one uses the stream
            self.made, event = ready or self.make(chunk)
            if event is not None:
                self.events.append(torch.cuda.Event())
                self.events[-1].record()
                if len(self.events) > 2:  # at most two chunks wait on the GPU
                    self.events.pop(0).synchronize()
                torch.cuda.current_stream().wait_event(event)
                for b in self.made.values():
                    for v in b.values():
                        v.record_stream(torch.cuda.current_stream())
            self.chunk = chunk
            self.future = (chunk + 1, self.pool.submit(self.make, chunk + 1)) if self.pool else None
        return self.made[step]


def captured(step, eager=4):
    """train.captured, in a mode that lets other threads work meanwhile."""
    graphs, calls, pool = {}, {}, None

    def replay(batch):
        nonlocal pool
        shape = tuple(v.shape for v in batch.values())
        calls[shape] = calls.get(shape, 0) + 1
        if calls[shape] <= eager:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                loss = step(batch)
            torch.cuda.current_stream().wait_stream(side)
            return loss
        if shape not in graphs:
            torch.cuda.synchronize()
            held, graph = {k: v.clone() for k, v in batch.items()}, torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                loss = step(held)
            graphs[shape] = held, graph, loss
        held, graph, loss = graphs[shape]
        for k, v in batch.items():
            held[k].copy_(v)
        graph.replay()
        return loss

    return replay


class Trunk:
    def __init__(self, args, params, device):
        options = params["models"]["bandset"] | {"width": args.width} | ({"depth": args.depth} if args.depth else {})
        self.params, self.device, self.args = params, device, args
        self.model = create_model("bandset", bands=None, seed=params["seed"], **options).to(device)
        if device.type == "cuda":
            fast.channels_last(self.model)
        if args.way == "kernels":
            import kernels
            kernels.use(self.model.network)
        self.optimiser = fast.optimiser_of(self.model, args.lr, params["pretrain"]["weight_decay"])
        self.parameters = list(self.model.parameters())
        self.average = [p.detach().clone() for p in self.parameters]
        raw = fast.make_step(self.model, self.optimiser, self.average, params["pretrain"], compiled=device.type == "cuda")
        self.step = captured(raw) if device.type == "cuda" else raw
        self.done = 0

    def tensors(self):
        state = self.optimiser.state
        return [*self.parameters, *self.average, *(state[p][k] for p in self.parameters for k in ("exp_avg", "exp_avg_sq", "step"))]

    def rate(self, value):
        for g in self.optimiser.param_groups:
            g["lr"].fill_(value) if isinstance(g["lr"], torch.Tensor) else g.update(lr=value)

    @torch.no_grad()
    def set_aside(self):
        return [t.detach().clone() for t in self.tensors()]

    @torch.no_grad()
    def take_back(self, kept):
        for t, k in zip(self.tensors(), kept):
            t.copy_(k)

    def parts(self):
        """Two dictionaries of tensors and plain values, each below 16 MiB for a width of 96."""
        names, state = [n for n, _ in self.model.named_parameters()], self.optimiser.state
        plain = {"done": self.done, "width": self.args.width, "lr": self.args.lr, "warm": WARM, "batch": self.params["pretrain"]["batch"], "bands": list(BANDS)}
        cpu = lambda t: t.detach().cpu().clone().contiguous()
        return ({"plain": plain, "model": {n: cpu(p) for n, p in zip(names, self.parameters)}, "average": {n: cpu(p) for n, p in zip(names, self.average)}},
                {"plain": plain, **{k: {n: cpu(state[p][k]) for n, p in zip(names, self.parameters)} for k in ("exp_avg", "exp_avg_sq", "step")}})

    def save(self, folder):
        for letter, part in zip("ab", self.parts()):
            path = folder / f"trunk_{self.args.width}_{letter}.pt"
            torch.save(part, str(path) + ".part")
            os.replace(str(path) + ".part", path)

    @torch.no_grad()
    def load(self, a, b):
        """Needs one step made before, so that the moments exist."""
        a, b = (torch.load(p, map_location="cpu", weights_only=True) for p in (a, b))
        for (n, p), m in zip(self.model.named_parameters(), self.average):
            p.copy_(a["model"][n]), m.copy_(a["average"][n])
            for k in ("exp_avg", "exp_avg_sq", "step"):
                self.optimiser.state[p][k].copy_(b[k][n])
        self.done = a["plain"]["done"]


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--width", type=int, required=True); ap.add_argument("--depth", type=int); ap.add_argument("--way", choices=["kernels", "whole"], required=True)
    ap.add_argument("--out", type=Path, required=True); ap.add_argument("--deadline", type=float, required=True, help="seconds after the epoch")
    ap.add_argument("--points", type=int, nargs="*", default=[]); ap.add_argument("--lr", type=float, default=1e-3)
    ap.add_argument("--resume", nargs=2); ap.add_argument("--cache"); ap.add_argument("--tiny", action="store_true"); ap.add_argument("--log-every", type=int, default=500)
    args = ap.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    params = params_of()
    if args.tiny:
        params["synthesize_pairs"] |= {"size": 128 if cuda else 64, "canvas_size": 128, "canvases": 8}; params["pretrain"]["batch"] = 4
    batch, rows = params["pretrain"]["batch"], []
    card = torch.cuda.get_device_name() if cuda else "cpu"

    def note(**row):
        rows.append({"t": round(time.time() - BEGIN, 1), "width": args.width, "card": card, **row})
        print(rows[-1], flush=True)
        (args.out / f"log_{args.width}.json").write_text(json.dumps(rows, indent=0))

    ind.force_layout_optimization, torch.backends.cudnn.benchmark = True, True
    found = materials(params, device, cache=args.cache, workers=0 if args.tiny else None)
    note(event="materials")
    if cuda:
        fast.faster_simulation()
    run = Trunk(args, params, device)
    seed = (params["seed"], "issue15")
    trunk_stream = Ahead(Stream(found, BANDS, params["synthesize_pairs"], batch, (*seed, "trunk")), device)
    held = []
    for bands in BANDS:
        b = simulate_pairs(found, bands, 8 if args.tiny else 256, params["synthesize_pairs"], seeded(*seed, "validation", bands, device=device))
        b = {k: b[k] for k in PAIR}
        held.append(b | {"lms": interpolate(b["ms"], 4)})

    @torch.no_grad()
    def validate():
        out = []
        for b in held:
            up, n, total = fast.interpolation(b["ms"].shape[-1], 4, device), len(b["pan"]), 0.0
            for at in torch.arange(n, device=device).split(32):
                c = {k: v[at] for k, v in b.items()}
                total += float(fast.loss_of(run.model, c["ms"], c["pan"], c["lms"], c["gt"], c["mtf_e4"] / 1e4, up, True)) * len(at)
            out.append(total / n)
        return out

    # compile and capture on two throw-away shapes, before anything else runs
    first = {k: v.clone() for k, v in zip(range(len(run.parameters)), [p.detach() for p in run.parameters])}
    warm = Ahead(Stream(found, BANDS, params["synthesize_pairs"], batch, (*seed, "warm")), device, threaded=False)
    run.rate(0.0)
    for k in range(12 if cuda else 2):
        run.step(warm(k))
    with torch.no_grad():
        for k, p in enumerate(run.parameters):
            p.copy_(first[k]), run.average[k].copy_(first[k])
            for key in ("exp_avg", "exp_avg_sq", "step"):
                run.optimiser.state[p][key].zero_()
    if args.resume:
        run.load(*args.resume)
    del warm
    note(event="ready", parameters=count_parameters(run.model), done=run.done)
    running, last, clock = torch.zeros((), device=device), run.done, time.time()
    branch_seconds = 0.0

    def anneal(point):
        """A branch; the trunk is as before afterwards."""
        nonlocal branch_seconds
        if cuda: torch.cuda.synchronize()
        begin, kept, ema = time.time(), run.set_aside(), [a.clone() for a in run.average]
        steps = max(1, round(SHARE * run.done))
        stream = Ahead(Stream(found, BANDS, params["synthesize_pairs"], batch, (*seed, "anneal", run.done)), device)
        v_trunk = validate()
        loss = torch.zeros((), device=device)
        for k in range(steps):
            run.rate(args.lr * (1 - math.sqrt((k + 1) / steps)))
            loss += run.step(stream(k))
        v_annealed = validate()
        pairs = run.done * batch
        notes = {"scale": "h100", "steps": run.done + steps, "samples": (run.done + steps) * batch, "trunk_samples": pairs}
        half(run.model, args.out / f"bandset_w{args.width}_{pairs}_annealed.safetensors", notes)
        run.take_back(kept)
        with torch.no_grad():
            for p, a in zip(run.parameters, ema): p.copy_(a)
        v_ema = validate()
        half(run.model, args.out / f"bandset_w{args.width}_{pairs}_ema.safetensors", notes | {"steps": run.done, "samples": pairs})
        run.take_back(kept)
        branch_seconds += time.time() - begin
        note(event="annealed", point=point, trunk_pairs=pairs, branch_steps=steps, pairs_with_branch=pairs + steps * batch, train_loss=float(loss) / steps,
             validation_trunk=v_trunk, validation_annealed=v_annealed, validation_ema=v_ema, seconds=round(time.time() - begin, 1))
        if stream.future: stream.future[1].result()
        return time.time() - begin

    points, last_point = sorted(p for p in args.points if p > run.done * batch), 0
    speed = None
    while True:
        left = args.deadline - time.time()
        pairs = run.done * batch
        if speed and run.done % 32 == 0:
            need = SHARE * pairs / speed * 1.15 + 12
            if left < need and last_point < 0.8 * pairs:
                if cuda: torch.cuda.synchronize()
                run.save(args.out)
                note(event="trunk saved", done=run.done, pairs=pairs, why="time")
                anneal("time")
                last_point = pairs
        if left < 6:
            break
        if points and pairs >= points[0]:
            run.save(args.out)
            anneal(points.pop(0)); last_point = pairs
            running.zero_(); last, clock = run.done, time.time()
            continue
        run.rate(args.lr * min(1.0, (run.done + 1) / WARM))
        running += run.step(trunk_stream(run.done))
        run.done += 1
        if run.done % args.log_every == 0:
            mean, n = float(running) / (run.done - last), run.done - last  # waits for the GPU
            speed = n * batch / (time.time() - clock)
            note(event="trunk", done=run.done, pairs=run.done * batch, train_loss=mean, pairs_per_s=round(speed))
            if not math.isfinite(mean):
                note(event="NOT FINITE"); break
            running.zero_(); last, clock = run.done, time.time()
    if cuda: torch.cuda.synchronize()
    run.save(args.out)
    note(event="end", done=run.done, pairs=run.done * batch)
    (args.out / f"finished_{args.width}").write_text("yes")
    os._exit(0)


def half(model, path, notes):
    """Weights in float16, in the package's format."""
    import copy
    class Copy: pass
    c = Copy()
    c.recipe, c.options = model.recipe, model.options
    c.state_dict = lambda: {k: v.detach().half() for k, v in model.state_dict().items()}
    save_weights(c, path, **notes)


if __name__ == "__main__":
    main()
