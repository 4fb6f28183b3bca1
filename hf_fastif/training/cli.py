"""Command lines of the recipes: dataclasses as flags, over the values of a YAML file."""

from __future__ import annotations

import json
import os
import sys
from argparse import SUPPRESS
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

import yaml
from transformers import HfArgumentParser

from hf_fastif.artifacts import is_disk_full
from hf_fastif.errors import InfluenceError, NotFoundError, did_you_mean


class Parser(HfArgumentParser):
    """Parse flags; say what is wrong with them in one line, without the usage of all flags."""

    def error(self, message: str) -> NoReturn:
        """Refuse the command line."""
        raise InfluenceError(message)


def run_recipe(main: Callable[..., None], *dataclasses: type) -> None:
    """Run a recipe on its command line.

    What a user can mend (`InfluenceError`, a file that is not there, a disk that is full) ends it with one line and
    the exit code 2; everything else is an error of the program and keeps its traceback.

    Args:
        main (`Callable`): Takes an instance of each dataclass.
        *dataclasses (`type`): What the flags say.
    """
    try:
        main(*parse_arguments(*dataclasses))
    except Exception as error:
        if not isinstance(error, InfluenceError | FileNotFoundError) and not is_disk_full(error):
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


def parse_arguments(*dataclasses: type, argv: Sequence[str] | None = None) -> tuple[Any, ...]:
    """Read dataclasses from `--config FILE.yaml` and from flags, which override the file.

    Values of the file become the defaults of the flags, so that they are converted as flags are. Flags are not to be
    abbreviated.

    Raises:
        InfluenceError: If the file cannot be read, or it or a flag names a setting that no dataclass has.
    """
    file_parser = Parser(add_help=False, allow_abbrev=False)
    file_parser.add_argument("--config", default=SUPPRESS, help="YAML file of settings; flags override it.")
    parser = Parser(dataclasses, parents=[file_parser], allow_abbrev=False)
    names = [field.name for dataclass in dataclasses for field in fields(dataclass) if field.init]
    given, flags = file_parser.parse_known_args(sys.argv[1:] if argv is None else argv)
    if "config" in given:
        parser.set_defaults(**_read_config(given.config, names))
    *parsed, strange = parser.parse_args_into_dataclasses(
        flags, return_remaining_strings=True, look_for_args_file=False
    )
    if strange:
        flag = next((word for word in strange if word.startswith("-")), strange[0]).partition("=")[0]
        near = did_you_mean(flag, [f"--{name}" for name in ("config", *names)])
        raise InfluenceError(f"this recipe does not know {flag!r}{near or '; --help lists the flags'}")
    return tuple(parsed)


def _read_config(path: str, names: Sequence[str]) -> dict[str, Any]:
    """Read settings, which must be among some names, as defaults of flags."""
    file = Path(path)
    if not file.is_file():
        near = did_you_mean(file.name, os.listdir(file.parent) if file.parent.is_dir() else ())
        raise NotFoundError(f"config={path!r}: there is no such file{near or '.'}")
    try:
        settings = yaml.safe_load(file.read_text("utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InfluenceError(f"config={path!r} is not YAML: {error}") from error
    if not isinstance(settings, dict):
        raise InfluenceError(
            f"config={path!r} holds a {type(settings).__name__}; give settings, one a line, as in 'num_queries: 10'."
        )
    if unknown := sorted({str(name) for name in settings} - {*names}):
        raise InfluenceError(
            f"config={path!r} has settings that this recipe does not know: {', '.join(unknown)}"
            f"{did_you_mean(unknown[0], names) or '.'}"
        )
    return {name: _as_flag(value) for name, value in settings.items()}


def _as_flag(value: Any) -> Any:
    # argparse converts defaults that are strings: 1e-3, which YAML leaves a string, becomes a float this way, and so
    # does the 3 of three epochs.
    if isinstance(value, dict):
        return json.dumps(value)
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
