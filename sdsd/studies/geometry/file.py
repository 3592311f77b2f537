"""`sdsd geometry --model FILE.py`: a network of the user's, and the data it is examined on.

The file defines `model` (or a function, named behind a colon, that makes it) and, unless data come from elsewhere,
`loader`. It may define `loss(model, batch)`; `accuracy(model)`; and `train(model)`, a generator that trains and yields
after each epoch. Without a loss, batches (inputs, classes) are judged by cross-entropy, others by the Kullback–Leibler
divergence from what the untouched network says.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..._tensor_files import load_tensors
from ...geometry.merging import dense_layer, kl_to_untouched, mean_loss, sgd_training
from ..user_file import RUN_AS, UserCodeError, run_file, users_code
from .subject import Subject, accuracy_on, classification_loss, example_of, standard_controls

SAMPLES = 2048
BATCH = 256
CLASS_NAMES = ("y", "labels", "label", "targets", "target", "classes")
IGNORED = -100
"""The class that torch's cross-entropy leaves out."""
TRAINING_RATE = 0.01


def subject_from_file(
    model: str | Path, layer: str | None, data: str | Path | None = None, *, samples: int = SAMPLES, seed: int = 0
) -> Subject:
    """What FILE.py defines, ready to be examined.

    Args:
        model: path of a Python file, or PATH:FUNCTION, a function of the file that takes nothing and gives the model.
        layer: name of one of its Linear layers or convolutions.
        data: a .npz, .pt or .safetensors file of inputs, and classes under one of the names y, labels, targets or
            classes, or a .npy file of inputs; None: the file's `loader`.
        samples: batches are taken from a loader until there are so many.
        seed: of controls.

    Raises:
        ValueError: a file, a name or a layer that is missing (the nearest layer is suggested); data that fit nothing.
        UserCodeError: the user's code raised.
    """
    text, _, function = str(model).partition(".py:")
    path = Path(f"{text}.py" if function else text)
    names = run_file(path)
    network = _model(path, names, function)
    if layer is None:
        raise ValueError(f"--layer: name the layer to examine. {_layers(network)}")
    dense_layer(network, layer)
    batches = _data_batches(Path(data)) if data is not None else _loader_batches(path, names, samples)
    network.eval()
    if names.get("loss") is None:
        for number, batch in enumerate(batches):
            check_runs(network, batch, f"batch {number}")
    loss, classified = names.get("loss"), _classified(batches)
    if loss is not None:
        sensitivity, measure = mean_loss(batches, _guarded(path, loss)), "loss"
    elif classified and _gives_classes(network, batches[0]):
        _check_classes(network, batches)
        loss = classification_loss
        sensitivity, measure = mean_loss(batches, loss), "loss"
    else:
        sensitivity, measure = kl_to_untouched(network, batches), "KL divergence"
    accuracy = names.get("accuracy")
    if accuracy is None and classified and _gives_classes(network, batches[0]):
        accuracy = accuracy_on(batches)
    train = names.get("train") or (None if loss is None else sgd_training(batches, loss, lr=TRAINING_RATE))
    return Subject(
        path.stem,
        network,
        layer,
        batches,
        sensitivity=sensitivity,
        measure=measure,
        example_input=example_of(network, batches[0]),
        controls=standard_controls(network, batches, seed),
        accuracy=accuracy,
        train=train,
    )


def _model(path: Path, names: Mapping[str, Any], function: str) -> nn.Module:
    wanted = function or "model"
    if wanted not in names:
        functions = [name for name, value in names.items() if getattr(value, "__module__", "") == RUN_AS]
        hint = f" It defines: {', '.join(functions[:12])}." if functions else ""
        raise ValueError(f"{path}: expected it to define {wanted}, which is missing.{hint}")
    model = names[wanted]
    if function:
        _check_takes_nothing(path, function, model)
        with users_code(path):
            model = model()
    if not isinstance(model, nn.Module):
        what = f"{wanted}()" if function else wanted
        raise ValueError(f"{path}: {what}: expected an nn.Module, got {type(model).__name__}.")
    return model


def _check_takes_nothing(path: Path, name: str, function: Any) -> None:
    if not callable(function):
        raise ValueError(f"{path}: {name}: expected a function that gives the model, got {type(function).__name__}.")
    try:
        signature = inspect.signature(function)
    except ValueError:  # builtins may not say
        return
    try:
        signature.bind()
    except TypeError as error:
        raise ValueError(
            f"{path}: {name}{signature} cannot be called without arguments: {error}. Give them defaults, or write "
            "a function that makes the model and takes nothing."
        ) from error


