"""The pipeline: parameters declared, dependencies complete, changes stay local; kills and wrong input do no harm."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from pansharp_study.core import load_params
from pansharp_study.study.imports import imported, with_dependencies
from pansharp_study.study.pipeline import declared, stage_names

ROOT = Path(__file__).resolve().parents[2]
DVC = yaml.safe_load((ROOT / "dvc.yaml").read_text())
STAGES = DVC["stages"]


def notebook_of(stage: dict) -> Path:
    name = re.search(r"pipeline run (\w+)", stage["cmd"])[1]
    return ROOT / "nbs" / "stages" / f"{name}.ipynb"


def source(path: Path) -> str:
    return "\n".join("".join(c["source"]) for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code")


@pytest.mark.parametrize("name", STAGES)
def test_parameters_are_declared(name):
    """The notebook has one tagged cell, and every -p of the command is in it."""
    stage = STAGES[name]
    assert "desc" in stage
    given = re.findall(r"-p (\w+) ", stage["cmd"])
    assert set(given) == set(declared(notebook_of(stage)))


@pytest.mark.parametrize("name", STAGES)
def test_dependencies_are_complete(name):
    """Every package whose modules the notebook imports, directly or not, is a dependency, and its notebook too."""
    stage, path = STAGES[name], notebook_of(STAGES[name])
    assert f"nbs/stages/{path.name}" in stage["deps"]
    needed = {m.split(".")[0] if "." in m else f"{m}.py" for m in with_dependencies(imported(source(path)))}
    listed = {Path(d).name for d in stage["deps"] if d.startswith("pansharp_study/")}
    assert needed == listed, f"{name} lacks {sorted(needed - listed)}, needs no {sorted(listed - needed)}"


@pytest.mark.parametrize("name", STAGES)
def test_parameter_sections_are_dependencies(name):
    """A section of params.yaml that the notebook reads is listed."""
    listed = {str(p).split(".")[0] for p in STAGES[name].get("params", [])}
    if "benchmarks" in listed:
        listed.add("targets")  # the satellites among them
    for section in re.findall(r'params\["(\w+)"\]', source(notebook_of(STAGES[name]))):
        assert section in listed, f"{name} reads params[{section!r}]"


def test_all_stages_are_counted():
    """The progress line counts what DVC counts."""
    out = subprocess.run(
        [sys.executable, "-m", "dvc", "stage", "list", "--name-only"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert sorted(out.stdout.split()) == sorted(stage_names(DVC, load_params()))


# ---------------------------------------------------------------- a small copy of the whole study

TINY = {
    "benchmarks": ["QB", "WV2-real"],
    "networks": ["fusionnet"],
    "band_counts": [4],
    "acquire.offline": True,
    "synthesize_pairs.samples": 12,
    "synthesize_pairs.size": 32,
    "synthesize_pairs.batch": 12,
    "synthesize_pairs.procedural_scenes": 2,
    "synthesize_pairs.base_image_size": 96,
    "synthesize_scenes.size": 320,
    "synthesize_scenes.test": ["colosseum.jpg"],
    "adapt.steps": 3,
    "adapt.crop": 48,
    "adapt.released": ["bandset"],
    "adapt.released_steps": 1,
    "pretrain.steps": 40,
    "pretrain.batch": 2,
    "pretrain.validation": 4,
    "pretrain.log_every": 10,
    "pretrain.checkpoint_every": 5,
    "models.fusionnet.width": 4,
    "models.fusionnet.depth": 2,
    "compare.bootstrap": 50,
}


def set_value(tree: dict, dotted: str, value):
    *path, last = dotted.split(".")
    for key in path:
        tree = tree[key]
    tree[last] = value


def dvc(folder: Path, *args, **kwargs):
    env = {**os.environ, "PANSHARP_STUDY_ROOT": str(folder), "PYTHONPATH": str(folder)}
    return subprocess.run(
        [sys.executable, "-m", "dvc", *args], cwd=folder, env=env, capture_output=True, text=True, **kwargs
    )


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A copy with tiny parameters in a path with a space, its pipeline run once."""
    folder = tmp_path_factory.mktemp("a study") / "pansharp study"
    shutil.copytree(
        ROOT,
        folder,
        ignore=shutil.ignore_patterns(
            ".venv",
            ".git",
            ".cache",
            "cache",
            "tmp",
            "models",
            "metrics",
            "reports",
            "simulated",
            "fused",
            "real",
            "logs",
            "_*site",
            "_proc",
            "dvc.lock",
            "__pycache__",
            "*.egg-info",
        ),
    )
    params = yaml.safe_load((folder / "params.yaml").read_text())
    for key, value in TINY.items():
        set_value(params, key, value)
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    text = (folder / "dvc.yaml").read_text()  # the copy has one number of bands
    text = re.sub(r"^ +- (models|metrics/pretrain)/\S+_8\b.*\n", "", text, flags=re.M)
    (folder / "dvc.yaml").write_text(text)
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    shutil.rmtree(folder / ".dvc", ignore_errors=True)
    dvc(folder, "init", "-q", check=True)
    done = dvc(folder, "repro")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder


