"""GAIA, channel-wise average abnormality."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from howsure import Method, Reps

from ._gaia import AverageGradients


@dataclass(frozen=True)
class GaiaA(Method):
    """GAIA-A. Chen et al., 2023, arXiv:2311.09620.

    Two stages: the output component is √(mean_c |a_c|), a_c the mean over positions of the gradient of Σ log p at the
    last feature map A; the inner components b_c are means over positions of the gradient of ΣA at each normalisation
    layer's map. score = mean_c (b_c / output)²; shape [N], higher means more uncertain. One forward and two backward
    passes to the maps.

    All normalisation layers before A are used (the authors' code uses the last blocks of some networks), except one
    whose output is A itself.
    """

    needs = (AverageGradients(),)

    def score(self, reps: Reps) -> Tensor:
        found = reps[self.needs[0]]
        output = found["output"].double().abs().mean(1, keepdim=True).clamp_min(1e-20)
        return (found["inner"].double().square() / output).mean(1)
