"""Build the offline site: python docs/build.py -> _site/index.html.

1. Library notebooks and tutorials are committed without outputs: execute those whose text or whose package has changed.
2. Turn them and the executed reports into pages: directives hidden, imports folded, a reference card under every exported function.
3. Let Sphinx write HTML into .cache/docs, then copy it to _site. Nothing is fetched.
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
NBS, REPORTS, CACHE = ROOT / "nbs", ROOT / "reports", ROOT / ".cache" / "docs"
SATELLITES = {"WV2": "WorldView-2", "WV3": "WorldView-3", "WV4": "WorldView-4", "IKONOS": "IKONOS", "QB": "QuickBird", "GF2": "GaoFen-2",
              "WV2-real": "WorldView-2, the real pair"}
OTHERS = {"GE1": "GeoEye-1", "SPOT6": "SPOT 6", "PL1B": "Pléiades 1B"}  # satellites with pages of real scenes only
NETWORKS = {"fusionnet": "FusionNet", "panformer": "PanFormer", "panmamba": "PanMamba"}
TUTORIALS = ("one_pair", "protocol", "gallery", "new_sensor", "own_pair", "own_ablation", "benchmark")  # in reading order
SECONDS = 300  # a notebook that runs longer is stopped
WORKERS = 2


# ---- notebooks -----------------------------------------------------------------------------------------------------------

def read(path: Path) -> dict:
    """A notebook as a dictionary, sources joined."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        cell["source"] = "".join(cell["source"])
    return notebook


def directives(source: str) -> set[str]:
    """First words of the `#|` lines of a cell: export, hide, default_exp, eval: ..."""
    return {word.rstrip(":") for word in re.findall(r"^#\|\s*(\S+)", source, flags=re.MULTILINE)}


