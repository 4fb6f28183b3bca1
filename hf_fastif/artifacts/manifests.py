"""Write and check manifests: what an artifact belongs to, and the size and digest of each of its files.

An artifact may come from an untrusted source. So its manifest is read first, and a file is opened only if its size and
digest match the manifest.
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


MAX_BYTES = 16 << 20  # of a manifest, which is read into memory before anything is checked
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")  # of a file next to its manifest: no folders, nothing hidden
DIGEST = re.compile(r"[0-9a-f]{64}")


def describe_files(folder: Path, names: Iterable[str]) -> dict[str, dict[str, int | str]]:
    """Return size in bytes and SHA-256 of some files of a folder, for the entry `files` of its manifest."""
    return {name: {"size": (folder / name).stat().st_size, "sha256": _sha256(folder / name)} for name in names}


def read_manifest(path: Path, **types: type | UnionType) -> dict[str, Any]:
    """Read a manifest that may come from an untrusted source.

    Args:
        path (`Path`): The JSON file.
        **types (`type`): Names and types of the entries that it must have in addition to `files`.

    Raises:
        InfluenceError: If the file is not a manifest, lacks an entry, or names files outside its folder.
    """
    if path.stat().st_size > MAX_BYTES:
        raise InfluenceError(f"{path} has {path.stat().st_size:,} bytes; a manifest has at most {MAX_BYTES:,}.")
    try:
        manifest = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InfluenceError(f"{path} is not JSON ({error}); it is damaged or not a manifest.") from error
    types = types | {"files": dict}
    wrong = [n for n, kind in types.items() if not isinstance(manifest, dict) or not _is(manifest.get(n, ...), kind)]
    if wrong:
        raise InfluenceError(
            f"{path} is not a manifest of this kind or version (entries missing or of the wrong type: "
            f"{', '.join(wrong)}); recreate the artifact."
        )
    for name, file in manifest["files"].items():
        _check_entry(path, name, file)
    return manifest


def check_files(folder: Path, files: Mapping[str, Mapping[str, int | str]]) -> None:
    """Compare the files of a folder with its manifest: first all sizes, which is cheap, then the digests.

    Raises:
        InfluenceError: If a file is missing, or its size or digest differs.
    """
    for name, file in files.items():
        size = (folder / name).stat().st_size if (folder / name).is_file() else None
        if size != file["size"]:
            state = "is missing" if size is None else f"has {size:,} bytes"
            raise InfluenceError(
                f"{folder / name} {state}; its manifest says {file['size']:,} bytes. Download it again."
            )
    for name, file in files.items():
        if _sha256(folder / name) != file["sha256"]:
            raise InfluenceError(
                f"{folder / name} is not the file that its manifest describes (SHA-256). Download it again."
            )


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn errors of reading a file into one that names it.

    Raises:
        InfluenceError: If the block could not read the file.
    """
    try:
        yield
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InfluenceError(f"{path} cannot be read ({error}); it is damaged or in another format.") from error


def _is(value: Any, kind: type | UnionType) -> bool:
    return isinstance(value, kind) and not (isinstance(value, bool) and kind is int)


def _check_entry(path: Path, name: str, file: Any) -> None:
    if not NAME.fullmatch(name):
        raise InfluenceError(f"{path} names the file {name!r}; the files of an artifact are next to its manifest.")
    good = isinstance(file, dict) and _is(file.get("size"), int) and isinstance(file.get("sha256"), str)
    if not good or file["size"] < 0 or not DIGEST.fullmatch(file["sha256"]):
        raise InfluenceError(f"{path} does not give size and sha256 of the file {name!r}; it is damaged.")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
