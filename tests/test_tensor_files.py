"""Tensors from files, and what is said when a file is not one."""

from __future__ import annotations

import os
import sys

import numpy as np
import pytest
import torch

from sdsd._extras import MissingExtraError
from sdsd._tensor_files import TensorFileError, load_tensor, load_tensors

safetensors_torch = pytest.importorskip("safetensors.torch")


class Custom:
    """Something only code can unpickle."""


@pytest.fixture
def values() -> torch.Tensor:
    return torch.randn(4, 3)


def test_every_format_gives_back_what_was_saved(tmp_path, values):
    np.save(tmp_path / "a.npy", values.numpy())
    np.savez(tmp_path / "a.npz", weight=values.numpy(), bias=values[:, 0].numpy())
    torch.save(values, tmp_path / "a.pt")
    torch.save({"grads": {"weight": values}, "epoch": 3}, tmp_path / "a.pth")
    safetensors_torch.save_file({"weight": values}, tmp_path / "a.safetensors")

    assert torch.equal(load_tensors(tmp_path / "a.npy"), values)
    archive = load_tensors(tmp_path / "a.npz")
    assert list(archive) == ["weight", "bias"]
    assert torch.equal(archive["weight"], values)
    assert torch.equal(load_tensors(tmp_path / "a.pt"), values)
    assert list(load_tensors(tmp_path / "a.pth")) == ["grads.weight"]
    assert list(load_tensors(tmp_path / "a.pth", "grads")) == ["weight"]
    assert torch.equal(load_tensor(tmp_path / "a.pth", "grads.weight"), values)
    assert torch.equal(load_tensor(tmp_path / "a.safetensors"), values)


def test_foreign_byte_order_and_bfloat16(tmp_path):
    np.save(tmp_path / "big.npy", np.arange(6, dtype=">f4").reshape(2, 3))
    assert torch.equal(load_tensor(tmp_path / "big.npy"), torch.arange(6.0).reshape(2, 3))
    half = torch.randn(3, 2).bfloat16()
    safetensors_torch.save_file({"a": half}, tmp_path / "half.safetensors")
    assert torch.equal(load_tensor(tmp_path / "half.safetensors"), half)


