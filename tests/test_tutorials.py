"""`nbdev_test`, the second step of `make test`, executes all tutorials; this checks that it leaves none of them out."""

import json
from pathlib import Path

import pytest
from nbdev.doclinks import nbglob

NBS = Path(__file__).resolve().parents[1] / "nbs"
TUTORIALS = sorted((NBS / "tutorials").glob("*.ipynb"))


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda p: p.stem)
def test_tutorial_is_executed(path):
    """It is among the notebooks that nbdev tests, and no cell and no notebook is marked to be skipped."""
    assert path.resolve() in {Path(p).resolve() for p in nbglob(NBS)}
    assert not (path.parent / ".notest").exists()
    for cell in json.loads(path.read_text())["cells"]:
        text = "".join(cell["source"])
        assert "skip_exec" not in text
        assert not (cell["cell_type"] == "code" and text.startswith(("#| eval: false", "#| slow", "#| cuda")))
