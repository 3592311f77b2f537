"""Sizes that a model's forward asks for, as whole numbers that know what they count."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, Protocol

from .atoms import Atoms, Ids

Share = tuple[Ids, tuple["Origin", ...]]
"""The entries of an axis, over these numbers, times what is written."""
Origin = tuple[str, str]
"""A module's name and the attribute that holds the number."""


class Owner(Protocol):
    """What counts tell of what is done with them."""

    @property
    def atoms(self) -> Atoms | None:
        """Of which run it is; None for sizes of inputs."""

    def used(self, count: Count, how: str) -> None:
        """As a number."""

    def equal(self, count: Count, other: Any) -> None:
        """It was compared with a number, and is equal."""

    def compared(self, size: int = 0, beyond: int = 0) -> None:
        """It was compared with a number, which would have come out otherwise for the size `beyond`; 0 where none is
        known."""


COMPARISONS = {"__lt__": "__gt__", "__le__": "__ge__", "__gt__": "__lt__", "__ge__": "__le__"}
"""Each with its mirror image."""
KEEPS_SHAPES = {"einops"}
"""Libraries that keep what they computed from shapes, so that numbers would come out that nothing is known of, and
compute it anew for sizes without a hash."""


class Count(int):
    """The length of an axis, or what a module's attribute says.

    Sums, products and whole quotients are counts as well; a fraction, a power or an order is a use as a number. Two
    that are compared and equal have to stay equal.
    """

    ids: tuple[Ids, ...]
    origins: tuple[Origin, ...]
    owner: Owner
    exact: bool
    key: bool
    """Whether it was looked up in a dictionary, which compares it with others' keys."""
    quotients: tuple[tuple[Origin | None, Origin], ...]
    """Of which numbers it is a quotient, the dividend first; None for one that no module holds."""
    given: Owner | None
    """Who is told of comparisons where an input decides how many there are, though they are entries of a parameter."""
    factors: tuple[Origin, ...]
    """Of which numbers it is a product; none of a single number."""
    share: Share | None
    """How it goes with the entries of one axis; None where it is no length, times and over numbers."""

    def __new__(
        cls, value: int, owner: Owner, ids: tuple[Ids, ...] = (), origins: tuple[Origin, ...] = (), exact: bool = True
    ) -> Count:
        made = super().__new__(cls, value)
        made.ids, made.origins, made.owner, made.exact, made.key, made.quotients = ids, origins, owner, exact, False, ()
        made.factors, made.given = (), None
        made.share = (ids[0], ()) if len(ids) == 1 else None
        return made

    @property
    def followed(self) -> bool:
        """Whether it counts entries, or is a number that a module holds; others are sizes of inputs."""
        return bool(self.ids or self.origins)

    def _derived(self, value: Any, other: Any) -> Any:
        if type(value) is not int:
            return value
        more: tuple[Any, ...] = (
            (other.ids, other.origins, other.quotients) if isinstance(other, Count) else ((), (), ())
        )
        owner = other.owner if isinstance(other, Count) and not self.followed else self.owner
        made = Count(value, owner, (*self.ids, *more[0]), (*self.origins, *more[1]), False)
        made.quotients = (*self.quotients, *more[2])
        made.given = self.given or (other.given if isinstance(other, Count) else None)
        made.share = None
        return made

    def _shared(self, name: str, other: Any) -> Share | None:
        """Of what comes of it times or over a number."""
        times, over = name in ("__mul__", "__rmul__"), name == "__floordiv__"
        if self.share is None or not (times or over) or (isinstance(other, Count) and (times or other.ids)):
            return None
        return self.share[0], (*self.share[1], *(other.origins if isinstance(other, Count) else ()))

    def _used(self, value: Any, how: str) -> Any:
        if value is not NotImplemented:
            self.owner.used(self, how)
        return value

    def __eq__(self, other: object) -> bool:
        same = int.__eq__(self, other)
        if not (self.key and isinstance(other, Count)):
            _noted(self, "__eq__", other)
        if isinstance(other, Count) and other.followed and not self.followed:
            return other.__eq__(int(self))
        if same is True and self.exact and not self.key:
            self.owner.equal(self, other)
        return same

    def __ne__(self, other: object) -> bool:
        same = self.__eq__(other)
        return same if same is NotImplemented else not same

    def __hash__(self) -> int:
        caller = inspect.currentframe()
        caller = None if caller is None else caller.f_back
        if caller is not None and caller.f_globals.get("__name__", "").partition(".")[0] in KEEPS_SHAPES:
            raise TypeError("a count that is followed has no hash")
        self.key = True
        return int.__hash__(self)

    def __reduce__(self) -> Any:
        return int, (int(self),)

    def __neg__(self) -> Any:
        return self._derived(int.__neg__(self), None)

    def __float__(self) -> float:
        return self._used(int.__float__(self), "the model's forward")  # type: ignore[no-any-return]

    def __array_ufunc__(self, function: Any, method: str, *given: Any, **named: Any) -> Any:
        """NumPy's functions, as `np.sqrt`, which else take the plain number out of it."""
        for each in given:
            if isinstance(each, Count):
                each.owner.used(each, f"NumPy's {function.__name__!r}")
        return getattr(function, method)(*map(_plain, given), **named)

    def __bool__(self) -> bool:
        _noted(self, "__eq__", None)
        return int.__bool__(self)

    def bit_length(self) -> int:
        return self._used(int.bit_length(self), "the model's forward")  # type: ignore[no-any-return]


