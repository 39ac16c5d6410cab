"""Every registered method keeps every contract, and the contracts catch methods that do not."""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import nn

from howsure import Features, Head, Logits, Method, Network
from howsure.cells import refusal
from howsure.check import check_method, make_trial, networks
from howsure.errors import UserError
from howsure.extract import union
from howsure.plugins import METHODS
from howsure.suite import make_method


@pytest.mark.parametrize("name", sorted(METHODS))
def test_method_keeps_its_contracts(name):
    outcomes = list(check_method(name, METHODS[name]))
    assert outcomes
    assert [f"{contract}: {problem}" for contract, problem in outcomes if problem] == []


def ending_in_a_convolution(network: Network) -> Network:
    """The same function with a 1×1 convolution for the last linear layer, as in timm's BiT."""
    *body, pool, _flatten, dropout, head = copy.deepcopy(network.model)
    conv = nn.Conv2d(head.in_features, head.out_features, 1)
    with torch.no_grad():
        conv.weight.copy_(head.weight[:, :, None, None])
        conv.bias.copy_(head.bias)
    return replace(network, model=nn.Sequential(*body, pool, dropout, conv, nn.Flatten()), members=[])


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_last_layer_may_be_a_convolution(name):
    method, network = METHODS[name](**METHODS[name].test_params), networks()[0]
    if {Features(), Head()}.isdisjoint(union([method.needs])) or refusal(method, network):
        return
    want, got = make_trial(method, network), make_trial(method, ending_in_a_convolution(network))
    assert got.network.heads == ("13",)
    scores = method.score(got.reps, **want.state)
    torch.testing.assert_close(scores, method.score(want.reps, **want.state), rtol=1e-3, atol=1e-4)


def problems(cls: type[Method]) -> set[str]:
    return {contract.split(" (")[0] for contract, problem in check_method("bad", cls) if problem}


@dataclass(frozen=True)
class Good(Method):
    """Fine."""

    needs = (Logits(),)

    def score(self, reps):
        return -reps[Logits()].amax(1)


def test_a_good_method_passes():
    assert problems(Good) == set()


def bad(**members):
    members = {"__doc__": "Bad.", "__module__": __name__, **members}
    return dataclass(frozen=True)(type("Bad", (Good,), members))


class _Leaky(Logits):
    cost = "passes"

    def compute(self, batch, **state):
        batch.network.model.train()
        return batch.logits


def _writing(self, reps):
    reps[Logits()].mul_(2)
    return reps[Logits()].amax(1)


class _Guess(Logits):
    """Reads the labels without a word."""

    def compute(self, batch, **state):
        return batch.logits.gather(1, batch.labels[:, None])


CASES = {
    "scores_every_image_once": bad(score=lambda self, reps: reps[Logits()]),
    "is_deterministic": bad(score=lambda self, reps: torch.randn(len(reps[Logits()]))),
    "scores_images_apart": bad(score=lambda self, reps: reps[Logits()].amax(1) - reps[Logits()].mean()),
    "keeps_its_declaration": bad(supervision="id-train"),
    "has_portable_state": bad(
        supervision="id-train", fit=lambda self, train: {"k": 3}, score=lambda self, reps, k: reps[Logits()].amax(1)
    ),
    "changes_no_input": bad(score=_writing),
    "ignores_order": bad(score=lambda self, reps: reps[Logits()].amax(1) + torch.arange(len(reps[Logits()]))),
    "ignores_labels": bad(needs=(_Guess(),), score=lambda self, reps: -reps[_Guess()][:, 0]),
    "scores some network": bad(skip=lambda self, network: "never"),
}  # fmt: skip