def test_legacy_torch_file(tmp_path, values):
    torch.save(values, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert torch.equal(load_tensor(tmp_path / "old.pt"), values)


def refusal(path, key=None) -> str:
    with pytest.raises(TensorFileError) as caught:
        load_tensor(path, key)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_missing_file_suggests_its_neighbours(tmp_path, values):
    np.save(tmp_path / "activations.npy", values.numpy())
    assert "activations.npy?" in refusal(tmp_path / "activation.npy")
    assert "Tensor files in" in refusal(tmp_path / "zzz.pt")
    assert "Nor is there a folder" in refusal(tmp_path / "nowhere" / "a.npy")


def test_directory_and_unknown_extension_and_empty_file(tmp_path):
    assert "a directory" in refusal(tmp_path)
    os.mkfifo(tmp_path / "pipe.npy")
    assert "pipe.npy: expected a file, got a device or a pipe" in refusal(tmp_path / "pipe.npy")
    (tmp_path / "table.csv").write_text("1,2")
    assert ".safetensors" in refusal(tmp_path / "table.csv")
    (tmp_path / "nothing.pt").touch()
    assert "empty" in refusal(tmp_path / "nothing.pt")


@pytest.mark.parametrize("extension", [".npy", ".npz", ".pt", ".pth", ".safetensors"])
def test_text_with_a_tensor_name(tmp_path, extension):
    path = tmp_path / f"notes{extension}"
    path.write_text("hello, this is no tensor, though it is named like one " * 3)
    message = refusal(path)
    assert "hello" in message
    assert "expected" in message


@pytest.mark.parametrize("extension", [".npy", ".npz", ".pt", ".safetensors", ".old.pt"])
def test_truncated(tmp_path, extension):
    path = tmp_path / f"cut{extension}"
    values = torch.randn(40, 30)
    if extension == ".npy":
        np.save(path, values.numpy())
    elif extension == ".npz":
        np.savez(path, a=values.numpy())
    elif extension == ".safetensors":
        safetensors_torch.save_file({"a": values}, path)
    else:
        torch.save(values, path, _use_new_zipfile_serialization=extension == ".pt")
    whole = path.read_bytes()
    for share in (0.3, 0.9):
        path.write_bytes(whole[: int(len(whole) * share)])
        assert "truncated or damaged" in refusal(path)


def test_pickles_that_need_code(tmp_path):
    torch.save({"a": Custom()}, tmp_path / "object.pt")
    assert "without running code" in refusal(tmp_path / "object.pt")
    np.save(tmp_path / "object.npy", np.array([Custom()], dtype=object), allow_pickle=True)
    assert "without running code" in refusal(tmp_path / "object.npy")
    np.savez(tmp_path / "object.npz", a=np.array([None, 1], dtype=object))
    assert "without running code" in refusal(tmp_path / "object.npz")


def test_nothing_to_take(tmp_path):
    np.savez(tmp_path / "empty.npz")
    assert "an empty archive" in refusal(tmp_path / "empty.npz")
    torch.save({}, tmp_path / "empty.pt")
    assert "an empty archive" in refusal(tmp_path / "empty.pt")
    torch.save({"epoch": 3}, tmp_path / "numbers.pt")
    assert "no tensor in it" in refusal(tmp_path / "numbers.pt")
    np.save(tmp_path / "words.npy", np.array(["a", "b"]))
    assert "array of numbers" in refusal(tmp_path / "words.npy")


def test_keys(tmp_path, values):
    np.savez(tmp_path / "two.npz", weight=values.numpy(), bias=values.numpy())
    assert "weight (4, 3), bias (4, 3)" in refusal(tmp_path / "two.npz")
    assert "Did you mean 'weight'" in refusal(tmp_path / "two.npz", "weigth")
    np.save(tmp_path / "one.npy", values.numpy())
    assert "Leave --key out" in refusal(tmp_path / "one.npy", "weight")


def test_missing_package_says_how_to_install_it(tmp_path, values, monkeypatch):
    safetensors_torch.save_file({"a": values}, tmp_path / "a.safetensors")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(MissingExtraError, match=r"pip install '(\.|sdsd)\[report\]"):
        load_tensor(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "other",
    [
        np.array("resnet18"),
        np.array(["a", "b"]),
        np.array(b"raw"),
        np.array([None, 1], dtype=object),
        np.array([("a", 1)], dtype=[("name", "U3"), ("value", int)]),
    ],
)
def test_key_takes_one_entry_of_an_archive_whatever_the_others_are(tmp_path, other):
    wanted = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.savez(tmp_path / "a.npz", layer1=wanted, model=other, **{"group.weight": wanted + 1})
    assert torch.equal(load_tensors(tmp_path / "a.npz", "layer1"), torch.from_numpy(wanted))
    assert list(load_tensors(tmp_path / "a.npz", "group")) == ["weight"]
    assert "there is no entry 'layer'. Its entries: layer1, model, group.weight. Did you mean 'layer1'" in refusal(
        tmp_path / "a.npz", "layer"
    )
    refused = refusal(tmp_path / "a.npz", "model")
    assert "expected an array of numbers" in refused or "without running code" in refused


def test_text_in_an_archive_is_left_out(tmp_path):
    np.savez(tmp_path / "a.npz", layer1=np.ones((2, 3)), model=np.array("resnet18"), labels=np.array([b"a"]))
    assert list(load_tensors(tmp_path / "a.npz")) == ["layer1"]
    np.savez(tmp_path / "b.npz", model=np.array("resnet18"))
    assert "expected at least one tensor, found text alone, in 'model'. Save" in refusal(tmp_path / "b.npz")


def test_an_archive_with_objects_says_what_can_be_read(tmp_path):
    objects = np.array([None, 1], dtype=object)
    others = {"name": np.array("resnet18"), "pair": np.array([("a", 1)], dtype=[("name", "U3"), ("value", int)])}
    np.savez(tmp_path / "a.npz", log=objects, layer1=np.ones((2, 3)), args=objects, **others)
    refused = refusal(tmp_path / "a.npz")
    assert "expected arrays of numbers, got arrays of Python objects in 'log', 'args'" in refused
    assert refused.endswith("Choose an entry that can be read with --key NAME: layer1 (2, 3).")
    assert torch.equal(load_tensor(tmp_path / "a.npz", "layer1"), torch.ones(2, 3).double())
    named = refusal(tmp_path / "a.npz", "log")
    assert "holds an array of Python objects in 'log', which cannot be loaded without running code" in named
    np.savez(tmp_path / "b.npz", log=objects, name=np.array("resnet18"))
    assert "holds an array of Python objects in 'log'" in refusal(tmp_path / "b.npz")
    assert "--key" not in refusal(tmp_path / "b.npz")
