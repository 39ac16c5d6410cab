"""Loading weights from a file into a network."""

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
    """Load weights from a file into a network. Raises UserError if its keys, shapes or classes do not match."""
    state = _flat(_read(file), file)
    own = network.model.state_dict()
    while prefix := _prefix(state, own):
        state = {key[len(prefix) :]: value for key, value in state.items()}
    state = _renamed(state, own)
    _check_classes(network, state, file)
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unknown = [key for key in state if key not in own]
    wrong = [key for key in own if key in state and own[key].shape != state[key].shape]
    if missing or unknown:
        parts = [f"it lacks {_names(missing)}"] * bool(missing)
        parts += [f"it has {_names(unknown)}, unknown to the network"] * bool(unknown)
        raise UserError(
            f"{file}: its keys do not match the network '{network.name}': {' and '.join(parts)}; "
            "give a checkpoint of exactly this architecture"
        )
    if wrong:
        key = wrong[0]
        raise UserError(
            f"{file}: '{key}' is {list(state[key].shape)}, but in the network '{network.name}' {list(own[key].shape)}; "
            "give a checkpoint of exactly this architecture"
        )
    network.model.load_state_dict(state, strict=False)


def _prefix(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str | None:
    """A prefix that a wrapper has put before every key, or None."""
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
            warnings.simplefilter("ignore")  # what matters is raised as an error
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{file}: holds more than tensors, or is damaged; save model.state_dict() alone") from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, safetensors.SafetensorError) as error:
        raise UserError(f"{file}: not a readable checkpoint ({why(error)}); save model.state_dict()") from error


def _flat(content: Any, file: Path) -> dict[str, Tensor]:
    """The state dict in a checkpoint: all of it, or what is under one of the usual keys.

    As in timm, averaged weights come first; the number of averaged models is dropped.
    """
    if isinstance(content, Mapping):
        for key in _NESTED:
            if isinstance(content.get(key), Mapping):
                content = content[key]
                break
        if content and all(isinstance(value, Tensor) for value in content.values()):
            return {key: value for key, value in content.items() if key != "n_averaged"}
    raise UserError(f"{file}: contains no state dict; save model.state_dict(), bare or under 'state_dict'")


def _check_classes(network: Network, state: Mapping[str, Tensor], file: Path) -> None:
    try:
        weight = next((state[key] for name in network.heads if (key := f"{name}.weight") in state), None)
    except Exception:  # a network that fails on its inputs is reported by check_output
        return
    if weight is not None and len(weight) != network.num_classes:
        raise UserError(
            f"{file}: a network of {len(weight)} classes, but the data has {network.num_classes}; "
            "give the checkpoint of a network trained on this data"
        )


def _names(keys: list[str]) -> str:
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return ", ".join(f"'{key}'" for key in keys[:3]) + more