def write_if_changed(path: Path, text: str) -> Path:
    """Leave the time stamp of an unchanged file alone, so that Sphinx skips its page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    return path


def lessons() -> list[Path]:
    """Every notebook that has to be executed for the site."""
    return [*sorted(NBS.glob("[0-9]*.ipynb")), *(p for p in [NBS / "index.ipynb"] if p.is_file()), *sorted((NBS / "tutorials").glob("*.ipynb"))]


# ---- execution -----------------------------------------------------------------------------------------------------------

def keys(paths: list[Path]) -> dict[Path, Path]:
    """Where the executed copy of each notebook is kept; the name changes with anything its outputs depend on."""
    shared = sha256(Path(__file__).read_bytes().split(b"# ---- pages")[0])
    for path in [*sorted((ROOT / "pansharp_study").glob("*.py")), ROOT / "data" / "responses.csv", ROOT / "params.yaml", ROOT / "metrics" / "compare.csv", *sorted((ROOT / "docs").glob("*.csv"))]:
        if path.name != "_modidx.py" and path.is_file():
            shared.update(path.name.encode() + path.read_bytes())
    found = {}
    for path in paths:
        own = shared.copy()
        own.update(path.read_bytes())
        if path.parent.name == "tutorials" or path.name == "index.ipynb":  # these show results and weights if there are any
            for made in [*sorted((ROOT / "metrics").glob("**/*.csv")), *sorted((ROOT / "models").glob("*.safetensors"))]:
                own.update(made.name.encode() + made.read_bytes())
        found[path] = CACHE / "executed" / f"{path.parent.name}-{path.stem}-{own.hexdigest()[:16]}.ipynb"
    return found


def execute(job: tuple[Path, Path]) -> tuple[str, float, str]:
    """Run one notebook in its own folder; return its name, seconds and the first error."""
    import signal

    from execnb.shell import CaptureShell

    source, target = job
    start, notebook, error = time.perf_counter(), read(source), ""
    os.chdir(source.parent)
    shell = CaptureShell()
    shell.history_manager.enabled = False

    def too_long(*_):
        raise TimeoutError(f"{source.name} ran longer than {SECONDS} s")

    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(SECONDS)
    try:
        for cell in notebook["cells"]:
            if cell["cell_type"] != "code":
                continue
            cell["outputs"], cell["execution_count"] = [], None
            if error or not cell["source"].strip() or directives(cell["source"]) & {"eval", "slow", "cuda"}:
                continue
            outputs = json.loads(json.dumps(shell.run(cell["source"]), default=str))
            cell["outputs"] = [o for o in outputs if o.get("name") != "stderr"]
            for output in cell["outputs"]:
                output.setdefault("metadata", {}) if output["output_type"] in ("display_data", "execute_result") else None
            if shell.exc:
                error = f"{type(shell.exc).__name__}: {shell.exc}"
    finally:
        signal.alarm(0)
    target.parent.mkdir(parents=True, exist_ok=True)
    if not error:
        write_if_changed(target, json.dumps(notebook))
    else:
        write_if_changed(target.with_suffix(".failed"), json.dumps(notebook))
    return source.relative_to(NBS).as_posix(), time.perf_counter() - start, error


def execute_stale() -> tuple[dict[Path, Path], list[str]]:
    """Execute what is not in the cache, two at a time; return the executed copies and the failures."""
    wanted, failures = keys(lessons()), []
    stale = [(path, copy) for path, copy in wanted.items() if not copy.is_file()]
    if stale:
        print(f"docs: executing {len(stale)} of {len(wanted)} notebooks, {WORKERS} at a time", flush=True)
        context = get_context("forkserver")
        context.set_forkserver_preload(["torch", "pandas", "scipy.signal", "xarray", "matplotlib.pyplot", "IPython", "execnb.shell",
                                        "pansharp_study.report", "pansharp_study.data"])
        stale.sort(key=lambda job: -job[0].stat().st_size)  # the long ones first
        with ProcessPoolExecutor(min(WORKERS, len(stale)), mp_context=context, max_tasks_per_child=1) as pool:  # notebooks may start processes too
            for done in as_completed([pool.submit(execute, job) for job in stale]):
                name, seconds, error = done.result()
                print(f"  {name:32s} {seconds:5.1f} s  {error}", flush=True)
                if error:
                    failures.append(f"{name}: {error}")
    keep = {*wanted.values(), *(copy.with_suffix(".failed") for copy in wanted.values())}
    for old in (CACHE / "executed").glob("*"):
        if old not in keep:
            old.unlink()
    return {p: c if c.is_file() else c.with_suffix(".failed") for p, c in wanted.items()}, failures


# ---- pages ---------------------------------------------------------------------------------------------------------------

def exported(library: list[Path]) -> dict[str, dict[str, object]]:
    """Module -> name -> function or class, for every module that a library notebook exports."""
    found = {}
    for path in library:
        name = next((m for c in read(path)["cells"] for m in re.findall(r"^#\|\s*default_exp\s+(\S+)", c["source"], flags=re.MULTILINE)), None)
        if name is None:
            continue
        module = importlib.import_module(f"pansharp_study.{name}")
        public = {n: getattr(module, n) for n in getattr(module, "__all__", [])}
        found[name] = {n: o for n, o in public.items() if inspect.isfunction(o) or inspect.isclass(o)}
    return found


def type_name(annotation) -> str:
    """A short name for an annotation."""
    if annotation is inspect.Parameter.empty:
        return ""
    text = annotation.__name__ if isinstance(annotation, type) and not hasattr(annotation, "__args__") else str(annotation)
    return re.sub(r"\b(torch|numpy|pandas|pathlib|xarray|np|pd|xr|typing|core\.dataset|core\.frame|pansharp_study\.\w+)\.", "", text)


def prose(text: str) -> str:
    """A docment as HTML: only code marks are known."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(str(text or ""), quote=False))


