"""What a stranger does in a fresh clone and a fresh environment, from the README alone.

    python -m tests.newcomer --quick          what CI runs: this environment, a fresh clone; under two minutes
    python -m tests.newcomer                  everything; `make newcomer`
    python -m tests.newcomer --only wheel
    python -m tests.newcomer --only two-commands --whole-suite    `make test` as the README has it

What is not committed is not in the clone, and so is not seen. PIP_ARGS is handed on to pip. Every step prints what it
ran, and the exit status is 1 where one failed; nothing is left out without a line that says so.
"""

from __future__ import annotations

import argparse
import functools
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST = (3, 10)
FILES = """
import numpy, torch
torch.manual_seed(0)
torch.save(torch.randn(64, 300) + 0.1, "grads.pt")
numpy.save("activations.npy", torch.randn(200, 30).relu().numpy())
"""
NET = """
import torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential()
model.add_module("encoder", nn.Sequential())
model.encoder.add_module("fc1", nn.Linear(6, 24))
model.encoder.add_module("act", nn.ReLU())
model.add_module("head", nn.Linear(24, 3))
loader = [(torch.randn(64, 6), torch.arange(64) % 3) for _ in range(4)]


def loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])
"""
USES = {
    "gamma": ["gamma grads.pt --confidence 0.95"],
    "map": ["map activations.npy --out out/map"],
    "validate": ["validate"],
    "study": [
        "study --list",
        "study rank --quick --out out/quick",
        "study quotient redundancy --model net.py --layer encoder.fc1 --quick --out out/own",
    ],
    "theory": ["theory well --quick --out out/quick"],
    "claims": ["claims --read --out out/quick --docs out/quick"],
    "geometry": ["geometry --model net.py --layer encoder.fc1 --quick --out out/geometry"],
    "demo": ["demo --epochs 2 --quiet --out out/demo"],
    "completion": ["completion bash"],
    "watch": ["watch run.jsonl"],
}
"""A real use of each subcommand, in an order in which each finds what it reads."""
QUICK_USES = ("gamma", "map", "completion")
"""The rest takes longer, and `first_use.py` validates."""


class FailedError(Exception):
    """A step did not do what a stranger was promised."""


def run(command: list[str], cwd: Path, *, minutes: float = 30, **extra: str) -> str:
    """What a command prints; it has to succeed. Of this checkout it sees nothing but what `extra` names."""
    environment = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "SDSD_BACKEND", "PYTHONPATH")}
    began = time.monotonic()
    print(f"    $ {' '.join(command).strip().splitlines()[0][:110]}", flush=True)
    done = subprocess.run(
        command,
        cwd=cwd,
        env=environment | extra,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60 * minutes,
    )
    print(f"      {time.monotonic() - began:.0f} s", flush=True)
    if done.returncode != 0:
        raise FailedError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-3000:]}")
    return done.stdout


