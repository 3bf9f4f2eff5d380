"""Released weights: small, as the manifest says, with the output of the day of their release; the default network."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors import safe_open

import pansharp_study.networks.zoo as zoo
from pansharp_study.core import root
from pansharp_study.networks.zoo import (
    create_model,
    current_options,
    default_model,
    fixed_pair,
    load_pretrained,
    manifest,
    response,
    save_weights,
    sha256_of,
    to_half,
)

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
    assert (header["name"], header["bands"] or None) == (entry["network"], entry["bands"])
    assert current_options(header["options"]).items() <= entry["recipe"].items()
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


def test_the_preferred_networks_are_freely_licensed():
    """The default model uses only CC0, CC-BY and public-domain pictures."""
    free = ("CC0", "CC-BY-4", "CC-BY-3", "CC-BY-2", "public-domain", "MIT", "BSD", "Apache")
    for e in ENTRIES:
        if e["network"] == manifest()["best"][0]:
            assert all(licence.startswith(free) for licence in e["corpus"]["picture_licences"])


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


def test_default_model(monkeypatch):
    """The first preferred network that fits the number of bands; else a classical method, with a warning."""
    entry = {"network": "fusionnet", "bands": 4}
    free = {"network": "any", "bands": None}
    monkeypatch.setattr(zoo, "manifest", lambda: {"best": ["fusionnet"], "weights": [entry]})
    assert default_model(4) == "fusionnet"
    with pytest.warns(UserWarning, match="no released network supports 5 bands"):
        assert default_model(5) == "MTF-GLP-FS"
    monkeypatch.setattr(zoo, "manifest", lambda: {"best": ["any", "fusionnet"], "weights": [entry, free]})
    assert default_model(5) == default_model(4) == "any"
