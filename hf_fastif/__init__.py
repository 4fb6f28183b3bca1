"""hf_fastif: which training examples made a Hugging Face model answer as it did."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from hf_fastif.version import __version__


if TYPE_CHECKING:
    from hf_fastif.config import InfluenceConfig
    from hf_fastif.errors import InfluenceError
    from hf_fastif.index import InfluenceIndex
    from hf_fastif.influence import InfluenceSession, QuerySet
    from hf_fastif.model import Contrast, Logit, LogProbability, Margin, Measure, freeze
    from hf_fastif.results import InfluenceResult
    from hf_fastif.solvers import Solution
    from hf_fastif.trainer import InfluenceMixin, InfluenceTrainer

__all__ = [
    "Contrast",
    "InfluenceConfig",
    "InfluenceError",
    "InfluenceIndex",
    "InfluenceMixin",
    "InfluenceResult",
    "InfluenceSession",
    "InfluenceTrainer",
    "LogProbability",
    "Logit",
    "Margin",
    "Measure",
    "QuerySet",
    "Solution",
    "__version__",
    "freeze",
]

_HOMES = {
    "Contrast": "hf_fastif.model",
    "InfluenceConfig": "hf_fastif.config",
    "InfluenceError": "hf_fastif.errors",
    "InfluenceIndex": "hf_fastif.index",
    "InfluenceMixin": "hf_fastif.trainer",
    "InfluenceResult": "hf_fastif.results",
    "InfluenceSession": "hf_fastif.influence",
    "InfluenceTrainer": "hf_fastif.trainer",
    "LogProbability": "hf_fastif.model",
    "Logit": "hf_fastif.model",
    "Margin": "hf_fastif.model",
    "Measure": "hf_fastif.model",
    "QuerySet": "hf_fastif.influence",
    "Solution": "hf_fastif.solvers",
    "freeze": "hf_fastif.model",
}


def __getattr__(name: str):  # transformers takes seconds to import; do it when something is asked for
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
