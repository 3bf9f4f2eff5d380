"""Build the offline site: python docs/build.py -> _site/index.html.

The site mirrors the repository (nbs/, reports/, results/NAME/reports/), so that links between notebooks work in both.

1. Library notebooks and tutorials are committed without outputs. Those whose text, modules or data have changed are executed, each in a fork of a process
   that has imported PyTorch already: one kernel per page, as myst-nb starts them, takes about twice the time in all.
2. They and the executed reports become pages: directives hidden, imports folded, a reference card under every exported function.
3. Sphinx writes HTML. Nothing is fetched.
"""

from __future__ import annotations

import html
import importlib
import inspect
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

ROOT = Path(__file__).resolve().parents[1]
NBS, CACHE = ROOT / "nbs", ROOT / ".cache" / "docs"
SOURCE, EXECUTED, SITE = CACHE / "source", CACHE / "executed", ROOT / "_site"
TUTORIALS = ("one_pair", "protocol", "gallery", "new_sensor", "own_pair", "own_ablation", "speed")  # in reading order
NAMES = {"WV2": "WorldView-2", "WV3": "WorldView-3", "WV4": "WorldView-4", "IKONOS": "IKONOS", "QB": "QuickBird", "GF2": "GaoFen-2", "WV2-real": "WorldView-2, real pair",
         "GE1": "GeoEye-1", "SPOT6": "SPOT 6", "PL1B": "Pléiades 1B", "fusionnet": "FusionNet", "panformer": "PanFormer", "panmamba": "PanMamba"}
REPORTS = {"compare": "Compare all satellites", "report": "{}", "acquire": "The data", "synthesize_pairs": "Pretraining pairs",
           "pretrain": "Pretraining: {}", "adapt": "Adaptation: {}"}  # titles, in the order of the navigation
SKIPPED = {"eval", "slow", "cuda"}  # cells with these directives are shown, not executed
SECONDS, WORKERS = 300, 2  # longest execution of a cell; pages at a time


# ---- notebooks and their execution ---------------------------------------------------------------------------------------

