"""Time, memory and environment: how every benchmark here is measured.

A bench_<op>.py offers `prepare(case, device) -> Comparison`: the same input for every provider, a callable for each,
and a check of its result. `measure` then

1. runs every provider once and checks what it returns: a wrong result gets no timing, its row says so;
2. times them interleaved, in one process: every provider once a round, the order rotated from round to round, so that
   a slow spell of the machine falls on all of them; ratios are computed round by round and the median is reported;
3. takes the peak memory beyond the inputs, the result included (on the CPU in a process of its own).
"""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import functools
import json
import math
import os
import pickle
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from .cases import OURS, Case

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
ENVIRONMENT = "environment.json"
"""What the machine is, where a run on a GPU wrote it down beside its results."""
FLUSH_BYTES = 256 << 20
"""Larger than any GPU's second-level cache; written between two runs so that none finds its input there."""


@dataclass(frozen=True)
class Unavailable:
    """Stands in for a provider that cannot run on this machine, and says why."""

    reason: str


Provider = Callable[[], Any] | Unavailable


@dataclass(frozen=True)
class Comparison:
    """What is timed against what, on one input.

    Attributes:
        providers: name → callable without arguments, ours first.
        check: called with a provider's name and result; raises AssertionError where the result is wrong.
        baseline: the provider that ratios are relative to.
        work: how much one run has to read, or to compute, for the rate column; 0 leaves it out.
        work_unit: "B" for bytes, "FLOP" for operations.
        steps: how many steps one call of a provider makes, where it is not 1: its times are divided by it.
        by_process_time: on the CPU, ratios are of process time, which other processes disturb less than wall time.
        warm: run a provider once, untimed, before it is timed in a round: a training step finds the caches, and the
            allocator, as the last step of the same loop left them, not as another provider did.
    """

    providers: Mapping[str, Provider]
    check: Callable[[str, Any], None]
    baseline: str
    work: float = 0
    work_unit: str = "B"
    steps: Mapping[str, int] = field(default_factory=dict)
    by_process_time: bool = False
    warm: bool = False


Prepare = Callable[[Case, torch.device], Comparison]


@dataclass(frozen=True)
class Row:
    """One measured number with everything needed to read it later.

    `status` is "ok", "wrong" or "unavailable"; without "ok" there is no number and `note` says why.
    `ratio` is the median over rounds of this provider's time over that of `baseline`, in the same round.
    `ratio_to_ours` is the same against our provider.
    """

    op: str
    provider: str
    metric: str
    unit: str
    shape: tuple[int, ...]
    dtype: str
    variant: str
    threads: int | None
    median: float | None
    spread: float | None
    rounds: int
    ratio: float | None
    baseline: str
    ratio_to_ours: float | None
    rate: float | None
    rate_unit: str
    status: str
    note: str
    goals: list[dict[str, Any]]
    device: str
    versions: dict[str, str]
    commit: str
    time: str

    def same_case(self) -> tuple[Any, ...]:
        """What rows of one comparison have in common."""
        return (self.op, tuple(self.shape), self.dtype, self.variant, self.threads)


@dataclass
class Timing:
    """Seconds of every round; `cpu` is process time summed over threads, empty on a GPU."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def divided(self, steps: int) -> Timing:
        """The time of one of `steps` steps."""
        return Timing([value / steps for value in self.wall], [value / steps for value in self.cpu])


# Environment


@functools.cache
def device_name(device_type: str) -> str:
    """The processor's or the GPU's own name."""
    if device_type == "cuda":
        return torch.cuda.get_device_name()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def device_slug(device_type: str) -> str:
    """A folder name for results taken on this device, for example "cpu-amd-epyc" or "nvidia-h100"."""
    slug = plain_name(device_name(device_type))
    return f"cpu-{slug}" if device_type == "cpu" else slug


def plain_name(device: str) -> str:
    """A device's own name without memory, clock and marks, in lower case and hyphens."""
    name = re.sub(r"\(R\)|\(TM\)|\bCPU\b|\bProcessor\b|@.*|[- ]\d+GB.*", " ", device)
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


