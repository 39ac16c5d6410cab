"""GAIA, zero-deflation abnormality."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from howsure import Method, Reps

from ._gaia import NonZeroShare


@dataclass(frozen=True)
class GaiaZ(Method):
    """GAIA-Z. Chen et al., 2023, arXiv:2311.09620.

    For each channel c of each normalisation layer's map, ρ_c is the share of positions where the partial derivative of
    the top logit is not zero. score = mean of ρ_c² over channels and layers; shape [N], higher means more uncertain.
    One forward and one backward pass to the maps.

    Needs gradients that can be exactly zero, as before a ReLU: a network is skipped if less than 5 % of them are zero
    on two random images, among channels that have a gradient at all. All normalisation layers are used (the authors'
    code uses the last block of some networks). The mean is the paper's aggregation, up to its root and a constant.
    """

    needs = (NonZeroShare(),)

    def score(self, reps: Reps) -> Tensor:
        return reps[self.needs[0]].double().square().mean(1)
