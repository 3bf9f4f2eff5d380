"""Every registered network: shapes, gradients, learning, storing, compiling, odd sizes, constant images; scans."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open

from pansharp_study.core import load_params
from pansharp_study.networks.guides import back_projection
from pansharp_study.networks.mamba import scan_chunked, scan_reference
from pansharp_study.networks.registry import NETWORKS, facts, network_names
from pansharp_study.networks.zoo import (
    check_options,
    count_parameters,
    create_model,
    list_models,
    load_weights,
    options_for,
    save_weights,
    to_half,
)
from pansharp_study.optics.wald import degrade, upsample
from pansharp_study.training.loop import fusion_loss

SMALL = {name: NETWORKS[name].sizes["laptop"] for name in list_models()}
ALL = pytest.mark.parametrize("name", SMALL)
GUIDES = {"guided": True, "substitution": True}


def pair(bands=4, ratio=4, size=(8, 8), batch=1, seed=0):
    """A pair with structure: PAN is a sharp mixture of sharp bands."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, bands + 1, *size, generator=g)
    noise = torch.rand(batch, 1, size[0] * ratio, size[1] * ratio, generator=g)
    sharp = torch.nn.functional.interpolate(coarse, scale_factor=ratio, mode="bilinear") + 0.3 * noise
    gt = 300 + 400 * sharp[:, :bands] * torch.linspace(0.5, 1, bands)[:, None, None]
    return degrade(gt, 0.3, ratio), 100 + 500 * sharp.mean(1, keepdim=True), gt


def small(name, bands=4, noise=0.1, **frame):
    """An untrained network whose last layer is no longer zero, nor its recalibration one."""
    model = create_model(name, bands=bands, seed=2, **{**GUIDES, **frame}, **SMALL[name])  # no dead ReLU at this seed
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, value in model.named_parameters():
            if "excite" in key or key.startswith(f"network.head.{len(model.network.head) - 1}."):
                value.normal_(std=noise, generator=g)
    return model


@ALL
def test_facts_are_complete(name):
    """A network states what reports need, and its sizes at both scales are options that it has."""
    network = NETWORKS[name]
    assert network.name == name and network.display_name and network.family and network.colour.startswith("#")
    assert set(network.sizes) == {"laptop", "h100"}
    for sizes in network.sizes.values():
        check_options(name, sizes)


def test_facts_need_no_import():
    """The facts read from the text of the modules are those of the classes."""
    code = "import json; from pansharp_study.networks.registry import _declared; print(json.dumps(_declared()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    declared = json.loads(done.stdout)
    assert sorted(declared) == list_models() == sorted(network_names())
    for name, stated in declared.items():
        assert {"any_bands": False} | stated == facts(name)


def test_params_repeat_the_sizes_of_the_classes():
    """What params.yaml lists for `dvc exp run -S` is what the classes state."""
    for scale in ("laptop", "h100"):
        params = load_params(scale=scale)
        for name in set(params["models"]) - {"frame"}:
            assert params["models"][name] == NETWORKS[name].sizes[scale], (name, scale)
        assert set(params["networks"]) <= set(params["models"]), "DVC needs a key for each"


@pytest.mark.parametrize(
    "models, message",
    [
        ({"fusionet": {"width": 8}}, "Unknown network 'fusionet'"),
        ({"fusionnet": {"widht": 8}}, "did you mean 'width'"),
        ({"frame": {"guide": True}}, "did you mean 'guided'"),
    ],
)
def test_wrong_options_in_params_are_named(models, message):
    with pytest.raises(ValueError, match=f"params.yaml: models: .*{message}"):
        options_for("pnn", {**load_params(), "models": models})


@ALL
def test_shapes_and_start(name):
    """4, 8 and 5 bands; before training the result is EXP."""
    for bands in (4, 8, 5):
        ms, pan, _ = pair(bands, batch=2)
        for frame in ({}, GUIDES):
            model = create_model(name, bands=bands, **frame, **SMALL[name])
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
    frame = {"inject": False, "normalise": "none", "back_project": 1, "substitution": False}
    for kind, model in (("plain", small(name).eval()), ("other", small(name, **frame).eval())):
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
        for frame in ({}, {"normalise": "none", "back_project": 1}):
            model = small(name, **frame)
            fused = model(ms, pan)
            fused.sum().backward()
            assert fused.isfinite().all()
            assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


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
    """One graph without breaks, both ways; one network per family, with SLOW=1 all of them with compiled kernels."""
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


# ---------------------------------------------------------------- the frame


def test_parts_of_the_frame():
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


def test_autocast_leaves_the_frame_alone():
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
        params = load_params(scale=scale)
        for name in list_models():
            for bands in (4, 8):
                model = create_model(name, bands=bands, **options_for(name, params))
                assert count_parameters(model) < most, (scale, name, bands)


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
