"""Releasing weights: facts are collected, sizes and names checked, manifest, cards and overview written."""

import json
import re

import pytest

import pansharp_study.study.release as release_module
from pansharp_study.core import root
from pansharp_study.networks.registry import NETWORKS
from pansharp_study.networks.zoo import create_model, list_models, load_pretrained, manifest, save_weights, sha256_of
from pansharp_study.study.release import card, corpus_of, main, overview, release

FACTS = {"seconds": 2.5, "device": "cpu", "commit": "a" * 40}


def trained(folder, name="fusionnet_4", bands=4, width=8, **notes):
    """A weight file as the training leaves it, with summary and log beside it."""
    path = folder / "models" / f"{name}.safetensors"
    save_weights(create_model("fusionnet", bands=bands, width=width, depth=1), path, steps=7)
    summary, log = {"steps": 7, "samples": 56, "train_loss": 0.5}, {"seconds": 3.0, "device": "H100", **notes}
    for place, facts in ((f"metrics/pretrain/{name}/metrics.json", summary), (f"logs/pretrain_{name}.json", log)):
        file = folder / place
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(facts))
    return path


def corpus(tmp_path):
    rows = [
        "file,kind,licence,licence_class,split",
        "a,photograph,CC0-1.0,permissive,pretrain",
        "b,photograph,CC-BY-SA-4.0,share-alike,pretrain",
        "c,photograph,CC0-1.0,permissive,benchmark",
    ]
    (tmp_path / "pictures.csv").write_text("\n".join(rows) + "\n")
    return corpus_of([tmp_path / "pictures.csv"])


def test_corpus_is_counted_by_licence(tmp_path):
    assert corpus(tmp_path)["picture_licences"] == {"CC0-1.0": 1, "CC-BY-SA-4.0": 1}
    fewer = corpus_of([tmp_path / "pictures.csv"], classes=("permissive",))
    assert fewer["pictures"] == 1 and fewer["listings"] == {"pictures.csv": sha256_of(tmp_path / "pictures.csv")}


def test_release_collects_what_the_training_wrote(tmp_path):
    out = tmp_path / "weights"
    (entry,) = release([trained(tmp_path)], note="First.", corpus=corpus(tmp_path), folder=out, commit="b" * 40)
    written = {"seconds": 3.0, "device": "H100", "samples": 56, "train_loss": 0.5}
    wanted = written | {"commit": "b" * 40, "dtype": "float16"}
    assert wanted.items() <= entry.items()
    assert entry["source_sha256"] == sha256_of(tmp_path / "models" / "fusionnet_4.safetensors")
    assert entry["bytes"] == (out / entry["file"]).stat().st_size
    assert load_pretrained("fusionnet", 4, folder=out).recipe == entry["recipe"]
    assert "bands=4" in (out / "fusionnet_4.md").read_text()
    with pytest.raises(ValueError, match="unknown commit.*--commit"):
        release([trained(tmp_path)], note="Second.", corpus=corpus(tmp_path), folder=out)
    assert manifest(out)["weights"][0]["note"] == "First."


def test_release_replaces_and_checks_sizes(tmp_path, monkeypatch):
    out, listed = tmp_path / "weights", corpus(tmp_path)
    common = {"corpus": listed, "folder": out, **FACTS}
    release([trained(tmp_path), trained(tmp_path, "fusionnet_8", 8)], note="First.", best=["fusionnet"], **common)
    release([trained(tmp_path, "wider_4", width=12)], note="Wider.", **common)
    notes = {e["file"]: e["note"] for e in manifest(out)["weights"]}
    assert list(notes.items()) == [("wider_4.safetensors", "Wider."), ("fusionnet_8.safetensors", "First.")]
    assert not (out / "fusionnet_4.safetensors").exists() and not (out / "fusionnet_4.md").exists()
    assert "wider_4" in (out / "README.md").read_text()
    before = (out / "manifest.json").read_text()
    for limit, message in (("LARGEST", "smaller network"), ("LARGEST_SUM", "leave some out")):
        with monkeypatch.context() as patch:
            patch.setattr(release_module, limit, 1000)
            with pytest.raises(ValueError, match=message):
                release([trained(tmp_path)], note="Large.", **common)
    with pytest.raises(ValueError, match="two files"):
        release([trained(tmp_path), trained(tmp_path, "twin")], note="Twice.", **common)
    assert (out / "manifest.json").read_text() == before


def test_weights_for_any_number_of_bands(tmp_path):
    free = next(n for n in list_models() if NETWORKS[n].any_bands)
    path = tmp_path / "models" / f"{free}_any.safetensors"
    save_weights(create_model(free), path, steps=1, samples=8)
    (entry,) = release([path], note="Any.", corpus=corpus(tmp_path), folder=tmp_path / "weights", **FACTS)
    assert entry["bands"] is None and len(entry["response"]) == 8
    assert "any number" in (tmp_path / "weights" / f"{free}_any.md").read_text()
    for bands in (None, 3, 8):
        assert load_pretrained(free, bands, folder=tmp_path / "weights").bands is None
    with pytest.raises(ValueError, match="No released weights of 'fusionnet' with 4 bands"):
        load_pretrained("fusionnet", 4, folder=tmp_path / "weights")


def test_command_line_releases(tmp_path, capsys):
    path = trained(tmp_path, commit="c" * 40)
    corpus(tmp_path)
    folder = tmp_path / "weights"
    call = ["--corpus", str(tmp_path / "pictures.csv"), "--classes", "permissive", "--folder", str(folder)]
    main(["release", str(path), "--note", "By hand.", *call, "--best", "fusionnet"])
    assert "fusionnet_4.safetensors: 0.0" in capsys.readouterr().out
    assert manifest(folder)["weights"][0]["corpus"]["pictures"] == 1
    with pytest.raises(SystemExit, match="No weights"):
        main(["release", str(tmp_path / "no.safetensors"), "--note", "x", "--folder", str(tmp_path / "weights")])


def test_manifest_names_every_file_and_source():
    folder, made = root() / "weights", manifest()
    entries = made["weights"]
    assert {p.name for p in folder.glob("*.safetensors")} == {e["file"] for e in entries}
    assert sum(e["bytes"] for e in entries) < 12 * 2**20
    needed = ("network", "recipe", "parameters", "sha256", "steps", "samples", "seconds", "device", "response", "note")
    for e in entries:
        corpus = e["corpus"]
        assert all(e[k] for k in needed) and re.fullmatch("[0-9a-f]{40}", e["commit"])
        assert sum(corpus["picture_licences"].values()) == corpus["pictures"]
        assert corpus["real_target_sensor_pixels"] == "none"
        assert (folder / e["file"]).with_suffix(".md").read_text(encoding="utf-8") == card(e)
    assert set(made["best"]) <= {e["network"] for e in entries}
    assert overview(entries) in (folder / "README.md").read_text(encoding="utf-8")
