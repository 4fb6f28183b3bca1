"""Measure time and error of s_test for J, B and T of LiSSA and for other solvers (section 5.3, figures 3b and 9)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from torch.linalg import vector_norm

from hf_fastif.analysis import AnalysisResult, changed, influence_manifest, open_analysis_results
from hf_fastif.artifacts.plots import NEUTRAL, add_legend, colors_of, count_steps, draw_curve, new_figure
from hf_fastif.data import hexdigest
from hf_fastif.errors import InfluenceError
from hf_fastif.execution import PartialResults, Tensors
from hf_fastif.experiments.stopwatch import SolverStopwatch, watched
from hf_fastif.influence import InfluenceSession, loss_gradients
from hf_fastif.solvers import Lissa
from hf_fastif.trainer import InfluenceTrainer


if TYPE_CHECKING:
    from matplotlib.figure import Figure

COSTLIEST = "the costliest LiSSA"
LISSA, PLAIN = "LiSSA", "gradient / lambda"
OTHERS = {  # settings by name; iterative solvers are inspected after 1, 2, 4, 8, ... steps
    "SDCA": {"solver": "sdca"},
    "CG": {"solver": "cg"},
    "EK-FAC": {"solver": "ekfac"},
}


@dataclass(frozen=True)
class InverseHessian(AnalysisResult):
    """Time and error of s_test for settings of LiSSA and for other solvers.

    Attributes:
        table (`list[dict]`): Rows with `solver` ("gradient / lambda" is s_test without curvature), `J` (the number of
            steps), `B` (training examples per step) and `T` (averaged runs), the last two None except for LiSSA,
            `seconds` (for all queries at once, without fitting), `fit` (seconds to fit the solver), and statistics
            over queries of the error ||x - x*|| / ||x*||: the mean `error`, the standard deviation `error_std`, and
            the means `error_wrong` and `error_right` over queries predicted wrong and right (None if there are none).
        diverged (`list[str]`): Descriptions of the LiSSA settings that diverged, with the step.
        reference (`str`): Description of the solver of the reference x*.
        damping (`float`): Damping lambda.
        num_queries (`int`): Number of queries Q.
    """

    table: list[dict[str, Any]]
    diverged: list[str]
    reference: str
    damping: float
    num_queries: int

    def __str__(self) -> str:
        lines = [f"s_test of {self.num_queries} queries at lambda = {self.damping:.4g}; x* is {self.reference}"]
        for row in self.table:
            name = row["solver"] if row["B"] is None else f"{row['solver']}, B = {row['B']}, T = {row['T']}"
            lines.append(
                f"  {name:26} {row['J']:>6,} steps {row['seconds']:9.1f} s (fit {row['fit']:.0f} s)   "
                f"error {row['error']:.3f} ± {row['error_std']:.3f}"
            )
        return "\n".join([*lines, *(f"  diverged: {why}" for why in self.diverged)])

    def figure(self) -> Figure:
        """Draw time and error of LiSSA against J, and error against time for all solvers, one line per setting."""
        table = pd.DataFrame(self.table).replace({"error": {0.0: np.nan}})  # a log axis cannot show x* itself
        best = table.loc[table["error"].idxmin()]
        title = f"The lowest error is that of {best['solver']}: {best['error']:.2g} in {best['seconds']:.3g} s"
        figure, ((of_time, of_error, both),) = new_figure(14, 4.4, columns=3, title=title)
        lissa, others = table[table["solver"] == LISSA].astype({"B": int, "T": int}), table[table["solver"] != LISSA]
        sizes = colors_of([str(size) for size in sorted(lissa["B"].unique())])
        for (size, repeats), rows in lissa.groupby(["B", "T"], sort=False):
            style = {"color": sizes[str(size)], "linestyle": "-" if repeats == 1 else "--", "marker": "."}
            draw_curve(of_time, rows["J"], rows["seconds"], **style)
            draw_curve(of_error, rows["J"], rows["error"], **style)
            draw_curve(both, rows["seconds"], rows["error"], **style, label=f"B = {size}, T = {repeats}")
        for number, (name, rows) in enumerate(others.groupby("solver", sort=False)):
            style = {"color": NEUTRAL, "linestyle": ":", "marker": "sD^vP*X"[number % 7], "markersize": 5}
            draw_curve(both, rows["seconds"], rows["error"], **style, label=name)
        of_time.set(ylabel=f"seconds for {self.num_queries} queries at once", yscale="log")
        of_error.set(ylabel="error of s_test", yscale="log")
        both.set(xlabel="seconds", ylabel="error of s_test", yscale="log")
        for axes in (of_time, of_error):
            count_steps(axes, "J, steps of LiSSA")
        shortest = table["seconds"][table["seconds"] > 0].min()
        both.set_xscale("symlog", linthresh=shortest)  # no time at all has its place, too
        both.set_xlim(-shortest / 4, 1.5 * table["seconds"].max())
        add_legend(figure, both)
        return figure


def inverse_hessian(
    trainer: InfluenceTrainer,
    queries: Dataset,
    right: Sequence[bool],
    *,
    depths: Sequence[int] = tuple(range(700, 1301, 100)),
    batch_sizes: Sequence[int] = (1, 2, 4, 8, 16, 32, 64, 128),
    repeats: Sequence[int] = (1, 4),
    others: Mapping[str, dict[str, Any]] | None = None,
    reference: dict[str, Any] | None = None,
) -> InverseHessian:
    """Measure how long s_test takes and how far it is from a reference.

    LiSSA runs once for each B and T, and its solution is inspected after every J steps of the list. The time of the
    inspections is not counted. Finished parts are saved in `output_dir/inverse_hessian`.

    Args:
        trainer ([`InfluenceTrainer`]): The trainer, whose settings determine lambda and the curvature. It must run on
            a single process.
        queries (`datasets.Dataset`): The Q queries, which are solved for at once.
        right (`Sequence[bool]`): Whether the model predicts each query right, to report both groups separately.
        depths (`Sequence[int]`, *optional*): Values of J, by default those of the paper (section 5.3).
        batch_sizes (`Sequence[int]`, *optional*): Values of B, by default those of the paper (section 5.3).
        repeats (`Sequence[int]`, *optional*): Values of T, by default those of the paper (section 5.3).
        others (`Mapping[str, dict]`, *optional*): Settings of other solvers by name, such as `OTHERS`.
        reference (`dict`, *optional*): Settings of the solver that computes x*, such as `{"solver": "exact"}`. The
            default is LiSSA with the largest J, B and T as in the paper, whose own error is then 0.

    Returns:
        [`InverseHessian`]: Time and error of every setting.

    Raises:
        InfluenceError: If there are several processes or checkpoints, or a setting is invalid.
        DivergenceError: If the reference diverges.

    Example:
        ```python
        rows, right = balanced_queries(trainer, dev, 8)
        result = inverse_hessian(trainer, dev.select(rows), right, others=OTHERS, reference={"solver": "exact"})
        print(result)
        ```
    """
    if trainer.accelerator.num_processes > 1:
        raise InfluenceError(
            f"num_processes={trainer.accelerator.num_processes}: solvers can be inspected on a single process only; "
            "start one."
        )
    with trainer.session() as session:
        if len(session.checkpoints) > 1:
            raise InfluenceError(
                f"checkpoints={trainer.args.checkpoints}: s_test is compared at one; give 'final' or one path."
            )
    deepest = {"solver": "lissa", "lissa_depth": max(depths), "solver_tolerance": None}
    lissa = [deepest | {"lissa_batch_size": b, "num_repeats": t} for t in repeats for b in batch_sizes]
    is_given = reference is not None
    reference = reference or deepest | {"lissa_batch_size": max(batch_sizes), "num_repeats": max(repeats)}
    for settings in (reference, *lissa, *(others or {}).values()):
        with changed(trainer, **settings):
            pass  # validate before the work starts
    manifest = influence_manifest(trainer, queries=queries) | {"reference": str(sorted(reference.items()))}
    parts = open_analysis_results(trainer, "inverse_hessian", manifest)
    truth = parts.get("reference", lambda: _solved(trainer, queries, reference))
    bench = _Bench(trainer, queries, truth["vectors"], np.asarray(right, dtype=bool), sorted(depths))
    table, diverged = _measure_all(bench, parts, lissa, others or {}, float(truth["damping"]))
    with changed(trainer, **reference), trainer.session() as session:
        description = session.setup().describe() if is_given else f"{COSTLIEST}, {session.setup().describe()}"
    return InverseHessian(table, diverged, description, float(truth["damping"]), len(queries))


def _measure_all(
    bench: _Bench,
    parts: PartialResults,
    lissa: Sequence[dict[str, Any]],
    others: Mapping[str, dict[str, Any]],
    damping: float,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Measure the given settings of LiSSA, the plain gradient and the other solvers.

    Returns:
        `tuple`: The attributes `table` and `diverged` of [`InverseHessian`].
    """
    table, diverged = [], []
    for settings in lissa:
        columns = {"solver": LISSA, "B": settings["lissa_batch_size"], "T": settings["num_repeats"]}
        name = f"lissa-{columns['B']}-{columns['T']}-{hexdigest([str(bench.depths)])}"
        part = parts.get(name, lambda settings=settings: bench.measure(settings, bench.depths))
        table += [columns | row for row in _rows(part)]
        if len(part["steps"]) < len(bench.depths):
            diverged.append(f"LiSSA, B = {columns['B']}, T = {columns['T']}, in step {int(part['stopped']) + 1:,}")
    no_sizes = {"B": None, "T": None}
    same = {"num_repeats": 1, "damping": damping}  # since "auto" is a different lambda for EK-FAC
    table += [{"solver": PLAIN} | no_sizes | row for row in _rows(parts.get("plain", lambda: bench.plain(damping)))]
    for name, settings in others.items():
        key = f"other-{hexdigest([str(sorted(settings.items()))])}"
        part = parts.get(key, lambda settings=settings: bench.measure(same | settings, None))
        table += [{"solver": name} | no_sizes | row for row in _rows(part)]
    return table, diverged


