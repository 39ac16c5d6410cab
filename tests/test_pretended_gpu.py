"""The gradient engine and every method on a pretended GPU: nothing mixes devices, and the numbers are the CPU's."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import timm
import torch
from pretended_gpu import pretended_gpu, waits

from howsure import Confound, Predicted, Recipe, training
from howsure.cells import refusal
from howsure.check import make_trial, networks
from howsure.gradients import grad_sq_norms, one_by_one
from howsure.networks import load_network
from howsure.plugins import BACKBONES, METHODS

LOSSES = (Confound(), Predicted())


@pytest.mark.parametrize(
    ("name", "side"),
    [("resnet18", 32), ("mobilenetv3_small_050", 32), ("convnext_atto", 32), ("test_vit", 160), ("nf_regnet_b0", 32)],
)
def test_the_engine_gives_what_it_gives_on_the_cpu(name, side):
    net = timm.create_model(name, pretrained=False, num_classes=5).double().eval()
    x = torch.randn(4, 3, side, side, dtype=torch.float64)
    want = one_by_one(net, x, LOSSES)
    with pretended_gpu() as gpu:
        there, images = copy.deepcopy(net).to(gpu), x.to(gpu)
        grad_sq_norms(there, images, LOSSES)
        waits.clear()
        result = grad_sq_norms(there, images, LOSSES)
        assert len(waits) <= 4, waits
        assert result.norms.device == gpu
        norms = result.norms.cpu()
    torch.testing.assert_close(norms, want, rtol=1e-9, atol=1e-22)


@pytest.mark.parametrize("network", networks(), ids=lambda network: network.name)
@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_method_gets_and_scores_what_it_does_on_the_cpu(name, network):
    method = METHODS[name](**METHODS[name].test_params)
    if refusal(method, network):
        return
    want = make_trial(method, network)
    with pretended_gpu() as gpu:
        members = [copy.deepcopy(member).to(gpu) for member in network.members]
        there = replace(network, model=copy.deepcopy(network.model).to(gpu), members=members, device=gpu)
        trial = make_trial(method, there)
        scores = method.score(trial.reps, **want.state)
    for rep in trial.reps:
        torch.testing.assert_close(
            rep.pack(trial.reps[rep]), rep.pack(want.reps[rep]), rtol=1e-3, atol=1e-5, check_stride=False
        )
    on_cpu = method.score(want.reps, **want.state)
    torch.testing.assert_close(scores, on_cpu, rtol=0, atol=1e-2 * float(on_cpu.std()))


def test_a_network_is_trained_and_judged_there(monkeypatch, tmp_path, images):
    judged, accuracy = [], training.accuracy

    def judge(network, *others):
        judged.append(network.device)
        return accuracy(network, *others)

    monkeypatch.setattr(training, "accuracy", judge)
    monkeypatch.setattr(BACKBONES["small-cnn"], "recipe", Recipe(epochs=1, lr=0.001))
    given = {"num_classes": 4, "train_images": images, "test_images": images, "cache": tmp_path}
    with pretended_gpu() as gpu:
        there = load_network("small", "small-cnn", device=gpu, **given)
        assert judged == [gpu, gpu]
        assert next(there.model.parameters()).device == gpu
    assert load_network("small", "small-cnn", **given).accuracy == there.accuracy
