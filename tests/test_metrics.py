"""Metrics against scikit-learn, against slow definitions, and by hand; the bootstrap against a loop."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from howsure import bootstrap, metrics
from howsure.bootstrap import counts_of
from howsure.lead import auroc_lead
from howsure.metrics import DETECTION, MISCLASSIFICATION, detection, misclassification, why_undefined

few_values = st.lists(st.integers(0, 6).map(float), min_size=1, max_size=30)
any_values = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30)


def slow_detection(id_scores, shift_scores):
    low, high = np.asarray(id_scores), np.asarray(shift_scores)
    scores, shifted = np.concatenate([low, high]), np.repeat([0, 1], [len(low), len(high)])
    thresholds = [-np.inf, *scores]
    threshold = next(t for t in sorted(low) if (low <= t).sum() * 100 >= 95 * len(low))
    return {
        "auroc": roc_auc_score(shifted, scores),
        "fpr95": (high <= threshold).mean(),
        "aupr_in": average_precision_score(1 - shifted, -scores),
        "aupr_out": average_precision_score(shifted, scores),
        "detection_accuracy": max(((low <= t).mean() + (high > t).mean()) / 2 for t in thresholds),
    }


def risks(errors):
    return (np.cumsum(errors) / np.arange(1, len(errors) + 1)).mean()


def slow_aurc(scores, errors):
    """The mean over many random orders of tied scores."""
    random, scores, errors = np.random.default_rng(0), np.asarray(scores), np.asarray(errors)
    return np.mean([risks(errors[np.lexsort([random.random(len(scores)), scores])]) for _ in range(4000)])


def values(intervals):
    return {name: interval.value for name, interval in intervals.items()}


@settings(deadline=None)
@given(few_values | any_values, few_values | any_values)
def test_detection_is_scikit_learns_with_and_without_ties(id_scores, shift_scores):
    got = values(detection(id_scores, shift_scores, resamples=0))
    assert tuple(got) == DETECTION
    assert got == pytest.approx(slow_detection(id_scores, shift_scores), abs=1e-12)


@settings(deadline=None)
@given(few_values | any_values, few_values | any_values)
def test_fpr_with_the_sets_changed_is_that_of_openood_and_pytorch_ood(id_scores, shift_scores):
    scores, shifted = [*id_scores, *shift_scores], np.repeat([0, 1], [len(id_scores), len(shift_scores)])
    fpr, tpr, _ = roc_curve(shifted, scores, drop_intermediate=False)
    got = detection(-np.array(shift_scores), -np.array(id_scores), resamples=0)["fpr95"].value
    assert got == pytest.approx(fpr[np.argmax(tpr >= 0.95)])


@settings(deadline=None)
@given(few_values, st.integers(0, 2**32))
def test_order_of_images_does_not_matter(scores, seed):
    order = np.random.default_rng(seed).permutation(len(scores))
    errors = np.arange(len(scores)) % 3 == 0
    one = misclassification(scores, errors, resamples=0)
    other = misclassification(np.array(scores)[order], errors[order], resamples=0)
    np.testing.assert_allclose(list(values(one).values()), list(values(other).values()), atol=1e-12)


def test_detection_by_hand():
    got = values(detection([1, 2, 2, 3], [2, 3, 4], resamples=0))
    assert got["auroc"] == pytest.approx((2 + 3.5 + 4) / 12)
    assert got["fpr95"] == pytest.approx(2 / 3)  # keeps up to 3
    assert got["aupr_out"] == pytest.approx((1 + 2 / 3 + 3 / 6) / 3)
    assert got["aupr_in"] == pytest.approx((1 + 2 * 3 / 4 + 4 / 6) / 4)
    assert got["detection_accuracy"] == pytest.approx((3 / 4 + 2 / 3) / 2)


@pytest.mark.parametrize(
    ("id_scores", "shift_scores", "expected"),
    [
        (range(20), [18.0, 18.5, 19.0], 1 / 3),  # 19 of 20 are 95 %: keeps up to 18
        (range(21), [19.0, 19.5, 20.0], 1 / 3),  # 20 of 21: 19 of 21 would be 90.5 %
        ([0] * 10 + [1] * 10, [0, 1, 1, 2], 3 / 4),  # the tie at 1 is kept whole
        ([5], [4, 5, 6], 2 / 3),
        ([0, 1], [2, 3], 0),
    ],
)
def test_fpr_by_hand(id_scores, shift_scores, expected):
    assert detection(list(id_scores), shift_scores, resamples=0)["fpr95"].value == pytest.approx(expected)


def test_constant_scores_say_nothing():
    got = detection([1.5] * 30, [1.5] * 10, resamples=100)
    assert got["auroc"].value == 0.5
    assert got["fpr95"].value == 1
    assert got["detection_accuracy"].value == 0.5
    assert got["aupr_out"].value == pytest.approx(0.25)
    assert got["aupr_in"].value == pytest.approx(0.75)
    assert np.isnan([interval[1:] for interval in got.values()]).all()


def test_perfect_and_reversed_scores():
    best, worst = detection([0, 1, 2], [3, 4], resamples=50), detection([3, 4], [0, 1, 2], resamples=50)
    assert [interval.value for interval in best.values()] == [1, 0, 1, 1, 1]
    assert worst["auroc"].value == 0
    assert worst["fpr95"].value == 1
    assert worst["detection_accuracy"].value == 0.5


def test_no_interval_where_resamples_tell_nothing():
    """Sets that do not overlap, one image whose like was never drawn, two scores without a mistake."""
    for id_scores, shift_scores in (([0, 1, 2], [3, 4]), ([3, 4], [0, 1, 2]), ([0], [1]), ([1], [0, 2, 3])):
        got = detection(id_scores, shift_scores, resamples=50)
        assert np.isnan([got["auroc"].low, got["auroc"].high]).all()
    one = misclassification([1, 3, 2, 4, 2.5], [False, False, True, False, False], resamples=50)
    assert one["auroc"].value == 0.25
    assert np.isnan([one[name][1:] for name in MISCLASSIFICATION[:5]]).all()
    assert one["aurc"].low < one["aurc"].high
    lead = auroc_lead(([0, 1], [2, 3, 4]), ([0, 0], [3, 2, 4]))
    assert lead.value == 0
    assert np.isnan(lead[1:]).all()


@pytest.mark.parametrize(
    ("id_scores", "shift_scores", "message"),
    [
        ([], [1], "ID scores are empty"),
        ([1], [], "shifted scores are empty"),
        ([1, np.nan, np.inf], [1], r"2 of 3 ID scores are not finite \(first: image 1, nan\)"),
        ([1], [-np.inf], "1 of 1 shifted scores are not finite"),
        ([[1, 2]], [1], r"ID scores must be one number per image, got shape \[1, 2\]"),
    ],
)
def test_bad_scores_are_one_clear_line(id_scores, shift_scores, message):
    with pytest.raises(ValueError, match=message):
        detection(id_scores, shift_scores)


def test_errors_must_fit_the_scores():
    with pytest.raises(ValueError, match=r"errors must have shape \[2\]"):
        misclassification([1, 2], [True])


def test_misclassification_by_hand():
    got = values(misclassification([1, 2, 3, 4], [False, True, False, True], resamples=0))
    assert tuple(got) == MISCLASSIFICATION
    assert got["auroc"] == 0.75
    assert got["aurc"] == pytest.approx((0 + 1 / 2 + 1 / 3 + 2 / 4) / 4)
    assert got["eaurc"] == pytest.approx((0 + 1 / 2 + 1 / 3 + 2 / 4 - 0 - 0 - 1 / 3 - 2 / 4) / 4)
    assert got["aupr_error"] == average_precision_score([0, 1, 0, 1], [1, 2, 3, 4])
    assert got["aupr_success"] == average_precision_score([1, 0, 1, 0], [-1, -2, -3, -4])


def test_aurc_of_ties_is_the_mean_over_their_orders():
    pair = misclassification([1, 1], [False, True], resamples=0)
    assert pair["aurc"].value == pytest.approx(((0 + 1 / 2) + (1 + 1 / 2)) / 2 / 2)
    scores, errors = [1, 1, 1, 2, 2, 3, 4, 4, 4, 4], [0, 1, 0, 1, 0, 1, 1, 0, 1, 1]
    got = misclassification(scores, errors, resamples=0)["aurc"].value
    assert got == pytest.approx(slow_aurc(scores, errors), abs=0.005)


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(-5, 5), st.booleans()), min_size=1, max_size=25, unique_by=lambda pair: pair[0]))
def test_aurc_without_ties_is_the_mean_risk(pairs):
    scores, errors = map(np.array, zip(*pairs, strict=True))
    got = misclassification(scores, errors, resamples=0)
    assert got["aurc"].value == pytest.approx(risks(errors[scores.argsort()]), abs=1e-12)
    assert got["eaurc"].value == pytest.approx(risks(errors[scores.argsort()]) - risks(np.sort(errors)), abs=1e-12)


@pytest.mark.parametrize(("error", "aurc", "reason"), [(False, 0, "no error to find"), (True, 1, "no right one")])
def test_one_class_has_no_auroc_and_says_why(error, aurc, reason):
    errors = [error] * 5
    got = misclassification([1, 2, 3, 4, 5], errors, resamples=50)
    assert all(np.isnan(x) for x in got["auroc"])
    assert got["aurc"].value == pytest.approx(aurc)
    assert got["eaurc"].value == pytest.approx(0)
    assert np.isnan([*got["aurc"][1:], *got["eaurc"][1:]]).all()
    assert reason in why_undefined(errors)
    assert why_undefined([True, False]) is None


def test_a_resample_without_errors_leaves_auroc_defined():
    got = misclassification(np.arange(6.0), [0, 0, 0, 1, 0, 1], resamples=200)
    assert got["auroc"].low < got["auroc"].value == 0.875 < got["auroc"].high
    assert got["aurc"].low == 0


def test_a_resample_of_one_kind_counts_for_the_area_under_risk_alone():
    random = np.random.default_rng(2)
    scores, rare = random.normal(size=40), np.arange(40) < 2
    draws = np.concatenate(counts_of(40, 200, 70, 5, 2), axis=1).T
    for errors in (rare, ~rare):
        both = [w for w in draws if w[rare].any()]
        assert 10 < len(draws) - len(both) < 50
        got = misclassification(scores, errors, resamples=200, seed=5)
        loop = [slow_detection(*(np.repeat(scores, w * (errors == kind)) for kind in (False, True))) for w in both]
        for name, of in zip(MISCLASSIFICATION, DETECTION, strict=False):
            expected = tuple(np.quantile([one[of] for one in loop], [0.025, 0.975]))
            expected = expected if np.ptp(expected) else (np.nan, np.nan)
            assert got[name][1:] == pytest.approx(expected, abs=2e-5, nan_ok=True), name


@pytest.mark.parametrize("decimals", [0, 1, 8])
def test_bootstrap_of_detection_is_a_loop_over_the_same_draws(decimals):
    random = np.random.default_rng(1)
    low, high = random.normal(size=37).round(decimals), random.normal(1, 1, 53).round(decimals)
    draws = [np.concatenate(counts_of(n, 100, 70, 5, stream), axis=1) for stream, n in enumerate((37, 53))]
    loop = [slow_detection(np.repeat(low, i), np.repeat(high, s)) for i, s in zip(*(d.T for d in draws), strict=True)]
    got = detection(low, high, resamples=100, seed=5)
    for name in DETECTION:
        expected = np.quantile([one[name] for one in loop], [0.025, 0.975])
        assert got[name][1:] == pytest.approx(tuple(expected), abs=2e-5)


@pytest.mark.parametrize("decimals", [0, 8])
def test_bootstrap_of_misclassification_is_a_loop_over_the_same_draws(decimals):
    random = np.random.default_rng(2)
    errors = random.random(41) < 0.3
    scores = (random.normal(size=41) + errors).round(decimals)
    draws = np.concatenate(counts_of(41, 200, 70, 5, 2), axis=1).T
    loop = [values(misclassification(np.repeat(scores, w), np.repeat(errors, w), resamples=0)) for w in draws]
    got = misclassification(scores, errors, resamples=200, seed=5)
    for name in MISCLASSIFICATION:
        expected = np.quantile([one[name] for one in loop], [0.025, 0.975])
        assert got[name][1:] == pytest.approx(tuple(expected), abs=2e-5)


def test_width_of_the_parts_changes_nothing(monkeypatch):
    random = np.random.default_rng(3)
    low, high = random.normal(size=500), random.normal(1, 1, 400)
    whole = detection(low, high, resamples=200)
    monkeypatch.setattr(bootstrap, "_WORKING_SET", 1)
    assert detection(low, high, resamples=200) == whole


@pytest.mark.parametrize(("n", "m", "decimals"), [(20_000, 20_000, 8), (20_000, 20_000, 1), (50_000, 20, 8)])
def test_large_sets_stay_exact_enough(n, m, decimals):
    random = np.random.default_rng(4)
    low, high = random.normal(size=n).round(decimals), random.normal(1, 1, m).round(decimals)
    draws = [counts_of(size, 3, 64, 0, stream)[0] for size, stream in ((n, 0), (m, 1))]
    pair = metrics._Pair.of(low, high)
    single, double = (metrics._detection(pair, *draws, dtype) for dtype in (np.float32, np.float64))
    np.testing.assert_allclose(single, double, atol=bootstrap._ROUNDING)


def test_intervals_cover_the_truth_and_repeat():
    """Of 200 draws from N(0, 1) and N(1, 1), whose AUROC is 0.760, about 95 % of the intervals hold it."""
    random = np.random.default_rng(0)
    draws = [detection(random.normal(size=80), random.normal(1, 1, 80), resamples=300)["auroc"] for _ in range(200)]
    assert 0.9 <= np.mean([interval.low <= 0.76025 <= interval.high for interval in draws]) <= 0.99
    low, high = random.normal(size=80), random.normal(1, 1, 80)
    assert detection(low, high) == detection(low, high)
    assert detection(low, high, seed=1) != detection(low, high)


def test_a_thousand_resamples_of_twenty_thousand_scores_take_seconds():
    random = np.random.default_rng(0)
    low, high = random.normal(size=20_000), random.normal(1, 1, 20_000)
    start = time.perf_counter()
    detection(low, high)
    assert time.perf_counter() - start < 10


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.lists(st.integers(0, 5), min_size=1, max_size=30))
def test_auroc_alone_is_that_of_detection(known, shifted):
    assert metrics.auroc(known, shifted) == pytest.approx(metrics.detection(known, shifted, resamples=0)["auroc"].value)


def test_lead_is_the_difference_with_the_interval_of_delong():
    rng = np.random.default_rng(0)
    known, shifted = rng.normal(size=(2, 300)), rng.normal(0.7, size=(2, 200))
    known[1], shifted[1] = (known[0] + known[1]).round(1), (shifted[0] + shifted[1]).round(1)
    lead = auroc_lead((known[0], shifted[0]), (known[1], shifted[1]))
    assert lead.value == pytest.approx(metrics.auroc(known[0], shifted[0]) - metrics.auroc(known[1], shifted[1]))
    draws = []
    for _ in range(2000):
        i, j = rng.integers(300, size=300), rng.integers(200, size=200)
        draws.append(metrics.auroc(known[0][i], shifted[0][j]) - metrics.auroc(known[1][i], shifted[1][j]))
    sd = (lead.high - lead.low) / 2 / 1.959964
    assert sd == pytest.approx(np.std(draws), rel=0.08)
    above = (
        (known[0][:, None] < shifted[0]) * 1.0
        - (known[1][:, None] < shifted[1])
        - (known[1][:, None] == shifted[1]) / 2
    )
    by_hand = above.mean(0).var(ddof=1) / 200 + above.mean(1).var(ddof=1) / 300
    assert sd == pytest.approx(by_hand**0.5, rel=1e-9)
    same = auroc_lead((known[0], shifted[0]), (known[0] * 3, shifted[0] * 3))
    assert same.value == 0
    assert np.isnan(same[1:]).all()


@pytest.mark.parametrize(("sizes", "others"), [((4, 3), (3, 3)), ((3, 4), (3, 3)), ((1, 3), (1, 3)), ((3, 1), (3, 1))])
def test_a_lead_needs_the_same_images_and_two_of_each(sizes, others):
    first, second = (tuple(map(np.zeros, n)) for n in (sizes, others))
    with pytest.raises(ValueError, match="sizes differ" if sizes != others else "at least two"):
        auroc_lead(first, second)
