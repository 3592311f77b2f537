"""What is known of layers by name: which attribute of a layer holds which size, a row a class."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)
DENSE = (nn.Linear, *CONVOLUTIONS)
CHANNEL_NORMS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
)
NORM_TENSORS = ("weight", "bias", "running_mean", "running_var")
MAKE_PERMANENT = (
    "Make it permanent first, by what undoes what made it (of torch.nn.utils: parametrize.remove_parametrizations, "
    "prune.remove, remove_weight_norm, remove_spectral_norm)."
)

Size = tuple[str, int]
"""A tensor of the layer and an axis of it; its length is the size."""

SIZES: dict[type[nn.Module] | str, dict[str, Size]] = {
    nn.Linear: {"out_features": ("weight", 0), "in_features": ("weight", 1)},
    nn.Bilinear: {"out_features": ("weight", 0), "in1_features": ("weight", 1), "in2_features": ("weight", 2)},
    nn.Embedding: {"num_embeddings": ("weight", 0), "embedding_dim": ("weight", 1)},
    nn.EmbeddingBag: {"num_embeddings": ("weight", 0), "embedding_dim": ("weight", 1)},
    nn.GroupNorm: {"num_channels": ("weight", 0)},
    nn.RNNBase: {"input_size": ("weight_ih_l0", 1)},
    nn.RNNCellBase: {"input_size": ("weight_ih", 1)},
    nn.PReLU: {"num_parameters": ("weight", 0)},
    **{kind: {"num_features": ("weight", 0)} for kind in CHANNEL_NORMS},
    "transformers.pytorch_utils.Conv1D": {"nx": ("weight", 0), "nf": ("weight", 1)},
}
"""Attributes that follow the shapes of a layer's tensors, by class or by the class's full name. Convolutions and norms
over the last axes have rules of their own in `fit_sizes`."""


def register_layer(kind: type[nn.Module], **sizes: Size) -> None:
    """Say which attributes of a layer class of your own hold the lengths of which axes of its tensors.

    A layer of any class can be merged and cut, for neurons are followed through the operations that torch carries out;
    this keeps its attributes true to its tensors.

    Args:
        kind: the class; classes derived from it are meant, too.
        sizes: attribute → (name of a parameter or buffer of the layer, axis).

    Raises:
        TypeError: `kind` is no module class, or a size is no pair of a name and an axis.

    Example:
        >>> class Dense(nn.Module):
        ...     def __init__(self, inputs, outputs):
        ...         super().__init__()
        ...         self.inputs, self.outputs = inputs, outputs
        ...         self.kernel = nn.Parameter(torch.rand(inputs, outputs))
        >>> register_layer(Dense, inputs=("kernel", 0), outputs=("kernel", 1))
    """
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise TypeError(f"kind: expected a class of modules, got {kind!r}.")
    for attribute, size in sizes.items():
        if not (isinstance(size, tuple) and len(size) == 2 and isinstance(size[0], str) and type(size[1]) is int):
            raise TypeError(f"{attribute}: expected (name of a tensor, axis), such as ('weight', 0), got {size!r}.")
    SIZES[kind] = dict(sizes)


def sizes_of(module: nn.Module) -> dict[str, Size]:
    """The row of the module's class, or of the nearest class it derives from."""
    for kind in type(module).__mro__:
        sizes = SIZES.get(kind) or SIZES.get(f"{kind.__module__}.{kind.__qualname__}")
        if sizes:
            return sizes
    return {}


def fit_sizes(module: nn.Module, before: dict[str, tuple[int, ...]]) -> None:
    """Make attributes say how large the module's tensors are now.

    Args:
        before: the shapes of its parameters and buffers when the attributes were true.
    """
    weight = getattr(module, "weight", None)
    if isinstance(module, CONVOLUTIONS) and isinstance(weight, Tensor):
        _fit_convolution(module, weight, before["weight"])
    if isinstance(module, nn.MultiheadAttention):
        _fit_attention(module)
    shape: Any = getattr(module, "normalized_shape", None)
    if shape is not None and isinstance(weight, Tensor):
        setattr(module, "normalized_shape", tuple(weight.shape))  # noqa: B010
    for attribute, (name, dim) in sizes_of(module).items():
        tensor = getattr(module, name, None)
        if tensor is None and isinstance(getattr(module, "running_mean", None), Tensor):
            tensor = module.running_mean
        if isinstance(tensor, Tensor) and hasattr(module, attribute):
            setattr(module, attribute, tensor.shape[dim])


def is_fitted(module: nn.Module, attribute: str) -> bool:
    """Whether `fit_sizes` sets it."""
    return attribute in sizes_of(module) or (isinstance(module, CONVOLUTIONS) and attribute == "groups")


def _fit_convolution(module: nn.Module, weight: Tensor, before: tuple[int, ...]) -> None:
    inner: Any = module
    if isinstance(module, TRANSPOSED):
        if inner.groups == before[0] > 1:  # depthwise
            inner.groups = weight.shape[0]
        inner.in_channels, inner.out_channels = weight.shape[0], weight.shape[1] * inner.groups
        return
    if inner.groups > 1 and before[1] == 1:  # depthwise
        inner.groups = weight.shape[0] * inner.groups // before[0]
    inner.in_channels, inner.out_channels = weight.shape[1] * inner.groups, weight.shape[0]


def _fit_attention(module: nn.MultiheadAttention) -> None:
    packed = module.in_proj_weight
    widths = [
        (weight if packed is None else packed).shape[1]
        for weight in (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
    ]
    module.embed_dim, module.kdim, module.vdim = widths


def row_dim(layer: nn.Module) -> int:
    """The axis of the layer's weight that runs over its neurons."""
    return 1 if isinstance(layer, (*TRANSPOSED, nn.Embedding)) else 0


def spatial_dims(layer: nn.Module) -> int:
    """Dimensions of a convolution; 0 for Linear."""
    return len(layer.kernel_size) if isinstance(layer, CONVOLUTIONS) else 0  # type: ignore[arg-type]


def computed_tensors(module: nn.Module) -> list[str]:
    """Which of a module's tensors are no parameters or buffers: pruned, or parametrised."""
    held = {id(each) for each in (*module.parameters(), *module.buffers())}
    made = {name for name in NORM_TENSORS if parametrize.is_parametrized(module, name)}  # asked for, it may change
    named = {name: getattr(module, name, None) for name in NORM_TENSORS if name not in made}
    other = {name for name, each in named.items() if isinstance(each, Tensor) and id(each) not in held}
    return [name for name in NORM_TENSORS if name in made | other]
