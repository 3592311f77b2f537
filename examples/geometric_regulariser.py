"""L_geom beside the loss: python examples/geometric_regulariser.py [--out FOLDER]

A network of 64-128-10 neurons reads 1,797 real digits. It is trained on cross-entropy plus a strength times
L_geom = H_G + λV, at several strengths, and then from the trained network on L_geom alone. A table and a figure say
what that does to held-out accuracy: nothing for the better that the spread over seeds would let one see.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sdsd.theory import geometric_functional, symmetries

STRENGTHS = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
SEEDS = (0, 1, 2)
LAMBDA, EPOCHS, ALONE_STEPS = 0.1, 20, 300
Split = tuple[Tensor, Tensor, Tensor, Tensor]


def data(seed: int) -> Split:
    """Training images and labels, held-out images and labels."""
    pixels, classes = load_digits(return_X_y=True)
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(seed))
    images, labels = torch.from_numpy(pixels).float()[order] / 16 - 0.3, torch.from_numpy(classes).long()[order]
    return images[:1347], labels[:1347], images[1347:], labels[1347:]


def train(split: Split, strength: float, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    images, labels, _, _ = split
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    structure = symmetries(model)  # which neurons have a mass; found once, read at every step
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(images)).split(64):
            loss = cross_entropy(model(images[chosen]), labels[chosen])
            if strength:
                loss = loss + strength * geometric_functional(structure, LAMBDA).value
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


def minimise_alone(model: nn.Module) -> None:
    """Adam on L_geom and nothing else."""
    structure = symmetries(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(ALONE_STEPS):
        optimizer.zero_grad()
        geometric_functional(structure, LAMBDA).value.backward()
        optimizer.step()


@torch.no_grad()
def measure(model: nn.Module, split: Split) -> tuple[float, float, float]:
    """(held-out accuracy, H_G, log V)."""
    functional = geometric_functional(model, LAMBDA)
    accuracy = (model(split[2]).argmax(1) == split[3]).double().mean().item()
    return accuracy, functional.entropy.item(), functional.volume.item()


def draw(rows: dict[float, list[tuple[float, float, float]]], path: Path) -> None:
    from sdsd.report import figures

    figure, (left, right) = figures.new_figure(10.4, 4.0, columns=2)
    shown = [strength or min(filter(None, rows)) / 3 for strength in rows]
    for axes, place, name in ((left, 0, "held-out accuracy"), (right, 1, "H_G (nats)")):
        columns = [[run[place] for run in runs] for runs in rows.values()]
        figures.draw_curves(
            axes,
            shown,
            {name: [statistics.mean(c) for c in columns]},
            bands={name: ([min(c) for c in columns], [max(c) for c in columns])},
            log_x=True,
            marker="o",
            xlabel="strength of L_geom (leftmost: none)",
            ylabel=name,
            legend="",
        )
    figures.set_title(left, "What it does to accuracy")
    figures.set_title(right, "What it does to the symmetry entropy")
    figures.save_png(figure, path, 100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/geometric_regulariser"))
    folder = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    rows: dict[float, list[tuple[float, float, float]]] = {}
    for strength in STRENGTHS:
        rows[strength] = []
        for seed in SEEDS:
            split = data(seed)
            model = train(split, strength, seed)
            rows[strength].append(measure(model, split))
            if strength == 0 and seed == SEEDS[0]:
                minimise_alone(model)
                alone = measure(model, split)
        accuracy, entropy, volume = map(statistics.mean, zip(*rows[strength], strict=True))
        print(f"strength {strength:<5g}: accuracy {accuracy:.3f}, H_G {entropy:.2f}, log V {volume:.1f}", flush=True)
    trained = rows[0.0][0]
    print(f"L_geom alone, from the first of these on: accuracy {trained[0]:.3f} → {alone[0]:.3f}")
    print(f"    H_G {trained[1]:.2f} → {alone[1]:.2f}, log V {trained[2]:.1f} → {alone[2]:.1f}")
    draw(rows, folder / "geometric-regulariser.png")


if __name__ == "__main__":
    main()
