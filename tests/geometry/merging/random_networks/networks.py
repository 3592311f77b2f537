"""Random networks, as source text: drawn, built, and made smaller while something holds of them."""

from __future__ import annotations

import contextlib
import math
import random
import re
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.nn.utils import prune

from .steps import HEADS, SECTIONS, STEPS, lines_of

NAMES = {"torch": torch, "nn": nn, "F": nn.functional, "math": math, "prune": prune}
WIDTHS = (2, 4, 4, 6, 6, 8, 12)
BOUND = 7
"""Indices of embeddings lie below."""
LARGEST = 20_000
"""Numbers in a tensor on the way."""
AXIS = {"R": 1, "W": 2, "S": 1, "P": 1}


@dataclass(frozen=True)
class Step:
    """Statements that give one tensor."""

    target: str
    kind: str
    init: tuple[str, ...]
    body: tuple[str, ...]

    @property
    def text(self) -> str:
        return "\n".join(self.body)


@dataclass(frozen=True)
class Program:
    """A network: steps, the kinds of its inputs, how large these are, and what it gives."""

    inputs: tuple[str, ...]
    sizes: tuple[int, int]
    steps: tuple[Step, ...] = ()
    outputs: tuple[str, ...] = ()
    form: str = "tuple"

    def source(self) -> str:
        init = [line for step in self.steps for line in step.init]
        body = [line for step in self.steps for line in step.body]
        names = [f"h{k}" for k in range(len(self.inputs))]
        given = {
            "tuple": "(" + "".join(f"{name}, " for name in self.outputs) + ")",
            "dict": "{" + "".join(f"{name!r}: {name}, " for name in self.outputs) + "}",
        }
        result = self.outputs[0] if len(self.outputs) == 1 else given[self.form]
        lines = ["class Net(nn.Module):", "    def __init__(self):", "        super().__init__()"]
        lines += [f"        {line}" for line in init]
        lines += ["", f"    def forward(self, {', '.join(names)}):"]
        lines += [f"        {line}" for line in body]
        return "\n".join([*lines, f"        return {result}"])

    def built(self) -> nn.Module:
        """In float64 and eval mode, with random parameters and statistics; its class can be pickled."""
        module = types.ModuleType("random_network")
        vars(module).update(NAMES)
        sys.modules[module.__name__] = module
        with float64(), seeds(0):
            exec(self.source(), vars(module))
            model = scrambled(module.Net()).eval()
            with torch.no_grad():
                model(*self.drawn(0))  # what pruning computes before each call is without a graph then
            return model

    def drawn(self, seed: int, batch: int | None = None, length: int | None = None) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(seed)
        batch, length = batch or self.sizes[0], length or self.sizes[1]
        shapes = {"R": (batch, 5), "W": (batch, length, 5), "S": (batch, 4, length), "P": (batch, 3, length, length)}

        def one(kind: str) -> Tensor:
            if kind == "I":
                return torch.randint(BOUND, (batch, length), generator=generator)
            return torch.randn(shapes[kind], generator=generator, dtype=torch.float64)

        return tuple(map(one, self.inputs))


@contextlib.contextmanager
def float64() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def seeds(seed: int) -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def scrambled(model: nn.Module, done: set[int] | None = None) -> nn.Module:
    """No parameter or statistic is left at 0 or 1."""
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point() and id(tensor) not in (done or ()) and "parametrizations" not in name:
                fan = tensor[0].numel() if tensor.ndim > 1 else 2
                tensor.copy_(torch.rand_like(tensor) + 0.5 if "var" in name else torch.randn_like(tensor) / fan**0.5)
            if done is not None:
                done.add(id(tensor))
    return model


