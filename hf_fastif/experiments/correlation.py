"""Do fast scores say what full ones do (section 5.4 of the paper, tables 2 and 4), and at which lambda?"""

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
from hf_fastif.metrics import COEFFICIENTS, correlations
from hf_fastif.trainer import InfluenceTrainer


if TYPE_CHECKING:
    from matplotlib.figure import Figure

FAST, PLAIN = "fast", "gradient product"
NEARLY = 0.95  # Spearman from which plain gradients are said to give the same answer


@dataclass(frozen=True)
class Correlation(AnalysisResult):
    """How fast scores correlate with full ones, over the candidates that the fast way scores.

    Attributes:
        table (`list[dict]`): `asked` (the lambda that was asked for, such as "50.0" or "auto"), `method` ("fast", or
            "gradient product", which has no curvature at all), `k`, and `pearson`, `spearman` and `kendall` as means
            over queries, with their standard deviations over queries, `pearson_std` and so on.
        dampings (`list[dict]`): `asked`, `damping` (lambda), `largest` (eigenvalue of the curvature), `cosine` (of the
            converged s_test with the plain gradient, mean over queries), `residual` (of the converged s_test, mean),
            and `fast` and `full`, the solvers in words.
        num_candidates (`int`): N.
        num_queries (`int`): Q.
    """

    table: list[dict[str, Any]]
    dampings: list[dict[str, Any]]
    num_candidates: int
    num_queries: int

    def explain(self) -> list[str]:
        """What each lambda means for its part of the table, in words."""
        found = []
        spearman = pd.DataFrame(self.table).set_index(["asked", "method", "k"])["spearman"]
        for row in self.dampings:
            plain = spearman[row["asked"], PLAIN, self.num_candidates]
            meaning = (
                "Here s_test is nearly the plain gradient: a high correlation says little about solver and lambda, "
                "since leaving the curvature out reaches it too."
                if plain >= NEARLY
                else "Here the curvature decides, and the correlation of the fast scores is the work of the solver."
            )
            share = 100 * row["damping"] / row["largest"]
            found.append(
                f"lambda = {row['damping']:.4g} is {share:.3g} % of the largest eigenvalue "
                f"({row['largest']:.3g}). The converged s_test has cosine {row['cosine']:.3f} with the plain "
                f"gradient, and a plain product of gradients correlates with the full scores at {plain:.3f} "
                f"(Spearman, all candidates). {meaning}"
            )
        return found

    def __str__(self) -> str:
        lines = [f"{self.num_queries} queries, {self.num_candidates:,} candidates; means and deviations over queries"]
        tables = pd.DataFrame(self.table).groupby("asked")
        for damping, meaning in zip(self.dampings, self.explain(), strict=True):
            lines += ["", f"fast: {damping['fast']}; full: {damping['full']}", meaning]
            for row in tables.get_group(damping["asked"]).to_dict("records"):
                numbers = (f"{name} {row[name]:.4f} ± {row[f'{name}_std']:.4f}" for name in COEFFICIENTS)
                lines.append(f"  {row['method']:16} k = {row['k']:<8,} {'   '.join(numbers)}")
        return "\n".join(lines)

    def figure(self) -> Figure:
        """Draws the correlations against k, a panel for each lambda."""
        table = pd.DataFrame(self.table)
        all_scored = table[(table["k"] == self.num_candidates) & (table["method"] == FAST)]
        numbers = zip(all_scored["spearman"], self.dampings, strict=True)
        agreement = ", ".join(f"{value:.3f} at lambda = {row['damping']:.3g}" for value, row in numbers)
        title = f"Spearman correlation of fast and full scores over all candidates: {agreement}"
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
    """Compares fast scores (k candidates from the index, the trainer's solver) with those of a converged full scan.

    For one lambda a single s_test serves every k, so the scores of a candidate do not differ between two k. The
    candidates that an index proposes are rather the influential ones, which correlate better than candidates drawn at
    random would; the row with k = N is over all of them.

    Args:
        trainer ([`InfluenceTrainer`]): With the solver of the fast scores in its settings. The index is built.
        queries (`datasets.Dataset`): Q examples.
        ks (`Sequence[int]`): Numbers of candidates; all of them (N) are added.
        full (`dict`): Settings with which the solver converges, such as `{"solver": "exact"}`.
        dampings (`Sequence`, *optional*): Values of lambda: by default that of the authors for MultiNLI and "auto".

    Returns:
        [`Correlation`]: `print` it for the tables and what they mean. What is finished is kept in
            `output_dir/correlation`.

    Raises:
        ValueError: If some k exceeds the candidates, or a setting is refused.
    """
    count = len(trainer.train_dataset)
    for k in ks:
        check_num_neighbors(k, count)
    for damping in dampings:
        with changed(trainer, damping=damping, **full):
            pass  # refused before the work
    ks = sorted({*ks, count})
    manifest = influence_manifest(trainer, queries=queries) | {"ks": str(ks), "full": str(sorted(full.items()))}
    parts = open_analysis_results(trainer, "correlation", manifest)
    plain = parts.get("plain", lambda: _plain(trainer, queries))
    table, about = [], []
    for asked in dampings:
        name = str(asked).replace(".", "_")  # in the name of a part a dot has a meaning

        def work(asked: float | str = asked) -> Tensors:
            with changed(trainer, damping=asked):
                return _fast(trainer, queries, ks)

        def converged(asked: float | str = asked) -> Tensors:
            with changed(trainer, damping=asked, **full):
                return _full(trainer, queries)

        fast, truth = parts.get(f"fast-{name}", work), parts.get(f"full-{name}", converged)
        candidates = fast["candidates"].cpu().numpy()
        table += _rows(str(asked), FAST, fast["scores"], truth["scores"], candidates, ks)
        table += _rows(str(asked), PLAIN, plain["scores"], truth["scores"], candidates, ks)
        about.append(_about(trainer, str(asked), truth, full))
    return Correlation(table, about, count, len(queries))


