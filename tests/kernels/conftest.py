"""What tests of kernels share: the backends that this machine has."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from sdsd_kernels._backend import unusable


@pytest.fixture(params=["torch", "triton"])
def backend(request, device) -> str:
    problem = unusable(request.param, device)
    if problem:
        pytest.skip(problem)
    return request.param


@pytest.fixture
def fresh_plans():
    """Nothing remembered of earlier launches of `gamma_moments`, and nothing left of this test's."""
    from sdsd_kernels.gamma_moments import launch

    for cache in (launch._one, launch._many, launch._finish):
        cache.clear()
    yield
    for cache in (launch._one, launch._many, launch._finish):
        cache.clear()


@pytest.fixture
def slow_float64(monkeypatch, device, fresh_plans):
    """A device like this one whose float64 is slow, so that sums of `gamma_moments` run in float32."""
    from sdsd_kernels.gamma_moments import launch

    record = dataclasses.replace(launch.device_record(device), fast_float64=False)
    monkeypatch.setattr(launch, "device_record", lambda device: record)


@pytest.fixture
def allow_tf32():
    """Sets what torch's matrix products may round; monkeypatch cannot put this attribute back."""
    before = torch.backends.cuda.matmul.allow_tf32
    yield lambda value: setattr(torch.backends.cuda.matmul, "allow_tf32", value)
    torch.backends.cuda.matmul.allow_tf32 = before
