"""Guesses at what was meant by a name that does not exist."""

from __future__ import annotations

import os
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

from hf_fastif.errors.classes import NotFoundError


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """End an error message with the known name that is most like this one, or with nothing if none is."""
    near = get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def check_path(argument: str, name: str) -> None:
    """Check that a path exists; a name that is not a path may be that of a repository on the Hub.

    Args:
        argument (`str`): What was given.
        name (`str`): Its value. It is a path if it starts as one, has two slashes or more, lies in a folder that is
            there, or if there is a path much like it.

    Raises:
        NotFoundError: Naming a path that is there and was probably meant.
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
        there = sorted(each.name for each in path.parent.iterdir())[:10] if path.parent.is_dir() else []
        fix = f" ({path.parent} holds {', '.join(there)})" if there else ""
    raise NotFoundError(f"{argument}: there is no folder {name!r}{fix}")


def _nearest(path: Path) -> Path | None:
    """Find a path that exists and differs from the given one by typing errors only."""
    found = Path(path.anchor)
    for part in path.parts[len(found.parts) :]:
        if not found.is_dir():
            return None
        if not (found / part).exists():
            near = get_close_matches(part, os.listdir(found), n=1)
            if not near:
                return None
            part = near[0]
        found /= part
    return found
