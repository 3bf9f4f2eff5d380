"""Pictures of every mode and format, damaged ones, and the cutting of canvases."""

import io
import random

import numpy as np
import pytest
from PIL import Image

from pansharp_study.pictures.decoding import Cut, cut_canvas, decode, identify, to_rgb


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F", "HSV", "LAB"]
)
def test_modes(mode):
    """Every mode becomes RGB of the same size, with the contrast it had."""
    grey = Image.linear_gradient("L").resize((90, 70))
    numeric = {"I;16": np.uint16, "I": np.int32, "F": np.float32}
    if mode in numeric:
        picture = Image.fromarray(np.asarray(grey).astype(numeric[mode]) * (8 if mode != "F" else 1))
    elif mode == "PA":
        picture = grey.convert("LA").convert("PA")
    else:
        picture = (grey if mode in ("1", "L", "LA", "P") else grey.convert("RGB")).convert(mode)
    rgb = np.asarray(to_rgb(picture))
    assert rgb.shape == (70, 90, 3) and rgb.dtype == np.uint8
    assert rgb[:3].mean() < 60 and rgb[-3:].mean() > 190, (rgb[:3].mean(), rgb[-3:].mean())


def test_stored_formats(encoded):
    """CMYK JPEG, palette with transparency, 16 bits, EXIF turned, PNG, WebP, GIF: all are decoded and cut."""
    base = Image.open(io.BytesIO(encoded(3, (120, 100))))
    turned = Image.Exif()
    turned[0x0112] = 6
    saved = {
        "JPEG": (base.convert("CMYK"), {}),
        "PNG": (base.quantize(16), {"transparency": 3}),
        "TIFF": (Image.fromarray(np.asarray(base.convert("L")).astype(np.uint16) * 257), {}),
        "MPO": (base, {"exif": turned}),
        "WEBP": (base, {}),
        "GIF": (base, {"save_all": True, "append_images": [base]}),
    }
    for kind, (picture, options) in saved.items():
        out = io.BytesIO()
        picture.save(out, "JPEG" if kind == "MPO" else kind, **options)
        assert decode(identify(out.getvalue()))[0].size == ((100, 120) if "exif" in options else (120, 100)), kind
        assert cut_canvas(out.getvalue(), random.Random(0), Cut(64)).shape == (3, 64, 64)


def test_damaged_exif_is_no_damage(encoded):
    data = encoded(0, exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff garbage")
    assert decode(identify(data))[0].size == (80, 72)


def test_large_pictures():
    """A JPEG is reduced, another format refused before it is decoded, and what Pillow calls a bomb is a named error."""
    out = io.BytesIO()
    Image.new("L", (11000, 10000), 7).save(out, "JPEG", quality=50)
    assert decode(identify(out.getvalue()))[0].size == (5500, 5000)
    for size in ((11000, 10000), (20000, 20000)):
        out = io.BytesIO()
        Image.new("1", size).save(out, "PNG")
        with pytest.raises(Exception, match="pixels"):
            decode(identify(out.getvalue()))


def test_cut_is_sharp_and_inside():
    """A canvas of a larger picture has its values; a small picture is mirrored, all of it; nothing is enlarged."""
    ramp = np.tile(np.arange(200, dtype=np.uint8)[:, None, None], (1, 150, 3))
    out = io.BytesIO()
    Image.fromarray(ramp).save(out, "PNG")

    def column(seed, size, zoom):
        canvas = cut_canvas(out.getvalue(), random.Random(seed), Cut(size, zoom))
        assert canvas.shape == (3, size, size)
        return canvas[0, :, 0].astype(int)

    for seed in range(20):
        assert (np.diff(column(seed, 100, (1.0, 1.0))) == 1).all()
        assert 1 <= np.diff(column(seed, 100, (0.5, 1.0))[5:-5]).mean() < 1.51
        mirrored = column(seed, 420, (0.5, 1.0))
        assert set(np.abs(np.diff(mirrored))) == {0, 1} and set(mirrored) == set(range(200))


def test_zoom_never_enlarges():
    for zoom in ((0.5, 2), (0, 1), (0.8, 0.5)):
        with pytest.raises(ValueError, match="zoom="):
            Cut(64, zoom)
