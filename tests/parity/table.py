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

"Ranks" is Spearman's correlation of the two scores over all test images, "AUROC" ours minus the peer's. Where
definitions agree the tests demand at least {ranks} and at most {auroc}; where a peer differs from the paper, they hold
ours against the paper's formula written out.

{table}

Not in these libraries, and held against their formulas by `tests/test_methods_formulas.py` alone: {alone}.

Not compared, since what the peers have is something else: `mahalanobis_layers` (a sum of the layers' distances with
given weights), `nac` (parts that are denser towards 0 and 1), `mc_dropout` (means and variances of the softmax).

Made by `tox -e parity`; without the real images the tests use scikit-learn's digits, and no detector that
looks at images.
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
