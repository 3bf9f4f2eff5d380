"""Simulated pairs: seeds, sizes, registration, energy, switches and clear errors."""

import re
from dataclasses import replace

import pytest
import torch
import yaml

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
from pansharp_study.simulation.bands import BAND_SOURCES
from pansharp_study.simulation.base_images import load_base_images, make_base_images, pack_pictures
from pansharp_study.simulation.pairs import (
    PAIR_KEYS,
    draw_instrument,
    radiance_from_labels,
    radiance_from_rgb,
    simulate_pairs,
)
from pansharp_study.simulation.pool import make_pool
from pansharp_study.simulation.switches import NEEDS, OPERATIONS, operations, without
from pansharp_study.simulation.switches import OFF as SWITCHES
from pansharp_study.simulation.transforms import (
    bernoulli,
    cut_and_mix,
    haze_by_band,
    highpass,
    jitter,
    noise,
    quantise,
    rectangles,
    shuffle_channels,
    skylight,
    tone,
    uniform,
)

OFF = {
    key: value for values in SWITCHES.values() for key, value in values.items()
}  # the value in brackets in params.yaml
STRONG = {  # the same effects, so strong that they can't be overlooked
    "gamma": [2, 2],
    "highpass": [1, 1],
    "shuffle": 1,
    "cut_and_mix": 1,
    "jitter": [0.5, 2],
    "skylight": [0.4, 0.4],
    "haze": [1, 1],
    "pan_leak": [0.5, 0.5],
    "pan_gamma": [1.5, 1.5],
    "pan_shift_px": 1.0,
    "band_shift_px": 1.0,
    "anisotropy": [2, 2],
    "motion_px": [3, 3],
    "defocus_px": [3, 3],
    "noise_dn": [9, 9],
    "shot_dn": [9, 9],
    "stripe_dn": [5, 5],
    "any_material": 1,
    "turns": True,
    "pan_weights": [0, 1],
    "haze_last": [0.1, 0.1],
    "pan_haze": [1, 1],
    "mtf_gt": [0.2, 0.2],
    "mtf_pan": [0.2, 0.2],
    "mtf_ms": [0.2, 0.2],
    "mtf_gt_spread": [0.5, 1],
    "mtf_ms_spread": [0.5, 1],
    "bits": [8, 8],
    "downsampling": {"decimate": 0, "area": 1, "bilinear": 0, "bicubic": 0},
    "halo": [0.3, 0.3],
    "mtf_known_share": 1,
}


def only(source, params):
    return params | {"band_sources": dict.fromkeys(BAND_SOURCES, 0) | {source: 1}}


def batch(base_images, params, *, bands=4, n=6, seed="one", ratio=4, phase=None):
    return simulate_pairs(base_images, bands, n, params, seeded(seed), ratio=ratio, phase=phase)


def same(a, b):
    return all(torch.equal(a[k], b[k]) for k in (*PAIR_KEYS, "peak"))


# seeds


def test_same_seed_same_batch(base_images, params):
    """A seed is a batch; another seed is another one."""
    first = batch(base_images, params)
    assert same(first, batch(base_images, params))
    other = batch(base_images, params, seed="two")
    assert all(not torch.equal(first[k], other[k]) for k in ("ms", "pan", "gt"))


def test_no_global_randomness(base_images, params):
    """PyTorch's and NumPy's own generators are neither read nor moved."""
    torch.manual_seed(1)
    first, state = batch(base_images, params), torch.get_rng_state()
    torch.manual_seed(2)
    assert same(first, batch(base_images, params))
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())


def test_worker_count_changes_nothing(params):
    """Base images don't depend on how many processes make them."""
    few = params | {"procedural_scenes": 17, "base_image_size": 64, "size": 48}
    alone, together = make_base_images(few, 3), make_base_images(few, 3, workers=2)
    assert set(alone) == set(together) and all(torch.equal(alone[k], together[k]) for k in alone)


def test_samples_of_a_batch_differ(base_images, params):
    """Each sample has its own picture, sensor and bit depth."""
    x = batch(base_images, params | {"bits": [8, 14]}, n=12)
    flat = x["gt"].flatten(1)
    assert len(torch.unique(flat, dim=0)) == 12 and len(x["peak"].unique()) > 2


