"""Training streams: every step has its batch, ranks share nothing, and a corpus passes through the pool."""

import hashlib
import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pansharp_study.core import load_params, root, seeded
from pansharp_study.simulation.base_images import make_base_images, pack_pictures
from pansharp_study.simulation.pairs import PAIR_KEYS, simulate_pairs
from pansharp_study.simulation.stream import CorpusStream, Stream, append_pool, open_stream
from pansharp_study.simulation.switches import OFF as SWITCHES

OFF = {key: value for values in SWITCHES.values() for key, value in values.items()}


def stream(base_images, params, *seed, ahead=3, **options):
    return Stream(base_images, 4, params, 4, seed or (1, "run"), ahead=ahead, **options)


def test_stream_gives_each_step_its_batch(base_images, params):
    """Steps in order, out of order and after a restart: the same batches."""
    whole = stream(base_images, params)
    batches = [whole(step) for step in range(7)]
    resumed, back = stream(base_images, params), stream(base_images, params)
    assert all(torch.equal(batches[step][k], resumed(step)[k]) for step in (4, 5, 6) for k in ("ms", "pan", "gt"))
    assert all(torch.equal(batches[step]["ms"], back(step)["ms"]) for step in (6, 0, 3))
    assert batches[0]["ms"].shape == (4, 4, 12, 12) and set(batches[0]) == set(PAIR_KEYS)


def test_streams_of_ranks_do_not_overlap(base_images, params):
    """No pair of one process or seed is a pair of another, nor comes twice."""
    seen = [stream(base_images, params, rank=rank, world=2)(step)["gt"] for rank in (0, 1) for step in range(5)] + [
        stream(base_images, params, 2, "run")(0)["gt"]
    ]
    pairs = torch.cat(seen).flatten(1)
    assert len(torch.unique(pairs, dim=0)) == len(pairs)


def test_numbers_of_bands_take_turns(base_images, params):
    """Whatever is made at once, each step has its number of bands and its batch."""
    one, other = (Stream(base_images, (4, 8, 5), params, 2, (1, "turns"), ahead=4) for _ in range(2))
    batches = [one(step) for step in range(9)]
    assert [b["gt"].shape[1] for b in batches] == 3 * [4, 8, 5] and all(
        b["ms"].shape == (2, b["gt"].shape[1], 12, 12) and b["pan"].shape == (2, 1, 48, 48) for b in batches
    )
    assert all(torch.equal(other(step)["gt"], batches[step]["gt"]) for step in (7, 2, 5))
    assert len(torch.unique(torch.cat([b["pan"] for b in batches]).flatten(1), dim=0)) == 18


def test_ways_are_mixed_within_a_batch(base_images, params):
    """Samples of the three ways follow one another in a simulation, not in the batches of a stream."""
    made = stream(base_images, params | OFF, ahead=4)
    made(0)
    whole = simulate_pairs(base_images, 4, 16, params | OFF, seeded(1, "run", "stream", 0, 0))
    order = [
        int(np.flatnonzero([torch.equal(x, y) for y in whole["gt"]])[0]) for step in range(4) for x in made(step)["gt"]
    ]
    assert sorted(order) == list(range(16)) and order != list(range(16))


