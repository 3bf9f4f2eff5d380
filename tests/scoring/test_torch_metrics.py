"""The torchmetrics classes: equal to the functions however the images are split, over batches and over processes."""

import copy
import os
import pickle
import sys
import warnings

import pytest
import torch
from torchmetrics import MetricCollection

from pansharp_study import metrics
from pansharp_study.optics.sensors import get_sensor
from pansharp_study.optics.wald import degrade, upsample
from pansharp_study.scoring.torch_metrics import CC, HQNR, Q2n, all_indices

PARTS = [(slice(0, 2), slice(2, 5)), (slice(5, 6),)]  # two processes: batches of 2 and 3 images, and of 1
NAMES = sorted(all_indices("QB"))


def images() -> dict:
    """Six small fused images with all that any index asks for; the first is perfect."""
    generator = torch.Generator().manual_seed(1)
    gt = upsample(300 + 600 * torch.rand(6, 4, 32, 32, generator=generator))
    fused = gt + 20 * torch.randn(gt.shape, generator=generator)
    fused[0] = gt[0] + 1
    return {"fused": fused, "gt": gt, "ms": degrade(gt, get_sensor("QB").mtf_ms), "pan": gt.mean(1, keepdim=True)}


def of_functions() -> dict:
    """Mean over the images of every function's value."""
    given, found = images(), {}
    for name in NAMES:
        index = getattr(metrics, name)
        if name in ("sam", "ergas", "q", "q2n", "scc", "psnr", "ssim", "rmse", "cc"):
            values = index(given["fused"], given["gt"], **({"peak": 2047} if name in ("psnr", "ssim") else {}))
        else:
            values = index(given["fused"], given["ms"], given["pan"], sensor="QB")
        found[name] = values.mean().item()
    return found


def score(parts) -> MetricCollection:
    """A collection that has seen these parts of the images."""
    collection, given = all_indices("QB"), images()
    for part in parts:
        collection.update(**{k: x[part] for k, x in given.items()})
    return collection


def one_process(rank: int, folder: str):
    """What one of two processes computes after both have seen their images."""
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    collection = score(PARTS[rank])
    values = {name: value.item() for name, value in collection.compute().items()}
    own = {name: getattr(m, m.states[1]).item() for name, m in collection.items()}  # unsynced again after compute
    torch.save((values, own), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_eighteen():
    assert len(NAMES) == 18
    better = {name for name, m in all_indices("QB").items() if m.higher_is_better}
    assert better == {"q", "q2n", "scc", "psnr", "ssim", "cc", "qnr", "hqnr", "r_q2n"}


@pytest.mark.parametrize("order", [[0], [0, 1, 2], [2, 0, 1]])
def test_any_split_gives_the_mean_over_images(order):
    parts = [[slice(0, 6)], [*PARTS[0], *PARTS[1]]][len(order) > 1]
    got = score([parts[k] for k in order]).compute()
    assert got.keys() == of_functions().keys()
    for name, want in of_functions().items():
        assert got[name].item() == pytest.approx(want, abs=1e-12), name


def test_two_processes_give_what_one_gives(tmp_path):
    if not torch.distributed.is_available():
        pytest.skip("this build of PyTorch has no distributed package")
    torch.multiprocessing.spawn(one_process, (str(tmp_path),), nprocs=2)
    alone = {name: value.item() for name, value in score([*PARTS[0], *PARTS[1]]).compute().items()}
    for rank, count in ((0, 5), (1, 1)):
        values, own = torch.load(tmp_path / f"{rank}.pt")
        assert values.keys() == alone.keys() and set(own.values()) == {count}
        for name in alone:
            assert values[name] == pytest.approx(alone[name], abs=1e-12), (rank, name)


def test_equal_values_are_not_taken_for_one_metric():
    """Collections merge metrics with equal states after the first batch: ours never look equal, the same index with
    two options included.
    """
    given = images()
    two = MetricCollection({"coarse": Q2n(block=32), "fine": Q2n(block=16), "cc": CC()})
    two.update(given["gt"], given["gt"])
    two.update(given["fused"], given["gt"])
    got = two.compute()
    for name, block in (("coarse", 32), ("fine", 16)):
        want = (1 + metrics.q2n(given["fused"], given["gt"], block=block).mean()) / 2
        assert got[name].item() == pytest.approx(want.item(), abs=1e-12)


def test_copies_pickles_and_resets():
    metric, given = HQNR(sensor="QB", border="reflect"), images()
    metric.update(given["fused"], given["ms"], given["pan"])
    for same in (copy.deepcopy(metric), pickle.loads(pickle.dumps(metric))):
        assert same.compute() == metric.compute()
    metric.reset()
    with pytest.warns(UserWarning, match="before"):
        assert torch.isnan(metric.compute())
