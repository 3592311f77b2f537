"""What calls promise of memory, as a process that makes one call grows: images, wide readers, kept activations."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")

SCRIPT = """
import ctypes, sys
from pathlib import Path
import torch
from torch import nn
import sdsd
from sdsd.geometry import GramAccumulator, LayerComparison, cosine_between, cosine_histogram, merge_cost, row_sums
torch.set_num_threads(1)
LIMIT = 2**25

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

def grown(call, small, large):
    call(*small)
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS:")
    result = call(*large)
    return status("VmHWM:") - before

def layer(neurons):
    model = nn.Sequential(nn.Linear(32, neurons), nn.ReLU(), nn.Linear(neurons, 4))
    return lambda inputs: sdsd.collect_activations(model, inputs, "0", keep=True)

def deep(neurons, depth):
    pairs = [(nn.Linear(neurons, neurons), nn.ReLU()) for _ in range(depth)]
    model = nn.Sequential(*[each for pair in pairs for each in pair])
    return lambda inputs, bound: sdsd.collect_activations(model, inputs, "*", max_bytes=bound)

def summed(batches):
    gram = GramAccumulator(batches[0].shape[1], center=True, dtype=torch.float64, max_bytes=2**24)
    for batch in batches:
        gram.update(batch)
    return gram

def compared(x, y):
    comparison = LayerComparison(x.shape[1], y.shape[1], max_bytes=2**24)
    comparison.update(x, y)
    return comparison

images = torch.randn(8, 2000, 40, 40)
small = images[:1, :300, :8, :8].clone()
calls = {
    "histogram": lambda x: cosine_histogram(x, max_bytes=LIMIT),
    "row sums": lambda x: row_sums(x, max_bytes=LIMIT),
    "disjoint pairs": lambda x: sdsd.disjoint_pairs(x, 100, max_bytes=LIMIT),
    "pairs": lambda x: sdsd.neuron_pairs(x, above=0.9, max_bytes=LIMIT),
    "neighbours": lambda x: sdsd.neuron_neighbors(x, 10, max_bytes=LIMIT),
    "pairs by cost": lambda x, v: sdsd.disjoint_pairs(x, 100, by="cost", outgoing=v, max_bytes=LIMIT),
    "costs of pairs": lambda x, v: merge_cost(x, v, torch.arange(200).view(-1, 2), max_bytes=LIMIT),
}
name = sys.argv[1]
if name == "kept":
    batches = [torch.randn(50, 32) for _ in range(300)]
    print(grown(lambda make, given: make(given), (layer(20), batches[:2]), (layer(2000), batches)))
elif name == "many layers":
    batches = [torch.randn(500, 500) for _ in range(4)]
    small, large = (deep(50, 3), [batches[0][:, :50]], 2**26), (deep(500, 20), batches, 2**27)
    print(grown(lambda make, *given: make(*given), small, large))
elif name == "sums":
    batches = [torch.randn(size, 2000, dtype=torch.float64) for size in (700, 700, 700, 3000)]
    print(grown(summed, ([each[:, :200] for each in batches],), (batches,)))
elif name == "merged sums":
    small, large = ([summed([torch.randn(300, n, dtype=torch.float64)]) for _ in range(2)] for n in (200, 2000))
    print(grown(lambda one, other: one.merge(other), small, large))
elif name == "two layers":
    x, y = torch.randn(20_000, 1000), torch.randn(20_000, 1000)
    print(grown(compared, (x[:, :100], y[:, :100]), (x, y)))
elif name == "wide":
    x, outgoing = torch.randn(64, 3000), torch.randn(3000, 4096)
    print(grown(calls["pairs by cost"], (x[:, :300], outgoing[:300, :64]), (x, outgoing)))
elif "cost" in name:
    print(grown(calls[name], (small, torch.randn(300, 8)), (images, torch.randn(2000, 8))))
else:
    print(grown(calls[name], (small,), (images,)))
"""

KEPT = 300 * 50 * 2000 * 4
TRIANGLES = 8 * 2000 * (2000 + 256)
BATCH = 20_000 * 2000 * 4


@pytest.mark.parametrize(
    ("name", "promised"),
    [
        ("histogram", 2**25),
        ("row sums", 2**25),
        ("disjoint pairs", 2**25),
        ("pairs", 2**25),
        ("neighbours", 2**25),
        ("pairs by cost", 2**25),
        ("costs of pairs", 2**25),
        ("wide", 2**25),
        ("sums", TRIANGLES + 2**24),
        ("merged sums", TRIANGLES + 2**24),
        ("two layers", BATCH + TRIANGLES + 2**24),
        ("many layers", 2**27),
        # What the model answers to a batch, and where chunks are cut, on top.
        ("kept", KEPT + 2**25),
    ],
)
def test_a_process_grows_by_no_more_than_was_promised(name, promised):
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", SCRIPT, name], capture_output=True, text=True, cwd=root, check=True)
    assert int(done.stdout) <= promised
