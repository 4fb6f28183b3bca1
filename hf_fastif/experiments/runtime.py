"""What a query costs by the algorithm of the FastIF authors and by this library (section 5.1, table 1)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from accelerate.utils import gather_object
from datasets import Dataset

from hf_fastif.analysis import AnalysisResult, changed, influence_manifest, open_analysis_results
from hf_fastif.artifacts.plots import TEXT, colors_of, draw_points, name_rows, new_figure
from hf_fastif.config import FASTIF
from hf_fastif.execution import Tensors, shard_for_rank
from hf_fastif.experiments.stopwatch import SolverStopwatch
from hf_fastif.index import check_num_neighbors
from hf_fastif.influence import InfluenceSession, loss_gradients
from hf_fastif.solvers import Lissa, Solution, find_solver
from hf_fastif.trainer import InfluenceTrainer


if TYPE_CHECKING:
    from matplotlib.figure import Figure

AUTHORS = "the authors' algorithm"
COLUMNS = ("k", "s_test", "scoring", "std", "extrapolated")


@dataclass(frozen=True)
class Cost:
    """What a query cost.

    Attributes:
        method (`str`): "the authors' algorithm", or this library asked for so many queries at once.
        k (`int`): Candidates that were scored.
        processes (`int`): Processes.
        threads (`int`): Threads of each.
        s_test (`float`): Seconds for s_test.
        scoring (`float`): Seconds for finding and scoring the candidates.
        std (`float`): Standard deviation of the sum of both over queries that were asked one at a time.
        extrapolated (`bool`): Whether only a part of the work was timed, and its time multiplied.
    """

    method: str
    k: int
    processes: int
    threads: int
    s_test: float
    scoring: float
    std: float
    extrapolated: bool

    @property
    def seconds(self) -> float:
        """Both parts."""
        return self.s_test + self.scoring


@dataclass(frozen=True)
class Runtime(AnalysisResult):
    """Seconds a query, and what is done once for all queries.

    Attributes:
        table (`list[dict]`): The fields of [`Cost`].
        once (`list[dict]`): `what`, `processes` and `seconds`.
        num_candidates (`int`): N; a `k` of N is no neighbours but a full scan.
    """

    table: list[dict[str, Any]]
    once: list[dict[str, Any]]
    num_candidates: int

    @property
    def costs(self) -> list[Cost]:
        """The rows of the table."""
        return [Cost(**row) for row in self.table]

    def joined(self, other: Runtime) -> Runtime:
        """With the rows of a run with another number of processes."""
        return Runtime(self.table + other.table, self.once + other.once, self.num_candidates)

    def __str__(self) -> str:
        slowest = max(self.costs, key=lambda cost: cost.seconds)
        lines = [f"Seconds a query, {self.num_candidates:,} training examples; ~ where only a part was timed"]
        for cost in self.costs:
            mark = "~" if cost.extrapolated else " "
            lines.append(
                f"  {cost.method:26} {self._scored(cost.k):14} {cost.processes} x {cost.threads} threads  "
                f"{mark}{cost.seconds:10.2f} ± {cost.std:.2f} (s_test {cost.s_test:.2f})   "
                f"{slowest.seconds / cost.seconds:,.0f}x"
            )
        lines += [f"  once: {row['what']}, {row['processes']} processes, {row['seconds']:.1f} s" for row in self.once]
        return "\n".join(lines)

    def figure(self) -> Figure:
        """Draw a point for each row; what was extrapolated is hollow."""
        table = pd.DataFrame(self.table).assign(seconds=[cost.seconds for cost in self.costs])
        fastest, slowest = (self.costs[row] for row in (table["seconds"].idxmin(), table["seconds"].idxmax()))
        title = (
            f"A query takes {fastest.seconds:.3g} s ({fastest.method}, {self._scored(fastest.k)}), "
            f"{slowest.seconds / fastest.seconds:,.0f} times less than {slowest.method}, {self._scored(slowest.k)}"
        )
        figure, ((axes,),) = new_figure(9, 1.4 + 0.3 * len(table), title=title)
        colors = colors_of(table["method"])
        for (method, extrapolated), rows in table.groupby(["method", "extrapolated"], sort=False):
            seconds, std = rows["seconds"], rows["std"]
            style = {"fmt": "o", "color": colors[method]} | ({"markerfacecolor": "none"} if extrapolated else {})
            draw_points(axes, seconds, rows.index, seconds - std, seconds + std, sideways=True, **style)
        for row, cost in enumerate(self.costs):
            seconds = f"{cost.seconds:,.0f}" if cost.seconds > 100 else f"{cost.seconds:.3g}"
            text = f"{'~' if cost.extrapolated else ''}{seconds} s"
            place = {"xytext": (8, 0), "textcoords": "offset points", "va": "center"}
            axes.annotate(text, (cost.seconds + cost.std, row), **place, fontsize=8, color=TEXT)
        name_rows(axes, [f"{c.method}, {self._scored(c.k)}, {c.processes} x {c.threads}" for c in self.costs])
        axes.set(xscale="log", xlabel="seconds a query (hollow: extrapolated from a part)")
        axes.margins(x=0.15)
        return figure

    def _scored(self, k: int) -> str:
        return "no neighbours" if k == self.num_candidates else f"k = {k:,}"


def runtime(
    trainer: InfluenceTrainer, queries: Dataset, ks: Sequence[int], repeats: int = 1, timed: int | None = None
) -> Runtime:
    """Times queries on the present processes; [`Runtime.joined`] puts runs on several numbers of them together.

    The authors' algorithm is restated as they describe and publish it: LiSSA on the Hessian with single examples
    (`InfluenceConfig.fastif`), one query at a time, then a backward pass for each candidate. Only its recursion and
    its passes count; of ours everything does that is done for each query. What either needs once is listed apart.

    Args:
        trainer ([`InfluenceTrainer`]): With our settings.
        queries (`datasets.Dataset`): Q examples: the authors' algorithm and ours are asked for each alone, ours for
            all at once too.
        ks (`Sequence[int]`): Numbers of candidates; all of them (N) are added.
        repeats (`int`, *optional*, defaults to 1): T of the authors' LiSSA, which is dealt to the processes.
        timed (`int`, *optional*): Time only so many steps and candidates of the authors' algorithm, and say so.

    Returns:
        [`Runtime`]: What is finished is kept in `output_dir/runtime`.

    Raises:
        ValueError: If some k exceeds the candidates.
    """
    count, accelerator = len(trainer.train_dataset), trainer.accelerator
    for k in ks:
        check_num_neighbors(k, count)
    ks = [count, *sorted({*ks} - {count}, reverse=True)]
    place = {"processes": accelerator.num_processes, "threads": torch.get_num_threads()}
    manifest = influence_manifest(trainer, queries=queries) | {
        "ks": str(ks),
        "repeats": str(repeats),
        "timed": str(timed),
        "device": str(accelerator.device),
        **{name: str(value) for name, value in place.items()},
    }
    parts = open_analysis_results(trainer, "runtime", manifest)
    theirs = parts.get("authors", lambda: _authors(trainer, queries, ks, repeats, timed))
    ours = parts.get("ours", lambda: _ours(trainer, queries, ks))
    found = {AUTHORS: theirs["costs"], "ours, one query": ours["alone"]}
    if len(queries) > 1:
        found[f"ours, {len(queries)} queries at once"] = ours["together"]
    table = []
    for method, costs in found.items():
        for row in costs.tolist():
            numbers = dict(zip(COLUMNS, row, strict=True))
            numbers |= {"k": int(numbers["k"]), "extrapolated": bool(numbers["extrapolated"])}
            table.append(asdict(Cost(method=method, **place, **numbers)))
    pairs = zip(("our index and factors", "our solver"), ours["once"].tolist(), strict=True)
    once = [{"what": what, **place, "seconds": seconds} for what, seconds in pairs]
    return Runtime(table, once, count)


def _clocked(run: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    return run(), time.perf_counter() - start


def _ours(trainer: InfluenceTrainer, queries: Dataset, ks: Sequence[int]) -> Tensors:
    """What is done once (the index; what the solver is fitted with), and queries alone and together."""
    _, index = _clocked(trainer.build_index)
    with trainer.session() as session, session.checkpoints.at(0):
        _, solver = _clocked(lambda: session.setup().solver())
    alone = [queries.select([row]) for row in range(len(queries))]
    trainer.compute_s_test(alone[0])  # states of frozen layers are made here, once
    once = torch.tensor([index, solver], dtype=torch.float64)
    return {"once": once, "alone": _asked(trainer, alone, ks), "together": _asked(trainer, [queries], ks)}


def _asked(trainer: InfluenceTrainer, groups: Sequence[Dataset], ks: Sequence[int]) -> torch.Tensor:
    s_test, scoring = [], []
    for group in groups:
        solution, seconds = _clocked(lambda group=group: trainer.compute_s_test(group))
        s_test.append(seconds / len(group))
        scoring.append([])
        for k in ks:
            near = None if k == len(trainer.train_dataset) else k
            asked = {"examples": group, "num_neighbors": near, "s_test": solution}
            _, seconds = _clocked(lambda asked=asked: trainer.find_influential(**asked))
            scoring[-1].append(seconds / len(group))
    return _costs(ks, s_test, scoring, [False] * len(ks))


def _authors(
    trainer: InfluenceTrainer, queries: Dataset, ks: Sequence[int], repeats: int, timed: int | None
) -> Tensors:
    """Their recursion and their loop over candidates, a query at a time."""
    depth = FASTIF["lissa_depth"]
    steps = depth if timed is None else min(depth, max(2, timed))
    settings = FASTIF | {
        "num_repeats": repeats,
        "lissa_depth": steps,
        "solver_tolerance": None,
        "preconditioner": None,
    }
    settings |= {"frozen_states_gb": 0.0, "curvature_samples": 8}
    s_test, scoring = [], []
    with changed(trainer, **settings):
        trainer.build_index()
        for row in range(len(queries)):
            query = queries.select([row])
            with trainer.session() as session:
                solution, seconds = _lissa(session, query, depth)
            s_test.append(seconds)
            scoring.append([])
            for k in ks:
                rows, searching = np.arange(k), 0.0
                if k < len(trainer.train_dataset):
                    asked = {"examples": query, "num_neighbors": k, "s_test": solution}
                    found, searching = _clocked(lambda asked=asked: trainer.find_candidates(**asked))
                    rows = found[0]
                with trainer.session() as session:
                    scoring[-1].append(searching + _backward_passes(session, solution, rows, timed))
    cut = [timed is not None and (timed < k or steps < depth) for k in ks]
    return {"costs": _costs(ks, s_test, scoring, cut)}


def _lissa(session: InfluenceSession, query: Dataset, depth: int) -> tuple[Solution, float]:
    """s_test of one query, and the seconds that `depth` steps take, given the time of as many as the settings say."""
    args, setup, accelerator = session.args, session.setup(), session.trainer.accelerator
    settings = find_solver("lissa").read_settings(args)
    steps = settings.depth
    own = len(shard_for_rank(range(args.num_repeats), accelerator))
    watch = SolverStopwatch([1, steps], max(1, own), lambda solutions: solutions[:, :0])
    solver = Lissa(
        system=setup.system_damped_by(args.damping),  # as it is: their code looks at no eigenvalues
        settings=settings,
        repeats=args.num_repeats,
        callback=watch,
    )
    gradient = loss_gradients(session.objective, session.examples("queries", query), [0])
    solution = solver.solve(gradient)
    seconds = watch.seconds.get(steps, 0.0)
    if steps < depth and own:  # the first step is slower
        seconds = (seconds - watch.seconds[1]) / (steps - 1) * depth
    return solution, max(gather_object([seconds]))


def _backward_passes(session: InfluenceSession, solution: Solution, rows: np.ndarray, timed: int | None) -> float:
    """The seconds of - s_test . grad L(z) for each of some rows, one after another, given the time of some of them."""
    accelerator = session.trainer.accelerator
    chosen = np.random.default_rng(0).permutation(rows)[:timed]
    own, vector = shard_for_rank(chosen, accelerator), solution.vectors[0]
    accelerator.wait_for_everyone()
    _, seconds = _clocked(
        lambda: [-float(session.objective.gradient(session.train.take([row])) @ vector) for row in own]
    )
    return max(gather_object([seconds])) * len(rows) / len(chosen)


def _costs(
    ks: Sequence[int], s_test: Sequence[float], scoring: Sequence[Sequence[float]], extrapolated: Sequence[bool]
) -> torch.Tensor:
    """Means and deviations over queries that were asked one at a time (Q,) and (Q, K), a row for each k."""
    one, other = np.array(s_test), np.array(scoring)
    columns = [ks, [one.mean()] * len(ks), other.mean(axis=0), (one[:, None] + other).std(axis=0), extrapolated]
    return torch.tensor(np.stack([np.asarray(column, dtype=np.float64) for column in columns], axis=1))
