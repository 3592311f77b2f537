"""Every number of `sdsd.theory` on the kinds of network people bring: it works, or one sentence says what to pass."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from sdsd.theory import (
    canonicalize,
    curvature_gamma,
    geometric_functional,
    hidden_layers,
    local_learning_coefficient,
    quotient_gamma,
    realized_volume,
    sharpness,
    symmetries,
)

from .test_users_models import Conv1D
from .users_models import GPT, Llama, ViT

WORDS, WIDTH = 11, 12


class Given(dict):
    """What a Hugging Face model gives: names, and attributes."""

    __getattr__ = dict.__getitem__


class GPT2(nn.Module):
    """As in Hugging Face: Conv1D, attention put together by hand, labels that may be missing, an output with names."""

    def __init__(self) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(WORDS, WIDTH), nn.Embedding(8, WIDTH)
        self.ln_1, self.ln_2, self.ln_f = (nn.LayerNorm(WIDTH) for _ in range(3))
        self.c_attn, self.c_proj = Conv1D(3 * WIDTH, WIDTH), Conv1D(WIDTH, WIDTH)
        self.c_fc, self.c_out = Conv1D(4 * WIDTH, WIDTH), Conv1D(WIDTH, 4 * WIDTH)
        for layer in (self.c_attn, self.c_proj, self.c_fc, self.c_out):
            nn.init.normal_(layer.weight, std=0.2)
        self.lm_head = nn.Linear(WIDTH, WORDS, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, input_ids: Tensor | None = None, labels: Tensor | None = None, **unused: Any) -> Any:
        if input_ids is None:
            raise ValueError("You have to specify input_ids")
        n, t = input_ids.shape
        x = self.wte(input_ids) + self.wpe(torch.arange(t))[None]
        flat = self.c_attn(self.ln_1(x).view(-1, WIDTH)).view(n, t, -1)
        q, k, v = (each.view(n, t, 3, -1).permute(0, 2, 1, 3) for each in flat.split(WIDTH, dim=2))
        scores = torch.matmul(q, k.transpose(-1, -2)) / (WIDTH / 3) ** 0.5
        scores = torch.where(torch.ones(t, t).tril().bool(), scores, torch.finfo(scores.dtype).min)
        heads = torch.matmul(nn.functional.softmax(scores, dim=-1), v).permute(0, 2, 1, 3).reshape(-1, WIDTH)
        x = x + self.c_proj(heads).view(n, t, -1)
        hidden = functional.gelu(self.c_fc(self.ln_2(x).view(-1, WIDTH)), approximate="tanh")
        logits = self.lm_head(self.ln_f(x + self.c_out(hidden).view(n, t, -1)))
        if labels is None:
            return Given(logits=logits)
        loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return Given(loss=loss, logits=logits)


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (y + self.downsample(x)).relu()


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.layer1, self.layer2, self.fc = Block(6, 6, 1), Block(6, 8, 2), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer2(self.layer1(self.bn1(self.conv1(x)).relu())).mean((2, 3)))


def words(model: nn.Module, batch: Any) -> Tensor:
    return functional.cross_entropy(model(batch).flatten(0, 1), batch.roll(-1, 1).flatten())


def pictures(model: nn.Module, batch: Any) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1])


NETWORKS = {
    "GPT-2": (GPT2, lambda model, batch: model(**batch).loss),
    "Llama": (Llama, words),
    "ViT": (ViT, pictures),
    "ResNet": (ResNet, pictures),
    "a GPT of one's own": (GPT, words),
}


FOUND = {"Llama": ["up"], "ViT": ["encoder.layers.0.linear1", "encoder.layers.1.linear1"]}
"""Hidden layers behind something positively homogeneous."""


def brought(name: str) -> tuple[nn.Module, list[Any], Any]:
    """A network in eval mode, batches, and its loss."""
    torch.manual_seed(21)
    build, loss = NETWORKS[name]
    model = build().eval()
    ids = [torch.randint(0, WORDS, (4, 6)) for _ in range(3)]
    batches: dict[Any, list[Any]] = {
        words: ids,
        pictures: [(torch.randn(4, 3, 8, 8), torch.randint(0, 4, (4,))) for _ in range(3)],
    }
    return model, batches.get(loss, [{"input_ids": each, "labels": each} for each in ids]), loss


def squared_norm(model: nn.Module) -> float:
    return sum(parameter.double().square().sum().item() for parameter in model.parameters())


@pytest.mark.parametrize("name", NETWORKS)
def test_without_an_example(name, capfd):
    model, batches, loss = brought(name)
    found = symmetries(model)
    assert found.tangents > 30
    assert any(each.what == "heads" for each in found.permutations) == (name != "ResNet")
    assert squared_norm(canonicalize(model)) != squared_norm(model)
    assert quotient_gamma(model, batches, loss, 3).gamma > 0
    change = curvature_gamma(model, loss, batches[0], learning_rate=0.1, batch_size=4)
    assert math.isfinite(change.expected_change)
    assert sharpness(model, iter(batches), loss).value > 0
    printed = capfd.readouterr()
    assert "Traceback" not in printed.err + printed.out


@pytest.mark.parametrize("name", NETWORKS)
def test_the_learning_coefficient_is_a_number_or_says_why_not(name):
    model, batches, loss = brought(name)
    found = local_learning_coefficient(model, iter(batches), loss, chains=2, draws=20, burn_in=10, step_size=1e-4)
    assert min(found.acceptance) > 0.1
    said = str(found)
    assert "canonical representative, n = 12" in said
    assert "refused: " in said, "20 draws support no number"
    assert re.search(r"take more (burn_in and )?draws", said)


@pytest.mark.parametrize("name", NETWORKS)
def test_hidden_layers_are_found_or_the_networks_own_are_named(name):
    model, _, _ = brought(name)
    if name in FOUND:
        assert [layer.name for layer in hidden_layers(model)] == FOUND[name]
        pairs = None
    else:
        with pytest.raises(ValueError, match="layers=") as raised:
            geometric_functional(model, 0.1)
        pairs = re.findall(r"\('([\w.]+)', '([\w.]+)'\)", str(raised.value))
        names = dict(model.named_modules())
        assert pairs
        assert all(each in names for pair in pairs for each in pair)
    assert torch.isfinite(geometric_functional(model, 0.1, layers=pairs).value)
    for layer in hidden_layers(model, pairs):
        volume = realized_volume(layer.rows.detach())
        assert 1 <= volume.value <= volume.caps


def test_a_list_of_tensors_is_one_batch_and_says_so():
    model, batches, loss = brought("Llama")
    for number in (sharpness, local_learning_coefficient):
        with pytest.raises(ValueError, match=r"data: a list of tensors is one batch.*iter\(data\)"):
            number(model, batches, loss)
    images, labels = brought("ViT")[1][0]
    model, _, loss = brought("ViT")
    assert sharpness(model, [images, labels], loss).value > 0
