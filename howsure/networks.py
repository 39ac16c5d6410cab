"""From the name of a network in a suite to a trained classifier: built, its weights loaded, fetched or trained."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import pickle
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from math import inf
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from . import training
from .backbone import Backbone, InputSpec
from .data import Images, cache_root
from .errors import UserError, told, unknown, why
from .keys import hash_file, hash_module, layers_of, source_of
from .network import Network
from .plugins import BACKBONES
from .registry import import_file

Progress = Callable[[int, int], object]
NESTED = ("state_dict", "model_state_dict", "model", "net")
PREFIXES = ("module.", "_orig_mod.", "model.")


@dataclass
class Plan:
    """How to come by a network: what builds its module, what its inputs look like, and where weights may come from."""

    build: Callable[[], nn.Module]
    input: InputSpec
    pretrained: Callable[[], nn.Module] | None = None
    backbone: Backbone | None = None


def load_network(
    name: str,
    use: str,
    *,
    num_classes: int,
    base: Path = Path(),
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    size: Sequence[int] | None = None,
    checkpoint: str | None = None,
    members: int = 0,
    device: torch.device | str = "cpu",
    train_images: Images | None = None,
    test_images: Images | None = None,
    seed: int = 0,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Network:
    """A trained classifier, by name.

    Args:
        name: what to call it.
        use: a registered backbone, `timm/NAME`, `torchvision/NAME`, or `FILE.py:FUNCTION`, where the function returns a
            module (it is given `num_classes` if it has a parameter of that name).
        num_classes: of the data; the network must have as many outputs.
        base: the folder that FILE and `checkpoint` are taken from.
        mean, std, size: of its inputs, where they are not what the network's own config says.
        checkpoint: a state dict (`torch.load`, tensors only) or a `.safetensors` file. Left out, timm and torchvision
            networks come with their pretrained weights, and registered ones that have a recipe are trained on
            `train_images` and kept.
        members: how many further networks to train from other seeds, for ensembles (registered ones with a recipe).
        test_images: what the accuracy of a freshly trained network is recorded on; left out, on the training images.
        cache: where trained networks are kept; left out, below `cache_root()`.
        progress: called with (epoch, epochs) while training.

    Raises:
        UserError: one line that says what is wrong and what to do.
    """
    plan = _plan(use, num_classes, base, mean, std, size)
    device = torch.device(device)
    if members and (plan.backbone is None or plan.backbone.recipe is None or checkpoint):
        raise UserError(f"{name}: members = {members} needs a backbone that is trained on the spot; leave it out")
    if checkpoint is not None:
        network = Network(name, plan.build(), plan.input, num_classes)
        load_checkpoint(network, base / Path(checkpoint).expanduser())
    elif plan.backbone is not None:
        data = train_images, test_images
        trainer = _Trainer(use, plan.backbone, plan.input, num_classes, *data, device, cache, progress)
        network = trainer(name, seed)
        network.members = [trainer(name, seed + 1000 * (i + 1)).model for i in range(members)]
    else:
        network = Network(name, (plan.pretrained or plan.build)(), plan.input, num_classes)
    network = replace(network, device=device, origin=_origin(use, base))
    _check_output(network, use)
    network.lay_channels_last()
    return network


def _origin(use: str, base: Path) -> str:
    """The name, and the code of the file that builds it."""
    file, colon, _ = use.rpartition(":")
    if colon and file.endswith(".py"):
        return f"{use} {hash_module(import_file(base / Path(file).expanduser()))}"
    return f"{use} {source_of(BACKBONES[use])}" if use in BACKBONES else use


def load_checkpoint(network: Network, file: Path) -> None:
    """Load weights from a file into a network. Raises UserError where its keys, shapes or classes do not match."""
    state = _flat(_read(file), file)
    own = network.model.state_dict()
    for prefix in PREFIXES:
        if all(key.startswith(prefix) for key in state) and not any(key.startswith(prefix) for key in own):
            state = {key[len(prefix) :]: value for key, value in state.items()}
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


def _plan(
    use: str,
    num_classes: int,
    base: Path,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    size: Sequence[int] | None,
) -> Plan:
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
    return Plan(lambda: _built(use, backbone, num_classes), given, backbone=backbone)


def _built(use: str, backbone: Backbone, num_classes: int) -> nn.Module:
    return _made(f"backbone '{use}': build()", lambda: backbone.build(num_classes))


def _made(where: str, make: Callable[[], Any]) -> nn.Module:
    """What a user's code makes; UserError where it raises or makes no network."""
    try:
        model = make()
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(told(error, where)) from error
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


