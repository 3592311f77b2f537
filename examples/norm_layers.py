"""Norm layers alone as a cheap monitor: how well do they follow the whole? python examples/norm_layers.py

Gray et al. 2024 (arXiv:2411.00999) found that the noise scale of a transformer's norm layers predicts the total. Here a
GPT with LayerNorm reads characters of Python's standard library, and a CNN with GroupNorm and a ViT read 1,797 real
digits. While each trains, one monitor measures all parameters, and the norm layers' part of it is what
`GammaMonitor(model, parameters="*norm*")` gives. Then the cost of both is measured. Two minutes on one core.
"""

from __future__ import annotations

import argparse
import fnmatch
import inspect
import itertools
import math
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

import sdsd

STEPS, BATCH, RATE = 400, 32, 1e-3
FROM = 50
"""First step that is compared: by then the running averages remember about half of what they ever will."""
SEEDS = (0, 1, 2)
ROUNDS = 100
CONTEXT = 32
APART = 50
"""Steps between two noise scales whose change is correlated."""


class Block(nn.Module):
    """Attention and a perceptron, each after its LayerNorm."""

    def __init__(self, width: int, heads: int, causal: bool, names: tuple[str, str]) -> None:
        super().__init__()
        self.heads, self.causal, self.names = heads, causal, names
        for name in names:
            self.add_module(name, nn.LayerNorm(width))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        first, second = (self.get_submodule(name) for name in self.names)
        q, k, v = (each.unflatten(2, (self.heads, -1)).transpose(1, 2) for each in self.qkv(first(x)).chunk(3, 2))
        x = x + self.out(scaled_dot_product_attention(q, k, v, is_causal=self.causal).transpose(1, 2).flatten(2))
        return x + self.mlp(second(x))


class Gpt(nn.Module):
    def __init__(self, vocabulary: int, width: int = 64, depth: int = 3) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(CONTEXT, width)
        self.blocks = nn.Sequential(*(Block(width, 4, True, ("ln_1", "ln_2")) for _ in range(depth)))
        self.ln_f, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary)

    def forward(self, x: Tensor) -> Tensor:
        x = self.tokens(x) + self.positions(torch.arange(x.shape[1]))
        return self.head(self.ln_f(self.blocks(x)))


class Vit(nn.Module):
    """8 × 8 pixels as 16 patches of 2 × 2."""

    def __init__(self, width: int = 48, depth: int = 3) -> None:
        super().__init__()
        self.patches, self.positions = nn.Linear(4, width), nn.Embedding(16, width)
        self.blocks = nn.Sequential(*(Block(width, 4, False, ("norm1", "norm2")) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = x.unflatten(3, (4, 2)).unflatten(2, (4, 2)).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        x = self.patches(x) + self.positions(torch.arange(16))
        return self.head(self.norm(self.blocks(x)).mean(1))


class Cnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        widths = (1, 16, 32, 32)
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise(widths))
        self.norms = nn.ModuleList(nn.GroupNorm(4, width) for width in widths[1:])
        self.head = nn.Linear(widths[-1], 10)

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = torch.relu(norm(conv(x)))
        return self.head(x.mean((2, 3)))


class Task(NamedTuple):
    name: str
    pattern: str
    """Of the parameters of its norm layers."""
    make: Callable[[], nn.Module]
    batch: Callable[[torch.Generator], tuple[Tensor, Tensor]]
    """Inputs and targets of one batch; the loss is the mean cross-entropy."""


def tasks() -> list[Task]:
    text = inspect.getsource(argparse)
    characters = sorted(set(text))
    codes = torch.tensor([characters.index(each) for each in text])
    pixels, classes = load_digits(return_X_y=True)
    images, labels = torch.from_numpy(pixels).float().view(-1, 1, 8, 8) / 16 - 0.3, torch.from_numpy(classes).long()

    def passages(draw: torch.Generator) -> tuple[Tensor, Tensor]:
        starts = torch.randint(len(codes) - CONTEXT, (BATCH, 1), generator=draw)
        rows = codes[starts + torch.arange(CONTEXT + 1)]
        return rows[:, :-1], rows[:, 1:]

    def digits(draw: torch.Generator) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(images), (BATCH,), generator=draw)
        return images[chosen], labels[chosen]

    return [
        Task("GPT, LayerNorm", "*ln_*", lambda: Gpt(len(characters)), passages),
        Task("CNN, GroupNorm", "*norm*", Cnn, digits),
        Task("ViT, LayerNorm", "*norm*", Vit, digits),
    ]


