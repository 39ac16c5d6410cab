"""Products of many rows with one matrix, by the faster of two libraries.

On a CPU torch has products made by MKL and convolutions by oneDNN. On an AMD processor with AVX-512 oneDNN was twice as
fast; where it is faster, the rows are the positions of a 1×1 convolution.
"""

from __future__ import annotations

from functools import cache
from timeit import repeat

import torch
from torch import Tensor
from torch.nn import functional as F

_ROWS = 128  # fewer are not worth the weight's new order
_WORK = 2**23  # multiplications below which calls take longest
_FASTER = 0.75  # of MKL's time


def rows_times(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x W^T + b`` for ``x [m, I]`` and ``W [O, I]``."""
    enough = len(x) >= _ROWS and len(x) * weight.numel() >= _WORK
    faster = enough and single(x) and convolutions_win()
    return _convolved(x, weight, bias) if faster else F.linear(x, weight, bias)


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
    o, i = weight.shape
    maps = x.reshape(1, -1, 1, i).permute(0, 3, 1, 2)
    # on one thread torch has fewer than 16 images made by MKL too, unless there is a dilation, which 1×1 kernels ignore
    out = F.conv2d(maps, weight.contiguous().view(o, i, 1, 1), bias, dilation=2)
    return out.permute(0, 2, 3, 1).reshape(-1, o)
