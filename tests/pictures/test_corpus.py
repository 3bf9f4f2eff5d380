"""The table of pretraining pictures, and its rebuilding from generated packages; no network."""

import csv
import functools
import http.server
import io
import lzma
import tarfile
import threading
import zipfile
from hashlib import sha256

import numpy as np
import pytest
from PIL import Image

from pansharp_study.core import root
from pansharp_study.pictures import corpus
from pansharp_study.pictures.corpus import (
    CLASSES,
    COLUMNS,
    fetch_package,
    hash_picture,
    main,
    make_picture,
    parse_recipe,
    picture_path,
    read_corpus,
    read_members,
    rebuild,
)

TABLE = root() / "data/corpus.csv"
DEB = "usr/share/backgrounds/noise.png"


def encode(seed: int, size=(40, 30)) -> bytes:
    picture = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "png")
    return file.getvalue()


def make_deb(path, files: dict[str, bytes]):
    "An `ar` archive as dpkg-deb writes it."
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    parts = {
        "debian-binary": b"2.0\n",
        "control.tar.xz": lzma.compress(b"nothing"),
        "data.tar.xz": lzma.compress(data.getvalue()),
    }
    with open(path, "wb") as file:
        file.write(b"!<arch>\n")
        for name, content in parts.items():
            head = f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n"
            file.write(head.encode() + content + b"\n" * (len(content) % 2))


def make_row(name: str, data: bytes, recipe: str = "", **more) -> dict:
    picture = make_picture([data], recipe)
    row = {
        "name": name,
        "kind": "photograph",
        "title": name,
        "author": "nobody",
        "licence": "CC0-1.0",
        "licence_class": "permissive",
        "recipe": recipe,
        "height": str(picture.shape[0]),
        "width": str(picture.shape[1]),
        "sha256_original": sha256(data).hexdigest(),
        "sha256_picture": hash_picture(picture),
    }
    return dict.fromkeys(COLUMNS, "") | row | more


@pytest.fixture
def packages(tmp_path):
    "A Debian package and a wheel, in a folder laid out as a mirror, and the table of what is in them."
    pool = tmp_path / "mirror/pool/main/n/noise"
    pool.mkdir(parents=True)
    make_deb(pool / "noise_1.0-1_all.deb", {DEB: encode(1), "usr/share/doc/noise/copyright": b"CC0"})
    (tmp_path / "packages").mkdir()
    with zipfile.ZipFile(tmp_path / "packages/wheel_noise-2.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("wheel_noise/a b.png", encode(2, (64, 48)))
    debian = {
        "origin": "debian",
        "package": "noise",
        "version": "1:1.0-1",
        "path": "pool/main/n/noise/noise_1.0-1_all.deb",
        "file": DEB,
    }
    pypi = {"origin": "pypi", "package": "wheel-noise", "version": "2.0", "file": "wheel_noise/a b.png"}
    rows = [
        make_row("deb", encode(1), "crop:0,0,20,30", **debian),
        make_row("wheel", encode(2, (64, 48)), "lanczos:2", **pypi, kind="remote_sensing"),
        make_row("gpl", encode(2, (64, 48)), **pypi | {"licence": "GPL-2+", "licence_class": "other"}),
    ]
    return tmp_path, rows


@pytest.fixture
def mirror(packages):
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(packages[0] / "mirror"))
    handler.log_message = lambda *_: None
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def write_table(path, rows):
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_table_is_complete():
    rows = read_corpus(TABLE)
    for row in rows:
        assert all(row[column] for column in COLUMNS if column not in ("path", "recipe")), row["name"]
        assert bool(row["path"]) == (row["origin"] == "debian") and not row["path"].startswith(("/", "http"))
        assert min(int(row["width"]), int(row["height"])) >= 200
        assert len(row["sha256_original"]) == len(row["sha256_picture"]) == 64
        parse_recipe(row["recipe"])
    permissive = [row for row in rows if row["licence_class"] == "permissive"]
    assert len(permissive) >= 70 and sum(row["kind"] == "remote_sensing" for row in permissive) >= 15
    assert len({row["sha256_picture"] for row in rows}) == len(rows)


def test_permissive_asks_no_more_than_a_name():
    assert not any(word in licence for word in ("-SA", "GPL", "-NC", "-ND") for licence in CLASSES["permissive"])
    assert all(row["author"] for row in read_corpus(TABLE) if row["licence"].startswith("CC-BY"))


def test_no_benchmark_picture_and_no_target_satellite():
    with open(root() / "data/pictures/ATTRIBUTION.csv", newline="") as file:
        benchmark = [row for row in csv.DictReader(file) if row["split"] == "benchmark"]
    photographs = {row["source_file"] for row in benchmark if row["kind"] == "photograph"}
    rows = read_corpus(TABLE)
    for row in rows:
        assert row["file"].rsplit("/", 1)[-1] not in photographs | {"2019_YELL_2_541000_4977000_image_crop.png"}
        text = " ".join((row["title"], row["author"], row["file"], row["package"])).lower()
        for word in "worldview ikonos quickbird rgbn gaofen maxar digitalglobe solaris spacenet".split():
            assert word not in text


def test_neon_crops_keep_away_from_the_benchmark_crop():
    for row in read_corpus(TABLE):
        if "528000_4978000" in row["file"]:
            _, top, right, _ = parse_recipe(row["recipe"])["crop"]
            # x 1179-2299, y 0-1120 is a benchmark scene; 80 pixels are 8 m
            assert right + 80 <= 1179 or top >= 1120 + 80, row["name"]


