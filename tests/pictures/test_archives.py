"""Archives that are damaged, cut, odd and large: what is found in them, and in what order."""

import io
import os
import tarfile

import numpy as np
import pytest
from PIL import Image

from pansharp_study.pictures.archives import Block, Source, index_archive, open_source, permutation, read_bytes
from pansharp_study.pictures.decoding import decode, identify

LAYOUTS = ("train", "{000..003}.tar", "0*.tar", "nested.tar", "stored.zip", "deflated.zip", "list.txt", "list.csv")


def keys(source, **options):
    return [source.address(position, **options).key for position in range(len(source))]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_pictures(layouts, encoded, layout):
    """Every picture once, in an order of its own for each seed and epoch, with the right bytes."""
    source = open_source(layouts / layout, mix=2)
    order = keys(source, seed=3)
    assert len(order) == len(set(order)) == len(source) == 40
    assert order == keys(open_source(layouts / layout, mix=2), seed=3)
    assert len({tuple(keys(source, seed=seed, epoch=epoch)) for seed in (3, 4) for epoch in (0, 1)}) == 4
    with pytest.raises(IndexError, match="has 40 pictures"):
        source.address(40, seed=3)
    for position in range(40):
        address = source.address(position, seed=3)
        number = int(os.path.splitext(address.key)[0][-2:])
        assert read_bytes(address) == encoded(number), address


def test_order_is_pinned():
    """The order of an epoch must never change: checkpoints store positions."""
    assert permutation(8, 1, 0).tolist() == [2, 4, 7, 5, 0, 6, 3, 1]
    source = Source("s", [Block("here", [f"{k}.jpg" for k in range(6)])])
    assert [key[0] for key in keys(source, seed=5, epoch=2)] == list("524130")


def test_archives_are_indexed_when_their_turn_comes(layouts):
    source = open_source(layouts / "{000..003}.tar", mix=1)
    source.address(0, seed=0)
    assert sum(isinstance(block, str) for block in source.blocks) >= 2


@pytest.mark.parametrize("cut", [*range(1, 40), 100, 511, 512, 513, 1024, 5000])
def test_cut_tar_gives_what_it_has(layouts, tmp_path, cut):
    """From a few bytes less to nearly nothing left: never more than is there, always named, never an exception."""
    data = (layouts / "000.tar").read_bytes()
    end = data.rindex(b"caption") + 512 if cut > 512 else len(data)
    (tmp_path / "cut.tar").write_bytes(data[: end - cut * (1 if cut > 512 else 397)])
    block, problems = index_archive(str(tmp_path / "cut.tar"))
    whole, _ = index_archive(str(layouts / "000.tar"))
    assert block.names == whole.names[: len(block.names)]
    for number in range(len(block.names)):
        decode(identify(read_bytes(block.address(number))))
    if (tmp_path / "cut.tar").stat().st_size < data.rindex(b"caption") + 1024:
        assert problems, "not named"


def test_damaged_tar_headers(layouts, tmp_path):
    """One flipped byte in a header loses what follows, says so, and never more."""
    data = (layouts / "001.tar").read_bytes()
    with tarfile.open(layouts / "001.tar") as archive:
        offsets = [member.offset for member in archive]
    for offset, place in zip(offsets[::3], (0, 100, 124, 130, 148, 156, 300)):
        broken = bytearray(data)
        broken[offset + place] ^= 0x15
        (tmp_path / "x.tar").write_bytes(broken)
        block, problems = index_archive(str(tmp_path / "x.tar"))
        assert "damaged header" in str(problems) and len(block.names) == (offsets.index(offset) + 1) // 2


