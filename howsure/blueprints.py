"""From the name of a network to what builds it: a registered backbone, timm, torchvision, or a user's file."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import Any

from torch import nn

from .backbone import Backbone, InputSpec
from .errors import FAULTS, UserError, described, unknown
from .plugins import BACKBONES
from .registry import import_file


@dataclass
class Blueprint:
    """How to obtain a network.

    Attributes:
        build: makes the module, with weights to be replaced unless it comes from a user's file.
        input: how images are prepared for it.
        pretrained: makes the module with pretrained weights, if there are any to download.
        backbone: the registered backbone, if it is one.
    """

    build: Callable[[], nn.Module]
    input: InputSpec
    pretrained: Callable[[], nn.Module] | None = None
    backbone: Backbone | None = None


def blueprint_of(
    use: str,
    num_classes: int,
    base: Path,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    size: Sequence[int] | None,
) -> Blueprint:
    """How to obtain the network named `use`, with `mean`, `std` and `size` instead of its own where they are given.

    Raises:
        UserError: there is no such network, its file fails, or its inputs are not fully or wrongly described.
    """
    asked = {"mean": mean, "std": std, "size": size}
    if use.startswith("timm/"):
        return _timm(use.removeprefix("timm/"), num_classes, asked)
    if use.startswith("torchvision/"):
        return _torchvision(use.removeprefix("torchvision/"), num_classes, asked)
    if use.endswith((".py", ".py:")):
        raise UserError(f"'{use}': name the function that builds the network, as in {use.rstrip(':')}:build")
    file, colon, function = use.rpartition(":")
    if colon and file.endswith(".py"):
        return _from_file(base / Path(file).expanduser(), function, num_classes, asked)
    backbone = _registered(use)
    given = _override(backbone.input, asked, use)
    return Blueprint(lambda: built(use, backbone, num_classes), given, backbone=backbone)


def built(use: str, backbone: Backbone, num_classes: int) -> nn.Module:
    return _made(f"backbone '{use}': build()", lambda: backbone.build(num_classes))


def _made(where: str, make: Callable[[], Any]) -> nn.Module:
    """The module that a user's code makes. Raises UserError if the code raises or returns something else."""
    try:
        model = make()
    except UserError:
        raise
    except FAULTS as error:
        raise UserError(described(error, where)) from error
    if not isinstance(model, nn.Module):
        raise UserError(f"{where} returned a {type(model).__name__}; it must return a torch.nn.Module")
    return model


def _registered(use: str) -> Backbone:
    if use in BACKBONES or use in BACKBONES.broken:
        backbone = BACKBONES[use]()
        if not isinstance(getattr(backbone, "input", None), InputSpec):
            raise UserError(f"backbone '{use}': its class has no `input`; give it a howsure.InputSpec")
        return backbone
    import timm
    import torchvision

    if timm.is_model(use):
        raise UserError(f"unknown backbone '{use}'; did you mean timm/{use}?")
    if use in torchvision.models.list_models(module=torchvision.models):
        raise UserError(f"unknown backbone '{use}'; did you mean torchvision/{use}?")
    raise unknown("backbone", use, BACKBONES)


def _timm(name: str, num_classes: int, asked: dict[str, Any]) -> Blueprint:
    import timm

    if not timm.is_model(name.partition(".")[0]):
        raise unknown("timm network", name, timm.list_models())
    config = timm.models.get_pretrained_cfg(name)
    given = _override(_timm_input(config), asked, f"timm/{name}")
    arguments: dict[str, Any] = {"in_chans": given.channels}
    if config is None or tuple(given.size) != tuple(config.input_size[-2:]):
        arguments["img_size"] = given.size

    def create(**options: Any) -> nn.Module:
        try:
            return timm.create_model(name, **options, **arguments)
        except TypeError:  # only networks of a fixed input size accept img_size
            return timm.create_model(name, **options, in_chans=given.channels)

    def build() -> nn.Module:
        try:
            return create(num_classes=num_classes)
        except Exception as error:
            raise UserError(f"timm/{name}: cannot be built: {str(error).partition(chr(10))[0][:200]}") from error

    return Blueprint(build, given, _fetched(f"timm/{name}", lambda: create(pretrained=True)))