def read(path: Path) -> list[dict]:
    """Cells of a notebook, sources joined."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell | {"source": "".join(cell["source"])} for cell in cells]


def words(source: str) -> set[str]:
    """First words of the `#|` lines of a cell: export, hide, default_exp, eval ..."""
    return {word.rstrip(":") for word in re.findall(r"^#\|\s*(\S+)", source, flags=re.MULTILINE)}


def module_of(cells: list[dict]) -> str | None:
    """The module that a notebook is exported to."""
    return next(iter(re.findall(r"^#\|\s*default_exp\s+(\S+)", "\n".join(c["source"] for c in cells), flags=re.MULTILINE)), None)


def lessons() -> list[Path]:
    """Notebooks to execute, in reading order: library by number, then tutorials and the pages above them."""
    library = sorted((p for p in NBS.rglob("[0-9]*.ipynb") if ".ipynb_checkpoints" not in p.parts), key=lambda p: p.name)
    tutorials = {p.stem: p for p in sorted((NBS / "tutorials").glob("*.ipynb"))}
    ordered = dict.fromkeys([*(n for n in TUTORIALS if n in tutorials), *tutorials])
    return [*library, *(tutorials[n] for n in ordered), *sorted(NBS.glob("[a-z]*.ipynb"))]


def digest(*patterns: str) -> bytes:
    """A hash of files of the project."""
    files = sorted({p for pattern in patterns for p in ROOT.glob(pattern) if p.is_file() and ".running." not in p.name})
    return sha256(b"".join(p.relative_to(ROOT).as_posix().encode() + sha256(p.read_bytes()).digest() for p in files)).digest()


def copies(paths: list[Path]) -> dict[Path, Path]:
    """Where the executed copy of each notebook is kept; its name is a hash of all that its outputs depend on."""
    from pansharp_study.study.imports import imported, module_files, with_dependencies

    data = digest("docs/build.py", "params.yaml", "data/*.*", "results/*/*.*")
    results = digest("metrics/**/*.*", "models/*.safetensors", "weights/*.json", "nbs/**/*.ipynb", "dvc.yaml")  # shown by tutorials and overviews
    files, found = module_files(), {}
    for path in paths:
        code = "\n".join(re.sub(r"^[%!].*", "", c["source"], flags=re.MULTILINE) for c in read(path) if c["cell_type"] == "code")
        modules = sorted(with_dependencies(imported(code)))
        parts = [path.read_bytes(), data, *(files[m].read_bytes() for m in modules)]
        parts += [] if path.name[0].isdigit() else [results]
        found[path] = EXECUTED / f"{path.stem}-{sha256(b''.join(parts)).hexdigest()[:16]}.ipynb"
    return found


def execute(path: Path, copy: Path) -> float:
    """Run one notebook in its folder and keep it with its outputs; return the seconds it took."""
    from execnb.shell import CaptureShell

    start = time.perf_counter()
    os.chdir(path.parent)
    unfinished = copy.with_suffix(".unfinished")
    CaptureShell(timeout=SECONDS).execute(path, unfinished, exc_stop=True, preproc=lambda cell: bool(words(cell.source) & SKIPPED))
    unfinished.replace(copy)
    return time.perf_counter() - start


def execute_stale(wanted: dict[Path, Path]) -> list[str]:
    """Execute what is not in the cache, some at a time; return the failures."""
    stale = [job for job in wanted.items() if not job[1].is_file()]
    EXECUTED.mkdir(parents=True, exist_ok=True)
    for old in set(EXECUTED.iterdir()) - set(wanted.values()):
        old.unlink()
    if not stale:
        return []
    print(f"docs: executing {len(stale)} of {len(wanted)} notebooks, {WORKERS} at a time", flush=True)
    context, failures = get_context("forkserver"), []
    context.set_forkserver_preload(["torch", "pandas", "scipy.signal", "scipy.optimize", "xarray", "matplotlib.pyplot", "IPython", "execnb.shell"])
    stale.sort(key=lambda job: -job[0].stat().st_size)  # the long ones first
    with ProcessPoolExecutor(WORKERS, mp_context=context, max_tasks_per_child=1) as pool:
        jobs = {pool.submit(execute, *job): job[0].relative_to(NBS) for job in stale}
        for job in as_completed(jobs):
            error = job.exception()
            print(f"  {jobs[job]!s:40s} " + (f"{type(error).__name__}: {error}" if error else f"{job.result():5.1f} s"), flush=True)
            failures += [str(jobs[job])] if error else []
    return failures


# ---- pages ---------------------------------------------------------------------------------------------------------------

def page(name: str, content: str | list[dict]):
    """Write a page; one that has not changed keeps its time stamp, so that Sphinx skips it."""
    text = content
    if isinstance(content, list):
        for i, cell in enumerate(content):
            cell["id"] = f"cell-{i}"
            if cell["cell_type"] == "code":
                cell["outputs"] = [o for o in cell.get("outputs", []) if o.get("name") != "stderr"]
                cell["execution_count"] = None
        kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
        text = json.dumps({"cells": content, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}, indent=1, ensure_ascii=False)
    path = SOURCE / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")
    WRITTEN.add(path)


WRITTEN: set[Path] = set()


def markdown(text: str) -> dict:
    """A Markdown cell."""
    return {"cell_type": "markdown", "metadata": {}, "source": text}


def code_marks(text: str | None) -> str:
    """A docment or docstring as HTML: only code marks are known."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(str(text or ""), quote=False))


def card(name: str, thing) -> str:
    """Signature and docments of a function or class, folded: a row per argument."""
    from fastcore.docments import docments

    empty, rows = inspect.Parameter.empty, []
    for argument, facts in docments(thing, full=True, returns=True).items():
        kind, default = facts.get("anno", empty), facts.get("default", empty)
        if argument in ("self", "cls") or (argument == "return" and kind in (empty, None) and not facts.get("docment")):
            continue
        kind = "" if kind is empty else kind.__name__ if isinstance(kind, type) else re.sub(r"\b(?:\w+\.)+(?=\w)", "", str(kind))
        default = "" if default is empty or argument == "return" or "dataclasses" in repr(default) else repr(default)
        cells = [f"<code>{argument}</code>" if argument != "return" else "<b>returns</b>", *(f"<code>{html.escape(t)}</code>" if t else "" for t in (kind, default))]
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in [*cells, code_marks(facts.get("docment"))]) + "</tr>")
    says = f'<span class="kind">{"class" if inspect.isclass(thing) else "function"}</span> <code>{name}</code> <span class="says">{code_marks(inspect.getdoc(thing))}</span>'
    head = "<tr><th>argument</th><th>type</th><th>default</th><th>meaning</th></tr>"
    return f'<details class="card-api" id="{name}"><summary>{says}</summary><table><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table></details>'