def test_end_to_end(study):
    """Every stage leaves its report, the tables hold every method, and the missing real pair is told."""
    rows = (study / "metrics" / "adapt" / "QB.csv").read_text()
    for method in (
        "EXP",
        "GSA",
        "MTF-GLP-FS",
        "fusionnet zero-shot",
        "fusionnet one-shot freeze",
        "fusionnet one-shot from scratch",
        "released bandset zero-shot",
    ):
        assert method in rows
    assert len((study / "metrics" / "adapt" / "WV2-real.csv").read_text().split("\n")) == 2
    assert "missing" in (study / "data" / "available.csv").read_text()
    for report in ("compare", "report/QB", "report/WV2-real", "adapt/QB", "pretrain/fusionnet", "acquire"):
        notebook = json.loads((study / "reports" / f"{report}.ipynb").read_text())
        errors = [o for c in notebook["cells"] for o in c.get("outputs", []) if o["output_type"] == "error"]
        assert not errors and any(c.get("outputs") for c in notebook["cells"])
    assert not list(study.rglob("*.running.ipynb"))


def test_nothing_to_do(study):
    """A second run finds everything up to date."""
    assert "didn't change" in (out := dvc(study, "repro").stdout) and "Running stage" not in out


def test_forced_stage_is_identical(study):
    """Running a stage again changes no byte of what it makes."""
    before = (study / "dvc.lock").read_bytes()
    dvc(study, "repro", "-f", "-s", "report@QB", check=True)
    dvc(study, "repro", "-f", "-s", "pretrain@fusionnet", check=True)
    assert (study / "dvc.lock").read_bytes() == before


def test_one_sensors_change_stays_local(study):
    """A changed parameter of one sensor makes its stage stale, nothing else; the report follows from its outputs."""
    path = study / "params.yaml"
    old = path.read_text()
    params = yaml.safe_load(old)
    params["sensors"]["QB"]["noise_dn"] = 9.0
    path.write_text(yaml.safe_dump(params, sort_keys=False))
    stale = json.loads(dvc(study, "status", "--json").stdout)
    path.write_text(old)
    assert set(stale) == {"adapt@QB"}


def test_a_changed_figure_retrains_nothing(study):
    """A change in the code of the figures makes pages stale, and no stage that simulates, trains or scores."""
    path = study / "pansharp_study" / "study" / "figures.py"
    old = path.read_text()
    path.write_text(old + "\nCHANGED = True\n")
    stale = json.loads(dvc(study, "status", "--json").stdout)
    path.write_text(old)
    assert set(stale) == {"report@QB", "report@WV2-real", "compare"}


def test_the_graph_is_small():
    """At most 22 stages for all satellites, networks and bands."""
    assert len(stage_names(DVC, load_params())) <= 22


def test_sections_of_sensors_are_separate():
    """No stage depends on the parameters of all sensors."""
    for name, stage in STAGES.items():
        assert "sensors" not in stage.get("params", []), name


