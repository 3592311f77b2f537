"""Rules by kind of operation: where the samples of the output lie."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .call import Call, Found, aligned, listed, nested
from .track import Mixed, Part, Track, is_second, reshaped, track_of

OVER = "over the samples"


def elementwise(call: Call, out: Tensor) -> Found:
    return aligned(call, out, call.tracked())


def same(call: Call, out: Tensor) -> Found:
    """The first tensor's layout: type conversions, copies, dropout, functions of single values."""
    track = track_of(call.tensors()[0])
    return track if isinstance(track, Track) else elementwise(call, out)


def nothing(call: Call, out: Tensor) -> Found:
    """A new tensor that holds nothing of its argument's values."""
    return None


def row_major(call: Call, out: Tensor) -> Found:
    """view, reshape, flatten and their like."""
    x = call.tensors()[0]
    track = track_of(x)
    if not isinstance(track, Track):
        return None
    if call.name == "view" and len(call.args) > 1 and isinstance(call.args[1], torch.dtype):
        return track if out.ndim == x.ndim and track.axis < x.ndim - 1 else call.mixed("reads them as another type")
    found = reshaped(tuple(x.shape), tuple(out.shape), track, call.n)
    return found or call.mixed(f"splits the samples into shape {tuple(out.shape)}")


def unsqueeze(call: Call, out: Tensor) -> Found:
    x = call.tensors()[0]
    track = track_of(x)
    if not isinstance(track, Track):
        return None
    dim = int(call.dims(1)) % out.ndim
    return track._replace(axis=track.axis + (dim <= track.axis))


def squeeze(call: Call, out: Tensor) -> Found:
    x = call.tensors()[0]
    track = track_of(x)
    if not isinstance(track, Track):
        return None
    dim = call.dims(1)
    gone = set(range(x.ndim)) if dim is None else set(listed(dim, x.ndim))
    gone = {d for d in gone if x.shape[d] == 1}
    if track.axis in gone:
        return call.mixed("takes away the dimension of the one sample")
    return track._replace(axis=track.axis - sum(d < track.axis for d in gone))