def _solved(trainer: InfluenceTrainer, queries: Dataset, settings: dict[str, Any]) -> Tensors:
    with changed(trainer, **settings):
        solution = trainer.compute_s_test(queries)
    return {"vectors": solution.vectors, "damping": torch.tensor(solution.damping, dtype=torch.float64)}


@dataclass
class _Bench:
    """A bench that runs solvers for the same queries and compares them with the same reference `truth` (Q, P)."""

    trainer: InfluenceTrainer
    queries: Dataset
    truth: torch.Tensor
    right: np.ndarray
    depths: list[int]

    def plain(self, damping: float) -> Tensors:
        """Compute the errors of grad / lambda, as columns."""
        with self._checkpoint() as session:
            return self._columns({0: self._error(self._gradients(session) / damping)}, {0: 0.0}, 0.0, 0)

    def measure(self, settings: dict[str, Any], steps: Sequence[int] | None) -> Tensors:
        """Run a solver and measure seconds and errors after the given steps, as columns.

        Without steps, it is inspected after 1, 2, 4, ... steps and at the end.
        """
        with changed(self.trainer, **settings), self._checkpoint() as session:
            gradients, start = self._gradients(session), time.perf_counter()
            solver = session.setup().solver()
            fit = time.perf_counter() - start
            runs = solver.repeats if isinstance(solver, Lissa) and not solver.repeats_share() else 1
            watch = SolverStopwatch(steps, runs, self._error)
            watched(solver, gradients, watch)
        return self._columns(watch.seen, watch.seconds, fit, watch.last)

    def _columns(self, seen: dict[int, torch.Tensor], seconds: dict[int, float], fit: float, stopped: int) -> Tensors:
        columns = {"steps": [*seen], "seconds": [seconds[step] for step in seen], "fit": [fit] * len(seen)}
        columns = {name: torch.tensor(values, dtype=torch.float64) for name, values in columns.items()}
        errors = torch.stack([*seen.values()]) if seen else self.truth.new_zeros(0, len(self.truth))
        right = torch.from_numpy(self.right)
        return columns | {"errors": errors.double(), "right": right, "stopped": torch.tensor(stopped)}

    @contextmanager
    def _checkpoint(self) -> Iterator[InfluenceSession]:
        """Put the model at the checkpoint of the influence within the block."""
        with self.trainer.session() as session, session.checkpoints.at(0):
            yield session

    def _gradients(self, session: InfluenceSession) -> torch.Tensor:
        examples = session.examples("queries", self.queries)
        return loss_gradients(session.objective, examples, range(len(examples)))

    def _error(self, solutions: torch.Tensor) -> torch.Tensor:
        return vector_norm(solutions - self.truth, dim=1) / vector_norm(self.truth, dim=1)


def _rows(part: Tensors) -> list[dict[str, Any]]:
    """Return a row of the table for each inspected step, without `solver`, `B` and `T`."""
    right, rows = part["right"].bool(), []
    for step, seconds, fit, errors in zip(*(part[n] for n in ("steps", "seconds", "fit", "errors")), strict=True):
        groups = {"error_wrong": errors[~right], "error_right": errors[right]}
        numbers = {"error": float(errors.mean()), "error_std": float(errors.std(correction=0))}
        numbers |= {name: float(group.mean()) if len(group) else None for name, group in groups.items()}
        rows.append({"J": int(step), "seconds": float(seconds), "fit": float(fit)} | numbers)
    return rows
