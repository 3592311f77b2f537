"""What a call of gamma_stats costs in Python before the device has its work, in counts that no machine changes."""

from __future__ import annotations

import pytest
import torch

import sdsd
from sdsd_kernels import available_backends, gamma_moments

if "triton" not in available_backends("cpu"):
    pytest.skip("counted under Triton's interpreter", allow_module_level=True)

from sdsd_kernels.gamma_moments import launch
from tests.kernels.calls import Calls


@pytest.mark.parametrize("confidence", [None, 0.95])
def test_one_matrix_takes_few_calls(monkeypatch, confidence):
    calls = Calls(monkeypatch, left_out=())
    grads = torch.randn(32, 1000)
    count = calls.before_last_launch(lambda: sdsd.gamma_stats(grads, confidence=confidence, backend="triton"))
    assert len(calls.at_launch) == 2, "one launch, and one to finish"
    assert 10 < count <= 80, calls.names.most_common()


def test_a_list_takes_few_calls_a_tensor(monkeypatch):
    calls = Calls(monkeypatch, left_out=())

    def count(tensors: int) -> int:
        layers = {f"layer{k}": torch.randn(8, 16 + k) for k in range(tensors)}
        return calls.before_last_launch(lambda: sdsd.gamma_stats(layers, backend="triton"))

    few, many = count(20), count(120)
    assert len(calls.at_launch) == 3, "columns adjacent, aligned and not, and one launch to finish"
    assert many - few <= 5 * 100, calls.names.most_common(10)


def test_launches_are_kept_for_one_alignment():
    """A kernel is compiled for an address that is a multiple of 16 bytes, or for one that is not."""
    storage = torch.randn(201)
    launch._one.clear()
    for start in (0, 1, 0):
        gamma_moments(storage[start : start + 200].view(2, 100), backend="triton")
    assert len(launch._one) == 2


def test_the_table_starts_every_part_at_sixteen_bytes(monkeypatch):
    tensors = []
    call = launch.Launch.__call__

    def recorded(self, *arguments, grid=None):
        tensors.extend(argument for argument in arguments if argument is not None)
        call(self, *arguments, grid=grid)

    monkeypatch.setattr(launch.Launch, "__call__", recorded)
    # An even number of matrices, so an odd number of bounds, and owners that fill no multiple of 16 bytes.
    layers = [torch.randn(3, 16), torch.randn(3, 5), torch.randn(5, 3).t(), torch.randn(3, 2600).to(torch.bfloat16)]
    gamma_moments(layers, backend="triton")
    assert len(tensors) == 4 * 3 + 3
    assert all(tensor.data_ptr() % 16 == 0 for tensor in tensors)


def test_a_list_inside_a_cuda_graph_is_refused_before_anything_is_launched(monkeypatch):
    monkeypatch.setattr(launch, "_capturing", lambda where: True)
    monkeypatch.setattr(torch, "from_numpy", None)
    grads = torch.randn(4, 6, 10)
    assert gamma_moments(grads, backend="triton").squares > 0
    for several in ([grads, grads[:, :3]], grads[:, ::2, ::3]):
        with pytest.raises(RuntimeError, match=r"one piece inside a CUDA graph, got [12] of shapes .*each"):
            gamma_moments(several, backend="triton")
