"""One line for what a process that loads data says."""

from __future__ import annotations

import sys

import pytest
from torch._utils import ExceptionWrapper

from howsure import UserError
from howsure.errors import described, one_line


def raised_by_a_worker(error: Exception) -> Exception:
    """What the loading process gives on, as the one that waits for it gets it."""
    try:
        raise error
    except Exception:
        wrapped = ExceptionWrapper(sys.exc_info(), where="in DataLoader worker process 0")
    with pytest.raises(type(error)) as caught:
        wrapped.reraise()
    return caught.value


def test_an_error_of_a_worker_is_what_it_said():
    error = raised_by_a_worker(UserError("cat.png: not an image: truncated; remove it"))
    assert "Traceback" in str(error)
    assert one_line(error) == "cat.png: not an image: truncated; remove it"


def test_an_unforeseen_error_of_a_worker_is_what_it_said():
    text = described(raised_by_a_worker(ZeroDivisionError("division by zero")))
    assert text.endswith(": ZeroDivisionError: division by zero")
    assert "Traceback" not in text
