"""A walk over a running model: every operation that torch carries out, one after the other, by the rule of its kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Generic, TypeVar

from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

<<<<<<< HEAD
from .atoms import CHOOSE_ANOTHER, GIVEN, READING, REAL, REMOVAL, Atoms, Ids, Obstacle
from .chance import TAKES_OUT, Chance
from .counts import Count, Origin
from .operations import MOVES, Step, adding_to, step_of, tensors
from .others import Decisions
from .pieces import Piece, Pieces
from .values import FREE, MADE, Axis, Value
=======
from .chance import Chance
from .operations import Step, step_of
>>>>>>> main

Known = TypeVar("Known")


class Walk(Generic[Known]):
    """What is known of each tensor of one run, and the loop over its operations.

    What is asked of a model is a class of its own below this one, with a table of rules, one a kind of row: `CutWalk`
    for what can be cut, `MoveWalk` of `sdsd.theory` for what can be moved. It says as well what is known of a tensor
    that no operation gave, and what becomes of tensors that go into an operation without a rule.

    Attributes:
        named: what is known of parameters and buffers, by the ids of the tensors.
        values: what is known of others, while they are held.
        module: the name of the module that runs.
        ran: names of modules that were called.
        looking: whether an operation is looked at right now.
    """

    rules: ClassVar[Mapping[str, Callable[[Any, Step], None]]]

    def __init__(self, named: dict[int, Known]) -> None:
        self.named = named
        self.values: Any = WeakIdKeyDictionary()
        self.module = ""
        self.ran: set[str] = set()
        self.looking = False
        self.chance = Chance()

    # ---- what is asked -----------------------------------------------------------------------------------------------

    def given(self, tensor: Any) -> Known:
        """What is known of what no operation gave: a constant, or no tensor at all."""
        raise NotImplementedError

    def unknown(self, step: Step) -> None:
        """An operation without a rule."""
        raise NotImplementedError

    def left(self, name: str, given: tuple[Any, ...], output: Any) -> None:
        """A module has run: its name, what it took, by name after what came by its place, and what it gave."""

    def written_into(self, parameter: Tensor) -> None:
        """The forward writes into a parameter, which is put back after the run."""

    def ended(self, outputs: list[Any]) -> None:
        """The model has run, and is not yet as it was before."""

    # ---- values ------------------------------------------------------------------------------------------------------

    def value(self, tensor: Any) -> Known:
        """What is known of a tensor."""
        if not isinstance(tensor, Tensor):
            return self.given(tensor)
        known = self.named.get(id(tensor)) or self.values.get(tensor)
        return self.given(tensor) if known is None else known

<<<<<<< HEAD
    def give(self, tensor: Any, axes: Iterable[Axis], like: Value | None = None, linear: bool = True) -> None:
        """Note what a result is; static where `like` is, and linear where both are."""
        if not isinstance(tensor, Tensor) or id(tensor) in self.named:
            return
        made = Value(list(axes))
        if like is not None:
            made.static, made.parameters = like.static, like.parameters
            made.linear = like.linear and linear
            made.label = like.label if like.static and not like.parameters else ""
        assert len(made.axes) == tensor.ndim, (made.axes, tensor.shape)
        made.shape = tuple(tensor.shape)
        self.values[tensor] = made

    def followed(self, tensor: Tensor, dim: int) -> Ids | None:
        """The entries of an axis. A free one gets entries of its own, which views of it share."""
        value = self.value(tensor)
        axis = value.axes[dim]
        if axis is FREE:
            axis = value.axes[dim] = self.atoms.new(tensor.shape[dim])
            if value.written_in:
                self.note(axis, f"a tensor is made with the size {len(axis)} written into it", KEEP_SIZE, REMOVAL)
        return axis  # type: ignore[return-value]

    def axes(self, tensor: Tensor) -> list[Axis]:
        return [self.followed(tensor, dim) for dim in range(tensor.ndim)]

    # ---- what happens to entries -------------------------------------------------------------------------------------

    def where(self, name: str) -> str:
        inside = f"{name!r} in module {self.module!r}" if self.module else f"{name!r} in the model's own forward"
        return inside + IN_TRAINING if self.training else inside

    def note(self, ids: Axis, reason: str, advice: str = CHOOSE_ANOTHER, blocks: str = READING, name: str = "") -> None:
        if isinstance(ids, np.ndarray):
            self.atoms.note(ids, Obstacle(self.where(name or self.name), reason, advice, blocks))

    name = "forward"

    def mixed(self, ids: Axis, reason: str, blocks: str = READING, advice: str = CHOOSE_ANOTHER) -> None:
        """Single entries cannot be taken out of this axis."""
        if isinstance(ids, np.ndarray) and not self.atoms.inside(ids):
            self.note(ids, reason, advice, blocks)

    def mixed_if_used(self, ids: Axis, reason: str, blocks: str) -> list[tuple[Ids, Obstacle]]:
        """As `mixed`, for the results that hold what is given back: noted when something is done with one of them."""
        if not isinstance(ids, np.ndarray) or self.atoms.inside(ids):
            return []
        return [(ids, Obstacle(self.where(self.name), reason, CHOOSE_ANOTHER, blocks))]

    def use(self, values: Any) -> None:
        """Something is done with these tensors."""
        for tensor in tensors(values):
            value = None if id(tensor) in self.named else self.values.get(tensor)
            while value is not None and value.if_used:
                self.atoms.note(*value.if_used.pop())

    def handed_out(self, values: Any, name: str) -> None:
        """Numbers go where no operation of torch is seen."""
        for tensor in tensors(values):
            for axis in self.axes(tensor):
                self.mixed(axis, f"{name!r} hands them to others than torch")

    def use_what_is_left(self) -> None:
        """The run is over: tensors that somebody still holds are used."""
        self.use(tuple(self.values.keys()))

    def statistics(self, ids: Axis, reason: str, advice: str) -> None:
        """A norm takes its statistics over all entries of this axis."""
        if isinstance(ids, np.ndarray) and not self.atoms.inside(ids):
            self.atoms.note(ids, Obstacle(self.where(self.name), reason, advice, REMOVAL, self.module))
            self.norms.setdefault(self.module, [])

    def left(self, name: str, given: tuple[Any, ...], output: Any) -> None:
        """A module has run; of norms the call is noted, None where it did not take and give one tensor of a shape.

        Args:
            given: what it took; by name after what came by its place.
        """
        if name not in self.norms:
            return
        before = given[0] if given else None
        if isinstance(before, Tensor) and isinstance(output, Tensor) and before.shape == output.shape:
            others = [axis for each in tensors(given[1:]) for axis in self.value(each).axes]
            self.norms[name].append(Normed(list(self.value(before).axes), list(self.value(output).axes), others))
            self.value(output).norm = name
        else:
            self.norms[name].append(None)

    def join(self, one: Axis, other: Axis, who: str = "") -> Axis:
        """Both axes of the same entries; what the result has."""
        if one is FREE or other is FREE:
            return other if one is FREE else one
        if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
            self.atoms.unite(one, other)
            return one
        known = one if isinstance(one, np.ndarray) else other
        if isinstance(known, np.ndarray):
            self.atoms.mark(known, GIVEN)
        advice = KEEP_IN_BUFFER if who == MADE else CHOOSE_ANOTHER
        self.mixed(known, f"{self.name!r} joins the neurons with {who or 'what no layer writes'}", advice=advice)
        return known

    def join_indices(self, axes: Sequence[Axis], indices: Any, dim: int) -> None:
        """What looks entries up along `dim`, or writes them there, has one index for every entry of other axes."""
        if isinstance(indices, Tensor) and indices.ndim == len(axes):
            for k, (axis, own) in enumerate(zip(axes, self.value(indices).axes, strict=True)):
                if k != dim and isinstance(axis, np.ndarray) and isinstance(own, np.ndarray) and len(axis) == len(own):
                    self.atoms.unite(axis, own)

    def cut_apart(self, whole: Axis, part: Axis, reason: str) -> None:
        """Some entries are taken by their places; allowed where removal leaves the same share of them."""
        if not isinstance(whole, np.ndarray) or self.atoms.inside(whole):
            return
        if self.sizes_written_in or not isinstance(part, np.ndarray):
            self.note(whole, reason, KEEP_SIZE, REMOVAL)
            return
        self.pieces.parts.append(Piece(whole, part, Obstacle(self.where(self.name), reason, CHOOSE_ANOTHER, REMOVAL)))

    def written_into(self, parameter: Tensor) -> None:
        """The forward changes a parameter, so that cut or merged it would be changed in another way."""
        value = self.value(parameter)
        for axis in value.axes:
            self.note(axis, f"the forward writes into {value.label}", WRITE_ONCE, name="a write in place")

    def every(self, whole: Ids, stride: int, reason: str) -> None:
        """Every `stride`th entry is taken; allowed where those beside each other go together."""
        if not self.atoms.inside(whole):
            obstacle = Obstacle(self.where(self.name), reason, CHOOSE_ANOTHER, REMOVAL)
            self.pieces.blocks.append(Piece(whole, whole.reshape(-1, stride), obstacle))

    # ---- sizes as numbers --------------------------------------------------------------------------------------------

    def counts(self, value: Any) -> TypeGuard[Count]:
        """Whether it is a count of this recording; those of others are kept by models, as good as written into them."""
        return isinstance(value, Count) and value.owner.atoms is self.atoms

    def used(self, count: Count, how: str) -> None:
        """A size goes where it counts as a number."""
        for ids in count.ids:
            reason = f"{how} uses the number of neurons, which would change"
            self.mixed(ids, reason, REMOVAL, KEEP_THE_NUMBER)
        for module, name in count.origins if not count.ids else ():
            reason = (
                f"{how} uses {name!r} of module {module!r} as a number, and it is the number of these neurons as well"
            )
            self.numbers.append(((module, name), Obstacle(self.where(self.name), reason, KEEP_THE_NUMBER, REMOVAL)))

    def compared(self, _size: int = 0, _beyond: int = 0) -> None:
        """A size of the model was compared, which no input changes."""

    def equal(self, count: Count, other: Any) -> None:
        """Two sizes were compared, and the forward goes the way of equal ones, as it has to with fewer neurons."""
        where = self.where("==")
        if not self.counts(other):
            obstacle = Obstacle(where, f"a comparison says that there are {other} of them", KEEP_SIZE, REMOVAL)
            self.numbers += [(origin, obstacle) for origin in count.origins]
            for ids in count.ids:
                if not self.atoms.inside(ids):
                    self.atoms.note(ids, obstacle)
        elif other.exact:
            for one, another in ((count, other), (other, count)):
                self.linked += [(origin, ids) for ids in one.ids for origin in another.origins]
            if count.ids and other.ids:
                reason = "a comparison says that there are as many of them as of other neurons"
                self.pieces.same_size.append(
                    Piece(count.ids[0], other.ids[0], Obstacle(where, reason, KEEP_SIZE, REMOVAL))
                )
=======
    def sharing(self, tensor: Tensor) -> Iterator[tuple[Tensor, Known]]:
        """Tensors that lie in the memory of this one, as views do, and what is known of them."""
        place = tensor.untyped_storage().data_ptr()
        for other, value in list(self.values.items()) if place else ():
            if other is not tensor and other.untyped_storage().data_ptr() == place:
                yield other, value
>>>>>>> main

    # ---- one operation after the other -------------------------------------------------------------------------------

    def step(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """What a dispatch mode is told of an operation that was carried out."""
        self.looking = True
        try:
            self.follow(step_of(func, args, kwargs, out))
        finally:
            self.looking = False

    def follow(self, step: Step) -> None:
        """One operation, by the rule of its kind."""
        self.rules.get(step.row.kind, type(self).unknown)(self, step)
