"""Real scenes: formats, the conventions of their grids, and scores that count acquisitions. Generated files only."""

import types
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.io import savemat

from pansharp_study.classical import METHODS
from pansharp_study.networks.zoo import create_model, save_weights, sha256_of
from pansharp_study.optics.registration import shift_image
from pansharp_study.optics.sensors import get_sensor
from pansharp_study.optics.wald import degrade
from pansharp_study.scenes.formats import read_array
from pansharp_study.study import real
from pansharp_study.study.held_out import commit_now, read_record
from pansharp_study.study.real_scenes import (
    LISTING,
    LISTING_COLUMNS,
    grid_offset,
    prepare_pairs,
    read_listing,
    registered_only,
)

SENSOR = get_sensor("QB")


def painted(height, width, bands=4, seed=0):
    """Roofs on hills, DN."""
    g = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    grey = 300 + 90 * np.sin(x / 23 + seed) + 60 * np.cos(y / 31)
    for _ in range(height * width // 200):
        r, c = g.integers(0, height), g.integers(0, width)
        grey[r : r + g.integers(4, 14), c : c + g.integers(4, 14)] = g.uniform(150, 700)
    return torch.from_numpy((grey * np.linspace(0.8, 1.2, bands)[:, None, None]).astype("float32"))[None]


def row(**cells):
    given = {
        "name": "x",
        "sensor": "QB",
        "bands": 4,
        "files": "x",
        "preparation": "",
        "acquisition": "one",
        "split": "development",
    }
    return types.SimpleNamespace(**{**given, **cells})


@pytest.mark.parametrize("kind", ["npy hwc", "npy chw", "npy hw1", "tif", "mat", "int16"])
def test_read_array(tmp_path, kind):
    x = np.rint(painted(24, 40)[0].numpy())
    if kind == "mat":
        savemat(tmp_path / "x.mat", {"I_MS": x.transpose(1, 2, 0)})
        got = read_array(tmp_path / "x.mat", "I_MS")
    elif kind == "tif":
        import rasterio

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with rasterio.open(
                tmp_path / "x.tif", "w", driver="GTiff", count=4, height=24, width=40, dtype="uint16"
            ) as f:
                f.write(x.astype("uint16"))
        got = read_array(tmp_path / "x.tif")
    else:
        x = x[:1] if kind == "npy hw1" else x
        stored = x if kind == "npy chw" else x.transpose(1, 2, 0)
        np.save(tmp_path / "x.npy", stored.astype("int16") if kind == "int16" else stored)
        got = read_array(tmp_path / "x.npy")
    assert got.dtype == np.float32 and np.array_equal(got, x)


def test_read_array_refuses(tmp_path):
    np.save(tmp_path / "nan.npy", np.full((3, 4, 4), np.nan))
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object))
    (tmp_path / "x.jpg").write_bytes(b"")
    (tmp_path / "x.mat").write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(64))
    for name, error, match in (
        ("nan.npy", ValueError, "fill or crop"),
        ("objects.npy", ValueError, "allow_pickle"),
        ("x.jpg", ValueError, "not read"),
        ("x.mat", ValueError, "v5"),
        ("none.npy", FileNotFoundError, "none.npy"),
    ):
        with pytest.raises(error, match=match):
            read_array(tmp_path / name, "I_MS")


def test_listing_with_commas_in_the_preparation(tmp_path):
    (tmp_path / LISTING).write_text(
        ",".join(LISTING_COLUMNS)
        + "\nw,WV2,4,a_{b;c}.tif,MS [..., ::2, ::2] to 150x150; reduce,W,development\nh,QB,4,d.mat,,V,held-out\n"
    )
    rows = read_listing(tmp_path)
    assert (
        list(rows["name"]) == ["w"]
        and rows["preparation"][0] == "MS [..., ::2, ::2] to 150x150; reduce"
        and rows["acquisition"][0] == "W"
    )
    assert len(read_listing(tmp_path, "all")) == 2
    (tmp_path / LISTING).write_text("name,sensor\n")
    with pytest.raises(ValueError, match="should have the columns"):
        read_listing(tmp_path)


