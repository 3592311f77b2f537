"""gram_accumulate on every backend this machine has, against float64 written apart from reference.py."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sdsd_kernels import available_backends, gram_accumulate
from sdsd_kernels.gram_accumulate import op
from sdsd_kernels.gram_accumulate.reference import gram_accumulate_reference
from sdsd_kernels.pairwise import products
from tests.helpers import assert_within, summation_error, unit_roundoff
from tests.kernels.cosines import flat

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")
NAN, INF = float("nan"), float("inf")


def oracle_rows(x: Tensor, neuron_dim: int = -1, shift: Tensor | None = None, scale: Tensor | None = None) -> Tensor:
    rows = flat(x, neuron_dim).double()
    rows = rows - (0.0 if shift is None else shift.cpu().double().unsqueeze(1))
    return rows * (1.0 if scale is None else scale.cpu().double().unsqueeze(1))


def oracle(x: Tensor, neuron_dim: int = -1, shift: Tensor | None = None, scale: Tensor | None = None) -> Tensor:
    """Upper triangle of sums of products, in float64."""
    rows = oracle_rows(x, neuron_dim, shift, scale)
    return torch.einsum("is,js->ij", rows, rows).triu()


def check(
    gram: Tensor, start: Tensor, x: Tensor, neuron_dim: int = -1, calls: int = 1, backend: str = "torch", **options
) -> None:
    """Each call's products and sum in float32 (float64 for float64), shift and scale rounded before, the result after.

    Rounding a factor moves a product by u; a sum moves by u of itself with each call. The oracle rounds as well. The
    kernels hold a float32 factor as two float16, of 23 bits at least, and leave out the product of the two low ones:
    that moves a product by 2u for each factor, and by 4u.
    """
    rows = flat(x, neuron_dim)
    work = torch.promote_types(rows.dtype, torch.float32)
    magnitude = oracle(oracle_rows(x, neuron_dim, **options).abs().T)
    wanted = start.cpu().double().triu() + oracle(x, neuron_dim, **options)
    products = sum(summation_error(rows.shape[1], each) + 4 * unit_roundoff(each) for each in (work, torch.float64))
    if backend == "triton" and (x.dtype == torch.float32 or "shift" in options):
        products += 8 * unit_roundoff(torch.float32)
    kept = 2 * calls * unit_roundoff(gram.dtype) * (start.cpu().double().abs().triu() + magnitude)
    assert_within(gram.triu(), wanted, products * magnitude + kept)


@pytest.mark.parametrize("sum_dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("shape", "neuron_dim"),
    [
        ((40, 70), -1),
        ((1, 33), 1),
        ((33, 1), 1),
        ((97, 130), 0),  # samples adjacent
        ((3, 7, 35), -1),  # (batch, tokens, neurons)
        ((3, 34, 4, 5), 1),  # Conv2d
    ],
)
def test_matches_the_definition(shape, neuron_dim, sum_dtype, backend, device):
    x = torch.randn(shape, device=device) + 0.2
    neurons = shape[neuron_dim]
    start = torch.randn(neurons, neurons, dtype=sum_dtype, device=device)
    gram = start.clone()
    assert gram_accumulate(gram, x, neuron_dim=neuron_dim, backend=backend) is gram
    check(gram, start, x, neuron_dim, backend=backend)


@pytest.mark.parametrize(
    ("view", "neuron_dim"),
    [
        (lambda x: x[:, ::2], 1),
        (lambda x: x[::3, 1:40], 1),
        (lambda x: x.T[5:40], 0),
        (lambda x: x[:, :1].expand(-1, 35), 1),
        (lambda x: x.view(6, 10, 70)[:, ::2], 2),  # two sample strides
        (lambda x: x.view(4, 3, 5, 70)[:, :2, ::2], 3),  # three: copied
    ],
)
def test_any_strides(view, neuron_dim, backend, device):
    x = view(torch.randn(60, 70, device=device))
    start = torch.zeros((x.shape[neuron_dim],) * 2, device=device)
    check(
        gram_accumulate(start.clone(), x, neuron_dim=neuron_dim, backend=backend), start, x, neuron_dim, backend=backend
    )


@pytest.mark.parametrize("view", [lambda x: x[:, 1], lambda x: x[::2, 0], lambda x: x[0, :1].expand(40)])
def test_any_strides_of_shift_and_scale(view, backend, device):
    numbers = torch.rand(80, 3, device=device) + 0.5
    shift, scale = view(numbers)[:40], view(numbers.flip(0))[:40]
    x = torch.randn(70, 40, device=device)
    start = torch.zeros(40, 40, device=device, dtype=torch.float64)
    got = gram_accumulate(start.clone(), x, shift=shift, scale=scale, backend=backend)
    check(got, start, x, backend=backend, shift=shift, scale=scale)


@pytest.mark.parametrize("place", ["gram", "shift", "scale", "activations"])
def test_any_address(place, backend, device):
    """Calls of one shape after another, of which some have an address that is no multiple of 16 bytes."""
    x = torch.randn(64, 32, device=device)
    for number in (0, 1, 2):
        moved = torch.rand(64 * 32 + 8, device=device)
        given = {
            "gram": torch.ones(32, 32, device=device),
            "activations": x,
            "shift": torch.randn(32, device=device),
            "scale": torch.rand(32, device=device),
        }
        size = given[place].numel()
        given[place] = moved[number : number + size].view(given[place].shape)
        start = given["gram"].clone()
        rest = {"shift": given["shift"], "scale": given["scale"]}
        gram_accumulate(given["gram"], given["activations"], backend=backend, **rest)
        check(given["gram"], start, given["activations"], backend=backend, **rest)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_dtypes(dtype, backend, device):
    x = torch.randn(70, 40, device=device, dtype=torch.float64).to(dtype)
    if dtype == torch.float64:
        backend = "torch"
    for sum_dtype in (torch.float64, torch.float32)[: 1 if dtype == torch.float64 else 2]:
        start = torch.zeros(40, 40, device=device, dtype=sum_dtype)
        # Halves are exact in float32, so they get the bound of the same values in float32.
        check(gram_accumulate(start.clone(), x, backend=backend), start, x, backend=backend)


@pytest.mark.parametrize("sum_dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shift_and_scale(dtype, sum_dtype, backend, device):
    offset = 100.0 if dtype == torch.float32 else 1.0
    x = (torch.randn(90, 40, device=device) + offset).to(dtype)
    shift = x.float().mean(0)
    scale = torch.exp2(torch.randint(-3, 4, (40,), device=device).float())
    gram = torch.zeros(40, 40, device=device, dtype=sum_dtype)
    for options in ({"shift": shift}, {"scale": scale}, {"shift": shift, "scale": scale}):
        gram.zero_()
        gram_accumulate(gram, x, backend=backend, **options)
        check(gram, torch.zeros_like(gram), x, backend=backend, **options)


def test_many_batches_into_float64_err_no_more_than_one(backend, device):
    batches = [torch.randn(64, 33, device=device) + 0.5 for _ in range(40)]
    gram = torch.zeros(33, 33, device=device, dtype=torch.float64)
    for batch in batches:
        gram_accumulate(gram, batch, backend=backend)
    magnitude = oracle(torch.cat(batches).abs())
    wanted = oracle(torch.cat(batches))
    assert_within(gram.triu(), wanted, summation_error(64) * magnitude)


@pytest.mark.parametrize("panel", [300, products.WAITING])
def test_sums_of_many_batches_are_float64(panel, backend, device, monkeypatch):
    """Products of these integers are exact in float32 in every order; beside 2⁴⁰ only float64 keeps them."""
    monkeypatch.setattr(products, "WAITING", panel)
    batches = [torch.randint(-8, 9, (50, 33), device=device).float() for _ in range(3)]
    gram = torch.full((33, 33), 2.0**40, dtype=torch.float64, device=device)
    for batch in batches:
        gram_accumulate(gram, batch, backend=backend)
    assert torch.equal(gram.triu().cpu(), torch.full((33, 33), 2.0**40).double().triu() + oracle(torch.cat(batches)))


def test_what_lies_below_the_diagonal_does_not_matter(backend, device):
    x = torch.randn(50, 300, device=device)
    clean = torch.zeros(300, 300, device=device)
    dirty = torch.full_like(clean, NAN).tril(-1)
    gram_accumulate(clean, x, backend=backend)
    gram_accumulate(dirty, x, backend=backend)
    assert torch.equal(clean.triu(), dirty.triu())


@pytest.mark.parametrize("bad", [NAN, INF])
@pytest.mark.parametrize("sum_dtype", [torch.float32, torch.float64])
def test_bad_values_stay_in_their_row_and_column(bad, sum_dtype, backend, device):
    x = torch.randn(50, 40, device=device)
    clean = gram_accumulate(torch.zeros(40, 40, device=device, dtype=sum_dtype), x, backend=backend)
    x[7, 35] = bad
    gram = gram_accumulate(torch.zeros(40, 40, device=device, dtype=sum_dtype), x, backend=backend).triu()
    hit = torch.zeros(40, 40, dtype=torch.bool, device=device)
    hit[:, 35] = hit[35] = True
    assert (~gram[hit.triu()].isfinite()).all()
    assert torch.equal(gram[~hit], clean.triu()[~hit])


@st.composite
def batches(draw) -> list[Tensor]:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    neurons = draw(st.integers(1, 45))
    sizes = draw(st.lists(st.integers(1, 60), min_size=1, max_size=3))
    return [torch.randn(size, neurons, generator=generator) + draw(st.sampled_from([0.0, 3.0])) for size in sizes]


@settings(max_examples=15, deadline=None, derandomize=True)
@given(batches(), st.booleans(), st.booleans())
def test_any_stream(stream, wide, transposed):
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    neurons = stream[0].shape[1]
    start = torch.zeros(neurons, neurons, dtype=torch.float64 if wide else torch.float32)
    for name in available_backends(device):
        gram = start.clone().to(device)
        for batch in stream:
            batch = batch.to(device)
            gram_accumulate(gram, batch.T.contiguous().T if transposed else batch, backend=name)
        check(gram, start, torch.cat(stream), calls=len(stream), backend=name)


# The torch path, every branch of it


@pytest.mark.parametrize("elements", [1, 300, 1 << 22])
def test_panels_of_float32_products(elements, monkeypatch):
    monkeypatch.setattr(products, "WAITING", elements)
    for neurons in (1, 33, 150):
        x = torch.randn(20, neurons)
        start = torch.randn(neurons, neurons, dtype=torch.float64)
        check(gram_accumulate(start.clone(), x, backend="torch"), start, x)


def test_torch_ignores_a_lowered_matmul_precision(monkeypatch):
    seen = []
    add = op.upper_products

    def record(*args, **options):
        seen.append(torch.get_float32_matmul_precision())
        add(*args, **options)

    monkeypatch.setattr(op, "upper_products", record)
    torch.set_float32_matmul_precision("medium")
    try:
        gram_accumulate(torch.zeros(64, 64), torch.randn(300, 64), backend="torch")
        assert seen == ["highest"]
    finally:
        torch.set_float32_matmul_precision("highest")


# torch.library, torch.compile


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("sum_dtype", [torch.float32, torch.float64])
def test_opcheck(shifted, sum_dtype, backend, device):
    rows = torch.randn(5, 2, 6, device=device)
    vector = torch.ones(5, device=device) if shifted else None
    gram = torch.zeros(5, 5, dtype=sum_dtype, device=device)
    torch.library.opcheck(torch.ops.sdsd.gram_accumulate.default, (gram, rows, vector, vector, "float32", backend))


def test_compiles_whole(device):
    def step(gram: Tensor, x: Tensor) -> Tensor:
        gram_accumulate(gram, x.relu(), neuron_dim=1)
        return gram.diagonal().sum()

    x = torch.randn(4, 6, 3, 3, device=device)
    eager, compiled = torch.zeros(2, 6, 6, device=device)
    trace = step(eager, x)
    assert torch.allclose(torch.compile(step, fullgraph=True, backend="aot_eager")(compiled, x), trace)
    assert torch.allclose(eager.triu(), compiled.triu())


def test_gradients_do_not_flow(backend, device):
    x = torch.randn(10, 4, device=device, requires_grad=True)
    gram = gram_accumulate(torch.zeros(4, 4, device=device), x, shift=x.mean(0), backend=backend)
    assert not gram.requires_grad


# Bad input


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"gram": [[0.0]]}, TypeError, "gram: expected a torch.Tensor, got list"),
        ({"gram": torch.zeros(4, 4, dtype=torch.bfloat16)}, TypeError, "expected float32 or float64, got torch.bfl"),
        ({"gram": torch.zeros(3, 3)}, ValueError, r"expected shape \(4, 4\) for activations of 4 neurons, got \(3, 3"),
        ({"gram": torch.zeros(4, 8)[:, ::2]}, ValueError, r"expected contiguous rows, got strides \(8, 2\)"),
        ({"gram": torch.zeros(4, 4, requires_grad=True)}, ValueError, r"Use gram.detach\(\)"),
        ({"gram": torch.zeros(4, 4, device="meta")}, ValueError, "gram: expected device cpu like act.*got meta"),
        (
            {"activations": torch.zeros(5, 4, dtype=torch.float64)},
            TypeError,
            "expected float64 for float64 activations",
        ),
        ({"activations": torch.zeros(5, 4, dtype=torch.int32)}, TypeError, "got torch.int32"),
        ({"activations": torch.zeros(4)}, ValueError, "at least two dimensions"),
        ({"activations": torch.zeros(0, 4)}, ValueError, "which has no samples"),
        ({"neuron_dim": 0}, ValueError, r"expected shape \(5, 5\).*Check that neuron_dim"),
        ({"neuron_dim": 2}, ValueError, "expected -2 to 1"),
        ({"shift": 1.0}, TypeError, "shift: expected a torch.Tensor, got float"),
        ({"shift": torch.zeros(4, dtype=torch.float64)}, TypeError, "shift: expected torch.float32 for torch.float32"),
        ({"scale": torch.zeros(5)}, ValueError, r"scale: expected shape \(4,\), one number a neuron, got \(5,\)"),
        ({"scale": torch.zeros(4, device="meta")}, ValueError, "scale: expected device cpu"),
        ({"precision": "fp8"}, ValueError, "precision: expected one of"),
        ({"backend": "cuda"}, ValueError, "backend: expected one of"),
    ],
)
def test_bad_input_leaves_the_sum_unharmed(change, error, match):
    arguments = {"gram": torch.ones(4, 4), "activations": torch.ones(5, 4), **change}
    gram = arguments["gram"]
    before = gram.detach().clone() if isinstance(gram, Tensor) else gram
    with pytest.raises(error, match=match):
        gram_accumulate(**arguments)
    if isinstance(gram, Tensor) and gram.device.type == "cpu":
        assert torch.equal(gram, before)


def test_reference_is_the_definition():
    x = torch.randn(3, 9, 8) + 0.5
    start, shift, scale = torch.randn(9, 9), torch.randn(9), torch.rand(9)
    got = gram_accumulate_reference(start, x, neuron_dim=1, shift=shift, scale=scale)
    assert torch.allclose(got, start.double().triu() + oracle(x, 1, shift, scale), rtol=0, atol=1e-11)
