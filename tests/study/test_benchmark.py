"""The benchmark: who tunes and who is scored, rows with a fixed schema, a run that can be stopped."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from pansharp_study.core import load_params, seeded
from pansharp_study.networks.zoo import create_model
from pansharp_study.optics.sensors import get_sensor
from pansharp_study.optics.wald import upsample
from pansharp_study.scenes.pair import Pair
from pansharp_study.scoring.score import SMALLEST, ndvi_error
from pansharp_study.scoring.tables import ROW, SCHEMA_VERSION
from pansharp_study.study.benchmark import (
    Job,
    gains,
    jobs_of,
    main,
    network_rows,
    read_missing,
    read_rows,
)
from pansharp_study.study.benchmark_pairs import (
    Tile,
    acquisitions,
    fold_of,
    halved,
    load_tiles,
    save_tiles,
    supervised_tiles,
)

FEW = load_params()["adapt"] | {"steps": 2, "batch": 1, "size": 32}


def whole(name, acquisition="town", sensor="QB", height=96):
    """A full-resolution pair of random blocks."""
    sensor, g = get_sensor(sensor), seeded("benchmark test", name)
    blocks = torch.rand(1, sensor.n_bands, height // 8, 12, generator=g).repeat_interleave(8, 2).repeat_interleave(8, 3)
    ms = 300 + 300 * blocks + 100 * torch.rand(1, 1, height, 96, generator=g)
    pan = upsample(ms.mean(1, keepdim=True))
    return Pair(ms, pan, sensor, name=name, acquisition=acquisition, split="development")


def toy(name, acquisition, sensor="QB", height=96, overlaps=(), full=False):
    pair = whole(name, acquisition, sensor, height)
    return Tile(pair.reduced(), pair.crop(slice(48), slice(48)) if full else None, overlaps=overlaps)


def chain():  # as the tiles of an acquisition that overlap by half
    return [toy("g0", "g"), *(toy(f"g{k}", "g", overlaps=(f"g{k - 1}",)) for k in (1, 2, 3))]


def test_overlapping_tiles_are_not_scored():
    tiles = chain()
    assert [[p.name for p in fold_of(tiles, s).testing] for s in range(4)] == [
        ["g2", "g3"],
        ["g3"],
        ["g0"],
        ["g0", "g1"],
    ]
    assert [p.name for p in fold_of(tiles, 0, 2).testing] == ["g3"] and fold_of(tiles, 0, 3) is None


def test_halves_do_not_share_rows():
    tile = toy("one", "one", height=160, full=True)
    upper, lower = halved(tile)
    assert torch.equal(torch.cat([upper.reduced.gt, lower.reduced.gt], 2), tile.reduced.gt)
    assert (upper.role, lower.role) == ("tune", "test") and lower.reduced.gt.shape[2] >= SMALLEST
    assert upper.full.pan.shape[2] == 4 * upper.full.ms.shape[2] == tile.full.pan.shape[2] // 2
    assert halved(toy("low", "low", height=96)) == []


def test_file_keeps_everything(tmp_path):
    four = get_sensor("WV2").subset(["B", "G", "R", "NIR1"])
    tiles = [
        Tile(replace(whole("g0"), sensor=four).reduced(), role="tune"),
        chain()[1],
        toy("w", "w", "WV2", full=True),
    ]
    save_tiles(tiles, [{"sensor": "WV4", "reason": "none"}], tmp_path / "a" / "tiles.safetensors")
    again, missing = load_tiles(tmp_path / "a" / "tiles.safetensors")
    assert [(t.name, t.sensor, t.overlaps, t.key, t.role) for t in again] == [
        (t.name, t.sensor, t.overlaps, t.key, t.role) for t in tiles
    ]
    assert (
        again[0].full is None and torch.equal(again[2].full.pan, tiles[2].full.pan) and missing[0]["reason"] == "none"
    )


def test_rows_have_the_schema():
    pairs = [toy("a", "x"), toy("b", "x", full=True), toy("c", "y", "IKONOS")]
    net = create_model("fusionnet", bands=4, width=8, depth=1)
    rows, curve, left_out = network_rows(Job(net, pairs, ("x", "development"), FEW, 0))
    assert tuple(rows.columns) == tuple(curve.columns) == ROW
    assert (
        (rows["scene"] == "b").all()
        and set(rows["resolution"]) == {"reduced", "full"}
        and set(curve["resolution"]) == {"reduced"}
    )
    reduced, full = (rows[rows["resolution"] == k] for k in ("reduced", "full"))
    assert (
        reduced[["sam_deg", "ergas", "q2n", "psnr_db", "ndvi_mae"]].notna().all().all()
        and full[["hqnr", "d_rho", "d_s", "d_lambda_k"]].notna().all().all()
    )
    assert {"reason": "x, supervised: no second pair of QB outside the scored scenes", "sensor": "QB"} in left_out
    assert (gains(rows)["ergas_ratio"] > 0).all() and reduced.set_index("paradigm").loc[
        "cross-sensor", "tuned_on"
    ] == "c"


def test_scored_scenes_train_no_comparator():
    """The supervised network and its rows share no ground."""
    pairs = [*chain(), toy("h0", "h"), toy("h1", "h")]
    fold = fold_of(acquisitions(pairs)[("g", "development")], 0)
    training, _ = supervised_tiles(pairs, fold)
    assert [t.name for t in fold.testing] == ["g2", "g3"] and [t.name for t in training] == ["g0", "h0", "h1"]


def test_ndvi_needs_its_bands():
    gt = torch.full((1, 2, 96, 96), 500.0)
    assert np.isnan(ndvi_error(gt, gt, get_sensor("QB").subset(["B", "G"])))
    bright = torch.stack([gt[:, 0], 2 * gt[:, 1]], 1)
    assert abs(ndvi_error(bright, gt, get_sensor("QB").subset(["R", "NIR"])) - 1 / 3) < 1e-9


def test_shares_cover_all_jobs_once():
    jobs = jobs_of([*chain(), toy("x", "x")], ["fusionnet", "bandset"], [0, 1])
    assert len(jobs) == len(set(jobs)) == 2 + 2 * 2 * 2
    assert sorted(map(str, jobs)) == sorted(str(j) for k in range(3) for j in jobs[k::3])


def test_command_line(tmp_path, capsys):
    """From a folder of files to rows; a second run finds everything done; what is missing is said."""
    listing = ["name,sensor,bands,files,preparation,acquisition,split"]
    for k in range(2):
        pair = whole(f"q{k}")
        ms, pan = pair.ms[0].numpy(), pair.pan[0, 0].numpy()
        np.save(tmp_path / f"q{k}_MS.npy", ms), np.save(tmp_path / f"q{k}_PAN.npy", pan)
        Image.fromarray(pan).save(tmp_path / f"q{k}.tif")
        listing.append(f"q{k},QB,4,q{k}_{{MS;PAN}}.npy,Wald-reduce the pair,town,development")
    listing.append("far,GF2,4,far_{MS;PAN}.npy,Wald-reduce the pair,far,held-out")
    (tmp_path / "RR_SCENES.csv").write_text("\n".join(listing) + "\n")
    main(["prepare", str(tmp_path), str(tmp_path / "pairs.safetensors")])
    said = capsys.readouterr().out
    assert (
        "2 tiles of 1 acquisitions" in said
        and "GF2 (real scenes only in the split held-out)" in said
        and "WV4 (no openly usable real scene)" in said
    )
    call = [
        "run",
        str(tmp_path / "pairs.safetensors"),
        str(tmp_path / "out"),
        "--networks",
        "fusionnet",
        "--scale",
        "laptop",
        "--steps",
        "1",
        "--size",
        "32",
        "--batch",
        "1",
        "--paradigms",
        "zero-shot,one-shot full",
        "--resolutions",
        "reduced",
    ]
    main([*call, "--minutes", "-1"])
    assert "2 jobs left" in capsys.readouterr().out
    main([*call, "--share", "0/2"]), main([*call, "--share", "1/2"])
    rows = read_rows(tmp_path / "out")
    assert {"classical", "zero-shot", "one-shot full"} == set(rows["paradigm"]) and rows.loc[
        rows["paradigm"] == "one-shot full", "tuned_on"
    ].eq("q0").all()
    assert (rows["schema_version"] == SCHEMA_VERSION).all() and len(read_rows(tmp_path / "out", "curves")) == 1
    assert {"WV3", "WV4", "GF2", "IKONOS", "WV2"} <= set(read_missing(tmp_path / "out")["sensor"])
    assert isinstance(rows, pd.DataFrame) and not rows["simulated"].astype(bool).any()
    with pytest.raises(SystemExit, match="No pairs at"):
        main(["run", str(tmp_path / "none"), str(tmp_path / "out")])
