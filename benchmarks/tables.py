"""Tables of results: for the terminal, and for the README from the committed JSON."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .cases import (
    ALL_AT_ONCE,
    BARE_MATMUL,
    FAISS,
    NORMALISE_MATMUL,
    OURS,
    PLAIN_STEP,
    PLAIN_WEIGHT_GRAD,
    PRODUCTS_AND_TOPK,
    PRODUCTS_BY_CHUNK,
    READ_FLOOR,
)
from .harness import RESULTS, ROOT, Row, read_rows

# Numbers for people


def seconds_text(value: float) -> str:
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if value >= scale or unit == "µs":
            return f"{value / scale:.3g} {unit}" if value / scale < 1000 else f"{value / scale:.0f} {unit}"
    raise AssertionError("unreachable")


def bytes_text(value: float) -> str:
    if value >= 1 << 30:
        return f"{value / (1 << 30):.2f} GiB"
    return f"{value / (1 << 20):.1f} MiB"


def rate_text(value: float, unit: str) -> str:
    return f"{value / 1e12:.3g} TFLOP/s" if unit.startswith("FLOP") else f"{value / 1e9:.3g} GB/s"


def goals_text(rows: Iterable[Row]) -> str:
    parts = []
    for goal in (goal for row in rows for goal in row.goals):
        if goal["measured"] is None:
            parts.append(f"{goal['text']}: not measured")
        else:
            parts.append(f"{goal['text']}: {goal['measured']:.2f} {'met' if goal['met'] else 'MISSED'}")
    return "; ".join(parts)


def shape_text(shape: Sequence[int]) -> str:
    return " × ".join(f"{size:,}" for size in shape)


def case_text(row: Row) -> str:
    """Shape, dtype and variant."""
    return " ".join(filter(None, [shape_text(row.shape), row.dtype, row.variant]))


def title(row: Row) -> str:
    threads = "" if row.threads is None else f", {row.threads} thread" + ("s" if row.threads > 1 else "")
    variant = f", {row.variant}" if row.variant else ""
    return f"{row.op}  {shape_text(row.shape)} {row.dtype}{variant}{threads}, {row.device}"


def cells(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and lines of one comparison: a line a provider."""
    times = [row for row in rows if row.metric == "time"]
    others = {(row.provider, row.metric): row for row in rows if row.metric != "time"}

    def goals_of(provider: str) -> str:
        return goals_text(row for row in rows if row.provider == provider)

    def other(provider: str, metric: str, text: Callable[[float], str]) -> str:
        row = others.get((provider, metric))
        return "" if row is None or row.median is None else text(row.median)

    def ratio_cell(value: float | None) -> str:
        return "" if value is None else f"{value:.2f}"

    baseline = times[0].baseline
    header = ["provider", "median", "spread", f"/ {baseline}", "/ sdsd", "CPU time", "peak memory", "rate", "goal"]
    lines = []
    for row in times:
        if row.status != "ok" or row.median is None or row.spread is None:
            label = "WRONG" if row.status == "wrong" else row.status
            lines.append([row.provider, label, "", "", "", "", "", "", goals_of(row.provider) or row.note])
            continue
        lines.append(
            [
                row.provider,
                seconds_text(row.median),
                seconds_text(row.spread),
                ratio_cell(row.ratio),
                ratio_cell(row.ratio_to_ours),
                other(row.provider, "cpu_time", seconds_text),
                other(row.provider, "peak_memory", bytes_text),
                "" if row.rate is None else rate_text(row.rate, row.rate_unit),
                goals_of(row.provider),
            ]
        )
    filled = [index for index in range(len(header)) if index < 2 or any(line[index] for line in lines)]
    return [header[index] for index in filled], [[line[index] for index in filled] for line in lines]


