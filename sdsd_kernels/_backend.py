"""The one place that chooses who computes: the Triton kernel or torch.

Order of choice: the `backend=` argument, then the environment variable SDSD_BACKEND, then
"triton" for a CUDA or ROCm tensor where a tested Triton is installed, else "torch".
TRITON_INTERPRET=1 (set before triton is first imported) lets "triton" run on CPU tensors, slowly, for tests.
"""

from __future__ import annotations

import functools
import os
from importlib import metadata

import torch

from ._checks import check_choice

BACKENDS = ("triton", "torch")
OLDEST_TRITON = (3, 5)
"""The oldest Triton release the kernels are tested with; below it the torch backend serves."""


@functools.cache
def triton_problem() -> str | None:
    """Why Triton cannot be used in this process, or None where it can (whatever the device)."""
    for distribution in ("triton", "pytorch-triton-rocm", "triton-rocm"):
        try:
            version = metadata.version(distribution)
            break
        except metadata.PackageNotFoundError:
            continue
    else:
        return "the package triton is not installed"
    installed = tuple(int(part) for part in version.split("+")[0].split(".")[:2])
    if installed < OLDEST_TRITON:
        wanted = ".".join(map(str, OLDEST_TRITON))
        return f"triton {version} is older than {wanted}, the oldest release the kernels are tested with"
    if interpreting() and installed < (3, 6):
        from ._interpreter_config import take_any_strides

        take_any_strides()
    return None


def interpreting() -> bool:
    """Whether Triton kernels run in Triton's own interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def unusable(backend: str, device: torch.device) -> str | None:
    """Why `backend` cannot compute on `device`, or None where it can."""
    if backend == "torch":
        return None
    problem = triton_problem()
    if problem is None and device.type == "cpu" and not interpreting():
        problem = "the tensor is on the CPU (TRITON_INTERPRET=1, set before the start, runs kernels there for tests)"
    elif problem is None and device.type not in ("cpu", "cuda"):
        problem = f"there are no kernels for device type {device.type!r}"
    return problem


def choose_backend(requested: str | None, device: torch.device, *, kernel_lacks: str | None = None) -> str:
    """Return "triton" or "torch" for a tensor on `device`.

    Args:
        requested: the caller's `backend=`; None leaves the choice to SDSD_BACKEND or, without it, to the device.
        device: where the input lives.
        kernel_lacks: what this input needs that the kernel does not offer (a dtype, say), or None.

    Raises:
        ValueError: an unknown backend, or Triton asked for by name where it cannot serve.
    """
    source = "backend"
    if requested is None and os.environ.get("SDSD_BACKEND"):
        requested, source = os.environ["SDSD_BACKEND"], "SDSD_BACKEND"
    if requested is None and device.type == "cpu":
        return "torch"
    problem = unusable("triton", device) or kernel_lacks
    if requested is None:
        return "torch" if problem else "triton"
    check_choice(requested, source, BACKENDS)
    if requested == "triton" and problem:
        raise ValueError(
            f"{source}: Triton was asked for, but {problem}. "
            f"Use backend='torch', or leave backend out to let the device decide."
        )
    return requested


# Reads the environment, so torch.compile settles it when it traces. This is what torch.compiler.assume_constant_result
# does, which would import the compiler, and with it Triton, into every process.
choose_backend._dynamo_marked_constant = True  # type: ignore[attr-defined]


def default_backend(device: torch.device | str) -> str:
    """The backend that a call without `backend=` takes for tensors on `device` that the kernels serve.

    Args:
        device: of the tensors, or its name.

    Returns:
        "triton" or "torch"; what SDSD_BACKEND names, where it is set.

    Raises:
        ValueError: SDSD_BACKEND names no backend, or one that cannot serve here.
    """
    return choose_backend(None, torch.device(device))


def available_backends(device: torch.device | str = "cpu") -> tuple[str, ...]:
    """Backends that can compute on `device` in this process, for example ("torch",).

    Args:
        device: a device or its name.

    Returns:
        Some of `BACKENDS`.
    """
    return tuple(backend for backend in BACKENDS if unusable(backend, torch.device(device)) is None)
