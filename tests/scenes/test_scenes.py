"""The committed data keep their promises, and wrong input is refused in one clear line."""

from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from pansharp_study.classical import classical_methods
from pansharp_study.core import root
from pansharp_study.optics.masks import mask_to_ms
from pansharp_study.optics.registration import explained_variance
from pansharp_study.optics.sensors import SENSORS, WAVELENGTHS_NM, get_sensor
from pansharp_study.optics.wald import degrade
from pansharp_study.scenes import solaris
from pansharp_study.scenes.acquire import acquire
from pansharp_study.scenes.geotiff import read_pair, write_geotiff
from pansharp_study.scenes.samples import list_pictures, load_picture
from pansharp_study.scenes.scene import make_scene, read_scene, replacing, write_scene
from pansharp_study.scoring.score import score_scene
from pansharp_study.simulation.bands import load_spectra

PICTURES = root() / "data" / "pictures"
LICENCES = {
    "CC0-1.0": "https://creativecommons.org/publicdomain/zero/1.0/",
    "CC-BY-4.0": "https://creativecommons.org/licenses/by/4.0/",
    "public-domain-USGS": "https://www.usgs.gov/",
}
LIMIT_BYTES = {"photographs": 6_000_000, "remote_sensing": 3_000_000}


def licence_problem(row):
    """What is wrong with the licence of a row of ATTRIBUTION.csv, if anything."""
    if row["licence"] not in LICENCES:
        return f"{row['file']}: licence {row['licence']!r} is not one of {sorted(LICENCES)}"
    if not row["licence_url"].startswith(LICENCES[row["licence"]]):
        return f"{row['file']}: {row['licence_url']} is not the text of {row['licence']}"
    return None


def one_line(call, *words):
    """The call must fail with a single line that holds these words."""
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message.strip(), message
    for word in words:
        assert str(word) in message, f"{word!r} not in: {message}"


# pictures -----------------------------------------------------------------------------------------------------------


def test_every_picture_has_its_row_and_licence():
    table = list_pictures()
    files = {
        p.relative_to(PICTURES).as_posix() for p in PICTURES.rglob("*") if p.is_file() and p.name != "ATTRIBUTION.csv"
    }
    assert set(table["file"]) == files and table["file"].is_unique
    assert not [problem for _, row in table.iterrows() if (problem := licence_problem(row))]
    for column in ("title", "author", "source_package", "source_file", "change"):
        assert table[column].str.strip().ne("").all(), column


def test_share_alike_is_refused():
    assert licence_problem(
        {"file": "x.jpg", "licence": "CC-BY-SA-4.0", "licence_url": "https://creativecommons.org/licenses/by-sa/4.0/"}
    )
    assert licence_problem(
        {"file": "x.jpg", "licence": "CC-BY-4.0", "licence_url": "https://creativecommons.org/licenses/by-sa/4.0/"}
    )


def test_pictures_are_readable_and_small():
    table = list_pictures()
    assert (table["kind"] == "photograph").sum() >= 18
    for _, row in table.iterrows():
        assert row["file"].startswith("photographs/" if row["kind"] == "photograph" else "remote_sensing/")
        with Image.open(row["path"]) as picture:
            megapixels = picture.width * picture.height / 1e6
            assert picture.mode == "RGB", row["file"]
        if row["kind"] == "photograph":
            assert 0.2 <= megapixels <= 1.0, f"{row['file']}: {megapixels:.2f} megapixel"
        if row["split"] == "benchmark":  # a scene of 512 pixels must fit
            assert min(picture.size) >= 512, row["file"]
    for folder, limit in LIMIT_BYTES.items():
        assert sum(p.stat().st_size for p in (PICTURES / folder).iterdir()) <= limit
    picture = load_picture(table["path"].iloc[0])
    assert picture.dtype == torch.float32 and picture.shape[0] == 3 and 0 <= picture.min() and picture.max() <= 1


def test_splits_share_no_picture():
    benchmark, pretrain = list_pictures("benchmark"), list_pictures("pretrain")
    assert len(benchmark) + len(pretrain) == len(list_pictures())
    photographs = [set(t.loc[t["kind"] == "photograph", "source_file"]) for t in (benchmark, pretrain)]
    assert not photographs[0] & photographs[1]
    for source in set(benchmark["source_file"]) & set(
        pretrain["source_file"]
    ):  # crops of one aerial photograph must not overlap
        boxes = [
            [
                [int(v) for v in part.split()[-1].split("-")]
                for part in change.split(";")[0].replace(",", " ,").split(" ,")
            ]
            for table in (benchmark, pretrain)
            for change in table.loc[table["source_file"] == source, "change"]
        ]
        (ax, ay), (bx, by) = boxes
        assert ax[1] <= bx[0] or bx[1] <= ax[0] or ay[1] <= by[0] or by[1] <= ay[0], source


