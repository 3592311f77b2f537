"""Parameters read outside of their module, computed from, shared: what a layer sees is not all that is in .grad."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from tests.zoo.parts import N, Net, any_loss, class_loss, classes, numbers, parameter, tokens
from tests.zoo.verdict import Program

X, Y, IDS, WORDS = numbers(N, 8), classes(), tokens(N, 5), classes(below=11)


def words() -> dict[str, nn.Module]:
    return {"emb": nn.Embedding(11, 8), "body": nn.Linear(8, 8)}


def encoder(model, ids):
    return torch.tanh(model.body(model.emb(ids)))


def reading(compute, **options):
    """Token ids through an embedding and a layer; `compute` makes 11 classes of them with the embedding's weight."""
    return Program(lambda: Net(compute, **words()), (IDS, WORDS), class_loss, measured=True, **options)


def hooked():
    model = Net(lambda m, x: m.last(torch.tanh(m.first(x))), first=nn.Linear(8, 8), last=nn.Linear(8, 3))
    model.first.register_forward_hook(lambda module, inputs, output: output + F.linear(output, model.first.weight))
    return model


def hook_with_other_weight():
    model = Net(lambda m, x: m.last(m.first(x)), first=nn.Linear(8, 8), other=nn.Linear(8, 8), last=nn.Linear(8, 3))
    model.first.register_forward_hook(lambda module, inputs, output: F.linear(output, model.other.weight))
    return model


def vectors(compute, measured=True, **parts):
    return Program(lambda: Net(compute, **{k: p() for k, p in parts.items()}), (X,), any_loss, measured=measured)


OUTSIDE = {
    "tied head by F.linear": reading(lambda m, ids: F.linear(encoder(m, ids), m.emb.weight).mean(1)),
    "tied head by matmul": reading(lambda m, ids: (encoder(m, ids) @ m.emb.weight.T).mean(1)),
    "tied head by einsum": reading(lambda m, ids: torch.einsum("ntd,vd->nv", encoder(m, ids), m.emb.weight) / 5),
    "tied head by torch.matmul, scaled": reading(
        lambda m, ids: torch.matmul(encoder(m, ids), m.emb.weight.transpose(0, 1)).mean(1) * 8**-0.5
    ),
    "tied head of normalised rows": reading(
        lambda m, ids: F.linear(F.normalize(encoder(m, ids), dim=-1), F.normalize(m.emb.weight, dim=-1)).mean(1)
    ),
    "some rows of the embedding as classes": reading(
        lambda m, ids: F.pad(encoder(m, ids).mean(1) @ m.emb.weight[2:7].T, (3, 3))
    ),
    "embedding read by F.embedding and by indexing": reading(
        lambda m, ids: m.body((F.embedding(ids, m.emb.weight) * m.emb.weight[ids.flip(1)]).mean(1)) @ m.emb.weight.T
    ),
    "tied autoencoder by transposition": vectors(
        lambda m, x: F.linear(torch.tanh(m.down(x)), m.down.weight.t(), m.bias),
        down=lambda: nn.Linear(8, 5),
        bias=lambda: parameter(8),
    ),
    "tied convolution and its transpose": Program(
        lambda: Net(lambda m, x: F.conv_transpose1d(torch.tanh(m.conv(x)), m.conv.weight), conv=nn.Conv1d(2, 4, 3)),
        (numbers(N, 2, 9),),
        any_loss,
        measured=True,
    ),
    "a hook that uses its module's weight": Program(hooked, (X, Y), class_loss, measured=True),
    "a hook that uses another module's weight": Program(hook_with_other_weight, (X, Y), class_loss, measured=True),
    "a norm's weight read again": vectors(
        lambda m, x: m.last(m.norm(x) * m.norm.weight + m.norm.bias),
        norm=lambda: nn.LayerNorm(8),
        last=lambda: nn.Linear(8, 3),
    ),
    "attention by the parts of a packed projection": Program(
        lambda: Net(
            lambda m, x: m.attention.out_proj(
                torch.tanh(F.linear(x, m.attention.in_proj_weight[:8], m.attention.in_proj_bias[:8]))
                * F.linear(x, m.attention.in_proj_weight[8:16], m.attention.in_proj_bias[8:16])
            ),
            attention=nn.MultiheadAttention(8, 2),
        ),
        (numbers(N, 3, 8),),
        any_loss,
        measured=True,
    ),
    "a layer that never runs, its weight read": vectors(
        lambda m, x: m.last(F.linear(x, m.unused.weight) + m.unused.bias),
        unused=lambda: nn.Linear(8, 5),
        last=lambda: nn.Linear(5, 3),
    ),
    "weights detached where read again": vectors(
        lambda m, x: F.linear(m.first(x), m.first.weight.detach()),
        first=lambda: nn.Linear(8, 8),
    ),
    "a use whose input carries no gradient": vectors(
        lambda m, x: m.first(x) + F.linear(m.first(x).detach(), m.first.weight),
        first=lambda: nn.Linear(8, 8),
    ),
}


