"""The ranks of test_sharded.py: `python -m tests.geometry.gram.distributed_worker FOLDER` saves what
each of them found.

Accumulators and rings share one start of the processes, for that is what takes the time.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

import sdsd
from sdsd.geometry.gram import ring, shards

N = 300
SAMPLES = 24
NEURONS = {2: [13, 6], 3: [7, 0, 12], 4: [7, 12, 5, 9]}
EQUAL = 64
PIECE = 16


def streams(world: int) -> list[Tensor]:
    """Samples of every rank: other numbers of them, other means, a neuron that grows, one constant, one dead."""
    generator = torch.Generator().manual_seed(11)
    parts = []
    for rank in range(world):
        x = torch.randn(20 + 7 * rank, N, generator=generator) + 5 * rank
        x[:, 3] *= 1e-25 if rank == 0 else 1e25
        x[:, 4] *= 1e-25
        x[:, 5], x[:, 6] = 0.1, 0.0
        parts.append(x)
    return parts


def neurons(case: str, sizes: list[int]) -> list[Tensor]:
    """Activations of every rank's neurons, samples first (but for "images")."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(SAMPLES, sum(sizes), generator=generator) + 0.5
    if case in ("extreme", "extreme, centred"):
        x *= 10.0 ** torch.linspace(-30, 30, sum(sizes))
    elif case == "without direction":
        x[:, 2], x[3, sizes[0] + sizes[1] - 1] = 0.0, torch.inf
    elif case == "half":
        x = x.bfloat16()
    elif case == "double":
        x = x.double()
    parts = list(x.split(sizes, 1))
    return [part.T.reshape(-1, 4, 6, 1).transpose(0, 1) for part in parts] if case == "images" else parts


RINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "centred": {"center": True},
    "extreme": {},
    "extreme, centred": {"center": True},
    "without direction": {},
    "half": {},
    "double": {"center": True},
    "images": {"out_dtype": torch.float16},
    "least memory": {"max_bytes": 2 * (3 * 4 * SAMPLES + 40 * 13)},
}


