"""The wave model and the measurements that may replace it. Neither needs Triton or a GPU."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdsd_kernels._device import RECORDS
from sdsd_kernels.cosine_matrix import autotune, config, waves
from sdsd_kernels.cosine_matrix.waves import Plan, Problem

SIZES = st.integers(1, 2**20)


def problem(neurons: int = 4096, samples: int = 4096, **changes) -> Problem:
    wanted = {"arch": "sm_90", "dot": "native", "item_bytes": 2, "descriptor": True, "dense": True, "writes": "cosine"}
    return Problem(neurons=neurons, samples=samples, **{**wanted, **changes})


# The model


@given(SIZES)
def test_buckets_are_eighths_of_a_power_of_two(size):
    bucket = waves.bucket(size)
    assert size <= bucket < size * 1.125 + 1
    assert waves.bucket(bucket) == bucket
    assert waves.bucket(size + 1) >= bucket


@given(st.integers(1, 10**7), st.integers(1, 64), st.sampled_from([16, 32, 64]))
def test_splits_cover_the_samples_in_whole_steps(samples, splits, block):
    length, count = waves.split_length(samples, splits, block), waves.split_count(samples, splits, block)
    assert length % block == 0
    assert (count - 1) * length < samples <= count * length
    assert count <= splits


def test_pieces_are_counted_as_they_are_launched():
    for neurons in (1, 127, 128, 129, 1000, 2048):
        assert waves.pieces(neurons, config.LARGE) == sum(
            math.ceil(neurons / 128) - row for row in range(math.ceil(neurons / 128))
        )
    assert waves.pieces(2048, config.LARGE) == 136
    assert waves.pieces(2048, config.DESCRIPTOR_WIDE) == 2 * 36
    assert waves.pieces(4096, config.LARGE) == 4 * 132


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.sampled_from(list(RECORDS)),
    st.sampled_from(config.PRECISIONS),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.integers(1, 2**17),
    st.integers(1, 2**21),
    st.booleans(),
    st.sampled_from(["cosine", "sum"]),
)
def test_a_plan_is_the_cheapest_and_may_be_launched(arch, precision, dtype, neurons, samples, readable, writes):
    family = RECORDS[arch].family
    dot = config.dot_precision(precision, dtype, center=False, arch=family)
    case = problem(
        neurons,
        samples,
        arch=arch,
        dot=dot,
        item_bytes=dtype.itemsize,
        descriptor=readable,
        dense=readable,
        writes=writes,
    )
    plan = waves.choose(case)
    assert waves.clocks(case, plan) == min(waves.clocks(case, other) for other in waves.candidates(case))
    assert math.isfinite(waves.clocks(case, plan))
    if plan.kernel == "pointer":
        assert plan.launch in config.pointer_configs(family, dot)
    elif plan.kernel == "descriptor":
        assert readable
        assert plan.launch in config.descriptor_configs(family, dot)
    else:
        assert readable
    if plan.splits > 1:
        assert plan.splits * 4 * case.neurons**2 <= waves.MOST_PARTIAL_BYTES
        assert waves.split_length(case.samples, plan.splits, plan.launch.block_samples) >= 4 * plan.launch.block_samples


def test_waves_decide():
    """The figures of the docstring."""

    def product(neurons: int, launch: config.MatrixConfig) -> float:
        case = problem(neurons)
        work = waves.pieces(neurons, launch)
        return waves._wave_clocks(
            case,
            work,
            launch.block_rows,
            launch.block_columns,
            4096,
            launch.block_samples,
            1,
            launch.num_stages,
            reuse=1,
        )

    one_more_wave = product(2048, config.DESCRIPTOR_LARGE)
    # 15 tiles a side are 120 pieces, 16 are 136: two waves of 132.
    assert one_more_wave == pytest.approx(2 * product(1920, config.DESCRIPTOR_LARGE), rel=0.1)
    assert product(4096, config.DESCRIPTOR_LARGE) == pytest.approx(2 * one_more_wave, rel=0.05)


def test_few_neurons_with_many_samples_are_split():
    plan = waves.choose(problem(512, 50_000))
    assert plan.splits > 4
    assert plan.finishes
    assert waves.choose(problem(8192, 8192)).splits == 1
    assert waves.choose(problem(1024, 64)).splits == 1


def test_wide_tiles_serve_large_matrices_only():
    assert waves.choose(problem(16_384, 4096)).launch == config.DESCRIPTOR_WIDE
    assert waves.choose(problem(256, 256)).launch == config.DESCRIPTOR_SMALL
    assert waves.choose(problem(16_384, 4096, descriptor=False, dense=False)).launch == config.LARGE_HALF


def test_a_library_serves_where_the_model_says_so():
    few_tiles = problem(384, 512, arch="sm_80", descriptor=False)
    assert waves.choose(few_tiles).kernel == "dense"
    assert waves.choose(problem(8192, 8192, arch="sm_80", descriptor=False)).kernel == "pointer"
    assert waves.choose(problem(384, 512, arch="sm_80", descriptor=False, dense=False)).kernel == "pointer"


def test_the_model_reproduces_what_others_measured():
    """Speed-up of the product alone over a library's, bfloat16 on an H100 or H800, within a quarter.

    flash-muon reports 0.90, 1.19, 1.61 and 1.56 at 1024, 2048, 4096 and 8192, Inductor's closed template 0.69, 0.78,
    1.26 and 1.46. The better of the two is what a good kernel reaches.
    """
    for size, published in ((1024, 0.90), (2048, 1.19), (4096, 1.61), (8192, 1.56)):
        case = problem(size, size)
        product = min(
            waves._wave_clocks(
                case,
                waves.pieces(size, launch),
                launch.block_rows,
                launch.block_columns,
                size,
                launch.block_samples,
                launch.resident,
                launch.num_stages,
                reuse=1,
            )
            for launch in config.descriptor_configs("sm_90", "native")
        )
        assert waves._dense_clocks(case) / product == pytest.approx(published, rel=0.25)


def test_multiprocessors_of_the_device_count():
    assert problem().count == RECORDS["sm_90"].multiprocessors
    assert problem(multiprocessors=78).count == 78
    assert waves.clocks(problem(multiprocessors=66), Plan("descriptor", config.DESCRIPTOR_LARGE)) > waves.clocks(
        problem(), Plan("descriptor", config.DESCRIPTOR_LARGE)
    )


# Measurements


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SDSD_CACHE_DIR", str(tmp_path / "plans"))
    monkeypatch.setattr(autotune, "_remembered", {})
    return tmp_path / "plans"


class Stopwatch:
    """Makes one of the candidates the fastest and counts how often it is asked."""

    def __init__(self, fastest: int):
        self.fastest, self.asked = fastest, 0

    def __call__(self, plan: Plan) -> float:
        self.asked += 1
        return 1.0 if plan == waves.candidates(problem())[self.fastest] else 2.0


def forget(monkeypatch) -> None:
    """As a new process begins."""
    monkeypatch.setattr(autotune, "_remembered", {})


def test_the_fastest_is_taken_and_remembered(cache, monkeypatch):
    watch = Stopwatch(fastest=2)
    plan = autotune.remembered("cosine_matrix", problem(), watch, "A GPU")
    assert plan == waves.candidates(problem())[2]
    assert watch.asked == min(autotune.CANDIDATES, len(waves.candidates(problem())))
    forget(monkeypatch)
    again = Stopwatch(fastest=0)
    assert autotune.remembered("cosine_matrix", problem(), again, "A GPU") == plan
    assert again.asked == 0


def test_measurements_are_kept_apart(cache):
    base = ("cosine_matrix", problem(), "A GPU")
    autotune.remembered(base[0], base[1], Stopwatch(2), base[2])
    for op, case, device in (
        ("gram_accumulate", problem(), "A GPU"),
        ("cosine_matrix", problem(samples=9000), "A GPU"),
        ("cosine_matrix", problem(), "Another GPU"),
    ):
        watch = Stopwatch(0)
        autotune.remembered(op, case, watch, device)
        assert watch.asked > 0
    same_bucket = Stopwatch(0)
    autotune.remembered("cosine_matrix", problem(4090, 4090), same_bucket, "A GPU")
    assert same_bucket.asked == 0
    assert len(list(cache.iterdir())) == 2


def test_the_file_names_device_and_versions(cache, monkeypatch):
    name = autotune.cache_file("NVIDIA H100/80GB").name
    assert "NVIDIA-H100-80GB" in name
    assert torch.__version__ in name
    monkeypatch.setattr(autotune, "versions", lambda: "torch99")
    assert autotune.cache_file("NVIDIA H100/80GB").name != name


def test_the_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("SDSD_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert autotune.cache_file("x").parent == tmp_path / "sdsd"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert autotune.cache_file("x").parts[-3:-1] == (".cache", "sdsd")


@pytest.mark.parametrize("content", ["{", "[]", "", "\x00\xff"])
def test_a_corrupted_file_is_ignored_with_a_warning(content, cache, monkeypatch):
    path = autotune.cache_file("A GPU")
    path.parent.mkdir(parents=True)
    path.write_text(content, encoding="latin-1")
    with pytest.warns(UserWarning, match="ignored"):
        plan = autotune.remembered("cosine_matrix", problem(), Stopwatch(1), "A GPU")
    assert plan == waves.candidates(problem())[1]
    forget(monkeypatch)
    assert autotune.remembered("cosine_matrix", problem(), Stopwatch(0), "A GPU") == plan
    assert json.loads(path.read_text())


@pytest.mark.parametrize("entry", [None, 7, {"kernel": "pointer"}, {"kernel": "dense", "launch": 3, "splits": -1}])
def test_a_plan_that_is_no_candidate_is_measured_again(entry, cache, monkeypatch):
    autotune.remembered("cosine_matrix", problem(), Stopwatch(1), "A GPU")
    path = autotune.cache_file("A GPU")
    path.write_text(json.dumps(dict.fromkeys(json.loads(path.read_text()), entry)))
    forget(monkeypatch)
    watch = Stopwatch(2)
    assert autotune.remembered("cosine_matrix", problem(), watch, "A GPU") == waves.candidates(problem())[2]
    assert watch.asked > 0


def test_a_folder_that_cannot_be_written_costs_a_warning(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("SDSD_CACHE_DIR", str(file / "plans"))
    monkeypatch.setattr(autotune, "_remembered", {})
    with pytest.warns(UserWarning, match="cannot be"):
        plan = autotune.remembered("cosine_matrix", problem(), Stopwatch(1), "A GPU")
    assert plan == waves.candidates(problem())[1]


def test_nothing_is_measured_unasked(cache, monkeypatch):
    def refuse(plan: Plan) -> None:
        raise AssertionError("measured")

    monkeypatch.delenv("SDSD_AUTOTUNE", raising=False)
    for device in ("cpu", "cuda"):
        assert autotune.choose("cosine_matrix", problem(), refuse, torch.device(device)) == waves.choose(problem())
    monkeypatch.setenv("SDSD_AUTOTUNE", "1")
    assert autotune.choose("cosine_matrix", problem(), refuse, torch.device("cpu")) == waves.choose(problem())
    assert not cache.exists()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="measuring needs a GPU")
def test_measuring_on_a_gpu(cache, monkeypatch):
    import sdsd_kernels

    x = torch.randn(300, 500, device="cuda")
    wanted = sdsd_kernels.cosine_matrix(x)
    gram = sdsd_kernels.gram_accumulate(torch.zeros(500, 500, device="cuda"), x)
    monkeypatch.setenv("SDSD_AUTOTUNE", "1")
    assert torch.allclose(sdsd_kernels.cosine_matrix(x), wanted, atol=1e-6)
    again = sdsd_kernels.gram_accumulate(torch.zeros(500, 500, device="cuda"), x)
    assert torch.allclose(again.triu(), gram.triu(), rtol=1e-4, atol=1e-3)
    (file,) = cache.iterdir()
    assert len(json.loads(file.read_text())) == 2


def test_neither_needs_triton():
    code = "import sys, sdsd_kernels.cosine_matrix.autotune; print('triton' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
