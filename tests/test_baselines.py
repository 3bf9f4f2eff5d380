"""Classical methods against a public toolbox's scores on real scenes kept beside the project (skipped where they are absent)."""

import json

import pytest
import torch

from pansharp_study import classical, metrics, protocol
from pansharp_study.core import root

SHARED = root().parent / "shared"
SCENES = {"IK_vit": ("IKONOS", "IKONOS/imgIK.mat"), "WV2_vit": ("WV2", "WV2/imgWV2.mat")}
KNOWN = SHARED / "oracle" / "baselines.json"
pytestmark = pytest.mark.skipif(not KNOWN.is_file(), reason="no real scenes beside the project")
KNOWN = json.loads(KNOWN.read_text()) if KNOWN.is_file() else {"scenes": {}, "full_resolution": {}}


@pytest.fixture(scope="module", params=SCENES)
def pair(request):
    io = pytest.importorskip("scipy.io")
    sensor, path = SCENES[request.param]
    arrays = io.loadmat(SHARED / "real" / path)
    ms = torch.from_numpy(arrays["I_MS"].astype("float64")).permute(2, 0, 1)[None]
    return request.param, sensor, ms, torch.from_numpy(arrays["I_PAN"].astype("float64"))[None, None]


def test_reduced_resolution(pair):
    """Within 3 % of Q2n, SAM, ERGAS and PSNR, or better."""
    scene, sensor, ms, pan = pair
    small, crop, off = protocol.wald_pair(ms, pan, sensor), (..., slice(20, -21), slice(20, -21)), []
    for name in classical.METHODS.keys() & KNOWN["scenes"][scene]["methods"].keys():
        fused, gt = classical.METHODS[name](small["ms"], small["pan"], sensor).clamp_min(0)[crop], small["gt"][crop]
        got = {
            "Q2n": metrics.q2n(fused, gt, uint16=False), "SAM": metrics.sam(fused, gt),
            "ERGAS": metrics.ergas(fused, gt), "PSNR": metrics.psnr(fused, gt, 2047),
        }
        for index, value in got.items():
            change = value.item() / KNOWN["scenes"][scene]["methods"][name][index] - 1
            if (change if index in ("SAM", "ERGAS") else -change) > 0.03:
                off.append(f"{name} {index} {change:+.1%}")
    assert not off, off


def test_full_resolution(pair):
    """EXP's parts within 1e-3; HQNR of the others within 0.01."""
    scene, sensor, ms, pan = pair
    if scene not in KNOWN["full_resolution"]:
        pytest.skip(f"no full-resolution figures for {scene}")
    off = []
    for name, known in KNOWN["full_resolution"][scene]["methods"].items():
        if name not in classical.METHODS:
            continue
        fused = classical.METHODS[name](ms.float(), pan.float(), sensor)
        parts = {"D_lambda_K": metrics.d_lambda_k(fused, ms, pan, sensor=sensor).item(), "D_s": metrics.d_s(fused, ms, pan, sensor=sensor).item()}
        parts["HQNR"] = (1 - parts["D_lambda_K"]) * (1 - parts["D_s"])
        for index, value in parts.items():
            allowed = 1e-3 if name == "EXP" else 1e-2 if index == "HQNR" else 1
            if abs(value - known[index]) > allowed:
                off.append(f"{name} {index} {value - known[index]:+.4f}")
    assert not off, off
