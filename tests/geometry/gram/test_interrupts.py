"""An interrupted call is none or whole."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from torch import Tensor

from sdsd.geometry.gram import accumulator, adding, checkpoints, layout, results, sums
from sdsd.geometry.gram.accumulator import GramAccumulator

from .streams import bits, least_bytes, streamed

FITS = 4
"""Samples that wait or are converted together."""


def prepared(more: int = 5, center: bool = True) -> tuple[GramAccumulator, Tensor]:
    """One that has seen two samples and has three waiting, and the next batch, which changes the scale of a neuron."""
    x = torch.randn(5 + more, 4, generator=torch.Generator().manual_seed(3))
    x[5:, 2] *= 1e30
    gram = GramAccumulator(4, center=center, max_bytes=FITS * least_bytes(4))
    gram.update(x[:2])
    gram.update(x[2:5])
    assert (gram._sums.samples, gram._sums.waiting) == (2, 3)
    return gram, x[5:]


FILES = {module.__file__ for module in (accumulator, adding, checkpoints, layout, results, sums)}


def interrupt_at(line: int, call) -> bool:
    """Run `call` and raise KeyboardInterrupt before the given line event of `FILES`; False if it ended before."""
    seen = 0

    def trace(frame, event, argument):
        nonlocal seen
        if frame.f_code.co_filename not in FILES:
            return None
        if event == "line":
            seen += 1
            if seen == line:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("samples", [5, 3])
def test_an_interrupted_update_is_none_or_whole(center, samples):
    """Every line of these files that an update runs is interrupted once. Five samples are two parts; three wait."""
    gram, more = prepared(samples, center)
    before = bits(copy.deepcopy(gram))
    gram.update(more)
    after = bits(gram)
    line, seen = 1, set()
    while True:
        gram, more = prepared(samples, center)
        if not interrupt_at(line, lambda gram=gram, more=more: gram.update(more)):
            break
        whole = gram.samples == 5 + samples
        seen.add(whole)
        assert bits(copy.deepcopy(gram)) == (after if whole else before), f"line event {line}"
        if not whole:
            gram.update(more)
            assert bits(gram) == after, f"line event {line}"
        line += 1
    assert line > 100
    assert seen == {False, True}


@pytest.mark.parametrize("call", ["merge", "load", "cosine"])
def test_other_calls_are_none_or_whole(call):
    other = streamed(torch.ones(3, 4), 3, center=True)

    def run(gram: GramAccumulator) -> None:
        if call == "merge":
            gram.merge(other)
        elif call == "load":
            gram.load_state_dict(other.state_dict())
        else:
            gram.cosine_matrix()

    gram, _ = prepared()
    before = bits(copy.deepcopy(gram))
    run(gram)
    after = bits(gram)
    line = 1
    while True:
        gram, _ = prepared()
        if not interrupt_at(line, lambda gram=gram: run(gram)):
            break
        assert bits(gram) in (before, after), f"line event {line}"
        line += 1
    assert line > 50


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_progress_may_stop_an_update(error):
    gram = GramAccumulator(1100, max_bytes=64 * least_bytes(1100))
    x = torch.randn(80, 1100)
    gram.update(x[:30])
    before = gram.cosine_matrix()

    def stop(done: int, total: int) -> None:
        if done == total - 1:
            raise error

    with pytest.raises(error):
        gram.update(x, progress=stop)
    assert gram.samples == 30
    assert torch.equal(gram.cosine_matrix(), before)


def test_progress_counts_up_to_the_end(capsys):
    gram = GramAccumulator(600, max_bytes=50 * least_bytes(600))
    for call in (
        lambda progress: gram.update(torch.randn(120, 600), progress=progress),
        lambda progress: gram.update(torch.randn(1, 600), progress=progress),
        lambda progress: gram.cosine_matrix(progress=progress),
    ):
        steps: list[tuple[int, int]] = []
        call(lambda done, total, steps=steps: steps.append((done, total)))
        assert steps[-1][0] == steps[-1][1]
        assert [done for done, _ in steps] == sorted({done for done, _ in steps})
        assert len({total for _, total in steps}) == 1
    gram.cosine_matrix(progress=True)
    assert capsys.readouterr().err.endswith("GramAccumulator.cosine_matrix: 600/600\n")
    for progress in (None, 3, "yes"):
        with pytest.raises(TypeError, match="progress: expected True, False or a function"):
            gram.update(torch.randn(2, 600), progress=progress)