def _noted(count: Count, name: str, other: Any, depth: int = 2) -> None:
    """It is compared; what torch compares itself decides nothing of a model's own."""
    caller = inspect.currentframe()
    for _ in range(depth):
        caller = None if caller is None else caller.f_back
    if caller is not None and caller.f_globals.get("__name__", "").partition(".")[0] == "torch":
        return
    _tell(count, name, other)
    if isinstance(other, Count) and count.followed and (other.given or not other.followed):
        _tell(other, COMPARISONS.get(name, name), count)


def _tell(count: Count, name: str, other: Any) -> None:
    beyond = _beyond(name, int(count), other) if count.given or not count.followed else 0
    (count.given or count.owner).compared(int(count), beyond)


def _beyond(name: str, size: int, other: Any) -> int:
    """The nearest size for which a comparison with a number comes out otherwise; 0 where there is none, or where the
    other one is a size of inputs, too."""
    fixed = other.followed if isinstance(other, Count) else isinstance(other, (int, float))
    other = _plain(other)
    if not fixed or not math.isfinite(other):
        return 0
    limit = math.ceil(other) if name in ("__lt__", "__ge__") else math.floor(other)
    if name in ("__lt__", "__ge__"):
        return limit if size < limit else limit - 1
    if name in ("__gt__", "__le__"):
        return limit + 1 if size <= limit else limit
    return limit if size != other else 0


def _plain(other: Any) -> Any:
    return int(other) if isinstance(other, Count) else other


def _counted(name: str) -> Callable[[Count, Any], Any]:
    operation, with_float = getattr(int, name), getattr(float, name, None)

    def counted(self: Count, other: Any) -> Any:
        if isinstance(other, float) and with_float is not None:
            return self._used(with_float(float(int(self)), other), "the model's forward")
        if name in ("__floordiv__", "__mul__", "__rmul__") and type(other) is int and other == 1:
            return self  # as with one head
        made = self._derived(operation(int(self), _plain(other)), other)
        if isinstance(made, Count):
            made.share = self._shared(name, other)
        if name == "__floordiv__" and isinstance(made, Count) and isinstance(other, Count):
            made.quotients += tuple((one, two) for one in self.origins or (None,) for two in other.origins)
        if name == "__rfloordiv__" and isinstance(made, Count):
            made.quotients += tuple((None, one) for one in self.origins)
        if name in ("__mul__", "__rmul__") and isinstance(made, Count) and isinstance(other, Count):
            made.factors = made.origins
        return made

    return counted


def _number(name: str) -> Callable[..., Any]:
    operation, with_float = getattr(int, name), getattr(float, name, None)

    def used(self: Count, *others: Any) -> Any:
        if name in COMPARISONS:
            _noted(self, name, others[0])
        if others and isinstance(others[0], float) and with_float is not None:
            result = with_float(float(int(self)), *others)
        else:
            result = operation(int(self), *map(_plain, others))
        if others and isinstance(others[0], Count) and result is not NotImplemented:
            others[0].owner.used(others[0], "the model's forward")
        return self._used(result, "the model's forward")

    return used


for _name in ("add", "radd", "sub", "rsub", "mul", "rmul", "floordiv", "rfloordiv", "mod"):
    setattr(Count, f"__{_name}__", _counted(f"__{_name}__"))
for _name in (
    *("truediv", "rtruediv", "pow", "rpow", "lt", "le", "gt", "ge", "abs", "round", "divmod", "rdivmod"),
    *("lshift", "rshift", "rlshift", "rrshift", "and", "or", "xor", "rand", "ror", "rxor", "rmod"),
):
    setattr(Count, f"__{_name}__", _number(f"__{_name}__"))