@pytest.mark.parametrize("size", [-1024, -512, 2**62])
def test_a_size_that_cannot_be_is_damage(layouts, tmp_path, size):
    """A header that points back at itself, or far behind the end, neither hangs nor finds anything more."""
    data = bytearray((layouts / "001.tar").read_bytes())
    with tarfile.open(layouts / "001.tar") as archive:
        member = archive.getmembers()[2]
    member.size = size
    data[member.offset : member.offset + 512] = member.tobuf(format=tarfile.GNU_FORMAT)
    (tmp_path / "x.tar").write_bytes(data)
    block, problems = index_archive(str(tmp_path / "x.tar"))
    assert len(block.names) == 1 and problems


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_long_and_foreign_names(tmp_path, encoded, write_tar, form):
    names = ["plain.jpg", "a" * 90 + "/" + "b" * 90 + ".jpg", "._hidden.jpg", "notes.txt"]
    names += ["x/" * 100 + "deep.jpg", "größe/бег.jpg"] * (form != tarfile.USTAR_FORMAT)
    write_tar(tmp_path / "t.tar", [(name, encoded(k)) for k, name in enumerate(names)], format=form)
    block, problems = index_archive(str(tmp_path / "t.tar"))
    assert block.names == [name for name in names if name.endswith(".jpg") and "hidden" not in name] and not problems
    found = [read_bytes(block.address(k)) for k in range(len(block.names))]
    assert found == [encoded(names.index(name)) for name in block.names]


def test_odd_files_in_a_folder(tmp_path, encoded):
    """Hidden files and loops are left out; a pipe and a dangling link are refused when they are read."""
    (tmp_path / "good.jpg").write_bytes(encoded(0))
    (tmp_path / "._good.jpg").write_bytes(b"resource fork")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "x.jpg").write_bytes(encoded(1))
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "folder.jpg" / "inside.JPG").write_bytes(encoded(2))
    os.mkfifo(tmp_path / "pipe.jpg")
    os.symlink(tmp_path / "nowhere", tmp_path / "dangling.jpg")
    os.symlink(tmp_path, tmp_path / "folder.jpg" / "loop")
    source = open_source(tmp_path)
    assert sorted(keys(source, seed=0)) == ["dangling.jpg", "folder.jpg/inside.JPG", "good.jpg", "pipe.jpg"]
    addresses = {address.key: address for address in (source.address(k, seed=0) for k in range(4))}
    assert Image.open(io.BytesIO(read_bytes(addresses["folder.jpg/inside.JPG"]))).size == (80, 72)
    with pytest.raises(ValueError, match="not a regular file"):
        read_bytes(addresses["pipe.jpg"])
    with pytest.raises(FileNotFoundError):
        read_bytes(addresses["dangling.jpg"])


def test_wrong_specifications(layouts, tmp_path):
    (tmp_path / "bare.csv").write_text("path\nx.jpg\n")
    wrong = {
        "s3://bucket/a.tar": "is not a path",
        "pipe:cat a.tar": "is not a path",
        tmp_path / "a": "does not exist",
        tmp_path: "no picture",
        (): "no picture",
        tmp_path / "bare.csv": "no column 'filepath'",
        str(layouts / "*"): "mixture",
        layouts / "0{00..99}.tar": "and 95 more",
    }
    for spec, message in wrong.items():
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            open_source(spec)
    with pytest.raises(ValueError, match="mix=0"):
        open_source(layouts / "000.tar", mix=0)


def test_fingerprint_follows_the_names(layouts, tmp_path, write_tar, encoded):
    """Another picture in a folder or another archive changes it, indexing does not."""
    source = open_source(layouts / "0*.tar")
    before = source.fingerprint
    assert before == open_source(layouts / "{000..003}.tar").fingerprint
    assert before != open_source(layouts / "{000..002}.tar").fingerprint
    assert len(source) == 40 and Source("s", source.blocks).fingerprint == before
    (tmp_path / "a.jpg").write_bytes(encoded(0))
    one = open_source(tmp_path).fingerprint
    (tmp_path / "b.jpg").write_bytes(encoded(1))
    assert open_source(tmp_path).fingerprint != one


def test_spans_hold_large_offsets():
    """Archives of more than 4 GiB."""
    block = Block("a.tar", ["x.jpg"], np.array([[2**40, 7, -1]]))
    assert block.address(0) == ("a.tar/x.jpg", "a.tar", 2**40, 7, -1)
