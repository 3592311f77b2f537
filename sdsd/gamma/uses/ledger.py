"""One forward pass and what its backward pass gave: the account of one batch.

A batch is a forward pass. Its uses of parameters are counted while it runs forward; while it runs backward each hands
over its piece, which is squared at once where the parameter has one use, and kept until all have come where it has
more, for squares do not add.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sdsd_kernels import NORMS_WIDTH, default_backend

from ..following import Tracks, Verdict, set_track, use
from .combining import combine
from .operand import Leaf, Operand
from .pieces import OfSamples, Piece, project

if TYPE_CHECKING:
    from .measuring import Measuring
    from .use import Use

SERVED = (torch.float32, torch.float16, torch.bfloat16)


class Pass:
    """The account of one forward pass of `n` samples.

    Attributes:
        refused: parameter → why its samples cannot be told apart.
        taken: uses that were `alone`, the dtype of their gradient, and the squares of each of their parameters, or none
            where kernels wrote these.
        began: the number that autograd gives to the first node of the pass.
        tasks: the backward passes (outermost graph tasks) that gradients came from.
        open: graph tasks that began, and have not ended; one that stays was ended by an exception.
        inputs: the model's inputs that carry samples, and where.
        tracks: where every tensor of the pass carries them.
        directions: parameter → (u, v) of the projection that proves the step; None where this one is not proved.
        scaled: whether squares are taken after a preconditioner.
        given: parameter → the memory of a gradient that an operation of ours gave, and the writes to it so far.
        differentiated: an inner autograd.grad(create_graph=True) went through this pass.
        backends: device → what serves kernels there.
        rows: parameter → its row in `norms`.
        norms: device → (parameters, width) of shares of squares, which kernels wrote; see `landed.py`.
    """

    def __init__(
        self,
        n: int,
        max_bytes: int,
        scale: Callable[[str], Tensor | None],
        directions: Callable[[str, Tensor], tuple[Tensor, Tensor]] | None,
        rows: dict[str, int],
        scaled: bool,
    ) -> None:
        self.n, self.max_bytes, self.scale, self.directions, self.scaled = n, max_bytes, scale, directions, scaled
        self.backends: dict[torch.device, str] = {}
        self.rows, self.peers, self.tracks = rows, [self], Tracks()
        self.inputs: list[tuple[Tensor, Verdict]] = []
        self.began: int = torch.autograd._get_sequence_nr()  # type: ignore[attr-defined]
        self.counts: dict[str, int] = {}
        self.refused: dict[str, str] = {}
        self.kinds: dict[str, frozenset[str]] = {}
        self.open: set[int] = set()
        self.differentiated = False
        self.clear()

    def clear(self) -> None:
        """Forget what backward passes gave so far: .grad was cleared."""
        self.tasks: set[int] = set()
        self.squares: dict[str, list[Tensor | float]] = {}
        self.norms: dict[torch.device, Tensor] = {}
        self.kept: dict[str, list[Piece]] = {}
        self.taken: list[tuple[Use, torch.dtype, tuple[Tensor | float, ...]]] = []
        self.projections: dict[str, list[Tensor]] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        self.given: dict[str, tuple[int, int]] = {}
        self.trouble: str | None = None
        self._owner: dict[str, object] = {}
        self._current: object = None

    def close(self) -> None:
        """Nothing is asked of this pass any more: let go of what leads back to it, and so of the nodes it held."""
        self.peers, self.taken = [], []
        self._owner = {}
        self._current = None

    def differentiate(self, direction: Callable[[str, Tensor], tuple[Tensor, Tensor]] | None) -> None:
        """Gradients through this pass were made to be differentiated: what comes next may not be its samples' alone."""
        self.differentiated = True
        if self.directions is None and not self.tasks:
            self.directions = direction

    def count(self, leaf: Leaf, uses: int = 1) -> None:
        self.counts[leaf.name] = self.counts.get(leaf.name, 0) + uses

    def shared(self, leaf: Leaf) -> bool:
        """Whether squares have to wait for other uses of the parameter."""
        if len(self.peers) == 1:
            return self.counts.get(leaf.name, 0) > 1
        return sum(peer.counts.get(leaf.name, 0) for peer in self.peers) > 1

    def give(self, operands: list[Operand], *gradients: Tensor | None) -> None:
        """An operation of ours returns these gradients of parameters."""
        for operand, gradient in zip(operands, gradients, strict=False):
            if gradient is not None:
                self.given[operand.leaves[0].name] = gradient.data_ptr(), gradient._version

    def refuse(self, names: list[str], reason: str) -> None:
        for name in names:
            self.refused.setdefault(name, reason)

    def mixes(self, names: list[str], reason: str) -> None:
        """A gradient came back through an operation that mixes samples, after these parameters were used."""
        self.refuse(names, f"samples are mixed, or lost, after it: {reason}")

    def begin(self, use: object, dtype: torch.dtype) -> None:
        """The pieces that come next are of `use`."""
        self._current, self._dtype = use, dtype

    def receive(self, leaf: Leaf, piece: Piece, part: bool = False) -> None:
        """Take gradients of the parameter; `part`: of some of the samples, the others come in further calls."""
        name = leaf.name
        self._note_dtype(name)
        if self.directions is not None:
            direction = self.directions(name, leaf.tensor)
            self.projections.setdefault(name, []).append(piece.projection(direction, self.max_bytes))
        if self.counts.get(name, 0) > 1 if len(self.peers) == 1 else self.shared(leaf):
            self.kept.setdefault(name, []).append(piece)
            return
        self._note_owner(name)
        if not part and not self.scaled and piece.land(self, self.rows[name]):
            self.squares.setdefault(name, [])
            return
        scale = self.scale(name) if self.scaled else None
        self.squares.setdefault(name, []).append(piece.squares(scale, self.max_bytes))

    def receive_one(self, leaf: Leaf, sample: int, gradient: Tensor) -> None:
        """Take a gradient of one sample, to be added to what else comes of it."""
        name = leaf.name
        self._note_dtype(name)
        piece = OfSamples(sample, gradient, self.n)
        if self.directions is not None:
            direction = self.directions(name, leaf.tensor)
            self.projections.setdefault(name, []).append(piece.projection(direction, self.max_bytes))
        kept = self.kept.setdefault(name, [])
        for other in kept:
            if isinstance(other, OfSamples):
                return other.add(sample, gradient)
        kept.append(piece)

    def serves(self, x: Tensor) -> bool:
        """Whether kernels take tensors such as `x`."""
        device = x.device
        return (self.backends.get(device) or self.backend_on(device)) == "triton" and x.dtype in SERVED

    def backend_on(self, device: torch.device) -> str:
        """What serves kernels there; looked up once."""
        backend = self.backends[device] = default_backend(device)
        return backend

    def norms_on(self, device: torch.device) -> Tensor:
        """Where kernels on `device` write squares: a row a parameter."""
        norms = self.norms.get(device)
        if norms is None:
            norms = torch.zeros(len(self.rows), NORMS_WIDTH, dtype=torch.float64, device=device)
            self.norms[device] = norms
        return norms

    def land(self, operands: list[Operand], *gradients: Tensor | None) -> None:
        """Kernels found all of the gradients of these parameters, and wrote squares of samples into `norms`."""
        for operand, gradient in zip(operands, gradients, strict=False):
            if gradient is None:
                continue
            leaf = operand.leaves[0]
            name = leaf.name
            self.given[name] = gradient.data_ptr(), gradient._version
            if name in self.dtypes:
                self._note_dtype(name)
            else:
                self.dtypes[name] = self._dtype
            if self.directions is not None:
                direction = self.directions(name, leaf.tensor)
                self.projections.setdefault(name, []).append(project(gradient, direction))
            if name in self.squares:
                self._note_owner(name)
            else:
                self._owner[name] = self._current
                self.squares[name] = []

    def _note_dtype(self, name: str) -> None:
        known = self.dtypes.get(name)
        if known is None or torch.finfo(self._dtype).eps > torch.finfo(known).eps:
            self.dtypes[name] = self._dtype

    def _note_owner(self, name: str) -> None:
        if self._owner.setdefault(name, self._current) is not self._current:
            self.refuse([name], "another use of it turned up after the first had been squared")

    def settle(self) -> None:
        """Square what was kept, and enter what was taken; nothing of the graph is held any longer."""
        for planned, dtype, squares in self.taken:
            assert planned.plan is not None
            for place, name in enumerate(planned.plan.names):
                if name in self.squares:
                    self.begin(planned, dtype)
                    self._note_dtype(name)
                    self._note_owner(name)
                else:
                    self.dtypes[name], self._owner[name], self.squares[name] = dtype, planned, []
                if squares:
                    self.squares[name].append(squares[place])
        self.taken = []
        kept, self.kept = self.kept, {}
        for name, pieces in kept.items():
            if name in self.squares:
                self.refuse([name], "another use of it turned up after the first had been squared")
            elif len({piece.n for piece in pieces}) > 1:
                self.refuse([name], "its uses saw batches of different size")
            else:
                self.squares[name] = [combine(pieces, self.scale(name), self.max_bytes)]