def _plain(trainer: InfluenceTrainer, queries: Dataset) -> Tensors:
    with changed(trainer, solver="identity", preconditioner=None):
        return {"scores": torch.from_numpy(trainer.compute_influence(queries))}


def _fast(trainer: InfluenceTrainer, queries: Dataset, ks: Sequence[int]) -> Tensors:
    """Scores (Q, N), and candidates (Q, N): first those that the index proposes, nearest first, then all others."""
    count = len(trainer.train_dataset)
    solution = trainer.compute_s_test(queries)
    order = np.tile(np.arange(count), (len(queries), 1))
    if len(ks) > 1:
        trainer.build_index()
        pairs = zip(trainer.find_candidates(queries, ks[-2], s_test=solution), order, strict=True)
        order = np.stack([np.concatenate([own, np.setdiff1d(rows, own)]) for own, rows in pairs])
    scores = trainer.compute_influence(queries, s_test=solution)
    return {"scores": torch.from_numpy(scores), "candidates": torch.from_numpy(order)}


def _full(trainer: InfluenceTrainer, queries: Dataset) -> Tensors:
    """Scores (Q, N), and how near s_test is to the plain gradient."""
    solution = trainer.compute_s_test(queries)
    with changed(trainer, solver="identity", preconditioner=None):
        gradients = trainer.compute_s_test(queries).vectors
    with trainer.session() as session:
        largest = session.settings(None, None)["largest_eigenvalue"]
    return {
        "scores": torch.from_numpy(trainer.compute_influence(queries, s_test=solution)),
        "cosine": cosine_similarity(solution.vectors, gradients),
        "residual": solution.residual,
        "numbers": torch.tensor([solution.damping, largest], dtype=torch.float64),
    }


def _about(trainer: InfluenceTrainer, asked: str, truth: Tensors, full: dict[str, Any]) -> dict[str, Any]:
    damping, largest = truth["numbers"].tolist()
    with trainer.session() as session:
        fast = session.setup().describe()
    with changed(trainer, **full), trainer.session() as session:
        converged = session.setup().describe()
    numbers = {name: float(truth[name].mean()) for name in ("cosine", "residual")}
    return {"asked": asked, "damping": damping, "largest": largest, **numbers, "fast": fast, "full": converged}


def _rows(
    asked: str, method: str, scores: torch.Tensor, truth: torch.Tensor, candidates: np.ndarray, ks: Sequence[int]
) -> list[dict[str, Any]]:
    """A row of the table for each k."""
    a, b = (np.take_along_axis(values.cpu().numpy(), candidates, axis=1) for values in (scores, truth))
    found = []
    for k in ks:
        of_queries = pd.DataFrame([correlations(one[:k], other[:k]) for one, other in zip(a, b, strict=True)])
        numbers = of_queries.mean().to_dict() | of_queries.std(ddof=0).add_suffix("_std").to_dict()
        found.append({"asked": asked, "method": method, "k": k} | numbers)
    return found
