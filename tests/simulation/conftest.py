"""Small parameters and the base images that they give."""

import pytest
import torch

from pansharp_study.core import load_params
from pansharp_study.simulation.base_images import load_base_images, make_base_images


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def params():
    return load_params(scale="laptop")["synthesize_pairs"] | {
        "size": 48,
        "procedural_scenes": 3,
        "base_image_size": 160,
        "zoom": [0.3],
        "sources": ["remote_sensing"],
    }


@pytest.fixture(scope="session")
def base_images(params):
    return load_base_images(make_base_images(params, 1))
