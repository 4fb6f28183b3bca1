"""How many of the most influential examples an index finds (section 5.2 and figure 3a of the paper)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from datasets import Dataset

from hf_fastif.files import write_whole
from hf_fastif.solvers import Solution


if TYPE_CHECKING:
    from hf_fastif.trainer import InfluenceTrainer

DIRECTIONS = {"helpful": 1.0, "harmful": -1.0, "absolute": None}  # the sign with which scores are sorted
SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)  # of the candidates, for k


@dataclass(frozen=True)
class Recall:
    """The share of the top m of the full scan that is among the k nearest neighbours, as a mean over queries.

    Attributes:
        table (`list[dict]`): `direction` ("helpful", "harmful", "absolute"), `m`, `k`, `recall`, `std_err` (of the
            mean over queries).
        num_candidates (`int`): N.
        num_queries (`int`): Queries that it is a mean over.
    """

    table: list[dict[str, str | int | float]]
    num_candidates: int
    num_queries: int

    def suggested_k(self, wanted: float = 0.95, m: int = 10, direction: str = "absolute") -> int | None:
        """The smallest k of the table with that recall, or None if none has it."""
        rows = [row for row in self.table if (row["direction"], row["m"]) == (direction, m)]
        return next((row["k"] for row in rows if row["recall"] >= wanted), None)

    def __str__(self) -> str:
        lines = [f"{self.num_queries} queries, {self.num_candidates:,} candidates"]
        for m in dict.fromkeys(row["m"] for row in self.table):
            k = self.suggested_k(m=m)
            found = f"k = {k} holds 95 % of the top {m}" if k else f"no k that was tried holds 95 % of the top {m}"
            own = [row for row in self.table if (row["direction"], row["m"]) == ("absolute", m)]
            lines += [found, "  " + ", ".join(f"k = {row['k']}: {row['recall']:.2f}" for row in own)]
        return "\n".join(lines)

    def save(self, path: str | Path) -> None:
        """Writes a JSON file."""
        text = json.dumps(asdict(self), indent=2)
        write_whole(Path(path), lambda file: file.write_text(text, encoding="utf-8"))

    def plot(self, path: str | Path) -> None:
        """Draws recall against k, a panel for each direction."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(11, 3.6), layout="constrained")
        axes = figure.subplots(1, 3, sharey=True)
        for axis, direction in zip(axes, DIRECTIONS, strict=True):
            for m in dict.fromkeys(row["m"] for row in self.table):
                own = [row for row in self.table if (row["direction"], row["m"]) == (direction, m)]
                k, values, errors = ([row[name] for row in own] for name in ("k", "recall", "std_err"))
                axis.errorbar(k, values, errors, marker="o", markersize=4, capsize=2, label=f"top {m}")
            axis.set(xscale="log", xlabel="k, neighbours scored", title=direction, ylim=(0, 1.05))
            axis.grid(alpha=0.3)
        axes[0].set_ylabel("recall")
        axes[0].legend(loc="upper left")
        write_whole(Path(path), lambda file: figure.savefig(file, format=Path(path).suffix[1:], dpi=130))


def recall(
    trainer: InfluenceTrainer,
    queries: Dataset,
    top: Sequence[int] = (10, 100),
    ks: Sequence[int] | None = None,
    candidates: Dataset | None = None,
    s_test: Solution | None = None,
    query_features: np.ndarray | None = None,
    scan: np.ndarray | None = None,
) -> Recall:
    """Compares the candidates that the index proposes with a full scan, for a sample of queries.

    Args:
        trainer ([`InfluenceTrainer`]): With an index.
        queries (`datasets.Dataset`): A few tens tell.
        top (`Sequence[int]`, *optional*): The m of "top m of the full scan".
        ks (`Sequence[int]`, *optional*): The numbers of neighbours to try, by default from 0.1 % to half of all.
        candidates (`datasets.Dataset`, *optional*): `trainer.train_dataset` unless given.
        s_test ([`Solution`], *optional*): What `trainer.compute_s_test(queries)` returned.
        query_features (`np.ndarray`, *optional*): Where the index is of your own features.
        scan (`np.ndarray`, *optional*): What `trainer.compute_influence(queries)` returned.

    Returns:
        [`Recall`]: `print` it for a suggested k.

    Raises:
        ValueError: If some m exceeds the candidates.
    """
    count = len(trainer.train_dataset if candidates is None else candidates)
    if max(top) > count:
        raise ValueError(f"top={tuple(top)}: there are {count} candidates.")
    ks = sorted(set(ks or (max(1, round(share * count)) for share in SHARES)))
    solution = trainer.compute_s_test(queries) if s_test is None else s_test
    found = trainer.find_candidates(queries, ks[-1], candidates, solution, query_features)
    scores = trainer.compute_influence(queries, candidates, solution) if scan is None else scan
    places = np.full(scores.shape, count)  # where the index has each candidate
    np.put_along_axis(places, found, np.arange(found.shape[1])[None], axis=1)
    table = []
    for direction, sign in DIRECTIONS.items():
        order = np.argsort(-np.abs(scores) if sign is None else sign * scores, axis=1)
        for m in top:
            held = np.take_along_axis(places, order[:, :m], axis=1)
            for k in ks:
                shares = (held < k).mean(axis=1)
                error = float(shares.std() / np.sqrt(len(shares)))
                table.append(
                    {"direction": direction, "m": m, "k": k, "recall": float(shares.mean()), "std_err": error}
                )
    return Recall(table, count, len(scores))
