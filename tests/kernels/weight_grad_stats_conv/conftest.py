"""Fixtures that several files here use."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import pytest
import torch

from sdsd_kernels._device import device_record

from .convolutions import DEVICE, ENGINE, HAS_KERNELS, WAYS


@pytest.fixture
def launch() -> ModuleType:
    if not HAS_KERNELS:
        pytest.skip("no Triton here")
    from sdsd_kernels.per_sample import launch

    return launch


@pytest.fixture(params=WAYS)
def backend(request, monkeypatch) -> str:
    """The backend's name, with boxes read as the parameter says."""
    if request.param == "torch":
        return "torch"
    launch = request.getfixturevalue("launch")
    record = device_record(DEVICE)
    if request.param == ENGINE and not record.copy_engine:
        pytest.skip("this GPU has no copy engine")
    monkeypatch.setattr(launch, "device_record", lambda _: replace(record, copy_engine=request.param == ENGINE))
    monkeypatch.setattr(launch, "PLANS", {})
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    return "triton"
