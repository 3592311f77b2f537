"""Optional packages: imported where they are used, and named with the way to install them where they are missing."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
from types import ModuleType

PACKAGES = {"sklearn": "scikit-learn", "umap": "umap-learn", "faiss": "faiss-cpu"}
"""What brings a module that has another name."""


class MissingExtraError(ImportError):
    """A package of one of the optional extras is needed and not installed."""


def require(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import `module`, or say which extra brings it.

    Args:
        module: the module's import name, for example "matplotlib".
        extra: the extra of this project that installs it, for example "report".
        purpose: what needs it, as the start of the sentence "<purpose> needs <module>".

    Raises:
        MissingExtraError: the package is not installed.
        ValueError: MPLBACKEND names what matplotlib does not know.
    """
    try:
        return importlib.import_module(module)
    except (ValueError, ModuleNotFoundError) as error:
        understood = _understood(error, module.split(".")[0], extra, purpose)
        if understood is None:
            raise
        raise understood from error


def _understood(error: Exception, package: str, extra: str, purpose: str) -> Exception | None:
    """An error that says what to do, where it is known why the import failed."""
    backend = os.environ.get("MPLBACKEND")
    if isinstance(error, ValueError) and package == "matplotlib" and backend:
        return ValueError(
            f"MPLBACKEND: expected a backend of matplotlib's, got {backend!r}. Unset it, or set MPLBACKEND=agg; "
            "sdsd draws into files and needs no display."
        )
    if isinstance(error, ModuleNotFoundError) and error.name is not None and error.name.split(".")[0] == package:
        name = PACKAGES.get(package, package)
        return MissingExtraError(f"{purpose} needs {name}, which is not installed. {how_to_install(name, extra)}")
    return None


def how_to_install(package: str, extra: str) -> str:
    """Commands that work while sdsd is on no package index."""
    address = repository()
    everything = (
        f"in a checkout of sdsd, for everything of its kind: pip install '.[{extra}]'"
        if address is None
        else f"for everything of its kind: pip install 'sdsd[{extra}] @ git+{address}'"
    )
    return f"Run: pip install {package}; or, {everything}"


def repository() -> str | None:
    """The address in the metadata of the installation (setup.py puts it there), or None."""
    try:
        named = importlib.metadata.metadata("sdsd").get_all("Project-URL") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((url.partition(", ")[2] for url in named if url.startswith("Repository, ")), None)
