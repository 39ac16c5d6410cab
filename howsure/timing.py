"""What a method costs on its own, end to end, compared with a plain forward pass timed at the same time."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import accumulate
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from .contained import contained
from .extract import Extractor
from .forward import run_pass
from .method import Method
from .network import Network
from .representations import Logits
from .split import Loaded

REPEATS = 5


def time_method(
    method: Method, fit: Callable[[], dict[str, Tensor]], network: Network, loaded: list[Loaded], extractor: Extractor
) -> dict[str, Any]:
    """A row of `timing.csv`.

    `fit_s`: seconds that `fit` takes on stored representations. `ms_per_image`: milliseconds from normalised images in
    memory to scores, median of five runs. `ratio_to_forward`: the time of a run over that of a plain forward pass right
    before it, median of five. `peak_mb`: the peak memory of tensors in 10^6 bytes, with batches of `batch_size`.
    """
    start = time.perf_counter()
    state = fit()
    fit_s = time.perf_counter() - start
    states = {rep: extractor.state(rep) for rep in method.needs if rep.needs}

    def score() -> Tensor:
        reps = run_pass(network, loaded, method.needs, states)
        with contained():
            return method.score(reps, **state)

    def forward() -> object:
        return run_pass(network, loaded, (Logits(),))

    score()
    peak = peak_memory(network.device, score)
    pairs = [(_seconds(forward, network.device), _seconds(score, network.device)) for _ in range(REPEATS)]
    n = sum(len(images) for images, _, _ in loaded)
    return {
        "backbone": network.name,
        "device": str(network.device),
        "fit_s": round(fit_s, 4),
        "ms_per_image": round(1000 * median(s for _, s in pairs) / n, 5),
        "ratio_to_forward": round(median(s / f for f, s in pairs), 3),
        "peak_mb": round(peak / 1e6, 1),
        "n_images": n,
        "batch_size": len(loaded[0][0]),
    }


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(device: torch.device, work: Callable[[], object]) -> int:
    """The most bytes that tensors created by `work` take at once."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as record:
        work()
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    return max(accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())), default=0)
