"""The simulation keeps its promises: seeds, ratios, registration, energy, switches, streams and clear errors."""

import hashlib
import io
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from pansharp_study.core import load_params, root, seeded
from pansharp_study.optics.filters import mtf_taps
from pansharp_study.optics.matrices import (
    DOWNSAMPLINGS,
    apply,
    axis_matrix,
    box_taps,
    chain,
    sampling_taps,
    shift_taps,
)
from pansharp_study.optics.wald import upsample
from pansharp_study.simulation.base_images import PAIR, WAYS, Canvases, in_a_row, load_materials, make_materials
from pansharp_study.simulation.pairs import (
    NEEDS,
    instrument,
    light_from_labels,
    light_from_pictures,
    operations,
    simulate_pairs,
    without,
)
from pansharp_study.simulation.pairs import (
    OFF as SWITCHES,
)
from pansharp_study.simulation.pool import make_pool
from pansharp_study.simulation.stream import Stream, open_stream, with_room
from pansharp_study.simulation.transforms import (
    cut_and_mix,
    draw,
    haze_by_band,
    highpass,
    jitter,
    noise,
    quantise,
    rectangles,
    shuffle_channels,
    skylight,
    some,
    tone,
)

OFF = {key: value for values in SWITCHES.values() for key, value in values.items()}  # the value in brackets in params.yaml
STRONG = {  # the same effects, so strong that they can't be overlooked
    "gamma": [2, 2], "highpass": [1, 1], "shuffle": 1, "cut_and_mix": 1, "jitter": [0.5, 2], "skylight": [0.4, 0.4], "haze": [1, 1], "pan_leak": [0.5, 0.5],
    "pan_gamma": [1.5, 1.5], "pan_shift_px": 1.0, "band_shift_px": 1.0, "anisotropy": [2, 2], "motion_px": [3, 3], "defocus_px": [3, 3],
    "noise_dn": [9, 9], "shot_dn": [9, 9], "stripe_dn": [5, 5], "any_material": 1, "turns": True, "pan_weights": [0, 1], "haze_last": [0.1, 0.1], "pan_haze": [1, 1],
    "mtf_gt": [0.2, 0.2], "mtf_pan": [0.2, 0.2], "mtf_ms": [0.2, 0.2], "mtf_gt_spread": [0.5, 1], "mtf_ms_spread": [0.5, 1], "bits": [8, 8],
    "downsampling": {"decimate": 0, "area": 1, "bilinear": 0, "bicubic": 0}, "halo": [0.3, 0.3], "told_mtf": 1,
}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def params():
    return load_params(scale="laptop")["synthesize_pairs"] | {"size": 48, "canvases": 3, "canvas_size": 160, "zoom": [0.3], "sources": ["remote_sensing"]}


@pytest.fixture(scope="module")
def canvases(params):
    return load_materials(make_materials(params, 1))


def only(way, params):
    return params | {"ways": dict.fromkeys(WAYS, 0) | {way: 1}}


def batch(canvases, params, *, bands=4, n=6, seed="one", ratio=4, phase=None):
    return simulate_pairs(canvases, bands, n, params, seeded(seed), ratio=ratio, phase=phase)


def same(a, b):
    return all(torch.equal(a[k], b[k]) for k in (*PAIR, "peak"))


# seeds


def test_same_seed_same_batch(canvases, params):
    """A seed is a batch; another seed is another one."""
    first = batch(canvases, params)
    assert same(first, batch(canvases, params))
    other = batch(canvases, params, seed="two")
    assert all(not torch.equal(first[k], other[k]) for k in ("ms", "pan", "gt"))


def test_no_global_randomness(canvases, params):
    """PyTorch's and NumPy's own generators are neither read nor moved."""
    torch.manual_seed(1)
    first, state = batch(canvases, params), torch.get_rng_state()
    torch.manual_seed(2)
    assert same(first, batch(canvases, params))
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())


def test_worker_count_changes_nothing(params):
    """Canvases don't depend on how many processes make them."""
    few = params | {"canvases": 17, "canvas_size": 64, "size": 48}
    alone, together = make_materials(few, 3), make_materials(few, 3, workers=2)
    assert set(alone) == set(together) and all(torch.equal(alone[k], together[k]) for k in alone)


def test_samples_of_a_batch_differ(canvases, params):
    """Each sample has its own picture, sensor and bit depth."""
    x = batch(canvases, params | {"bits": [8, 14]}, n=12)
    flat = x["gt"].flatten(1)
    assert len(torch.unique(flat, dim=0)) == 12 and len(x["peak"].unique()) > 2


def test_crops_are_turned_all_eight_ways():
    """Every symmetry of the square, and nothing else."""
    picture = torch.arange(16, dtype=torch.uint8).reshape(1, 4, 4)
    found = {tuple(crop.flatten().tolist()) for crop in Canvases(*in_a_row([picture])).cut(300, 4, seeded("D4"))[0]}
    assert found == {tuple(torch.rot90(p, k, (1, 2)).flatten().tolist()) for p in (picture, picture.flip(2)) for k in range(4)}


# sizes


