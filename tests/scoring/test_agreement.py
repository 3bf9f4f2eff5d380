"""Agreement with sewar, torchmetrics, SciPy and slow loops on random and real images; known disagreements, with
their numbers.

Frozen values of the two packages are in tests/oracle/libraries.json (test_oracle.py); here they run.
"""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage, stats

from pansharp_study import metrics
from pansharp_study.core import root
from pansharp_study.optics.sensors import get_sensor
from pansharp_study.optics.wald import degrade, reduce_pan, upsample
from pansharp_study.scenes.samples import list_pictures, load_picture
from pansharp_study.scoring.reference import _uint16

sewar = pytest.importorskip("sewar")
no_ref = pytest.importorskip("sewar.no_ref")
tm = pytest.importorskip("torchmetrics.functional.image")
pytestmark = pytest.mark.filterwarnings("ignore")

REAL = root().parent / "shared" / "real"
ORACLE = Path(__file__).parents[1] / "oracle"
PEAK = 2047.0


def tensor(array) -> torch.Tensor:
    """(H,W,C) or (H,W) as (1,C,H,W) in float64."""
    array = np.asarray(array, dtype=np.float64)
    return torch.from_numpy(array.reshape(*array.shape[:2], -1)).permute(2, 0, 1)[None]


def array(image: torch.Tensor) -> np.ndarray:
    """(1,C,H,W) as (H,W,C)."""
    return image[0].permute(1, 2, 0).double().numpy()


# ---- images ---------------------------------------------------------------------------------------


def random_pair(bands: int, rows: int, columns: int):
    """Noise of 11 bits and a disturbed copy."""
    generator = torch.Generator().manual_seed(bands * 1000 + rows)
    gt = torch.randint(20, 2048, (1, bands, rows, columns), generator=generator).double()
    return (gt + 100 * torch.randn(gt.shape, generator=generator, dtype=torch.float64)).round().clamp(0, 2047), gt


def picture_pair(name: str):
    """A committed picture on the 11-bit scale, and itself after degradation and interpolation."""
    pictures = list_pictures().set_index("file")["path"]
    gt = (
        load_picture(next(p for f, p in pictures.items() if name in f))[None, :, :128, :160].double() * PEAK
    ).round() + 1
    return upsample(degrade(gt, [0.3])).round().clamp(0, PEAK), gt


def real_pair(name: str):
    """A real scene beside the project at reduced resolution: interpolated bands and the reference."""
    if not REAL.is_dir():
        pytest.skip("no real scenes beside the project")
    if name.startswith("QB"):
        gt, ms = (tensor(np.load(REAL / "QB" / f"{name[3:]}_{part}.npy")) for part in ("HR", "LR"))
        return upsample(ms).round().clamp_min(0), gt
    from scipy.io import loadmat

    scene = loadmat(REAL / {"IKONOS": "IKONOS/imgIK.mat", "WV2": "WV2/imgWV2.mat"}[name])
    gt = tensor(scene["I_MS"])[..., :160, :200]
    return upsample(degrade(gt, get_sensor(name).mtf_ms)).round().clamp_min(0), gt


PAIRS = {
    **{
        f"random {c} bands {h}x{w}": (random_pair, (c, h, w))
        for c, h, w in ((1, 64, 64), (3, 70, 45), (4, 96, 64), (6, 40, 100), (8, 64, 90))
    },
    **{
        f"picture {name}": (picture_pair, (name,))
        for name in ("colosseum", "landsat7-raleigh-visible", "landsat8-city")
    },
    **{f"real {name}": (real_pair, (name,)) for name in ("QB_20", "QB_27", "QB_34", "IKONOS", "WV2")},
}


@pytest.fixture(scope="module", params=PAIRS)
def pair(request):
    make, arguments = PAIRS[request.param]
    return make(*arguments)


# ---- agreement ------------------------------------------------------------------------------------