def _layers(model: nn.Module) -> str:
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    names = [name for name, module in model.named_modules() if name and isinstance(module, kinds)]
    return f"Its Linear layers and convolutions: {', '.join(names[:12]) or 'none'}{', …' if len(names) > 12 else ''}."


def _loader_batches(path: Path, names: Mapping[str, Any], samples: int) -> list[Any]:
    """The first batches of the file's loader, kept: measurements need the same data each time."""
    loader = names.get("loader")
    if not isinstance(loader, Iterable):
        raise ValueError(f"{path}: expected it to define loader, batches to iterate over; or pass --data FILE.")
    batches: list[Any] = []
    with users_code(path):
        iterator = iter(loader)
    count = 0
    while count < samples:
        with users_code(path):
            batch = next(iterator, None)
        if batch is None:
            break
        batches.append(batch)
        count += _size(batch)
    if not batches:
        raise ValueError(f"{path}: loader gave no batch. A generator is empty after its first reading; use a list.")
    return batches


def _size(batch: Any) -> int:
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, (tuple, list)) else (batch,)
    return next((len(part) for part in parts if isinstance(part, Tensor) and part.ndim), 1)


def _data_batches(path: Path) -> list[Any]:
    """Batches (inputs, classes) or (inputs,) of a file of tensors."""
    loaded = load_tensors(path)
    tensors = loaded if isinstance(loaded, dict) else {"inputs": loaded}
    classes = next((name for name in CLASS_NAMES if name in tensors), None)
    rest = [name for name in tensors if name != classes]
    if len(rest) != 1:
        raise ValueError(
            f"{path}: expected one tensor of inputs, and classes under one of the names {', '.join(CLASS_NAMES)}, got "
            f"{', '.join(tensors)}."
        )
    inputs = tensors[rest[0]]
    if classes is None:
        return [(part,) for part in inputs.split(BATCH)]
    if len(tensors[classes]) != len(inputs):
        raise ValueError(f"{path}: expected as many classes as inputs, got {len(tensors[classes])} and {len(inputs)}.")
    return list(zip(inputs.split(BATCH), tensors[classes].long().split(BATCH), strict=True))


def _classified(batches: list[Any]) -> bool:
    """Whether batches are (inputs, classes)."""
    return all(
        isinstance(batch, (tuple, list))
        and len(batch) == 2
        and isinstance(batch[1], Tensor)
        and batch[1].ndim == 1
        and not batch[1].is_floating_point()
        for batch in batches
    )


@torch.no_grad()
def check_runs(model: nn.Module, batch: Any, where: str) -> None:
    """ValueError where a model does not run on the inputs of a batch."""
    inputs = example_of(model, batch)
    try:
        model(**inputs) if isinstance(inputs, dict) else model(inputs)
    except Exception as error:
        got = (
            ", ".join(f"{name} {_shape(value)}" for name, value in inputs.items())
            if isinstance(inputs, dict)
            else (_shape(inputs))
        ) or "a dict with no entry that its forward names"
        raise ValueError(
            f"{where}: expected inputs that the model runs on, got one sample of {got}, and the model raised "
            f"{type(error).__name__}: {error}"
        ) from error


def _shape(value: Any) -> str:
    return f"shape {tuple(value.shape)}, {value.dtype}" if isinstance(value, Tensor) else type(value).__name__


@torch.no_grad()
def _gives_classes(model: nn.Module, batch: Any) -> bool:
    check_runs(model, batch, "batch 0")
    output = model(batch[0][:1])
    return isinstance(output, Tensor) and output.ndim == 2


@torch.no_grad()
def _check_classes(model: nn.Module, batches: list[Any]) -> None:
    """ValueError for classes that the model has no output for."""
    outputs = model(batches[0][0][:1]).shape[1]
    for number, (_, classes) in enumerate(batches):
        wrong = classes[((classes < 0) | (classes >= outputs)) & (classes != IGNORED)]
        if len(wrong):
            raise ValueError(
                f"batch {number}: expected classes from 0 to {outputs - 1}, for the model has {outputs} outputs, got "
                f"{int(wrong[0])}. Define a loss in the model's file if the second part of a batch is something else."
            )


def _guarded(path: Path, loss: Callable[[nn.Module, Any], Tensor]) -> Callable[[nn.Module, Any], Tensor]:
    def guarded(model: nn.Module, batch: Any) -> Tensor:
        try:
            with users_code(path):
                return loss(model, batch)
        except UserCodeError:
            check_runs(model, batch, f"{path}: loss")  # where the model itself is what raised, one line says so
            raise

    return guarded