@functools.cache
def versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for package in ("triton", "numpy"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "absent"
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    return found


@functools.cache
def commit() -> str:
    """The commit of the checkout, "+changes" where the code measured differs from it; BENCH_COMMIT overrides."""
    if os.environ.get("BENCH_COMMIT"):
        return os.environ["BENCH_COMMIT"]

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True).stdout

    try:
        changes = git("status", "--porcelain", "--", "sdsd", "sdsd_kernels", "benchmarks/*.py")
        return git("rev-parse", "--short=12", "HEAD").strip() + ("+changes" if changes.strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


# Time


@contextlib.contextmanager
def limited_threads(threads: int | None) -> Iterator[None]:
    """Give torch and, where threadpoolctl is installed, every BLAS in the process this many threads."""
    if threads is None:
        yield
        return
    try:
        from threadpoolctl import threadpool_limits

        limits: contextlib.AbstractContextManager = threadpool_limits(threads)
    except ImportError:
        limits = contextlib.nullcontext()
    before = torch.get_num_threads()
    with limits:
        torch.set_num_threads(threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)


class CpuClock:
    """Wall time and process time of one call, repeated until it lasts long enough to be read off a clock.

    On several threads every provider begins after a pause. Worker threads wait for more work by spinning, OpenBLAS's
    for some 30 ms after a call, and would take a core from whoever comes next.
    """

    shortest = 2e-3
    pause = 0.06

    def estimate(self, function: Callable[[], Any]) -> float:
        start = time.perf_counter()
        function()
        return time.perf_counter() - start

    def repeats(self, seconds: float) -> int:
        return max(1, math.ceil(self.shortest / max(seconds, 1e-7)))

    def round(self, calls: Iterable[tuple[str, Callable[[], Any], int]]) -> dict[str, tuple[float, float | None]]:
        taken: dict[str, tuple[float, float | None]] = {}
        for name, function, repeats in calls:
            if torch.get_num_threads() > 1:
                time.sleep(self.pause)
            cpu_start, start = time.process_time(), time.perf_counter()
            for _ in range(repeats):
                function()
            wall, cpu = time.perf_counter() - start, time.process_time() - cpu_start
            taken[name] = (wall / repeats, cpu / repeats)
        return taken


class CudaClock:
    """Device time between two events, the second-level cache flushed before each call."""

    def __init__(self) -> None:
        self.flush = torch.zeros(FLUSH_BYTES, dtype=torch.int8, device="cuda")

    def estimate(self, function: Callable[[], Any]) -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        function()
        torch.cuda.synchronize()
        return time.perf_counter() - start

    def repeats(self, seconds: float) -> int:
        return 1

    def round(self, calls: Iterable[tuple[str, Callable[[], Any], int]]) -> dict[str, tuple[float, float | None]]:
        events = {}
        for name, function, _ in calls:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self.flush.zero_()
            start.record()
            function()
            end.record()
            events[name] = (start, end)
        torch.cuda.synchronize()
        return {name: (start.elapsed_time(end) * 1e-3, None) for name, (start, end) in events.items()}


def interleave(
    providers: Mapping[str, Callable[[], Any]],
    clock: CpuClock | CudaClock,
    seconds: float,
    most_rounds: int = 60,
    warm: bool = False,
) -> dict[str, Timing]:
    """Time the providers round by round for about `seconds`, at least five rounds; `warm` as in `Comparison`."""
    estimates = {name: clock.estimate(function) for name, function in providers.items()}
    repeats = {name: clock.repeats(estimate) for name, estimate in estimates.items()}
    one_round = sum(estimates[name] * repeats[name] for name in providers)
    rounds = min(most_rounds, max(5, math.floor(seconds / max(one_round, 1e-6))))
    names, timings = list(providers), {name: Timing() for name in providers}
    for index in range(rounds):
        turn = index % len(names)
        order = names[turn:] + names[:turn]
        calls = [(name, providers[name], repeats[name]) for name in order]
        for group in [[call] for call in calls] if warm else [calls]:
            if warm:
                group[0][1]()
            for name, (wall, cpu) in clock.round(group).items():
                timings[name].wall.append(wall)
                if cpu is not None:
                    timings[name].cpu.append(cpu)
    return timings


def paired_ratio(numerator: list[float], denominator: list[float]) -> float:
    """The median over rounds of one provider's time over another's in the same round."""
    return statistics.median(top / bottom for top, bottom in zip(numerator, denominator, strict=True))


def interquartile_range(values: list[float]) -> float:
    if len(values) < 2:
        return 0.0
    lower, _, upper = statistics.quantiles(values, n=4, method="inclusive")
    return upper - lower


# Memory


def peak_memory_cuda(function: Callable[[], Any]) -> int:
    """Bytes allocated on the GPU at the peak of one call, beyond what was there before it."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _status_bytes(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}")


def peak_resident_growth(function: Callable[[], Any]) -> int:
    """Bytes by which the process grew at the peak of one call, after a first call has loaded what it needs.

    Linux only: OSError elsewhere.
    """
    function()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak, VmHWM
    before = _status_bytes("VmRSS")
    result = function()
    peak = _status_bytes("VmHWM")
    del result
    return max(0, peak - before)


def peak_memory_cpu(prepare: Prepare, case: Case, provider: str, limit: float = 300) -> int | None:
    """Peak memory of one provider in a process of its own, in bytes; None where it cannot be taken."""
    environment = dict(os.environ, MALLOC_MMAP_THRESHOLD_="65536", MALLOC_TRIM_THRESHOLD_="65536")
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    try:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.memory"],
            input=pickle.dumps((prepare, case, provider, torch.get_num_threads())),
            capture_output=True,
            env=environment,
            timeout=limit,
        )
    except subprocess.TimeoutExpired:
        return None
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None


# One comparison


def without(comparison: Comparison, postponed: Mapping[str, str]) -> Comparison:
    """The comparison without some providers, each with the reason why it is left out."""
    providers = {
        name: Unavailable(postponed[name]) if name in postponed and not isinstance(provider, Unavailable) else provider
        for name, provider in comparison.providers.items()
    }
    return replace(comparison, providers=providers)


def _checked(comparison: Comparison) -> tuple[dict[str, Callable[[], Any]], dict[str, tuple[str, str]]]:
    """Run every provider once: the callables that are right, and (status, note) of the others."""
    right, rest = {}, {}
    for name, provider in comparison.providers.items():
        if isinstance(provider, Unavailable):
            rest[name] = ("unavailable", provider.reason)
            continue
        try:
            comparison.check(name, provider())
        except AssertionError as error:
            rest[name] = ("wrong", (str(error).splitlines() or ["the check failed"])[0])
        except (RuntimeError, NotImplementedError, MemoryError) as error:
            rest[name] = ("unavailable", f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:200])
        else:
            right[name] = provider
    return right, rest


def measure(
    prepare: Prepare,
    case: Case,
    device: torch.device | str = "cpu",
    threads: int | None = None,
    *,
    seconds: float = 4.0,
    memory: bool = True,
    postponed: Mapping[str, str] | None = None,
) -> list[Row]:
    """Check, time and weigh every provider of one case; see the top of this file.

    Args:
        prepare: builds the comparison.
        case: one of cases.py.
        device: where it runs.
        threads: on the CPU, the number of threads; None leaves it alone.
        seconds: about how long the timed rounds may take.
        memory: whether peak memory is taken too.
        postponed: providers that are left out, name → why.
    """
    device = torch.device(device)
    with limited_threads(threads if device.type == "cpu" else None):
        comparison = without(prepare(case, device), postponed or {})
        right, rest = _checked(comparison)
        clock = CudaClock() if device.type == "cuda" else CpuClock()
        timings = interleave(right, clock, seconds, warm=comparison.warm) if right else {}
        for name, steps in comparison.steps.items():
            if name in timings:
                timings[name] = timings[name].divided(steps)
        del clock
        peaks: dict[str, int | None] = {}
        if memory and device.type == "cuda":
            peaks = {name: peak_memory_cuda(function) for name, function in right.items()}
        names, baseline = list(comparison.providers), comparison.baseline
        work, work_unit = comparison.work, comparison.work_unit
        by_process_time = comparison.by_process_time and device.type == "cpu"
        del comparison, right  # the inputs, before other processes make their own
        if memory and device.type == "cpu":
            peaks = {name: peak_memory_cpu(prepare, case, name) for name in names if name in timings}

    blank = Row(
        op=case.op,
        provider="",
        metric="time",
        unit="s",
        shape=case.shape,
        dtype=case.dtype,
        variant=case.variant,
        threads=threads if device.type == "cpu" else None,
        median=None,
        spread=None,
        rounds=0,
        ratio=None,
        baseline=baseline,
        ratio_to_ours=None,
        rate=None,
        rate_unit=f"{work_unit}/s" if work else "",
        status="ok",
        note="",
        goals=[],
        device=device_name(device.type),
        versions=versions(),
        commit=commit(),
        time=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    )

    def ratio(name: str, other: str) -> float | None:
        if name not in timings or other not in timings:
            return None
        if by_process_time:
            return paired_ratio(timings[name].cpu, timings[other].cpu)
        return paired_ratio(timings[name].wall, timings[other].wall)

    def memory_ratio(name: str, other: str) -> float | None:
        top, bottom = peaks.get(name), peaks.get(other)
        return top / bottom if top is not None and bottom else None

    def goals(name: str, metric: str) -> list[dict[str, Any]]:
        mine = [goal for goal in case.goals if goal.provider == name and goal.threads in (None, threads)]
        found = []
        for goal in mine:
            if goal.metric != metric:
                continue
            pair = (memory_ratio if metric == "memory" else ratio)(name, goal.versus)
            found.append(
                {
                    "text": str(goal),
                    "measured": None if pair is None else goal.measured(pair),
                    "met": None if pair is None else goal.met(pair),
                }
            )
        return found

    rows: list[Row] = []
    for name in names:
        own = replace(blank, provider=name, goals=goals(name, "time"))
        if name in rest:
            status, note = rest[name]
            rows.append(replace(own, status=status, note=note))
            continue
        timing, peak = timings[name], peaks.get(name)
        median = statistics.median(timing.wall)
        rows.append(
            replace(
                own,
                median=median,
                spread=interquartile_range(timing.wall),
                rounds=len(timing.wall),
                ratio=ratio(name, baseline),
                ratio_to_ours=ratio(name, OURS),
                rate=work / median if work else None,
            )
        )
        other = replace(own, goals=[], rate_unit="")
        if timing.cpu:
            median, spread = statistics.median(timing.cpu), interquartile_range(timing.cpu)
            rounds = len(timing.cpu)
            rows.append(replace(other, metric="cpu_time", median=median, spread=spread, rounds=rounds))
        if peak is not None:
            weight = replace(other, metric="peak_memory", unit="B", goals=goals(name, "memory"))
            rows.append(replace(weight, median=float(peak), spread=0.0, rounds=1))
    return rows


# Files


def write_rows(rows: Iterable[Row], folder: Path) -> list[Path]:
    """Write rows to <folder>/<op>.json; a case measured again replaces what the file had of it.

    Timed without memory, it keeps the memory it had: that does not depend on the rest of the machine.
    """
    written = []
    by_op: dict[str, list[Row]] = {}
    for row in rows:
        by_op.setdefault(row.op, []).append(row)
    for op, new in by_op.items():
        path = folder / f"{op}.json"
        kept = read_rows(path) if path.exists() else []
        replaced = {row.same_case() for row in new}
        weighed = {row.same_case() for row in new if row.metric == "peak_memory"}
        memory = [row for row in kept if row.metric == "peak_memory" and row.same_case() in replaced - weighed]
        merged = [row for row in kept if row.same_case() not in replaced] + new + memory
        folder.mkdir(parents=True, exist_ok=True)
        lines = ",\n".join(json.dumps(asdict(row), ensure_ascii=False) for row in merged)
        path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
        written.append(path)
    return written


def read_rows(path: Path) -> list[Row]:
    """The rows of one result file."""
    return [Row(**{**row, "shape": tuple(row["shape"])}) for row in json.loads(path.read_text(encoding="utf-8"))]


def result_files(folder: Path) -> list[Path]:
    """The <op>.json of a folder, which may hold other files."""
    return [path for path in sorted(folder.glob("*.json")) if path.name != ENVIRONMENT]


def read_folder(folder: Path) -> list[Row]:
    """The rows of all result files of a folder."""
    return [row for path in result_files(folder) for row in read_rows(path)]


def results_folder(device_type: str, *, save: bool) -> Path:
    """Where results go: with `save` the committed folder of this device, else a local one that git ignores."""
    return RESULTS / device_slug(device_type) if save else RESULTS / "local" / device_slug(device_type)
