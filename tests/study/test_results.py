"""Results of real scenes: one command makes tables, manifest and pages; pages need no scenes; errors are clear."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from pansharp_study.classical import classical_methods
from pansharp_study.core import load_params, seeded
from pansharp_study.optics.wald import upsample
from pansharp_study.scoring.tables import ROW, SCHEMA_VERSION
from pansharp_study.study import benchmark, result_pages, results
from pansharp_study.study.claims import cases
from pansharp_study.study.result_pages import main, make_reports
from pansharp_study.study.result_tables import comparable, with_bands
from pansharp_study.study.results import COMMAND, cache_for, collect, measure, read_results, write_results

CALL = ["--networks", "fusionnet", "--seeds", "0", "--steps", "1", "--scale", "laptop", "--most-pairs", "1"]


def shown(path) -> str:
    """All that a report displays as text."""
    cells = json.loads(path.read_text())["cells"]
    assert not [o for c in cells for o in c.get("outputs", []) if o["output_type"] == "error"]
    data = [o.get("data", {}) for c in cells for o in c.get("outputs", [])]
    return "\n".join("".join(text) for d in data for kind, text in d.items() if kind.startswith("text/"))


def pictures(path) -> int:
    cells = json.loads(path.read_text())["cells"]
    return sum("image/jpeg" in o.get("data", {}) for c in cells for o in c.get("outputs", []))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A folder with two scenes of a town, the command run on it once with pictures."""
    folder = tmp_path_factory.mktemp("results")
    real, cache = folder / "real", folder / "cache"
    real.mkdir()
    listing = ["name,sensor,bands,files,preparation,acquisition,split"]
    for k in range(2):
        g = seeded("results test", k)
        blocks = torch.rand(1, 4, 12, 12, generator=g).repeat_interleave(8, 2).repeat_interleave(8, 3)
        ms = 300 + 300 * blocks + 100 * torch.rand(1, 1, 96, 96, generator=g)
        np.save(real / f"q{k}_MS.npy", ms[0].numpy())
        np.save(real / f"q{k}_PAN.npy", upsample(ms.mean(1, keepdim=True))[0, 0].numpy())
        listing.append(f"q{k},QB,4,q{k}_{{MS;PAN}}.npy,Wald-reduce the pair,town,development")
    listing.append("lost,QB,4,lost_{MS;PAN}.npy,Wald-reduce the pair,village,development")
    (real / "RR_SCENES.csv").write_text("\n".join(listing) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "cache_for", lambda *args: cache)
        patch.setattr(benchmark, "classical_methods", lambda _: classical_methods(["EXP", "GSA", "Brovey"]))
        targets = {"targets": ["QB", "WV4"]}
        patch.setattr(result_pages, "load_params", lambda **options: load_params(**options) | targets)
        main(["--real", str(real), "--out", str(folder / "out"), *CALL, "--pictures"])
    return folder


def test_end_to_end(study):
    """Tables, manifest and a page per satellite; a satellite without scenes says so and shows nothing else."""
    out = study / "out"
    found = read_results(out)
    assert tuple(found.rows.columns) == ROW and len(found.curves)
    assert {"classical", "zero-shot", "one-shot full"} <= set(found.rows["paradigm"])
    assert {f.stem for f in (out / "reports").glob("*.ipynb")} == {"QB", "WV4", "compare"}
    assert not list(out.rglob("*.running.ipynb"))
    absent = shown(out / "reports" / "WV4.ipynb")
    assert "no real scene of WorldView-4" in absent and "no openly usable real scene" in absent
    page, compare = shown(out / "reports" / "QB.ipynb"), shown(out / "reports" / "compare.ipynb")
    assert "development, 4 bands (real): means over 1 acquisition" in page and "n = 1: no interval" in page
    assert "All pairs are registered" in page and "lost: its files could not be read" in page
    assert "against 1" in compare or "for 1" in compare
    assert "n = 1: no interval" in compare and "NOT tested" in compare and "simulated scenes" not in compare
    assert pictures(out / "reports" / "QB.ipynb") == 2 and pictures(out / "reports" / "compare.ipynb") == 0
    for file in (out / "reports").glob("*.ipynb"):
        assert file.stat().st_size < (10_000 if file.stem == "WV4" else 500_000)