def _timm(name: str, num_classes: int, asked: dict[str, Any]) -> Plan:
    import timm

    if not timm.is_model(name.partition(".")[0]):
        raise unknown("timm network", name, timm.list_models(), "timm/")
    config = timm.models.get_pretrained_cfg(name)
    given = _override(_timm_input(config), asked, f"timm/{name}")
    arguments: dict[str, Any] = {"in_chans": given.channels}
    if config is None or tuple(given.size) != tuple(config.input_size[-2:]):
        arguments["img_size"] = given.size

    def create(**options: Any) -> nn.Module:
        try:
            return timm.create_model(name, **options, **arguments)
        except TypeError:  # img_size is known to networks of a fixed size only
            return timm.create_model(name, **options, in_chans=given.channels)

    def build() -> nn.Module:
        try:
            return create(num_classes=num_classes)
        except Exception as error:
            raise UserError(f"timm/{name}: cannot be built: {str(error).partition(chr(10))[0][:200]}") from error

    return Plan(build, given, _fetched(f"timm/{name}", lambda: create(pretrained=True)))


def _timm_input(config: Any) -> InputSpec:
    if config is None:
        return InputSpec((224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    return InputSpec(
        size=tuple(config.input_size[-2:]),
        mean=tuple(config.mean),
        std=tuple(config.std),
        crop=config.crop_pct if config.crop_pct else 1.0,
        interpolation=config.interpolation if config.interpolation in ("bilinear", "bicubic") else "bilinear",
    )


def _torchvision(name: str, num_classes: int, asked: dict[str, Any]) -> Plan:
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise unknown("torchvision network", name, known, "torchvision/")
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
    return Plan(
        lambda: models.get_model(name, weights=None, num_classes=num_classes, **extra),
        _override(own, asked, f"torchvision/{name}"),
        _fetched(f"torchvision/{name}", lambda: models.get_model(name, weights=weights)),
    )


def _fetched(use: str, fetch: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """A function that fetches the pretrained network; a failure is a UserError."""

    def build() -> nn.Module:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return fetch()
        except Exception as error:
            reason = str(error).partition("\n")[0][:200] or type(error).__name__
            raise UserError(f"{use}: no pretrained weights to be had ({reason}); give checkpoint = a file") from error

    return build


def _from_file(file: Path, function: str, num_classes: int, asked: dict[str, Any]) -> Plan:
    make = getattr(import_file(file), function, None)
    if not callable(make):
        raise UserError(f"{file}: no function '{function}' in it")
    arguments = {"num_classes": num_classes} if "num_classes" in inspect.signature(make).parameters else {}
    model = _made(f"{file}: {function}()", lambda: make(**arguments))
    own = getattr(model, "input", None)
    if not isinstance(own, InputSpec):
        config = getattr(model, "pretrained_cfg", None) or {}
        if not {"input_size", "mean", "std"} <= set(config) and None in asked.values():
            lacking = ", ".join(key for key, value in asked.items() if value is None)
            raise UserError(f"{file}:{function}: the network does not say what its inputs look like; give {lacking}")
        height, width = config.get("input_size", (3, 1, 1))[-2:]
        own = InputSpec((height, width), tuple(config.get("mean", ())), tuple(config.get("std", ())))
    return Plan(lambda: model, _override(own, asked, f"{file}:{function}"))


def _override(own: InputSpec, asked: dict[str, Any], use: str) -> InputSpec:
    """The network's own inputs, with what the user asked for instead; a size asked for is not cropped to."""
    changes: dict[str, Any] = {key: tuple(value) for key, value in asked.items() if value is not None}
    if "size" in changes:
        if len(changes["size"]) != 2 or min(changes["size"]) < 1:
            raise UserError(f"{use}: size must be [height, width] in pixels; got {list(changes['size'])}")
        changes["crop"] = 1.0
    spec = replace(own, **changes)
    if len(spec.mean) != len(spec.std) or len(spec.mean) not in (1, 3):
        lengths = f"{len(spec.mean)} and {len(spec.std)}"
        raise UserError(f"{use}: mean and std need one value a channel, 1 or 3; got {lengths}")
    if not all(0 < value < inf for value in spec.std):
        raise UserError(f"{use}: std must be above 0; got {list(spec.std)}")
    return spec


TRAINED_WITH = ("torch", "timm", "numpy")


@dataclass
class _Trainer:
    """Trains a registered backbone, or reads what was trained before under the same key."""

    use: str
    backbone: Backbone
    input: InputSpec
    num_classes: int
    images: Images | None
    test_images: Images | None
    device: torch.device
    cache: Path | None
    progress: Progress | None

    def __call__(self, name: str, seed: int) -> Network:
        if self.backbone.recipe is None or self.images is None:
            reason = "has no recipe to be trained on the spot" if self.images is not None else "is not trained yet"
            raise UserError(f"backbone '{self.use}' {reason}; give checkpoint = a file")
        file = (self.cache or cache_root() / "networks") / self.key(seed) / "weights.safetensors"
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            network = Network(name, self.build(), self.input, self.num_classes)
        _check_output(network, self.use)
        record = _cached(network, file)
        if record is None:
            network = replace(network, device=self.device)
            training.train(network, self.images, self.backbone.recipe, seed, self.progress)
            network = replace(network, device=torch.device("cpu"))
            _check_output(network, self.use)
            record = self.record(network, seed)
            _keep(network, record, file)
        network.accuracy = record.get("test_accuracy")
        return network

    def build(self) -> nn.Module:
        return _built(self.use, self.backbone, self.num_classes)

    def record(self, network: Network, seed: int) -> dict[str, Any]:
        """What is kept beside the weights."""
        assert self.images is not None
        assert self.backbone.recipe is not None
        record: dict[str, Any] = {
            "use": self.use,
            "seed": seed,
            "num_classes": self.num_classes,
            "recipe": asdict(self.backbone.recipe),
            "input": asdict(self.input),
            "train_images": self.images.fingerprint,
            "train_accuracy": training.accuracy(network, self.images),
            "versions": {package: version(package) for package in TRAINED_WITH},
        }
        if self.test_images is not None:
            record["test_accuracy"] = training.accuracy(network, self.test_images)
        return record

    def key(self, seed: int) -> str:
        """Changes with whatever changes the weights: code of the network and of its training, recipe, data, seed."""
        assert self.images is not None
        layers = layers_of(self.build())
        code = [source_of(type(self.backbone)), layers, hash_file(training.__file__), *map(version, TRAINED_WITH)]
        parts = (self.use, code, self.backbone.recipe, self.input, self.num_classes, self.images.fingerprint, seed)
        return f"{self.use}-{hashlib.sha256(repr(parts).encode()).hexdigest()[:24]}"


def _cached(network: Network, file: Path) -> dict[str, Any] | None:
    """Load kept weights into the network; returns their record, or None where there are none, or damaged ones."""
    record = file.with_name("network.json")
    if not (file.is_file() and record.is_file()):
        return None
    with suppress(UserError, ValueError, OSError):
        kept = json.loads(record.read_text(encoding="utf-8"))
        load_checkpoint(network, file)
        return kept
    return None


def _keep(network: Network, record: dict[str, Any], file: Path) -> None:
    """Write weights and record so that a reader sees all of a file or nothing of it."""
    state = {key: value.contiguous() for key, value in network.model.state_dict().items()}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        _write(file, safetensors.torch.save(state))
        _write(file.with_name("network.json"), json.dumps(record, indent=2).encode())
    except OSError as error:
        raise UserError(f"{file.parent}: cannot be written to ({error.strerror}); set HOWSURE_CACHE") from error


def _write(file: Path, content: bytes) -> None:
    with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as temporary:
        temporary.write(content)
    os.replace(temporary.name, file)


def _read(file: Path) -> Any:
    if not file.is_file():
        raise UserError(f"{file}: no such checkpoint")
    try:
        if file.suffix == ".safetensors":
            return safetensors.torch.load_file(file)
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{file}: holds more than tensors, or is damaged; save model.state_dict() alone") from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, safetensors.SafetensorError) as error:
        raise UserError(f"{file}: not a readable checkpoint ({why(error)}); save model.state_dict()") from error


def _flat(content: Any, file: Path) -> dict[str, Tensor]:
    """The state dict in a checkpoint: the whole of it, or under one of the usual keys."""
    if isinstance(content, Mapping):
        for key in NESTED:
            if isinstance(content.get(key), Mapping):
                content = content[key]
                break
        if content and all(isinstance(value, Tensor) for value in content.values()):
            return dict(content)
    raise UserError(f"{file}: no state dict in it; save model.state_dict(), bare or under 'state_dict'")


def _check_classes(network: Network, state: Mapping[str, Tensor], file: Path) -> None:
    try:
        weight = state.get(f"{network.head}.weight")
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


@torch.no_grad()
def _check_output(network: Network, use: str) -> None:
    """One forward pass: the network must take its inputs and give one finite logit a class."""
    shape = [network.input.channels, *network.input.size]
    try:
        out = network.model(network.example())
    except Exception as error:
        raise UserError(
            f"{use}: fails on images {shape} (channels, height, width): {why(error)}; check size and mean"
        ) from error
    if not isinstance(out, Tensor) or out.dim() != 2 or len(out) != 2:
        got = list(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise UserError(f"{use}: must map [2, {', '.join(map(str, shape))}] to logits [2, classes]; got {got}")
    if out.shape[1] != network.num_classes:
        raise UserError(
            f"{use}: a network of {out.shape[1]} classes, but the data has {network.num_classes}; "
            "give checkpoint = the weights of a network trained on this data"
        )
    if not out.isfinite().all():
        raise UserError(f"{use}: gives logits that are NaN or infinite; give other weights, or train with a smaller lr")
