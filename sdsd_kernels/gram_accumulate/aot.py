"""What adding changes in the kernels of ../cosine_matrix, whose own cases cover the rest."""

from __future__ import annotations

import torch

from .._aot import AotCase, compiled_ahead
from ..cosine_matrix import config
from ..cosine_matrix.aot import aot_descriptor, aot_pointer, aot_reduce


def aot_cases() -> list[AotCase]:
    """The largest tiles that add; not `thorough` are the sums that take the most registers, and all kinds for sm_90."""
    cases = []
    for record in compiled_ahead():
        arch = record.family
        pointer, others = config.POINTER[arch], arch != "sm_90"
        exact = config.dot_precision("float32", torch.float32, center=True, arch=arch)
        cases.append(aot_reduce(record, store="add", out="fp64", thorough=others))
        cases.append(aot_pointer(record, exact, pointer[exact][0], store="add", center=True, out="fp64"))
        cases.append(aot_pointer(record, "native", pointer["native"][0], store="add", thorough=True))
        for choice in config.DESCRIPTOR.get(arch, {}).get("native", ()):
            thorough = others or choice is not config.DESCRIPTOR_WIDE
            cases.append(aot_descriptor(record, "native", choice, store="add", out="fp64", thorough=thorough))
    return cases
