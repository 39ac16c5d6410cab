"""Checks the hyper-parameters of methods and losses against their annotations and ranges."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import cache
from numbers import Integral, Real
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from .errors import UserError

RANGES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(
        ("k", "samples", "hidden", "GEN.m", "NAC.m", "NAC.r", "OpenMax.tail", "OpenMax.alpha", "RankFeat.blocks",
         "GradPrint.columns"),
        ("at least 1", lambda v: v >= 1),
    ),
    **dict.fromkeys(("temperature", "tau", "GEN.gamma", "NAC.alpha", "Relation.power"), ("above 0", lambda v: v > 0)),
    **dict.fromkeys(
        ("shrinkage", "GradPrint.shift_shrinkage", "GradOrth.threshold", "Relation.threshold", "Grood.lam", "TTA.shift",
         "_AdaScale.o"),
        ("from 0 to 1", lambda v: 0 <= v <= 1),
    ),
    **dict.fromkeys(
        ("epsilon", "weight_decay", "seed", "ComboOD.ridge", "Confound.hot", "NCI.alpha", "VRA.gamma",
         "_AdaScale.lmbda"),
        ("at least 0", lambda v: v >= 0),
    ),
    **dict.fromkeys(("_AdaScale.k1", "_AdaScale.k2"), ("from 0 to 100", lambda v: 0 <= v <= 100)),
    "Gram.power": ("from 1 to 10", lambda v: 1 <= v <= 10),
    "TTA.crops": ("from 0 to 4", lambda v: 0 <= v <= 4),
}  # fmt: skip
"""By class and field name; by field name alone only where it can mean nothing else in anybody's plugin."""

WORDS = {
    "Loss": 'a loss (in a suite: { kind = "confound" })',
    "bool": "true or false",
    "tuple": "a tuple (in a suite: a list)",
    "NoneType": "None",
}


def check_values(owner: Any) -> None:
    """Raise UserError if a field of a dataclass has the wrong type, is no value of its Literal, or is out of range."""
    for name, options in _annotations(type(owner)).items():
        value = getattr(owner, name)
        if value is None and type(None) in options:
            continue
        choices = [c for option in options if get_origin(option) is Literal for c in get_args(option)]
        numbers = [option for option in options if option in (int, float)]
        kinds = tuple(get_origin(option) or option for option in options)
        if all(map(_is_class, kinds)) and not numbers and not isinstance(value, kinds):
            wanted = " or ".join(WORDS.get(kind.__name__, f"a {kind.__name__}") for kind in kinds)
            raise UserError(f"{type(owner).__name__}: {name} = {value!r} must be {wanted}")
        if choices and value not in choices:
            raise UserError(f"{type(owner).__name__}: {name} = {value!r} must be {' or '.join(map(repr, choices))}")
        if numbers and len(options) == len(numbers) + (type(None) in options):
            what, kind = ("a number", Real) if float in numbers else ("an integer", Integral)
            if isinstance(value, bool) or not isinstance(value, kind):
                raise UserError(f"{type(owner).__name__}: {name} = {value!r} must be {what}")
            for key in (name, *(f"{cls.__name__}.{name}" for cls in type(owner).__mro__)):
                if key in RANGES and not RANGES[key][1](value):
                    raise UserError(f"{type(owner).__name__}: {name} = {value!r} must be {RANGES[key][0]}")


def _is_class(kind: Any) -> bool:
    return isinstance(kind, type) and kind is not Any and not getattr(kind, "_is_protocol", False)


def _read(cls: Any) -> dict[str, tuple[Any, ...]]:
    try:
        hints = get_type_hints(cls)
    except NameError:  # a class inside a function, whose annotations name the function's local variables
        return {}
    return {f.name: _options(hints[f.name]) for f in fields(cls)}


_annotations: Callable[[Any], dict[str, tuple[Any, ...]]] = cache(_read)


def _options(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
