"""Checks on user input, those of `sdsd` too. Every error says what was expected, what came, and what to do about it."""

from __future__ import annotations

import math
import numbers
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

FLOAT_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
ZERO_POLICIES = ("zero", "nan", "raise")
"""What a neuron that is zero on every sample may get in its row and column of cosines; see `check_directions`."""

PRECISIONS = ("float32", "fp16")
RETIRED = {"tf32": "fp16", "bf16": "fp16", "bf16x3": "float32"}
"""Precisions of earlier releases and what serves in their place: as exact or more so, and as fast or faster."""


def check_float_tensor(value: Any, name: str) -> Tensor:
    """Return `value` if it is a dense tensor of a real floating-point dtype; otherwise a TypeError that says how."""
    strided = isinstance(value, Tensor) and value.layout == torch.strided
    if strided and value.dtype in FLOAT_DTYPES and not (value.is_nested or hasattr(value, "device_mesh")):
        return value
    raise _no_float_tensor(value, name)


def _no_float_tensor(value: Any, name: str) -> TypeError:
    if not isinstance(value, Tensor):
        what = f"a torch.Tensor, got {type(value).__name__}. Convert it first, for example with torch.as_tensor({name})"
    elif value.is_nested:
        what = f"a dense tensor, got a nested one. Pass torch.cat({name}.unbind()), all samples behind each other"
    elif hasattr(value, "device_mesh"):
        what = f"a tensor of this process, got a {type(value).__name__}. Pass {name}.full_tensor(), or .to_local()"
    elif value.is_quantized:
        what = f"a floating-point tensor, got a quantised one ({value.dtype}). Pass {name}.dequantize()"
    elif value.layout != torch.strided:
        what = f"a dense tensor, got layout {value.layout}. Pass {name}.to_dense()"
    elif value.is_complex():
        what = f"real values, got {value.dtype}. Pass torch.view_as_real({name}) with its last two dimensions joined"
    else:
        what = f"float64, float32, float16 or bfloat16, got {value.dtype}. Pass {name}.float()"
    return TypeError(f"{name}: expected {what}.")


def check_choice(value: Any, name: str, choices: Sequence[str]) -> str:
    """Return `value` if it is one of `choices`; otherwise a ValueError that lists them."""
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name}: expected one of {listed}, got {value!r}.")
    return str(value)


def check_precision(value: Any) -> str:
    """One of `PRECISIONS`; a DeprecationWarning for what used to be one, a ValueError for anything else."""
    return str(value) if value in PRECISIONS else _retired(value)


def _retired(value: Any) -> str:
    if isinstance(value, str) and value in RETIRED:
        warnings.warn(
            f"precision={value!r} is retired: {RETIRED[value]!r} serves in its place, which errs no more and takes no "
            "longer. Pass that.",
            DeprecationWarning,
            stacklevel=4,
        )
        return RETIRED[value]
    return check_choice(value, "precision", PRECISIONS)


def check_dtype(value: Any, name: str) -> None:
    """TypeError unless `value` is None or a dtype that results may have."""
    if value is not None and value not in FLOAT_DTYPES:
        raise TypeError(f"{name}: expected one of {', '.join(map(str, FLOAT_DTYPES))}, or None, got {value!r}.")


def check_integer(
    value: Any,
    name: str,
    *,
    least: int | None = None,
    most: int | None = None,
    optional: bool = False,
    why: str = "",
    do: str = "",
) -> Any:
    """Return `value` as an int if it is a whole number in range, of Python or NumPy; None too where it is optional.

    Args:
        why: what the bounds come from, for the message about a number out of range: "for 6 neurons".
        do: what ends that message.

    Raises:
        TypeError: no whole number; a bool is none.
        ValueError: out of range.
    """
    if value is None and optional:
        return None
    number = whole_number(value)
    if number is None:
        raise TypeError(f"{name}: expected an int{' or None' if optional else ''}, got {type(value).__name__}.")
    if (least is None or number >= least) and (most is None or number <= most):
        return number
    bounds = f"at most {most}" if least is None else f"at least {least}" if most is None else f"{least} to {most}"
    raise ValueError(f"{name}: expected {bounds}{why and ' '}{why}, got {value}.{do and ' '}{do}")


def check_count(value: Any, name: str, *, least: int = 1, of: str = "", optional: bool = False) -> Any:
    """Return `value` as an int if it is a whole number, at least `least`, else ValueError; `of` says what it counts."""
    if value is None and optional:
        return None
    number = whole_number(value)
    if number is None or number < least:
        what = f"a whole number{of and ' of '}{of}, at least {least}"
        raise ValueError(f"{name}: expected {what}{', or None' if optional else ''}, got {value!r}.")
    return number


def whole_number(value: Any) -> Any:
    """`value` as an int, or as the symbol that stands for one while torch traces; None if it is no whole number."""
    if type(value) is int or isinstance(value, torch.SymInt):
        return value
    return int(value) if isinstance(value, numbers.Integral) and not isinstance(value, bool) else None


