"""The torch path of cosine_topk where several threads take blocks: same bits, modes, errors, interruptions."""

from __future__ import annotations

import functools
import signal
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sdsd_kernels import _workers
from sdsd_kernels.cosine_topk import cpu
from sdsd_kernels.cosine_topk.op import cosine_topk

from .moments_cpu import torch_threads
from .nearest import check, exact_scores, near, signs

SMALL_BLOCKS = {"BLOCK": (24, 32), "GROUP": 8, "COLUMN_GROUP": 4, "STRIP_ELEMENTS": {"cpu": 900}}


def nearest(x: Tensor, k: int, threads: int, **options) -> tuple[Tensor, Tensor]:
    with torch_threads(threads):
        return cosine_topk(x, k, backend="torch", **options)


@pytest.fixture
def small_blocks(monkeypatch):
    for name, value in SMALL_BLOCKS.items():
        monkeypatch.setattr(cpu, name, value)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.data())
def test_lists_do_not_depend_on_the_order_of_offers(data):
    """Equal scores come out by place, whichever block was first: each is offered once, in any order."""
    rows, columns = data.draw(st.integers(1, 12)), 8 * data.draw(st.integers(1, 12))
    k, values = data.draw(st.integers(1, 9)), data.draw(st.sampled_from([2, 3, 9]))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    scores = torch.randint(0, values, (rows, columns), generator=generator) / 8
    scores[torch.rand(scores.shape, generator=generator) < 0.3] = -torch.inf
    width = data.draw(st.sampled_from([8, 16, 40]))
    starts = data.draw(st.permutations(range(0, columns, width)))
    lie_by_row = data.draw(st.booleans())
    best = cpu.TopK(rows + 3, k, scores, data.draw(st.sampled_from([0, 20, 1000])))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "GROUP", 8)
        patch.setattr(cpu, "COLUMN_GROUP", 4)
        for start in starts:
            some = scores[:, start : start + width]
            best.offer((3, some.contiguous() if lie_by_row else some.T.contiguous().T, start))
        best.merge()
    found, places = cpu.cosines_of(best.values, best.indices, farthest=False)
    wanted, order = scores.sort(dim=1, descending=True, stable=True)
    missing = wanted[:, :k] == -torch.inf
    there = min(k, columns)
    assert torch.equal(places[3:, :there], order[:, :k].masked_fill(missing, -1))
    assert torch.equal(found[3:, :there].nan_to_num(7), wanted[:, :k].masked_fill(missing, 7))
    assert (places[:3] == -1).all()
    assert (places[:, there:] == -1).all()


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize(
    ("k", "options"),
    [
        (3, {}),
        (3, {"farthest": True}),
        (3, {"center": True}),
        (12, {}),
        (40, {}),  # whole rows
        (5, {"other": signs(150, 9, seed=3)}),
    ],
)
def test_any_number_of_threads_gives_the_same_bits(threads, k, options, small_blocks):
    tied, other = signs(300, 9, seed=1), options.get("other")
    for _ in range(2):
        found = nearest(tied, k, threads, **options)
        check(found, exact_scores(tied, other, center=options.get("center", False)), k, "farthest" in options, 1e-6)
        for one, several in zip(nearest(tied, k, 1, **options), found, strict=True):
            assert torch.equal(one, several)
    for x in (
        torch.randn(9, 300),
        torch.randn(9, 300).half(),
        torch.randn(9, 300) * 1e25,
        torch.randn(9, 300).double(),
    ):
        about = options | ({} if other is None else {"other": other.to(x.dtype)})
        for one, several in zip(nearest(x, k, 1, **about), nearest(x, k, threads, **about), strict=True):
            assert torch.equal(one, several)


def test_panels_are_converted_in_memory_of_each_thread(small_blocks, monkeypatch):
    monkeypatch.setattr(cpu, "UNIT_BYTES", 0)
    x = torch.randn(500, 300).half()
    wanted = nearest(x, 3, 1)
    for _ in range(3):
        assert all(map(torch.equal, nearest(x, 3, 2), wanted))


