"""Compile every kernel ahead of time for GPUs this machine does not have, and read the machine code.

    python tests/aot.py            a table for people; exit status 1 where a case is not as it should be
    python tests/aot.py --json     one JSON object a line
    python tests/aot.py --brief    quicker: nothing thorough

Takes what `aot_cases()` offers in every <package>/*/aot.py: see sdsd_kernels/_aot.py. No GPU, no torch device and no
driver are needed: Triton ships assembler and disassembler.
"""

from __future__ import annotations

import argparse
import bisect
import collections
import functools
import gc
import importlib
import json
import multiprocessing
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from sdsd_kernels._device import RECORDS  # noqa: E402

SHARED_LIMIT = {record.target[1]: record.shared_bytes for record in RECORDS.values() if record.target is not None}
"""Bytes of shared memory (LDS on AMD) one program may use, by architecture."""

CUDA_OPCODE = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", re.MULTILINE)
"""A line of a disassembly: address and instruction."""
INSTRUCTION_BYTES = 16
HIP_MMA = re.compile(r"\b(v_mfma)_")
HIP_LOAD = re.compile(r"\b(?:global|buffer)_load_(dword(?:x[234])?|[us](?:byte|short)\w*)")
HIP_LOAD_BITS = {"dword": 32, "dwordx2": 64, "dwordx3": 96, "dwordx4": 128}


@dataclass
class Report:
    """What the machine code of one case looks like."""

    kernel: str
    case: str
    target: str
    seconds: float = 0.0
    registers: int = 0
    stack: int = 0
    spills: int = 0
    shared: int = 0
    shared_limit: int = 0
    mma: dict[str, int] = field(default_factory=dict)
    expect_mma: str | None = None
    expect_tma: bool = False
    expect_load_bits: int | None = None
    most_stack: int = 0
    missing_ptx: list[str] = field(default_factory=list)
    loads: dict[str, int] = field(default_factory=dict)
    error: str = ""

    def problems(self) -> list[str]:
        """Everything that must not be so; empty for a sound kernel."""
        if self.error:
            return [f"does not compile: {self.error}"]
        found = []
        if self.stack > self.most_stack or (self.spills and not self.most_stack):
            found.append(f"spills: {self.spills} loads and stores to local memory, {self.stack} bytes of stack")
        if self.shared > self.shared_limit:
            found.append(f"shared memory {self.shared} of {self.shared_limit} bytes")
        if self.expect_mma and not any(name.startswith(self.expect_mma) for name in self.mma):
            found.append(f"no {self.expect_mma} among its matrix instructions {self.mma or '(none)'}")
        if self.expect_tma and not self.loads.get("TMA"):
            found.append("no tile comes by tensor descriptor (UTMALDG)")
        if self.expect_load_bits:
            bits = {int(width): int(width) * count for width, count in self.loads.items() if width != "TMA"}
            if 2 * bits.get(self.expect_load_bits, 0) <= sum(bits.values()):
                found.append(f"not most by loads of {self.expect_load_bits} bits, but {self.loads or 'none'}")
        found += [f"no {instruction} in its PTX" for instruction in self.missing_ptx]
        return found


def _tool(name: str) -> str:
    """A program that Triton ships, else one on the path."""
    import triton

    shipped = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    path = str(shipped) if shipped.exists() else shutil.which(name)
    if path is None:
        raise FileNotFoundError(f"{name}: expected it beside Triton or on the path, found neither")
    return path