@pytest.mark.parametrize("true", [0.0, 0.5])
def test_grid_offset_sees_the_convention_through_another_blur(true):
    gt = painted(128, 128)
    ms = degrade(shift_image(gt, torch.tensor([true, true])), [0.2] * 4)  # another MTF than QuickBird's
    assert np.abs(np.array(grid_offset(gt, ms, SENSOR)) - true).max() < 0.05
    gt.add_(torch.randn(gt.shape, generator=torch.Generator().manual_seed(0)))
    given, level = prepare_pairs(row(), {"gt": gt, "ms": ms, "pan": gt.mean(1, keepdim=True)})
    exact = degrade(gt, [0.2] * 4)
    assert (level.ms - exact)[..., 4:-4, 4:-4].abs().mean() < 2 and given.resolution == level.resolution == "reduced"
    assert (level.ms is given.ms) == (true == 0)


def test_registration_brings_pan_to_the_reference():
    gt = painted(160, 160, seed=3)
    pan = shift_image(gt.mean(1, keepdim=True), torch.tensor([0.6, -0.4]))
    pairs = prepare_pairs(row(), {"gt": gt, "ms": degrade(gt, SENSOR.mtf_ms), "pan": pan})
    assert pairs[0].shift is None and np.abs(np.array(pairs[1].shift) - [0.6, -0.4]).max() < 0.05
    scores = real.score_pairs(pairs, {"GSA": ("classical", {None: METHODS["GSA"]})}).set_index("registered")
    assert scores.loc[True, "ergas"] < 0.5 * scores.loc[False, "ergas"]


def test_pair_is_cut_and_given_at_both_resolutions():
    gt = painted(328, 328)
    ms = torch.nn.functional.pad(degrade(gt, SENSOR.mtf_ms), (0, 1, 0, 1), "replicate")
    pan = torch.nn.functional.pad(gt.mean(1, keepdim=True), (0, 4, 0, 4), "replicate")
    pairs = prepare_pairs(row(), {"ms": ms, "pan": pan}, full_size=160)
    small, full = registered_only(pairs)
    assert len(pairs) == 4 and small.gt.shape == (1, 4, 80, 80) and small.ms.shape == (1, 4, 20, 20)
    assert full.gt is None and full.pan.shape == (1, 1, 160, 160) and full.ms.shape == (1, 4, 40, 40)


def test_four_bands_of_an_eight_band_sensor():
    gt = painted(320, 320)
    small = prepare_pairs(row(sensor="WV2"), {"ms": degrade(gt, [0.3] * 4), "pan": gt.mean(1, keepdim=True)})[0]
    assert small.sensor.bands == ("B", "G", "R", "NIR1")


def scores(acquisitions, factor=1.0):
    """Made-up scores: EXP, two classical methods and a network."""
    out = []
    for k, (acquisition, tiles) in enumerate(acquisitions.items()):
        for tile in range(tiles):
            for method, paradigm, sam in (
                ("EXP", "classical", 4),
                ("A", "classical", 3),
                ("B", "classical", 2.5),
                ("net", "zero-shot", 2 * factor),
            ):
                for registered in (False, True):
                    value = (
                        sam * (1 + k)
                        - 0.1 * registered * (method == "A")
                        - 0.9 * registered * (method == "A") * (1 + k)
                    )
                    out.append(
                        {
                            "split": "development",
                            "bands": 4,
                            "sensor": "QB",
                            "acquisition": acquisition,
                            "scene": f"{acquisition}{tile}",
                            "resolution": "reduced",
                            "method": method,
                            "paradigm": paradigm,
                            "registered": registered,
                            "sam_deg": value,
                            "ergas": 2 * value,
                            "q2n": 0.9,
                        }
                    )
    return pd.DataFrame(out)


def test_tiles_count_once_per_acquisition():
    rows = scores({"one": 5, "two": 1})
    rows.loc[rows["acquisition"] == "one", "sam_deg"] += (
        rows.loc[rows["acquisition"] == "one", "scene"].str[-1].astype(float) - 2
    )  # of mean zero
    means = real.mean_scores(rows).set_index(["method", "registered"])
    assert means.loc[("EXP", False), "sam_deg"] == pytest.approx((4 + 8) / 2)


