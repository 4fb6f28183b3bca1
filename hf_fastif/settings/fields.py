"""Declare settings with their help texts, and check their values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from typing import TYPE_CHECKING, Any, Literal

from hf_fastif.errors import InfluenceError, did_you_mean


if TYPE_CHECKING:
    AutoFloat = float | Literal["auto"]
    Names = str | int | list[str]
    Weights = str | list[float]
else:  # HfArgumentParser allows one type per flag; the checks convert values to the right type
    AutoFloat = str
    Names = list[str]
    Weights = list[str]


def setting(default: Any, help: str) -> Any:
    """Return the dataclass field of a setting.

    Args:
        default (`Any`): The default. A list is copied for each instance.
        help (`str`): The description that `--help` and `help(InfluenceConfig)` show.
    """
    metadata = {"help": help.replace("%", "%%")}  # argparse applies % formatting
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Raise an InfluenceError unless the value is one of the choices."""
    if value not in choices:
        near = did_you_mean(str(value), choices) or "."
        raise InfluenceError(f"{name}={value!r}: give one of {', '.join(choices)}{near}")


def check_at_least_one(**values: int) -> None:
    """Raise an InfluenceError unless all of these settings are at least 1."""
    for name, value in values.items():
        if value < 1:
            raise InfluenceError(f"{name}={value}: give a whole number of at least 1.")


def positive_or_auto(name: str, value: float | str, reason: str = "") -> AutoFloat:
    """Return the value as a number, or "auto".

    Args:
        name (`str`): The name of the setting.
        value (`float` or `str`): The value; a command line gives text.
        reason (`str`, *optional*): A sentence that says why it must be positive.

    Raises:
        InfluenceError: If the value is not a positive, finite number.
    """
    if value == "auto":
        return "auto"
    try:
        number = float(value)
    except ValueError:
        number = float("nan")
    if not 0 < number < float("inf"):
        raise InfluenceError(f"{name}={value!r}: give a number above 0, or 'auto'.{reason and ' '}{reason}")
    return number
