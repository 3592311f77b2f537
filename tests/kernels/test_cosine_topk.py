"""cosine_topk on every backend this machine has, against all cosines in float64, sorted."""

from __future__ import annotations

import dataclasses
import importlib
import mmap
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from sdsd_kernels._aot import compiled_ahead
from sdsd_kernels._backend import unusable
from sdsd_kernels._checks import PRECISIONS
from sdsd_kernels._device import INTERPRETED
from sdsd_kernels.cosine_topk import config, cpu
from sdsd_kernels.cosine_topk.op import cosine_topk
from sdsd_kernels.cosine_topk.reference import cosine_topk_reference
from sdsd_kernels.pairwise import blocks, reading
from sdsd_kernels.pairwise.config import Tile
from tests.helpers import cosine_error
from tests.kernels.cosines import exact_cosines, exact_rows, flat

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton", "ignore::RuntimeWarning:numpy")
NAN, INF = float("nan"), float("inf")


def exact_scores(x: Tensor, other: Tensor | None = None, neuron_dim: int = -1, center: bool = False) -> Tensor:
    """NaN where there is no neighbour."""
    left = exact_rows(x, neuron_dim, center)
    cosine = exact_cosines(left, left if other is None else exact_rows(other, neuron_dim, center))
    cosine[cosine.isinf()] = NAN
    if other is None:
        cosine.fill_diagonal_(NAN)
    return cosine


def near(x: Tensor, other: Tensor | None = None, neuron_dim: int = -1, center: bool = False) -> float:
    """The most that any computed cosine may be off."""
    rows = [flat(each, neuron_dim) for each in (x, other) if each is not None]
    dtype = torch.promote_types(x.dtype, torch.float32)
    return cosine_error(*rows, center=center, dtype=dtype).nan_to_num(0).max().item()


def check(found: tuple[Tensor, Tensor], exact: Tensor, k: int, farthest: bool, error: float) -> None:
    """Everything the docstring promises, given all exact cosines and how far a computed one may be from its own."""
    values, indices = (part.cpu() for part in found)
    values = values.double()
    rows = exact.shape[0]
    assert values.shape == indices.shape == (rows, k)
    assert indices.dtype == torch.int64
    scores = torch.where(exact.isnan(), -INF, -exact if farthest else exact)
    sorted_scores, sorted_indices = scores.sort(dim=1, descending=True, stable=True)
    there = sorted_scores[:, :k] > -INF
    assert torch.equal(values.isnan(), ~there)
    assert (indices[~there] == -1).all()
    assert (values[there].abs() <= 1).all()
    own = scores.gather(1, indices.clamp(min=0))
    signed = -values if farthest else values
    # Each value is that of its index, and the j-th best is within the error of the j-th best of all.
    assert ((signed - own)[there].abs() <= error).all()
    assert ((signed - sorted_scores[:, :k])[there].abs() <= error).all()
    for row in range(rows):
        found_here = indices[row][there[row]].tolist()
        assert len(set(found_here)) == len(found_here)
    both = there[:, 1:]
    step = (signed[:, 1:] - signed[:, :-1])[both]
    assert (step <= 0).all()
    assert ((indices[:, 1:] - indices[:, :-1])[both][step == 0] > 0).all()
    if error == 0:
        assert torch.equal(indices[there], sorted_indices[:, :k][there])


def check_call(x: Tensor, k: int, backend: str | None, **options) -> None:
    found = cosine_topk(x, k, backend=backend, **options)
    center, neuron_dim = options.get("center", False), options.get("neuron_dim", -1)
    other = options.get("other")
    exact = exact_scores(x, other, neuron_dim, center)
    check(found, exact, k, options.get("farthest", False), near(x, other, neuron_dim, center))