@pytest.mark.parametrize("ratio", [2, 3, 4, 6])
@pytest.mark.parametrize("bands", [4, 8, 12])
def test_shapes(canvases, params, bands, ratio):
    """Any number of bands at any ratio: whole DN inside the bit depth."""
    x = batch(canvases, params, bands=bands, ratio=ratio)
    assert x["ms"].shape == (6, bands, 48 // ratio, 48 // ratio) and x["gt"].shape == (6, bands, 48, 48) and x["pan"].shape == (6, 1, 48, 48)
    for key in ("ms", "pan", "gt"):
        assert x[key].dtype == torch.float32 and torch.equal(x[key], x[key].round())
        assert (x[key] >= 0).all() and (x[key] <= x["peak"]).all()
        assert (x[key].amax((2, 3)) > x[key].amin((2, 3))).all(), "an image without content"


# registration


@pytest.mark.parametrize("kind", DOWNSAMPLINGS)
@pytest.mark.parametrize("ratio", [2, 3, 4, 6])
def test_a_ramp_stays_in_place(params, ratio, kind):
    """A ramp passes every symmetric filter unchanged; whatever moves it is a shift."""
    size = 24 * ratio
    still = params | {k: OFF[k] for k in ("band_shift_px", "pan_shift_px")} | {"downsampling": dict.fromkeys(DOWNSAMPLINGS, 0) | {kind: 1}}
    m = instrument(4, 3, size, still, ratio, seeded("ramp", ratio, kind))
    down, right = torch.meshgrid(torch.arange(size) / 100, torch.arange(size) / 37, indexing="ij")
    ramp = (down + right).expand(3, 4, size, size)
    gt, pan = apply(ramp, m["gt", 0], m["gt", 1]), apply(ramp[:, :1], m["pan", 0], m["pan", 1])
    lms = upsample(apply(gt, m["ms", 0], m["ms", 1]), ratio)
    inner = (..., slice(9 * ratio, -9 * ratio), slice(9 * ratio, -9 * ratio))
    for image, reference, what in ((lms, gt, "lms and gt"), (pan, gt[:, :1], "PAN and gt"), (gt, ramp, "gt and scene")):
        apart = (image - reference)[inner].abs().amax() * 37  # PAN pixels along the steeper axis
        assert apart < 0.05, f"{what} are {apart:.3f} PAN pixels apart"


@pytest.mark.parametrize("ratio", [2, 3, 4, 6])
def test_lms_lies_on_the_reference(canvases, params, ratio):
    """The same on simulated pairs, by least squares on gradients."""
    still = params | {k: OFF[k] for k in ("band_shift_px", "pan_shift_px", "noise_dn", "shot_dn", "stripe_dn")} | {"bits": [12, 12], "size": 96}
    x = batch(canvases, still, n=12, ratio=ratio, seed=f"still {ratio}")
    lms, gt = (t[..., 16:-16, 16:-16].double() for t in (upsample(x["ms"], ratio), x["gt"]))
    inner = (..., slice(1, -1), slice(1, -1))
    slope = torch.stack([((gt.roll(-1, d) - gt.roll(1, d)) / 2)[inner].flatten(1) for d in (2, 3)], 2)
    apart = torch.linalg.lstsq(slope, -(lms - gt)[inner].flatten(1)[..., None]).solution.squeeze(-1)
    assert apart.median(0).values.abs().max() < 0.05 and apart.mean(0).abs().max() < 0.05, apart


@pytest.mark.parametrize("phase", [0, 1, 3])
def test_any_phase_of_decimation(canvases, params, phase):
    """Decimation may begin at any fine pixel: interpolated with that phase MS lies on the reference, with another it does not."""
    still = params | {k: OFF[k] for k in ("band_shift_px", "pan_shift_px", "noise_dn", "shot_dn", "stripe_dn")} | {"bits": [12, 12], "size": 96}
    x = batch(canvases, still, n=6, seed="phase", phase=phase)
    error = {p: float((upsample(x["ms"], 4, phase=p) - x["gt"])[..., 16:-16, 16:-16].abs().mean()) for p in range(4)}
    assert min(error, key=error.get) == phase, error
    with pytest.raises(ValueError, match="phase = 4"):
        batch(canvases, still, n=2, phase=4)


def test_shifts_are_what_was_asked_for(params):
    """With shifts on, no band moves by more than they allow, and most do."""
    moved = params | {"band_shift_px": 0.8, "pan_shift_px": 0.4}
    m = instrument(4, 8, 64, moved, 4, seeded("moved"))
    ramp = torch.arange(64.0).expand(8, 4, 64, 64)
    gt, pan = (apply(ramp[:, :c], m[key, 0], m[key, 1])[..., 32, 32] - 32 for key, c in (("gt", 4), ("pan", 1)))
    assert gt.abs().max() < 0.81 and gt.std() > 0.3 and pan.abs().max() < 0.41 and pan.std() > 0.1


# energy


@pytest.mark.parametrize("ratio", [1, 2, 3, 4, 6])
def test_matrices_conserve_energy(ratio):
    """Every row sums to 1; away from the borders every column to one part in the ratio, on average over the phases."""
    blur = mtf_taps(torch.tensor(0.3), ratio)
    taps = [blur, chain(blur, box_taps(torch.tensor(1.7)), shift_taps(torch.tensor(0.4)))]
    for t in taps + [sampling_taps(kind, ratio) for kind in DOWNSAMPLINGS]:
        m = axis_matrix(t, 96, ratio)
        assert m.shape == (96 // ratio, 96) and torch.allclose(m.sum(1), torch.ones(96 // ratio), atol=1e-5)
        assert abs(float(m[:, 36:60].sum()) * ratio / 24 - 1) < 1e-4, "light is lost or invented"


def test_positive_filters_stay_inside_the_range(canvases, params):
    """Blur can neither darken the darkest nor brighten the brightest."""
    m = instrument(4, 6, 48, params | {"band_shift_px": 0, "pan_shift_px": 0}, 4, seeded("range"))
    x = torch.rand(6, 4, 48, 48, generator=seeded("content"))
    gt = apply(x, m["gt", 0], m["gt", 1])
    assert (gt.amax((2, 3)) <= x.amax((2, 3)) + 1e-6).all() and (gt.amin((2, 3)) >= x.amin((2, 3)) - 1e-6).all()


def test_mean_light_survives(canvases, params):
    """Reference and MS have the same mean; borders and clipping apart."""
    x = batch(canvases, params | {k: OFF[k] for k in ("noise_dn", "shot_dn", "stripe_dn", "haze")} | {"level": [0.15, 0.15], "size": 96}, n=12)
    change = x["ms"].mean((2, 3)) / x["gt"].mean((2, 3)) - 1
    assert change.abs().median() < 0.01 and change.abs().mean() < 0.03


# flat spectra


def flat(canvases, shade=None):
    spectra, group = canvases["library"]
    labels, groups = canvases["labels"]
    if shade is not None:
        pixels = labels.pixels.clone()
        pixels[:, 1] = shade
        labels = Canvases(pixels, labels.height, labels.width)
    return canvases | {"library": (torch.full_like(spectra, 0.3), group), "labels": (labels, groups)}


@pytest.mark.parametrize("way", ["spectral", "procedural"])
def test_flat_spectrum_gives_equal_bands(canvases, params, way):
    """Grey materials look the same in every band and in PAN, whatever the sensor."""
    grey, g = flat(canvases), seeded("flat", way)
    if way == "procedural":
        x, pan = light_from_labels(*grey["labels"], grey["library"], 8, 4, params, g)
    else:
        x, pan = light_from_pictures(grey["pictures"], grey["library"], 8, 4, params, g, spectral=True)
    assert torch.allclose(x, x[:, :1].expand_as(x), rtol=1e-4, atol=1e-6) and torch.allclose(pan, x[:, :1].expand_as(pan), rtol=1e-4, atol=1e-6)
    assert x.std() > 0.01, "brightness still varies"


@pytest.mark.parametrize("bands", [4, 8, 12])
def test_flat_scene_stays_flat(canvases, params, bands):
    """Grey material under even light: constant images, equal in all bands, through the whole engine."""
    level = params | {k: OFF[k] for k in ("noise_dn", "shot_dn", "stripe_dn", "haze", "jitter")} | {"cut_and_mix": 0}
    x = batch(flat(canvases, shade=128), only("procedural", level), bands=bands)
    for key in ("ms", "pan", "gt"):
        assert (x[key].amax((1, 2, 3)) - x[key].amin((1, 2, 3))).max() <= 1, key
    assert (x["ms"].mean((1, 2, 3)) - x["pan"].mean((1, 2, 3))).abs().max() <= 1


# switches


def test_every_bracket_is_a_switch():
    """Each key whose comment in params.yaml ends with a value that switches it off is in SWITCHES, with that value."""
    section = (root() / "params.yaml").read_text(encoding="utf-8").split("\nsynthesize_pairs:")[1].split("\n\n")[0]
    found = {k: yaml.safe_load(text) for k, text in re.findall(r"^  (\w+):.*#.*?(\[[^]/]+\]|\{[^}/]+\})\s*$", section, re.M)}
    assert found.pop("ways") == [0] and found.pop("refill") == [0]
    assert {k: v[0] if isinstance(v, list) and len(v) == 1 and k != "zoom" else v for k, v in found.items()} == OFF
    assert set(OFF) <= set(load_params()["synthesize_pairs"]) and set(NEEDS) <= set(SWITCHES)


def test_switched_off_transforms_return_their_input():
    """At the value in brackets each transform is the identity, bit by bit."""
    x, g = torch.rand(3, 4, 20, 20, generator=seeded("x")), seeded("off")
    assert torch.equal(shuffle_channels(x, OFF["shuffle"], g), x) and torch.equal(jitter(x, OFF["jitter"], g), x)
    assert torch.equal(highpass(x, OFF["highpass"], g), x) and torch.equal(cut_and_mix(x, rectangles(3, 20, OFF["cut_and_mix"], g)), x)
    assert torch.allclose(tone(x, OFF["gamma"], g), x, atol=1e-6) and torch.equal(skylight(torch.zeros(3, 1, 1, 1), 4), torch.ones(3, 4, 1, 1))
    zero = torch.zeros(3, 1, 1, 1)
    assert torch.equal(noise(x, zero, zero, zero, g), x) and haze_by_band(zero, zero, 4).max() <= 1e-5
    assert not some(OFF["any_material"], 50, g).any() and some(1, 50, g).all()
    one = torch.eye(7)[3]
    assert torch.equal(box_taps(torch.tensor(1.0)), one) and torch.allclose(shift_taps(torch.tensor(0.0)), torch.eye(9)[4])


def test_switched_off_instrument_is_plain():
    """Without shifts, smear, defocus and anisotropy only the MTF is left: the same along both axes, and symmetric."""
    plain = load_params()["synthesize_pairs"] | {k: OFF[k] for k in ("band_shift_px", "pan_shift_px", "anisotropy", "motion_px", "defocus_px", "halo")}
    m = instrument(4, 5, 64, plain | {"mtf_pan": [0.3, 0.3], "mtf_gt": [0.5, 0.5]}, 4, seeded("plain"))
    for key in ("gt", "pan", "ms"):
        assert torch.allclose(m[key, 0], m[key, 1])
    assert torch.allclose(m["gt", 0], m["gt", 0].flip(2, 3), atol=1e-6)
    assert torch.allclose(m["pan", 0], axis_matrix(mtf_taps(torch.tensor(0.3), 1), 64).expand_as(m["pan", 0]), atol=1e-6)


CHANGES = {  # what an operation changes; those not listed change all three
    **dict.fromkeys(("pan_weights", "pan_leak", "pan_gamma", "pan_haze", "pan_shift"), {"pan"}), "downsampling": {"ms"},
    **dict.fromkeys(("jitter", "skylight", "haze", "haze_last", "band_shift", "mtf_spread"), {"ms", "gt"}), "told_mtf": set(), **dict.fromkeys(("read_noise", "shot_noise", "stripes"), {"ms", "pan"}),
}


@pytest.mark.parametrize("name", [name for name in SWITCHES if name != "zoom"])
def test_switch_reaches_the_images(canvases, params, name):
    """From all effects off, switching one on changes what it should change, and no other random number."""
    needs = [need for need in NEEDS.get(name, ()) if need in SWITCHES]
    still = params | OFF | {"level": [0.15, 0.15]} | {k: STRONG[k] for need in needs for k in SWITCHES[need]}
    still = only({"any_material": "procedural", "pan_weights": "mixed"}.get(name, "spectral"), still)
    off, on = (batch(canvases, still | extra, n=3) for extra in ({}, {k: STRONG[k] for k in SWITCHES[name]}))
    assert same(off, batch(canvases, without(still, name), n=3))
    changed = {k for k in ("ms", "pan", "gt") if not torch.equal(off[k], on[k])}
    assert changed == CHANGES.get(name, {"ms", "pan", "gt"}), f"{name} changed {changed or 'nothing'}"
    if name == "haze":
        assert (on["ms"].mean((2, 3)) > off["ms"].mean((2, 3)) + 100).all(), "path radiance only adds"


@pytest.mark.parametrize("name", [name for name in SWITCHES if name != "zoom"])
def test_switching_one_off_changes_batches(canvases, params, name):
    """From params.yaml, with all ways alike: without any one operation the pairs are others, and operations() says which it was."""
    params = params | {"ways": dict.fromkeys(params["ways"], 1)}
    less = without(params, name)
    assert not same(batch(canvases, params, n=45), batch(canvases, less, n=45))
    before, after = (operations(p).set_index("name")["on"] for p in (params, less))
    gone = {name} | {other for other, need in NEEDS.items() if need == (name,)}
    assert set(before.index[before & ~after]) == gone and not (after & ~before).any()
    assert params == params | {} and less is not params and all(params[k] != v for k, v in SWITCHES[name].items()), "the original is left alone"


def test_all_off_gives_plain_pairs(canvases, params):
    """Reference: the light of the bands, at one level; MS: every fourth pixel of it; PAN: the mean of the bands' light."""
    plain = only("mixed", params | OFF | {"level": [0.15, 0.15]})
    x = batch(canvases, plain, n=4)
    assert (x["peak"] == 2**15 - 1).all() and torch.equal(x["ms"], x["gt"][..., 2::4, 2::4])
    light, pan = light_from_pictures(canvases["pictures"], canvases["library"], 4, 4, plain, seeded("one"), spectral=False)
    for seen, was in ((x["gt"], light), (x["pan"], light.mean(1, keepdim=True)), (x["pan"], pan[:, :1])):
        want = (was / was.mean((2, 3), keepdim=True) * 0.15 * x["peak"]).minimum(x["peak"])
        assert (seen - want).abs().max() <= 1


def test_operations_says_which_were_on(params):
    """Ways, sources and operations with their values; what acts on nothing is off."""
    told = operations(params).set_index("name")
    assert set(told["part"]) == {"way", "source", "picture", "light and air", "optics", "electronics"} and told["on"][["haze", "remote_sensing", *WAYS]].all()
    assert not told["on"][["corpus", "photograph"]].any() and told["setting"]["haze"] == f"haze {params['haze']}"
    town = operations(only("procedural", params)).set_index("name")["on"]
    assert not town[["gamma", "shuffle", "zoom", "remote_sensing", "pan_weights", "mixed"]].any() and town[["any_material", "turns", "procedural"]].all()
    corpus = operations(params | {"corpus": ["/data/train"], "refill": 3}).set_index("name").loc["corpus"]
    assert corpus["on"] and corpus["setting"] == "/data/train, 3 pictures replaced per training step"
    assert not operations(params | {"downsampling": STRONG["downsampling"] | {"decimate": 3, "area": 0}}).set_index("name")["on"]["downsampling"]


def test_without_a_way_or_a_source(params):
    """Also ways, kinds of pictures and the corpus can be switched off by name; what is unknown says what is known."""
    assert without(params, "mixed")["ways"] == params["ways"] | {"mixed": 0} and without(params, "remote_sensing")["sources"] == []
    assert without(params | {"corpus": ["x"], "refill": 2}, "corpus")["corpus"] == []
    with pytest.raises(ValueError, match="choose from zoom, turns"):
        without(params, "fog")
    with pytest.raises(ValueError, match="nothing would be left"):
        without(only("mixed", params), "mixed")


@pytest.mark.parametrize("kind", ["area", "bilinear", "bicubic"])
def test_downsampling_can_be_chosen(canvases, params, kind):
    """Another way of making MS changes MS alone."""
    still = params | OFF
    mtf, other = (batch(canvases, still | {"downsampling": dict.fromkeys(DOWNSAMPLINGS, 0) | {k: 1}}) for k in ("decimate", kind))
    assert torch.equal(mtf["gt"], other["gt"]) and torch.equal(mtf["pan"], other["pan"]) and not torch.equal(mtf["ms"], other["ms"])


@pytest.mark.parametrize("way", WAYS)
def test_ways_can_be_switched_off(canvases, params, way):
    """A way with share 0 isn't needed: neither its canvases nor its spectra are touched."""
    needs = {"mixed": {"pictures"}, "spectral": {"pictures", "library"}, "procedural": {"labels", "library"}}[way]
    missing = {k: None for k in canvases} | {k: canvases[k] for k in needs}
    assert same(batch(missing, only(way, params)), batch(canvases, only(way, params)))


def test_sources_can_be_switched_off(params):
    """Only the named kinds of pictures are read, at the named scales."""
    few = params | {"canvases": 1, "canvas_size": 64}
    one, two = (make_materials(few | {"zoom": zoom}, 1) for zoom in ([1.0], [1.0, 0.5]))
    both = make_materials(few | {"zoom": [0.3], "sources": ["photograph", "remote_sensing"]}, 1)
    alone = make_materials(few | {"zoom": [0.3], "sources": ["photograph"]}, 1)
    assert len(one["height"]) < len(two["height"]) and len(alone["height"]) < len(both["height"])


def test_one_way_needs_no_other_source(params, tmp_path):
    """Procedural scenes without any picture, and pictures without any scene; also from a file."""
    from safetensors.torch import save_file

    for way, few in (("procedural", {"sources": []}), ("spectral", {"canvases": 0}), ("mixed", {"canvases": 0})):
        made = make_materials(only(way, params | few), 1)
        save_file({k: v.contiguous() for k, v in made.items()}, tmp_path / way)
        canvases = load_materials(tmp_path / way)
        assert (len(canvases["pictures"].height) == 0) == (way == "procedural") and (len(canvases["labels"][0].height) == 0) == (way != "procedural")
        assert same(batch(canvases, only(way, params)), batch(load_materials(made), only(way, params)))
        with pytest.raises(ValueError, match="no canvases of this kind"):
            batch(canvases, params)


# streams


def stream(canvases, params, *seed, ahead=3, **options):
    return Stream(canvases, 4, params, 4, seed or (1, "run"), ahead=ahead, **options)


def test_stream_gives_each_step_its_batch(canvases, params):
    """Steps in order, out of order and after a restart: the same batches."""
    whole = stream(canvases, params)
    batches = [whole(step) for step in range(7)]
    resumed, back = stream(canvases, params), stream(canvases, params)
    assert all(torch.equal(batches[step][k], resumed(step)[k]) for step in (4, 5, 6) for k in ("ms", "pan", "gt"))
    assert all(torch.equal(batches[step]["ms"], back(step)["ms"]) for step in (6, 0, 3))
    assert batches[0]["ms"].shape == (4, 4, 12, 12) and set(batches[0]) == set(PAIR)


def test_streams_of_ranks_do_not_overlap(canvases, params):
    """No pair of one process or seed is a pair of another, nor comes twice."""
    seen = [stream(canvases, params, rank=rank, world=2)(step)["gt"] for rank in (0, 1) for step in range(5)] + [stream(canvases, params, 2, "run")(0)["gt"]]
    pairs = torch.cat(seen).flatten(1)
    assert len(torch.unique(pairs, dim=0)) == len(pairs)


def test_numbers_of_bands_take_turns(canvases, params):
    """Whatever is made at once, each step has its number of bands and its batch."""
    one, other = (Stream(canvases, (4, 8, 5), params, 2, (1, "turns"), ahead=4) for _ in range(2))
    batches = [one(step) for step in range(9)]
    assert [b["gt"].shape[1] for b in batches] == 3 * [4, 8, 5] and all(b["ms"].shape == (2, b["gt"].shape[1], 12, 12) and b["pan"].shape == (2, 1, 48, 48) for b in batches)
    assert all(torch.equal(other(step)["gt"], batches[step]["gt"]) for step in (7, 2, 5))
    assert len(torch.unique(torch.cat([b["pan"] for b in batches]).flatten(1), dim=0)) == 18


def test_ways_are_mixed_within_a_batch(canvases, params):
    """Samples of the three ways follow one another in a simulation, not in the batches of a stream."""
    made = stream(canvases, params | OFF, ahead=4)
    made(0)
    whole = simulate_pairs(canvases, 4, 16, params | OFF, seeded(1, "run", "stream", 0, 0))
    order = [int(np.flatnonzero([torch.equal(x, y) for y in whole["gt"]])[0]) for step in range(4) for x in made(step)["gt"]]
    assert sorted(order) == list(range(16)) and order != list(range(16))


# a corpus that flows through the pool


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Pictures as a folder tree and as two shards, one of them cut in the middle, and one picture damaged: 60 can be read."""
    base, rng = tmp_path_factory.mktemp("archive"), np.random.default_rng(7)

    def encoded():
        out = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)).resize((90, 84), Image.Resampling.BICUBIC).save(out, "JPEG")
        return out.getvalue()

    for k in range(30):
        path = base / "train" / f"n{k % 3}" / f"{k}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded())
    (base / "train" / "n0" / "broken.JPEG").write_bytes(b"no picture")
    for shard in (0, 1):
        with tarfile.open(base / f"{shard:03d}.tar", "w") as file:
            for k in range(20):
                data = encoded()
                info = tarfile.TarInfo(f"{shard}_{k}.jpg")
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))
    cut = base / "001.tar"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    return [str(base / "train"), str(base / "{000..001}.tar")]


@pytest.fixture(scope="module")
def flowing(archive, params):
    """All of params.yaml, with the archive as corpus."""
    p = params | {"corpus": archive, "corpus_canvases": 12, "refill": 2, "canvas_size": 64, "canvases": 2, "sources": ["photograph"], "ways": {"mixed": 1, "spectral": 0, "procedural": 0}}
    whole = load_params(scale="laptop")
    return whole | {"synthesize_pairs": p, "pretrain": whole["pretrain"] | {"batch": 3}}


@pytest.fixture(scope="module")
def materials(flowing):
    return make_materials(flowing["synthesize_pairs"], 1)


def flow(flowing, materials, *, workers=0, ahead=3, **options):
    return open_stream(flowing, 4, seed=(1, "flow"), materials=materials, workers=workers, ahead=ahead, **options)


def steps(stream, which):
    return torch.cat([stream(step)["gt"] for step in which])


def test_the_corpus_reaches_the_batches(flowing, materials):
    """Pictures of the pool are replaced as told, and crops come from them."""
    one = flow(flowing, materials)
    before = steps(one, range(3))
    pool = one.refill.pool.clone()
    assert one.refill.replaced == 12 and (pool.flatten(1).float().std(1) > 1).all() and len(before) == 9
    one(3)
    assert one.refill.replaced == 12 + 3 * 2 and [torch.equal(a, b) for a, b in zip(one.refill.pool, pool)] == [False] * 6 + [True] * 6
    still = flow(flowing | {"synthesize_pairs": flowing["synthesize_pairs"] | {"refill": 0}}, materials)
    assert still.refill is None and not torch.equal(steps(still, range(3)), before), "without refill: the pool that the stage decoded"
    for _ in range(12, 90, 6):
        one(one.chunk * 3 + 3)
    assert one.refill.done.epoch != [0, 0] and one.refill.report.skipped > 0
    assert "broken.JPEG" in str(one.refill.report) and "001.tar: cut off" in str(one.refill.report)


def test_a_large_archive_is_not_read_as_a_whole(archive, flowing, materials, tmp_path):
    """Of forty shards a stream opens the sixteen whose turn it is."""
    whole = Path(archive[1].replace("{000..001}", "000")).read_bytes()
    for shard in range(40):
        (tmp_path / f"{shard:03d}.tar").write_bytes(whole)
    few = flow(flowing | {"synthesize_pairs": flowing["synthesize_pairs"] | {"corpus": [str(tmp_path / "*.tar")]}}, materials)
    few(0)
    state = few.state_dict()
    few.load_state_dict(state)
    few(3)
    assert sum(isinstance(block, str) for block in few.refill.deal.sources[0].blocks) == 40 - 17, "sixteen, and the first one to see that there are pictures"


def test_batches_do_not_depend_on_workers(flowing, materials):
    """Decoded here or by three processes: the same."""
    here = steps(flow(flowing, materials), range(10))
    crew = flow(flowing, materials, workers=3)
    assert torch.equal(here, steps(crew, range(10)))
    crew.close()
    assert torch.equal(steps(crew, range(9, 13)), steps(flow(flowing, materials), range(9, 13))), "begun late or gone on: decoded up to there"
    crew.close()


@pytest.mark.parametrize("stop", [3, 7, 11])
def test_a_resumed_stream_equals_an_uninterrupted_one(flowing, materials, stop, tmp_path):
    """Bit for bit, from a checkpoint file read as training reads it, within 3 batches made at once or between them, with another number of workers."""
    whole = flow(flowing, materials)
    want = [steps(whole, [step]) for step in range(14)]
    begun = flow(flowing, materials, workers=2)
    assert all(torch.equal(steps(begun, [step]), want[step]) for step in range(stop))
    torch.save(begun.state_dict(), tmp_path / "state.pt")
    begun.close()
    resumed = flow(flowing, materials)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert all(torch.equal(steps(resumed, [step]), want[step]) for step in range(stop, 14))


def test_a_killed_training_ends_with_the_same_weights(flowing, materials, tmp_path):
    """Training from folder and shards, killed between checkpoints and gone on with: weights bit for bit those of a run that was let be."""
    from pansharp_study.networks.zoo import create_model
    from pansharp_study.training.pretrain import train

    settings = flowing["pretrain"] | {"steps": 9, "checkpoint_every": 4, "log_every": 3, "validation": 2}

    def trained(stream, checkpoint=None):
        model = create_model("fusionnet", bands=4, seed=1, width=4, depth=1)
        curves = train(model, [], settings, seed=(1,), stream=stream, checkpoint=checkpoint)
        return curves, model.state_dict()

    class Killed(RuntimeError):
        pass

    class Watched(Stream):
        asked, end = (), 99

        def __call__(self, step):
            self.asked += (step,)
            if step == self.end:
                raise Killed
            return super().__call__(step)

    curves, want = trained(flow(flowing, materials))
    killed, resumed = flow(flowing, materials, workers=1), flow(flowing, materials)
    killed.__class__ = resumed.__class__ = Watched
    killed.end = 6
    with pytest.raises(Killed):
        trained(killed, tmp_path / "run.pt")
    killed.close()
    again, got = trained(resumed, tmp_path / "run.pt")
    assert resumed.asked == (4, 5, 6, 7, 8), "went on from the checkpoint"
    assert again == curves and all(torch.equal(want[k], got[k]) for k in want)


def test_streams_that_cannot_be_say_so(flowing, materials, canvases, params):
    """Backwards, another rank, too fast a refill."""
    one = flow(flowing, materials)
    one(6)
    with pytest.raises(ValueError, match="open another one"):
        one(0)
    with pytest.raises(ValueError, match="process 0 of 1 with a corpus"):
        flow(flowing, materials, rank=1, world=2).load_state_dict(one.state_dict())
    with pytest.raises(ValueError, match="without a corpus"):
        one.load_state_dict(stream(canvases, params).state_dict())
    with pytest.raises(ValueError, match="synthesize_pairs.refill = 2"):
        flow(flowing, materials, ahead=16)
    with pytest.raises(ValueError, match="rank=2, world=2"):
        stream(canvases, params, rank=2, world=2)


def test_room_is_a_part_of_the_canvases():
    """What is written into the room is cut; what it replaces is gone."""
    few = Canvases(*in_a_row([torch.full((3, 6, 8), k, dtype=torch.uint8) for k in (10, 20)]))
    wide, room = with_room(few, 2, 8, drop=1)
    room[1] = torch.arange(192).view(3, 8, 8)
    assert room.shape == (2, 3, 8, 8) and wide.height.tolist() == [6, 8, 8]
    cut, which = wide.cut(40, 8, seeded("room"))
    assert set(which.tolist()) == {1, 2} and cut[which == 1].max() == 0
    assert {tuple(x.sort().values.tolist()) for x in cut[which == 2].flatten(1)} == {tuple(range(192))}


RANK = """
import hashlib, sys, torch
from pansharp_study.core import load_params
from pansharp_study.simulation.stream import open_stream
if __name__ == "__main__":
    torch.set_num_threads(1)
    rank, params = int(sys.argv[1]), torch.load(sys.argv[2])
    stream = open_stream(params, 4, seed=(1, "flow"), materials=sys.argv[3], workers=0, ahead=3, rank=rank, world=2)
    for step in range(7):
        print(*(hashlib.sha256(x.numpy().tobytes()).hexdigest() for x in stream(step)["gt"]))
    taken = {(stream.refill.done.sources[t.source].name, t.item.key) for t in (stream.refill.done.task(*s) for s in stream.refill.slots.tolist())}
    print(*sorted("|".join(t) for t in taken))
    stream.close()
"""


def test_two_processes_share_neither_pairs_nor_pictures(flowing, materials, tmp_path):
    """Two real processes of one training; each equals the same rank in this process."""
    from safetensors.torch import save_file

    torch.save(flowing, tmp_path / "params.pt")
    save_file({k: v.contiguous() for k, v in materials.items()}, tmp_path / "canvases.safetensors")
    (tmp_path / "rank.py").write_text(RANK)
    command = [sys.executable, str(tmp_path / "rank.py")]
    running = [subprocess.Popen([*command, str(rank), str(tmp_path / "params.pt"), str(tmp_path / "canvases.safetensors")], stdout=subprocess.PIPE, text=True,
                                cwd=root(), env=os.environ | {"PYTHONPATH": str(root())}) for rank in (0, 1)]
    told = [process.communicate(timeout=120)[0].splitlines() for process in running]
    assert [len(lines) for lines in told] == [8, 8]
    pairs = [" ".join(lines[:7]).split() for lines in told]
    assert len(set(pairs[0] + pairs[1])) == 2 * 7 * 3, "a pair came twice"
    pictures = [set(lines[7].split()) for lines in told]
    assert len(pictures[0]) == 12 and not pictures[0] & pictures[1]
    same_rank = flow(flowing, materials, rank=1, world=2)
    assert [hashlib.sha256(x.numpy().tobytes()).hexdigest() for step in range(7) for x in same_rank(step)["gt"]] == pairs[1]


# errors


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"size": 50}, "no multiple of the ratio"),
        ({"size": 2}, "size = 2 is no multiple of the ratio 4 or too small"),
        ({"size": 0}, "20 or more"),
        ({"ways": {"mixed": 1, "magic": 2}}, "ways names mixed, magic: want a share, also 0, for each of mixed, spectral, procedural"),
        ({"downsampling": {"decimate": 1}}, "downsampling names decimate"),
        ({"pan_weights": [-1, 1]}, "pan_weights"),
        ({"size": 200 * 4}, "No canvas is as large"),
        ({"gamma": [2, 1]}, "low <= high"),
        ({"shuffle": 1.5}, "between 0 and 1"),
        ({"cut_and_mix": -0.1}, "between 0 and 1"),
        ({"band_shift_px": 9}, "needs half"),
    ],
)
def test_wrong_values_say_so(canvases, params, wrong, message):
    """One ValueError that names the value received."""
    with pytest.raises(ValueError, match=message):
        batch(canvases, params | wrong)


@pytest.mark.parametrize("wrong, message", [({"bands": 0}, "bands = 0"), ({"n": 0}, "n = 0"), ({"ratio": 0}, "ratio = 0"), ({"n": -2}, "n = -2")])
def test_nothing_to_simulate_says_so(canvases, params, wrong, message):
    """No bands, no samples, no ratio."""
    with pytest.raises(ValueError, match=message):
        batch(canvases, params, **wrong)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"canvases": 0}, "canvases = 0: want at least one scene, or set ways.procedural to 0"),
        ({"canvas_size": 40}, "canvas_size = 40 is smaller than a crop of size = 48"),
        ({"sources": []}, "name a corpus, or set ways.mixed and ways.spectral to 0"),
        ({"zoom": [0.01]}, "no picture of remote_sensing is then as large"),
        ({"zoom": []}, "want factors above 0"),
        ({"zoom": [2.0]}, "want factors above 0, at most 1"),
        ({"corpus": ["/nowhere"], "corpus_canvases": 0}, "corpus_canvases = 0"),
        ({"ways": {"mixed": 1}}, "ways names mixed"),
    ],
)
def test_wrong_materials_say_so(params, wrong, message):
    """What canvases can't be made of, and the way out."""
    with pytest.raises(ValueError, match=message):
        make_materials(params | wrong, 1)


def test_an_empty_pool_says_so(canvases, params):
    """No pairs to write."""
    for wrong in ({"samples": 0}, {"batch": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} = 0"):
            make_pool(4, {"seed": 1, "synthesize_pairs": params | wrong}, canvases)


def test_refill_without_a_corpus_says_so(flowing, materials):
    """Nothing to replace pictures from."""
    with pytest.raises(ValueError, match="refill = 2 with corpus = ..: name a corpus"):
        flow(flowing | {"synthesize_pairs": flowing["synthesize_pairs"] | {"corpus": []}}, materials)


def test_wrong_sources_say_so(params):
    """Unknown kinds of pictures, and none at all."""
    with pytest.raises(ValueError, match="known: photograph"):
        make_materials(params | {"sources": ["holiday"]}, 1)
    with pytest.raises(ValueError, match="No canvases"):
        in_a_row([])


def test_unknown_and_mistyped_keys_say_so(tmp_path):
    """A misspelt switch is an error, not silently ignored."""
    text = (root() / "params.yaml").read_text(encoding="utf-8")
    for old, new, message in (("  shuffle: 0.3", "  shufle: 0.3", "did you mean 'shuffle'"), ("  shuffle: 0.3", "  shuffle: often", "synthesize_pairs.shuffle")):
        assert old in text
        (tmp_path / "params.yaml").write_text(text.replace(old, new), encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            load_params(tmp_path / "params.yaml")


def test_quantise_and_draw_hold_their_ranges():
    """Digital numbers are whole and clipped; draws lie in their range and differ between samples."""
    x = quantise(torch.tensor([[[[-0.1, 0.5, 1.2]]]]), 1023.0)
    assert x.flatten().tolist() == [0.0, 512.0, 1023.0]
    values = draw([2, 3], 100, seeded("draw"))
    assert 2 <= values.min() and values.max() <= 3 and len(values.unique()) == 100


@pytest.mark.parametrize("n", [1, 3, 5, 7])
def test_shares_are_rounded_fairly(canvases, params, monkeypatch, n):
    """A way with share 0 gets no sample, at any batch size."""
    called = []
    monkeypatch.setattr("pansharp_study.simulation.pairs.light_from_pictures", lambda *args, **options: called.append(options["spectral"]) or light_from_pictures(*args, **options))
    assert len(batch(canvases, params | {"ways": {"mixed": 0, "spectral": 0.5, "procedural": 0.5}}, n=n)["gt"]) == n
    assert all(called), "mixed colours although their share is 0"


@pytest.mark.parametrize(
    "wrong",
    [
        {"ways": dict.fromkeys(WAYS, 0)}, {"ways": {"mixed": -1, "spectral": 1, "procedural": 1}}, {"downsampling": dict.fromkeys(DOWNSAMPLINGS, 0)},
        {"bits": [12, 10]}, {"materials": 0}, {"motion_px": [9, 9]}, {"noise_dn": [-3, -2]}, {"mtf_gt": [2, 3]},
        {"anisotropy": [-1, 1]}, {"skylight": [0, 3]}, {"pan_leak": [0, 1.5]}, {"jitter": [-1, 1]}, {"mtf_ms_spread": [-1, 1]}, {"pan_haze": [0.6, 0.1]},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_impossible_values_say_so(canvases, params, wrong):
    """What can't be simulated is refused, by name."""
    with pytest.raises(ValueError, match=next(iter(wrong))):
        batch(canvases, params | wrong)