def test_manifest(study):
    """What made the rows, without the path of the scenes."""
    notes = json.loads((study / "out" / "manifest.json").read_text())
    assert notes["schema_version"] == SCHEMA_VERSION and notes["networks"] == ["fusionnet"]
    assert notes["seeds"] == [0] and notes["steps"] == [1] and notes["runs"][0]["adapt"]["steps"] == 1
    assert len(notes["weights"]["fusionnet_4.safetensors"]["sha256"]) == 64
    town = {"sensor": "QB", "acquisition": "town", "split": "development", "bands": 4, "scenes": 2}
    assert notes["acquisitions"] == [town]
    assert notes["commands"] == [f"{COMMAND} --real FOLDER --out OUT {' '.join(CALL)} --pictures"]
    assert set(notes["files"]) == {"metrics.csv", "curves.csv", "missing.csv"}


def test_resumes(study, monkeypatch):
    """A second run does no job again."""
    monkeypatch.setattr(results, "cache_for", lambda *args: study / "cache")
    params = load_params(scale="laptop")
    params["adapt"]["steps"] = 1
    before = {f: f.stat().st_mtime_ns for f in (study / "cache" / "rows").glob("*.csv")}
    assert len(before) == 2
    found = measure(study / "real", "development", params, most_pairs=1, networks=["fusionnet"], seeds=[0])
    assert found == (study / "cache", 0)
    assert before == {f: f.stat().st_mtime_ns for f in (study / "cache" / "rows").glob("*.csv")}


def test_cache_knows_scenes_and_settings(study):
    """Other settings, another split or a changed file: another folder."""
    real = study / "real"
    first = cache_for(real, "development", {"steps": 1})
    assert first == cache_for(real, "development", {"steps": 1}) != cache_for(real, "development", {"steps": 2})
    array = np.load(real / "q0_MS.npy")
    np.save(real / "q0_MS.npy", array[:, :-8]), np.save(real / "q0_MS.npy", array)
    assert cache_for(real, "development", {"steps": 1}) != first and ".cache" in first.parts


def test_rows_from_elsewhere_and_reports_without_scenes(study, tmp_path):
    """Row files of another machine become the same tables; their pages need no scene and show no picture."""
    write_results(tmp_path / "again", collect([study / "cache"]), f"{COMMAND} --rows GPU_OUT --out OUT")
    assert (tmp_path / "again" / "metrics.csv").read_bytes() == (study / "out" / "metrics.csv").read_bytes()
    assert "benchmark run PAIRS" in read_results(tmp_path / "again").notes["commands"][2]
    made = make_reports(tmp_path / "again", only=["QB"])
    assert pictures(made[0]) == 0 and "QuickBird" in shown(made[0])
    with pytest.raises(ValueError, match="twice"):
        collect([study / "cache", study / "cache"])


def test_errors_are_one_line(study, tmp_path):
    """Missing folder, missing results, another schema, changed tables, options that exclude each other."""
    with pytest.raises(SystemExit, match="No RR_SCENES.csv in"):
        main(["--real", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="No manifest.json in"):
        main(["--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="No rows in"):
        main(["--rows", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="give --real FOLDER"):
        main(["--out", str(tmp_path / "out"), "--pictures"])
    old = tmp_path / "old"
    write_results(old, read_results(study / "out"))
    with (old / "curves.csv").open("a") as f:
        f.write("\n")
    with pytest.raises(SystemExit, match="not the file of its manifest"):
        main(["--out", str(old)])
    notes = json.loads((old / "manifest.json").read_text()) | {"schema_version": 0}
    (old / "manifest.json").write_text(json.dumps(notes))
    with pytest.raises(SystemExit, match="has schema 0, this is version"):
        main(["--out", str(old)])


def test_simulated_rows_are_refused(study, tmp_path):
    rows = collect([study / "cache"]).rows
    (tmp_path / "rows").mkdir()
    rows.assign(simulated=True, split="simulated").to_csv(tmp_path / "rows" / "a.csv", index=False)
    with pytest.raises(ValueError, match="simulated"):
        collect([tmp_path])


def test_splits_and_bands_stay_apart(study):
    """A held-out copy of the rows is a group of its own, and the tile that tunes is scored by nobody."""
    rows = collect([study / "cache"]).rows
    both = with_bands(pd.concat([rows, rows.assign(split="held-out")], ignore_index=True))
    table = cases(both, "one-shot full", "zero-shot")
    assert table.groupby("split").size().to_dict() == {"development": 1, "held-out": 1}
    assert set(comparable(both)["scene"]) == {"q1"}
    assert set(rows.loc[rows["paradigm"] == "one-shot full", "tuned_on"]) == {"q0"}
