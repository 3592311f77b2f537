"""scale_shift_grads on every backend against NumPy float64, sample by sample."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from sdsd_kernels import NORMS_WIDTH, available_backends, scale_shift_grads
from sdsd_kernels.scale_shift_grads.reference import scale_shift_grads_reference
from tests.helpers import assert_within, summation_error, unit_roundoff

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BACKENDS = available_backends(DEVICE)


def norms(rows: int = 5) -> Tensor:
    return torch.zeros(rows, NORMS_WIDTH, dtype=torch.float64, device=DEVICE)


def oracle(b: Tensor, x: Tensor | None, mean: Tensor | None, rstd: Tensor | None) -> np.ndarray:
    """Per-sample gradients (N, C) in float64: of the scale with inputs, else of the shift."""
    grads = b.detach().cpu().double().numpy()
    samples, positions, channels = grads.shape
    found = np.zeros((samples, channels))
    for n in range(samples):
        for t in range(positions):
            for c in range(channels):
                value = grads[n, t, c]
                if x is not None:
                    factor = float(x[n, t, c])
                    for statistic, apply in ((mean, np.subtract), (rstd, np.multiply)):
                        if statistic is not None:
                            group = c // (channels // statistic.shape[2])
                            factor = apply(factor, float(statistic[n, t if statistic.shape[1] > 1 else 0, group]))
                    value = value * factor
                found[n, c] += value
    return found


def allowed(b: Tensor, x: Tensor | None, mean: Tensor | None, rstd: Tensor | None) -> tuple[np.ndarray, float]:
    """Of the gradient and of the square norm: four roundings of every product, and the sums, in float32."""
    size = (
        None
        if x is None
        else x.abs() + (0 if mean is None else mean.abs().repeat_interleave(x.shape[2] // mean.shape[2], 2))
    )
    magnitude = oracle(b.abs(), size, None, rstd)
    positions = b.shape[1]
    wide = torch.promote_types(b.dtype, torch.float32)
    share = summation_error(positions, wide) + 4 * unit_roundoff(wide)
    total = magnitude.sum(0) * (share + summation_error(len(magnitude), wide))
    return total, float((magnitude**2).sum() * (2 * share + 2 * unit_roundoff(wide)))


def check(
    b: Tensor, x: Tensor | None = None, mean: Tensor | None = None, rstd: Tensor | None = None, **options
) -> None:
    squares = norms()
    rows = {"shift_row": 3} if x is None else {"scale_row": 1, "shift_row": 3}
    found = scale_shift_grads(b, squares, inputs=x, mean=mean, rstd=rstd, **rows, **options)
    wanted = {"shift": (found.shift_grad, 3, None)}
    if x is not None:
        wanted["scale"] = (found.scale_grad, 1, x)
    else:
        assert found.scale_grad is None
    for grad, row, given in wanted.values():
        each = oracle(b, given, mean if given is not None else None, rstd if given is not None else None)
        total, norm = allowed(b, given, mean, rstd if given is not None else None)
        returned = options.get("dtype", b.dtype)
        assert (grad.dtype, grad.shape, grad.device) == (returned, (b.shape[2],), b.device)
        # The interpreter truncates to bfloat16, which errs twice as much as rounding.
        rounding = 2 * unit_roundoff(returned) * np.abs(each.sum(0)) if returned.itemsize < 4 else 0.0
        assert_within(grad, torch.from_numpy(each.sum(0)), torch.from_numpy(total * 1.01 + rounding + 1e-30))
        assert_within(squares[row].sum(), torch.tensor((each**2).sum()), norm)
    untouched = [row for row in range(5) if row not in rows.values()]
    assert not squares[untouched].any()


def batch(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape).to(DEVICE, dtype)


SHAPES = [(1, 1, 1), (3, 7, 5), (2, 70, 33), (9, 3, 40), (2, 16, 600), (17, 2, 1)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_biases_match_the_definition(backend, shape, dtype):
    check(batch(*shape, dtype=dtype), backend=backend)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("parts", ["both", "mean", "rstd", "none"])
def test_layer_norms_match_the_definition(backend, shape, parts):
    samples, positions, _ = shape
    mean = batch(samples, positions, 1) if parts in ("both", "mean") else None
    rstd = batch(samples, positions, 1).abs() if parts in ("both", "rstd") else None
    check(batch(*shape), batch(*shape), mean, rstd, backend=backend)


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize(("channels", "groups"), [(6, 2), (33, 3), (40, 40), (5, 1)])
def test_group_norms_match_the_definition(backend, channels, groups, channels_last):
    def image() -> Tensor:
        if channels_last:
            return batch(3, 6, 7, channels).flatten(1, 2)
        return batch(3, channels, 6, 7).flatten(2).mT

    check(image(), image(), batch(3, 1, groups), batch(3, 1, groups).abs(), backend=backend)


def test_statistics_of_a_group_where_each_sample_has_one_position(backend):
    check(batch(4, 1, 6), batch(4, 1, 6), batch(4, 1, 3), batch(4, 1, 3).abs(), backend=backend)


def test_halves_meet_float32(backend):
    b, x = batch(3, 20, 17, dtype=torch.bfloat16), batch(3, 20, 17)
    check(b, x, batch(3, 20, 1), batch(3, 20, 1).abs(), dtype=torch.float32, backend=backend)
    check(x, b, dtype=torch.bfloat16, backend=backend)


@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_squares_of_any_float32(backend, size):
    grads = torch.randn(3, 2, 5, device=DEVICE) * size
    written = norms(1)
    scale_shift_grads(grads, written, shift_row=0, backend=backend)
    wanted = grads.double().sum(1).square().sum()
    torch.testing.assert_close(written.sum(), wanted, rtol=1e-6, atol=0.0)


def test_strides(backend):
    wide = batch(5, 9, 4, 14)
    check(
        wide[:, :, 1, ::2], wide.transpose(0, 1)[:5, :, 2, 3:10].expand(5, 5, 7)[:, :1].expand(5, 9, 7), backend=backend
    )
    check(batch(1, 4, 6).expand(3, 4, 6), batch(6).expand(3, 4, 6), backend=backend)


def test_the_scale_alone(backend):
    b, x, squares = batch(3, 4, 5), batch(3, 4, 5), norms()
    found = scale_shift_grads(b, squares, inputs=x, scale_row=0, backend=backend)
    both = scale_shift_grads(b, norms(), inputs=x, scale_row=0, shift_row=1, backend=backend)
    assert found.shift_grad is None
    assert torch.equal(found.scale_grad, both.scale_grad)
    assert not squares[1:].any()


@pytest.mark.skipif(BACKENDS == ("torch",), reason="no Triton here")
def test_positions_are_split_among_programs(monkeypatch):
    from sdsd_kernels.scale_shift_grads import launch

    monkeypatch.setattr(launch, "_plans", {})
    check(batch(2, 300, 20), batch(2, 300, 20), batch(2, 300, 1), None, backend="triton")
    (plan,) = [plan for plan in launch._plans.values() if plan.part[0] == 2]
    assert plan.part[1] > 1


def test_float64_is_served_by_torch():
    check(batch(3, 4, 5, dtype=torch.float64), batch(3, 4, 5, dtype=torch.float64))
    if "triton" in BACKENDS:
        with pytest.raises(ValueError, match="the kernel has no float64"):
            scale_shift_grads(batch(3, 4, 5, dtype=torch.float64), norms(), shift_row=0, backend="triton")


def test_nothing_is_hidden(backend):
    b = batch(3, 4, 5)
    b[1, 2, 3] = float("nan")
    squares = norms()
    found = scale_shift_grads(b, squares, shift_row=0, backend=backend)
    assert found.shift_grad.isnan().tolist() == [False, False, False, True, False]
    assert squares[0].sum().isnan()


def test_the_reference_agrees():
    b, x, mean, rstd = batch(3, 4, 6), batch(3, 4, 6), batch(3, 1, 2), batch(3, 1, 2)
    scale, shift = scale_shift_grads_reference(b, x, mean, rstd)
    for (grad, norm), each in ((scale, oracle(b, x, mean, rstd)), (shift, oracle(b, None, None, None))):
        torch.testing.assert_close(grad.cpu(), torch.from_numpy(each.sum(0)))
        torch.testing.assert_close(norm.cpu(), torch.tensor((each**2).sum()))
    assert scale_shift_grads_reference(b)[0] is None


def test_same_bits(backend):
    b, x = batch(3, 200, 40), batch(3, 200, 40)

    def once() -> list[Tensor]:
        squares = norms()
        found = scale_shift_grads(b, squares, inputs=x, scale_row=0, shift_row=1, backend=backend)
        return [*found, squares]

    assert all(torch.equal(one, two) for one, two in zip(once(), once(), strict=True))


def test_operator_registration(backend):
    b, x, mean = batch(3, 4, 6), batch(3, 4, 6), batch(3, 4, 1)
    op = torch.ops.sdsd.scale_shift_grads.default
    torch.library.opcheck(op, (b, x, mean, mean, norms(), 0, 1, torch.float32, backend))
    torch.library.opcheck(op, (b, None, None, None, norms(), -1, 1, torch.bfloat16, backend))
    torch.library.opcheck(op, (b, x, None, None, norms(), 2, -1, torch.float32, backend))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"output_grads": torch.ones(3, 5)}, ValueError, r"expected shape \(N, T, C\).*flatten\(1, -2\)"),
        ({"output_grads": torch.ones(3, 0, 5)}, ValueError, "at least one element"),
        ({"output_grads": torch.ones(3, 4, 5).int()}, TypeError, "output_grads"),
        ({"square_norms": torch.zeros(2, 64)}, ValueError, "expected float64 of shape"),
        ({"square_norms": torch.zeros(2, 3, dtype=torch.float64)}, ValueError, r"torch.zeros\(rows, 64"),
        ({"square_norms": torch.zeros(64, 64, dtype=torch.float64).t()}, ValueError, "contiguous"),
        ({"square_norms": torch.zeros(2, 64, dtype=torch.float64).requires_grad_()}, ValueError, "without gradient"),
        ({"scale_row": 2}, ValueError, "scale_row: expected a row of square_norms, below 2, got 2"),
        ({"scale_row": 1.0}, TypeError, "scale_row"),
        ({"scale_row": None, "shift_row": None, "inputs": None}, ValueError, "got neither"),
        ({"shift_row": 0}, ValueError, "got 0 for both"),
        ({"scale_row": None}, ValueError, "inputs: expected with a scale_row, and only then"),
        ({"inputs": None}, ValueError, "inputs: expected with a scale_row.*got none"),
        ({"inputs": torch.ones(3, 4, 6)}, ValueError, "that of output_grads"),
        ({"inputs": None, "scale_row": None, "mean": torch.ones(3, 4, 1)}, ValueError, "mean: expected only with"),
        ({"mean": torch.ones(3, 4)}, ValueError, r"mean: expected shape \(3, 4, 1\)"),
        ({"mean": torch.ones(3, 1, 2)}, ValueError, "of the 5 channels"),
        ({"mean": torch.ones(3, 4, 1), "rstd": torch.ones(3, 1, 1)}, ValueError, "rstd: expected the shape of mean"),
        ({"dtype": torch.int32}, TypeError, "dtype"),
        ({"backend": "cuda"}, ValueError, "backend"),
    ],
)
def test_bad_input(change, error, message):
    given = {
        "output_grads": torch.ones(3, 4, 5),
        "square_norms": torch.zeros(2, 64, dtype=torch.float64),
        "inputs": torch.ones(3, 4, 5),
        "scale_row": 0,
        "shift_row": 1,
    } | change
    with pytest.raises(error, match=message):
        scale_shift_grads(given.pop("output_grads"), given.pop("square_norms"), **given)
