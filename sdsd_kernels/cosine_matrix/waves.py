"""Which launch configuration, over how many splits of the samples: a model that counts waves.

Nothing here has been timed. The model adds up what a plan has to do at rates from data sheets, in clock cycles of one
multiprocessor, and the plan with the smallest sum is taken:

    launches · LAUNCH  +  norms  +  product  +  finishing

**Product.** A plan cuts the upper triangle into `tiles` and the samples into `splits`: tiles × splits pieces of work
for M multiprocessors. They run in waves: the busiest multiprocessor gets ⌈pieces / M⌉ of them and decides. That is why
tiles of 128² gain nothing at 2048 neurons (136 tiles, one more wave than 132 multiprocessors hold, for as much time as
all 256 tiles of the whole matrix take), twice at 4096 (528 tiles are exactly four waves), and why 512 neurons (10
tiles) leave most of a GPU idle unless samples are split.

k pieces that share a multiprocessor do one step of BLOCK_SAMPLES samples in

    max(k · operations / rate of the matrix unit,  k · bytes of the two panels / share of the L2 cache,
        latency of a load / loads under way)

The second term favours wide tiles, the third several small ones. A piece also costs a beginning and an end, in which it
writes its tile twice.

**Norms** read the input once. **Finishing**, where samples are split or the product comes from a library, takes norms
from the diagonal instead, reads every partial sum and writes the matrix.

**The whole product.** A library computes both triangles, at tiles of its choice and with panels shared between
neighbours; a finishing pass follows. Where few tiles exist and half of them does not fill the machine, it wins.

Sizes are rounded up to eighths of a power of two first, so that similar sizes share one plan, one compiled kernel and
one measurement of `autotune.py`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from .._device import DeviceRecord, find_record
from . import config

LATENCY = 1200
"""Clocks from asking for a panel to having it."""
BEGIN_AND_END = 1500
"""Clocks of a piece outside its steps, besides writing."""
LAUNCH = 4000
"""Clocks between one kernel's end and the next one's work: 2 to 3 µs."""
PORT = 64
"""Bytes a clock one multiprocessor can take from the L2 cache."""
MOST_SPLITS = 64
MOST_PARTIAL_BYTES = 256 * 2**20
"""Partial sums never take more memory than this."""


COST = {"native": 1, "bf16": 1, "fp16": 1, "bf16x3": 3, "tf32": 2, "tf32x3": 6}
"""Time of a product in that of half operands; "ieee" goes at `float_operations`."""


@dataclass(frozen=True)
class Plan:
    """How a symmetric product is computed.

    Attributes:
        kernel: "pointer" (any strides), "descriptor" (tensor descriptors) or "dense" (both triangles, by a library).
        launch: tile, warps and stages; None for "dense".
        splits: how many parts the samples are cut into; more than 1 needs a finishing pass.
    """

    kernel: str
    launch: config.MatrixConfig | None
    splits: int = 1

    @property
    def finishes(self) -> bool:
        """Whether the product leaves partial sums for a finishing pass."""
        return self.kernel == "dense" or self.splits > 1


@dataclass(frozen=True)
class Problem:
    """What a plan is for, sizes rounded up to a bucket.

    Attributes:
        arch: name of the device's record: "sm_90", "gfx942", "interpreted" …
        dot: as of `config.dot_precision`.
        neurons: rows.
        samples: over which products are summed.
        item_bytes: of a stored value.
        descriptor: whether tensor descriptors can read the rows.
        dense: whether a library could take the whole product.
        writes: "cosine" for a whole matrix of cosines, "sum" for the upper triangle of a running sum.
        multiprocessors: of the device, or 0 for those of the target's usual one.
    """

    arch: str
    dot: str
    neurons: int
    samples: int
    item_bytes: int
    descriptor: bool
    dense: bool
    writes: str
    multiprocessors: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "neurons", bucket(self.neurons))
        object.__setattr__(self, "samples", bucket(self.samples))

    @property
    def record(self) -> DeviceRecord:
        return find_record(self.arch)

    @property
    def count(self) -> int:
        """Multiprocessors."""
        return self.multiprocessors or self.record.multiprocessors


def bucket(size: int) -> int:
    """`size` rounded up to an eighth of the power of two above it: 1000 → 1024, 1025 → 1152."""
    step = 1 << max(0, (size - 1).bit_length() - 4)
    return -(-size // step) * step


def triangle(tiles: int) -> int:
    """Tiles on and above the diagonal of `tiles` × `tiles`."""
    return tiles * (tiles + 1) // 2


def pieces(neurons: int, launch: config.MatrixConfig) -> int:
    """Tiles that cover the triangle: squares of BLOCK_COLUMNS², each in parts of BLOCK_ROWS rows."""
    return triangle(-(-neurons // launch.block_columns)) * (launch.block_columns // launch.block_rows)


def split_length(samples: int, splits: int, block_samples: int) -> int:
    """Samples of one split: whole steps, so that no step reaches into the next split."""
    steps = -(-samples // block_samples)
    return -(-steps // splits) * block_samples


def split_count(samples: int, splits: int, block_samples: int) -> int:
    """How many splits of `split_length` there are: `splits`, or fewer where they do not come out even."""
    return -(-samples // split_length(samples, splits, block_samples))


def _wave_clocks(
    problem: Problem,
    work: int,
    rows: int,
    columns: int,
    samples: int,
    step: int,
    resident: int,
    stages: int,
    reuse: int,
) -> float:
    """Clocks of the busiest multiprocessor with `work` pieces of rows × columns × samples on the machine."""
    rates = problem.record.rates
    rate = rates.half_operations / COST[problem.dot] if problem.dot in COST else rates.float_operations
    share = min(PORT, rates.l2_bytes / min(problem.count, work))
    operations = 2 * rows * columns * step / rate
    panels = (rows + columns) * step * problem.item_bytes / share / reuse
    end = BEGIN_AND_END + 2 * rows * columns * 4 / share

    def together(count: int) -> float:
        one_step = max(count * operations, count * panels, LATENCY / max(1, stages - 1))
        return one_step * -(-samples // step) + BEGIN_AND_END + count * (end - BEGIN_AND_END)

    busiest = -(-work // problem.count)
    full, rest = divmod(busiest, resident)
    return full * together(resident) + (together(rest) if rest else 0.0)


def _finishing_clocks(problem: Problem, splits: int) -> float:
    """Clocks of writing partial sums, reading them, and writing the result, spread over the whole machine."""
    written = 8 * problem.neurons**2 if problem.writes == "cosine" else 4 * problem.neurons**2
    return (4 * splits * problem.neurons**2 + written) / problem.record.rates.memory_bytes + BEGIN_AND_END


def _dense_clocks(problem: Problem) -> float:
    """Clocks of a library's product of both triangles, at the best of three tiles, with panels shared by two."""
    choices = ((256, 128, 1), (128, 128, 1), (64, 64, 3))
    return min(
        _wave_clocks(
            problem,
            -(-problem.neurons // rows) * -(-problem.neurons // columns),
            rows,
            columns,
            problem.samples,
            128 // problem.item_bytes,
            resident,
            stages=5,
            reuse=2,
        )
        for rows, columns, resident in choices
    )


def clocks(problem: Problem, plan: Plan) -> float:
    """What the model makes of a plan, in clocks."""
    read = problem.neurons * problem.samples * problem.item_bytes / problem.record.rates.memory_bytes
    if plan.launch is None:
        return 4 * LAUNCH + _dense_clocks(problem) + _finishing_clocks(problem, 1)
    launch = plan.launch
    length = split_length(problem.samples, plan.splits, launch.block_samples)
    splits = split_count(problem.samples, plan.splits, launch.block_samples)
    product = _wave_clocks(
        problem,
        pieces(problem.neurons, launch) * splits,
        launch.block_rows,
        launch.block_columns,
        length,
        launch.block_samples,
        launch.resident,
        launch.num_stages,
        reuse=1,
    )
    if problem.writes == "sum":
        return product + LAUNCH + (LAUNCH + _finishing_clocks(problem, splits) if splits > 1 else 0.0)
    if splits == 1:
        return product + 3 * LAUNCH + read + BEGIN_AND_END
    return product + 4 * LAUNCH + _finishing_clocks(problem, splits)


def candidates(problem: Problem) -> list[Plan]:
    """Every plan that could serve, best first by the model."""
    launches = [("pointer", launch) for launch in config.pointer_configs(problem.record.family, problem.dot)]
    if problem.descriptor:
        # First, so that they win a tie: the copy engine works out addresses that pointers take instructions for.
        launches = [
            *(("descriptor", launch) for launch in config.descriptor_configs(problem.record.family, problem.dot)),
            *launches,
        ]
    plans = [Plan(kernel, launch, splits) for kernel, launch in launches for splits in _split_choices(problem, launch)]
    if problem.dense:
        plans.append(Plan("dense", None))
    return sorted(plans, key=functools.partial(clocks, problem))


def _split_choices(problem: Problem, launch: config.MatrixConfig) -> list[int]:
    """1, and numbers of splits that fill one, two or three waves, as far as samples and memory go."""
    steps = -(-problem.samples // launch.block_samples)
    room = MOST_PARTIAL_BYTES // (4 * problem.neurons**2)
    most = min(MOST_SPLITS, steps // 4, room)
    work = pieces(problem.neurons, launch)
    filling = {min(most, waves * problem.count * launch.resident // work) for waves in (1, 2, 3)}
    return [1, *sorted(splits for splits in filling if splits > 1)]


@functools.lru_cache(maxsize=1024)
def choose(problem: Problem) -> Plan:
    """The plan the model likes best."""
    return candidates(problem)[0]
