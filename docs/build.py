"""Build the offline site: python docs/build.py -> _site/index.html.

The site mirrors the repository (nbs/, reports/, results/NAME/reports/), so that links between notebooks work in both.

1. Library notebooks and tutorials are committed without outputs. Those whose text, modules or data have changed are
   executed, each in a fork of a process that has imported PyTorch already.
2. They and the executed reports become pages: directives hidden, imports folded, a card under every exported function.
3. Sphinx writes HTML. Nothing is fetched.
"""

import importlib
import json
import os
import re
import shutil
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path

from markup import card, prose

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
NBS, SITE, CACHE = ROOT / "nbs", ROOT / "_site", ROOT / ".cache" / "docs"
SOURCE, EXECUTED = CACHE / "source", CACHE / "executed"
SKIPPED = {"eval", "slow", "cuda"}  # cells with these directives are shown, not executed
SECONDS, WORKERS = 900, 2  # longest execution of a cell; notebooks at a time
PRELOADED = ["torch", "pandas", "scipy.signal", "scipy.optimize", "xarray", "matplotlib.pyplot", "execnb.shell"]
TUTORIALS = (  # reading order
    "one_pair",
    "protocol",
    "gallery",
    "own_pair",
    "new_sensor",
    "new_network",
    "new_index",
    "own_ablation",
    "speed",
)
REPORTS = ("compare", "report/*", "acquire", "synthesize_pairs", "pretrain/*", "adapt/*", "*")  # reading order
NAMES = {
    "WV2": "WorldView-2",
    "WV3": "WorldView-3",
    "WV4": "WorldView-4",
    "QB": "QuickBird",
    "GF2": "GaoFen-2",
    "WV2-real": "WorldView-2, real pair",
    "fusionnet": "FusionNet",
    "panformer": "PanFormer",
    "panmamba": "PanMamba",
}


