"""Parse the command lines of recipes: dataclasses as flags, which override a YAML file."""

from __future__ import annotations

import inspect
import json
import os
import sys
from argparse import SUPPRESS, ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

import yaml
from transformers import HfArgumentParser

from hf_fastif.artifacts import is_disk_full
from hf_fastif.errors import InfluenceError, NotFoundError, did_you_mean


class RawDescriptionWithDefaults(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """Print the description as it is written, and the default of each flag."""


class Parser(HfArgumentParser):
    """Parse flags, and report a mistake in one line, without the usage of all flags."""

    def error(self, message: str) -> NoReturn:
        """Raise an InfluenceError with argparse's message."""
        raise InfluenceError(message)

    def convert(self, name: str, value: Any, declared: Any) -> Any:
        """Convert a value of a YAML file as the flag of this name would convert the same text.

        Args:
            name (`str`): The name of the setting.
            value (`Any`): The value that YAML read.
            declared (`Any`): The type of the setting. Null, a list and a dictionary, which a flag cannot give, pass as
                they are if it allows them.

        Raises:
            InfluenceError: If the flag does not take the value.
        """
        allowed = {get_origin(each) or each for each in (declared, *get_args(declared))}
        if value is None:
            if type(None) not in allowed and self.get_default(name) is not None:
                default = self.get_default(name)
                raise InfluenceError(f"{name}=None: give a value, or leave the line out for {default!r}.")
            return None
        if isinstance(value, list):
            words = [f"--{name}", *map(str, value)]
        else:
            words = [f"--{name}={json.dumps(value) if isinstance(value, dict) else value}"]
        try:
            converted = getattr(self.parse_known_args(words)[0], name)
        except InfluenceError as error:
            raise InfluenceError(f"{name}={value!r}: {str(error).partition(': ')[2]}") from error
        is_text = isinstance(value, dict) and isinstance(converted, str)  # JSON, for flags that take it
        if isinstance(value, list | dict) and not isinstance(converted, type(value)):
            if type(value) in allowed:
                return value
            if not is_text:
                raise InfluenceError(f"{name}={value!r}: it cannot be a {type(value).__name__}; give one value.")
        return converted


def run_recipe(main: Callable[..., None], *dataclasses: type) -> None:
    """Run a recipe on its command line.

    An error that the user can fix (`InfluenceError`, a missing file, a full disk) is printed as one line and ends the
    process with exit code 2. Any other error is a bug and keeps its traceback.

    Args:
        main (`Callable`): The recipe, which takes an instance of each dataclass.
        *dataclasses (`type`): The dataclasses whose fields are the flags.

    Example:

    ```python
    if __name__ == "__main__":
        run_recipe(main, RecipeArguments, DataArguments, InfluenceConfig)
    ```
    """
    try:
        main(*parse_arguments(*dataclasses, description=inspect.getmodule(main).__doc__))
    except Exception as error:
        if not isinstance(error, InfluenceError | FileNotFoundError) and not is_disk_full(error):
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


def parse_arguments(
    *dataclasses: type, argv: Sequence[str] | None = None, description: str | None = None
) -> tuple[Any, ...]:
    """Read dataclasses from `--config FILE.yaml` and from flags, which override the file.

    Values from the file become the defaults of the flags and are converted in the same way. Flags cannot be
    abbreviated.

    Args:
        *dataclasses (`type`): The dataclasses whose fields are the flags.
        argv (`Sequence[str]`, *optional*): The words of the command line; unless given, those of the process.
        description (`str`, *optional*): What `--help` prints above the flags.

    Returns:
        An instance of each dataclass.

    Raises:
        InfluenceError: If the file cannot be read, or if it or a flag names a setting that no dataclass has, or gives
            one a value of the wrong type.

    Example:

    ```python
    model, config = parse_arguments(ModelArguments, InfluenceConfig, argv=["--output_dir", "out"])
    ```
    """
    file_parser = Parser(add_help=False, allow_abbrev=False)
    file_parser.add_argument("--config", default=SUPPRESS, help="YAML file of settings; flags override it.")
    parser = Parser(
        dataclasses,
        parents=[file_parser],
        allow_abbrev=False,
        description=description,
        formatter_class=RawDescriptionWithDefaults,
        usage="%(prog)s [--config FILE.yaml] [--FLAG VALUE ...]",
    )
    names = [field.name for dataclass in dataclasses for field in fields(dataclass) if field.init]
    given, flags = file_parser.parse_known_args(sys.argv[1:] if argv is None else argv)
    if "config" in given:
        types = {name: kind for each in dataclasses for name, kind in get_type_hints(each).items()}
        settings = _read_config(given.config, names)
        parser.set_defaults(**{name: parser.convert(name, settings[name], types[name]) for name in settings})
    *parsed, unknown_words = parser.parse_args_into_dataclasses(
        flags, return_remaining_strings=True, look_for_args_file=False
    )
    if unknown_words:
        flag = next((word for word in unknown_words if word.startswith("-")), unknown_words[0]).partition("=")[0]
        near = did_you_mean(flag, [f"--{name}" for name in ("config", *names)])
        raise InfluenceError(f"this recipe does not know {flag!r}{near or '; --help lists the flags'}")
    return tuple(parsed)


def _read_config(path: str, names: Sequence[str]) -> dict[str, Any]:
    """Read settings from a YAML file; all must be among `names`."""
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
    return settings
