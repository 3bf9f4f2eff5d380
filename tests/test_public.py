"""The public face stays, importing it is light, and a wheel holds every module."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from pansharp_study.study.imports import module_files

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "numpy", "pandas", "scipy", "xarray", "matplotlib")

# run in a process of its own, its working folder elsewhere: imports modules from a folder and from nowhere else
IMPORT_ALL = """
import importlib, json, sys
from pathlib import Path

top = Path(sys.argv[1])
sys.meta_path = [finder for finder in sys.meta_path if "Editable" not in str(getattr(finder, "__name__", finder))]
sys.path = [str(top), *(folder for folder in sys.path if not (Path(folder) / "pansharp_study").is_dir())]
failed = {}
for name in ["pansharp_study", *sys.argv[2:]]:
    try:
        file = Path(importlib.import_module(name).__file__)
        assert file.is_relative_to(top), f"found at {file}"
    except Exception as error:
        failed[name] = f"{type(error).__name__}: {error}"
print(json.dumps(failed))
"""


def python(*arguments: str, folder: Path) -> str:
    """Output of a new process that starts in `folder`."""
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PANSHARP_STUDY_ROOT")}
    done = subprocess.run([sys.executable, *arguments], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_names():
    """What a user imports is there."""
    from pansharp_study import classical, create_model, get_sensor, list_models, metrics, sharpen

    assert callable(sharpen) and callable(create_model)
    assert "bandset" in list_models() and get_sensor("QB").n_bands == 4
    assert callable(metrics.ergas) and "GSA" in classical.METHODS


def test_public_modules():
    """`metrics` and `classical` can be imported as modules, and are the same modules."""
    import pansharp_study
    import pansharp_study.classical
    import pansharp_study.metrics
    from pansharp_study.metrics import sam

    assert pansharp_study.metrics.sam is sam
    assert {"metrics", "classical", "sharpen"} <= set(dir(pansharp_study))
    with pytest.raises(AttributeError, match="sharpn"):
        _ = pansharp_study.sharpn


def test_importing_the_package_is_light():
    """No heavy library is loaded before it is needed."""
    loaded = python(
        "-c",
        "import sys; sys.path.insert(0, sys.argv[1]); import pansharp_study; print(*sys.modules)",
        str(ROOT),
        folder=ROOT.parent,
    )
    assert not set(HEAVY) & set(loaded.split())


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
    """A wheel of the package, built without a network, in an empty folder."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("setup.py", "settings.ini", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "pansharp_study", source / "pansharp_study", ignore=shutil.ignore_patterns("__pycache__"))
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-w",
        str(folder),
        str(source),
    ]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked"


def test_a_wheel_holds_every_module(unpacked, tmp_path):
    """Each sub-package and module is imported from the unpacked wheel, far from the checkout."""
    modules = [f"pansharp_study.{name}" for name in module_files()]
    packages = sorted({name.rpartition(".")[0] for name in modules} - {"pansharp_study"})
    failed = json.loads(python("-I", "-c", IMPORT_ALL, str(unpacked), *packages, *modules, folder=tmp_path))
    assert not failed