SEWAR = {
    "q2n": (lambda f, g: metrics.q2n(f, g), lambda g, f: sewar.full_ref.q2n(g, f)),
    "ergas": (lambda f, g: metrics.ergas(f, g), lambda g, f: sewar.ergas(g, f, r=1 / 4)),
    "sam": (lambda f, g: metrics.sam(f, g), lambda g, f: math.degrees(sewar.sam(g, f))),
    "psnr": (lambda f, g: metrics.psnr(f, g, PEAK), lambda g, f: sewar.psnr(g, f, MAX=PEAK)),
    "rmse": (lambda f, g: metrics.rmse(f, g), sewar.rmse),
}
TORCHMETRICS = {
    "ergas": (
        lambda f, g: metrics.ergas(f, g),
        lambda f, g: tm.error_relative_global_dimensionless_synthesis(f, g, ratio=4),
        1e-9,
    ),
    "sam": (lambda f, g: metrics.sam(f, g), lambda f, g: torch.rad2deg(tm.spectral_angle_mapper(f, g)), 1e-9),
    "psnr": (
        lambda f, g: metrics.psnr(f, g, PEAK),
        lambda f, g: tm.peak_signal_noise_ratio(f, g, data_range=PEAK),
        1e-4,
    ),  # its peak is float32
    "ssim": (
        lambda f, g: metrics.ssim(f, g, PEAK),
        lambda f, g: tm.structural_similarity_index_measure(f, g, data_range=PEAK),
        1e-9,
    ),
}


