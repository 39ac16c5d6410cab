"""Products of the rows of a matrix with those of another, by the faster of two libraries.

On a CPU torch has products made by MKL and convolutions by oneDNN. On an AMD processor with AVX-512 oneDNN was twice as
fast; where it is faster, the rows of the longer matrix are the positions of a 1×1 convolution.
"""

from __future__ import annotations

from functools import cache
from timeit import repeat
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_ROWS = 128  # fewer are not worth the other matrix's new order
_WORK = 2**23  # multiplications below which calls take longest
_WORK_TURNED = 2**25
_FASTER = 0.75  # of MKL's time
# on one thread torch has fewer than 16 images made by MKL too, unless there is a dilation, which 1×1 kernels ignore
DILATION = 2


def rows_times(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x W^T + b`` for ``x [m, I]`` and ``W [O, I]``."""
    if pays(x, weight):
        if 1 < len(x) <= len(weight) // 2 and len(weight) >= _ROWS and _work(x, weight) >= _WORK_TURNED:
            return _turned(x, weight, bias)
        if len(x) >= _ROWS:
            return _convolved(x, weight, bias)
    return F.linear(x, weight, bias)


def pays(x: Tensor, weight: Tensor) -> bool:
    """Whether it may pay to think about which library makes this product."""
    return _work(x, weight) >= _WORK and single(x) and convolutions_win()


def _work(x: Tensor, weight: Tensor) -> int:
    return len(x) * weight.numel()


class Product(torch.autograd.Function):
    """``rows_times`` with a gradient at ``x``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return rows_times(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> Any:
        return rows_times(d, ctx.weight.mT), None, None


def single(t: Tensor) -> bool:
    """Whether a tensor is one that oneDNN's convolutions are timed with: in single precision, on a CPU."""
    return t.dtype == torch.float32 and t.device.type == "cpu"


@cache
def convolutions_win() -> bool:
    """Whether oneDNN is clearly the faster on this CPU; timed once, in some 20 ms."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not torch.backends.mkldnn.is_available():
        return False
    x = torch.ones(512, 512)
    times = [min(repeat(lambda f=f: f(x, x), number=1, repeat=5)) for f in (_convolved, F.linear)]  # type: ignore[misc]
    return times[0] < _FASTER * times[1]


def _convolved(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """With the rows of ``x`` as positions."""
    out = F.conv2d(_as_map(x), weight.contiguous()[..., None, None], bias, dilation=DILATION)
    return out.permute(0, 2, 3, 1).reshape(-1, len(weight))


def _turned(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """With the rows of the weight as positions, or its columns, whichever lie in memory as they are."""
    if weight.is_contiguous() or not weight.mT.is_contiguous():
        out = _convolved(weight, x).mT
    else:
        _, out, _ = torch.ops.aten.convolution_backward(
            _as_map(x.mT), _as_map(weight.mT), x.new_empty(len(x), len(weight), 1, 1), None, [1, 1], [0, 0],
            [DILATION] * 2, False, [0, 0], 1, [False, True, False],
        )  # fmt: skip
        out = out[..., 0, 0]
    out = out.contiguous()
    return out if bias is None else out.add_(bias)


def _as_map(x: Tensor) -> Tensor:
    """Rows as the positions of one image, channels last."""
    return x.reshape(1, -1, 1, x.shape[1]).permute(0, 3, 1, 2)
