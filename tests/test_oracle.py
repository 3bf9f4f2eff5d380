"""Equality with the reference toolbox's outputs (as run under GNU Octave) frozen in tests/oracle."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pansharp_study import protocol

HERE = Path(__file__).parent / "oracle"
EXPECTED = json.loads((HERE / "expected.json").read_text())["scenes"]
GAINS = {"QB": [0.34, 0.32, 0.30, 0.22], "WV3": [0.325, 0.355, 0.360, 0.350, 0.365, 0.360, 0.335, 0.315]}


def tensor(array, dtype=torch.float64):
    array = np.asarray(array, dtype=np.float64)
    return torch.from_numpy(array.reshape(*array.shape[:2], -1)).permute(2, 0, 1)[None].to(dtype)


@pytest.fixture(scope="module", params=sorted(EXPECTED))
def scene(request):
    arrays = dict(np.load(HERE / f"{request.param}.npz"))
    arrays["sensor"], arrays["expected"] = EXPECTED[request.param]["sensor"], EXPECTED[request.param]["indices"]
    lms = protocol.upsample(tensor(arrays["ms"]), border="circular")
    arrays["lms"] = torch.floor(lms + 0.5).clamp(0, 65535)
    return arrays


def close(got, want, atol=1e-9):
    want = want if torch.is_tensor(want) else torch.as_tensor(want, dtype=torch.float64)
    difference = (got.double() - want).abs().max().item()
    assert difference <= atol, f"differs by {difference:.2e}: got {got}, want {want}"


def test_mtf_kernel(scene):
    close(protocol.mtf_kernel(GAINS[scene["sensor"]]), torch.from_numpy(scene["kernel"]).permute(2, 0, 1), 1e-15)


def test_degraded_ms(scene):
    got = protocol.degrade(tensor(scene["gt"]), GAINS[scene["sensor"]], kind="toolbox", border="replicate")
    close(got[:, :, :24], tensor(scene["ms_lr"]))


def test_reduced_pan(scene):
    close(protocol.reduce_pan(tensor(scene["pan"]))[:, :, :24], tensor(scene["pan_lr"]))


def test_interpolation(scene):
    close(protocol.upsample(tensor(scene["ms"]), border="circular")[..., :40, :40], tensor(scene["interp23"]))


def test_sensor_table_has_the_reference_gains(scene):
    from pansharp_study.sensors import get_sensor

    assert list(get_sensor(scene["sensor"]).mtf_ms) == GAINS[scene["sensor"]]
