"""Command lines of the recipes: dataclasses as flags, over the values of a YAML file."""

from __future__ import annotations

import json
import os
import sys
from argparse import SUPPRESS
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import psutil
import yaml
from accelerate.commands.config.config_args import default_config_file, load_config_from_file
from accelerate.commands.launch import launch_command_parser
from transformers import HfArgumentParser

from hf_fastif.artifacts import is_disk_full
from hf_fastif.errors import InfluenceError, LaunchError, NotFoundError, did_you_mean


SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")  # of torchrun and of MPI's launchers


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
    """Reads dataclasses from `--config FILE.yaml` and from flags, which override the file.

    Values of the file become the defaults of the flags, so that they are converted as flags are.

    Raises:
        InfluenceError: If the file cannot be read, or it or a flag names a setting that no dataclass has.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = Parser(dataclasses)
    parser.add_argument("--config", default=SUPPRESS, help="YAML file of settings; flags override it.")
    path = _pop_config(argv)
    if path is not None:
        settings = _read_config(path)
        known = {action.dest for action in parser._actions}
        unknown = sorted(set(settings) - known)
        if unknown:
            raise InfluenceError(
                f"config={path!r} has settings that this recipe does not know: {', '.join(unknown)}"
                f"{did_you_mean(unknown[0], known) or '.'}"
            )
        parser.set_defaults(**{name: _as_flag(value) for name, value in settings.items()})
        for action in parser._actions:
            action.required = action.required and action.dest not in settings
    *parsed, strange = parser.parse_args_into_dataclasses(
        argv, return_remaining_strings=True, look_for_args_file=False
    )
    if strange:
        flag = next((word for word in strange if word.startswith("-")), strange[0]).partition("=")[0]
        near = did_you_mean(flag, parser._option_string_actions)
        raise InfluenceError(f"this recipe does not know {flag!r}{near or '; --help lists the flags'}")
    return tuple(parsed)


def _read_config(path: str) -> dict[str, Any]:
    file = Path(path)
    if not file.is_file():
        near = did_you_mean(file.name, os.listdir(file.parent) if file.parent.is_dir() else ())
        raise NotFoundError(f"config={path!r}: there is no such file{near or '.'}")
    try:
        settings = yaml.safe_load(file.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InfluenceError(f"config={path!r} is not YAML: {error}") from error
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise InfluenceError(
            f"config={path!r} holds a {type(settings).__name__}; give settings, one a line, as in 'num_queries: 10'."
        )
    return {str(name): value for name, value in settings.items()}


def check_processes(num_processes: int) -> None:
    """Refuses to run alone where several processes were asked for.

    Launched by `torchrun`, processes that do not know of each other would all write the same files. And `accelerate
    launch --cpu --num_processes 2` starts a single one without a word, as does a config file with `MULTI_CPU`.

    Args:
        num_processes (`int`): How many there are, as in `TrainingArguments.world_size`.

    Raises:
        RuntimeError: If that is not what was asked for, with what to type instead.
    """
    wanted = max(int(os.environ.get(name, 1)) for name in SIZES)
    if wanted == 1:
        wanted = _asked_of_accelerate()
    if num_processes < wanted:
        raise LaunchError(
            f"{wanted} processes were asked for, but this is one of {num_processes}. On CPUs type: "
            f"accelerate launch --multi_gpu --num_processes {wanted} {sys.argv[0]} --use_cpu, with the other flags "
            "behind (--multi_gpu means several processes there, and --cpu or MULTI_CPU a single one); on "
            f"{wanted} GPUs the same without --use_cpu."
        )


def _asked_of_accelerate() -> int:
    """How many processes the `accelerate launch` that started this one was asked for; 1 if none did."""
    words = _words_of_accelerate()
    if words is None:
        return 1
    asked = launch_command_parser().parse_args(words)
    if asked.num_processes is not None:
        return asked.num_processes
    if asked.config_file is None and (asked.cpu or not Path(default_config_file).is_file()):
        return 1
    return load_config_from_file(asked.config_file).num_processes


def _words_of_accelerate() -> list[str] | None:
    """What stands behind `accelerate launch` in the command that started this process."""
    try:
        parent = psutil.Process().parent()
        words = [] if parent is None else parent.cmdline()
    except psutil.Error:  # somebody else's process, or one that has ended
        return None
    names = [Path(word).name for word in words]
    for place, name in enumerate(names):
        if name in ("accelerate-launch", "accelerate.commands.launch"):
            return words[place + 1 :]
        if name in ("accelerate", "accelerate.commands.accelerate_cli") and words[place + 1 : place + 2] == ["launch"]:
            return words[place + 2 :]
    return None


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
    # argparse converts defaults that are strings: 1e-3, which YAML leaves a string, becomes a float this way, and so
    # does the 3 of three epochs.
    if isinstance(value, dict):
        return json.dumps(value)
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
