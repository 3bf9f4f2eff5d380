"""The training loop: pools that are too small, checkpoints that can't be used, a deadline."""

import pytest
import torch

from pansharp_study.networks.zoo import create_model
from pansharp_study.training.curves import load_curves
from pansharp_study.training.loop import from_pool, load_checkpoint, save_checkpoint, train

PARAMS = {
    "steps": 6,
    "batch": 2,
    "lr": 3e-3,
    "weight_decay": 0.0,
    "clip": 1.0,
    "ema": 0.5,
    "validation": 2,
    "log_every": 3,
    "checkpoint_every": 2,
    "compile": False,
    "graph": False,
}


def pool(n=8):
    g = torch.Generator().manual_seed(0)
    gt = 1000 * torch.rand(n, 4, 32, 32, generator=g)
    return {"ms": gt[..., 2::4, 2::4], "pan": gt.mean(1, keepdim=True), "gt": gt, "mtf": torch.full((n, 1), 0.3)}


def toy():
    return create_model("fusionnet", bands=4, width=4, depth=1)


def test_a_small_pool_is_refused():
    with pytest.raises(ValueError, match="1 training pairs are fewer than a batch of 2: raise synth"):
        from_pool([pool(3)], 2, 2, ("s",))


def test_only_complete_checkpoints_of_the_same_run_are_used(tmp_path, capsys):
    path = tmp_path / "c.pt"
    assert load_checkpoint(path, "a") is None
    save_checkpoint({"mark": "a", "done": 3}, path)
    assert load_checkpoint(path, "a")["done"] == 3 and load_checkpoint(path, "b") is None
    path.write_bytes(path.read_bytes()[:50])
    assert load_checkpoint(path, "a") is None and "c.pt can't be read" in capsys.readouterr().err


def test_a_deadline_leaves_a_checkpoint_to_go_on_from(tmp_path):
    """Stopped at every checkpoint and resumed, training ends with the same weights and curves."""
    whole, parts = toy(), toy()
    curves = train(whole, [pool()], PARAMS, seed=("t",))
    given = {"seed": ("t",), "checkpoint": tmp_path / "c.pt", "mark": "a"}
    for step in (2, 4):
        with pytest.raises(TimeoutError, match=f"stopped at step {step} of 6"):
            train(toy(), [pool()], PARAMS, **given, minutes=0)
    assert train(parts, [pool()], PARAMS, **given, minutes=0) == curves
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), parts.state_dict().values()))


def test_missing_curves_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="dvc repro pretrain"):
        load_curves(tmp_path)
