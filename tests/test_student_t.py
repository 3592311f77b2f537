import pytest
from scipy import stats

from sdsd._student_t import student_t_quantile


@pytest.mark.parametrize("degrees", [0.3, 1, 2, 2.5, 7, 31, 400, 1e5])
@pytest.mark.parametrize("probability", [0.001, 0.3, 0.5, 0.9, 0.975, 0.9995])
def test_equals_scipy(probability, degrees):
    wanted = stats.t.ppf(probability, degrees)
    assert student_t_quantile(probability, degrees) == pytest.approx(wanted, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("probability", "degrees"), [(0.0, 3), (1.0, 3), (0.5, 0), (0.5, float("nan"))])
def test_refuses(probability, degrees):
    with pytest.raises(ValueError, match="expected 0 < probability < 1"):
        student_t_quantile(probability, degrees)
