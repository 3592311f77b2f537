"""Peak memory of one provider on the CPU: `harness.peak_memory_cpu` runs this in a process of its own."""

from __future__ import annotations

import json
import pickle
import sys

import torch

from . import harness


def main() -> None:
    """Read (prepare, case, provider, threads) from standard input, print the bytes."""
    prepare, case, provider, threads = pickle.load(sys.stdin.buffer)
    with harness.limited_threads(threads):
        function = prepare(case, torch.device("cpu")).providers[provider]
        print(json.dumps(harness.peak_resident_growth(function)))


if __name__ == "__main__":
    main()
