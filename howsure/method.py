"""What every uncertainty score is: a frozen dataclass of hyper-parameters that scores arrays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, get_args

from torch import Tensor

from .representation import Representation
from .values import check_values

if TYPE_CHECKING:
    from .network import Network

Supervision = Literal["none", "id-train", "outliers"]
M = TypeVar("M", bound="Method")


class Method:
    """An uncertainty score. Subclasses are frozen dataclasses whose fields are the hyper-parameters.

    The first line of the docstring names the score and its paper. **Higher means more uncertain.**

    Attributes:
        needs: representations that `fit` and `score` read; a tuple, or a property where it depends on a field.
        supervision: what `fit` may see. `"none"`: there is no `fit`. `"id-train"`: in-distribution training images.
            `"outliers"`: held-out in-distribution images and outliers.
        fit_split: the in-distribution split that `fit` sees under `"id-train"`; `"val"` for what must be calibrated on
            images that the network was not trained on (the training split stands in where a data set has none).
        grid: values to choose from by AUROC on validation outliers, under protocols that supply outliers; a
            hyper-parameter that a suite sets stays as it is set.
        test_params: hyper-parameters fit for the small data of the contract tests.
    """

    supervision: ClassVar[Supervision] = "none"
    fit_split: ClassVar[Literal["train", "val"]] = "train"
    grid: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    test_params: ClassVar[Mapping[str, Any]] = {}
    needs: ClassVar[Any] = ()

    def __post_init__(self) -> None:
        check_values(self)

    def settled(self: M, names: Iterable[str]) -> M:
        """Itself, with hyper-parameters that are not to be tuned."""
        left = {name: values for name, values in self.grid.items() if name not in set(names)}
        if len(left) < len(self.grid):
            object.__setattr__(self, "grid", left)
        return self

    def skip(self, network: Network) -> str | None:
        """A reason why this method cannot score this network, or None."""
        return None

    def fit(self, *args: Any) -> dict[str, Tensor]:
        """The state: a flat dict of tensors, passed to `score` by name.

        `fit(train)` with `train` a `Reps` of in-distribution images; under `supervision = "outliers"`,
        `fit(train, outliers)` with `train` in-distribution images, held-out ones where the outliers are too.
        """
        return {}

    def score(self, *args: Any, **kwargs: Any) -> Tensor:
        """`score(reps, **state)`: scores `[N]` of the images in `reps`, finite; higher means more uncertain."""
        raise NotImplementedError


def misdeclared(method: Method) -> str | None:
    """What cannot be right in what a method's class declares, in one line; None where nothing is wrong."""
    cls = type(method)
    if cls.score is Method.score:
        return "has no score; write score(self, reps)"
    if cls.supervision not in get_args(Supervision):
        return f"unknown supervision '{cls.supervision}'; choose of {', '.join(get_args(Supervision))}"
    if not isinstance(method.needs, tuple):
        return f"needs is a {type(method.needs).__name__}, but must be a tuple, as in needs = (Logits(),)"
    for rep in method.needs:
        if not isinstance(rep, Representation):
            return f"needs holds {rep!r}, which is no representation; write one with its brackets, as in Logits()"
    if (cls.fit is not Method.fit) != (cls.supervision != "none"):
        return f"supervision '{cls.supervision}' does not go with {'no' if cls.supervision != 'none' else 'a'} fit"
    known = [f.name for f in fields(cls)]  # type: ignore[arg-type]
    for name, values in method.grid.items():
        if name not in known:
            return f"grid names no field: {name}"
        if not isinstance(values, (tuple, list)):
            return f"grid of {name} is a {type(values).__name__}, but must be a tuple of values"
    return None
