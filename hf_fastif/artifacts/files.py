"""Writing files so that what is there is whole."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hf_fastif.errors import DiskFullError


def atomic_write(path: Path, write: Callable[[Path], object]) -> Path:
    """Lets `write` fill a temporary file beside `path`, then renames it, so that `path` is never half-written.

    Raises:
        DiskFullError: If it does not fit on the disk.
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
    """Let a temporary folder be filled, then rename it to `folder`, in place of what is there.

    Raises:
        DiskFullError: If it does not fit on the disk.
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
    """Say which disk is full, and how to go on."""
    try:
        yield
    except Exception as error:  # each library has its own
        if not is_disk_full(error):
            raise
        raise DiskFullError(
            f"{folder}: no space is left on its disk. Free some, or give another folder, and do the same again: it "
            "goes on from what is finished."
        ) from error


def is_disk_full(error: Exception) -> bool:
    """Tell whether an error means that no space is left; safetensors and FAISS say so in words alone."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return full or isinstance(error, DiskFullError) or os.strerror(errno.ENOSPC) in str(error)
