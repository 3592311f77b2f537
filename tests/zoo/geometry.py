"""Functional geometry on architectures people train: what can be cut, and one way from activations to a smaller model.

python -m tests.zoo.geometry [parts of names …]
"""

from __future__ import annotations

import argparse
import copy
import io
import os
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", TOKENIZERS_PARALLELISM="false")

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sdsd import geometry
from sdsd.geometry import Consumers
from sdsd.geometry.merging.rows import matching_groups as groups_of
from sdsd.graphs import outputs

from .architectures.base import Architecture
from .geometry_page import TABLE, Row, section, with_rows, with_section
from .runner import LIMIT, limit, nudged, without_chance
from .verdict import float64_default

DECODERS, ENCODERS = "transformers, decoders", "transformers, encoders and encoder-decoders"
IMAGES = "transformers, images and time series"
CHOSEN = {
    DECODERS: (
        "GPT-2",
        "GPT-NeoX",
        "BLOOM",
        "OPT",
        "Llama",
        "Qwen2",
        "Qwen3",
        "Gemma 2",
        "Phi",
        "Phi-3",
        "Falcon",
        "Mamba",
        "Mixtral",
        "Qwen3-MoE",
        "DeepSeek-V3",
        "CLIP, embeddings",
    ),
    ENCODERS: ("BERT, classifier", "DistilBERT, classifier", "ModernBERT, masked words", "T5", "T5, gated", "Whisper"),
    IMAGES: ("ViT", "DINOv2", "ConvNeXt", "ResNet", "SegFormer", "Swin"),
    "torch": ("nn.Transformer",),
    "timm": (
        "vit",
        "mixer",
        "convnext",
        "densenet, BatchNorm frozen",
        "regnet, BatchNorm frozen",
        "resnet18",
        "efficientnet, BatchNorm frozen",
        "mobilenetv3, BatchNorm frozen",
        "vgg",
    ),
}
SAVED = "saved and loaded"
ANSWERS = ("logits", "text_embeds", "image_embeds")
NORM, OUTPUT = "norm over all neurons", "the model's output"
SHORT = (
    ("takes its statistics", NORM),
    ("the model's output", OUTPUT),
    ("looked up", "looked up by place"),
    ("by their places", "taken by place"),
    ("softmax", "softmax over them"),
    ("the model's input", "joined with the input"),
    ("experts", "experts chosen by place"),
    ("written into", "size written in"),
    ("no rule", "no rule"),
    ("that the model computes", "multiplied by what the model computes"),
    ("mixes", "mixed"),
    ("orders", "ordered"),
)


def examine(family: str, name: str, architecture: Architecture) -> Row:
    row = Row(family, name)
    try:
        with limit(LIMIT), warnings.catch_warnings(), float64_default():
            warnings.simplefilter("ignore")
            _look(row, architecture)
    except Exception as error:
        row.wrong.append(f"{type(error).__name__}: {error}")
    return row


def _look(row: Row, architecture: Architecture) -> None:
    torch.manual_seed(0)
    model = nudged(without_chance(architecture.make())).double().eval()
    _without_fast_experts(model)
    batch = pytree.tree_map(
        lambda x: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x,
        architecture.batch(*architecture.sizes[0]),
    )
    example = batch if isinstance(batch, (dict, Tensor)) else batch[0]
    found = groups_of(model, "*", (), example)
    row.groups = len(found)
    row.layers = sum(len(group.writers) or 1 for group in found)
    cut = []
    for group in found:
        if not group.removable:
            row.refused[_reason(group)] += 1
            continue
        if group.neurons < 2:
            row.refused["one neuron only"] += 1
            continue
        try:
            geometry.remove_neurons(model, group.layer, [group.neurons - 1], example_input=example)
        except ValueError as error:
            row.refused["by the proof"] += 1
            row.wrong.append(str(error))
            continue
        cut.append(group)
    row.cut = len(cut)
    streams = [group for group in found if _reason(group) == NORM]
    row.streams = (sum(_cut_behind_norms(row, model, group, example) for group in streams), len(streams))
    wanted = [g for g in found if not _is_attention(g) and _reason(g) not in (NORM, OUTPUT) and not _is_router(g)]
    row.wanted = (sum(g in cut for g in wanted), len(wanted))
    able = [g for g in cut if g.neurons >= 4]
    able.sort(key=lambda g: (_is_attention(g), re.search(r"\.\d+\.", g.layer) is None, g.neurons < 6))
    if able:
        row.way = _one_way(model, able[0], batch, example, architecture)
    mixtures = [name for name, module in model.named_modules() if type(module).__name__.endswith("Experts")]
    if mixtures:
        row.way += f", an expert fewer: {_expert_fewer(model, mixtures, example)}"