def test_blocks_of_full_size():
    x = torch.randn(12, 8500)
    x[:, 8100:8150] = x[:, :50]
    one, several = nearest(x, 5, 1), nearest(x, 5, 2)
    assert torch.equal(one[0], several[0])
    assert torch.equal(one[1], several[1])
    assert (several[1][:50, 0] == torch.arange(8100, 8150)).all()


def test_several_threads_take_blocks(small_blocks, monkeypatch):
    meeting, seen = threading.Barrier(2, timeout=30), set()
    offer = cpu.TopK.offer

    def watched(self, *looks):
        if len(seen) < 2:
            seen.add((threading.get_ident(), torch.get_num_threads()))
            meeting.wait()  # neither gets on without the other
        offer(self, *looks)

    monkeypatch.setattr(cpu.TopK, "offer", watched)
    nearest(torch.randn(9, 300), 3, 2)
    assert len(seen) == 2
    assert threading.get_ident() not in {thread for thread, _ in seen}
    assert {count for _, count in seen} == {1}


def test_who_stays_in_the_calling_thread(small_blocks, monkeypatch):
    def refuse(threads):
        raise AssertionError("a thread was asked for")

    monkeypatch.setattr(_workers, "_pool", refuse)
    x = torch.randn(9, 300)
    nearest(x, 3, 1)
    nearest(x, 3, 2, max_bytes=2**26)
    nearest(x[:, :64], 3, 2)  # few blocks
    monkeypatch.setattr(cpu, "SHARED_SAMPLES", 8)
    nearest(x, 3, 2)
    with pytest.raises(AssertionError, match="a thread was asked for"):
        nearest(x[:8], 3, 2)


def test_modes_of_the_calling_thread_change_nothing(small_blocks):
    x = torch.randn(9, 300)
    wanted = nearest(x, 3, 2)

    def same(**options):
        return all(map(torch.equal, nearest(x, 3, 2, **options), wanted))

    with torch.autocast("cpu", torch.bfloat16):
        assert same()
    with torch.inference_mode():
        assert same()
        assert all(map(torch.equal, nearest(x.clone(), 3, 2), wanted))
    x.requires_grad_()
    assert same()
    assert same(progress=lambda done, total: None)
    torch.set_float32_matmul_precision("medium")
    try:
        assert same()
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_progress_is_told_in_the_calling_thread(small_blocks):
    steps, tellers = [], set()

    def tell(done, total):
        steps.append((done, total))
        tellers.add(threading.get_ident())

    nearest(torch.randn(9, 300), 3, 2, progress=tell)
    total = steps[0][1]
    assert steps == [(done, total) for done in range(1, total + 1)]
    assert tellers == {threading.get_ident()}


def test_an_exception_in_a_thread_reaches_the_caller(small_blocks, monkeypatch):
    taken = []
    offer = cpu.TopK.offer

    def fail(self, *looks):
        taken.append(looks[0][0])
        if len(taken) == 5:
            raise MemoryError("no more")
        offer(self, *looks)

    x = torch.randn(9, 400)
    with monkeypatch.context() as patch:
        patch.setattr(cpu.TopK, "offer", fail)
        with pytest.raises(MemoryError, match="no more"):
            nearest(x, 3, 2)
    assert len(taken) < 100
    check(nearest(x, 3, 2), exact_scores(x), 3, False, near(x))


@pytest.mark.parametrize("how", ["signal", "progress"])
def test_an_interruption_ends_the_call(how, small_blocks, monkeypatch, request):
    # A shell lets what it runs in the background ignore the signal.
    request.addfinalizer(functools.partial(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT)))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    taken = []
    offer = cpu.TopK.offer

    def watched(self, *looks):
        taken.append(looks[0][0])
        if how == "signal" and len(taken) == 5:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        offer(self, *looks)

    def interrupt(done, total):
        raise KeyboardInterrupt

    x = torch.randn(9, 800)
    with monkeypatch.context() as patch:
        patch.setattr(cpu.TopK, "offer", watched)
        with pytest.raises(KeyboardInterrupt):
            nearest(x, 3, 2, progress=interrupt if how == "progress" else None)
        after = len(taken)
        assert after < 400
    check(nearest(x, 3, 2), exact_scores(x), 3, False, near(x))
    assert len(taken) == after
