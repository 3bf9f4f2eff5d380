"""The catalogue is sound, files are used only if they are the right ones, and nothing is fetched unasked. No
network: a server on this machine at most.
"""

import functools
import http.server
import subprocess
import sys
import threading
from hashlib import sha256

import pytest
import yaml

from pansharp_study.core import root
from pansharp_study.scenes import catalog
from pansharp_study.scenes.solaris import SOLARIS_SHA256, SOLARIS_SHIFT_PX, SOLARIS_TERMS

HELD = b"II*\0 thirteen bands"
SUM = sha256(HELD).hexdigest()


def entry(**change):
    return {
        "name": "one",
        "sensor": "QB",
        "content": "x",
        "resolution": "full",
        "files": [{"file": "a_ms.tif", "sha256": SUM, "address": "https://example.org/a_ms.tif"}],
        "terms": "unknown",
        "registration": "unknown",
        "pan_offset_px": None,
        "manual": False,
        "checked": "no",
        "instructions": "",
        **change,
    }


def one_line(call, *parts, error=ValueError):
    with pytest.raises(error) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text and all(str(p) in text for p in parts), text


@pytest.fixture
def offline(monkeypatch):
    """Any attempt to fetch fails the test."""

    def forbidden(*_):
        raise AssertionError("something was fetched")

    monkeypatch.setattr(catalog, "download_file", forbidden)


