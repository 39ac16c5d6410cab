"""One method against one peer on the same features and logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from howsure import Method
from howsure.plugins import METHODS

from .setting import Images, Setting, setting

Array = np.ndarray[Any, Any]
RANKS, AUROC = 0.9999, 0.001
"""Where definitions agree: least rank correlation, largest difference of AUROC."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """A method with parameters, and what a peer gives for the test images.

    Attributes:
        method: name of the method.
        params: its hyper-parameters, where they are not the defaults.
        peer: the peer's class.
        score: the peer's scores of the test images, higher more uncertain.
        change: applied to the images first, for both sides.
        differs: how the peer's definition is not the paper's; None where they agree.
        formula: the paper's, written out on arrays; for those that differ.
        network: whether a side looks at images through the whole network.
        rtol: how far ours may be off it. Where rounding turns the sign of what goes into a rectifier, gradients jump.
    """

    method: str
    peer: str
    score: Callable[[Setting], Any]
    params: Mapping[str, Any] = field(default_factory=dict)
    change: Callable[[Images], Images] | None = None
    differs: str | None = None
    formula: Callable[[Setting], Any] | None = None
    network: bool = False
    rtol: float = 1e-4
    note: str = ""

    @property
    def id(self) -> str:
        """A name for tests."""
        return f"{self.method}-{self.peer}" + "-changed" * (self.change is not None)

    def make(self) -> Method:
        """The method with its parameters."""
        return METHODS[self.method](**self.params)

    @property
    def impossible(self) -> bool:
        """Whether it wants the network, which the digits have none of."""
        return self.network and setting().network is None


@dataclass(frozen=True)
class Result:
    """Rank correlation of ours with the peer's, and both AUROC."""

    ours: Array
    ranks: float
    auroc: float
    peer_auroc: float


def place(comparison: Comparison) -> Setting:
    """The setting, changed as the comparison wants it."""
    s, change = setting(), comparison.change
    return s if change is None else replace(s, train=change(s.train), test=change(s.test))


@cache
def result(comparison: Comparison) -> Result:
    """Both scores on the same data."""
    s = place(comparison)
    method = comparison.make()
    ours = method.score(s.look(s.test, method), **method.fit(s.look(s.train, method))).double().numpy()
    theirs = np.asarray(comparison.score(s), dtype=np.float64)
    shifted = s.shifted.numpy()
    return Result(
        ours,
        float(spearmanr(ours, theirs).statistic),
        float(roc_auc_score(shifted, ours)),
        float(roc_auc_score(shifted, theirs)),
    )


def check(comparison: Comparison) -> None:
    """Agreement where definitions agree; elsewhere agreement with the paper's formula."""
    if comparison.impossible:
        pytest.skip("needs the real network and images")
    got = result(comparison)
    if comparison.differs is None:
        assert got.ranks >= RANKS
        assert abs(got.auroc - got.peer_auroc) <= AUROC
    else:
        assert comparison.formula is not None
        np.testing.assert_allclose(got.ours, comparison.formula(place(comparison)), comparison.rtol, atol=1e-5)
