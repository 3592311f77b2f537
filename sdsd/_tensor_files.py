"""Tensors from files: .npy, .npz, .pt, .pth and .safetensors, read without running any code they carry."""

from __future__ import annotations

import contextlib
import difflib
import io
import pickle
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._extras import require

KNOWN_EXTENSIONS = (".npy", ".npz", ".pt", ".pth", ".safetensors")
ZIP_MAGIC = b"PK\x03\x04"
NPY_MAGIC = b"\x93NUMPY"
STANDARD_INPUT = "-"


class TensorFileError(ValueError):
    """A file that cannot be read as tensors; the message says what was expected, what came and what to do."""


def load_tensors(path: str | Path, key: str | None = None) -> Tensor | dict[str, Tensor]:
    """Read a tensor, or a dictionary of tensors, from `path`.

    Args:
        path: a .npy, .npz, .pt, .pth or .safetensors file, or "-" for one on standard input. Nested dictionaries come
            back flat, names joined by dots; entries that are no tensors (an epoch number, text) are left out.
        key: take only the entry of this name, or the group of entries whose names start with "key.".

    Returns:
        The tensor of a file that holds one bare tensor or of an exact `key`; otherwise name -> tensor.

    Raises:
        TensorFileError: there is no such file, or it is not a whole tensor file of a known kind.
        MissingExtraError: a .safetensors file where the package safetensors is not installed.
    """
    path = Path(path)
    if str(path) == STANDARD_INPUT:
        return _load_standard_input(key)
    _check_readable(path)
    extension = path.suffix.lower()
    if extension == ".npy":
        loaded: Any = _load_npy(path)
    elif extension == ".npz":
        loaded = _load_npz(path, key)
    elif extension == ".safetensors":
        loaded = _load_safetensors(path)
    else:
        loaded = _load_torch(path)
    tensors = _only_tensors(path, loaded)
    return tensors if key is None else _select(path, tensors, key)


def _load_standard_input(key: str | None) -> Tensor | dict[str, Tensor]:
    """One file of a known kind, which its first bytes tell."""
    if sys.stdin is None or sys.stdin.isatty():
        raise TensorFileError("standard input: expected a tensor file, got a terminal. Pipe a file in, or name it.")
    data = sys.stdin.buffer.read()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        path = Path(folder) / f"input{_extension_of(data)}"
        path.write_bytes(data)
        try:
            return load_tensors(path, key)
        except TensorFileError as error:
            raise TensorFileError(str(error).replace(str(path), "standard input")) from error


def _extension_of(data: bytes) -> str:
    if data.startswith(NPY_MAGIC):
        return ".npy"
    if data.startswith(ZIP_MAGIC):
        with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(io.BytesIO(data)) as archive:
            if all(name.endswith(".npy") for name in archive.namelist()):
                return ".npz"
    return ".safetensors" if data[8:9] == b"{" else ".pt"


def load_tensor(path: str | Path, key: str | None = None) -> Tensor:
    """Read one tensor from `path`: a bare tensor, the only entry of an archive, or the entry named `key`."""
    loaded = load_tensors(path, key)
    if isinstance(loaded, Tensor):
        return loaded
    if len(loaded) == 1:
        return next(iter(loaded.values()))
    raise TensorFileError(
        f"{path}: expected one tensor, found {len(loaded)}: {_listed(loaded)}. Choose one with --key NAME."
    )


def _check_readable(path: Path) -> None:
    if path.is_dir():
        raise TensorFileError(f"{path}: expected a file, got a directory. Name a file in it.")
    if not path.exists():
        raise TensorFileError(f"{path}: there is no such file.{_near_names(path)}")
    if not path.is_file():
        raise TensorFileError(f"{path}: expected a file, got a device or a pipe. Send it to standard input and name -.")
    if path.suffix.lower() not in KNOWN_EXTENSIONS:
        got = f"the extension {path.suffix!r}" if path.suffix else "a name without an extension"
        raise TensorFileError(
            f"{path}: expected a tensor file ({', '.join(KNOWN_EXTENSIONS)}), got {got}. "
            f"Save with numpy.save, torch.save or safetensors.torch.save_file."
        )
    try:
        size = path.stat().st_size
        with path.open("rb"):
            pass
    except OSError as error:
        raise TensorFileError(f"{path}: cannot be read ({error.strerror}). Check its permissions.") from error
    if size == 0:
        raise TensorFileError(f"{path}: the file is empty (0 bytes). Save it again.")