class _Answers(nn.Module):
    """A model that gives on logits and embeddings alone, and no hidden states."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Any) -> list[Tensor]:
        given = self.model(**inputs)
        return [given[name] for name in ANSWERS if name in given]


def _cut_behind_norms(row: Row, model: nn.Module, group: Consumers, example: Any) -> bool:
    """Whether two of its neurons can be merged and one cut, with norms that go on to see both."""
    layer = group.layer
    if group.is_output and isinstance(example, dict):
        model, layer = _Answers(model), f"model.{layer}"
    try:
        geometry.consolidate(model, layer, [(0, 1)], norms="repeat", example_input=example)
    except ValueError as error:
        if str(error).startswith("consolidation:"):
            row.wrong.append(str(error))
        return False
    return True


def _expert_fewer(model: Any, mixtures: list[str], example: Any) -> str:
    smaller = model
    for name in mixtures:
        smaller = geometry.remove_experts(smaller, name, [0], example_input=example)
    return _saved_and_loaded(smaller, example)


def _without_fast_experts(model: nn.Module) -> None:
    """Grouped products of experts know no float64."""
    for module in model.modules():
        config = getattr(module, "config", None)
        if hasattr(config, "_experts_implementation"):
            config._experts_implementation = "eager"


def _is_attention(group: Consumers) -> bool:
    names = [writer.name for writer in group.writers] or [group.layer]
    return all(re.search(r"attn|attention", name, re.I) for name in names)


def _is_router(group: Consumers) -> bool:
    return _reason(group) in ("softmax over them", "ordered", "looked up by place") and bool(
        re.search("gate|router", group.layer)
    )


def _reason(group: Consumers) -> str:
    if group.removable:
        return ""
    texts = [obstacle.reason for obstacle in group.obstacles] or ["nothing reads it"]
    for part, short in SHORT:
        if any(part in text for text in texts):
            return short
    return texts[0]


def _one_way(model: nn.Module, group: Consumers, batch: Any, example: Any, architecture: Architecture) -> str:
    layer, loader = group.layer, [batch]

    def run(model: nn.Module, batch: Any) -> Any:
        return model(**example) if isinstance(example, dict) else model(example)

    answers = geometry.group_activations(model, loader, layer, example_input=example, forward=run)[layer]
    cosine = answers.cosine_matrix()
    geometry.NeuronMap.from_cosine(cosine.numpy())

    def loss(model: nn.Module) -> float:
        return architecture.loss(model, batch).item()

    given = {"cosine": cosine, "alive": answers.alive, "example_input": example}
    geometry.biopsy(model, layer, loss, 1, **given)
    geometry.mass_consolidation(model, layer, loss, 1, random_pairings=2, **given)
    pair = [tuple(each[:2]) for each in geometry.disjoint_pairs(None, 1, cosine=cosine, alive=answers.alive)]
    smaller, _ = geometry.consolidate(model, layer, pair, example_input=example)
    with geometry.evaluating(model), geometry.merge(model, layer, pair, example_input=example):
        merged = _answers(model, example)
    _require(_error(_answers(smaller, example), merged) < 1e-9, "the smaller network is another")
    again = _pickled(smaller) if _can_be_pickled(model) else copy.deepcopy(smaller)
    again.load_state_dict(smaller.state_dict())
    _require(_error(_answers(again, example), merged) < 1e-9, "pickle or state_dict")
    learner = copy.deepcopy(smaller).train()
    architecture.loss(learner, batch).backward()
    gradients = [p.grad for p in learner.parameters() if p.grad is not None]
    _require(bool(gradients) and all(bool(g.isfinite().all()) for g in gradients), "no gradients")
    torch.optim.SGD(learner.parameters(), lr=0.01).step()
    done = ["same, trains", _exported(model, smaller, example)]
    if hasattr(model, "save_pretrained"):
        done.append(_round_trip(model, group, loader, example, run))
    return ", ".join(done)


def _pickled(model: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False)


def _can_be_pickled(model: nn.Module) -> bool:
    """Not where its own forward has installed hooks."""
    try:
        _pickled(model)
    except Exception:
        return False
    return True


def _exported(model: nn.Module, smaller: nn.Module, example: Any) -> str:
    arguments, named = ((), dict(example)) if isinstance(example, dict) else ((example,), {})
    if "use_cache" in getattr(getattr(model, "config", None), "__dict__", {}):
        named["use_cache"] = False
    for which, network in (("smaller", smaller), ("whole", model)):
        try:
            torch.export.export(network, arguments, named, strict=False)
        except Exception as error:
            if which == "whole":
                return "no export before or after"
            why = error
            continue
        _require(
            which == "smaller",
            f"torch.export takes the whole model and not the smaller one: {why}" if which == "whole" else "",
        )
        return "exported"
    return ""


def _round_trip(model: Any, group: Consumers, loader: list[Any], example: Any, run: Callable[..., Any]) -> str:
    """Layers named alike, cut to one size, saved and loaded."""
    pattern = "*" + re.split(r"[.]\d+(?=[.])", group.layer)[-1]
    said = ""
    for uniform in (True, "share"):
        for budget in (0.01, 0.03, 0.1, 0.3):  # until something is cut
            smaller, report = geometry.consolidate_model(
                model, loader, pattern, budget=budget, uniform=uniform, example_input=example, forward=run
            )
            if report.parameters[1] < report.parameters[0]:
                last = _saved_and_loaded(smaller, example)
                if last == SAVED:
                    return SAVED
                said = said or last
                break
    _require(bool(said), "nothing was cut")
    return said


def _saved_and_loaded(smaller: Any, example: Any) -> str:
    fit = geometry.fit_config(smaller, example)
    if not fit.fits:
        return f"config does not fit ({fit.why.partition('. ')[0]})"
    with tempfile.TemporaryDirectory() as folder:
        smaller.save_pretrained(folder)
        loaded = type(smaller).from_pretrained(folder, dtype=torch.float64)
    _without_fast_experts(loaded)
    _require(_error(_answers(loaded, example), _answers(smaller, example)) < 1e-9, "from_pretrained gives another")
    return SAVED


def _answers(model: nn.Module, example: Any) -> list[Tensor]:
    with geometry.evaluating(model):
        given = model(**example) if isinstance(example, dict) else model(example)
    return [each for each in outputs(given) if isinstance(each, Tensor) and each.is_floating_point()]


def _error(one: list[Tensor], other: list[Tensor]) -> float:
    _require(len(one) == len(other), "another number of outputs")
    return max(((a - b).abs().max() / b.abs().max().clamp_min(1e-30)).item() for a, b in zip(one, other, strict=True))


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise AssertionError(what)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.zoo.geometry", description=__doc__)
    parser.add_argument("names", nargs="*", help="parts of names of architectures; all without any")
    parser.add_argument("--write", action="store_true", help="with names: put their rows into docs/coverage.md, too")
    options = parser.parse_args()
    from .architectures.catalogue import FAMILIES

    torch.set_num_threads(1)
    wanted = [each.lower() for each in options.names]
    rows = []
    for family, names in CHOSEN.items():
        for name in names:
            if wanted and not any(part in f"{family}: {name}".lower() for part in wanted):
                continue
            start = time.perf_counter()
            row = examine(family, name, FAMILIES[family][name])
            rows.append(row)
            print(
                f"{family}: {name}: {row.cut} of {row.groups} groups cut, {row.wanted[0]} of {row.wanted[1]} wanted, "
                f"{row.streams[0]} of {row.streams[1]} streams, "
                f"{dict(row.refused)}, {row.way} ({time.perf_counter() - start:.1f} s)",
                flush=True,
            )
            for wrong in row.wrong:
                print(f"    WRONG {wrong[:600]}", flush=True)
    if not wanted:
        TABLE.write_text(with_section(TABLE.read_text(), section(rows)))
    elif options.write:
        TABLE.write_text(with_rows(TABLE.read_text(), rows))
    return 1 if any(row.wrong for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
