"""The wheel works without the checkout, and importing the library costs and needs little."""

from __future__ import annotations

import email
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from pathlib import Path

import pytest

from sdsd import _extras

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = (
    "matplotlib",
    "plotly",
    "plyfile",
    "rich",
    "sklearn",
    "scipy",
    "safetensors",
    "lightning",
    "transformers",
    "tensorboard",
)
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
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


def metadata(source: Path, folder: Path) -> Message:
    """What a build in `source` says of the project."""
    folder.mkdir()
    build = "import sys; from setuptools.build_meta import prepare_metadata_for_build_wheel as p; p(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", build, str(folder)], cwd=source, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.dist-info/METADATA")
    return email.message_from_string(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A clone of what is committed, with the files that say what the project is as they are here."""
    folder = tmp_path_factory.mktemp("clone")
    done = subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], capture_output=True, text=True, check=False)
    if done.returncode != 0 or _cannot_build_here():
        pytest.skip("needs a git checkout, and the setuptools that pyproject.toml asks for")
    for name in ("pyproject.toml", "setup.py", "README.md"):
        shutil.copy(ROOT / name, folder)
    return folder


def set_origin(clone: Path, address: str) -> None:
    subprocess.run(["git", "-C", str(clone), "config", "remote.origin.url", address], check=True)


@pytest.mark.parametrize(
    ("origin", "page"),
    [
        ("https://somebody:secret@example.org/team/sdsd.git", "https://example.org/team/sdsd"),
        ("https://token@example.org:8443/team/sdsd/", "https://example.org:8443/team/sdsd"),
        ("git@code.example.org:team/sdsd", "https://code.example.org/team/sdsd"),
        ("ssh://git@code.example.org:2222/team/sdsd.git", "https://code.example.org/team/sdsd"),
    ],
)
def test_the_address_that_was_cloned_from_is_in_the_metadata(clone, tmp_path, origin, page):
    set_origin(clone, origin)
    found = metadata(clone, tmp_path / "metadata")
    repository = page + (".git" if origin.endswith(".git") else "")
    assert found.get_all("Project-URL") == [
        f"Homepage, {page}",
        f"Repository, {repository}",
        f"Changelog, {page}/blob/HEAD/CHANGELOG.md",
    ]
    text = found.get_payload()
    assert f"]({page}/raw/HEAD/docs/images/demo.png)" in text
    assert f"[Quickstart in fifty lines]({page}/blob/HEAD/docs/quickstart.md)" in text
    assert [link for link in LINK.findall(text) if not link.startswith("http") and (ROOT / link).exists()] == []
    assert "secret" not in found.as_string()
    assert "token@" not in found.as_string()


@pytest.mark.parametrize(
    "origin",
    [
        "/home/somebody/sdsd",
        "../sdsd",
        "file:///srv/sdsd.git",
        "C:\\code\\sdsd",
        "C:/code/sdsd",
        "hub:team/sdsd",
        "http://localhost:3000/team/sdsd",
        "http://10.0.0.3/team/sdsd",
        "ssh://git@nas.local/sdsd",
        "",
    ],
)
def test_an_address_of_this_machine_is_in_no_metadata(clone, tmp_path, origin):
    set_origin(clone, origin)
    found = metadata(clone, tmp_path / "metadata")
    assert found.get_all("Project-URL") is None
    text = found.get_payload()
    assert "Quickstart in fifty lines (docs/quickstart.md)" in text
    assert "![" not in text
    assert origin == "" or origin not in found.as_string()


def test_a_source_distribution_hands_its_address_and_its_pages_on(clone, tmp_path):
    set_origin(clone, "https://example.org/team/sdsd.git")
    build = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=clone, capture_output=True, check=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(tmp_path, filter="data")
    (unpacked,) = (each for each in tmp_path.iterdir() if each.is_dir())
    assert "Repository, https://example.org/team/sdsd.git" in metadata(unpacked, tmp_path / "metadata").get_all(
        "Project-URL"
    )
    readme = (unpacked / "README.md").read_text(encoding="utf-8")
    linked = [link for link in LINK.findall(readme) if "/" in link or link.endswith(".md")]
    assert len(linked) > 10
    assert [link for link in linked if not (unpacked / link).exists()] == []


def test_advice_on_extras_names_the_repository_of_the_metadata(monkeypatch):
    found = Message()
    monkeypatch.setattr(importlib.metadata, "metadata", lambda name: found)
    assert _extras.how_to_install("rich", "report").endswith("pip install '.[report]'")
    found["Project-URL"] = "Homepage, https://example.org/team/sdsd"
    found["Project-URL"] = "Repository, https://example.org/team/sdsd.git"
    advice = "pip install 'sdsd[report] @ git+https://example.org/team/sdsd.git'"
    assert _extras.how_to_install("rich", "report").endswith(advice)

    def not_installed(name: str) -> Message:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "metadata", not_installed)
    assert _extras.repository() is None


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
