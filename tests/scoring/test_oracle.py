"""Equality with the reference toolbox's outputs (as run under GNU Octave) frozen in tests/oracle."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pansharp_study import metrics
from pansharp_study.optics.filters import mtf_kernel
from pansharp_study.optics.wald import degrade, reduce_pan, upsample

HERE = Path(__file__).parents[1] / "oracle"
EXPECTED = json.loads((HERE / "expected.json").read_text())["scenes"]
LIBRARIES = json.loads((HERE / "libraries.json").read_text())["scenes"]
GAINS = {"QB": [0.34, 0.32, 0.30, 0.22], "WV3": [0.325, 0.355, 0.360, 0.350, 0.365, 0.360, 0.335, 0.315]}


def tensor(array, dtype=torch.float64):
    array = np.asarray(array, dtype=np.float64)
    return torch.from_numpy(array.reshape(*array.shape[:2], -1)).permute(2, 0, 1)[None].to(dtype)


@pytest.fixture(scope="module", params=sorted(EXPECTED))
def scene(request):
    arrays = dict(np.load(HERE / f"{request.param}.npz"))
    arrays["sensor"], arrays["expected"] = EXPECTED[request.param]["sensor"], EXPECTED[request.param]["indices"]
    arrays["libraries"] = LIBRARIES[request.param]
    lms = upsample(tensor(arrays["ms"]), border="circular")
    arrays["lms"] = torch.floor(lms + 0.5).clamp(0, 65535)
    return arrays


def close(got, want, atol=1e-9):
    want = want if torch.is_tensor(want) else torch.as_tensor(want, dtype=torch.float64)
    difference = (got.double() - want).abs().max().item()
    assert difference <= atol, f"differs by {difference:.2e}: got {got}, want {want}"


def test_mtf_kernel(scene):
    close(mtf_kernel(GAINS[scene["sensor"]]), torch.from_numpy(scene["kernel"]).permute(2, 0, 1), 1e-15)


def test_degraded_ms(scene):
    got = degrade(tensor(scene["gt"]), GAINS[scene["sensor"]], kind="toolbox", border="replicate")
    close(got[:, :, :24], tensor(scene["ms_lr"]))


def test_reduced_pan(scene):
    close(reduce_pan(tensor(scene["pan"]))[:, :, :24], tensor(scene["pan_lr"]))


def test_interpolation(scene):
    close(upsample(tensor(scene["ms"]), border="circular")[..., :40, :40], tensor(scene["interp23"]))


def test_sensor_table_has_the_reference_gains(scene):
    from pansharp_study.optics.sensors import get_sensor

    assert list(get_sensor(scene["sensor"]).mtf_ms) == GAINS[scene["sensor"]]


REDUCED = {
    "SAM_deg": lambda f, g: metrics.sam(f, g),
    "ERGAS": lambda f, g: metrics.ergas(f, g),
    "Q2n_32_32": lambda f, g: metrics.q2n(f, g),
    "Q2n_32_32_crop250x245": lambda f, g: metrics.q2n(f[..., :250, :245], g[..., :250, :245]),
    "Q2n_32_32_first3bands": lambda f, g: metrics.q2n(f[:, :3], g[:, :3]),
    "Q_img_qi_mean": lambda f, g: metrics.q(f, g),
    "Q_img_qi_per_band": lambda f, g: metrics.q(f, g, return_map=True)[1].mean((2, 3))[0],
    "SCC": lambda f, g: metrics.scc(f, g),
    "Q2n_self": lambda f, g: metrics.q2n(g, g),
    "SAM_self_deg": lambda f, g: metrics.sam(g, g),
    "SCC_self": lambda f, g: metrics.scc(g, g),
}
FULL = {
    "D_lambda": metrics.d_lambda,
    "D_lambda_K": metrics.d_lambda_k,
    "D_s": metrics.d_s,
    "QNR": metrics.qnr,
    "HQNR": metrics.hqnr,
}


@pytest.mark.parametrize("name", REDUCED)
@pytest.mark.parametrize("dtype, atol", [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_index_with_reference(scene, name, dtype, atol):
    got = REDUCED[name](tensor(scene["fused"], dtype), tensor(scene["gt"], dtype))
    close(got, torch.as_tensor(scene["expected"][name], dtype=torch.float64), atol)


@pytest.mark.parametrize("crop", [None, (250, 245)])
def test_q2n_of_each_block(scene, crop):
    rows, columns = crop or (256, 256)
    got = metrics.q2n(
        tensor(scene["fused"])[..., :rows, :columns], tensor(scene["gt"])[..., :rows, :columns], return_map=True
    )[1]
    close(got[0], torch.from_numpy(scene["q2n_map_crop" if crop else "q2n_map"]))


@pytest.mark.parametrize("name", FULL)
@pytest.mark.parametrize("dtype, atol", [(torch.float64, 1e-9), (torch.float32, 1e-5)])
@pytest.mark.parametrize("own_lms", [False, True])
def test_index_without_reference(scene, name, dtype, atol, own_lms):
    images = [tensor(scene[k], dtype) for k in ("fused", "ms", "pan")]
    got = FULL[name](*images, sensor=scene["sensor"], lms=scene["lms"].to(dtype) if own_lms else None)
    close(got, scene["expected"][name], atol)


def test_interpolated_ms_changes_no_relation_to_itself(scene):
    got = metrics.d_lambda(scene["lms"], tensor(scene["ms"]), tensor(scene["pan"]), sensor=scene["sensor"])
    close(got, scene["expected"]["D_lambda_identity_msexp"])


ELSEWHERE = {
    "ergas": metrics.ergas,
    "sam": metrics.sam,
    "q2n": metrics.q2n,
    "rmse": metrics.rmse,
    "psnr": lambda f, g: metrics.psnr(f, g, 2047),
    "ssim": lambda f, g: metrics.ssim(f, g, 2047),
}


@pytest.mark.parametrize(
    "package, name", [(package, name) for package, values in LIBRARIES["syn4_QB"].items() for name in values]
)
def test_agreement_with_other_packages(scene, package, name):
    atol = 1e-6 if (package, name) == ("torchmetrics", "psnr") else 1e-9  # its logarithm is taken in float32
    close(ELSEWHERE[name](tensor(scene["fused"]), tensor(scene["gt"])), scene["libraries"][package][name], atol)
