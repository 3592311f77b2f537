"""Threads that take tasks, and modes of the thread that calls."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from sdsd_kernels import _workers as workers
from sdsd_kernels import gamma_moments
from sdsd_kernels.gamma_moments import cpu

from .moments_cpu import assert_right, moments, torch_threads


def in_new_thread(function):
    """What `function` returns in a thread that has not met torch before."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


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

    @pytest.mark.parametrize("threads", [1, 2])
    def test_progress_is_told_in_the_calling_thread_and_may_end_the_call(self, threads):
        steps, performed = [], []

        def start():
            return performed.append

        def tell(done, total):
            steps.append((done, total, threading.get_ident()))
            if done == stop:
                raise KeyError("enough")

        with torch_threads(2):
            stop = None
            workers.run_tasks(range(30), start, threads=threads, progress=tell)
            assert steps == [(done, 30, threading.get_ident()) for done in range(1, 31)]
            stop = 3
            with pytest.raises(KeyError, match="enough"):
                workers.run_tasks(range(10**6), start, threads=threads, progress=tell)
            after = len(performed)
            time.sleep(0.02)
            assert len(performed) == after < 10**6

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
        gamma_moments(torch.randn(32, columns), backend="torch")
    assert seen
    assert not any(seen)
