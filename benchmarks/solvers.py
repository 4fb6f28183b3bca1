"""Error against compute for every solver, on a real model, with the exact damped inverse as the truth.

    python benchmarks/solvers.py --model_name_or_path out/mnli --train_file mnli_train.jsonl.gz \
        --validation_file mnli_dev_matched.jsonl.gz --text_columns premise hypothesis --max_train_examples 2000 \
        --output_dir out/solvers

The training set is cut to `--max_train_examples`, so that the exact solver can serve as the reference. All solvers
answer the same queries (misclassified validation examples) at the same damping. Writes `solvers.json` and
`solvers.png`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import set_seed

from hf_fastif import InfluenceConfig
from hf_fastif.config import with_settings
from hf_fastif.influence import loss_gradients
from hf_fastif.scoring import influence_scores
from hf_fastif.solvers import Ekfac, Exact, Identity, decompose
from hf_fastif.solvers.sketch import InSketch
from hf_fastif.training import DataArguments, ModelArguments, make_trainer, parse_arguments


PAPER = "LiSSA, B = 1"
# Name, settings, the setting that bounds the steps, and the steps (of SDCA: visits) after which the error is taken.
METHODS: list[tuple[str, dict[str, Any], str, list[int]]] = [
    (PAPER, {"solver": "lissa", "lissa_batch_size": 1}, "lissa_depth", [100, 300, 1000]),
    ("LiSSA, B = 32", {"solver": "lissa"}, "lissa_depth", [25, 75]),
    ("LiSSA, B = 32, EK-FAC", {"solver": "lissa", "preconditioner": "ekfac"}, "lissa_depth", [5, 15, 40]),
    ("CG, 512 examples", {"solver": "cg", "cg_samples": 512}, "cg_steps", [2, 4, 8]),
    ("CG, 512, EK-FAC", {"solver": "cg", "cg_samples": 512, "preconditioner": "ekfac"}, "cg_steps", [1, 2, 4]),
    ("CG, all examples", {"solver": "cg", "cg_samples": 1_000_000}, "cg_steps", [2, 4, 6]),
    ("SDCA", {"solver": "sdca"}, "sdca_visits", [250, 500, 1000, 2000, 3000, 4000, 5000, 6000]),
    ("SDCA, bf16", {"solver": "sdca", "influence_bf16": True}, "sdca_visits", [1000, 4000]),
]
FEW = (PAPER, "CG, 512 examples", "SDCA")


@dataclass
class BenchmarkArguments(ModelArguments):
    """What to measure."""

    num_queries: int = field(default=8, metadata={"help": "Misclassified validation examples to solve for."})
    dampings: list[str] = field(default_factory=lambda: ["auto", "50"], metadata={"help": "Values of lambda."})
    few: bool = field(default=False, metadata={"help": f"Only {', '.join(FEW)}."})


@dataclass
class Point:
    """A solver after some work."""

    method: str
    damping: float
    work: str
    seconds: float
    fit_seconds: float
    vectors: torch.Tensor
    error: float = 0.0
    correlation: float = 0.0


def main(benchmark: BenchmarkArguments, data: DataArguments, config: InfluenceConfig) -> None:
    set_seed(config.seed)
    config.solver = "sdca"  # eigenvalues are those of a sample, as iterative solvers need them
    trainer, examples = make_trainer(benchmark, data, config)
    validation = examples["validation"].shuffle(config.seed)
    validation = validation.select(range(300))
    queries = validation.select(trainer.find_misclassified(validation)[: benchmark.num_queries])
    methods = [method for method in METHODS if not benchmark.few or method[0] in FEW]
    with trainer.session() as session:
        objective, setup = session.objective, session.setup()
        vectors = loss_gradients(objective, session.examples("queries", queries), range(len(queries)))
        spectrum = setup.spectrum
        print(f"largest eigenvalue {spectrum.largest:.4g}, {objective.space.size:,} parameters", flush=True)
        dampings = [spectrum.damping(d if d == "auto" else float(d)) for d in benchmark.dampings]
        whole = setup.draw_sample(len(setup.examples), config.seed)
        decomposition, fit = timed(lambda: decompose(setup.curvature, whole))
        truth, seconds = timed(lambda: Exact(decomposition, whole, dampings[0]).solve_all(vectors, dampings))
        print(f"exact: Gram matrix {fit:.0f} s, {len(dampings)} dampings for all queries {seconds:.0f} s", flush=True)
        points = []
        for damping, exact in zip(dampings, truth, strict=True):
            chosen = methods if damping == dampings[0] else [(*m[:3], m[3][:3]) for m in methods if m[0] in FEW]
            at_damping = run_all(session, vectors, damping, chosen)
            judge(at_damping, exact, session)
            points += at_damping
        per_query = time_per_query(session, vectors)
    folder = Path(config.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{n: v for n, v in vars(point).items() if n != "vectors"} for point in points]
    largest = spectrum.largest
    (folder / "solvers.json").write_text(json.dumps({"points": rows, "per_query": per_query, "largest": largest}))
    plot(rows, folder / "solvers.png")


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    return run(), time.perf_counter() - start


def run_all(session, vectors, damping, methods) -> list[Point]:
    """Every method at one damping, with the state after each of its budgets."""
    trainer, objective = session.trainer, session.objective
    points = [Point("gradient product", damping, "", 0.0, 0.0, Identity().solve(vectors).vectors / damping)]
    base = trainer.args
    try:
        for name, settings, bound, budgets in methods:
            size = base.influence_batch_size if bound == "sdca_visits" else 1  # examples in a step of SDCA
            tolerance = 1e-9 if settings["solver"] == "cg" else None
            limits = {"damping": damping, bound: budgets[-1], "solver_tolerance": tolerance}
            trainer.args = with_settings(base, **limits | settings)
            objective.bf16 = trainer.args.influence_bf16
            solver, fit = timed(lambda: session.setup().solver())  # noqa: B023
            points += track(name, solver, damping, fit, vectors, [-(-budget // size) for budget in budgets], size)
        objective.bf16 = False
        trainer.args = with_settings(base, solver="ekfac", damping=damping)
        solver, fit = timed(lambda: session.setup().solver())
        solution, seconds = timed(lambda: solver.factors.solve(objective.space, vectors, damping))
        points.append(Point("EK-FAC", damping, "", seconds, fit, solution))
        trainer.args = with_settings(base, solver="sketch", damping=damping)
        solver, fit = timed(lambda: session.setup().solver())
        solution, seconds = timed(lambda: solver.solve(vectors).vectors)
        points.append(Point("index", damping, "", seconds, fit, solution))
    finally:
        trainer.args = base
    return points


def track(name, solver, damping, fit, vectors, steps, size) -> list[Point]:
    """Runs a solver once and keeps what it had after some steps; the time of keeping is not counted."""
    points: list[Point] = []
    start, spent = time.perf_counter(), 0.0

    def keep(step: int, solutions: torch.Tensor) -> None:
        nonlocal spent
        if step in steps:
            now = time.perf_counter()
            work = f"{step * size:,} visits" if size > 1 else f"{step:,} steps"
            points.append(Point(name, damping, work, now - start - spent, fit, solutions.clone()))
            print(f"{name}: {work}, {points[-1].seconds:.1f} s", flush=True)
            spent += time.perf_counter() - now

    solver.callback = keep
    try:
        solver.solve(vectors)
    except ArithmeticError as error:
        print(f"{name}: {error}", flush=True)
    return points


def judge(points: list[Point], exact: torch.Tensor, session) -> None:
    """The error of the vectors, and the correlation of the scores of all training examples, as means over queries."""
    stacked = torch.cat([exact, *(point.vectors for point in points)])
    rows = np.arange(len(session.train))
    scores = influence_scores(session.objective, session.train, stacked, rows, session.sweep)
    truth, *scores_of_points = np.split(scores, len(points) + 1)
    for point, values in zip(points, scores_of_points, strict=True):
        point.error = float(((point.vectors - exact).norm(dim=1) / exact.norm(dim=1)).mean())
        pairs = zip(values, truth, strict=True)
        point.correlation = float(np.mean([np.corrcoef(one, other)[0, 1] for one, other in pairs]))
        print(
            f"| {point.method} | {point.damping:.3g} | {point.work} | {point.fit_seconds:.0f} | {point.seconds:.1f} "
            f"| {point.error:.3f} | {point.correlation:.4f} |",
            flush=True,
        )


def time_per_query(session, vectors: torch.Tensor) -> dict[str, list[float]]:
    """Seconds per query for one query alone and for 32 at once, for a few steps of each solver."""
    trainer = session.trainer
    base, seconds = trainer.args, {}
    few = {
        PAPER: {"solver": "lissa", "lissa_batch_size": 1, "lissa_depth": 20},
        "LiSSA, B = 32": {"solver": "lissa", "lissa_depth": 3},
        "CG, 128 examples": {"solver": "cg", "cg_samples": 128, "cg_steps": 2, "solver_tolerance": 1e-9},
        "SDCA": {"solver": "sdca", "sdca_visits": 96},
        "EK-FAC": {"solver": "ekfac"},
        "index": {"solver": "sketch"},
    }
    many = vectors.repeat(-(-32 // len(vectors)), 1)[:32]
    try:
        for name, settings in few.items():
            trainer.args = with_settings(base, **settings)
            solver = session.setup().solver()
            run = unchecked(solver)
            run(many[:1])
            alone, together = timed(lambda: run(many[:1]))[1], timed(lambda: run(many))[1] / len(many)  # noqa: B023
            seconds[name] = [alone, together]
            print(
                f"{name}: alone {alone:.3f} s, 32 at once {together:.4f} s a query, {together / alone:.3f}", flush=True
            )
    finally:
        trainer.args = base
    return seconds


def unchecked(solver) -> Callable[[torch.Tensor], Any]:
    """The solver without the residual at its end, which is a product with the curvature of a sample."""
    if isinstance(solver, InSketch):  # has none
        return solver.solve

    def no_residual(vectors, solutions, damping):
        return torch.zeros(len(vectors))

    sample = solver.sample if isinstance(solver, Ekfac) else solver.system.sample
    sample.residual = no_residual
    return solver.solve


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    damping = rows[0]["damping"]
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for method in dict.fromkeys(row["method"] for row in rows):
        selected = [row for row in rows if row["method"] == method and row["damping"] == damping]
        seconds = [max(row["seconds"], 0.1) for row in selected]
        for axis, name in zip(axes, ("error", "correlation"), strict=True):
            values = [row["error"] if name == "error" else 1 - row["correlation"] for row in selected]
            axis.plot(seconds, values, marker="o", label=method)
    for axis, name in zip(axes, ("relative error of s_test", "1 - correlation of the scores"), strict=True):
        axis.set(xscale="log", yscale="log", xlabel="seconds for all queries (fit not counted)", ylabel=name)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.suptitle(f"Solvers against the exact damped inverse, lambda = {damping:.3g}")
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main(*parse_arguments(BenchmarkArguments, DataArguments, InfluenceConfig))
