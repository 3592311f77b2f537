"""Models that are called with a list of samples (`batch_dim=None`): images of different size, sequences, boxes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.nn.utils import rnn

import sdsd
from tests.zoo.parts import Net, parameter
from tests.zoo.verdict import compare, per_sample


def joined(m, images):
    """A batch that is as large as the largest image, as detection models make it."""
    height, width = (max(image.shape[k] for image in images) for k in (1, 2))
    out = images[0].new_zeros(len(images), 3, height, width)
    for k, image in enumerate(images):
        image = (image - m.mean[:, None, None]) * m.scale[:, None, None]
        out[k, :, : image.shape[1], : image.shape[2]].copy_(image)
    return out


def losses_of_boxes(m, images, targets):
    h = torch.relu(m.body(joined(m, images)))
    losses = []
    for logits, boxes, target in zip(m.classes(h), m.boxes(h), targets, strict=True):
        logits, boxes = logits.flatten(1).T, boxes.flatten(1).T
        chosen = torch.cdist(target["boxes"], boxes.detach()).argmin(1)
        labels = torch.zeros(len(logits), dtype=torch.long)
        labels[chosen] = target["labels"]
        losses.append(F.cross_entropy(logits, labels) + F.l1_loss(boxes[chosen], target["boxes"]))
    return losses


def detector():
    return Net(
        losses_of_boxes,
        mean=parameter(3),
        scale=parameter(3),
        body=nn.Conv2d(3, 8, 3, padding=1),
        classes=nn.Conv2d(8, 3, 1),
        boxes=nn.Conv2d(8, 4, 1),
    )


def boxes(k):
    """Images of three channels: where there are three, a list of them looks like rows of samples."""
    images = [torch.randn(3, 5 + i % 3, 6 + 2 * i % 3) for i in range(k)]
    return images, [{"boxes": torch.randn(1 + i % 2, 4), "labels": torch.arange(1 + i % 2)} for i in range(k)]


def padded(m, sequences):
    h = rnn.pad_sequence([torch.tanh(m.first(each)).cumsum(0) for each in sequences], batch_first=True)
    return list(m.last(h).sum(1).square().sum(1))


def packed(m, sequences):
    return list(m.last(m.first(rnn.pack_sequence(sequences, enforce_sorted=False))[1][-1]).square().sum(1))


def each(m, sequences):
    return [m.last(m.first(row)[0][-1]).square().sum() for row in sequences]


def sequences(*lengths):
    return lambda k: ([torch.randn(length, 8) for length in lengths[:k]],)


PROGRAMS = {
    "boxes": (detector, boxes),
    "padded": (lambda: Net(padded, first=nn.Linear(8, 8), last=nn.Linear(8, 3)), sequences(3, 5, 2, 4)),
    "padded, T = N": (lambda: Net(padded, first=nn.Linear(8, 8), last=nn.Linear(8, 3)), sequences(4, 4, 4, 4)),
    "packed": (lambda: Net(packed, first=nn.GRU(8, 8), last=nn.Linear(8, 3)), sequences(3, 5, 2, 4)),
    "packed, T = N": (lambda: Net(packed, first=nn.GRU(8, 8), last=nn.Linear(8, 3)), sequences(4, 4, 4, 4)),
    "each by itself": (lambda: Net(each, first=nn.LSTM(8, 8), last=nn.Linear(8, 3)), sequences(3, 5, 2, 4)),
}


@pytest.fixture(autouse=True)
def float64():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def mean_loss(model, batch):
    losses = model(*batch)
    return sum(losses) / len(losses)


@pytest.mark.parametrize("k", [4, 3, 2])
@pytest.mark.parametrize("name", PROGRAMS)
def test_every_entry_is_a_sample(name, k):
    make, data = PROGRAMS[name]
    model, batch = make(), data(k)
    monitor = sdsd.GammaMonitor(model, batch_dim=None)
    mean_loss(model, batch).backward()
    stats = monitor.step()
    monitor.detach()
    rows = per_sample(model, lambda m, i: m(*batch)[i] / k, k)
    verdict = compare(stats, rows)
    assert verdict.kind == "right", verdict.why


def test_check_cuts_lists():
    model, batch = PROGRAMS["each by itself"][0](), sequences(3, 5, 2)(3)
    report = sdsd.GammaMonitor(model, batch_dim=None).check(mean_loss, batch)
    assert report.difference < 1e-9
    model, batch = detector(), boxes(2)
    images, targets = batch
    same = [F.interpolate(image[None], (4, 4))[0] for image in images]  # a batch of one is not padded
    assert sdsd.GammaMonitor(model, batch_dim=None).check(mean_loss, (tuple(same), targets)).difference < 1e-9


def test_micro_batches_count_lists():
    model = PROGRAMS["padded"][0]()
    monitor = sdsd.GammaMonitor(model, batch_dim=None, mode="micro")
    for _ in range(2):
        (mean_loss(model, sequences(3, 5, 2)(3)) / 2).backward()
    assert monitor.step().samples_per_gradient == 3


@pytest.mark.parametrize(
    ("batch", "options", "words"),
    [
        (lambda: torch.randn(4, 3, 8), {}, "expected a list or tuple, and got none. Pass batch_dim=0"),
        (lambda: [torch.ones(3, 8)] * 2, {}, "hold the same tensor, of shape .3, 8.* clone"),
        (
            lambda: [torch.ones(3, 8), torch.ones(2, 8)],
            {"batch_size": 3},
            "list of 2 samples, and batch_size announces 3",
        ),
    ],
)
def test_what_is_no_list_of_samples(batch, options, words):
    model = PROGRAMS["padded"][0]()
    monitor = sdsd.GammaMonitor(model, batch_dim=None, **options)
    mean_loss(model, (batch(),)).backward()
    with pytest.raises(ValueError, match=words):
        monitor.step()


def test_batch_dim_is_checked():
    with pytest.raises(ValueError, match="batch_dim: expected a dimension counted from the front, 0 or more, or None"):
        sdsd.GammaMonitor(nn.Linear(2, 2), batch_dim=-1)
