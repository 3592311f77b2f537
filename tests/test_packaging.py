"""The wheel works without the checkout, and importing the library costs and needs little."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = (
    "matplotlib", "plotly", "plyfile", "rich", "sklearn", "scipy", "safetensors", "lightning", "transformers",
    "tensorboard",
)  # fmt: skip
COMPUTE = """
import torch, sdsd
gradients = torch.randn(8, 1000, dtype=torch.float64) + 1
variance, mean = torch.var_mean(gradients, 0)
assert abs(sdsd.gamma_stats(gradients).gamma / (mean.dot(mean) / variance.sum()).item() - 1) < 1e-9
similarity = sdsd.neuron_cosine_matrix(gradients, neuron_dim=0)
assert torch.allclose(similarity, torch.nn.functional.cosine_similarity(gradients[:, None], gradients[None], dim=-1))
"""
HIDE_TRITON = """
import importlib.metadata, sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "triton":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

def version(name, version=importlib.metadata.version):
    if "triton" in name:
        raise importlib.metadata.PackageNotFoundError(name)
    return version(name)

sys.meta_path.insert(0, Hidden())
importlib.metadata.version = version
"""


def python(code: str, cwd: Path, search: Path = ROOT) -> str:
    """What a fresh interpreter prints, started in `cwd` with nothing but `search` added to its path."""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("TRITON_INTERPRET", "SDSD_BACKEND")
    }
    environment["PYTHONPATH"] = str(search)
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy of the checkout so that the checkout stays clean."""
    if not (ROOT / "pyproject.toml").exists():
        pytest.skip("there is no checkout to build from")
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "sdsd", "sdsd_kernels"):
        if (ROOT / name).exists():
            subprocess.run(["cp", "-r", str(ROOT / name), str(source)], check=True)
    pip = [sys.executable, "-m", "pip", "wheel", str(source), "--no-deps", "-w", str(target), "-q"]
    isolation = [] if _cannot_build_here() else ["--no-build-isolation"]
    subprocess.run([*pip, *isolation], check=True, timeout=300)
    (path,) = target.glob("*.whl")
    return path


def _cannot_build_here() -> bool:
    """Whether this environment lacks the setuptools that pyproject.toml asks for, so that pip has to fetch it."""
    try:
        import setuptools
    except ImportError:
        return True
    return int(setuptools.__version__.split(".")[0]) < 77


def test_wheel_holds_what_users_need(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {"sdsd/py.typed", "sdsd_kernels/py.typed"}
    wanted |= {str(path.relative_to(ROOT)) for path in (ROOT / "sdsd_kernels").glob("*/README.md")}
    wanted |= {str(path.relative_to(ROOT)) for path in (ROOT / "sdsd").rglob("*.js")}
    for package in ("sdsd", "sdsd_kernels"):
        wanted |= {str(path.relative_to(ROOT)) for path in (ROOT / package).rglob("*.py")}
    assert wanted - names == set()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"sdsd", "sdsd_kernels"}
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_source_distribution_holds_every_tracked_file(tmp_path):
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=False)
    if listed.returncode != 0 or _cannot_build_here():
        pytest.skip("needs git's list of files, and the setuptools that pyproject.toml asks for")
    tracked = [name for name in listed.stdout.split() if (ROOT / name).is_file() and not name.startswith(".")]
    source = tmp_path / "source"
    for name in tracked:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    build = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)], cwd=source, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        held = {name.partition("/")[2] for name in opened.getnames()}
    assert set(tracked) - held == set()


def test_wheel_computes_without_the_checkout(wheel, tmp_path):
    unpacked = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(unpacked)
    where = python(COMPUTE + "import sdsd_kernels\nprint(sdsd.__file__, sdsd_kernels.__file__)", tmp_path, unpacked)
    assert all(name.startswith(str(unpacked)) for name in where.split())


def test_import_needs_no_triton_and_no_extra(tmp_path):
    loaded = set(python("import sys; from sdsd import *; print(*sys.modules)", tmp_path).split())
    assert loaded & {"triton", *EXTRAS} == set()


def test_import_adds_little_to_torch(tmp_path):
    before = python("import sys, torch, numpy; print(*sys.modules)", tmp_path).split()
    after = python("import sys, torch, numpy; from sdsd import *; print(*sys.modules)", tmp_path).split()
    added = set(after) - set(before)
    foreign = {name.split(".")[0] for name in added} - {"sdsd", "sdsd_kernels"} - set(sys.stdlib_module_names)
    assert foreign <= {"torch"}
    assert len([name for name in added if name.startswith("torch.")]) <= 20


def test_torch_serves_where_triton_is_absent(tmp_path):
    python(
        HIDE_TRITON + COMPUTE + "import sdsd_kernels\nassert sdsd_kernels.available_backends() == ('torch',)", tmp_path
    )


def test_the_hidden_triton_is_hidden(tmp_path):
    code = HIDE_TRITON + "try:\n    import triton\nexcept ImportError:\n    print('hidden')"
    assert python(code, tmp_path).strip() == "hidden"
