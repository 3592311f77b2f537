"""What a convolution's arguments mean, checked: sizes of kernel and output, stride, padding, dilation, groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from .._checks import check_integer


class Convolution(NamedTuple):
    """One entry a dimension of space."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def output_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """Positions of the output for inputs of `size`; below 1 where the kernel does not fit."""
        return tuple(
            (n + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for n, kernel, stride, padding, dilation in zip(size, *self[:4], strict=True)
        )


LINEAR = Convolution((1, 1), (1, 1), (0, 0), (1, 1), 1)


def _each(value: Any, name: str, space: int, least: int) -> tuple[int, ...]:
    """`value`, an int or a sequence of one a dimension, as a tuple of ints."""
    if isinstance(value, (list, tuple)):
        if len(value) not in (1, space):
            raise ValueError(
                f"{name}: expected an int or {space} of them, one a dimension of space, got {len(value)}: {value!r}."
            )
        entries = [check_integer(entry, f"{name}[{index}]", least=least) for index, entry in enumerate(value)]
        return tuple(entries * space if len(entries) == 1 else entries)
    return (check_integer(value, name, least=least),) * space


def make_convolution(
    space: int, kernel_size: Any, stride: Any, padding: Any, dilation: Any, groups: Any
) -> Convolution:
    """A convolution over `space` dimensions.

    Raises:
        TypeError: an entry that is no int.
        ValueError: a sequence of another length, an entry out of range, padding by name.
    """
    if isinstance(padding, str):
        raise ValueError(
            f"padding: expected an int or {space} of them, got {padding!r}. "
            "Pass the numbers; where they differ between the sides, pad the inputs with torch.nn.functional.pad."
        )
    return Convolution(
        _each(kernel_size, "kernel_size", space, 1),
        _each(stride, "stride", space, 1),
        _each(padding, "padding", space, 0),
        _each(dilation, "dilation", space, 1),
        check_integer(groups, "groups", least=1),
    )
