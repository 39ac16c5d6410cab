"""Our scores against pytorch-ood's on the same network and images."""

import pytest

pytest.importorskip("pytorch_ood", reason="pytorch-ood is in the extra `peers`")

from parity.compare import Comparison, check
from parity.with_pytorch_ood import COMPARISONS


@pytest.mark.parametrize("comparison", COMPARISONS, ids=lambda c: c.id)
def test_parity(comparison: Comparison) -> None:
    check(comparison)
