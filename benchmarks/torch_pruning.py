"""Side by side with Torch-Pruning: which structures of which models each can cut, and what is left at equal size.

    python -m benchmarks.torch_pruning cut quality     # measures, into benchmarks/torch_pruning.json
    python -m benchmarks.torch_pruning tables          # writes the tables of docs/functional-geometry.md from it

It needs torch-pruning, torchvision, timm and transformers, and for "quality" scikit-learn and the packages of
networks.txt: `make side-by-side` installs and runs all of it.

Both are asked for the same: take these units (neurons, channels, whole heads) of this layer out of a tiny random
network with everything that is coupled to them, and run it. Torch-Pruning gets the rows of the weight that belong to
the units, which `consumers` knows. Where both cut, their networks are compared. Quality is measured without training
afterwards: Torch-Pruning's magnitude importance of the group (its default, p=2) chooses the channels that go.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import signal
import statistics
import sys
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sdsd import collect_activations
from sdsd.geometry import consolidate, consumers, disjoint_pairs, outgoing_weights, remove_neurons
from sdsd.geometry.merging import mean_loss
from sdsd.graphs import outputs

from .harness import ROOT

FILE = ROOT / "benchmarks" / "torch_pruning.json"
PAGE = ROOT / "docs" / "functional-geometry.md"
OURS, THEIRS = "sdsd", "Torch-Pruning"
CPU_SECONDS = 20
"""Processor time for one cut, which takes a fraction of a second where it works."""
SHARES = (1 / 8, 1 / 4, 1 / 2)
SEEDS = 3
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Model(NamedTuple):
    """A model as its library makes it, and layers of it by what they are."""

    make: Callable[[], nn.Module]
    example: Callable[[], Any]
    structures: dict[str, str]


def images(size: int = 64) -> Callable[[], Tensor]:
    return lambda: torch.randn(2, 3, size, size)


def texts() -> dict[str, Tensor]:
    return {"input_ids": torch.randint(5, 90, (2, 12))}


def models() -> dict[str, Model]:
    import timm
    import torchvision
    import transformers as hf

    small: dict[str, Any] = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    llama: dict[str, Any] = {**small, "intermediate_size": 48, "num_key_value_heads": 2, "use_cache": False}
    t5 = hf.T5Config(vocab_size=99, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, use_cache=False)

    def from_timm(name: str, **options: Any) -> Callable[[], nn.Module]:
        return lambda: timm.create_model(name, num_classes=10, **options)

    return {
        "GPT-2": Model(
            lambda: hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=99, n_embd=32, n_layer=2, n_head=4, use_cache=False)),
            texts,
            {"MLP (Conv1D)": "transformer.h.0.mlp.c_fc", "heads, fused q k v": "transformer.h.0.attn.c_attn"},
        ),
        "Llama": Model(
            lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**llama)),
            texts,
            {
                "gated MLP": "model.layers.0.mlp.gate_proj",
                "heads, grouped": "model.layers.0.self_attn.q_proj",
                "residual stream": "model.layers.0.mlp.down_proj",
            },
        ),
        "Mixtral": Model(
            lambda: hf.MixtralForCausalLM(hf.MixtralConfig(**llama, num_local_experts=4)),
            texts,
            {"neurons of all experts": "model.layers.0.mlp.experts.gate_up_proj"},
        ),
        "BERT": Model(
            lambda: hf.BertModel(hf.BertConfig(**small, intermediate_size=48)),
            texts,
            {"MLP": "encoder.layer.0.intermediate.dense", "heads": "encoder.layer.0.attention.self.query"},
        ),
        "T5": Model(
            lambda: hf.T5EncoderModel(t5),
            texts,
            {
                "MLP": "encoder.block.0.layer.1.DenseReluDense.wi",
                "heads": "encoder.block.1.layer.0.SelfAttention.q",
            },
        ),
        "ViT (timm)": Model(
            from_timm("vit_tiny_patch16_224", img_size=64, depth=2),
            images(),
            {
                "MLP": "blocks.0.mlp.fc1",
                "heads, fused q k v": "blocks.0.attn.qkv",
                "residual stream": "patch_embed.proj",
            },
        ),
        "Mixer (timm)": Model(
            from_timm("mixer_s32_224", img_size=64),
            images(),
            {"MLP over tokens": "blocks.0.mlp_tokens.fc1", "MLP over channels": "blocks.0.mlp_channels.fc1"},
        ),
        "ResNet18 (torchvision)": Model(
            lambda: torchvision.models.resnet18(),
            images(),
            {"inside a block": "layer1.0.conv1", "residual stream": "conv1"},
        ),
        "SE-ResNet50 (timm)": Model(
            from_timm("seresnet50"),
            images(),
            {"inside a block": "layer1.0.conv2", "stream behind squeeze-and-excitation": "layer1.0.conv3"},
        ),
        "MobileNetV3 (torchvision)": Model(
            lambda: torchvision.models.mobilenet_v3_small(),
            images(),
            {"expansion, depthwise, squeeze": "features.2.block.0.0", "linear bottleneck": "features.2.block.2.0"},
        ),
        "RegNetY (timm)": Model(
            from_timm("regnety_004"),
            images(),
            {"grouped convolution": "s1.b1.conv2.conv", "stream": "s1.b1.conv3.conv"},
        ),
        "ConvNeXt (timm)": Model(
            from_timm("convnext_atto"), images(), {"MLP": "stages.0.blocks.0.mlp.fc1", "residual stream": "stem.0"}
        ),
        "DenseNet121 (torchvision)": Model(
            lambda: torchvision.models.densenet121(),
            images(),
            {"concatenated": "features.conv0", "inside a layer": "features.denseblock1.denselayer1.conv1"},
        ),
        "GoogLeNet (torchvision)": Model(
            lambda: torchvision.models.googlenet(init_weights=False, aux_logits=False),
            images(),
            {"branch of a concatenation": "inception3a.branch1.conv"},
        ),
        "ShuffleNetV2 (torchvision)": Model(
            lambda: torchvision.models.shufflenet_v2_x0_5(), images(), {"inside a branch": "stage2.1.branch2.0"}
        ),
        "NF-ResNet26 (timm)": Model(
            from_timm("nf_resnet26"), images(), {"standardised convolution": "stages.0.0.conv1"}
        ),
    }


class Cut(NamedTuple):
    """What one of the two made of a structure."""

    model: nn.Module | None
    parameters: int
    why: str


def answers(model: nn.Module, example: Any) -> list[Tensor]:
    with torch.no_grad():
        given = model(**example) if isinstance(example, dict) else model(example)
    return [each for each in outputs(given) if isinstance(each, Tensor)]


def count(model: nn.Module) -> int:
    return sum(each.numel() for each in model.parameters())


def brief(error: BaseException) -> str:
    lines = [line.strip("- ") for line in str(error).strip().splitlines()]
    text = next((line for line in lines[1:] if line), lines[0]) if len(lines) > 1 else (lines or [""])[0]
    return f"{type(error).__name__}: {text[:150]}"


def ours(model: nn.Module, layer: str, units: list[int], example: Any) -> Cut:
    try:
        smaller, report = remove_neurons(model, layer, units, example_input=example)
    except (ValueError, TypeError) as error:
        return Cut(None, 0, brief(error))
    return Cut(smaller, report.parameters[1], "")


def theirs(model: nn.Module, layer: str, rows: list[int], example: Any) -> Cut:
    import torch_pruning as tp

    model = copy.deepcopy(model)
    try:
        module = model.get_submodule(layer)
    except AttributeError as error:
        return Cut(None, 0, f"no layer: {brief(error)}")
    prune = tp.prune_conv_out_channels if isinstance(module, CONVOLUTIONS) else tp.prune_linear_out_channels
    if isinstance(module, CONVOLUTIONS) and 1 < module.groups == module.out_channels:
        prune = tp.prune_depthwise_conv_out_channels
    if not isinstance(module, (nn.Linear, *CONVOLUTIONS)):
        return Cut(None, 0, f"no rule for {type(module).__name__}")

    def stop(*_: Any) -> None:
        raise TimeoutError(f"not finished after {CPU_SECONDS} s of processor time")

    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    try:
        graph = tp.DependencyGraph().build_dependency(model, example, output_transform=_first)
        group = graph.get_pruning_group(module, prune, idxs=rows)
        if not graph.check_pruning_group(group):
            return Cut(None, 0, "refused by check_pruning_group")
        before = count(model)
        group.prune()
        answers(model, example)
    except Exception as error:
        return Cut(None, 0, brief(error))
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return Cut(model, count(model), "" if count(model) < before else "nothing was cut")


def _first(given: Any) -> Any:
    return next(each for each in outputs(given) if isinstance(each, Tensor))


def cut_cases() -> Iterator[dict[str, Any]]:
    for name, (make, example_of, structures) in models().items():
        torch.manual_seed(0)
        model, example = make().eval(), example_of()
        for structure, layer in structures.items():
            found = consumers(model, layer, example)
            heads = "heads" in structure
            # Grouped products of experts take widths that are multiples of 16 bytes.
            units = [1] if heads or found.neurons < 8 else [1, 3, 5, 7]
            rows = torch.isin(found.rows, torch.tensor(units)).nonzero().flatten().tolist()
            mine, other = ours(model, layer, units, example), theirs(model, layer, rows, example)
            same = None
            if mine.model is not None and other.model is not None:
                pairs = list(zip(answers(mine.model, example), answers(other.model, example), strict=True))
                same = all(a.shape == b.shape and torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in pairs)
            yield {
                "model": name, "structure": structure, "layer": layer, "units": units, "parameters": count(model),
                OURS: {"cut": mine.model is not None, "parameters": mine.parameters, "why": mine.why},
                THEIRS: {"cut": other.model is not None, "parameters": other.parameters, "why": other.why},
                "same": same,
            }  # fmt: skip


# ---- quality ---------------------------------------------------------------------------------------------------------


def quality_cases() -> Iterator[dict[str, Any]]:
    from sdsd.studies.digits import load_digits
    from sdsd.studies.geometry import networks, subject

    def held_out(seed: int) -> Any:
        """Mapped on the digits that the network learned, measured on the others."""
        images, classes = load_digits(seed)
        images, learned = images.reshape(-1, 1, 8, 8), subject.TRAINING_IMAGES
        others = [(images[learned:], classes[learned:])]
        return dataclasses.replace(
            subject.digits_cnn(seed),
            batches=[images[:learned]],
            sensitivity=mean_loss(others, subject.classification_loss),
        )

    subjects: dict[str, Callable[[int], Any]] = {
        "digits CNN": held_out,
        "EfficientNet-Lite0": lambda seed: networks.efficientnet_subject(seed, mapped=64, measured=64),
        "MiniLM, layer 4 of 6": lambda seed: networks.minilm_subject(
            seed, layer=3, tokens=16, count=512, mapped=128, measured=128
        ),
    }
    for name, make in subjects.items():
        for seed in range(SEEDS):
            chosen = make(seed)
            whole = chosen.sensitivity(chosen.model)
            for share in SHARES:
                for method, smaller in smaller_networks(chosen, share):
                    yield {
                        "network": name, "seed": seed, "measure": chosen.measure, "share": share, "method": method,
                        "parameters": count(smaller), "cost": chosen.sensitivity(smaller) - whole,
                    }  # fmt: skip


BY_COST, BY_COSINE, MAGNITUDE = "absorbed by cost", "absorbed by cosine", "Torch-Pruning, magnitude"


def smaller_networks(chosen: Any, share: float) -> Iterator[tuple[str, nn.Module]]:
    import torch_pruning as tp

    model, layer, example = chosen.model, chosen.layer, chosen.example_input
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = collect_activations(model, chosen.batches, layer)[layer]
    outgoing, gram = outgoing_weights(model, layer, example), found.gram()
    alive = gram.diagonal() > 0
    going = min(int(found.neurons * share), int(alive.sum()) // 2)
    by_cost = disjoint_pairs(None, going, by="cost", how="absorb", outgoing=outgoing, gram=gram, alive=alive)
    by_cosine = disjoint_pairs(None, going, cosine=found.cosine_matrix(), alive=alive)
    for method, pairs in ((BY_COST, by_cost), (BY_COSINE, by_cosine)):
        yield method, consolidate(model, layer, pairs, how="absorb", gram=gram, example_input=example)[0]
    smaller = copy.deepcopy(model)
    graph = tp.DependencyGraph().build_dependency(smaller, example)
    module = smaller.get_submodule(layer)
    prune = tp.prune_conv_out_channels if isinstance(module, CONVOLUTIONS) else tp.prune_linear_out_channels
    group = graph.get_pruning_group(module, prune, idxs=list(range(found.neurons)))
    importance = tp.importance.GroupMagnitudeImportance(p=2)(group)
    graph.get_pruning_group(module, prune, idxs=importance.argsort()[:going].tolist()).prune()
    yield MAGNITUDE, smaller


# ---- tables ----------------------------------------------------------------------------------------------------------


def verdict(case: dict[str, Any], side: str) -> str:
    if not case[side]["cut"]:
        return "no"
    if case[side]["why"]:
        return case[side]["why"]
    if side == THEIRS and case["same"] is False:
        return "yes, other outputs"
    return "yes"


def cut_table(cases: list[dict[str, Any]]) -> str:
    lines = [f"| model | structure | {OURS} | {THEIRS} |", "|---|---|---|---|"]
    lines += [f"| {c['model']} | {c['structure']} | {verdict(c, OURS)} | {verdict(c, THEIRS)} |" for c in cases]
    totals = [sum(verdict(case, side) == "yes" for case in cases) for side in (OURS, THEIRS)]
    return "\n".join([*lines, f"| | cut, of {len(cases)} | {totals[0]} | {totals[1]} |"])


def quality_table(cases: list[dict[str, Any]]) -> str:
    methods = (BY_COST, BY_COSINE, MAGNITUDE)
    lines = [
        "| network | what is lost | neurons fewer | " + " | ".join(methods) + " |",
        "|---|---|---|" + "---|" * len(methods),
    ]
    for network in dict.fromkeys(case["network"] for case in cases):
        for share in SHARES:
            row = [case for case in cases if case["network"] == network and case["share"] == share]
            cells = [statistics.fmean(case["cost"] for case in row if case["method"] == method) for method in methods]
            texts = [f"{cell:.2g}" for cell in cells]
            texts[cells.index(min(cells))] = f"**{texts[cells.index(min(cells))]}**"
            lines.append(f"| {network} | {row[0]['measure']} | {share:.0%} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def with_tables(page: str, results: dict[str, Any]) -> str:
    """The page with its tables as the results say."""
    for name, table in (("cut", cut_table(results["cut"])), ("quality", quality_table(results["quality"]))):
        begin, end = f"<!-- side by side: {name} -->\n", "<!-- end of side by side -->"
        before, _, rest = page.partition(begin)
        page = f"{before}{begin}{table}\n{end}{rest.partition(end)[2]}"
    return page


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", choices=("cut", "quality", "tables"))
    asked = parser.parse_args().what
    results: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    for name, cases in (("cut", cut_cases), ("quality", quality_cases)):
        if name in asked:
            results[name] = []
            for case in cases():
                print(json.dumps(case), flush=True)
                results[name].append(case)
            packages = ("torch", "torch-pruning", "torchvision", "timm", "transformers")
            results["versions"] = {package: version(package) for package in packages}
            FILE.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if "tables" in asked:
        PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8"), results), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
