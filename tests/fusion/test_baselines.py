"""Classical methods against a public toolbox's scores on real scenes kept beside the project (skipped where
they are absent).

No registration, sizes and crops as its description says. Of its methods only SR-D, which learns dictionaries,
has no counterpart here.
"""

import json

import pytest
import torch

from pansharp_study import classical, metrics
from pansharp_study.core import root
from pansharp_study.optics.wald import wald_pair

SHARED = root().parent / "shared"
SCENES = {"IK_vit": ("IKONOS", "IKONOS/imgIK.mat"), "WV2_vit": ("WV2", "WV2/imgWV2.mat")}
FULL = {
    "IK_vit": ("IKONOS", "IKONOS/imgIK.mat"),
    "WV2_vit": ("WV2", "WV2/imgWV2.mat"),
    "QB_wuda01-r1c1": ("QB", "QB/wuda01-r1c1-mul.tif", "QB/wuda01-r1c1-pan.tif"),
    **{f"GF2_ucgan{i}": ("GF2", f"GF2/full_{i}_lr.tif", f"GF2/full_{i}_pan.tif") for i in range(5)},
}
KNOWN = SHARED / "oracle" / "baselines.json"
pytestmark = pytest.mark.skipif(not KNOWN.is_file(), reason="no real scenes beside the project")
KNOWN = json.loads(KNOWN.read_text()) if KNOWN.is_file() else {"scenes": {}, "full_resolution": {}}


def load(paths, shape=None):
    """Multispectral and panchromatic tensors in float64, cut to `shape` (MS rows and columns)."""
    if len(paths) == 1:
        arrays = pytest.importorskip("scipy.io").loadmat(SHARED / "real" / paths[0])
        ms, pan = arrays["I_MS"].transpose(2, 0, 1), arrays["I_PAN"][None]
    else:
        ms, pan = (pytest.importorskip("rasterio").open(SHARED / "real" / path).read() for path in paths)
    rows, columns = shape or ms.shape[1:]
    ms, pan = (torch.from_numpy(x.astype("float64"))[None] for x in (ms, pan))
    return ms[..., :rows, :columns], pan[..., : 4 * rows, : 4 * columns]


@pytest.mark.parametrize("scene", SCENES)
def test_reduced_resolution(scene):
    """Within 3 % of Q2n, SAM, ERGAS and PSNR, neither worse nor better."""
    sensor, *paths = SCENES[scene]
    ms, pan = load(paths)
    small, crop, off = wald_pair(ms, pan, sensor), (..., slice(20, -21), slice(20, -21)), []
    assert KNOWN["scenes"][scene]["methods"].keys() - classical.METHODS.keys() == {"SR-D*"}
    for name in classical.METHODS.keys() & KNOWN["scenes"][scene]["methods"].keys():
        fused, gt = classical.METHODS[name](small["ms"], small["pan"], sensor).clamp_min(0)[crop], small["gt"][crop]
        got = {
            "Q2n": metrics.q2n(fused, gt, uint16=False),
            "SAM": metrics.sam(fused, gt),
            "ERGAS": metrics.ergas(fused, gt),
            "PSNR": metrics.psnr(fused, gt, 2047),
        }
        for index, value in got.items():
            change = value.item() / KNOWN["scenes"][scene]["methods"][name][index] - 1
            if abs(change) > 0.03:
                off.append(f"{name} {index} {change:+.1%}")
    assert not off, off


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("scene", FULL)
def test_full_resolution(scene):
    """EXP's parts within 1e-3; HQNR of the others within 0.01, its parts within the same."""
    sensor, *paths = FULL[scene]
    ms, pan = load(paths, KNOWN["full_resolution"][scene]["ms"][:2])
    off = []
    for name, known in KNOWN["full_resolution"][scene]["methods"].items():
        fused = classical.METHODS[name](ms.float(), pan.float(), sensor)
        parts = {
            "D_lambda_K": metrics.d_lambda_k(fused, ms, pan, sensor=sensor).item(),
            "D_s": metrics.d_s(fused, ms, pan, sensor=sensor).item(),
        }
        parts["HQNR"] = (1 - parts["D_lambda_K"]) * (1 - parts["D_s"])
        for index, value in parts.items():
            if abs(value - known[index]) > (1e-3 if name == "EXP" else 1e-2):
                off.append(f"{name} {index} {value - known[index]:+.4f}")
    assert not off, off