@dataclass
class Drawing:
    """A program while it is drawn: its tensors are there, so that what does not fit is seen at once."""

    program: Program
    random: random.Random
    env: dict[str, Any] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    done: set[int] = field(default_factory=set)
    count: int = 0

    def add(self, line: str, source: str | None = None) -> bool:
        """A step by this line of a table; False where it does not fit."""
        kinds, result, rest = re.split(r"\s+", line, maxsplit=2) if source is None else ("", ".", line)
        fitting = [name for name, kind in self.kinds.items() if kind in kinds]
        if source is None and not fitting:
            return False
        source = source or self.random.choice(fitting[-3:])
        step = self._step(rest, source, self.kinds[source] if result == "." else result)
        net = self.env["self"]
        before = dict(vars(net)), dict(net._modules), dict(net._parameters), dict(net._buffers)
        try:
            with float64(), seeds(1):
                for text in step.init:
                    exec(text, self.env)
                scrambled(net, self.done)
                with torch.no_grad():
                    exec(step.text, self.env)
            value = self.env[step.target]
            if not isinstance(value, Tensor) or not 2 <= value.numel() <= LARGEST or not value.isfinite().all():
                raise ValueError(step.target)
            if value.ndim != {"R": 2, "W": 3, "S": 3, "P": 4}[step.kind] or value.dtype != torch.float64:
                raise ValueError(step.target)
        except Exception:
            self.env.pop(step.target, None)
            net.__dict__.update(before[0])
            net._modules, net._parameters, net._buffers = before[1:]
            return False
        self.kinds[step.target] = step.kind
        self.program = replace(self.program, steps=(*self.program.steps, step))
        return True

    def _step(self, rest: str, source: str, kind: str) -> Step:
        self.count += 1
        init, _, body = rest.partition(":") if rest.startswith(":") else rest.partition(" : ")
        tensor, own = self.env[source], self.kinds[source]
        axis = AXIS.get(own, 0)
        width = tensor.shape[axis]
        alike = [name for name, each in self.kinds.items() if each == own and self.env[name].shape == tensor.shape]
        others = [name for name, each in self.kinds.items() if each == own and self._alike(name, source)]
        target = f"h{len(self.program.inputs) + self.count}"
        words = {
            "H": source,
            "G": self.random.choice([name for name in alike if name != source] or alike),
            "J": self.random.choice([name for name in others if name != source] or others),
            "D": str(width),
            "C": str(axis - tensor.ndim if own in "RW" and self.random.random() < 0.5 else axis),
            "K": str(self.random.choice(WIDTHS)),
            "Q": str(self.random.choice([each for each in range(2, width + 1) if width % each == 0] or [1])),
            "V": str(BOUND),
            "T": str(tensor.shape[1 if own == "W" else -1]),
        }

        def made(text: str) -> str:
            text = re.sub(r"(?<![\w.])[HGJDCKQVT]\b", lambda match: words[match[0]], text.strip())
            text = re.sub(r"(self\.)?\$n", lambda match: f"{match[1] or ''}n{self.count}", text)
            text = re.sub(r"\$([a-z])", rf"self.\g<1>{self.count}", text)
            return re.sub(r"([\w.]+)~", r"\1" + {"S": "[:, None]", "P": "[:, None, None]"}.get(own, ""), text)

        *lines, last = [made(part) for part in body.split(" | ")]
        return Step(
            target,
            kind,
            tuple(made(each) for each in init.split(" ; ") if init.strip()),
            (*lines, f"{target} = {last}"),
        )

    def _alike(self, name: str, other: str) -> bool:
        one, two, axis = self.env[name].shape, self.env[other].shape, AXIS.get(self.kinds[other], 0)
        return len(one) == len(two) and all(a == b for k, (a, b) in enumerate(zip(one, two, strict=True)) if k != axis)


def started(kinds: tuple[str, ...], sizes: tuple[int, int], chosen: random.Random) -> Drawing:
    """Inputs of these kinds, and no step yet."""
    drawing = Drawing(Program(kinds, sizes), chosen, {**NAMES, "self": nn.Module()})
    for place, (kind, tensor) in enumerate(zip(kinds, drawing.program.drawn(0), strict=True)):
        drawing.env[f"h{place}"], drawing.kinds[f"h{place}"] = tensor, kind
    return drawing


def draw(seed: int, most: int = 9) -> Program:
    """A random network."""
    chosen = random.Random(seed)
    kind = chosen.choice("RRWWWSPPII")
    sizes = chosen.choice((2, 3, 4, 6)), chosen.choice((4, 4, 6, 8))
    drawing = started((kind,) * (1 + (chosen.random() < 0.15)), sizes, chosen)
    lines = {name: lines_of(name) for name in STEPS}
    layers = [line for line in lines["layers"] if kind in line.split()[0]]
    drawing.add(chosen.choice(layers))
    steps, tries = chosen.randint(2, most), 0
    while len(drawing.program.steps) < steps and (tries := tries + 1) < 60:
        section = chosen.choices(list(SECTIONS), list(SECTIONS.values()))[0]
        drawing.add(chosen.choice(lines[section]))
    return finished(drawing)


def finished(drawing: Drawing) -> Program:
    """Heads behind what nothing reads yet."""
    program, chosen = drawing.program, drawing.random
    text = "\n".join(step.text.partition(" = ")[2] if len(step.body) == 1 else step.text for step in program.steps)
    loose = [s.target for s in program.steps if len(re.findall(rf"\b{s.target}\b", text)) <= (len(s.body) > 1)]
    outputs = []
    for name in loose[-3:]:
        headed = chosen.random() < 0.85 and drawing.add(HEADS[drawing.kinds[name]], name)
        outputs.append(drawing.program.steps[-1].target if headed else name)
    return pruned(replace(drawing.program, outputs=tuple(outputs), form=chosen.choice(("tuple", "dict"))))


def pruned(program: Program) -> Program:
    """Without steps that nothing needs."""
    needed, kept = set(program.outputs), []
    for step in reversed(program.steps):
        if step.target in needed:
            kept.append(step)
            needed |= set(re.findall(r"\bh\d+\b", step.text))
    return replace(program, steps=tuple(reversed(kept)))


def minimised(program: Program, holds: Callable[[Program], bool]) -> Program:
    """Step by step and output by output, whatever can be left out while `holds`."""
    smaller = True
    while smaller:
        smaller = False
        for candidate in _candidates(program):
            with contextlib.suppress(Exception):
                if holds(candidate):
                    program, smaller = candidate, True
                    break
    return program


def _candidates(program: Program) -> Iterator[Program]:
    for output in program.outputs if len(program.outputs) > 1 else ():
        yield pruned(replace(program, outputs=tuple(each for each in program.outputs if each != output)))
    for place, step in enumerate(program.steps):
        for source in dict.fromkeys(re.findall(r"\bh\d+\b", step.text)):
            if source == step.target:
                continue
            rest = tuple(
                replace(each, body=tuple(re.sub(rf"\b{step.target}\b", source, line) for line in each.body))
                for each in program.steps[place + 1 :]
            )
            outputs = tuple(source if each == step.target else each for each in program.outputs)
            yield pruned(replace(program, steps=(*program.steps[:place], *rest), outputs=outputs))