def _tool_output(name: str, content: bytes, *options: str) -> str:
    """What a program prints of a file with such content."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        command = [_tool(name), *options, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _instructions(cubin: bytes) -> bytes:
    """The machine code in a cubin, which is a 64-bit ELF file."""
    table, size, count, names = struct.unpack_from("<40xQ10xHHH", cubin)
    headers = [struct.unpack_from("<I20xQQ", cubin, table + size * place) for place in range(count)]
    names_at = headers[names][1]
    return b"".join(
        cubin[start : start + length] for name, start, length in headers if cubin.startswith(b".text.", names_at + name)
    )


def _read_resources(report: Report, cubin: bytes) -> None:
    usage = _tool_output("cuobjdump", cubin, "-res-usage")
    report.registers = max(map(int, re.findall(r"\bREG:(\d+)", usage)))
    report.stack = max(map(int, re.findall(r"\bSTACK:(\d+)", usage)))


def opcodes(architecture: str, programs: list[bytes]) -> list[list[str]]:
    """The instructions of programs for one architecture ("SM90a"), disassembled at once: a start takes .2 to .4 s."""
    ends, length = [], 0
    for program in programs:
        length += len(program)
        ends.append(length)
    listed: list[list[str]] = [[] for _ in programs]
    for address, opcode in CUDA_OPCODE.findall(_tool_output("nvdisasm", b"".join(programs), "--binary", architecture)):
        listed[bisect.bisect_right(ends, int(address, 16))].append(opcode)
    if [len(program) for program in programs] != [INSTRUCTION_BYTES * len(opcodes) for opcodes in listed]:
        raise ValueError(f"nvdisasm: expected {length // INSTRUCTION_BYTES} instructions, got {sum(map(len, listed))}")
    return listed


def _read_opcodes(report: Report, opcodes: list[str]) -> None:
    names = collections.Counter(opcode.split(".")[0] for opcode in opcodes)
    report.spills = names["LDL"] + names["STL"]
    report.mma = {name: count for name, count in names.items() if name.endswith("MMA")}
    loads = (opcode for opcode in opcodes if opcode.split(".")[0] in ("LDG", "LDGSTS"))
    report.loads = dict(collections.Counter(_load_bits(opcode) for opcode in loads))
    if names["UTMALDG"]:
        report.loads["TMA"] = names["UTMALDG"]


def _load_bits(opcode: str) -> str:
    """The width of one thread's load: LDG.E.128.CONSTANT → "128", LDG.E.U16 → "16", LDG.E → "32"."""
    widths = [part.lstrip("US") for part in opcode.split(".") if part.lstrip("US").isdigit()]
    return widths[-1] if widths else "32"


def _read_hip(report: Report, code: str) -> None:
    def metadata(name: str) -> int:
        return max((int(value) for value in re.findall(rf"\.{name}:\s*(\d+)", code)), default=0)

    report.registers = metadata("vgpr_count")
    report.stack = metadata("private_segment_fixed_size")
    report.spills = metadata("vgpr_spill_count")
    report.shared = max(report.shared, metadata("group_segment_fixed_size"))
    report.mma = dict(collections.Counter(HIP_MMA.findall(code)))
    report.loads = dict(collections.Counter(str(HIP_LOAD_BITS.get(kind, 16)) for kind in HIP_LOAD.findall(code)))


def compile_case(case: Any) -> Any:
    """Triton's compiled kernel of one AotCase; its `.asm` holds every stage ("ptx", "cubin", "amdgcn")."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    source = ASTSource(case.function, dict(case.signature), dict(case.constexprs), dict(case.attrs) or None)
    return triton.compile(source, target=GPUTarget(*case.target), options=dict(case.options))


def examine(kernel: str, case: Any) -> tuple[Report, str, bytes]:
    """Compile one case and read all but its instructions; those of NVIDIA's follow, with their architecture."""
    backend, target, _ = case.target
    report = Report(
        kernel=kernel,
        case=case.name,
        target=f"sm_{target}" if backend == "cuda" else str(target),
        shared_limit=SHARED_LIMIT[target],
        expect_mma=case.expect_mma,
        expect_tma=case.expect_tma,
        expect_load_bits=case.expect_load_bits,
        most_stack=case.most_stack,
    )
    start = time.perf_counter()
    architecture, code = "", b""
    try:
        compiled = compile_case(case)
        report.shared = compiled.metadata.shared
        if case.expect_ptx:
            report.missing_ptx = [name for name in case.expect_ptx if name not in compiled.asm["ptx"]]
        if backend == "cuda":
            _read_resources(report, compiled.asm["cubin"])
            architecture = re.findall(r"^\.target sm_(\w+)", compiled.asm["ptx"], re.MULTILINE)[0]
            code = _instructions(compiled.asm["cubin"])
        else:
            _read_hip(report, compiled.asm["amdgcn"])
    except Exception as error:
        report.error = f"{type(error).__name__}: {' '.join(str(error).split())[-400:]}"
    report.seconds = time.perf_counter() - start
    return report, architecture, code