def test_crops_are_turned_all_eight_ways():
    """Every symmetry of the square, and nothing else."""
    picture = torch.arange(16, dtype=torch.uint8).reshape(1, 4, 4)
    found = {tuple(crop.flatten().tolist()) for crop in pack_pictures([picture], 1).cut(300, 4, seeded("D4"))[0]}
    assert found == {
        tuple(torch.rot90(p, k, (1, 2)).flatten().tolist()) for p in (picture, picture.flip(2)) for k in range(4)
    }


# sizes


@pytest.mark.parametrize("ratio", [2, 3, 4, 6])
@pytest.mark.parametrize("bands", [4, 8, 12])
def test_shapes(base_images, params, bands, ratio):
    """Any number of bands at any ratio: whole DN inside the bit depth."""
    x = batch(base_images, params, bands=bands, ratio=ratio)
    assert (
        x["ms"].shape == (6, bands, 48 // ratio, 48 // ratio)
        and x["gt"].shape == (6, bands, 48, 48)
        and x["pan"].shape == (6, 1, 48, 48)
    )
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
    still = (
        params
        | {k: OFF[k] for k in ("band_shift_px", "pan_shift_px")}
        | {"downsampling": dict.fromkeys(DOWNSAMPLINGS, 0) | {kind: 1}}
    )
    m = draw_instrument(4, 3, size, still, ratio, seeded("ramp", ratio, kind))
    down, right = torch.meshgrid(torch.arange(size) / 100, torch.arange(size) / 37, indexing="ij")
    ramp = (down + right).expand(3, 4, size, size)
    gt, pan = apply(ramp, *m.gt), apply(ramp[:, :1], *m.pan)
    lms = upsample(apply(gt, *m.ms), ratio)
    inner = (..., slice(9 * ratio, -9 * ratio), slice(9 * ratio, -9 * ratio))
    for image, reference, what in ((lms, gt, "lms and gt"), (pan, gt[:, :1], "PAN and gt"), (gt, ramp, "gt and scene")):
        apart = (image - reference)[inner].abs().amax() * 37  # PAN pixels along the steeper axis
        assert apart < 0.05, f"{what} are {apart:.3f} PAN pixels apart"


@pytest.mark.parametrize("ratio", [2, 3, 4, 6])
def test_lms_lies_on_the_reference(base_images, params, ratio):
    """The same on simulated pairs, by least squares on gradients."""
    still = (
        params
        | {k: OFF[k] for k in ("band_shift_px", "pan_shift_px", "noise_dn", "shot_dn", "stripe_dn")}
        | {"bits": [12, 12], "size": 96}
    )
    x = batch(base_images, still, n=12, ratio=ratio, seed=f"still {ratio}")
    lms, gt = (t[..., 16:-16, 16:-16].double() for t in (upsample(x["ms"], ratio), x["gt"]))
    inner = (..., slice(1, -1), slice(1, -1))
    slope = torch.stack([((gt.roll(-1, d) - gt.roll(1, d)) / 2)[inner].flatten(1) for d in (2, 3)], 2)
    apart = torch.linalg.lstsq(slope, -(lms - gt)[inner].flatten(1)[..., None]).solution.squeeze(-1)
    assert apart.median(0).values.abs().max() < 0.05 and apart.mean(0).abs().max() < 0.05, apart


@pytest.mark.parametrize("phase", [0, 1, 3])
def test_any_phase_of_decimation(base_images, params, phase):
    """Interpolated with the phase of its decimation, MS is registered to the reference; with another it is not."""
    still = (
        params
        | {k: OFF[k] for k in ("band_shift_px", "pan_shift_px", "noise_dn", "shot_dn", "stripe_dn")}
        | {"bits": [12, 12], "size": 96}
    )
    x = batch(base_images, still, n=6, seed="phase", phase=phase)
    error = {p: float((upsample(x["ms"], 4, phase=p) - x["gt"])[..., 16:-16, 16:-16].abs().mean()) for p in range(4)}
    assert min(error, key=error.get) == phase, error
    with pytest.raises(ValueError, match="phase = 4"):
        batch(base_images, still, n=2, phase=4)


def test_shifts_are_what_was_asked_for(params):
    """With shifts on, no band moves by more than they allow, and most do."""
    moved = params | {"band_shift_px": 0.8, "pan_shift_px": 0.4}
    m = draw_instrument(4, 8, 64, moved, 4, seeded("moved"))
    ramp = torch.arange(64.0).expand(8, 4, 64, 64)
    gt, pan = (apply(ramp[:, :c], *getattr(m, key))[..., 32, 32] - 32 for key, c in (("gt", 4), ("pan", 1)))
    assert gt.abs().max() < 0.81 and gt.std() > 0.3 and pan.abs().max() < 0.41 and pan.std() > 0.1


# energy


@pytest.mark.parametrize("ratio", [1, 2, 3, 4, 6])
def test_matrices_conserve_energy(ratio):
    """Every row sums to 1; away from the borders every column to one part in the ratio, on average over the phases."""
    taps = [
        mtf_taps(torch.tensor(0.3), ratio),
        chain(mtf_taps(torch.tensor(0.3), ratio), box_taps(torch.tensor(1.7)), shift_taps(torch.tensor(0.4))),
    ]
    for t in taps + [sampling_taps(kind, ratio) for kind in DOWNSAMPLINGS]:
        m = axis_matrix(t, 96, ratio)
        assert m.shape == (96 // ratio, 96) and torch.allclose(m.sum(1), torch.ones(96 // ratio), atol=1e-5)
        assert abs(float(m[:, 36:60].sum()) * ratio / 24 - 1) < 1e-4, "light is lost or invented"


def test_positive_filters_stay_inside_the_range(base_images, params):
    """Blur can neither darken the darkest nor brighten the brightest."""
    m = draw_instrument(4, 6, 48, params | {"band_shift_px": 0, "pan_shift_px": 0}, 4, seeded("range"))
    x = torch.rand(6, 4, 48, 48, generator=seeded("content"))
    gt = apply(x, *m.gt)
    assert (gt.amax((2, 3)) <= x.amax((2, 3)) + 1e-6).all() and (gt.amin((2, 3)) >= x.amin((2, 3)) - 1e-6).all()


def test_mean_light_survives(base_images, params):
    """Reference and MS have the same mean; borders and clipping apart."""
    x = batch(
        base_images,
        params
        | {k: OFF[k] for k in ("noise_dn", "shot_dn", "stripe_dn", "haze")}
        | {"level": [0.15, 0.15], "size": 96},
        n=12,
    )
    change = x["ms"].mean((2, 3)) / x["gt"].mean((2, 3)) - 1
    assert change.abs().median() < 0.01 and change.abs().mean() < 0.03


# flat spectra


def flat(base_images, shade=None):
    spectra, group = base_images.library
    scenes = base_images.scenes
    if shade is not None:
        pixels = scenes.pixels.clone()
        pixels[:, 1] = shade
        scenes = replace(scenes, pixels=pixels)
    return replace(base_images, library=(torch.full_like(spectra, 0.3), group), scenes=scenes)


@pytest.mark.parametrize("source", ["spectral", "procedural"])
def test_flat_spectrum_gives_equal_bands(base_images, params, source):
    """Grey materials look the same in every band and in PAN, whatever the sensor."""
    grey, g = flat(base_images), seeded("flat", source)
    if source == "procedural":
        x, pan = radiance_from_labels(grey, 8, 4, params, g)
    else:
        x, pan = radiance_from_rgb(grey, 8, 4, params, g, spectral=True)
    assert torch.allclose(x, x[:, :1].expand_as(x), rtol=1e-4, atol=1e-6) and torch.allclose(
        pan, x[:, :1].expand_as(pan), rtol=1e-4, atol=1e-6
    )
    assert x.std() > 0.01, "brightness still varies"


@pytest.mark.parametrize("bands", [4, 8, 12])
def test_flat_scene_stays_flat(base_images, params, bands):
    """Grey material under even light: constant images, equal in all bands, through the whole engine."""
    level = params | {k: OFF[k] for k in ("noise_dn", "shot_dn", "stripe_dn", "haze", "jitter")} | {"cut_and_mix": 0}
    x = batch(flat(base_images, shade=128), only("procedural", level), bands=bands)
    for key in ("ms", "pan", "gt"):
        assert (x[key].amax((1, 2, 3)) - x[key].amin((1, 2, 3))).max() <= 1, key
    assert (x["ms"].mean((1, 2, 3)) - x["pan"].mean((1, 2, 3))).abs().max() <= 1


# switches


def test_every_bracket_is_a_switch():
    """Each key whose comment in params.yaml ends with a value that switches it off is in SWITCHES, with that value."""
    section = (root() / "params.yaml").read_text(encoding="utf-8").split("\nsynthesize_pairs:")[1].split("\n\n")[0]
    found = {
        k: yaml.safe_load(text) for k, text in re.findall(r"^  (\w+):.*#.*?(\[[^]/]+\]|\{[^}/]+\})\s*$", section, re.M)
    }
    assert found.pop("band_sources") == [0] and found.pop("refill") == [0]
    assert {k: v[0] if isinstance(v, list) and len(v) == 1 and k != "zoom" else v for k, v in found.items()} == OFF
    assert set(OFF) <= set(load_params()["synthesize_pairs"]) and set(NEEDS) <= set(SWITCHES)


def test_switched_off_transforms_return_their_input():
    """At the value in brackets each transform is the identity, bit by bit."""
    x, g = torch.rand(3, 4, 20, 20, generator=seeded("x")), seeded("off")
    assert torch.equal(shuffle_channels(x, OFF["shuffle"], g), x) and torch.equal(jitter(x, OFF["jitter"], g), x)
    assert torch.equal(highpass(x, OFF["highpass"], g), x) and torch.equal(
        cut_and_mix(x, rectangles(3, 20, OFF["cut_and_mix"], g)), x
    )
    assert torch.allclose(tone(x, OFF["gamma"], g), x, atol=1e-6) and torch.equal(
        skylight(torch.zeros(3, 1, 1, 1), 4), torch.ones(3, 4, 1, 1)
    )
    zero = torch.zeros(3, 1, 1, 1)
    assert torch.equal(noise(x, zero, zero, zero, g), x) and haze_by_band(zero, zero, 4).max() <= 1e-5
    assert not bernoulli(OFF["any_material"], 50, g).any() and bernoulli(1, 50, g).all()
    one = torch.eye(7)[3]
    assert torch.equal(box_taps(torch.tensor(1.0)), one) and torch.allclose(
        shift_taps(torch.tensor(0.0)), torch.eye(9)[4]
    )


def test_switched_off_instrument_is_plain():
    """Without shifts, smear, defocus and anisotropy only the MTF is left: the same along both axes, and symmetric."""
    plain = load_params()["synthesize_pairs"] | {
        k: OFF[k] for k in ("band_shift_px", "pan_shift_px", "anisotropy", "motion_px", "defocus_px", "halo")
    }
    m = draw_instrument(4, 5, 64, plain | {"mtf_pan": [0.3, 0.3], "mtf_gt": [0.5, 0.5]}, 4, seeded("plain"))
    for key in ("gt", "pan", "ms"):
        assert torch.allclose(*getattr(m, key))
    assert torch.allclose(m.gt[0], m.gt[0].flip(2, 3), atol=1e-6)
    assert torch.allclose(m.pan[0], axis_matrix(mtf_taps(torch.tensor(0.3), 1), 64).expand_as(m.pan[0]), atol=1e-6)


CHANGES = {  # what an operation changes; those not listed change all three
    **dict.fromkeys(("pan_weights", "pan_leak", "pan_gamma", "pan_haze", "pan_shift"), {"pan"}),
    "downsampling": {"ms"},
    **dict.fromkeys(("jitter", "skylight", "haze", "haze_last", "band_shift", "mtf_spread"), {"ms", "gt"}),
    "mtf_known_share": set(),
    **dict.fromkeys(("read_noise", "shot_noise", "stripes"), {"ms", "pan"}),
}


@pytest.mark.parametrize("name", [name for name in SWITCHES if name != "zoom"])
def test_switch_reaches_the_images(base_images, params, name):
    """From all effects off, switching one on changes what it should change, and no other random number."""
    needs = [need for need in NEEDS.get(name, ()) if need in SWITCHES]
    still = params | OFF | {"level": [0.15, 0.15]} | {k: STRONG[k] for need in needs for k in SWITCHES[need]}
    still = only({"any_material": "procedural", "pan_weights": "mixed"}.get(name, "spectral"), still)
    off, on = (batch(base_images, still | extra, n=3) for extra in ({}, {k: STRONG[k] for k in SWITCHES[name]}))
    assert same(off, batch(base_images, without(still, name), n=3))
    changed = {k for k in ("ms", "pan", "gt") if not torch.equal(off[k], on[k])}
    assert changed == CHANGES.get(name, {"ms", "pan", "gt"}), f"{name} changed {changed or 'nothing'}"
    if name == "haze":
        assert (on["ms"].mean((2, 3)) > off["ms"].mean((2, 3)) + 100).all(), "path radiance only adds"


@pytest.mark.parametrize("name", [name for name in SWITCHES if name != "zoom"])
def test_switching_one_off_changes_batches(base_images, params, name):
    """Without any one operation of params.yaml the pairs differ, and operations() says which one is off."""
    params = params | {"band_sources": dict.fromkeys(params["band_sources"], 1)}
    less = without(params, name)
    assert not same(batch(base_images, params, n=45), batch(base_images, less, n=45))
    before, after = (operations(p).set_index("name")["on"] for p in (params, less))
    gone = {name} | {other for other, need in NEEDS.items() if need == (name,)}
    assert set(before.index[before & ~after]) == gone and not (after & ~before).any()
    assert params == params | {} and less is not params and all(params[k] != v for k, v in SWITCHES[name].items()), (
        "the original is left alone"
    )


def test_all_off_gives_plain_pairs(base_images, params):
    """The reference is the radiance of the bands, MS every fourth pixel of it, PAN the mean of the bands."""
    plain = only("mixed", params | OFF | {"level": [0.15, 0.15]})
    x = batch(base_images, plain, n=4)
    assert (x["peak"] == 2**15 - 1).all() and torch.equal(x["ms"], x["gt"][..., 2::4, 2::4])
    light, pan = radiance_from_rgb(base_images, 4, 4, plain, seeded("one"), spectral=False)
    for seen, was in ((x["gt"], light), (x["pan"], light.mean(1, keepdim=True)), (x["pan"], pan[:, :1])):
        want = (was / was.mean((2, 3), keepdim=True) * 0.15 * x["peak"]).minimum(x["peak"])
        assert (seen - want).abs().max() <= 1


def test_operations_says_which_were_on(params):
    """Ways, sources and operations with their values; what acts on nothing is off."""
    told = operations(params).set_index("name")
    assert (
        set(told["part"]) == {"band source", "pictures", *OPERATIONS}
        and told["on"][["haze", "remote_sensing", *BAND_SOURCES]].all()
    )
    assert not told["on"][["corpus", "photograph"]].any() and told["setting"]["haze"] == f"haze {params['haze']}"
    town = operations(only("procedural", params)).set_index("name")["on"]
    assert (
        not town[["gamma", "shuffle", "zoom", "remote_sensing", "pan_weights", "mixed"]].any()
        and town[["any_material", "turns", "procedural"]].all()
    )
    corpus = operations(params | {"corpus": ["/data/train"], "refill": 3}).set_index("name").loc["corpus"]
    assert corpus["on"] and corpus["setting"] == "/data/train, 3 pictures replaced per training step"
    assert not operations(params | {"downsampling": STRONG["downsampling"] | {"decimate": 3, "area": 0}}).set_index(
        "name"
    )["on"]["downsampling"]


def test_without_a_way_or_a_source(params):
    """Also ways, kinds of pictures and the corpus can be switched off by name; what is unknown says what is known."""
    assert (
        without(params, "mixed")["band_sources"] == params["band_sources"] | {"mixed": 0}
        and without(params, "remote_sensing")["sources"] == []
    )
    assert without(params | {"corpus": ["x"], "refill": 2}, "corpus")["corpus"] == []
    with pytest.raises(ValueError, match="choose from zoom, turns"):
        without(params, "fog")
    with pytest.raises(ValueError, match="nothing would be left"):
        without(only("mixed", params), "mixed")


@pytest.mark.parametrize("kind", ["area", "bilinear", "bicubic"])
def test_downsampling_can_be_chosen(base_images, params, kind):
    """Another way of making MS changes MS alone."""
    still = params | OFF
    mtf, other = (
        batch(base_images, still | {"downsampling": dict.fromkeys(DOWNSAMPLINGS, 0) | {k: 1}})
        for k in ("decimate", kind)
    )
    assert (
        torch.equal(mtf["gt"], other["gt"])
        and torch.equal(mtf["pan"], other["pan"])
        and not torch.equal(mtf["ms"], other["ms"])
    )


@pytest.mark.parametrize("source", BAND_SOURCES)
def test_band_sources_can_be_switched_off(base_images, params, source):
    """The base images of a band source with share 0 are not needed."""
    needs = {
        "mixed": {"pictures"},
        "spectral": {"pictures", "library"},
        "procedural": {"scenes", "scene_groups", "library"},
    }
    missing = replace(
        base_images, **{k: None for k in ("pictures", "scenes", "scene_groups") if k not in needs[source]}
    )
    assert same(batch(missing, only(source, params)), batch(base_images, only(source, params)))


def test_sources_can_be_switched_off(params):
    """Only the named kinds of pictures are read, at the named scales."""
    few = params | {"procedural_scenes": 1, "base_image_size": 64}
    one, two = (make_base_images(few | {"zoom": zoom}, 1) for zoom in ([1.0], [1.0, 0.5]))
    both = make_base_images(few | {"zoom": [0.3], "sources": ["photograph", "remote_sensing"]}, 1)
    alone = make_base_images(few | {"zoom": [0.3], "sources": ["photograph"]}, 1)
    assert len(one["height"]) < len(two["height"]) and len(alone["height"]) < len(both["height"])


def test_one_way_needs_no_other_source(params, tmp_path):
    """Procedural scenes without any picture, and pictures without any scene; also from a file."""
    from safetensors.torch import save_file

    for source, few in (
        ("procedural", {"sources": []}),
        ("spectral", {"procedural_scenes": 0}),
        ("mixed", {"procedural_scenes": 0}),
    ):
        made = make_base_images(only(source, params | few), 1)
        save_file({k: v.contiguous() for k, v in made.items()}, tmp_path / source)
        base_images = load_base_images(tmp_path / source)
        assert (len(base_images.pictures) == 0) == (source == "procedural")
        assert (len(base_images.scenes) == 0) == (source != "procedural")
        assert same(batch(base_images, only(source, params)), batch(load_base_images(made), only(source, params)))
        with pytest.raises(ValueError, match="no base images of this kind"):
            batch(base_images, params)


# errors


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"size": 50}, "no multiple of the ratio"),
        ({"size": 2}, "size = 2 is no multiple of the ratio 4 or too small"),
        ({"size": 0}, "20 or more"),
        (
            {"band_sources": {"mixed": 1, "magic": 2}},
            "band_sources names mixed, magic: want a share, also 0, for each of mixed, spectral, procedural",
        ),
        ({"downsampling": {"decimate": 1}}, "downsampling names decimate"),
        ({"pan_weights": [-1, 1]}, "pan_weights"),
        ({"size": 200 * 4}, "No base image is as large"),
        ({"gamma": [2, 1]}, "low <= high"),
        ({"shuffle": 1.5}, "between 0 and 1"),
        ({"cut_and_mix": -0.1}, "between 0 and 1"),
        ({"band_shift_px": 9}, "needs half"),
    ],
)
def test_wrong_values_say_so(base_images, params, wrong, message):
    """One ValueError that names the value received."""
    with pytest.raises(ValueError, match=message):
        batch(base_images, params | wrong)


