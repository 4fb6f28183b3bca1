"""What the curvature of a training set looks like, what the damping makes of it, and how far a solver gets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from hf_fastif.artifacts import atomic_write
from hf_fastif.curvature import Spectrum, captured_layers, layers_in_blocks, share_of
from hf_fastif.diagnosis.signals import CheckpointSignal
from hf_fastif.scoring import SIGN
from hf_fastif.solvers import Solution, SolverSetup, find_solver, resolved_settings


if TYPE_CHECKING:
    from matplotlib.axes import Axes

TARGET_ERROR = 0.05  # error that the suggested steps and repeats aim at
FADED_THRESHOLD = 0.5  # of the residuals at the end of the first epoch: less is worth a warning
VANISHED_THRESHOLD = 0.1  # mean distance of outputs from labels
GRADIENT_LIKE = 0.01  # s_test this close to grad / lambda is called that


@dataclass(frozen=True)
class Diagnosis:
    """The page that `print(trainer.diagnose())` shows, and the numbers on it.

    Attributes:
        curvature (`str`): "gauss_newton" or "hessian".
        spectrum (`Spectrum`): Eigenvalues on a sample of the training set.
        num_samples (`int`): The size of that sample.
        num_train (`int`): The size of the training set.
        num_parameters (`int`): P.
        damping (`float`): lambda.
        damps_by_layer (`bool`): Whether the solver takes a lambda for each layer in its place.
        solver (`str`): The solver and its settings.
        num_repeats (`int`): T of the solver.
        solution (`Solution`): s_test of the queries that were tried, without the vectors.
        distance (`torch.Tensor` of shape `(Q,)`): ||lambda s_test - grad|| / ||grad||; 0: the curvature plays no part.
        cosine (`torch.Tensor` of shape `(Q,)`): Between s_test and the gradient.
        lissa_batch_size (`int`): B.
        lissa_scale (`float`): The largest eigenvalue of single batches of B: a scale at which LiSSA converges.
        signals (`list[Signal]`): How much signal each checkpoint of the run holds; the model as it is comes last.
        in_blocks (`float`): The share of the parameters in linear layers and norms of their own, which EK-FAC
            and sketches see whole.
        captured (`float`): The share of those whose gradients of single examples one pass of a batch tells.
    """

    curvature: str
    spectrum: Spectrum
    num_samples: int
    num_train: int
    num_parameters: int
    damping: float
    damps_by_layer: bool
    solver: str
    num_repeats: int
    solution: Solution
    distance: torch.Tensor
    cosine: torch.Tensor
    lissa_batch_size: int
    lissa_scale: float
    signals: list[CheckpointSignal]
    in_blocks: float = 1.0
    captured: float = 1.0

    @property
    def lissa_depth(self) -> int:
        """J: steps of LiSSA until 5 % of the slowest directions, those without curvature, is missing."""
        return math.ceil(math.log(1 / TARGET_ERROR) * self.lissa_scale / self.damping)

    @property
    def repeats(self) -> int | None:
        """T: repeats until the standard error is 5 %; None where a single run told none."""
        worst = float(self.solution.std_err.max())
        return None if math.isnan(worst) else max(1, math.ceil(self.num_repeats * (worst / TARGET_ERROR) ** 2))

    def __str__(self) -> str:
        sections = {
            "Checkpoints": self._about_checkpoints(),
            "Curvature": self._about_curvature(),
            "Damping": self._about_damping(),
            "Solver": self._about_solver(),
            "If you choose LiSSA": self._about_lissa(),
            "Sign": [SIGN],
        }
        return "\n".join(f"{title}\n" + "\n".join(f"  {line}" for line in lines) for title, lines in sections.items())

    def plot(self, path: str | Path) -> Path:
        """Writes a figure of the spectrum with lambda in it, and of the residual on the solver's way."""
        from matplotlib.figure import Figure  # slow to import

        figure = Figure(figsize=(10, 3.8), layout="constrained")
        spectrum, residual = figure.subplots(1, 2)
        self._plot_spectrum(spectrum)
        self._plot_residual(residual)
        return atomic_write(
            Path(path), lambda file: figure.savefig(file, dpi=130, format=Path(path).suffix[1:] or "png")
        )

    def _about_checkpoints(self) -> list[str]:
        lines = [
            f"{signal.checkpoint.title}: mean loss {signal.loss:.3g}, residual {signal.residual:.2g}"
            + ("." if signal.trace is None else f", trace of the curvature {signal.trace:.3g}.")
            for signal in self.signals
        ]
        *earlier, final = self.signals
        first = next((signal for signal in earlier if (signal.checkpoint.epoch or 0) > 0.99), None)
        if first is not None and final.residual < FADED_THRESHOLD * first.residual:
            lines.append(
                f"Residuals have fallen to {final.residual / first.residual:.0%} since {first.checkpoint.title}: most "
                "training examples are fitted by now and pull at the parameters no longer. Take influence there "
                "(checkpoints='auto' does)."
            )
        elif first is None and final.residual < VANISHED_THRESHOLD:
            lines.append(
                "Training examples are fitted and hardly pull at the parameters any more. An earlier checkpoint holds "
                "more signal; InfluenceTrainer.train() keeps one at the end of each epoch."
            )
        return lines

    def _about_curvature(self) -> list[str]:
        name = self.curvature.replace("_", "-").title()
        eigenvalues = self.spectrum.eigenvalues
        lines = [
            f"{name} of the mean training loss over {self.num_parameters:,} parameters, seen on "
            f"{self.num_samples:,} of {self.num_train:,} training examples.",
            f"{self.in_blocks:.1%} of the parameters are in linear layers and norms of their own, which EK-FAC and "
            "gradient sketches see whole (of the others EK-FAC has a diagonal, sketches nothing).",
            f"Of {self.captured:.1%} one pass tells the gradients of single examples"
            + (", so that queries share it." if self.captured == 1 else "; queries take forward mode."),
        ]
        if not self.spectrum.whole:
            return [*lines, f"Largest eigenvalue {eigenvalues[0]:.4g}, smallest {eigenvalues[-1]:.4g}."]
        shown = ", ".join(f"{eigenvalues[i]:.3g}" for i in _doubling(len(eigenvalues)))
        return [
            *lines,
            f"Eigenvalues number 1, 2, 4, 8, ...: {shown}.",
            f"Their sum is {eigenvalues.sum():.4g}; the largest is {eigenvalues[0] / eigenvalues.sum():.0%} of it.",
        ]

    def _about_damping(self) -> list[str]:
        share = self.damping / self.spectrum.largest
        lines = [f"lambda = {self.damping:.4g}, {share:.2%} of the largest eigenvalue (0.3 % to 3 % is sound)."]
        if self.damps_by_layer:
            lines.append(
                "EK-FAC has a lambda of its own for each layer instead, a tenth of its mean eigenvalue; their mean is "
                f"{self.solution.damping:.2g}."
            )
        if self.spectrum.whole:
            below = self.spectrum.eigenvalues[self.spectrum.eigenvalues < self.damping]
            lines.append(
                f"It swamps {below.sum() / self.spectrum.eigenvalues.sum():.0%} of the curvature, "
                f"{len(below)} of {len(self.spectrum.eigenvalues)} eigenvalues; "
                f"about {self.spectrum.effective_dimension(self.damping):.0f} directions are left to the curvature."
            )
        worst, cosine = float(self.distance.max()), _span(self.cosine.tolist(), ".3f")
        if worst <= GRADIENT_LIKE:
            lines.append(
                "s_test is within 1 % of grad / lambda: influence is then a product of two gradients, and solving "
                "changes nothing. Give a smaller damping, or solver='identity'."
            )
        else:
            lines.append(f"s_test differs from grad / lambda by up to {worst:.0%}; their cosine is {cosine}.")
        return lines

    def _about_solver(self) -> list[str]:
        solution = self.solution
        lines = [
            f"{self.solver}.",
            f"Residual ||v - (C + lambda I) x|| / ||v|| of {len(solution.residual)} queries, on the sample: "
            f"{_span(solution.residual.tolist(), '.2g')} (0: below what the sample can tell).",
        ]
        if len(solution.trace):
            way = ", ".join(f"{solution.trace[i].mean():.2g}" for i in _doubling(len(solution.trace)))
            lines.append(
                f"On its way, before step 1, 2, 4, 8, ...: {way} (mean of the queries, as the solver saw it)."
            )
        if self.repeats is None:
            lines.append("Standard error: not known from one run; num_repeats=2 or more tells it.")
        else:
            lines.append(
                f"Standard error over T = {self.num_repeats} repeats: {_span(solution.std_err.tolist(), '.1%')} of "
                f"||s_test||; it falls with the root of T, so 5 % takes T = {self.repeats}."
            )
        return lines

    def _about_lissa(self) -> list[str]:
        visited = self.lissa_depth * self.lissa_batch_size
        return [
            f"lissa_scale={self.lissa_scale:.4g} is what batches of B = {self.lissa_batch_size} curve at most. The "
            "answer does not depend on it, the way does.",
            f"At that scale 95 % of s_test takes J = {self.lissa_depth:,} steps, {visited:,} examples; three passes "
            f"of SDCA are {3 * self.num_train:,}.",
        ]

    def _plot_spectrum(self, axes: Axes) -> None:
        eigenvalues = np.maximum(self.spectrum.eigenvalues, 1e-3 * self.damping)
        axes.loglog(np.arange(1, len(eigenvalues) + 1), eigenvalues, marker=".", color="#3465a4")
        axes.axhline(self.damping, color="#cc4b37", label=f"$\\lambda$ = {self.damping:.3g}")
        axes.axhspan(0.003 * self.spectrum.largest, 0.03 * self.spectrum.largest, color="#cc4b37", alpha=0.12)
        axes.set(xlabel="number", ylabel="eigenvalue", title="Spectrum (band: 0.3 % to 3 % of the largest)")
        axes.legend()

    def _plot_residual(self, axes: Axes) -> None:
        trace, final = self.solution.trace.cpu().numpy(), self.solution.residual.cpu().numpy()
        seen = np.concatenate([trace.ravel(), final])
        floor = seen[seen > 0].min(initial=1.0) / 2  # an estimate below what the examples can tell is 0
        axes.plot(np.arange(1, len(trace) + 1), np.where(trace > 0, trace, np.nan), color="#3465a4", alpha=0.5)
        axes.plot(np.full(len(final), max(len(trace), 1)), np.maximum(final, floor), "o", color="#cc4b37")
        axes.set(xlabel="step", ylabel="residual", yscale="log", title="Residual of each query (dots: on the sample)")


