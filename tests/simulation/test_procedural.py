"""Procedural scenes: the same however the work is split, valid at every size, with shadows that fit the sun."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from pansharp_study.simulation.painter import Sun, objects, palette, render, shadows, stamp
from pansharp_study.simulation.procedural import SCENE_KINDS, paint_scenes


def test_same_scene_in_any_process():
    """A fresh process that makes only scene 5 gets the same bytes."""
    code = (
        "from pansharp_study.simulation.procedural import paint_scenes; scene = paint_scenes(1, 96, seed=9, first=5); "
        "print([int(scene[k].long().sum()) for k in sorted(scene)])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    here = paint_scenes(6, 96, seed=9)
    assert out.strip() == str([int(here[k][5].long().sum()) for k in sorted(here)])


def test_seeds_are_seeds_not_offsets():
    """Seed 1 scene 2 is not seed 2 scene 1."""
    assert not torch.equal(paint_scenes(1, 64, seed=1, first=2)["shade"], paint_scenes(1, 64, seed=2, first=1)["shade"])


@pytest.mark.parametrize("kind", SCENE_KINDS)
@pytest.mark.parametrize("size", [64, 200, 256])
def test_every_kind_and_size(kind, size):
    """Many small scenees: no empty table, no parcel, quarter or block that breaks it."""
    n = 24 if size == 64 else 4
    scene = paint_scenes(n, size, seed=3, kinds=(kind,))
    assert scene["labels"].shape == scene["shade"].shape == (n, size, size) and scene["groups"].shape == (n, 32)
    assert scene["labels"].max() < 32 and scene["groups"].max() < 5
    assert (scene["kind"] == list(SCENE_KINDS).index(kind)).all()
    assert (scene["shade"].float().flatten(1).std(1) > 0.5).all()
    assert all(len(x.unique()) > (0 if size == 64 else 5) for x in scene["labels"])  # 64 pixels may be all river


def test_labels_keep_their_group():
    """Towns and fields share one palette, with every group in it."""
    scene = paint_scenes(4, 64, seed=1, kinds=("town", "fields"))
    assert (scene["groups"] == torch.from_numpy(palette())).all() and set(palette().tolist()) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("azimuth", np.arange(0, 2 * np.pi, 0.7))
def test_shadow_points_away_from_the_sun(azimuth):
    """The shadow of a mast ends where the ray through its top meets the ground."""
    height = np.zeros((121, 121), np.float32)
    height[58:63, 58:63] = 20
    y, x = np.nonzero(shadows(height, Sun(np.cos(azimuth), np.sin(azimuth), 2.0, 0.3)))
    far = np.argmax(np.hypot(x - 60, y - 60))
    assert abs(np.hypot(x[far] - 60, y[far] - 60) - 40) < 4
    assert abs(np.angle(np.exp(1j * (np.arctan2(y[far] - 60, x[far] - 60) - azimuth)))) < 0.12


def test_roof_faces_the_sun():
    """The half that faces the sun is the brighter one, at any angle of the roof."""
    for angle in np.arange(0, 3, 0.5):
        table = np.concatenate(
            [
                objects(1, x=32, y=32, long=99, wide=99),
                objects(1, x=32, y=32, long=20, wide=12, angle=angle, pitch=0.6, height=1),
            ]
        )
        sun = Sun(-np.sin(angle), np.cos(angle), 1.0, 0.3)  # shadows fall towards +v
        _, shade = render(stamp(np.zeros((64, 64), np.int32), table), table, sun, np.random.default_rng(0))
        u, v = 5 * np.array([-np.sin(angle), np.cos(angle)])
        toward, away = (shade[round(32 + k * v), round(32 + k * u)] / 1 for k in (-1, 1))
        assert toward > 1.5 * away


def test_stamping_outside_is_harmless():
    """Things beyond the edges, hairlines and an empty table."""
    table = objects(
        4,
        x=[-500, 70, 32, 900],
        y=[10, 63, -3, 900],
        long=[9, 30, 0.55, 5],
        wide=[9, 0.5, 40, 5],
        angle=[0, 0, np.pi / 2, 1],
    )
    owner = stamp(np.full((64, 64), -1, np.int32), table)
    assert set(np.unique(owner)) <= {-1, 1, 2} and (owner == 1).any()
    assert (stamp(np.zeros((64, 64), np.int32), table[:0]) == 0).all()
