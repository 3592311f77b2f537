"""Padding is no sample: masks of every form."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from sdsd.geometry.collect.activations import collect_activations
from sdsd.geometry.map.neuron_map import NeuronMap

from .readers import cosine


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.e, self.a, self.b, self.pool = nn.Embedding(50, 16), nn.Linear(16, 24), nn.Linear(24, 16), nn.Linear(16, 8)

    def forward(self, input_ids, attention_mask=None, flat=False, lengths=None):
        h = self.e(input_ids)
        h = self.b(self.a(h.flatten(0, 1) if flat else h).relu())
        return self.pool((h if flat else h[:, 0]).tanh())


def padded(side="right"):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 50, (6, 9), generator=generator)
    lengths = torch.tensor([9, 4, 1, 6, 2, 9])
    mask = (torch.arange(9) < lengths[:, None]).long()
    if side == "left":
        mask = mask.flip(1)
    return ids * mask, mask


def by_hand(model, ids, mask):
    with torch.no_grad():
        return model.a(model.e(ids)).relu()[mask > 0]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("dtype", [torch.long, torch.bool, torch.float32])
@pytest.mark.parametrize("flat", [False, True])
def test_padding_is_no_sample(side, dtype, flat):
    model, (ids, mask) = Encoder(), padded(side)
    wanted = by_hand(model, ids, mask)
    batch = {"input_ids": ids, "attention_mask": mask.to(dtype), "flat": flat}
    for keep in (False, True):
        found = collect_activations(model, [batch], "a", keep=keep)["a"]
        assert found.samples == len(wanted) == int(mask.sum())
        assert (found.cosine_matrix().double() - cosine(wanted)).abs().max() < 1e-5
    own = collect_activations(model, [batch], "a", keep=True, after_nonlinearity=False)["a"]
    assert own.samples == len(wanted)
    drawn = NeuronMap.from_model(model, "a", [batch])
    assert drawn.samples == len(wanted)
    everything = collect_activations(model, [batch], "a", mask=False)["a"]
    assert everything.samples == 54


def _causal(kept, allowed_to_padding=False):
    square = kept[:, None, :] & torch.ones(kept.shape[1], kept.shape[1], dtype=torch.bool).tril()
    if allowed_to_padding:  # as scaled_dot_product_attention needs rows that attend to something
        square = torch.where(square.any(2, keepdim=True), square, True)
    return square[:, None]


def _scores(kept):
    return torch.where(kept, 0.0, torch.finfo(torch.float32).min)


FORMS = {
    "added": _scores,
    "added, infinite": lambda kept: torch.where(kept, 0.0, -torch.inf),
    "added in half": lambda kept: _scores(kept).half(),
    "NumPy": lambda kept: kept.numpy(),
    "a list": lambda kept: kept.long().tolist(),
    "numbers of packed texts": lambda kept: kept * torch.arange(1, len(kept) + 1)[:, None],
    "keys": lambda kept: kept[:, None, None],
    "keys, added": lambda kept: _scores(kept)[:, None, None],
    "pairs": lambda kept: kept[:, None, :] & kept[:, :, None],
    "pairs of all heads": lambda kept: kept[:, None, None].expand(-1, 3, kept.shape[1], -1),
    "causal": _causal,
    "causal, added": lambda kept: _scores(_causal(kept)),
    "causal, rows of padding freed": lambda kept: _causal(kept, True),
    "window": lambda kept: _causal(kept) & torch.ones(kept.shape[1], kept.shape[1], dtype=torch.bool).triu(-1),
}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", FORMS)
def test_masks_of_every_form(name, side):
    model, ids = Encoder(), torch.randint(1, 50, (6, 9))
    kept = torch.arange(9) < torch.tensor([9, 1, 4, 8, 9, 2])[:, None]
    kept = kept.flip(1) if side == "left" else kept

    def forward(model, batch):
        return model(batch["input_ids"])

    batch = {"input_ids": ids, "attention_mask": FORMS[name](kept)}
    found = collect_activations(model, [batch], "a", keep=True, forward=forward)["a"]
    with torch.no_grad():
        torch.testing.assert_close(found.values, model.a(model.e(ids)).relu()[kept])


def test_other_positions_than_those_of_the_mask_are_noted():
    class Strided(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv1d(3, 8, 2, stride=2), nn.Linear(8, 2)

        def forward(self, x, attention_mask):
            return self.b(self.a(x).relu().transpose(1, 2))

    batch = {"x": torch.randn(4, 3, 10), "attention_mask": torch.ones(4, 10)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        collect_activations(Strided(), [batch], "a")
    batch["attention_mask"][0, 5:] = 0
    with pytest.warns(RuntimeWarning, match=r"'a' has outputs of shape \(4, 8, 5\) where attention_mask .*\(4, 10\)"):
        assert collect_activations(Strided(), [batch], "a")["a"].samples == 20


def test_outputs_with_positions_first():
    """Transposed inside, as in XLNet; where batch and positions are as many, earlier batches tell."""

    class Turned(Encoder):
        def forward(self, input_ids, attention_mask=None):
            return super().forward(input_ids.T, attention_mask)

    model, rows = Turned(), []
    batches = []
    for size in (3, 7):
        ids, mask = torch.randint(0, 20, (size, 7)), torch.ones(size, 7, dtype=torch.long)
        mask[0, 4:], mask[2, 2:] = 0, 0
        batches.append({"input_ids": ids, "attention_mask": mask})
        rows.append(by_hand(model, ids, mask))
    found = collect_activations(model, batches, "a")["a"]
    assert found.samples == int(sum(batch["attention_mask"].sum() for batch in batches))
    assert (found.cosine_matrix().double() - cosine(torch.cat(rows))).abs().max() < 1e-5


def test_masks_by_name_and_by_function():
    model, (ids, mask) = Encoder(), padded()
    wanted = by_hand(model, ids, mask)
    named = collect_activations(model, [{"input_ids": ids, "kept": mask}], "a", mask="kept", keep=True)["a"]
    called = collect_activations(model, [(ids, None)], "a", mask=lambda batch: batch[0] > 0, keep=True)["a"]
    assert torch.equal(named.values, wanted)
    assert torch.equal(called.values, wanted)
    assert NeuronMap.from_model(model, "a", [(ids, None)], mask=lambda batch: batch[0] > 0).samples == len(wanted)


def test_a_layer_without_positions_is_taken_whole_unless_a_mask_was_asked_for():
    model, (ids, mask) = Encoder(), padded()
    batch = {"input_ids": ids, "attention_mask": mask}
    assert collect_activations(model, [batch], "pool")["pool"].samples == 6
    with pytest.raises(ValueError, match=r"expected an output with the \(6, 9\) positions .* got shape \(6, 8\)"):
        collect_activations(model, [batch], "pool", mask="attention_mask")


def test_nothing_behind_a_mask_may_be_nan():
    class Blind(Encoder):
        def forward(self, input_ids, attention_mask):
            h = self.a(self.e(input_ids)).masked_fill(attention_mask[..., None] == 0, float("nan"))
            return self.b(h.relu())

    ids, mask = padded()
    found = collect_activations(Blind(), [{"input_ids": ids, "attention_mask": mask}], "a")["a"]
    assert found.samples == int(mask.sum())


@pytest.mark.parametrize(
    ("mask", "batch", "error", "says"),
    [
        (True, {}, TypeError, "name of an entry of the batches, a function"),
        (3, {}, TypeError, "got int"),
        ("kept", {}, ValueError, "an entry 'kept', got input_ids"),
        (lambda batch: None, {}, ValueError, "batch 0: expected a tensor .*, got NoneType"),
        (lambda batch: torch.ones(1, 2, 2, 2, 2), {}, ValueError, r"got shape \(1, 2, 2, 2, 2\)"),
        (lambda batch: torch.ones(2, 2, 3), {}, ValueError, "as many queries as keys, or one, got 2 and 3"),
        (lambda batch: torch.full((6, 9), torch.nan), {}, ValueError, "expected numbers, got a NaN"),
        (lambda batch: torch.ones(6, 9, dtype=torch.cfloat), {}, ValueError, "of torch.complex64"),
        (lambda batch: torch.zeros(6, 9), {}, ValueError, "batch 0: every position is padding"),
        (lambda batch: torch.ones(3, 2), {}, ValueError, r"expected an output with the \(3, 2\) positions"),
    ],
)
def test_bad_masks(mask, batch, error, says):
    with pytest.raises(error, match=says):
        collect_activations(Encoder(), [{"input_ids": padded()[0], **batch}], "a", mask=mask)