def aligned_text(lines: Sequence[Sequence[str]], words: Container[int]) -> str:
    """Lines as columns, the first above a rule; the columns `words` start at the left, the others end at the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]

    def aligned(line: Sequence[str]) -> str:
        pairs = enumerate(zip(line, widths, strict=True))
        return "  ".join(cell.ljust(width) if index in words else cell.rjust(width) for index, (cell, width) in pairs)

    header, *rest = map(aligned, lines)
    return "\n".join(line.rstrip() for line in [header, "  ".join("-" * width for width in widths), *rest])


def plain_table(rows: Sequence[Row]) -> str:
    """One comparison as aligned text."""
    header, lines = cells(rows)
    words = {0, len(header) - 1} if header[-1] == "goal" else {0}
    return f"{title(rows[0])}\n{aligned_text([header, *lines], words)}"


def comparisons(rows: Iterable[Row]) -> list[list[Row]]:
    """Rows grouped by case, in the order they came."""
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.same_case(), []).append(row)
    return list(groups.values())


# README


def markdown_summary(rows: Sequence[Row]) -> str:
    """A line a case: our time, the ratio to every peer, peak memory, goals."""
    lines = []
    groups = comparisons(rows)
    peers: list[str] = []
    for group in groups:
        for row in group:
            if row.metric == "time" and row.provider != "sdsd" and row.provider not in peers:
                peers.append(row.provider)
    header = ["shape", "dtype", "threads", "sdsd", *(f"{peer} / sdsd" for peer in peers), "peak memory", "goal"]
    for group in groups:
        times = {row.provider: row for row in group if row.metric == "time"}
        memory = {row.provider: row.median for row in group if row.metric == "peak_memory"}
        ours = times["sdsd"]
        ours_time = "wrong" if ours.median is None else seconds_text(ours.median)
        variant = f", {ours.variant}" if ours.variant else ""
        against = []
        for peer in peers:
            found = times.get(peer)
            if found is not None and found.status == "wrong":
                against.append("wrong")
            else:
                ratio = None if found is None else found.ratio_to_ours
                against.append("–" if ratio is None else f"{ratio:.2f}")
        goals = goals_text(group)
        weight = memory.get("sdsd")
        lines.append(
            [
                shape_text(ours.shape) + variant,
                ours.dtype,
                "–" if ours.threads is None else str(ours.threads),
                ours_time,
                *against,
                "–" if weight is None else bytes_text(weight),
                goals or "–",
            ]
        )
    filled = [index for index in range(len(header)) if any(line[index] != "–" for line in lines)]
    table = [[line[index] for index in filled] for line in (header, ["---"] * len(header), *lines)]
    body = "\n".join("| " + " | ".join(line) + " |" for line in table)
    first = rows[0]
    taken = ", ".join(sorted({row.commit for row in rows}))
    used = ", ".join(f"{name} {version}" for name, version in first.versions.items())
    return f"{body}\n\n{first.device}; {used}; commit {taken}. Ratios above 1: sdsd is faster."


@dataclass(frozen=True)
class Line:
    """A line of the overview: an op, and whom it is held against."""

    op: str
    name: str
    against: str
    peers: tuple[str, ...]
    """By worth: of a case the first that was measured counts."""


OVERVIEW = (
    Line("gamma_stats", "`gamma_stats`", "one read of the gradients", (READ_FLOOR,)),
    Line("gamma_monitor", "`GammaMonitor`", "the plain training step", (PLAIN_STEP,)),
    Line("weight_grad_stats", "`weight_grad_stats`", "the weight gradient alone", (PLAIN_WEIGHT_GRAD,)),
    Line("cosine_matrix", "`neuron_cosine_matrix`", "normalise, then matmul", (NORMALISE_MATMUL, BARE_MATMUL)),
    Line("neuron_neighbors", "`neuron_neighbors`", "faiss; on a GPU matmul + topk", (FAISS, PRODUCTS_AND_TOPK)),
    Line("neuron_pairs", "`neuron_pairs`, `cosine_histogram`", "matmul by chunks", (PRODUCTS_BY_CHUNK,)),
    Line("gram_accumulator", "`GramAccumulator`", "one call with all samples", (ALL_AT_ONCE,)),
)


def best_and_worst(rows: Sequence[Row], peers: Sequence[str]) -> str:
    """Our time over a peer's in the case where we do best, and where we do worst."""
    found = []
    for group in comparisons(rows):
        ratios = {row.provider: row.ratio_to_ours for row in group if row.metric == "time" and row.status == "ok"}
        known = next((ratios[peer] for peer in peers if ratios.get(peer)), None)
        if known:
            ours = next(row for row in group if row.provider == OURS)
            threads = f"{ours.threads} thread{'s' * (ours.threads > 1)}" if ours.threads else ""
            what = ", ".join(filter(None, (f"{shape_text(ours.shape)} {ours.dtype}", ours.variant, threads)))
            found.append((1 / known, what))
    if not found:
        return "–"
    (best, where_best), (worst, where_worst) = min(found), max(found)
    if len(found) == 1:
        return f"{best:.2f} ({where_best})"
    return f"{best:.2f} ({where_best}) to {worst:.2f} ({where_worst})"


