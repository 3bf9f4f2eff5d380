"""On a GPU: every index, method, degradation and registration gives what it gives on the CPU, and stays on the device.

Skipped where there is no GPU. To try the file itself without one: PANSHARP_STUDY_TEST_DEVICE=cpu python -m
pytest tests/test_cuda.py
"""

import inspect
import os
from dataclasses import replace

import pytest
import torch

from pansharp_study import metrics
from pansharp_study.classical import METHODS
from pansharp_study.optics.filters import BORDERS, MTF_KERNELS, mtf_blur
from pansharp_study.optics.masks import check_scale, fill_invalid, mask_to_ms, shrink_mask, valid_mask
from pansharp_study.optics.registration import (
    estimate_band_shifts,
    estimate_shift,
    register,
    register_bands,
    registration_views,
    residual_warning,
    shift_image,
)
from pansharp_study.optics.sensors import get_sensor
from pansharp_study.optics.wald import degrade, reduce_pan, upsample, wald_pair

DEVICE = torch.device(os.environ.get("PANSHARP_STUDY_TEST_DEVICE", "cuda"))
pytestmark = pytest.mark.skipif(DEVICE.type == "cuda" and not torch.cuda.is_available(), reason="no CUDA device")

REDUCED = ("sam", "ergas", "q", "q2n", "scc", "psnr", "ssim", "rmse", "cc")
FULL = ("d_lambda", "d_s", "qnr", "d_lambda_k", "hqnr", "d_rho", "r_sam", "r_ergas", "r_q2n")
# float64: sums of other order, another FFT, SVD and eigensolver; a thousand times the spacing of numbers at 2047
# for an iterative method (TV, 20 steps). float32: indices sum in float64; methods filter in the images' type,
# whose spacing at 2047 DN is 1.2e-4: on the CPU float32 and float64 results of these scenes differ by 6e-4 DN at
# most, so two float32 results by less than 2e-3 (tensor cores rounding to TF32 would show as 1 DN).
TOLERANCE = {torch.float64: {"index": 1e-9, "method": 1e-6}, torch.float32: {"index": 1e-5, "method": 2e-3}}


def images(name: str, dtype: torch.dtype) -> dict:
    """Two scenes with common and own texture, noise and an invalid corner; no value lies on the border between two
    whole DN.
    """
    sensor, rng = get_sensor(name), torch.Generator().manual_seed(11)
    own, common = (torch.randn(2, n, 160, 160, generator=rng, dtype=torch.float64) for n in (sensor.n_bands, 1))
    gt = 450 + 350 * mtf_blur(own + 2 * common, [0.4]) + 60 * torch.randn(own.shape, generator=rng, dtype=torch.float64)
    gt = gt.clamp(20, sensor.peak - 20)
    fused = gt + 25 * torch.randn(gt.shape, generator=rng, dtype=torch.float64)
    mask = (torch.arange(160)[:, None] + torch.arange(160) > 40).expand(2, 1, 160, 160).clone()
    made = {"gt": gt, "fused": fused, "pan": gt.mean(1, keepdim=True), "ms": degrade(gt, sensor.mtf_ms)}
    return {k: x.to(dtype) for k, x in made.items()} | {"mask": mask}


def on(device, *things):
    """The tensors among these on a device."""
    return [x.to(device) if torch.is_tensor(x) else x for x in things]


def both(call, *given, **options):
    """What a call gives on the CPU, and on the device brought back from there."""
    here, there = (
        call(*on(device, *given), **dict(zip(options, on(device, *options.values())))) for device in ("cpu", DEVICE)
    )
    assert there.device.type == DEVICE.type and there.dtype == here.dtype and there.shape == here.shape
    return there.cpu(), here


def close(there, here, tolerance, what=""):
    """Equal to a tolerance, of numbers above one relative; NaN where the other is."""
    torch.testing.assert_close(
        there, here, rtol=tolerance, atol=tolerance, equal_nan=True, msg=lambda text: f"{what}: {text}"
    )