def test_killed_pretraining_continues(study):
    """`kill -9` of a training process loses at most the steps since the last checkpoint and changes no result."""
    before = (study / "models" / "fusionnet_4.safetensors").read_bytes()
    (study / "models" / "fusionnet_4.safetensors").unlink()
    env = {**os.environ, "PANSHARP_STUDY_ROOT": str(study), "PYTHONPATH": str(study)}
    command = [sys.executable, "-m", "pansharp_study.training.pretrain", "--network", "fusionnet", "--bands", "4"]
    process = subprocess.Popen(command, cwd=study, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    checkpoint = study / ".cache" / "checkpoints" / "fusionnet_4.pt"
    end = time.time() + 60
    while not checkpoint.exists() and process.poll() is None and time.time() < end:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert checkpoint.exists() and not (study / "models" / "fusionnet_4.safetensors").exists(), (
        "the run was not killed in the middle"
    )
    again = subprocess.run(command, cwd=study, env=env, capture_output=True, text=True, check=True)
    assert "resuming at step" in again.stderr
    assert (study / "models" / "fusionnet_4.safetensors").read_bytes() == before


def test_two_processes_train_together(study, tmp_path):
    """Two processes, started as `accelerate launch` starts them on GPUs: twice the samples, one set of files."""
    for name in ("settings.ini", "params.yaml"):
        shutil.copy(study / name, tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "simulated").symlink_to(study / "data" / "simulated")
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        "-m",
        "pansharp_study.training.pretrain",
        "--network",
        "fusionnet",
        "--bands",
        "4",
        "--device",
        "cpu",
    ]
    env = {**os.environ, "PANSHARP_STUDY_ROOT": str(tmp_path), "PYTHONPATH": str(study)}
    done = subprocess.run(command, cwd=study, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (
        json.loads((folder / "metrics" / "pretrain" / "fusionnet_4" / "metrics.json").read_text())
        for folder in (study, tmp_path)
    )
    assert two["samples"] == 2 * one["samples"] and two["train_loss"] != one["train_loss"]
    assert (tmp_path / "models" / "fusionnet_4.safetensors").is_file()


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("steps:", "stepps:", "did you mean 'steps'"),
        ("scale: laptop", "scale: desktop", "laptop, h100"),
        ("offline: false", "offline: maybe", "acquire.offline"),
    ],
)
def test_wrong_parameters_are_one_line(tmp_path, old, new, message):
    """A misspelled or mistyped parameter is told in one line with its name."""
    for name in ("settings.ini", "params.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    text = (tmp_path / "params.yaml").read_text()
    assert old in text
    (tmp_path / "params.yaml").write_text(text.replace(old, new, 1))
    done = subprocess.run(
        [sys.executable, "-m", "pansharp_study.study.pipeline", "check"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PANSHARP_STUDY_ROOT": str(tmp_path)},
    )
    assert done.returncode and message in done.stderr and len(done.stderr.strip().split("\n")) == 1


def test_corrupt_picture_is_named(study):
    """A damaged picture stops `acquire` with its name and leaves other results alone."""
    picture = study / "data" / "pictures" / "photographs" / "casa-mila.jpg"
    content = picture.read_bytes()
    picture.write_bytes(content[:5000])
    done = dvc(study, "repro", "acquire")
    picture.write_bytes(content)
    assert done.returncode and "casa-mila.jpg" in done.stdout + done.stderr
    assert (study / "metrics" / "adapt" / "QB.csv").is_file()


def test_cut_pool_is_named(study):
    """A cut pool of pairs is refused with its name and the way out."""
    pool = study / "data" / "simulated" / "pairs_4.safetensors"
    content = pool.read_bytes()
    pool.unlink()
    pool.write_bytes(content[: len(content) // 2])
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from pansharp_study.simulation.pool import load_pairs, pairs_path; load_pairs(pairs_path(4))",
        ],
        cwd=study,
        capture_output=True,
        text=True,
        env={**os.environ, "PANSHARP_STUDY_ROOT": str(study), "PYTHONPATH": str(study)},
    )
    pool.write_bytes(content)
    assert "pairs_4.safetensors" in done.stderr and "synthesize_pairs" in done.stderr


# ---------------------------------------------------------------- experiments

RECIPES = "".join(
    "".join(c["source"]) for c in json.loads((ROOT / "nbs" / "tutorials" / "own_ablation.ipynb").read_text())["cells"]
)


def test_recipes_name_parameters():
    """Every `-S key=value` of the tutorial names a parameter, and its value is one that params.yaml may hold."""
    found = re.findall(r"-S '?([\w.]+)=([^'`\s]+)", RECIPES)
    assert len(found) > 50
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    for key, value in found:
        old = params
        for part in key.split("."):
            assert part in old, f"-S {key}={value}: params.yaml has no {key}"
            old = old[part]
        old = old["laptop"] if isinstance(old, dict) else old
        new = yaml.safe_load(value) if value != "$width" else 8
        assert isinstance(new, list) == isinstance(old, list) and isinstance(new, bool) == isinstance(old, bool), (
            f"-S {key}={value} beside {old}"
        )


def test_recipes_switch_every_operation_off():
    """The table holds each operation of the simulator with the values that switch it off."""
    from pansharp_study.simulation.switches import OFF

    for name, values in OFF.items():
        row = next((line for line in RECIPES.split("\n") if f"({name}) |" in line), "")
        told = {key: yaml.safe_load(value) for key, value in re.findall(r"synthesize_pairs\.([\w.]+)=([^'`\s]+)", row)}
        want = {
            f"{k}.{k2}" if k2 else k: v2
            for k, v in values.items()
            for k2, v2 in (v.items() if isinstance(v, dict) else [("", v)])
        }
        assert told == want, name


def test_runs_are_compared_by_one_small_file(study):
    """`dvc metrics show` has a column per network and paradigm; the curves of `dvc plots` are outputs of stages."""
    assert [m for s in STAGES.values() for m in s.get("metrics", [])] == [{"metrics/summary.json": {"cache": False}}]
    numbers = json.loads(dvc(study, "metrics", "show", "--json").stdout)[""]["data"]["metrics/summary.json"]["data"]
    assert set(numbers) == {"classical", *(f"{n} {way}" for n in TINY["networks"] for way in ("zero-shot", "one-shot"))}
    outs = [next(iter(out)) if isinstance(out, dict) else out for out in STAGES["pretrain"]["outs"]]
    made = {Path(out.replace("${item.network}", network)) for out in outs for network in load_params()["networks"]}
    for plot in DVC["plots"]:
        for curves in plot.values():
            assert all(made & set(Path(file).parents) for file in curves["y"])