class Standardised(nn.Conv1d):
    def forward(self, x):
        spread, mean = torch.std_mean(self.weight, dim=(1, 2), keepdim=True)
        return F.conv1d(x, (self.weight - mean) / spread, self.bias)


class ByHand(nn.Linear):
    def forward(self, x):
        return torch.addmm(self.bias, x, self.weight.t())


class Symmetric(nn.Module):
    def forward(self, weight):
        return weight.triu() + weight.triu(1).transpose(-1, -2)


def lists(m, x):
    for weight, bias in zip(m.weights, m.biases.values(), strict=True):
        x = torch.tanh(x @ weight + bias)
    return x


COMPUTED = {
    "weight times a learned scale": vectors(
        lambda m, x: F.linear(x, m.first.weight * m.scale, m.first.bias),
        first=lambda: nn.Linear(8, 5),
        scale=lambda: parameter(5, 1),
    ),
    "standardised convolution": Program(
        lambda: nn.Sequential(Standardised(2, 4, 3), nn.ReLU(), nn.Conv1d(4, 2, 2)),
        (numbers(N, 2, 9),),
        any_loss,
        measured=True,
    ),
    "linear by addmm": Program(
        lambda: nn.Sequential(ByHand(8, 5), nn.Tanh(), ByHand(5, 3)), (X, Y), class_loss, measured=True
    ),
    "low-rank update of a weight": vectors(
        lambda m, x: F.linear(x, m.base.weight + m.up @ m.down),
        base=lambda: nn.Linear(8, 5).requires_grad_(False),
        up=lambda: parameter(5, 2),
        down=lambda: parameter(2, 8),
    ),
    "softmax of a table as weight": vectors(
        lambda m, x: m.last(x @ m.table.softmax(0)),
        table=lambda: parameter(8, 8),
        last=lambda: nn.Linear(8, 3),
    ),
    "weight with a constant mask": vectors(
        lambda m, x: F.linear(x, m.first.weight * torch.ones(5, 8).tril(), m.first.bias),
        first=lambda: nn.Linear(8, 5),
    ),
    "a symmetric parametrization": Program(
        lambda: nn.Sequential(
            nn.utils.parametrize.register_parametrization(nn.Linear(8, 8), "weight", Symmetric()), nn.Linear(8, 3)
        ),
        (X, Y),
        class_loss,
        measured=True,
    ),
    "lists and dictionaries of parameters": Program(
        lambda: Net(
            lists,
            weights=nn.ParameterList([parameter(8, 5), parameter(5, 3)]),
            biases=nn.ParameterDict({"one": parameter(5), "two": parameter(3)}),
        ),
        (X, Y),
        class_loss,
        measured=True,
    ),
    "weights that a network makes of each sample": vectors(
        lambda m, x: torch.bmm(m.maker(x).view(-1, 3, 8), x.unsqueeze(2)).squeeze(2),
        maker=lambda: nn.Linear(8, 24),
    ),
    "weights that a network makes of a learned code": vectors(
        lambda m, x: F.linear(x, m.maker(m.code).view(3, 8)),
        maker=lambda: nn.Linear(4, 24),
        code=lambda: parameter(4),
    ),
    "one scalar everywhere": vectors(
        lambda m, x: m.gain * m.first(torch.tanh(m.gain * x)) + m.gain**2,
        gain=lambda: nn.Parameter(torch.tensor(0.7)),
        first=lambda: nn.Linear(8, 3),
    ),
}


def same_weight(one, two):
    two.weight = one.weight
    return one, two


def shared_names(make):
    def build():
        first, second, compute = make()
        return Net(compute, first=first, second=second, last=nn.Linear(8, 3))

    return Program(build, (X, Y), class_loss, measured=True)


