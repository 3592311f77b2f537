"""The proof of a smaller network: it and the merged one are run on the same inputs, and their outputs compared.

What rounding may do is measured, not assumed: the merged network is run once more with the weights of the layer and of
its readers changed by one rounding error each, and the two networks may differ by `ROUNDINGS` times what that does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sdsd_kernels import exact_convolutions

from ...graphs import READER, TIED, WRITER, Part, as_arguments, likely_inputs, look, outputs, seeded
from ...graphs import tensors as taken
from ...models import evaluating, training_outside_torch, untouched, unwritten
from ..arithmetic import plain_arithmetic, widened
from .edits import Edit, applied, part_tensor
from .group import Consumers

ROUNDINGS = 64
SEED = 0
WHAT_TO_DO = (
    "Something in the model's forward depends on how many neurons there are. Merge without removal (remove=False), or "
    "pass check=False if the difference is intended."
)

GROUPED = "multiple of 16 bytes"  # torch's words for what grouped products take

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


def prove(
    model: nn.Module,
    smaller: nn.Module,
    parts: Sequence[Part],
    merged: AbstractContextManager[None],
    example_input: Any,
) -> bool:
    """Whether both could be compared; ValueError where they differ beyond rounding.

    Args:
        model: the network; inside `merged` it is the merged one. It is left as it was.
        smaller: what should compute the same.
        parts: what was merged, and what reads it.
        example_input: None: inputs of a likely shape are tried; the proof is left out where the model runs on none.
    """
    compared = False
    with merged, untouched(model), untouched(smaller), _exact(model):
        for inputs in _inputs(model, example_input):
            for mode in (evaluating, training_outside_torch):
                compared |= _Comparison(model, smaller, parts, inputs, mode).agree()
    return compared


class _Comparison:
    """Both networks on one input, in one mode."""

    def __init__(
        self,
        model: nn.Module,
        smaller: nn.Module,
        parts: Sequence[Part],
        inputs: Inputs,
        mode: Callable[[nn.Module], Any],
    ) -> None:
        self.model, self.smaller, self.parts, self.inputs, self.mode = model, smaller, parts, inputs, mode
        self.where = "" if mode is evaluating else "in training, "

    def agree(self) -> bool:
        """False where the merged network does not run, or is random."""
        try:
            merged = self._run(self.model)
        except Exception:
            return False  # in training it may need targets, and random numbers may be no input for it
        if not any(bool(each.isfinite().any()) for each in merged):
            return False
        uses = _Uses(self.model, self.smaller, self.parts)
        try:
            with uses:
                smaller = self._run(self.smaller)
        except Exception as error:
            uses.refuse()
            raise ValueError(
                f"consolidation: {self.where}the smaller network does not run where the merged one does: "
                f"{type(error).__name__} in {self._where_it_stops()}: {_line(error)} {self._what_to_do(error)}"
            ) from error
        uses.refuse()
        if len(merged) != len(smaller) or any(a.shape != b.shape for a, b in zip(merged, smaller, strict=True)):
            raise ValueError(
                f"consolidation: {self.where}the smaller network gives outputs of other shapes than the merged one: "
                f"{[tuple(each.shape) for each in smaller]} instead of {[tuple(each.shape) for each in merged]}. "
                + WHAT_TO_DO
            )
        differences = [_difference(a, b) for a, b in zip(merged, smaller, strict=True)]
        allowed = [4 * _epsilon(each) * _size(each) for each in merged]
        if all(difference <= most for difference, most in zip(differences, allowed, strict=True)):
            return True
        rounding = [_difference(a, b) for a, b in zip(merged, self._run_rounded(merged), strict=True)]
        allowed = [most + ROUNDINGS * noise for most, noise in zip(allowed, rounding, strict=True)]
        wrong = [k for k, (off, most) in enumerate(zip(differences, allowed, strict=True)) if not off <= most]
        if not wrong:
            return True
        another = self._run(self.model, SEED + 1)
        if any(not _difference(merged[k], another[k]) <= allowed[k] for k in wrong):
            return False
        worst = wrong[0]
        raise ValueError(
            f"consolidation: {self.where}the smaller network computes something else than the merged one: outputs "
            f"differ by up to {differences[worst]:.3g}, of {_size(merged[worst]):.3g}; rounding does about "
            f"{rounding[worst]:.1g}. They part first in {self._where_they_part()}. {WHAT_TO_DO}"
        )

    def _what_to_do(self, error: Exception) -> str:
        if GROUPED not in str(error):
            return WHAT_TO_DO
        features = max(1, 16 // next(part_tensor(self.model, part).element_size() for part in self.parts))
        return (
            f"Grouped products of experts take only multiples of {features} features of this dtype. Pass "
            f"multiple={features} to consolidate_model or plan_consolidation, or give consolidate as many pairs as "
            "leave such a number."
        )

    def _run(self, model: nn.Module, seed: int = SEED) -> list[Tensor]:
        arguments, named = self.inputs
        # Norms that are not torch's own take statistics in training.
        with untouched(model), unwritten(self.inputs), self.mode(model), seeded(seed, _cuda_devices(model)):
            return list(_tensors(model(*arguments, **named)))

    def _run_rounded(self, merged: list[Tensor]) -> list[Tensor]:
        parts = {part.name: part for part in self.parts if part.role in (WRITER, READER, TIED)}
        generator = torch.Generator().manual_seed(SEED)
        edits = []
        for part in parts.values():
            weight = part_tensor(self.model, part)
            epsilon = max([torch.finfo(weight.dtype).eps, *map(_epsilon, merged)])
            signs = torch.randint(2, weight.shape, generator=generator).double().to(weight.device) * 2 - 1
            changed = (widened(weight.detach()) * (1 + epsilon * signs)).to(weight.dtype)
            edits.append(Edit(weight, 0, torch.arange(len(weight), device=weight.device), changed))
        with applied(edits):
            return self._run(self.model)

    def _where_it_stops(self) -> str:
        inside: list[str] = []
        with ExitStack() as stack:
            for name, module in self.smaller.named_modules():
                enter = module.register_forward_pre_hook(lambda _m, _i, name=name: inside.append(name))
                leave = module.register_forward_hook(lambda _m, _i, _o: inside.pop() and None)
                stack.callback(enter.remove)
                stack.callback(leave.remove)
            try:
                self._run(self.smaller)
            except Exception:
                return _named(inside[-1] if inside else "")
        return _named("")

    def _where_they_part(self) -> str:
        one, two = (self._outputs_by_module(model) for model in (self.model, self.smaller))
        for (name, tensors), (_, others) in zip(one, two, strict=False):
            for tensor, other in zip(tensors, others, strict=False):
                same = tensor.shape == other.shape
                if same and not _difference(tensor, other) <= ROUNDINGS * _epsilon(tensor) * _size(tensor):
                    return _named(name)
        return _named("")

    def _outputs_by_module(self, model: nn.Module) -> list[tuple[str, list[Tensor]]]:
        by_module: list[tuple[str, list[Tensor]]] = []

        def noting(name: str) -> Callable[..., None]:
            return lambda _module, _inputs, output: by_module.append((name, list(_tensors(output))))

        with ExitStack() as stack:
            for name, module in model.named_modules():
                stack.callback(module.register_forward_hook(noting(name)).remove)
            self._run(model)
        return by_module


class _Uses(TorchDispatchMode):
    """Whether the copy takes a tensor of the model itself, where it has one of its own."""

    def __init__(self, model: nn.Module, smaller: nn.Module, parts: Sequence[Part]) -> None:
        super().__init__()
        shared = {id(each) for each in (*smaller.parameters(), *smaller.buffers())}
        names = {id(part_tensor(model, part)): part.name for part in parts}
        self.names, self.name = {key: name for key, name in names.items() if key not in shared}, ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.name = self.name or next((self.names[id(each)] for each in taken(args) if id(each) in self.names), "")
        return func(*args, **(kwargs or {}))

    def refuse(self) -> None:
        """ValueError where it does."""
        if self.name:
            raise ValueError(
                f"consolidation: the copy that was cut computes with {self.name!r} of the model itself: its forward or "
                "a hook is a function that holds the model (model.forward = lambda …). Write it as a method, or let "
                "the hook take the module it is given."
            )


def _inputs(model: nn.Module, example_input: Any) -> Iterator[Inputs]:
    """The example and random numbers of its shapes; or what the model runs on, of a likely shape."""
    if example_input is None:
        yield from (((guess,), {}) for guess in likely_inputs(model))
        return
    arguments, named = as_arguments(example_input)
    yield arguments, named
    yield from (each for groups in look(model, example_input) for each in groups.recording.others)
    generator = torch.Generator().manual_seed(SEED)

    def random(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.layout != torch.strided:
            return value
        return torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value)

    if any(isinstance(value, Tensor) and value.is_floating_point() for value in (*arguments, *named.values())):
        yield tuple(map(random, arguments)), {name: random(value) for name, value in named.items()}


def _tensors(output: Any) -> Iterator[Tensor]:
    """Every floating-point number in what a model gives, as tensors."""
    for each in outputs(output):
        if not isinstance(each, Tensor):
            yield torch.tensor(float(each), dtype=torch.float64)
        elif each.is_floating_point() or each.is_complex():
            yield each.detach()


def _difference(one: Tensor, two: Tensor) -> float:
    """max |one − two|; infinite where one has a NaN or an infinity that the other has not."""
    if one.numel() == 0:
        return 0.0
    one, two = widened(one), widened(two)
    same = (one == two) | (one.isnan() & two.isnan())
    difference = torch.where(same, 0.0, (one - two).abs())
    return torch.where(difference.isfinite(), difference, torch.inf).max().item()


def _size(tensor: Tensor) -> float:
    values = tensor.abs().double()
    return values[values.isfinite()].max().item() if bool(values.isfinite().any()) else 0.0


def _epsilon(tensor: Tensor) -> float:
    return torch.finfo(tensor.dtype).eps


def _named(name: str) -> str:
    return f"module {name!r}" if name else "the model's own forward"


def _line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{text[0].rstrip('.')}." if text else ""


def _cuda_devices(model: nn.Module) -> list[torch.device]:
    return list({each.device for each in (*model.parameters(), *model.buffers()) if each.device.type == "cuda"})


@contextmanager
def _exact(model: nn.Module) -> Iterator[None]:
    """No autocast around the model, and float32 products in float32."""
    first = next(model.parameters(), None)
    device = torch.device("cpu") if first is None else first.device
    with ExitStack() as stack:
        stack.enter_context(plain_arithmetic(device))
        if device.type == "cuda":
            stack.enter_context(exact_convolutions())
        yield


def zeroed(model: nn.Module, group: Consumers, neurons: Sequence[int]) -> list[Edit]:
    """What makes readers blind for some neurons."""
    edits = []
    for part in group.parts:
        if part.role in (READER, TIED):
            weight = part_tensor(model, part)
            entries = part.entries(torch.tensor(neurons, dtype=torch.long)).to(weight.device)
            values = torch.zeros_like(weight.detach().index_select(part.dim, entries))
            edits.append(Edit(weight, part.dim, entries, values))
    return edits
