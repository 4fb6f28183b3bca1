"""Declare settings with their help texts, and check their values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import field
from numbers import Integral, Real
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


def check_choice(name: str, value: Any, choices: Sequence[str], optional: bool = False) -> None:
    """Raise an InfluenceError unless the value is one of the choices, or None if the setting is optional."""
    if value not in choices and not (optional and value is None):
        near = did_you_mean(str(value), choices) or "."
        names = [*choices, "None"] if optional else choices
        raise InfluenceError(f"{name}={value!r}: give one of {', '.join(names)}{near}")


def is_whole_number(value: Any, least: int = 1) -> bool:
    """Tell whether a value is a whole number of at least `least`; a bool is none."""
    return isinstance(value, Integral) and not isinstance(value, bool) and value >= least


def check_at_least_one(**values: int) -> None:
    """Raise an InfluenceError unless all of these settings are whole numbers of at least 1."""
    for name, value in values.items():
        if not is_whole_number(value):
            raise InfluenceError(f"{name}={value!r}: give a whole number of at least 1.")


def is_number(value: Any) -> bool:
    """Tell whether a value is a finite number; a bool is none."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def as_positive(value: Any) -> float | None:
    """Return a positive, finite number, which may be given as text, as a float, or None if the value is none."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None
    return number if 0 < number < math.inf else None


def positive_or_auto(name: str, value: float | str, reason: str = "") -> AutoFloat:
    """Return the value as a number, or "auto".

    Args:
        name (`str`): The name of the setting.
        value (`float` or `str`): The value; a command line gives text.
        reason (`str`, *optional*): A sentence that says why it must be positive.

    Raises:
        InfluenceError: If the value is not a positive, finite number.
    """
    if isinstance(value, str) and value == "auto":
        return "auto"
    number = as_positive(value)
    if number is None:
        raise InfluenceError(f"{name}={value!r}: give a number above 0, or 'auto'.{reason and ' '}{reason}")
    return number
