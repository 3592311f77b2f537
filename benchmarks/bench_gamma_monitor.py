"""What `GammaMonitor` adds to a training step, beside per-sample gradients by other means.

A step is forward pass, backward pass and what a provider needs to know Σ‖g_n‖², the squared norms of the samples'
gradients, of all parameters; the plain step is forward and backward pass alone. Every provider has a model of its own
with the same weights. On a GPU models are trained in bfloat16 under autocast, and held against a loop over samples.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import sdsd

from .cases import (
    BACKPACK,
    CAPTURED_STEP,
    COMPILED_MODEL,
    EVERY,
    EVERY_TENTH,
    LOOP,
    OPACUS,
    OPACUS_GHOST,
    OURS,
    PLAIN_STEP,
    VMAP,
    Case,
    cases_for,
)
from .harness import Comparison, Provider, Unavailable

OP = "gamma_monitor"
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}
"""Of Σ‖g_n‖², relative to its total, by what products are made of: bfloat16 keeps 8 bits."""

IN_A_ROW = 4
"""Steps on a GPU that are timed together."""

Squares = dict[str, Tensor]
"""Σ‖g_n‖² of every parameter a provider knows, by name."""


class ResidualBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False)
        self.norm_one = nn.GroupNorm(8, outputs)
        self.two = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm_two = nn.GroupNorm(8, outputs)
        self.short = nn.Conv2d(inputs, outputs, 1, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm_one(self.one(x)))
        return F.relu(self.norm_two(self.two(y)) + self.short(x))


class Cnn(nn.Module):
    """A residual network with GroupNorm, 3 → 32 → 64 → 128 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 32, 3, padding=1), nn.GroupNorm(8, 32)
        self.blocks = nn.Sequential(ResidualBlock(32, 64), ResidualBlock(64, 128))
        self.head = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        return self.head(self.blocks(x).mean((2, 3)))


class TransformerBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm_one, self.norm_two = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.attention(self.norm_one(x)).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = heads.unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm_two(x))))


class Gpt(nn.Module):
    """A transformer decoder, pre-norm, 4 heads."""

    def __init__(self, vocabulary: int, width: int, positions: int, tied: bool, layers: int = 4) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(positions, width)
        self.blocks = nn.Sequential(*(TransformerBlock(width) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, ids: Tensor) -> Tensor:
        # Positions with a sample axis, which the peers need.
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device).expand_as(ids))
        return self.head(self.norm(self.blocks(x)))


@dataclass
class Job:
    """A model, one batch, and the loss of outputs and targets.

    Attributes:
        autocast: the dtype of products, None for float32.
        compiled: whether torch.compile makes the model.
        captured: whether a step is a replay of a CUDA graph.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    autocast: torch.dtype | None = None
    compiled: bool = False
    captured: bool = False

    def copied(self) -> nn.Module:
        """A model of a provider's own."""
        model = copy.deepcopy(self.model)
        return torch.compile(model) if self.compiled else model  # type: ignore[return-value]

    def products(self) -> AbstractContextManager[Any]:
        if self.autocast is None:
            return nullcontext()
        # A graph may not keep casts from step to step.
        return torch.autocast(self.x.device.type, dtype=self.autocast, cache_enabled=not self.captured)

    def loss(self, model: nn.Module, samples: slice = slice(None)) -> Tensor:
        with self.products():
            output = model(self.x[samples])
        return loss_of(output.float(), self.y[samples])


def loss_of(output: Tensor, target: Tensor) -> Tensor:
    """Cross entropy, a mean over samples and positions."""
    return F.cross_entropy(output.flatten(0, -2), target.flatten())


