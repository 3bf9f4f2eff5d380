"""BandSet's block (width 48) as one operator: forward and backward by kernels.cu on a GPU, by plain PyTorch elsewhere (for tests)."""
from functools import lru_cache
from pathlib import Path

import torch
from torch.nn import functional as F

WIDTH, OWN, SHARED = 48, 32, 16
BLOCKS = 132


@lru_cache(maxsize=1)
def module():
    import cupy

    return cupy.RawModule(path=str(Path(__file__).with_name("kernels.cubin")))


@lru_cache(maxsize=None)
def kernel(name, shared=0):
    k = module().get_function(name)
    if shared:
        k.max_dynamic_shared_size_bytes = shared
    return k


def launch(name, grid, block, args, shared=0):
    import cupy
    import numpy as np

    def value(a):
        if isinstance(a, torch.Tensor):
            return np.uint64(a.data_ptr())
        return np.uint64(0) if a is None else (np.float32(a) if isinstance(a, float) else a if isinstance(a, np.generic) else np.int32(a))

    with cupy.cuda.ExternalStream(torch.cuda.current_stream().cuda_stream):
        kernel(name, shared)(grid if isinstance(grid, tuple) else (grid,), (block,), tuple(value(a) for a in args), shared_mem=shared)


def pitch(n):
    return (n // 8 | 1) * 8


def conv(x, ldx, weight, cin, cout, mode, out, ldy, bias=None, extra=None, lde=0, psum=None, bands=1):
    n, h, w = x.shape[:3]
    assert h % 16 == 0 and w % 32 == 0 and x.is_contiguous() and out.is_contiguous()
    shared = (9 * cout * pitch(cin) + 2 * max(18 * 34 * pitch(cin), 512 * (cout + 8))) * 2
    launch(f"conv_{cin}_{cout}_{mode}", min(BLOCKS, n * (h // 16) * (w // 32)), 256, (x, ldx, weight, bias, out, ldy, extra, lde, psum, n, h, w, bands), shared)
    return out


def wgrad(x, ldx, d, ci, co, bias=True):
    n, h, w = x.shape[:3]
    blocks = min(BLOCKS, n * (h // 16) * (w // 16))
    part, pbias = x.new_empty(blocks, 9, ci, co, dtype=torch.float32), x.new_empty(blocks, co, dtype=torch.float32)
    launch(f"wgrad_{ci}_{co}", blocks, 576, (x, ldx, d, co, part, pbias, n, h, w), 2 * (18 * 18 * pitch(ci) + 256 * pitch(co)) * 2)
    dw, db = part.new_empty(co, ci, 3, 3), part.new_empty(co)
    launch("reduce_w", -(-(9 * ci * co + co) // 128), 128, (part, pbias, dw, db, blocks, ci, co))
    return dw, db


def prepared(w):
    co, ci = w.shape[:2]
    wf, wd = w.new_empty(9, co, ci, dtype=torch.bfloat16), w.new_empty(9, ci, co, dtype=torch.bfloat16)
    launch("prepare_w", -(-w.numel() // 256), 256, (w.contiguous(), wf, wd, co, ci))
    return wf, wd


def each(count):
    return -(-count // 256)


# ---- plain PyTorch, the same results; (N,H,W,width) in, any float type
def _c(x):
    return x.permute(0, 3, 1, 2)


def _h(x):
    return x.permute(0, 2, 3, 1).contiguous()


def fwd_plain(x, mw, mb, ow, ob, pw, sw, sb, ew, eb, bands):
    y = _h(torch.relu(F.conv2d(_c(x), mw.to(x), mb.to(x), padding=1)))
    sh = y[..., ow.shape[1]:].unflatten(0, (-1, bands))
    p = torch.cat([sh.mean(1), sh.amax(1)], -1)
    pooled = F.conv2d(_c(p), pw.to(x), padding=1)
    z = F.conv2d(_c(y[..., :ow.shape[1]]), ow.to(x), ob.to(x), padding=1)
    z = _h((z.unflatten(0, (-1, bands)) + pooled[:, None]).flatten(0, 1))
    m = z.float().abs().mean((1, 2))
    h = torch.relu(m @ sw.T + sb)
    s = 2 * torch.sigmoid(h @ ew.T + eb)
    one = m.new_ones(len(m), 1)
    return x + (z * s[:, None, None].to(z)), y, z, p.contiguous(), s, torch.cat([m, one], 1), torch.cat([h, one], 1)


def bwd_plain(g, x, y, z, p, s, m1, h1, mw, ow, pw, sw, ew, bands):
    area, own = x.shape[1] * x.shape[2], ow.shape[1]
    ds = (g.float() * z.float()).sum((1, 2))
    dpre = ds * s * (1 - 0.5 * s)
    dh = (dpre @ ew) * (h1[:, :-1] > 0)
    dm = dh @ sw / area
    dz = (g * s[:, None, None].to(g) + torch.sign(z) * dm[:, None, None].to(z))
    dpool = dz.unflatten(0, (-1, bands)).sum(1)
    grad_in, grad_w = torch.nn.grad.conv2d_input, torch.nn.grad.conv2d_weight
    dp = _h(grad_in(_c(p).shape, pw.to(x), _c(dpool), padding=1))
    dpw = grad_w(_c(p), pw.shape, _c(dpool), padding=1).float()
    down = _h(grad_in(_c(y[..., :own]).shape, ow.to(x), _c(dz), padding=1)) * (y[..., :own] > 0)
    dow, dob = grad_w(_c(y[..., :own]), ow.shape, _c(dz), padding=1).float(), dz.float().sum((0, 1, 2))
    k = y.shape[-1] - own
    shared, most = y[..., own:].unflatten(0, (-1, bands)), p[..., k:][:, None]
    same = (shared == most).to(y)
    dsh = (dp[..., :k][:, None] / bands + dp[..., k:][:, None] / same.sum(1, keepdim=True) * same) * (shared > 0)
    dy = torch.cat([down, dsh.flatten(0, 1)], -1)
    dmw, dmb = grad_w(_c(x), mw.shape, _c(dy), padding=1).float(), dy.float().sum((0, 1, 2))
    dx = g + _h(grad_in(_c(x).shape, mw.to(x), _c(dy), padding=1))
    return dx.contiguous(), dmw, dmb, dow, dob, dpw, *_mlp_grads(dpre, dh, m1, h1)


def _mlp_grads(dpre, dh, m1, h1):
    e, s = dpre.T @ h1, dh.T @ m1
    return s[:, :-1].contiguous(), s[:, -1].contiguous(), e[:, :-1].contiguous(), e[:, -1].contiguous()


def fwd_cuda(x, mw, mb, ow, ob, pw, sw, sb, ew, eb, bands):
    n, h, w, width = x.shape
    scenes, area, mid = n // bands, h * w, sw.shape[0]
    (mf, _), (of, _), (pf, _) = prepared(mw), prepared(ow), prepared(pw)
    y, z, out = (torch.empty_like(x) for _ in range(3))
    p, pooled = x.new_empty(scenes, h, w, 2 * SHARED), x.new_empty(scenes, h, w, width)
    conv(x, width, mf, width, width, 0, y, width, bias=mb)
    launch("pool_fwd", each(scenes * area * (SHARED // 8)), 256, (y, p, scenes, bands, area, width, OWN))
    conv(p, 2 * SHARED, pf, 2 * SHARED, width, 4, pooled, width)
    per = (h // 16) * (w // 32)
    psum = x.new_empty(n * per, width, dtype=torch.float32)
    conv(y, width, of, OWN, width, 1, z, width, bias=ob, extra=pooled, lde=width, psum=psum, bands=bands)
    s, m1, h1 = psum.new_empty(n, width), psum.new_empty(n, width + 1), psum.new_empty(n, mid + 1)
    launch("mlp_fwd", n, 64 * -(-(width + 1) // 64), (psum, sw, sb, ew, eb, s, m1, h1, per, width, mid, 1.0 / area))
    import numpy as np

    launch("scale_add", each(n * area * (width // 8)), 256, (x, z, s, out, np.int64(n * area * (width // 8)), area, width))
    return out, y, z, p, s, m1, h1


def bwd_cuda(g, x, y, z, p, s, m1, h1, mw, ow, pw, sw, ew, bands):
    n, h, w, width = x.shape
    scenes, area, mid, parts = n // bands, h * w, sw.shape[0], 8
    (_, md), (_, od), (_, pd) = prepared(mw), prepared(ow), prepared(pw)
    g = g.contiguous()
    dsp = x.new_empty(n * parts, width, dtype=torch.float32)
    launch("ds_reduce", (n, parts), 32 * width // 8, (g, z, dsp, area, width))
    dpre, dh, dm = s.new_empty(n, width), s.new_empty(n, mid), s.new_empty(n, width)
    launch("mlp_bwd", n, 64 * -(-(width + 1) // 64), (dsp, s, h1, sw, ew, dpre, dh, dm, parts, width, mid, 1.0 / area))
    dz, dpool = torch.empty_like(x), x.new_empty(scenes, h, w, width)
    launch("dz_kernel", each(scenes * area * (width // 8)), 256, (g, z, s, dm, dz, dpool, scenes, bands, area, width))
    dp = conv(dpool, width, pd, width, 2 * SHARED, 4, torch.empty_like(p), 2 * SHARED)
    dpw, _ = wgrad(p, 2 * SHARED, dpool, 2 * SHARED, width)
    dow, dob = wgrad(y, width, dz, OWN, width)
    dy = torch.empty_like(x)
    conv(dz, width, od, width, OWN, 2, dy, width, extra=y, lde=width)
    launch("pool_bwd", each(scenes * area * (SHARED // 8)), 256, (y, p, dp, dy, scenes, bands, area, width, OWN))
    dmw, dmb = wgrad(x, width, dy, width, width)
    dx = conv(dy, width, md, width, width, 3, torch.empty_like(x), width, extra=g, lde=width)
    return dx, dmw, dmb, dow, dob, dpw, *_mlp_grads(dpre, dh, m1, h1)


def axis_matrix(taps, size, ratio=1, *, phase=None):
    """optics.axis_matrix by one kernel, bit for bit; only for tensors that need no gradient."""
    import numpy as np

    from pansharp_study import optics

    half, phase = taps.shape[-1] // 2, ratio // 2 if phase is None else phase
    if not taps.is_cuda or half >= size or taps.dtype != torch.float32:
        return optics.axis_matrix(taps, size, ratio, phase=phase)
    out = taps.new_empty(*taps.shape[:-1], size // ratio, size)
    launch("axis_matrix", each(out.numel()), 256, (taps.contiguous(), out, np.int64(out.numel()), half, size // ratio, size, ratio, phase))
    return out


T = torch.Tensor


@torch.library.custom_op("ps::block_fwd", mutates_args=())
def block_fwd(x: T, mw: T, mb: T, ow: T, ob: T, pw: T, sw: T, sb: T, ew: T, eb: T, bands: int, rows: int) -> tuple[T, T, T, T, T, T, T]:
    with torch.autocast(x.device.type, enabled=False):
        out, y, z, p, *rest = (fwd_cuda if x.is_cuda and x.dtype == torch.bfloat16 else fwd_plain)(x.contiguous().unflatten(1, (rows, -1)), mw, mb, ow, ob, pw, sw, sb, ew, eb, bands)
        return *(v.flatten(1, 2) for v in (out, y, z, p)), *rest


@block_fwd.register_fake
def _(x, mw, mb, ow, ob, pw, sw, sb, ew, eb, bands, rows):
    n, area, width = x.shape
    full = lambda *s, dtype=x.dtype: torch.empty(s, dtype=dtype, device=x.device)
    f = torch.float32
    return full(n, area, width), full(n, area, width), full(n, area, width), full(n // bands, area, pw.shape[1]), full(n, width, dtype=f), full(n, width + 1, dtype=f), full(n, sw.shape[0] + 1, dtype=f)


@torch.library.custom_op("ps::block_bwd", mutates_args=())
def block_bwd(g: T, x: T, y: T, z: T, p: T, s: T, m1: T, h1: T, mw: T, ow: T, pw: T, sw: T, ew: T, bands: int, rows: int) -> tuple[T, T, T, T, T, T, T, T, T, T]:
    with torch.autocast(x.device.type, enabled=False):
        g, x, y, z, p = (v.contiguous().unflatten(1, (rows, -1)) for v in (g, x, y, z, p))
        dx, *rest = (bwd_cuda if x.is_cuda and x.dtype == torch.bfloat16 else bwd_plain)(g, x, y, z, p, s, m1, h1, mw, ow, pw, sw, ew, bands)
        return dx.flatten(1, 2), *rest


@block_bwd.register_fake
def _(g, x, y, z, p, s, m1, h1, mw, ow, pw, sw, ew, bands, rows):
    f = lambda *shape: torch.empty(shape, dtype=torch.float32, device=x.device)
    width, mid = mw.shape[0], sw.shape[0]
    return (torch.empty(x.shape, dtype=x.dtype, device=x.device), f(*mw.shape), f(width), f(*ow.shape), f(width), f(*pw.shape), f(mid, width), f(mid), f(width, mid), f(width))


def _setup(ctx, inputs, output):
    x, mw, mb, ow, ob, pw, sw, sb, ew, eb, ctx.bands, ctx.rows = inputs
    ctx.save_for_backward(x, *output[1:], mw, ow, pw, sw, ew)


def _backward(ctx, g, *_):
    return (*torch.ops.ps.block_bwd(g, *ctx.saved_tensors, ctx.bands, ctx.rows), None, None)


block_fwd.register_autograd(_backward, setup_context=_setup)


def block(b, x, bands, rows):
    """A SetBlock of BandSet, on (B*C,H*W,width)."""
    r = b.recalibrate
    return block_fwd(x, b.mix.weight, b.mix.bias, b.own.weight, b.own.bias, b.pooled.weight, r.squeeze.weight, r.squeeze.bias, r.excite.weight, r.excite.bias, bands, rows)[0]


def features(self, lms, told):
    """BandSet.features with these blocks; the head's first block belongs to output."""
    (batch, bands, height, width), s = lms.shape, self.stride
    common, own, _, facts = self.inputs(lms, told)
    fill = (s, s + -width % s, s, s + -height % s)
    common, own = (F.pixel_unshuffle(F.pad(x, fill, mode="replicate"), s) for x in (common, own.flatten(0, 1)))
    common = self.stem_common(common)
    if self.stem_facts is not None:
        common = common + self.stem_facts(facts)[..., None, None]
    from pansharp_study.agnostic import to_bands

    x = torch.relu(to_bands(self.stem_band(own), common))
    rows = x.shape[2]
    x = x.permute(0, 2, 3, 1).flatten(1, 2)
    for b in self.body:
        x = block(b, x, bands, rows)
    return block(self.head[0], x, bands, rows).unflatten(1, (rows, -1)).permute(0, 3, 1, 2)


def output(self, features, lms, told):
    (batch, bands, height, width), details = lms.shape, self.inputs(lms, told)[2]
    x = torch.relu(F.pixel_shuffle(self.head[1](features), self.stride))
    maps = self.head[2](x)[..., :height, :width].unflatten(0, (batch, bands))
    return sum((maps[:, :, k + 1] * d for k, d in enumerate(details)), maps[:, :, 0])


def use(network):
    """Let a BandSet of width 48 run by these kernels."""
    import types

    network.features, network.output = types.MethodType(features, network), types.MethodType(output, network)
    return network
