"""The torch path: every column once, the same bits with any number of threads, torch's settings untouched."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from sdsd_kernels import gamma_moments
from sdsd_kernels.gamma_moments import cpu, workers


@contextmanager
def torch_threads(count: int):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def in_new_thread(function):
    """What `function` returns in a thread that has not met torch before."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def moments(grads, per_sample: bool = True) -> Tensor:
    return cpu.gamma_moments(grads if isinstance(grads, list) else [grads], per_sample)


def oracle(grads: Tensor) -> dict[str, Tensor]:
    """The definition, in float64."""
    G = grads.double().reshape(grads.shape[0], -1)
    mean = G.mean(0)
    d = G - mean
    quads = G[: len(G) // 4 * 4].unflatten(0, (-1, 4))
    return {
        "signal": mean @ mean,
        "squares": (d * d).sum(),
        "deviations": (d * d).sum(1),
        "projections": d @ mean,
        "products": ((quads[:, 0] - quads[:, 1]) * (quads[:, 2] - quads[:, 3])).sum(1) / 2,
    }


def assert_right(grads: Tensor, per_sample: bool = True, tolerance: float = 2e-6) -> None:
    """Within `tolerance` of the definition, relative to sums in which nothing cancels."""
    wanted = oracle(grads)
    largest = wanted["deviations"].max().item()
    scales = dict.fromkeys(("deviations", "products"), largest)
    scales |= {"projections": max(largest * wanted["signal"].item(), largest**2 / 100) ** 0.5}
    scales |= {"signal": wanted["signal"].item(), "squares": wanted["squares"].item()}
    got = gamma_moments(grads, per_sample=per_sample, backend="torch")
    for name, value in got._asdict().items():
        if value is not None:
            error = (value[0] - wanted[name]).abs().max().item()
            assert error <= tolerance * scales[name], f"{name}: error {error:.3e}, scale {scales[name]:.3e}"


# One block in the calling thread; one in a worker; several; many, and a last one narrower than the others; rows beyond
# what is held at once, in one block of columns and in several.
SIZES = [(7, 311), (32, 2000), (33, 30_011), (130, 20_003), (1024, 700), (1500, 60), (2050, 1500)]


@pytest.mark.parametrize("offset", [0.1, 3.0, 3e3])
@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_every_size_is_right_and_the_same_with_any_number_of_threads(shape, offset):
    grads = torch.randn(shape) + offset * torch.randn(shape[1])
    for per_sample in (False, True):
        with torch_threads(2):
            assert_right(grads, per_sample)
            two = moments(grads, per_sample)
        for threads in (1, 3):
            with torch_threads(threads):
                assert torch.equal(moments(grads, per_sample), two)


@pytest.mark.parametrize("columns", [300, 10_000])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes_in_both_orders_of_memory(dtype, columns):
    grads = (torch.randn(120, columns) + 0.3).to(dtype)
    # Squares of numbers of so few bits are rounded alike when they are added to a large sum: errors add up, up to half
    # a unit in the last place an addition.
    tolerance = 1e-13 if dtype == torch.float64 else max(2e-6, columns * 2**-24)
    with torch_threads(2):
        assert_right(grads, tolerance=tolerance)
        assert_right(grads.t().contiguous().t(), tolerance=tolerance)
        assert_right(grads[:, ::2], tolerance=tolerance)


def test_both_orders_of_memory_where_the_mean_is_large():
    grads = torch.randn(40, 30_000) + 50
    with torch_threads(2):
        assert_right(grads)
        assert_right(grads.t().contiguous().t())


def test_each_column_weighs_once():
    """A column of its own scale in every block: dropping or doubling any shows."""
    grads = torch.zeros(32, 400_000)
    for column in range(0, 400_000, 977):
        grads[:, column] = torch.randn(32)
        grads[:, column] *= 1 + column % 13
    with torch_threads(2):
        assert_right(grads)


def test_pieces_hold_every_column_once():
    for shape in [(2, 1), (2, 3_000_000), (32, 4_000_000), (100, 70_001), (1024, 5000), (65_536, 300)]:
        matrix = torch.empty(shape, device="meta")
        pieces = list(cpu._pieces_of(matrix, 0))
        assert len(pieces) <= cpu.PIECES_AT_MOST
        assert [piece.start for piece in pieces] == [0, *(piece.stop for piece in pieces[:-1])]
        assert pieces[-1].stop == shape[1]
        held = min(shape[0], cpu.MAX_RESIDENT_ROWS) * pieces[0].width * 4
        assert held <= cpu.BLOCK_BYTES
        tasks = cpu._tasks_of(pieces)
        assert [piece for task in tasks for piece in task] == pieces
        assert all(sum(piece.elements for piece in task) >= cpu.TASK_ELEMENTS for task in tasks[:-1])


@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1e18, 1e30])
def test_blocks_outside_the_safe_range_are_redone_in_float64(scale):
    grads = torch.randn(32, 50_000)
    grads[:, 20_000:30_000] *= scale
    with torch_threads(2):
        assert_right(grads)
        assert_right(grads[:, 20_000:30_000].contiguous())


