"""Side by side with Torch-Pruning: which structures of which models each can cut, and what is left at equal size.

    python -m benchmarks.torch_pruning                 # measures, and when all is measured writes file and page
    python -m benchmarks.torch_pruning --tables        # only the tables of docs/functional-geometry.md, from the file

It needs torch-pruning, torchvision, timm and transformers, scikit-learn and the packages of networks.txt:
`make side-by-side` installs and runs all of it. What is measured is kept in out/side-by-side.json, so that a run that
was stopped goes on where it was; it starts anew when the code or a package is another. benchmarks/torch_pruning.json
has whole runs only.

Both are asked for the same: take these units (neurons, channels, whole heads) of this layer out of a tiny random
network with everything that is coupled to them, and run it. Torch-Pruning gets the rows of the weight that belong to
the units, which `consumers` knows. Where both cut, their networks are compared. Quality is measured without training
afterwards: Torch-Pruning's magnitude importance of the group (its default, p=2) chooses the channels that go.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import hashlib
import json
import signal
import statistics
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sdsd import collect_activations
from sdsd.geometry import consolidate, consumers, disjoint_pairs, outgoing_weights, remove_neurons
from sdsd.geometry.merging import mean_loss
from sdsd.graphs import outputs

from .harness import ROOT
from .torch_pruning_models import models

FILE = ROOT / "benchmarks" / "torch_pruning.json"
KEPT = ROOT / "out" / "side-by-side.json"
PAGE = ROOT / "docs" / "functional-geometry.md"
OURS, THEIRS = "sdsd", "Torch-Pruning"
CPU_SECONDS = 20
"""Processor time for one cut, which takes a fraction of a second where it works."""
SHARES = (1 / 8, 1 / 4, 1 / 2)
SEEDS = 3
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


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


def cut_cases(name: str) -> list[dict[str, Any]]:
    make, example_of, structures = models()[name]
    torch.manual_seed(0)
    model, example = make().eval(), example_of()
    return [cut_case(name, structure, layer, model, example) for structure, layer in structures.items()]


def cut_case(name: str, structure: str, layer: str, model: nn.Module, example: Any) -> dict[str, Any]:
    found = consumers(model, layer, example)
    # Grouped products of experts take widths that are multiples of 16 bytes.
    units = [1] if "heads" in structure or found.neurons < 8 else [1, 3, 5, 7]
    rows = torch.isin(found.rows, torch.tensor(units)).nonzero().flatten().tolist()
    mine, other = ours(model, layer, units, example), theirs(model, layer, rows, example)
    same = None
    if mine.model is not None and other.model is not None:
        pairs = list(zip(answers(mine.model, example), answers(other.model, example), strict=True))
        same = all(a.shape == b.shape and torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in pairs)
    return {
        "model": name,
        "structure": structure,
        "layer": layer,
        "units": units,
        "parameters": count(model),
        OURS: {"cut": mine.model is not None, "parameters": mine.parameters, "why": mine.why},
        THEIRS: {"cut": other.model is not None, "parameters": other.parameters, "why": other.why},
        "same": same,
    }


# ---- quality ---------------------------------------------------------------------------------------------------------


def held_out(seed: int) -> Any:
    """The digits CNN mapped on the digits that it learned, measured on the others."""
    from sdsd.studies.digits import load_digits
    from sdsd.studies.geometry import subject

    images, classes = load_digits(seed)
    images, learned = images.reshape(-1, 1, 8, 8), subject.TRAINING_IMAGES
    others = [(images[learned:], classes[learned:])]
    return dataclasses.replace(
        subject.digits_cnn(seed), batches=[images[:learned]], sensitivity=mean_loss(others, subject.classification_loss)
    )


def efficientnet(seed: int) -> Any:
    from sdsd.studies.geometry import networks

    return networks.efficientnet_subject(seed, mapped=64, measured=64)


def minilm(seed: int) -> Any:
    from sdsd.studies.geometry import networks

    return networks.minilm_subject(seed, layer=3, tokens=16, count=512, mapped=128, measured=128)


NETWORKS: dict[str, Callable[[int], Any]] = {
    "digits CNN": held_out,
    "EfficientNet-Lite0": efficientnet,
    "MiniLM, layer 4 of 6": minilm,
}


def quality_cases(name: str, seed: int) -> list[dict[str, Any]]:
    chosen = NETWORKS[name](seed)
    whole = chosen.sensitivity(chosen.model)
    return [
        {
            "network": name,
            "seed": seed,
            "measure": chosen.measure,
            "share": share,
            "method": method,
            "parameters": count(smaller),
            "cost": chosen.sensitivity(smaller) - whole,
        }
        for share in SHARES
        for method, smaller in smaller_networks(chosen, share)
    ]


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
    """Means over draws and their range; in bold what loses least in every draw."""
    methods = (BY_COST, BY_COSINE, MAGNITUDE)
    lines = [
        "| network | what is lost | neurons fewer | " + " | ".join(methods) + " |",
        "|---|---|---|" + "---|" * len(methods),
    ]
    for network in dict.fromkeys(case["network"] for case in cases):
        for share in SHARES:
            row = [case for case in cases if case["network"] == network and case["share"] == share]
            draws = {method: [case["cost"] for case in row if case["method"] == method] for method in methods}
            least = [min(each) for each in zip(*draws.values(), strict=True)]
            cells = [_cell(costs, bold=costs == least) for costs in draws.values()]
            lines.append(f"| {network} | {row[0]['measure']} | {share:.0%} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(costs: list[float], bold: bool) -> str:
    mean = f"{statistics.fmean(costs):.2g}"
    return f"{f'**{mean}**' if bold else mean} ({min(costs):.2g} to {max(costs):.2g})"


def with_tables(page: str, results: dict[str, Any]) -> str:
    """The page with its tables as the results say."""
    for name, table in (("cut", cut_table(results["cut"])), ("quality", quality_table(results["quality"]))):
        begin, end = f"<!-- side by side: {name} -->\n", "<!-- end of side by side -->"
        before, _, rest = page.partition(begin)
        page = f"{before}{begin}{table}\n{end}{rest.partition(end)[2]}"
    return page


# ---- running ---------------------------------------------------------------------------------------------------------

PACKAGES = ("torch", "torch-pruning", "torchvision", "timm", "transformers")


def made_with() -> dict[str, str]:
    """Versions, and a digest of the code that is measured."""
    files = [
        *sorted(Path(__file__).parent.glob("torch_pruning*.py")),
        *sorted((ROOT / "sdsd").rglob("*.py")),
        *sorted((ROOT / "sdsd_kernels").rglob("*.py")),
    ]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    return {**{package: version(package) for package in PACKAGES}, "code": digest}


Cases = list[dict[str, Any]]


def measured(tasks: Mapping[str, Callable[[], Cases]], kept: Path, made: dict[str, str]) -> dict[str, Cases]:
    """The cases of every task, in their order; what `kept` has of the same code and packages is not run again."""
    state: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    if state.get("made with") != made:
        state = {"made with": made, "tasks": {}}
    for done, (name, task) in enumerate(tasks.items(), 1):
        if name not in state["tasks"]:
            state["tasks"][name] = task()
            kept.parent.mkdir(parents=True, exist_ok=True)
            written = kept.with_suffix(".part")
            written.write_text(json.dumps(state), encoding="utf-8")
            written.replace(kept)
        print(f"{done}/{len(tasks)} {name}", file=sys.stderr, flush=True)
    return {name: state["tasks"][name] for name in tasks}


def results_of(cases: dict[str, Cases], made: dict[str, str]) -> dict[str, Any]:
    """What the file has: all cases of a kind one behind the other, and the versions."""
    kinds = {kind: [case for name in cases if name.startswith(f"{kind}: ") for case in cases[name]] for kind in KINDS}
    return {**kinds, "versions": {package: made[package] for package in PACKAGES}}


CUT, QUALITY = "cut", "quality"
KINDS = (CUT, QUALITY)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", action="store_true", help="measure nothing")
    if not parser.parse_args().tables:
        tasks: dict[str, Callable[[], Cases]] = {f"{CUT}: {name}": partial(cut_cases, name) for name in models()}
        tasks |= {
            f"{QUALITY}: {name}, draw {seed + 1} of {SEEDS}": partial(quality_cases, name, seed)
            for name in NETWORKS
            for seed in range(SEEDS)
        }
        made = made_with()
        results = results_of(measured(tasks, KEPT, made), made)
        FILE.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    results = json.loads(FILE.read_text(encoding="utf-8"))
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8"), results), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
