"""Registration: known displacements are found to 0.05 PAN pixels, on several sensors and scenes, at both
resolutions, and put right.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from pansharp_study.optics.filters import mtf_blur
from pansharp_study.optics.masks import mask_to_ms
from pansharp_study.optics.registration import (
    Registration,
    estimate_band_shifts,
    estimate_shift,
    explained_variance,
    register,
    register_bands,
    registration_views,
    residual_warning,
    shift_image,
)
from pansharp_study.optics.sensors import get_sensor
from pansharp_study.optics.wald import degrade, wald_pair
from pansharp_study.scenes.samples import list_pictures, load_picture
from pansharp_study.scenes.scene import shift_pan
from pansharp_study.simulation.bands import load_spectra

PICTURES = list(list_pictures("benchmark")["path"])
SHIFTS = ((0.0, 0.0), (0.5, -0.25), (-1.3, 2.6), (3.7, -3.9))


def scene(sensor, *, picture=1, shift=(0.0, 0.0), band_shift=None, noise_dn=3.0, size=448, haze=150.0):
    """A pair seen by a real sensor's responses: twelve materials, mixed by the colours of a picture; PAN moved by
    `shift`, each band by its own.
    """
    sensor, rng = get_sensor(sensor), torch.Generator().manual_seed(picture)
    colours = load_picture(PICTURES[picture])[None]
    colours = colours[..., : min(size, colours.shape[2]) // 16 * 16, : min(size, colours.shape[3]) // 16 * 16].double()
    labels, spectra = load_spectra()
    chosen = spectra[torch.randint(len(labels), (12,), generator=rng).numpy()]
    centres = torch.rand(12, 3, 1, 1, generator=rng).double()
    share = torch.softmax(
        -((colours - centres[None].squeeze(0)) ** 2).sum(1, keepdim=True).transpose(0, 1) / 0.02, 1
    )  # (1,12,H,W)
    responses = np.vstack([sensor.responses, sensor.pan_response])
    values = torch.from_numpy(chosen @ responses.T / responses.sum(1))  # (12,C+1)
    light = torch.einsum("bkhw,kc->bchw", share, values.double()) * (0.5 + colours.mean(1, keepdim=True))
    light = (haze + 700 * light / light.mean()) * (sensor.peak + 1) / 2048
    bands, grey = mtf_blur(light[:, :-1], [0.3], 1), mtf_blur(light[:, -1:], [0.3], 1)
    if band_shift is not None:
        bands = torch.cat([shift_image(band, s) for band, s in zip(bands.split(1, 1), band_shift)], 1)
    images = degrade(bands, sensor.mtf_ms), shift_image(mtf_blur(grey, [sensor.mtf_pan], 1), shift)
    ms, pan = (
        (x + noise_dn * torch.randn(x.shape, generator=rng).double()).round().clamp(0, sensor.peak).float()
        for x in images
    )
    return ms, pan, sensor


@pytest.mark.parametrize("picture", [1, 4, 6])
@pytest.mark.parametrize("sensor", ["QB", "IKONOS", "GF2", "WV4", "WV2", "WV3"])
def test_known_displacements(sensor, picture):
    """Absolute error below 0.05 PAN pixels, at full and at reduced resolution, also of a PAN that sees the gap
    between red and near infrared (GF2).
    """
    for i, shift in enumerate(SHIFTS):
        ms, pan, eyes = scene(sensor, picture=picture, shift=shift)
        if i == picture % len(SHIFTS) or i == 1:  # two of the four at each
            found = estimate_shift(ms, pan, eyes)
            error = (found.shift[0] - torch.tensor(shift)).abs().max()
            assert found.found.all() and error < 0.05, f"full resolution, {shift}: {found.shift[0].tolist()}"
        small = wald_pair(ms, pan, eyes)
        found = estimate_shift(small["ms"], small["pan"], eyes, reach=3)
        truth = (
            torch.tensor(shift) / 4 + 0.125
        )  # the protocol centres reduced PAN pixels half a PAN pixel before MS ones
        assert found.found.all() and (found.shift[0] - truth).abs().max() < 0.05, (
            f"reduced resolution, {truth}: {found.shift[0].tolist()}"
        )


@pytest.mark.parametrize("sensor", ["QB", "WV3"])
def test_clipped_pixels_are_left_out(sensor):
    """A tenth of PAN clipped: 0.05 PAN pixels hold, and would not if the clipped pixels counted. Clipped widely,
    all stay.
    """
    ms, pan, eyes = scene(sensor, shift=(0.5, -0.25))
    level = eyes.peak / pan.quantile(0.9)
    pan = (pan * level).round().clamp_max(eyes.peak)
    errors = [
        (estimate_shift(ms, pan, e).shift[0] - torch.tensor((0.5, -0.25))).abs().max()
        for e in (eyes, replace(eyes, bits=12))
    ]
    assert errors[0] < 0.05 and errors[0] < errors[1], errors
    pan = (pan * 1.5).clamp_max(eyes.peak)
    found, unknowing = (estimate_shift(ms, pan, e) for e in (eyes, replace(eyes, bits=12)))
    assert torch.equal(found.shift, unknowing.shift)


def test_another_phase_is_told():
    ms, pan, eyes = scene("QB")
    blind = estimate_shift(ms, pan, eyes, phase=1).shift[0]  # bands were taken at phase 2
    assert (blind - torch.tensor((1.0, 1.0))).abs().max() < 0.05


@pytest.mark.parametrize("to", ["ms", "pan"])
def test_register_leaves_nothing(to):
    ms, pan, eyes = scene("WV3", shift=(1.3, -0.8))
    fixed_ms, fixed_pan, found = register(ms, pan, eyes, register_to=to)
    assert (fixed_ms is ms) == (to == "ms") and (fixed_pan is pan) == (to == "pan")
    assert estimate_shift(fixed_ms, fixed_pan, eyes).shift.abs().max() < 0.05
    assert found.r2_after > found.r2_before
    again = register(ms, pan, eyes, register_to=to, found=found)
    assert torch.equal(again[0], fixed_ms) and torch.equal(again[1], fixed_pan)


def test_the_correction_is_what_shift_pan_takes():
    ms, pan, eyes = scene("QB", shift=(0.8, -1.4))
    found = estimate_shift(ms, pan, eyes)
    assert np.abs(np.add(found.correction, (0.8, -1.4))).max() < 0.05
    mended = torch.from_numpy(shift_pan(pan[0, 0].numpy(), found.correction))[None, None]
    assert estimate_shift(ms, mended, eyes).shift.abs().max() < 0.05
    assert explained_variance(ms, mended, eyes) > explained_variance(ms, pan, eyes)
    torch.testing.assert_close(
        explained_variance(ms, pan, eyes, tuple(found.shift[0].tolist()), compare="edges"),
        found.r2_after,
        rtol=0,
        atol=1e-3,
    )


def test_images_of_a_batch_are_independent():
    one, two = scene("QB", shift=(0.4, 0.7)), scene("QB", picture=4, shift=(-2.2, 1.1))
    side = tuple(min(a, b) for a, b in zip(one[0].shape[2:], two[0].shape[2:]))
    ms, pan = (
        torch.cat([x[0][..., : side[0], : side[1]] for x in (one, two)]),
        torch.cat([x[1][..., : 4 * side[0], : 4 * side[1]] for x in (one, two)]),
    )
    both = estimate_shift(ms, pan, "QB")
    for i in range(2):
        alone = estimate_shift(ms[i : i + 1], pan[i : i + 1], "QB")
        torch.testing.assert_close(both.shift[i], alone.shift[0], rtol=0, atol=2e-3)
    mended = register(ms, pan, "QB")[1]
    assert estimate_shift(ms, mended, "QB").shift.abs().max() < 0.05


def test_garbage_behind_a_mask_changes_nothing():
    ms, pan, eyes = scene("QB", shift=(-1.3, 2.6))
    mask = torch.ones_like(pan, dtype=torch.bool)
    mask[..., 100:220, :150] = False
    mask[..., 300, 300] = False
    found = [
        estimate_shift(torch.where(mask_to_ms(mask), ms, v), torch.where(mask, pan, v), eyes, mask=mask)
        for v in (0.0, math.nan, 65535.0)
    ]
    for other in found:
        assert torch.equal(other.shift, found[0].shift) and torch.equal(other.r2_after, found[0].r2_after)
    assert (found[0].shift[0] - torch.tensor((-1.3, 2.6))).abs().max() < 0.05


# between bands --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sensor", ["QB", "WV2", "WV3"])
def test_each_band(sensor):
    """Alone to 0.25 PAN pixels; its change of place to 0.05 where it is like PAN, to 0.1 else."""
    rng = np.random.default_rng(3)
    moves = torch.from_numpy(rng.uniform(-1.5, 1.5, (get_sensor(sensor).n_bands, 2)))
    ms, pan, eyes = scene(sensor)
    still, moved = (
        estimate_band_shifts(ms, pan, eyes),
        estimate_band_shifts(scene(sensor, band_shift=moves)[0], pan, eyes),
    )
    assert (
        isinstance(still, Registration)
        and still.shift.shape == (1, eyes.n_bands, 2)
        and still.found.shape == (1, eyes.n_bands)
    )
    assert still.shift[still.found].abs().max() < 0.25
    seen = (still.found & moved.found)[0]
    change = (moved.shift - still.shift)[0] + moves
    assert seen.float().mean() > 0.7 and change[seen].abs().max() < 0.1
    alike = seen & (still.r2_after[0] > 0.8)
    assert not alike.any() or change[alike].abs().max() < 0.05


def test_a_displaced_band_comes_back():
    """Blue two PAN pixels off: alone it moves, the others do not, and all lie on PAN or on the band named."""
    moves = [(0.0, 0.0), (-1.0, 2.0)] + [(0.0, 0.0)] * 6
    ms, pan, eyes = scene("WV3", shift=(0.5, 0.5), band_shift=moves)
    out, same, found = register_bands(ms, pan, eyes)
    assert same is pan
    error = (found.shift[0] - torch.tensor([(0.5 - y, 0.5 - x) for y, x in moves])).abs().amax(1)
    assert error[1] < 0.2 and error[[0, 2, 3, 4, 5, 6, 7]].max() < 0.05
    assert estimate_shift(out, same, eyes).shift.abs().max() < 0.05
    out, moved, _ = register_bands(ms, pan, eyes, register_to="G")
    torch.testing.assert_close(out[:, 2], ms[:, 2], rtol=1e-5, atol=1e-2)  # the named band stays
    assert estimate_shift(out, moved, eyes).shift.abs().max() < 0.05
    assert (register_bands(out, moved, eyes)[2].shift.abs() < 0.3).all()


def test_bands_that_agree_move_together():
    ms, pan, eyes = scene("WV2", shift=(0.6, -0.4))
    found = register_bands(ms, pan, eyes)[2]
    assert (found.shift == found.shift[:, :1]).all() and (
        found.shift[0, 0] - torch.tensor((0.6, -0.4))
    ).abs().max() < 0.05


def test_a_band_without_content_gets_the_joint_estimate():
    ms, pan, eyes = scene("WV3", shift=(0.6, -0.4))
    ms[:, 0] = 300 + torch.randn(ms[:, 0].shape, generator=torch.Generator().manual_seed(0))
    found = estimate_band_shifts(ms, pan, eyes)
    assert not found.found[0, 0] and found.found[0, 1:5].all()
    assert (found.shift[0, 0] - torch.tensor((0.6, -0.4))).abs().max() < 0.05


# reports --------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_the_sentence_of_a_report():
    ms, pan, eyes = scene("QB", shift=(0.8, -1.4))
    level, text = residual_warning(ms, pan, eyes)
    assert level == "warning" and "PAN lies (+0.8" in text and "moves by (-0.8" in text and "\n" not in text
    assert residual_warning(ms, pan, eyes, limit_px=2.0)[0] == "ok"
    assert residual_warning(*register(ms, pan, eyes)[:2], eyes)[0] == "ok"
    rng = torch.Generator().manual_seed(0)
    noise = 500 + 50 * torch.randn(pan.shape, generator=rng)
    assert residual_warning(ms, noise, eyes)[0] == "unknown"
    assert residual_warning(ms * 0 + 300, pan, eyes)[0] == "unknown"
    assert residual_warning(ms[..., :8, :8], pan[..., :32, :32], eyes)[0] == "unknown"
    with pytest.raises(ValueError, match="ratio"):
        residual_warning(ms, pan[..., :64, :64], eyes)
    with pytest.warns(UserWarning, match="no displacement"):
        assert torch.equal(register(ms, noise, eyes)[1], shift_image(noise, (0.0, 0.0)))


def test_the_pictures_of_a_report():
    ms, pan, eyes = scene("QB", shift=(2.4, -2.0))
    views = registration_views(ms, pan, eyes), registration_views(ms, register(ms, pan, eyes)[1], eyes)
    for view in views:
        assert set(view) == {"fringes", "chequers"}
        for picture in view.values():
            assert picture.shape == (*pan.shape[2:], 3) and picture.min() >= 0 and picture.max() <= 1
    assert np.ptp(views[1]["fringes"], axis=-1).mean() < 0.6 * np.ptp(views[0]["fringes"], axis=-1).mean()


@pytest.mark.parametrize(
    "estimate",
    [
        estimate_shift,
        estimate_band_shifts,
        explained_variance,
        register,
        register_bands,
        residual_warning,
        registration_views,
    ],
)
def test_wrong_input_is_refused(estimate):
    ms, pan = 500 + torch.rand(1, 4, 32, 32), 500 + torch.rand(1, 1, 128, 128)
    for call, words in (
        (lambda: estimate(ms, pan[..., :96, :96], "QB"), "96"),
        (lambda: estimate(ms, pan, "WV3"), "8 bands|Want 8"),
        (lambda: estimate(ms, pan, "Landsat"), "Landsat"),
        (lambda: estimate(ms * math.nan, pan, "QB"), "NaN"),
        (lambda: estimate(ms[0], pan, "QB"), r"\(4, 32, 32\)"),
        (lambda: estimate(ms.int(), pan, "QB"), "int32"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
