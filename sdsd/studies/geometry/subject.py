"""A network whose neurons are examined: what `sdsd geometry` needs to know of it, and the built-in ones."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ...geometry.collect import Forward
from ...geometry.merging import Sensitivity, Training, mean_loss, sgd_training, shuffled_pixels, trained, untrained
from ..digits import load_digits

Batches = list[Any]
Control = Callable[[], tuple[nn.Module, Batches]]
"""A network and the data its layer is mapped on; made when it is asked for."""

UNTRAINED, SHUFFLED, TRAINED_SHUFFLED = "untrained", "shuffled inputs", "trained on shuffled inputs"


@dataclass(frozen=True)
class Subject:
    """A network, one of its layers, and how to see what a change does to it.

    Attributes:
        name: for titles.
        model: not changed by an examination.
        layer: name of an nn.Linear or convolution.
        batches: the data activations are collected on, as `collect_activations` takes it.
        sensitivity: a function of the model; a merge costs what it adds to it.
        measure: what `sensitivity` gives, in a word or two: "loss", "KL divergence".
        example_input: what the model is called with; for readers, parameters and FLOPs.
        controls: networks and data in which the geometry should not show, by name.
        accuracy: a function of the model; None where there is none.
        train: what trains it on, for plasticity; None where nothing can.
        forward: as in `collect_activations`.
    """

    name: str
    model: nn.Module
    layer: str
    batches: Batches
    sensitivity: Sensitivity
    measure: str = "loss"
    example_input: Any = None
    controls: Mapping[str, Control] = field(default_factory=dict)
    accuracy: Callable[[nn.Module], Any] | None = None
    train: Training | None = None
    forward: Forward | None = None


def standard_controls(
    model: nn.Module, batches: Batches, seed: int, train_on: Callable[[Batches], nn.Module] | None = None
) -> dict[str, Control]:
    """An untrained copy; shuffled inputs where they are images or feature vectors; a copy trained on those.

    Args:
        model: not changed.
        batches: of the trained map.
        seed: of fresh parameters and of the permutations.
        train_on: trains a fresh network on batches of shuffled inputs, and gives it.
    """
    controls: dict[str, Control] = {UNTRAINED: lambda: (untrained(model, seed), batches)}
    if all(_can_be_shuffled(_inputs(batch)) for batch in batches):
        shuffled = [
            _with_inputs(batch, shuffled_pixels(_inputs(batch), seed + index)) for index, batch in enumerate(batches)
        ]
        controls[SHUFFLED] = lambda: (model, shuffled)
        if train_on is not None:
            controls[TRAINED_SHUFFLED] = lambda: (train_on(shuffled), shuffled)
    return controls


def _inputs(batch: Any) -> Any:
    return batch[0] if isinstance(batch, (tuple, list)) and batch else batch


def _with_inputs(batch: Any, inputs: Tensor) -> Any:
    return (inputs, *batch[1:]) if isinstance(batch, (tuple, list)) else inputs


def _can_be_shuffled(inputs: Any) -> bool:
    return isinstance(inputs, Tensor) and inputs.is_floating_point() and (inputs.ndim == 2 or inputs.ndim >= 4)


def example_of(model: nn.Module, batch: Any) -> Any:
    """One sample of a batch, in the form the model is called with."""
    if isinstance(batch, Mapping):
        parameters = inspect.signature(model.forward).parameters.values()
        takes_any = any(parameter.kind == inspect.Parameter.VAR_KEYWORD for parameter in parameters)
        names = {parameter.name for parameter in parameters}
        return {
            name: value[:1] if isinstance(value, Tensor) else value
            for name, value in batch.items()
            if takes_any or name in names
        }
    return _inputs(batch)[:1]


def classification_loss(model: nn.Module, batch: Any) -> Tensor:
    """Cross-entropy of a batch (inputs, classes)."""
    return cross_entropy(model(batch[0]), batch[1])


def accuracy_on(batches: Iterable[Any]) -> Callable[[nn.Module], float]:
    """The share of samples whose largest output is at their class; for batches (inputs, classes)."""
    listed = list(batches)

    def accuracy(model: nn.Module) -> float:
        right = sum(int((model(batch[0]).argmax(1) == batch[1]).sum()) for batch in listed)
        return right / sum(len(batch[1]) for batch in listed)

    return accuracy


# Networks that learn scikit-learn's digits

TRAINING_IMAGES = 1347
MLP_EPOCHS, CNN_EPOCHS = 30, 15


def digits_mlp(seed: int = 0, epochs: int = MLP_EPOCHS) -> Subject:
    """Two hidden layers of 128; the second is examined."""
    network = nn.Sequential(
        OrderedDict(
            hidden1=nn.Linear(64, 128),
            relu1=nn.ReLU(),
            hidden2=nn.Linear(128, 128),
            relu2=nn.ReLU(),
            head=nn.Linear(128, 10),
        )
    )
    return _digits_subject("digits MLP", network, "hidden2", (64,), seed=seed, epochs=epochs, rate=0.1)


def digits_cnn(seed: int = 0, epochs: int = CNN_EPOCHS) -> Subject:
    """Three convolutions with BatchNorm; the last, of 128 channels, is examined."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number, (inputs, outputs) in enumerate(((1, 32), (32, 64), (64, 128)), start=1):
        layers[f"conv{number}"] = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        layers[f"norm{number}"], layers[f"relu{number}"] = nn.BatchNorm2d(outputs), nn.ReLU()
        if number != 2:
            layers[f"pool{number}"] = nn.MaxPool2d(2)
    layers["flatten"], layers["head"] = nn.Flatten(), nn.Linear(128 * 4, 10)
    return _digits_subject("digits CNN", nn.Sequential(layers), "conv3", (1, 8, 8), seed=seed, epochs=epochs, rate=0.05)


BUILT_IN_SUBJECTS: dict[str, Callable[..., Subject]] = {"mlp": digits_mlp, "cnn": digits_cnn}


def _digits_subject(
    name: str, network: nn.Module, layer: str, shape: tuple[int, ...], *, seed: int, epochs: int, rate: float
) -> Subject:
    """Trained on 1,347 digits; a merge costs what it adds to the loss over all 1,797."""
    images, classes = load_digits(seed)
    images = images.reshape(-1, *shape)
    whole = [(images, classes)]
    held_out = [(images[TRAINING_IMAGES:], classes[TRAINING_IMAGES:])]

    def training(inputs: Tensor, lr: float = rate) -> Training:
        parts = (inputs[:TRAINING_IMAGES].split(64), classes[:TRAINING_IMAGES].split(64))
        return sgd_training(list(zip(*parts, strict=True)), classification_loss, lr=lr)

    fresh = untrained(network, seed)
    model = trained(fresh, training(images), epochs, seed).eval()
    return Subject(
        name,
        model,
        layer,
        whole,
        sensitivity=mean_loss(whole, classification_loss),
        measure="loss",
        example_input=images[:1],
        controls=standard_controls(
            model, whole, seed, lambda shuffled: trained(fresh, training(shuffled[0][0]), epochs, seed).eval()
        ),
        accuracy=accuracy_on(held_out),
        train=training(images, rate / 5),
    )
