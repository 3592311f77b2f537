"""Activations as calls take them, checked once: neurons first, samples behind."""

from __future__ import annotations

import mmap
import os
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sdsd_kernels import checks

if TYPE_CHECKING:
    import numpy as np


MAPPED = 2**20
"""Bytes from which on `room` asks the system for memory of its own."""


def alive_flags(alive: Tensor | np.ndarray, count: int) -> Tensor:
    """`alive` as a tensor; ValueError unless it is one boolean a neuron."""
    flags = as_tensor(alive, "alive")
    if tuple(flags.shape) != (count,) or flags.dtype != torch.bool:
        raise ValueError(
            f"alive: expected {count} booleans, one a neuron, got {flags.dtype} of shape {tuple(flags.shape)}."
        )
    return flags


def usable_device(device: torch.device | str) -> torch.device:
    """The device as tensors on it name it; ValueError where torch cannot use it."""
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:
        why = str(error).partition("\n")[0]
        raise ValueError(f"device: expected one that this torch can use, got {device!r}: {why}") from error


def neurons_first(activations: Tensor | np.ndarray, neuron_dim: int | None) -> Tensor:
    """A view (neurons, …) of activations as `neuron_cosine_matrix` takes them; there may be no samples.

    Raises:
        TypeError: no tensor or array, or not a dense one of a supported floating-point dtype.
        ValueError: fewer than two dimensions, or neuron_dim out of range.
    """
    activations = checks.check_float_tensor(as_tensor(activations), "activations")
    checks.check_integer(neuron_dim, "neuron_dim", optional=True)
    if neuron_dim is None:
        neuron_dim = 1 if activations.ndim >= 4 else -1
    neuron_dim = checks.check_neurons(activations, neuron_dim, samples=False)
    return activations.detach().movedim(neuron_dim, 0)


def room(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Uninitialised memory that costs what is written, and that the system gets back when it is freed."""
    size = rows * columns * dtype.itemsize
    if device.type != "cpu" or size < MAPPED or not hasattr(mmap, "MAP_PRIVATE"):
        return torch.empty((rows, columns), dtype=dtype, device=device)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(memory, dtype=dtype).view(rows, columns)


def sample_parts(rows: Tensor, most: int) -> list[Tensor]:
    """Cut `rows` (neurons, …) into views of at most `most` samples each."""
    samples = rows[0].numel()
    if samples <= most:
        return [rows]
    try:
        return list(rows.view(rows.shape[0], samples).split(most, 1))
    except RuntimeError:  # samples with several strides
        inner = samples // rows.shape[1]
    if inner <= most:
        return list(rows.split(most // inner, 1))
    return [part for each in rows.unbind(1) for part in sample_parts(each, most)]


def neuron_dim_of_both(x: Tensor, y: Tensor | None, neuron_dim: int | None) -> tuple[Tensor, Tensor | None, int]:
    """Both tensors and their dimension of neurons; neurons are moved to the front where the default differs."""
    if neuron_dim is not None:
        return x, y, neuron_dim
    of_x, of_y = (1 if part is not None and part.dim() >= 4 else -1 for part in (x, y))
    if y is None or of_x == of_y:
        return x, y, of_x
    return x.movedim(of_x, 0), y.movedim(of_y, 0), 0


def as_tensor(activations: Tensor | np.ndarray, name: str = "activations") -> Tensor:
    """A tensor over the same memory where torch can share it.

    Raises:
        TypeError: no tensor or array, or one of a dtype that torch does not have.
        ValueError: a masked array with something masked.
    """
    return activations if isinstance(activations, Tensor) else _from_numpy(activations, name)


def _instead(given: Any, name: str) -> str:
    if hasattr(given, "cosine_matrix"):
        return "Pass its cosine_matrix() where there is cosine=, or its values (collect_activations(keep=True))."
    if isinstance(given, Mapping):
        return f"Pass one of its entries: {', '.join(map(repr, list(given)[:5]))}{', …' if len(given) > 5 else ''}."
    if hasattr(given, "to_numpy"):  # pandas and what is like it
        return f"Pass {name}.to_numpy(dtype='float32')."
    if isinstance(given, (str, os.PathLike)):
        return "Read the file first, for example with numpy.load."
    return f"Convert it first, for example with torch.as_tensor({name})."


def _from_numpy(activations: np.ndarray, name: str) -> Tensor:
    if type(activations).__module__.split(".")[0] != "numpy" or not hasattr(activations, "__array_interface__"):
        raise TypeError(
            f"{name}: expected a torch.Tensor or a NumPy array, got {type(activations).__name__}. "
            + _instead(activations, name)
        )
    if hasattr(activations, "mask"):
        import numpy as np

        masked = int(activations.mask.sum())
        if masked:
            raise ValueError(
                f"{name}: expected numbers everywhere, got a masked array with {masked:,} of {activations.size:,} "
                f"masked. Leave those samples out, or pass {name}.filled(…)."
            )
        activations = np.asarray(activations.data)
    try:
        with warnings.catch_warnings():
            # Read-only arrays (memory maps) are fine: nothing here writes to its input.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return torch.as_tensor(activations)
    except TypeError as error:
        raise TypeError(
            f"{name}: expected an array of floating-point numbers, got dtype {activations.dtype}. "
            f"Pass {name}.astype('float32')."
        ) from error
    except ValueError:
        # Negative strides, or the bytes of a number in another order than this machine's.
        return torch.from_numpy(activations.astype(activations.dtype.newbyteorder("="), order="C"))
