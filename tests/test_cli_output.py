"""What the `sdsd` command prints: JSON, text and tables on terminals, completion; and what it reads from a pipe."""

from __future__ import annotations

import fcntl
import html
import json
import math
import os
import pty
import re
import select
import shlex
import shutil
import struct
import subprocess
import sys
import termios
import time

import numpy as np
import pytest
import torch

import sdsd
from sdsd import cli
from sdsd.cli.parser import build_parser
from sdsd.studies.engine.files import plain, revive
from sdsd_kernels._validate import ValidationReport, ValidationRow


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    status = cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.fixture
def gradients():
    return {"weight": torch.randn(40, 6, 5) + 0.5, "bias": torch.randn(40, 6)}


def strict(text: str):
    return json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))


def test_validate_as_json(capsys, monkeypatch):
    row = ValidationRow("gamma_moments", "torch", "noise", (2, 1), "float32", math.nan, 1e-6)
    monkeypatch.setattr(sdsd, "validate", lambda verbose: ValidationReport("cpu", (row,)))
    status, out, _ = run(capsys, "validate", "--json")
    assert status == cli.FELL_SHORT
    found = strict(out)
    assert (found["device"], found["ok"]) == ("cpu", False)
    assert found["rows"] == [
        {
            "op": "gamma_moments",
            "backend": "torch",
            "case": "noise",
            "shape": [2, 1],
            "dtype": "float32",
            "error": None,
            "error_is": "nan",
            "bound": 1e-6,
            "ok": False,
        }
    ]


def test_validate_shows_the_worst_of_each_and_all_that_fall_short(capsys, monkeypatch):
    rows = (
        ValidationRow("gamma_moments", "torch", "noise", (2, 1), "float32", 1e-7, 1e-6),
        ValidationRow("gamma_moments", "torch", "tiny", (3, 7), "float32", 5e-7, 1e-6),
        ValidationRow("cosine_topk", "triton", "plain", (9, 4), "float16", math.nan, 1e-6),
        ValidationRow("cosine_topk", "triton", "exact", (9, 4), "bfloat16", 0.0, 0.0),
    )
    monkeypatch.setattr(sdsd, "validate", lambda verbose: ValidationReport("cpu", rows))
    status, out, _ = run(capsys, "validate")
    assert status == cli.FELL_SHORT
    lines = [line.split() for line in out.splitlines()]
    assert ["gamma_moments", "torch", "float32", "2", "0.50", "ok"] in lines
    assert ["cosine_topk", "triton", "float16", "1", "∞", "FALLS", "SHORT"] in lines
    assert ["cosine_topk", "triton", "bfloat16", "1", "0.00", "ok"] in lines
    assert "FALLS SHORT: cosine_topk, triton, plain, 9×4, float16: error nan, allowed 1.0e-06" in out
    assert out.endswith("4 comparisons on cpu, backends: torch, triton; 1 fall short. All: --json\n")
    table = out.splitlines()[:5]
    assert max(map(len, table)) <= 80


def test_studies_as_json(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    status, out, err = run(capsys, "study", "rank", "--quick", "--json", "--out", tmp_path)
    assert (status, err) == (0, "")
    (found,) = strict(out)
    kept = strict((tmp_path / "rank" / "results.json").read_text(encoding="utf-8"))
    assert found.pop("folder") == str(tmp_path / "rank")
    assert found == kept
    status, out, _ = run(capsys, "theory", "--list", "--json")
    listed = strict(out)
    assert {entry["group"] for entry in listed} == {"theory"}
    assert "rank" in [entry["name"] for entry in listed]
    assert all(entry["claim"] and entry["source"] for entry in listed)


def test_geometry_as_json(capsys, tmp_path):
    pytest.importorskip("plotly")
    pytest.importorskip("plyfile")
    pytest.importorskip("sklearn")
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\ntorch.manual_seed(0)\n"
        "model = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 3))\n"
        "loader = [(torch.randn(40, 6), torch.arange(40) % 3)]\n"
    )
    out_folder = tmp_path / "out"
    words = ("geometry", "--model", tmp_path / "net.py", "--layer", "0", "--quick", "--pairs", "3", "--out", out_folder)
    status, out, err = run(capsys, *words, "--json")
    assert (status, err) == (0, "")
    found = strict(out)
    kept = strict((out_folder / "results.json").read_text(encoding="utf-8"))
    assert (found.pop("folder"), found.pop("resumed")) == (str(out_folder), [])
    assert found == kept
    page = (out_folder / "report.html").read_text(encoding="utf-8")
    command = html.unescape(re.search(r"<pre><code>(.*?)</code></pre>", page)[1])
    assert shlex.split(command) == ["sdsd", *map(str, words), "--json"]


