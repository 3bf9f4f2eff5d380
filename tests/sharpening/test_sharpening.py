"""Every kind of input comes back as it was, tiles and orientations change nothing, and unusual pairs give warnings."""

import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
import xarray as xr

import pansharp_study
from pansharp_study.classical import METHODS
from pansharp_study.networks.zoo import create_model, save_weights
from pansharp_study.optics.filters import mtf_blur
from pansharp_study.optics.registration import shift_image
from pansharp_study.optics.sensors import get_sensor
from pansharp_study.optics.wald import degrade, upsample
from pansharp_study.sharpening.pair import generic_sensor, open_pair, sensor_for
from pansharp_study.sharpening.sharpen import OutOfDistributionWarning, main, sharpen
from pansharp_study.sharpening.tiles import SelfEnsemble, Tiled, blend_weights, tile_starts, wrap_network

QB = get_sensor("QB")


def pair(size=128, bands=4, ratio=4, seed=0):
    """Roofs on hills, DN of 11 bits, and their truth."""
    g = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    grey = 700 + 180 * np.sin(x / 23 + seed) + 120 * np.cos(y / 31)
    for _ in range(size * size // 150):
        r, c = g.integers(0, size, 2)
        grey[r : r + g.integers(4, 14), c : c + g.integers(4, 14)] = g.uniform(300, 1500)
    gt = torch.from_numpy((grey * np.linspace(0.8, 1.2, bands)[:, None, None]).astype("float32"))[None]
    return degrade(gt, [0.3] * bands, ratio), gt.mean(1, keepdim=True), gt


MS, PAN, GT = pair()
QUIET = {"sensor": "QB", "register": False, "check": False}


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("kind", ["array", "tensor", "labels", "batch"])
def test_kind_and_type_come_back(kind, dtype):
    ms, pan = (x.numpy().astype(dtype) for x in (MS, PAN))
    if kind == "batch":
        fused = sharpen(np.repeat(ms, 2, 0), np.repeat(pan, 2, 0), **QUIET)
        assert fused.shape == (2, 4, 128, 128) and np.allclose(fused[0], fused[1], atol=1)
    elif kind == "tensor":
        if dtype == np.uint16:
            pytest.skip("few operations know torch.uint16")
        fused = sharpen(torch.from_numpy(ms[0]), torch.from_numpy(pan[0]), **QUIET)
        assert torch.is_tensor(fused)
        fused = fused.numpy()
    elif kind == "labels":
        labelled = xr.DataArray(ms[0], dims=("band", "y", "x")), xr.DataArray(pan[0, 0], dims=("row", "column"))
        fused = sharpen(*labelled, **QUIET)
        assert fused.dims == ("band", "row", "column")
        fused = fused.values
    else:
        fused = sharpen(ms[0], pan[0, 0], **QUIET)
    fused = fused if fused.ndim == 3 else fused[0]
    assert fused.dtype == dtype and fused.shape == (4, 128, 128)
    assert np.abs(fused - GT[0].numpy()).mean() < 0.6 * np.abs(upsample(MS)[0].numpy() - GT[0].numpy()).mean()


def test_labels_of_both_images_are_kept():
    ms = xr.DataArray(
        MS.numpy(),
        dims=("time", "band", "y", "x"),
        name="ms",
        attrs={"units": "DN", "res": (2.4, 2.4)},
        coords={
            "time": np.array(["2020-01-01"], dtype="datetime64[ns]"),
            "band": [1, 2, 3, 4],
            "wavelength_nm": ("band", [480.0, 550, 660, 830]),
            "x": np.arange(32) * 2.4 + 1.2,
        },
    )
    pan = xr.DataArray(
        PAN.numpy(),
        dims=("time", "one", "y", "x"),
        attrs={"res": (0.6, 0.6)},
        coords={"x": np.arange(128) * 0.6 + 0.3, "spatial_ref": 0},
    )
    fused = sharpen(ms, pan, **QUIET)
    assert fused.dims == ("time", "band", "y", "x") and fused.shape == (1, 4, 128, 128) and fused.name == "ms"
    assert (fused.x == pan.x).all() and list(fused.wavelength_nm) == [480, 550, 660, 830]
    assert fused.attrs == {"units": "DN", "res": (0.6, 0.6)} and "spatial_ref" in fused.coords
    with pytest.raises(ValueError, match="different ground"):
        sharpen(ms, pan.assign_coords(x=pan.x + 30), **QUIET)


@pytest.mark.parametrize("model", ["GSA", "best"])
def test_missing_pixels_stay_missing(model):
    ms, pan = MS.clone(), PAN.clone()
    ms[..., :3, :], pan[..., 100:, 120:] = torch.nan, torch.nan
    fused = sharpen(ms, pan, model=model, **QUIET)
    assert fused[..., :12, :].isnan().all() and fused[..., 100:, 120:].isnan().all()
    assert fused.isfinite().float().mean() > 0.85
    ms, pan = ms.nan_to_num(0).round().int(), pan.nan_to_num(0).round().int()
    counts = sharpen(ms, pan, model=model, **QUIET)
    assert (counts[..., :12, :] == 0).all() and (counts[..., 20:90, 10:110] > 0).all()
    inside = (..., slice(24, 90), slice(0, 110))
    assert (counts - fused)[inside].abs().mean() < 2, "what lies beyond the gap does not matter to the rest"
    marked = np.where(ms[0].numpy() == 0, -99, ms[0].numpy())
    declared = xr.DataArray(marked, dims=("b", "y", "x"), attrs={"_FillValue": -99})
    marked = sharpen(declared, xr.DataArray(PAN[0, 0].round().int().numpy(), dims=("y", "x")), model=model, **QUIET)
    assert (marked[:, :12] == -99).all() and (marked[:, 20:] > 0).all()
    valid = np.ones((128, 128), dtype=bool)
    valid[:, 64:] = False
    fused = sharpen(MS[0].numpy(), PAN[0].numpy(), model=model, valid=valid, nodata=None, **QUIET)
    assert np.isnan(fused[:, :, 64:]).all()
    assert (sharpen(MS[0], PAN[0], model=model, valid=valid, **QUIET)[:, :, 64:] == 0).all()


def test_tiles_equal_the_whole():
    """Statistics are those of the image: overlap and blending leave next to nothing."""
    ms, pan, _ = pair(256, seed=3)
    model = create_model("fusionnet", bands=4, pretrained=True)
    with torch.no_grad():
        whole = model(ms, pan)
        for tile, overlap in ((128, 32), (160, 64)):
            off = (wrap_network(model, tile=tile, overlap=overlap)(ms, pan) - whole).abs()
            assert off.mean() < 0.03 and off.max() < 0.5
    tiled, whole = (sharpen(ms, pan, model="fusionnet", tile=tile, **QUIET) for tile in (128, None))
    assert (tiled - whole).abs().max() < 0.5
    tiled, whole = (sharpen(ms, pan, tile=tile, **QUIET) for tile in (128, None))
    off = (tiled - whole).abs()  # BandSet sees 76 pixels far, these tiles overlap by 32
    assert off.mean() < 0.1 and off.max() < 10
    assert not any(m._forward_hooks for m in model.modules()), "hooks are taken away"
    with pytest.raises(RuntimeError), torch.no_grad():
        Tiled(model.network, 128, 32)(torch.rand(1, 4, 200, 200), torch.rand(1, 2, 200, 200))
    assert not any(m._forward_hooks for m in model.modules())


FAMILIES = {"pnn": 1e-4, "pannet": 1e-4, "msdcnn": 1e-4, "bandset": 1e-3, "restormer": 0.03, "panmamba": 0.03}


@pytest.mark.parametrize("name, most", FAMILIES.items())
def test_tiles_of_every_family(name, most):
    """Off the whole, as a share of the detail: scans and attention over the image see less in a tile."""
    ms, pan, _ = pair(256, seed=3)
    model = create_model(name, bands=4).eval()
    g = torch.Generator().manual_seed(0)
    for key, values in model.named_parameters():
        if "head" in key and values.ndim > 1:
            torch.nn.init.normal_(values, std=0.05, generator=g)
    with torch.no_grad():
        whole, tiled = model(ms, pan), wrap_network(model, tile=128, overlap=32)(ms, pan)
    assert (tiled - whole).abs().mean() < most * (whole - upsample(ms)).abs().mean()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
def test_cuda_is_used_and_gives_the_same():
    on_gpu, on_cpu = sharpen(MS, PAN, sensor="QB"), sharpen(MS, PAN, sensor="QB", device="cpu")
    assert not on_gpu.is_cuda and (on_gpu - on_cpu).abs().max() < 1
    assert sharpen(MS.cuda(), PAN.cuda(), sensor="QB").is_cuda


@pytest.mark.parametrize("size", [1, 100, 128, 129, 224, 225, 1000])
def test_tiles_cover_every_pixel(size):
    starts = tile_starts(size, 128, 32)
    weight = torch.zeros(size)
    for s in starts:
        stop = min(s + 128, size)
        weight[s:stop] += blend_weights(s, stop, size, 32)
    assert (weight - 1).abs().max() < 1e-6, "weights of neighbours add up to one"
    assert starts[-1] + 128 >= size and all(s % 32 == 0 for s in starts)


def test_eight_views_are_equivariant():
    network = create_model("panmamba", bands=4, width=16, depth=1, state=2).network
    torch.nn.init.normal_(network.head[-1].weight, std=0.1, generator=torch.Generator().manual_seed(0))
    bands, guide = torch.randn(1, 4, 32, 48), torch.randn(1, 1, 32, 48)
    with torch.no_grad():
        mean = SelfEnsemble(network)(bands, guide)
        for turns in range(4):
            turned = [x.flip(2).rot90(turns, (2, 3)) for x in (bands, guide)]
            assert (SelfEnsemble(network)(*turned).rot90(-turns, (2, 3)).flip(2) - mean).abs().max() < 1e-5
    assert (sharpen(MS, PAN, ensemble=True, **QUIET) - sharpen(MS, PAN, **QUIET)).abs().mean() < 20


@pytest.mark.parametrize("bands, ratio", [(4, 4), (3, 2), (5, 3), (8, 4), (1, 6)])
def test_any_ratio_and_bands(bands, ratio):
    ms, pan, gt = pair(96 if ratio < 6 else 192, bands, ratio)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fused = sharpen(ms, pan, model="MTF-GLP-FS")
    inner = (..., slice(16, -16), slice(16, -16))
    error, error_of_exp = ((x - gt)[inner].abs().mean() for x in (fused, upsample(ms, ratio)))
    assert fused.shape == gt.shape and error < 0.6 * error_of_exp


def test_registration_puts_the_bands_on_pan():
    moved, truth = (shift_image(x, torch.tensor([1.5, -1.0])) for x in (PAN, GT))
    off = {}
    for register, reference in ((True, truth), ("pan", truth), ("ms", GT), (False, truth)):
        fused = sharpen(MS, moved, register=register, sensor="QB", check=False)
        off[register] = float((fused - reference)[..., 16:-16, 16:-16].abs().mean())
    assert off[True] == off["pan"] < 0.6 * off[False] and off["ms"] < 0.75 * off[False]
    with pytest.raises(ValueError, match="'left'"):
        sharpen(MS, PAN, register="left")
    with pytest.warns(UserWarning, match="could not be checked"):
        sharpen(MS[..., :6, :6], PAN[..., :24, :24], sensor="QB", check=False)


def test_odd_pairs_are_named():
    blurred = mtf_blur(MS, [0.05], 2)
    gap = torch.where(torch.arange(32) > 3, MS, 0)
    odd = {
        "no sensor": ({"sensor": None}, MS, PAN),
        "negative": ({}, MS - 600, PAN),
        "reach only": ({}, MS / 2047, PAN / 2047),
        "8 bits": ({}, MS / 10, PAN / 10),
        "11 bits": ({}, MS * 8, PAN * 8),
        "hazy": ({}, MS + 60_000 * (MS > -1), PAN),
        "hardly any detail": ({}, MS, upsample(degrade(PAN, [0.3]))),
        "look blurrier": ({}, blurred, PAN),
        "hold no measurement": ({}, gap, PAN),
        "register the pair": ({"register": False}, MS, shift_image(PAN, torch.tensor([2.0, 2.0]))),
    }
    for sentence, (options, ms, pan) in odd.items():
        with pytest.warns(OutOfDistributionWarning, match=sentence):
            sharpen(ms, pan, **({"sensor": "QB", "model": "EXP"} | options))
    with pytest.warns(OutOfDistributionWarning, match="ratio is 2"):
        sharpen(*pair(96, 4, 2)[:2], sensor="QB")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sharpen(MS, PAN, sensor="QB")
        sharpen(MS - 600, PAN, sensor="QB", check=False)


def test_models_by_name_file_and_object(tmp_path):
    own = create_model("fusionnet", bands=4, width=8, depth=1)
    save_weights(own, tmp_path / "own.safetensors")
    with torch.no_grad():
        expected = own(MS, PAN)
    for model in (own, tmp_path / "own.safetensors", str(tmp_path / "own.safetensors")):
        assert torch.allclose(sharpen(MS, PAN, model=model, **QUIET), expected, atol=1e-3)
    assert torch.equal(sharpen(MS, PAN, model="BT-H", **QUIET), METHODS["BT-H"](MS, PAN, "QB", border="reflect"))
    assert torch.equal(sharpen(MS, PAN, model="bandset", **QUIET), sharpen(MS, PAN, **QUIET))
    eight = create_model("fusionnet", bands=8, width=8, depth=1)
    for wrong, message in (("fusionet", "unknown model"), (eight, "8 bands"), (3, "Pansharpener")):
        with pytest.raises(ValueError, match=message):
            sharpen(MS, PAN, model=wrong)


def test_back_projection_brings_the_bands_closer():
    fused = [sharpen(MS, PAN, model="GIHS", back_project=steps, **QUIET) for steps in (0, 1, 2)]
    left = [float((degrade(image, QB.mtf_ms) - MS).abs().mean()) for image in fused]
    assert left[2] < left[1] < 0.6 * left[0]


REFUSED = {
    "no pair": lambda: sharpen(MS, PAN[..., :-1]),
    "same kind": lambda: sharpen(MS, PAN.numpy()),
    "list": lambda: sharpen([1], [2]),
    "ms must be": lambda: sharpen(MS[0, 0], PAN),
    "no pixel": lambda: sharpen(0 * MS, PAN),
    "8 bands": lambda: sharpen(MS, PAN, sensor="WV3"),
    "unknown sensor": lambda: sharpen(MS, PAN, sensor="moon"),
    "ensemble": lambda: sharpen(MS, PAN, model="GSA", ensemble=True),
    "multiples of 32": lambda: sharpen(MS, PAN, tile=100),
}


@pytest.mark.parametrize("message", REFUSED)
def test_refusals(message):
    with pytest.raises(ValueError, match=message):
        REFUSED[message]()


def test_package_offers_the_call_without_loading_torch():
    assert pansharp_study.sharpen is sharpen and "sharpen" in dir(pansharp_study)
    code = """
import sys, pansharp_study
assert "torch" not in sys.modules and pansharp_study.__version__
from pansharp_study import sharpen
assert callable(sharpen) and "torch" in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="sharpness"):
        pansharp_study.sharpness  # noqa: B018


def test_command_line(tmp_path, capsys):
    rasterio = pytest.importorskip("rasterio")
    for name, image, pixel in (("ms", MS, 2.4), ("pan", PAN, 0.6)):
        count, height, width = image.shape[1:]
        profile = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": "uint16"}
        transform = rasterio.Affine(pixel, 0, 5e5, 0, -pixel, 5.2e6)
        with rasterio.open(tmp_path / f"{name}.tif", "w", crs="EPSG:32633", transform=transform, **profile) as f:
            f.write(image[0].numpy().round().astype(np.uint16))
    files = [str(tmp_path / f"{name}.tif") for name in ("ms", "pan", "out")]
    main([*files, "--sensor", "QB", "--model", "GSA"])
    with rasterio.open(files[2]) as f:
        counts = [x[0].numpy().round().astype(np.uint16) for x in (MS, PAN)]
        expected = sharpen(*counts, sensor="QB", model="GSA")
        assert f.crs.to_epsg() == 32633 and np.abs(f.read().astype(int) - expected).max() <= 1
    main([*files, "--back-project", "1"])
    assert "no sensor given" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="unknown model"):
        main([*files, "--model", "nothing"])
    with pytest.raises(SystemExit, match="missing"):
        main([str(tmp_path / "no.tif"), *files[1:]])


def test_opened_pairs_know_their_ratio():
    assert open_pair(np.ones((3, 10, 12)), np.ones((30, 36))).ratio == 3
    assert sensor_for(open_pair(MS, PAN), "QB") is QB and generic_sensor(3, 2).ratio == 2