@pytest.mark.parametrize(
    "wrong, message",
    [({"bands": 0}, "bands = 0"), ({"n": 0}, "n = 0"), ({"ratio": 0}, "ratio = 0"), ({"n": -2}, "n = -2")],
)
def test_nothing_to_simulate_says_so(base_images, params, wrong, message):
    """No bands, no samples, no ratio."""
    with pytest.raises(ValueError, match=message):
        batch(base_images, params, **wrong)


@pytest.mark.parametrize(
    "wrong, message",
    [
        (
            {"procedural_scenes": 0},
            "procedural_scenes = 0: want at least one scene, or set band_sources.procedural to 0",
        ),
        ({"base_image_size": 40}, "base_image_size = 40 is smaller than a crop of size = 48"),
        ({"sources": []}, "name a corpus, or set band_sources.mixed and band_sources.spectral to 0"),
        ({"zoom": [0.01]}, "no picture of remote_sensing is then as large"),
        ({"zoom": []}, "want factors above 0"),
        ({"zoom": [2.0]}, "want factors above 0, at most 1"),
        ({"corpus": ["/nowhere"], "corpus_images": 0}, "corpus_images = 0"),
        ({"band_sources": {"mixed": 1}}, "band_sources names mixed"),
    ],
)
def test_wrong_base_images_say_so(params, wrong, message):
    """What base images can't be made of, and the way out."""
    with pytest.raises(ValueError, match=message):
        make_base_images(params | wrong, 1)


