"""What calls promise of memory, derivatives and digits: a subprocess's growth, against autograd, over many samples."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch.autograd import forward_ad, gradcheck, gradgradcheck

from sdsd import neuron_cosine_matrix, neuron_neighbors, neuron_pairs
from sdsd.geometry import cosine_between, row_sums

GROWTH = """
import resource, sys, torch, sdsd
neurons, above, limit, center, dtype = sys.argv[1:]
torch.manual_seed(0)
sdsd.neuron_pairs(torch.randn(50, 400), above=0.5)
x = torch.randn(64, int(neurons)).to(getattr(torch, dtype))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
pairs = sdsd.neuron_pairs(x, above=float(above), max_bytes=int(limit), center=center == "center")
print(len(pairs), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.parametrize(
    ("neurons", "above", "center", "dtype", "some"),
    [
        (12000, 0.3, "plain", "float32", True),
        (20000, 0.99, "plain", "float32", False),
        (8000, 0.3, "center", "float32", True),
        (8000, 0.99, "center", "bfloat16", False),
    ],
)
def test_the_process_grows_by_no_more_than_max_bytes(neurons, above, center, dtype, some):
    limit = 2**26
    arguments = [sys.executable, "-c", GROWTH, str(neurons), str(above), str(limit), center, dtype]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    pairs, grown = map(int, done.stdout.split())
    assert (pairs > 10_000) == some
    assert grown <= limit


# Derivatives


def definition(z, center):
    x = z.T - z.T.mean(1, keepdim=True) * center
    unit = x / x.norm(dim=1, keepdim=True)
    return unit @ unit.T


def given():
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((6, 5), (6, 5), (5, 5)))


TRANSFORMS = {
    "grad": lambda f, y, t, w: torch.func.grad(lambda z: (f(z) * w).sum())(y),
    "jacrev": lambda f, y, t, w: torch.func.jacrev(f)(y),
    "jacfwd": lambda f, y, t, w: torch.func.jacfwd(f)(y),
    "jvp": lambda f, y, t, w: torch.func.jvp(f, (y,), (t,))[1],
    "vjp": lambda f, y, t, w: torch.func.vjp(f, y)[1](w)[0],
    "hessian": lambda f, y, t, w: torch.func.hessian(lambda z: (f(z) * w).sum())(y),
    "vmap": lambda f, y, t, w: torch.func.vmap(f)(torch.stack([y, t])),
    "vmap of grad": lambda f, y, t, w: torch.func.vmap(torch.func.grad(lambda z: (f(z) * w).sum()))(
        torch.stack([y, t])
    ),
}


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_torch_func_goes_through(name, center):
    y, t, w = given()
    found, wanted = (
        TRANSFORMS[name](function, y, t, w)
        for function in (lambda z: neuron_cosine_matrix(z, center=center), lambda z: definition(z, center))
    )
    assert wanted.abs().max() > 0.1
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("center", [False, True])
def test_forward_mode_is_right_and_never_silently_zero(center):
    y, t, _ = given()
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(y, t)
        found, wanted = (
            forward_ad.unpack_dual(function).tangent
            for function in (neuron_cosine_matrix(dual, center=center), definition(dual, center))
        )
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
        rows = forward_ad.make_dual(y.T[:, None].contiguous(), t.T[:, None].contiguous())
        with pytest.raises(NotImplementedError, match="without forward-mode tangents"):
            torch.ops.sdsd.cosine_matrix(rows, "float32", torch.float64, "zero", center, "torch")

    def matrix(z):
        return neuron_cosine_matrix(z, center=center)

    y.requires_grad_()
    assert gradcheck(matrix, (y,), check_forward_ad=True)
    assert gradgradcheck(matrix, (y,))


def test_a_neuron_without_direction_has_no_forward_derivative():
    y, t, _ = given()
    y[:, 2] = 0
    _, tangent = torch.func.jvp(neuron_cosine_matrix, (y,), (t,))
    assert tangent[2].count_nonzero() == tangent[:, 2].count_nonzero() == 0
    assert tangent.isfinite().all()
    assert tangent.abs().max() > 0.1


# Digits


@pytest.mark.parametrize("neurons", [2, 3, 9])
@pytest.mark.parametrize("neuron_dim", [0, 1])
def test_few_neurons_with_many_samples_find_their_duplicates(neurons, neuron_dim):
    generator = torch.Generator().manual_seed(0)
    one = torch.rand(1, 6_000_000, generator=generator)
    x = one.expand(neurons, -1)
    x = x.contiguous() if neuron_dim == 0 else x.T.contiguous()
    assert len(neuron_pairs(x, above=0.99999, neuron_dim=neuron_dim)) == neurons * (neurons - 1) // 2
    assert neuron_neighbors(x, 1, neuron_dim=neuron_dim).values.min() > 0.99999
    assert cosine_between(x, x, neuron_dim=neuron_dim).min() > 0.99999
    assert (row_sums(x, neuron_dim=neuron_dim) / (neurons - 1)).min() > 0.99999


def test_the_matrix_of_few_neurons_with_many_samples_keeps_its_digits():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(3, 6_000_000, generator=generator)
    x[1] += x[0]
    wanted = torch.corrcoef(x.double())
    assert (neuron_cosine_matrix(x, neuron_dim=0, center=True) - wanted).abs().max() < 1e-5
    unit = torch.nn.functional.normalize(x.double(), dim=1)
    assert (neuron_cosine_matrix(x, neuron_dim=0) - unit @ unit.T).abs().max() < 1e-5
