"""All 65,536 functions of four bits: how long the shortest formula of each is, and how often networks compute it.

A function is its truth table as a number: bit i is its value on the input whose binary digits are i. Two functions are
of one class where permuting inputs, negating inputs and negating the output turns one into the other. Formula size and
the probability under a symmetric random start are the same all over a class, so the 222 classes are what is measured.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ..._progress import Report

Weights = list[Tensor]
"""Of many networks at once: weight (count, out, in) and bias (count, 1, out) of each layer."""


def input_signs(inputs: int = 4) -> Tensor:
    """All inputs as −1 and 1; shape: (2^inputs, inputs)."""
    numbers = torch.arange(2**inputs)
    return 2.0 * (numbers[:, None] >> torch.arange(inputs) & 1) - 1


def _transformed(inputs: int) -> Iterator[Tensor]:
    """Every function with its inputs permuted and negated, all 2^inputs · inputs! ways; shape: (functions,) each."""
    rows = 2**inputs
    functions = torch.arange(2**rows)
    for order in itertools.permutations(range(inputs)):
        for negated in range(rows):
            places = [sum((row >> order[k] & 1) << k for k in range(inputs)) ^ negated for row in range(rows)]
            transformed = torch.zeros_like(functions)
            half = rows // 2
            for part in (0, half):  # tables of half the bits, so that a function is two look-ups
                table = torch.zeros(2**half, dtype=torch.long)
                for bit in range(half):
                    table |= (torch.arange(2**half) >> bit & 1) << places[part + bit]
                transformed |= table[functions >> part & 2**half - 1]
            yield transformed


def function_classes(inputs: int = 4) -> Tensor:
    """The least function of each function's class; shape: (functions,)."""
    last = 2 ** (2**inputs) - 1
    least = torch.arange(last + 1)
    for moved in _transformed(inputs):
        least = torch.minimum(least, torch.minimum(moved, last - moved))
    return least


def formula_sizes(classes: Tensor) -> Tensor:
    """Leaves of the shortest formula of AND, OR and NOT for every function; constants have none; shape: (functions,).

    A shortest formula of k leaves joins shortest ones of i and k − i leaves, so sizes follow from smaller sizes. OR is
    AND between negations, so AND suffices; and as sizes are the same all over a class, one side needs only one function
    of each class and its negation.

    Args:
        classes: of `function_classes`.
    """
    last = len(classes) - 1
    inputs = (last + 1).bit_length() - 1
    inputs = inputs.bit_length() - 1
    sizes = torch.full((last + 1,), -1)
    sizes[[0, last]] = 0
    literal = sum(1 << row for row in range(2**inputs) if row & 1)
    sizes[classes == classes[literal]] = 1
    size = 1
    while bool((sizes < 0).any()):
        size += 1
        assert size <= 4**inputs, "no function of n bits needs so many leaves"
        reached = torch.zeros(last + 1, dtype=torch.bool)
        for left in range(1, size // 2 + 1):
            others = (sizes == size - left).nonzero().flatten()
            for one in classes[sizes == left].unique().tolist():
                for operand in (one, last - one):
                    reached[classes[others & operand]] = True
        sizes[reached[classes] & (sizes < 0)] = size
    return sizes


def random_networks(count: int, hidden: int, generator: torch.Generator, inputs: int = 4) -> Weights:
    """Networks inputs → hidden → hidden → 1 with ReLU, started as torch.nn.Linear starts: uniform within 1/√fan-in."""
    weights: Weights = []
    for fan_in, width in ((inputs, hidden), (hidden, hidden), (hidden, 1)):
        bound = 1 / math.sqrt(fan_in)
        for shape in ((count, width, fan_in), (count, 1, width)):
            weights.append((2 * torch.rand(shape, generator=generator) - 1) * bound)
    return weights


def outputs(weights: Weights, signs: Tensor) -> Tensor:
    """What every network answers to every input; shape: (count, len(signs)), or to its own (count, n, inputs)."""
    hidden = signs.expand(len(weights[0]), *signs.shape[-2:])
    for place in range(0, len(weights), 2):
        if place:
            hidden = hidden.relu()
        hidden = torch.baddbmm(weights[place + 1], hidden, weights[place].mT)
    return hidden[..., 0]


def truth_tables(weights: Weights, signs: Tensor) -> Tensor:
    """The function of every network, 1 where its output is positive; shape: (count,)."""
    return ((outputs(weights, signs) > 0).long() << torch.arange(len(signs))).sum(1)


def sampled_counts(
    networks: int, hidden: int, generator: torch.Generator, report: Report, at_once: int = 20_000
) -> Tensor:
    """How many of so many random networks compute each function of four bits; shape: (65536,)."""
    signs = input_signs()
    counts = torch.zeros(2**16, dtype=torch.long)
    for start in range(0, networks, at_once):
        count = min(at_once, networks - start)
        counts += torch.bincount(truth_tables(random_networks(count, hidden, generator), signs), minlength=2**16)
        report(start + count, networks)
    return counts


@dataclass(frozen=True)
class Task:
    """Eight of the sixteen inputs with their labels, to be learned.

    Attributes:
        seen: the inputs' numbers; shape: (n,).
        labels: 0 or 1; shape: (n,).
    """

    seen: Tensor
    labels: Tensor

    def fits(self, functions: Tensor) -> Tensor:
        """Which functions have these labels; shape: that of `functions`."""
        return ((functions[..., None] >> self.seen & 1) == self.labels).all(-1)


def make_task(target: int, seen: int, generator: torch.Generator) -> Task:
    """So many inputs drawn without replacement, labelled by the function `target`."""
    places = torch.randperm(16, generator=generator)[:seen].sort().values
    return Task(places, target >> places & 1)


def trained_functions(
    task: Task,
    optimizer: str,
    *,
    networks: int,
    hidden: int,
    learning_rate: float,
    batch: int,
    most_steps: int,
    generator: torch.Generator,
) -> Tensor:
    """The functions at which so many networks arrive, each stopped when it first fits; without those that never do.

    All are trained at once from starts as in `random_networks`, each on batches of its own, with cross-entropy.

    Args:
        optimizer: "sgd" or "adam".
    """
    signs = input_signs()
    weights = [each.requires_grad_() for each in random_networks(networks, hidden, generator)]
    kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}
    steps = kinds[optimizer](weights, lr=learning_rate)
    learned = torch.full((networks,), -1)
    inputs, labels = signs[task.seen], task.labels.float()
    rows = torch.arange(networks)[:, None]
    for step in range(most_steps + 1):
        if step % 5 == 0:
            with torch.no_grad():
                functions = truth_tables(weights, signs)
            learned = torch.where((learned < 0) & task.fits(functions), functions, learned)
            if bool((learned >= 0).all()):
                break
        chosen = torch.rand(networks, len(labels), generator=generator).topk(batch, dim=1).indices
        answers = outputs(weights, inputs)[rows, chosen]
        loss = functional.binary_cross_entropy_with_logits(answers, labels[chosen], reduction="none").mean(1).sum()
        steps.zero_grad()
        loss.backward()
        steps.step()
    return learned[learned >= 0]
