"""Sizes that a model's forward asks for, as whole numbers that know what they count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .atoms import Ids

Note = Callable[["Count", str], None]
"""Called with a count and how it was used as a number."""
Origin = tuple[str, str]
"""A module's name and the attribute that holds the number."""


class Count(int):
    """The length of an axis, or what a module's attribute says.

    Sums, products and whole quotients are counts as well; a fraction, a power or an order is a use as a number.
    """

    ids: tuple[Ids, ...]
    origins: tuple[Origin, ...]
    note: Note
    exact: bool
    quotients: tuple[tuple[Origin, Origin], ...]
    """Of which numbers it is a quotient, the dividend first."""

    def __new__(
        cls, value: int, note: Note, ids: tuple[Ids, ...] = (), origins: tuple[Origin, ...] = (), exact: bool = True
    ) -> Count:
        made = super().__new__(cls, value)
        made.ids, made.origins, made.note, made.exact, made.quotients = ids, origins, note, exact, ()
        return made

    def _derived(self, value: Any, other: Any) -> Any:
        if type(value) is not int:
            return value
        more: tuple[Any, ...] = (
            (other.ids, other.origins, other.quotients) if isinstance(other, Count) else ((), (), ())
        )
        made = Count(value, self.note, (*self.ids, *more[0]), (*self.origins, *more[1]), False)
        made.quotients = (*self.quotients, *more[2])
        return made

    def _used(self, value: Any, how: str) -> Any:
        if value is not NotImplemented:
            self.note(self, how)
        return value

    def __reduce__(self) -> Any:
        return int, (int(self),)

    def __float__(self) -> float:
        return self._used(int.__float__(self), "the model's forward")  # type: ignore[no-any-return]

    def bit_length(self) -> int:
        return self._used(int.bit_length(self), "the model's forward")  # type: ignore[no-any-return]


def _plain(other: Any) -> Any:
    return int(other) if isinstance(other, Count) else other


def _counted(name: str) -> Callable[[Count, Any], Any]:
    operation, with_float = getattr(int, name), getattr(float, name, None)

    def counted(self: Count, other: Any) -> Any:
        if isinstance(other, float) and with_float is not None:
            return self._used(with_float(float(int(self)), other), "the model's forward")
        made = self._derived(operation(int(self), _plain(other)), other)
        if name == "__floordiv__" and isinstance(made, Count) and isinstance(other, Count):
            made.quotients += tuple((one, two) for one in self.origins for two in other.origins)
        return made

    return counted


def _number(name: str) -> Callable[..., Any]:
    operation, with_float = getattr(int, name), getattr(float, name, None)

    def used(self: Count, *others: Any) -> Any:
        if others and isinstance(others[0], float) and with_float is not None:
            result = with_float(float(int(self)), *others)
        else:
            result = operation(int(self), *map(_plain, others))
        if others and isinstance(others[0], Count) and result is not NotImplemented:
            others[0].note(others[0], "the model's forward")
        return self._used(result, "the model's forward")

    return used


for _name in ("add", "radd", "sub", "rsub", "mul", "rmul", "floordiv", "rfloordiv", "mod"):
    setattr(Count, f"__{_name}__", _counted(f"__{_name}__"))
for _name in (
    *("truediv", "rtruediv", "pow", "rpow", "lt", "le", "gt", "ge", "neg", "abs", "round", "divmod", "rdivmod"),
    *("lshift", "rshift", "rlshift", "rrshift", "and", "or", "xor", "rand", "ror", "rxor", "rmod"),
):
    setattr(Count, f"__{_name}__", _number(f"__{_name}__"))
