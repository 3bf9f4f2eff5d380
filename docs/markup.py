"""Text of the site: links in prose, and cards that show docstring and docments of a function or class."""

import html
import inspect
import re
from pathlib import Path

from fastcore.docments import docments

EMPTY = inspect.Parameter.empty


def marked(text: str | None) -> str:
    """A docment or docstring as HTML: only code marks are known."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(str(text or ""), quote=False))


def type_name(annotation) -> str:
    """A short name for an annotation: `Path` instead of `pathlib.Path`."""
    if annotation is EMPTY:
        return ""
    return annotation.__name__ if isinstance(annotation, type) else re.sub(r"\b(?:\w+\.)+(?=\w)", "", str(annotation))


def card(name: str, thing) -> str:
    """Docstring, and a row per argument with type, default and docment."""
    rows = []
    for argument, facts in docments(thing, full=True, returns=True).items():
        kind, default = facts.get("anno", EMPTY), facts.get("default", EMPTY)
        result = argument == "return"
        if argument in ("self", "cls") or (result and kind in (EMPTY, None)):
            continue
        hidden = result or default is EMPTY or "dataclasses" in repr(default)
        texts = ["returns" if result else argument, type_name(kind), "" if hidden else repr(default)]
        cells = [f"<code>{html.escape(text)}</code>" if text else "" for text in texts]
        rows.append("".join(f"<td>{cell}</td>" for cell in [*cells, marked(facts.get("docment"))]))
    kind = "class" if inspect.isclass(thing) else "function"
    says = f'<span class="says">{marked(inspect.getdoc(thing))}</span>'
    summary = f'<summary><span class="kind">{kind}</span> <code>{name}</code> {says}</summary>'
    head = "<thead><tr><th>argument</th><th>type</th><th>default</th><th>meaning</th></tr></thead>"
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    table = f"<table>{head}<tbody>{body}</tbody></table>" if rows else "<p>No arguments.</p>"
    return f'<details class="card-api" id="{name}">{summary}{table}</details>'


def prose(source: str, folder: Path, symbols: dict[str, str] | None = None, up: str = "") -> dict:
    """A Markdown cell with links at functions and DOIs in it; a link to a report not made yet loses its target."""

    def symbol(match):
        target = (symbols or {}).get(match[1])
        return f'<a class="symbol" href="{up}{target}"><code>{match[1]}</code></a>' if target else match[0]

    def notebook(match):
        return match[0] if (folder / match[2]).is_file() else f"{match[1]} *(not made yet)*"

    lines, fenced = source.split("\n"), False
    for i, line in enumerate(lines):
        fenced ^= line.lstrip().startswith("```")
        if not fenced and not line.startswith("#") and "](" not in line:
            line = re.sub(r"(?<!`)`([\w.]+)(?:\(\))?`(?!`)", symbol, line)
            line = re.sub(r"(?<![\w/])doi:(10\.\d{4,}/[^\s,;|]*[^\s,;|.)])", r"[doi:\1](https://doi.org/\1)", line)
        lines[i] = re.sub(r"\[([^\]]+)\]\(([\w./-]+\.ipynb)\)", notebook, line)
    return {"cell_type": "markdown", "source": "\n".join(lines)}