def card(name: str, obj) -> str:
    """What nbdev's show_doc tells of a function or class, as a folded card: signature, docstring, a row per parameter."""
    from fastcore.docments import docments

    described = docments(obj, full=True, returns=True)
    rows = []
    for argument, facts in described.items():
        silent = facts.get("anno") in (inspect.Parameter.empty, None) and not facts.get("docment")
        if argument in ("self", "cls") or (argument == "return" and silent):
            continue
        default = facts.get("default", inspect.Parameter.empty)
        default = "" if default is inspect.Parameter.empty or "dataclasses" in repr(default) or argument == "return" else repr(default)
        label = "<b>returns</b>" if argument == "return" else f"<code>{argument}</code>"
        cells = [label, f"<code>{html.escape(type_name(facts.get('anno')))}</code>" if type_name(facts.get("anno")) else "",
                 f"<code>{html.escape(default)}</code>" if default else "", prose(facts.get("docment"))]
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    kind = "class" if inspect.isclass(obj) else "function"
    head = f'<summary><span class="kind">{kind}</span> <code>{name}</code> <span class="says">{prose(inspect.getdoc(obj))}</span></summary>'
    table = ("<table><thead><tr><th>argument</th><th>type</th><th>default</th><th>meaning</th></tr></thead>"
             f"<tbody>{''.join(rows)}</tbody></table>") if rows else "<p>No arguments.</p>"
    return f'<details class="card-api" id="{name}">{head}{table}</details>'


def raw(text: str) -> dict:
    """A Markdown cell that passes HTML through."""
    return {"cell_type": "markdown", "metadata": {}, "source": f"```{{raw}} html\n{text}\n```"}


def markdown(text: str) -> dict:
    """A Markdown cell."""
    return {"cell_type": "markdown", "metadata": {}, "source": text}


