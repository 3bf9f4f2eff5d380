"""One pair as training data: symmetries keep the phase, features are what the head is given, crops belong together."""

from dataclasses import replace

import pytest
import torch

from pansharp_study.adaptation.views import (
    flip_pair,
    fuse_inputs,
    network_inputs,
    random_crops,
    symmetric_views,
)
from pansharp_study.core import seeded
from pansharp_study.networks.zoo import create_model, list_models
from pansharp_study.optics.sensors import get_sensor
from pansharp_study.optics.wald import degrade, upsample
from pansharp_study.scenes.pair import Pair

SMALL = {
    "bandset": {"width": 8, "depth": 2},
    "panmamba": {"width": 8, "depth": 1, "state": 2},
    "pnn": {"width": 8},
    "msdcnn": {"width": 6},
}


def toy(height=96, width=96, ratio=4, phase=None, seed=0):
    g = seeded("toy pair", seed)
    coarse = torch.rand(1, 4, height // 4, width // 4, generator=g) * 900 + 100
    gt = upsample(coarse) + 60 * torch.rand(1, 1, height, width, generator=g)
    sensor = replace(get_sensor("QB"), ratio=ratio)
    ms = degrade(gt, 0.3, ratio, phase=phase)
    return Pair(ms, gt.mean(1, keepdim=True), sensor, gt=gt, phase=phase, name="toy", resolution="reduced")


def small(name="fusionnet", **options):
    net = create_model(name, bands=4, **{**SMALL.get(name, {"width": 8, "depth": 2}), **options})
    torch.nn.init.normal_(net.network.head[-1].weight, std=0.02, generator=torch.Generator().manual_seed(0))
    return net


@pytest.mark.parametrize("ratio, phase", [(2, 0), (2, 1), (3, 1), (4, 0), (4, 1), (4, 2), (4, 3)])
def test_mirroring_keeps_the_phase(ratio, phase):
    """The MS of a mirrored pair is what the optics make of its mirrored reference."""
    pair = toy(ratio=ratio, phase=phase)
    for dim in (2, 3):
        turned = flip_pair(pair, dim)
        assert turned.gt.shape[dim] == turned.ms.shape[dim] * ratio
        made = degrade(turned.gt.contiguous(), 0.3, ratio, phase=phase)
        assert float((made - turned.ms)[..., 8:-8, 8:-8].abs().max()) < 0.02


def test_views_are_eight_different_ones():
    views = symmetric_views(toy(96, 112))
    shapes = [tuple(v.ms.shape[2:]) for v in views]
    assert len(shapes) == 8 and all(abs(h - w) <= 5 for h, w in shapes)
    assert len({float(v.pan[0, 0, 0, 0]) for v in views}) >= 4


@pytest.mark.parametrize("name", list_models())
def test_head_on_features_is_the_network(name):
    """Cached features give the network's own answer, also on sides that are no multiple of a window."""
    net, pair = small(name, guided=True, substitution=True, matched=True, back_project=1).eval(), toy(88, 72)
    with torch.no_grad():
        inputs = network_inputs(net, pair, features=True)
        given = inputs["bands_in"], inputs["guide_channels"]
        assert torch.allclose(fuse_inputs(net, inputs), net(pair.ms, pair.pan), atol=0.02)
        assert torch.allclose(net.network(*given), net.network.output(inputs["features"], *given))


def test_crops_belong_together():
    net, pair = small(), toy()
    crops = random_crops([network_inputs(net, v) for v in symmetric_views(pair)], 6, 48, seeded(1))
    assert crops["ms"].shape == (6, 4, 12, 12)
    for k in range(6):
        made = degrade(crops["gt"][k : k + 1], 0.3)
        assert float((made - crops["ms"][k : k + 1])[..., 3:-3, 3:-3].abs().max()) < 2
