"""Every classical method: on scenes made to break it, behind masks, at other ratios and phases, and against
sums done by hand.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from pansharp_study.classical import ABOUT, METHODS
from pansharp_study.fusion.methods import _weights
from pansharp_study.fusion.variational import _tv_denoise
from pansharp_study.metrics import ergas
from pansharp_study.optics.filters import mtf_blur
from pansharp_study.optics.masks import mask_to_ms, shrink_mask
from pansharp_study.optics.sensors import get_sensor
from pansharp_study.optics.wald import degrade, upsample

QB = get_sensor("QB")


def scene(ratio=4, size=96):
    """A reference with common and own texture, made of smoothed noise."""
    rng = torch.Generator().manual_seed(5)
    common, own = torch.randn(1, 1, size, size, generator=rng), torch.randn(1, 4, size, size, generator=rng)
    gt = 400 + 120 * mtf_blur(2 * common + own, [0.6]) + 300 * mtf_blur(3 * common + own, [0.001], 6)
    return gt.clamp_min(1), (gt * torch.tensor([0.2, 0.3, 0.3, 0.2]).view(1, 4, 1, 1)).sum(1, keepdim=True).clamp_min(1)


def nasty(name):
    gt, pan = scene()
    if name == "dark":
        gt = 0.02 * gt + 60
    elif name == "half black":
        gt, pan = gt.clone(), pan.clone()
        gt[..., :48], pan[..., :48] = 0, 0
    elif name == "inverted":
        pan = 2 * pan.mean() - pan
    elif name == "saturated":
        gt, pan = (8 * gt).clamp_max(2047), (8 * pan).clamp_max(2047)
    elif name == "black band":
        gt = gt * torch.tensor([1.0, 0.0, 1.0, 1.0]).view(1, 4, 1, 1)
    elif name == "flat pan":
        pan = torch.full_like(pan, 500.0)
    elif name == "flat ms":
        gt = torch.full_like(gt, 300.0)
    elif name == "opposed bands":
        gt = torch.cat([gt[:, :1], 2 * gt[:, :1].mean() - gt[:, :1]] * 2, 1)
    elif name == "noise pan":
        pan = 500 + 100 * torch.randn(pan.shape, generator=torch.Generator().manual_seed(9))
    elif name == "chequered pan":
        pan = (
            500
            + 100.0 * ((torch.arange(96)[:, None] + torch.arange(96)) % 2)
            + torch.randn(pan.shape, generator=torch.Generator().manual_seed(9))
        )
    return gt, pan


CASES = [
    "dark",
    "half black",
    "inverted",
    "saturated",
    "black band",
    "flat pan",
    "flat ms",
    "opposed bands",
    "noise pan",
    "chequered pan",
]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", METHODS)
def test_no_method_explodes(name, case):
    gt, pan = nasty(case)
    ms = degrade(gt, QB.mtf_ms)
    fused = METHODS[name](ms, pan, QB)
    assert torch.isfinite(fused).all()
    spread = (fused - METHODS["EXP"](ms, pan, QB)).abs().amax()
    assert spread <= 2 * max(gt.max().item(), 1), f"detail of {spread:.0f} DN on a scene of at most {gt.max():.0f}"


@pytest.mark.parametrize("name", [n for n in METHODS if n != "MF"])
def test_other_ratio(name):
    sensor = replace(QB, ratio=3)
    gt, pan = scene()
    ms = degrade(gt, sensor.mtf_ms, 3)
    fused, floor = METHODS[name](ms, pan, sensor), METHODS["EXP"](ms, pan, sensor)
    assert fused.shape == gt.shape
    assert name == "EXP" or ergas(fused, gt, ratio=3) < ergas(floor, gt, ratio=3)


def test_mf_refuses_other_ratios():
    with pytest.raises(ValueError, match="power of two"):
        METHODS["MF"](torch.ones(1, 4, 8, 8), torch.ones(1, 1, 24, 24), replace(QB, ratio=3))


def test_every_method_is_described():
    for name, about in ABOUT.items():
        assert METHODS[name].__doc__ and about["equation"] and about["reference"], name
        assert about["family"] in ("interpolation", "component substitution", "multi-resolution", "variational"), name


# masks ----------------------------------------------------------------------------------------------------------------


def holes(size=96):
    """A wedge, a hole and a single pixel without data."""
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    mask = (columns + rows // 2 > 20) & ((rows - 70) ** 2 + (columns - 66) ** 2 > 6**2)
    mask[30, 80] = False
    return mask[None, None]


@pytest.mark.parametrize("border", ["circular", "reflect"])
@pytest.mark.parametrize("name", METHODS)
def test_garbage_behind_a_mask_changes_no_bit(name, border):
    gt, pan = scene()
    ms, mask = degrade(gt, QB.mtf_ms), holes()
    fused = [
        METHODS[name](
            torch.where(mask_to_ms(mask), ms, value), torch.where(mask, pan, value), QB, border=border, mask=mask
        )
        for value in (0.0, math.nan, -math.inf, 65535.0)
    ]
    for other in fused[1:]:
        assert torch.equal(fused[0], other)
    assert torch.isfinite(fused[0]).all() and (fused[0].masked_select(~mask) == 0).all()
    assert fused[0].dtype == torch.float32


@pytest.mark.parametrize("name", METHODS)
def test_a_mask_changes_little_far_from_the_holes(name):
    gt, pan = scene()
    ms, mask = degrade(gt, QB.mtf_ms), holes()
    whole = METHODS[name](ms, pan, QB, border="reflect")
    masked = METHODS[name](
        torch.where(mask_to_ms(mask), ms, math.nan), torch.where(mask, pan, math.nan), QB, border="reflect", mask=mask
    )
    far = shrink_mask(mask, 16)
    assert 0.1 < far.float().mean() < 0.9
    detail = (whole - METHODS["EXP"](ms, pan, QB, border="reflect")).std()
    difference = (masked - whole).masked_select(far)
    assert difference.abs().mean() < (0.01 if name == "EXP" else 0.1 * detail), (
        f"{difference.abs().mean():.2f} DN, detail has {detail:.2f}"
    )
    near = (masked - whole).masked_select(mask & ~far)
    assert near.abs().mean() < 0.5 * whole.std()


@pytest.mark.parametrize("name", METHODS)
def test_masks_of_a_batch(name):
    """A full mask is no mask (to rounding), an empty one gives an image of zeros, and neither touches the other."""
    gt, pan = scene()
    ms = degrade(gt, QB.mtf_ms)
    plain, full = METHODS[name](ms, pan, QB), METHODS[name](ms, pan, QB, mask=torch.ones_like(pan, dtype=torch.bool))
    torch.testing.assert_close(full, plain, rtol=1e-4, atol=0.02)
    mask = torch.cat([torch.ones_like(pan), torch.zeros_like(pan)]).bool()
    two = METHODS[name](torch.cat([ms, ms * math.nan]), torch.cat([pan, pan * math.nan]), QB, mask=mask)
    torch.testing.assert_close(two[:1], plain, rtol=1e-3, atol=0.1)
    assert (two[1] == 0).all()


def test_a_hot_pixel_is_harmless_behind_a_mask():
    gt, pan = scene()
    ms, hot = degrade(gt, QB.mtf_ms), pan.clone()
    hot[..., 40, 40] = 65535
    mask = hot < QB.peak
    for name in METHODS:
        masked, clean = METHODS[name](ms, hot, QB, mask=mask), METHODS[name](ms, pan, QB)
        assert (masked - clean)[..., :24, :24].abs().max() < 0.05 * clean.std(), name


# ratios and phases ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_every_phase(name):
    """Told the phase, a method is as good at each of them; not told, it is worse."""
    gt, pan = scene()
    inner = (..., slice(12, -12), slice(12, -12))
    score = {}
    for phase in range(4):
        ms = degrade(gt, QB.mtf_ms, phase=phase)
        score[phase] = ergas(METHODS[name](ms, pan, QB, border="reflect", phase=phase)[inner], gt[inner]).item()
    assert max(score.values()) < (1.3 if name == "TV" else 1.15) * min(score.values())
    assert (
        ergas(METHODS[name](degrade(gt, QB.mtf_ms, phase=0), pan, QB, border="reflect")[inner], gt[inner]).item()
        > 1.1 * score[0]
    )


@pytest.mark.parametrize("name", METHODS)
def test_wrong_input_is_refused(name):
    gt, pan = scene()
    ms, fuse = degrade(gt, QB.mtf_ms), METHODS[name]
    for call, words in (
        (lambda: fuse(ms.int(), pan, QB), "int32"),
        (lambda: fuse(ms.half(), pan.half(), QB), "float16"),
        (lambda: fuse(ms, pan.double(), QB), "float64"),
        (lambda: fuse(ms.numpy(), pan, QB), "ndarray"),
        (lambda: fuse(ms[0], pan, QB), r"\(4, 24, 24\)"),
        (lambda: fuse(ms, pan.expand(-1, 2, -1, -1), QB), r"\(1, 2, 96, 96\)"),
        (lambda: fuse(ms, pan[..., :48, :48], QB), r"\(48, 48\)"),
        (lambda: fuse(ms, pan, replace(QB, ratio=2)), "ratio 2"),
        (lambda: fuse(ms[:, :3], pan, QB), "Want 4 bands, got 3"),
        (lambda: fuse(ms, pan, "Landsat"), "Landsat.*QB"),
        (lambda: fuse(ms, pan, QB, mask=pan), "bool"),
        (lambda: fuse(ms, pan, QB, mask=torch.ones(1, 1, 24, 24, dtype=torch.bool)), r"\(1, 1, 24, 24\)"),
        (lambda: fuse(ms, pan, QB, border="none"), "none"),
        (lambda: fuse(ms, pan, QB, phase=7), "phase"),
        (lambda: fuse(ms * math.nan, pan, QB), "NaN"),
    ):
        with pytest.raises(ValueError, match=words):
            call()


# by hand: methods without published scores on the common scenes -------------------------------------------------------
# At ratio 1 interpolation does nothing: two bands of two pixels, (10, 30) and (20, 60), and a PAN of (4, 0).
# I = (15, 45) has mean 30 and spread 15, so PAN matched to it is P' = (45, 15).

TINY = replace(QB.subset(("B", "G")), ratio=1)
MS, PAN = torch.tensor([[[[10.0, 30.0]], [[20.0, 60.0]]]]), torch.tensor([[[[4.0, 0.0]]]])


@pytest.mark.parametrize(
    "name, expected",
    [
        ("EXP", [[10, 30], [20, 60]]),
        ("GIHS", [[40, 0], [50, 30]]),  # + (30, -30)
        ("Brovey", [[30, 10], [60, 20]]),  # x (45/15, 15/45)
        ("GS", [[30, 10], [60, 20]]),  # gains cov(I, m)/var(I) = 2/3 and 4/3
        ("HPF", [[10, 30], [20, 60]]),  # a box of one pixel takes away all detail
        ("SFIM", [[10, 30], [20, 60]]),
    ],
)
def test_by_hand(name, expected):
    torch.testing.assert_close(METHODS[name](MS, PAN, TINY)[0, :, 0], torch.tensor(expected, dtype=torch.float32))


def test_pca_by_hand():
    """Bands (0, 1, 2, 3) x (3, 4): the component lies along (3, 4)/5 with scores 5 x (-1.5, -.5, .5, 1.5); PAN's
    order replaces theirs.
    """
    line = torch.arange(4.0)
    ms, pan = torch.stack([3 * line, 4 * line])[None, :, None], torch.tensor([[[[0.0, 2.0, 1.0, 3.0]]]])
    torch.testing.assert_close(
        METHODS["PCA"](ms, pan, TINY)[0, :, 0], torch.stack([3 * pan[0, 0, 0], 4 * pan[0, 0, 0]])
    )


def by_numpy(gt, pan, ratio=4):
    """Interpolated bands, PAN, and a function that matches PAN to each band, as float64 arrays."""
    ms = degrade(gt, QB.mtf_ms)
    bands, grey = upsample(ms, border="circular")[0].double().numpy(), pan[0, 0].double().numpy()
    return ms, bands, grey


@pytest.mark.parametrize("name", ["HPF", "SFIM", "MTF-GLP", "PCA"])
def test_against_numpy(name):
    """The published equation written out for one image with NumPy alone (the low-passes are checked on their own)."""
    gt, pan = scene()
    ms, bands, grey = by_numpy(gt, pan)
    expected = []
    if name == "PCA":
        centred = bands - bands.mean((1, 2), keepdims=True)
        vector = np.linalg.svd(centred.reshape(4, -1), full_matrices=False)[0][:, 0]
        first = np.tensordot(vector, centred, 1)
        vector, first = (vector, first) if np.corrcoef(first.ravel(), grey.ravel())[0, 1] > 0 else (-vector, -first)
        matched = (grey - grey.mean()) / grey.std() * first.std()
        expected = bands + vector[:, None, None] * (matched - first)
    for b, band in enumerate(bands if name != "PCA" else ()):
        if name == "MTF-GLP":
            low_spread = mtf_blur(pan, [0.3], border="replicate")[0, 0].double().numpy().std()
            matched = (grey - grey.mean()) / low_spread * band.std() + band.mean()
            seen = degrade(torch.from_numpy(matched)[None, None], [QB.mtf_ms[b]], border="replicate")
            expected.append(band + matched - upsample(seen, border="circular")[0, 0].numpy())
        else:
            matched = (grey - grey.mean()) / grey.std() * band.std() + band.mean()
            padded = np.pad(matched, 2, mode="reflect")
            low = sum(padded[i : i + 96, j : j + 96] for i in range(5) for j in range(5)) / 25
            expected.append(band + matched - low if name == "HPF" else band * np.clip(matched / low, 0, 4))
    torch.testing.assert_close(
        METHODS[name](ms, pan, QB)[0].double(), torch.from_numpy(np.stack(expected)), rtol=1e-4, atol=0.02
    )


def test_identities_of_component_substitution():
    """What the equations leave alone: differences (GIHS), angles (Brovey), the mean band (GS, GIHS), all other
    components (PCA).
    """
    gt, pan = (x.double() for x in scene())
    ms = degrade(gt, QB.mtf_ms)
    lms, grey = METHODS["EXP"](ms, pan, QB), torch.tensor(0.25).double()
    fused = {name: METHODS[name](ms, pan, QB) for name in ("GIHS", "Brovey", "GS", "PCA")}
    torch.testing.assert_close(fused["GIHS"] - lms, (fused["GIHS"] - lms)[:, :1].expand(-1, 4, -1, -1))
    ratio = fused["Brovey"] / lms
    torch.testing.assert_close(ratio, ratio[:, :1].expand(-1, 4, -1, -1))
    for name in ("GIHS", "GS"):  # their mean band is PAN, but for gain and offset
        mean_band = (grey * fused[name]).sum(1).flatten()
        assert np.corrcoef(mean_band, pan.flatten())[0, 1] > 1 - 1e-9
    moved = (fused["PCA"] - lms).flatten(2)[0]
    assert torch.linalg.svdvals(moved)[1] < 1e-9 * torch.linalg.svdvals(moved)[0]  # along one direction only


@pytest.mark.parametrize("name", ["HPF", "SFIM", "MTF-GLP", "MTF-GLP-HPM", "AWLP", "MF", "GS", "GIHS", "PCA", "Brovey"])
def test_gain_and_offset_of_pan_do_not_matter(name):
    """PAN is matched to the bands, so its own scale drops out."""
    gt, pan = (x.double() for x in scene())
    ms = degrade(gt, QB.mtf_ms)
    torch.testing.assert_close(METHODS[name](ms, 3 * pan + 70, QB), METHODS[name](ms, pan, QB), rtol=1e-8, atol=1e-6)


@pytest.mark.parametrize("name", ["HPF", "SFIM", "MTF-GLP", "MTF-GLP-FS", "TV"])
def test_no_detail_in_pan_adds_none(name):
    """A PAN without contrast leaves the interpolated bands (TV: up to its smoothing)."""
    gt, pan = scene()
    ms = degrade(gt, QB.mtf_ms)
    flat, options = torch.full_like(pan, 400.0), {"weight": 0.0, "steps": 0} if name == "TV" else {}
    torch.testing.assert_close(
        METHODS[name](ms, flat, QB, **options), METHODS["EXP"](ms, flat, QB), rtol=1e-5, atol=1e-2
    )


# total variation ------------------------------------------------------------------------------------------------------


def test_tv_denoising_by_hand():
    """Two pixels of two bands, a step of (6, 8), length 10: each side gives way by `amount` along the step."""
    x = torch.tensor([[[[0.0, 6.0]], [[0.0, 8.0]]]], dtype=torch.float64)
    out = _tv_denoise(x, torch.tensor(1.0, dtype=torch.float64), steps=300)
    torch.testing.assert_close(
        out, torch.tensor([[[[0.6, 5.4]], [[0.8, 7.2]]]], dtype=torch.float64), rtol=0, atol=1e-3
    )
    flat = _tv_denoise(
        x, torch.tensor(9.0, dtype=torch.float64), steps=300
    )  # more than half the step: both meet in the middle
    torch.testing.assert_close(
        flat, torch.tensor([[[[3.0, 3.0]], [[4.0, 4.0]]]], dtype=torch.float64), rtol=0, atol=1e-3
    )


def test_tv_reaches_the_minimum_of_its_energy():
    """L-BFGS on the same energy, its corner smoothed a little, gets no lower."""
    gt, pan = (x[..., :32, :32].double() for x in scene())
    ms = degrade(gt, QB.mtf_ms)
    mix = _weights(ms, degrade(pan, [float(np.mean(QB.mtf_ms))]))
    coarse = degrade(pan, [float(np.mean(QB.mtf_ms))])
    grey = pan - (coarse.mean() - (mix * ms.mean((2, 3), keepdim=True)).sum(1, keepdim=True))
    weight = 0.005
    amount = weight * ms.var((2, 3), correction=0).sqrt().mean() + 1e-6

    def energy(x):
        down = torch.nn.functional.pad(x.diff(dim=2), (0, 0, 0, 1))
        right = torch.nn.functional.pad(x.diff(dim=3), (0, 1))
        data = (
            8 * ((degrade(x, QB.mtf_ms, border="replicate") - ms) ** 2).sum()
            + (((mix * x).sum(1, keepdim=True) - grey) ** 2).sum() / 2
        )
        return data + amount * ((down**2 + right**2).sum(1) + 1e-8).sqrt().sum() * (1 + mix.square().sum())

    def value_and_slope(flat):
        x = torch.from_numpy(flat.reshape(ms.shape[0], 4, 32, 32)).requires_grad_()
        value = energy(x)
        return value.item(), torch.autograd.grad(value, x)[0].numpy().ravel()

    lowest = minimize(
        value_and_slope,
        METHODS["EXP"](ms, pan, QB).numpy().ravel(),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": 3000, "maxfun": 4000},
    ).fun
    reached = [energy(METHODS["TV"](ms, pan, QB, weight=weight, steps=steps)).item() for steps in (0, 20, 400)]
    print("energy after 0, 20, 400 steps and by L-BFGS:", reached, lowest)
    assert reached[0] > reached[1] >= reached[2] and reached[2] < 1.05 * lowest
