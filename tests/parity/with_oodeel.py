"""Comparisons with oodeel 0.4.0, whose detectors run a network: here the identity on features, then the last layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from oodeel import methods as peer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from .compare import Array, Comparison
from .setting import Images, Setting

DIM = 8


def run(make: Callable[[], Any], layers: bool = False) -> Callable[[Setting], Array]:
    """Scores of a detector, fitted on the training images."""

    def score(s: Setting) -> Array:
        network = nn.Sequential(nn.Identity(), nn.Linear(*s.head.weight.T.shape))
        network[1].load_state_dict(s.head.state_dict())
        detector = make()
        detector.fit(network, loader(s.train), feature_layers_id=[0] if layers else [], head_layer_id=1)
        return np.asarray(detector.score(loader(s.test))[0])

    return score


def loader(images: Images) -> DataLoader[Any]:
    """Features and labels in batches."""
    return DataLoader(TensorDataset(images.h, images.y), batch_size=250)


def energy(s: Setting, h: Array) -> Array:
    """Energy of the head on changed features."""
    z = h @ s.head.weight.double().numpy().T + s.head.bias.double().numpy()
    return -np.logaddexp.reduce(z, axis=1)


def ratio(h: Array, percentile: float) -> tuple[Array, Array]:
    """Sum over the sum of the largest `D - round(D p / 100)`, and which these are."""
    k = h.shape[1] - round(h.shape[1] * percentile / 100)
    top = np.argsort(-h, axis=1)[:, :k]
    keep = np.zeros_like(h)
    np.put_along_axis(keep, top, 1, axis=1)
    return h.sum(1, keepdims=True) / (h * keep).sum(1, keepdims=True), keep


def scale(s: Setting) -> Array:
    """The paper's scaling."""
    h = s.test.h.double().numpy()
    return energy(s, h * np.exp(ratio(h, 85)[0]))


def ash_s(s: Setting) -> Array:
    """The paper's pruning and rescaling."""
    h = s.test.h.double().numpy()
    factor, keep = ratio(h, 90)
    return energy(s, h * keep * np.exp(factor))


def she(s: Setting) -> Array:
    """Minus the inner product with the pattern of the predicted class."""
    h, y, predicted = s.train.h.double().numpy(), s.train.y.numpy(), s.train.z.argmax(1).numpy()
    patterns = [h[(y == k) & (predicted == k)].mean(0) for k in range(s.train.z.shape[1])]
    test = zip(s.test.h.double().numpy(), s.test.z.argmax(1).tolist(), strict=True)
    return np.array([-(x @ patterns[k]) for x, k in test])


def vim(s: Setting) -> Array:
    """The paper's virtual logit, seen from the origin at which the logits vanish."""
    w, b, h = (x.double().numpy() for x in (s.head.weight, s.head.bias, s.train.h))
    origin = -np.linalg.pinv(w) @ b
    values, vectors = np.linalg.eigh((h - origin).T @ (h - origin))
    rest = vectors[:, np.argsort(-values)[DIM:]]
    alpha = s.train.z.double().amax(1).mean().item() / np.linalg.norm((h - origin) @ rest, axis=1).mean()
    x = s.test.h.double().numpy()
    return alpha * np.linalg.norm((x - origin) @ rest, axis=1) + energy(s, x)


COMPARISONS = [
    Comparison("maxlogit", "MLS", run(peer.MLS)),
    Comparison("msp", "MLS-softmax", run(lambda: peer.MLS(output_activation="softmax"))),
    Comparison("energy", "Energy", run(peer.Energy)),
    Comparison("entropy", "Entropy", run(peer.Entropy)),
    Comparison("gen", "GEN", run(peer.GEN)),
    Comparison("mahalanobis", "Mahalanobis", run(lambda: peer.Mahalanobis(eps=0), layers=True)),
    Comparison("rmd", "RMDS", run(lambda: peer.RMDS(eps=0), layers=True)),
    Comparison(
        "vim",
        "VIM",
        run(lambda: peer.VIM(princ_dims=DIM, pca_origin="pseudo"), layers=True),
        {"dim": DIM},
        differs='it centres features on their mean, also where asked for the paper\'s origin (`pca_origin="pseudo"`)',
        formula=vim,
    ),
    Comparison("knn", "DKNN", run(lambda: peer.DKNN(nearest=50), layers=True), {"k": 50}),
    Comparison(
        "she",
        "SHE",
        run(lambda: peer.SHE(eps=0), layers=True),
        differs="it takes the largest product over all classes, the paper that of the predicted class",
        formula=she,
    ),
    Comparison(
        "react",
        "Energy-ReAct",
        run(lambda: peer.Energy(use_react=True, react_quantile=0.9)),
        {"percentile": 90.0},
    ),
    Comparison(
        "scale",
        "Energy-SCALE",
        run(lambda: peer.Energy(use_scale=True, scale_percentile=0.85)),
        {"percentile": 85.0},
        differs="it keeps what lies above an interpolated quantile, which can be one activation more or less",
        formula=scale,
    ),
    Comparison(
        "ash_s",
        "Energy-ASH",
        run(lambda: peer.Energy(use_ash=True, ash_percentile=0.9)),
        {"percentile": 90.0},
        differs="it keeps what lies above an interpolated quantile, which can be one activation more or less",
        formula=ash_s,
    ),
]
