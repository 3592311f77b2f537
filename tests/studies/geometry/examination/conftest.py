"""Fixtures that several files here use."""

from __future__ import annotations

import pytest

from sdsd.studies.geometry import examine

from .small_net import CONFIG, small


@pytest.fixture(scope="package")
def examined(tmp_path_factory):
    return examine([small()], tmp_path_factory.mktemp("geometry"), CONFIG, quiet=True)