def test_bad_pictures(tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(Path(list_pictures()["path"].iloc[0]).read_bytes()[:5000])
    one_line(lambda: load_picture(broken), broken, "cannot be read")
    broken.write_text("not a picture")
    one_line(lambda: load_picture(broken), broken)
    one_line(lambda: load_picture(tmp_path / "none.jpg"), "none.jpg", "missing")
    one_line(lambda: list_pictures("train"), "train", "pretrain")


# responses and spectra -----------------------------------------------------------------------------------------------


def test_responses_are_complete():
    table = pd.read_csv(root() / "data" / "responses.csv", index_col="wavelength_nm")
    wanted = [f"{name}_{band}" for name in SENSORS for band in (*get_sensor(name).bands, "PAN")]
    assert sorted(table.columns) == sorted(wanted) and list(table.index) == list(WAVELENGTHS_NM)
    assert table.notna().all().all() and (table.max() == 1).all() and (table.min() >= 0).all()


@pytest.mark.parametrize("name", SENSORS)
def test_sensor_is_sane(name):
    sensor = get_sensor(name)
    assert list(sensor.centres_nm) == sorted(sensor.centres_nm)
    assert sensor.responses.shape == (sensor.n_bands, 141) and len(sensor.mtf_ms) == sensor.n_bands
    for response in (*sensor.responses, sensor.pan_response):
        inside = WAVELENGTHS_NM[response > 0.5]
        assert 15 <= np.ptp(inside) <= 500
    assert np.ptp(WAVELENGTHS_NM[sensor.pan_response > 0.5]) > 250
    assert sensor.sources and 0.3 <= sensor.gsd_m <= 1.5 and sensor.bits in (10, 11, 12)
    assert sensor.nominal == (name in ("GF2", "SPOT6"))


def test_sensor_names():
    assert get_sensor("worldview 3") is get_sensor("WV3") is get_sensor("WorldView-3")
    part = get_sensor("WV2").subset(("B", "G", "R", "NIR1"))
    assert get_sensor(part.name) == part and part != get_sensor("WV2") and part.mtf_ms == (0.35,) * 4
    with pytest.raises(ValueError, match="unknown sensor 'Sentinel-2'.*WV4"):
        get_sensor("Sentinel-2")
    with pytest.raises(AttributeError):
        part.bits = 8


def test_spectra_are_sane():
    assert (root() / "data" / "spectra.npz").stat().st_size <= 1_500_000
    labels, reflectance = load_spectra()
    assert reflectance.shape == (len(labels), 141) == (7255, 141) and reflectance.dtype == np.float32
    assert np.isfinite(reflectance).all() and reflectance.min() >= 0 and reflectance.max() <= 1.2
    assert np.ptp(reflectance, axis=1).min() > 1e-4
    assert {"bare", "vegetation", "built", "npv", "burned"} == set(labels["level_2"])
    reflectance[:] = 0
    assert load_spectra()[1].max() > 0  # a copy, not the cache


# scenes ---------------------------------------------------------------------------------------------------------------


def scene(**changes):
    generator = np.random.default_rng(1)
    facts = {"sensor": "GF2", "name": "test", "simulated": True, "gt": generator.random((4, 32, 40)) * 1000, **changes}
    return make_scene(
        torch.from_numpy(generator.integers(0, 1024, (4, 8, 10))), generator.random((1, 32, 40)) * 1000, **facts
    )


@pytest.mark.parametrize("georeferenced", [False, True])
def test_scene_round_trip_is_byte_identical(tmp_path, georeferenced):
    place = {"crs": "EPSG:32650", "transform": (0.8, 0, 4e5, 0, -0.8, 3e6)} if georeferenced else {}
    digests = set()
    for turn in range(2):
        write_scene(scene(**place), tmp_path / f"{turn}.nc")
        again = write_scene(read_scene(tmp_path / f"{turn}.nc"), tmp_path / f"{turn}-again.nc")
        digests |= {sha256(path.read_bytes()).hexdigest() for path in (tmp_path / f"{turn}.nc", again)}
    assert len(digests) == 1 and not list(tmp_path.glob(".*"))
    back = read_scene(tmp_path / "0.nc")
    assert (
        list(back.band.values) == ["B", "G", "R", "NIR"]
        and back.attrs["simulated"] == "yes"
        and back.attrs["ratio"] == 4
    )
    np.testing.assert_array_equal(back.gt, scene().gt)
    assert float(back.x_ms[2]) == pytest.approx(float(back.x[4 * 2 + 2]))
    if georeferenced:
        assert back.rio.crs.to_epsg() == 32650


def test_bad_scenes(tmp_path):
    ms, pan = np.ones((4, 8, 10)), np.ones((32, 40))
    facts = {"sensor": "QB", "name": "x", "simulated": False}
    one_line(lambda: make_scene(ms, pan[:24, :30], **facts), "24x30", "8x10", "32x40")
    one_line(lambda: make_scene(np.where(ms > 0, np.nan, 0), pan, **facts), "320 NaN", "ms")
    one_line(lambda: make_scene(ms, pan, **{**facts, "sensor": "WV3"}), "4 bands", "pass the bands it has")
    one_line(lambda: make_scene(ms, pan, gt=ms, **facts), "gt", "(4, 32, 40)")
    one_line(lambda: read_scene(tmp_path / "none.nc"), "none.nc", "missing")
    (tmp_path / "half.nc").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    one_line(lambda: read_scene(tmp_path / "half.nc"), "half.nc", "cannot be read")


@pytest.fixture
def pair(tmp_path):
    rasterio = pytest.importorskip("rasterio")

    def write(name, count, height, width, *, change=None, pixel=0.6, **profile):
        values = (
            np.random.default_rng(2).integers(1, 2000, (count, height, width)).astype(profile.get("dtype", "uint16"))
        )
        values = change(values) if change else values
        profile = {
            "driver": "GTiff",
            "dtype": "uint16",
            "crs": "EPSG:32631",
            "transform": (pixel, 0, 5e5, 0, -pixel, 5e6),
            **profile,
        }
        with rasterio.open(tmp_path / name, "w", count=count, height=height, width=width, **profile) as raster:
            raster.write(values)
        return tmp_path / name

    return write


def test_own_pair(pair, tmp_path):
    import rasterio

    ms, pan = pair("ms.tif", 4, 20, 24, pixel=2.4), pair("pan.tif", 1, 80, 96)
    own = read_pair(ms, pan, sensor="QB")
    assert own.sizes == {"band": 4, "y_ms": 20, "x_ms": 24, "y": 80, "x": 96} and own.attrs["dtype"] == "uint16"
    path = write_geotiff(torch.full((1, 4, 80, 96), 70000.4), own, tmp_path / "out.tif")
    with rasterio.open(path) as out, rasterio.open(pan) as reference:
        assert out.transform == reference.transform and out.crs == reference.crs and out.read().max() == 65535
    moved = read_pair(ms, pan, sensor="QB", shift_px=(0.5, 0.5))
    assert float(moved.x[0]) == pytest.approx(float(own.x[0]) - 0.3) and float(moved.y[0]) == pytest.approx(
        float(own.y[0]) + 0.3
    )


def test_bad_pairs(pair, tmp_path):
    ms, pan = pair("ms.tif", 4, 20, 24), pair("pan.tif", 1, 80, 96)

    one_line(lambda: read_pair(ms, pair("ratio3.tif", 1, 60, 72), sensor="QB"), "60x72", "20x24", "80x96")
    one_line(lambda: read_pair(tmp_path / "nothing.tif", pan, sensor="QB"), "nothing.tif", "missing")
    one_line(
        lambda: read_pair(
            pair("zero.tif", 4, 20, 24, change=lambda v: v * (np.arange(4) != 2)[:, None, None].astype("uint16")),
            pan,
            sensor="QB",
        ),
        "zero.tif",
        "band 3",
    )
    one_line(lambda: read_pair(ms, pan, sensor="WV2"), "4 bands", 'sensor="WV2:B,G,R,NIR1"')
    one_line(lambda: read_pair(pan, ms, sensor="QB"), "exchanged")
    one_line(lambda: read_pair(ms, pair("scaled.tif", 1, 80, 96, change=lambda v: v * 30), sensor="QB"), "11 bits")
    (tmp_path / "text.tif").write_text("not a raster")
    one_line(lambda: read_pair(tmp_path / "text.tif", pan, sensor="QB"), "text.tif", "cannot be read")


WEDGE = np.add.outer(np.arange(512), np.arange(512)) < 180  # PAN pixels that were not measured


def smooth_scene():
    """A QB pair of whole DN with some structure, (4,128,128) and (1,512,512)."""
    rng = torch.Generator().manual_seed(7)
    fine = torch.nn.functional.interpolate(torch.rand(1, 4, 128, 128, generator=rng), (512, 512), mode="bicubic")
    fine = (300 + 900 * fine).clamp(1, 2000)
    return degrade(fine, get_sensor("QB").mtf_ms).round()[0].numpy(), fine.mean(1).round().numpy()


@pytest.mark.parametrize("kind", ["declared", "told", "nan"])
def test_nodata_counts_nowhere(pair, kind):
    """A wedge without data, filled with whatever: the scene, its mask, and every score are the same to the last
    bit; the rest is as in the whole scene.
    """
    ms, pan = smooth_scene()
    coarse = np.asarray(mask_to_ms(torch.from_numpy(~WEDGE)[None, None])[0, 0])
    dtype, values = ("float32", (np.nan, np.inf)) if kind == "nan" else ("uint16", (0, 0))
    marked = {"nodata": 0} if kind == "declared" else {}
    tables = []
    for i, value in enumerate(values):
        files = [
            pair(
                f"{i}-{name}.tif",
                len(x),
                *x.shape[1:],
                change=lambda _, x=x, m=m, v=value: np.where(m, x, v),
                dtype=dtype,
                **marked,
            )
            for name, x, m in (("ms", ms, coarse), ("pan", pan, ~WEDGE))
        ]
        own = read_pair(*files, sensor="QB", **({"nodata": 0} if kind == "told" else {}))
        assert np.array_equal(own.valid, np.kron(coarse, np.ones((4, 4), bool)) & ~WEDGE) and np.isfinite(own.pan).all()
        assert np.array_equal(own.pan.to_numpy()[~WEDGE], pan[0][~WEDGE]) and np.array_equal(
            own.ms.to_numpy()[:, coarse], ms[:, coarse]
        )
        for garbage in (1.0, 2047.0):  # in memory: whatever stands where nothing is valid
            spoilt = own.assign(pan=own.pan.where(own.valid, garbage))
            tables.append(score_scene(spoilt, classical_methods(["EXP", "GSA", "BT-H"]))[0].drop(columns="scene"))
    for table in tables[1:]:
        pd.testing.assert_frame_equal(table, tables[0], check_exact=True)
    whole = score_scene(
        make_scene(ms, pan, sensor="QB", name="whole", simulated=False), classical_methods(["EXP", "GSA"])
    )[0]
    for row in (0, 2):
        assert tables[0].loc[row, "ergas"] == pytest.approx(whole.loc[row, "ergas"], rel=0.1)


def test_nodata_is_kept_in_files(pair, tmp_path):
    import rasterio

    ms, pan = (
        pair("ms.tif", 4, 128, 128),
        pair("pan.tif", 1, 512, 512, change=lambda v: np.where(WEDGE, 0, v), nodata=0),
    )
    own = read_pair(ms, pan, sensor="QB", shift_px=(0.5, -1.25))
    valid = own.valid.to_numpy()
    assert 0 < valid.mean() < (~WEDGE).mean() and not valid[WEDGE & np.roll(WEDGE, (1, -1), (0, 1))].any()
    again = read_scene(write_scene(own, tmp_path / "scene.nc"))
    assert again.valid.dtype == bool and np.array_equal(again.valid, valid)
    with rasterio.open(write_geotiff(np.full((4, 512, 512), 9.0), again, tmp_path / "out.tif")) as raster:
        assert raster.nodata == 0 and np.array_equal(raster.dataset_mask() > 0, valid)


def test_nothing_valid_is_one_line(pair):
    ms = pair("ms.tif", 4, 20, 24)
    shade = pair(
        "shade.tif",
        4,
        20,
        24,
        change=lambda v: np.where((np.arange(4) == 0)[:, None, None] & (np.arange(24) < 5), 0, v),
        nodata=0,
    )
    assert "valid" not in read_pair(shade, pair("pan.tif", 1, 80, 96), sensor="QB")  # zero in one band only
    one_line(
        lambda: read_pair(ms, pair("void.tif", 1, 80, 96, change=lambda v: v * 0, nodata=0), sensor="QB"),
        "void.tif",
        "no valid pixel",
    )
    left, right = (lambda v: np.where(np.arange(24) < 12, v, 0)), (lambda v: np.where(np.arange(96) >= 43, v, 0))
    read = (pair("left.tif", 4, 20, 24, change=left, nodata=0), pair("right.tif", 1, 80, 96, change=right, nodata=0))
    assert read_pair(*read, sensor="QB").valid.to_numpy().sum() == 80 * 5
    right = lambda v: np.where(np.arange(96) >= 46, v, 0)  # noqa: E731 (two columns of PAN are no MS pixel)
    one_line(
        lambda: read_pair(read[0], pair("apart.tif", 1, 80, 96, change=right, nodata=0), sensor="QB"),
        "left.tif",
        "apart.tif",
        "in common",
    )
    empty = make_scene(
        np.ones((4, 128, 128)),
        np.ones((512, 512)),
        sensor="QB",
        name="x",
        simulated=False,
        valid=np.zeros((512, 512), bool),
    )
    one_line(lambda: score_scene(empty, classical_methods(["EXP"])), "no valid")
    one_line(
        lambda: make_scene(
            np.ones((4, 8, 8)), np.ones((32, 32)), sensor="QB", name="x", simulated=False, valid=np.ones((8, 8), bool)
        ),
        "(32, 32)",
        "(8, 8)",
    )


def test_the_phase_stored_with_a_pair_is_used():
    fine = torch.from_numpy(smooth_scene()[1][None]).expand(1, 4, -1, -1)
    rows = {}
    for stored in (2, 1):
        made = make_scene(
            degrade(fine, get_sensor("QB").mtf_ms, phase=1)[0], fine[0, 0], sensor="QB", name="x", simulated=True
        )
        made.attrs["phase"] = stored
        rows[stored] = score_scene(made, classical_methods(["EXP", "GSA"]))[0].set_index(["method", "resolution"])
    assert rows[1].loc[("GSA", "full"), "hqnr"] > rows[2].loc[("GSA", "full"), "hqnr"] + 1e-3


def test_a_failed_write_keeps_the_old_file(tmp_path):
    target = tmp_path / "x.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError), replacing(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["x.txt"]


def test_acquire_without_a_network(tmp_path, monkeypatch):
    def forbidden(*_, **__):
        raise AssertionError("offline, yet something was started")

    monkeypatch.setattr(solaris.subprocess, "run", forbidden)
    table = acquire(tmp_path / "out", offline=True, cache_dir=tmp_path / "empty")
    written = pd.read_csv(tmp_path / "out" / "available.csv", keep_default_na=False)
    assert written.to_dict("list") == table.to_dict("list")
    status = dict(zip(table["item"], table["status"]))
    assert status.pop("WV2-solaris") == "missing" and set(status.values()) == {"present"}
    assert "solaris-0.4.0" in table.set_index("item").loc["WV2-solaris", "instruction"]
    assert not (tmp_path / "out" / "real" / "WV2-solaris.nc").exists()


def test_acquire_survives_a_damaged_wheel_and_a_broken_pip(tmp_path, monkeypatch):
    (tmp_path / solaris.SOLARIS_WHEEL).write_bytes(b"damaged")
    table = acquire(tmp_path / "out", offline=True, cache_dir=tmp_path)
    assert "delete it" in table["instruction"].iloc[-1] and table["status"].iloc[-1] == "missing"
    (tmp_path / solaris.SOLARIS_WHEEL).unlink()

    def refuse(command, **_):
        raise solaris.subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(solaris.subprocess, "run", refuse)
    assert acquire(tmp_path / "out", cache_dir=tmp_path)["status"].iloc[-1] == "missing"


def test_real_pair_when_it_is_there():
    wheel = root() / ".cache" / solaris.SOLARIS_WHEEL
    if not wheel.is_file():
        pytest.skip("the stage acquire has not fetched the solaris wheel")
    real = solaris.solaris_pair(solaris.fetch_solaris(wheel.parent, offline=True))
    assert real.ms.shape == (4, 148, 148) and real.pan.shape == (592, 592) and real.rio.crs.to_epsg() == 32631
    assert real.attrs["simulated"] == "no" and "not stated" in real.attrs["terms"]
    ms, pan = torch.from_numpy(real.ms.to_numpy())[None], torch.from_numpy(real.pan.to_numpy())[None, None]
    assert explained_variance(ms, pan, real.sensor) > explained_variance(ms, pan, real.sensor, (1.0, 1.65)) + 0.05