def only_imports(source: str) -> bool:
    """Is there nothing but imports in this cell?"""
    code = re.sub(r"\([^)]*\)", "", source)
    lines = [line for line in code.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    return bool(lines) and all(re.match(r"(import|from)\s", line) for line in lines)


def linked(source: str, symbols: dict[str, str], up: str) -> str:
    """Turn `name_of_a_function` and `03_protocol` in prose into links; headings, tables' rules, fences and formulas stay as they are."""
    out, fenced = [], False
    for line in source.split("\n"):
        fenced ^= line.lstrip().startswith("```")
        if not fenced and not line.startswith("#") and "](" not in line:
            line = re.sub(r"(?<!`)`([\w.]+)(\(\))?`(?!`)", lambda m: f'<a class="symbol" href="{up}{symbols[m[1]]}"><code>{m[1]}{m[2] or ""}</code></a>'
                          if m[1] in symbols else m[0], line)
            line = re.sub(r"(?<![\w/])doi:(10\.\d{4,}/[^\s,;|]+?)(?=[.)]*(?:[\s,;|]|$))", r"[doi:\1](https://doi.org/\1)", line)
        out.append(line)
    return "\n".join(out)


def symbol_table(library: list[Path], modules: dict[str, dict[str, object]]) -> dict[str, str]:
    """What prose may call things -> address in the site."""
    pages = {p.stem.split("_", 1)[1]: p.stem for p in library}
    table = {stem: f"{stem}.html" for stem in pages.values()}
    plain = [name for names in modules.values() for name in names]
    for module, names in modules.items():
        for name in names:
            address = f"{pages[module]}.html#{name}"
            table[f"{module}.{name}"] = table[f"pansharp_study.{module}.{name}"] = address
            if plain.count(name) == 1 and ("_" in name or name[0].isupper()):
                table[name] = address
    return table


def distinct_tables(cell: dict, number: int):
    """Two styled tables of one page must not share an id, or one's marks show in the other."""
    for i, output in enumerate(cell.get("outputs", [])):
        text = "".join(output.get("data", {}).get("text/html", ""))
        if "T_" in text:
            output["data"]["text/html"] = re.sub(r"\bT_(\w+?)(?=[_\"' ])", rf"T_{number}x{i}\1", text)


def finished(cells: list[dict]) -> str:
    """A notebook for myst-nb."""
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
        cell.setdefault("metadata", {}), cell.pop("imports", None)
        if cell["cell_type"] == "code":
            cell.setdefault("outputs", []), cell.setdefault("execution_count", None)
            cell["outputs"] = [o for o in cell["outputs"] if o.get("name") != "stderr"]
            distinct_tables(cell, number)
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}, "language_info": {"name": "python"}}
    return json.dumps({"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}, indent=1, ensure_ascii=False)


def folded(cell: dict, prompt: str) -> dict:
    """Show a cell's code only on request."""
    cell["metadata"] = {"tags": ["hide-input"], "mystnb": {"code_prompt_show": prompt, "code_prompt_hide": prompt}}
    return cell


def lesson_page(notebook: dict, modules: dict, symbols: dict, depth: int) -> list[dict]:
    """Cells of a library notebook or tutorial as a reader wants them."""
    module = next((m for c in notebook["cells"] for m in re.findall(r"^#\|\s*default_exp\s+(\S+)", c["source"], flags=re.MULTILINE)), None)
    public, cells = modules.get(module, {}), []
    for cell in notebook["cells"]:
        source, words = cell["source"], directives(cell["source"]) if cell["cell_type"] == "code" else set()
        if words & {"hide", "default_exp"} or not source.strip():
            continue
        if "echo" in words:  # `#| echo: false`: only what it shows
            for output in cell["outputs"]:
                if "text/markdown" in output.get("data", {}):
                    output["data"]["text/markdown"] = outside_links("".join(output["data"]["text/markdown"]))
            cells.append(cell | {"metadata": {"tags": ["remove-input"]}})
            continue
        if cell["cell_type"] == "markdown":
            cells.append(markdown(linked(outside_links(source), symbols, "../" * depth)))
            continue
        cell["source"] = "\n".join(line for line in source.split("\n") if not re.match(r"#\|", line)).strip("\n")
        cell["metadata"] = {"tags": ["library"]} if words & {"export", "exports"} else {}
        imports = only_imports(cell["source"])
        if imports and cells and cells[-1].get("imports"):
            cells[-1]["source"] += "\n\n" + cell["source"]
        else:
            cells.append(folded(cell, "Imports") | {"imports": True} if imports else cell)
        if words & {"export", "exports"}:
            defined = re.findall(r"^(?:def|class)\s+(\w+)", source, flags=re.MULTILINE)
            cards = [card(name, public[name]) for name in defined if name in public]
            cells += [raw("\n".join(cards))] if cards else []
    return cells


def outside_links(source: str) -> str:
    """Links from nbs/ to reports/ in the repository become links inside the site; those to reports not made yet lose their target."""
    def target(match):
        label, name = match[1], match[2]
        if not (REPORTS / name).is_file():
            return f"{label} *(not made yet)*"
        return f"[{label}]({match[0].split('](', 1)[1].split('reports/')[0].replace('../', '', 1)}reports/{name})"
    source = re.sub(r"\]\(\.\./((?:\.\./)*results/)", r"](\1", source)
    return real_links(re.sub(r"\[([^\]]+)\]\((?:\.\./)+reports/([^)]+)\)", target, source))


def real_links(source: str) -> str:
    """Links to results/NAME/reports/ become links to the pages of real scenes."""
    return re.sub(r"(\]\((?:\.\./)*)results/([\w-]+)/reports/", r"\1real/\2/", source)


def report_page(path: Path, title: str, symbols: dict[str, str], up: str) -> list[dict]:
    """Cells of an executed report: its own heading, code folded; parameters and sections that show nothing left out."""
    cells, first, given = [], True, read(path)["cells"]
    for i, cell in enumerate(given):
        tags = cell.get("metadata", {}).get("tags", [])
        if "parameters" in tags or "injected-parameters" in tags or not cell["source"].strip():
            continue
        silent = [c["cell_type"] == "code" and not c["outputs"] and "parameters" not in c["metadata"].get("tags", []) for c in given[i : i + 2]]
        if not first and (silent[0] and cells[-1] is None or silent[1:] == [True]):
            cells.append(None)  # a heading whose code shows nothing, then that code
            continue
        if cell["cell_type"] == "markdown":
            source = re.sub(r"\A# .*", f"# {title}", cell["source"]) if first else cell["source"]
            cells.append(markdown(linked(real_links(source), symbols, up)))
            first = False
        else:
            cell["metadata"] = {}
            cells.append(folded(cell, "Show the code"))
    return [cell for cell in cells if cell is not None]


def toctree(entries: list[str], caption: str = "", hidden: bool = True) -> str:
    """A MyST toctree."""
    options = [f":caption: {caption}"] * bool(caption) + [":hidden:"] * hidden
    return "\n".join(["```{toctree}", *options, "", *entries, "```"])


def results_pages(symbols: dict[str, str]) -> tuple[dict[str, str], list[str]]:
    """Pages of the reports that exist, and the entries of the navigation."""
    pages, entries, missing = {}, ["Overview <results>"], []
    lines = ["# Results", "", "Reports are stage notebooks that the pipeline executed; code is folded, every number comes from the run itself. "
             "**The benchmark scenes of all six satellites are simulated**; the one real pair has its own page, and says so.", ""]

    def add(name: str, title: str, entry: str | None, missing_note: bool = True):
        path = REPORTS / f"{name}.ipynb"
        if path.is_file():
            pages[f"reports/{name}.ipynb"] = finished(report_page(path, title, symbols, "../" * (name.count("/") + 1)))
            entries.append(f"{entry} <reports/{name}>") if entry else None
            return True
        if missing_note:
            missing.append(f"`reports/{name}.ipynb`")
        return False

    if add("compare", "Compare: all satellites, all networks", "Compare all satellites"):
        lines.append("- [Compare](reports/compare.ipynb): did pretraining help, for which network, on which satellite? Read this first.")
    for name, title in SATELLITES.items():
        if add(f"report/{name}", title, title):
            lines.append(f"- [{title}](reports/report/{name}.ipynb): pictures, error maps and scores of every method")
    groups = {"acquire": ("The data", "what is present, and under which terms"), "synthesize_pairs": ("Pretraining pairs", "what the networks learn from"),
              "synthesize_scenes": ("Benchmark scenes", "the simulated scenes of each satellite"),
              "pretrain": ("Pretraining", "loss curves, steps, samples and FLOPs of every network"),
              "adapt": ("Adaptation", "zero-shot and one-shot, scene by scene")}
    for folder, (title, says) in groups.items():
        names = [folder] if (REPORTS / f"{folder}.ipynb").is_file() else sorted(
            f"{folder}/{p.stem}" for p in (REPORTS / folder).glob("*.ipynb") if not p.name.endswith(".running.ipynb"))
        if not names:
            missing.append(f"`reports/{folder}`")
        elif names == [folder]:
            add(folder, title, title)
            lines.append(f"- [{title}](reports/{folder}.ipynb): {says}")
        else:
            names.sort(key=lambda n: (list(SATELLITES) + [n.split("/")[1]]).index(n.split("/")[1]))
            listed = []
            for name in names:
                item = name.split("/")[1]
                label = SATELLITES.get(item) or re.sub(r"^(\w+)-(\d+)$", lambda m: f"{NETWORKS.get(m[1], m[1])}, {m[2]} bands", item)
                add(name, f"{title}: {label}", None)
                listed.append((label, name))
            pages[f"{folder}.md"] = "\n".join([f"# {title}", "", f"{says[0].upper()}{says[1:]}.", "",
                                               *(f"- [{label}](reports/{name}.ipynb)" for label, name in listed), "",
                                               toctree([f"{label} <reports/{name}>" for label, name in listed])])
            entries.append(f"{title} <{folder}>")
            lines.append(f"- [{title}]({folder}.md): {says}")
    if missing:
        lines += ["", ":::{note}", f"Not made yet: {', '.join(missing)}. "
                  "`make reproduce` makes every report (about ten minutes on two cores), then run `make docs` again.", ":::"]
    pages["results.md"] = "\n".join(lines) + "\n"
    return pages, entries


def real_pages(symbols: dict[str, str]) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Pages of real scenes, one section for each folder of results/, apart from those of the pipeline."""
    pages, sections = {}, {}
    for folder in sorted((ROOT / "results").glob("*/reports")):
        scale, names = folder.parent.name, SATELLITES | OTHERS
        found = {p.stem: p for p in folder.glob("*.ipynb") if not p.name.endswith(".running.ipynb")}
        order = [n for n in ["compare", *names, *sorted(found)] if n in found]
        if not order:
            continue
        titles = {n: "Compare all satellites" if n == "compare" else names.get(n, n) for n in dict.fromkeys(order)}
        for name, title in titles.items():
            pages[f"real/{scale}/{name}.ipynb"] = finished(report_page(found[name], f"{title}: real scenes ({scale})", symbols, "../../"))
        lines = [f"# Real scenes ({scale})", "", "**Real images of real satellites**, and networks adapted at the scale of the released weights. Nothing here comes from the laptop run whose reports stand under Results, and no simulated scene is scored. "
                 f"The rows are in `results/{scale}/metrics.csv`; `results/{scale}/manifest.json` says what made them.", ""]
        lines += [f"- [{title}](real/{scale}/{name}.ipynb)" for name, title in titles.items()]
        pages[f"real-{scale}.md"] = "\n".join(lines) + "\n"
        sections[f"Real scenes ({scale})"] = [f"Overview <real-{scale}>", *(f"{title} <real/{scale}/{name}>" for name, title in titles.items())]
    return pages, sections


def promise(notebook: dict) -> str:
    """The line below a notebook's title."""
    found = re.search(r"^>\s*(.+)$", notebook["cells"][0]["source"], flags=re.MULTILINE)
    return found[1] if found else ""


def heading(notebook: dict) -> str:
    """A notebook's title."""
    return re.search(r"^# (.+)$", notebook["cells"][0]["source"], flags=re.MULTILINE)[1]


def library_pages(library: list[Path], modules: dict) -> tuple[dict[str, str], list[str]]:
    """The overview of the library and the index of its functions."""
    entries, table, index = ["Overview <library>"], ["| notebook | what it gives |", "|---|---|"], ["# Function index", ""]
    for path in library:
        notebook, (number, name) = read(path), path.stem.split("_", 1)
        entries.append(f"{number} {name} <{path.stem}>")
        table.append(f"| [{number} {name}]({path.stem}.ipynb) | {promise(notebook)} |")
        if modules.get(name):
            rows = "".join(f'<tr><td><a href="{path.stem}.html#{n}"><code>{n}</code></a></td><td>{prose((inspect.getdoc(o) or "").split(chr(10))[0])}</td></tr>'
                           for n, o in modules[name].items())
            index += [f"## {name}", "", "```{raw} html", f'<table class="index-api"><tbody>{rows}</tbody></table>', "```", ""]
    text = ["# Library", "", "One notebook is one module of `pansharp_study`: the reason or the equation, the function that implements it, and a lesson that shows and "
            "checks it. The numbers are the reading order. Code with a blue edge belongs to the library, with a green one to the lesson. "
            "Under each function a folded card lists its arguments with shapes, units and ranges; the [function index](functions.md) finds one by name.", "", *table, ""]
    return {"library.md": "\n".join(text), "functions.md": "\n".join(index)}, [*entries, "Function index <functions>"]


def tutorial_pages(notebooks: dict[str, dict]) -> tuple[dict[str, str], list[str]]:
    """The overview of the tutorials."""
    order = [n for n in TUTORIALS if n in notebooks] + sorted(set(notebooks) - set(TUTORIALS))
    lines = ["# Tutorials", "", "Each runs in seconds on one core and asserts what it teaches.", ""]
    lines += [f"- [{heading(notebooks[n])}](tutorials/{n}.ipynb): {promise(notebooks[n])}" for n in order] or ["None yet."]
    return {"tutorials.md": "\n".join(lines) + "\n"}, ["Overview <tutorials>", *(f"tutorials/{n}" for n in order)]


def write_pages(executed: dict[Path, Path]) -> Path:
    """The source folder for Sphinx."""
    source, library = CACHE / "source", [p for p in executed if p.parent == NBS and p.name[0].isdigit()]
    modules = exported(library)
    symbols, tutorials, index = symbol_table(library, modules), {}, None
    pages, results = results_pages(symbols)
    real, sections = real_pages(symbols)
    pages |= real
    for path, copy in executed.items():
        notebook, name = read(copy), path.relative_to(NBS).as_posix()
        if name == "index.ipynb":
            index = notebook
        else:
            if name.startswith("tutorials/"):
                tutorials[path.stem] = notebook
            pages[name] = finished(lesson_page(notebook, modules, symbols, name.count("/")))
    more, reference = library_pages(library, modules)
    also, learning = tutorial_pages(tutorials)
    front = lesson_page(index, modules, symbols, 0) if index else [markdown("# pansharp_study")]
    front.append(markdown("\n\n".join([toctree(results, "Results"), *(toctree(entries, caption) for caption, entries in sections.items()), toctree(learning, "Tutorials"), toctree(reference, "Library")])))
    pages |= {**more, **also, "index.ipynb": finished(front)}
    for name, text in pages.items():
        write_if_changed(source / name, text)
    for old in [p for p in source.rglob("*") if p.is_file() and p.relative_to(source).as_posix() not in pages]:
        old.unlink()
    return source


def fingerprint() -> str:
    """Changes with everything that the site shows."""
    seen = sha256("".join(sorted(copy.name for copy in keys(lessons()).values())).encode())
    reports = [p for folder in (REPORTS, ROOT / "results") for p in folder.rglob("*.ipynb") if not p.name.endswith(".running.ipynb")]
    for path in sorted([*reports, *(p for p in (ROOT / "docs").rglob("*") if p.is_file() and "__pycache__" not in p.parts), ROOT / "settings.ini"]):
        seen.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return seen.hexdigest()


def main() -> int:
    """Execute, write pages, run Sphinx, copy to _site; 1 when a notebook failed."""
    start = time.perf_counter()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    os.environ.update(PYTHONPATH=str(ROOT), IPYTHONDIR=str(CACHE / "ipython"), MPLBACKEND="agg", TQDM_DISABLE="1",
                      JUPYTER_PLATFORM_DIRS="1", PYTHONWARNINGS="ignore")
    (CACHE / "ipython").mkdir(parents=True, exist_ok=True)
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    state, made = fingerprint(), CACHE / "made"
    if (ROOT / "_site" / "index.html").is_file() and made.is_file() and made.read_text() == state:
        print("docs: nothing has changed: open _site/index.html")
        return 0
    executed, failures = execute_stale()
    source = write_pages(executed)

    from sphinx.cmd.build import main as sphinx

    code = sphinx(["-q", "-j", str(WORKERS), "-b", "html", "-c", str(ROOT / "docs"), "-d", str(CACHE / "doctrees"), str(source), str(CACHE / "html")])
    if code:
        return code
    written = {p.relative_to(source).with_suffix("") for p in source.rglob("*") if p.is_file()}
    for page in (CACHE / "html").rglob("*.html"):  # pages of notebooks that are gone
        name = page.relative_to(CACHE / "html").with_suffix("")
        if name not in written and name.as_posix() not in ("genindex", "search", "py-modindex") and name.parts[0] != "_modules":
            page.unlink()
    shutil.rmtree(ROOT / "_site", ignore_errors=True)
    shutil.copytree(CACHE / "html", ROOT / "_site")
    made.write_text("" if failures else state)
    pages = len(list((ROOT / "_site").rglob("*.html")))
    print(f"docs: {pages} pages in {time.perf_counter() - start:.0f} s: open _site/index.html")
    for failure in failures:
        print(f"docs: a notebook failed, its page ends at the error: {failure}", file=sys.stderr)
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
