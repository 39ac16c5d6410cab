"""Comparisons with pytorch-ood 0.4.0."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from pytorch_ood import detector as peer
from pytorch_ood.detector.ash import ash_b, ash_p, ash_s
from pytorch_ood.detector.scale import scale
from scipy import stats
from scipy.optimize import minimize_scalar
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import normalize

from howsure import Confound

from .compare import Array, Comparison
from .setting import Images, Setting

DIM = 8


def on_logits(detector: Any) -> Callable[[Setting], Tensor]:
    """Scores of a detector that looks at logits."""
    return lambda s: detector(None).predict_logits(s.test.z)


def fitted_on_logits(detector: Any) -> Callable[[Setting], Tensor]:
    """The same for one that is fitted."""
    return lambda s: detector(None).fit_logits(s.train.z, s.train.y).predict_logits(s.test.z).detach()


def fitted(make: Callable[[Setting], Any]) -> Callable[[Setting], Tensor]:
    """Scores of a detector fitted on features."""
    return lambda s: make(s).fit_features(s.train.h, s.train.y).predict_features(s.test.h)


def maps(h: Tensor) -> Tensor:
    """Features as 1×1 feature maps."""
    return h[:, :, None, None]


def flat_head(s: Setting) -> Callable[[Tensor], Tensor]:
    """The last layer on 1×1 feature maps."""
    return lambda x: s.head(x.flatten(1))


def fitted_on_maps(make: Callable[[Setting], Any]) -> Callable[[Setting], Tensor]:
    """Scores of a detector fitted on feature maps."""
    return lambda s: make(s).fit_feature_maps(maps(s.train.h), s.train.y).predict_feature_maps(maps(s.test.h))


def shaped(shape: Callable[..., Tensor], percentile: float) -> Callable[[Setting], Tensor]:
    """Energy after shaping activations."""
    return lambda s: -torch.logsumexp(s.head(shape(maps(s.test.h), percentile).flatten(1)), dim=1)


def on_images(make: Callable[[nn.Module], Any], sign: int = 1) -> Callable[[Setting], Tensor]:
    """Scores of a detector that looks at images through the whole network."""

    def scores(s: Setting) -> Tensor:
        assert s.network is not None
        detector = make(s.network.model)
        return sign * torch.cat([detector.predict(x).detach() for x in s.test.x.split(50)])

    return scores


def up_to(model: nn.Module, name: str) -> nn.Module:
    """A ResNet's modules in a row, up to a stage."""
    names = [n for n, _ in model.named_children()]
    stem = [model.conv1, model.bn1, nn.ReLU()]
    return nn.Sequential(*stem, *(model.get_submodule(n) for n in names[2 : names.index(name) + 1]))


def pooled_head(model: nn.Module) -> nn.Module:
    """What follows the last stage."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), model.linear)


def gram(s: Setting) -> Tensor:
    """Gram matrices of the last stage, with the ranges of the images that ours takes them of."""
    assert s.network is not None
    detector = peer.Gram(pooled_head(s.network.model), [up_to(s.network.model, "layer3")], 10, list(range(1, 11)))
    detector.validation_fraction = 0.0
    predicted = s.train.z.argmax(1)
    place = torch.stack([predicted[: i + 1].eq(c).sum() - 1 for i, c in enumerate(predicted)])
    kept = place % 10 != 9
    detector.to("cpu").fit([(s.train.x[kept], predicted[kept])])
    return detector.predict(s.test.x)


def confound(s: Setting) -> Array:
    """Squared gradient norm of -Σ log p, the cross-entropy of the softmax and a label of ones."""
    assert s.network is not None
    model = s.network.model

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return -functional_call(model, parameters, (x[None],)).log_softmax(1).sum()

    each = vmap(grad(loss), in_dims=(None, 0))
    weights = {name: p.detach() for name, p in model.named_parameters()}

    def sq_norms(x: Tensor) -> Tensor:
        return torch.stack([g.flatten(1).double().square().sum(1) for g in each(weights, x).values()]).sum(0)

    return torch.cat([sq_norms(x) for x in s.test.x.split(50)]).numpy()


def openmax(s: Setting) -> Tensor:
    """OpenMax fitted on correctly classified images, as the paper has it."""
    correct = s.train.z.argmax(1) == s.train.y
    detector = peer.OpenMax(None, tailsize=20, alpha=10)
    detector.fit_logits(s.train.z[correct].double(), s.train.y[correct])
    return detector.predict_logits(s.test.z.double())


def with_cosines(images: Images) -> Images:
    """The same images with the cosines of features and axes for logits."""
    return replace(images, z=normalize(images.h))


def softer(images: Images) -> Images:
    """The same images with logits so small that the peer clamps no probability."""
    return replace(images, z=images.z / images.z.abs().max() * 5)


def gen(s: Setting) -> Array:
    """The paper's equation for gamma = 0.1 and all classes; `1 - p` as the sum of the others."""
    z = s.test.z.double().numpy()
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    rest = np.stack([np.delete(p, c, 1).sum(1) for c in range(p.shape[1])], 1)
    return np.sum(p**0.1 * rest**0.1, 1)


