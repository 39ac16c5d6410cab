"""From the name of a network to a trained classifier: built, its weights loaded, downloaded or trained."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from .blueprints import blueprint_of
from .checkpoints import load_checkpoint
from .errors import UserError
from .images import Images
from .keys import hash_module, source_of
from .network import Network, check_output, doubts_of_output
from .plugins import BACKBONES
from .registry import import_file
from .trained import Trainer
from .training import Progress


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
            module (`num_classes` is passed if it has a parameter of that name).
        num_classes: of the data; the network must have as many outputs.
        base: the folder that relative paths (FILE and `checkpoint`) start from.
        mean, std, size: of its inputs, where they differ from the network's own configuration.
        checkpoint: a state dict (`torch.load`, tensors only) or a `.safetensors` file. By default, timm and torchvision
            networks come with their pretrained weights, and registered ones that have a recipe are trained on
            `train_images` and kept.
        members: how many further networks to train from other seeds, for ensembles; only if the backbone has a recipe.
        test_images: if given, the accuracy of a newly trained network on them is recorded.
        seed: of random weights and of training.
        cache: the folder for trained networks; by default `networks` in `cache_root()`.
        progress: called with (epoch, epochs) while training.

    Raises:
        UserError: the network cannot be built, loaded, trained or run; one line says why and what to do.
    """
    with _drawn_from(seed):
        blueprint = blueprint_of(use, num_classes, base, mean, std, size)
    device = torch.device(device)
    if members and (blueprint.backbone is None or blueprint.backbone.recipe is None or checkpoint):
        raise UserError(
            f"{name}: members = {members} needs a registered backbone with a recipe and no checkpoint; leave it out"
        )
    if checkpoint is not None:
        network = Network(name, blueprint.build(), blueprint.input, num_classes)
        load_checkpoint(network, base / Path(checkpoint).expanduser())
    elif blueprint.backbone is not None:
        data = train_images, test_images
        trainer = Trainer(use, blueprint.backbone, blueprint.input, num_classes, *data, device, cache, progress)
        network = trainer(name, seed)
        network.members = [trainer(name, seed + 1000 * (i + 1)).model for i in range(members)]
    else:
        with _drawn_from(seed):
            model = (blueprint.pretrained or blueprint.build)()
        network = Network(name, model, blueprint.input, num_classes)
    network = replace(network, device=device, origin=_origin(use, base))
    check_output(network, use)
    for doubt in doubts_of_output(network):
        print(f"howsure: {use}: {doubt}", file=sys.stderr)
    network.lay_channels_last()
    return network


@contextmanager
def _drawn_from(seed: int) -> Iterator[None]:
    """Inside, torch's random numbers start from `seed`; afterwards the caller's continue as if nothing had happened."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        yield


def _origin(use: str, base: Path) -> str:
    """The network's name and a hash of the code that builds it."""
    file, colon, _ = use.rpartition(":")
    if colon and file.endswith(".py"):
        return f"{use} {hash_module(import_file(base / Path(file).expanduser()))}"
    return f"{use} {source_of(BACKBONES[use])}" if use in BACKBONES else use
