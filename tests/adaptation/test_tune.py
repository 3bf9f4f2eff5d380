"""Tuning on one pair: symmetries keep the phase, features are what the head sees, nothing leaks, and harm is undone."""

import math

import pytest
import torch

from pansharp_study.adaptation.tune import (
    PARADIGMS,
    adapted,
    band_error,
    choose_share,
    cut_rows,
    frozen_table,
    fuse_prepared,
    mirrored,
    pair_crops,
    prepared,
    tune,
    views,
)
from pansharp_study.core import load_params, seeded
from pansharp_study.networks.zoo import create_model, list_models
from pansharp_study.optics.wald import degrade, upsample

FEW = {"steps": 12, "batch": 2, "size": 32, "lr": 1e-2, "freeze_lr": 2e-2, "scratch_lr": 1e-2, "ema": 0.5, "pull": 0.04, "spectral": 1.0, "consistency": 0.0}
SMALL = {"bandset": {"width": 8, "depth": 2}, "panmamba": {"width": 8, "depth": 1, "state": 2}, "pnn": {"width": 8}, "msdcnn": {"width": 6}}


def toy(height=96, width=96, bands=4, ratio=4, phase=None, seed=0):
    g = seeded("toy pair", seed)
    gt = upsample(torch.rand(1, bands, height // 4, width // 4, generator=g) * 900 + 100) + 60 * torch.rand(1, 1, height, width, generator=g)
    return {"ms": degrade(gt, 0.3, ratio, phase=phase), "pan": gt.mean(1, keepdim=True), "gt": gt}


def small(name="fusionnet", bands=4, **options):
    net = create_model(name, bands=bands, **{**SMALL.get(name, {"width": 8, "depth": 2}), **options})
    torch.nn.init.normal_(net.network.head[-1].weight, std=0.02, generator=torch.Generator().manual_seed(0))
    return net


@pytest.mark.parametrize("ratio, phase", [(2, 0), (2, 1), (3, 1), (4, 0), (4, 1), (4, 2), (4, 3)])
def test_mirroring_keeps_the_phase(ratio, phase):
    """The MS of a mirrored pair is what the optics make of its mirrored reference."""
    pair = toy(96, 96, ratio=ratio, phase=phase)
    for dim in (2, 3):
        turned = mirrored(pair, dim, phase)
        assert turned["gt"].shape[dim] == turned["ms"].shape[dim] * ratio
        made = degrade(turned["gt"].contiguous(), 0.3, ratio, phase=phase)
        assert float((made - turned["ms"])[..., 8:-8, 8:-8].abs().max()) < 0.02


def test_views_are_eight_different_ones():
    pair = toy(96, 112)
    shapes = [tuple(v["ms"].shape[2:]) for v in views(pair)]
    assert len(shapes) == 8 and all(abs(h - w) <= 5 for h, w in shapes) and len({float(v["pan"][0, 0, 0, 0]) for v in views(pair)}) >= 4


@pytest.mark.parametrize("name", list_models())
def test_head_on_features_is_the_network(name):
    """Cached features give the network's own answer, also on sides that are no multiple of a window."""
    net, pair = small(name, guided=True, substitution=True, estimate_blur=True, back_project=1).eval(), toy(88, 72)
    with torch.no_grad():
        seen = prepared(net, pair, features=True)
        assert torch.allclose(fuse_prepared(net, seen), net(pair["ms"], pair["pan"]), atol=0.02)
        assert torch.allclose(net.network(seen["shown"], seen["told"]), net.network.output(seen["features"], seen["shown"], seen["told"]))


def test_crops_belong_together():
    net, pair = small(), toy()
    crops = pair_crops([prepared(net, v) for v in views(pair)], 6, 48, seeded(1))
    assert crops["ms"].shape == (6, 4, 12, 12)
    for k in range(6):
        assert float((degrade(crops["gt"][k : k + 1], 0.3) - crops["ms"][k : k + 1])[..., 3:-3, 3:-3].abs().max()) < 2


def test_rows_kept_aside_are_not_taught():
    """Whatever stands in the last quarter, the steps are the same."""
    pair, net = toy(), small()
    other = pair | {"gt": torch.cat([pair["gt"][:, :, :72], 0 * pair["gt"][:, :, 72:] + 5], 2)}
    one, two = (tune(net, p, FEW, freeze=False, lr=1e-2, seed=(1,)) for p in (pair, other))
    assert one.losses == two.losses and one.held_out != two.held_out


@pytest.mark.parametrize("freeze", [False, True])
def test_tuning_never_ends_worse_on_the_rows_kept_aside(freeze):
    pair, net = toy(), small()
    tuned = tune(net, pair, FEW, freeze=freeze, lr=1e-2, seed=(1,))
    assert tuned.held_out < 1 and 0 < tuned.share <= 1 and len(tuned.losses) == 12 and tuned.seconds >= 12 * 0.5 * tuned.seconds_per_step
    assert all(p.requires_grad for p in tuned.network.parameters()) and tuned.peak_memory_mb > 10
    spoilt = tune(tuned.network, pair, FEW, freeze=freeze, lr=20.0, seed=(1,))
    assert spoilt.share == 0 and spoilt.held_out == 1
    assert all(torch.equal(a, b) for a, b in zip(spoilt.network.parameters(), tuned.network.parameters()))


def test_repeated_tuning_is_identical():
    pair, net = toy(), small()
    one, two = (tune(net, pair, FEW, freeze=False, lr=2e-3, seed=(3,)) for _ in range(2))
    assert one.losses == two.losses and all(torch.equal(a, b) for a, b in zip(one.network.parameters(), two.network.parameters()))


def test_pull_keeps_weights_near():
    pair, net = toy(), small()

    def way(pull):
        tuned = tune(net, pair, FEW | {"pull": pull, "ema": 0.0}, freeze=False, lr=1e-2, seed=(1,), anchored=True)
        assert tuned.share > 0
        return sum(float((a - b).square().sum()) for a, b in zip(net.parameters(), tuned.network.parameters())) / tuned.share**2

    assert way(0.1) < way(0.0)


def test_network_without_features_is_tuned_too():
    """Whoever registers a network of their own need not split it; the head is tuned all the same."""

    class Plain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.head = torch.nn.Conv2d(5, 8, 3, padding=1), torch.nn.Sequential(torch.nn.Conv2d(8, 4, 3, padding=1))

        def forward(self, lms, pan):
            return self.head(torch.relu(self.stem(torch.cat([pan[:, :1], lms], 1))))

    net = small()
    net.network, net.guided, net.substitution = Plain(), False, False
    tuned = tune(net, toy(), FEW, freeze=True, lr=2e-2, seed=(1,))
    assert tuned.share > 0 and torch.equal(tuned.network.network.stem.weight, net.network.stem.weight)


def test_choose_share_prefers_the_smallest_good_one():
    same = {0: (1.0, 0.1), 0.25: (0.8, 0.1), 0.5: (0.5, 0.1), 1.0: (0.49, 0.1)}
    assert choose_share(same) == 0.5
    assert choose_share({s: (e, 0.2 if s else 0.1) for s, (e, _) in same.items()}) == 0.0, "no gain in sharpness pays for colour"


def test_ways_and_frozen_groups():
    """All four paradigms, several pairs, no change to what is given, and a table of what freezes."""
    net, pair = small("bandset"), toy()
    before = [p.clone() for p in net.parameters()]
    met = adapted(net, [pair, toy(seed=1)], FEW | {"steps": 3}, 0)
    assert tuple(met) == PARADIGMS and met["one-shot freeze"].n_pairs == 2 and all(torch.equal(a, b) for a, b in zip(before, net.parameters()))
    fixed = {n for n, p in met["one-shot freeze"].network.named_parameters() if torch.equal(p, dict(net.named_parameters())[n])}
    assert set(net.frozen()) <= fixed
    table = frozen_table(net)
    assert table["parameters"].sum() == sum(p.numel() for p in net.parameters()) and table.loc[~table["frozen"], "group"].tolist() == ["head"]


def test_contracts():
    net, pair = small(), toy()
    for bad, words in (({k: pair[k] for k in ("ms", "pan")}, "reference"), (cut_rows(pair, 0, 9), "9 MS rows")):
        with pytest.raises(ValueError, match=words):
            tune(net, bad, FEW, freeze=False, lr=1e-3, seed=(1,))
    with pytest.raises(ValueError, match="unknown"):
        adapted(net, pair, FEW, 0, paradigms=("none",))
    assert math.isclose(float(band_error(pair["gt"], prepared(net, pair))), 0) and set(FEW) <= set(load_params()["adapt"])