def make_job(case: Case, device: torch.device) -> Job:
    """The case's model and batch; its shape starts with the number of samples."""
    torch.manual_seed(0)
    samples, layout = case.shape[0], torch.contiguous_format
    if case.variant.startswith("MLP"):
        layers = [nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)]
        job = Job(nn.Sequential(*layers), torch.randn(case.shape), torch.randint(0, 10, (samples,)))
    elif case.variant.startswith("CNN"):
        job = Job(Cnn(), torch.randn(case.shape), torch.randint(0, 10, (samples,)))
        layout = torch.channels_last if "channels last" in case.variant else layout
    else:
        positions, width = case.shape[1:]
        number = re.search(r"of (\d+) layers", case.variant)
        depth, vocabulary = (4, 512) if number is None else (int(number[1]), 32_768)
        ids, targets = (torch.randint(0, vocabulary, (samples, positions)) for _ in range(2))
        model = Gpt(vocabulary, width, positions, "tied head" in case.variant, depth)
        job = Job(model, ids, targets)
    x = job.x.to(device)
    return Job(
        job.model.to(device).to(memory_format=layout),  # type: ignore[call-overload]
        x.contiguous(memory_format=layout) if x.ndim == 4 else x,
        job.y.to(device),
        None if case.dtype == "float32" else case.torch_dtype,
        COMPILED_MODEL in case.variant,
        CAPTURED_STEP in case.variant,
    )


def plain_step(job: Job) -> Callable[[], Any]:
    model = job.copied()

    def step() -> None:
        job.loss(model).backward()
        model.zero_grad()

    return step


def monitored(job: Job, steps: int) -> Callable[[], Any]:
    """`steps` training steps, the first of them measured."""
    model = job.copied()
    monitor = sdsd.GammaMonitor(model, every=steps, mode="exact")

    def step() -> sdsd.GammaStats:
        found = []
        for _ in range(steps):
            job.loss(model).backward()
            found.append(monitor.step())
            model.zero_grad()
        assert found[0] is not None
        return found[0]

    return step


def captured(job: Job, measured: bool) -> Callable[[], Any]:
    """A training step as a replay of a CUDA graph; `measured`: with what the monitor finds in it."""
    model = job.copied()
    monitor = sdsd.GammaMonitor(model, mode="exact") if measured else None

    def step() -> None:
        job.loss(model).backward()
        if monitor is not None:
            monitor.step()

    side, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
            model.zero_grad()
    torch.cuda.current_stream().wait_stream(side)
    with torch.cuda.graph(graph):
        step()

    def replay() -> sdsd.GammaStats | None:
        graph.replay()
        return None if monitor is None else monitor.replayed()

    return replay


def in_a_row(step: Callable[[], Any], count: int) -> Provider:
    """`count` steps, as in training, where a GPU works on one while Python prepares the next."""
    if count == 1:
        return step

    def steps() -> Any:
        return [step() for _ in range(count)][-1]

    return steps


def loop(job: Job) -> Provider:
    model, samples = copy.deepcopy(job.model), len(job.x)
    parameters = dict(model.named_parameters())

    def step() -> Squares:
        total = torch.zeros(len(parameters), dtype=torch.float64, device=job.x.device)
        for n in range(samples):
            loss = job.loss(model, slice(n, n + 1))
            gradients = torch.autograd.grad(loss, list(parameters.values()))
            total += torch.stack(torch._foreach_norm(gradients)).double().square()
        return dict(zip(parameters, total, strict=True))

    return step


def _squares(gradients: Tensor) -> Tensor:
    return torch.linalg.vector_norm(gradients.flatten(1), dim=1).double().square().sum()


def vmap_of_grad(job: Job) -> Provider:
    model = copy.deepcopy(job.model)
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def sample_loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return loss_of(torch.func.functional_call(model, parameters, (x.unsqueeze(0),)), y.unsqueeze(0))

    gradients_of = torch.func.vmap(torch.func.grad(sample_loss), in_dims=(None, 0, 0))

    def step() -> Squares:
        with sdpa_kernel(SDPBackend.MATH):  # vmap runs the fused attention a sample at a time
            return {name: _squares(each) for name, each in gradients_of(parameters, job.x, job.y).items()}

    return step


