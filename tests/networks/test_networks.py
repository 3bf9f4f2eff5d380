"""Every network: shapes, gradients, learning, storing, compiling, odd sizes, flat images, gain and offset; scans against each other."""

import json
import os

import pytest
import torch
from safetensors import safe_open

from pansharp_study.core import load_params, root
from pansharp_study.networks.guides import back_projection
from pansharp_study.networks.mamba import scan_chunked, scan_reference
from pansharp_study.networks.pansharpener import FAMILIES
from pansharp_study.networks.zoo import count_parameters, create_model, list_models, load_weights, save_weights, to_half
from pansharp_study.optics.wald import degrade, upsample
from pansharp_study.training.loop import fusion_loss

SMALL = {
    "pnn": {"width": 8}, "pannet": {"width": 8, "depth": 2}, "msdcnn": {"width": 6}, "fusionnet": {"width": 8, "depth": 2},
    "panformer": {"width": 16, "depth": 1, "heads": 2}, "restormer": {"width": 16, "depth": 1, "heads": 2},
    "panmamba": {"width": 12, "depth": 1, "state": 4}, "bandset": {"width": 12, "depth": 2},
}
ALL = pytest.mark.parametrize("name", SMALL)
GUIDES = {"guided": True, "substitution": True}


def pair(bands=4, ratio=4, size=(8, 8), batch=1, seed=0):
    """A pair with structure: PAN is a sharp mixture of sharp bands."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, bands + 1, *size, generator=g)
    sharp = torch.nn.functional.interpolate(coarse, scale_factor=ratio, mode="bilinear") + 0.3 * torch.rand(batch, 1, size[0] * ratio, size[1] * ratio, generator=g)
    gt = 300 + 400 * sharp[:, :bands] * torch.linspace(0.5, 1, bands)[:, None, None]
    return degrade(gt, 0.3, ratio), 100 + 500 * sharp.mean(1, keepdim=True), gt


def small(name, bands=4, noise=0.1, **outer):
    """An untrained network whose last layer is no longer zero, nor its recalibration one."""
    model = create_model(name, bands=bands, **{**GUIDES, **outer}, **SMALL[name])
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, value in model.named_parameters():
            if "excite" in key or key.startswith(f"network.head.{len(model.network.head) - 1}."):
                value.normal_(std=noise, generator=g)
    return model


def test_every_network_is_tested():
    assert sorted(SMALL) == list_models() == sorted(FAMILIES)
    assert set(load_params()["models"]) == set(SMALL)


@ALL
def test_shapes_and_start(name):
    """4, 8 and 5 bands; before training the result is EXP."""
    for bands in (4, 8, 5):
        ms, pan, _ = pair(bands, batch=2)
        for outer in ({}, GUIDES):
            model = create_model(name, bands=bands, **outer, **SMALL[name])
            assert torch.allclose(model(ms, pan), upsample(ms))
        fused = small(name, bands)(ms, pan)
        assert fused.shape == (2, bands, 32, 32) and (fused - upsample(ms)).abs().max() > 1


@ALL
def test_odd_sizes_and_other_ratios(name):
    for ratio, size in ((4, (5, 7)), (3, (7, 5)), (2, (9, 11)), (6, (3, 3)), (4, (2, 2))):
        ms, pan, gt = pair(5, ratio, size)
        with torch.no_grad():
            assert small(name, 5)(ms, pan, ratio=ratio).shape == gt.shape


@ALL
def test_gradients_reach_every_parameter(name):
    ms, pan, gt = pair(batch=2)
    model = small(name)
    fusion_loss(model(ms, pan), gt, upsample(ms)).backward()
    for key, value in model.named_parameters():
        assert value.grad is not None and value.grad.isfinite().all() and value.grad.abs().max() > 0, key


@ALL
def test_learns_one_pair(name):
    ms, pan, gt = pair(size=(4, 4))
    lms = upsample(ms)
    model = create_model(name, bands=4, guided=True, **SMALL[name])
    optimiser = torch.optim.AdamW(model.parameters(), 5e-3)
    first = float(fusion_loss(lms, gt, lms))
    for _ in range(50):
        loss = fusion_loss(model(ms, pan, lms), gt, lms)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert float(loss.detach()) < 0.6 * first


@ALL
def test_stored_and_read_back(name, tmp_path):
    """All options return; 16 bits cost what rounding costs."""
    ms, pan, _ = pair()
    outer = {"inject": False, "normalise": "none", "back_project": 1, "substitution": False}
    for kind, model in (("plain", small(name).eval()), ("other", small(name, **outer).eval())):
        save_weights(model, tmp_path / f"{kind}.safetensors", steps=3)
        again = load_weights(tmp_path / f"{kind}.safetensors")
        assert again.recipe == model.recipe and not again.training
        with torch.no_grad():
            fused = model(ms, pan)
            assert torch.equal(again(ms, pan), fused)
            half = load_weights(to_half(model, tmp_path / "half.safetensors"))
            assert all(p.dtype == torch.float32 for p in half.parameters())
            assert (half(ms, pan) - fused).abs().max() < 5e-3 * fused.std()
    with safe_open(tmp_path / "plain.safetensors", "pt") as f:
        header = json.loads(f.metadata()["model"])
    assert header["steps"] == 3 and header["bands"] == (None if name == "bandset" else 4)


@ALL
def test_flat_images(name):
    """Nothing is divided by zero."""
    for value in (0.0, 700.0):
        ms, pan = torch.full((1, 4, 8, 8), value), torch.full((1, 1, 32, 32), value / 2)
        for outer in ({}, {"normalise": "none", "back_project": 1}):
            model = small(name, **outer)
            fused = model(ms, pan)
            fused.sum().backward()
            assert fused.isfinite().all() and all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@ALL
def test_gain_and_offset_drop_out(name):
    ms, pan, _ = pair()
    model = small(name).eval()
    with torch.no_grad():
        fused = model(ms, pan)
        assert (model(3 * ms + 40, 5 * pan - 7) - (3 * fused + 40)).abs().max() < 1e-3 * 3 * fused.std()


@ALL
def test_same_at_any_batch(name):
    """A pair's result does not depend on its neighbours in the batch."""
    ms, pan, _ = pair(batch=3)
    with torch.no_grad():
        model = small(name).eval()
        assert torch.allclose(model(ms, pan)[1:2], model(ms[1:2], pan[1:2]), rtol=1e-4, atol=0.05)


