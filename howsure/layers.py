"""Finding layers in any network: the last linear layers, the normalisation layers, and the last layer of each stage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .errors import UserError

Normalisation = (
    nn.modules.batchnorm._BatchNorm,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.modules.instancenorm._InstanceNorm,
)
IDLE = (nn.Identity, nn.Dropout)
_ROUNDING = 1e-2
"""Tolerance relative to the largest logit: TF32 on a GPU and half precision both keep ten bits."""
LARGER = 1.5
"""A map counts as larger than another if it has this many times its positions; class tokens add a few."""

Output = tuple[str, str, int]
"""A layer's name, the kind of its module, and the positions of its output."""


def find_heads(model: nn.Module, x: Tensor) -> tuple[str, ...]:
    """Name of the linear layer whose output is the logits, or names of those whose mean is (distillation); else empty.

    Each layer sees one vector per image; a 1×1 convolution of a map with one position counts as linear.
    """
    outputs: dict[str, Tensor] = {}

    def note(name: str, module: nn.Module, out: object) -> None:
        if isinstance(out, Tensor) and (isinstance(module, nn.Linear) or _is_pointwise(module)):
            outputs[name] = out

    logits = _run(model, x, note)
    found = {
        name: out.flatten(1)
        for name, out in outputs.items()
        if out.shape[:2] == logits.shape and out.numel() == logits.numel()
    }
    for name, out in reversed(found.items()):
        if torch.equal(out, logits):
            return (name,) if _linear(model, (name,), x, logits) else ()
    if len(found) > 1 and torch.allclose(torch.stack(list(found.values())).mean(0), logits, rtol=1e-4, atol=1e-6):
        return tuple(found) if _linear(model, tuple(found), x, logits) else ()
    return ()


def _linear(model: nn.Module, names: tuple[str, ...], x: Tensor, logits: Tensor) -> bool:
    """Whether the logits are the mean of the layers' inputs times their weights plus their biases.

    They may not be: a layer's own `forward` may normalise its input, and a hook or an in-place operation change its
    output.
    """
    inputs: dict[nn.Module, Tensor] = {}
    layers: list[Any] = [model.get_submodule(name) for name in names]

    def keep(layer: nn.Module, given: tuple[Any, ...]) -> None:
        inputs.update({layer: given[0].clone()} if given else {})

    hooks = [layer.register_forward_pre_hook(keep) for layer in layers]
    try:
        with torch.no_grad():
            model(x)
    finally:
        for hook in hooks:
            hook.remove()
    if len(inputs) < len(layers):
        return False
    with torch.no_grad():
        given = [F.linear(inputs[m].flatten(1).to(m.weight.dtype), m.weight.flatten(1), m.bias) for m in layers]
    off = torch.stack(given).mean(0) - logits
    return bool(off.abs().amax() <= _ROUNDING * logits.abs().amax())


def _is_pointwise(layer: nn.Module) -> bool:
    """Whether a layer is a 1×1 convolution, which acts as the same linear layer at each position."""
    if not isinstance(layer, nn.Conv2d) or layer.groups > 1:
        return False
    return (layer.kernel_size, layer.stride, layer.padding) == ((1, 1), (1, 1), (0, 0))


