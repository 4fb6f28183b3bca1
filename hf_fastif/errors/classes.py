"""Define the errors for users, with one base class to catch them all."""

from __future__ import annotations


class InfluenceError(ValueError):
    """An argument has a value that does not work; the message names both and what to give instead.

    Example:

    ```python
    from hf_fastif import InfluenceError

    try:
        result = trainer.find_influential(queries)
    except InfluenceError as error:
        print(f"error: {error}")
    ```
    """


class NotFoundError(InfluenceError, FileNotFoundError):
    """A folder, repository or file does not exist.

    Example:

    ```python
    try:
        result = InfluenceResult.from_hub("me/influences")
    except NotFoundError:
        result = trainer.find_influential(queries)
    ```
    """


class NotAllowedError(InfluenceError, PermissionError):
    """A token has no permission for a repository."""


class NoSuchQueryError(InfluenceError, IndexError):
    """A result does not contain the query of that number."""


class DiskFullError(InfluenceError, OSError):
    """A disk has no space left for a file."""


class MissingExtraError(InfluenceError, ImportError):
    """A package is not installed that an extra of this one brings."""
