"""The torch path of cosine_topk: every branch, memory, progress and interruption."""

from __future__ import annotations

import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from sdsd_kernels.cosine_topk import cpu
from sdsd_kernels.cosine_topk.op import cosine_topk
from sdsd_kernels.pairwise import blocks, reading

from .nearest import NAN, check, check_call, exact_scores, near, signs

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton", "ignore::RuntimeWarning:numpy")


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
        patch.setattr(cpu, "WAITING", data.draw(st.sampled_from([0, 30, 1000])))
        patch.setattr(cpu, "AT_ONCE", data.draw(st.sampled_from([1, 32])))
        found = cosine_topk(x, k, farthest=farthest, other=x if among_others else None, backend="torch")
    check(found, exact_scores(x, x if among_others else None), k, farthest, 0)


def test_the_rare_branches_are_taken(monkeypatch):
    """What the test above relies on: its data reach both ways of merging and the raised threshold."""
    taken = set()
    for name in ("merge", "_merge_all", "take"):
        original = getattr(cpu.TopK, name)

        def record(self, *args, original=original, name=name):
            taken.add(name)
            return original(self, *args)

        monkeypatch.setattr(cpu.TopK, name, record)
    x = torch.randn(20, 300)
    cosine_topk(x, 2, backend="torch")
    assert taken == {"merge"}
    cosine_topk(x, 15, backend="torch")
    assert taken == {"merge", "_merge_all"}
    cosine_topk(x, 290, backend="torch")
    assert taken == {"merge", "_merge_all", "take"}


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
    multiply = blocks.upper_products

    def record(*args, **options):
        seen.append(torch.get_float32_matmul_precision())
        multiply(*args, **options)

    monkeypatch.setattr(blocks, "upper_products", record)
    torch.set_float32_matmul_precision("medium")
    try:
        cosine_topk(torch.randn(30, 64), 3, backend="torch")
        assert seen
        assert set(seen) == {"highest"}
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


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
@pytest.mark.parametrize("late", [False, True])
def test_memory_where_one_row_learns_of_a_whole_block(dtype, late):
    """New scores of a row come a few at a time, so that its list does not make every other one as long."""
    best = cpu.TopK(512, 3, torch.zeros((), dtype=dtype))
    best.values.zero_()
    if late:
        best.indices += torch.tensor([1001, 1002, 1003])
    scores = -torch.ones(512, 512, dtype=dtype)
    scores[0] = scores[:, 40] = 1
    with Allocated() as allocated:
        best.offer((0, scores, 7))
    assert best.indices[:2].tolist() == [[7, 8, 9], [47, *([1000, 1001] if late else [-1, -1])]]
    assert 0 < allocated.peak <= scores.nbytes


@pytest.mark.parametrize("k", [1, 10, 60])
@pytest.mark.parametrize("part", [0.05, 0.12, 0.24, 1])
@pytest.mark.parametrize("scattered", [False, True])
def test_memory_where_much_of_a_block_is_better(k, part, scattered):
    """For its rows as for its columns: what PAIR_COPIES counts on, the block included."""
    best = cpu.TopK(1024, k, torch.zeros(()))
    best.values.zero_()
    scores, side = -torch.ones(512, 512), int(512 * part)
    if scattered:
        scores[torch.rand(512, 512) < part] = 1
    else:
        scores[:, :side] = torch.rand(512, side) + 0.1
    with Allocated() as allocated:
        best.offer((0, scores, 512), (512, scores.T, 0))
    assert 0 < allocated.peak <= (cpu.PAIR_COPIES - 1) * scores.nbytes
    for rows, all_scores in ((slice(512), scores), (slice(512, 1024), scores.T)):
        wanted = all_scores.sort(dim=1, descending=True).values[:, :k]
        assert torch.equal(best.values[rows], wanted.clamp(min=0))


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
