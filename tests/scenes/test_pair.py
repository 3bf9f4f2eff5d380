"""Pairs: what `reduced`, `registered`, `crop` and a file keep, and what is refused."""

from dataclasses import replace

import pytest
import torch

from pansharp_study.core import seeded
from pansharp_study.optics.registration import shift_image
from pansharp_study.optics.sensors import get_sensor
from pansharp_study.optics.wald import upsample
from pansharp_study.scenes.pair import Pair, load_pairs, save_pairs

LABELS = ("name", "acquisition", "split", "simulated", "sensor", "phase")


def toy(**fields):
    """Random blocks, DN, with a corner that was not measured."""
    g = seeded("pair test")
    ms = torch.rand(1, 4, 12, 12, generator=g).repeat_interleave(4, 2).repeat_interleave(4, 3) * 600 + 200
    pan = upsample(ms.mean(1, keepdim=True)) + 20 * torch.rand(1, 1, 192, 192, generator=g)
    mask = torch.ones(1, 1, 192, 192, dtype=torch.bool)
    mask[..., :40, :40] = False
    return Pair(ms, pan, "QB", mask=mask, name="a", acquisition="b", split="c", simulated=True, **fields)


@pytest.mark.parametrize("phase", [None, 1])
def test_reduction_keeps_labels_mask_and_phase(phase):
    pair = toy(phase=phase)
    small = pair.reduced()
    assert all(getattr(small, k) == getattr(pair, k) for k in LABELS) and small.resolution == "reduced"
    assert small.mask.shape == small.pan.shape and not small.mask[..., :10, :10].any() and small.mask.any()
    assert set(small.options) == {"mask"} | ({"phase"} if phase else set())


def test_sides_that_are_no_multiple_of_the_ratio_are_trimmed():
    small = toy().crop(slice(1, 47), slice(3, None)).reduced()
    assert small.ms.shape == (1, 4, 11, 11) and small.gt.shape == (1, 4, 44, 44)


def test_registration_looks_past_pixels_that_were_not_measured():
    pair = toy()
    moved = replace(pair, pan=shift_image(pair.pan, torch.tensor([0.8, -1.3])).float())
    spoilt = replace(moved, pan=moved.pan.masked_fill(~pair.mask, 2047.0))
    one, two = moved.registered(), spoilt.registered()
    assert torch.allclose(torch.tensor(one.shift), torch.tensor([0.8, -1.3]), atol=0.15)
    assert one.shift == two.shift and torch.equal(one.pan[one.mask], two.pan[two.mask])
    assert not (one.mask & ~pair.mask).any() and one.mask.sum() < pair.mask.sum()


def test_file_keeps_pairs_of_all_kinds(tmp_path):
    four = get_sensor("WV2").subset(("B", "G", "R", "NIR1"))
    pairs = [toy(), toy(phase=1).reduced(), replace(toy(), sensor=four, mask=None, shift=(0.5, -1.0))]
    save_pairs(pairs, tmp_path / "new" / "pairs.safetensors")
    again, _ = load_pairs(tmp_path / "new" / "pairs.safetensors")
    for before, after in zip(pairs, again):
        assert all(getattr(before, k) == getattr(after, k) for k in (*LABELS, "resolution", "shift"))
        for image in ("ms", "pan", "gt", "mask"):
            a, b = getattr(before, image), getattr(after, image)
            assert (a is None and b is None) or torch.equal(a, b)


def test_what_is_refused(tmp_path):
    pair = toy()
    with pytest.raises(ValueError, match="needs a pan"):
        replace(pair, pan=pair.pan[..., 4:])
    with pytest.raises(ValueError, match="no reference"):
        replace(pair, resolution="reduced")
    with pytest.raises(ValueError, match="size of pan"):
        replace(pair, gt=pair.ms)
    with pytest.raises(ValueError, match="already"):
        pair.reduced().reduced()
    with pytest.raises(ValueError, match="can be saved"):
        save_pairs([replace(pair, sensor=replace(pair.sensor, bits=12))], tmp_path / "x.safetensors")
    with pytest.raises(FileNotFoundError, match="No pairs at"):
        load_pairs(tmp_path / "nowhere.safetensors")
