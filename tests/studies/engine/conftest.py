"""Fixtures that several files here use."""

from __future__ import annotations

import pytest

from .toys import MEASURED


@pytest.fixture(autouse=True)
def forget():
    MEASURED.clear()
