"""What must hold for any image: ideal values, order, scale, constants, masks."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from pansharp_study import classical, metrics
from pansharp_study.optics.filters import BORDERS
from pansharp_study.optics.sensors import get_sensor
from pansharp_study.optics.wald import degrade, upsample

few = settings(deadline=None, derandomize=True, max_examples=8, database=None)
very_few = settings(few, max_examples=3)

PEAK = 2047
REDUCED = {
    "sam": metrics.sam,
    "ergas": metrics.ergas,
    "q": metrics.q,
    "q2n": metrics.q2n,
    "scc": metrics.scc,
    "rmse": metrics.rmse,
    "cc": metrics.cc,
    "psnr": lambda f, g, **given: metrics.psnr(f, g, PEAK, **given),
    "ssim": lambda f, g, **given: metrics.ssim(f, g, PEAK, **given),
}
FULL = {
    name: getattr(metrics, name)
    for name in ("d_lambda", "d_s", "qnr", "d_lambda_k", "hqnr", "d_rho", "r_sam", "r_ergas", "r_q2n")
}
IDEAL = {
    "sam": 0,
    "ergas": 0,
    "rmse": 0,
    "psnr": math.inf,
    "q": 1,
    "q2n": 1,
    "scc": 1,
    "ssim": 1,
    "cc": 1,
    "r_sam": 0,
    "r_ergas": 0,
    "r_q2n": 1,
}
RANGE = {
    "sam": (0, 180),
    "ergas": (0, math.inf),
    "rmse": (0, math.inf),
    "psnr": (-math.inf, math.inf),
    "q": (-1, 1),
    "q2n": (0, 1),
    "scc": (0, 1),
    "ssim": (-1, 1),
    "cc": (-1, 1),
    "d_lambda": (0, 2),
    "d_s": (0, 2),
    "qnr": (-1, 1),
    "d_lambda_k": (0, 1),
    "hqnr": (-1, 1),
    "d_rho": (0, 2),
    "r_sam": (0, 180),
    "r_ergas": (0, math.inf),
    "r_q2n": (0, 1),
}
BANDED = {"q2n", "d_lambda_k", "hqnr", "r_q2n"}  # hypercomplex: the order of the bands is part of the number

seeds, gains = st.integers(0, 2**31), st.floats(0.1, 10)
values = st.floats(0, 65535) | st.just(0.0)


def picture(generator, batch: int, bands: int, rows: int, columns: int) -> torch.Tensor:
    """Smooth shapes, related bands and noise, in whole DN."""
    coarse = torch.rand(batch, 1, rows // 8 + 2, columns // 8 + 2, generator=generator, dtype=torch.float64)
    shapes = torch.nn.functional.interpolate(coarse, (rows, columns), mode="bilinear")
    own = torch.rand(batch, bands, 1, 1, generator=generator, dtype=torch.float64)
    return (
        100
        + 900 * own * shapes
        + 60 * torch.rand(batch, bands, rows, columns, generator=generator, dtype=torch.float64)
    ).round()


@st.composite
def pairs(draw, batch=2):
    """(fused, gt) of any band count and size from 32 pixels."""
    generator = torch.Generator().manual_seed(draw(seeds))
    shape = draw(st.integers(1, 9)), draw(st.integers(32, 70)), draw(st.integers(32, 70))
    gt = picture(generator, batch, *shape)
    return gt + (
        draw(st.floats(1, 60)) * torch.randn(gt.shape, generator=generator, dtype=torch.float64)
    ).round().clamp(-90, 90), gt


@st.composite
def scenes(draw, batch=2):
    """A four-band scene at full resolution; its sensor has equal gains for all bands, so that bands can be
    exchanged.
    """
    generator = torch.Generator().manual_seed(draw(seeds))
    gt = picture(generator, batch, 4, 4 * draw(st.integers(16, 24)), 4 * draw(st.integers(16, 24)))
    fused = gt + (draw(st.floats(1, 40)) * torch.randn(gt.shape, generator=generator, dtype=torch.float64)).round()
    return {"gt": gt, "fused": fused, "ms": degrade(gt, get_sensor("WV4").mtf_ms), "pan": gt.mean(1, keepdim=True)}


def full(index, scene, **given):
    """An index at full resolution, of small blocks so that small scenes have several."""
    block = {} if index in (metrics.d_rho, metrics.r_sam, metrics.r_ergas) else {"block": 8}
    return index(scene["fused"], scene["ms"], scene["pan"], sensor="WV4", **block, **given)


def close(got, want, atol=1e-9, what=""):
    want = torch.as_tensor(want, dtype=torch.float64).expand_as(got)
    if not torch.allclose(got, want, rtol=1e-9, atol=atol):
        pytest.fail(f"{what}: {got.flatten()[:6].tolist()} instead of {want.flatten()[:6].tolist()}")


def same(call, scene, change, atol=1e-9, what=""):
    close(call({k: change(x) for k, x in scene.items()}), call(scene), atol, what)


# ---- indices --------------------------------------------------------------------------------------


@few
@given(pairs(), scenes())
def test_perfect_fusion_is_ideal(pair, scene):
    for name, index in REDUCED.items():
        close(index(pair[1], pair[1]), float(IDEAL[name]), what=name)
    perfect = scene | {"fused": scene["gt"]}
    for name in ("r_sam", "r_ergas", "r_q2n"):
        close(
            full(FULL[name], perfect), float(IDEAL[name]), 1e-5, name
        )  # R-SAM of equal images: an angle of 1e-6 degrees
    lms = upsample(scene["ms"], border="circular").round()
    close(metrics.d_lambda(lms, scene["ms"], scene["pan"], sensor="WV4", block=8), 0.0)
    close(metrics.d_rho(3 * scene["pan"].expand(-1, 4, -1, -1) + 7, scene["ms"], scene["pan"], sensor="WV4"), 0.0)


@few
@given(pairs(), scenes())
def test_values_stay_in_their_range(pair, scene):
    found = {name: index(*pair) for name, index in REDUCED.items()} | {
        name: full(index, scene) for name, index in FULL.items()
    }
    for name, value in found.items():
        low, high = RANGE[name]
        assert (
            value.dtype == torch.float64
            and value.shape == (2,)
            and (value >= low - 1e-12).all()
            and (value <= high + 1e-12).all()
        ), (name, value)


@few
@given(pairs(batch=3), scenes(), st.permutations(range(3)))
def test_batch_order_does_not_matter(pair, scene, order):
    for name, index in REDUCED.items():
        close(index(pair[0][order], pair[1][order]), index(*pair)[order], 1e-11, name)
    for name, index in FULL.items():
        close(full(index, {k: x.flip(0) for k, x in scene.items()}), full(index, scene).flip(0), 1e-11, name)
        close(full(index, {k: x[:1] for k, x in scene.items()}), full(index, scene)[:1], 1e-11, name)


@few
@given(pairs(), scenes(), st.randoms(use_true_random=False))
def test_band_order_does_not_matter_where_it_should_not(pair, scene, random):
    order = random.sample(range(pair[0].shape[1]), pair[0].shape[1])
    for name, index in REDUCED.items():
        if name not in BANDED:
            close(index(pair[0][:, order], pair[1][:, order]), index(*pair), 1e-9, name)
    for name, index in FULL.items():
        if name not in BANDED:
            same(
                lambda s, index=index: full(index, s),
                scene,
                lambda x: x[:, [2, 0, 3, 1]] if x.shape[1] > 1 else x,
                what=name,
            )


@few
@given(pairs(), st.sampled_from([lambda x: x.flip(2), lambda x: x.flip(3), lambda x: x.mT]))
def test_flips_do_not_matter(pair, flip):
    whole = [x[..., :32, :32] for x in pair]  # Q2n mirrors the sides that are no multiple of its block
    for name, index in REDUCED.items():
        close(index(*map(flip, whole)), index(*whole), 1e-9, name)


@few
@given(pairs(), gains, gains, st.floats(0, 500))
def test_scaling_laws(pair, gain, other, offset):
    f, g = pair
    close(metrics.sam(gain * f, other * g), metrics.sam(f, g), 1e-6, "SAM has no gain")
    for index in (metrics.ergas, metrics.q, metrics.scc, metrics.cc, lambda f, g: metrics.q2n(f, g, uint16=False)):
        close(index(gain * f, gain * g), index(f, g), 1e-8, "a common gain")
    close(metrics.rmse(gain * f, gain * g), gain * metrics.rmse(f, g))
    close(metrics.psnr(gain * f, gain * g, PEAK), metrics.psnr(f, g, PEAK) - 20 * math.log10(gain))
    close(metrics.psnr(f, g, gain * PEAK), metrics.psnr(f, g, PEAK) + 20 * math.log10(gain))
    close(metrics.ssim(gain * f, gain * g, gain * PEAK), metrics.ssim(f, g, PEAK))
    close(metrics.ergas(f, g, ratio=2), 2 * metrics.ergas(f, g, ratio=4))
    for index in (metrics.rmse, metrics.cc, REDUCED["psnr"]):
        close(index(f + offset, g + offset), index(f, g), 1e-7, "a common offset")
    slopes = torch.linspace(gain, other, f.shape[1], dtype=f.dtype).view(1, -1, 1, 1)
    close(metrics.cc(slopes * f + offset, g), metrics.cc(f, g), 1e-8, "CC sees no gain and offset of a band")


@few
@given(scenes(), gains, st.floats(0, 500))
def test_scaling_laws_without_reference(scene, gain, offset):
    lms = upsample(scene["ms"], border="circular")
    for name in ("d_lambda", "d_s", "qnr"):
        same(
            lambda s, index=FULL[name]: full(index, s, lms=s["lms"]),
            scene | {"lms": lms},
            lambda x: gain * x,
            1e-8,
            name,
        )
    for name in ("r_sam", "r_ergas", "d_rho"):
        same(lambda s, index=FULL[name]: full(index, s), scene, lambda x: gain * x, 1e-6, name)
    moved = scene | {"fused": gain * scene["fused"] + offset, "pan": 2 * scene["pan"] + 1}
    close(full(metrics.d_rho, moved), full(metrics.d_rho, scene), 1e-6, "D_rho sees no gain and offset")
    perfect = scene | {"fused": scene["gt"]}  # consistent spectra, whatever the brightness
    close(full(metrics.r_sam, perfect | {"fused": gain * scene["gt"]}), 0.0, 1e-5)


@few
@given(values, values, st.integers(1, 5))
def test_constants_give_numbers(a, b, bands):
    x = torch.ones(1, bands, 32, 32, dtype=torch.float64)
    for name, index in REDUCED.items():
        for f, g in ((a * x, b * x), (a * x, a * x), (0 * x, b * x), (a * x, 0 * x)):
            value = index(f, g)
            assert not value.isnan().any() and (name == "psnr" or value.isfinite().all()), (name, a, b, value)
    x = torch.ones(1, 4, 32, 32, dtype=torch.float64)
    for name, index in FULL.items():
        for f, m, p in ((a, a, b), (a, b, a), (0, a, b), (a, 0, b), (a, b, 0)):
            value = full(index, {"fused": f * x, "ms": m * x[..., :8, :8], "pan": p * x[:, :1]})
            assert value.isfinite().all(), (name, f, m, p, value)


@few
@given(pairs(), scenes(), seeds, st.sampled_from([0.0, 65535.0, math.nan, math.inf, -math.inf]))
def test_invalid_pixels_have_no_influence(pair, scene, seed, bad):
    generator = torch.Generator().manual_seed(seed)
    row, column = (int(torch.randint(8, 28, (), generator=generator)) for _ in range(2))
    block = {"q": {"block": 8}, "q2n": {"block": 8}}
    mask = torch.ones(2, 1, *pair[0].shape[2:], dtype=torch.bool)
    mask[0, :, row : row + 3, column:] = False
    mask[1, :, row, column] = False
    for name, index in REDUCED.items():
        f, g = (x.masked_fill(~mask, bad) for x in pair)
        given = block.get(name, {})
        got = index(f, g, mask=mask, **given)
        assert got.isfinite().all() and torch.equal(got, index(*pair, mask=mask, **given)), name
        close(index(*pair, mask=torch.ones_like(mask), **given), index(*pair, **given), 1e-10, name)
    coarse = torch.ones(2, 1, *scene["ms"].shape[2:], dtype=torch.bool)
    coarse[:, :, 1:3, row // 4] = False
    mask = coarse.repeat_interleave(4, 2).repeat_interleave(4, 3)
    mask[0, :, 5, column] = False
    coarse = mask[..., ::4, ::4] & mask.unflatten(3, (-1, 4)).unflatten(2, (-1, 4)).all(5).all(3)
    spoilt = {k: x.masked_fill(~(coarse if k == "ms" else mask), bad) for k, x in scene.items()}
    for name, index in FULL.items():
        got = full(index, spoilt, mask=mask)
        assert got.isfinite().all() and torch.equal(got, full(index, scene, mask=mask)), name
        close(full(index, scene, mask=torch.ones_like(mask)), full(index, scene), 1e-10, name)


@few
@given(pairs(), st.integers(1, 31))
def test_pixelwise_means_of_parts_make_the_whole(pair, row):
    """Sums over a mask and over its complement add up: with the counts, the mean square and the angle of the whole."""
    mask = torch.zeros(2, 1, *pair[0].shape[2:], dtype=torch.bool)
    mask[:, :, :row] = True
    share = mask.double().mean()
    close(
        share * metrics.rmse(*pair, mask=mask) ** 2 + (1 - share) * metrics.rmse(*pair, mask=~mask) ** 2,
        metrics.rmse(*pair) ** 2,
    )
    close(share * metrics.sam(*pair, mask=mask) + (1 - share) * metrics.sam(*pair, mask=~mask), metrics.sam(*pair))
    upper = [x[..., :row, :] for x in pair]
    close(metrics.ergas(*pair, mask=mask), metrics.ergas(*upper))
    close(metrics.cc(*pair, mask=mask), metrics.cc(*upper), 1e-8)


@few
@given(pairs(), st.integers(0, 1))
def test_a_batch_with_an_image_without_valid_pixels_is_refused(pair, which):
    mask = torch.ones(2, 1, *pair[0].shape[2:], dtype=torch.bool)
    mask[which] = False
    for index in REDUCED.values():
        with pytest.raises(ValueError, match=f"image {which} of 2"):
            index(*pair, mask=mask)


# ---- protocol and methods -------------------------------------------------------------------------


@few
@given(values, st.integers(2, 6), st.sampled_from(BORDERS))
def test_a_constant_stays_the_constant(value, ratio, border):
    x, near = (
        torch.full((1, 2, 12, 12), value, dtype=torch.float64),
        1e-8 * value,
    )  # the toolbox's printed taps sum to 1 - 4e-10 an octave and axis
    close(upsample(x, ratio, border=border), value, near)
    close(degrade(upsample(x, ratio, border=border), [0.3, 0.2], ratio), value, near)
    pan = torch.full((1, 1, 48, 48), 2 * value + 1, dtype=torch.float64)
    close(classical.METHODS["EXP"](x.repeat(1, 2, 1, 1), pan, "QB", border=border), value, near)


@very_few
@given(values, values, st.floats(0, 3))
def test_every_method_is_finite_on_constants(ms, pan, spread):
    bands = torch.linspace(1, 1 + spread, 4, dtype=torch.float64).view(1, -1, 1, 1)
    for name, method in classical.METHODS.items():
        fused = method(
            (ms * bands).expand(1, 4, 12, 12).contiguous(), torch.full((1, 1, 48, 48), pan, dtype=torch.float64), "QB"
        )
        assert fused.shape == (1, 4, 48, 48) and fused.isfinite().all(), (name, ms, pan)


@settings(few, max_examples=2)
@given(scenes())
def test_methods_do_not_care_for_the_order_of_images_and_bands(scene):
    order = [2, 0, 3, 1]
    ms, pan = scene["ms"], scene["pan"]
    for name, method in classical.METHODS.items():
        fused = method(ms, pan, "WV4")
        assert torch.allclose(method(ms.flip(0), pan.flip(0), "WV4"), fused.flip(0), atol=1e-6), name
        assert torch.allclose(method(ms[:, order], pan, "WV4"), fused[:, order], atol=1e-4), name