def entropy(s: Setting) -> Array:
    """Shannon's formula."""
    log_p = s.test.z.double().log_softmax(1).numpy()
    return -np.sum(np.exp(log_p) * log_p, 1)


def temperature_scaling(s: Setting) -> Array:
    """One minus the largest probability at the temperature that a golden-section search finds."""
    z, y = s.train.z.double(), s.train.y
    loss = lambda t: float(torch.nn.functional.cross_entropy(z / t, y))  # noqa: E731
    best = minimize_scalar(loss, bounds=(0.05, 20), method="bounded", options={"xatol": 1e-9}).x
    return 1 - (s.test.z.double() / best).softmax(1).amax(1).numpy()


def gmm(s: Setting) -> Array:
    """Minus the log likelihood under Gaussians whose covariances are shrunk halfway to the tied one."""
    h, y, x = s.train.h.double().numpy(), s.train.y.numpy(), s.test.h.double().numpy()
    classes = np.unique(y)
    own = [np.cov(h[y == k].T, bias=True) for k in classes]
    shares = [np.mean(y == k) for k in classes]
    tied = sum(share * c for share, c in zip(shares, own, strict=True))
    logs = [
        math.log(share) + stats.multivariate_normal(h[y == k].mean(0), (c + tied) / 2).logpdf(x)
        for k, c, share in zip(classes, own, shares, strict=True)
    ]
    return -np.logaddexp.reduce(np.stack(logs), axis=0)


def vra(s: Setting) -> Array:
    """The paper's piecewise function, 60th and 90th percentile of each feature, and energy."""
    low, high = np.percentile(s.train.h.double().numpy(), [60, 90], axis=0)
    h = s.test.h.double().numpy()
    h = np.where(h < low, 0, np.minimum(h, high))
    z = h @ s.head.weight.double().numpy().T + s.head.bias.double().numpy()
    return -np.logaddexp.reduce(z, axis=1)