# a corpus that flows through the pool


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Pictures in a folder tree and in two shards; one shard is truncated and one picture damaged."""
    base, rng = tmp_path_factory.mktemp("archive"), np.random.default_rng(7)

    def encoded():
        out = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)).resize(
            (90, 84), Image.Resampling.BICUBIC
        ).save(out, "JPEG")
        return out.getvalue()

    for k in range(30):
        path = base / "train" / f"n{k % 3}" / f"{k}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded())
    (base / "train" / "n0" / "broken.JPEG").write_bytes(b"no picture")
    for shard in (0, 1):
        with tarfile.open(base / f"{shard:03d}.tar", "w") as file:
            for k in range(20):
                data = encoded()
                info = tarfile.TarInfo(f"{shard}_{k}.jpg")
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))
    cut = base / "001.tar"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    return [str(base / "train"), str(base / "{000..001}.tar")]


@pytest.fixture(scope="module")
def flowing(archive, params):
    """All of params.yaml, with the archive as corpus."""
    p = params | {
        "corpus": archive,
        "corpus_images": 12,
        "refill": 2,
        "base_image_size": 64,
        "procedural_scenes": 2,
        "sources": ["photograph"],
        "band_sources": {"mixed": 1, "spectral": 0, "procedural": 0},
    }
    whole = load_params(scale="laptop")
    return whole | {"synthesize_pairs": p, "pretrain": whole["pretrain"] | {"batch": 3}}


@pytest.fixture(scope="module")
def images(flowing):
    return make_base_images(flowing["synthesize_pairs"], 1)


def flow(flowing, images, *, workers=0, ahead=3, **options):
    return open_stream(flowing, 4, seed=(1, "flow"), base_images=images, workers=workers, ahead=ahead, **options)


def steps(stream, which):
    return torch.cat([stream(step)["gt"] for step in which])


def test_the_corpus_reaches_the_batches(flowing, images):
    """Pictures of the pool are replaced as told, and crops come from them."""
    one = flow(flowing, images)
    before = steps(one, range(3))
    pool = one.refill.pool.clone()
    assert one.refill.replaced == 12 and (pool.flatten(1).float().std(1) > 1).all() and len(before) == 9
    one(3)
    assert (
        one.refill.replaced == 12 + 3 * 2
        and [torch.equal(a, b) for a, b in zip(one.refill.pool, pool)] == [False] * 6 + [True] * 6
    )
    still = flow(flowing | {"synthesize_pairs": flowing["synthesize_pairs"] | {"refill": 0}}, images)
    assert type(still) is Stream and not torch.equal(steps(still, range(3)), before), (
        "without refill: the pool that the stage decoded"
    )
    for _ in range(12, 90, 6):
        one(one.chunk * 3 + 3)
    assert one.refill.order.progress.epoch != [0, 0] and one.refill.report.skipped > 0
    assert "broken.JPEG" in str(one.refill.report) and "001.tar: cut off" in str(one.refill.report)


def test_a_large_archive_is_not_read_as_a_whole(archive, flowing, images, tmp_path):
    """Of forty shards a stream opens the sixteen whose turn it is."""
    whole = Path(archive[1].replace("{000..001}", "000")).read_bytes()
    for shard in range(40):
        (tmp_path / f"{shard:03d}.tar").write_bytes(whole)
    few = flow(
        flowing | {"synthesize_pairs": flowing["synthesize_pairs"] | {"corpus": [str(tmp_path / "*.tar")]}}, images
    )
    few(0)
    state = few.state_dict()
    few.load_state_dict(state)
    few(3)
    assert sum(isinstance(block, str) for block in few.refill.order.sources[0].blocks) == 40 - 17, (
        "sixteen, and the first one to see that there are pictures"
    )


def test_batches_do_not_depend_on_workers(flowing, images):
    """Decoded here or by three processes: the same."""
    here = steps(flow(flowing, images), range(10))
    crew = flow(flowing, images, workers=3)
    assert torch.equal(here, steps(crew, range(10)))
    crew.close()
    assert torch.equal(steps(crew, range(9, 13)), steps(flow(flowing, images), range(9, 13))), (
        "begun late or gone on: decoded up to there"
    )
    crew.close()


@pytest.mark.parametrize("stop", [3, 7, 11])
def test_a_resumed_stream_equals_an_uninterrupted_one(flowing, images, stop, tmp_path):
    """Bit for bit, from a checkpoint file, at any step, with another number of workers."""
    whole = flow(flowing, images)
    want = [steps(whole, [step]) for step in range(14)]
    begun = flow(flowing, images, workers=2)
    assert all(torch.equal(steps(begun, [step]), want[step]) for step in range(stop))
    torch.save(begun.state_dict(), tmp_path / "state.pt")
    begun.close()
    resumed = flow(flowing, images)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert all(torch.equal(steps(resumed, [step]), want[step]) for step in range(stop, 14))


def test_a_killed_training_ends_with_the_same_weights(flowing, images, tmp_path):
    """Training that is killed between checkpoints and resumed gives bit for bit the weights of an uninterrupted run."""
    from pansharp_study.networks.zoo import create_model
    from pansharp_study.training.loop import train

    settings = flowing["pretrain"] | {"steps": 9, "checkpoint_every": 4, "log_every": 3, "validation": 2}

    def trained(stream, checkpoint=None):
        model = create_model("fusionnet", bands=4, seed=1, width=4, depth=1)
        curves = train(model, [], settings, seed=(1,), stream=stream, checkpoint=checkpoint)
        return curves, model.state_dict()

    class Killed(RuntimeError):
        pass

    class Watched(CorpusStream):
        asked, end = (), 99

        def __call__(self, step):
            self.asked += (step,)
            if step == self.end:
                raise Killed
            return super().__call__(step)

    curves, want = trained(flow(flowing, images))
    killed, resumed = flow(flowing, images, workers=1), flow(flowing, images)
    killed.__class__ = resumed.__class__ = Watched
    killed.end = 6
    with pytest.raises(Killed):
        trained(killed, tmp_path / "run.pt")
    killed.close()
    again, got = trained(resumed, tmp_path / "run.pt")
    assert resumed.asked == (4, 5, 6, 7, 8), "went on from the checkpoint"
    assert again == curves and all(torch.equal(want[k], got[k]) for k in want)


def test_streams_that_cannot_be_say_so(flowing, images, base_images, params):
    """Backwards, another rank, too fast a refill."""
    one = flow(flowing, images)
    one(6)
    with pytest.raises(ValueError, match="open another one"):
        one(0)
    with pytest.raises(ValueError, match="process 0 of 1 with a corpus"):
        flow(flowing, images, rank=1, world=2).load_state_dict(one.state_dict())
    with pytest.raises(ValueError, match="without a corpus"):
        one.load_state_dict(stream(base_images, params).state_dict())
    with pytest.raises(ValueError, match="synthesize_pairs.refill = 2"):
        flow(flowing, images, ahead=16)
    with pytest.raises(ValueError, match="rank=2, world=2"):
        stream(base_images, params, rank=2, world=2)


def test_the_pool_is_a_part_of_the_pictures():
    """What is written into the pool is cut; what it replaces is gone."""
    few = pack_pictures([torch.full((3, 6, 8), k, dtype=torch.uint8) for k in (10, 20)], 3)
    wide, pool = append_pool(few, 2, 8, drop=1)
    pool[1] = torch.arange(192).view(3, 8, 8)
    assert pool.shape == (2, 3, 8, 8) and wide.height.tolist() == [6, 8, 8]
    cut, which = wide.cut(40, 8, seeded("pool"))
    assert set(which.tolist()) == {1, 2} and cut[which == 1].max() == 0
    assert {tuple(x.sort().values.tolist()) for x in cut[which == 2].flatten(1)} == {tuple(range(192))}


RANK = """
import hashlib, sys, torch
from pansharp_study.core import load_params
from pansharp_study.simulation.stream import open_stream
if __name__ == "__main__":
    torch.set_num_threads(1)
    rank, params = int(sys.argv[1]), torch.load(sys.argv[2])
    stream = open_stream(params, 4, seed=(1, "flow"), base_images=sys.argv[3], workers=0, ahead=3, rank=rank, world=2)
    for step in range(7):
        print(*(hashlib.sha256(x.numpy().tobytes()).hexdigest() for x in stream(step)["gt"]))
    done = stream.refill.order
    tasks = [done.task(*slot) for slot in stream.refill.slots.tolist()]
    taken = {(done.sources[task.source].name, task.address.key) for task in tasks}
    print(*sorted("|".join(t) for t in taken))
    stream.close()