def norm_layers(model: nn.Module, x: Tensor) -> list[str]:
    """Names of the normalisation layers, in module order; if none, those of all convolution and linear layers but one,
    the last.

    Left out are layers that a pass does not use, and those whose output does not have one row per image: batch norm of
    flattened tokens, or of windows.
    """
    rows: dict[str, int] = {}

    def note(name: str, module: nn.Module, out: object) -> None:
        rows[name] = len(out) if isinstance(out, Tensor) and out.dim() else 0

    _run(model, x, note)
    norms = [name for name, m in model.named_modules() if isinstance(m, Normalisation)]
    weighted = [name for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    return [name for name in norms or weighted[:-1] if rows.get(name) == len(x)]


def stages(model: nn.Module, x: Tensor, at_least: int = 3, at_most: int = 4) -> list[str]:
    """Names of the modules whose outputs are the last feature maps of the network's stages, in running order.

    Candidates are the modules that run once per pass, give a map `[N, C, H, W]` or tokens `[N, L, C]`, and lie neither
    inside a module that lowers the resolution nor inside one whose own output is larger (keys of an attention that
    reduces them). The rule takes the last of them to finish at each resolution. If that gives fewer than `at_least`
    (transformers, mixers), it takes the outputs of the repeated block, at most `at_most` of them, evenly spaced.
    """
    found: list[Output] = []
    calls: Counter[str] = Counter()

    def note(name: str, module: nn.Module, out: object) -> None:
        calls[name] += 1
        if (
            name
            and not isinstance(module, IDLE)
            and isinstance(out, Tensor)
            and out.dim() in (3, 4)
            and out.shape[0] == len(x)
        ):
            found.append((name, type(module).__name__, by_channel(out).shape[2]))

    _run(model, x, note)
    maps = _never_growing([output for output in found if calls[output[0]] == 1])
    blocks = {name for name, m in model.named_modules() if not isinstance(m, nn.Sequential)}
    areas = {name: area for name, _, area in maps if name in blocks}
    maps = [m for m in maps if all(areas.get(parent, m[2]) >= m[2] for parent in _parents(m[0]))]
    last = {area: name for name, _, area in maps}
    ends = [name for name, _, area in maps if last[area] == name]
    if len(ends) >= at_least:
        return ends[-at_most:]
    return _evenly(_repeated([(name, kind) for name, kind, _ in maps]), at_most) or ends


def by_channel(out: Tensor, module: nn.Module | None = None) -> Tensor:
    """A layer's output as `[N, C, positions]`.

    Accepts maps `[N, C, H, W]` and `[N, H, W, C]`, tokens `[N, L, C]` and vectors `[N, C]`. Linear layers have their
    channels last. Else the layout is inferred from the number of channels of `module`, if given, or from the shape:
    tokens, and maps whose second and third sides are equal but differ from the last, have their channels last.
    """
    if out.dim() == 2:
        return out.unsqueeze(2)
    return out.flatten(1, -2).transpose(1, 2) if channels_come_last(out, module) else out.flatten(2)


def channels_come_last(out: Tensor, module: nn.Module | None = None) -> bool:
    """Whether the channels of a map or of tokens come last, inferred as in `by_channel`."""
    if isinstance(module, nn.Linear):
        return True
    width = _width(module)
    if width is not None and (out.shape[1] == width) != (out.shape[-1] == width):
        return bool(out.shape[-1] == width)
    return out.dim() == 3 or bool(out.shape[1] == out.shape[2] != out.shape[3])


def _width(module: nn.Module | None) -> int | None:
    if isinstance(module, nn.LayerNorm):
        return int(module.normalized_shape[0 if len(module.normalized_shape) == 3 else -1])
    if isinstance(module, nn.GroupNorm):
        return module.num_channels
    return getattr(module, "num_features", None) or getattr(module, "out_channels", None)


def module(model: nn.Module, name: str) -> nn.Module:
    """A submodule by dotted name. Raises UserError if there is none."""
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        raise UserError(f"the network has no layer '{name}'") from error


def _never_growing(outputs: list[Output]) -> list[Output]:
    """Maps in running order, without those that are larger than the one before (attention) or inside a larger one."""
    areas = {name: area for name, _, area in outputs}
    kept: list[Output] = []
    for name, kind, area in outputs:
        inside_larger = any(areas.get(parent, area) > LARGER * area for parent in _parents(name))
        if area > 1 and not inside_larger and area <= LARGER * (kept[-1][2] if kept else area):
            kept.append((name, kind, area))
    return kept


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))]


def _repeated(outputs: list[tuple[str, str]]) -> list[str]:
    """Names of the modules of the most frequent kind among the shallowest that occur more than once."""
    by_kind: dict[tuple[int, str], list[str]] = {}
    for name, kind in outputs:
        by_kind.setdefault((name.count("."), kind), []).append(name)
    repeated = {key: names for key, names in by_kind.items() if len(names) > 1}
    return repeated[min(repeated, key=lambda key: (key[0], -len(repeated[key])))] if repeated else []


def _evenly(names: list[str], n: int) -> list[str]:
    if len(names) <= n:
        return names
    return [names[round((i + 1) * len(names) / n) - 1] for i in range(n)]


def _run(model: nn.Module, x: Tensor, note: Callable[[str, nn.Module, object], object]) -> Tensor:
    """Run one forward pass, calling `note(name, module, output)` for every module; returns the logits."""
    hooks = [
        m.register_forward_hook(lambda m, _inputs, out, name=name: note(name, m, out) and None)
        for name, m in model.named_modules()
    ]
    try:
        with torch.no_grad():
            return model(x)
    finally:
        for hook in hooks:
            hook.remove()
