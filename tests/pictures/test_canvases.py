"""Canvases from several sources: order, shares and restarts, damaged pictures, and workers that are lost."""

import io
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch

from pansharp_study.pictures.archives import Address, open_source
from pansharp_study.pictures.canvases import (
    CanvasDataset,
    Refill,
    Task,
    WeightedOrder,
    canvases,
    check_source,
    load_canvases,
)
from pansharp_study.pictures.decoding import Cut


def test_ten_thousand_files_with_one_percent_corrupt(tmp_path, encoded):
    """Counted, named, in time, and the same count with another number of workers."""
    begin = time.monotonic()
    good = [encoded(number, (64, 64)) for number in range(20)]
    bad = (b"", b"<html>404 not found</html>", bytes(700), good[0][: len(good[0]) // 2])
    for number in range(10_000):
        folder = tmp_path / "train" / f"n{number // 500:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        data = bad[number // 100 % 4] if number % 100 == 7 else good[number % 20]
        (folder / f"{number:05d}.JPEG").write_bytes(data)
    report = check_source(tmp_path / "train", workers=2, log=tmp_path / "skipped.txt")
    assert (report.read, report.skipped) == (9900, 100)
    lines = [line.split("\t") for line in (tmp_path / "skipped.txt").read_text().splitlines()]
    assert len(lines) == 100 and all(name.endswith("07.JPEG") and reason for name, reason in lines)
    assert len(report.first) == 10 and "..." in str(report)
    _, again = canvases(tmp_path / "train", 500, size=64, seed=1, workers=0)
    assert again.read == 500 and 0 <= again.skipped < 20
    assert time.monotonic() - begin < 20 * max(1, os.getloadavg()[0] / os.cpu_count())


def test_order_of_several_sources(layouts):
    """Each process takes its part of every epoch, in the order of the source; shares are kept."""
    parts = [open_source(layouts / "train"), open_source(layouts / "stored.zip")]
    for world in (1, 2, 3):
        taken = [[], []]
        for rank in range(world):
            order = WeightedOrder(parts, [0.75, 0.25], seed=3, rank=rank, world=world)
            tasks = [task for task, _ in zip(order, range(200 // world))]
            counts = [sum(task.source == k for task in tasks) for k in range(2)]
            assert abs(counts[0] - 0.75 * len(tasks)) <= 1
            for task in tasks:
                if task.epoch == 0:
                    place = task.position * world + rank
                    assert task.address == parts[task.source].address(place, seed=3)
                    taken[task.source].append(place)
        assert sorted(taken[0]) == list(range(40)), "every picture of an epoch once"
        assert len(set(taken[1])) == len(taken[1])


def test_cut_shard_among_whole_ones(layouts, tmp_path):
    """The others are read, the cut one gives its half and is named."""
    for shard in range(4):
        data = (layouts / f"{shard:03d}.tar").read_bytes()
        (tmp_path / f"{shard:03d}.tar").write_bytes(data if shard != 2 else data[: len(data) // 2])
    report = check_source(tmp_path / "{000..003}.tar")
    assert 33 <= report.read <= 36 and not report.skipped
    assert list(report.damaged) == [str(tmp_path / "002.tar")] and "cut" in str(report)
    _, report = canvases(tmp_path / "*.tar", 60, size=64, seed=0, workers=0)
    assert report.read == 60 and len(report.damaged) == 1


def test_cut_zip_is_named(layouts, tmp_path):
    (tmp_path / "a.zip").write_bytes((layouts / "stored.zip").read_bytes())
    (tmp_path / "b.zip").write_bytes((layouts / "stored.zip").read_bytes()[:-3000])
    report = check_source(tmp_path / "*.zip", workers=0)
    assert report.read == 40 and list(report.damaged) == [str(tmp_path / "b.zip")]
    with pytest.raises(ValueError, match="no picture in .*b.zip.*cannot be read"):
        open_source(tmp_path / "b.zip")


def test_same_canvases_for_any_number_of_workers(layouts):
    parts = {"folder": layouts / "train", "zip": layouts / "deflated.zip"}
    options = {"size": 64, "shares": {"folder": 1, "zip": 2}}
    first, _ = canvases(parts, 90, seed=2, workers=0, **options)
    for workers in (1, 3):
        assert torch.equal(first, canvases(parts, 90, seed=2, workers=workers, **options)[0])
    assert not torch.equal(first, canvases(parts, 90, seed=3, workers=0, **options)[0])


def test_workers_leave_the_random_numbers_of_torch_alone(layouts):
    torch.manual_seed(0)
    want = torch.rand(3)
    torch.manual_seed(0)
    canvases(layouts / "train", 3, size=64, seed=0, workers=1)
    assert torch.equal(torch.rand(3), want)


def test_processes_get_different_canvases(layouts):
    """Two ranks take all pictures of an epoch, none twice; the canvas of a picture does not depend on who makes it."""
    options = {"size": 64, "seed": 0, "workers": 0}
    pools = [canvases(layouts / "train", 20, rank=rank, world=2, **options)[0] for rank in range(2)]
    both = {canvas.numpy().tobytes() for pool in pools for canvas in pool}
    alone = {canvas.numpy().tobytes() for canvas in canvases(layouts / "train", 40, **options)[0]}
    assert len(both) == 40 and both == alone


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_worker_is_one_clear_error_and_the_run_resumes(layouts, sent):
    """Killed or stopped: an error in time that says what to do; then the same canvases as if nothing had happened."""
    whole, pool, again = torch.zeros(3, 12, 3, 64, 64, dtype=torch.uint8)
    with Refill(layouts / "train", whole, seed=0, workers=0) as refill:
        refill.step(60)
    canvases(layouts / "train", 1, size=64, seed=0, workers=1)  # starts the fork server, which takes long
    refill = Refill(layouts / "train", pool, seed=0, workers=1, depth=2, timeout_s=4)
    refill.step(15)
    state = refill.state_dict()
    lost = multiprocessing.active_children()
    for worker in lost:
        os.kill(worker.pid, sent)
    begin = time.monotonic()
    with pytest.raises(RuntimeError, match="process that decodes pictures ended.*resume from the last state"):
        refill.step(45)
    assert time.monotonic() - begin < 40
    for worker in lost:
        worker.kill()
    with Refill(layouts / "train", again, seed=0, workers=1) as resumed:
        resumed.load_state_dict(state)
        resumed.step(45)
    assert torch.equal(again, whole)


def test_refill_resumes_bit_for_bit(layouts):
    """Also with another number of workers, over epochs, after `close`, and in a part of a larger pool."""
    parts = [open_source(layouts / "train"), open_source(layouts / "0*.tar")]
    options = {"seed": 4, "shares": [3, 1]}
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
        got = resumed.state_dict()
    assert got["position"] == end["position"] and torch.equal(got["slots"], end["slots"])
    assert torch.equal(whole, again) and not whole[:10].any()
    for change in ({"seed": 5}, {"shares": [1, 1]}, {"rank": 1, "world": 2}, {"zoom": (0.5, 1.0)}):
        with pytest.raises(ValueError, match="the state was stored with"):
            Refill(parts, again[10:], **options | change).load_state_dict(state)
    with pytest.raises(ValueError, match="pool of 20 canvases"):
        Refill(parts, again, **options).load_state_dict(state)
    with pytest.raises(ValueError, match="sources"):
        Refill([parts[0], open_source(layouts / "stored.zip")], again[10:], **options).load_state_dict(state)


def test_refill_resumes_after_corrupt_pictures(tmp_path, encoded):
    """Wherever it stops among damaged pictures, it goes on with the next."""
    for number in range(20):
        (tmp_path / f"{number:02d}.jpg").write_bytes(encoded(number) if number % 3 else b"no")
    pool, again = torch.zeros(2, 5, 3, 64, 64, dtype=torch.uint8)
    for stop in (1, 5, 12):
        refill = Refill(tmp_path, pool, seed=0, workers=0)
        refill.step(stop)
        state = refill.state_dict()
        refill.step(13 - stop)
        assert (refill.report.read, refill.order.progress.epoch) == (13, [0])
        resumed = Refill(tmp_path, again, seed=0, workers=0)
        resumed.load_state_dict(state)
        resumed.step(13 - stop)
        assert torch.equal(pool, again)


def test_a_pool_cannot_be_restored_when_a_picture_is_gone(tmp_path, encoded):
    for number in range(6):
        (tmp_path / f"{number}.jpg").write_bytes(encoded(number))
    pool = torch.zeros(4, 3, 64, 64, dtype=torch.uint8)
    with Refill(tmp_path, pool, seed=0, workers=0) as refill:
        refill.step(4)
        state = refill.state_dict()
    gone = refill.order.task(*state["slots"][0].tolist()).address
    os.remove(gone.path)
    (tmp_path / os.path.basename(gone.path)).write_bytes(b"no")
    with pytest.raises(ValueError, match=f"restored: {gone.key}.*not a picture"):
        Refill(tmp_path, pool, seed=0, workers=0).load_state_dict(state)


def test_random_bytes_never_escape(tmp_path, encoded):
    """Pictures with flipped bytes: a canvas or a reason, never an exception."""
    rng, kinds = random.Random(0), ("JPEG", "PNG", "TIFF", "GIF", "WEBP", "BMP", "PPM", "JPEG2000")
    path = tmp_path / "x.jpg"
    for number in range(160):
        data = bytearray(encoded(number % 20, kind=kinds[number % 8]))
        for _ in range(rng.choice((1, 3, 30))):
            data[int(rng.random() * min(len(data), 400))] = int(rng.random() * 256)
        path.write_bytes(data[: len(data) if number % 5 else len(data) // 2])
        _, canvas, reason = CanvasDataset(Cut(64))[Task(Address("x", str(path)), 0, 0, 0, 0)]
        assert (canvas is None) == bool(reason) and "\n" not in reason


def test_nothing_readable_is_an_error(layouts, tmp_path):
    """A source of rubbish ends with its names instead of for ever, alone or in a mixture; so do too many ranks."""
    for number in range(5):
        (tmp_path / f"{number}.jpg").write_bytes(b"rubbish")
    for parts in (tmp_path, {"good": layouts / "train", "bad": tmp_path}):
        with pytest.raises(ValueError, match="no picture of .* can be used"):
            canvases(parts, 50, size=64, seed=0, workers=1)
    with pytest.raises(ValueError, match="process 50 of 60 gets no picture"):
        canvases(layouts / "train", 1, size=64, seed=0, workers=0, rank=50, world=60)
    with pytest.raises(ValueError, match="workers=-1"):
        canvases(layouts / "train", 1, seed=0, workers=-1)


def run(code, tmp_path):
    (tmp_path / "script.py").write_text(code)
    command = [sys.executable, str(tmp_path / "script.py")]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_script_without_a_main_guard_ends(layouts, tmp_path):
    code = f"""
from pansharp_study.pictures.canvases import canvases
canvases({str(layouts / "train")!r}, 4, seed=0, size=64, workers=1, timeout_s=5)
"""
    process = run(code, tmp_path)
    _, errors = process.communicate(timeout=120)
    assert process.returncode and "the script needs `if __name__ == '__main__':`" in errors


def test_workers_end_with_their_parent(layouts, tmp_path):
    """A training that is killed leaves no process behind."""
    code = f"""
import multiprocessing, time, torch
from pansharp_study.pictures.canvases import Refill
if __name__ == "__main__":
    pool = torch.zeros(8, 3, 64, 64, dtype=torch.uint8)
    refill = Refill({str(layouts / "train")!r}, pool, seed=0, workers=2)
    refill.step(8)
    print(*(worker.pid for worker in multiprocessing.active_children()), flush=True)
    time.sleep(100)
"""
    process = run(code, tmp_path)
    children = [int(pid) for pid in process.stdout.readline().split()]
    assert len(children) == 2
    process.kill()
    process.communicate(timeout=30)
    begin = time.monotonic()
    while any(alive(pid) for pid in children):
        assert time.monotonic() - begin < 30, "workers outlive their parent"
        time.sleep(0.2)


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended and was not waited for does not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_needs_only_torch_numpy_and_pillow(tmp_path):
    """The training machine has nothing else."""
    code = """
import sys
REFUSED = ("pandas", "scipy", "xarray", "yaml", "tqdm", "matplotlib", "fastcore", "nbdev", "webdataset", "torchvision")
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in REFUSED:
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
import pansharp_study.pictures.canvases
"""
    process = run(code, tmp_path)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors


def test_workers_end_when_the_loader_is_closed(layouts):
    """Closed early or read to the end, no process is left."""
    tasks = [task for task, _ in zip(WeightedOrder([open_source(layouts / "train")], [1.0], seed=0), range(30))]
    decoding = load_canvases(tasks, Cut(64), workers=2)
    next(decoding)
    assert len(multiprocessing.active_children()) == 2
    decoding.close()
    assert not multiprocessing.active_children()
    assert [task for task, _, _ in load_canvases(tasks, Cut(64), workers=2)] == tasks
    assert not multiprocessing.active_children()