def check_number(
    value: Any,
    name: str,
    what: str,
    *,
    least: float = -math.inf,
    above: float = -math.inf,
    most: float = math.inf,
    below: float = math.inf,
    do: str = "",
) -> float:
    """Return `value` as a float if it is finite and in range, of Python or NumPy.

    Args:
        what: what is expected, in words: "a number above 0".
        do: what follows the message.

    Raises:
        TypeError: no real number; a bool is none.
        ValueError: NaN, infinite or out of range.
    """
    number: Any = value
    if isinstance(number, bool) or not isinstance(number, numbers.Real):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}.")
    number = float(number)
    if not (least <= number <= most and above < number < below):  # NaN and infinity are on no side
        raise ValueError(f"{name}: expected {what}, got {value!r}.{do and ' '}{do}")
    return number


def check_max_bytes(value: Any, *, optional: bool = True) -> Any:
    """Return `value` as an int if it is a bound on memory, at least one byte; None too where it is optional."""
    do = "It bounds memory, in bytes; None takes what is fastest." if optional else "It bounds memory, in bytes."
    number = check_integer(value, "max_bytes", least=1, optional=optional, do=do)
    if type(number) is int and number >= 2**63:
        raise ValueError(f"max_bytes: expected fewer than 2**63, got {value}. {do}")
    return number


def check_neurons(activations: Tensor, neuron_dim: Any, name: str = "activations", *, samples: bool = True) -> int:
    """Return `neuron_dim`, counted from the front, if it names one of two or more dimensions that are not empty.

    Args:
        samples: whether there has to be one.

    Raises:
        TypeError: neuron_dim is no int.
        ValueError: fewer than two dimensions, neuron_dim out of range, no neuron or no sample.
    """
    shape = activations.shape
    dim: int = neuron_dim if type(neuron_dim) is int else check_integer(neuron_dim, "neuron_dim")
    if len(shape) < 2 or not -len(shape) <= dim < len(shape) or (samples and 0 in shape):
        raise _no_neurons(tuple(shape), dim, name)
    return dim % len(shape)


def _no_neurons(shape: tuple[int, ...], dim: int, name: str) -> ValueError:
    if len(shape) < 2:
        return ValueError(
            f"{name}: expected at least two dimensions, samples and neurons, got shape {shape}. "
            "Collect several samples, and give a single neuron or sample a dimension of size 1."
        )
    if not -len(shape) <= dim < len(shape):
        return ValueError(
            f"neuron_dim: expected {-len(shape)} to {len(shape) - 1} for {name} of shape {shape}, got {dim}. "
            "It names the dimension that counts neurons."
        )
    missing = "neurons" if shape[dim] == 0 else "samples"
    return ValueError(
        f"{name}: expected at least one neuron and one sample, got shape {shape}, which has no {missing}. "
        "Check that data was collected and that neuron_dim names the right dimension."
    )


def check_directions(inverse_norm: Tensor, name: str, *, center: bool) -> None:
    """ValueError if a neuron is zero on every sample, which its inverse norm of 0 tells. Waits for the device."""
    dead = (inverse_norm == 0).nonzero().flatten().tolist()
    if dead:
        what = "the same on every sample, so zero after centring" if center else "zero on every sample"
        raise ValueError(
            f"{name}: expected every neuron to have a direction, got {len(dead)} that are {what} "
            f"(first: {dead[:5]}). Remove them, or use zero='zero' or zero='nan'."
        )


def check_shape(value: Tensor, name: str, shape: tuple[int, ...], what: str, do: str) -> None:
    """ValueError unless `value` has `shape`; `what` says why that one, `do` what to do."""
    if tuple(value.shape) != shape:
        raise ValueError(f"{name}: expected shape {shape}{what}, got {tuple(value.shape)}. {do}")


def check_device(value: Tensor, name: str, other: Tensor, like: str) -> None:
    """ValueError unless `value` is on the device of `other`, the argument named by `like`."""
    if value.device != other.device:
        raise ValueError(f"{name}: expected device {other.device} like {like}, got {value.device}. Move it there.")


def check_written(value: Tensor, name: str, start: str) -> None:
    """ValueError unless `value` can be written in place; `start` makes one that can."""
    negated = not torch.compiler.is_compiling() and value.is_neg()
    if negated or not value.is_contiguous():
        got = "a view that negates" if negated else f"strides {value.stride()}"
        raise ValueError(f"{name}: expected contiguous rows, got {got}. Start from {start}.")
    if value.requires_grad:
        do = f"Use {name}.detach()."
        raise ValueError(f"{name}: expected a tensor without gradient, since it is written in place. {do}")


def check_apart(written: Tensor, name: str, **read: Tensor | None) -> None:
    """ValueError where what is `written`, a contiguous tensor, lies in the memory of what is `read`."""
    start = written.data_ptr()
    end = start + written.numel() * written.element_size()
    for like, other in read.items():
        if other is not None and other.numel():
            last = sum((size - 1) * stride for size, stride in zip(other.shape, other.stride(), strict=True))
            first = other.data_ptr()
            if first < end and start < first + (last + 1) * other.element_size():
                raise ValueError(
                    f"{name}: expected memory of its own, got some that it shares with {like}, which is read while "
                    f"{name} is written. Pass {like}.clone()."
                )
