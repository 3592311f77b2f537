"""A neuron map as two files: arrays, and everything else as JSON."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..._drafts import draft_of
from ..cosines import NeuronPair

if TYPE_CHECKING:
    from .neuron_map import NeuronMap

FORMAT = 1
ARRAYS = ("cosine", "norms", "alive", "order", "clusters", "points")
PLAIN = ("layer", "taken_after", "samples", "silhouette", "stress", "effective_rank")


def save_map(neuron_map: NeuronMap, path: str | Path) -> tuple[Path, Path]:
    """Write `path`.npz and `path`.json: see `NeuronMap.save`."""
    arrays: dict[str, Any] = {
        "cosine": neuron_map.cosine.numpy(),
        "norms": np.zeros(0) if neuron_map.norms is None else neuron_map.norms.numpy(),
        "alive": neuron_map.alive.numpy(),
        "order": np.asarray(neuron_map.order, dtype=np.int64),
        "clusters": np.asarray(neuron_map.clusters, dtype=np.int64),
        "points": neuron_map.points,
    }
    rest = {name: value for name, value in neuron_map.to_dict().items() if name not in (*ARRAYS, "neurons", "dead")}
    packed, text = io.BytesIO(), json.dumps({"sdsd": "neuron map", "format": FORMAT, **rest}, indent=1)
    np.savez(packed, **arrays)
    written = _with_suffixes(path)
    for file, content in zip(written, (packed.getvalue(), text.encode()), strict=True):
        with draft_of(file) as draft:
            draft.write_bytes(content)
    return written


def load_map(path: str | Path) -> dict[str, Any]:
    """The fields of a `NeuronMap` from what `save_map` wrote; ValueError as `NeuronMap.load` says."""
    arrays_path, text_path = _with_suffixes(path)
    try:
        facts = json.loads(text_path.read_text(encoding="utf-8"))
        if not isinstance(facts, Mapping) or facts.get("sdsd") != "neuron map" or facts.get("format") != FORMAT:
            raise ValueError(f"it does not say that it is a neuron map of format {FORMAT}")
        with np.load(arrays_path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in ARRAYS}
        rest: dict[str, Any] = {
            name: tuple(NeuronPair(pair["first"], pair["second"], pair["cosine"]) for pair in facts[name])
            for name in ("nearest", "farthest")
        }
        rest |= {name: facts[name] for name in PLAIN}
        rest |= {"notes": tuple(facts["notes"]), "method": facts.get("method", "smacof")}
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path}: expected {arrays_path.name} and {text_path.name} as NeuronMap.save writes them, and could "
            f"not read them: {error}. Save the map again."
        ) from error
    return {
        "cosine": torch.from_numpy(arrays["cosine"]),
        "norms": torch.from_numpy(arrays["norms"]) if arrays["norms"].size else None,
        "alive": torch.from_numpy(arrays["alive"]),
        "order": tuple(arrays["order"].tolist()),
        "clusters": tuple(arrays["clusters"].tolist()),
        "points": arrays["points"],
        **rest,
    }


def _with_suffixes(path: str | Path) -> tuple[Path, Path]:
    path = Path(path)
    stem = path.with_suffix("") if path.suffix in (".npz", ".json") else path
    return stem.with_name(stem.name + ".npz"), stem.with_name(stem.name + ".json")
