"""The size of the gradient of the cross-entropy to the predicted class."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from howsure import Method, Predicted, Reps
from howsure.values import Names

from ._gradients import ChosenGradNorms


@dataclass(frozen=True)
class PredGrad(Method):
    """Gradient of the predicted class's loss. Oberdiek et al., 2018, arXiv:1805.08440.

    score = ‖∇ CE(softmax(z), argmax z)‖₂ over the parameter sets whose names match `layers` (glob patterns; all of them
    by default); shape [N], higher means more uncertain. One backward pass.

    The paper feeds this and five other norms of each layer's gradient to a logistic regression that detects errors.
    """

    layers: Names = ("*",)

    @property
    def needs(self):
        return (ChosenGradNorms(self.layers, Predicted()),)

    def score(self, reps: Reps) -> Tensor:
        return reps[self.needs[0]].double().sum(1).sqrt()
