"""The `sdsd` command as a person meets it."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import sdsd
from sdsd import cli
from sdsd_kernels._validate import ValidationReport, ValidationRow


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    status = cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def refused(capsys, *arguments: str) -> str:
    status, out, err = run(capsys, *arguments)
    assert status == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


@pytest.fixture
def gradients(tmp_path):
    values = {"weight": torch.randn(40, 6, 5) + 0.5, "bias": torch.randn(40, 6)}
    path = tmp_path / "grads.npz"
    np.savez(path, **{name: value.numpy() for name, value in values.items()})
    return path, values


@pytest.fixture
def activations(tmp_path):
    values = torch.randn(50, 7).relu()
    values[:, 3] = 0
    values[:, 5] = values[:, 1] * 2
    path = tmp_path / "activations.npy"
    np.save(path, values.numpy())
    return path


def test_help_lists_the_commands_and_each_has_examples(capsys):
    status, out, _ = run(capsys)
    assert status == 0
    for name in cli.COMMANDS:
        assert name in out
        with pytest.raises(SystemExit) as stop:
            cli.main([name, "--help"])
        assert stop.value.code == 0
        assert f"examples:\n  {'sdsd' if name not in ('validate', 'completion') else ''}" in capsys.readouterr().out


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert sdsd.__version__ in capsys.readouterr().out


def test_help_does_not_wait_for_torch():
    program = "import sys; from sdsd.cli import main; main([]); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "commands:" in done.stdout


def test_an_output_that_is_not_unicode_spells_what_it_cannot_show(tmp_path):
    np.save(tmp_path / "grads.npy", torch.randn(8, 5).numpy())

    def told(encoding: str, *arguments: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-m", "sdsd", *arguments],
            env=dict(os.environ, PYTHONIOENCODING=encoding),
            capture_output=True,
            check=True,
            cwd=tmp_path,
        )
        return done.stdout.decode(encoding).splitlines()

    assert "Gamma, noise scale" in " ".join(told("cp1252", "--help"))
    _, header, line, total, *_ = told("ascii", "gamma", "grads.npy")
    assert header.split()[0] == "Gamma"
    assert set(line) == {"-", " "}
    assert [len(word) for word in line.split()][1:4] == [len("Gamma of one sample"), len("noise scale"), 12]
    assert total.startswith("total")


def test_an_option_without_a_command_is_refused(capsys):
    assert "sdsd does not know '--jsn'. See: sdsd --help" in refused(capsys, "--jsn")
    assert "Did you mean --version?" in refused(capsys, "--vesrion")


def test_gradients_that_are_not_finite_are_said_in_one_line_and_in_the_status(capsys, tmp_path):
    values = torch.randn(8, 5)
    values[3, 2] = float("nan")
    np.save(tmp_path / "grads.npy", values.numpy())
    for more in ([], ["--json"]):
        status, out, err = run(capsys, "gamma", tmp_path / "grads.npy", *more)
        assert status == cli.FELL_SHORT
        assert (
            err == "warning: gradients hold NaN or infinity in: gradients. Their statistics, and the total, are NaN.\n"
        )
        assert "no verdict" in out or json.loads(out)[0]["gamma"] is None


def test_names_of_the_package_are_there_at_first_use():
    program = (
        "import sys, sdsd\n"
        "assert 'torch' not in sys.modules\n"
        "assert set(sdsd.__all__) <= set(dir(sdsd))\n"
        "for name in (*sdsd.__all__, 'gamma', 'geometry', 'theory', 'integrations', 'report', 'studies'):\n"
        "    getattr(sdsd, name)\n"
        "try: sdsd.gama\n"
        "except AttributeError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.strip() == "module 'sdsd' has no attribute 'gama'"


def test_python_dash_m_runs_the_same_command():
    done = subprocess.run([sys.executable, "-m", "sdsd", "gama"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.strip() == "error: there is no command 'gama'. Did you mean 'gamma'?"


def test_unknown_words_are_met_with_the_nearest_known(capsys):
    assert "Did you mean 'demo'" in refused(capsys, "dmo")
    assert "Commands: demo" in refused(capsys, "xyzzy")
    assert "Did you mean --confidence" in refused(capsys, "gamma", "a.npy", "--confidnce", "0.9")
    assert "Did you mean --confidence?" in refused(capsys, "gamma", "a.npy", "--conf", "0.9")
    assert "Did you mean --seed or --seeds?" in refused(capsys, "study", "rank", "--see=1")
    assert "sdsd gamma --help" in refused(capsys, "gamma")
    assert "between 0 and 1" in refused(capsys, "gamma", "a.npy", "--confidence", "95")
    assert "at least 1, got '0'" in refused(capsys, "demo", "--epochs", "0")
    assert "at least 0, got '-1'" in refused(capsys, "demo", "--seed=-1")


def test_gamma_prints_what_gamma_stats_says(capsys, gradients):
    path, values = gradients
    status, out, _ = run(capsys, "gamma", path, "--batch-size", "256", "--json")
    assert status == 0
    stats = sdsd.gamma_stats(values, batch_size=256, confidence=0.95)
    (found,) = json.loads(out)
    assert found["file"] == str(path)
    assert found["gamma_unbiased"] == stats.gamma_unbiased
    assert tuple(found["interval"]) == stats.interval
    assert found["parameters"]["weight"]["noise_scale"] == stats.parameters["weight"].noise_scale
    assert found["phase"] == stats.phase == "drift"


def test_gamma_tables_of_several_files(capsys, gradients, tmp_path):
    path, values = gradients
    torch.save({"step": 7, "grads": values}, tmp_path / "step.pt")
    status, out, _ = run(capsys, "gamma", path, tmp_path / "step.pt", "--samples-per-gradient", "4")
    assert status == 0
    assert out.count("each the mean over 4 samples") == 2
    assert "grads.weight" in out
    assert "phase at batch 160" in out
    assert "as much signal as noise" in out
    status, out, _ = run(capsys, "gamma", tmp_path / "step.pt", "--key", "grads.bias")
    assert "weight" not in out


def test_gamma_of_a_population(capsys, gradients):
    path, values = gradients
    status, out, _ = run(capsys, "gamma", path, "--population", "50", "--json")
    assert status == 0
    (found,) = json.loads(out)
    assert found["gamma_unbiased"] == sdsd.gamma_stats(values, population=50, confidence=0.95).gamma_unbiased
    assert found["gamma_unbiased"] > sdsd.gamma_stats(values).gamma_unbiased
    assert "at least the 40 samples seen" in refused(capsys, "gamma", path, "--population", "39")


def test_gamma_says_in_a_sentence_what_the_data_can_tell(capsys, tmp_path):
    generator = torch.Generator().manual_seed(0)
    for shift, sentence in (
        (0.5, "samples holds as much signal as noise.\n"),
        (0.09, "samples holds as much signal as noise, but the interval is open above: more gradients would tell.\n"),
        (0.0, "No signal can be told from the noise with so few gradients.\n"),
    ):
        np.save(tmp_path / "grads.npy", (torch.randn(24, 60, generator=generator) + shift).numpy())
        _, out, _ = run(capsys, "gamma", tmp_path / "grads.npy")
        assert sentence in out


def test_gamma_json_is_strict_where_nothing_is_known(capsys, tmp_path):
    np.save(tmp_path / "noise.npy", np.array([[1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, 1.0]]))
    status, out, _ = run(capsys, "gamma", tmp_path / "noise.npy", "--json")
    assert status == 0
    (found,) = json.loads(out, parse_constant=lambda constant: pytest.fail(constant))
    assert (found["noise_scale"], found["noise_scale_is"]) == (None, "inf")
    assert '"inf"' not in out.replace('_is": "inf"', "")


def test_map_writes_the_matrix_and_names_dead_and_near(capsys, activations, tmp_path):
    pytest.importorskip("sklearn")
    out_folder = tmp_path / "out"
    status, out, _ = run(capsys, "map", activations, "--k", "2", "--out", out_folder)
    assert status == 0
    assert "7 neurons, 6 alive, 1 dead" in out
    assert "dead: 3" in out
    assert "1 – 5" in out
    matrix = np.load(out_folder / "cosine.npy")
    assert np.array_equal(matrix, sdsd.neuron_cosine_matrix(torch.from_numpy(np.load(activations))).numpy())
    results = json.loads((out_folder / "results.json").read_text())
    assert results["dead"] == [3]
    assert results["nearest"][0]["first"] == 1
    assert (out_folder / "cosine_matrix.png").stat().st_size > 1000
    assert (out_folder / "neuron_map.png").stat().st_size > 1000
    assert "drawNeuronMap" in (out_folder / "map.html").read_text(encoding="utf-8")


def test_map_of_a_large_layer_is_a_sample_and_says_so(capsys, monkeypatch, tmp_path):
    pytest.importorskip("sklearn")
    monkeypatch.setattr("sdsd.geometry.map.placing.MOST_PLACED", 30)
    values = np.random.default_rng(0).standard_normal((60, 50), dtype=np.float32)
    values[:, 7], values[3, 8] = 0, np.nan
    np.save(tmp_path / "wide.npy", values)
    status, out, _ = run(capsys, "map", tmp_path / "wide.npy", "--out", tmp_path / "out")
    assert status == 0
    assert "50 neurons, 48 alive, 1 dead, 1 with NaN or infinity" in out
    assert "dead: 7\nNaN or infinity: 8\n" in out
    assert "A random sample of 30 of the 48 live neurons is placed and grouped; pairs are of all." in out
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert len(results["order"]) == len(results["points"]) == 30
    assert len({pair[key] for pair in results["nearest"] for key in ("first", "second")} - set(results["order"])) > 0
    assert (tmp_path / "out" / "neuron_map.png").exists()
    assert "30 of 48 live neurons, a random sample" in (tmp_path / "out" / "map.html").read_text(encoding="utf-8")


def test_map_along_another_dimension(capsys, activations, tmp_path):
    pytest.importorskip("sklearn")
    np.save(tmp_path / "turned.npy", np.load(activations).T)
    run(capsys, "map", activations, "--out", tmp_path / "a", "--center")
    status, out, _ = run(
        capsys, "map", tmp_path / "turned.npy", "--neuron-dim", "0", "--out", tmp_path / "b", "--center", "--json"
    )
    assert status == 0
    assert json.loads(out)["center"] is True
    live = [0, 1, 2, 4, 5, 6]
    correlation = np.corrcoef(np.load(activations)[:, live].T)
    for folder in ("a", "b"):
        assert np.allclose(np.load(tmp_path / folder / "cosine.npy")[np.ix_(live, live)], correlation, atol=1e-5)


@pytest.mark.parametrize("shape", [(9, 1), (9, 2), (9, 3), (2, 4, 3, 3)])
def test_map_of_few_neurons_and_of_images(capsys, tmp_path, shape):
    pytest.importorskip("sklearn")
    np.save(tmp_path / "few.npy", np.random.default_rng(0).standard_normal(shape, dtype=np.float32))
    status, out, _ = run(capsys, "map", tmp_path / "few.npy", "--out", tmp_path / "out")
    assert status == 0
    assert f"few.npy: {shape[1]} neuron{'s' if shape[1] > 1 else ''}, " in out
    assert ("nearest" in out) == (shape[1] > 1)


def test_map_of_a_dead_layer(capsys, activations, tmp_path):
    """Pictures of the file that was mapped into the same folder before are gone, not left as if they were its own."""
    pytest.importorskip("sklearn")
    np.save(tmp_path / "dead.npy", np.zeros((5, 4), dtype=np.float32))
    run(capsys, "map", activations, "--out", tmp_path / "out")
    status, out, _ = run(capsys, "map", tmp_path / "dead.npy", "--out", tmp_path / "out")
    assert status == 0
    assert "4 neurons, 0 alive, 4 dead" in out
    assert "nearest" not in out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["cosine.npy", "results.json"]


def test_bad_files_end_in_one_line(capsys, gradients, activations, tmp_path):
    path, _ = gradients
    assert "Did you mean" in refused(capsys, "gamma", str(path).replace("grads", "grad"))
    (tmp_path / "text.pt").write_text("hello hello hello")
    assert "hello" in refused(capsys, "map", tmp_path / "text.pt")
    assert "there is no entry 'nope'" in refused(capsys, "gamma", path, "--key", "nope")
    np.savez(tmp_path / "mixed.npz", log=np.array([None], dtype=object), grads=np.ones((4, 3)))
    assert "in 'log'" in refused(capsys, "gamma", tmp_path / "mixed.npz")
    assert "--key NAME: grads (4, 3)" in refused(capsys, "map", tmp_path / "mixed.npz")
    np.save(tmp_path / "whole.npy", np.arange(6).reshape(3, 2))
    assert "whole.npy: " in refused(capsys, "gamma", tmp_path / "whole.npy")
    np.save(tmp_path / "one.npy", np.ones((1, 4)))
    assert "one.npy: " in refused(capsys, "gamma", tmp_path / "one.npy")
    np.save(tmp_path / "flat.npy", np.ones(4))
    assert "flat.npy: " in refused(capsys, "map", tmp_path / "flat.npy")
    assert "neuron_dim" in refused(capsys, "map", activations, "--neuron-dim", "5")
    assert "is a file" in refused(capsys, "map", activations, "--out", activations)
    assert "is a file" in refused(capsys, "demo", "--out", activations)


def test_missing_extra_ends_in_one_line(capsys, monkeypatch, activations, tmp_path):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert "[report]" in refused(capsys, "map", activations, "--out", tmp_path / "out")
    assert "[report]" in refused(capsys, "demo", "--out", tmp_path / "out")


def test_a_backend_that_matplotlib_does_not_know_ends_in_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "sdsd", "demo", "--out", "demo"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env=dict(os.environ, MPLBACKEND="nonsense", PYTHONPATH=os.pathsep.join(sys.path)),
    )
    assert (done.returncode, done.stdout) == (cli.BAD_INPUT, "")
    assert done.stderr.startswith("error: MPLBACKEND: expected a backend of matplotlib's, got 'nonsense'. Unset it")
    assert done.stderr.count("\n") == 1


def test_debug_shows_the_traceback(capsys, monkeypatch):
    monkeypatch.setenv("SDSD_DEBUG", "1")
    _, _, err = run(capsys, "gamma", "nowhere.npy")
    assert "Traceback" in err


def test_our_own_faults_are_not_dressed_up(monkeypatch, gradients):
    monkeypatch.setattr("sdsd.cli.gamma.print_gamma", lambda *_: [][1])
    with pytest.raises(IndexError):
        cli.main(["gamma", str(gradients[0])])


def test_a_full_disk_is_named_by_the_folder(capsys, monkeypatch, activations, tmp_path):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as a write has it: without a name

    monkeypatch.setattr(np, "save", full)
    said = refused(capsys, "map", activations, "--out", tmp_path / "out")
    assert f"{tmp_path / 'out'}: could not be written to the end (No space left on device). Make room" in said
    monkeypatch.setattr("sdsd.cli.gamma.print_text", full)
    assert "standard output: could not be written (No space" in refused(capsys, "gamma", activations)


def test_claims_are_refused_a_folder_before_the_studies_run(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("sdsd.studies.Runner", lambda *_, **__: pytest.fail("the studies ran"))
    (tmp_path / "file").touch()
    said = refused(capsys, "claims", "--out", tmp_path / "out", "--docs", tmp_path / "file")
    assert "is a file. Choose another with --docs." in said


@pytest.mark.skipif(sys.platform == "win32", reason="closes file descriptors before the process starts")
@pytest.mark.parametrize("descriptor", [1, 2])
def test_a_closed_output_is_no_fault(gradients, descriptor):
    done = subprocess.run(
        [sys.executable, "-m", "sdsd", "gamma", gradients[0], "--samples-per-gradient", "2"],
        stdout=subprocess.PIPE if descriptor != 1 else None,
        stderr=subprocess.PIPE if descriptor != 2 else None,
        preexec_fn=lambda: os.close(descriptor),
    )
    assert done.returncode == 0
    assert b"Traceback" not in (done.stdout or b"") + (done.stderr or b"")


def test_interrupt(capsys, monkeypatch, tmp_path):
    demo = pytest.importorskip("sdsd.studies.demo.run")

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "train", interrupt)
    status, _, err = run(capsys, "demo", "--out", tmp_path, "--quiet")
    assert status == 130
    assert "results.json, report.html" in err
    monkeypatch.setattr(demo, "prepare_output", interrupt)
    status, _, err = run(capsys, "demo", "--out", tmp_path, "--quiet")
    assert status == 130
    assert "Traceback" not in err


@pytest.mark.parametrize(("ok", "status"), [(True, 0), (False, 1)])
def test_validate_reports_by_its_status(monkeypatch, ok, status):
    row = ValidationRow("gamma_moments", "torch", "noise", (2, 1), "float32", 1e-7 if ok else 1e-5, 1e-6)
    monkeypatch.setattr(sdsd, "validate", lambda verbose: ValidationReport("cpu", (row,)))
    assert cli.main(["validate"]) == status


def test_import_of_sdsd_needs_no_extra():
    code = "import sdsd, sys; print([m for m in ('matplotlib', 'rich', 'sklearn', 'safetensors') if m in sys.modules])"
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "[]"
