"""What tests of the monitor share."""

from __future__ import annotations

import pytest
import torch

NEW_EMPTY = torch.Tensor.new_empty


@pytest.fixture(autouse=True)
def plain_new_empty(poisoned_memory, monkeypatch):
    """Torch looks this method up by its name: a mode would see the function that poisons memory, which is nobody's."""
    monkeypatch.setattr(torch.Tensor, "new_empty", NEW_EMPTY)