def test_yardstick_and_ratio():
    rows = scores({"one": 2, "two": 1, "three": 1})
    assert (
        real.best_classical(rows, registered=False)[0] == "B" and real.best_classical(rows, registered=True)[0] == "A"
    )
    table = real.ratio_table(rows).set_index("against_registered")
    assert table.loc[False, "sam_deg"] == pytest.approx(0.8) and table.loc[False, "sam_deg_low"] == pytest.approx(0.8)
    assert table.loc[True, "ergas_low"] <= table.loc[True, "ergas"] <= table.loc[True, "ergas_high"]
    alone = real.ratio_table(scores({"one": 3}))
    assert alone["ergas_low"].isna().all() and (alone["acquisitions"] == 1).all()
    assert "a single acquisition (n = 1)" in real.summary(scores({"one": 3}))
    with pytest.raises(ValueError, match="EXP"):
        real.best_classical(rows[rows["method"] != "EXP"], registered=True)


def full_scores(values):
    """Made-up scores at full resolution: (method, paradigm) -> (HQNR, D_rho) of each acquisition."""
    return pd.DataFrame(
        [
            {
                "split": "development",
                "bands": 4,
                "sensor": "QB",
                "acquisition": f"{k}",
                "scene": f"{k}",
                "resolution": "full",
                "method": method,
                "paradigm": paradigm,
                "registered": registered,
                "hqnr": h,
                "d_lambda_k": 0.1,
                "d_s": 0.1,
                "d_rho": d,
            }
            for (method, paradigm), each in values.items()
            for k, (h, d) in enumerate(each)
            for registered in (False, True)
        ]
    )


def test_full_resolution_has_its_own_rivals():
    rows = full_scores(
        {
            ("EXP", "classical"): [(0.99, 0.7)] * 3,
            ("A", "classical"): [(0.9, 0.3)] * 3,
            ("B", "classical"): [(0.8, 0.1), (0.8, 0.1), (0.7, 0.2)],
            ("net", "zero-shot"): [(0.92, 0.2), (0.94, 0.2), (0.9, 0.2)],
        }
    )
    assert real.best_at_full(rows) == {"best HQNR": "A", "best D_rho": "B"}
    table = real.full_table(rows).set_index("chosen")
    assert table.loc["best HQNR", "hqnr_gain"] == pytest.approx(0.02) and table.loc[
        "best HQNR", "d_rho_gain"
    ] == pytest.approx(0.1)
    assert table.loc["best D_rho", "d_rho_gain"] == pytest.approx(2 / 30 * 2 - 0.2)
    assert (table["hqnr_gain_low"] <= table["hqnr_gain"]).all() and (table["acquisitions"] == 3).all()
    both = pd.concat([rows, scores({"0": 1, "1": 1, "2": 1})])
    assert set(real.full_table(both)["chosen"]) == {"best at reduced resolution", "best HQNR", "best D_rho"}
    assert real.full_table(scores({"one": 1})).empty and "full resolution" in real.summary(both)


def test_every_acquisition_is_shown():
    table = real.acquisition_table(scores({"one": 2, "two": 1}), registered=False)
    assert (
        list(table["acquisition"]) == ["one", "two"]
        and np.allclose(table["sam_deg"], 0.8)
        and (table["against"] == "B").all()
    )


def test_the_one_call_is_what_is_scored(monkeypatch):
    gt, seen = painted(128, 128), []
    monkeypatch.setattr(real, "sharpen", lambda ms, pan, **options: seen.append(options) or gt)
    pair = prepare_pairs(row(), {"gt": gt, "ms": degrade(gt, SENSOR.mtf_ms), "pan": gt.mean(1, keepdim=True)})[0]
    table = real.score_pairs([pair], real.network_entries(ensemble=True) | {"GSA": real.classical_entries()["GSA"]})
    assert {o["model"] if isinstance(o["model"], str) else o["model"].name for o in seen} >= {
        "GSA",
        "fusionnet",
    } and all(o["register"] is False and o["sensor"] is SENSOR for o in seen)
    assert {"fusionnet + ensemble", "fusionnet + ensemble + back-projection"} <= set(table["method"])


