"""Define the protocol of solvers, and their solutions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch.nn.functional import pad

from hf_fastif.artifacts import differences
from hf_fastif.errors import InfluenceError


Precondition = Callable[[torch.Tensor], torch.Tensor]
Callback = Callable[[int, torch.Tensor], None]
TENSORS = ("vectors", "residual", "std_err", "trace")


class DivergenceError(InfluenceError, ArithmeticError):
    """Error of a solver that diverged or met a direction without curvature; the message names the setting to change.

    Attributes:
        scale (`float`, *optional*): A scale that converges, if the step size was too large.
    """

    def __init__(self, message: str, scale: float | None = None):
        super().__init__(message)
        self.scale = scale


@dataclass(frozen=True)
class Origin:
    """The queries, model, training set and loss that an s_test was computed for.

    Attributes:
        queries (`tuple[str, ...]`): Digests of the queries, or the single digest of an anchor set.
        belongs (`dict[str, str]`): Digests of the model, the training set and the loss.
    """

    queries: tuple[str, ...]
    belongs: dict[str, str]


@dataclass(frozen=True)
class Solution:
    """s_test = (C + lambda I)^-1 v for Q right-hand sides v = grad L(z'), with the quality of the estimate.

    Attributes:
        vectors (`torch.Tensor` of shape `(Q, P)`): The solutions, over the trainable parameters.
        residual (`torch.Tensor` of shape `(Q,)`): ||v - (C + lambda I) x|| / ||v||, C taken on a sample of the
            training set. 0 is perfect, 1 is no better than x = 0. For the solver "sketch" it is the norm of the part
            of v that lies outside of the sketch, where nothing is solved, relative to that of v.
        std_err (`torch.Tensor` of shape `(Q,)`): Standard error of the mean over independent repeats, relative to
            ||x||; NaN for a single run or a deterministic solver.
        damping (`float`): lambda.
        steps (`int`): Number of steps of the solver (in its first repeat); 0 for a direct solver.
        trace (`torch.Tensor` of shape `(steps, Q)`): The residual before each step, estimated from the examples
            of the step. It has no rows if there are no steps or too few examples per step.
        scale (`float`, *optional*): The step size was 1 / scale.
        origin ([`Origin`], *optional*): What it was computed for; only `compute_s_test` sets it.

    Example:

    ```python
    s_test = trainer.compute_s_test(queries)
    print(s_test.residual)  # one number per query; 0 is exact
    result = trainer.find_influential(queries, s_test=s_test)  # does not solve again
    ```
    """

    vectors: torch.Tensor
    residual: torch.Tensor
    std_err: torch.Tensor
    damping: float
    steps: int
    trace: torch.Tensor
    scale: float | None = None
    origin: Origin | None = None

    @classmethod
    def direct(cls, vectors: torch.Tensor, residual: torch.Tensor, damping: float) -> Solution:
        """Make the solution of a direct solver, which has no steps and no repeats."""
        unknown, trace = torch.full_like(residual, torch.nan), vectors.new_zeros(0, len(vectors))
        return cls(vectors, residual, unknown, damping, steps=0, trace=trace)

    @classmethod
    def in_sketch(cls, residual: torch.Tensor, damping: float) -> Solution:
        """Make the solution of queries with a residual (Q,), which stay in the coordinates of an index."""
        return cls.direct(residual.new_zeros(len(residual), 0), residual, damping)

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, queries: slice) -> Solution:
        return replace(
            self,
            vectors=self.vectors[queries],
            residual=self.residual[queries],
            std_err=self.std_err[queries],
            trace=self.trace[:, queries],
            origin=self.origin and replace(self.origin, queries=self.origin.queries[queries]),
        )

    def without_vectors(self) -> Solution:
        """Return the solution without its vectors."""
        return replace(self, vectors=self.vectors[:, :0])

    def to_tensors(self) -> dict[str, torch.Tensor]:
        """Return all fields but `origin` as tensors, for a file."""
        scale = float("nan") if self.scale is None else self.scale
        numbers = torch.tensor([self.damping, self.steps, scale], dtype=torch.float64)
        return {name: getattr(self, name) for name in TENSORS} | {"numbers": numbers}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor]) -> Solution:
        """Make a solution from what `to_tensors` returned."""
        damping, steps, scale = tensors["numbers"].tolist()
        scale = None if math.isnan(scale) else scale
        return cls(**{name: tensors[name] for name in TENSORS}, damping=damping, steps=int(steps), scale=scale)

    def quality(self) -> dict[str, float | int | None]:
        """Return the quality of the solution for a single query, as numbers."""
        return {
            "residual": float(self.residual),
            "std_err": float(self.std_err),
            "damping": self.damping,
            "steps": self.steps,
            "scale": self.scale,
        }

    @classmethod
    def concat_queries(cls, parts: Sequence[Solution]) -> Solution:
        """Concatenate the solutions of several groups of queries, from the same solver."""
        steps = max(part.steps for part in parts)
        longest = max(len(part.trace) for part in parts)
        traces = [pad(part.trace, (0, 0, 0, longest - len(part.trace)), value=torch.nan) for part in parts]
        return replace(
            parts[0],
            vectors=torch.cat([part.vectors for part in parts]),
            residual=torch.cat([part.residual for part in parts]),
            std_err=torch.cat([part.std_err for part in parts]),
            steps=steps,
            trace=torch.cat(traces, dim=1),
        )

    @classmethod
    def concat_checkpoints(cls, parts: Sequence[Solution], weights: Sequence[float]) -> Solution:
        """Concatenate the solutions of the same queries at several checkpoints, each multiplied by its weight.

        Residual and standard error are the maxima over the checkpoints, lambda is the mean.
        """
        if len(parts) == 1:
            return parts[0]
        return cls(
            vectors=torch.cat([weight * part.vectors for part, weight in zip(parts, weights, strict=True)], dim=1),
            residual=torch.stack([part.residual for part in parts]).amax(dim=0),
            std_err=torch.stack([part.std_err for part in parts]).amax(dim=0),
            damping=sum(part.damping for part in parts) / len(parts),
            steps=max(part.steps for part in parts),
            trace=parts[0].trace[:0],
        )

    def __repr__(self) -> str:
        queries, parameters = self.vectors.shape
        residual = ", ".join(f"{value:.2g}" for value in self.residual.tolist())
        std_err = ", ".join(f"{value:.2g}" for value in self.std_err.tolist())
        return (
            f"Solution({queries} x {parameters:,} parameters, damping={self.damping:.4g}, steps={self.steps}, "
            f"residual=[{residual}], std_err=[{std_err}])"
        )


class Solver(Protocol):
    """Solve (C + lambda I) x = v for a stack of right-hand sides."""

    def solve(self, vectors: torch.Tensor) -> Solution:
        """Solve for Q right-hand sides, shape (Q, P)."""
        ...


def check_s_test(s_test: Solution, origin: Origin, num_parameters: int) -> None:
    """Check that a given s_test belongs to these queries, model, training set and loss.

    Raises:
        InfluenceError: If it does not; the message names what differs.
    """
    if not isinstance(s_test, Solution):
        raise InfluenceError(f"s_test is a {type(s_test).__name__}; give what compute_s_test returned.")
    if s_test.origin is not None and s_test.origin.belongs.get("measure") != origin.belongs.get("measure"):
        raise InfluenceError(
            f"s_test was computed for the measure {s_test.origin.belongs.get('measure')}, and this is "
            f"{origin.belongs.get('measure')}; give compute_s_test the same measure and QuerySet."
        )
    num_queries = len(origin.queries)
    if s_test.vectors.shape != (num_queries, num_parameters):
        raise InfluenceError(
            f"s_test holds {len(s_test)} vectors of {s_test.vectors.shape[1]:,} parameters, but there are "
            f"{num_queries} examples and {num_parameters:,} trainable parameters; pass what compute_s_test(examples) "
            "returned for these examples and this model."
        )
    if s_test.origin is None:  # the user's own vectors
        return
    if s_test.origin.queries != origin.queries:
        pairs = zip(s_test.origin.queries, origin.queries, strict=True)
        row = next(row for row, (there, here) in enumerate(pairs) if there != here)
        raise InfluenceError(
            f"s_test was computed for other examples: its query {row} has the digest {s_test.origin.queries[row]}, "
            f"and row {row} of examples is {origin.queries[row]}; pass what compute_s_test(examples) returned for "
            "these examples, in their order."
        )
    for what in differences(s_test.origin.belongs, origin.belongs):
        raise InfluenceError(
            f"s_test was computed with the {what} {s_test.origin.belongs[what]}, and this is "
            f"{origin.belongs[what]}; call compute_s_test(examples) again."
        )
