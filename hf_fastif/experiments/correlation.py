"""Measure how fast scores correlate with full ones, for several lambdas (section 5.4 of the paper, tables 2 and 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from torch.nn.functional import cosine_similarity

from hf_fastif.analysis import AnalysisResult, changed, influence_manifest, open_analysis_results
from hf_fastif.artifacts.plots import add_legend, colors_of, draw_points, mark_sizes, name_panel, new_figure
from hf_fastif.config import FASTIF
from hf_fastif.execution import Tensors
from hf_fastif.index import check_num_neighbors
from hf_fastif.influence import recorded_settings
from hf_fastif.metrics import COEFFICIENTS, correlations
from hf_fastif.trainer import InfluenceTrainer


if TYPE_CHECKING:
    from matplotlib.figure import Figure

FAST, PLAIN = "fast", "gradient product"
NEARLY = 0.95  # Spearman correlation from which plain gradients count as equivalent to the full scores


@dataclass(frozen=True)
class Correlation(AnalysisResult):
    """The correlation of fast scores with full ones over the candidates that are scored.

    Attributes:
        table (`list[dict]`): Rows with `asked` (the requested lambda, such as "50.0" or "auto"), `method` ("fast", or
            "gradient product", which uses no curvature), `k`, the means `pearson`, `spearman` and `kendall` over
            queries, and their standard deviations over queries `pearson_std`, `spearman_std` and `kendall_std`.
        dampings (`list[dict]`): Rows with `asked`, `damping` (the value of lambda), `largest` (the largest eigenvalue
            of the curvature), `cosine` (between the converged s_test and the plain gradient, averaged over queries),
            `residual` (of the converged s_test, averaged over queries), and `fast` and `full`, descriptions of the
            solvers.
        num_candidates (`int`): Number of candidates N.
        num_queries (`int`): Number of queries Q.
    """

    table: list[dict[str, Any]]
    dampings: list[dict[str, Any]]
    num_candidates: int
    num_queries: int

    def explain(self) -> list[str]:
        """Explain for each lambda how to read its part of the table, in one paragraph.

        Example:
            ```python
            for paragraph in correlation(trainer, queries, [300], {"solver": "exact"}).explain():
                print(paragraph)
            ```
        """
        paragraphs = []
        spearman = pd.DataFrame(self.table).set_index(["asked", "method", "k"])["spearman"]
        for row in self.dampings:
            plain = spearman[row["asked"], PLAIN, self.num_candidates]
            meaning = (
                "At this lambda, s_test is nearly the plain gradient: a high correlation says little about the "
                "solver, since scores without curvature reach it too."
                if plain >= NEARLY
                else "At this lambda, the curvature matters: a high correlation shows that the solver works."
            )
            share = 100 * row["damping"] / row["largest"]
            paragraphs.append(
                f"lambda = {row['damping']:.4g} is {share:.3g} % of the largest eigenvalue "
                f"({row['largest']:.3g}). The converged s_test has cosine {row['cosine']:.3f} with the plain "
                f"gradient, and a plain product of gradients correlates with the full scores at {plain:.3f} "
                f"(Spearman, all candidates). {meaning}"
            )
        return paragraphs

    def __str__(self) -> str:
        lines = [
            f"{self.num_queries} queries, {self.num_candidates:,} candidates; means and standard deviations over "
            "queries"
        ]
        tables = pd.DataFrame(self.table).groupby("asked")
        for damping, meaning in zip(self.dampings, self.explain(), strict=True):
            lines += ["", f"fast: {damping['fast']}; full: {damping['full']}", meaning]
            for row in tables.get_group(damping["asked"]).to_dict("records"):
                numbers = (f"{name} {row[name]:.4f} ± {row[f'{name}_std']:.4f}" for name in COEFFICIENTS)
                lines.append(f"  {row['method']:16} k = {row['k']:<8,} {'   '.join(numbers)}")
        return "\n".join(lines)

    def figure(self) -> Figure:
        """Draw the correlations against k, with one panel for each lambda."""
        table = pd.DataFrame(self.table)
        all_scored = table[(table["k"] == self.num_candidates) & (table["method"] == FAST)]
        numbers = zip(all_scored["spearman"], self.dampings, strict=True)
        agreement = ", ".join(f"{value:.3f} at lambda = {row['damping']:.3g}" for value, row in numbers)
        title = f"Spearman correlation between fast and full scores over all candidates: {agreement}"
        lambdas = len(self.dampings)
        figure, panels = new_figure(4.2 * lambdas + 2.2, 4, columns=lambdas, title=title, sharey=True)
        colors = colors_of(COEFFICIENTS)
        for axes, damping in zip(panels[0], self.dampings, strict=True):
            for name in COEFFICIENTS:
                for method, style in ((FAST, "o-"), (PLAIN, "x:")):
                    rows = table[(table["asked"] == damping["asked"]) & (table["method"] == method)]
                    mean, std = rows[name], rows[f"{name}_std"]
                    label = f"{name}, {method}"
                    draw_points(
                        axes, rows["k"], mean, mean - std, mean + std, fmt=style, color=colors[name], label=label
                    )
            share = 100 * damping["damping"] / damping["largest"]
            axes.set_xlabel("k, candidates scored")
            mark_sizes(axes, table["k"])
            name_panel(axes, f"lambda = {damping['damping']:.3g}, {share:.3g} % of the largest eigenvalue")
        panels[0, 0].set_ylabel("correlation with the full scores")
        add_legend(figure, axes)
        return figure


def correlation(
    trainer: InfluenceTrainer,
    queries: Dataset,
    ks: Sequence[int],
    full: dict[str, Any],
    dampings: Sequence[float | str] = (FASTIF["damping"], "auto"),
) -> Correlation:
    """Compare fast scores (the trainer's solver, k candidates from the index) with a converged scan of all candidates.

    A single s_test per lambda serves every k, so that the score of a candidate does not depend on k. The nearest
    neighbors in an index tend to be influential, and correlate better than random candidates would; the row with k = N
    covers all candidates. Finished parts are saved in `output_dir/correlation`.

    Args:
        trainer ([`InfluenceTrainer`]): The trainer, whose settings determine the solver of the fast scores. The index
            is built.
        queries (`datasets.Dataset`): The Q queries.
        ks (`Sequence[int]`): Numbers k of candidates. All candidates (N) are added.
        full (`dict`): Influence settings with which the solver converges, such as `{"solver": "exact"}`.
        dampings (`Sequence[float | str]`, *optional*): Values of lambda, by default the authors' value for MultiNLI
            and "auto".

    Returns:
        [`Correlation`]: The correlations. Printing it shows the tables with an explanation.

    Raises:
        InfluenceError: If some k exceeds the number of candidates, or a setting is invalid.

    Example:
        ```python
        result = correlation(trainer, dev.select(range(20)), ks=[100, 1000], full={"solver": "exact"})
        print(result)
        ```
    """
    count = len(trainer.train_dataset)
    for k in ks:
        check_num_neighbors(k, count)
    for damping in dampings:
        with changed(trainer, damping=damping, **full):
            pass  # validate before the work starts
    ks = sorted({*ks, count})
    manifest = influence_manifest(trainer, queries=queries) | {"ks": str(ks), "full": str(sorted(full.items()))}
    parts = open_analysis_results(trainer, "correlation", manifest)
    plain = parts.get("plain", lambda: _plain(trainer, queries))
    table, rows_of_dampings = [], []
    for damping in dampings:
        name = str(damping).replace(".", "_")  # a dot has a meaning in the name of a part

        def work(damping: float | str = damping) -> Tensors:
            with changed(trainer, damping=damping):
                return _fast(trainer, queries, ks)

        def converged(damping: float | str = damping) -> Tensors:
            with changed(trainer, damping=damping, **full):
                return _full(trainer, queries)

        fast, truth = parts.get(f"fast-{name}", work), parts.get(f"full-{name}", converged)
        candidates = fast["candidates"].cpu().numpy()
        table += _rows(str(damping), FAST, fast["scores"], truth["scores"], candidates, ks)
        table += _rows(str(damping), PLAIN, plain["scores"], truth["scores"], candidates, ks)
        rows_of_dampings.append(_row_of_damping(trainer, str(damping), truth, full))
    return Correlation(table, rows_of_dampings, count, len(queries))


def _plain(trainer: InfluenceTrainer, queries: Dataset) -> Tensors:
    with changed(trainer, solver="identity", preconditioner=None):
        return {"scores": torch.from_numpy(trainer.compute_influence(queries))}


def _fast(trainer: InfluenceTrainer, queries: Dataset, ks: Sequence[int]) -> Tensors:
    """Compute scores (Q, N), and an order of the candidates (Q, N): the nearest neighbors in the index come first."""
    count = len(trainer.train_dataset)
    solution = trainer.compute_s_test(queries)
    order = np.tile(np.arange(count), (len(queries), 1))
    if len(ks) > 1:
        trainer.build_index()
        pairs = zip(trainer.find_candidates(queries, ks[-2], s_test=solution), order, strict=True)
        order = np.stack([np.concatenate([nearest, np.setdiff1d(rows, nearest)]) for nearest, rows in pairs])
    scores = trainer.compute_influence(queries, s_test=solution)
    return {"scores": torch.from_numpy(scores), "candidates": torch.from_numpy(order)}


def _full(trainer: InfluenceTrainer, queries: Dataset) -> Tensors:
    """Compute converged scores (Q, N), the cosine of s_test with the plain gradient (Q,), and its residual (Q,).

    `numbers` holds lambda and the largest eigenvalue of the curvature.
    """
    solution = trainer.compute_s_test(queries)
    with changed(trainer, solver="identity", preconditioner=None):
        gradients = trainer.compute_s_test(queries).vectors
    with trainer.session() as session:
        largest = recorded_settings(session, None, None)["largest_eigenvalue"]
    return {
        "scores": torch.from_numpy(trainer.compute_influence(queries, s_test=solution)),
        "cosine": cosine_similarity(solution.vectors, gradients),
        "residual": solution.residual,
        "numbers": torch.tensor([solution.damping, largest], dtype=torch.float64),
    }


def _row_of_damping(trainer: InfluenceTrainer, name: str, truth: Tensors, full: dict[str, Any]) -> dict[str, Any]:
    """Return a row of `Correlation.dampings`, given the requested lambda as text."""
    damping, largest = truth["numbers"].tolist()
    with trainer.session() as session:
        fast = session.setup().describe()
    with changed(trainer, **full), trainer.session() as session:
        converged = session.setup().describe()
    numbers = {name: float(truth[name].mean()) for name in ("cosine", "residual")}
    return {"asked": name, "damping": damping, "largest": largest, **numbers, "fast": fast, "full": converged}


def _rows(
    damping: str, method: str, scores: torch.Tensor, truth: torch.Tensor, candidates: np.ndarray, ks: Sequence[int]
) -> list[dict[str, Any]]:
    """Return a row of `Correlation.table` for each k, given the order of the candidates (Q, N)."""
    a, b = (np.take_along_axis(values.cpu().numpy(), candidates, axis=1) for values in (scores, truth))
    rows = []
    for k in ks:
        by_query = pd.DataFrame([correlations(one[:k], other[:k]) for one, other in zip(a, b, strict=True)])
        numbers = by_query.mean().to_dict() | by_query.std(ddof=0).add_suffix("_std").to_dict()
        rows.append({"asked": damping, "method": method, "k": k} | numbers)
    return rows
