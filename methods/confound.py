"""The size of the gradient under a confounding label, without training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from howsure import Confound, GradNorms, Loss, Method, Reps
from howsure.detector import log_norms

from ._gradients import ParameterSizes


@dataclass(frozen=True)
class ConfoundNorm(Method):
    """Confounding-label gradient norm, untrained. Lee & AlRegib, 2020, arXiv:2008.08030.

    With y_c an n-hot label (all ones by default) and g_p the gradient of the binary cross-entropy between σ(z) and y_c
    with respect to parameter set p: score = Σ_p ‖g_p‖² ("sum"), Σ_p ‖g_p‖² / size_p ("normalised"), or Σ_p log ‖g_p‖²
    ("log", blind to each set's scale); shape [N], higher means more uncertain. One backward pass.

    pytorch-ood's untrained sum (`GradUncertainty`) has the softmax of z instead of σ(z), and the opposite sign.

    The paper trains a detector on the vector of these norms (`confound_detector`) and expects larger gradients for less
    familiar inputs. In fact, the sign of the plain sum depends on network and data.
    """

    loss: Loss = field(default_factory=Confound)
    mode: Literal["sum", "normalised", "log"] = "sum"

    @property
    def needs(self):
        return (GradNorms(self.loss), *([ParameterSizes()] if self.mode == "normalised" else []))

    def score(self, reps: Reps) -> Tensor:
        norms = reps[GradNorms(self.loss)].double()
        if self.mode == "log":
            return log_norms(norms).sum(1)
        return (norms / reps[ParameterSizes()] if self.mode == "normalised" else norms).sum(1)