"""


def test_two_processes_share_neither_pairs_nor_pictures(flowing, images, tmp_path):
    """Two real processes of one training; each equals the same rank in this process."""
    from safetensors.torch import save_file

    torch.save(flowing, tmp_path / "params.pt")
    save_file({k: v.contiguous() for k, v in images.items()}, tmp_path / "base_images.safetensors")
    (tmp_path / "rank.py").write_text(RANK)
    command = [sys.executable, str(tmp_path / "rank.py")]
    running = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "params.pt"), str(tmp_path / "base_images.safetensors")],
            stdout=subprocess.PIPE,
            text=True,
            cwd=root(),
            env=os.environ | {"PYTHONPATH": str(root())},
        )
        for rank in (0, 1)
    ]
    told = [process.communicate(timeout=120)[0].splitlines() for process in running]
    assert [len(lines) for lines in told] == [8, 8]
    pairs = [" ".join(lines[:7]).split() for lines in told]
    assert len(set(pairs[0] + pairs[1])) == 2 * 7 * 3, "a pair came twice"
    pictures = [set(lines[7].split()) for lines in told]
    assert len(pictures[0]) == 12 and not pictures[0] & pictures[1]
    same_rank = flow(flowing, images, rank=1, world=2)
    assert [
        hashlib.sha256(x.numpy().tobytes()).hexdigest() for step in range(7) for x in same_rank(step)["gt"]
    ] == pairs[1]


def test_refill_without_a_corpus_says_so(flowing, images):
    """Nothing to replace pictures from."""
    with pytest.raises(ValueError, match="refill = 2 with corpus = ..: name a corpus"):
        flow(flowing | {"synthesize_pairs": flowing["synthesize_pairs"] | {"corpus": []}}, images)