def read(path: Path) -> list[dict]:
    """Cells of a notebook, sources joined."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell | {"source": "".join(cell["source"])} for cell in cells]


def directives(cell: dict) -> set[str]:
    """First words of the `#|` lines of a code cell: export, hide, default_exp, eval ..."""
    lines = re.findall(r"^#\|\s*([^\s:]+)", cell["source"], flags=re.MULTILINE)
    return set(lines) if cell["cell_type"] == "code" else set()


def address(path: Path) -> str:
    """What Sphinx calls a page."""
    return path.relative_to(ROOT).with_suffix("").as_posix()


def lessons() -> list[Path]:
    """Notebooks to execute, in reading order: the library by number, tutorials, then the pages above them."""
    library = sorted(NBS.rglob("[0-9]*.ipynb"), key=lambda path: path.name)
    tutorials = sorted((NBS / "tutorials").glob("*.ipynb"), key=lambda path: (*TUTORIALS, path.stem).index(path.stem))
    found = [*library, *tutorials, *sorted(NBS.glob("[a-z]*.ipynb"))]
    return [path for path in found if ".ipynb_checkpoints" not in path.parts]


# ---- execution


def content(*patterns: str) -> bytes:
    """Names and bytes of files of the project."""
    files = sorted(path for pattern in patterns for path in ROOT.glob(pattern) if path.is_file())
    return b"".join(path.relative_to(ROOT).as_posix().encode() + path.read_bytes() for path in files)


def executed_copies() -> dict[Path, Path]:
    """Where the executed copy of each notebook is kept: its name is a hash of all that its outputs depend on."""
    from pansharp_study.study.imports import imported, module_files, with_dependencies

    data = content("params.yaml", "data/*.*", "results/*/*.*")
    study = content("metrics/**/*.*", "models/*.safetensors", "weights/*.json", "nbs/**/[0-9]*.ipynb", "dvc.yaml")
    files, copies = module_files(), {}
    for path in lessons():
        code = "\n".join(cell["source"] for cell in read(path) if cell["cell_type"] == "code")
        modules = sorted(with_dependencies(imported(re.sub(r"^[%!].*", "", code, flags=re.MULTILINE))))
        parts = [path.read_bytes(), data, *(files[name].read_bytes() for name in modules)]
        if not path.name[0].isdigit():  # tutorials and overviews show results
            parts.append(study)
        copies[path] = EXECUTED / f"{path.stem}-{sha256(b''.join(parts)).hexdigest()[:16]}.ipynb"
    return copies


def execute(path: Path, copy: Path) -> str:
    """Run one notebook in its folder and keep it with its outputs; say how long it took, or what went wrong."""
    from execnb.shell import CaptureShell

    start, name, unfinished = time.perf_counter(), address(path), copy.with_suffix(".unfinished")
    os.chdir(path.parent)
    shell = CaptureShell(timeout=SECONDS)
    try:
        shell.execute(path, unfinished, exc_stop=True, preproc=lambda cell: bool(directives(cell) & SKIPPED))
    except Exception as error:
        return f"  {name:40s} FAILED: {type(error).__name__}: {error}"
    unfinished.replace(copy)
    return f"  {name:40s} {time.perf_counter() - start:5.1f} s"


def execute_stale(copies: dict[Path, Path]) -> bool:
    """Execute what is not in the cache, the longest first; whether every notebook has its executed copy then."""
    stale = sorted((path for path in copies if not copies[path].is_file()), key=lambda path: -path.stat().st_size)
    print(f"docs: executing {len(stale)} of {len(copies)} notebooks, {WORKERS} at a time", flush=True)
    EXECUTED.mkdir(parents=True, exist_ok=True)
    for old in set(EXECUTED.iterdir()) - set(copies.values()):
        old.unlink()
    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with ProcessPoolExecutor(WORKERS, mp_context=context, max_tasks_per_child=1) as pool:
        for job in as_completed([pool.submit(execute, path, copies[path]) for path in stale]):
            print(job.result(), flush=True)
    return all(copy.is_file() for copy in copies.values())


# ---- pages


def write(name: str, page: str | list[dict]):
    """Write a page, Markdown or cells."""
    if isinstance(page, list):
        for i, cell in enumerate(page):
            page[i] = {"metadata": {}, **cell, "id": f"cell-{i}"}
            if cell["cell_type"] == "code":
                outputs = [output for output in cell["outputs"] if output.get("name") != "stderr"]
                page[i] |= {"outputs": outputs, "execution_count": None}
        kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
        page = json.dumps({"cells": page, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5})
    path = SOURCE / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


def lesson(path: Path, cells: list[dict], home, symbols: dict[str, str]) -> list[dict]:
    """Cells of a library notebook or tutorial as a reader wants them; `home` is the module that it is exported to."""
    page, up = [], "../" * address(path).count("/")
    for cell in cells:
        source, marks = cell["source"], directives(cell)
        if marks & {"hide", "default_exp"} or not source.strip():
            continue
        if cell["cell_type"] == "markdown":
            page.append(prose(source, path.parent, symbols, up))
            continue
        for output in cell["outputs"]:
            if text := output.get("data", {}).get("text/markdown"):
                output["data"]["text/markdown"] = prose("".join(text), path.parent)["source"]
        code = re.sub(r"^#\|.*\n?", "", source, flags=re.MULTILINE).strip("\n")
        lines = re.sub(r"\([^)]*\)|#.*", "", code).split("\n")
        imports = all(re.match(r"import |from |\s*$", line) for line in lines)
        tags = {"library": "export" in marks, "hide-input": imports, "remove-input": "echo" in marks}
        prompts = {"code_prompt_show": "Imports", "code_prompt_hide": "Imports"} if imports else {}
        metadata = {"tags": [tag for tag, wanted in tags.items() if wanted], "mystnb": prompts}
        page.append(cell | {"source": code, "metadata": metadata})
        names = re.findall(r"^(?:def|class) ([A-Za-z]\w*)", source, flags=re.MULTILINE) if "export" in marks else []
        if names:
            cards = "\n".join(card(name, getattr(home, name)) for name in names)
            page.append({"cell_type": "markdown", "source": f"```{{raw}} html\n{cards}\n```"})
    return page


def report(path: Path) -> list[dict]:
    """An executed report, never executed again: code folded, parameters left out, its satellite or network named."""
    cells = [c for c in read(path) if not {"parameters", "injected-parameters"} & set(c["metadata"].get("tags", []))]
    folded = {"metadata": {"tags": ["hide-input"]}}
    page = [c | folded if c["cell_type"] == "code" else prose(c["source"], path.parent) for c in cells]
    name = NAMES.get(path.stem, path.stem)
    page[0]["source"] = re.sub(r"\A(# .*)one (?:satellite|network)", rf"\g<1>{name}", page[0]["source"])
    return page


def section(name: str, title: str, pages: dict[str, list[dict]]) -> str:
    """Write pages, and an overview of their titles and promises; return its entry for the navigation."""
    lines, entries = [], []
    for page, cells in pages.items():
        heading = re.match(r"# (.+)(?:\n+> (.+))?", cells[0]["source"])
        lines.append(f"- [{heading[1]}](/{page}.ipynb)" + (f": {heading[2]}" if heading[2] else ""))
        entries.append(f"{heading[1]} </{page}>")
        write(f"{page}.ipynb", cells)
    write(f"{name}.md", "\n".join([f"# {title}", "", *lines, "", "```{toctree}", ":hidden:", "", *entries, "```"]))
    return f"{title} </{name}>"


def write_pages(copies: dict[Path, Path]):
    """The source folder for Sphinx: pages in the repository's layout, and the navigation."""
    shutil.rmtree(SOURCE, ignore_errors=True)
    homes, symbols, groups, results = {}, {}, {}, []
    for path in copies:
        if exported := re.search(r"#\| *default_exp ([\w.]+)", path.read_text(encoding="utf-8")):
            homes[path] = importlib.import_module(f"pansharp_study.{exported[1]}")
            for name in getattr(homes[path], "__all__", []):
                forms = [f"{exported[1]}.{name}"] + [name] * ("_" in name or name[0].isupper())
                symbols |= dict.fromkeys(forms, f"{address(path)}.html#{name}")
    for path, copy in copies.items():
        page = lesson(path, read(copy), homes.get(path), symbols)
        groups.setdefault(path.parent.name, {})[address(path)] = page
    for folder in [ROOT / "reports", *sorted((ROOT / "results").glob("*/reports"))]:
        made = dict.fromkeys(path for pattern in REPORTS for path in sorted(folder.glob(f"{pattern}.ipynb")))
        title = "Simulated scenes" if folder.parent == ROOT else f"Real scenes ({folder.parent.name})"
        reports = {address(path): report(path) for path in made if ".running" not in path.name}
        results.append(section(f"{address(folder)}/index", title, reports))
    top = groups.pop("nbs")
    first = top.pop("nbs/index")
    for name, page in top.items():
        write(f"{name}.ipynb", page)
    *library, tutorials = [section(f"nbs/{group}/index", group.capitalize(), groups[group]) for group in groups]
    overview = [f"/{name}" for name in reversed(top)]
    trees = {"Results": results, "Tutorials": [tutorials], "Library": [*overview, *library]}
    for caption, entries in trees.items():
        tree = "\n".join(["```{toctree}", f":caption: {caption}", ":hidden:", "", *entries, "```"])
        first.append({"cell_type": "markdown", "source": tree})
    write("nbs/index.ipynb", first)


