"""Released weights: small, what the manifest says, and answering as on the day they were released."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from safetensors import safe_open

import pansharp_study.study.release as release_module
from pansharp_study.core import root
from pansharp_study.networks.pansharpener import NETWORKS
from pansharp_study.networks.zoo import (
    create_model,
    fixed_pair,
    list_models,
    load_pretrained,
    manifest,
    response,
    save_weights,
    sha256_of,
    to_half,
)
from pansharp_study.study.release import card, corpus_of, main, overview, release

FOLDER = root() / "weights"
ENTRIES = manifest()["weights"]
BY_FILE = pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: e["file"])


@BY_FILE
def test_file_is_small_and_the_one_listed(entry):
    path = FOLDER / entry["file"]
    assert path.stat().st_size == entry["bytes"] <= 2.5e6
    assert sha256_of(path) == entry["sha256"]
    with safe_open(path, "pt") as f:
        header = json.loads(f.metadata()["model"])
        assert all(f.get_tensor(k).dtype == torch.float16 for k in f.keys())
    assert (header["name"], header["bands"] or None) == (entry["network"], entry["bands"]) and header["options"].items() <= entry["recipe"].items()
    assert header["commit"] == entry["commit"]


@BY_FILE
def test_answers_as_when_released(entry):
    """Weights and today's code of their network belong together."""
    model = load_pretrained(entry["network"], entry["bands"])
    assert all(p.dtype == torch.float32 for p in model.parameters()) and not model.training
    found, expected = np.array(response(model)), np.array(entry["response"])
    assert np.abs(found - expected).max() <= 1e-3 * np.abs(expected).max(), (found, expected)


@BY_FILE
def test_adds_less_than_it_was_given(entry):
    model = load_pretrained(entry["network"], entry["bands"])
    ms, pan = fixed_pair(entry["bands"] or 5)
    with torch.no_grad():
        fused = model(ms, pan)
        affine = model(3 * ms + 100, 0.5 * pan + 40)
    assert fused.shape == (1, entry["bands"] or 5, 96, 96) and fused.isfinite().all()
    assert (affine - (3 * fused + 100)).abs().max() < 0.05 * fused.std() * 3, "the scale of DN does not matter"


def test_manifest_names_every_file_and_source():
    made = manifest()
    assert {p.name for p in FOLDER.glob("*.safetensors")} == {e["file"] for e in ENTRIES}
    assert sum(e["bytes"] for e in ENTRIES) < 12 * 2**20
    for e in ENTRIES:
        assert all(e[k] for k in ("network", "recipe", "parameters", "sha256", "steps", "samples", "seconds", "device", "commit", "response", "note"))
        assert re.fullmatch("[0-9a-f]{40}", e["commit"]) and sum(e["corpus"]["picture_licences"].values()) == e["corpus"]["pictures"] and e["corpus"]["real_target_sensor_pixels"] == "none"
        assert (FOLDER / e["file"]).with_suffix(".md").read_text(encoding="utf-8") == card(e)
    assert set(made["best"]) <= {e["network"] for e in ENTRIES}
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert overview(ENTRIES) in text


def test_the_preferred_networks_are_freely_licensed():
    """The default model uses only CC0, CC-BY and public-domain pictures."""
    for e in ENTRIES:
        if e["network"] == manifest()["best"][0]:
            assert all(k.startswith(("CC0", "CC-BY-4", "CC-BY-3", "CC-BY-2", "public-domain", "MIT", "BSD", "Apache")) for k in e["corpus"]["picture_licences"])


FACTS = {"seconds": 2.5, "device": "cpu", "commit": "a" * 40}


def trained(folder, name="fusionnet_4", bands=4, width=8, **notes):
    """A weight file as the training leaves it, with summary and log beside it."""
    path = folder / "models" / f"{name}.safetensors"
    save_weights(create_model("fusionnet", bands=bands, width=width, depth=1), path, steps=7)
    for place, facts in (("metrics/pretrain/{}.json", {"steps": 7, "samples": 56, "train_loss": 0.5}), ("logs/pretrain_{}.json", {"seconds": 3.0, "device": "H100", **notes})):
        file = folder / place.format(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(facts))
    return path


def corpus(tmp_path):
    (tmp_path / "pictures.csv").write_text("file,kind,licence,licence_class,split\na,photograph,CC0-1.0,permissive,pretrain\nb,photograph,CC-BY-SA-4.0,share-alike,pretrain\nc,photograph,CC0-1.0,permissive,benchmark\n")
    return corpus_of([tmp_path / "pictures.csv"])


def test_corpus_is_counted_by_licence(tmp_path):
    assert corpus(tmp_path)["picture_licences"] == {"CC0-1.0": 1, "CC-BY-SA-4.0": 1}
    fewer = corpus_of([tmp_path / "pictures.csv"], classes=("permissive",))
    assert fewer["pictures"] == 1 and fewer["listings"] == {"pictures.csv": sha256_of(tmp_path / "pictures.csv")}


