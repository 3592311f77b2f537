"""Experts taken out of a mixture, with their rows of the router."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sdsd_kernels import checks

from ...graphs import WRITER, Part, fit_sizes
from ...models import place_of
from .cutting import copied
from .edits import Edit, applied, part_tensor
from .experts import count_of, holder_of
from .proof import prove

TOP = ("top_k", "topk", "num_experts_per_tok", "num_experts_per_token")
CASTS = ("type", "to", "float", "double", "half", "bfloat16")
PRODUCTS = ("linear", "matmul", "mm", "addmm", "__matmul__")
GROUPS = ("n_group", "num_group", "n_groups")


@torch.inference_mode(False)
def remove_experts(
    model: nn.Module,
    experts: str,
    removed: Iterable[int],
    *,
    router: str | None = None,
    inplace: bool = False,
    example_input: Any = None,
    check: bool = True,
) -> nn.Module:
    """Take experts out of a mixture, and their rows out of its router.

    The smaller network computes what the whole one does when the router's logits for these experts are −∞ (and so are
    biases that are added to its scores): every token goes to the experts that come next, and a softmax gives what the
    removed ones had to the others.

    Args:
        model: any module with such a mixture.
        experts: as in `expert_cosine`.
        removed: which, each once; as many have to stay as a token is sent to.
        router: name of the module whose weight has a row for each expert; None: the only such module beside the
            experts.
        inplace: change `model` instead of a copy. An optimizer has to be made anew then.
        example_input: as in `consumers`; the two networks are compared on it. None: on inputs of likely shapes, if the
            model runs on any.
        check: False: do not compare.

    Returns:
        The smaller model. Whole numbers that say how many experts there are follow: those of the experts, the router
        and the module around them, and of modules further out once none of their mixtures has as many as before.
        Where all layers have lost equally many, `fit_config` sets the configuration.

    Raises:
        TypeError: as `expert_cosine`; indices that are no whole numbers.
        ValueError: indices out of range, listed twice, or too many; a router that is not found; experts that are chosen
            in groups by their places; a smaller network that computes something else, or cannot be compared.
    """
    holder = holder_of(model, experts)
    count = count_of(holder)
    gone = _checked(removed, count)
    name = router_of(model, experts, count) if router is None else router
    modules = dict(model.named_modules(remove_duplicate=False))
    if name not in modules or not _rows_of(modules[name], count):
        raise ValueError(f"router: expected a module with a weight of {count} rows, one an expert, got {name!r}.")
    _refuse_choice(modules, experts, name, count, gone)
    parts = list(_parts(modules[experts], experts, count)) + list(_parts(modules[name], name, count))
    smaller = copied(model, [], inplace)
    _cut(smaller, experts, name, count, gone)
    if check:
        logits = _Without(part_tensor(model, next(p for p in parts if p.name == f"{name}.weight")), gone)
        compared = prove(model, smaller, parts, _as_without(model, modules[name], count, gone, logits), example_input)
        if example_input is not None and not (compared and logits.seen):
            raise ValueError(
                f"consolidation: the networks could not be compared, for {name!r} does not multiply its input by its "
                "weight, or the model is random. Pass check=False to go without."
            )
    if not inplace:
        return smaller
    _cut(model, experts, name, count, gone)
    return model


def _checked(removed: Iterable[int], count: int) -> list[int]:
    why = f"for {count} experts"
    gone = [checks.check_integer(each, "removed", least=0, most=count - 1, why=why) for each in removed]
    if len(set(gone)) < len(gone) or not gone or len(gone) >= count:
        raise ValueError(f"removed: expected different experts, at least one and not all {count}, got {gone!r}.")
    return gone


def router_of(model: nn.Module, experts: str, count: int) -> str:
    """The module beside the experts whose weight has a row for each; ValueError unless there is one."""
    around, _, own = experts.rpartition(".")
    beside = model.get_submodule(around)
    inside = f"{around}." if around else ""
    able = [
        inside + name
        for name, module in beside.named_modules()
        if name and name.partition(".")[0] != own and _rows_of(module, count)
    ]
    if len(able) != 1:
        raise ValueError(
            f"router: expected one module beside {experts!r} with a weight of {count} rows, one an expert, found "
            f"{able or 'none'}. Pass router=."
        )
    return able[0]


def _rows_of(module: nn.Module, count: int) -> bool:
    weight = module._parameters.get("weight")  # of a parametrised one, getattr would compute it, which may change it
    return isinstance(weight, Tensor) and weight.ndim == 2 and len(weight) == count


def _refuse_choice(modules: dict[str, nn.Module], experts: str, router: str, count: int, gone: list[int]) -> None:
    left, chosen = count - len(gone), chosen_of(modules, experts, router)
    if chosen > left:
        raise ValueError(f"removed: {router!r} sends every token to {chosen} experts, and {left} would be left.")
    for name in _around(experts, router):
        held = vars(modules[name])
        groups = max((held[each] for each in GROUPS if type(held.get(each)) is int), default=1)
        if groups > 1:
            raise ValueError(
                f"experts: {name!r} chooses among {groups} groups of experts by their places, which removal would move."
            )


def chosen_of(modules: dict[str, nn.Module], experts: str, router: str) -> int:
    """To how many experts a token is sent; 0 where no module says it."""
    held = [vars(modules[name]) for name in _around(experts, router)]
    return max((each[name] for each in held for name in TOP if type(each.get(name)) is int), default=0)


def _around(experts: str, router: str) -> dict[str, None]:
    return dict.fromkeys((router, experts, experts.rpartition(".")[0]))


def _own(module: nn.Module, count: int) -> dict[str, Tensor]:
    """Parameters and buffers with a first entry for each expert."""
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    return {name: each for name, each in own if each.ndim and len(each) == count}


def _parts(module: nn.Module, path: str, count: int) -> Iterator[Part]:
    if isinstance(module, nn.ModuleList):
        for name, each in module.named_parameters():
            yield Part(f"{path}.{name}", 0, torch.arange(len(each)), WRITER)
    for name in _own(module, count):
        yield Part(f"{path}.{name}", 0, torch.arange(count), WRITER)


def _cut(model: nn.Module, experts: str, router: str, count: int, gone: list[int]) -> None:
    modules = dict(model.named_modules(remove_duplicate=False))
    stays = torch.tensor([k for k in range(count) if k not in gone])
    for name in (experts, router):
        module = modules[name]
        shapes = {key: tuple(each.shape) for key, each in module.named_parameters(recurse=False)}
        for key, tensor in _own(module, count).items():
            fewer = tensor.detach().index_select(0, stays.to(tensor.device))
            is_parameter = isinstance(tensor, nn.Parameter)
            setattr(module, key, nn.Parameter(fewer, requires_grad=tensor.requires_grad) if is_parameter else fewer)
        fit_sizes(module, shapes)
    holder = modules[experts]
    if isinstance(holder, nn.ModuleList):
        for k in sorted(gone, reverse=True):
            del holder[k]
    around = experts.rpartition(".")[0]
    for name in dict.fromkeys((experts, router, around)):
        _fit_numbers(modules[name], count, len(stays))
    while around:
        around = around.rpartition(".")[0]
        if not any(_is_like(module, holder, count) for module in modules[around].modules()):
            _fit_numbers(modules[around], count, len(stays))


def _is_like(module: nn.Module, holder: nn.Module, count: int) -> bool:
    """Whether it holds as many experts as this one did."""
    if isinstance(holder, nn.ModuleList):
        kinds = [type(each) for each in holder]
        return isinstance(module, nn.ModuleList) and len(module) == count and type(module[0]) in kinds
    return type(module) is type(holder) and count_of(module) == count


def _fit_numbers(module: nn.Module, before: int, after: int) -> None:
    for name, value in list(vars(module).items()):
        if type(value) is int and value == before and "expert" in name and name not in TOP:
            setattr(module, name, after)


class _Without(TorchFunctionMode):
    """Logits of some experts are −∞: in whatever a router's weight is multiplied to."""

    def __init__(self, weight: Tensor, gone: list[int]) -> None:
        super().__init__()
        self.weights, self.count, self.gone, self.seen = [weight], len(weight), gone, False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name in CASTS and self._has_weight(args[:1]):
            self.weights.append(out)
        elif name in PRODUCTS and out.shape[-1] == self.count and self._has_weight(args):
            self.seen = True
            out = out.clone()
            out[..., self.gone] = -torch.inf
        return out

    def _has_weight(self, given: Any) -> bool:
        known = {place_of(each) for each in self.weights}
        return any(isinstance(each, Tensor) and place_of(each) in known for each in given)


@contextmanager
def _as_without(model: nn.Module, router: nn.Module, count: int, gone: list[int], logits: _Without) -> Iterator[None]:
    """The whole network, as if it did not have some experts."""
    edits = []
    for name, tensor in _own(router, count).items():
        if tensor.ndim == 1 and name != "bias":
            entries = torch.tensor(gone, device=tensor.device)
            edits.append(Edit(tensor, 0, entries, torch.full_like(tensor.detach()[entries], -torch.inf)))
    with ExitStack() as stack:
        stack.enter_context(applied(edits))
        stack.enter_context(logits)
        yield
