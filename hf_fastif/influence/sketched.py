"""Queries in the coordinates of an index, whose products with its vectors are their scores."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from hf_fastif.checkpoints import CheckpointSet
from hf_fastif.curvature import Sketch
from hf_fastif.execution import from_main
from hf_fastif.index import InfluenceIndex
from hf_fastif.influence.queries import Queries
from hf_fastif.solvers import SolverSetup


CACHED = 4096  # groups of queries whose coordinates stay in memory


@dataclass(frozen=True)
class SketchedQueries:
    """The queries of a call, solved in the sketch of each checkpoint.

    Attributes:
        queries (`Queries`): The queries.
        index ([`InfluenceIndex`]): The index of the candidates, which holds the sketches.
        checkpoints ([`CheckpointSet`]): The checkpoints.
        setup (`Callable`): Returns the solver setup of the checkpoint that is currently loaded.
        cache (`dict`): Coordinates that were computed before.
    """

    queries: Queries
    index: InfluenceIndex
    checkpoints: CheckpointSet
    setup: Callable[[], SolverSetup]
    cache: dict[Hashable, list[tuple[torch.Tensor, torch.Tensor]]]

    def scores(self, numbers: range) -> np.ndarray:
        """Return the scores (n, N) of all candidates for the queries at these positions."""
        features = self.features(numbers)
        return from_main(lambda: self.index.scores(features), self.queries.sweep.accelerator)

    def search(self, numbers: range, k: int) -> np.ndarray:
        """Return the k candidates (n, k) with the strongest scores, half of them of each direction."""
        features = self.features(numbers)
        return from_main(lambda: self.index.search(features, k), self.queries.sweep.accelerator)

    def features(self, numbers: range) -> np.ndarray:
        """Return the features (n, d) of s_test, whose negative products with the vectors of the index are scores."""
        parts = [
            solved * sketch.eigenvalues.sqrt()
            for solved, sketch in zip(self.solved(numbers), self._sketches, strict=True)
        ]
        return torch.cat(parts, dim=1).cpu().numpy()

    def vectors(self, numbers: range) -> torch.Tensor:
        """Return s_test (n, checkpoints x P) of the queries at these positions."""
        space = self.checkpoints.objective.space
        pairs = zip(self.solved(numbers), self._sketches, strict=True)
        return torch.cat([sketch.to_vectors(space, solved) for solved, sketch in pairs], dim=1)

    def residuals(self, numbers: range) -> torch.Tensor:
        """Return how much of the gradients the sketch leaves out (n,), at the checkpoint where it is most."""
        return torch.stack([residual for _, residual in self._gradients]).amax(dim=0)[numbers.start : numbers.stop]

    def concentrations(self, numbers: range) -> torch.Tensor:
        """Return the share (n,) of a single direction in grad L^T (C + lambda I)^-1 grad L, the largest of all."""
        shares = []
        for sketch, (coordinates, _), damping in zip(self._sketches, self._gradients, self.dampings, strict=True):
            parts = coordinates[numbers.start : numbers.stop].square() / (sketch.eigenvalues + damping)
            shares.append(parts.amax(dim=1) / parts.sum(dim=1).clamp_min(torch.finfo(parts.dtype).tiny))
        return torch.stack(shares).amax(dim=0)

    def solved(self, numbers: range) -> list[torch.Tensor]:
        """Return the coordinates (n, r) of s_test at each checkpoint, times the weight of the checkpoint."""
        chosen = slice(numbers.start, numbers.stop)
        by_checkpoint = zip(self._sketches, self._gradients, self.checkpoints.weights, self.dampings, strict=True)
        return [
            weight * sketch.solve(coordinates[chosen], damping)
            for sketch, (coordinates, _), weight, damping in by_checkpoint
        ]

    @cached_property
    def dampings(self) -> list[float]:
        """The damping lambda at each checkpoint."""
        setup = self.setup()
        return [setup.damping_in(sketch) for sketch in self._sketches]

    @cached_property
    def _sketches(self) -> list[Sketch]:
        return [sketch.to(self.queries.sweep.accelerator.device) for sketch in self.index.sketches]

    @property
    def _gradients(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The gradients of all queries at each checkpoint: their coordinates (Q, r), and what is left out (Q,)."""
        key = (self.queries.identity, self.index.identity)
        if key not in self.cache:
            gradients = []
            for number, sketch in enumerate(self._sketches):
                with self.checkpoints.at(number):
                    gradients.append(self.queries.coordinates(sketch))
            self.cache[key] = gradients
            if len(self.cache) > CACHED:
                del self.cache[next(iter(self.cache))]
        return self.cache[key]
