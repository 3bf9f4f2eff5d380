"""Picture sources on damaged, cut, odd and large archives; orders, shares and restarts; workers that are killed or stopped."""

import io
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from pansharp_study.pictures.archives import (
    Block,
    Item,
    Report,
    Source,
    decode,
    identify,
    index_archive,
    open_source,
    permutation,
    read_item,
    to_rgb,
)
from pansharp_study.pictures.canvases import Crew, Cut, Refill, Task, attempt, canvases, check_source, cut_canvas

SMALL = {"size": 64, "timeout_s": 20.0}


def encoded(number, size=(80, 72), kind="JPEG", **options):
    """A small picture with texture, another for every number."""
    coarse = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(out, kind, **options)
    return out.getvalue()


def write_tar(path, members, **options):
    with tarfile.open(path, "w", **options) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Forty pictures as a folder tree, four shards, a tar of tars and a zip."""
    base = tmp_path_factory.mktemp("corpus")
    named = [(f"n{number % 4}/n{number % 4}_{number:02d}", encoded(number)) for number in range(40)]
    for name, data in named:
        path = base / "train" / f"{name}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    for shard in range(4):
        members = [(f"{os.path.basename(name)}.{end}", data if end == "jpg" else b"caption") for name, data in named[shard::4] for end in ("jpg", "txt")]
        write_tar(base / f"{shard:03d}.tar", members)
    write_tar(base / "nested.tar", [(f"n{k}.tar", write_tar(base / "inner", [(f"{os.path.basename(name)}.JPEG", data) for name, data in named[k::4]]).read_bytes()) for k in range(4)])
    for kind, method in (("stored", zipfile.ZIP_STORED), ("deflated", zipfile.ZIP_DEFLATED)):
        with zipfile.ZipFile(base / f"{kind}.zip", "w", method) as archive:
            for name, data in named:
                archive.writestr(f"images2/{os.path.basename(name)}.jpg", data)
    (base / "list.txt").write_text("".join(f"train/{name}.JPEG\n" for name, _ in named))
    (base / "list.csv").write_text("filepath,title\n" + "".join(f'train/{name}.JPEG,"a, b"\n' for name, _ in named))
    return base


LAYOUTS = ("train", "{000..003}.tar", "0*.tar", "nested.tar", "stored.zip", "deflated.zip", "list.txt", "list.csv")


def tasks_of(source):
    return [Task(item, 0, 0, 0, number) for number, item in enumerate(source.items(seed=0))]


def test_ten_thousand_files_with_one_percent_corrupt(tmp_path):
    """Counted, named, in time, and the same count with another number of workers."""
    begin, good = time.monotonic(), [encoded(number, (64, 64)) for number in range(20)]
    bad = (b"", b"<html>404 not found</html>", bytes(700), good[0][: len(good[0]) // 2])
    for number in range(10_000):
        folder = tmp_path / "train" / f"n{number // 500:08d}"
        if number % 500 == 0:
            folder.mkdir(parents=True)
        (folder / f"{number:05d}.JPEG").write_bytes(bad[number // 100 % 4] if number % 100 == 7 else good[number % 20])
    report = check_source(tmp_path / "train", workers=2, log=tmp_path / "skipped.txt")
    assert (report.read, report.skipped, report.restarts) == (9900, 100, 0)
    lines = (tmp_path / "skipped.txt").read_text().splitlines()
    assert len(lines) == 100 and all(line.split("\t")[0].endswith("07.JPEG") and line.split("\t")[1] for line in lines)
    assert len(report.first) == 10 and "..." in str(report)
    pool, again = canvases(tmp_path / "train", 500, seed=1, workers=0, **SMALL)
    assert again.read == 500 and 0 <= again.skipped < 20
    assert time.monotonic() - begin < 20 * max(1, os.getloadavg()[0] / os.cpu_count())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_order_shares_and_start(corpus, layout):
    """Every picture once; two processes share them; a start skips exactly; seeds and epochs differ; bytes are right."""
    source = open_source(corpus / layout, mix=2)
    keys = [item.key for item in source.items(seed=3)]
    assert len(keys) == len(set(keys)) == len(source) == 40
    assert keys == [item.key for item in open_source(corpus / layout, mix=2).items(seed=3)]
    for world in (2, 3):
        parts = [[item.key for item in source.items(seed=3, rank=rank, world=world)] for rank in range(world)]
        assert sorted(sum(parts, [])) == sorted(keys) and max(map(len, parts)) - min(map(len, parts)) <= 1
        assert [item.key for item in source.items(seed=3, rank=1, world=world, start=5)] == parts[1][5:]
    assert len({tuple(item.key for item in source.items(seed=seed, epoch=epoch)) for seed in (3, 4) for epoch in (0, 1)}) == 4
    for key, picture in source.stream(seed=3, start=35):
        number = int(os.path.splitext(key)[0][-2:])
        assert np.array_equal(np.asarray(picture), np.asarray(Image.open(io.BytesIO(encoded(number))))), key


def test_order_is_pinned():
    """The order of an epoch must never change: checkpoints store positions."""
    assert permutation(8, 1, 0).tolist() == [2, 4, 7, 5, 0, 6, 3, 1]
    source = Source("s", [Block("here", [f"{k}.jpg" for k in range(6)])])
    assert [item.key[0] for item in source.items(seed=5, epoch=2)] == list("524130")


def test_archives_are_indexed_when_their_turn_comes(corpus):
    source = open_source(corpus / "{000..003}.tar", mix=1)
    next(source.items(seed=0))
    assert sum(isinstance(block, str) for block in source.blocks) >= 2


def test_stream_resumes_after_corrupt_pictures(corpus, tmp_path):
    """The position of the report is where to go on, whatever was skipped."""
    for number in range(20):
        (tmp_path / f"{number:02d}.jpg").write_bytes(encoded(number) if number % 3 else b"no")
    source, report = open_source(tmp_path), Report()
    whole = [key for key, _ in source.stream(seed=0, report=report)]
    assert (report.read, report.skipped, report.position) == (13, 7, 20)
    for stop in (1, 5, 12):
        report = Report()
        stream = source.stream(seed=0, report=report)
        head = [next(stream)[0] for _ in range(stop)]
        assert head + [key for key, _ in source.stream(seed=0, start=report.position)] == whole


@pytest.mark.parametrize("cut", [*range(1, 40), 100, 511, 512, 513, 1024, 5000])
def test_cut_tar_gives_what_it_has(corpus, tmp_path, cut):
    """From a few bytes less to nearly nothing left: never more than is there, always named, never an exception."""
    data = (corpus / "000.tar").read_bytes()
    end = data.rindex(b"caption") + 512 if cut > 512 else len(data)
    (tmp_path / "cut.tar").write_bytes(data[: end - cut * (1 if cut > 512 else 397)])
    block, problems = index_archive(str(tmp_path / "cut.tar"))
    whole, _ = index_archive(str(corpus / "000.tar"))
    assert block.names == whole.names[: len(block.names)]
    for number in range(len(block.names)):
        decode(identify(read_item(block.item(number))))
    if (tmp_path / "cut.tar").stat().st_size < data.rindex(b"caption") + 1024:
        assert problems, "not named"


def test_cut_shard_among_whole_ones(corpus, tmp_path):
    """The others are read, the cut one gives its half and is named."""
    for shard in range(4):
        data = (corpus / f"{shard:03d}.tar").read_bytes()
        (tmp_path / f"{shard:03d}.tar").write_bytes(data if shard != 2 else data[: len(data) // 2])
    report = check_source(tmp_path / "{000..003}.tar")
    assert 33 <= report.read <= 36 and not report.skipped
    assert list(report.damaged) == [str(tmp_path / "002.tar")] and "cut" in str(report)
    pool, report = canvases(tmp_path / "*.tar", 60, seed=0, **SMALL)
    assert report.read == 60 and len(report.damaged) == 1


def test_damaged_tar_headers(corpus, tmp_path):
    """One flipped byte in a header loses what follows, says so, and never more."""
    data = (corpus / "001.tar").read_bytes()
    offsets = [member.offset for member in tarfile.open(corpus / "001.tar")]
    for offset, place in zip(offsets[::3], (0, 100, 124, 130, 148, 156, 300)):
        broken = bytearray(data)
        broken[offset + place] ^= 0x15
        (tmp_path / "x.tar").write_bytes(broken)
        block, problems = index_archive(str(tmp_path / "x.tar"))
        assert "damaged header" in str(problems) and len(block.names) == (offsets.index(offset) + 1) // 2


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_long_and_foreign_names(tmp_path, form):
    names = ["plain.jpg", "a" * 90 + "/" + "b" * 90 + ".jpg", "._hidden.jpg", "notes.txt"]
    names += ["x/" * 100 + "deep.jpg", "größe/бег.jpg"] * (form != tarfile.USTAR_FORMAT)
    write_tar(tmp_path / "t.tar", [(name, encoded(k)) for k, name in enumerate(names)], format=form)
    block, problems = index_archive(str(tmp_path / "t.tar"))
    assert block.names == [name for name in names if name.endswith(".jpg") and "hidden" not in name] and not problems
    assert [read_item(block.item(k)) == encoded(names.index(name)) for k, name in enumerate(block.names)]


def test_cut_zip_is_named(corpus, tmp_path):
    (tmp_path / "a.zip").write_bytes((corpus / "stored.zip").read_bytes())
    (tmp_path / "b.zip").write_bytes((corpus / "stored.zip").read_bytes()[:-3000])
    report = check_source(tmp_path / "*.zip", workers=0)
    assert report.read == 40 and list(report.damaged) == [str(tmp_path / "b.zip")]
    with pytest.raises(ValueError, match="no picture in .*b.zip.*cannot be read"):
        open_source(tmp_path / "b.zip")


def test_same_canvases_for_any_number_of_workers(corpus):
    parts, shares = {"folder": corpus / "train", "zip": corpus / "deflated.zip"}, {"folder": 1, "zip": 2}
    first, _ = canvases(parts, 90, seed=2, workers=0, shares=shares, **SMALL)
    for workers in (1, 3):
        assert torch.equal(first, canvases(parts, 90, seed=2, workers=workers, shares=shares, **SMALL)[0])
    assert not torch.equal(first, canvases(parts, 90, seed=3, workers=0, shares=shares, **SMALL)[0])


def test_processes_get_different_canvases(corpus):
    """Rank 0 and 1 of one epoch: all pictures, none twice; and the canvas of a picture does not depend on who makes it."""
    pools = [canvases(corpus / "train", 20, seed=0, workers=0, rank=rank, world=2, **SMALL)[0] for rank in range(2)]
    both = {canvas.numpy().tobytes() for pool in pools for canvas in pool}
    assert len(both) == 40 and both == {canvas.numpy().tobytes() for canvas in canvases(corpus / "train", 40, seed=0, workers=0, **SMALL)[0]}


@pytest.mark.parametrize("workers", [1, 3])
def test_killed_and_stopped_workers(corpus, workers):
    """Nothing is lost, nothing changes, nothing hangs."""
    tasks, cut = tasks_of(open_source(corpus / "train")) * 3, Cut(64)
    right = [canvas for _, canvas, _ in Crew(tasks, workers=0, cut=cut)]
    crew, got = Crew(tasks, workers=workers, cut=cut, timeout_s=1.0, depth=2), []
    begin = time.monotonic()
    for number, (_, canvas, reason) in enumerate(crew):
        assert not reason
        got.append(canvas)
        ready = [worker for worker in crew.workers if worker.answered]
        if number in (5, 30, 31) and ready:
            os.kill(ready[0].process.pid, signal.SIGKILL)
        elif number == 60 and ready:
            os.kill(ready[-1].process.pid, signal.SIGSTOP)
    crew.close()
    assert crew.restarts >= 3 and all(np.array_equal(a, b) for a, b in zip(got, right, strict=True))
    assert time.monotonic() - begin < 60


def test_a_picture_that_takes_for_ever_is_named(tmp_path):
    """Two workers are lost to it, then it is skipped; the others come through."""
    for number in range(10):
        (tmp_path / f"{number}.png").write_bytes(encoded(number, kind="PNG"))
    Image.new("RGB", (9900, 9900)).save(tmp_path / "slow.png", compress_level=1)
    report = check_source(tmp_path, workers=2, timeout_s=0.25)
    assert report.read == 10 and report.skipped == 1 and report.restarts >= 2
    assert list(report.first.values()) == ["takes longer than 0.25 s"]


def test_refill_resumes_bit_for_bit(corpus):
    """Also with another number of workers, after a damaged picture, over epochs, and in a part of a larger pool."""
    parts, options = [open_source(corpus / "train"), open_source(corpus / "0*.tar")], {"seed": 4, "shares": [3, 1], "timeout_s": 20.0}
    whole = torch.zeros(30, 3, 64, 64, dtype=torch.uint8)
    again = torch.zeros_like(whole)
    with Refill(parts, whole[10:], workers=2, **options) as refill:
        refill.step(20)
        refill.step(13)
        state = refill.state_dict()
        refill.step(100)
        refill.close()
        refill.step(7)
        end = refill.state_dict()
    buffer = io.BytesIO()
    torch.save(state, buffer)
    state = torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
    with Refill(parts, again[10:], workers=0, **options) as resumed:
        resumed.load_state_dict(state)
        resumed.step(107)
        assert resumed.state_dict()["position"] == end["position"] and torch.equal(resumed.state_dict()["slots"], end["slots"])
    assert torch.equal(whole, again) and not whole[:10].any()
    for change in ({"seed": 5}, {"shares": [1, 1]}, {"rank": 1, "world": 2}, {"zoom": (0.5, 1.0)}):
        with pytest.raises(ValueError, match="the state was stored with"):
            Refill(parts, again[10:], **options | change).load_state_dict(state)
    with pytest.raises(ValueError, match="pool of 20 canvases"):
        Refill(parts, again, **options).load_state_dict(state)
    with pytest.raises(ValueError, match="sources"):
        Refill([parts[0], open_source(corpus / "stored.zip")], again[10:], **options).load_state_dict(state)


def test_refill_without_waiting(corpus):
    """Takes what is ready; the sequence is the same."""
    pools = torch.zeros(2, 40, 3, 64, 64, dtype=torch.uint8)
    with Refill(corpus / "train", pools[0], seed=0, workers=1) as refill:
        begin = time.monotonic()
        while refill.replaced < 40 and time.monotonic() - begin < 60:
            refill.step(min(5, 40 - refill.replaced), wait=False)
            time.sleep(0.01)
    with Refill(corpus / "train", pools[1], seed=0, workers=0) as refill:
        refill.step(40)
    assert torch.equal(*pools)


def test_a_pool_cannot_be_restored_when_a_picture_is_gone(tmp_path):
    for number in range(6):
        (tmp_path / f"{number}.jpg").write_bytes(encoded(number))
    pool = torch.zeros(4, 3, 64, 64, dtype=torch.uint8)
    with Refill(tmp_path, pool, seed=0, workers=0) as refill:
        refill.step(4)
        state = refill.state_dict()
    gone = refill.deal.task(*state["slots"][0].tolist()).item
    os.remove(gone.path)
    (tmp_path / os.path.basename(gone.path)).write_bytes(b"no")
    with pytest.raises(ValueError, match=f"restored: {gone.key}.*not a picture"):
        Refill(tmp_path, pool, seed=0, workers=0).load_state_dict(state)


def test_odd_files_in_a_folder(tmp_path):
    """Pipes, dangling links, folders with a picture's name, loops."""
    (tmp_path / "good.jpg").write_bytes(encoded(0))
    (tmp_path / "._good.jpg").write_bytes(b"resource fork")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "x.jpg").write_bytes(encoded(1))
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "folder.jpg" / "inside.JPG").write_bytes(encoded(2))
    os.mkfifo(tmp_path / "pipe.jpg")
    os.symlink(tmp_path / "nowhere", tmp_path / "dangling.jpg")
    os.symlink(tmp_path, tmp_path / "folder.jpg" / "loop")
    report = check_source(tmp_path, workers=1)
    assert (report.read, report.skipped) == (2, 2) and set(report.first.values()) == {"not a regular file", "No such file or directory"}


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F", "HSV", "LAB"])
def test_modes(mode):
    """Every mode becomes RGB of the same size, with the contrast it had."""
    grey = Image.linear_gradient("L").resize((90, 70))
    if mode in ("I;16", "I", "F"):
        values = np.asarray(grey).astype({"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]) * (8 if mode != "F" else 1)
        picture = Image.fromarray(values)
    else:
        picture = (grey if mode in ("1", "L", "LA", "P", "PA") else grey.convert("RGB")).convert("LA" if mode == "PA" else mode)
        picture = picture.convert("PA") if mode == "PA" else picture
    rgb = np.asarray(to_rgb(picture))
    assert rgb.shape == (70, 90, 3) and rgb.dtype == np.uint8
    assert rgb[:3].mean() < 60 and rgb[-3:].mean() > 190, (rgb[:3].mean(), rgb[-3:].mean())


def test_stored_formats(tmp_path):
    """CMYK JPEG, palette with transparency, 16 bits, EXIF turned, a PNG called JPEG: all become canvases."""
    base = Image.open(io.BytesIO(encoded(3, (120, 100))))
    turned = Image.Exif()
    turned[0x0112] = 6
    base.convert("CMYK").save(tmp_path / "cmyk.jpg")
    base.quantize(16).save(tmp_path / "palette.png", transparency=3)
    Image.fromarray(np.asarray(base.convert("L")).astype(np.uint16) * 257).save(tmp_path / "sixteen.tif")
    base.save(tmp_path / "turned.jpg", exif=turned)
    base.save(tmp_path / "png_called.JPEG", "PNG")
    base.save(tmp_path / "picture.webp")
    base.save(tmp_path / "picture.gif", save_all=True, append_images=[base])
    sizes = {key: picture.size for key, picture in open_source(tmp_path).stream(seed=0)}
    assert sizes.pop("turned.jpg") == (100, 120) and set(sizes.values()) == {(120, 100)} and len(sizes) == 6
    assert canvases(tmp_path, 7, seed=0, workers=0, **SMALL)[1].read == 7


def test_damaged_exif_is_no_damage():
    data = encoded(0, exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff garbage")
    assert decode(identify(data))[0].size == (80, 72)


def test_large_pictures():
    """A JPEG is reduced, another format refused before it is decoded, and what Pillow calls a bomb is an error with a name."""
    out = io.BytesIO()
    Image.new("L", (11000, 10000), 7).save(out, "JPEG", quality=50)
    assert decode(identify(out.getvalue()))[0].size == (5500, 5000)
    for size in ((11000, 10000), (20000, 20000)):
        out = io.BytesIO()
        Image.new("1", size).save(out, "PNG")
        with pytest.raises(Exception, match="pixels"):
            decode(identify(out.getvalue()))


def test_random_bytes_never_escape(tmp_path):
    """Pictures with flipped bytes: a canvas or a reason, never an exception."""
    rng, kinds = random.Random(0), ("JPEG", "PNG", "TIFF", "GIF", "WEBP", "BMP", "PPM", "JPEG2000")
    for number in range(160):
        data = bytearray(encoded(number % 20, kind=kinds[number % 8]))
        for _ in range(rng.choice((1, 3, 30))):
            data[int(rng.random() * min(len(data), 400))] = int(rng.random() * 256)
        (tmp_path / "x.jpg").write_bytes(data[: len(data) if number % 5 else len(data) // 2])
        canvas, reason = attempt(Task(Item("x", str(tmp_path / "x.jpg")), 0, 0, 0, 0), Cut(64))
        assert (canvas is None) == bool(reason) and "\n" not in reason


def test_cut_is_sharp_and_inside():
    """A canvas of a larger picture has its values; a small picture is mirrored, all of it; nothing is enlarged."""
    ramp = np.tile(np.arange(200, dtype=np.uint8)[:, None, None], (1, 150, 3))
    out = io.BytesIO()
    Image.fromarray(ramp).save(out, "PNG")
    for seed in range(20):
        canvas = cut_canvas(out.getvalue(), random.Random(seed), Cut(100, (1.0, 1.0)))
        assert (np.diff(canvas[0, :, 0].astype(int)) == 1).all() and canvas.shape == (3, 100, 100)
        zoomed = cut_canvas(out.getvalue(), random.Random(seed), Cut(100, (0.5, 1.0)))[0, :, 0].astype(int)
        assert 1 <= np.diff(zoomed[5:-5]).mean() < 1.51
        mirror = cut_canvas(out.getvalue(), random.Random(seed), Cut(420, (0.5, 1.0)))[0, :, 0].astype(int)
        assert set(np.abs(np.diff(mirror))) == {0, 1} and set(mirror) == set(range(200))


def test_nothing_readable_is_an_error(corpus, tmp_path):
    """A source of rubbish ends with its names instead of for ever; also as a part of a mixture, and for too many processes."""
    for number in range(5):
        (tmp_path / f"{number}.jpg").write_bytes(b"rubbish")
    for parts in (tmp_path, {"good": corpus / "train", "bad": tmp_path}):
        with pytest.raises(ValueError, match="no picture of .* can be used"):
            canvases(parts, 50, seed=0, workers=1, **SMALL)
    with pytest.raises(ValueError, match="process 50 of 60 gets no picture"):
        canvases(corpus / "train", 1, seed=0, workers=0, rank=50, world=60, **SMALL)


def test_wrong_specifications(corpus, tmp_path):
    (tmp_path / "bare.csv").write_text("path\nx.jpg\n")
    for spec, message in (("s3://bucket/a.tar", "is no path"), ("pipe:cat a.tar", "is no path"), (tmp_path / "a", "does not exist"), (tmp_path, "no picture"),
                          ([], "no picture"), (tmp_path / "bare.csv", "no column 'filepath'"), (str(corpus / "*"), "mixture"), (corpus / "0{00..99}.tar", "and 95 more")):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            open_source(spec)
    with pytest.raises(ValueError, match="mix=0"):
        open_source(corpus / "train", mix=0) and open_source(corpus / "000.tar", mix=0)
    with pytest.raises(ValueError, match="workers=-1"):
        canvases(corpus / "train", 1, seed=0, workers=-1)


def run(code, tmp_path, **options):
    (tmp_path / "script.py").write_text(code)
    return subprocess.Popen([sys.executable, str(tmp_path / "script.py")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def test_script_without_a_main_guard_ends(corpus, tmp_path):
    process = run(f"from pansharp_study.pictures.canvases import canvases\ncanvases({str(corpus / 'train')!r}, 4, seed=0, size=64, workers=1)\n", tmp_path)
    _, errors = process.communicate(timeout=120)
    assert process.returncode and "worker processes end before they begin" in errors


def test_workers_end_with_their_parent(corpus, tmp_path):
    """A training that is killed leaves no process behind."""
    process = run(f"""
import time, torch
from pansharp_study.pictures.canvases import Refill
if __name__ == "__main__":
    refill = Refill({str(corpus / 'train')!r}, torch.zeros(8, 3, 64, 64, dtype=torch.uint8), seed=0, workers=2)
    refill.step(8)
    print(*(worker.process.pid for worker in refill.crew.workers), flush=True)
    time.sleep(100)
""", tmp_path)
    children = [int(pid) for pid in process.stdout.readline().split()]
    assert len(children) == 2
    process.kill()
    process.communicate(timeout=30)
    begin = time.monotonic()
    while any(os.path.exists(f"/proc/{pid}") and open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] != "Z" for pid in children):
        assert time.monotonic() - begin < 30, "workers outlive their parent"
        time.sleep(0.2)


def test_needs_only_torch_numpy_and_pillow(tmp_path):
    """The training machine has nothing else."""
    code = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("pandas", "scipy", "xarray", "yaml", "tqdm", "matplotlib", "fastcore", "nbdev", "webdataset", "torchvision"):
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
import pansharp_study.pictures.canvases
"""
    process = run(code, tmp_path)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