def _near_names(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f" Nor is there a folder {folder}."
    names = sorted(entry.name for entry in folder.iterdir() if entry.suffix.lower() in KNOWN_EXTENSIONS)
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    if near:
        return f" Did you mean {' or '.join(str(folder / name) for name in near)}?"
    if names:
        return f" Tensor files in {folder}: {', '.join(names[:5])}{', …' if len(names) > 5 else ''}."
    return f" There is no tensor file in {folder}."


def _load_npy(path: Path) -> np.ndarray:
    if not _start(path).startswith(NPY_MAGIC):
        raise _not_of_its_kind(path, "a NumPy array (numpy.save)")
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        if "pickle" in str(error).lower():
            raise _needs_code(path, "an array of Python objects") from error
        raise _damaged(path, "a NumPy array") from error


def _load_npz(path: Path, key: str | None) -> dict[str, np.ndarray]:
    """The arrays of numbers in an archive; with `key` only what it names, whatever the others are."""
    if not _start(path).startswith((ZIP_MAGIC, b"PK\x05\x06")):
        raise _not_of_its_kind(path, "a NumPy archive (numpy.savez)")
    try:
        with np.load(path, allow_pickle=False) as archive:
            named = [name for name in archive.files if key is not None and f"{name}.".startswith(f"{key}.")]
            if key is not None and not named:
                raise TensorFileError(f"{path}: there is no entry {key!r}. {_entries(archive.files, key)}")
            arrays = {name: _member(archive, name) for name in named or archive.files}
    except TensorFileError:
        raise
    except (zipfile.BadZipFile, EOFError, OSError, ValueError) as error:
        raise _damaged(path, "a NumPy archive") from error
    objects = [name for name, each in arrays.items() if each is None]
    if objects:
        raise _objects_among(path, objects, arrays)
    if named:
        return arrays
    # Members that are no arrays come as bytes.
    text = [name for name, each in arrays.items() if not isinstance(each, np.ndarray) or each.dtype.kind in "SU"]
    if text and len(text) == len(arrays):
        raise TensorFileError(
            f"{path}: expected at least one tensor, found text alone, in {_quoted(text)}. Save arrays of numbers under "
            "names, for example numpy.savez(path, name=array)."
        )
    return {name: each for name, each in arrays.items() if name not in text}


def _member(archive: Any, name: str) -> Any:
    """One entry; None for an array of Python objects."""
    try:
        return archive[name]
    except ValueError as error:
        if "pickle" in str(error).lower():
            return None
        raise


def _objects_among(path: Path, objects: Sequence[str], arrays: Mapping[str, Any]) -> TensorFileError:
    readable = {
        name: each for name, each in arrays.items() if isinstance(each, np.ndarray) and each.dtype.kind in "biufc"
    }
    what = "an array" if len(objects) == 1 else "arrays"
    got = f"{what} of Python objects in {_quoted(objects)}"
    if not readable:
        return _needs_code(path, got)
    return TensorFileError(
        f"{path}: expected arrays of numbers, got {got}, which cannot be loaded without running code from the file. "
        f"Choose an entry that can be read with --key NAME: {_listed(readable)}."
    )


def _quoted(names: Sequence[str], most: int = 8) -> str:
    more = f", … ({len(names)} in all)" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more


def _entries(names: Sequence[str], key: str, most: int = 8) -> str:
    near = difflib.get_close_matches(key, names, n=1)
    more = f", … ({len(names)} in all)" if len(names) > most else ""
    return f"Its entries: {', '.join(names[:most])}{more}.{f' Did you mean {near[0]!r}?' if near else ''}"


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    require("safetensors", extra="report", purpose=f"reading {path.name}")
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        header = int.from_bytes(_start(path)[:8], "little")
        if path.stat().st_size >= 8 and header <= 100_000_000 and _start(path)[8:9] == b"{":
            raise _damaged(path, "a safetensors file") from error
        raise _not_of_its_kind(path, "a safetensors file (safetensors.torch.save_file)") from error


def _load_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported" in str(error) and _start(path).startswith((ZIP_MAGIC, b"\x80")):
            raise _needs_code(path, "Python objects") from error
        raise _torch_file_problem(path) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        raise _torch_file_problem(path) from error


def _torch_file_problem(path: Path) -> TensorFileError:
    if _start(path).startswith((ZIP_MAGIC, b"\x80")):
        return _damaged(path, "a PyTorch file")
    return _not_of_its_kind(path, "a PyTorch file (torch.save)")


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(16)


def _not_of_its_kind(path: Path, kind: str) -> TensorFileError:
    return TensorFileError(
        f"{path}: expected {kind}, got a file that starts with {_start(path)!r}. "
        f"Check that this is the file you meant, and that its extension says what it is."
    )


def _damaged(path: Path, kind: str) -> TensorFileError:
    return TensorFileError(
        f"{path}: starts like {kind} but cannot be read to its end ({path.stat().st_size:,} bytes): "
        f"truncated or damaged. Copy or save it again."
    )


def _needs_code(path: Path, what: str) -> TensorFileError:
    return TensorFileError(
        f"{path}: holds {what}, which cannot be loaded without running code from the file. "
        f"Save plain tensors instead, for example torch.save({{name: tensor, …}}, path)."
    )


def _only_tensors(path: Path, loaded: Any) -> Tensor | dict[str, Tensor]:
    if isinstance(loaded, (Tensor, np.ndarray)):
        return _as_tensor(path, loaded)
    tensors = {name: _as_tensor(path, value, name) for name, value in _leaves(loaded)}
    if not tensors:
        what = "an empty archive" if isinstance(loaded, (Mapping, list, tuple)) and not loaded else "no tensor in it"
        raise TensorFileError(f"{path}: expected at least one tensor, found {what}. Save tensors under names.")
    return tensors


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Tensor | np.ndarray]]:
    if isinstance(value, (Tensor, np.ndarray)):
        yield prefix, value
    elif isinstance(value, Mapping):
        for name, entry in value.items():
            yield from _leaves(entry, f"{prefix}.{name}" if prefix else str(name))
    elif isinstance(value, (list, tuple)):
        for index, entry in enumerate(value):
            yield from _leaves(entry, f"{prefix}.{index}" if prefix else str(index))


