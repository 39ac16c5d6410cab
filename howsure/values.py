"""Checks the hyper-parameters of methods and losses against their annotations and ranges."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import cache
from numbers import Integral, Real
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, GroupedMetadata, Gt, Interval, Le, Lt, MinLen

from .errors import UserError

# ranges for the fields of methods, beside pydantic's PositiveInt, NonNegativeFloat and so on
Fraction = Annotated[float, Interval(ge=0, le=1)]
Share = Annotated[float, Interval(gt=0, le=1)]
Percentile = Annotated[float, Interval(ge=0, le=100)]
Names = Annotated[tuple[str, ...], MinLen(1)]

BOUNDS: dict[type, tuple[str, Callable[[Any, Any], bool]]] = {
    Gt: ("above", operator.gt),
    Ge: ("at least", operator.ge),
    Le: ("at most", operator.le),
    Lt: ("below", operator.lt),
}
WORDS = {
    "Loss": 'a loss (in a suite: { kind = "confound" })',
    "bool": "true or false",
    "tuple": "a tuple (in a suite: a list)",
    "NoneType": "None",
}


def check_values(owner: Any) -> None:
    """Raise UserError if a field of a dataclass has the wrong type, is no value of its Literal, or is out of range.

    The range is that of its annotation: `Fraction`, pydantic's `PositiveInt`, `Annotated[float, Interval(ge=1, lt=2)]`;
    `Names`, or `Annotated[tuple[int, ...], MinLen(2)]`, for how many entries a tuple has at least.
    """
    for name, (options, bounds) in _annotations(type(owner)).items():
        value = getattr(owner, name)
        if value is None and type(None) in options:
            continue
        wanted = _wanted(value, options) or _range(value, bounds) or _length(value, bounds)
        if wanted:
            raise UserError(f"{type(owner).__name__}: {name} = {value!r} must be {wanted}")


def _wanted(value: Any, options: tuple[Any, ...]) -> str | None:
    """What a value must be instead of what it is, or None if it is one of the options."""
    choices = [c for option in options if get_origin(option) is Literal for c in get_args(option)]
    numbers = [option for option in options if option in (int, float)]
    kinds = tuple(get_origin(option) or option for option in options)
    if all(map(_is_class, kinds)) and not numbers and not isinstance(value, kinds):
        return " or ".join(WORDS.get(kind.__name__, f"a {kind.__name__}") for kind in kinds)
    if choices and value not in choices:
        return " or ".join(map(repr, choices))
    if numbers and len(options) == len(numbers) + (type(None) in options):
        what, kind = ("a number", Real) if float in numbers else ("an integer", Integral)
        if isinstance(value, bool) or not isinstance(value, kind):
            return what
    return None


def _range(value: Any, bounds: tuple[Any, ...]) -> str | None:
    """The range in words, or None if the value is in it or no number."""
    marks = [(BOUNDS[type(bound)], bound) for bound in bounds if type(bound) in BOUNDS]
    ends = [(word, inside, getattr(bound, inside.__name__)) for (word, inside), bound in marks]
    if not isinstance(value, Real) or all(inside(value, end) for _, inside, end in ends):
        return None
    return " and ".join(f"{word} {end}" for word, _, end in ends)


def _length(value: Any, bounds: tuple[Any, ...]) -> str | None:
    """How many entries there must be, in words, or None if there are enough or it is no tuple."""
    least = max((bound.min_length for bound in bounds if isinstance(bound, MinLen)), default=0)
    if not isinstance(value, tuple) or len(value) >= least:
        return None
    return f"a list of {least} or more"


def _is_class(kind: Any) -> bool:
    return isinstance(kind, type) and kind is not Any and not getattr(kind, "_is_protocol", False)


def _read(cls: Any) -> dict[str, tuple[tuple[Any, ...], tuple[Any, ...]]]:
    """The types that each field may have, and the bounds of its numbers."""
    try:
        hints = get_type_hints(cls, include_extras=True)
    except NameError:  # a class inside a function, whose annotations name the function's local variables
        return {}
    return {f.name: (_options(get_type_hints(cls)[f.name]), tuple(_bounds(hints[f.name]))) for f in fields(cls)}


_annotations: Callable[[Any], dict[str, tuple[tuple[Any, ...], tuple[Any, ...]]]] = cache(_read)


def _options(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _bounds(hint: Any) -> Iterator[Any]:
    for option in _options(hint):
        for mark in getattr(option, "__metadata__", ()):
            parts = mark if isinstance(mark, GroupedMetadata) else getattr(mark, "metadata", (mark,))
            yield from (part for part in parts if type(part) in BOUNDS or isinstance(part, MinLen))
