"""What an operation reads beside samples: a parameter, or a tensor computed from parameters alone.

Gradients with respect to a computed operand (a weight norm, a table looked up at constant positions, a reshaped matrix)
are pulled back to the parameters through its own small autograd graph, sample by sample in one batched call; nothing
of the user's code runs again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from ..following import track_of
from .pieces import Dense, Lookup, OwnRows, Piece, chunks, wide
from .tensors import tensors_in

if TYPE_CHECKING:
    from .ledger import Pass

SOURCE = "_sdsd_source"
"""The attribute of a computed tensor that names a simpler one it was made from: see `expanded` and `looked_up`."""
SAMPLES = "sdsd_samples"
"""The entry in a node's metadata that says its output depends on samples."""
ANNOUNCED = "announced"
"""The key of the hook by which the session hears that the gradient of an output has come."""
MOST_NODES = 5_000
"""A graph of parameters alone is small; one of more nodes is taken for one that samples went through unseen."""

_EXPANDING = {Tensor.expand, Tensor.expand_as, torch.broadcast_to, Tensor.broadcast_to}


def expanded(out: Tensor, base: Tensor) -> None:
    """Note that `out` is `base` expanded."""
    setattr(out, SOURCE, ("expanded", base))


def looked_up(out: Tensor, table: Tensor, ids: Tensor, padding: int | None) -> None:
    """Note that `out` (*ids.shape, d) holds rows of `table` at constant positions `ids`."""
    setattr(out, SOURCE, ("looked up", table, ids, padding))


def marked(out: Any, args: Any = ()) -> Any:
    """Samples joined parameters here, which the history of whatever comes of it shows from now on.

    Every history that samples are in leads back to such a place, or to an input that takes a gradient.
    """
    for tensor in (out,) if isinstance(out, Tensor) else tensors_in(args[:1] if out is None else (out,), {}):
        for each in (tensor, tensor._base):  # a write into a view is in the history of the whole
            if each is not None and each.grad_fn is not None:
                each.grad_fn.metadata[SAMPLES] = True  # type: ignore[index]
    return out