def test_list_is_shared_out_as_single_tensors_are():
    entries = [torch.randn(9, *shape) + 0.2 for shape in [(3,), (40, 50), (100_000,), (7,), (300, 300), (2, 2)]]
    entries[3][2, 5] = float("nan")
    with torch_threads(2):
        together = moments(entries)
        for row, entry in zip(together, entries, strict=True):
            assert torch.equal(row.nan_to_num(-1), moments(entry)[0].nan_to_num(-1))
    assert together[:, 1].isnan().tolist() == [False, False, False, True, False, False]


def test_gradients_that_nearly_agree_have_no_negative_deviation():
    grads = torch.randn(32, 3000)
    grads[5] = grads[torch.arange(32) != 5].sum(0) / 31  # the mean itself
    found = gamma_moments(grads, per_sample=True, backend="torch")
    assert (found.deviations >= 0).all()


class TestThreads:
    def test_torch_keeps_its_numbers_of_threads(self):
        with torch_threads(3):
            grads = torch.randn(32, 30_000)
            for _ in range(20):
                workers._pools.clear()  # so that threads start within this test
                moments(grads)
                assert in_new_thread(torch.get_num_threads) == 3
            assert 3 in workers._pools
            assert torch.get_num_threads() == 3
        with torch_threads(2):
            moments(grads)
            assert torch.get_num_threads() == 2
            assert in_new_thread(torch.get_num_threads) == 2

    def test_every_task_runs_single_threaded_and_several_threads_take_part(self):
        seen = []
        meeting = threading.Barrier(2, timeout=30)

        def start():
            def perform(task):
                if task < 2:
                    meeting.wait()  # neither gets on without the other
                seen.append((threading.get_ident(), torch.get_num_threads()))
                return task * task

            return perform

        with torch_threads(2):
            assert workers.run_tasks(range(40), start, threads=2) == [task * task for task in range(40)]
        assert len({thread for thread, _ in seen}) == 2
        assert threading.get_ident() not in {thread for thread, _ in seen}
        assert {count for _, count in seen} == {1}
        assert len(seen) == 40

    @pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no threads are kept to cores on this system")
    def test_threads_have_cores_of_their_own_among_the_callers(self, monkeypatch):
        allowed = {3, 5, 8, 9}
        given: dict[int, set[int]] = {}
        monkeypatch.setattr(os, "sched_getaffinity", lambda thread: set(allowed))
        monkeypatch.setattr(os, "sched_setaffinity", lambda thread, cores: given.update({thread: set(cores)}))

        def meet():
            meeting = threading.Barrier(2, timeout=30)

            def start():
                def perform(task):
                    if task < 2:
                        meeting.wait()
                    return threading.get_native_id()

                return perform

            given.clear()
            return set(workers.run_tasks(range(8), start, threads=2))

        workers._pools.clear()
        at_work = meet()
        assert set(given) == at_work
        assert sorted(given.values(), key=min) == [{3, 8}, {5, 9}]
        meet()
        assert not given  # nothing has changed
        allowed = {3, 7}
        meet()
        assert sorted(given.values(), key=min) == [{3}, {7}]
        allowed = {7}
        meet()
        assert list(given.values()) == [{7}, {7}]
        workers._pools.clear()

    def test_a_slow_thread_leaves_its_tasks_to_the_other(self):
        done: dict[int, int] = {}
        release = threading.Event()

        def start():
            def perform(task):
                done[task] = threading.get_ident()
                if task == 0:
                    assert release.wait(30)
                elif len(done) == 20:
                    release.set()

            return perform

        workers.run_tasks(range(20), start, threads=2)
        assert list(done.values()).count(done[0]) == 1

    @pytest.mark.parametrize("threads", [1, 2])
    def test_an_exception_reaches_the_caller_and_ends_the_rest(self, threads):
        performed = []

        def start():
            def perform(task):
                performed.append(task)
                if task == 3:
                    raise MemoryError("no more")
                time.sleep(0.001)

            return perform

        with torch_threads(2), pytest.raises(MemoryError, match="no more"):
            workers.run_tasks(range(1000), start, threads=threads)
        assert len(performed) < 100
        with torch_threads(2):
            assert in_new_thread(torch.get_num_threads) == 2
            assert_right(torch.randn(32, 30_000))

    def test_an_interrupt_waits_for_no_more_than_the_tasks_at_hand(self, request):
        # A shell lets what it runs in the background ignore the signal.
        request.addfinalizer(functools.partial(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT)))
        signal.signal(signal.SIGINT, signal.default_int_handler)
        performed = []

        def start():
            def perform(task):
                performed.append(task)
                if task == 3:
                    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
                time.sleep(0.001)

            return perform

        with torch_threads(2):
            with pytest.raises(KeyboardInterrupt):
                workers.run_tasks(range(1000), start, threads=2)
            after = len(performed)
            time.sleep(0.02)
            assert len(performed) == after < 1000
            assert torch.get_num_threads() == 2
            assert in_new_thread(torch.get_num_threads) == 2

    def test_several_callers_at_once(self):
        inputs = [torch.randn(32, 20_000 + 1000 * k) for k in range(6)]
        with torch_threads(2):
            wanted = [moments(grads) for grads in inputs]
            with ThreadPoolExecutor(6) as pool:
                for _ in range(5):
                    assert all(map(torch.equal, pool.map(moments, inputs), wanted))
            assert torch.get_num_threads() == 2
            assert in_new_thread(torch.get_num_threads) == 2

    def test_small_inputs_stay_in_the_calling_thread(self, monkeypatch):
        def refuse(threads):
            raise AssertionError("a thread was asked for")

        monkeypatch.setattr(workers, "_pool", refuse)
        with torch_threads(2):
            moments([torch.randn(32, 500), torch.randn(32, 500)])
            with pytest.raises(AssertionError, match="a thread was asked for"):
                moments(torch.randn(32, 2000))
        with torch_threads(1):
            moments(torch.randn(32, 2000))

    def test_no_new_thread_can_be_had(self, monkeypatch):
        monkeypatch.setattr(workers, "_pool", lambda threads: None)
        with torch_threads(2):
            assert_right(torch.randn(32, 30_000))

    def test_threads_that_cannot_be_started_leave_the_settings(self, monkeypatch):
        real_start, started = threading.Thread.start, []

        def few(thread):
            started.append(thread)
            if len(started) == 3:  # the one that starts the others, the first of those, and no more
                raise RuntimeError("can't start new thread")
            real_start(thread)

        workers._pools.clear()
        with torch_threads(2):
            monkeypatch.setattr(threading.Thread, "start", few)
            assert_right(torch.randn(32, 30_000), per_sample=False)
            monkeypatch.undo()
            assert len(started) >= 3
            assert in_new_thread(torch.get_num_threads) == 2
            assert_right(torch.randn(32, 30_000))

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
    def test_a_forked_child_starts_its_own_threads(self):
        program = """
import os, threading, torch
from sdsd_kernels import gamma_moments
torch.set_num_threads(2)
grads = torch.randn(32, 30_000)
wanted = gamma_moments(grads, backend="torch").squares.item()
child = os.fork()
if child == 0:
    found = gamma_moments(grads, backend="torch").squares.item()
    fresh = []
    thread = threading.Thread(target=lambda: fresh.append(torch.get_num_threads()))
    thread.start(); thread.join()
    os._exit(0 if found == wanted and torch.get_num_threads() == 2 and fresh == [2] else 1)
assert os.waitpid(child, 0)[1] == 0
"""
        subprocess.run([sys.executable, "-c", program], check=True, timeout=60)

    def test_at_exit_too(self):
        program = """
import atexit, torch
from sdsd_kernels import gamma_moments
torch.set_num_threads(2)
grads = torch.randn(32, 30_000)
wanted = gamma_moments(grads, backend="torch").squares.item()
atexit.register(lambda: print(gamma_moments(grads, backend="torch").squares.item() / wanted - 1))
"""
        done = subprocess.run([sys.executable, "-c", program], check=True, timeout=60, capture_output=True, text=True)
        assert abs(float(done.stdout)) < 1e-6, done.stderr


