"""Keeps a network's own attributes out of a pass, and the pass out of them.

Some attention layers (LeViT, EfficientFormer, TinyViT in timm) keep a bias gathered from a parameter in a dictionary
when they are in evaluation mode. What was gathered in one pass is not made of the parameter in the next one's graph.
Others (the old ``weight_norm``, pruning) set their weight anew in every pass, or keep a tensor made in the first one.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from operator import is_
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as registry

from .rule import tensors

_OWN = frozenset(vars(nn.Module()))
"""Attributes of every module: parameters, buffers, hooks."""
_ABSENT = object()
_filled: weakref.WeakSet[nn.Module] = weakref.WeakSet()
"""Networks that do not fill their caches by themselves."""


class Emptied(KeyError):
    """A cache that was emptied is needed; from now on this network's are left as they are."""


def hooked(model: nn.Module) -> bool:
    """Whether someone looks at what modules give."""
    if registry._global_forward_hooks or registry._global_forward_pre_hooks:
        return True
    return any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@contextmanager
def caches_aside(model: nn.Module) -> Iterator[None]:
    """Empty every dictionary attribute with "cache" in its name meanwhile, and put back afterwards what attributes
    held, unless they hold no tensors. Forward hooks may keep tensors on modules: with any, only a tensor that hangs on
    a graph is taken off."""
    kept = [(own, {k: own[k] for k in own.keys() - _OWN}) for own in map(vars, model.modules())]
    held = {id(v): (v, _copy(v)) for _, before in kept for v in before.values() if isinstance(v, (dict, list))}
    caches = {id(v) for _, before in kept for k, v in before.items() if "cache" in k and isinstance(v, dict)}
    spare = hooked(model)
    try:
        if model not in _filled:
            for key in caches:
                held[key][0].clear()
        yield
    except KeyError as error:
        if model in _filled or not any(held[key][1] for key in caches):
            raise
        _filled.add(model)
        raise Emptied(*error.args) from error
    finally:
        for own, before in kept:
            _put_back(own, before, spare)
        for key, (value, content) in held.items():
            if key in caches or not (spare or _same(value, content) or not _holds_tensor(value)):
                _fill(value, content)


def _put_back(own: dict[str, Any], before: dict[str, Any], spare: bool) -> None:
    for name in [k for k in own.keys() - _OWN if own[k] is not before.get(k, _ABSENT)]:
        value, old = own[name], before.get(name, _ABSENT)
        if spare:
            if isinstance(value, Tensor) and value.requires_grad:
                own[name] = value.detach() if old is _ABSENT else old
        elif _holds_tensor((value,)):
            if old is _ABSENT:
                del own[name]
            else:
                own[name] = old


def _holds_tensor(tree: Any) -> bool:
    return next(tensors(tree), None) is not None


def _copy(value: Any) -> Any:
    return dict(value) if isinstance(value, dict) else list(value)


def _same(value: Any, content: Any) -> bool:
    if len(value) != len(content):
        return False
    if isinstance(value, dict):
        return all(map(is_, value, content)) and all(map(is_, value.values(), content.values()))
    return all(map(is_, value, content))


def _fill(value: Any, content: Any) -> None:
    value.clear()
    if isinstance(value, dict):
        value.update(content)
    else:
        value.extend(content)