@functools.cache
def cases_of(module: str) -> list[Any]:
    """What `aot_cases()` of a kernel module offers."""
    return list(importlib.import_module(module).aot_cases())


def discover(package: str) -> list[str]:
    """Where a package's folders declare their cases: <package>.<folder>.aot."""
    file = importlib.import_module(package).__file__
    if file is None:
        raise ImportError(f"{package}: expected a package with an __init__.py")
    return [f"{package}.{path.parent.name}.aot" for path in sorted(Path(file).parent.glob("*/aot.py"))]


def chosen(package: str, brief: bool) -> list[tuple[str, int, Any]]:
    """Module, index and case of all that is to be compiled."""
    return [
        (module, index, case)
        for module in discover(package)
        for index, case in enumerate(cases_of(module))
        if not (brief and case.thorough)
    ]


def _examine_by_index(place: tuple[str, int]) -> tuple[Report, str, bytes]:
    module, index = place
    return examine(module.split(".")[-2], cases_of(module)[index])


def examine_all(package: str, processes: int, brief: bool) -> list[Report]:
    """Every case of a package, compiled in a few processes."""
    places = [(module, index) for module, index, _ in chosen(package, brief)]
    gc.collect()
    gc.freeze()  # what is imported is not looked through again while kernels are compiled
    # Forked, so that torch and Triton are imported once; nothing has started a thread yet.
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("fork")) as pool:
        examined = list(pool.map(_examine_by_index, places))
        alike: dict[str, list[tuple[Report, bytes]]] = {}
        for report, architecture, code in examined:
            if code:
                alike.setdefault(f"SM{architecture}", []).append((report, code))
        listings = pool.map(opcodes, alike, [[code for _, code in group] for group in alike.values()])
        for group, listed in zip(alike.values(), listings, strict=True):
            for (report, _), instructions in zip(group, listed, strict=True):
                _read_opcodes(report, instructions)
    return [report for report, _, _ in examined]


def table(reports: list[Report]) -> str:
    """The reports as aligned text."""

    def counts(values: dict[str, int]) -> str:
        return " ".join(f"{name}×{count}" for name, count in sorted(values.items())) or "–"

    header = [
        "kernel",
        "case",
        "target",
        "registers",
        "stack",
        "spills",
        "shared KiB",
        "MMA",
        "loads by bits",
        "verdict",
    ]
    lines = [
        [
            report.kernel,
            report.case,
            report.target,
            str(report.registers),
            str(report.stack),
            str(report.spills),
            f"{report.shared / 1024:.1f} / {report.shared_limit // 1024}",
            counts(report.mma),
            counts(report.loads),
            "; ".join(report.problems()) or "ok",
        ]
        for report in reports
    ]
    widths = [max(len(line[index]) for line in [header, *lines]) for index in range(len(header) - 1)] + [0]
    rows = [header, ["-" * max(width, 7) for width in widths], *lines]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def main() -> int:
    parser = argparse.ArgumentParser(description="Compile the kernels ahead of time and read the machine code.")
    parser.add_argument("--package", default="sdsd_kernels")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--brief", action="store_true", help="nothing thorough")
    parser.add_argument("--json", action="store_true", help="one JSON object a case and line")
    options = parser.parse_args()
    os.environ.pop("TRITON_INTERPRET", None)  # interpreted kernels cannot be compiled
    start = time.perf_counter()
    reports = examine_all(options.package, options.processes, options.brief)
    if options.json:
        for report in reports:
            print(json.dumps({**asdict(report), "problems": report.problems()}, ensure_ascii=False))
    else:
        print(table(reports))
        print(f"\n{len(reports)} cases in {time.perf_counter() - start:.0f} s")
    return 1 if any(report.problems() for report in reports) else 0


if __name__ == "__main__":
    sys.exit(main())