def note_source(func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Note what an operation on parameters alone made its output of, where that is worth knowing."""
    if (func in _EXPANDING and isinstance(out, Tensor)) or (
        func in (Tensor.repeat, torch.tile, Tensor.tile) and isinstance(out, Tensor) and _expands(args[0], out)
    ):
        expanded(out, unexpanded_of(args[0]))
    elif func is torch.nn.functional.embedding and isinstance(out, Tensor):
        ids, table = args[:2] if len(args) > 1 else (args[0], kwargs["weight"])
        padding = args[2] if len(args) > 2 else kwargs.get("padding_idx")
        frequency = args[5] if len(args) > 5 else kwargs.get("scale_grad_by_freq", False)
        if not frequency:
            padding = padding + table.shape[0] if padding is not None and padding < 0 else padding
            looked_up(out, table, ids, padding)


def _expands(base: Tensor, out: Tensor) -> bool:
    """Whether repeating `base` to `out` is what expanding it would be."""
    sizes = [1] * (out.ndim - base.ndim) + list(base.shape)
    return all(before in (1, after) for before, after in zip(sizes, out.shape, strict=True))


class Leaf:
    """A parameter: its name in the report, and the node that adds to its .grad."""

    __slots__ = ("name", "node", "tensor")

    def __init__(self, name: str, tensor: Tensor, node: Any) -> None:
        self.name, self.tensor, self.node = name, tensor, node

    def reached(self) -> bool:
        """Whether the backward pass that now runs adds to its .grad.

        Where .data changed its type and came back, as by `model.double().float()`, torch adds by another node.
        """
        if executes(self.node):
            return True
        if not self.tensor.requires_grad:
            return False
        node = torch.autograd.graph.get_gradient_edge(self.tensor).node
        if node is self.node:
            return False
        self.node = node
        return executes(node)


class Names(Protocol):
    """What knows the measured parameters."""

    def name_of(self, tensor: Tensor) -> str | None: ...

    def operand_of(self, parameter: Tensor) -> Operand | None: ...


def leaves_of(tensor: Tensor, names: Names, unseen: bool = False) -> tuple[list[Leaf], str | None]:
    """The measured parameters that `tensor` is computed from, and the operation that samples went through, or None.

    `unseen`: nobody saw how `tensor` was computed, so that a user's function on the way may hide samples.
    """
    if tensor.grad_fn is None:
        operand = names.operand_of(tensor)
        return ([] if operand is None else operand.leaves), None
    leaves: dict[str, Leaf] = {}
    seen, stack, hidden = set(), [tensor.grad_fn], None
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        metadata: Any = node.metadata
        if SAMPLES in metadata or len(seen) > MOST_NODES or (unseen and _opaque(node)):
            hidden = tensor.grad_fn.name()
            continue
        variable = getattr(node, "variable", None)
        if variable is not None:
            name = names.name_of(variable)
            if name is not None:
                leaves[name] = Leaf(name, variable, node)
            elif track_of(variable) is not None:
                hidden = tensor.grad_fn.name()
        stack.extend(child for child, _ in node.next_functions if child is not None)
    return list(leaves.values()), hidden


def _opaque(node: Any) -> bool:
    """Whether a user's function took a tensor that has no gradient, and so may be samples."""
    return isinstance(node, torch.autograd.function.BackwardCFunction) and any(
        child is None for child, _ in node.next_functions
    )


def unexpanded_of(tensor: Tensor) -> Tensor:
    """The tensor that `tensor` is an expansion of, or itself."""
    source = getattr(tensor, SOURCE, None)
    return source[1] if source is not None and source[0] == "expanded" else tensor


class Operand:
    """One operand of one operation, of `shape`, and the parameters behind it.

    `unexpanded`: gradients come with respect to what the operand is an expansion of.
    """

    __slots__ = ("base", "device", "direct", "dtype", "leaves", "reached", "shape", "source", "tensor")

    def __init__(self, tensor: Tensor, leaves: list[Leaf], unexpanded: bool = False) -> None:
        self.tensor = self.base = tensor
        self.leaves, self.dtype, self.device, self.shape = leaves, tensor.dtype, tensor.device, tensor.shape
        self.direct = tensor.grad_fn is None
        self.reached: list[Leaf] = []
        self.source = None
        if not self.direct:
            self.source = getattr(tensor, SOURCE, None)
            if unexpanded:
                self.base = unexpanded_of(tensor)
                self.direct = self.base.grad_fn is None

    def wanted(self) -> list[Leaf]:
        """The parameters whose .grad the backward pass that now runs adds to; kept in `reached`."""
        if self.tensor.grad_fn is None:
            self.reached = [leaf for leaf in self.leaves if leaf.reached()]
        else:
            self.reached = [leaf for leaf in self.leaves if executes(leaf.node)]
        return self.reached

    def deliver(self, ledger: Pass, piece: Piece) -> None:
        """Hand the gradients of this operand on as gradients of the parameters that `wanted` found."""
        leaves = self.reached
        if not leaves:
            return
        if self.direct:
            ledger.receive(leaves[0], piece)
        elif self.source is not None and self.source[0] == "looked up" and len(leaves) == 1:
            _, table, ids, padding = self.source
            own = piece.looked_up(ids, table.shape[0], padding) if isinstance(piece, OwnRows) else None
            if table.grad_fn is None and own is not None:
                ledger.receive(leaves[0], own)
            elif table.grad_fn is None:
                gradients = piece.each(0, piece.n).reshape(piece.n, ids.numel(), -1)
                tokens = ids.reshape(1, -1).expand(piece.n, -1)
                # Asked of the values on the CPU alone, where nothing has to be waited for, and of no kernel's.
                asked = ids.device.type == "cpu" and not ledger.serves(gradients)
                distinct = asked and ids.unique().numel() == ids.numel()
                ledger.receive(leaves[0], Lookup(tokens, gradients, table.shape[0], padding, distinct))
            else:
                self._pull(ledger, piece, leaves)
        else:
            self._pull(ledger, piece, leaves)

    def deliver_one(self, ledger: Pass, sample: int, gradient: Tensor) -> None:
        """The same of one sample."""
        if self.direct and self.reached:
            ledger.receive_one(self.reached[0], sample, gradient)
        elif self.reached:
            by_name = {leaf.name: leaf for leaf in self.reached}
            for name, pulled in self._pulled(gradient.unsqueeze(0), self.reached):
                ledger.receive_one(by_name[name], sample, pulled[0])

    def _pull(self, ledger: Pass, piece: Piece, leaves: list[Leaf]) -> None:
        size = piece.bytes_each + 8 * max(leaf.tensor.numel() for leaf in leaves)
        whole = any(ledger.shared(leaf) for leaf in leaves)
        parts: dict[str, list[Tensor]] = {leaf.name: [] for leaf in leaves}
        by_name = {leaf.name: leaf for leaf in leaves}
        for start, stop in chunks(piece.n, size, ledger.max_bytes):
            for name, gradients in self._pulled(piece.each(start, stop), leaves):
                if whole:
                    parts[name].append(gradients)
                else:
                    ledger.receive(by_name[name], Dense(gradients), part=True)
        for name, pulled in parts.items():
            if pulled:
                ledger.receive(by_name[name], Dense(torch.cat(pulled)))

    def _pulled(self, gradients: Tensor, leaves: list[Leaf]) -> Iterator[tuple[str, Tensor]]:
        """Gradients of the parameters from gradients (n, *shape) of this operand."""
        given = gradients.to(self.base.dtype)
        tensors = [leaf.tensor for leaf in leaves]
        with torch.enable_grad():
            try:
                by_leaf = torch.autograd.grad(
                    self.base, tensors, given, is_grads_batched=True, retain_graph=True, allow_unused=True
                )
            except RuntimeError:
                # A custom autograd.Function or an operation that vmap does not know: one sample at a time.
                rows = [
                    torch.autograd.grad(self.base, tensors, each, retain_graph=True, allow_unused=True)
                    for each in given
                ]
                columns: Any = zip(*rows, strict=True)
                by_leaf = tuple(None if column[0] is None else torch.stack(column) for column in columns)  # type: ignore[misc]
        for leaf, each in zip(leaves, by_leaf, strict=True):
            if each is not None:
                yield leaf.name, wide(each.detach())


def executes(node: Any) -> bool:
    """Whether the backward pass that now runs adds to the .grad of this leaf; not where autograd.grad only looks."""
    try:
        return torch._C._will_engine_execute_node(node)
    except RuntimeError:
        # Torch refuses to tell for a leaf that autograd.grad returns the gradient of: nothing is added to .grad.
        return False