def backward(model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    cross_entropy(model(batch[0]).flatten(0, -2), batch[1].flatten()).backward()


def part(stats: sdsd.GammaStats, pattern: str) -> float:
    """The noise scale of the parameters of this pattern together: sums of noise over sums of signal; NaN without."""
    chosen = [each for name, each in stats.parameters.items() if fnmatch.fnmatchcase(name, pattern)]
    signal = sum(each.signal_unbiased for each in chosen)
    return sum(each.noise for each in chosen) / signal if signal > 0 else math.nan


def follow(task: Task, seed: int) -> np.ndarray:
    """The smoothed noise scale of all parameters and of the norm layers at each step; shape: (steps, 2)."""
    torch.manual_seed(seed)
    model, draw = task.make(), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    scales = []
    with sdsd.GammaMonitor(model, mode="exact") as monitor:
        for step in range(1, STEPS + 1):
            backward(model, task.batch(draw))
            stats = monitor.step()
            optimizer.step()
            optimizer.zero_grad()
            if step >= FROM:
                assert stats is not None
                assert stats.smoothed is not None
                scales.append((part(stats.smoothed, "*"), part(stats.smoothed, task.pattern)))
    return np.array(scales)


def compare(scales: np.ndarray) -> dict[str, float]:
    """Correlations over steps, and the ratio of the norm layers' noise scale to the total."""
    seen = scales[np.isfinite(scales).all(1)]
    total, norms = np.log(seen).T
    ratio = np.exp(norms - total)
    return {
        "correlation": float(np.corrcoef(total, norms)[0, 1]),
        "of changes": float(np.corrcoef(total[APART:] - total[:-APART], norms[APART:] - norms[:-APART])[0, 1]),
        "ratio": float(np.median(ratio)),
        "low": float(np.quantile(ratio, 0.05)),
        "high": float(np.quantile(ratio, 0.95)),
        "first": float(np.exp(total[0])),
        "last": float(np.exp(total[-1])),
        "unseen": 1 - len(seen) / len(scales),
    }


def cost(task: Task) -> tuple[float, float]:
    """CPU time of a step with a monitor of everything, and of the norm layers, over that of the plain step."""
    contenders: list[tuple[nn.Module, Any]] = []
    for options in (None, {}, {"parameters": task.pattern}):
        torch.manual_seed(0)
        model = task.make()
        contenders.append((model, None if options is None else sdsd.GammaMonitor(model, mode="exact", **options)))
    draw = torch.Generator().manual_seed(0)
    ratios: list[list[float]] = []
    for turn in range(ROUNDS + 10):
        batch, times = task.batch(draw), [0.0] * len(contenders)
        for place in sorted(range(len(contenders)), key=lambda k: (k + turn) % len(contenders)):
            model, monitor = contenders[place]
            model.zero_grad()
            before = time.process_time()
            backward(model, batch)
            if monitor is not None:
                monitor.step()
            times[place] = time.process_time() - before
        if turn >= 10:
            ratios.append([each / times[0] for each in times[1:]])
    everything, norms = (statistics.median(column) for column in zip(*ratios, strict=True))
    return everything, norms


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    torch.set_num_threads(1)
    print(
        f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}; "
        f"steps {FROM} to {STEPS} of {len(SEEDS)} seeds, batch {BATCH}, AdamW {RATE:g}\n"
    )
    print(
        "| model | norm layers' share of parameters | total noise scale, first and last | correlation over steps | of "
        f"changes over {APART} steps | norm layers / total, 5%, median, 95% | cost of all | cost of norm layers |"
    )
    print("| --- |" + " ---: |" * 7)
    for task in tasks():
        named = dict(task.make().named_parameters())
        share = sum(p.numel() for n, p in named.items() if fnmatch.fnmatchcase(n, task.pattern)) / sum(
            p.numel() for p in named.values()
        )
        rows = [compare(follow(task, seed)) for seed in SEEDS]
        everything, norms = cost(task)

        def over(name: str, form: str, rows: list[dict[str, float]] = rows) -> str:
            return ", ".join(format(row[name], form) for row in rows)

        ratios = "; ".join(f"{row['low']:.2f} {row['ratio']:.2f} {row['high']:.2f}" for row in rows)
        scales = "; ".join(f"{row['first']:.0f} {row['last']:.0f}" for row in rows)
        print(
            f"| {task.name} | {share:.1%} | {scales} | {over('correlation', '.2f')} | {over('of changes', '.2f')} | "
            f"{ratios} | {everything:.2f} | {norms:.2f} |"
        )
        unseen = statistics.mean(row["unseen"] for row in rows)
        if unseen:
            print(f"(without signal, and left out: {unseen:.1%} of the steps)")


if __name__ == "__main__":
    main()