def overview(folders: Iterable[Path]) -> str:
    """A row an op, a column a device: the best and the worst that was measured."""
    columns: dict[str, dict[str, str]] = {}
    taken = []
    for folder in folders:
        rows = {
            line.op: read_rows(folder / f"{line.op}.json") for line in OVERVIEW if (folder / f"{line.op}.json").exists()
        }
        if not rows:
            continue
        first = next(iter(rows.values()))[0]
        columns[first.device] = {line.op: best_and_worst(rows.get(line.op, ()), line.peers) for line in OVERVIEW}
        commits = ", ".join(sorted({row.commit for some in rows.values() for row in some}))
        taken.append(f"{first.device}: torch {first.versions['torch']}, commits {commits}.")
    header = ["", "time as a multiple of", *columns]
    lines = [[line.name, line.against, *(column[line.op] for column in columns.values())] for line in OVERVIEW]
    body = "\n".join("| " + " | ".join(line) + " |" for line in (header, ["---"] * len(header), *lines))
    return f"{body}\n\n{' '.join(taken)}"


TABLE = re.compile(r"(<!-- table: (?P<name>\S+) -->\n).*?(<!-- end table -->)", re.DOTALL)


def table_named(name: str, results: Path) -> str:
    """The Markdown table "<device>/<op>"; "<op>" gives one for every device, "overview:<device>,…" a row an op."""
    if name.startswith("overview:"):
        return overview(results / device for device in name.removeprefix("overview:").split(","))
    paths = sorted(results.glob(f"{name}.json" if "/" in name else f"*/{name}.json"))
    if not paths:
        return "No results are committed yet: `make bench BENCH_SAVE=1`."
    return "\n\n".join(markdown_summary(read_rows(path)) for path in paths)


def filled(text: str, results: Path) -> str:
    """`text` with every table between its markers generated anew."""
    return TABLE.sub(lambda match: match[1] + table_named(match["name"], results) + "\n" + match[3], text)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Fill the measured tables of Markdown files from committed results.")
    parser.add_argument("files", nargs="*", type=Path, help="default: README.md, docs, the kernels' README.md")
    parser.add_argument("--check", action="store_true", help="change nothing; exit status 1 where a table is stale")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder that holds <device>/<op>.json")
    options = parser.parse_args(arguments)
    files = options.files or [
        ROOT / "README.md",
        *sorted(ROOT.glob("docs/*.md")),
        *sorted(ROOT.glob("sdsd_kernels/*/README.md")),
    ]
    stale = []
    for path in filter(Path.exists, files):
        before = path.read_text(encoding="utf-8")
        after = filled(before, options.results)
        if after == before:
            continue
        stale.append(path)
        if not options.check:
            path.write_text(after, encoding="utf-8")
    for path in stale:
        print(f"{path}: {'stale, run python -m benchmarks.tables' if options.check else 'filled'}")
    return 1 if stale and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
