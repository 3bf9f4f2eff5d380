"""Every table of results/ says what it is, where it was measured, and how to measure it again."""

import json
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = sorted(p for p in (ROOT / "results").iterdir() if p.is_dir())


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda p: p.name)
def test_manifest_says_how_to_remake(folder):
    """Each folder has a manifest with date, commit, machine, its files, and commands whose program exists."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["machine"] and manifest["commit"] and re.fullmatch(r"\d{4}-\d\d-\d\d", manifest["date"])
    tables = {p.name for p in folder.iterdir() if p.is_file() and p.name != "manifest.json"}
    assert tables == set(manifest["files"])
    assert manifest["commands"]
    for command in manifest["commands"]:
        words = command.split()
        if "-m" in words:
            assert find_spec(words[words.index("-m") + 1]), command
        else:
            scripts = [word for word in words if word.endswith(".py")]
            assert scripts and all((ROOT / script).is_file() for script in scripts), command