def linked(source: str, path: Path, symbols: dict[str, str]) -> str:
    """Functions and DOIs named in prose become links; links to reports that are not made yet lose their target."""
    up, out, fenced = "../" * (len(path.relative_to(ROOT).parts) - 1), [], False
    for line in source.split("\n"):
        fenced ^= line.lstrip().startswith("```")
        if not fenced and not line.startswith("#") and "](" not in line:
            line = re.sub(r"(?<!`)`([\w.]+)(?:\(\))?`(?!`)", lambda m: f'<a class="symbol" href="{up}{symbols[m[1]]}"><code>{m[1]}</code></a>' if m[1] in symbols else m[0], line)
            line = re.sub(r"(?<![\w/])doi:(10\.\d{4,}/[^\s,;|]+?)(?=[.)]*(?:[\s,;|]|$))", r"[doi:\1](https://doi.org/\1)", line)
        out.append(re.sub(r"\[([^\]]+)\]\(([\w./-]+\.ipynb)\)", lambda m: m[0] if (path.parent / m[2]).is_file() else f"{m[1]} *(not made yet)*", line))
    return "\n".join(out)


def lesson_page(path: Path, copy: Path, symbols: dict[str, str]) -> list[dict]:
    """Cells of a library notebook or tutorial as a reader wants them."""
    given, cells = read(copy), []
    module = module_of(given)
    for cell in given:
        source, marks = cell["source"], words(cell["source"]) if cell["cell_type"] == "code" else set()
        if marks & {"hide", "default_exp"} or not source.strip():
            continue
        if cell["cell_type"] == "markdown":
            cells.append(markdown(linked(source, path, symbols)))
            continue
        cell["source"] = re.sub(r"^#\|.*\n?", "", source, flags=re.MULTILINE).strip("\n")
        plain = re.sub(r"\([^)]*\)|#.*", "", cell["source"]).strip()
        folded = all(re.match(r"(import|from)\s", line) for line in plain.splitlines() if line.strip())
        tags = ["library"] * bool(marks & {"export", "exports"}) + ["hide-input"] * folded + ["remove-input"] * ("echo" in marks)
        cell["metadata"] = {"tags": tags} | ({"mystnb": {"code_prompt_show": "Imports", "code_prompt_hide": "Imports"}} if folded else {})
        for output in cell["outputs"]:
            if "text/markdown" in output.get("data", {}):
                output["data"]["text/markdown"] = linked("".join(output["data"]["text/markdown"]), path, {})
        cells.append(cell)
        defined = re.findall(r"^(?:def|class)\s+([A-Za-z]\w*)", source, flags=re.MULTILINE) if "library" in tags and module else []
        if defined:
            home = importlib.import_module(f"pansharp_study.{module}")
            cells.append(markdown("```{raw} html\n" + "\n".join(card(name, getattr(home, name)) for name in defined) + "\n```"))
    return cells


def report_page(path: Path, title: str) -> list[dict]:
    """An executed report under its own title: code folded, parameters left out; never executed."""
    cells = [c for c in read(path) if c["source"].strip() and not {"parameters", "injected-parameters"} & set(c["metadata"].get("tags", []))]
    cells = [markdown(linked(c["source"], path, {})) if c["cell_type"] == "markdown" else c | {"metadata": {"tags": ["hide-input"]}} for c in cells]
    cells[0]["source"] = re.sub(r"\A# .*", f"# {title}", cells[0]["source"])
    return cells


def section(name: str, title: str, says: str, entries: list[tuple[str, str, str]]) -> str:
    """An overview page with its part of the navigation: entries are page, label and one line; returns its own entry."""
    lines = [f"- [{label}](/{entry}.ipynb){': ' if line else ''}{line}" for entry, label, line in entries]
    tree = ["```{toctree}", ":hidden:", "", *(f"{label} </{entry}>" for entry, label, _ in entries), "```"]
    page(f"{name}.md", "\n".join([f"# {title}", "", says, "", *lines, "", *tree, ""]))
    return f"{title} </{name}>"


def report_sections() -> list[str]:
    """Pages of the pipeline's reports, and of each folder of real results apart from them."""
    made = [p for p in sorted((ROOT / "reports").rglob("*.ipynb")) if ".running." not in p.name]
    sections, order = [], [*REPORTS]
    entries = []
    for path in sorted(made, key=lambda p: (order.index(p.relative_to(ROOT / "reports").parts[0].removesuffix(".ipynb")), [*NAMES, p.stem].index(p.stem))):
        group, item = path.relative_to(ROOT / "reports").parts[0].removesuffix(".ipynb"), path.stem
        entries.append((path.relative_to(ROOT).with_suffix("").as_posix(), REPORTS[group].format(NAMES.get(item, item)), ""))
        page(f"{entries[-1][0]}.ipynb", report_page(path, entries[-1][1]))
    says = ("Reports are stage notebooks that the pipeline executed; every number comes from the run itself. **The benchmark scenes of all six satellites are simulated**; "
            "the one real pair has its own page." if entries else "No reports yet: `make reproduce` makes them.")
    sections.append(section("reports/index", "Simulated scenes", says, entries))
    for folder in sorted((ROOT / "results").glob("*/reports")):
        scale, found = folder.parent.name, {p.stem: p for p in folder.glob("*.ipynb") if ".running." not in p.name}
        entries = [(f"results/{scale}/reports/{n}", "Compare all satellites" if n == "compare" else NAMES.get(n, n), "") for n in dict.fromkeys(["compare", *NAMES, *sorted(found)]) if n in found]
        for name, label, _ in entries:
            page(f"{name}.ipynb", report_page(ROOT / f"{name}.ipynb", f"{label}: real scenes ({scale})"))
        says = f"**Real images of real satellites**, and networks at the scale of the released weights. The rows are in `results/{scale}/metrics.csv`; `manifest.json` beside it says how they were made."
        sections.append(section(f"results/{scale}/index", f"Real scenes ({scale})", says, entries))
    return sections