def _timm_input(config: Any) -> InputSpec:
    if config is None:
        return InputSpec((224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    return InputSpec(
        size=tuple(config.input_size[-2:]),
        mean=tuple(config.mean),
        std=tuple(config.std),
        **_resizing(config.to_dict()),
    )


def _resizing(config: Mapping[str, Any]) -> dict[str, Any]:
    """`crop` and `interpolation` of an InputSpec, from timm's configuration."""
    squashed, how = config.get("crop_mode") == "squash", config.get("interpolation")
    return {
        "crop": None if squashed else config.get("crop_pct") or 1.0,
        "interpolation": how if how in ("bilinear", "bicubic") else "bilinear",
    }


def _torchvision(name: str, num_classes: int, asked: dict[str, Any]) -> Blueprint:
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise unknown("torchvision network", name, known)
    weights = models.get_model_weights(name).DEFAULT
    preset = weights.transforms()
    own = InputSpec(
        size=(preset.crop_size[0], preset.crop_size[0]),
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        crop=preset.crop_size[0] / preset.resize_size[0],
        interpolation=preset.interpolation.value,
    )
    extra = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return Blueprint(
        lambda: models.get_model(name, weights=None, num_classes=num_classes, **extra),
        _override(own, asked, f"torchvision/{name}"),
        _fetched(f"torchvision/{name}", lambda: models.get_model(name, weights=weights)),
    )


def _fetched(use: str, fetch: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """`fetch` without warnings, and with a UserError if it fails."""

    def build() -> nn.Module:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return fetch()
        except Exception as error:
            reason = str(error).partition("\n")[0][:200] or type(error).__name__
            raise UserError(
                f"{use}: pretrained weights are unavailable ({reason}); give checkpoint = a file"
            ) from error

    return build


def _from_file(file: Path, function: str, num_classes: int, asked: dict[str, Any]) -> Blueprint:
    make = getattr(import_file(file), function, None)
    if not callable(make):
        raise UserError(f"{file}: contains no function '{function}'; name the one that builds the network")
    arguments = {"num_classes": num_classes} if "num_classes" in inspect.signature(make).parameters else {}
    model = _made(f"{file}: {function}()", lambda: make(**arguments))
    own = getattr(model, "input", None)
    if not isinstance(own, InputSpec):
        config = getattr(model, "pretrained_cfg", None) or {}
        if not {"input_size", "mean", "std"} <= set(config) and None in asked.values():
            missing = ", ".join(key for key, value in asked.items() if value is None)
            raise UserError(f"{file}:{function}: the network does not say what its inputs look like; give {missing}")
        height, width = config.get("input_size", (3, 1, 1))[-2:]
        resizing = _resizing(config) if "crop_pct" in config else {}
        own = InputSpec((height, width), tuple(config.get("mean", ())), tuple(config.get("std", ())), **resizing)
    return Blueprint(lambda: model, _override(own, asked, f"{file}:{function}"))


def _override(own: InputSpec, asked: dict[str, Any], use: str) -> InputSpec:
    """The network's own inputs, with what the user asked for instead; a given size also turns cropping off."""
    changes: dict[str, Any] = {key: tuple(value) for key, value in asked.items() if value is not None}
    if "size" in changes:
        if len(changes["size"]) != 2 or min(changes["size"]) < 1:
            raise UserError(f"{use}: size must be [height, width] in pixels; got {list(changes['size'])}")
        changes["crop"] = None
    spec = replace(own, **changes)
    if len(spec.mean) != len(spec.std) or len(spec.mean) not in (1, 3):
        lengths = f"{len(spec.mean)} and {len(spec.std)}"
        raise UserError(f"{use}: mean and std need one value per channel, 1 or 3; got {lengths}")
    if not all(0 < value < inf for value in spec.std):
        raise UserError(f"{use}: std must be above 0; got {list(spec.std)}")
    return spec