@pytest.mark.parametrize("columns", [300, 30_000])
def test_modes_of_the_calling_thread_change_nothing(columns):
    grads = torch.randn(32, columns) + 0.3
    with torch_threads(2):
        wanted = moments(grads)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(moments(grads), wanted)
        with torch.inference_mode():
            assert torch.equal(moments(grads), wanted)
            assert torch.equal(moments(grads.clone()), wanted)
        with torch.device("meta"):
            assert torch.equal(moments(grads), wanted)
        torch.set_default_dtype(torch.float64)
        try:
            assert torch.equal(moments(grads), wanted)
        finally:
            torch.set_default_dtype(torch.float32)
        needs = gamma_moments(grads.requires_grad_(), per_sample=True, backend="torch")
        assert torch.equal(needs.deviations, wanted[:, 2:34])
        assert not needs.squares.requires_grad


@pytest.mark.parametrize("columns", [300, 30_000])
def test_autocast_is_off_wherever_a_block_is_worked_on(columns, monkeypatch):
    """No operation used here is lowered on the CPU; on other devices the products are."""
    real, seen = cpu.Blocks._sums, []

    def watched(blocks, *block):
        seen.append(torch.is_autocast_enabled("cpu"))
        return real(blocks, *block)

    monkeypatch.setattr(cpu.Blocks, "_sums", watched)
    with torch_threads(2), torch.autocast("cpu", torch.bfloat16):
        moments(torch.randn(32, columns))
    assert seen
    assert not any(seen)
