"""Tell whether an artifact belongs to the model, data and loss at hand."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np


LOSS_TOLERANCE = 1e-4  # relative: losses on other devices or numbers of threads differ by rounding


def loss_identity(function: str, probe: Iterable[float], **settings: Any) -> str:
    """Return the JSON text that identifies a loss in manifests.

    Args:
        function (`str`): Name of the user's function, for people to read. Empty for the loss of the model's head.
        probe (`Iterable[float]`): Values of the user's function on a few fixed inputs.
        **settings: Settings that gradients depend on.
    """
    return json.dumps({"function": function, "probe": [float(value) for value in probe]} | settings, sort_keys=True)


def same_loss(one: str, other: str) -> bool:
    """Tell whether two losses compute the same, whatever the names of their functions."""
    if one == other:
        return True
    try:
        first, second = json.loads(one), json.loads(other)
        first.pop("function"), second.pop("function")
        probes = [np.asarray(loss.pop("probe"), dtype=np.float64) for loss in (first, second)]
    except (ValueError, TypeError, KeyError, AttributeError):
        return False
    return (
        first == second
        and probes[0].shape == probes[1].shape
        and np.allclose(*probes, rtol=LOSS_TOLERANCE, atol=1e-6, equal_nan=True)
    )


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Return the names of the entries of `here` that differ in `there`; losses are compared by what they compute."""

    def same(name: str) -> bool:
        if name == "loss":
            return same_loss(str(there.get(name)), str(here[name]))
        return there.get(name) == here[name]

    return [name for name in here if not same(name)]