class carrying:  # noqa: N801
    """Inside, the model's inputs say where they carry samples, and `mode`, if it is given, is on."""

    __slots__ = ("_before", "_ledger", "_mode")

    def __init__(self, ledger: Pass, mode: Measuring | None = None) -> None:
        self._ledger, self._mode = ledger, mode

    def __enter__(self) -> None:
        self._before = use(self._ledger.tracks)
        for place, (tensor, track) in enumerate(self._ledger.inputs):
            set_track(tensor, track, second=place > 0)
        if self._mode is not None:
            torch._C._push_on_torch_function_stack(self._mode)

    def __exit__(self, *error: object) -> None:
        if self._mode is not None:
            torch._C._pop_torch_function_stack()
        use(self._before)


def in_groups(passes: list[Pass]) -> list[list[Pass]]:
    """Passes that gradients came from, those of one backward pass together."""
    groups: list[list[Pass]] = []
    for ledger in passes:
        if not ledger.tasks:
            continue
        for group in groups:
            if any(ledger.tasks & other.tasks for other in group):
                group.append(ledger)
                break
        else:
            groups.append([ledger])
    return groups


def settle_together(group: list[Pass]) -> None:
    """Square what came to passes of one backward pass, of the same samples: their uses add before they are squared."""
    first = group[0]
    for other in group[1:]:
        for name, pieces in other.kept.items():
            first.kept.setdefault(name, []).extend(pieces)
        other.kept = {}
        other.settle()
    first.settle()
