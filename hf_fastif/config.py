"""`InfluenceConfig`: `TrainingArguments` with the settings of influence."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from transformers import TrainingArguments


if TYPE_CHECKING:
    AutoFloat = float | Literal["auto"]
else:
    AutoFloat = str  # HfArgumentParser takes one type for a flag; __post_init__ turns what is a number into one


@dataclass
class InfluenceConfig(TrainingArguments):
    r"""Settings of [`InfluenceTrainer`]: those of `transformers.TrainingArguments`, and the following.

    > Which candidates

    Args:
        num_neighbors (`int`, *optional*):
            k: score only the k nearest neighbours of a query, found in the index that `build_index()` made. None
            scores every candidate, which needs no index, costs about two forward passes over them, and misses
            nothing.
        influence_batch_size (`int`, *optional*, defaults to 32):
            Examples in one pass when candidates are scored, features extracted and eigenvalues estimated.
        query_batch_size (`int`, *optional*, defaults to 8):
            Queries that are solved and scored together. They share forward passes; each costs memory for its own
            tangents.

    > s_test = (C + lambda I)^-1 grad L

        curvature (`"gauss_newton"` or `"hessian"`, *optional*, defaults to `"gauss_newton"`):
            C. The Hessian, which the paper uses, may be indefinite.
        damping (`float` or `"auto"`, *optional*, defaults to `"auto"`):
            lambda, in units of the curvature of the mean training loss. `"auto"` is 1 % of its largest eigenvalue
            (and enough to outweigh a negative one).
        curvature_samples (`int`, *optional*, defaults to 128):
            Training examples on which the largest eigenvalue and the residual are estimated.
        lissa_depth (`int`, *optional*, defaults to 50):
            J: steps of the recursion. The authors took 1000 to 2000 with a batch size of 1.
        lissa_batch_size (`int`, *optional*, defaults to 32):
            B: training examples drawn for each step.
        lissa_repeats (`int`, *optional*, defaults to 2):
            T: independent runs that are averaged. They are dealt to the processes, and from two on they tell the
            standard error.
        lissa_scale (`float` or `"auto"`, *optional*, defaults to `"auto"`):
            The step size is 1 / scale. It sets how fast the recursion converges and never what it converges to.
            `"auto"` takes the largest eigenvalue of single batches.
    """

    num_neighbors: int | None = field(
        default=None, metadata={"help": "k: score only the k nearest neighbours of a query; None scores everything."}
    )
    influence_batch_size: int = field(
        default=32, metadata={"help": "Examples in one pass when candidates are scored or features extracted."}
    )
    query_batch_size: int = field(default=8, metadata={"help": "Queries that are solved and scored together."})
    curvature: Literal["gauss_newton", "hessian"] = field(
        default="gauss_newton", metadata={"help": "Curvature of the mean training loss. The paper's is the Hessian."}
    )
    damping: AutoFloat = field(
        default="auto", metadata={"help": "lambda; 'auto' is 1 %% of the largest eigenvalue of the curvature."}
    )
    curvature_samples: int = field(
        default=128, metadata={"help": "Training examples for the largest eigenvalue and the residual."}
    )
    lissa_depth: int = field(default=50, metadata={"help": "J: steps of the recursion."})
    lissa_batch_size: int = field(default=32, metadata={"help": "B: training examples drawn for each step."})
    lissa_repeats: int = field(default=2, metadata={"help": "T: independent runs that are averaged."})
    lissa_scale: AutoFloat = field(
        default="auto",
        metadata={"help": "The step size is 1 / scale; 'auto' takes the largest eigenvalue of batches."},
    )

    def __post_init__(self):
        super().__post_init__()
        if self.curvature not in ("gauss_newton", "hessian"):
            raise ValueError(f"curvature={self.curvature!r}: give 'gauss_newton' or 'hessian'.")
        self.damping = self._positive_or_auto("damping", self.damping)
        self.lissa_scale = self._positive_or_auto("lissa_scale", self.lissa_scale)
        for name in (
            "influence_batch_size",
            "query_batch_size",
            "curvature_samples",
            "lissa_depth",
            "lissa_batch_size",
            "lissa_repeats",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: give a whole number of at least 1.")
        if self.num_neighbors is not None and self.num_neighbors < 1:
            raise ValueError(f"num_neighbors={self.num_neighbors}: give at least 1, or None to score every candidate.")

    @staticmethod
    def _positive_or_auto(name: str, value: float | str) -> float | str:
        if value == "auto":
            return "auto"
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        if not 0 < number < float("inf"):
            raise ValueError(
                f"{name}={value!r}: give a number above 0, or 'auto'."
                + (
                    " C + damping I has no inverse otherwise, or none that a solver finds."
                    if name == "damping"
                    else ""
                )
            )
        return number
