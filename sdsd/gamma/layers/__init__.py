"""One file a kind of layer; `rule_for` finds the one for a module.

==================  =================================================================
`linear.py`         nn.Linear, Hugging Face's Conv1D
`convolution.py`    convolutions of one to three dimensions, transposed ones too
`embedding.py`      nn.Embedding
`scale.py`          norms and other layers with a weight a channel
`attention.py`      nn.MultiheadAttention
`tied.py`           an embedding and a head with one weight
`generic.py`        any other module: measured in eager code at its operations
`base.py`           what rules share: the watcher of a module, the tap on its output
`traced.py`         where samples lie in code that torch.compile is tracing
`tracing.py`        what the model's own watcher asks of it
`advice.py`         what refusals in compiled code say
==================  =================================================================
"""

from __future__ import annotations

from torch import nn

from .advice import WHAT_TO_DO
from .attention import AttentionRule
from .base import Rule, UnsupportedError, Watcher, on_waves
from .convolution import ConvolutionRule
from .embedding import EmbeddingRule
from .generic import GenericRule
from .linear import LinearRule
from .scale import GroupNormRule, InstanceNormRule, LayerNormRule, PReLURule, own_rms_norm
from .tracing import begin_tracing, give_up_tracing, may_trace, what_is_untrue

__all__ = [
    "WHAT_TO_DO",
    "EmbeddingRule",
    "LinearRule",
    "Rule",
    "UnsupportedError",
    "Watcher",
    "begin_tracing",
    "give_up_tracing",
    "may_trace",
    "on_waves",
    "rule_for",
    "what_is_untrue",
]

_REFUSED: tuple[tuple[type[nn.Module], str], ...] = (
    (nn.RNNBase, "recurrent layers run step by step inside one call that vmap cannot batch"),
    (nn.RNNCellBase, "recurrent cells are used once a time step and have no exact rule yet"),
    (nn.EmbeddingBag, "it joins bags of tokens before samples can be told apart"),
    (nn.SyncBatchNorm, "it mixes the samples of all ranks"),
)
_KNOWN: tuple[tuple[type[nn.Module], Rule], ...] = (
    (nn.Linear, LinearRule()),
    (nn.modules.conv._ConvNd, ConvolutionRule()),
    (nn.Embedding, EmbeddingRule()),
    (nn.LayerNorm, LayerNormRule(centre=True)),
    (nn.RMSNorm, LayerNormRule(centre=False)),
    (nn.GroupNorm, GroupNormRule()),
    (nn.modules.batchnorm._BatchNorm, InstanceNormRule(batch=True)),
    (nn.modules.instancenorm._InstanceNorm, InstanceNormRule()),
    (nn.PReLU, PReLURule()),
)


def rule_for(module: nn.Module) -> Rule | str:
    """The rule for a module that owns parameters, or why there is none.

    A subclass that computes something else under the same parameters (its own `forward`) gets the generic rule: the
    known ones would measure what the parent computes.
    """
    for kind, reason in _REFUSED:
        if isinstance(module, kind):
            return reason
    if isinstance(module, nn.Embedding) and module.scale_grad_by_freq:
        return "scale_grad_by_freq divides by counts over the batch, which mixes the samples"
    if isinstance(module, nn.MultiheadAttention):
        return AttentionRule() if type(module).forward in _forwards(nn.MultiheadAttention) else GenericRule()
    for kind, rule in _KNOWN:
        if isinstance(module, kind):
            plain = type(module).forward in _forwards(kind) and "forward" not in module.__dict__
            return rule if plain and _conventional(module) else GenericRule()
    if _is_transposed_linear(module):
        return LinearRule(transposed=True)
    return own_rms_norm(module) or GenericRule()


def _forwards(kind: type[nn.Module]) -> set[object]:
    """`forward` of `kind` and of torch's own classes below it (Conv2d below _ConvNd, say)."""
    forwards: set[object] = {kind.forward}
    for child in kind.__subclasses__():
        if child.__module__.startswith("torch.nn.modules"):
            forwards |= _forwards(child)
    return forwards


def _conventional(module: nn.Module) -> bool:
    """Whether a module's own parameters are those its kind has by nature; extra ones need the generic rule."""
    return {name for name, _ in module.named_parameters(recurse=False)} <= {"weight", "bias"} and not any(
        module.children()
    )


def _is_transposed_linear(module: nn.Module) -> bool:
    """Hugging Face's Conv1D, known without importing it: y = x W + b with W of shape (inputs, outputs)."""
    return (
        type(module).__name__ == "Conv1D"
        and type(module).__module__.startswith("transformers.")
        and hasattr(module, "nf")
    )