def write_pages(wanted: dict[Path, Path]):
    """The source folder for Sphinx: pages in the repository's layout, and the navigation."""
    reports, symbols, groups, entry_of = report_sections(), {}, {}, {}
    for path, copy in wanted.items():
        cells = read(copy)
        name, module = path.relative_to(ROOT).with_suffix("").as_posix(), module_of(cells)
        promise = re.search(r"^>\s*(.+)$", cells[0]["source"], flags=re.MULTILINE)
        label = path.stem.replace("_", " ", 1) if path.name[0].isdigit() else re.match(r"# (.+)", cells[0]["source"])[1]
        entry_of[path] = (name, label, promise[1] if promise else "")
        groups.setdefault("" if path.parent == NBS else path.parent.name, []).append(path)
        if module:
            home = importlib.import_module(f"pansharp_study.{module}")
            own = [n for n in getattr(home, "__all__", []) if getattr(getattr(home, n), "__module__", None) == home.__name__]
            symbols |= {form: f"{name}.html#{n}" for n in own for form in (f"{module}.{n}", f"{module.split('.')[-1]}.{n}", *([n] if "_" in n or n[0].isupper() else []))}
    for path, copy in wanted.items():
        page(path.relative_to(ROOT).as_posix(), lesson_page(path, copy, symbols))
    tutorials, top = [f"/{entry_of[p][0]}" for p in groups.pop("tutorials", [])], groups.pop("")
    library = [section(f"nbs/{g}/index", g, f"Notebooks of `pansharp_study.{g}`, in reading order. Code with a blue edge belongs to the library, with a green one to the lesson; under each function a folded card lists its arguments.",
                       [entry_of[p] for p in paths]) for g, paths in groups.items()]
    first = [f"{entry_of[p][1]} </{entry_of[p][0]}>" for p in top if p.stem != "index"]
    cells = lesson_page(NBS / "index.ipynb", wanted[NBS / "index.ipynb"], symbols)
    for caption, entries in (("Results", reports), ("Tutorials", tutorials), ("Library", [*reversed(first), *library])):
        cells.append(markdown("\n".join(["```{toctree}", f":caption: {caption}", ":hidden:", "", *entries, "```"])))
    page("nbs/index.ipynb", cells)
    for old in [p for p in SOURCE.rglob("*") if p.is_file() and p not in WRITTEN]:
        old.unlink()


def main() -> int:
    """Execute, write pages, run Sphinx; 1 when a notebook failed."""
    start = time.perf_counter()
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    os.environ.update(threads, PYTHONPATH=str(ROOT), IPYTHONDIR=str(CACHE / "ipython"), MPLBACKEND="agg", TQDM_DISABLE="1", JUPYTER_PLATFORM_DIRS="1", PYTHONWARNINGS="ignore")
    (CACHE / "ipython").mkdir(parents=True, exist_ok=True)
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    wanted = copies(lessons())
    if failures := execute_stale(wanted):
        print(f"docs: no site, since these notebooks failed: {', '.join(failures)}", file=sys.stderr)
        return 1
    write_pages(wanted)
    from sphinx.cmd.build import main as sphinx

    code = sphinx(["-q", "-W", "--keep-going", "-j", str(WORKERS), "-c", str(ROOT / "docs"), "-d", str(CACHE / "doctrees"), str(SOURCE), str(CACHE / "html")])
    shutil.rmtree(SITE, ignore_errors=True)
    shutil.copytree(CACHE / "html", SITE)
    (SITE / "index.html").write_text('<!doctype html><meta http-equiv="refresh" content="0; url=nbs/index.html"><a href="nbs/index.html">pansharp_study</a>\n')
    print(f"docs: {len(list(SITE.rglob('*.html')))} pages in {time.perf_counter() - start:.0f} s: open _site/index.html")
    return code


if __name__ == "__main__":
    sys.exit(main())
