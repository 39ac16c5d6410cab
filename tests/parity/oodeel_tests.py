"""Our scores against oodeel's on the same network and images; run by `tox -e parity` alone, for its old NumPy."""

import pytest
from parity.compare import Comparison, check
from parity.with_oodeel import COMPARISONS


@pytest.mark.parametrize("comparison", COMPARISONS, ids=lambda c: c.id)
def test_parity(comparison: Comparison) -> None:
    check(comparison)
