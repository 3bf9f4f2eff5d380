"""The site: a changed function changes its page, and that page alone; reports and skipped cells are not executed."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "nbs/index": ["# Home\n\nRead [one](optics/01_one.ipynb) and [a report](../reports/report/QB.ipynb)."],
    "nbs/optics/01_one": [
        "# one\n> Uses a function of the package.",
        "from pansharp_study.core import at_scale",
        "print('answer', at_scale({'laptop': 41, 'h100': 43}, 'laptop'))",
        "#| eval: false\nraise RuntimeError('executed')",
        "#| slow\nraise RuntimeError('executed')",
        "#| cuda\nraise RuntimeError('executed')",
    ],
    "nbs/optics/02_two": ["# two", "import time\n\nprint('clock', time.time_ns())"],
    "nbs/tutorials/one_pair": ["# Tutorial", "print(6 * 7)"],
}


def notebook(sources: list[str], output: str = "") -> str:
    """A notebook whose first cell is Markdown and whose others are code."""
    stream = [{"output_type": "stream", "name": "stdout", "text": output}] if output else []
    cells = [{"cell_type": "markdown", "id": "c0", "metadata": {}, "source": sources[0]}]
    for i, source in enumerate(sources[1:], 1):
        cell = {"cell_type": "code", "execution_count": None, "id": f"c{i}", "metadata": {}, "outputs": stream}
        cells.append(cell | {"source": source})
    return json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A copy of the project with four small pages and one executed report."""
    folder = tmp_path_factory.mktemp("site")
    for name in ("docs", "pansharp_study"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("settings.ini", "params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, folder)
    for name, sources in PAGES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.ipynb").write_text(notebook(sources))
    report = folder / "reports" / "report" / "QB.ipynb"
    report.parent.mkdir(parents=True)
    report.write_text(notebook(["# Report: one satellite", "raise RuntimeError('executed')"], "stored output"))
    return folder


def build(project: Path) -> str:
    """Build the site of a project; return what the command prints."""
    env = {key: value for key, value in os.environ.items() if key != "PANSHARP_STUDY_ROOT"}
    command = [sys.executable, "docs/build.py"]
    done = subprocess.run(command, cwd=project, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def words(project: Path, page: str) -> str:
    """The text of a page."""
    text = (project / "_site" / f"{page}.html").read_text(encoding="utf-8")
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", text))


def test_a_changed_function_changes_its_page(project):
    """Pages that use the function are executed again, others come from the cache."""
    assert "executing 4 of 4" in build(project)
    assert "answer 41" in words(project, "nbs/optics/01_one")
    clock = re.search(r"clock \d+", words(project, "nbs/optics/02_two"))[0]
    assert "executing 0 of 4" in build(project)
    core = project / "pansharp_study" / "core.py"
    core.write_text(core.read_text().replace("        return value[scale]\n", "        return value[scale] + 1\n"))
    assert "executing 1 of 4" in build(project)
    assert "answer 42" in words(project, "nbs/optics/01_one")
    assert clock in words(project, "nbs/optics/02_two")


def test_nothing_is_executed_that_should_not(project):
    """An executed report is shown as it is, and cells marked `eval: false`, slow or cuda show their code only."""
    report = words(project, "reports/report/QB")
    assert "Report: QuickBird" in report and "stored output" in report
    assert words(project, "nbs/optics/01_one").count("executed") == 3
    for page in ("nbs/optics/01_one", "reports/report/QB"):
        assert "Traceback" not in words(project, page)


def test_the_navigation_holds_every_page(project):
    """The start page lists results, tutorials and library in this order; `_site/index.html` leads to it."""
    home = words(project, "nbs/index")
    places = [home.index(word) for word in ("Results", "Simulated scenes", "Tutorials", "Library", "Optics")]
    assert places == sorted(places)
    assert "nbs/index.html" in (project / "_site" / "index.html").read_text()
