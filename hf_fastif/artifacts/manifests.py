"""Manifests: what an artifact belongs to, and the size and digest of each of its files.

An artifact may come from somebody else. So its manifest is read first, and nothing of it is opened that is not of the
size and digest that the manifest says.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import UnionType
from typing import Any

from safetensors import SafetensorError

from hf_fastif.errors import InfluenceError


MAX_BYTES = 16 << 20  # of a manifest
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")  # of a file beside its manifest: no folders, nothing hidden
DIGEST = re.compile(r"[0-9a-f]{64}")


def describe_files(folder: Path, names: Iterable[str]) -> dict[str, dict[str, int | str]]:
    """Size and SHA-256 of some files of a folder, for the entry `files` of its manifest."""
    return {name: {"size": (folder / name).stat().st_size, "sha256": _sha256(folder / name)} for name in names}


def read_manifest(path: Path, **types: type | UnionType) -> dict[str, Any]:
    """Reads a manifest, whoever wrote it.

    Args:
        path (`Path`): The JSON file.
        **types (`type`): The entries that it must have beside `files`.

    Raises:
        ValueError: If it is no manifest, lacks an entry, or names files outside its folder.
    """
    if path.stat().st_size > MAX_BYTES:
        raise InfluenceError(f"{path} has {path.stat().st_size:,} bytes; a manifest has {MAX_BYTES:,} at most.")
    try:
        manifest = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InfluenceError(f"{path} is not JSON ({error}); it is damaged or no manifest.") from error
    types = types | {"files": dict}
    wrong = [n for n, kind in types.items() if not isinstance(manifest, dict) or not _is(manifest.get(n, ...), kind)]
    if wrong:
        raise InfluenceError(
            f"{path} is no manifest of this kind or version (entries missing or of another type: {', '.join(wrong)}); "
            "make the artifact anew."
        )
    for name, file in manifest["files"].items():
        _check_entry(path, name, file)
    return manifest


def check_files(folder: Path, files: Mapping[str, Mapping[str, int | str]]) -> None:
    """Compares the files of a folder with its manifest: first all sizes, then the digests.

    Raises:
        ValueError: If a file is missing, shorter or longer than it should be, or not the one that was written.
    """
    for name, file in files.items():
        size = (folder / name).stat().st_size if (folder / name).is_file() else None
        if size != file["size"]:
            found = "is missing" if size is None else f"has {size:,} bytes"
            raise InfluenceError(f"{folder / name} {found}; its manifest says {file['size']:,} bytes. Get it anew.")
    for name, file in files.items():
        if _sha256(folder / name) != file["sha256"]:
            raise InfluenceError(
                f"{folder / name} is not the file that its manifest describes (SHA-256). Get it anew."
            )


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Says which file it was that could not be read."""
    try:
        yield
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InfluenceError(f"{path} cannot be read ({error}); it is damaged or not of this kind.") from error


def _is(value: Any, kind: type | UnionType) -> bool:
    return isinstance(value, kind) and not (isinstance(value, bool) and kind is int)


def _check_entry(path: Path, name: str, file: Any) -> None:
    if not NAME.fullmatch(name):
        raise InfluenceError(f"{path} names the file {name!r}; the files of an artifact lie beside its manifest.")
    good = isinstance(file, dict) and _is(file.get("size"), int) and isinstance(file.get("sha256"), str)
    if not good or file["size"] < 0 or not DIGEST.fullmatch(file["sha256"]):
        raise InfluenceError(f"{path} does not tell size and sha256 of the file {name!r}; it is damaged.")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
