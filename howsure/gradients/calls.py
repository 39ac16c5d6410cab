"""What a call of a torch function does, judged by its name and arguments."""

from __future__ import annotations

import types
from functools import cache
from typing import Any

import torch

from .trees import map_tensors

_IN_PLACE = {"__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__ipow__", "__ifloordiv__"}
STRIDED = {"as_strided", "as_strided_", "stride", "resize_", "resize_as_", "set_", "storage", "untyped_storage"}
CHOOSING = {
    *("argsort", "sort", "msort", "topk", "kthvalue", "nonzero", "argwhere", "unique", "unique_consecutive"),
    *("bincount", "masked_select", "multinomial", "item", "tolist", "numpy", "__int__", "__float__", "__index__"),
    "_pack_padded_sequence",
}
INDEXING = {"__getitem__", "__setitem__", "index", "index_select", "index_put", "index_put_", "index_add",
             "index_add_", "gather", "take_along_dim", "take", "scatter", "scatter_", "scatter_add",
             "scatter_add_"}  # fmt: skip
ORDERING = {"roll", "flip", "transpose", "permute", "movedim", "moveaxis", "swapaxes", "swapdims", "rot90", "einsum",
            "stack", "cat", "concat", "unsqueeze", "unbind"}  # fmt: skip
"""Calls that may move the samples to another dimension, which their arguments other than tensors tell."""
SHAPE_ONLY = {
    *("type_as", "expand_as", "view_as", "reshape_as", "to"),
    *("zeros_like", "ones_like", "empty_like", "is_same_size"),
}

VALUES = {
    **dict.fromkeys(("type_as", "to", "expand_as", "view_as", "reshape_as"), slice(1)),
    **dict.fromkeys(("zeros_like", "ones_like", "empty_like", "full_like"), slice(1, None)),
    **dict.fromkeys(("new", "new_zeros", "new_ones", "new_full", "new_empty", "new_tensor"), slice(1, None)),
}
"""Calls that make a tensor in the form of another, and the arguments that its values come from."""

_DATA: Any = torch.Tensor.data
SET_DATA = _DATA.__set__
REACHING = {_DATA.__get__, SET_DATA, torch.Tensor.detach, torch.detach}
"""Calls through which a network may change a parameter unnoticed by autograd."""

transform_level = torch._C._functorch.maybe_current_level
"""Not None within ``torch.func`` (``vmap``, ``grad``, …), where data and parameters are wrapped, and so used unseen."""


def name_of(func: Any) -> str:
    """A function's name; for an overload (``mul_.Tensor``) the operator's."""
    return getattr(func, "__name__", "").partition(".")[0]


def in_place(func: Any, args: tuple, kwargs: dict) -> bool:
    name = name_of(func)
    if name in _IN_PLACE or (name.endswith("_") and not name.endswith("__")):
        return True
    position = _says_in_place(func.__code__) if isinstance(func, types.FunctionType) else None
    if position is None:
        return False
    return bool(args[position] if len(args) > position else kwargs.get("inplace", False))


def order_of(name: str, args: tuple, kwargs: dict) -> str:
    """How a call reorders dimensions; empty if it does not."""
    return str(map_tensors(lambda t: None, (args, kwargs))) if name in ORDERING else ""


@cache
def _says_in_place(code: types.CodeType) -> int | None:
    """The position of the argument that says whether a function works in place."""
    names = code.co_varnames[: code.co_argcount]
    return names.index("inplace") if "inplace" in names else None


def first(args: tuple, kwargs: dict) -> Any:
    return args[0] if args else next(iter(kwargs.values()))
