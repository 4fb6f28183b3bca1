"""Compare the cost of a query between the algorithm of the FastIF authors and this library (section 5.1, table 1)."""

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
from hf_fastif.config import FASTIF, with_settings
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
ONCE = ("our Kronecker bases", "our index")
AMORTIZED = 10  # queries among which the work done once is divided, as many as in the paper
FORWARD = 512  # examples whose forward passes are timed


@dataclass(frozen=True)
class Cost:
    """The cost of one query.

    Attributes:
        method (`str`): "the authors' algorithm", or this library with the number of queries in one call.
        k (`int`): Number of scored candidates.
        processes (`int`): Number of processes.
        threads (`int`): Number of threads of each process.
        s_test (`float`): Seconds to compute s_test; 0 for this library, which is timed as a whole.
        scoring (`float`): Seconds to find and score the candidates, or of the whole call.
        std (`float`): Standard deviation in seconds of the sum of both over individual queries.
        extrapolated (`bool`): Whether the time was extrapolated from a part of the work.
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
        """Return the total of `s_test` and `scoring`."""
        return self.s_test + self.scoring


@dataclass(frozen=True)
class Runtime(AnalysisResult):
    """Seconds per query, and seconds of the work done once for all queries.

    Attributes:
        table (`list[dict]`): Rows with the fields of [`Cost`].
        once (`list[dict]`): Rows with `what`, `processes`, `threads`, `seconds` and `forward_passes` (the seconds,
            divided by those of a forward pass over the training set).
        num_candidates (`int`): Number of training examples N. Rows with `k` = N are full scans.
    """

    table: list[dict[str, Any]]
    once: list[dict[str, Any]]
    num_candidates: int

    @property
    def costs(self) -> list[Cost]:
        """Return the rows of the table as objects."""
        return [Cost(**row) for row in self.table]

    def joined(self, other: Runtime) -> Runtime:
        """Return a result with the rows of both runs, such as runs on different numbers of processes.

        Example:
            ```python
            both = Runtime.load("one-process/runtime.json").joined(Runtime.load("two-processes/runtime.json"))
            print(both)
            ```
        """
        return Runtime(self.table + other.table, self.once + other.once, self.num_candidates)

    def __str__(self) -> str:
        lines = [
            f"Seconds per query, {self.num_candidates:,} training examples; ~ extrapolated from a part",
            "x: times faster than the authors' algorithm with the same k, and than its full scan",
        ]
        for cost in self.costs:
            mark = "~" if cost.extrapolated else " "
            lines.append(
                f"  {cost.method:26} {self._scored(cost.k):14} {cost.processes} x {cost.threads} threads  "
                f"{mark}{cost.seconds:10.2f} ± {cost.std:.2f} (s_test {cost.s_test:.2f})   "
                f"{self.times_faster(cost, cost.k):,.0f}x {self.times_faster(cost, self.num_candidates):,.0f}x"
            )
        lines += [
            f"  once: {row['what']}, {row['processes']} processes, {row['seconds']:.1f} s, "
            f"{row['forward_passes']:.1f} forward passes an example"
            for row in self.once
        ]
        return "\n".join(lines)

    def times_faster(self, cost: Cost, k: int) -> float:
        """Return how many times longer the authors' algorithm takes with k candidates on as many processes.

        Args:
            cost ([`Cost`]): The row to compare.
            k (`int`): The number of candidates of the authors' algorithm.
        """
        place = AUTHORS, k, cost.processes, cost.threads
        theirs = next(c for c in self.costs if (c.method, c.k, c.processes, c.threads) == place)
        return theirs.seconds / cost.seconds

    def figure(self) -> Figure:
        """Draw the seconds of each row as a point, hollow if they were extrapolated."""
        table = pd.DataFrame(self.table).assign(seconds=[cost.seconds for cost in self.costs])
        fastest, slowest = (self.costs[row] for row in (table["seconds"].idxmin(), table["seconds"].idxmax()))
        title = (
            f"A query takes {fastest.seconds:.3g} s ({fastest.method}, {self._scored(fastest.k)}), "
            f"{slowest.seconds / fastest.seconds:,.0f} times faster than {slowest.method}, {self._scored(slowest.k)}"
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
        axes.set(xscale="log", xlabel="seconds per query (hollow: extrapolated from a part)")
        axes.margins(x=0.15)
        return figure

    def _scored(self, k: int) -> str:
        return "full scan" if k == self.num_candidates else f"k = {k:,}"


def runtime(
    trainer: InfluenceTrainer,
    queries: Dataset,
    ks: Sequence[int],
    repeats: int = 1,
    timed: int | None = None,
    num_alone: int | None = None,
) -> Runtime:
    """Time queries on the current processes; [`Runtime.joined`] combines runs on different numbers of processes.

    The authors' algorithm is reimplemented as described and published: LiSSA on the Hessian of single examples
    (`InfluenceConfig.fastif`), one query at a time, then one backward pass for each candidate. Only its recursion and
    its backward passes are timed, whereas for this library whole calls of `find_influential` are timed. Its index is
    built once for all queries, which is reported separately, and counted in for ten queries. Times are saved in
    `output_dir/runtime`.

    Args:
        trainer ([`InfluenceTrainer`]): The trainer with the settings of this library.
        queries (`datasets.Dataset`): The Q queries, which this library gets in one call.
        ks (`Sequence[int]`): Numbers of candidates to score. All training examples (N) are added.
        repeats (`int`, *optional*, defaults to 1): T of the authors' LiSSA, which is divided among the processes.
        timed (`int`, *optional*): Number of steps and candidates of the authors' algorithm to time, to extrapolate
            from. None times all.
        num_alone (`int`, *optional*): Number of queries that both get one by one, by default all.

    Returns:
        [`Runtime`]: The seconds of every method and k.

    Raises:
        InfluenceError: If some k exceeds the number of training examples.

    Example:
        ```python
        result = runtime(trainer, dev.select(range(4)), ks=[1000], timed=100)
        print(result)
        ```
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
        "num_alone": str(num_alone),
        "device": str(accelerator.device),
        **{name: str(value) for name, value in place.items()},
    }
    parts = open_analysis_results(trainer, "runtime", manifest)
    alone = [queries.select([row]) for row in range(len(queries))[:num_alone]]
    theirs = parts.get("authors", lambda: _authors(trainer, alone, ks, repeats, timed))
    ours = parts.get("ours", lambda: _ours(trainer, queries, alone, ks))
    once = [
        {"what": what, **place, "seconds": seconds, "forward_passes": seconds / float(ours["forward"])}
        for what, seconds in zip(ONCE, ours["once"].tolist(), strict=True)
    ]
    with_index = ours["alone"].clone()
    with_index[:, COLUMNS.index("scoring")] += ours["once"].sum() / AMORTIZED
    costs_of = {
        AUTHORS: theirs["costs"],
        "ours, one query": ours["alone"],
        f"ours, {len(queries)} queries at once": ours["together"],
        f"ours, index for {AMORTIZED} queries": with_index,
    }
    table = []
    for method, costs in costs_of.items():
        for row in costs.tolist():
            numbers = dict(zip(COLUMNS, row, strict=True))
            numbers |= {"k": int(numbers["k"]), "extrapolated": bool(numbers["extrapolated"])}
            table.append(asdict(Cost(method=method, **place, **numbers)))
    return Runtime(table, once, count)


