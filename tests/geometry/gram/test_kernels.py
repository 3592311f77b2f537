"""Kernels, which take batches whole."""

from __future__ import annotations

import dataclasses
import importlib

import pytest
import torch

from sdsd.geometry.gram import accumulator
from sdsd.geometry.gram.accumulator import GramAccumulator
from sdsd_kernels import gram_strips
from sdsd_kernels._backend import unusable
from tests.helpers import assert_within, summation_error, unit_roundoff

from .streams import INF, NAN, bits, check_promises, check_values, least_bytes


@pytest.fixture
def kernels(device) -> dict:
    """Options of an accumulator that kernels serve."""
    if unusable("triton", device):
        pytest.skip(unusable("triton", device))
    return {"backend": "triton", "device": device}


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_of_the_kernel(center, dtype, kernels, device):
    x = (torch.randn(90, 40) + 0.5).to(dtype)
    x[:, 3] *= 1e-25
    x[50:, 4] *= 1e25
    x[:, 5] = 0
    gram = GramAccumulator(40, center=center, max_bytes=32 * least_bytes(40), **kernels)
    for batch in x.to(device).split(40):
        gram.update(batch)
    gram.update(x.to(device).view(9, 10, 40)[:, ::2])
    seen = torch.cat([x, x.view(9, 10, 40)[:, ::2].flatten(0, 1)])
    cosine = gram.cosine_matrix().cpu()
    dead = torch.arange(40) == 5
    check_promises(cosine, dead)
    check_values(cosine[~dead][:, ~dead], seen[:, ~dead], center)


@pytest.mark.parametrize("center", [False, True])
def test_kernels_on_several_strips(center, kernels, device):
    """Batches where they lie and rewritten, small ones that wait; with others merged, saved, loaded and read back."""
    x = torch.randn(50, 300) + torch.linspace(0, 3, 300)
    x[:, 7] = 0.25
    x[30:, 8] *= 1e20
    options = {"center": center, "max_bytes": 16 * least_bytes(300)}
    gram = GramAccumulator(300, **options, **kernels)
    for batch in x[:40].to(device).split([12, 1, 20, 2, 5]):
        gram.update(batch)
    other = GramAccumulator(300, **options, device=device, backend="torch")
    other.update(x[40:].to(device))
    gram.merge(other)
    again = GramAccumulator(300, **options, **kernels)
    again.load_state_dict(gram.state_dict())
    again.update(x[:5].to(device))
    for found, seen in ((gram, x), (again, torch.cat([x, x[:5]]))):
        cosine = found.cosine_matrix().cpu()
        dead = (seen == seen[0]).all(0) & torch.tensor(center)
        check_promises(cosine, dead)
        check_values(cosine[~dead][:, ~dead], seen[:, ~dead], center)
        rows = seen.double() - (seen.double().mean(0) if center else 0)
        # A float32 factor is two float16: 8u a product. What cancels is as large as the mean.
        relative = summation_error(len(seen)) + 12 * unit_roundoff(torch.float32)
        whole = seen.double().abs()
        assert found.samples == len(seen)
        if found is again:
            continue
        assert_within(found.gram(), rows.T @ rows, relative * (rows.T.abs() @ rows.abs()) + 1e-12 * whole.T @ whole)
    if center:
        # The mean of a batch on the torch path is a float32.
        allowed = 2 * unit_roundoff(torch.float32) * x.abs().double().mean(0)
        assert_within(gram.means(), x.double().mean(0), allowed)
        plain = gram.cosine_matrix(center=False).cpu()
        check_promises(plain)
        check_values(plain, x, False)


def test_a_warning_waits_for_the_device_when_all_is_under_way(kernels, monkeypatch, device):
    order = []
    expand, warn = gram_strips.expand, accumulator.warn_of_nonfinite
    monkeypatch.setattr(gram_strips, "expand", lambda *a, **k: (order.append("launch"), expand(*a, **k)))
    monkeypatch.setattr(accumulator, "warn_of_nonfinite", lambda *a, **k: (order.append("wait"), warn(*a, **k)))
    gram = GramAccumulator(40, **kernels)
    gram.update(torch.randn(30, 40, device=device))
    gram.cosine_matrix()
    assert order == ["launch", "wait"]


def test_kernels_warn_with_the_next_result(kernels, device):
    x = torch.randn(30, 40, device=device)
    x[3, 4] = NAN
    gram = GramAccumulator(40, max_bytes=20 * least_bytes(40), **kernels)
    gram.update(x)
    with pytest.warns(RuntimeWarning, match=r"1 neurons \(first: \[4\]\) of 40 have a NaN") as record:
        cosine = gram.cosine_matrix().cpu()
    assert record[0].filename == __file__
    assert cosine[4].isnan().all()
    assert cosine.isnan().sum() == 2 * 40 - 1
    assert gram.nonfinite.nonzero().flatten().tolist() == [4]
    x[5, 6] = INF
    before = bits(gram)
    careful = GramAccumulator(40, max_bytes=20 * least_bytes(40), nonfinite="raise", **kernels)
    for batch in (x, x[:8]):
        with pytest.raises(ValueError, match="expected finite values"):
            careful.update(batch)
    assert careful.samples == 0
    assert bits(gram) == before


def test_kernels_add_a_batch_by_one_launch(kernels, device, monkeypatch):
    """Halves that lie well are multiplied in one launch, after one for norms; others are measured and written first."""
    launch = importlib.import_module("sdsd_kernels._launch")
    log = []
    call = launch.Launch.__call__

    def recorded(self, *tensors, **options):
        log.append(self.kernel.__name__)
        call(self, *tensors, **options)

    monkeypatch.setattr(launch.Launch, "__call__", recorded)
    x = torch.randn(4096, 32, device=device).T.contiguous().T
    for dtype, center, wanted in (
        (torch.float16, False, ["triangle_kernel"]),
        (torch.bfloat16, False, ["measure_kernel", "triangle_kernel"]),
        (torch.float32, True, ["measure_kernel", "write_kernel", "mean_kernel", "triangle_kernel"]),
    ):
        gram = GramAccumulator(32, center=center, max_bytes=10**6, **kernels)
        half = x[:208].to(dtype)  # strides that the interpreter of Triton 3.5 reads, too
        gram._plan = dataclasses.replace(gram._plan, part=104)
        gram.update(half)
        log.clear()
        gram.update(half)
        assert [name for name in log if name not in ("directions_kernel", "reduce_kernel")] == wanted