def main() -> int:
    """Execute, write pages, run Sphinx; not 0 when a notebook failed or Sphinx warned."""
    start = time.perf_counter()
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    os.environ |= {"PYTHONPATH": str(ROOT), "MPLBACKEND": "agg", "TQDM_DISABLE": "1", "PYTHONWARNINGS": "ignore"}
    os.environ |= {"IPYTHONDIR": str(CACHE / "ipython"), "JUPYTER_PLATFORM_DIRS": "1"}
    (CACHE / "ipython").mkdir(parents=True, exist_ok=True)
    sys.path.insert(0, str(ROOT))
    copies = executed_copies()
    if not execute_stale(copies):
        print("docs: no site, because a notebook failed", file=sys.stderr)
        return 1
    write_pages(copies)
    from sphinx.cmd.build import main as sphinx

    shutil.rmtree(SITE, ignore_errors=True)
    code = sphinx(
        [
            "-q",
            "-E",
            "-W",
            "--keep-going",
            "-j",
            str(WORKERS),
            "-c",
            str(DOCS),
            "-d",
            str(CACHE / "doctrees"),
            str(SOURCE),
            str(SITE),
        ]
    )
    refresh = '<meta http-equiv="refresh" content="0; url=nbs/index.html">'
    (SITE / "index.html").write_text(f"<!doctype html>{refresh}\n", encoding="utf-8")
    pages = len(list(SITE.rglob("*.html")))
    print(f"docs: {pages} pages in {time.perf_counter() - start:.0f} s: open _site/index.html")
    return code


if __name__ == "__main__":
    sys.exit(main())
