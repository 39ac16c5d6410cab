"""Hyper-parameters of the wrong type, out of range, or no choice, are an error in one line before anything runs."""

import numpy as np
import pytest

from howsure import Confound, UserError
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


def test_right_values():
    METHODS["knn"](k=np.int64(3))
    METHODS["energy"](temperature=2)
    METHODS["gradnorm"](layers=None)
    METHODS["nci"](alpha=0.0)
    METHODS["relation"](power=12)
    Confound(hot=None)
    for name in METHODS:
        METHODS[name](**METHODS[name].test_params)
