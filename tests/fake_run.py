"""A made-up results folder of any size, for tests of tables and plots."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.stats import norm

from howsure.metrics import DETECTION, MISCLASSIFICATION
from howsure.results import RESULT_COLUMNS, TIMING_COLUMNS
from howsure.store import write_arrays
from howsure.tables import LOWER_IS_BETTER

KNOWN = ["msp", "energy", "knn", "vim", "mahalanobis", "gradnorm", "confound", "odin", "entropy", "maxlogit", "react"]
FAR = ["svhn", "tiny_imagenet", "lsun", "dtd", "places365", "mnist", "textures", "gaussian_noise_images"]
NEAR = ["cifar100", "held_out_digits", "kmnist"]
TYPES = {
    "noise": ["gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise"],
    "blur": ["defocus_blur", "motion_blur", "zoom_blur", "gaussian_blur", "glass_blur"],
    "weather": ["snow", "frost", "fog", "brightness", "spatter"],
    "digital": ["contrast", "elastic_transform", "pixelate", "jpeg_compression", "saturate"],
}
SUITE = {"suite": "made-up", "id": "cifar10", "n_id": 80, "n_shift": 60}


def fake_run(
    folder: Path, methods: int, shifts: int, backbones=("cnn", "resnet20", "vit_tiny"), seeds=(0,), severities=5,
    protocols=("none", "same-shift"),
):  # fmt: skip
    """Write results.csv, timing.csv and scores/ with so many methods and shifts (about a third are data sets)."""
    random = np.random.default_rng(0)
    names = [*KNOWN, *(f"method_{i:02}_of_many" for i in range(methods))][: methods - 1]
    names.append("confound_detector")
    all_types = [
        (family, kind)
        for kinds in zip(*(v[:4] for v in TYPES.values()), strict=True)
        for family, kind in zip(TYPES, kinds, strict=True)
    ]
    sets = [("near", s) for s in NEAR] + [("far", s) for s in FAR]
    sets, types = sets[: max(3, shifts // 3)], all_types[: max(2, shifts - max(3, shifts // 3))]
    rows, timing = [], []
    for backbone in backbones:
        for seed in seeds:
            errors = random.random(SUITE["n_id"]) < 0.15
            write_arrays(
                folder / f"scores/{backbone}/seed{seed}/errors.safetensors",
                {"errors": torch.from_numpy(errors.astype(np.uint8))},
            )
            for protocol in protocols:
                for i, method in enumerate(names):
                    supervision = (
                        "outliers"
                        if method == "confound_detector"
                        else ("none", "id-train")[i % 2] + "+tuned" * (protocol != "none" and i % 3 == 0)
                    )
                    if supervision == "outliers" and protocol == "none":
                        continue
                    base = {
                        **SUITE,
                        "backbone": backbone,
                        "seed": seed,
                        "method": method,
                        "supervision": supervision,
                        "protocol": protocol,
                    }
                    rows += _cell(folder, base, random, 0.2 + 1.6 * random.random(), errors, sets, types, severities)
        for i, method in enumerate(names):
            cost = 1 + (random.random() * 0.1 if i % 3 else 10 ** random.uniform(0, 1.7))
            timing.append([backbone, "cpu", method, random.random(), cost * 0.4, cost, 120.0, 256, 64])
    pd.DataFrame(rows)[RESULT_COLUMNS].to_csv(folder / "results.csv", index=False)
    pd.DataFrame(timing, columns=TIMING_COLUMNS).to_csv(folder / "timing.csv", index=False)
    return folder


def _cell(folder, base, random, skill, errors, sets, types, severities):
    scores = {"id": random.normal(size=SUITE["n_id"]) + errors}
    rows = []
    cells = [("ood", s, g, None) for g, s in sets]
    cells += [("corruption", k, f, level) for f, k in types for level in range(1, severities + 1)]
    for task, shift, group, severity in cells:
        strength = {"near": 0.4, "far": 1.2}.get(group, 0.3 * (severity or 0)) * skill + random.normal(0, 0.2)
        scores[f"{shift}@{severity}" if severity else shift] = random.normal(strength, 1.2, SUITE["n_shift"])
        about = {**base, "task": task, "shift": shift, "group": group, "severity": severity}
        rows += _metrics(about, DETECTION, norm.cdf(strength / 1.6))
    about = {
        **base,
        "task": "misclassification",
        "shift": "",
        "group": "",
        "severity": None,
        "n_shift": int(errors.sum()),
    }
    rows += _metrics(about, MISCLASSIFICATION, 0.6 + 0.2 * skill / 1.8)
    path = folder / f"scores/{base['backbone']}/seed{base['seed']}/{base['protocol']}/{base['method']}.safetensors"
    write_arrays(path, {k: torch.from_numpy(v.astype(np.float32)) for k, v in scores.items()})
    return rows


def _metrics(about, names, auroc):
    """Rows of made-up metrics that go up, or down, with AUROC."""
    for name in names:
        value = auroc if name not in LOWER_IS_BETTER else 1 - auroc
        yield {**about, "metric": name, "value": value, "ci_low": value - 0.01, "ci_high": value + 0.01}