def diagnose(
    setup: SolverSetup, gradients: torch.Tensor, signals: list[CheckpointSignal], solution: Solution | None = None
) -> Diagnosis:
    """Solves for some gradients of queries (Q, P), unless that was done, and reports; see `Diagnosis`."""
    args, damping = setup.args, setup.damping
    if solution is None:
        solution = setup.solver().solve(gradients)
    layers = captured_layers(setup.objective, setup.examples.take([0]), embeddings=True, tied=True)
    own = layers_in_blocks(setup.objective, setup.examples.take([0]))
    x, norm = solution.vectors, gradients.norm(dim=1).clamp_min(torch.finfo(gradients.dtype).tiny)
    lissa = resolved_settings(setup, find_solver("lissa").read_settings(args))
    return Diagnosis(
        curvature=args.curvature,
        spectrum=setup.spectrum,
        num_samples=setup.sample.num_examples,
        num_train=len(setup.examples),
        num_parameters=setup.objective.space.size,
        damping=damping,
        damps_by_layer=setup.damps_by_layer,
        solver=setup.describe(),
        num_repeats=args.num_repeats,
        solution=solution.without_vectors(),
        distance=(solution.damping * x - gradients).norm(dim=1) / norm,
        cosine=torch.cosine_similarity(x, gradients, dim=1),
        lissa_batch_size=lissa.batch_size,
        lissa_scale=lissa.scale,
        signals=signals,
        in_blocks=share_of(own, setup.objective),
        captured=share_of(layers, setup.objective),
    )


def _doubling(count: int) -> list[int]:
    """0, 1, 3, 7, ... below `count`: the places of the 1st, 2nd, 4th, 8th, ..."""
    return [2**i - 1 for i in range(count.bit_length()) if 2**i <= count]


def _span(values: Sequence[float], form: str) -> str:
    known = sorted(value for value in values if not math.isnan(value))
    if not known:
        return "not known"
    return " to ".join(dict.fromkeys([format(known[0], form), format(known[-1], form)]))
