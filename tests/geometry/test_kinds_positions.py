"""Masks where samples come first or positions do, flattened or not: held against samples that are run one by one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sdsd.geometry import collect_activations, group_activations


class Encoder(nn.Module):
    """Transposed inside where `turned`, as in XLNet; flattened before the embedding, behind it, or before a reader."""

    def __init__(self, turned, flat):
        super().__init__()
        self.turned, self.flat = turned, flat
        self.e, self.a, self.b, self.c = nn.Embedding(50, 16), nn.Linear(16, 24), nn.Linear(24, 16), nn.Linear(16, 4)

    def forward(self, input_ids, attention_mask=None):
        ids = input_ids.T if self.turned else input_ids
        h = self.e(ids.flatten() if self.flat == "ids" else ids)
        h = self.a(h.flatten(0, 1) if self.flat == "behind" else h).relu()
        return self.c(self.b(h.reshape(-1, 24) if self.flat == "before a reader" else h))


class Attention(nn.Module):
    """torch's own encoder, which flattens with positions first whatever it is given."""

    def __init__(self, batch_first):
        super().__init__()
        self.batch_first = batch_first
        self.e, self.c = nn.Embedding(50, 16), nn.Linear(16, 4)
        self.layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=batch_first)

    def forward(self, input_ids, attention_mask):
        h = self.e(input_ids if self.batch_first else input_ids.T)
        return self.c(self.layer(h, src_key_padding_mask=attention_mask == 0))


def batch(samples, positions):
    mask = torch.ones(samples, positions, dtype=torch.long)
    mask[0, positions // 2 :], mask[1, 2:] = 0, 0
    return {"input_ids": torch.randint(0, 50, (samples, positions)), "attention_mask": mask}


def one_by_one(batches):
    """Each sample alone, without its padding."""
    return [
        {name: value[k : k + 1, : int(each["attention_mask"][k].sum())] for name, value in each.items()}
        for each in batches
        for k in range(len(each["input_ids"]))
    ]


def assert_padding_is_left_out(function, model, layer, **options):
    batches = [batch(3, 7), batch(7, 7), batch(9, 4)]
    result = function(model, batches, layer, **options)[layer]
    wanted = function(model, one_by_one(batches), layer, **options)[layer]
    assert result.samples == wanted.samples
    assert result.note == wanted.note
    assert (result.cosine_matrix() - wanted.cosine_matrix()).abs().max() < 1e-5


@pytest.mark.parametrize("flat", ["", "ids", "behind", "before a reader"])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("function", [collect_activations, group_activations])
def test_padding_is_left_out_wherever_positions_are(function, turned, flat):
    assert_padding_is_left_out(function, Encoder(turned, flat), "a")
    assert_padding_is_left_out(function, Encoder(turned, flat), "a", mask="attention_mask")


@pytest.mark.parametrize("layer", ["layer.linear1", "layer.self_attn"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_heads_and_neurons_of_torchs_encoder(batch_first, layer):
    assert_padding_is_left_out(group_activations, Attention(batch_first), layer)


@pytest.mark.parametrize("flat", ["", "behind"])
@pytest.mark.parametrize("function", [collect_activations, group_activations])
def test_as_many_samples_as_positions_are_told_by_earlier_batches_or_refused(function, flat):
    model, square = Encoder(True, flat), batch(7, 7)
    with pytest.raises(ValueError, match="got 7 of each, so that it cannot be told which come first .* another size"):
        function(model, [square, batch(3, 7)], "a")
    assert function(model, [square], "a", mask=False)["a"].samples == 49
    full = {**square, "attention_mask": torch.ones(7, 7)}
    assert function(model, [full], "a")["a"].samples == 49


@pytest.mark.parametrize("function", [collect_activations, group_activations])
def test_rows_in_another_order_are_not_masked_in_silence(function):
    class Sorted(Encoder):
        def forward(self, input_ids, attention_mask=None):
            h = self.e(input_ids).flatten(0, 1)
            return self.c(self.b(self.a(h[input_ids.flatten().argsort()]).relu()))

    with pytest.warns(RuntimeWarning, match=r"padding is among its samples"):
        found = function(Sorted(False, ""), [batch(3, 7)], "a")["a"]
    assert found.samples == 21
    assert "padding is among its samples" in found.note
    with pytest.raises(ValueError, match="or flattened from that in a way that can be followed, got shape"):
        function(Sorted(False, ""), [batch(3, 7)], "a", mask="attention_mask")


@pytest.mark.parametrize("function", [collect_activations, group_activations])
def test_rows_of_an_expert_are_not_masked_in_silence(function):
    class Routed(Encoder):
        def forward(self, input_ids, attention_mask=None):
            h = self.e(input_ids).flatten(0, 1)
            return self.c(self.b(self.a(h[h[:, 0] > 0]).relu()))

    model = Routed(False, "")
    nn.init.constant_(model.e.weight[:, 0].data[:25], 1.0)
    with pytest.warns(RuntimeWarning, match=r"padding is among its samples"):
        assert "padding is among its samples" in function(model, [batch(3, 7)], "a")["a"].note


def test_layers_of_torchs_encoder_give_positions_too():
    model, data = Attention(True).eval(), batch(3, 7)
    model.layer = nn.TransformerEncoder(model.layer, 2)
    found = collect_activations(model, [data], ["layer.layers.0", "layer.layers.1"])
    assert {each.samples for each in found.values()} == {int(data["attention_mask"].sum())}
