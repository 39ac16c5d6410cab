"""Hyper-parameters of the wrong type, out of range, or no choice, are an error in one line before anything runs."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import pytest
import torch
from annotated_types import Interval
from pydantic import Field

from howsure import Confound, Method, UserError
from howsure.cells import refusal
from howsure.check import networks
from howsure.plugins import METHODS


@pytest.mark.parametrize(
    ("name", "values", "says"),
    [
        ("confound", {"mode": "normalized"}, "must be 'sum' or 'normalised' or 'log'"),
        ("confound_detector", {"kind": "linear"}, "must be 'mlp' or 'logistic'"),
        ("knn", {"k": "five"}, "must be an integer"),
        ("knn", {"k": (1, 2)}, "must be an integer"),
        ("knn", {"k": True}, "must be an integer"),
        ("knn", {"k": 0}, "above 0"),
        ("energy", {"temperature": 0}, "above 0"),
        ("mahalanobis", {"shrinkage": 1.5}, "at least 0 and at most 1"),
        ("openmax", {"tail": 0}, "above 0"),
        ("openmax", {"alpha": 0}, "above 0"),
        ("openmax", {"alpha": -3}, "above 0"),
        ("gradorth", {"threshold": 97.0}, "at least 0 and at most 1"),
        ("gram", {"power": 11}, "at least 1 and at most 10"),
        ("gram", {"power": 0}, "at least 1 and at most 10"),
        ("relation", {"power": 0}, "above 0"),
        ("tta", {"crops": 5}, "at least 0 and at most 4"),
        ("tta", {"crops": -1}, "at least 0 and at most 4"),
        ("tta", {"shift": -0.5}, "at least 0 and at most 1"),
        ("adascale_a", {"k1": 200.0}, "at least 0 and at most 100"),
        ("adascale_l", {"k2": -1.0}, "at least 0 and at most 100"),
        ("adascale_l", {"o": 2.0}, "at least 0 and at most 1"),
        ("adascale_a", {"lmbda": -1.0}, "at least 0"),
        ("gen", {"gamma": -1.0}, "above 0"),
        ("nac", {"alpha": 0.0}, "above 0"),
        ("nci", {"alpha": -1.0}, "at least 0"),
        ("vra", {"gamma": -1.0}, "at least 0"),
        ("grood", {"lam": 2.0}, "at least 0 and at most 1"),
        ("gradprint", {"columns": 0}, "above 0"),
        ("confound_detector", {"seed": -1}, "at least 0"),
        ("react", {"percentile": 101.0}, "at least 0 and at most 100"),
        ("renyi", {"alpha": 0.0}, "above 0"),
        ("cfood", {"rho": 0.0}, "above 0 and at most 1"),
        ("nnguide", {"bank": 1.5}, "above 0 and at most 1"),
        ("vim", {"dim": -1}, "at least 0"),
        ("energy", {"temperature": float("nan")}, "above 0"),
        ("confound", {"loss": "confound"}, "must be a loss"),
        ("gradnorm", {"layers": "fc"}, r"must be a tuple \(in a suite: a list\) or None"),
        ("gradnorm", {"layers": ()}, r"GradNorm: layers = \(\) must be a list of 1 or more"),
        ("predgrad", {"layers": ()}, "must be a list of 1 or more"),
        ("purview", {"hot": ()}, "must be a list of 1 or more"),
    ],
)
def test_wrong_values(name, values, says):
    with pytest.raises(UserError, match=says):
        METHODS[name](**values)


@pytest.mark.parametrize("values", [{"output": "softmx"}, {"hot": -1}, {"hot": 1.5}])
def test_wrong_losses(values):
    with pytest.raises(UserError, match=next(iter(values))):
        Confound(**values)


def test_a_label_with_more_ones_than_classes():
    logits = torch.randn(3, 4)
    assert torch.equal(Confound(4)(logits), Confound()(logits))
    with pytest.raises(UserError, match="5 ones needs as many classes; there are 4"):
        Confound(5)(logits)
    network = networks()[0]
    for name, values in (("confound", {"loss": Confound(5)}), ("purview", {"hot": (0, 5)})):
        assert "5 ones" in str(refusal(METHODS[name](**values), network))
        assert refusal(METHODS[name](), network) is None


@dataclass(frozen=True)
class Strange(Method):
    """A plugin whose fields are named like others', and mean something else; two have ranges of their own."""

    threshold: float = 5.0
    k: float = -1.0
    seed: Annotated[int, Field(le=0)] = -1
    window: Annotated[int, Interval(gt=2, lt=9)] | tuple[int, ...] = (1, 1)


def test_fields_of_a_plugin_have_the_ranges_that_they_declare():
    Strange()
    Strange(window=3)
    with pytest.raises(UserError, match="Strange: window = 2 must be above 2 and below 9"):
        Strange(window=2)
    with pytest.raises(UserError, match="Strange: seed = 1 must be at most 0"):
        Strange(seed=1)


def test_right_values():
    METHODS["knn"](k=np.int64(3))
    METHODS["energy"](temperature=2)
    METHODS["gradnorm"](layers=None)
    METHODS["gradnorm"](layers=("fc.*",))
    METHODS["nci"](alpha=0.0)
    METHODS["relation"](power=12)
    Confound(hot=None)
    for name in METHODS:
        METHODS[name](**METHODS[name].test_params)
