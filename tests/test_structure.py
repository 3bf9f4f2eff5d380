"""The repository keeps its promises: package and notebooks in step, notebooks clean, nothing heavy or foreign in it."""

import ast
import configparser
import json
import re
import subprocess
from pathlib import Path

import pytest

from pansharp_study.study.imports import imported_by_module, module_files
from pansharp_study.study.pipeline import declared

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
STAGES = sorted(p for folder in ("stages", "results") for p in (ROOT / "nbs" / folder).glob("*.ipynb"))


def tracked() -> list[Path]:
    out = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True)
    if out.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / f for f in out.stdout.split("\n") if f and (ROOT / f).is_file()]


def code(cell) -> str:
    return "".join(cell["source"]) if cell["cell_type"] == "code" else ""


def test_package_equals_notebooks(tmp_path):
    """Exporting the notebooks changes nothing."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("settings.ini", "params.yaml", "setup.py", "pyproject.toml", "nbs", "pansharp_study"):
        subprocess.run(["cp", "-r", str(ROOT / name), str(copy / name)], check=True)
    subprocess.run(["nbdev_export"], cwd=copy, check=True, capture_output=True)
    for path in sorted((ROOT / "pansharp_study").rglob("*.py")):
        name = path.relative_to(ROOT)
        assert (copy / name).read_text() == path.read_text(), f"{name}: run nbdev_export"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_is_clean(path):
    """No outputs, no execution counts, no metadata that changes by itself."""
    notebook = json.loads(path.read_text())
    for cell in notebook["cells"]:
        assert not cell.get("outputs") and not cell.get("execution_count"), (
            f"{path.name} holds outputs: run nbdev_clean"
        )
        assert set(cell["metadata"]) <= {"tags"}, f"{path.name}: cell metadata {cell['metadata']}: run nbdev_clean"
    first = "".join(notebook["cells"][0]["source"])
    assert first.startswith("# "), f"{path.name} should begin with a title"


@pytest.mark.parametrize("path", STAGES, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_stage_defines_nothing(path):
    """Stages and report templates call the library; a function in them can't be tested or taught."""
    assert not any(re.search(r"^\s*(def|class) ", code(c), re.M) for c in json.loads(path.read_text())["cells"])


def test_exported_modules_need_no_notebook_tools():
    """Training must run where nbdev, papermill and DVC are absent."""
    heavy = re.compile(r"^(?:from|import) (fastcore|nbdev|papermill|dvc|rioxarray|rasterio|jupyter\w*)\b", re.M)
    for path in (ROOT / "pansharp_study").rglob("*.py"):
        assert not heavy.search(path.read_text()), f"{path.name} imports a tool at the top"


def test_tracked_files_are_small():
    """Everything in git together stays under 32 MiB."""
    total = sum(f.stat().st_size for f in tracked())
    assert total < 32 * 2**20, f"{total / 2**20:.1f} MiB are tracked"


def test_requirements_are_pinned():
    """Every requirement of settings.ini has its version in constraints.txt."""
    parser = configparser.ConfigParser(delimiters=["="], interpolation=None)
    parser.read(ROOT / "settings.ini")
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().split()}
    names = (parser["DEFAULT"]["requirements"] + " " + parser["DEFAULT"]["dev_requirements"]).split()
    for name in names:
        assert re.split(r"[<>=]", name)[0].lower().replace("_", "-") in pinned, name


def test_no_paths_of_a_machine():
    """Nothing tracked names a home folder or a temporary one."""
    bad = re.compile(r"/(?:home|root|Users|work)/[a-z_]\w*/|/tmp/[a-z]\w{3,}/")
    for path in tracked():
        if path.suffix in {
            ".py",
            ".md",
            ".ipynb",
            ".yaml",
            ".ini",
            ".toml",
            ".txt",
            ".cff",
            ".lock",
            ".csv",
        } and path != Path(__file__):
            found = bad.search(path.read_text(errors="ignore"))
            assert not found, f"{path.relative_to(ROOT)}: {found[0]}"


LINK = re.compile(r"\]\(([^)\s#:]+\.(?:ipynb|md|py|csv|json|yaml))(?:#[\w-]*)?\)")


