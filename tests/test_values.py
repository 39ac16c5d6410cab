"""Hyper-parameters of the wrong type, out of range, or no choice, are an error in one line before anything runs."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

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
        ("knn", {"k": 0}, "at least 1"),
        ("energy", {"temperature": 0}, "above 0"),
        ("mahalanobis", {"shrinkage": 1.5}, "from 0 to 1"),
        ("openmax", {"tail": 0}, "at least 1"),
        ("openmax", {"alpha": 0}, "at least 1"),
        ("openmax", {"alpha": -3}, "at least 1"),
        ("gradorth", {"threshold": 97.0}, "from 0 to 1"),
        ("gram", {"power": 11}, "from 1 to 10"),
        ("gram", {"power": 0}, "from 1 to 10"),
        ("relation", {"power": 0}, "above 0"),
        ("tta", {"crops": 5}, "from 0 to 4"),
        ("tta", {"crops": -1}, "from 0 to 4"),
        ("tta", {"shift": -0.5}, "from 0 to 1"),
        ("adascale_a", {"k1": 200.0}, "from 0 to 100"),
        ("adascale_l", {"k2": -1.0}, "from 0 to 100"),
        ("adascale_l", {"o": 2.0}, "from 0 to 1"),
        ("adascale_a", {"lmbda": -1.0}, "at least 0"),
        ("gen", {"gamma": -1.0}, "above 0"),
        ("nac", {"alpha": 0.0}, "above 0"),
        ("nci", {"alpha": -1.0}, "at least 0"),
        ("vra", {"gamma": -1.0}, "at least 0"),
        ("grood", {"lam": 2.0}, "from 0 to 1"),
        ("gradprint", {"columns": 0}, "at least 1"),
        ("confound_detector", {"seed": -1}, "at least 0"),
        ("confound", {"loss": "confound"}, "must be a loss"),
        ("gradnorm", {"layers": "fc"}, r"must be a tuple \(in a suite: a list\) or None"),
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
    """A plugin whose fields are named like others', and mean something else."""

    threshold: float = 5.0
    power: float = -1.0
    m: float = 0.5
    r: float = 0.1


def test_fields_of_a_plugin_have_the_ranges_that_they_need():
    Strange()


def test_right_values():
    METHODS["knn"](k=np.int64(3))
    METHODS["energy"](temperature=2)
    METHODS["gradnorm"](layers=None)
    METHODS["nci"](alpha=0.0)
    METHODS["relation"](power=12)
    Confound(hot=None)
    for name in METHODS:
        METHODS[name](**METHODS[name].test_params)
