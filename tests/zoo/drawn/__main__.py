"""python -m tests.zoo.drawn FIRST LAST: judge the programs of these seeds; what fails is made small and printed."""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

from tests.zoo.verdict import Verdict

from . import Draft, alike, judged, smallest, with_sizes_apart

FAILURES = ("wrong", "crash")


def told(draft: Draft, verdict: Verdict) -> str:
    def fails(less: Draft) -> bool:
        return judged(less).kind == verdict.kind

    small = smallest(draft, fails)
    return f"seed {draft.seed}: {judged(small)}\n  {small}"


def main(first: int, last: int) -> int:
    counts: Counter[Any] = Counter()
    for seed in range(first, last):
        draft = Draft.drawn(seed)
        verdict = judged(draft)
        counts[verdict.kind] += 1
        apart = with_sizes_apart(draft)
        other = judged(apart)
        counts[f"{other.kind}, sizes apart"] += 1
        for each, of in ((draft, verdict), (apart, other)):
            if of.kind in FAILURES:
                print(told(each, of), flush=True)
        kinds = {verdict.kind, other.kind}
        if kinds == {"right", "refused"} and alike(draft, apart):
            counts["another verdict"] += 1
            print(f"seed {seed}: {kinds} by sizes: {verdict.why or other.why}", flush=True)
        if seed % 100 == 99:
            print(seed + 1 - first, dict(counts), flush=True)
    print(dict(counts))
    return int(any(kind in str(each) for each in counts for kind in FAILURES))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