def signs(neurons: int, samples: int, seed: int, of: int = 4) -> Tensor:
    """Neurons with 4 (or 16) entries of ±1, else 0: cosines are exact multiples of 1/4 (1/16) and mostly tied."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.zeros(samples, neurons)
    for neuron in range(neurons):
        places = torch.randperm(samples, generator=generator)[:of]
        x[places, neuron] = torch.randint(0, 2, (of,), generator=generator).mul(2).sub(1).float()
    return x


@pytest.mark.parametrize(
    ("shape", "neuron_dim", "k", "farthest"),
    [
        ((24, 50), -1, 7, False),
        ((24, 50), -1, 7, True),
        ((1, 9), 1, 3, True),  # one sample: every cosine is ±1
        ((2, 5), 0, 1, False),  # two neurons
        ((35, 40), 0, 4, False),  # samples adjacent
        ((32, 64), 1, 5, True),  # nothing overruns
        ((3, 4, 20), -1, 2, False),  # (batch, tokens, neurons)
        ((2, 19, 2, 3), 1, 3, True),  # Conv2d
    ],
)
def test_matches_the_definition(shape, neuron_dim, k, farthest, backend, device):
    x = torch.randn(shape, device=device) + 0.2
    check_call(x, k, backend, neuron_dim=neuron_dim, farthest=farthest)


@pytest.mark.parametrize("k", [1, 20])
def test_first_and_all_neighbours(k, backend, device):
    check_call(torch.randn(9, 21, device=device), k, backend)


@pytest.mark.parametrize(
    ("view", "neuron_dim"),
    [
        (lambda x: x[:, ::2], 1),
        (lambda x: x.T[5:30], 0),
        (lambda x: x[:, :1].expand(-1, 9), 1),  # a neuron nine times
        (lambda x: x.view(3, 8, 40)[:, ::2], 2),  # two sample strides
        (lambda x: x.view(4, 3, 2, 40).movedim(3, 1), 1),  # channels last
        (lambda x: x.view(4, 3, 2, 40)[:, :2, ::2], 3),  # three sample strides
    ],
)
def test_any_strides(view, neuron_dim, backend, device):
    check_call(view(torch.randn(24, 40, device=device)), 3, backend, neuron_dim=neuron_dim)


@pytest.mark.parametrize("neuron_dim", [0, 1])
def test_offsets_beyond_32_bits(neuron_dim, backend, device):
    """Two neurons, or two samples, 2³¹ elements apart in memory that is never touched in between."""
    if device.type == "cuda":
        pytest.skip("needs memory that is not there until it is touched")
    apart = 2**31
    memory = torch.frombuffer(mmap.mmap(-1, 2 * (apart + 40)), dtype=torch.float16)
    x = memory.as_strided((2, 40), (apart, 1))
    x.copy_(torch.randn(2, 40))
    check_call(x, 1 if neuron_dim == 0 else 2, backend, neuron_dim=neuron_dim)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("center", [False, True])
def test_halves_have_float32_norms_and_sums(dtype, center, backend, device):
    x = (torch.randn(30, 35, device=device) + 0.5).to(dtype)
    values, indices = cosine_topk(x, 4, center=center, backend=backend)
    assert values.dtype == torch.float32
    check((values, indices), exact_scores(x, center=center), 4, False, near(x, center=center))


def test_float64(device):
    x = torch.randn(30, 40, device=device, dtype=torch.float64)
    wanted, error = exact_scores(x), near(x)
    x[:, 3] *= 2.0**-700
    x[:, 4] *= 2.0**700
    values, indices = cosine_topk(x, 5)
    assert values.dtype == torch.float64
    check((values, indices), wanted, 5, False, error)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_precisions(precision, backend, device):
    x = torch.randn(40, 40, device=device)
    rounded = x if precision == "float32" else x.half().float()
    error = (exact_scores(rounded) - exact_scores(x)).abs().nan_to_num(0).max().item()
    check(cosine_topk(x, 4, precision=precision, backend=backend), exact_scores(x), 4, False, 3 * error + near(x))


def test_any_scale(backend, device):
    x = torch.randn(30, 40, device=device)
    wanted = cosine_topk(x, 5, backend=backend)
    scales = 10.0 ** torch.linspace(-30, 30, 40, device=device)
    found = cosine_topk(x * scales, 5, backend=backend)
    check(found, exact_scores(x * scales), 5, False, near(x))
    # Both are within rounding of what is right, and scaling rounds each value once more.
    assert (found[0] - wanted[0]).abs().max() <= 3 * near(x)


def test_centring_does_not_cancel(backend, device):
    x = torch.randn(40, 36, device=device) + 1e4
    check_call(x, 4, backend, center=True)
    x[:, 3] = 0.1
    values, indices = cosine_topk(x, 4, center=True, backend=backend)
    assert values[3].isnan().all()
    assert not (indices == 3).any()


@pytest.mark.parametrize("farthest", [False, True])
@pytest.mark.parametrize(("neurons", "k"), [(36, 1), (36, 6), (33, 32)])
def test_ties_come_out_by_index(farthest, neurons, k, backend, device):
    x = signs(neurons, 12, seed=k)
    x[:, 31:33] = x[:, 2:4]  # duplicates beyond a tile
    check(cosine_topk(x.to(device), k, farthest=farthest, backend=backend), exact_scores(x), k, farthest, 0)


@pytest.mark.parametrize("neurons", [2, 30, 33, 34, 70, 1100])
def test_all_neighbours_with_the_backend_left_open(neurons, device):
    """k = n − 1: on a GPU the kernel serves up to 32 neighbours and torch beyond, on a CPU torch serves all."""
    x = signs(neurons, 12, seed=neurons)
    check(cosine_topk(x.to(device), neurons - 1), exact_scores(x), neurons - 1, False, 0)


@pytest.mark.parametrize("neurons", [2, 17, 30])
def test_all_neighbours_in_a_list_that_is_not_full(neurons, backend, device):
    """k = n − 1 below the lanes of a list: 1 of 4, 16 of 16, 29 of 32."""
    x = signs(neurons, 12, seed=neurons)
    check(cosine_topk(x.to(device), neurons - 1, backend=backend), exact_scores(x), neurons - 1, False, 0)


def test_all_equal(backend, device):
    values, indices = cosine_topk(torch.ones(4, 40, device=device), 5, backend=backend)
    assert (values == 1).all()
    assert indices[0].tolist() == [1, 2, 3, 4, 5]
    assert indices[3].tolist() == [0, 1, 2, 4, 5]
    assert (indices[6:] == torch.arange(5, device=device)).all()


@pytest.mark.parametrize(("bad", "farthest"), [(0.0, False), (0.0, True), (NAN, False), (INF, True), (-INF, False)])
def test_neurons_without_direction_have_no_neighbours_and_are_none(bad, farthest, backend, device):
    x = torch.randn(20, 40, device=device).relu()
    others = [neuron for neuron in range(40) if neuron not in (0, 35)]
    clean = cosine_topk(x[:, others], 6, farthest=farthest, backend=backend)
    x[:, [0, 35]] = bad
    x[1:, 35] = 0.0
    values, indices = cosine_topk(x, 6, farthest=farthest, backend=backend)
    for dead in (0, 35):
        assert values[dead].isnan().all()
        assert (indices[dead] == -1).all()
        assert not (indices == dead).any()
    assert torch.equal(indices[others], torch.tensor(others, device=device)[clean[1]])
    assert (values[others] - clean[0]).abs().max() <= 2 * near(x[:, others])


def test_fewer_neighbours_than_wanted(backend, device):
    x = torch.zeros(6, 10, device=device)
    x[:, [2, 5, 6]] = torch.randn(6, 3, device=device)
    values, indices = cosine_topk(x, 4, backend=backend)
    check((values, indices), exact_scores(x), 4, False, near(x))
    assert (indices[2, :2].sort().values == torch.tensor([5, 6], device=device)).all()
    assert indices[2, 2:].tolist() == [-1, -1]
    nothing = cosine_topk(torch.zeros(3, 4, device=device), 2, backend=backend)
    assert nothing[0].isnan().all()
    assert (nothing[1] == -1).all()


@pytest.mark.parametrize("farthest", [False, True])
def test_neighbours_among_others(farthest, backend, device):
    x, other = torch.randn(12, 20, device=device), torch.randn(12, 37, device=device)
    other[:, 36] = x[:, 7]
    check_call(x, 5, backend, other=other, farthest=farthest)
    values, indices = cosine_topk(x, 37, other=other, backend="torch")
    check((values, indices), exact_scores(x, other), 37, False, near(x, other))
    assert cosine_topk(x, 1, other=other, backend=backend)[1][7].item() == 36
    # Nobody is left out: a neuron finds itself.
    assert (cosine_topk(x, 1, other=x, backend=backend)[1][:, 0] == torch.arange(20, device=device)).all()


@pytest.mark.parametrize(
    "shapes", [((6, 20, 2, 3), (6, 9, 6)), ((6, 20, 6), (6, 9, 2, 3)), ((6, 20, 2, 3), (2, 9, 3, 6))]
)
def test_others_whose_samples_are_cut_differently(shapes, backend, device):
    x, other = (torch.randn(shape, device=device) for shape in shapes)
    found = cosine_topk(x, 3, neuron_dim=1, other=other, backend=backend)
    check(found, exact_scores(x, other, 1), 3, False, near(x, other, 1))


def test_same_bits_twice(backend, device):
    x = torch.randn(15, 40, device=device)
    first, second = (cosine_topk(x, 5, backend=backend) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("farthest", [False, True])
def test_reference_is_the_definition(center, farthest):
    x = torch.randn(3, 9, 8) + 0.5
    x[:, 2] = 0
    x[:, 3] *= 1e-30
    x[0, 4, 0] = NAN
    found = cosine_topk_reference(x, 7, neuron_dim=1, center=center, farthest=farthest)
    check(found, exact_scores(x, neuron_dim=1, center=center), 7, farthest, 1e-12)
    other = torch.randn(3, 4, 8)
    found = cosine_topk_reference(x, 4, neuron_dim=1, other=other, center=center, farthest=farthest)
    check(found, exact_scores(x, other, 1, center), 4, farthest, 1e-12)


# The torch path, every branch of it


@st.composite
def tied_activations(draw) -> Tensor:
    neurons, samples = draw(st.integers(2, 90)), draw(st.integers(4, 12))
    x = signs(neurons, samples, seed=draw(st.integers(0, 2**31)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    x[:, torch.rand(neurons, generator=generator) < draw(st.sampled_from([0, 0.1, 0.7]))] = draw(
        st.sampled_from([0.0, NAN])
    )
    if draw(st.booleans()):  # better and better to the right: every block beats what came before
        x = x[:, x[0].argsort(stable=True)]
    return x.T.contiguous().T if draw(st.booleans()) else x


@settings(max_examples=150, deadline=None, derandomize=True)
@given(tied_activations(), st.data())
def test_every_way_through_the_blocks(x, data):
    neurons = x.shape[1]
    k = data.draw(st.one_of(st.integers(1, min(4, neurons - 1)), st.integers(1, neurons - 1)))
    farthest = data.draw(st.booleans())
    among_others = data.draw(st.booleans())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "BLOCK", data.draw(st.sampled_from([(8, 8), (16, 24), (24, 10), (7, 90), (200, 200)])))
        patch.setattr(cpu, "GROUP", data.draw(st.sampled_from([4, 8])))
        patch.setattr(cpu, "COLUMN_GROUP", data.draw(st.sampled_from([1, 2, 4])))
        patch.setattr(cpu, "WHOLE_ROWS_FROM", data.draw(st.sampled_from([0, 16, 1000])))
        patch.setattr(cpu, "STRIP_ELEMENTS", {"cpu": data.draw(st.sampled_from([1, 300]))})
        found = cosine_topk(x, k, farthest=farthest, other=x if among_others else None, backend="torch")
    check(found, exact_scores(x, x if among_others else None), k, farthest, 0)


def test_the_rare_branches_are_taken(monkeypatch):
    """What the test above relies on: its data reach both ways of merging and the raised threshold."""
    taken = set()
    for name in ("_merge", "_merge_all", "take"):
        original = getattr(cpu.TopK, name)

        def record(self, *args, original=original, name=name):
            taken.add(name)
            return original(self, *args)

        monkeypatch.setattr(cpu.TopK, name, record)
    x = torch.randn(20, 300)
    cosine_topk(x, 2, backend="torch")
    assert taken == {"_merge"}
    cosine_topk(x, 15, backend="torch")
    assert taken == {"_merge", "_merge_all"}
    cosine_topk(x, 290, backend="torch")
    assert taken == {"_merge", "_merge_all", "take"}


@pytest.mark.parametrize("k", [1, 10, 500])
def test_several_blocks_of_full_size(k):
    x = torch.randn(12, 2200)
    x[:, 2100:2150] = x[:, :50]
    x[:, 700] = 0
    check_call(x, k, "torch")
    assert (cosine_topk(x, 1, backend="torch")[1][:50, 0] == torch.arange(2100, 2150)).all()


def test_a_pair_has_one_cosine():
    values, indices = cosine_topk(torch.randn(33, 1300), 40, backend="torch")
    cosine = torch.full((1300, 1300), NAN).scatter(1, indices, values)
    mutual = ~cosine.isnan() & ~cosine.T.isnan()
    assert mutual.any()
    assert torch.equal(cosine[mutual], cosine.T[mutual])


@pytest.mark.parametrize("shape", [(2, 33, 700), (700, 33, 2), (30, 33, 30), (257, 33, 3)])
@pytest.mark.parametrize("center", [False, True])
def test_samples_in_pieces(shape, center, monkeypatch):
    monkeypatch.setattr(blocks, "SAMPLES_AT_ONCE", 40)
    monkeypatch.setattr(reading, "PASS_ELEMENTS", 500)
    x = torch.randn(shape) + 0.3
    for each in (x, x.bfloat16(), x.transpose(0, 1).contiguous().transpose(0, 1)):
        found = cosine_topk(each, 4, neuron_dim=1, center=center, backend="torch")
        check(found, exact_scores(each, neuron_dim=1, center=center), 4, False, near(each, None, 1, center))


def test_plain_layouts_are_read_where_they_lie(monkeypatch):
    x = torch.randn(50, 40)
    for rows in (x, x.T.contiguous().T, x[:, :30], x.T[:, 5:].T):
        neurons = blocks.prepare(rows.T[:, None])
        assert not neurons.converts
    assert blocks.prepare((x * 1e25).T[:, None]).converts
    assert blocks.prepare(x.half().T[:, None]).converts


def test_a_lowered_matmul_precision_changes_nothing(monkeypatch):
    seen = []
    multiply = blocks._fill_products

    def record(*args):
        seen.append(torch.get_float32_matmul_precision())
        multiply(*args)

    monkeypatch.setattr(blocks, "_fill_products", record)
    torch.set_float32_matmul_precision("medium")
    try:
        cosine_topk(torch.randn(30, 64), 3, backend="torch")
        assert seen
        assert set(seen) == {"highest"}
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


# Memory


class Allocated(TorchDispatchMode):
    """Bytes of tensors alive at once that were made inside the block."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        for tensor in tree_iter((args, kwargs)):
            if isinstance(tensor, Tensor):
                self.known.add(tensor.untyped_storage()._cdata)
        result = function(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in self.known:
                storage = tensor.untyped_storage()
                self.known.add(storage._cdata)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._freed, storage._cdata, storage.nbytes())
        return result

    def _freed(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


@pytest.mark.parametrize(
    ("make", "k", "options"),
    [
        (lambda: torch.randn(2100, 40), 5, {}),
        (lambda: torch.ones(2100, 4), 5, {}),  # all equal and best, the worst case
        (lambda: torch.randn(2100, 40), 300, {}),  # whole rows
        (lambda: torch.randn(1500, 300).half(), 5, {"center": True}),  # converted panels
        (lambda: torch.randn(2000, 20), 100, {}),
    ],
)
@pytest.mark.parametrize("max_bytes", [None, 12 * 2**20])
def test_memory_stays_within_its_bound(make, k, options, max_bytes):
    x = make()
    options |= {"neuron_dim": 0, "max_bytes": max_bytes, "backend": "torch"}
    with Allocated() as allocated:
        # With a function for progress it is no single operation to the dispatcher.
        found = cosine_topk(x, k, progress=lambda done, total: None, **options)
    result = sum(part.nbytes for part in found)
    assert result < allocated.peak <= result + (max_bytes or 96 * 2**20)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_memory_where_one_row_learns_of_a_whole_block(dtype):
    """The list of every touched row is as long as the longest."""
    best = cpu.TopK(512, 3, torch.zeros((), dtype=dtype))
    best.values.zero_()
    scores = -torch.ones(512, 512, dtype=dtype)
    scores[0] = scores[:, 40] = 1
    with Allocated() as allocated:
        best.offer(0, scores, 7)
    assert best.indices[:2].tolist() == [[7, 8, 9], [47, -1, -1]]
    assert scores.nbytes < allocated.peak <= (cpu.PAIR_COPIES - 1) * scores.nbytes


def test_max_bytes_too_small(device):
    x = torch.randn(30, 500, device=device)
    with pytest.raises(ValueError, match=r"max_bytes: expected at least [\d,]+ .* got 1,000\. Allow more") as error:
        cosine_topk(x, 3, max_bytes=1000, backend="torch")
    needed = int(str(error.value).split("at least ")[1].split(" ")[0].replace(",", ""))
    wanted = cosine_topk(x, 3, backend="torch")
    assert torch.equal(cosine_topk(x, 3, max_bytes=needed, backend="torch")[1], wanted[1])
    with pytest.raises(ValueError, match="max_bytes: expected at least"):
        cosine_topk(x, 3, max_bytes=needed - 1, backend="torch")
    with pytest.raises(ValueError, match="which one block of 1 × 500 neurons takes"):
        cosine_topk(x, 499, max_bytes=1000, backend="torch")


# Progress and interruption


def test_progress_counts_to_its_total(backend, device):
    x = torch.randn(8, 40, device=device)
    steps: list[tuple[int, int]] = []
    found = cosine_topk(x, 3, progress=lambda done, total: steps.append((done, total)), backend=backend)
    assert [done for done, _ in steps] == sorted({done for done, _ in steps})
    assert steps[-1][0] == steps[-1][1] == steps[0][1]
    assert torch.equal(found[1], cosine_topk(x, 3, backend=backend)[1])


def test_progress_comes_while_it_computes(monkeypatch):
    monkeypatch.setattr(cpu, "BLOCK", (64, 64))
    steps: list[tuple[int, int]] = []
    cosine_topk(torch.randn(8, 200), 3, progress=lambda done, total: steps.append((done, total)), backend="torch")
    assert steps == [(done, 10) for done in range(1, 11)]


def test_an_interruption_ends_the_call(backend, device):
    x = torch.randn(8, 40, device=device)

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cosine_topk(x, 3, progress=interrupt, backend=backend)
    check_call(x, 3, backend)


# The Triton path without a GPU


@pytest.mark.parametrize("multiprocessors", [1, 3, 40])
def test_any_number_of_splits(multiprocessors, device, monkeypatch):
    problem = unusable("triton", device)
    if problem or device.type == "cuda":
        pytest.skip(problem or "the number of multiprocessors is the GPU's own")
    launch = importlib.import_module("sdsd_kernels.pairwise.launch")
    record = dataclasses.replace(INTERPRETED, multiprocessors=multiprocessors)
    monkeypatch.setattr(launch, "device_record", lambda device: record)
    monkeypatch.setattr(launch, "_plans", {})
    monkeypatch.setattr(config, "topk_tile", lambda *_: Tile(16, 16, 16, num_warps=4, num_stages=1, resident=1))
    x = signs(45, 9, seed=1)
    check(cosine_topk(x, 5, backend="triton"), exact_scores(x), 5, False, 0)


def test_splits_fill_the_machine():
    assert config.splits(157, 157, 132) == 3
    assert config.splits(64, 32, 132) == 2
    assert config.splits(1000, 1000, 132) == 1
    for tiles in (1, 2, 7, 64, 500):
        assert 1 <= config.splits(tiles, tiles, 132) <= min(tiles, config.MOST_SPLITS)


def test_lists_in_pieces(device, monkeypatch):
    problem = unusable("triton", device)
    if problem:
        pytest.skip(problem)
    monkeypatch.setattr(config, "MERGED_ROWS", 7)
    x = signs(20, 9, seed=1).to(device)
    check(cosine_topk(x, 3, backend="triton"), exact_scores(x), 3, False, 0)
    with pytest.raises(ValueError, match=r"max_bytes=1,000 is less than the 3,\d{3} that its halves take"):
        cosine_topk(x, 3, max_bytes=1000, backend="triton")
    check(cosine_topk(x, 3, max_bytes=5000, backend="triton"), exact_scores(x), 3, False, 0)


def test_wide_tiles_are_offered_in_strips(device, monkeypatch):
    problem = unusable("triton", device)
    if problem or device.type == "cuda":
        pytest.skip(problem or "tiles of a GPU are as wide as they are")
    kernel = importlib.import_module("sdsd_kernels.cosine_topk.kernel")
    monkeypatch.setattr(kernel, "STRIP", kernel.tl.constexpr(8))
    x = signs(45, 9, seed=1)
    check(cosine_topk(x, 5, backend="triton"), exact_scores(x), 5, False, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("others", [None, "alike", "neurons adjacent"])
def test_operands_of_every_kind(dtype, others, device):
    """Halves where they lie, or rewritten; two sets of neurons whose layouts differ."""
    problem = unusable("triton", device)
    if problem:
        pytest.skip(problem)
    x = torch.randn(32, 48, device=device).to(dtype).T.contiguous().T
    other = None if others is None else torch.randn(32, 40, device=device).to(dtype)
    if others == "alike":
        other = other.T.contiguous().T
    found = cosine_topk(x, 4, other=other, backend="triton")
    check(found, exact_scores(x, other), 4, False, near(x, other))


@pytest.mark.parametrize(("k", "lanes"), [(1, 4), (4, 4), (5, 8), (17, 32), (32, 32)])
def test_lanes(k, lanes):
    assert config.lanes(k) == lanes


def test_torch_serves_what_the_kernel_lacks(device):
    x = torch.randn(8, 60, device=device)
    check_call(x, config.MOST_NEIGHBORS + 1, None)
    with pytest.raises(ValueError, match="the kernel keeps at most 32 neighbours and k is 33"):
        cosine_topk(x, 33, backend="triton")
    with pytest.raises(ValueError, match="the kernel has no float64"):
        cosine_topk(x.double(), 3, backend="triton")


def test_aot_cases_cover_every_configuration():
    if unusable("torch", torch.device("cpu")) is None and importlib.util.find_spec("triton") is None:
        pytest.skip("no Triton")
    cases = importlib.import_module("sdsd_kernels.cosine_topk.aot").aot_cases()
    assert len({(case.name, case.target) for case in cases}) == len(cases)
    for record in compiled_ahead():
        for three, table in ((False, config.ONE_TERM), (True, config.THREE_TERMS)):
            assert table[record.family][-1][0] == config.MOST_NEIGHBORS
            for places, tile in table[record.family]:
                assert any(
                    case.target == record.target
                    and (how := case.constexprs["HOW"])
                    and (how.three, case.constexprs["LANES"]) == (three, places)
                    and (how.rows, how.columns, how.samples) == (tile.rows, tile.columns, tile.samples)
                    for case in cases
                )


# torch.library and torch.compile


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("among_others", [False, True])
def test_opcheck(dtype, among_others, device):
    rows = torch.randn(5, 2, 6, dtype=dtype, device=device)
    others = torch.randn(4, 2, 6, dtype=dtype, device=device) if among_others else None
    backend = "triton" if device.type == "cuda" and dtype == torch.float32 else "torch"
    torch.library.opcheck(torch.ops.sdsd.cosine_topk.default, (rows, others, 2, False, "float32", True, None, backend))


def test_compiles_whole(device):
    def nearest(x: Tensor) -> tuple[Tensor, Tensor]:
        return cosine_topk(x.relu(), 3, neuron_dim=1)

    x = torch.randn(4, 6, 3, 3, device=device, requires_grad=True)
    values, indices = torch.compile(nearest, fullgraph=True, backend="aot_eager")(x)
    assert torch.equal(indices, nearest(x)[1])
    assert torch.equal(values, nearest(x)[0])


def test_no_gradient_and_inference_mode(backend, device):
    x = torch.randn(8, 20, device=device, requires_grad=True)
    values, indices = cosine_topk(x, 3, backend=backend)
    assert not values.requires_grad
    with torch.inference_mode():
        again = cosine_topk(x, 3, backend=backend)
    assert torch.equal(again[0], values)
    assert torch.equal(again[1], indices)


def test_meta_tensors_have_the_shape():
    values, indices = cosine_topk(torch.randn(4, 9, device="meta"), 5)
    assert values.shape == indices.shape == (9, 5)
    assert (values.dtype, indices.dtype) == (torch.float32, torch.int64)


# Bad input

X = torch.ones(3, 6)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: cosine_topk([[1.0]], 1), TypeError, "activations: expected a torch.Tensor, got list"),
        (lambda: cosine_topk(torch.ones(3), 1), ValueError, r"at least two dimensions.*got shape \(3,\)"),
        (lambda: cosine_topk(X.long(), 1), TypeError, "got torch.int64"),
        (lambda: cosine_topk(X.to_sparse(), 1), TypeError, "expected a dense tensor"),
        (lambda: cosine_topk(torch.ones(0, 4), 1), ValueError, "which has no samples"),
        (lambda: cosine_topk(torch.ones(4, 1), 1), ValueError, "expected at least two neurons, got 1"),
        (lambda: cosine_topk(X, 0), ValueError, "k: expected 1 to 5 for 6 neurons, got 0"),
        (lambda: cosine_topk(X, -1), ValueError, "got -1"),
        (lambda: cosine_topk(X, 6), ValueError, "k: expected 1 to 5 for 6 neurons, got 6"),
        (lambda: cosine_topk(X, 7, other=X), ValueError, "k: expected 1 to 6 for 6 neurons in other, got 7"),
        (lambda: cosine_topk(X, 2.0), TypeError, "k: expected an int, got float"),
        (lambda: cosine_topk(X, True), TypeError, "k: expected an int, got bool"),
        (lambda: cosine_topk(X, 1, neuron_dim=2), ValueError, "expected -2 to 1"),
        (lambda: cosine_topk(X, 1, precision="fp8"), ValueError, "expected one of 'float32', 'fp16'"),
        (lambda: cosine_topk(X, 1, backend="cuda"), ValueError, "expected one of 'triton', 'torch', got 'cuda'"),
        (lambda: cosine_topk(X, 1, max_bytes=0), ValueError, "max_bytes: expected at least 1, got 0"),
        (lambda: cosine_topk(X, 1, max_bytes=1e6), TypeError, "max_bytes: expected an int or None, got float"),
        (lambda: cosine_topk(X, 1, other=[1.0]), TypeError, "other: expected a torch.Tensor, got list"),
        (lambda: cosine_topk(X, 1, other=torch.ones(4, 6)), ValueError, "other: expected the number of samples of"),
        (lambda: cosine_topk(X, 1, other=X.double()), ValueError, "the dtype of activations, torch.float32, got"),
        (lambda: cosine_topk(X, 1, other=X.to("meta")), ValueError, "the device of activations, cpu, got meta"),
    ],
)
def test_bad_input(call, error, match):
    with pytest.raises(error, match=match):
        call()
