"""The errors that are meant for users: one base class to catch them all."""

from __future__ import annotations


class InfluenceError(ValueError):
    """Something that was given does not work; the message names the argument, its value and what to give instead.

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
    """A folder, repository or file that was asked for is not there."""


class NotAllowedError(InfluenceError, PermissionError):
    """A token may not write where it is asked to."""


class NoSuchQueryError(InfluenceError, IndexError):
    """A result was asked for a query that it does not hold."""


class DiskFullError(InfluenceError, OSError):
    """A disk has no space left for what is to be written."""


class MissingExtraError(InfluenceError, ImportError):
    """A package is not installed that an extra of this one brings."""
