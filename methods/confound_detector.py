"""The paper's detector: two layers on the gradient norms under a confounding label."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from howsure import Confound, GradNorms, Loss, Reps
from howsure.detector import log_norms

from ._detectors import _Detector


@dataclass(frozen=True)
class ConfoundDetector(_Detector):
    """Gradients as a measure of uncertainty. Lee & AlRegib, 2020, arXiv:2008.08030.

    With y_c an n-hot label (all ones by default) and g_p the gradient of the binary cross-entropy between σ(z) and y_c
    with respect to parameter set p: the vector (‖g_1‖², …, ‖g_P‖²) goes through two fully connected layers, trained on
    held-out in-distribution images and outliers. score = log-odds of "outlier"; shape [N], higher means more uncertain.
    One backward pass.

    The norms enter as standardised logs (`log`), and both classes have equal weight; the paper specifies neither. The
    score is the mean of four such detectors, fitted from different starts by L-BFGS with `weight_decay`, on all rows
    and without a validation set. `kind` "logistic" is a single layer, fitted once.
    """

    loss: Loss = field(default_factory=Confound)
    log: bool = True

    @property
    def needs(self):
        return (GradNorms(self.loss),)

    def vectors(self, reps: Reps) -> Tensor:
        norms = reps[GradNorms(self.loss)]
        return log_norms(norms) if self.log else norms
