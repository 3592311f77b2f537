"""Work that several processes share: a queue they take from, a log of what began and ended, and the watch over them.

Every event is on the disk before the next one begins, so whatever dies, and however, leaves what it had found out.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DEVICE_LOST = 77
"""Exit status of a worker that ends because its GPU context answers no more; another takes its place."""
SECONDS_BETWEEN_NEWS = 30.0
MOST_REPLACEMENTS = 40


@contextmanager
def locked(path: Path) -> Iterator[None]:
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Log:
    """One JSON object a line, appended and synchronised: what was planned, began and ended, and how."""

    def __init__(self, path: Path, worker: int = 0) -> None:
        self.path, self.worker = path, worker

    def write(self, event: str, **fields: Any) -> None:
        line = json.dumps({"event": event, "worker": self.worker, "time": time.time(), **fields}, ensure_ascii=False)
        with self.path.open("ab+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            size = file.seek(0, os.SEEK_END)
            if size:
                file.seek(size - 1)
                torn = file.read(1) != b"\n"  # a writer was killed within its line
                line = "\n" * torn + line
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def parsed(text: str) -> list[dict[str, Any]]:
    """The events of whole lines."""
    events = []
    for line in text.splitlines():
        with suppress(json.JSONDecodeError):
            events.append(json.loads(line))
    return events


@dataclass
class Record:
    """What a log says: the items in their order, and how each ended (absent: it never began, or never ended).

    `lost`: why processes broke down between two items.
    """

    planned: list[str] = field(default_factory=list)
    begun: dict[str, dict[str, Any]] = field(default_factory=dict)
    ended: dict[str, dict[str, Any]] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, path: Path) -> Record:
        record = cls()
        if not path.exists():
            return record
        for event in parsed(path.read_text(encoding="utf-8", errors="replace")):
            if event["event"] == "planned":
                record.planned += event["items"]
            elif event["event"] == "begin":
                record.begun[event["item"]] = event
            elif event["event"] == "end":
                record.ended[event["item"]] = event
            elif event["event"] == "lost":
                record.lost.append(event["reason"])
        return record

    def left_out(self) -> list[tuple[str, str]]:
        """(item, reason) of everything planned that has no outcome of its own."""
        found = []
        for item in self.planned:
            if item not in self.ended:
                found.append((item, "began and was never heard of again" if item in self.begun else "not reached"))
            elif self.ended[item]["outcome"] == "left out":
                found.append((item, self.ended[item]["reason"]))
        return found

    def with_outcome(self, *outcomes: str) -> list[dict[str, Any]]:
        return [event for event in self.ended.values() if event["outcome"] in outcomes]


class Queue:
    """Units of work in one order; processes take them from the front."""

    def __init__(self, folder: Path, log: Log) -> None:
        self.log, self.lock = log, folder / "lock"
        self.order, self.next = folder / "order.json", folder / "next"

    def agree(self, units: Sequence[Sequence[str]]) -> None:
        """The first process to come says what there is to do; the others' word changes nothing."""
        with locked(self.lock):
            if not self.order.exists():
                self.order.write_text(json.dumps(units), encoding="utf-8")
                self.log.write("planned", items=[item for unit in units for item in unit])

    def add(self, unit: Sequence[str]) -> None:
        """One more, behind all others."""
        with locked(self.lock):
            units = json.loads(self.order.read_text(encoding="utf-8"))
            self.order.write_text(json.dumps([*units, unit]), encoding="utf-8")
            self.log.write("planned", items=list(unit))

    def claim(self) -> list[str] | None:
        with locked(self.lock):
            units = json.loads(self.order.read_text(encoding="utf-8"))
            place = int(self.next.read_text()) if self.next.exists() else 0
            self.next.write_text(str(place + 1))
        return units[place] if place < len(units) else None

    def waiting(self) -> list[str]:
        """What nobody has claimed yet."""
        with locked(self.lock):
            units = json.loads(self.order.read_text(encoding="utf-8"))
            place = int(self.next.read_text()) if self.next.exists() else 0
        return [item for unit in units[place:] for item in unit]


@dataclass(frozen=True)
class Place:
    """Where a worker finds its part, in variables of its environment."""

    out: Path
    part: str
    work: Path
    worker: int
    deadline: float
    report: int

    def variables(self) -> dict[str, str]:
        values = (self.out, self.part, self.work, self.worker, self.deadline, self.report)
        return {"BENCH_GPU_PLACE": json.dumps([str(value) for value in values])}

    @classmethod
    def from_environment(cls) -> Place:
        out, part, work, worker, deadline, report = json.loads(os.environ["BENCH_GPU_PLACE"])
        return cls(Path(out), part, Path(work), int(worker), float(deadline), int(report))

    def log(self) -> Log:
        return Log(self.out / f"{self.part}.jsonl", self.worker)

    def queue(self) -> Queue:
        return Queue(self.work, self.log())

    def say(self, text: str) -> None:
        with suppress(OSError):  # nobody reads any more; files are still written
            os.write(self.report, (text + "\n").encode())

    def failed(self, item: str, reason: str, details: str = "") -> None:
        """Name a failure now: on the terminal in one line, with details in failures.txt."""
        line = f"FAILED {item}: {reason}"
        self.say(line)
        with (self.out / "failures.txt").open("a", encoding="utf-8") as file:
            file.write("\n    ".join([line, *details.splitlines()]) + "\n")
            file.flush()
            os.fsync(file.fileno())