@pytest.fixture(
    params=[("QB", torch.float64), ("QB", torch.float32), ("WV3", torch.float64), ("WV3", torch.float32)],
    ids=lambda p: f"{p[0]}-{str(p[1])[6:]}",
)
def given(request):
    name, dtype = request.param
    return images(name, dtype) | {"sensor": get_sensor(name), "tolerance": TOLERANCE[dtype]}


# indices --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("name", REDUCED + FULL)
def test_index(given, name, masked):
    index, mask = getattr(metrics, name), given["mask"] if masked else None
    known = inspect.signature(index).parameters
    options = {"peak": 2047} if "peak" in known else {}
    if name in REDUCED:
        pair = given["fused"], given["gt"]
    else:
        pair, options = (given["fused"], given["ms"], given["pan"]), {"sensor": given["sensor"]}
        options |= {"block": 8} if name == "r_q2n" else {}  # of 40 MS pixels a side
    close(*both(index, *pair, mask=mask, **options), given["tolerance"]["index"], name)
    if "return_map" in known:
        maps = [
            index(*on(d, *pair), mask=None if mask is None else mask.to(d), return_map=True, **options)[1]
            for d in (DEVICE, "cpu")
        ]
        assert maps[0].device.type == DEVICE.type
        close(maps[0].cpu(), maps[1], 10 * given["tolerance"]["index"], f"map of {name}")


@pytest.mark.parametrize("name", ["sam", "ergas", "q", "q2n", "scc", "ssim", "rmse", "cc"])
def test_gradient(name):
    x, slopes = images("QB", torch.float64), []
    for device in (DEVICE, "cpu"):
        fused = x["fused"].to(device, copy=True).requires_grad_()
        value = getattr(metrics, name)(fused, x["gt"].to(device), **({"peak": 2047} if name == "ssim" else {})).sum()
        slopes.append(torch.autograd.grad(value, fused)[0].cpu())
    close(*slopes, 1e-9, name)


def test_images_on_two_devices_are_refused():
    if DEVICE.type == "cpu":
        pytest.skip("there is only one device")
    x = images("QB", torch.float32)
    for call in (
        lambda: metrics.sam(x["fused"].to(DEVICE), x["gt"]),
        lambda: METHODS["GSA"](x["ms"].to(DEVICE), x["pan"], "QB"),
    ):
        with pytest.raises(ValueError, match="cuda"):
            call()


def test_torchmetrics_classes(given):
    pytest.importorskip("torchmetrics")
    from pansharp_study.scoring.torch_metrics import all_indices

    found = []
    for device in (DEVICE, "cpu"):
        collection = all_indices(given["sensor"]).to(device)
        for image in range(2):  # two batches of one
            one = {k: given[k][image : image + 1].to(device) for k in ("fused", "gt", "ms", "pan")}
            collection["r_q2n"].options["block"] = 8
            collection.update(**one)
        found.append(collection.compute())
    there, here = found
    assert set(there) == set(REDUCED + FULL)
    for name, value in there.items():
        assert value.device.type == DEVICE.type, name
        close(value.cpu(), here[name], given["tolerance"]["index"], name)


# methods --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("name", METHODS)
def test_method(given, name, masked):
    there, here = both(
        METHODS[name],
        given["ms"],
        given["pan"],
        given["sensor"],
        border="reflect",
        mask=given["mask"] if masked else None,
    )
    error = (there - here).abs().max().item()
    assert error <= given["tolerance"]["method"], f"{name}: {error:g} DN apart"


# protocol and radiometry ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("border", BORDERS)
def test_protocol(given, border):
    sensor, tolerance, x = given["sensor"], 1e-9 if given["ms"].dtype == torch.float64 else 2e-6, given
    for kind in MTF_KERNELS:
        for name, options in (("mtf_blur", {}), ("degrade", {"phase": 1})):
            there, here = both(
                {"mtf_blur": mtf_blur, "degrade": degrade}[name],
                x["gt"],
                sensor.mtf_ms,
                kind=kind,
                border=border,
                **options,
            )
            if (
                kind == "toolbox"
            ):  # an FFT: its rounding follows the largest value, not each; 3.4e-4 DN was seen in float32 on an H200
                assert (there - here).abs().max() <= tolerance * sensor.peak / 4, f"{name} {kind}"
            else:
                close(there, here, tolerance, f"{name} {kind}")
    gains = torch.tensor(sensor.mtf_ms).double().expand(2, -1) * torch.tensor([[1.0], [0.8]]).double()
    close(*both(degrade, x["gt"], gains, border=border), tolerance, "degrade with gains per image")
    for ratio, phase in ((4, None), (4, 1.5), (3, None), (2, 0)):
        close(*both(upsample, x["ms"], ratio, phase=phase, border=border), tolerance, f"upsample {ratio} {phase}")
    close(*both(reduce_pan, x["pan"], 4), tolerance, "reduce_pan")


