"""Write files and folders atomically: they exist completely or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hf_fastif.errors import DiskFullError


def atomic_write(path: Path, write: Callable[[Path], object]) -> Path:
    """Write a file completely or not at all.

    `write` fills a temporary file next to `path`, which is then renamed.

    Raises:
        DiskFullError: If the file does not fit on the disk.

    Example:

    ```python
    atomic_write(Path("scores.json"), lambda file: file.write_text("[0.1, 0.2]"))
    ```
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path.parent):
        try:
            write(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    return path


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Write a folder completely or not at all.

    The block fills a temporary folder, which then replaces `folder`.

    Raises:
        DiskFullError: If the files do not fit on the disk.

    Example:

    ```python
    with atomic_folder(Path("result")) as folder:
        (folder / "scores.json").write_text("[0.1, 0.2]")
    ```
    """
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    with writing(folder):
        try:
            temporary.mkdir(parents=True)
            yield temporary
            shutil.rmtree(folder, ignore_errors=True)
            temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn errors of a full disk into one that names the folder and the way to continue.

    Raises:
        DiskFullError: If no space is left.
    """
    try:
        yield
    except Exception as error:  # each library raises its own class
        if not is_disk_full(error):
            raise
        raise DiskFullError(
            f"{folder}: no space is left on its disk. Free some space or give another folder, then repeat the same "
            "call: finished work is reused."
        ) from error


def is_disk_full(error: Exception) -> bool:
    """Tell whether an error means that no space is left; safetensors and FAISS mention it only in the message."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return full or isinstance(error, DiskFullError) or os.strerror(errno.ENOSPC) in str(error)