def strided(call: Call, out: Tensor) -> Found:
    """Views by strides (permute, transpose, expand, narrow, diagonal, unfold …): the samples' stride is followed."""
    x = call.tensors()[0]
    track = track_of(x)
    if not isinstance(track, Track):
        return None
    tag = 1 << 40
    strides = [3 + 2 * d for d in range(x.ndim)]
    strides[track.axis] = tag
    shape = [max(size, 1) for size in x.shape]
    with torch.no_grad():
        shadow = torch.empty_strided(shape, strides, device="meta", dtype=x.dtype)
        if call.func.__name__ == "__get__":
            seen = call.func(shadow)
        else:
            args = tuple(shadow if a is x else a for a in call.args)
            seen = call.func(*args, **{k: shadow if a is x else a for k, a in call.kwargs.items()})
    parts = [t for t in nested(seen)] if not isinstance(seen, Tensor) else [seen]
    view = parts[call.which] if call.which < len(parts) else parts[0]
    axes = [d for d, stride in enumerate(view.stride()) if stride == tag]
    if len(axes) != 1:
        return call.mixed("picks from the samples")
    return _part(call, track, axes[0], view.shape[axes[0]], view.storage_offset() // tag)


def _part(call: Call, track: Track, axis: int, size: int, start: int) -> Found:
    """`size` indices from `start` on along the samples' dimension: whole rounds of all samples alone keep the track."""
    whole = call.n * track.inner
    if size == track.outer * whole:
        return track._replace(axis=axis)
    if size % whole == 0 and start % whole == 0 and size:
        return Track(axis, size // whole, track.inner)
    return call.mixed("takes some of the samples")


def expand(call: Call, out: Tensor) -> Found:
    x = call.tensors()[0]
    track = track_of(x)
    if not isinstance(track, Track):
        return None
    axis = track.axis + out.ndim - x.ndim
    return track._replace(axis=axis) if out.shape[axis] == x.shape[track.axis] else call.mixed("copies the one sample")


def repeat(call: Call, out: Tensor) -> Found:
    x = call.tensors()[0]
    track = track_of(x)
    if not isinstance(track, Track):
        return None
    axis = track.axis + out.ndim - x.ndim
    return Track(axis, track.outer * (out.shape[axis] // x.shape[track.axis]), track.inner)


def repeat_interleave(call: Call, out: Tensor) -> Found:
    x = call.tensors()[0]
    track = track_of(x)
    times, dim = call.get(1, "repeats"), call.dims(2)
    if not isinstance(track, Track):
        return None
    if not isinstance(times, int):
        return (
            call.mixed("repeats the samples unevenly") if dim is None or listed(dim, x.ndim)[0] == track.axis else track
        )
    if dim is None:
        found = reshaped(tuple(x.shape), (x.numel(),), track, call.n)
        return found and found._replace(inner=found.inner * times)
    if listed(dim, x.ndim)[0] != track.axis:
        return track
    return track._replace(inner=track.inner * times)


def reduction(place: int = 1, every: Any = None) -> Any:
    """Functions that take dimensions away: sum, mean, amax, norm …"""

    def rule(call: Call, out: Tensor) -> Found:
        x = call.tensors()[0]
        track = track_of(x)
        if not isinstance(track, Track):
            return elementwise(call, out)
        dim = call.dims(place, default=every)
        if isinstance(dim, Tensor):  # max(a, b)
            return elementwise(call, out)
        keep = out.ndim == x.ndim
        dims = (
            tuple(range(x.ndim)) if dim is None or (isinstance(dim, (tuple, list)) and not dim) else listed(dim, x.ndim)
        )
        if track.axis in dims:
            return call.summed() if call.name in ("sum", "mean") else call.mixed(OVER)
        return track if keep else track._replace(axis=track.axis - sum(d < track.axis for d in dims))

    return rule


def along(place: int = 1, every: Any = None) -> Any:
    """Functions that mix along one or more dimensions and keep them: softmax, cumsum, sort, flip, roll, fft …"""

    def rule(call: Call, out: Tensor) -> Found:
        x = call.tensors()[0]
        track = track_of(x)
        if not isinstance(track, Track):
            return call.mixed("follows no samples there")
        dim = call.dims(place, default=every)
        if dim is None:
            dim = call.kwargs.get("dims")
        dims = tuple(range(x.ndim)) if dim is None else listed(dim, x.ndim)
        return call.mixed(OVER) if track.axis in dims or out.ndim != x.ndim else track

    return rule


def features(count: Any) -> Any:
    """Functions that mix the last `count` dimensions (a number, or a function of the call)."""

    def rule(call: Call, out: Tensor) -> Found:
        x = call.tensors()[0]
        track = track_of(x)
        last = count(call) if callable(count) else count
        others = [t for t, found in call.tracked() if t is not x]
        if not isinstance(track, Track) or others:
            return call.mixed("is applied by samples")
        return track if track.axis < x.ndim - last else call.mixed(OVER)

    return rule


def first_axis(call: Call, out: Tensor) -> Found:
    """Functions of batches with samples in dimension 0: convolutions, pools, group and instance norms, grids."""
    found = call.tracked()
    x = call.tensors()[0]
    if any(track.axis != 0 or t.ndim < 3 for t, track in found) or len({track for _, track in found}) != 1:
        return call.mixed("expects samples in the first dimension")
    if call.name.startswith("conv") and any(track_of(t) is not None for t in call.tensors()[1:]):
        return call.mixed("has a weight that depends on samples")
    return track_of(x) if out.shape[0] == found[0][0].shape[0] else call.mixed("changes the number of rows")


def pool(space: int) -> Any:
    def rule(call: Call, out: Tensor) -> Found:
        x = call.tensors()[0]
        track = track_of(x)
        if not isinstance(track, Track) or track.axis >= x.ndim - space:
            return call.mixed(OVER)
        return track

    return rule


def batch_norm(call: Call, out: Tensor) -> Found:
    if call.get(5, "training", False) or call.get(1, "running_mean") is None:
        return Mixed("BatchNorm in train mode, which mixes the samples")
    return first_axis_any(call, out)


def first_axis_any(call: Call, out: Tensor) -> Found:
    x = call.tensors()[0]
    track = track_of(x)
    if not isinstance(track, Track) or track.axis != 0 or len(call.tracked()) > 1:
        return call.mixed("expects samples in the first dimension")
    return track


def pad(call: Call, out: Tensor) -> Found:
    x = call.tensors()[0]
    track = track_of(x)
    sizes = call.get(1, "pad")
    if not isinstance(track, Track) or track.axis >= x.ndim - len(sizes) // 2:
        return call.mixed("adds rows between the samples")
    return track


def cat(call: Call, out: Tensor) -> Found:
    tensors = list(call.get(0, "tensors"))
    if call.name in ("hstack", "column_stack"):
        dim = 0 if tensors[0].ndim == 1 else 1
    elif call.name in ("vstack", "row_stack"):
        dim = 0
    else:
        dim = int(call.dims(1, default=0)) % out.ndim
    tracks = [track_of(t) for t in tensors if not (t.ndim == 1 and t.numel() == 0)]
    found = {track for track in tracks if track is not None}
    if len(found) != 1:
        return call.mixed("joins samples of different layout")
    (track,) = found
    assert isinstance(track, Track)
    if track.axis != dim:
        return track
    if any(each is None for each in tracks) or track.outer != 1:
        return call.mixed("puts other rows beside the samples")
    return track._replace(outer=len(tracks))


def together(call: Call, out: Tensor) -> Found:
    """cat and stack of all the pieces that a tensor was parted into, in their order."""
    parts = [track_of(t) for t in call.get(0, "tensors")]
    first = parts[0]
    whole = isinstance(first, Part) and parts == [first._replace(place=k) for k in range(first.count)]
    if not whole:
        return Mixed(next(part.reason for part in parts if isinstance(part, Part)))
    axis = int(call.dims(1, default=0)) % out.ndim
    return Track(axis, 1, out.shape[axis] // call.n)


def masked_scatter(call: Call, out: Tensor) -> Found:
    """Rows of a source put where a mask says: right where every sample's places are as many as its source's entries."""
    x, mask, source = call.args[0], call.get(1, "mask"), call.get(2, "source")
    track, by, given = track_of(x), track_of(mask), track_of(source)
    same = isinstance(track, Track) and track == by and isinstance(given, Track) and track.axis == given.axis == 0
    if same and track.outer == given.outer == 1 and mask.ndim == x.ndim:
        counts = mask.expand_as(x).reshape(call.n, -1).sum(1)
        if bool((counts == source.numel() // call.n).all()):
            return track
    return call.mixed("writes rows between samples")


def stack(call: Call, out: Tensor) -> Found:
    found = {track for t in call.get(0, "tensors") if (track := track_of(t)) is not None}
    if len(found) != 1:
        return call.mixed("joins samples of different layout")
    (track,) = found
    assert isinstance(track, Track)
    dim = int(call.dims(1, default=0)) % out.ndim
    return track._replace(axis=track.axis + (dim <= track.axis))


def split(call: Call, out: Tensor) -> Found:
    """chunk, split, tensor_split: one of the parts."""
    x = call.tensors()[0]
    track = track_of(x)
    if not isinstance(track, Track):
        return None
    dim = int(call.dims(2, default=0)) % x.ndim
    if dim != track.axis:
        return track
    whole = call.n * track.inner
    if out.shape[dim] % whole == 0:
        return Track(dim, out.shape[dim] // whole, track.inner)
    sizes = {part.shape[dim] for part in call.outputs}
    if len(sizes) == 1 and (track.outer, track.inner) == (1, 1) and call.n % len(call.outputs) == 0:
        return call.part(call.which, len(call.outputs))
    return call.mixed("parts the samples")


def unbind(call: Call, out: Tensor) -> Found:
    x = call.tensors()[0]
    track = track_of(x)
    if not isinstance(track, Track):
        return None
    dim = int(call.dims(1, default=0)) % x.ndim
    if dim == track.axis:
        return (
            call.part(call.which, call.n) if (track.outer, track.inner) == (1, 1) else call.mixed("parts the samples")
        )
    return track._replace(axis=track.axis - (dim < track.axis))


def matmul(call: Call, out: Tensor) -> Found:
    a, b = call.get(0, "input"), call.get(1, "other", call.kwargs.get("mat2", call.kwargs.get("vec2")))
    return product(call, out, a, b, track_of(a), track_of(b))


def product(call: Call, out: Tensor, a: Tensor, b: Tensor, one: Found, two: Found) -> Found:
    """a @ b with (…, m, k) and (…, k, p), vectors without m or p."""
    found: set[Track] = set()
    vector_a, vector_b = a.ndim == 1, b.ndim == 1
    if isinstance(one, Track):
        from_right = a.ndim - one.axis
        if from_right == 1:
            return call.mixed("sums " + OVER)
        place = (out.ndim - 1 if vector_b else out.ndim - 2) if from_right == 2 else out.ndim - from_right + vector_b
        found.add(one._replace(axis=place))
    if isinstance(two, Track):
        from_right = b.ndim - two.axis
        if vector_b or from_right == 2:
            return call.mixed("sums " + OVER)
        place = out.ndim - 1 if from_right == 1 else out.ndim - from_right + vector_a
        found.add(two._replace(axis=place))
    if len(found) != 1:
        return call.mixed("multiplies samples with each other")
    return found.pop()


def add_product(call: Call, out: Tensor) -> Found:
    """addmm, baddbmm, addmv: bias + a @ b."""
    bias = call.args[0]
    a, b = (call.get(place, *[name for name in names if name in call.kwargs][:1] or [""]) for place, names in
            ((1, ("batch1", "mat1", "mat")), (2, ("batch2", "mat2", "vec"))))  # fmt: skip
    tracks = [track_of(t) for t in (a, b)]
    found = {aligned(call, out, [(bias, track_of(bias))])} if track_of(bias) is not None else set()  # type: ignore[list-item]
    if any(track is not None for track in tracks):
        found.add(product(call, out, a, b, *tracks))
    return found.pop() if len(found) == 1 else call.mixed("joins samples of different layout")


def linear(call: Call, out: Tensor) -> Found:
    x = call.get(0, "input")
    track = track_of(x)
    if not isinstance(track, Track) or len(call.tracked()) > 1:
        return call.mixed("has a weight that depends on samples")
    return track if track.axis < x.ndim - 1 else call.mixed("sums " + OVER)


def bilinear(call: Call, out: Tensor) -> Found:
    one, two = call.get(0, "input1"), call.get(1, "input2")
    found = {track_of(one), track_of(two)}
    if len(call.tracked()) != 2 or len(found) != 1:
        return call.mixed("joins samples of different layout")
    track = track_of(one)
    return track if isinstance(track, Track) and track.axis < one.ndim - 1 else call.mixed("sums " + OVER)


def einsum(call: Call, out: Tensor) -> Found:
    equation, tensors = call.args[0], list(nested(call.args[1:]))
    if not isinstance(equation, str):
        return call.mixed("is given no equation")
    equation = equation.replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    if len(terms) != len(tensors):
        return call.mixed("has another number of terms")
    if not arrow:
        letters = [c for c in left if c.isalpha()]
        right = ("..." if "..." in left else "") + "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    found: set[Track] = set()
    for term, tensor in zip(terms, tensors, strict=True):
        track = track_of(tensor)
        if not isinstance(track, Track):
            continue
        letter = _letter(term, track.axis, tensor.ndim)
        place = _place(right, letter, out.ndim)
        if place is None:
            return call.mixed("sums " + OVER)
        found.add(track._replace(axis=place))
    return found.pop() if len(found) == 1 else call.mixed("multiplies samples with each other")


def _letter(term: str, axis: int, ndim: int) -> str | int:
    """The letter of a dimension, or its distance from the right of the ellipsis."""
    if "..." not in term:
        return term[axis]
    head, _, tail = term.partition("...")
    if axis < len(head):
        return head[axis]
    if axis >= ndim - len(tail):
        return tail[axis - (ndim - len(tail))]
    return ndim - len(tail) - axis


def _place(right: str, letter: str | int, ndim: int) -> int | None:
    head, dots, tail = right.partition("...")
    if isinstance(letter, int):
        return ndim - len(tail) - letter if dots else None
    if not dots:
        return right.index(letter) if letter in right else None
    if letter in head:
        return head.index(letter)
    return ndim - len(tail) + tail.index(letter) if letter in tail else None


def attention(call: Call, out: Tensor) -> Found:
    """scaled_dot_product_attention(q, k, v, mask): (…, L, E), (…, S, E), (…, S, V)."""
    found: set[Found] = set()
    for place, tensor in enumerate(t for t in call.args[:3] if isinstance(t, Tensor)):
        track = track_of(tensor)
        if not isinstance(track, Track):
            continue
        if track.axis < tensor.ndim - 2 or (place == 0 and track.axis == tensor.ndim - 2):
            found.add(track._replace(axis=track.axis + out.ndim - tensor.ndim))
        else:
            return call.mixed("attends " + OVER)
    mask = call.get(3, "attn_mask")
    if isinstance(mask, Tensor) and isinstance(track_of(mask), Track) and not (found and is_second(mask)):
        found.add(aligned(call, out, [(mask, track_of(mask))]))  # type: ignore[list-item]
    return found.pop() if len(found) == 1 else call.mixed("attends between samples")


def loss(call: Call, out: Tensor) -> Found:
    """Losses: followed without a reduction; a mean or sum over the batch mixes the samples, as losses do."""
    if call.kwargs.get("reduction", "mean") != "none" or out.ndim == 0:
        return elementwise_loss(call)
    if call.name in ("cross_entropy", "nll_loss"):
        tracks = {track for _, track in call.tracked()}
        return tracks.pop() if len(tracks) == 1 and next(iter(tracks)).axis == 0 else call.mixed(OVER)
    return elementwise(call, out)


def elementwise_loss(call: Call) -> Found:
    """A mean or sum over the samples of a loss of each: input and target have to lie alike."""
    found = {(track.axis, track.outer, track.inner) for _, track in call.tracked()}
    return call.summed() if len(found) == 1 else call.mixed("compares samples of different layout")


def own(call: Call, out: Tensor) -> Found:
    """Functions whose other tensors only say of what shape or type the first is to be."""
    return track_of(call.args[0])


def copied(call: Call, out: Tensor) -> Found:
    """x.copy_(source)."""
    source = call.get(1, "src")
    track = track_of(source)
    return aligned(call, out, [(source, track)]) if isinstance(track, Track) else track


def embedding(call: Call, out: Tensor) -> Found:
    ids, table = call.get(0, "input"), call.get(1, "weight")
    track = track_of(ids)
    return track if track_of(table) is None else call.mixed("reads a table of samples")


def gather(call: Call, out: Tensor) -> Found:
    """gather, scatter, take_along_dim, index_add …: along another dimension than the samples'."""
    x, dim = call.args[0], call.dims(1)
    if call.name == "take_along_dim":
        dim = call.dims(2)
    if dim is None:
        return call.mixed("picks from the samples")
    axis = listed(dim, x.ndim)[0]
    tracks = {track for t, track in call.tracked() if t.ndim == x.ndim}
    if len(tracks) != 1 or len(tracks) != len({track for _, track in call.tracked()}):
        return call.mixed("joins samples of different layout")
    (track,) = tracks
    if track.axis == axis:
        index = call.get(2 if call.name != "take_along_dim" else 1, "index")
        same = call.name in ("gather", "take_along_dim") and track_of(index) is None and out.shape == x.shape
        if same and torch.equal(index, _rows(index, axis)):
            return track
        return call.mixed("picks from the samples")
    whole = track.outer * call.n * track.inner
    return track if out.shape[track.axis] == whole else call.mixed("takes some of the samples")


def _rows(index: Tensor, axis: int) -> Tensor:
    """An index that asks every row for itself."""
    shape = [1] * index.ndim
    shape[axis] = -1
    return torch.arange(index.shape[axis], device=index.device).view(shape).expand_as(index)


def nonzero(call: Call, out: Tensor) -> Found:
    """Where all are chosen, the indices are those of all rows, and depend on no sample."""
    x = call.tensors()[0]
    if isinstance(out, Tensor) and out.shape == (x.numel(), x.ndim):
        return None
    return call.mixed("chooses among the samples")


def index_select(call: Call, out: Tensor) -> Found:
    x, dim, index = call.get(0, "input"), call.dims(1), call.get(2, "index")
    axis = listed(dim, x.ndim)[0]
    track, by = track_of(x), track_of(index)
    if by is None and isinstance(track, Track):
        return track if track.axis != axis else call.mixed("picks from the samples")
    return by._replace(axis=axis) if track is None and isinstance(by, Track) else call.mixed("picks from the samples")


def index_along(call: Call, out: Tensor) -> Found:
    """index_add, index_copy, index_fill along another dimension, by a constant index."""
    x, axis = call.args[0], listed(call.dims(1), call.args[0].ndim)[0]
    index = call.get(2, "index")
    tracks = {track for t, track in call.tracked()}
    if track_of(index) is not None or len(tracks) != 1 or next(iter(tracks)).axis == axis:
        return call.mixed("writes between samples")
    (track,) = tracks
    return track if x.shape[track.axis] == track.outer * call.n * track.inner else call.mixed("writes between samples")


def recurrent(call: Call, out: Tensor) -> Found:
    x = call.args[0]
    track = track_of(x)
    if not isinstance(track, Track) or len(call.args) != 9 or track.axis == x.ndim - 1 or x.ndim != 3:
        return call.mixed("takes its samples in another layout")
    first = bool(call.args[8])
    if track.axis != (0 if first else 1):
        return call.mixed("runs over the samples as if they were time")
    return track if call.which == 0 else track._replace(axis=1)


def linalg_matrix(call: Call, out: Tensor) -> Found:
    """Functions of the matrices in the last two dimensions, whose output keeps the leading ones."""
    x = call.tensors()[0]
    track = track_of(x)
    if not isinstance(track, Track) or track.axis >= x.ndim - 2 or len(call.tracked()) > 1:
        return call.mixed(OVER)
    return track


def as_complex(call: Call, out: Tensor) -> Found:
    x = call.tensors()[0]
    track = track_of(x)
    return track if isinstance(track, Track) and track.axis < min(x.ndim, out.ndim) else call.mixed(OVER)


def cdist(call: Call, out: Tensor) -> Found:
    a, b = call.get(0, "x1"), call.get(1, "x2")
    one, two = track_of(a), track_of(b)
    turned = two
    if isinstance(two, Track):
        turned = two._replace(axis={b.ndim - 1: b.ndim - 2, b.ndim - 2: b.ndim - 1}.get(two.axis, two.axis))
    return product(call, out, a, b.transpose(-1, -2), one, turned)


def similarity(place: int) -> Any:
    """cosine_similarity and pairwise_distance: elementwise, then one dimension goes."""

    def rule(call: Call, out: Tensor) -> Found:
        found = call.tracked()
        ndim = max(t.ndim for t in call.tensors())
        dim = call.dims(place, default=1) if place else -1
        axes = {(track.axis + ndim - t.ndim, track.outer, track.inner) for t, track in found}
        if len(axes) != 1:
            return call.mixed("compares samples with each other")
        axis, outer, inner = axes.pop()
        gone = int(dim) % ndim
        if axis == gone:
            return call.mixed(OVER)
        return Track(axis - (gone < axis and out.ndim < ndim), outer, inner)

    return rule


def embedding_bag(call: Call, out: Tensor) -> Found:
    """Bags given as rows (N, T): one output row a bag; the outputs after the first are bookkeeping."""
    track = track_of(call.get(0, "input"))
    if not isinstance(track, Track) or call.get(0, "input").ndim != 2 or track.axis != 0:
        return call.mixed("joins bags of tokens before samples can be told apart")
    return track if out.shape[:1] == call.get(0, "input").shape[:1] else call.mixed(OVER)