def test_what_is_not_finite_is_null_with_a_flag():
    value = {
        "scale": math.inf,
        "interval": (1.5, math.inf),
        "rows": [[0.0, -math.inf], [math.nan]],
        "pair": (1, 2),
        "inside": [{"low": math.nan}],
        "word": "inf",
    }
    text = json.dumps(plain(value), allow_nan=False)
    assert strict(text) == {
        "scale": None,
        "scale_is": "inf",
        "interval": [1.5, None],
        "interval_is": {"1": "inf"},
        "rows": [[0.0, None], [None]],
        "rows_is": {"0.1": "-inf", "1.0": "nan"},
        "pair": [1, 2],
        "inside": [{"low": None, "low_is": "nan"}],
        "word": "inf",
    }
    assert revive(strict(text)) == {
        "scale": math.inf,
        "interval": [1.5, math.inf],
        "rows": [[0.0, -math.inf], [None]],
        "pair": [1, 2],
        "inside": [{"low": None}],
        "word": "inf",
    }


@pytest.mark.parametrize("ending", ["npy", "npz", "pt", "safetensors"])
def test_a_file_on_standard_input(gradients, tmp_path, ending):
    values = gradients
    path = tmp_path / f"grads.{ending}"
    if ending == "npy":
        np.save(path, values["bias"].numpy())
    elif ending == "npz":
        np.savez(path, **{name: value.numpy() for name, value in values.items()})
    elif ending == "pt":
        torch.save(values, path)
    else:
        pytest.importorskip("safetensors.torch").save_file(values, path)
    command = [sys.executable, "-m", "sdsd", "gamma", "-", "--json"]
    piped = subprocess.run(command, input=path.read_bytes(), capture_output=True, check=True).stdout
    named = subprocess.run([*command[:-2], path, "--json"], capture_output=True, check=True).stdout
    (one,), (two,) = strict(piped.decode()), strict(named.decode())
    assert (one.pop("file"), two.pop("file")) == ("-", str(path))
    assert one == two


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "standard input: the file is empty"),
        (b"PK\x03\x04nonsense", "standard input: starts like a PyTorch file"),
        (b"hello hello hello", "standard input: expected a PyTorch file (torch.save)"),
    ],
)
def test_nothing_of_use_on_standard_input(data, message):
    done = subprocess.run([sys.executable, "-m", "sdsd", "map", "-"], input=data, capture_output=True, check=False)
    assert done.returncode == 2
    assert done.stderr.decode().startswith(f"error: {message}")
    assert done.stderr.count(b"\n") == 1


def completed(words: list[str], folder) -> set[str]:
    """What bash offers after these words."""
    script = subprocess.run(
        [sys.executable, "-m", "sdsd", "completion", "bash"], capture_output=True, text=True, check=True
    ).stdout
    listed = " ".join(map(shlex.quote, words))
    program = (
        f"{script}\nCOMP_WORDS=({listed}); COMP_CWORD={len(words) - 1}; _sdsd; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    )
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True, cwd=folder)
    assert done.stderr == ""
    return set(done.stdout.split())


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash on this machine")
def test_completion_in_bash(tmp_path):
    (tmp_path / "grads.pt").touch()
    (tmp_path / "act.npy").touch()
    assert completed(["sdsd", ""], tmp_path) == {*cli.COMMANDS, "--help", "--version"}
    assert completed(["sdsd", "ge"], tmp_path) == {"geometry"}
    assert completed(["sdsd", "gamma", "--co"], tmp_path) == {"--confidence"}
    assert completed(["sdsd", "gamma", "a.pt", "gr"], tmp_path) == {"grads.pt"}
    assert completed(["sdsd", "completion", ""], tmp_path) == {"--help", "bash", "zsh", "fish"}
    assert "--json" in completed(["sdsd", "study", "--"], tmp_path)


def a_sdsd_to_complete(folder) -> dict[str, str]:
    """A folder with files, and an environment in which the command `sdsd` is there."""
    (folder / "grads.pt").touch()
    (folder / "bin").mkdir()
    (folder / "bin" / "sdsd").write_text("#!/bin/sh\n")
    (folder / "bin" / "sdsd").chmod(0o755)
    return os.environ | {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "HOME": str(folder), "TERM": "xterm"}


@pytest.mark.skipif(shutil.which("fish") is None, reason="no fish on this machine")
def test_completion_in_fish(capsys, tmp_path):
    environment = a_sdsd_to_complete(tmp_path)
    (tmp_path / "sdsd.fish").write_text(run(capsys, "completion", "fish")[1], encoding="utf-8")

    def offered(line: str) -> set[str]:
        words = ["fish", "--no-config", "-c", f"source sdsd.fish; complete -C '{line}'"]
        done = subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
        return {each.split("\t")[0] for each in done.stdout.splitlines()}

    assert offered("sdsd ") == set(cli.COMMANDS)
    assert offered("sdsd ge") == {"geometry"}
    assert offered("sdsd gamma --co") == {"--confidence"}
    assert offered("sdsd completion ") == {"bash", "zsh", "fish"}
    assert offered("sdsd gamma gr") == {"grads.pt"}


