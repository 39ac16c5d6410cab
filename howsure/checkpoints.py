"""Weights from a file into a network."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from .errors import UserError, why
from .network import Network

_NESTED = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model", "net")
_PREFIXES = ("module.", "_orig_mod.", "model.")


def load_checkpoint(network: Network, file: Path) -> None:
    """Load weights from a file into a network. Raises UserError where its keys, shapes or classes do not match."""
    state = _flat(_read(file), file)
    own = network.model.state_dict()
    while prefix := _prefix(state, own):
        state = {key[len(prefix) :]: value for key, value in state.items()}
    state = _renamed(state, own)
    _check_classes(network, state, file)
    lacking = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    strange = [key for key in state if key not in own]
    wrong = [key for key in own if key in state and own[key].shape != state[key].shape]
    if lacking or strange:
        raise UserError(
            f"{file}: its keys do not match the network '{network.name}': {_few('lacks', lacking, strange)}; "
            "give the checkpoint of this very architecture"
        )
    if wrong:
        key = wrong[0]
        raise UserError(
            f"{file}: '{key}' is {list(state[key].shape)}, the network '{network.name}' has {list(own[key].shape)}; "
            "give the checkpoint of this very architecture"
        )
    network.model.load_state_dict(state, strict=False)


def _prefix(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str | None:
    """What wrappers have put before every key."""
    found = (p for p in _PREFIXES if all(key.startswith(p) for key in state))
    return next((p for p in found if not any(key.startswith(p) for key in own)), None)


def _renamed(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Projections of a ResNet under torchvision's name; OpenOOD's and other CIFAR ResNets call them shortcuts."""
    theirs, ours = ".shortcut.", ".downsample."
    if any(theirs in key for key in own) or not any(ours in key for key in own):
        return state
    return {key.replace(theirs, ours): value for key, value in state.items()}


def _read(file: Path) -> Any:
    if not file.is_file():
        raise UserError(f"{file}: no such checkpoint")
    try:
        if file.suffix == ".safetensors":
            return safetensors.torch.load_file(file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an error says what matters
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{file}: holds more than tensors, or is damaged; save model.state_dict() alone") from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, safetensors.SafetensorError) as error:
        raise UserError(f"{file}: not a readable checkpoint ({why(error)}); save model.state_dict()") from error


def _flat(content: Any, file: Path) -> dict[str, Tensor]:
    """The state dict in a checkpoint: the whole of it, or under one of the usual keys, averaged weights first as timm
    takes them; without an average's count."""
    if isinstance(content, Mapping):
        for key in _NESTED:
            if isinstance(content.get(key), Mapping):
                content = content[key]
                break
        if content and all(isinstance(value, Tensor) for value in content.values()):
            return {key: value for key, value in content.items() if key != "n_averaged"}
    raise UserError(f"{file}: no state dict in it; save model.state_dict(), bare or under 'state_dict'")


def _check_classes(network: Network, state: Mapping[str, Tensor], file: Path) -> None:
    try:
        weight = next((state[key] for name in network.heads if (key := f"{name}.weight") in state), None)
    except Exception:  # a network that fails on its inputs is reported by _check_output
        return
    if weight is not None and len(weight) != network.num_classes:
        raise UserError(
            f"{file}: a network of {len(weight)} classes, but the data has {network.num_classes}; "
            "give the checkpoint of a network trained on this data"
        )


def _few(verb: str, lacking: list[str], strange: list[str]) -> str:
    parts = [f"it {verb} {_names(lacking)}"] if lacking else []
    return " and ".join([*parts, f"it has {_names(strange)}, unknown to the network"] if strange else parts)


def _names(keys: list[str]) -> str:
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return ", ".join(f"'{key}'" for key in keys[:3]) + more