def test_rebuild_resume_and_classes(packages, mirror):
    folder, rows = packages
    first = rebuild(rows, folder, mirror=mirror)
    assert (first.made, first.kept, first.skipped, first.differ) == (2, 0, {}, [])
    assert (folder / "packages/noise_1.0-1_all.deb").is_file()
    assert first.pixels == 20 * 30 + 32 * 24
    with Image.open(folder / "permissive/remote_sensing/wheel.png") as picture:
        assert hash_picture(np.asarray(picture)) == rows[1]["sha256_picture"]
    with Image.open(folder / "permissive/photograph/deb.jpg") as picture:
        assert picture.size == (20, 30)
    times = {path: path.stat().st_mtime_ns for path in (folder / "permissive").rglob("*.*")}
    picture_path(rows[0], folder).unlink()
    second = rebuild(rows, folder, licences="all", mirror="http://127.0.0.1:9")  # the packages are there
    assert (second.made, second.kept) == (2, 1) and (folder / "other/photograph/gpl.jpg").is_file()
    kept = folder / "permissive/remote_sensing/wheel.png"
    assert times[kept] == kept.stat().st_mtime_ns
    assert not list(folder.rglob("*.part"))


def test_wrong_sums_are_named(packages, mirror):
    folder, rows = packages
    rows[0]["sha256_original"] = "0" * 64
    rows[1]["sha256_picture"] = "1" * 64
    result = rebuild(rows, folder, mirror=mirror)
    assert list(result.skipped) == ["deb"] and "sha256" in result.skipped["deb"] and result.differ == ["wheel"]
    assert "skipped deb: noise" in str(result)
    assert not picture_path(rows[0], folder).exists() and picture_path(rows[1], folder).exists()


def test_what_cannot_be_fetched_is_named(packages, mirror, monkeypatch):
    folder, rows = packages
    monkeypatch.setattr(corpus, "SNAPSHOT", f"{mirror}/snapshot")
    rows[0]["path"] = "pool/main/n/noise/noise_9.9-1_all.deb"
    result = rebuild(rows, folder, mirror=mirror)
    assert result.made == 1 and "can't be read" in result.skipped["deb"] and "snapshot" in result.skipped["deb"]
    assert not list(folder.rglob("*.part"))
    with pytest.raises(FileNotFoundError, match="noise"):
        fetch_package(rows[0], folder / "packages", offline=True)


def test_snapshot_is_asked_second(packages, mirror, monkeypatch):
    folder, rows = packages
    monkeypatch.setattr(corpus, "SNAPSHOT", mirror)
    assert fetch_package(rows[0], folder / "got", mirror=f"{mirror}/nothing").read_bytes()[:8] == b"!<arch>\n"


def test_epoch_in_the_name_that_apt_gives(packages):
    folder, rows = packages
    (folder / "mirror/pool/main/n/noise/noise_1.0-1_all.deb").rename(folder / "packages/noise_1%3a1.0-1_all.deb")
    assert rebuild(rows[:1], folder, offline=True).made == 1


@pytest.mark.parametrize("damage", [b"", b"!<arch>\n", b"<html>404</html>", None])
def test_damaged_packages_are_named(packages, damage):
    folder, rows = packages
    whole = (folder / "mirror/pool/main/n/noise/noise_1.0-1_all.deb").read_bytes()
    (folder / "packages/noise_1.0-1_all.deb").write_bytes(whole[:-700] if damage is None else damage)
    (folder / "packages/wheel_noise-2.0-py3-none-any.whl").write_bytes(b"PK")
    result = rebuild(rows, folder, offline=True)
    assert result.made == 0 and set(result.skipped) == {"deb", "wheel"}


def test_missing_member_and_source_archive(packages):
    folder, rows = packages
    with tarfile.open(folder / "packages/sdist-3.0.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("sdist-3.0/noise.png")
        member.size = len(encode(3))
        archive.addfile(member, io.BytesIO(encode(3)))
    row = make_row("sdist", encode(3), origin="pypi", package="sdist", version="3.0", file="sdist-3.0/noise.png")
    result = rebuild([row, row | {"name": "absent", "file": "sdist-3.0/other.png"}], folder, offline=True)
    assert result.made == 1 and "not in the package" in result.skipped["absent"]
    members = read_members(folder / "packages/sdist-3.0.tar.gz", {"sdist-3.0/noise.png", "x"})
    assert set(members) == {"sdist-3.0/noise.png"}


def test_command(packages, mirror, capsys):
    folder, rows = packages
    table = write_table(folder / "table.csv", rows)
    arguments = [str(folder), "--table", str(table), "--mirror", mirror]
    assert main(arguments) == 0 and "2 pictures made, 0 were there, 0 skipped" in capsys.readouterr().out
    assert main([*arguments, "--licences", "all"]) == 0 and "1 pictures made, 2 were there" in capsys.readouterr().out
    picture_path(rows[0], folder).unlink()
    write_table(table, [rows[0] | {"sha256_original": "0" * 64}])
    assert main([*arguments, "--offline"]) == 1 and "skipped deb" in capsys.readouterr().out


@pytest.mark.parametrize(
    "change", [{"licence": "CC-BY-SA-4.0"}, {"licence_class": "free"}, {"origin": "web"}, {"kind": "map"}]
)
def test_tables_that_are_refused(packages, change):
    folder, rows = packages
    with pytest.raises(ValueError, match="deb"):
        read_corpus(write_table(folder / "table.csv", [rows[0] | change]))
    with pytest.raises(ValueError, match="same name"):
        read_corpus(write_table(folder / "table.csv", [rows[0], rows[0]]))


def test_bands_and_stretch():
    data = [encode(seed) for seed in (1, 2)]
    with pytest.raises(ValueError, match="name bands"):
        make_picture(data, "")
    for text in ("blur:2", "crop", "crop:1,2,3", "stretch:0-1", "lanczos:0"):
        with pytest.raises(ValueError):
            parse_recipe(text)
