"""Say which extra of the package is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hf_fastif.errors.classes import MissingExtraError


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Import optional dependencies within the block.

    Raises:
        MissingExtraError: If one is not installed, with the command that installs it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"{str(error.name).partition('.')[0]} is not installed, which this needs: pip install 'hf_fastif[{extra}]'"
        ) from error