def _as_tensor(path: Path, value: Tensor | np.ndarray, name: str = "") -> Tensor:
    if isinstance(value, Tensor):
        return value.detach()
    try:
        return torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("="), order="K"))
    except TypeError as error:
        entry = f"{path}, entry {name!r}" if name else f"{path}"
        raise TensorFileError(f"{entry}: expected an array of numbers, got dtype {value.dtype}.") from error


def _select(path: Path, tensors: Tensor | dict[str, Tensor], key: str) -> Tensor | dict[str, Tensor]:
    if isinstance(tensors, Tensor):
        raise TensorFileError(f"{path}: holds one bare tensor, so it has no entry {key!r}. Leave --key out.")
    if key in tensors:
        return tensors[key]
    group = {name[len(key) + 1 :]: tensor for name, tensor in tensors.items() if name.startswith(f"{key}.")}
    if group:
        return group
    near = difflib.get_close_matches(key, tensors, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise TensorFileError(f"{path}: there is no entry {key!r}. Its entries: {_listed(tensors)}.{hint}")


def _listed(tensors: Mapping[str, Tensor] | Mapping[str, np.ndarray], most: int = 8) -> str:
    names = [f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items()]
    return ", ".join(names[:most]) + (f", … ({len(names)} in all)" if len(names) > most else "")
