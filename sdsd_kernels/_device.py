"""What the kernels need to know of a GPU: one record each. A new GPU is one record more in `RECORDS`.

`device_record` finds the record of a device; tests/aot.py compiles for those with `compile_ahead`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class DeviceRecord:
    """One kind of GPU, or Triton's interpreter."""

    name: str
    """Compute capability as "sm_90", architecture as "gfx942", or "interpreted"."""
    family: str
    """Whose launch configurations serve: "sm_80", "sm_90", "sm_100", "hip" or "interpreted"."""
    multiprocessors: int
    """Of the usual card; `device_record` puts in those of the device at hand."""
    shared_bytes: int
    """Most shared memory (LDS on AMD) one program may use."""
    matrix_instruction: str | None
    """What a matrix product becomes in machine code, for example "HGMMA"."""
    copy_engine: bool
    """Whether tensor descriptors are read by the copy engine (TMA)."""
    fast_float64: bool
    """Whether float64 runs at a half or a third of the speed of float32, not at a 32nd or 64th of it."""
    target: tuple[str, int | str, int] | None
    """(backend, architecture, threads a warp), as Triton's GPUTarget takes them; None for the interpreter."""
    compile_ahead: bool = False
    """Whether every kernel is compiled for it ahead of time by the tests."""


_KIB = 1024

SM_80 = DeviceRecord("sm_80", "sm_80", 108, 163 * _KIB, "HMMA", False, True, ("cuda", 80, 32), True)
SM_86 = DeviceRecord("sm_86", "sm_80", 84, 99 * _KIB, "HMMA", False, False, ("cuda", 86, 32))
SM_89 = DeviceRecord("sm_89", "sm_80", 128, 99 * _KIB, "HMMA", False, False, ("cuda", 89, 32))
SM_90 = DeviceRecord("sm_90", "sm_90", 132, 227 * _KIB, "HGMMA", True, True, ("cuda", 90, 32), True)
SM_100 = DeviceRecord("sm_100", "sm_100", 148, 227 * _KIB, "UTCHMMA", True, True, ("cuda", 100, 32), True)
# The B300 gave up most of its float64 units.
SM_103 = DeviceRecord("sm_103", "sm_100", 148, 227 * _KIB, "UTCHMMA", True, False, ("cuda", 103, 32))
# The shared memory and the matrix instructions of 8.x.
SM_120 = DeviceRecord("sm_120", "sm_80", 170, 99 * _KIB, "HMMA", True, False, ("cuda", 120, 32))
GFX90A = DeviceRecord("gfx90a", "hip", 104, 64 * _KIB, "v_mfma", False, True, ("hip", "gfx90a", 64))
GFX942 = DeviceRecord("gfx942", "hip", 304, 64 * _KIB, "v_mfma", False, True, ("hip", "gfx942", 64), True)
GFX950 = DeviceRecord("gfx950", "hip", 256, 160 * _KIB, "v_mfma", False, True, ("hip", "gfx950", 64))
GFX1100 = DeviceRecord("gfx1100", "hip", 48, 64 * _KIB, "v_wmma", False, False, ("hip", "gfx1100", 32))
INTERPRETED = DeviceRecord(
    # Few multiprocessors, so that small shapes are split as large ones are on a GPU.
    "interpreted",
    "interpreted",
    8,
    227 * _KIB,
    None,
    True,
    True,
    None,
)

RECORDS = {
    record.name: record
    for record in (SM_80, SM_86, SM_89, SM_90, SM_100, SM_103, SM_120, GFX90A, GFX942, GFX950, GFX1100, INTERPRETED)
}

_NEAREST = {8: SM_86, 9: SM_90, 10: SM_100, 11: SM_100, 12: SM_120}
"""By major compute capability, the record that an unlisted card borrows."""


def find_record(architecture: str) -> DeviceRecord:
    """The record of "sm_90", "gfx942" …; for an unknown one the nearest, taken to be slow in float64."""
    if architecture in RECORDS:
        return RECORDS[architecture]
    if architecture.startswith("gfx"):
        nearest = GFX942 if architecture.startswith("gfx9") else GFX1100
        target: tuple[str, int | str, int] = ("hip", architecture, 64 if architecture.startswith("gfx9") else 32)
    else:
        capability = int(architecture.removeprefix("sm_"))
        nearest = _NEAREST.get(capability // 10, SM_86)
        target = ("cuda", capability, 32)
    return replace(nearest, name=architecture, fast_float64=False, target=target, compile_ahead=False)


@functools.cache
def device_record(device: torch.device) -> DeviceRecord:
    """The record of `device`, with its own number of multiprocessors; the interpreter's for the CPU."""
    if device.type == "cpu":
        return INTERPRETED
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip is not None:
        record = find_record(properties.gcnArchName.split(":")[0])
    else:
        record = find_record(f"sm_{properties.major}{properties.minor}")
    return replace(record, multiprocessors=properties.multi_processor_count)