@pytest.mark.parametrize("name", SMALL if os.environ.get("SLOW") else ["fusionnet", "restormer", "panmamba", "bandset"])
def test_compiled_is_eager(name):
    """One graph without breaks from pair to result, forwards and backwards; one network per family, or with SLOW=1 all and the compiler's own kernels."""
    ms, pan, gt = pair(size=(4, 4))
    lms = upsample(ms)
    backend = "inductor" if os.environ.get("SLOW") else "aot_eager"
    model = small(name).train()
    results = []
    for network in (model, torch.compile(model, backend=backend, fullgraph=True, dynamic=False)):
        model.zero_grad()
        fused = network(ms, pan, lms)
        fusion_loss(fused, gt, lms).backward()
        results.append((fused.detach(), torch.cat([p.grad.flatten() for p in model.parameters()])))
    torch.compiler.reset()
    assert (results[0][0] - results[1][0]).abs().max() < 1e-3 * gt.std()
    assert (results[0][1] - results[1][1]).abs().max() < 1e-3 * results[0][1].abs().max()


# ---------------------------------------------------------------- the set of bands

def test_bandset_serves_any_bands_and_ratio_with_one_file(tmp_path):
    save_weights(small("bandset"), tmp_path / "any.safetensors")
    model = load_weights(tmp_path / "any.safetensors")
    g = torch.Generator().manual_seed(2)
    for bands in (1, 4, 5, 8, 12):
        for ratio in (2, 3, 4, 6):
            ms, pan, gt = pair(bands, ratio, (6, 5))
            order = torch.randperm(bands, generator=g)
            with torch.no_grad():
                fused, other = model(ms, pan, ratio=ratio), model(ms[:, order], pan, ratio=ratio)
            assert fused.shape == gt.shape
            assert (other - fused[:, order]).abs().max() <= 1e-5 * fused.abs().max()
    assert create_model("bandset", bands=7).bands is None
    with pytest.raises(ValueError, match="take bandset"):
        create_model("fusionnet")


# ---------------------------------------------------------------- the outer part

def test_headers_without_outer_options():
    """Weights released before the outer part had options get its defaults."""
    for path in sorted((root() / "weights").glob("*.safetensors")):
        with safe_open(path, "pt") as f:
            header = json.loads(f.metadata()["model"])
        if "inject" not in header:
            recipe = load_weights(path).recipe
            assert (recipe["inject"], recipe["normalise"], recipe["back_project"], recipe["substitution"]) == (True, "affine", 0, False)


