"""Tuning on one pair: symmetries keep the phase, crops belong together, held-out rows teach nothing, harm is undone."""

import math
from dataclasses import replace

import pytest
import torch

from pansharp_study.adaptation.tune import (
    PARADIGMS,
    adapt_model,
    band_error,
    choose_share,
    frozen_table,
    tune,
)
from pansharp_study.adaptation.views import (
    flip_pair,
    fuse_inputs,
    network_inputs,
    random_crops,
    symmetric_views,
)
from pansharp_study.core import load_params, seeded
from pansharp_study.networks.zoo import create_model, list_models
from pansharp_study.optics.sensors import get_sensor
from pansharp_study.optics.wald import degrade, upsample
from pansharp_study.scenes.pair import Pair

FEW = {
    "steps": 12, "batch": 2, "size": 32, "lr": 1e-2, "freeze_lr": 2e-2, "scratch_lr": 1e-2,
    "ema": 0.5, "pull": 0.04, "spectral": 1.0, "consistency": 0.0,
}  # fmt: skip
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
    net, pair = small(name, guided=True, substitution=True, estimate_blur=True, back_project=1).eval(), toy(88, 72)
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


def test_held_out_rows_are_not_trained_on():
    """Whatever stands in the last quarter, the steps are the same."""
    pair, net = toy(), small()
    other = replace(pair, gt=torch.cat([pair.gt[:, :, :72], 0 * pair.gt[:, :, 72:] + 5], 2))
    one, two = (tune(net, p, FEW, freeze=False, lr=1e-2, seed=(1,)) for p in (pair, other))
    assert one.losses == two.losses and one.held_out != two.held_out


@pytest.mark.parametrize("freeze", [False, True])
def test_tuning_never_ends_worse_on_held_out_rows(freeze):
    pair, net = toy(), small()
    tuned = tune(net, pair, FEW, freeze=freeze, lr=1e-2, seed=(1,))
    assert tuned.held_out < 1 and 0 < tuned.share <= 1 and len(tuned.losses) == 12
    assert tuned.seconds >= 12 * 0.5 * tuned.seconds_per_step and tuned.peak_memory_mb > 10
    assert all(p.requires_grad for p in tuned.network.parameters())
    spoilt = tune(tuned.network, pair, FEW, freeze=freeze, lr=20.0, seed=(1,))
    assert spoilt.share == 0 and spoilt.held_out == 1
    assert all(torch.equal(a, b) for a, b in zip(spoilt.network.parameters(), tuned.network.parameters()))


def test_repeated_tuning_is_identical():
    pair, net = toy(), small()
    one, two = (tune(net, pair, FEW, freeze=False, lr=2e-3, seed=(3,)) for _ in range(2))
    assert one.losses == two.losses
    assert all(torch.equal(a, b) for a, b in zip(one.network.parameters(), two.network.parameters()))


def test_pull_keeps_weights_near():
    pair, net = toy(), small()

    def distance(pull):
        tuned = tune(net, pair, FEW | {"pull": pull, "ema": 0.0}, freeze=False, lr=1e-2, seed=(1,))
        assert tuned.share > 0
        apart = (float((a - b).square().sum()) for a, b in zip(net.parameters(), tuned.network.parameters()))
        return sum(apart) / tuned.share**2

    assert distance(0.1) < distance(0.0)


def test_pairs_with_and_without_a_mask_tune_together():
    masked = replace(toy(seed=1), mask=torch.arange(96).expand(1, 1, 96, 96) > 20)
    tuned = tune(small(), [toy(), masked], FEW | {"steps": 2}, freeze=False, lr=1e-3, seed=(1,))
    assert tuned.n_pairs == 2 and all(math.isfinite(loss) for loss in tuned.losses)


def test_network_without_features_is_tuned_too():
    """A network that someone registers need not be split in features and output; its head is tuned all the same."""

    class Plain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = torch.nn.Conv2d(5, 8, 3, padding=1)
            self.head = torch.nn.Sequential(torch.nn.Conv2d(8, 4, 3, padding=1))

        def forward(self, lms, pan):
            return self.head(torch.relu(self.stem(torch.cat([pan[:, :1], lms], 1))))

    net = small()
    net.network, net.guided, net.substitution = Plain(), False, False
    tuned = tune(net, toy(), FEW, freeze=True, lr=2e-2, seed=(1,))
    assert tuned.share > 0 and torch.equal(tuned.network.network.stem.weight, net.network.stem.weight)


def test_choose_share_prefers_the_smallest_good_one():
    same = {0: (1.0, 0.1), 0.25: (0.8, 0.1), 0.5: (0.5, 0.1), 1.0: (0.49, 0.1)}
    assert choose_share(same) == 0.5
    worse_colour = {s: (e, 0.2 if s else 0.1) for s, (e, _) in same.items()}
    assert choose_share(worse_colour) == 0.0, "no gain in sharpness pays for colour"


def test_paradigms_and_frozen_groups():
    """All four paradigms, several pairs, no change to what is given, and a table of what freezes."""
    net, pair = small("bandset"), toy()
    before = [p.clone() for p in net.parameters()]
    found = adapt_model(net, [pair, toy(seed=1)], FEW | {"steps": 3}, 0)
    assert tuple(found) == PARADIGMS and found["one-shot freeze"].n_pairs == 2
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters()))
    own = dict(net.named_parameters())
    fixed = {n for n, p in found["one-shot freeze"].network.named_parameters() if torch.equal(p, own[n])}
    assert set(net.frozen()) <= fixed
    table = frozen_table(net)
    assert table["parameters"].sum() == sum(p.numel() for p in own.values())
    assert table.loc[~table["frozen"], "group"].tolist() == ["head"]


def test_contracts():
    net, pair = small(), toy()
    for bad, words in ((replace(pair, gt=None, resolution="full"), "no reference"), (pair.crop(slice(9)), "9 MS rows")):
        with pytest.raises(ValueError, match=words):
            tune(net, bad, FEW, freeze=False, lr=1e-3, seed=(1,))
    with pytest.raises(ValueError, match="unknown"):
        adapt_model(net, pair, FEW, 0, paradigms=("none",))
    assert float(band_error(pair.gt, network_inputs(net, pair))) == 0 and set(FEW) <= set(load_params()["adapt"])
