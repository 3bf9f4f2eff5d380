"""Every layout, number type and order of axes gives the same labelled scene; what cannot be right is one line;
memory holds one tile. Generated files only.
"""

import dataclasses
import gc
import json
import tracemalloc
import warnings
import weakref

import h5py
import numpy as np
import pandas as pd
import pytest
import yaml
from scipy.io import savemat

from pansharp_study.adaptation.adapt import adapt_scenes, find_scenes, prepare_scenes
from pansharp_study.classical import classical_methods
from pansharp_study.core import load_params, root
from pansharp_study.optics.sensors import get_sensor
from pansharp_study.scenes import formats
from pansharp_study.scenes.formats import read_array
from pansharp_study.scenes.names import find_sensor, named_sensors
from pansharp_study.scenes.pair import Pair
from pansharp_study.scenes.readers import SceneList, read_scenes
from pansharp_study.scenes.scene import make_scene
from pansharp_study.scenes.splits import link_scenes, linked_scenes, split_scenes
from pansharp_study.scoring.score import score_scene


def content(bands=4, size=96, peak=1500, seed=0):
    """A reference, its MS and a PAN, whole DN; rows, columns and bands all differ."""
    g = np.random.default_rng(seed)
    gt = g.integers(20, peak, (bands, size + 16, size))
    ms = gt.reshape(bands, (size + 16) // 4, 4, size // 4, 4).mean((2, 4)).round()
    return {"gt": gt.astype(float), "ms": ms, "pan": gt.mean(0).round()[None]}


def hwc(x):
    return np.moveaxis(x, 0, -1)


def tif(path, x, dtype="uint16", names=None):
    import rasterio

    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with rasterio.open(
            path, "w", driver="GTiff", count=len(x), height=x.shape[1], width=x.shape[2], dtype=dtype
        ) as raster:
            raster.write(x.astype(dtype))
            for i, name in enumerate(names or (), 1):
                raster.set_band_description(i, name)


def mat(path, version, **arrays):
    """As MATLAB writes it: version 7.3 is HDF5 with its axes the other way round."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if version == 5:
        return savemat(path, arrays)
    with h5py.File(path, "w", userblock_size=512) as file:
        for key, x in arrays.items():
            file[key] = x.T
    with open(path, "r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")


def nbu(folder, tiles, sensor="2 QuickBird", bands=4, size=96, keys=("imgMS", "imgPAN")):
    made = [content(bands, size, seed=i) for i in range(tiles)]
    for i, x in enumerate(made, 1):
        mat(folder / sensor / "MS_256" / f"{i}.mat", 5, **{keys[0]: hwc(x["ms"]).astype("uint16")})
        mat(folder / sensor / "PAN_1024" / f"{i}.mat", 5, **{keys[1]: x["pan"][0].astype("uint16")})
    return made


def stack(path, tiles, kinds=("gt", "lms", "ms", "pan"), bands=4, size=96, dtype="float64"):
    made = [content(bands, size, seed=i) for i in range(tiles)]
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for kind in kinds:
            file[kind] = np.stack([x["gt" if kind == "lms" else kind] for x in made]).astype(dtype)
    return made


def same(scene, x, gt=True):
    assert np.array_equal(scene["ms"], x["ms"]) and np.array_equal(scene["pan"], x["pan"][0])
    assert ("gt" in scene) == gt and (not gt or np.array_equal(scene["gt"], x["gt"]))
    assert scene.attrs["simulated"] == "no" and scene.attrs["resolution"] == ("reduced" if gt else "full")


def one_line(call, *parts, error=ValueError):
    with pytest.raises(error) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text and all(str(p) in text for p in parts), text


# ---------------------------------------------------------------- arrays


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float32", "float64"])
@pytest.mark.parametrize("form", ["hwc", "chw", "1chw", "hwc1"])
def test_types_and_axes(tmp_path, dtype, form):
    x = content(peak=250)["ms"]
    np.save(
        tmp_path / "x.npy", {"hwc": hwc(x), "chw": x, "1chw": x[None], "hwc1": hwc(x)[..., None]}[form].astype(dtype)
    )
    got = read_array(tmp_path / "x.npy", bands=4)
    assert got.dtype == np.float32 and np.array_equal(got, x)


@pytest.mark.parametrize("version", [5, 7.3])
def test_both_versions_of_mat_are_turned_alike(tmp_path, version):
    x = content()
    square = np.arange(36.0).reshape(6, 6)  # a transposed square would not be seen from its shape
    mat(tmp_path / "x.mat", version, I_MS=hwc(x["ms"]), I_PAN=x["pan"][0], square=square)
    assert np.array_equal(read_array(tmp_path / "x.mat", "I_MS"), x["ms"]) and np.array_equal(
        read_array(tmp_path / "x.mat", "I_PAN"), x["pan"]
    )
    assert np.array_equal(read_array(tmp_path / "x.mat", "square")[0], square)
    assert set(formats.list_keys(tmp_path / "x.mat")) == {"I_MS", "I_PAN", "square"}


def test_h5_of_another_program_is_left_as_it_is(tmp_path):
    square = np.arange(36.0).reshape(6, 6)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["pan"], file["mark"] = square, square
        file["mark"].attrs["MATLAB_class"] = np.bytes_("double")
    assert np.array_equal(read_array(tmp_path / "x.h5", "pan")[0], square) and np.array_equal(
        read_array(tmp_path / "x.h5", "mark")[0], square.T
    )


def test_broken_files_are_one_line(tmp_path):
    x = content()
    mat(tmp_path / "x.mat", 5, I_MS=hwc(x["ms"]))
    mat(tmp_path / "h.mat", 7.3, I_MS=hwc(x["ms"]))
    for name in ("x.mat", "h.mat"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / f"cut-{name}").write_bytes(whole[: len(whole) // 2])
        one_line(lambda name=name: read_array(tmp_path / f"cut-{name}", "I_MS"), f"cut-{name}", "copy it again")
    one_line(lambda: read_array(tmp_path / "x.mat", ("I_PAN", "block")), "x.mat", "I_PAN", "block", "I_MS")
    x["ms"][1, 2, 3] = np.nan
    mat(tmp_path / "nan.mat", 5, I_MS=hwc(x["ms"]))
    one_line(lambda: read_array(tmp_path / "nan.mat", "I_MS"), "nan.mat, I_MS", "fill or crop")


# ---------------------------------------------------------------- layouts


def test_geotiff_pairs(tmp_path):
    x = content()
    for ms, pan in (("a_MS", "a_PAN"), ("b-mul", "b-pan"), ("ms1", "pan1"), ("QB_MS_007", "QB_PAN_007")):
        tif(tmp_path / "QB" / f"{ms}.tif", x["ms"]), tif(tmp_path / "QB" / f"{pan}.tif", x["pan"])
    tif(tmp_path / "QB" / "a_lms_u.tif", x["gt"])  # no role: ignored
    scenes = read_scenes(tmp_path / "QB")
    assert scenes.names == ["QB/1", "QB_007", "a", "b"]
    for scene in scenes:
        same(scene, x, gt=False)
    assert scenes[0].attrs["source"] == "ms1.tif + pan1.tif" and scenes[0].attrs["dtype"] == "uint16"


def test_geotiff_triples_and_nodata(tmp_path):
    x = content(peak=900)
    for kind, tag in (("ms", "lr"), ("gt", "mul"), ("pan", "pan")):
        tif(tmp_path / "GF2" / f"0_{tag}.tif", x[kind])
    same(read_scenes(tmp_path)[0], x)
    pan = x["pan"].copy()
    pan[:, :20, :20] = 0
    tif(tmp_path / "other" / "GF2_ms.tif", x["ms"]), tif(tmp_path / "other" / "GF2_pan.tif", pan)
    assert not read_scenes(tmp_path / "other", nodata=0)[0]["valid"].values[:20, :20].any()


@pytest.mark.parametrize("keys", [("imgMS", "imgPAN"), ("I_MS", "block"), ("imgMS", "I_PAN")])
def test_nbu(tmp_path, keys):
    made = nbu(tmp_path, 11, keys=keys)
    scenes = read_scenes(tmp_path)
    assert scenes.names == [f"2 QuickBird/{i}" for i in range(1, 12)] and set(scenes.table()["sensor"]) == {"QB"}
    for scene, x in zip(scenes, made):
        same(scene, x, gt=False)
    assert read_scenes(tmp_path / "2 QuickBird").names == scenes.names


def test_all_sensors_of_nbu_but_gaofen_1(tmp_path):
    for folder, name in (
        ("1 IKONOS", "IKONOS"),
        ("4 WorldView-4", "WV4"),
        ("5 WorldView-2", "WV2"),
        ("6 WorldView-3", "WV3"),
    ):
        nbu(tmp_path, 1, folder, bands=get_sensor(name).n_bands)
        assert read_scenes(tmp_path / folder)[0].attrs["sensor"] == name
    assert len(read_scenes(tmp_path)) == 4
    nbu(tmp_path, 1, "3 Gaofen-1")
    one_line(lambda: read_scenes(tmp_path), "gaofen 1", "sensor=")
    gf1 = dataclasses.replace(get_sensor("GF2"), name="GF1")
    assert read_scenes(tmp_path / "3 Gaofen-1", sensor=gf1)[0].attrs["sensor"] == "GF1"


@pytest.mark.parametrize("dtype", ["float64", "float32", "uint16"])
def test_pancollection(tmp_path, dtype):
    made = stack(tmp_path / "test_wv3_multiExm1.h5", 3, bands=8, dtype=dtype)
    full = stack(tmp_path / "test_gf2_OrigScale_multiExm1.h5", 2, kinds=("lms", "ms", "pan"))
    scenes = read_scenes(tmp_path)
    assert len(scenes) == 5 and list(scenes.table()["resolution"]) == ["full"] * 2 + ["reduced"] * 3
    for scene, x in zip(scenes[2:], made):
        same(scene, x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        same(scenes[1], full[1], gt=False)
    one = read_scenes(tmp_path / "test_wv3_multiExm1.h5")
    assert one.names == [f"test_wv3_multiExm1/{i}" for i in range(3)] and one[-1].attrs["sensor"] == "WV3"


def test_pairmax(tmp_path):
    x = content(8)
    for place in ("RR", "FR"):
        for tag, kind in (("MS_LR", "ms"), ("MS", "gt"), ("PAN", "pan")) + ((("GT", "gt"),) if place == "RR" else ()):
            tif(tmp_path / "W3_Muni_Urb" / place / f"{tag}.tif", x[kind])
    tif(tmp_path / "W2_Miam_Mix" / "FR" / "MS.tif", x["ms"]), tif(tmp_path / "W2_Miam_Mix" / "FR" / "PAN.tif", x["pan"])
    scenes = read_scenes(tmp_path)
    assert list(zip(scenes.names, scenes.table()["acquisition"])) == [
        ("W2_Miam_Mix/FR", "W2_Miam_Mix"),
        ("W3_Muni_Urb/FR", "W3_Muni_Urb"),
        ("W3_Muni_Urb/RR", "W3_Muni_Urb"),
    ]
    same(scenes[0], x, gt=False), same(scenes[1], x, gt=False), same(scenes[2], x)
    assert {f.acquisition for f in read_scenes(tmp_path / "W3_Muni_Urb").files} == {"W3_Muni_Urb"}
    (tmp_path / "W3_Muni_Urb" / "RR" / "GT.tif").unlink()
    one_line(lambda: read_scenes(tmp_path), "GT.tif", "RR")


@pytest.mark.parametrize("version", [5, 7.3])
@pytest.mark.parametrize(
    "keys",
    [
        {"I_MS": "ms"},
        {"I_MS_LR": "ms", "I_MS": "gt"},
        {"I_MS_LR": "ms", "I_MS": "gt", "I_GT": "gt"},
        {"ms": "ms", "gt": "gt", "lms": "gt"},
    ],
)
def test_toolbox(tmp_path, version, keys):
    x = content()
    pan = {"pan" if "ms" in keys else "I_PAN": x["pan"][0]}
    mat(
        tmp_path / "imgIK.mat",
        version,
        ratio=np.array([[4.0]]),
        **{key: hwc(x[kind]) for key, kind in keys.items()},
        **pan,
    )
    for path in (tmp_path, tmp_path / "imgIK.mat"):
        scene = read_scenes(path)[0]
        same(scene, x, gt={"I_GT", "gt"} & set(keys) != set())
        assert scene.attrs["sensor"] == "IKONOS"


@pytest.mark.parametrize("tags", [("HR", "LR", "PAN"), ("gt", "ms", "pan")])
def test_npy_triples(tmp_path, tags):
    x, folder = content(), tmp_path / "QB"
    folder.mkdir()
    for tag, kind in zip(tags, ("gt", "ms", "pan")):
        np.save(folder / f"20_{tag}.npy", hwc(x[kind]).astype("float32"))
    same(read_scenes(folder)[0], x)
    for kind, place in (("gt", "HR_npy"), ("ms", "LR_npy"), ("pan", "PAN_npy")):  # the same, each kind in its folder
        (tmp_path / "more" / place).mkdir(parents=True)
        np.save(tmp_path / "more" / place / f"20_{place[:-4]}.npy", x[kind])
    scenes = read_scenes(tmp_path / "more", sensor="QB", phase=1)
    same(scenes[0], x)
    assert scenes[0].attrs["phase"] == 1 and Pair.from_scene(scenes[0]).options == {"phase": 1}


# ---------------------------------------------------------------- contracts


def test_sensor_of_the_name():
    for name, sensor in (
        ("WV-2", "WV2"),
        ("wv02_tile", "WV2"),
        ("WorldView_4", "WV4"),
        ("QB_1", "QB"),
        ("QuickBird-2", "QB"),
        ("GaoFen2", "GF2"),
        ("gf-2", "GF2"),
        ("train_gf2", "GF2"),
        ("IKONOS-2", "IKONOS"),
        ("GeoEye-1", "GE1"),
        ("SPOT6", "SPOT6"),
    ):
        assert named_sensors(name) == [sensor], name
    for name in ("tile_12", "wv22", "equals", "page", "psi", "band", "Mikonos", "pan1"):
        assert named_sensors(name) == [], name
    assert find_sensor(["QB_1", "QB and WV3"], "x") == "QB"
    for names, part in (
        (["WV3 and QB"], "WV3, QB"),
        (["x", "y"], "no sensor"),
        (["QB_1", "WV3"], "ambiguous"),
        (["1", "GF-1"], "gf 1"),
        (["S7_Napl_Urb"], "s7"),
    ):
        one_line(lambda names=names: find_sensor(names, "x.mat"), "x.mat", part.split(",")[0], "sensor=")


def test_scale(tmp_path):
    def saved(factor, name):
        x = content()
        for tag, kind in (("HR", "gt"), ("LR", "ms"), ("PAN", "pan")):
            np.save(tmp_path / f"QB_{name}_{tag}.npy", x[kind] * factor)
        return x, read_scenes(tmp_path).pick([f"QB_{name}"])

    x, unit = saved(1 / 2047, "unit")
    one_line(lambda: unit[0], "QB_unit", ".npy", "[0,1]", "scale=2047")
    assert np.allclose(read_scenes(tmp_path, scale=2047)[0]["gt"], x["gt"], atol=1e-3)
    _, bright = saved(2, "bright")
    with pytest.warns(UserWarning, match="QB_bright.*above the nominal 2047"):
        assert bright[0]["gt"].max() > 2047
    _, wrong = saved(4, "wrong")
    one_line(lambda: wrong[0], "QB_wrong", "11 bits", "scale=")
    (
        tif(tmp_path / "t" / "QB_ms.tif", x["ms"] / 2047, "float32"),
        tif(tmp_path / "t" / "QB_pan.tif", x["pan"] / 2047, "float32"),
    )
    one_line(lambda: read_scenes(tmp_path / "t")[0], "QB_ms.tif", "[0,1]", "scale=2047")
    assert np.allclose(read_scenes(tmp_path / "t", scale=2047)[0]["ms"], x["ms"], atol=1e-3)


def test_order_of_bands(tmp_path):
    x = content()
    mat(tmp_path / "QB.mat", 5, I_MS=hwc(x["ms"][[2, 1, 0, 3]]), I_GT=hwc(x["gt"][[2, 1, 0, 3]]), I_PAN=x["pan"][0])
    same(read_scenes(tmp_path, order="R,G,B,NIR")[0], x)
    one_line(lambda: read_scenes(tmp_path, order="R,G,B")[0], "R,G,B", "B,G,R,NIR")
    (
        tif(tmp_path / "t" / "QB_ms.tif", x["ms"][[2, 1, 0, 3]], names=("R", "G", "B", "NIR")),
        tif(tmp_path / "t" / "QB_pan.tif", x["pan"]),
    )
    one_line(lambda: read_scenes(tmp_path / "t")[0], "QB_ms.tif", "R,G,B,NIR", "order=")
    same(read_scenes(tmp_path / "t", order="R,G,B,NIR")[0], x, gt=False)


def test_bands_and_sizes_name_file_and_variable(tmp_path):
    x = content()
    mat(tmp_path / "QB.mat", 5, I_MS=hwc(x["ms"]), I_PAN=x["pan"][0, 4:])
    one_line(lambda: read_scenes(tmp_path)[0], "QB.mat, I_PAN", "108x96", "112x96", "ratio 4")
    mat(tmp_path / "w" / "WV2.mat", 5, I_MS=hwc(x["ms"]), I_PAN=x["pan"][0])
    one_line(lambda: read_scenes(tmp_path / "w")[0], "WV2.mat, I_MS", "4 bands", "WV2:B,G,R,NIR1")
    assert read_scenes(tmp_path / "w", sensor="WV2:B,G,R,NIR1")[0].sizes["band"] == 4
    stack(tmp_path / "s" / "wv3.h5", 2)
    one_line(lambda: read_scenes(tmp_path / "s")[1], "wv3.h5, ms, tile 1", "4 bands")
    one_line(lambda: read_scenes(tmp_path / "w").pick(["nobody"]), "nobody", "WV2")


def test_what_is_no_scene(tmp_path):
    one_line(lambda: read_scenes(tmp_path / "x"), tmp_path / "x", error=FileNotFoundError)
    one_line(lambda: read_scenes(tmp_path), tmp_path, "_PAN")
    x = content()
    tif(tmp_path / "a" / "QB_ms.tif", x["ms"])
    one_line(lambda: read_scenes(tmp_path / "a"), "QB_ms.tif", "_PAN")
    mat(tmp_path / "b" / "QB.mat", 5, I_MS=hwc(x["ms"]))
    one_line(lambda: read_scenes(tmp_path / "b"), "QB.mat", "I_PAN", "I_MS")
    stack(tmp_path / "c" / "qb.h5", 2, kinds=("ms",))
    one_line(lambda: read_scenes(tmp_path / "c"), "qb.h5", "imgPAN")
    for tag, kind in (("lr", "ms"), ("ms", "ms"), ("pan", "pan")):
        tif(tmp_path / "d" / f"QB_{tag}.tif", x[kind])
    one_line(lambda: read_scenes(tmp_path / "d"), "QB_lr.tif", "QB_ms.tif")


# ---------------------------------------------------------------- one tile in memory


@pytest.mark.parametrize("layout", ["nbu", "stack"])
def test_one_tile_at_a_time(tmp_path, layout, monkeypatch):
    """Listing reads no pixel; walking holds one scene, and its memory does not grow with the number of tiles."""
    tiles, size = 20, 128
    nbu(tmp_path, tiles, size=size) if layout == "nbu" else stack(tmp_path / "qb.h5", tiles, size=size)
    reads, stored = [], formats.stored_array
    monkeypatch.setattr(formats, "stored_array", lambda *a: reads.append(a) or stored(*a))
    scenes = read_scenes(tmp_path)
    assert len(scenes) == tiles and len(scenes[3:7]) == 4 and not reads
    one = sum(scenes[0][k].nbytes for k in scenes[0].data_vars)
    earlier = lambda: None  # noqa: E731
    gc.collect()
    tracemalloc.start()
    for scene in scenes:
        assert earlier() is None, "the scene before is still in memory"
        earlier = weakref.ref(scene)
        del scene
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * one < tiles * one / 3, f"{peak / one:.1f} tiles in memory"


# ---------------------------------------------------------------- splits


def test_split_by_acquisition(tmp_path):
    names = [f"{a}/{t}" for a in "abcdefgh" for t in range(5)]
    of = {n: n[0] for n in names}
    table = split_scenes(names, tmp_path / "s.csv", seed=1, acquisitions=of, tune=2, validation=0.34)
    assert (table.groupby("acquisition")["split"].nunique() == 1).all() and list(table["scene"]) == names
    assert table.drop_duplicates("acquisition")["split"].value_counts().to_dict() == {
        "tune": 2,
        "validation": 2,
        "test": 4,
    }
    assert split_scenes(names, tmp_path / "s.csv", seed=2, acquisitions=of).equals(table)
    assert split_scenes(names, tmp_path / "again.csv", seed=1, acquisitions=of, tune=2, validation=0.34).equals(table)
    draws = {
        tuple(split_scenes(names, tmp_path / f"{seed}.csv", seed=seed, acquisitions=of)["split"]) for seed in range(6)
    }
    assert len(draws) > 3
    single = split_scenes(names, tmp_path / "single.csv", seed=1)  # nothing known: each tile by itself
    assert single["split"].value_counts().to_dict() == {"tune": 1, "validation": 8, "test": 31}


def test_split_is_checked(tmp_path):
    names, path = list("abcdef"), tmp_path / "s.csv"
    table = split_scenes(names, path, seed=1)
    one_line(lambda: split_scenes(names[:-1], path, seed=1), "s.csv", "'f'", "not there")
    one_line(lambda: split_scenes([*names, "g"], path, seed=1), "s.csv", "'g'")
    one_line(lambda: split_scenes(names, path, seed=1, acquisitions=dict.fromkeys(names, "one")), "s.csv", "'one'")
    pd.concat([table, table[:1]]).to_csv(path, index=False)
    one_line(lambda: split_scenes(names, path, seed=1), "twice", "'a'")
    table.assign(split="train").to_csv(path, index=False)
    one_line(lambda: split_scenes(names, path, seed=1), "'train'", "validation")
    table.drop(columns="acquisition").to_csv(path, index=False)
    one_line(lambda: split_scenes(names, path, seed=1), "columns", "acquisition")
    one_line(
        lambda: split_scenes(["a", "b"], tmp_path / "t.csv", seed=1, acquisitions={"a": "x", "b": "x"}),
        "1 acquisition",
        "acquisitions.csv",
    )
    assert not (tmp_path / "t.csv").exists()


def test_acquisitions_of_the_folder(tmp_path):
    nbu(tmp_path, 4)
    (tmp_path / "acquisitions.csv").write_text(
        "scene,acquisition\n" + "".join(f"2 QuickBird/{i},{'xxyy'[i - 1]}\n" for i in range(1, 5))
    )
    scenes = read_scenes(tmp_path)
    assert list(scenes.table()["acquisition"]) == list("xxyy") and scenes[0].attrs["acquisition"] == "x"
    table = split_scenes(scenes, tmp_path / "s.csv", seed=1)
    assert table["split"].tolist() in (["tune"] * 2 + ["test"] * 2, ["test"] * 2 + ["tune"] * 2)
    (tmp_path / "acquisitions.csv").write_text("scene,acquisition\nnobody,x\n")
    one_line(lambda: read_scenes(tmp_path), "acquisitions.csv", "nobody")
    (tmp_path / "acquisitions.csv").write_text("tile,acquisition\nnobody,x\n")
    one_line(lambda: read_scenes(tmp_path), "acquisitions.csv", "scene,acquisition")


# ---------------------------------------------------------------- in the study


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A project's folder with a target whose scenes are real (generated here), and its parameters."""
    params = yaml.safe_load((root() / "params.yaml").read_text())
    params["sensors"]["QB"]["data"] = "archive/2 QuickBird"
    for name in ("settings.ini", "data/responses.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((root() / name).read_bytes())
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    nbu(tmp_path / "archive", 8, size=320)
    monkeypatch.setenv("PANSHARP_STUDY_ROOT", str(tmp_path))
    return tmp_path


def test_data_in_params(study):
    params = load_params()
    assert params["sensors"]["QB"]["data"] == "archive/2 QuickBird" and params["sensors"]["WV2"]["data"] == "simulated"
    text = (study / "params.yaml").read_text()
    (study / "params.yaml").write_text(text.replace("data: archive/2 QuickBird", "data: 3"))
    one_line(load_params, "sensors.QB.data = 3")


def test_a_target_of_real_scenes(study):
    folder = study / "data" / "scenes" / "QB"
    folder.mkdir(parents=True)
    (folder / "tune_x.nc").write_bytes(b"an earlier simulation")
    table = link_scenes("QB", "archive/2 QuickBird", folder, seed=1)
    assert sorted(p.name for p in folder.iterdir()) == ["real.json", "split.csv"] and json.loads(
        (folder / "real.json").read_text()
    )["scored"] == list(table.loc[table["scored"], "scene"])
    assert (study / "data" / "splits" / "QB.csv").read_text() == (folder / "split.csv").read_text()
    assert table["scored"].equals(table["split"] == "test")
    tuning, testing = find_scenes("QB")
    assert isinstance(testing, SceneList) and len(tuning) == 1 and len(testing) == (table["split"] == "test").sum()
    rows, images = score_scene(testing[0], classical_methods(["EXP"]))
    assert (
        list(rows["resolution"]) == ["reduced", "full"]
        and not rows["simulated"].any()
        and set(images) == {"reduced", "full"}
    )
    edited = table.drop(columns="scored").assign(split=["tune", "test"] * 4)
    edited.to_csv(study / "data" / "splits" / "QB.csv", index=False)
    assert link_scenes("QB", "archive/2 QuickBird", folder, seed=1)["split"].tolist() == ["tune", "test"] * 4
    (
        (study / "archive" / "2 QuickBird" / "MS_256" / "8.mat").unlink(),
        (study / "archive" / "2 QuickBird" / "PAN_1024" / "8.mat").unlink(),
    )
    one_line(lambda: find_scenes("QB"), "split.csv", "2 QuickBird/8")
    one_line(lambda: link_scenes("WV4", "archive", folder, seed=1), "sensors.WV4.data", "QB")


def test_the_stage_simulates_nothing_for_it(study):
    """What the stage adapt does first, for a target of real scenes: a note and a split, no scene."""
    table = prepare_scenes("QB", load_params())
    assert {"scene", "acquisition", "split", "scored"} == set(table)
    assert sorted(p.name for p in (study / "data/scenes/QB").iterdir()) == ["real.json", "split.csv"]
    assert find_scenes("QB")[0][0].attrs["name"].startswith("2 QuickBird/")


@pytest.mark.parametrize("kind", ["pairs", "triples"])
def test_adapting_to_real_scenes(study, kind):
    """The stage adapt, with classical methods alone, on a target of pairs and on one of ready-made triples."""
    if kind == "triples":
        stack(study / "triples" / "test_qb.h5", 4, size=128)
    table = link_scenes("QB", "archive" if kind == "pairs" else "triples", study / "data" / "scenes" / "QB", seed=1)
    (study / "metrics" / "adapt").mkdir(parents=True)
    params = load_params()
    result = adapt_scenes(
        "QB", params | {"networks": [], "classical": ["EXP"], "adapt": params["adapt"] | {"released": []}}
    )
    tested = table.loc[table["split"] == "test", "scene"]
    assert list(dict.fromkeys(result.rows["scene"])) == list(tested) and not result.rows["simulated"].any()
    assert set(result.rows["resolution"]) == ({"reduced", "full"} if kind == "pairs" else {"reduced"})
    assert set(json.loads((study / "metrics" / "adapt" / "QB.json").read_text())) >= {"reduced"}
    assert (
        len(linked_scenes(study / "data" / "scenes" / "QB", ("validation",))[0])
        == (table["split"] == "validation").sum()
        > 0
    )


def test_split_of_pancollection(tmp_path):
    """Its file names tell the split; nothing to train on is scored, and training tiles alone are refused."""
    for name, tiles, size in (("train_qb", 5, 64), ("valid_qb", 2, 64), ("test_qb_multiExm1", 3, 128)):
        stack(tmp_path / "QB" / f"{name}.h5", tiles, size=size)
    stack(tmp_path / "QB" / "test_qb_OrigScale_multiExm1.h5", 3, kinds=("lms", "ms", "pan"), size=320)
    table = split_scenes(read_scenes(tmp_path / "QB"), tmp_path / "s.csv", seed=1).set_index("scene")["split"]
    assert table.value_counts().to_dict() == {"tune": 1, "validation": 6, "test": 6}
    assert (
        table[table == "tune"].index[0].startswith("train_qb/")
        and (table[[n.startswith("test") for n in table.index]] == "test").all()
    )
    for path in (tmp_path / "QB").glob("test*"):
        path.unlink()
    one_line(lambda: split_scenes(read_scenes(tmp_path / "QB"), tmp_path / "t.csv", seed=1), "train_qb.h5", "test_*.h5")


@pytest.mark.parametrize("scored", [0, 2])
def test_scenes_of_both_resolutions(study, scored):
    """As many test scenes of each resolution as asked for, always the same ones, each scored at its own."""
    stack(study / "both" / "test_qb_multiExm1.h5", 6, size=128)
    stack(study / "both" / "test_qb_OrigScale_multiExm1.h5", 6, kinds=("lms", "ms", "pan"), size=320)
    folder = study / "data" / "scenes" / "QB"
    table = link_scenes("QB", "both", folder, seed=1, scored=scored)
    assert table.equals(link_scenes("QB", "both", folder, seed=1, scored=scored))
    kind = table["scene"].str.contains("OrigScale").map({True: "full", False: "reduced"})
    tests = table["split"] == "test"
    assert (
        not table.loc[~tests, "scored"].any()
        and table[tests].groupby(kind)["scored"].sum().eq(scored or table[tests].groupby(kind).size()).all()
    )
    params = load_params()
    (study / "metrics" / "adapt").mkdir(parents=True)
    rows = adapt_scenes(
        "QB", params | {"networks": [], "classical": ["EXP"], "adapt": params["adapt"] | {"released": []}}
    ).rows
    assert (
        sorted(rows["scene"]) == sorted(table.loc[table["scored"], "scene"])
        and (rows["resolution"] == rows["scene"].str.contains("OrigScale").map({True: "full", False: "reduced"})).all()
    )


def test_a_given_triple_is_scored_as_it_is(tmp_path):
    made = stack(tmp_path / "test_qb.h5", 1, size=128)[0]
    scene = read_scenes(tmp_path)[0]
    rows, images = score_scene(
        scene, classical_methods(["EXP", "GSA"]) | {("truth", "", "x"): lambda ms, pan, sensor: images_of(made)}
    )
    assert list(rows["resolution"]) == ["reduced"] * 3 and set(images) == {"reduced"}
    assert rows.set_index("method").loc["truth", "ergas"] == 0 and np.array_equal(
        images["reduced"]["gt"][0], made["gt"]
    )
    pair = make_scene(
        made["ms"], made["pan"][0], gt=made["gt"], sensor="QB", name="x", simulated=True
    )  # a truth at full resolution is not its reduced reference
    assert Pair.from_scene(pair).reduced().gt.shape == Pair.from_scene(pair).ms.shape
    lost = scene.drop_vars("gt")
    one_line(lambda: score_scene(lost, classical_methods(["EXP"])), "no reference")


def test_a_pair_that_is_no_multiple_of_the_ratio(tmp_path):
    x = content(size=328)  # MS 86 x 82
    tif(tmp_path / "QB_ms.tif", x["ms"]), tif(tmp_path / "QB_pan.tif", x["pan"])
    scene = read_scenes(tmp_path)[0]
    assert np.array_equal(Pair.from_scene(scene).reduced().gt[0], x["ms"][:, :84, :80])
    scene["valid"] = scene["pan"] > 0
    scene["valid"][:40, :40] = False
    small = Pair.from_scene(scene).reduced()
    assert small.mask.shape[2:] == small.pan.shape[2:] == (84, 80) and not small.mask[..., :10, :10].any()
    rows, images = score_scene(scene, classical_methods(["EXP"]))
    assert images["full"]["EXP"].shape[2:] == (344, 328) and rows["ergas"].notna().any()


def images_of(made):
    import torch

    return torch.from_numpy(made["gt"].astype("float32"))[None]
