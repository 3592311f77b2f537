import pytest
import torch

import sdsd
from sdsd_kernels import _validate, available_backends
from sdsd_kernels._backend import interpreting

OPS = ("gamma_moments", "cosine_matrix", "cosine_topk", "cosine_row_sums", "gram_accumulate", "weight_grad_stats")


def test_every_backend_holds(device, capsys, monkeypatch):
    if interpreting():
        monkeypatch.setattr(_validate, "GAMMA_SHAPES", ((3, 7), (33, 70)))
        monkeypatch.setattr(_validate, "COSINE_SHAPES", ((2, 3), (17, 33)))
        monkeypatch.setattr(_validate, "WEIGHT_GRAD_SHAPES", ((3, 1, 7, 5), (4, 17, 9, 33)))
    report = sdsd.validate(device)
    assert report.ok
    assert {(row.op, row.backend) for row in report.rows} == {
        (op, backend) for op in OPS for backend in available_backends(device)
    }
    assert "all within bounds" in capsys.readouterr().out


@pytest.mark.parametrize("name", OPS)
def test_a_wrong_backend_is_found(name, device, monkeypatch):
    right = getattr(_validate, name)

    def wrong(*args, **kwargs):
        result = right(*args, **kwargs)
        if isinstance(result, torch.Tensor):
            return result * 1.0002
        changed = [field * 1.0002 if field.is_floating_point() else field for field in map(torch.as_tensor, result)]
        return tuple(changed) if type(result) is tuple else type(result)(*changed)

    monkeypatch.setattr(_validate, name, wrong)
    monkeypatch.setattr(_validate, "available_backends", lambda device: ("torch",))
    report = sdsd.validate(device, verbose=False)
    assert not report.ok
    assert "FALLS SHORT" in str(report)
    wrong = {(row.op, row.dtype) for row in report.rows if not row.ok}
    assert wrong == {(name, _validate._short(dtype)) for dtype in _validate.DTYPES}
