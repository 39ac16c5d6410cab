"""Which images go through the network together, and for what."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from howsure import Head, Logits, Representation
from howsure.rows import Rows, passes


@dataclass(frozen=True)
class Costly(Representation):
    """One of several that make passes of their own."""

    cost = "passes"
    weight: int = 0


REPS = [Costly(0), Logits(), Head(), Costly(1), Costly(2)]


@given(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=20))
def test_what_is_missing_is_computed_once_and_nothing_else(rows):
    lack = torch.tensor(rows)
    lack[1:, 2] = False
    found = list(passes(lack, REPS))
    seen = torch.zeros(lack.shape, dtype=torch.int64)
    for images, some in found:
        columns = torch.tensor([rep in some for rep in REPS])
        seen += images[:, None] & columns & (lack | torch.tensor([rep.per_image for rep in REPS]))
    assert torch.equal(seen, lack.long())
    assert sum(Logits() in some for _, some in found) <= 1


def test_images_that_lack_the_same_are_looked_at_together():
    lack = torch.zeros(9, 5, dtype=torch.bool)
    lack[2:8, 0], lack[4:8, 3], lack[4:8, 4] = True, True, True
    found = [(images.nonzero().squeeze(1).tolist(), some) for images, some in passes(lack, REPS)]
    assert found == [([4, 5, 6, 7], [Costly(0), Costly(1), Costly(2)]), ([2, 3], [Costly(0)])]


@pytest.mark.parametrize("seed", range(3))
def test_rows_joined_in_any_order_are_those_of_all(seed):
    whole = {"a": torch.arange(20), "b": torch.randn(20, 3)}
    order = torch.randperm(20, generator=torch.Generator().manual_seed(seed))
    rows = Rows()
    for part in order.split([7, 0, 9, 4]):
        index = part.sort().values
        assert rows.missing(index).all()
        rows = rows.join(Rows({key: value[index] for key, value in whole.items()}, index))
        assert not rows.missing(index).any()
        back = Rows.from_file(rows.to_file())
        assert all(torch.equal(back.take(part)[key], whole[key][part]) for key in whole)
    assert all(torch.equal(rows.take(None)[key], whole[key]) for key in whole)
