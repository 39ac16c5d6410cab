"""A pretended GPU, to find on any machine what a GPU would refuse: work on tensors that lie on two devices.

Its tensors say that they are on the device `meta`, so that nothing but it works on them, and hold their values on the
CPU. What waits for a number, or moves data, is counted in ``waits``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from howsure.gradients import device

GPU, CPU = torch.device("meta"), torch.device("cpu")
ASKING = {"aten::_local_scalar_dense", "aten::is_nonzero", "aten::nonzero", "aten::equal", "aten::masked_select"}
MOVING = {"aten::_to_copy", "aten::copy_"}
BY_INDEX = {"aten::index", "aten::index_put_", "aten::index_put", "aten::_index_put_impl_"}
waits: list[str] = []


class Far(Tensor):
    """A tensor on the pretended GPU."""

    near: Tensor

    @staticmethod
    def __new__(cls, near: Tensor) -> Far:
        far = Tensor._make_wrapper_subclass(
            cls, near.shape, strides=near.stride(), storage_offset=near.storage_offset(), dtype=near.dtype, device=GPU
        )
        far.near = near
        return far

    def __deepcopy__(self, memo):
        far = self.detach().clone().requires_grad_(self.requires_grad)
        far._is_param = isinstance(self, torch.nn.Parameter)
        return far

    def tolist(self):
        waits.append("tolist")
        return self.near.tolist()

    def numpy(self, *args, **kwargs):
        raise TypeError("cannot convert a tensor on a GPU to numpy")

    __array__ = numpy
    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _call(func, args, kwargs or {})


class _Factories(TorchDispatchMode):
    """Tensors made on the GPU out of nothing are the pretended ones."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _call(func, args, kwargs or {})


def _is_gpu(device: object) -> bool:
    return isinstance(device, torch.device | str) and torch.device(device).type == GPU.type


def _call(func, args, kwargs):
    name = func._schema.name
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    far = [t for t in tensors if isinstance(t, Far)]
    if not far and not _is_gpu(kwargs.get("device")):
        return func(*args, **kwargs)
    _refuse_two_devices(func, name, args, tensors)
    goes = _is_gpu(kwargs["device"]) if kwargs.get("device") is not None else bool(far)
    if name in ASKING or (name in MOVING and (not far or not goes or len(far) < len(tensors))):
        waits.append(name)
    mine = {id(t.near): t for t in far} | {id(t): t for t in tensors}

    def come(x):
        return x.near if isinstance(x, Far) else CPU if _is_gpu(x) else x

    def go(x):
        return x if not isinstance(x, Tensor) else mine.get(id(x)) if id(x) in mine else Far(x) if goes else x

    return tree_map(go, func(*tree_map(come, args), **tree_map(come, kwargs)))


def _refuse_two_devices(func, name: str, args, tensors: list[Tensor]) -> None:
    if name in MOVING:
        return
    if name in BY_INDEX and isinstance(args[0], Far):  # a GPU takes indices from the CPU
        tensors = [args[0], *args[2:3]]
    near = [t for t in tensors if t.dim() and not isinstance(t, Far)]
    if near and any(isinstance(t, Far) for t in tensors):
        raise RuntimeError(f"{func}: expected all tensors on one device, but {list(near[0].shape)} is on the CPU")


def _made_there(make):
    """``torch.tensor`` looks at no dispatch mode."""

    def made(*args, device=None, **kwargs):
        return make(*args, **kwargs).to(GPU) if _is_gpu(device) else make(*args, device=device, **kwargs)

    return made


@contextmanager
def pretended_gpu() -> Iterator[torch.device]:
    enabled = torch.is_autocast_enabled
    with pytest.MonkeyPatch.context() as patch, _Factories():
        patch.setattr(device, "QUEUED", {GPU.type})
        patch.setattr(torch, "is_autocast_enabled", lambda device="cpu": device != GPU.type and enabled(device))
        for name in ("tensor", "as_tensor"):
            patch.setattr(torch, name, _made_there(getattr(torch, name)))
        yield GPU