def test_a_network_for_any_number_of_bands_serves_every_scene(monkeypatch):
    for none in (None, 0):
        monkeypatch.setattr(
            real, "load_weights", lambda path, bands=none: types.SimpleNamespace(name="any", bands=bands)
        )
        entries = real.network_entries(["x.safetensors"])
        assert list(entries["any"][1]) == [None]
        with pytest.raises(ValueError, match="any number"):
            real.network_entries(["x.safetensors", "y.safetensors"])


def test_held_out_scenes_are_scored_once(tmp_path, capsys):
    folder, record = tmp_path / "scenes", tmp_path / "held_out.json"
    folder.mkdir()
    gt = painted(128, 128)
    for tag, x in (("HR", gt), ("LR", degrade(gt, SENSOR.mtf_ms)), ("PAN", gt.mean(1, keepdim=True))):
        np.save(folder / f"1_{tag}.npy", x[0].permute(1, 2, 0).numpy())
    (folder / LISTING).write_text(",".join(LISTING_COLUMNS) + "\na,QB,4,1_{HR;LR;PAN}.npy,given triple,one,held-out\n")
    model = create_model("fusionnet", bands=4, width=8, depth=1)
    save_weights(model, tmp_path / "net_4.safetensors")
    call = [
        str(folder),
        "--split",
        "held-out",
        "--record",
        str(record),
        "--weights",
        str(tmp_path / "net_4.safetensors"),
    ]
    real.main(call)
    (entry,) = read_record(record)
    assert (
        entry["weights"] == {"net_4.safetensors": sha256_of(tmp_path / "net_4.safetensors")}
        and entry["again"] is False
        and entry["acquisitions"] == 1
    )
    assert (
        {r["method"] for r in entry["scores"]} == {"fusionnet", "fusionnet + back-projection"}
        and entry["ratios"]
        and "ergas_low" not in entry["ratios"][0]
    )
    assert entry["commit"] == commit_now()
    with pytest.raises(SystemExit, match="--again"):
        real.main(call)
    assert len(read_record(record)) == 1
    real.main([*call, "--again"])
    assert [e["again"] for e in read_record(record)] == [False, True]
    real.main(
        [str(folder), "--split", "held-out", "--record", str(record), "--weights"]
    )  # classical methods only: nothing to record
    assert len(read_record(record)) == 2
    capsys.readouterr()


def test_back_projection_is_consistent_and_keeps_a_perfect_image():
    gt = painted(128, 128)
    ms = degrade(gt, SENSOR.mtf_ms)
    perfect = real.backproject(lambda *pair: gt, 3)(ms, gt[:, :1], SENSOR)
    assert (perfect - gt).abs().max() < 1e-3
    poor = real.backproject(lambda *pair: gt + 50, 2)(ms, gt[:, :1], SENSOR)
    assert (poor - gt).abs().mean() < 5


def test_command_line_writes_scores_only(tmp_path, capsys):
    folder, out = tmp_path / "scenes", tmp_path / "out"
    folder.mkdir(), out.mkdir()
    gt = painted(128, 128)
    for tag, x in (("HR", gt), ("LR", degrade(gt, SENSOR.mtf_ms)), ("PAN", gt.mean(1, keepdim=True))):
        np.save(folder / f"1_{tag}.npy", x[0].permute(1, 2, 0).numpy())
    (folder / LISTING).write_text(
        ",".join(LISTING_COLUMNS)
        + "\na,QB,4,1_{HR;LR;PAN}.npy,given triple,one,development"
        + "\nb,QB,4,2_{HR;LR;PAN}.npy,given triple,two,development\n"
    )
    real.main([str(folder), "--out", str(out / "table.csv")])
    shown = capsys.readouterr()
    assert "skipped b" in shown.err and "fusionnet" in shown.out and "ratios" in shown.out
    assert [p.name for p in out.iterdir()] == ["table.csv"] and len(list(folder.iterdir())) == 4
    table = pd.read_csv(out / "table.csv")
    assert {"fusionnet", "fusionnet + back-projection", "EXP"} <= set(table["method"])
    with pytest.raises(SystemExit, match="held-out"):
        real.main([str(folder), "--split", "held-out", "--weights"])
    with pytest.raises(SystemExit, match="nowhere"):
        real.main([str(tmp_path / "nowhere"), "--weights"])