@pytest.mark.skipif(shutil.which("zsh") is None, reason="no zsh on this machine")
@pytest.mark.parametrize(
    ("typed", "completed"),
    [("sdsd ge", "sdsd geometry "), ("sdsd gamma --conf", "sdsd gamma --confidence "), ("sdsd gamma gr", "grads.pt")],
)
def test_completion_in_zsh(capsys, tmp_path, typed, completed):
    environment = a_sdsd_to_complete(tmp_path)
    script = run(capsys, "completion", "zsh")[1]
    (tmp_path / "sdsd.zsh").write_text(
        f"autoload -Uz compinit; compinit -u -D\n{script}\nprint ready", encoding="utf-8"
    )
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        ["zsh", "-f", "-i"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=tmp_path,
        env=environment,
        start_new_session=True,
    )
    os.close(theirs)
    told = b""

    def wait_for(words: str) -> None:
        nonlocal told
        deadline = time.monotonic() + 60
        while words not in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", told.decode(errors="replace")):
            assert time.monotonic() < deadline, told
            if select.select([ours], [], [], 0.2)[0]:
                told += os.read(ours, 65536)

    try:
        os.write(ours, b"source sdsd.zsh\n")
        wait_for("\nready")
        told = b""
        os.write(ours, f"{typed}\t".encode())
        wait_for(completed)
    finally:
        process.kill()
        process.wait()
        os.close(ours)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_every_command_and_option(capsys, shell, tmp_path):
    status, out, _ = run(capsys, "completion", shell)
    assert status == 0
    _, parsers = build_parser(cli.COMMANDS)
    for name, parser in parsers.items():
        assert name in out
        for option in re.findall(r"(?m)^  (--[a-z-]+)", parser.format_help()):
            assert (option if shell != "fish" else f"-l {option[2:]}") in out
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} on this machine: its script is not parsed")
    (tmp_path / "script").write_text(out)
    subprocess.run([shell, "-n", tmp_path / "script"], check=True)


def on_a_terminal(columns: int, *arguments: str, cwd) -> str:
    """What a command prints on a terminal of so many columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        [sys.executable, "-m", "sdsd", *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=cwd,
        env=environment | {"TERM": "xterm"},
        start_new_session=True,
    )
    os.close(theirs)
    told = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:
            break
        if not part:
            break
        told += part
    os.close(ours)
    assert process.wait() == 0
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", told.decode()).replace("\r\n", "\n")


@pytest.mark.parametrize("columns", [80, 160])
def test_help_fits_the_terminal(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    parser, parsers = build_parser(cli.COMMANDS)
    for each in (parser, *parsers.values()):
        assert [line for line in each.format_help().splitlines() if len(line) > columns] == []


def test_what_commands_print_fits_the_terminal(tmp_path):
    pytest.importorskip("sklearn")
    long = {f"transformer.encoder.layers.{i}.self_attention.output.weight": torch.randn(64, 8) for i in range(3)}
    torch.save(long, tmp_path / "long.pt")
    np.save(tmp_path / "act.npy", torch.randn(80, 30).relu().numpy())
    (tmp_path / "train.py").write_text(
        "import torch\nfrom torch import nn\ntorch.manual_seed(0)\nmodel = nn.Linear(4, 3)\n"
        "loader = [torch.randn(8, 4)]\ndef loss(model, batch):\n    return (model(batch) - 1).square().mean()\n"
    )
    lines_of = {}
    for arguments in (
        ("gamma", "long.pt"),
        ("gamma", "train.py", "--steps", "20"),
        ("map", "act.npy", "--out", "mapped"),
        ("study", "--list"),
        ("study", "rank", "--quick", "--out", "studies"),
        ("claims", "--read", "--out", "studies", "--docs", "docs"),
        ("demo", "--epochs", "1", "--out", "demo"),
    ):
        lines = [line.split("\r")[-1] for line in on_a_terminal(80, *arguments, cwd=tmp_path).split("\n")]
        assert [line for line in lines if len(line) > 80] == [], arguments
        lines_of[arguments] = lines
    assert all(name in lines_of["gamma", "long.pt"] for name in long)
    wide = on_a_terminal(160, "gamma", "long.pt", cwd=tmp_path).split("\n")
    assert all(any(line.startswith(f"{name}  ") for line in wide) for name in long)
    assert max(map(len, wide)) <= 160


def test_no_carriage_return_where_there_is_no_terminal(tmp_path):
    pytest.importorskip("matplotlib")
    done = subprocess.run(
        [sys.executable, "-m", "sdsd", "study", "rank", "--quick", "--out", tmp_path], capture_output=True, check=True
    )
    assert b"\r" not in done.stdout + done.stderr
    assert "seed 0" in done.stdout.decode()