def clone(folder: Path) -> Path:
    """A fresh clone of what is committed here."""
    target = folder / "clone"
    run(["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(target)], folder)
    return target


def pythons() -> dict[str, str]:
    """Version → command of every Python at hand that sdsd may be installed with."""
    found: dict[str, str] = {}
    minor = [f"python3.{n}" for n in range(OLDEST[1], 20)]
    pyenv = Path.home() / ".pyenv" / "versions"
    candidates = [
        sys.executable,
        *filter(None, map(shutil.which, minor)),
        *map(str, sorted(pyenv.glob("*/bin/python"))),
    ]
    ask = "import sys; print('%d.%d' % sys.version_info[:2])"
    for command in candidates:
        done = subprocess.run([command, "-c", ask], capture_output=True, text=True, check=False)
        version = done.stdout.strip()
        if done.returncode == 0 and tuple(map(int, version.split("."))) >= OLDEST:
            found.setdefault(version, command)
    return found


def commands_of(help_text: str) -> list[str]:
    """The subcommands that `sdsd --help` lists."""
    listed = help_text.partition("  COMMAND\n")[2]
    return re.findall(r"^    ([a-z][\w-]*)(?=\s|$)", listed, re.M)


def readme_blocks(text: str) -> dict[str, list[str]]:
    """The code blocks of the README, by language; "" is what is typed into a terminal."""
    blocks: dict[str, list[str]] = {}
    for language, body in re.findall(r"^```(\w*)\n(.*?)^```", text, re.M | re.S):
        blocks.setdefault(language, []).append(body)
    return blocks


def prepare(folder: Path, python: str, **extra: str) -> None:
    """The files that the README's commands read."""
    run([python, "-c", FILES], folder, **extra)
    (folder / "net.py").write_text(NET, encoding="utf-8")


def use_commands(sdsd: list[str], folder: Path, only: tuple[str, ...] | None, **extra: str) -> None:
    """Every subcommand's help, and a real use of each."""
    names = commands_of(run([*sdsd, "--help"], folder, **extra))
    if not names:
        raise FailedError("sdsd --help lists no command")
    unknown = set(names) - set(USES)
    if unknown:
        raise FailedError(f"no real use is known here of {', '.join(sorted(unknown))}: add one to USES")
    for name in names:
        if "examples:" not in run([*sdsd, name, "--help"], folder, **extra):
            raise FailedError(f"sdsd {name} --help shows no example")
    for name in (each for each in USES if each in names and (only is None or each in only)):
        for use in USES[name]:
            if name == "watch":
                watch([*sdsd, *use.split()], folder, **extra)
            else:
                run([*sdsd, *use.split()], folder, **extra)


def watch(command: list[str], folder: Path, **extra: str) -> None:
    """A page that is served until somebody has seen it."""
    print(f"    $ {' '.join(command).strip().splitlines()[0][:110]}", flush=True)
    served = subprocess.Popen(
        command,
        cwd=folder,
        env=os.environ | extra,
        stdout=subprocess.PIPE,
        text=True,
        # Where this runs in the background, Ctrl-C is ignored, and what it starts would ignore it, too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert served.stdout is not None
        address = re.search(r"http://[\d.:]+\S*", served.stdout.readline())
        if address is None:
            raise FailedError("sdsd watch printed no address")
        with urllib.request.urlopen(address[0], timeout=20) as page:
            if b"<html" not in page.read():
                raise FailedError(f"sdsd watch serves no page at {address[0]}")
    finally:
        served.send_signal(signal.SIGINT)
        served.wait(timeout=30)


def typed(block: str) -> list[str]:
    """The commands of a terminal block, without what stands behind them."""
    return [line.partition("   #")[0].strip() for line in block.splitlines() if line.strip()]


# ---- the steps ----


def step_quick(folder: Path) -> None:
    """A fresh clone with this environment: make's list, every help, real uses, the wheel in each Python."""
    here = clone(folder)
    listed = run(["make"], here)
    for target in ("demo", "test", "docs", "newcomer"):
        if f"make {target}" not in listed:
            raise FailedError(f"`make` does not list {target}")
    extra = {"PYTHONPATH": str(here)}
    prepare(folder, sys.executable)
    use_commands([sys.executable, "-m", "sdsd"], folder, QUICK_USES, **extra)
    run([sys.executable, str(here / "tests" / "first_use.py")], folder, **extra)
    for version, command in pythons().items():
        wheel_alone(built(here, folder), version, command, folder)


QUICK_TESTS = ("tests/test_checks.py", "tests/test_readme.py", "tests/test_packaging.py")


def step_two_commands(folder: Path, whole_suite: bool = False) -> None:
    """`make demo` and `make test`, in a clone and an environment of its own; of the tests a few, or the whole suite."""
    here = clone(folder)
    run(["make", "demo"], here)
    if not (here / "out" / "demo" / "report.html").exists():
        raise FailedError("make demo wrote no out/demo/report.html")
    some = [] if whole_suite else [f"TEST_ARGS={' '.join(QUICK_TESTS)}"]
    told = run(["make", "test", *some], here, minutes=180)
    tests = "the whole suite" if whole_suite else f"{', '.join(QUICK_TESTS)}; all with --whole-suite"
    print(f"      {told.strip().splitlines()[-1].strip('= ')} ({tests})", flush=True)


def step_commands(folder: Path) -> None:
    """README's code and terminal lines, and every subcommand, installed as the README says."""
    here = clone(folder)
    run([sys.executable, "-m", "venv", "env"], folder)
    binaries = folder / "env" / "bin"
    pip = [str(binaries / "python"), "-m", "pip", "install", "-q", "-c", str(here / "constraints.txt"), *pip_args()]
    run([*pip, f"{here}[report]"], folder)
    prepare(folder, str(binaries / "python"))
    blocks = readme_blocks((here / "README.md").read_text(encoding="utf-8"))
    for block in blocks["python"]:
        run([str(binaries / "python"), "-c", block], folder)
    path = f"{binaries}{os.pathsep}{os.environ['PATH']}"
    for block in blocks[""]:
        for line in typed(block):
            if line.startswith("sdsd watch "):
                watch([str(binaries / "sdsd"), *line.split()[1:]], folder)
            elif line.startswith("sdsd "):
                run(["bash", "-c", line], folder, PATH=path)
            elif not line.startswith("make "):
                raise FailedError(f"README: nothing here runs the line {line!r}")
    run([str(binaries / "python"), "-c", HISTORY], folder)
    use_commands([str(binaries / "sdsd")], folder, None)


HISTORY = """
import torch, sdsd
history = sdsd.GammaHistory("run.jsonl")
for step in range(1, 4):
    history.append(step, sdsd.gamma_stats(torch.randn(16, 50) + 0.1))
history.flush()
"""


def step_wheel(folder: Path) -> None:
    """The wheel in an empty environment of each Python at hand; with what it needs in this one's."""
    here = clone(folder)
    wheel = built(here, folder)
    for version, command in pythons().items():
        wheel_alone(wheel, version, command, folder)
    run([sys.executable, "-m", "venv", "full"], folder)
    python = str(folder / "full" / "bin" / "python")
    run([python, "-m", "pip", "install", "-q", "-c", str(here / "constraints.txt"), *pip_args(), str(wheel)], folder)
    shutil.copy(here / "tests" / "first_use.py", folder / "first_use.py")
    run([python, "first_use.py"], folder)


def step_site(folder: Path) -> None:
    """`make docs`, and the site in a browser."""
    here = clone(folder)
    run(["make", "docs"], here)
    from tests.browser import executable

    if executable() is None:
        raise FailedError("the site was built and not looked at: no Chromium or Chrome is here (CHROME names one)")
    run([sys.executable, "-m", "tests.look_at_site", "out/site"], here, PYTHONPATH=str(here))


def step_versions(folder: Path) -> None:
    """The oldest torch that is claimed and the newest: gigabytes, for each comes with its own CUDA."""
    here = clone(folder)
    found = pythons()
    for name, version in (("oldest", "3.10"), ("newest", "3.12")):
        if version not in found:
            raise FailedError(f"test-{name} needs Python {version}, and none is at hand")
        run(["make", f".venv-{name}/stamp", f"VERSION_PYTHON={found[version]}"], here, minutes=90)
        run([f".venv-{name}/bin/python", "tests/first_use.py"], here)


def built(here: Path, folder: Path) -> Path:
    """The wheel of a clone."""
    found = list((folder / "dist").glob("*.whl"))
    if not found:
        run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder / "dist"), str(here)], folder)
        found = list((folder / "dist").glob("*.whl"))
    return found[0]