@pytest.fixture
def server(tmp_path):
    """A folder served on this machine."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{running.server_port}/"
        running.shutdown()


def test_the_committed_catalogue():
    entries = catalog.load_catalog()
    solaris = entries["WV2-solaris"]
    assert solaris["files"][0]["sha256"] == SOLARIS_SHA256 and solaris["terms"] == SOLARIS_TERMS
    for name in ("NBU_PansharpRSData", "PanCollection", "PAirMax"):
        assert entries[name]["manual"] and entries[name]["sha256"] is None and not entries[name]["files"]
    sums = [f["sha256"] for e in entries.values() for f in e["files"]]
    assert len(set(sums)) == len(sums) > 20
    text = (root() / "data" / "catalog.yaml").read_text()
    assert all(e["terms"] and e["checked"] for e in entries.values()) and "TODO" not in text


@pytest.mark.parametrize(
    "change, parts",
    [
        ({"sensor": "WV9"}, ["WV9"]),
        ({"resolution": "half"}, ["half", "reduced"]),
        ({"licence": "x"}, ["licence"]),
        ({"terms": None}, ["terms"]),
        ({"name": "../x"}, ["plain file name"]),
        ({"files": []}, ["https://"]),
        ({"files": [{"file": "a", "sha256": SUM, "address": "ftp://x"}]}, ["https://"]),
        ({"files": [{"file": "a", "sha256": SUM[:-1], "address": None}]}, ["64"]),
        ({"files": [{"file": "../a", "sha256": SUM, "address": None}]}, ["without folders"]),
        ({"manual": True}, ["instructions"]),
        ({"manual": "yes"}, ["manual"]),
        ({"pan_offset_px": {20: [0.1, 0.2]}}, ["in quotes"]),
        ({"pan_offset_px": {"20": [0.1]}}, ["two numbers"]),
    ],
)
def test_an_unsound_entry_is_one_line(tmp_path, change, parts):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({"entries": [entry(), entry(**({"name": "two"} | change))]}))
    one_line(lambda: catalog.load_catalog(path), *parts)


def test_the_file_itself(tmp_path):
    one_line(lambda: catalog.load_catalog(tmp_path / "none.yaml"), "none.yaml", error=FileNotFoundError)
    (tmp_path / "c.yaml").write_text("entries: 3\n")
    one_line(lambda: catalog.load_catalog(tmp_path / "c.yaml"), "entries")
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"entries": [entry(), entry()]}))
    one_line(lambda: catalog.load_catalog(tmp_path / "c.yaml"), "same name")


def test_a_filled_cache_needs_no_network(tmp_path, offline):
    entries = {"one": entry()}
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a_ms.tif").write_bytes(HELD)
    assert catalog.fetch("one", cache=tmp_path, catalog=entries) == tmp_path / "one"
    (tmp_path / "one" / "a_ms.tif").write_bytes(b"<html>")
    for alone in (True, False):  # never overwritten, whatever it is
        one_line(
            lambda alone=alone: catalog.fetch("one", cache=tmp_path, catalog=entries, offline=alone),
            tmp_path / "one" / "a_ms.tif",
            "delete it",
            SUM[:12],
        )
    assert (tmp_path / "one" / "a_ms.tif").read_bytes() == b"<html>"


def test_missing_files(tmp_path, offline):
    entries = {
        "one": entry(),
        "hand": entry(
            manual=True, files=[{"file": "b.mat", "sha256": SUM, "address": None}], instructions="ask the library"
        ),
        "archive": entry(manual=True, files=[], instructions="see there"),
    }
    one_line(
        lambda: catalog.fetch("one", cache=tmp_path, catalog=entries, offline=True),
        "offline",
        "https://example.org/a_ms.tif",
        tmp_path / "one" / "a_ms.tif",
        error=FileNotFoundError,
    )
    one_line(
        lambda: catalog.fetch("hand", cache=tmp_path, catalog=entries),
        "ask the library",
        tmp_path / "hand" / "b.mat",
        error=FileNotFoundError,
    )
    one_line(
        lambda: catalog.fetch("archive", cache=tmp_path, catalog=entries),
        "see there",
        tmp_path / "archive",
        "Terms",
        error=FileNotFoundError,
    )
    one_line(lambda: catalog.fetch("two", cache=tmp_path, catalog=entries), "'two'", "one, hand")
    assert not list(tmp_path.iterdir())


def test_fetching(tmp_path, server):
    folder, address = server
    (folder / "a_ms.tif").write_bytes(HELD)
    entries = {"one": entry(files=[{"file": "a_ms.tif", "sha256": SUM, "address": address + "a_ms.tif"}])}
    assert (catalog.fetch("one", cache=tmp_path, catalog=entries) / "a_ms.tif").read_bytes() == HELD
    (folder / "a_ms.tif").unlink()
    assert catalog.fetch("one", cache=tmp_path, catalog=entries).is_dir()  # not asked for again
    one_line(
        lambda: catalog.fetch("one", cache=tmp_path / "new", catalog=entries),
        address,
        tmp_path / "new" / "one" / "a_ms.tif",
        "404",
        error=FileNotFoundError,
    )
    (folder / "a_ms.tif").write_bytes(b"changed")
    one_line(
        lambda: catalog.fetch("one", cache=tmp_path / "new", catalog=entries), address, "hash", error=FileNotFoundError
    )
    assert not list((tmp_path / "new").rglob("*.tif")), "a wrong file was left in place"


def test_command_line(tmp_path, capsys, offline):
    catalog.main(["list"])
    shown = capsys.readouterr().out
    assert all(name in shown for name in catalog.load_catalog())
    for arguments in (["fetch"], ["list", "QB-wuda"], ["get"]):
        with pytest.raises(SystemExit):
            catalog.main(arguments)
    with pytest.raises(SystemExit, match="QB-wuda"):
        catalog.main(["fetch", "QB-wuda", "--offline", "--cache", str(tmp_path)])


def test_importing_and_listing_need_no_pooch():
    code = "import sys; sys.modules['pooch'] = None; from pansharp_study.scenes import catalog; catalog.main(['list'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root())
    assert done.returncode == 0 and "PAirMax" in done.stdout, done.stderr


def test_offsets_agree_with_what_is_known_of_solaris():
    (offset,) = catalog.load_catalog()["WV2-solaris"]["pan_offset_px"].values()
    assert all(abs(o + s) < 0.05 for o, s in zip(offset, SOLARIS_SHIFT_PX))