def test_an_empty_pool_says_so(base_images, params):
    """No pairs to write."""
    for wrong in ({"samples": 0}, {"batch": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} = 0"):
            make_pool(4, {"seed": 1, "synthesize_pairs": params | wrong}, base_images)


def test_wrong_sources_say_so(params):
    """Unknown kinds of pictures, and none at all."""
    with pytest.raises(ValueError, match="known: photograph"):
        make_base_images(params | {"sources": ["holiday"]}, 1)


def test_unknown_and_mistyped_keys_say_so(tmp_path):
    """A misspelt switch is an error, not silently ignored."""
    text = (root() / "params.yaml").read_text(encoding="utf-8")
    for old, new, message in (
        ("  shuffle: 0.3", "  shufle: 0.3", "did you mean 'shuffle'"),
        ("  shuffle: 0.3", "  shuffle: often", "synthesize_pairs.shuffle"),
    ):
        assert old in text
        (tmp_path / "params.yaml").write_text(text.replace(old, new), encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            load_params(tmp_path / "params.yaml")


def test_quantise_and_draw_hold_their_ranges():
    """Digital numbers are whole and clipped; draws lie in their range and differ between samples."""
    x = quantise(torch.tensor([[[[-0.1, 0.5, 1.2]]]]), 1023.0)
    assert x.flatten().tolist() == [0.0, 512.0, 1023.0]
    values = uniform([2, 3], 100, seeded("draw"))
    assert 2 <= values.min() and values.max() <= 3 and len(values.unique()) == 100


@pytest.mark.parametrize("n", [1, 3, 5, 7])
def test_shares_are_rounded_fairly(base_images, params, monkeypatch, n):
    """A way with share 0 gets no sample, at any batch size."""
    called = []

    def spy(*args, spectral):
        called.append(spectral)
        return radiance_from_rgb(*args, spectral=spectral)

    monkeypatch.setattr("pansharp_study.simulation.pairs.radiance_from_rgb", spy)
    assert (
        len(batch(base_images, params | {"band_sources": {"mixed": 0, "spectral": 0.5, "procedural": 0.5}}, n=n)["gt"])
        == n
    )
    assert all(called), "mixed colours although their share is 0"


@pytest.mark.parametrize(
    "wrong",
    [
        {"band_sources": dict.fromkeys(BAND_SOURCES, 0)},
        {"band_sources": {"mixed": -1, "spectral": 1, "procedural": 1}},
        {"downsampling": dict.fromkeys(DOWNSAMPLINGS, 0)},
        {"bits": [12, 10]},
        {"materials": 0},
        {"motion_px": [9, 9]},
        {"noise_dn": [-3, -2]},
        {"mtf_gt": [2, 3]},
        {"anisotropy": [-1, 1]},
        {"skylight": [0, 3]},
        {"pan_leak": [0, 1.5]},
        {"jitter": [-1, 1]},
        {"mtf_ms_spread": [-1, 1]},
        {"pan_haze": [0.6, 0.1]},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_impossible_values_say_so(base_images, params, wrong):
    """What can't be simulated is refused, by name."""
    with pytest.raises(ValueError, match=next(iter(wrong))):
        batch(base_images, params | wrong)
