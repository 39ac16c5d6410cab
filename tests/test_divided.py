import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from howsure import Representation
from howsure import divided as module
from howsure.check import networks
from howsure.divided import divided, packed, processes, unpacked
from howsure.extract import Extractor
from howsure.forward import run_pass
from howsure.images import ArrayImages
from howsure.split import Split, batches

from .test_extract import EVERYTHING

HERE = os.getpid()
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """Do not wait a second before other processes are used."""
    monkeypatch.setattr(module, "_SHORT", 0.0)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def ended(pid: int) -> bool:
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize(("n", "items", "here"), [(2, 40, 1), (3, 7, 1), (2, 5, 1), (2, 4, 4), (2, 0, 0), (1, 20, 20)])
def test_all_items_come_in_order_and_but_the_first_from_other_processes(n, items, here):
    found = list(divided(lambda i: (i, os.getpid()), range(items), n))
    assert [i for i, _ in found] == list(range(items))
    assert sum(pid == HERE for _, pid in found) == here
    assert len({pid for _, pid in found if pid != HERE}) <= n


def test_a_short_pass_stays_in_one_process(monkeypatch):
    monkeypatch.setattr(module, "_SHORT", 60.0)
    assert set(divided(lambda i: os.getpid(), range(50), 2)) == {HERE}


def test_other_processes_know_what_was_learned_before(two_threads):
    learned = []

    def work(i):
        learned.append(i)
        return learned[0], torch.get_num_threads()

    assert list(divided(work, range(20), 2)) == [(0, 2)] + [(0, 1)] * 19


def test_items_are_read_a_few_ahead():
    read = []

    def items():
        for i in range(100):
            read.append(i)
            yield i

    for i in divided(lambda i: i, items(), 2):
        assert len(read) <= i + 5


@given(
    st.sampled_from(
        [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.complex64]
    ),
    st.lists(st.integers(0, 4), max_size=4),
    st.randoms(),
)
def test_tensors_arrive_as_they_were(dtype, shape, random):
    value = (10 * torch.randn([n + 1 for n in shape])).to(dtype)[tuple(slice(n) for n in shape)]
    value = value.permute(random.sample(range(value.dim()), value.dim()))
    (found,), none = unpacked(packed(([value.requires_grad_(dtype == torch.float32)], None)))
    assert none is None
    assert found.dtype == dtype
    assert not found.requires_grad
    torch.testing.assert_close(found, value.detach(), rtol=0, atol=0)
    found.zero_()  # it can be written to


def test_of_a_part_of_a_tensor_only_that_is_sent():
    assert len(packed(torch.zeros(1000, 1000)[3:4, :10])) < 1000


def test_an_error_is_raised_after_the_items_before_it_and_shows_its_place():
    def work(i):
        if i == 7:
            raise KeyError("seven")
        return i

    found = divided(work, range(20), 2)
    assert [next(found) for _ in range(7)] == list(range(7))
    with pytest.raises(KeyError, match="seven") as error:
        next(found)
    assert str(error.traceback[-1].path) == __file__


def test_what_fails_in_other_processes_alone_is_done_here():
    def work(i):
        if i > 5 and os.getpid() != HERE:
            raise SystemExit("not here")
        return i

    assert list(divided(work, range(30), 2)) == list(range(30))


def test_if_a_process_is_killed_nothing_is_lost(capsys):
    def work(i):
        if i == 7 and os.getpid() != HERE:
            os.kill(os.getpid(), signal.SIGKILL)
        return i

    assert list(divided(work, range(30), 2)) == list(range(30))
    assert capsys.readouterr().err.count("a process was killed") == 1


def test_without_memory_for_processes_one_does_all(monkeypatch):
    def fork():
        raise OSError("no memory")

    monkeypatch.setattr(os, "fork", fork)
    assert list(divided(lambda i: (i, os.getpid()), range(20), 2)) == [(i, HERE) for i in range(20)]


def test_an_error_in_reading_is_not_taken_for_the_end():
    def items():
        yield from range(12)
        raise OSError("cannot read")

    with pytest.raises(OSError, match="cannot read"):
        list(divided(lambda i: i, items(), 2))


def test_an_interruption_ends_the_other_processes():
    start = time.monotonic()
    found = divided(lambda i: (os.getpid(), time.sleep(100 if i > 4 else 0)), range(20), 2)
    pids = {next(found)[0] for _ in range(4)} - {HERE}
    found.close()
    assert pids
    assert all(map(ended, pids))
    assert time.monotonic() - start < 50


def test_processes_end_with_a_parent_that_is_killed():
    code = """
import os, time
from howsure import divided as module
module._SHORT = 0
found = module.divided(lambda i: (os.getpid(), time.sleep(1000 if i > 4 else 0)), range(20), 2)
print(*[next(found)[0] for _ in range(4)][1:], flush=True)
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, timeout=100)
    assert done.returncode == -signal.SIGKILL
    pids = {int(pid) for pid in done.stdout.split()}
    assert pids
    assert all(map(ended, pids))


@pytest.mark.parametrize("which", [0, 1])
def test_a_divided_pass_gives_the_same(which):
    network = networks()[which]
    pixels = np.random.default_rng(0).integers(0, 256, (40, *network.input.size, 3), dtype=np.uint8)
    split = Split("some", ArrayImages(pixels, np.arange(40) % 4))
    counts: list[int] = []
    want = run_pass(network, batches(split, network, 3), EVERYTHING)
    each = partial(divided, n=2)
    reps = run_pass(network, batches(split, network, 3), EVERYTHING, progress=counts.append, each=each)
    assert counts == [3] * 13 + [1]
    for rep in EVERYTHING:
        for key, value in rep.pack(want[rep]).items():
            torch.testing.assert_close(rep.pack(reps[rep])[key], value)


@dataclass(frozen=True)
class Process(Representation):
    """The process that computes it, and how many images together."""

    def compute(self, batch, **state):
        return torch.tensor([[os.getpid(), len(batch.images)]] * len(batch.images))


def test_suites_divide_their_passes(monkeypatch, two_threads, conv_net):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    pixels = np.random.default_rng(0).integers(0, 256, (256 * 6, *conv_net.input.size, 3), dtype=np.uint8)
    split = Split("some", ArrayImages(pixels, np.zeros(len(pixels), int)))
    pids, sizes = Extractor(conv_net, None, split)(split, (Process(),))[Process()].T
    assert len(set(pids.tolist())) == 3 if sys.platform == "linux" else 1
    assert set(sizes.tolist()) == {256}


@pytest.mark.parametrize(
    ("platform", "device", "accelerator", "threads", "want"),
    [("linux", "cpu", False, 2, 2), ("linux", "cpu", False, 64, 8), ("linux", "cpu", False, 1, 1),
     ("linux", "cpu", False, 8, 8), ("linux", "cpu", False, 12, 6), ("linux", "cpu", False, 9, 4),
     ("linux", "cpu", True, 2, 1), ("linux", "cuda", True, 2, 1), ("darwin", "cpu", False, 2, 1)],
)  # fmt: skip
def test_where_passes_are_divided(monkeypatch, platform, device, accelerator, threads, want):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: accelerator)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert processes(torch.device(device)) == want
