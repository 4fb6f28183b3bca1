"""Command lines of the recipes: dataclasses as flags, over the values of a YAML file."""

from __future__ import annotations

import json
import os
import sys
from argparse import SUPPRESS
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser


def parse_arguments(*dataclasses: type, argv: Sequence[str] | None = None) -> tuple[Any, ...]:
    """Reads dataclasses from `--config FILE.yaml` and from flags, which override the file.

    Values of the file become the defaults of the flags, so that they are converted as flags are.

    Raises:
        ValueError: If the file names a setting that no dataclass has.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = HfArgumentParser(dataclasses)
    parser.add_argument("--config", default=SUPPRESS, help="YAML file of settings; flags override it.")
    path = _pop_config(argv)
    if path is not None:
        settings = yaml.safe_load(Path(path).read_text("utf-8")) or {}
        known = {action.dest for action in parser._actions}
        unknown = sorted(set(settings) - known)
        if unknown:
            raise ValueError(f"config={path!r} has settings that this recipe does not know: {', '.join(unknown)}.")
        parser.set_defaults(**{name: _as_flag(value) for name, value in settings.items()})
        for action in parser._actions:
            action.required = action.required and action.dest not in settings
    return parser.parse_args_into_dataclasses(argv, look_for_args_file=False)


def check_processes(num_processes: int) -> None:
    """Refuses to run as one of several that do not know of each other: all would write the same files."""
    wanted = int(os.environ.get("WORLD_SIZE", 1))
    if num_processes != wanted:
        raise RuntimeError(
            f"This process was launched as one of {wanted}, but runs alone ({num_processes} process). On machines "
            "without a GPU launch with: accelerate launch --multi_gpu --num_processes N recipe.py --use_cpu"
        )


def _pop_config(argv: list[str]) -> str | None:
    for position, word in enumerate(argv):
        if word == "--config" and position + 1 < len(argv):
            path = argv[position + 1]
            del argv[position : position + 2]
            return path
        if word.startswith("--config="):
            del argv[position]
            return word.partition("=")[2]
    return None


def _as_flag(value: Any) -> Any:
    # argparse converts defaults that are strings: 1e-3, which YAML leaves a string, becomes a float this way.
    return json.dumps(value) if isinstance(value, dict) else value
