"""Tensors that a network keeps between passes, put aside while gradients are taken.

In evaluation mode some attention layers (LeViT, EfficientFormer, TinyViT in timm) keep a bias, gathered from a
parameter, in a dictionary; in the graph of the next pass it would not be made of that parameter. Other layers (the old
``weight_norm``, pruning) set their weight anew in every pass, or keep a tensor made in the first.
"""

from __future__ import annotations

import weakref
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from operator import is_
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as registry

from .plan import Again
from .trees import tensors

_OWN = frozenset(vars(nn.Module()))
"""Attributes that every module has: parameters, buffers, hooks."""
_ABSENT = object()
_left: weakref.WeakKeyDictionary[nn.Module, set[str]] = weakref.WeakKeyDictionary()
"""By module, the names of caches that are left full, since it does not fill them by itself."""

_copies: weakref.WeakKeyDictionary[nn.Module, dict[str, Tensor]] = weakref.WeakKeyDictionary()
"""By module, detached copies left in attributes in place of tensors on a graph, for the hook that may have set them."""


class Emptied(Again, KeyError):
    """A cache that was emptied is needed; from now on it is left full."""


def hooked(modules: Iterable[nn.Module]) -> bool:
    """Whether forward hooks see what modules take or give."""
    if registry._global_forward_hooks or registry._global_forward_pre_hooks:
        return True
    return any(m._forward_hooks or m._forward_pre_hooks for m in modules)


@contextmanager
def caches_aside(modules: Collection[nn.Module]) -> Iterator[None]:
    """Empty every dictionary of tensors with "cache" in its name, and afterwards put back what attributes held, and
    lists and dictionaries there. Forward hooks may keep tensors on modules: with any, only tensors on a graph are taken
    away, and detached copies left until the next pass."""
    _remove_copies(modules)
    kept = [(m, own, {k: own[k] for k in own.keys() - _OWN}) for m in modules for own in (vars(m),)]
    held = {id(v): (v, _items(v)) for *_, before in kept for v in before.values() if isinstance(v, (dict, list))}
    caches = [
        (m, name, v, dict(v))
        for m, _, before in kept
        for name, v in before.items()
        if "cache" in name and isinstance(v, dict) and name not in _left.get(m, ()) and any(True for _ in tensors(v))
    ]
    spare = hooked(modules)
    try:
        for *_, cache, _content in caches:
            cache.clear()
        yield
    except KeyError as error:
        missed = [(m, name) for m, name, _, content in caches if error.args and error.args[0] in content]
        if not missed:
            raise
        for m, name in missed:
            _left.setdefault(m, set()).add(name)
        raise Emptied(*error.args) from error
    finally:
        emptied = {id(cache) for *_, cache, _ in caches}
        for m, own, before in kept:
            _put_back(m, own, before, spare)
        for key, (value, items) in held.items():
            if key in emptied or (not _same(value, items) and (not spare or _on_graph(value))):
                _fill(value, items)


def _remove_copies(modules: Iterable[nn.Module]) -> None:
    for m in modules if _copies else ():
        for name, copy in _copies.pop(m, {}).items():
            if vars(m).get(name) is copy:
                del vars(m)[name]


def _put_back(m: nn.Module, own: dict[str, Any], before: dict[str, Any], spare: bool) -> None:
    for name in [k for k in own.keys() - _OWN if own[k] is not before.get(k, _ABSENT)]:
        value = own[name]
        if spare and not _on_graph((value,)):
            continue
        if name in before:
            own[name] = before[name]
        elif spare and isinstance(value, Tensor):
            own[name] = _copies.setdefault(m, {})[name] = value.detach()
        else:
            del own[name]


def _on_graph(tree: Any) -> bool:
    return any(t.requires_grad for t in tensors(tree))


def _items(value: Any) -> list[Any]:
    return list(value.items()) if isinstance(value, dict) else list(value)


def _same(value: Any, items: list[Any]) -> bool:
    if len(value) != len(items):
        return False
    if isinstance(value, dict):
        return all(k is key and v is old for (k, v), (key, old) in zip(value.items(), items, strict=True))
    return all(map(is_, value, items))


def _fill(value: Any, items: list[Any]) -> None:
    value.clear()
    if isinstance(value, dict):
        value.update(items)
    else:
        value.extend(items)