def die_with_parent() -> None:
    """Have the kernel kill this process when the one that started it is gone."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def one_line(text: str, most: int = 200) -> str:
    """The first line with something in it."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "no reason was given")
    return line if len(line) <= most else line[: most - 1] + "…"


class Crew:
    """The workers of one part: started, replaced when they die, killed when an item or the part takes too long."""

    def __init__(
        self,
        part: str,
        command: Sequence[str],
        variables: Mapping[str, str],
        out: Path,
        *,
        folder: Path,
        workers: int,
        deadline: float,
        limit: float,
    ) -> None:
        self.part, self.command, self.environment = part, list(command), dict(variables)
        self.out, self.folder, self.size, self.deadline, self.limit = out, folder, workers, deadline, limit
        self.log = out / f"{part}.jsonl"
        self.offset = 0
        self.running: dict[int, tuple[subprocess.Popen[bytes], float]] = {}
        self.open: dict[int, tuple[str, float]] = {}
        self.productive: set[int] = set()
        self.counts: dict[str, int] = {}
        self.planned = self.started = 0

    def run(self) -> None:
        """Until the work is done, or `deadline` (as time.time() counts) has come."""
        with tempfile.TemporaryDirectory() as folder:
            self.work = Path(folder)
            self.report = os.dup(1)
            news = time.time() + SECONDS_BETWEEN_NEWS
            try:
                for _ in range(self.size):
                    self.start()
                while self.running and time.time() < self.deadline:
                    time.sleep(0.05)
                    self.look()
                    if time.time() > news:
                        news += SECONDS_BETWEEN_NEWS
                        self.tell()
            finally:
                for worker in list(self.running):
                    self.kill(worker)
                    self.close(worker, "left out", "still running when the time was over")
                self.tell()
                os.close(self.report)

    def start(self) -> None:
        self.started += 1
        worker = self.started
        variables = {**self.environment, **self.place(worker).variables()}
        with self.output(worker).open("wb") as stream:
            process = subprocess.Popen(
                self.command,
                cwd=self.folder,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                pass_fds=(self.report,),
                start_new_session=True,
            )
        self.running[worker] = (process, time.time())

    def place(self, worker: int) -> Place:
        return Place(self.out, self.part, self.work, worker, self.deadline, self.report)

    def output(self, worker: int) -> Path:
        return self.work / f"output-{worker}.txt"

    def look(self) -> None:
        """Take in new events; bury the dead, kill the stuck, and start others in their places."""
        self.read()
        for worker, (process, _) in list(self.running.items()):
            status = process.poll()
            if status is None:
                _, since = self.open.get(worker, ("", time.time()))
                if time.time() - since > self.limit:
                    self.kill(worker)
                    self.close(worker, "failed", f"not finished after {self.limit:.0f} s")
                    self.start()
                continue
            self.read()
            del self.running[worker]
            if status == 0:
                continue
            known = worker in self.productive or worker in self.open
            reason = f"the process ended with status {status}" if status > 0 else f"killed by signal {-status}"
            tail = "\n".join(self.output(worker).read_text(encoding="utf-8", errors="replace").splitlines()[-40:])
            if worker in self.open:
                self.close(worker, "failed", reason, tail)
            elif status != DEVICE_LOST:
                last = (tail.splitlines() or [""])[-1]
                self.place(worker).failed(f"{self.part}, process {worker}", f"{reason}: {last}", tail)
                Log(self.log, worker).write("lost", reason=f"{reason}: {last}")
            if known and self.started < self.size + MOST_REPLACEMENTS:
                self.start()

    def read(self) -> None:
        if not self.log.exists():
            return
        with self.log.open("rb") as file:
            file.seek(self.offset)
            text = file.read()
        whole = text.rfind(b"\n") + 1
        self.offset += whole
        for event in parsed(text[:whole].decode("utf-8", errors="replace")):
            worker = event["worker"]
            if event["event"] == "planned":
                self.planned += len(event["items"])
            elif event["event"] == "begin":
                self.open[worker] = (event["item"], event["time"])
            elif event["event"] == "end":
                self.open.pop(worker, None)
                self.productive.add(worker)
                self.counts[event["outcome"]] = self.counts.get(event["outcome"], 0) + 1

    def kill(self, worker: int) -> None:
        process, _ = self.running.pop(worker)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        self.read()

    def close(self, worker: int, outcome: str, reason: str, details: str = "") -> None:
        """Write the end that a dead worker could not."""
        if worker not in self.open:
            return
        item, since = self.open[worker]
        seconds = time.time() - since
        Log(self.log, worker).write("end", item=item, outcome=outcome, seconds=seconds, reason=reason)
        if outcome == "failed":
            self.place(worker).failed(item, reason, details)
        self.read()

    def tell(self) -> None:
        counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(self.counts.items()))
        left = max(0.0, self.deadline - time.time())
        print(f"  {self.part}: {counts or 'nothing yet'} of {self.planned}, {left:.0f} s left", flush=True)
