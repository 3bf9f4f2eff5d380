"""Every classical method on scenes made to break it, and at another ratio."""

from dataclasses import replace

import pytest
import torch

from pansharp_study.classical import ABOUT, METHODS
from pansharp_study.metrics import ergas
from pansharp_study.protocol import degrade, mtf_blur
from pansharp_study.sensors import get_sensor

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
    return gt, pan


@pytest.mark.parametrize("case", ["dark", "half black", "inverted", "saturated", "black band", "flat pan"])
@pytest.mark.parametrize("name", METHODS)
def test_no_method_explodes(name, case):
    gt, pan = nasty(case)
    ms = degrade(gt, QB.mtf_ms)
    fused = METHODS[name](ms, pan, QB)
    assert torch.isfinite(fused).all()
    spread = (fused - METHODS["EXP"](ms, pan, QB)).abs().amax()
    assert spread <= 4 * max(gt.max().item(), 1), f"detail of {spread:.0f} DN on a scene of at most {gt.max():.0f}"


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