def backpack_norms(job: Job) -> Provider:
    try:
        import backpack
        from backpack.extensions import BatchL2Grad
    except ImportError:
        return Unavailable("backpack-for-pytorch is not installed")
    model = backpack.extend(copy.deepcopy(job.model))
    samples = len(job.x)

    def step() -> Squares:
        with backpack.backpack(BatchL2Grad()):  # leaves norm layers out
            job.loss(model).backward()
        found = {}
        for name, parameter in model.named_parameters():
            if hasattr(parameter, "batch_l2"):
                found[name] = parameter.batch_l2.double().sum() * samples**2
                del parameter.batch_l2
        model.zero_grad()
        return found

    return step


def opacus_hooks(job: Job) -> Provider:
    try:
        from opacus.grad_sample import GradSampleModule
    except ImportError:
        return Unavailable("opacus is not installed")
    model = GradSampleModule(copy.deepcopy(job.model), loss_reduction="mean")

    def step() -> Squares:
        job.loss(model).backward()
        found = {name: _squares(p.grad_sample) for name, p in model._module.named_parameters()}
        model.zero_grad()
        return found

    return step


def opacus_ghost(job: Job) -> Provider:
    try:
        from opacus.grad_sample import GradSampleModuleFastGradientClipping
    except ImportError:
        return Unavailable("opacus is not installed")
    model = GradSampleModuleFastGradientClipping(
        copy.deepcopy(job.model), loss_reduction="mean", use_ghost_clipping=True
    )

    def step() -> Squares:
        job.loss(model).backward()
        found = {name: p._norm_sample.double().square().sum() for name, p in model._module.named_parameters()}
        model.zero_grad()
        return found

    return step


def prepare(case: Case, device: torch.device) -> Comparison:
    """One model and batch, and everybody who finds the norms of the samples' gradients; peers on the CPU."""
    job = make_job(case, device)
    peers: dict[str, Callable[[Job], Provider]] = {
        LOOP: loop,
        VMAP: vmap_of_grad,
        BACKPACK: backpack_norms,
        OPACUS: opacus_hooks,
        OPACUS_GHOST: opacus_ghost,
    }
    truth = vmap_of_grad
    if job.autocast is not None:
        peers, truth = {}, loop
    together = 1 if device.type == "cpu" else IN_A_ROW
    if job.captured:
        providers: dict[str, Provider] = {
            OURS: in_a_row(captured(job, True), together),
            PLAIN_STEP: in_a_row(captured(job, False), together),
        }
    else:
        providers = {
            OURS: in_a_row(monitored(job, 1), together),
            EVERY_TENTH: monitored(job, EVERY),
            PLAIN_STEP: in_a_row(plain_step(job), together),
        }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, make in peers.items():
            try:
                providers[name] = make(job)
            except Exception as error:
                providers[name] = Unavailable(f"{type(error).__name__}: {str(error).splitlines()[0]}"[:200])
    wanted: Squares = {}

    def check(provider: str, result: Any) -> None:
        if provider == PLAIN_STEP:
            return
        if not wanted:
            wanted.update(truth(job)())  # type: ignore[operator]
        if isinstance(result, sdsd.GammaStats):
            parameters = {name.removeprefix("_orig_mod."): each for name, each in result.parameters.items()}
            assert set(parameters) == set(wanted)
            result = {name: each.noise * (each.n - 1) + each.n * each.signal for name, each in parameters.items()}
        total = sum(map(float, wanted.values()))
        for name, value in result.items():
            error = abs(float(value) - float(wanted[name])) / total
            assert error <= TOLERANCE[case.dtype], (
                f"{name}: Σ‖g‖² is {float(value):.6g}, {truth.__name__} gives {float(wanted[name]):.6g}"
            )

    steps = {OURS: together, EVERY_TENTH: EVERY, PLAIN_STEP: together}
    return Comparison(providers, check, baseline=PLAIN_STEP, steps=steps, by_process_time=True, warm=True)


@pytest.mark.parametrize("threads", [1], indirect=True)
@pytest.mark.parametrize("case", cases_for(OP), ids=str)
def test_gamma_monitor(case: Case, compare: Callable, device: torch.device) -> None:
    compare(prepare, case)
