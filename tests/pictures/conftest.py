"""Small generated pictures, and archives of them in every layout."""

import io
import os
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image


def encode_picture(number, size=(80, 72), kind="JPEG", **options) -> bytes:
    """A small picture with texture, another for every number."""
    coarse = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(out, kind, **options)
    return out.getvalue()


def tar_of(path, members, **options):
    """Write (name, bytes) to a tar archive."""
    with tarfile.open(path, "w", **options) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture(scope="session")
def encoded():
    """The function that makes a picture."""
    return encode_picture


@pytest.fixture(scope="session")
def write_tar():
    """The function that writes a tar archive."""
    return tar_of


@pytest.fixture(scope="session")
def layouts(tmp_path_factory):
    """A folder with forty pictures as a folder tree, four shards, a tar of tars, two zips and two lists."""
    base = tmp_path_factory.mktemp("corpus")
    named = [(f"n{number % 4}/n{number % 4}_{number:02d}", encode_picture(number)) for number in range(40)]
    for name, data in named:
        path = base / "train" / f"{name}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    for shard in range(4):
        members = []
        for name, data in named[shard::4]:
            members += [(f"{os.path.basename(name)}.jpg", data), (f"{os.path.basename(name)}.txt", b"caption")]
        tar_of(base / f"{shard:03d}.tar", members)
    classes = []
    for k in range(4):
        inner = tar_of(base / "inner", [(f"{os.path.basename(name)}.JPEG", data) for name, data in named[k::4]])
        classes.append((f"n{k}.tar", inner.read_bytes()))
    tar_of(base / "nested.tar", classes)
    for kind, method in (("stored", zipfile.ZIP_STORED), ("deflated", zipfile.ZIP_DEFLATED)):
        with zipfile.ZipFile(base / f"{kind}.zip", "w", method) as archive:
            for name, data in named:
                archive.writestr(f"images2/{os.path.basename(name)}.jpg", data)
    (base / "list.txt").write_text("".join(f"train/{name}.JPEG\n" for name, _ in named))
    (base / "list.csv").write_text("filepath,title\n" + "".join(f'train/{name}.JPEG,"a, b"\n' for name, _ in named))
    return base