class SharedBias(nn.Module):
    """The head of BertForMaskedLM: the parent's bias is the child's."""

    def __init__(self, add: bool):
        super().__init__()
        self.dense, self.decoder = nn.Linear(8, 8), nn.Linear(8, 11)
        self.bias, self.add = self.decoder.bias, add

    def forward(self, h):
        out = self.decoder(torch.tanh(self.dense(h)))
        return out + self.bias if self.add else out


def layers_with_own_table():
    """An own parameter beside one module under two names."""
    layer = nn.Linear(8, 8)
    return Net(
        lambda m, x: m.head(m.target(torch.tanh(m.encoder(x)) * m.scale)),
        scale=nn.Parameter(torch.ones(8)),
        encoder=layer,
        target=layer,
        head=nn.Linear(8, 3),
    )


SHARED = {
    "two linear layers with one weight": shared_names(
        lambda: (*same_weight(nn.Linear(8, 8), nn.Linear(8, 8)), lambda m, x: m.last(m.second(torch.tanh(m.first(x)))))
    ),
    "an embedding and a linear layer": Program(
        lambda: Net(
            lambda m, ids: m.second(torch.tanh(m.first(ids))).mean(1),
            **dict(zip(("first", "second"), same_weight(nn.Embedding(11, 8), nn.Linear(8, 11)), strict=True)),
        ),
        (IDS, WORDS),
        class_loss,
        measured=True,
    ),
    "two norms with one weight": shared_names(
        lambda: (*same_weight(nn.LayerNorm(8), nn.RMSNorm(8)), lambda m, x: m.last(m.second(torch.tanh(m.first(x)))))
    ),
    "two dilated convolutions with one weight": Program(
        lambda: Net(
            lambda m, x: m.first(x) + m.second(x),
            **dict(
                zip(
                    ("first", "second"),
                    same_weight(nn.Conv1d(2, 4, 3, padding=1), nn.Conv1d(2, 4, 3, padding=2, dilation=2)),
                    strict=True,
                )
            ),
        ),
        (numbers(N, 2, 9),),
        any_loss,
        measured=True,
    ),
    "parent and child share a bias": Program(
        lambda: nn.Sequential(nn.Linear(8, 8), SharedBias(False)), (X, WORDS), class_loss, measured=True
    ),
    "parent and child share and both add a bias": Program(
        lambda: nn.Sequential(nn.Linear(8, 8), SharedBias(True)), (X, WORDS), class_loss, measured=True
    ),
    "one module under two names beside an own parameter": Program(
        layers_with_own_table, (X, Y), class_loss, measured=True
    ),
    "one weight under a module and as an own parameter": vectors(
        lambda m, x: m.first(x) @ m.first.own,
        first=lambda: own_name(nn.Linear(8, 8)),
    ),
    "a parameter over samples and under them": vectors(
        lambda m, x: m.last(m.first(x) / (1 + m.under.square()) + m.over / (1 + x.square())),
        under=lambda: parameter(8),
        over=lambda: parameter(8),
        first=lambda: nn.Linear(8, 8),
        last=lambda: nn.Linear(8, 3),
    ),
    "complex factors and divisors": vectors(
        lambda m, x: (
            (z := torch.complex(x[:, :4], x[:, 4:])).mul(m.factor).abs() + (z / torch.view_as_complex(m.pairs)).abs()
        ),
        factor=lambda: parameter(4),
        pairs=lambda: parameter(4, 2),
    ),
    "scores with a learned table": vectors(
        lambda m, x: F.scaled_dot_product_attention(
            (h := m.first(x).view(-1, 2, 4)), h, h, attn_mask=m.table, scale=0.5
        ).flatten(1),
        first=lambda: nn.Linear(8, 8),
        table=lambda: parameter(2, 2),
    ),
    "functions of torch by keywords": vectors(
        lambda m, x: F.linear(
            input=torch.prelu(input=torch.addmm(input=m.shift, mat1=x, mat2=m.mixed), weight=m.slope),
            weight=m.last.weight,
        ),
        shift=lambda: parameter(8),
        mixed=lambda: parameter(8, 8),
        slope=lambda: parameter(8),
        last=lambda: nn.Linear(8, 3, bias=False),
    ),
    "a layer used three times on other shapes": vectors(
        lambda m, x: m.same(m.same(x.unsqueeze(1).expand(-1, 3, -1))).mean(1) + m.same(x),
        same=lambda: nn.Linear(8, 8),
    ),
}


def own_name(layer):
    layer.own = layer.weight
    return layer


PROGRAMS = {"outside": OUTSIDE, "computed": COMPUTED, "shared": SHARED}
