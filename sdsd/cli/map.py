"""`sdsd map`: the neurons of saved activations."""

from __future__ import annotations

import argparse
from pathlib import Path

from .parser import Command, add_json, positive_integer
from .status import OK
from .tables import print_json, print_table, print_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file",
        metavar="FILE",
        help="a layer's activations: .npy, .npz, .pt, .pth or .safetensors, or - for standard input",
    )
    parser.add_argument(
        "--neuron-dim",
        type=int,
        default=None,
        metavar="D",
        help="the dimension that counts neurons (default: the last; 1 from four dimensions up)",
    )
    parser.add_argument("--center", action="store_true", help="subtract each neuron's mean first (correlation)")
    parser.add_argument("--k", type=positive_integer, default=10, help="how many pairs to list (default: 10)")
    parser.add_argument("--key", metavar="NAME", help="which entry of the file")
    parser.add_argument("--out", type=Path, default=Path("out/map"), help="folder to write (default: out/map)")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    from .._tensor_files import load_tensor
    from ..report.figures import minus
    from ..studies import farthest_examples, prepare_output, run_map

    activations = load_tensor(arguments.file, arguments.key)
    prepare_output(arguments.out)
    try:
        mapped = run_map(
            activations,
            arguments.out,
            neuron_dim=arguments.neuron_dim,
            center=arguments.center,
            pairs=arguments.k,
            source=arguments.file,
        )
    except (ValueError, TypeError) as error:
        raise type(error)(f"{arguments.file}: {error}") from error
    neuron_map = mapped.neuron_map
    if arguments.json:
        print_json(mapped.results)
        return OK
    strange = set(neuron_map.not_finite)
    dead = [neuron for neuron in neuron_map.dead if neuron not in strange]
    counts = [f"{int(neuron_map.alive.sum())} alive", f"{len(dead)} dead"]
    if strange:
        counts.append(f"{len(strange)} with NaN or infinity")
    if neuron_map.silhouette is not None:
        counts.append(f"{len(set(neuron_map.clusters))} clusters (silhouette {minus(f'{neuron_map.silhouette:.2f}')})")
    neurons = len(neuron_map.alive)
    print_text(f"{arguments.file}: {neurons} neuron{'s'[: neurons != 1]}, {', '.join(counts)}")
    for words, named in (("dead", dead), ("NaN or infinity", sorted(strange))):
        if named:
            print_text(f"{words}: {', '.join(map(str, named[:20]))}{' …' if len(named) > 20 else ''}")
    for note in neuron_map.notes:
        print_text(note)
    pairs = zip(neuron_map.nearest, farthest_examples(neuron_map, arguments.k), strict=False)
    rows = [
        (
            str(index),
            f"{near.first} – {near.second}",
            minus(f"{near.cosine:.4f}"),
            f"{far.first} – {far.second}",
            minus(f"{far.cosine:.4f}"),
        )
        for index, (near, far) in enumerate(pairs, start=1)
    ]
    if rows:
        print_table(("", "nearest", "cosine", "farthest", "cosine"), rows)
    print_text(f"written to {arguments.out}: {', '.join(path.name for path in mapped.written)}")
    return OK


COMMAND = Command(
    "map",
    "cosine matrix, nearest and farthest neurons, dead neurons of saved activations",
    "  sdsd map activations.npy\n"
    "  sdsd map features.pt --key layer3 --center --k 20\n"
    "  sdsd map conv1d.safetensors --neuron-dim 1 --out out/conv",
    add_arguments,
    run,
)
