"""Files that are whole or not there."""

from __future__ import annotations

import errno
import os

import pytest
import torch

import sdsd
from sdsd._drafts import draft_of
from sdsd.studies.engine.files import write_text


def test_the_file_takes_its_place_once_it_is_whole(tmp_path):
    path = tmp_path / "page.html"
    path.write_text("old")
    with draft_of(path) as draft:
        draft.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))])
def test_of_one_that_fails_nothing_is_left(tmp_path, error):
    path = tmp_path / "page.html"
    path.write_text("old")

    def fails(draft):
        draft.write_text("ne")
        raise error

    with pytest.raises(type(error)) as raised, draft_of(path) as draft:
        fails(draft)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    assert getattr(raised.value, "filename", str(path)) == str(path)


def test_errors_name_the_file_and_not_the_draft(tmp_path):
    neurons = sdsd.NeuronMap.from_activations(torch.randn(20, 6))
    for write, name in (
        (neurons.save, "map.json"),
        (neurons.save_html, "map.html"),
        (neurons.save_ply, "map.ply"),
        (lambda path: write_text(path, "text"), "page.html"),
    ):
        with pytest.raises(FileNotFoundError) as raised:
            write(tmp_path / "nowhere" / name)
        assert raised.value.filename.startswith(str(tmp_path / "nowhere" / name)[:-5])
        assert not raised.value.filename.endswith(".part")