@pytest.mark.parametrize("page", [ROOT / "README.md", *NOTEBOOKS], ids=lambda p: p.stem)
def test_links_lead_to_files(page):
    """Every relative link in prose names a file; reports that are not made yet excepted."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".ipynb":
        text = "\n".join("".join(c["source"]) for c in json.loads(text)["cells"] if c["cell_type"] == "markdown")
    folder = page.parent
    if folder.name == "stages":  # read as a report
        folder = ROOT / "reports" / page.stem if declared(page) else ROOT / "reports"
    for link in LINK.findall(text):
        target = (folder / link).resolve()
        assert target.is_file() or target.is_relative_to(ROOT / "reports"), f"{link} leads nowhere"


def test_the_map_of_the_code_is_right():
    """Each row of `Where is ...?` links to the notebook that defines the names which it gives."""
    table = "".join(json.loads((ROOT / "nbs" / "architecture.ipynb").read_text())["cells"][0]["source"])
    found = re.findall(r"`(\w+)`[^`\]]* in \[[^\]]+\]\(([^)]+)\)", table)
    assert len(found) >= 7
    for name, link in found:
        cells = json.loads((ROOT / "nbs" / link).read_text())["cells"]
        defined = any(re.search(rf"^(?:def|class) {name}\b", code(c), flags=re.M) for c in cells)
        assert defined, f"{link} does not define {name}"


# ---------------------------------------------------------------- rooms: what keeps the code easy to live in

MODULES = module_files()
LIBRARY = [p for p in NOTEBOOKS if p.name[0].isdigit()]


def exports(notebook: Path) -> str | None:
    """The module that a notebook is exported to, if any."""
    found = re.search(
        r"#\| default_exp ([\w.]+)", "".join(code(c) + "\n" for c in json.loads(notebook.read_text())["cells"])
    )
    return found[1] if found else None


def test_reading_order_is_the_order_of_dependency():
    """A notebook's number is larger than those of all notebooks that its module imports: imports go one way."""
    number = {exports(p): p.name.partition("_")[0] for p in LIBRARY}
    assert set(MODULES) == set(number), "one notebook, one module"
    assert len(set(number.values())) == len(number), "each number is given once"
    for name in MODULES:
        for other in imported_by_module(name):
            assert number[other] < number[name], f"{name} ({number[name]}) imports {other} ({number[other]})"


@pytest.mark.parametrize("notebook", LIBRARY, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_notebook_lies_beside_its_module(notebook):
    """Folders of notebooks are the sub-packages; `metrics` and `classical` are the public modules."""
    name = exports(notebook)
    assert notebook.stem.partition("_")[2] == name.rpartition(".")[2]
    if name not in ("core", "metrics", "classical"):
        assert notebook.parent.name == name.partition(".")[0]


@pytest.mark.parametrize("notebook", LIBRARY, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_notebook_has_one_subject(notebook):
    """At most 50 cells, and no exported cell above 40 lines."""
    cells = json.loads(notebook.read_text())["cells"]
    assert len(cells) <= 50, f"{len(cells)} cells"
    for cell in cells:
        if re.match(r"#\|\s*export", code(cell)):
            lines = code(cell).strip().split("\n")
            assert len(lines) - 1 <= 40, f"{len(lines) - 1} lines from {lines[1]!r} on"


@pytest.mark.parametrize("name", MODULES)
def test_module_is_short(name):
    """At most 450 lines."""
    assert len(MODULES[name].read_text().split("\n")) <= 450


@pytest.mark.parametrize("name", MODULES)
def test_one_thing_per_line(name):
    """No more than three names in one assignment of a tuple; no import by a string."""
    tree = ast.parse(MODULES[name].read_text())
    for node in ast.walk(tree):
        targets = node.targets if isinstance(node, ast.Assign) else []
        for target in targets:
            if isinstance(target, ast.Tuple):
                assert len(target.elts) <= 3, f"line {node.lineno}: {ast.unparse(target)}"
        assert not (isinstance(node, ast.Import) and any(a.name == "importlib" for a in node.names)), "importlib"
