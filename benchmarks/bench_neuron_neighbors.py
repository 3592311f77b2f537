"""neuron_neighbors against faiss, scikit-learn and matrix products by chunks followed by torch.topk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import sdsd

from .cases import FAISS, OURS, PRODUCTS_AND_TOPK, Case, cases_for
from .harness import Comparison, Provider, Unavailable

OP = "neuron_neighbors"
K = 10
CHUNK = 1024
CHECKED = 256
"""Rows compared with a search in float64."""
SKLEARN_UP_TO = 8192

Found = tuple[Tensor, Tensor]


def products_and_topk(rows: Tensor) -> Found:
    """Cosines of CHUNK rows at a time, selected from by torch.topk."""
    rows = torch.nn.functional.normalize(rows, dim=1)
    found = []
    for start in range(0, rows.shape[0], CHUNK):
        cosine = rows[start : start + CHUNK] @ rows.T
        place = torch.arange(cosine.shape[0], device=rows.device)
        cosine[place, start + place] = -torch.inf
        found.append(cosine.topk(K, dim=1))
    return torch.cat([values for values, _ in found]), torch.cat([indices for _, indices in found])


def faiss_flat(rows: Tensor) -> Provider:
    if rows.device.type != "cpu":
        return Unavailable("faiss-cpu computes on the CPU")
    try:
        import faiss
    except ImportError:
        return Unavailable("faiss-cpu is not installed")

    def search() -> Found:
        """Neurons made into directions, put into an index, and K + 1 neighbours, for each finds itself."""
        faiss.omp_set_num_threads(torch.get_num_threads())
        directions = torch.nn.functional.normalize(rows, dim=1).numpy()
        index = faiss.IndexFlatIP(rows.shape[1])
        index.add(directions)
        values, indices = index.search(directions, K + 1)
        return torch.from_numpy(values), torch.from_numpy(indices)

    return search


def sklearn_neighbors(rows: Tensor) -> Provider:
    if rows.device.type != "cpu":
        return Unavailable("scikit-learn computes on the CPU")
    if rows.shape[0] > SKLEARN_UP_TO:
        return Unavailable("a round takes half a minute")
    try:
        from sklearn.neighbors import NearestNeighbors
    except ImportError:
        return Unavailable("scikit-learn is not installed")
    array = rows.numpy()

    def search() -> Found:
        model = NearestNeighbors(n_neighbors=K, metric="cosine", algorithm="brute").fit(array)
        distances, indices = model.kneighbors()
        return 1 - torch.from_numpy(distances), torch.from_numpy(indices)

    return search


def prepare(case: Case, device: torch.device) -> Comparison:
    """Normal activations, neurons first, and everybody who finds their K nearest."""
    generator = torch.Generator(device).manual_seed(0)
    neurons, samples = case.shape
    rows = torch.empty((neurons, samples), dtype=case.torch_dtype, device=device).normal_(generator=generator)
    checked = torch.randperm(neurons, generator=generator, device=device)[:CHECKED]
    exact = torch.nn.functional.normalize(rows[checked].double(), dim=1)
    scores = torch.cat(
        [exact @ torch.nn.functional.normalize(part.double(), dim=1).T for part in rows.split(CHUNK)], dim=1
    )
    scores[torch.arange(len(checked), device=device), checked] = -torch.inf
    wanted = scores.topk(K, dim=1).values
    half = case.torch_dtype in (torch.float16, torch.bfloat16)

    def check(provider: str, result: Any) -> None:
        values, indices = (part[checked].to(device) for part in result)
        if values.shape[1] > K:
            others = indices != checked[:, None]
            values, indices = (part[others].view(-1, K) for part in (values, indices))
        allowed = 1e-5 if provider == OURS or not half else 2e-2
        for error in (values - wanted, scores.gather(1, indices) - wanted):
            largest = error.abs().max().item()
            assert largest <= allowed, f"largest error {largest:.3g}, expected at most {allowed:g}"

    providers: dict[str, Provider] = {
        OURS: lambda: sdsd.neuron_neighbors(rows, K, neuron_dim=0),
        FAISS: faiss_flat(rows),
        PRODUCTS_AND_TOPK: lambda: products_and_topk(rows),
        "scikit-learn": sklearn_neighbors(rows),
    }
    baseline = FAISS if device.type == "cpu" else PRODUCTS_AND_TOPK
    # Counted as half of a full product: every pair once.
    return Comparison(providers, check, baseline, work=neurons * neurons * samples, work_unit="FLOP")


@pytest.mark.parametrize("case", cases_for(OP), ids=str)
def test_neuron_neighbors(case: Case, compare: Callable) -> None:
    compare(prepare, case)
