"""A faster training step: same mathematics as pansharp_study at 971f045, other layout and fewer kernels."""
import sys
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from pansharp_study import models, simulate
from pansharp_study.loss import fusion_loss
from pansharp_study.models import gaussian_of, interpolation, matched_spread
from pansharp_study.optics import apply, axis_matrix


def loss_of(model, ms, pan, lms, gt, mtf, up, autocast=True):
    """fusion_loss(model(ms, pan, lms, mtf=mtf), gt, lms) for networks with the whole frame (guided, substitution, matched, informed, back_project 1), in one graph."""
    ratio = pan.shape[-1] // ms.shape[-1]
    with torch.autocast(pan.device.type, enabled=False):
        spread = matched_spread(ms, pan, ratio)
        mean, std, shown, told = model.prepare(ms, pan, lms, ratio, None, spread, mtf)
    with torch.autocast(pan.device.type, torch.bfloat16, enabled=autocast):
        detail = model.network(shown, told)
    with torch.autocast(pan.device.type, enabled=False):
        fused = lms + std * detail.float()
        down = axis_matrix(gaussian_of(spread, 4 * ratio, fused.shape[2]), fused.shape[2], ratio)
        fused = fused + apply(ms - apply(fused, down, down), up, up)
        return fusion_loss(fused, gt, lms)


def optimiser_of(model, lr, weight_decay):
    cuda = next(model.parameters()).is_cuda
    rate = torch.tensor(lr, device="cuda") if cuda else lr
    return torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=weight_decay, fused=cuda, capturable=cuda)


def make_step(model, optimiser, average, params, *, compiled=True, autocast=True, ema=True):
    """One step as a function of a batch; the whole forward pass and loss compiled."""
    parameters = list(model.parameters())
    function = torch.compile(loss_of, dynamic=False, fullgraph=True) if compiled else loss_of

    def step(batch):
        optimiser.zero_grad(set_to_none=True)
        up = interpolation(batch["ms"].shape[-1], batch["pan"].shape[-1] // batch["ms"].shape[-1], batch["ms"].device)
        loss = function(model, batch["ms"], batch["pan"], batch["lms"], batch["gt"], batch["mtf_e4"] / 1e4, up, autocast)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, params["clip"], foreach=True)
        optimiser.step()
        if ema:
            with torch.no_grad():
                torch._foreach_lerp_(average, parameters, 1 - params["ema"])
        return loss.detach()

    return step


def faster_simulation():
    """Matrices of the instrument, each written by one kernel."""
    import kernels

    simulate.axis_matrix = kernels.axis_matrix


def channels_last(model):
    return model.to(memory_format=torch.channels_last)