def wheel_alone(wheel: Path, version: str, command: str, folder: Path) -> None:
    """In an environment with nothing else the wheel installs, says its version and shows every help."""
    home = folder / f"env-{version}"
    run([command, "-m", "venv", "--without-pip", str(home)], folder)
    python = str(home / "bin" / "python")
    pip = [sys.executable, "-m", "pip", "--python", python]
    run([*pip, "install", "-q", "--no-deps", "--no-index", str(wheel)], folder)
    said = run([python, "-c", "import sdsd; print(sdsd.__version__)"], folder).strip()
    if f"-{said}-" not in wheel.name:
        raise FailedError(f"{wheel.name} says it is version {said}")
    for name in commands_of(run([str(home / "bin" / "sdsd"), "--help"], folder)):
        run([str(home / "bin" / "sdsd"), name, "--help"], folder)


def pip_args() -> list[str]:
    return os.environ.get("PIP_ARGS", "").split()


STEPS: dict[str, Callable[[Path], None]] = {
    "two-commands": step_two_commands,
    "commands": step_commands,
    "wheel": step_wheel,
    "site": step_site,
    "versions": step_versions,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="what CI runs")
    parser.add_argument("--only", nargs="+", choices=STEPS, help="these steps alone")
    parser.add_argument("--whole-suite", action="store_true", help="in two-commands: all tests, not a few")
    parser.add_argument("--without", nargs="+", choices=STEPS, default=(), help="all but these steps")
    arguments = parser.parse_args()
    left_out = arguments.quick or "two-commands" not in (arguments.only or STEPS) or "two-commands" in arguments.without
    if arguments.whole_suite and left_out:
        parser.error("--whole-suite is for the step two-commands, which is left out")
    steps = dict(STEPS)
    if arguments.whole_suite:
        steps["two-commands"] = functools.partial(step_two_commands, whole_suite=True)
    chosen = (
        {"quick": step_quick}
        if arguments.quick
        else {
            name: step
            for name, step in steps.items()
            if (not arguments.only or name in arguments.only) and name not in arguments.without
        }
    )
    failed = []
    for name, step in chosen.items():
        about = step.func.__doc__ if isinstance(step, functools.partial) else step.__doc__
        print(f"{name}: {(about or '').strip()}", flush=True)
        began = time.monotonic()
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            try:
                step(Path(folder))
            except (FailedError, OSError, subprocess.TimeoutExpired) as error:
                failed.append(name)
                print(f"  FAILED: {error}", flush=True)
        print(f"  {time.monotonic() - began:.0f} s", flush=True)
    left = [name for name in STEPS if name not in chosen]
    print(
        f"{len(chosen) - len(failed)} passed, {len(failed)} failed" + (f"; not run: {', '.join(left)}" if left else "")
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