@pytest.mark.parametrize("name", SEWAR)
@pytest.mark.parametrize("dtype, atol", [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_sewar(pair, name, dtype, atol):
    ours, theirs = SEWAR[name]
    want = theirs(array(pair[1]), array(pair[0]))
    assert ours(*(x.to(dtype) for x in pair)).item() == pytest.approx(
        want, rel=1e-9 if dtype is torch.float64 else 1e-6, abs=atol
    )


@pytest.mark.parametrize("name", TORCHMETRICS)
def test_torchmetrics(pair, name):
    if name == "sam" and pair[0].shape[1] == 1:
        pytest.skip("torchmetrics refuses one band")
    ours, theirs, atol = TORCHMETRICS[name]
    assert ours(*pair).item() == pytest.approx(float(theirs(*pair)), rel=1e-9, abs=atol)


@pytest.mark.parametrize("name", ["ssim", "cc", "rmse"])
def test_scipy(pair, name):
    """The same quantities from SciPy's filters and statistics."""
    f, g = (array(x) for x in pair)
    if name == "ssim":

        def blur(x):
            return ndimage.gaussian_filter(x, 1.5, mode="mirror", radius=5, axes=(0, 1))

        mf, mg, c1, c2 = blur(f), blur(g), (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2
        top = (2 * mf * mg + c1) * (2 * (blur(f * g) - mf * mg) + c2)
        want = (top / ((mf**2 + mg**2 + c1) * (blur(f * f) - mf**2 + blur(g * g) - mg**2 + c2))).mean()
        assert metrics.ssim(*pair, PEAK).item() == pytest.approx(want, abs=1e-9)
    elif name == "cc":
        want = np.mean([stats.pearsonr(f[..., b].ravel(), g[..., b].ravel()).statistic for b in range(f.shape[2])])
        assert metrics.cc(*pair).item() == pytest.approx(want, abs=1e-10)
    else:
        assert metrics.rmse(*pair).item() == pytest.approx(np.sqrt(np.mean((f - g) ** 2)), rel=1e-12)


# ---- slow loops, written from the definitions -----------------------------------------------------


def times(a, b):
    """The toolbox's hypercomplex product of two vectors, by its recursion."""
    n = len(a)
    if n == 1:
        return a * b
    half, sign = n // 2, np.r_[1, -np.ones(n // 2 - 1)]
    a, b, c, d = a[:half], a[half:] * sign, b[:half], b[half:] * sign
    if n == 2:
        return np.r_[a * c - d * b, a * d + c * b]
    return np.r_[times(a, c) - times(d, b * sign), times(a * sign, d) + times(c, b)]


def slow_q2n_block(x, y):
    """Q2n of one block (n,n,C), pixel by pixel."""
    mean, spread = x.mean((0, 1)), x.std((0, 1), ddof=1)
    x, y = ((z - mean) / spread + 1 for z in (x, y))
    y = y * np.r_[1, -np.ones(y.shape[2] - 1)]
    x, y = (z.reshape(-1, z.shape[2]) for z in (x, y))
    n = len(x)
    mx, my = x.mean(0), y.mean(0)
    cov = n / (n - 1) * (np.mean([times(u, v) for u, v in zip(x, y)], 0) - times(mx, my))
    var = n / (n - 1) * ((x**2).sum(1).mean() + (y**2).sum(1).mean() - mx @ mx - my @ my)
    return np.linalg.norm(cov) * 2 / var * 2 * np.linalg.norm(mx) * np.linalg.norm(my) / (mx @ mx + my @ my)


@pytest.mark.parametrize("bands", [2, 4, 8])
def test_q2n_pixel_by_pixel(bands):
    f, g = random_pair(bands, 32, 32)
    want = np.mean(
        [
            slow_q2n_block(array(g)[r : r + 16, c : c + 16], array(f)[r : r + 16, c : c + 16])
            for r in (0, 16)
            for c in (0, 16)
        ]
    )
    assert metrics.q2n(f, g, block=16).item() == pytest.approx(want, abs=1e-12)


def windows(x, size, step=1):
    """All windows of a plane (H,W), flat."""
    return np.lib.stride_tricks.sliding_window_view(x, (size, size))[::step, ::step].reshape(-1, size * size)


def slow_uqi(x, y, ddof=0):
    """The universal index of paired rows."""
    mx, my = x.mean(1), y.mean(1)
    cov = ((x - mx[:, None]) * (y - my[:, None])).sum(1) / (x.shape[1] - ddof)
    return 4 * cov * mx * my / ((x.var(1, ddof=ddof) + y.var(1, ddof=ddof)) * (mx**2 + my**2))


@pytest.fixture(scope="module")
def scene():
    """The frozen four-band example as planes."""
    arrays = np.load(ORACLE / "syn4_QB.npz")
    return {k: tensor(arrays[k]) for k in ("gt", "fused", "ms", "pan")}


def test_windows_one_by_one(scene):
    """Q, D_lambda, D_s, SCC and D_rho from windows taken out of the image."""
    f, g, lms = (
        x[0, :, :128, :96].numpy()
        for x in (scene["fused"], scene["gt"], _uint16(upsample(scene["ms"][..., :32, :24], border="circular")))
    )
    small = {
        "fused": scene["fused"][..., :128, :96],
        "ms": scene["ms"][..., :32, :24],
        "pan": scene["pan"][..., :128, :96],
    }
    p, low = small["pan"][0, 0].numpy(), upsample(reduce_pan(small["pan"]), border="circular")[0, 0].numpy()
    assert metrics.q(torch.tensor(f[None]), torch.tensor(g[None])).item() == pytest.approx(
        np.mean([slow_uqi(windows(a, 32), windows(b, 32)).mean() for a, b in zip(f, g)]), abs=1e-10
    )

    def block_q(a, b):
        return slow_uqi(windows(a, 32, 32), windows(b, 32, 32), 1).mean()

    want = np.mean([abs(block_q(f[i], f[j]) - block_q(lms[i], lms[j])) for i in range(4) for j in range(i)])
    assert metrics.d_lambda(**small, sensor="QB").item() == pytest.approx(want, abs=1e-10)
    want = np.mean([abs(block_q(a, p) - block_q(b, low)) for a, b in zip(f, lms)])
    assert metrics.d_s(**small, sensor="QB").item() == pytest.approx(want, abs=1e-10)
    rho = [[stats.pearsonr(a, b).statistic for a, b in zip(windows(band, 4, 4), windows(p, 4, 4))] for band in f[:2]]
    got = metrics.d_rho(**small, sensor="QB", return_map=True)[1][0, :2, ::4, ::4]
    assert np.allclose(got.flatten(1), rho, atol=1e-9)
    edges = [
        np.hypot(*(ndimage.sobel(band[1:-1, 1:-1], axis, mode="constant") for axis in (0, 1))) for band in (*f, *g)
    ]
    a, b = np.stack(edges[:4]).ravel(), np.stack(edges[4:]).ravel()
    assert metrics.scc(torch.tensor(f[None]), torch.tensor(g[None])).item() == pytest.approx(
        a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-12
    )


@pytest.mark.parametrize("ratio, phase", [(4, None), (4, 1), (3, None)])
def test_reprojection_with_scipy(scene, ratio, phase):
    """The reprojection indices from SciPy's Gaussian."""
    from dataclasses import replace

    sensor, fused = replace(get_sensor("QB"), ratio=ratio), scene["fused"][..., :192, :144]
    ms = (
        scene["ms"][..., : 192 // ratio, : 144 // ratio]
        if ratio == 4
        else degrade(scene["gt"][..., :192, :144], sensor.mtf_ms, ratio)
    )
    start = ratio // 2 if phase is None else phase
    sigma = ratio / math.pi * np.sqrt(-2 * np.log(sensor.mtf_ms))
    seen = np.stack(
        [
            ndimage.gaussian_filter(b, s, mode="mirror", truncate=8)[start::ratio, start::ratio]
            for b, s in zip(fused[0].numpy(), sigma)
        ],
        -1,
    )
    pan, reference = scene["pan"][..., :192, :144], array(ms)
    given = {"sensor": sensor, "phase": phase}
    assert metrics.r_ergas(fused, ms, pan, **given).item() == pytest.approx(
        sewar.ergas(reference, seen, r=1 / ratio), abs=1e-4
    )
    assert metrics.r_sam(fused, ms, pan, **given).item() == pytest.approx(
        math.degrees(sewar.sam(reference, seen)), abs=1e-4
    )
    assert metrics.r_q2n(fused, ms, pan, **given).item() == pytest.approx(
        sewar.full_ref.q2n(reference, np.floor(seen + 0.5))
        if ratio == 4
        else sewar.full_ref.q2n(np.floor(reference + 0.5), np.floor(seen + 0.5)),
        abs=2e-4,
    )


# ---- known disagreements, on the frozen example ---------------------------------------------------


def detail_correlation(scene) -> float:
    """What the published code of D_rho's authors computes: correlation of detail, negative covariances zero, zeros
    outside.
    """

    def box(x):
        table = np.pad(np.pad(x, 2).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
        return (table[4:, 4:] - table[:-4, 4:] - table[4:, :-4] + table[:-4, :-4])[:-1, :-1]

    p, found = scene["pan"][0, 0].numpy(), []
    for f in scene["fused"][0].numpy():
        u, v = (x - box(x) / 16 for x in (f, p))
        found.append(
            (
                np.maximum(box(u * v), 1e-20) / np.sqrt(np.maximum(box(u * u), 1e-20) * np.maximum(box(v * v), 1e-20))
            ).mean()
        )
    return 1 - np.mean(found)


def wide(scene):
    """PAN and reduced PAN repeated for every band, as torchmetrics wants them."""
    return scene["pan"].expand(-1, 4, -1, -1), reduce_pan(scene["pan"]).expand(-1, 4, -1, -1)


DIFFERENT = {  # what, here, there: a value of the frozen example
    "ERGAS, sewar with r=4": (0.7404, 11.8469, lambda s: sewar.ergas(array(s["gt"]), array(s["fused"]), r=4)),
    "PSNR, sewar's peak of uint16": (
        41.2077,
        71.3148,
        lambda s: sewar.psnr(array(s["gt"]).astype(np.uint16), array(s["fused"]).astype(np.uint16)),
    ),
    "Q, torchmetrics": (0.9548, 0.8038, lambda s: tm.universal_image_quality_index(s["fused"], s["gt"])),
    "Q, sewar": (0.9548, 0.9995, lambda s: sewar.uqi(array(s["gt"]), array(s["fused"]), ws=32)),
    "SSIM, sewar": (0.9598, 0.9661, lambda s: sewar.ssim(array(s["gt"]), array(s["fused"]), MAX=2047)[0]),
    "SCC, torchmetrics": (0.9787, 0.3349, lambda s: tm.spatial_correlation_coefficient(s["fused"], s["gt"])),
    "SCC, sewar": (0.9787, 0.3349, lambda s: sewar.scc(array(s["gt"]), array(s["fused"]))),
    "RMSE in windows, sewar": (17.8128, 16.8493, lambda s: sewar.rmse_sw(array(s["gt"]), array(s["fused"]))[0]),
    "CC over all bands, NumPy": (0.9717, 0.9887, lambda s: np.corrcoef(s["fused"].ravel(), s["gt"].ravel())[0, 1]),
    "D_lambda, torchmetrics": (0.0361, 0.2307, lambda s: tm.spectral_distortion_index(s["fused"], s["ms"])),
    "D_lambda, sewar": (0.0361, 0.0060, lambda s: no_ref.d_lambda(array(s["ms"]), array(s["fused"]))),
    "D_s, torchmetrics": (0.0321, 0.2031, lambda s: tm.spatial_distortion_index(s["fused"], s["ms"], *wide(s))),
    "D_s, sewar": (0.0321, 0.0036, lambda s: no_ref.d_s(array(s["pan"])[..., 0], array(s["ms"]), array(s["fused"]))),
    "QNR, torchmetrics": (0.9330, 0.6131, lambda s: tm.quality_with_no_reference(s["fused"], s["ms"], *wide(s))),
    "QNR, sewar": (0.9330, 0.9904, lambda s: no_ref.qnr(array(s["pan"])[..., 0], array(s["ms"]), array(s["fused"]))),
    "D_rho, its authors' code": (0.3522, 0.4394, detail_correlation),
}
HERE = {
    "ERGAS": lambda s: metrics.ergas(s["fused"], s["gt"]),
    "PSNR": lambda s: metrics.psnr(s["fused"], s["gt"], PEAK),
    "Q": lambda s: metrics.q(s["fused"], s["gt"]),
    "SSIM": lambda s: metrics.ssim(s["fused"], s["gt"], PEAK),
    "SCC": lambda s: metrics.scc(s["fused"], s["gt"]),
    "RMSE": lambda s: metrics.rmse(s["fused"], s["gt"]),
    "CC": lambda s: metrics.cc(s["fused"], s["gt"]),
    **{
        n: (lambda s, index=i: index(s["fused"], s["ms"], s["pan"], sensor="QB"))
        for n, i in {
            "D_lambda": metrics.d_lambda,
            "D_s": metrics.d_s,
            "QNR": metrics.qnr,
            "D_rho": metrics.d_rho,
        }.items()
    },
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_known_disagreement(scene, what):
    here, there, compute = DIFFERENT[what]
    assert HERE[what.replace(",", "").split()[0]](scene).item() == pytest.approx(here, abs=1e-4)
    assert float(compute(scene)) == pytest.approx(there, abs=1e-4)


def test_where_agreement_ends(scene):
    """Zero vectors, batches and fractions: traps among indices that agree otherwise."""
    f, g = scene["fused"], scene["gt"].clone()
    g[..., :10, :] = 0
    assert math.isnan(tm.spectral_angle_mapper(f, g)) and metrics.sam(f, g).item() == pytest.approx(
        math.degrees(sewar.sam(array(g), array(f))), abs=1e-9
    )
    two = torch.cat([f, scene["gt"] + 1]), torch.cat([scene["gt"]] * 2)
    assert metrics.psnr(*two, PEAK).mean().item() == pytest.approx(53.7150, abs=1e-4)  # mean over images
    assert float(tm.peak_signal_noise_ratio(*two, data_range=PEAK)) == pytest.approx(
        44.2043, abs=1e-4
    )  # pooled over the batch
    broken = f + 0.4
    assert metrics.q2n(broken, scene["gt"]) == metrics.q2n(f, scene["gt"])  # rounds, as the toolbox does
    assert metrics.q2n(broken, scene["gt"], uint16=False).item() == pytest.approx(
        sewar.full_ref.q2n(array(scene["gt"]), array(broken)), abs=1e-12
    )


@pytest.mark.parametrize("reference", [0, 300])
def test_q2n_of_flat_references(scene, reference):
    """A band of the reference is flat in one block, or zero: the toolbox and sewar divide by eps, or not at all."""
    f, g = scene["fused"][..., :64, :64].clone(), scene["gt"][..., :64, :64].clone()
    g[:, 1, :32, :32], f[:, 1, :32, :32] = reference, 2
    got = metrics.q2n(f, g).item()
    assert got == pytest.approx(sewar.full_ref.q2n(array(g), array(f)), abs=1e-9)
    assert got > 0.8 if reference == 0 else got < 0.8
    g[:, :, :32, :32] = reference
    assert metrics.q2n(f, g).item() == pytest.approx(sewar.full_ref.q2n(array(g), array(f)), abs=1e-9)
