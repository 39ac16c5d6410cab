"""`howsure score`: how uncertain is a network about each image in a folder?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from .cells import CellError, refusal, scored
from .data import cache_root
from .errors import UserError
from .extract import Extractor, seeded, union
from .image_files import LooseImages
from .images import Images, Subset, as_images
from .method import Method
from .network import warn_of_low_accuracy
from .networks import load_network
from .representations import Labels, Logits
from .sources import num_classes, resolve
from .split import Split
from .store import Store
from .suite import make_method


def score_folder(
    backbone: str,
    method: str,
    train: str,
    images: Path,
    checkpoint: str | None,
    device: torch.device,
    inputs: Mapping[str, Any],
) -> pd.DataFrame:
    """Score all images in and below a folder.

    Args:
        train: the data set that the network was trained on. The method is fitted on four fifths of its training images;
            if its `fit_split` is "val" and the data set has such a split with other images, on that split.
        inputs: `mean`, `std` and `size` of the network's inputs, None for what the network says itself.

    Returns:
        One row per image, most uncertain first: `file`, predicted `class`, `score`, and `percentile`, the percentage of
        the other fifth of the training images, drawn at random, that score lower.

    Raises:
        UserError: the method needs outliers or cannot score this network, or something is wrong with the inputs.
    """
    scorer = make_method(method, {})
    if scorer.supervision == "outliers":
        raise UserError(
            f"{method} learns from outliers, and none are given here; choose a method with supervision none or id-train"
        )
    source = resolve(train, Path.cwd())
    known = as_images(source.split("train"), train)
    files = LooseImages(images)
    split, apart = (Split("train", some) for some in _divided(known))
    folder = Split(str(images), files)
    network = load_network(
        "network",
        backbone,
        num_classes=num_classes(source, known),
        base=Path.cwd(),
        checkpoint=checkpoint,
        device=device,
        train_images=known,
        **inputs,
    )
    refused = refusal(scorer, network)
    if refused:
        raise UserError(f"{method} cannot score this network: {refused}")
    extractor = Extractor(network, Store(cache_root() / "representations"), split)
    needs = union([(Logits(), Labels(), *scorer.needs)])
    fit_split = _held_out(scorer, source, known) or split
    extractor(fit_split, [rep for rep in needs if not rep.needs])
    to_fit, to_compare, to_score = (extractor(some, needs) for some in (fit_split, apart, folder))
    classes = to_score[Logits()].argmax(1).tolist()
    right = to_compare[Logits()].argmax(1) == to_compare[Labels()]
    warn_of_low_accuracy(network, float(right.double().mean()))
    to_fit, to_compare, to_score = (reps.only(tuple(scorer.needs), method) for reps in (to_fit, to_compare, to_score))
    state = seeded(0, lambda: scorer.fit(to_fit)) if scorer.supervision == "id-train" else {}
    try:
        scores, others = (
            torch.from_numpy(scored(scorer, reps, state, where))
            for reps, where in ((to_score, str(images)), (to_compare, train))
        )
    except CellError as error:
        raise UserError(f"{method}: {error}") from error
    below = torch.searchsorted(others.sort().values, scores) / len(others)
    names = list(getattr(source, "classes", ())) or [str(i) for i in range(network.num_classes)]
    table = pd.DataFrame({
        "file": pd.Series([str(file) for file in files.files], dtype=object),  # names may be in any encoding
        "class": [names[i] for i in classes],
        "score": scores.numpy(),
        "percentile": (100 * below).round(decimals=1).numpy(),
    })  # fmt: skip
    return table.sort_values("score", ascending=False, ignore_index=True)


def _held_out(method: Method, source: Any, known: Images) -> Split | None:
    """The method's `fit_split`, if it is not `train` and the data set has such a split with other images, else None."""
    if method.fit_split == "train" or method.fit_split not in source.splits:
        return None
    images = as_images(source.split(method.fit_split), f"{source.name}: {method.fit_split}")
    return Split(method.fit_split, images) if len(images) and images.fingerprint != known.fingerprint else None


def _divided(images: Images) -> tuple[Images, Images]:
    """Four fifths of the images at random, and the other fifth; of fewer than five images, all of them twice."""
    order, few = np.random.default_rng(0).permutation(len(images)), len(images) // 5
    return (Subset(images, order[few:]), Subset(images, order[:few])) if few else (images, images)
