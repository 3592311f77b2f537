"""The ten nearest of more and more neurons: how time and memory of `neuron_neighbors` grow.

    python -m benchmarks.scaling 25000 50000 100000

Each size is one call in a process of its own, on one thread, after a small call that loads what it needs. The largest
takes minutes, so `make bench` leaves it out.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import torch

import sdsd

from .harness import ROOT, _status_bytes

SAMPLES = 256
K = 10
CHECKED = 64
"""Rows compared with a search in float64."""


def check(rows: torch.Tensor, found: sdsd.geometry.NeuronNeighbors) -> None:
    """AssertionError where neighbours of some neurons are not those that float64 finds."""
    some = torch.linspace(0, len(rows) - 1, CHECKED).long()
    exact = torch.nn.functional.normalize(rows.double(), dim=1)
    cosine = exact[some] @ exact.T
    cosine[torch.arange(CHECKED), some] = -torch.inf
    for error in (
        found.values[some] - cosine.topk(K).values,
        found.values[some] - cosine.gather(1, found.indices[some]),
    ):
        assert error.abs().max() <= 1e-5, f"largest error {error.abs().max():.3g}, expected at most 1e-05"


def measure(neurons: int) -> dict[str, float]:
    """Seconds, bytes the call added, and bytes of the whole process at its peak."""
    torch.set_num_threads(1)
    rows = torch.randn(neurons, SAMPLES, generator=torch.Generator().manual_seed(0))
    sdsd.neuron_neighbors(rows[:3000], K, neuron_dim=0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak, VmHWM
    before, started = _status_bytes("VmRSS"), time.perf_counter()
    found = sdsd.neuron_neighbors(rows, K, neuron_dim=0)
    seconds, peak = time.perf_counter() - started, _status_bytes("VmHWM")
    check(rows, found)
    return {"seconds": seconds, "added": peak - before, "process": peak}


def main(sizes: list[int]) -> None:
    print("| neurons × samples | time | time / n² | memory added | whole process |\n|---|---|---|---|---|")
    for size in sizes:
        command = [sys.executable, "-m", "benchmarks.scaling", "--one", str(size)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout)
        print(
            f"| {size:,} × {SAMPLES} | {found['seconds']:.1f} s | {found['seconds'] / size**2 * 1e9:.2f} ns "
            f"| {found['added'] / 2**20:.0f} MiB | {found['process'] / 2**20:.0f} MiB |",
            flush=True,
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(measure(int(sys.argv[2]))))
    else:
        main([int(size) for size in sys.argv[1:]])