COMPARISONS = [
    Comparison("msp", "MaxSoftmax", on_logits(peer.MaxSoftmax)),
    Comparison("maxlogit", "MaxLogit", on_logits(peer.MaxLogit)),
    Comparison("energy", "EnergyBased", on_logits(peer.EnergyBased)),
    Comparison(
        "energy",
        "EnergyBased-T2",
        lambda s: peer.EnergyBased(None, t=2.0).predict_logits(s.test.z),
        {"temperature": 2.0},
    ),
    Comparison(
        "entropy",
        "Entropy",
        on_logits(peer.Entropy),
        differs="it raises probabilities to 1e-7 before the sum; equal where none is smaller (next row)",
        formula=entropy,
    ),
    Comparison("entropy", "Entropy", on_logits(peer.Entropy), change=softer, note="logits at most 5"),
    Comparison(
        "gen",
        "GEN",
        on_logits(peer.GEN),
        differs="it clamps probabilities to [1e-7, 1 - 1e-7], up to 0.2 a class; equal where none is (next row)",
        formula=gen,
    ),
    Comparison("gen", "GEN", on_logits(peer.GEN), change=softer, note="logits at most 5"),
    Comparison(
        "mcm",
        "MCM",
        lambda s: peer.MCM(None, torch.eye(s.test.h.shape[1])).predict_features(s.test.h),
        {"tau": 1.0},
        change=with_cosines,
        note="on cosines, here of features and axes",
    ),
    Comparison(
        "temperature_scaling",
        "TemperatureScaling",
        fitted_on_logits(peer.TemperatureScaling),
        differs="its optimiser stops short of the temperature that minimises the loss",
        formula=temperature_scaling,
    ),
    Comparison("klm", "KLMatching", fitted_on_logits(peer.KLMatching)),
    Comparison("openmax", "OpenMax", openmax, note="the peer given correctly classified images only, as in the paper"),
    Comparison("mahalanobis", "Mahalanobis", fitted(lambda s: peer.Mahalanobis(None))),
    Comparison("rmd", "RMD", fitted(lambda s: peer.RMD(None))),
    Comparison(
        "gmm",
        "GMM",
        fitted(lambda s: peer.GMM(None)),
        {"shrinkage": 0.5},
        differs="it adds 1e-6 to each class's covariance; ours shrinks it towards the tied one",
        formula=gmm,
    ),
    Comparison("vim", "ViM", fitted(lambda s: peer.ViM(None, DIM, s.head.weight, s.head.bias)), {"dim": DIM}),
    Comparison("knn", "KNN", fitted(lambda s: peer.KNN(None, k=50)), {"k": 50}),
    Comparison("she", "SHE", fitted(lambda s: peer.SHE(None, s.head))),
    Comparison("nnguide", "NNGuide", fitted(lambda s: peer.NNGuide(None, s.head, k=10)), {"k": 10, "bank": 1.0}),
    Comparison("fdbd", "fDBD", fitted(lambda s: peer.fDBD(None, s.head))),
    Comparison("nci", "NCI", fitted(lambda s: peer.NCI(None, s.head, alpha=1e-3)), {"alpha": 1e-3}),
    Comparison("pnml", "PNML", fitted(lambda s: peer.PNML(None, s.head))),
    Comparison("react", "ReAct", fitted_on_maps(lambda s: peer.ReAct(maps, flat_head(s), percentile=0.9))),
    Comparison("dice", "DICE", fitted(lambda s: peer.DICE(None, s.head.weight, s.head.bias, p=0.9))),
    Comparison("ash_p", "ASH-P", shaped(ash_p, 0.9)),
    Comparison("ash_b", "ASH-B", shaped(ash_b, 0.9)),
    Comparison("ash_s", "ASH-S", shaped(ash_s, 0.9)),
    Comparison("scale", "SCALE", shaped(scale, 0.85)),
    Comparison("lts", "LTS", lambda s: peer.LTS(None, s.head, p=0.05).predict_features(s.test.h)),
    Comparison("odin", "ODIN", on_images(lambda m: peer.ODIN(m, norm_std=[0.229, 0.224, 0.225])), network=True),
    Comparison(
        "gradnorm",
        "GradNorm",
        on_images(lambda m: peer.GradNorm(m, lambda name: name == "linear.weight")),
        network=True,
    ),
    Comparison(
        "gradnorm", "GradNorm-all", on_images(peer.GradNorm), {"layers": ("*",)}, network=True, note="all parameters"
    ),
    Comparison(
        "confound",
        "GradUncertainty",
        on_images(peer.GradUncertainty, -1),
        {"loss": Confound(output="softmax")},
        differs="both with the softmax; in its gradient a denominator is raised to 1e-12; its sign is turned here",
        formula=confound,
        network=True,
        rtol=1e-2,
    ),
    Comparison(
        "rankfeat",
        "RankFeat",
        on_images(lambda m: peer.RankFeat(up_to(m, "layer3"), pooled_head(m))),
        {"layers": ("layer3",)},
        network=True,
        note="at the last stage",
    ),
    Comparison(
        "gram",
        "Gram",
        gram,
        {"layers": ("layer3",)},
        network=True,
        note="at the last stage; the peer given predicted classes, and the images that ours takes ranges of",
    ),
    Comparison(
        "vra",
        "VRA",
        fitted_on_maps(lambda s: peer.VRA(maps, flat_head(s), 0.6, 0.9)),
        differs="it lifts low activations to the low percentile (the paper: to 0)",
        formula=vra,
    ),
]
