"""The contract of an uncertainty score: a frozen dataclass of hyper-parameters that scores arrays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, get_args

from torch import Tensor

from .errors import UserError
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
        needs: representations that `fit` and `score` read; a tuple, or a property if it depends on a field.
        supervision: what `fit` may see. `"none"`: there is no `fit`. `"id-train"`: in-distribution training images.
            `"outliers"`: held-out in-distribution images and outliers.
        fit_split: the in-distribution split that `fit` sees under `"id-train"`. `"val"` is for methods that must be
            calibrated on images the network was not trained on; a data set without that split gives `train` instead.
        grid: values tried for each hyper-parameter under protocols that supply outliers; the best AUROC on validation
            images wins. A hyper-parameter that the suite sets is not tuned.
        test_params: hyper-parameters that suit the small data of the contract tests.
    """

    supervision: ClassVar[Supervision] = "none"
    fit_split: ClassVar[Literal["train", "val"]] = "train"
    grid: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    test_params: ClassVar[Mapping[str, Any]] = {}
    needs: ClassVar[Any] = ()

    def __post_init__(self) -> None:
        check_values(self)

    def settled(self: M, names: Iterable[str]) -> M:
        """This method with the hyper-parameters in `names` removed from its grid, so that they are not tuned."""
        left = {name: values for name, values in self.grid.items() if name not in set(names)}
        if len(left) < len(self.grid):
            object.__setattr__(self, "grid", left)
        return self

    def skip(self, network: Network) -> str | None:
        """Why this method cannot score this network, or None if it can."""
        return None

    def fit(self, *args: Any) -> dict[str, Tensor]:
        """The fitted state: a flat dict of tensors, passed to `score` by name.

        Called as `fit(train)`, `train` being the `Reps` of in-distribution images; under `supervision = "outliers"` as
        `fit(train, outliers)`, `train` then being held-out images unless the outliers are made from training images.
        """
        return {}

    def score(self, *args: Any, **kwargs: Any) -> Tensor:
        """Called as `score(reps, **state)`: finite scores `[N]` of the images; higher means more uncertain."""
        raise NotImplementedError


def misdeclared(method: Method) -> str | None:
    """The first mistake in what a method's class declares, in one line, or None."""
    cls = type(method)
    if cls.score is Method.score:
        return "has no score; write score(self, reps)"
    if cls.supervision not in get_args(Supervision):
        return f"unknown supervision '{cls.supervision}'; choose one of {', '.join(get_args(Supervision))}"
    if not isinstance(method.needs, tuple):
        return f"needs is a {type(method.needs).__name__}, but must be a tuple, as in needs = (Logits(),)"
    for rep in method.needs:
        if not isinstance(rep, Representation):
            return f"needs holds {rep!r}, which is not a representation; write an instance, as in Logits()"
    if cls.supervision == "none" and cls.fit is not Method.fit:
        return "supervision 'none' does not allow a fit; set supervision to 'id-train' or 'outliers'"
    if cls.supervision != "none" and cls.fit is Method.fit:
        return f"supervision '{cls.supervision}' requires a fit; write one, or set supervision to 'none'"
    try:
        hash(method)
    except TypeError as error:
        return (
            f"has no hash ({error}); decorate it with @dataclass(frozen=True), and give its fields values that cannot"
            " change, such as tuples"
        )
    known = [f.name for f in fields(cls)]  # type: ignore[arg-type]
    for name, values in method.grid.items():
        if name not in known:
            return f"grid names '{name}', which is not a field; the fields are {', '.join(known) or 'none'}"
        if not isinstance(values, (tuple, list)):
            return f"grid of {name} is a {type(values).__name__}, but must be a tuple of values"
        if not values:
            return f"grid of {name} is empty; give it values to choose from, or leave {name} out"
        for value in values:
            try:
                replace(method, **{name: value})  # type: ignore[type-var]
            except (UserError, TypeError, ValueError) as error:
                return f"grid of {name} holds {value!r}: {error}"
    return None