def test_outer_parts():
    ms, pan, gt = pair()
    model = small("fusionnet").eval()
    with torch.no_grad():
        fused = model(ms, pan)
        model.back_project = 2  # at evaluation only
        near = model(ms, pan)
        assert torch.equal(near, back_projection(fused, ms, steps=2))
        assert not torch.equal(model(ms, pan, sensor="QB"), near), "the sensor's gains"
    away = [float((degrade(x, 0.3) - ms).abs().mean()) for x in (fused, near)]
    assert away[1] < 0.7 * away[0]
    perfect = back_projection(gt, ms, steps=1)
    assert (perfect - gt).abs().max() < 1e-2, "what agrees already is left alone"
    plain = small("fusionnet", normalise="none").eval()
    with torch.no_grad():
        assert not torch.allclose(plain(ms, pan, sensor="GF2"), plain(ms, pan)), "the sensor's full scale"
    with pytest.raises(ValueError, match="normalise 'max'"):
        create_model("fusionnet", bands=4, normalise="max")


def test_values_are_looked_at_when_evaluating():
    ms, pan, _ = pair()
    model = small("fusionnet")
    pan[0, 0, 3, 3] = torch.nan
    with pytest.raises(ValueError, match="pan holds 1 NaN"):
        model.eval()(ms, pan)
    model.train()(ms, pan)  # no look, no wait for a GPU
    with pytest.raises(ValueError, match="needs a pan"):
        model(ms, pan[:, :, 1:])


def test_autocast_leaves_the_outer_part_alone():
    """The guides hold details below the 8 significant bits of a bfloat16."""
    ms, pan, _ = pair()
    model = small("bandset").eval()
    seen = []
    model.network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1]))
    with torch.no_grad():
        model(ms, pan)
        with torch.autocast("cpu", torch.bfloat16):
            model(ms, pan)
    assert torch.equal(*seen)


def test_sizes_at_both_scales():
    """Laptop networks are small; the others fit the files that may be released."""
    for scale, most in (("laptop", 200_000), ("h100", 1_250_000)):
        for name, sizes in load_params(scale=scale)["models"].items():
            for bands in (4, 8):
                assert count_parameters(create_model(name, bands=bands, **sizes)) < most, (scale, name, bands)


# ---------------------------------------------------------------- scans

def scan_example(length, dtype, device="cpu"):
    g = torch.Generator().manual_seed(length)
    u, B, C = (torch.randn(2, length, n, generator=g, dtype=torch.float64) for n in (6, 4, 4))
    delta = torch.rand(2, length, 6, generator=g, dtype=torch.float64)
    A = -4 * torch.rand(6, 4, generator=g, dtype=torch.float64)
    return [x.to(device, dtype).requires_grad_() for x in (u, delta, A, B, C, torch.linspace(0.5, 1.5, 6))]


@pytest.mark.parametrize("length", [1, 7, 8, 37])
def test_chunked_scan_is_the_sequential_one(length):
    args = scan_example(length, torch.float64)
    slow = scan_reference(*args)
    wanted = torch.autograd.grad(slow.square().sum(), args, retain_graph=True)
    for chunk in (1, 4, 8, 64):
        fast = scan_chunked(*args, chunk)
        assert torch.allclose(slow, fast, atol=1e-12)
        for a, b in zip(wanted, torch.autograd.grad(fast.square().sum(), args)):
            assert torch.allclose(a, b, atol=1e-9)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="mamba-ssm needs a GPU")
def test_kernel_is_the_sequential_scan():
    pytest.importorskip("mamba_ssm", reason="the extra gpu is not installed")
    from pansharp_study.networks.mamba import selective_scan

    for length in (16, 37, 1024):
        args = scan_example(length, torch.float32, "cuda")
        slow, chunked, kernel = scan_reference(*args), scan_chunked(*args), selective_scan(*args)
        wanted = torch.autograd.grad(slow.square().sum(), args)
        for found in (chunked, kernel):
            assert torch.allclose(slow, found, rtol=1e-4, atol=1e-4)
            for a, b in zip(wanted, torch.autograd.grad(found.square().sum(), args)):
                assert (a - b).abs().max() <= 1e-3 * a.abs().max()
