"""`make test-zoo`: the zoo, or the architectures named: python -m tests.zoo swin "gpt-2" --table out.md"""

from __future__ import annotations

import argparse
import os
import sys
from importlib.metadata import version
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", TOKENIZERS_PARALLELISM="false")

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from . import runner

LIBRARIES = ("torch", "torchvision", "transformers", "timm", "peft")
GEOMETRY = "# Coverage: functional geometry"
"""The heading of what `tests.zoo.geometry` writes into the same file."""
TABLE = Path(__file__).resolve().parents[2] / "docs" / "coverage.md"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.zoo", description=__doc__)
    parser.add_argument("names", nargs="*", help="parts of names of architectures or families; all without any")
    parser.add_argument("--table", type=Path, help=f"where the table goes; {TABLE.name} after a run of everything")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    options = parser.parse_args()

    from .architectures.catalogue import FAMILIES

    everything = [(family, name, one) for family, models in FAMILIES.items() for name, one in models.items()]
    wanted = [each.lower() for each in options.names]
    chosen = [
        (family, name, one)
        for family, name, one in everything
        if not wanted or any(part in f"{family}: {name}".lower() for part in wanted)
    ]
    if not chosen:
        parser.error(f"no architecture has any of {options.names} in its name; --list prints them")
    if options.list:
        print("\n".join(f"{family}: {name}" for family, name, _ in chosen))
        return 0
    torch.set_num_threads(1)
    rows = runner.run(chosen)
    place = options.table or (TABLE if len(chosen) == len(everything) else None)
    if place is not None:
        before = place.read_text() if place.exists() else ""
        geometry = before.partition(f"\n{GEOMETRY}\n")[2]
        text = runner.table(rows, {name: version(name) for name in LIBRARIES})
        place.write_text(f"{text}\n{GEOMETRY}\n{geometry}" if geometry else text)
        print(f"wrote {place}")
    bad = [row for row in rows if not row.good]
    for row in bad:
        print(f"FAILED {row.family}: {row.name}: {row.verdict.kind}, training {row.training}")
    print(f"{len(rows) - len(bad)} of {len(rows)} right or refused by name, and trained as without a monitor")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