def test_release_collects_what_the_training_wrote(tmp_path):
    out = tmp_path / "weights"
    (entry,) = release([trained(tmp_path)], note="First.", corpus=corpus(tmp_path), folder=out, commit="b" * 40)
    assert (entry["seconds"], entry["device"], entry["samples"], entry["train_loss"], entry["commit"]) == (3.0, "H100", 56, 0.5, "b" * 40)
    assert entry["source_sha256"] == sha256_of(tmp_path / "models" / "fusionnet_4.safetensors") and entry["dtype"] == "float16" and entry["bytes"] == (out / entry["file"]).stat().st_size
    assert load_pretrained("fusionnet", 4, folder=out).recipe == entry["recipe"] and "bands=4" in (out / "fusionnet_4.md").read_text()
    with pytest.raises(ValueError, match="unknown commit.*--commit"):
        release([trained(tmp_path)], note="Second.", corpus=corpus(tmp_path), folder=out)
    assert manifest(out)["weights"][0]["note"] == "First."


def test_release_replaces_and_checks_sizes(tmp_path, monkeypatch):
    out, listed = tmp_path / "weights", corpus(tmp_path)
    release([trained(tmp_path), trained(tmp_path, "fusionnet_8", 8)], note="First.", corpus=listed, folder=out, best=["fusionnet"], **FACTS)
    release([trained(tmp_path, "wider_4", width=12)], note="Wider.", corpus=listed, folder=out, **FACTS)
    assert [(e["file"], e["note"]) for e in manifest(out)["weights"]] == [("wider_4.safetensors", "Wider."), ("fusionnet_8.safetensors", "First.")]
    assert not (out / "fusionnet_4.safetensors").exists() and not (out / "fusionnet_4.md").exists() and "wider_4" in (out / "README.md").read_text()
    before = (out / "manifest.json").read_text()
    for limit, message in (("LARGEST", "smaller network"), ("LARGEST_SUM", "leave some out")):
        with monkeypatch.context() as patch:
            patch.setattr(release_module, limit, 1000)
            with pytest.raises(ValueError, match=message):
                release([trained(tmp_path)], note="Large.", corpus=listed, folder=out, **FACTS)
    with pytest.raises(ValueError, match="two files"):
        release([trained(tmp_path), trained(tmp_path, "twin")], note="Twice.", corpus=listed, folder=out, **FACTS)
    assert (out / "manifest.json").read_text() == before


def test_weights_for_any_number_of_bands(tmp_path):
    free = [n for n in list_models() if getattr(NETWORKS[n], "any_bands", False)]
    assert free
    path = tmp_path / "models" / f"{free[0]}_any.safetensors"
    save_weights(create_model(free[0]), path, steps=1, samples=8)
    (entry,) = release([path], note="Any.", corpus=corpus(tmp_path), folder=tmp_path / "weights", **FACTS)
    assert entry["bands"] is None and len(entry["response"]) == 8 and "any number" in (tmp_path / "weights" / f"{free[0]}_any.md").read_text()
    for bands in (None, 3, 8):
        assert load_pretrained(free[0], bands, folder=tmp_path / "weights").bands is None
    with pytest.raises(ValueError, match="No released weights of 'fusionnet' with 4 bands"):
        load_pretrained("fusionnet", 4, folder=tmp_path / "weights")


def test_command_line_releases(tmp_path, capsys):
    path = trained(tmp_path, commit="c" * 40)
    corpus(tmp_path)
    main(["release", str(path), "--note", "By hand.", "--corpus", str(tmp_path / "pictures.csv"), "--classes", "permissive", "--folder", str(tmp_path / "weights"), "--best", "fusionnet"])
    assert "fusionnet_4.safetensors: 0.0" in capsys.readouterr().out and manifest(tmp_path / "weights")["weights"][0]["corpus"]["pictures"] == 1
    with pytest.raises(SystemExit, match="No weights"):
        main(["release", str(tmp_path / "no.safetensors"), "--note", "x", "--folder", str(tmp_path / "weights")])


def test_create_model_pretrained():
    one, other = create_model("fusionnet", bands=4, pretrained=True), load_pretrained("fusionnet", 4)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values()))
    fresh = create_model("fusionnet", bands=4, guided=True, width=48, depth=6)
    assert not all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), fresh.state_dict().values()))
    for options in ({"guided": True}, {"width": 48}):
        with pytest.raises(ValueError, match="leave out"):
            create_model("fusionnet", bands=4, pretrained=True, **options)


def test_refuses_other_files(tmp_path):
    folder = tmp_path / "weights"
    shutil.copytree(FOLDER, folder)
    path, name = folder / ENTRIES[0]["file"], (ENTRIES[0]["network"], ENTRIES[0]["bands"])
    torch.save({"a": 1}, path)  # a pickle under a released name is never opened
    with pytest.raises(ValueError, match="not the released file.*git checkout weights"):
        load_pretrained(*name, folder=folder)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="git checkout weights"):
        load_pretrained(*name, folder=folder)
    with pytest.raises(FileNotFoundError, match="manifest.json"):
        load_pretrained("fusionnet", 4, folder=tmp_path)
    with pytest.raises(ValueError, match="fusionnet with 4"):
        load_pretrained("fusionnet", 7)


def test_half_precision_refuses_what_does_not_fit(tmp_path):
    model = create_model("fusionnet", bands=4, width=8, depth=1)
    save_weights(model, tmp_path / "full.safetensors")
    to_half(model, tmp_path / "half.safetensors")
    assert (tmp_path / "half.safetensors").stat().st_size < 0.7 * (tmp_path / "full.safetensors").stat().st_size
    for value in (1e5, float("nan")):
        model.network.head[-1].bias.data[0] = value
        with pytest.raises(ValueError, match="16 bits"):
            to_half(model, tmp_path / "bad.safetensors")
