"""What tests of kernels share: the backends that this machine has."""

from __future__ import annotations

import pytest

from sdsd_kernels._backend import unusable


@pytest.fixture(params=["torch", "triton"])
def backend(request, device) -> str:
    problem = unusable(request.param, device)
    if problem:
        pytest.skip(problem)
    return request.param
