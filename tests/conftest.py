"""What all tests share: a cache of their own, and the tiny networks and images of the contract tests."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from howsure import ArrayImages, Network
from howsure.check import networks
from howsure.gradients import device


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOWSURE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def conv_net() -> Network:
    return networks()[0]


@pytest.fixture
def transformer() -> Network:
    return networks()[1]


@pytest.fixture
def images() -> ArrayImages:
    rng = np.random.default_rng(0)
    return ArrayImages(rng.integers(0, 256, (50, 16, 16, 3), dtype=np.uint8), np.arange(50) % 4)


@pytest.fixture
def queued(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work on the CPU counts as queued, as on a GPU."""
    monkeypatch.setattr(device, "QUEUED", {"cpu", "cuda"})


@pytest.fixture(params=["at once", "queued"])
def queued_or_not(request: pytest.FixtureRequest) -> None:
    """Both ways of working."""
    if request.param == "queued":
        request.getfixturevalue("queued")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