@contextmanager
def counted_reduction() -> Iterator[list[int]]:
    """How many float64 numbers each all_reduce inside sends."""
    sent: list[int] = []
    reduce = dist.all_reduce

    def counting(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        sent.append(tensor.numel() if tensor.dtype == torch.float64 else 0)
        return reduce(tensor, *args, **kwargs)

    dist.all_reduce = counting
    try:
        yield sent
    finally:
        dist.all_reduce = reduce


def says(call: Callable[[], Any]) -> str:
    try:
        call()
    except (TypeError, ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def accumulators(rank: int, world: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    own = streams(world)[rank]

    def filled(**options: Any) -> sdsd.GramAccumulator:
        gram = sdsd.GramAccumulator(N, **options)
        for batch in own.split(9):
            gram.update(batch)
        return gram

    for center in (False, True):
        gram = filled(center=center, max_bytes=32 * N * (10 + rank))
        steps: list[tuple[int, int]] = []
        with counted_reduction() as sent:
            gram.all_reduce(progress=lambda done, total, steps=steps: steps.append((done, total)))
        found["centred" if center else "plain"] = {
            "cosine": gram.cosine_matrix(),
            "samples": gram.samples,
            "sent": sum(sent),
            "steps": steps,
            "norms": gram.norms(),
        }
        gram.update(own)
        found["centred" if center else "plain"]["more"] = gram.samples

    gram = filled(center=True) if rank == 1 else sdsd.GramAccumulator(N, center=True)
    gram.all_reduce()
    found["only rank 1"] = {"cosine": gram.cosine_matrix(), "samples": gram.samples}

    poisoned = own.clone()
    poisoned[3, 8] = torch.nan if rank == world - 1 else 1.0
    gram = sdsd.GramAccumulator(N)
    gram.update(poisoned)
    gram.all_reduce()
    found["nan"] = {"cosine": gram.cosine_matrix(), "nonfinite": gram.nonfinite}

    def refused(gram: sdsd.GramAccumulator) -> dict[str, Any]:
        before = gram.state_dict()
        message = says(gram.all_reduce)
        after = gram.state_dict()
        same = all(
            torch.equal(value, after[name]) if isinstance(value, Tensor) else value == after[name]
            for name, value in before.items()
        )
        return {"says": message, "same": same}

    found["other n"] = refused(sdsd.GramAccumulator(5 + rank))
    found["other center"] = refused(filled(center=rank == 0))
    found["other dtype"] = refused(filled(dtype=torch.float64 if rank == 1 else torch.float32))
    found["nothing"] = refused(sdsd.GramAccumulator(N))
    return found


def rings(rank: int, world: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for case, options in RINGS.items():
        own = neurons(case, NEURONS[world])[rank]
        dim = 1 if case == "images" else None
        found[case] = sdsd.sharded_cosine(own, neuron_dim=dim, **options)
        blocks: list[tuple[slice, slice, Tensor]] = []
        steps: list[tuple[int, int]] = []
        nothing = sdsd.sharded_cosine(
            own,
            neuron_dim=dim,
            on_block=lambda *block, blocks=blocks: blocks.append(block),
            progress=lambda done, total, steps=steps: steps.append((done, total)),
            **options,
        )
        found[case + ", streamed"] = {"blocks": blocks, "steps": steps, "nothing": nothing}
    own = neurons("without direction", NEURONS[world])[rank]
    found["zero is nan"] = sdsd.sharded_cosine(own, zero="nan")
    found["zero raises"] = says(lambda: sdsd.sharded_cosine(own, zero="raise"))
    found["other samples"] = says(lambda: sdsd.sharded_cosine(torch.ones(5 + (rank == 1), 3)))
    found["other dtype"] = says(lambda: sdsd.sharded_cosine(torch.ones(5, 3, dtype=torch.float16 if rank else None)))
    found["other center"] = says(lambda: sdsd.sharded_cosine(torch.ones(5, 3), center=rank == 1))
    found["other zero"] = says(lambda: sdsd.sharded_cosine(torch.ones(5, 3), zero="nan" if rank else "zero"))
    found["one is bad"] = says(lambda: sdsd.sharded_cosine(torch.ones(5, 3, dtype=torch.int32 if rank else None)))
    found["too little memory"] = says(lambda: sdsd.sharded_cosine(torch.ones(5, 3), max_bytes=100 if rank else None))
    return found


def shares(rank: int, world: int) -> dict[str, Any]:
    """Operations of one rank, and whether transfers start before the products that hide them."""
    own = torch.randn(SAMPLES, EQUAL)
    events: list[str] = []
    start, multiply = dist.batch_isend_irecv, ring.Ring._cosines

    def starting(transfers: Any) -> Any:
        events.append("transfers")
        return start(transfers)

    def multiplying(*args: Any) -> Any:
        events.append("products")
        return multiply(*args)

    multiplications, mm = [0], torch.mm

    def counting(a: Tensor, b: Tensor, *, out: Tensor) -> Tensor:
        multiplications[0] += a.shape[0] * a.shape[1] * b.shape[1]
        return mm(a, b, out=out)

    dist.batch_isend_irecv, ring.Ring._cosines, torch.mm = starting, multiplying, counting
    sdsd.sharded_cosine(own)
    dist.batch_isend_irecv, ring.Ring._cosines, torch.mm = start, multiply, mm
    return {"multiplications": multiplications[0], "events": events}


def in_part(rank: int, world: int) -> Any:
    """The last two of the ranks alone."""
    members = [world - 2, world - 1]
    group = dist.new_group(members)
    parts = neurons("plain", NEURONS[world])
    stream = streams(world)[rank]
    gram = sdsd.GramAccumulator(N)
    gram.update(stream)
    if rank not in members:
        return [
            says(lambda: sdsd.sharded_cosine(parts[rank], group=group)),
            says(lambda: gram.all_reduce(group)),
        ]
    gram.all_reduce(group)
    return [sdsd.sharded_cosine(parts[rank], group=group), gram.cosine_matrix()]


def one_rank(rank: int, world: int, folder: Path) -> None:
    store = f"file://{folder}/store of {world}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world, timeout=timedelta(seconds=120))
    shards.PIECE = PIECE
    found = {"shares": shares(rank, world), "accumulators": accumulators(rank, world)}
    shards.PIECE = 5
    found["rings"] = rings(rank, world)
    found["in part"] = in_part(rank, world)
    torch.save(found, folder / f"{rank} of {world}.pt")
    dist.barrier()
    dist.destroy_process_group()


def main(folder: Path) -> int:
    """Run every number of ranks, one after the other. Forked, so that torch is imported once."""
    fork = multiprocessing.get_context("fork")
    for world in NEURONS:
        ranks = [fork.Process(target=one_rank, args=(rank, world, folder)) for rank in range(world)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
        if any(process.exitcode for process in ranks):
            return 1
    return 0


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    sys.exit(main(Path(sys.argv[1])))