def test_wald_pair(given):
    made = [
        wald_pair(*on(d, given["ms"], given["pan"]), given["sensor"], mask=given["mask"].to(d)) for d in (DEVICE, "cpu")
    ]
    for name in ("ms", "pan", "gt", "mask"):
        assert made[0][name].device.type == DEVICE.type
        close(made[0][name].cpu(), made[1][name], 1e-9 if given["ms"].dtype == torch.float64 else 2e-6, name)


def test_radiometry(given):
    pan = given["pan"].masked_fill(~given["mask"], 0)
    for there, here in (
        both(valid_mask, pan, peak=2047.0),
        both(mask_to_ms, given["mask"]),
        both(shrink_mask, given["mask"], 3),
    ):
        assert torch.equal(there, here)
    close(*both(fill_invalid, pan, given["mask"]), 1e-9 if pan.dtype == torch.float64 else 1e-5, "fill_invalid")
    assert check_scale(pan.to(DEVICE), given["sensor"]) == check_scale(pan, given["sensor"])


# registration ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["whole", "masked", "clipped"])
def test_registration(given, case):
    """The same displacement to a thousandth of a pixel, where the search stops; the same images after it."""
    sensor, shift = given["sensor"], (0.7, -1.2)
    ms, pan = given["ms"], shift_image(given["pan"], shift)
    sensor = replace(sensor, bits=10) if case == "clipped" else sensor
    pan = pan.clamp_max(1023) if case == "clipped" else pan
    options = {"reach": 3} | ({"mask": given["mask"]} if case == "masked" else {})
    found = [
        estimate_shift(*on(d, ms, pan), sensor, **dict(zip(options, on(d, *options.values())))) for d in (DEVICE, "cpu")
    ]
    assert all(getattr(found[0], k).device.type == DEVICE.type for k in ("shift", "r2_before", "r2_after", "found"))
    close(found[0].shift.cpu(), found[1].shift, 2e-3, "shift")
    close(found[0].r2_after.cpu(), found[1].r2_after, 1e-6, "R2")
    assert found[1].found.all() and (found[1].shift - torch.tensor(shift)).abs().max() < 0.05
    for to in ("ms", "pan"):
        out = register(*on(DEVICE, ms, pan), sensor, register_to=to, found=found[0])
        same = register(ms, pan, sensor, register_to=to, found=replace(found[1], shift=found[0].shift.cpu()))
        for a, b in zip(out[:2], same[:2]):
            assert a.device.type == DEVICE.type
            close(a.cpu(), b, 1e-9 if ms.dtype == torch.float64 else 2e-6, f"register_to {to}")


def test_registration_of_bands_and_its_report(given):
    sensor, (ms, pan) = given["sensor"], on(DEVICE, given["ms"], given["pan"])
    bands = [estimate_band_shifts(*on(d, given["ms"], given["pan"]), sensor, reach=2) for d in (DEVICE, "cpu")]
    assert bands[0].shift.device.type == DEVICE.type
    close(bands[0].shift.cpu(), bands[1].shift, 2e-3, "bands")
    out, grey, found = register_bands(ms[:1], pan[:1], sensor, reach=2)
    assert out.device.type == grey.device.type == found.shift.device.type == DEVICE.type
    assert (
        residual_warning(ms, pan, sensor, reach=2)[0] == residual_warning(given["ms"], given["pan"], sensor, reach=2)[0]
    )
    views = [registration_views(*on(d, given["ms"], given["pan"]), sensor) for d in (DEVICE, "cpu")]
    for name, view in views[0].items():
        assert abs(view - views[1][name]).max() < 1e-4, name
