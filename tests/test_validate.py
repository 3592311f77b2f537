import pytest

import sdsd
from sdsd_kernels import _validate, available_backends
from sdsd_kernels._backend import interpreting


def test_every_backend_holds(device, capsys, monkeypatch):
    if interpreting():
        monkeypatch.setattr(_validate, "GAMMA_SHAPES", ((3, 7), (33, 70)))
        monkeypatch.setattr(_validate, "COSINE_SHAPES", ((2, 3), (17, 33)))
        monkeypatch.setattr(_validate, "WEIGHT_GRAD_SHAPES", ((3, 1, 7, 5), (4, 17, 9, 33)))
    report = sdsd.validate(device)
    assert report.ok
    assert {(row.op, row.backend) for row in report.rows} == {
        (op, backend)
        for op in ("gamma_moments", "cosine_matrix", "weight_grad_stats")
        for backend in available_backends(device)
    }
    assert "all within bounds" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["gamma_moments", "cosine_matrix", "weight_grad_stats"])
def test_a_wrong_backend_is_found(name, device, monkeypatch):
    right = getattr(_validate, name)

    def wrong(*args, **kwargs):
        result = right(*args, **kwargs)
        return result * 1.001 if name == "cosine_matrix" else type(result)(*(field * 1.001 for field in result))

    monkeypatch.setattr(_validate, name, wrong)
    monkeypatch.setattr(_validate, "available_backends", lambda device: ("torch",))
    report = sdsd.validate(device, verbose=False)
    assert not report.ok
    assert "FALLS SHORT" in str(report)
