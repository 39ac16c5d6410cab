"""Writes docs/parity.md from measured values: `PYTHONPATH=tests python -m parity.table`, with both peers installed."""

from __future__ import annotations

from pathlib import Path

from tabulate import tabulate

from . import with_oodeel, with_pytorch_ood
from .compare import AUROC, RANKS, Comparison, result
from .setting import setting

PAGE = """# Parity with other libraries

Scores of this project against those of pytorch-ood 0.4.0 and oodeel 0.4.0, on the same features, logits and images:
{setting}; 1,000 training images to fit on, 500 test images and 500 shifted ones.

"Ranks" is Spearman's rank correlation of the two scores over all test images; "AUROC" is ours minus the peer's. Where
the definitions agree, the tests demand a rank correlation of at least {ranks} and an AUROC within {auroc}. Where a peer
differs from the paper ("differs" below), the tests compare ours with the paper's formula written out instead.

{table}

Not in these libraries, so compared only with their formulas (`tests/test_methods_formulas.py`): {alone}.

Nor are these, compared with their formulas in `tests/test_methods_passes.py` and `test_methods_gradients.py`: `tta`,
`ensemble`, `rts`, `adascale_a`, `adascale_l`, `gaia_a`, `gaia_z`, `grood`, `exgrad`, `gradorth`, `predgrad`,
`gradvector_knn`, `gradvector_mahalanobis`, `purview`.

Not compared, because the peers have something else under these names: `mahalanobis_layers` (theirs is a sum of the
layers' distances with given weights), `nac` (theirs has parts that are denser towards 0 and 1), `mc_dropout` (theirs
are means and variances of the softmax).

`tox -e parity` makes this page. Without the real images the tests use scikit-learn's digits, and leave out detectors
that look at images.
"""


def row(library: str, c: Comparison) -> list[str]:
    """A line of the table."""
    got = result(c)
    why = f"differs: {c.differs}" if c.differs else c.note
    return [f"`{c.method}`", f"{library} {c.peer}", f"{got.ranks:.6f}", f"{got.auroc - got.peer_auroc:+.5f}", why]


def main() -> None:
    """Measure and write."""
    peers = {"pytorch-ood": with_pytorch_ood.COMPARISONS, "oodeel": with_oodeel.COMPARISONS}
    rows = [row(library, c) for library, comparisons in peers.items() for c in comparisons if not c.impossible]
    rows.sort(key=lambda r: r[0])
    alone = ["margin", "doctor", "renyi", "ssd", "residual", "relation", "cfood", "combood"]
    page = PAGE.format(
        setting=setting().name,
        ranks=RANKS,
        auroc=AUROC,
        table=tabulate(rows, ["method", "peer", "ranks", "AUROC", "why"], "pipe", disable_numparse=True),
        alone=", ".join(f"`{name}`" for name in alone),
    )
    (Path(__file__).parents[2] / "docs" / "parity.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
