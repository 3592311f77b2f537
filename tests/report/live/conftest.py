"""Fixtures that several files here use."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from sdsd.report.live import LiveServer


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.jsonl"


# The server


@pytest.fixture
def server(path):
    with LiveServer(path) as serving:
        thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield serving
        serving.shutdown()
        thread.join()
