"""Suggest existing names for one that does not exist."""

from __future__ import annotations

import os
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

from hf_fastif.errors.classes import NotFoundError


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the end of an error message with the most similar known name, or an empty string if none is similar.

    Example:

    ```python
    f"solver={name!r} is unknown{did_you_mean(name, ('sdca', 'lissa'))}"  # ...; did you mean 'lissa'?
    ```
    """
    near = get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def check_path(argument: str, name: str) -> None:
    """Refuse a path that does not exist, unless it may be the id of a repository on the Hub.

    Args:
        argument (`str`): Name of the argument.
        name (`str`): Its value. It counts as a path if it starts like one, has at least two slashes, is in an existing
            folder, or resembles an existing path.

    Raises:
        NotFoundError: Naming the existing path that was probably meant.
    """
    path = Path(name).expanduser()
    if path.exists() or "/" not in name:
        return
    near = _nearest(path)
    is_path = name.startswith((".", "/", "~")) or name.count("/") > 1 or path.parent.is_dir()
    if near is None and not is_path:
        return
    fix = f"; did you mean {str(near)!r}?"
    if near is None:
        siblings = sorted(each.name for each in path.parent.iterdir())[:10] if path.parent.is_dir() else []
        fix = f" ({path.parent} holds {', '.join(siblings)})" if siblings else ""
    raise NotFoundError(f"{argument}: there is no folder {name!r}{fix}")


def _nearest(path: Path) -> Path | None:
    """Return the existing path that differs from the given one only by typing errors, or None."""
    existing = Path(path.anchor)
    for part in path.parts[len(existing.parts) :]:
        if not existing.is_dir():
            return None
        if not (existing / part).exists():
            near = get_close_matches(part, os.listdir(existing), n=1)
            if not near:
                return None
            part = near[0]
        existing /= part
    return existing