@pytest.mark.parametrize("contract", CASES)
def test_a_bad_method_is_caught(contract):
    assert contract in problems(CASES[contract])


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ({"score": Method.score}, "has no score; write"),
        ({"supervision": "train"}, "unknown supervision 'train'; choose one of none, id-train, outliers"),
        ({"needs": Logits()}, "needs is a Logits, but must be a tuple"),
        ({"needs": (Logits,)}, "which is not a representation; write an instance"),
        ({"supervision": "id-train"}, "supervision 'id-train' requires a fit"),
        ({"fit": lambda self, train: {}}, "supervision 'none' does not allow a fit"),
        ({"grid": {"kk": (1, 2)}}, "grid names 'kk', which is not a field"),
        ({"k": 3, "__annotations__": {"k": int}, "grid": {"k": 3}}, "grid of k is a int, but must be a tuple"),
        ({"k": 3, "__annotations__": {"k": int}, "grid": {"k": ()}}, "grid of k is empty"),
        ({"k": 3, "__annotations__": {"k": int}, "grid": {"k": (3, "a")}}, "grid of k holds 'a': .*must be an integer"),
        ({"k": field(default_factory=list), "__annotations__": {"k": list}}, "has no hash .unhashable type: 'list'"),
    ],
)
def test_a_wrong_declaration_is_one_line_and_does_not_run(monkeypatch, members, says):
    cls = bad(**members)
    [(contract, problem)] = [(contract, problem) for contract, problem in check_method("bad", cls) if problem]
    assert contract == "keeps_its_declaration"
    assert re.search(says, problem)
    monkeypatch.setitem(METHODS._classes, "bad", cls)
    with pytest.raises(UserError, match=f"method bad: .*{says}"):
        make_method("bad", {})


def _exiting(*_):
    raise SystemExit(0)


@pytest.mark.parametrize(
    "members", [{"score": _exiting}, {"skip": _exiting}, {"supervision": "id-train", "fit": _exiting}]
)
def test_a_method_that_exits_fails(members):
    problems = [problem for _, problem in check_method("bad", bad(**members)) if problem]
    assert problems
    assert all("SystemExit: 0" in problem for problem in problems)


def test_one_mistake_is_told_once_a_network_with_the_line_of_the_plugin():
    told = [problem for _, problem in check_method("bad", bad(score=_failing)) if problem]
    assert len(told) == len(networks())
    assert all("test_contracts.py:" in problem and "RuntimeError" in problem for problem in told)
    assert all("/check.py" not in problem for problem in told)


def _failing(self, reps):
    return reps[Logits()] @ torch.ones(99)


@pytest.mark.parametrize(
    "members",
    [
        {"score": lambda self, reps: reps[Logits()].mul_(0).amax(1)},
        {"supervision": "id-train", "fit": lambda self, train: {"z": train[Logits()].mul_(0)},
         "score": lambda self, reps, z: reps[Logits()].amax(1)},
    ],
)  # fmt: skip
def test_writing_the_same_again_and_writing_in_fit_are_caught(members):
    assert "changes_no_input" in problems(bad(**members))


def test_a_score_that_is_no_tensor_is_told():
    cls = bad(score=lambda self, reps: reps[Logits()].amax(1).numpy())
    told = {problem for contract, problem in check_method("bad", cls) if contract.startswith(("scores", "ignores"))}
    assert told == {"score returned a ndarray, not a tensor"}


class _Endless(Logits):
    def compute(self, batch, **state):
        return torch.full_like(batch.logits, torch.inf)


def test_a_representation_that_is_not_finite_is_told():
    cls = bad(needs=(_Endless(),), score=lambda self, reps: reps[_Endless()].amax(1).nan_to_num())
    told = [problem for _, problem in check_method("bad", cls) if problem]
    assert all("_Endless is NaN or infinite for 24 of 24 images" in problem for problem in told)
    assert told


def test_nan_is_caught():
    assert "scores_every_image_once" in problems(bad(score=lambda self, reps: reps[Logits()].amax(1) * torch.nan))


def test_a_network_left_in_train_mode_is_caught(conv_net, transformer):
    try:
        assert "leaves_no_trace" in problems(bad(needs=(_Leaky(),), score=lambda self, reps: reps[_Leaky()].amax(1)))
    finally:
        conv_net.model.eval(), transformer.model.eval()
