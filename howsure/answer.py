"""A practical answer: how unsure is this network about each image of a folder?"""

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
from .networks import load_network
from .representations import Logits
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
    """One row an image, most uncertain first: `file`, `class` (predicted), `score`, and `percentile`, the share of
    training images that score lower, in percent: of a fifth of them, drawn at random, that the method is not fitted on.
    Methods whose `fit_split` is "val" are fitted on that split of `train` where it has one of other images.
    `inputs`: mean, std and size, None where the network says them.

    Raises:
        UserError: a method that needs outliers, one that cannot score this network, or anything wrong with the inputs.
    """
    scorer = make_method(method, {})
    if scorer.supervision == "outliers":
        raise UserError(
            f"{method} must be shown outliers, and a folder has none; choose a method that sees none or id-train"
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
    needs = union([(Logits(), *scorer.needs)])
    learnt = _learnt_from(scorer, source, known) or split
    extractor(learnt, [rep for rep in needs if not rep.needs])
    seen, usual, found = (extractor(some, needs) for some in (learnt, apart, folder))
    classes = found[Logits()].argmax(1).tolist()
    seen, usual, found = (reps.only(tuple(scorer.needs), method) for reps in (seen, usual, found))
    state = seeded(0, lambda: scorer.fit(seen)) if scorer.supervision == "id-train" else {}
    try:
        scores, others = (
            torch.from_numpy(scored(scorer, reps, state, where))
            for reps, where in ((found, str(images)), (usual, train))
        )
    except CellError as error:
        raise UserError(f"{method}: {error}") from error
    below = torch.searchsorted(others.sort().values, scores) / len(others)
    names = list(getattr(source, "classes", ())) or [str(i) for i in range(network.num_classes)]
    table = pd.DataFrame({
        "file": pd.Series([str(file) for file in files.files], dtype=object),  # names in whatever encoding
        "class": [names[i] for i in classes],
        "score": scores.numpy(),
        "percentile": (100 * below).round(decimals=1).numpy(),
    })  # fmt: skip
    return table.sort_values("score", ascending=False, ignore_index=True)


def _learnt_from(method: Method, source: Any, known: Images) -> Split | None:
    """Held-out images, where the method asks for them and the data set has some that are not the training images."""
    if method.fit_split == "train" or method.fit_split not in source.splits:
        return None
    images = as_images(source.split(method.fit_split), f"{source.name}: {method.fit_split}")
    return Split(method.fit_split, images) if len(images) and images.fingerprint != known.fingerprint else None


def _divided(images: Images) -> tuple[Images, Images]:
    """Four fifths of them, and the others, at random; all and all of fewer than five."""
    order, few = np.random.default_rng(0).permutation(len(images)), len(images) // 5
    return (Subset(images, order[few:]), Subset(images, order[:few])) if few else (images, images)