def _clocked(run: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    return run(), time.perf_counter() - start


def _ours(trainer: InfluenceTrainer, queries: Dataset, alone: Sequence[Dataset], ks: Sequence[int]) -> Tensors:
    """Time the index, single queries, and all queries together."""
    before = trainer.args
    try:
        # An index that is already there would be read instead.
        trainer.args = with_settings(before, index_features="gradient_sketch", overwrite=True)
        with trainer.session() as session, session.checkpoints.at(0):
            _, bases = _clocked(session.setup().kronecker_bases)
            forward = _seconds_of_forward_passes(session)
        _, index = _clocked(trainer.build_index)
    finally:
        trainer.args = before
    trainer.find_influential(alone[0])  # hashes model and data, once
    return {
        "once": torch.tensor([bases, index], dtype=torch.float64),
        "forward": torch.tensor(forward, dtype=torch.float64),
        "alone": _timed(trainer, alone, ks),
        "together": _timed(trainer, [queries], ks),
    }


def _seconds_of_forward_passes(session: InfluenceSession) -> float:
    """Estimate the seconds of a forward pass over the training set, divided among the processes."""
    accelerator, train = session.trainer.accelerator, session.examples("train_dataset", session.trainer.train_dataset)
    rows = np.random.default_rng(0).permutation(len(train))[:FORWARD]
    batches = train.grouped_by_length(rows, session.args.influence_batch_size)

    def run() -> None:
        with torch.no_grad():
            for batch in batches:
                session.objective.logits(session.objective.theta, train.take(batch))
        if accelerator.device.type != "cpu":
            torch.accelerator.synchronize()

    run()  # warms up
    return _clocked(run)[1] / len(rows) * len(train) / accelerator.num_processes


def _timed(trainer: InfluenceTrainer, groups: Sequence[Dataset], ks: Sequence[int]) -> torch.Tensor:
    """Time calls of this library, one for each group of queries and k; see `_costs` for the result."""
    seconds = []
    for group in groups:
        seconds.append([])
        for k in ks:
            with trainer.session() as session:
                session.cache.coordinates.clear()  # a query that was seen before would be faster
            near = None if k == len(trainer.train_dataset) else k
            _, taken = _clocked(lambda group=group, near=near: trainer.find_influential(group, num_neighbors=near))
            seconds[-1].append(taken / len(group))
    return _costs(ks, [0.0] * len(groups), seconds, [False] * len(ks))


def _authors(
    trainer: InfluenceTrainer, queries: Sequence[Dataset], ks: Sequence[int], repeats: int, timed: int | None
) -> Tensors:
    """Time the authors' recursion and their loop over candidates, one query at a time."""
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
        for query in queries:
            with trainer.session() as session:
                solution, seconds = _lissa(session, query, depth)
            s_test.append(seconds)
            scoring.append([])
            for k in ks:
                rows, searching = np.arange(k), 0.0
                if k < len(trainer.train_dataset):
                    arguments = {"examples": query, "num_neighbors": k, "s_test": solution}
                    candidates, searching = _clocked(lambda arguments=arguments: trainer.find_candidates(**arguments))
                    rows = candidates[0]
                with trainer.session() as session:
                    scoring[-1].append(searching + _backward_passes(session, solution, rows, timed))
    cut = [timed is not None and (timed < k or steps < depth) for k in ks]
    return {"costs": _costs(ks, s_test, scoring, cut)}


def _lissa(session: InfluenceSession, query: Dataset, depth: int) -> tuple[Solution, float]:
    """Compute s_test of one query, and the seconds that `depth` steps take.

    The seconds are extrapolated from the number of steps in the settings.
    """
    args, setup, accelerator = session.args, session.setup(), session.trainer.accelerator
    settings = find_solver("lissa").read_settings(args)
    steps = settings.depth
    num_runs = len(shard_for_rank(range(args.num_repeats), accelerator))  # on this process
    watch = SolverStopwatch([1, steps], max(1, num_runs), lambda solutions: solutions[:, :0])
    solver = Lissa(
        system=setup.system_damped_by(args.damping),  # taken literally, since their code uses no eigenvalues
        settings=settings,
        repeats=args.num_repeats,
        callback=watch,
    )
    gradient = loss_gradients(session.objective, session.examples("queries", query), [0])
    solution = solver.solve(gradient)
    seconds = watch.seconds.get(steps, 0.0)
    if steps < depth and num_runs:  # without the first step, which is slower
        seconds = (seconds - watch.seconds[1]) / (steps - 1) * depth
    return solution, max(gather_object([seconds]))


def _backward_passes(session: InfluenceSession, solution: Solution, rows: np.ndarray, timed: int | None) -> float:
    """Time - s_test . grad L(z) for the given rows, one after another, and return the seconds of all.

    If `timed` is given, the seconds are extrapolated from as many random rows.
    """
    accelerator = session.trainer.accelerator
    sample = np.random.default_rng(0).permutation(rows)[:timed]
    rows_of_this_process, vector = shard_for_rank(sample, accelerator), solution.vectors[0]
    accelerator.wait_for_everyone()
    _, seconds = _clocked(
        lambda: [
            -float(session.objective.gradient(session.train.take([row])) @ vector) for row in rows_of_this_process
        ]
    )
    return max(gather_object([seconds])) * len(rows) / len(sample)


def _costs(
    ks: Sequence[int], s_test: Sequence[float], scoring: Sequence[Sequence[float]], extrapolated: Sequence[bool]
) -> torch.Tensor:
    """Compute means and standard deviations over calls.

    Args:
        ks (`Sequence[int]`): The K numbers of candidates.
        s_test (`Sequence[float]`): Seconds per query to compute s_test, of each of Q calls.
        scoring (`Sequence[Sequence[float]]`): Seconds per query for the candidates (Q, K).
        extrapolated (`Sequence[bool]`): Whether the times of each k were extrapolated.

    Returns:
        `torch.Tensor` of shape `(K, 5)`, float64: The columns `COLUMNS` for each k.
    """
    solving, scanning = np.array(s_test), np.array(scoring)
    totals = solving[:, None] + scanning
    columns = [ks, [solving.mean()] * len(ks), scanning.mean(axis=0), totals.std(axis=0), extrapolated]
    return torch.tensor(np.stack([np.asarray(column, dtype=np.float64) for column in columns], axis=1))
