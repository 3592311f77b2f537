"""python -m tests.geometry.merging.random_networks FIRST COUNT: many networks, failures made small and printed."""

from __future__ import annotations

import collections
import sys
import time

from .judging import CAUGHT, FAILURES, REFUSED, judged
from .networks import draw, minimised


def main(first: int, count: int) -> int:
    counts: collections.Counter[str] = collections.Counter()
    reasons: collections.Counter[tuple[str, str, str]] = collections.Counter()
    examples: dict[tuple[str, str, str], int] = {}
    seen: collections.Counter[tuple[str, str, str]] = collections.Counter()
    start = time.monotonic()
    for seed in range(first, first + count):
        program = draw(seed)
        thorough = seed % 4 == 0
        verdicts = judged(program, seed, thorough)
        for verdict in verdicts:
            counts[f"{verdict.call}: {verdict.kind}"] += 1
            counts[verdict.kind] += 1
            if verdict.kind == REFUSED:
                reasons[verdict.alike] += 1
                examples.setdefault(verdict.alike, seed)
        for verdict in {each.alike: each for each in verdicts if each.kind in (*FAILURES, CAUGHT)}.values():
            seen[verdict.alike] += 1
            print(f"seed {seed}: {verdict}", flush=True)
            if seen[verdict.alike] <= 2:
                small = minimised(
                    program,
                    lambda p, v=verdict, s=seed, t=thorough: any(
                        each.alike == v.alike for each in judged(p, s, t, v.layer)
                    ),
                )
                print(small.source(), f"\n# sizes {small.sizes}, {program.inputs}\n", flush=True)
        if (seed - first) % 50 == 49:
            print(f"{seed - first + 1} networks, {time.monotonic() - start:.0f} s: {dict(counts)}", flush=True)
    print(f"{count} networks, {time.monotonic() - start:.0f} s")
    for name, number in sorted(counts.items()):
        print(f"{number:6d} {name}")
    for alike, number in reasons.most_common(60):
        print(f"{number:6d} {alike[1:]} (seed {examples[alike]})")
    return sum(counts[kind] for kind in FAILURES) > 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:3])))
