"""The report of `trainer.diagnose()`: spectrum of the curvature, effect of the damping, accuracy of the solver."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from hf_fastif.artifacts.plots import HARMFUL, HELPFUL, TEXT, name_panel, new_figure, save_figure
from hf_fastif.curvature import RECOMMENDED_DAMPING, Spectrum, captured_layers, share_of
from hf_fastif.diagnosis.signals import CheckpointSignal
from hf_fastif.scoring import SIGN
from hf_fastif.solvers import Solution, SolverSetup, find_solver, resolved_settings


if TYPE_CHECKING:
    from matplotlib.axes import Axes

TARGET_ERROR = 0.05  # the error that the suggested steps and repeats aim at
FADED_THRESHOLD = 0.5  # of the residuals at the first automatic checkpoint; a smaller ratio triggers a warning
VANISHED_THRESHOLD = 0.1  # mean distance of outputs from labels
GRADIENT_LIKE = 0.01  # relative distance of s_test from grad / lambda below which they count as equal


@dataclass(frozen=True)
class Diagnosis:
    """The report that `print(trainer.diagnose())` shows, and the numbers in it.

    Attributes:
        curvature (`str`): "gauss_newton" or "hessian".
        spectrum (`Spectrum`): Eigenvalues on a sample of the training set, or the largest ones in the index.
        num_samples (`int`): The size of that sample, or of the training set for the eigenvalues of an index.
        num_train (`int`): The size of the training set.
        num_parameters (`int`): P.
        damping (`float`): lambda.
        damps_by_layer (`bool`): Whether the solver uses one lambda per layer instead.
        solver (`str`): The solver and its settings.
        num_repeats (`int`): T of the solver.
        solution (`Solution`): s_test of Q queries, without the vectors.
        distance (`torch.Tensor` of shape `(Q,)`): ||lambda s_test - grad|| / ||grad||; 0 means that curvature has no
            effect.
        cosine (`torch.Tensor` of shape `(Q,)`): Cosine of s_test and the gradient.
        lissa_batch_size (`int`): B.
        lissa_scale (`float`): The largest eigenvalue of single batches of B examples: a scale at which LiSSA
            converges.
        signals (`list[CheckpointSignal]`): The training signal at each checkpoint of the run; the current model comes
            last.
        by_index (`bool`): Whether the solver is that of the index, so that a residual is what the index leaves out.
        in_blocks (`float`): The share of the parameters in unshared linear layers, embeddings and norms, which EK-FAC
            and sketches cover.
        captured (`float`): The share of the parameters for which one pass of a batch yields the gradients of single
            examples.

    Example:

    ```python
    diagnosis = trainer.diagnose(queries)
    print(diagnosis)
    diagnosis.plot("diagnosis.png")
    print(diagnosis.damping, diagnosis.lissa_depth)
    ```
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
    by_index: bool = False
    in_blocks: float = 1.0
    captured: float = 1.0

    @property
    def lissa_depth(self) -> int:
        """Return J: LiSSA steps until 5 % of s_test is missing in the slowest directions, those without curvature."""
        return math.ceil(math.log(1 / TARGET_ERROR) * self.lissa_scale / self.damping)

    @property
    def repeats(self) -> int | None:
        """Return T: repeats until the standard error is 5 %; None if it is unknown, as for a single run."""
        worst = float(self.solution.std_err.max())
        return None if math.isnan(worst) else max(1, math.ceil(self.num_repeats * (worst / TARGET_ERROR) ** 2))

    def __str__(self) -> str:
        sections = {
            "Checkpoints": self._checkpoint_lines(),
            "Curvature": self._curvature_lines(),
            "Damping": self._damping_lines(),
            "Solver": self._solver_lines(),
            "If you choose LiSSA": self._lissa_lines(),
            "Sign": [SIGN],
        }
        return "\n".join(f"{title}\n" + "\n".join(f"  {line}" for line in lines) for title, lines in sections.items())

    def plot(self, path: str | Path) -> Path:
        """Write a figure of the spectrum with lambda in it, and of the residual on the solver's way."""
        share = self.damping / self.spectrum.largest
        residual = _span(self.solution.residual.tolist(), ".2g")
        title = f"The damping is {share:.2%} of the largest eigenvalue; residual of s_test {residual}"
        figure, ((of_spectrum, of_residual),) = new_figure(10, 4.2, columns=2, title=title)
        self._plot_spectrum(of_spectrum)
        self._plot_residual(of_residual)
        return save_figure(figure, path)[0]

    def _checkpoint_lines(self) -> list[str]:
        lines = [
            f"{signal.checkpoint.title}: mean loss {signal.loss:.3g}, residual {signal.residual:.2g}"
            + ("." if signal.trace is None else f", trace of the curvature {signal.trace:.3g}.")
            for signal in self.signals
        ]
        *earlier, final = self.signals
        first = next((signal for signal in earlier if signal.is_automatic), None)
        if first is not None and final.residual < FADED_THRESHOLD * first.residual:
            lines.append(
                f"Residuals have fallen to {final.residual / first.residual:.0%} since {first.checkpoint.title}: most "
                "training examples now have almost no gradient. Compute influence at early checkpoints "
                "(checkpoints='auto' does)."
            )
        elif first is None and final.residual < VANISHED_THRESHOLD:
            lines.append(
                "Most training examples have almost no gradient. Influence at an earlier checkpoint is more "
                "informative; InfluenceTrainer.train() keeps those at a sixth, a third and two thirds of training."
            )
        return lines

    def _curvature_lines(self) -> list[str]:
        name = self.curvature.replace("_", "-").title()
        eigenvalues = self.spectrum.eigenvalues
        lines = [
            f"{name} of the mean training loss over {self.num_parameters:,} parameters, estimated on "
            f"{self.num_samples:,} of {self.num_train:,} training examples.",
            f"{self.in_blocks:.1%} of the parameters are in unshared linear layers, embeddings, norms, which EK-FAC "
            "and gradient sketches cover (for the others, EK-FAC uses a diagonal and sketches use nothing).",
            f"For {self.captured:.1%} of the parameters, one pass yields the gradients of single examples"
            + (", and all queries share it." if self.captured == 1 else "; queries use forward mode."),
        ]
        if not self.spectrum.whole:
            return [*lines, f"Largest eigenvalue {eigenvalues[0]:.4g}, smallest {eigenvalues[-1]:.4g}."]
        shown = ", ".join(f"{eigenvalues[i]:.3g}" for i in _doubling(len(eigenvalues)))
        return [
            *lines,
            f"Eigenvalues number 1, 2, 4, 8, ...: {shown}.",
            f"Their sum is {eigenvalues.sum():.4g}; the largest is {eigenvalues[0] / eigenvalues.sum():.0%} of it.",
        ]

    def _damping_lines(self) -> list[str]:
        share = self.damping / self.spectrum.largest
        low, high = RECOMMENDED_DAMPING
        recommended = f"recommended: {low:.1%} to {high:.0%}"
        lines = [f"lambda = {self.damping:.4g}, {share:.2%} of the largest eigenvalue ({recommended})."]
        if self.damps_by_layer:
            lines.append(
                "EK-FAC instead uses a separate lambda for each layer, a tenth of its mean eigenvalue; their mean is "
                f"{self.solution.damping:.2g}."
            )
        if self.spectrum.whole:
            below = self.spectrum.eigenvalues[self.spectrum.eigenvalues < self.damping]
            lines.append(
                f"It swamps {below.sum() / self.spectrum.eigenvalues.sum():.0%} of the curvature "
                f"({len(below)} of {len(self.spectrum.eigenvalues)} eigenvalues); the effective dimension is "
                f"{self.spectrum.effective_dimension(self.damping):.0f}."
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

    def _solver_lines(self) -> list[str]:
        solution = self.solution
        if solution.residual.isnan().all():
            return [f"{self.solver}.", "There is no residual: this solver does not approach a solution step by step."]
        what, where = "Residual ||v - (C + lambda I) x|| / ||v||", ", on the sample"
        if self.by_index:
            what, where = "What the index leaves out of the gradients", ", relative to their length"
        lines = [
            f"{self.solver}.",
            f"{what} of {len(solution.residual)} queries{where}: {_span(solution.residual.tolist(), '.2g')} "
            "(0: too small to measure).",
        ]
        if len(solution.trace):
            residuals = ", ".join(f"{solution.trace[i].mean():.2g}" for i in _doubling(len(solution.trace)))
            lines.append(
                f"Residual before step 1, 2, 4, 8, ...: {residuals} (mean over queries, as estimated by the solver)."
            )
        if self.repeats is None:
            lines.append("Standard error: unknown for a single run; num_repeats=2 or more estimates it.")
        else:
            lines.append(
                f"Standard error over T = {self.num_repeats} repeats: {_span(solution.std_err.tolist(), '.1%')} of "
                f"||s_test||; it falls with the square root of T, so 5 % takes T = {self.repeats}."
            )
        return lines

    def _lissa_lines(self) -> list[str]:
        visited = self.lissa_depth * self.lissa_batch_size
        return [
            f"lissa_scale={self.lissa_scale:.4g} (largest batch eigenvalue, B = {self.lissa_batch_size}). It affects "
            "speed, not the result.",
            f"At that scale, 95 % of s_test takes J = {self.lissa_depth:,} steps ({visited:,} examples); three passes "
            f"of SDCA visit {3 * self.num_train:,}.",
        ]

    def _plot_spectrum(self, axes: Axes) -> None:
        eigenvalues = np.maximum(self.spectrum.eigenvalues, 1e-3 * self.damping)
        axes.loglog(np.arange(1, len(eigenvalues) + 1), eigenvalues, marker=".", color=HELPFUL)
        axes.axhline(self.damping, color=HARMFUL, label=f"$\\lambda$ = {self.damping:.3g}")
        low, high = RECOMMENDED_DAMPING
        axes.axhspan(low * self.spectrum.largest, high * self.spectrum.largest, color=HARMFUL, alpha=0.15, linewidth=0)
        axes.set(xlabel="number", ylabel="eigenvalue")
        name_panel(axes, f"Spectrum (band: {low:.1%} to {high:.0%} of the largest)")
        axes.legend(fontsize=8, labelcolor=TEXT, frameon=False)

    def _plot_residual(self, axes: Axes) -> None:
        trace, final = self.solution.trace.cpu().numpy(), self.solution.residual.cpu().numpy()
        seen = np.concatenate([trace.ravel(), final])
        floor = seen[seen > 0].min(initial=1.0) / 2  # an estimate below what the examples can tell is 0
        axes.plot(np.arange(1, len(trace) + 1), np.where(trace > 0, trace, np.nan), color=HELPFUL, alpha=0.5)
        axes.plot(np.full(len(final), max(len(trace), 1)), np.maximum(final, floor), "o", color=HARMFUL)
        axes.set(xlabel="step", ylabel="residual", yscale="log")
        name_panel(axes, "Residual of each query (dots: on the sample)")


def diagnose(
    setup: SolverSetup, gradients: torch.Tensor, signals: list[CheckpointSignal], solution: Solution | None = None
) -> Diagnosis:
    """Solve for the gradients (Q, P) of some queries, unless a solution is given, and report; see `Diagnosis`."""
    args, damping = setup.args, setup.damping
    if solution is None:
        solution = setup.solver().solve(gradients)
    layers = captured_layers(setup.objective, setup.examples.take([0]), embeddings=True, tied=True)
    x, norm = solution.vectors, gradients.norm(dim=1).clamp_min(torch.finfo(gradients.dtype).tiny)
    lissa = resolved_settings(setup, find_solver("lissa").read_settings(args))
    return Diagnosis(
        curvature=args.curvature,
        spectrum=setup.spectrum,
        num_samples=len(setup.examples) if setup.name == "sketch" else setup.sample.num_examples,
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
        by_index=setup.name == "sketch",
        in_blocks=share_of(setup.layers, setup.objective),
        captured=share_of(layers, setup.objective),
    )


def _doubling(count: int) -> list[int]:
    """Return 0, 1, 3, 7, ... below `count`: the indices of the 1st, 2nd, 4th, 8th, ... entry."""
    return [2**i - 1 for i in range(count.bit_length()) if 2**i <= count]


def _span(values: Sequence[float], form: str) -> str:
    known = sorted(value for value in values if not math.isnan(value))
    if not known:
        return "unknown"
    return " to ".join(dict.fromkeys([format(known[0], form), format(known[-1], form)]))
