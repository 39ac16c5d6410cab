"""The Gram matrix of a convolution's windows, without unfolding them."""

from __future__ import annotations

from math import prod

from torch import Tensor

from .geometry import Geometry


def shifted_gram(a: Tensor, groups: int, geometry: Geometry) -> Tensor:
    """``sum_o a_{s p + o} . a_{s q + o}`` as ``[n * groups, L, L]``.

    The Gram matrix of the input, then the sum over the kernel's offsets along one dimension after the other.
    """
    size = tuple(a.shape[2:])
    flat = a.reshape(a.shape[0] * groups, -1, prod(size))
    gram = (flat.mT @ flat).view(-1, *size, *size)
    for k in range(len(size)):
        gram = _shift(gram, k, geometry)
    return gram.reshape(-1, prod(geometry.maps), prod(geometry.maps))


def _shift(gram: Tensor, k: int, geometry: Geometry) -> Tensor:
    """The sum over the kernel's offsets along dimension ``k`` of both positions of ``gram``."""
    if geometry.kernel[k] == 1 and geometry.stride[k] == 1 and not any(geometry.pads[k]):
        return gram
    dims, size, m, s = len(geometry.kernel), gram.shape[1 + k], geometry.maps[k], geometry.stride[k]
    shape = list(gram.shape)
    shape[1 + k] = shape[1 + k + dims] = m
    shifts = [x * geometry.dilation[k] - geometry.pads[k][0] for x in range(geometry.kernel[k])]
    whole = 0 in shifts and s == 1 and m == size
    out = gram.clone() if whole else gram.new_zeros(shape)
    for shift in shifts:
        first, last = max(0, -(shift // s)), min(m - 1, (size - 1 - shift) // s)
        if first <= last and not (whole and shift == 0):
            to = [slice(None)] * len(shape)
            source = list(to)
            to[1 + k] = to[1 + k + dims] = slice(first, last + 1)
            source[1 + k] = source[1 + k + dims] = slice(first * s + shift, last * s + shift + 1, s)
            out[tuple(to)] += gram[tuple(source)]
    return out
