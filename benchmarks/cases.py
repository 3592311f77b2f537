"""The only shapes that are measured, and what is wanted of them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class Goal:
    """A bound on the time of one provider relative to another, measured pair by pair.

    Attributes:
        provider: whose time.
        versus: relative to whose.
        bound: the number.
        faster: True asks for "at least `bound` times faster than", False for "at most `bound` times the time of".
        threads: the goal holds at this number of threads; None: at any.
        metric: "time", or "memory" for the peak memory of one against the other's.
    """

    provider: str
    versus: str
    bound: float
    faster: bool
    threads: int | None = None
    metric: str = "time"

    def __str__(self) -> str:
        if self.metric == "memory":
            return f"≤ {self.bound:g}× memory of {self.versus}"
        return f"≥ {self.bound:g}× faster than {self.versus}" if self.faster else f"≤ {self.bound:g}× {self.versus}"

    def measured(self, ratio: float) -> float:
        """What the goal bounds, from time(provider) / time(versus)."""
        return 1.0 / ratio if self.faster else ratio

    def met(self, ratio: float) -> bool:
        """Whether time(provider) / time(versus) = `ratio` reaches the goal."""
        return self.measured(ratio) >= self.bound if self.faster else ratio <= self.bound


@dataclass(frozen=True)
class Case:
    """One input of one op.

    Attributes:
        op: the op's name, as in bench_<op>.py.
        shape: gradients × parameters for gamma_stats,
            neurons × samples for neuron_cosine_matrix, neuron_neighbors and neuron_pairs,
            samples × positions × inputs × outputs of a layer for weight_grad_stats, a convolution's too;
            the model's input for gamma_monitor (samples × positions × width for a transformer).
        dtype: "float32", "bfloat16", …; of gamma_monitor, what autocast multiplies in
        variant: what else sets the input apart, for example the layout.
        goals: what is wanted of it.
    """

    op: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    variant: str = ""
    goals: tuple[Goal, ...] = field(default=(), compare=False)

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    @property
    def elements(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count

    def __str__(self) -> str:
        shape = "x".join(map(str, self.shape))
        return "-".join(part for part in (shape, self.dtype, self.variant.replace(" ", "_")) if part)


OURS = "sdsd"

# gamma_stats: gradients × parameters.
WITH_CONFIDENCE = "sdsd, confidence=0.95"
READ_FLOOR = "read floor"
PUBLISHED_FORMULA = "published formula"
COMPILED = "torch.compile"


CORE_BUSY = "one core busy"
BESIDE_SPINNING = "sdsd, beside a spinning process"
BESIDE_PINNED = "sdsd, beside one pinned to a core"


def _gamma_cpu(*shape: int) -> Case:
    goals = (
        Goal(OURS, READ_FLOOR, 3.5, faster=False, threads=2),
        Goal(OURS, PUBLISHED_FORMULA, 10, faster=True, threads=2),
        Goal(OURS, COMPILED, 1, faster=True, threads=2),
        Goal(WITH_CONFIDENCE, READ_FLOOR, 5, faster=False, threads=2),
    )
    return Case("gamma_stats", shape, goals=goals)


def _gamma_core_busy(*shape: int) -> Case:
    goals = tuple(Goal(name, OURS, 2, faster=False, threads=2) for name in (BESIDE_SPINNING, BESIDE_PINNED))
    return Case("gamma_stats", shape, variant=CORE_BUSY, goals=goals)


GAMMA_CPU = (
    _gamma_cpu(32, 4_000_000),
    _gamma_cpu(128, 1_000_000),
    _gamma_core_busy(32, 4_000_000),
    _gamma_core_busy(128, 1_000_000),
    Case("gamma_stats", (512, 65_536)),
    Case("gamma_stats", (2048, 16_384)),
    Case("gamma_stats", (32, 65_536)),
)
GAMMA_CUDA = tuple(
    Case("gamma_stats", shape, dtype)
    for dtype in ("float32", "bfloat16")
    for shape in (
        (32, 1_000_000),
        (32, 30_000_000),
        (128, 8_000_000),
        (512, 65_536),
        (1024, 1_000_000),
        (4096, 16_384),
        (4096, 600_000),
    )
)

# neuron_cosine_matrix: neurons × samples.
NORMALISE_MATMUL = "normalise + matmul"
BARE_MATMUL = "matmul"
SAMPLES_FIRST = "samples first"
NEURONS_FIRST = "neurons first"


def _cosine_cpu(neurons: int, samples: int, one_thread: float) -> tuple[Case, ...]:
    goals = (
        Goal(OURS, NORMALISE_MATMUL, one_thread, faster=True, threads=1),
        Goal(OURS, NORMALISE_MATMUL, 1.0, faster=True, threads=2),
    )
    return tuple(
        Case("cosine_matrix", (neurons, samples), variant=layout, goals=goals)
        for layout in (SAMPLES_FIRST, NEURONS_FIRST)
    )


def _cosine_cuda(neurons: int, samples: int, matmul: float | None, normalised: float | None) -> Case:
    wanted = ((BARE_MATMUL, matmul), (NORMALISE_MATMUL, normalised))
    goals = tuple(Goal(OURS, versus, bound, faster=True) for versus, bound in wanted if bound is not None)
    return Case("cosine_matrix", (neurons, samples), "bfloat16", NEURONS_FIRST, goals)


COSINE_CPU = (
    *_cosine_cpu(1024, 1024, 1.5),
    *_cosine_cpu(4096, 4096, 1.9),
    *_cosine_cpu(512, 50_000, 1.9),
    *_cosine_cpu(4096, 512, 1.35),
)
COSINE_CUDA = (
    _cosine_cuda(1024, 1024, 0.8, 1.3),
    _cosine_cuda(2048, 2048, 1.1, 1.4),
    _cosine_cuda(4096, 4096, 1.45, 1.65),
    _cosine_cuda(8192, 8192, 1.6, 1.7),
    _cosine_cuda(16_384, 4096, 1.6, 1.7),
    _cosine_cuda(512, 50_000, None, 1.8),
    Case("cosine_matrix", (4096, 4096), "bfloat16", SAMPLES_FIRST),
    *(
        Case(
            "cosine_matrix",
            (size, size),
            "float32",
            NEURONS_FIRST,
            (Goal(OURS, BARE_MATMUL, 2.5, faster=True),),
        )
        for size in (2048, 4096, 8192)
    ),
)

# neuron_neighbors, the ten nearest: neurons × samples.
FAISS = "faiss IndexFlatIP"
PRODUCTS_AND_TOPK = "matmul + topk by chunks"


def _neighbors_cpu(neurons: int, samples: int) -> Case:
    goals = (
        Goal(OURS, FAISS, 1.0, faster=True),
        Goal(OURS, FAISS, 1.0, faster=False, threads=1, metric="memory"),
    )
    return Case("neuron_neighbors", (neurons, samples), goals=goals)


NEIGHBORS_CPU = (_neighbors_cpu(5000, 512), _neighbors_cpu(20_000, 512), _neighbors_cpu(20_000, 64))
NEIGHBORS_CUDA = tuple(
    Case("neuron_neighbors", shape, dtype, goals=(Goal(OURS, PRODUCTS_AND_TOPK, 1.0, faster=True),))
    for dtype in ("float32", "bfloat16")
    for shape in ((20_000, 512), (65_536, 1024))
)

# gram_accumulator: neurons × samples, in batches of so many samples.
ALL_AT_ONCE = "neuron_cosine_matrix"
SUMS_BY_HAND = "sums by hand"
BATCHES = {f"batches of {batch:,}": batch for batch in (128, 1024, 4096)}


def _accumulator_cpu(neurons: int, samples: int, batch: int) -> Case:
    # Batches of 1,024 samples and more at no less than 0.8 of the rate of one call; smaller ones have no goal.
    goals = (Goal(OURS, ALL_AT_ONCE, 1.25, faster=False, threads=1),) if batch >= 1024 else ()
    return Case("gram_accumulator", (neurons, samples), variant=f"batches of {batch:,}", goals=goals)


ACCUMULATOR_CPU = (
    _accumulator_cpu(1024, 32_768, 128),
    _accumulator_cpu(1024, 32_768, 1024),
    _accumulator_cpu(1024, 32_768, 4096),
    _accumulator_cpu(2048, 16_384, 1024),
    _accumulator_cpu(2048, 16_384, 4096),
)
ACCUMULATOR_CUDA = tuple(
    Case("gram_accumulator", (4096, 65_536), dtype, "batches of 4,096") for dtype in ("bfloat16", "float32")
)

# neuron_pairs and cosine_histogram: neurons × samples.
PRODUCTS_BY_CHUNK = "matmul by chunks"
DENSE_MATRIX = "dense cosine matrix"
PAST_THRESHOLD = "pairs above"
HISTOGRAM = "histogram"


def _pairs(*shape: int, dtype: str = "float32") -> tuple[Case, ...]:
    goals = (
        Goal(OURS, PRODUCTS_BY_CHUNK, 1.5, faster=True),
        Goal(OURS, DENSE_MATRIX, 0.05, faster=False, threads=1, metric="memory"),
    )
    return tuple(Case("neuron_pairs", shape, dtype, variant, goals) for variant in (PAST_THRESHOLD, HISTOGRAM))


PAIRS_CPU = (*_pairs(5000, 512), *_pairs(20_000, 512))
PAIRS_CUDA = (*_pairs(20_000, 512), *_pairs(20_000, 512, dtype="bfloat16"))

# weight_grad_stats: samples × positions × inputs × outputs.
PLAIN_WEIGHT_GRAD = "weight gradient"


def _weight_grad_cpu(*shape: int, bound: float) -> Case:
    return Case("weight_grad_stats", shape, goals=(Goal(OURS, PLAIN_WEIGHT_GRAD, bound, faster=False, threads=1),))


WEIGHT_GRAD_CPU: tuple[Case, ...] = (
    _weight_grad_cpu(16, 128, 256, 256, bound=1.25),
    _weight_grad_cpu(16, 128, 256, 768, bound=1.25),
    _weight_grad_cpu(16, 128, 256, 1024, bound=1.25),
    _weight_grad_cpu(16, 128, 1024, 256, bound=1.25),
    _weight_grad_cpu(32, 197, 384, 1536, bound=1.2),
    _weight_grad_cpu(4, 2048, 768, 768, bound=1.1),
    _weight_grad_cpu(64, 16, 512, 512, bound=1.25),
    _weight_grad_cpu(16, 128, 64, 64, bound=1.5),
    _weight_grad_cpu(128, 1, 784, 512, bound=1.1),
    Case("weight_grad_stats", (64, 16 * 16, 32, 64), variant="convolution 3 × 3"),
    Case("weight_grad_stats", (64, 4 * 4, 128, 128), variant="convolution 3 × 3"),
)
CONVOLUTIONS = {"convolution 3 × 3": 3, "convolution 1 × 1": 1}
"""Variants, and the size of their kernel."""


def _weight_grad_cuda(*shape: int, bound: float | None = None, dtype: str = "bfloat16", variant: str = "") -> Case:
    goals = () if bound is None else (Goal(OURS, PLAIN_WEIGHT_GRAD, bound, faster=False),)
    return Case("weight_grad_stats", shape, dtype, variant, goals)


# Goals: what a prototype reached on an H100, and a tenth.
WEIGHT_GRAD_CUDA = (
    _weight_grad_cuda(16, 1024, 1024, 4096, bound=1.2),
    _weight_grad_cuda(8, 2048, 4096, 4096, bound=1.4),
    _weight_grad_cuda(64, 14 * 14, 256, 256, bound=0.4, variant="convolution 3 × 3"),
    _weight_grad_cuda(8, 1024, 768, 768, bound=1.1),
    _weight_grad_cuda(64, 28 * 28, 512, 128, bound=1.1, variant="convolution 1 × 1"),
    _weight_grad_cuda(8, 1000, 1024, 4096, bound=1.4),
    _weight_grad_cuda(256, 8 * 8, 128, 128, bound=0.6, variant="convolution 3 × 3"),
    _weight_grad_cuda(8, 1024, 3072, 768, bound=1.95),
    _weight_grad_cuda(64, 56 * 56, 64, 64, bound=1.2, variant="convolution 3 × 3"),
    _weight_grad_cuda(64, 128, 1024, 1024, bound=1.45),
    _weight_grad_cuda(64, 16, 1024, 1024),
    _weight_grad_cuda(1024, 1, 4096, 4096),
    *(
        _weight_grad_cuda(*shape, dtype="float32")
        for shape in (
            (16, 1024, 1024, 4096),
            (8, 2048, 4096, 4096),
            (64, 128, 1024, 1024),
            (64, 16, 1024, 1024),
            (1024, 1, 4096, 4096),
        )
    ),
)

# gamma_monitor: what the model reads.
PLAIN_STEP = "plain step"
EVERY = 10
EVERY_TENTH = f"sdsd, every={EVERY}"
LOOP = "loop over samples"
VMAP = "torch.func vmap(grad)"
BACKPACK = "BackPACK BatchL2Grad"
OPACUS = "Opacus hooks"
OPACUS_GHOST = "Opacus ghost norms"


def _monitor(shape: tuple[int, ...], variant: str, time: float, memory: float, dtype: str = "float32") -> Case:
    """`memory`: of the peak, `time`: of the step; both hold on the CPU with one thread, on a GPU as it is."""
    threads = 1 if dtype == "float32" else None
    goals = (
        Goal(OURS, PLAIN_STEP, time, faster=False, threads=threads),
        Goal(OURS, PLAIN_STEP, memory, faster=False, threads=threads, metric="memory"),
        Goal(EVERY_TENTH, PLAIN_STEP, round(1 + (time - 1) / EVERY + 0.01, 4), faster=False, threads=threads),
    )
    return Case("gamma_monitor", shape, dtype, variant, goals)


MONITOR_CPU = (
    _monitor((128, 784), "MLP", 1.08, 1.1),
    _monitor((64, 3, 32, 32), "CNN", 1.25, 1.25),
    _monitor((16, 128, 256), "GPT, tied head", 1.05, 1.05),
    _monitor((16, 128, 256), "GPT", 1.05, 1.05),
)

COMPILED_MODEL = "compiled"
CAPTURED_STEP = "captured"


def _monitor_cuda(shape: tuple[int, ...], variant: str, time: float) -> Case:
    """Trained in bfloat16 under autocast."""
    return _monitor(shape, variant, time, 1.02, "bfloat16")


def _monitor_captured(shape: tuple[int, ...], variant: str) -> Case:
    """The same as replays of CUDA graphs, which hold their memory: there is none to compare."""
    goals = (Goal(OURS, PLAIN_STEP, 1.05, faster=False),)
    return Case("gamma_monitor", shape, "bfloat16", f"{variant}, {CAPTURED_STEP}", goals)


MONITOR_CUDA = (
    _monitor_cuda((8, 1024, 1024), "GPT of 8 layers", 1.05),
    _monitor_cuda((256, 3, 32, 32), "CNN, channels last", 1.10),
    _monitor_cuda((8, 1024, 2048), "GPT of 4 layers", 1.05),
    _monitor_captured((8, 1024, 1024), "GPT of 8 layers"),
    _monitor_captured((256, 3, 32, 32), "CNN, channels last"),
    _monitor_captured((128, 784), "MLP"),
    _monitor_cuda((8, 1024, 1024), f"GPT of 8 layers, {COMPILED_MODEL}", 1.08),
    _monitor_cuda((256, 3, 32, 32), f"CNN, channels last, {COMPILED_MODEL}", 1.05),
    _monitor_cuda((8, 1024, 768), "GPT of 12 layers", 1.08),
)

CASES = {
    "cpu": GAMMA_CPU + COSINE_CPU + NEIGHBORS_CPU + PAIRS_CPU + ACCUMULATOR_CPU + WEIGHT_GRAD_CPU + MONITOR_CPU,
    "cuda": GAMMA_CUDA + COSINE_CUDA + NEIGHBORS_CUDA + PAIRS_CUDA + ACCUMULATOR_CUDA + WEIGHT_GRAD_CUDA + MONITOR_CUDA,
}


def cases_for(op: str, device_type: str | None = None) -> tuple[Case, ...]:
    """The cases of `op` for a device type; None: CUDA where there is one, else the CPU."""
    device_type = device_type or ("cuda" if torch.cuda.is_available() else "cpu")
    return tuple(case for case in CASES[device_type] if case.op == op)
