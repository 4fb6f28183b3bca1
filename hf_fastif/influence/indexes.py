"""Build, load and cache indexes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from transformers.utils import logging

from hf_fastif.artifacts import differences
from hf_fastif.checkpoints import CheckpointSet
from hf_fastif.config import InfluenceConfig
from hf_fastif.curvature import Sketch
from hf_fastif.execution import DatasetSweep, PartialResults, from_main
from hf_fastif.index import (
    ComputedVectors,
    CustomVectors,
    FittedVectors,
    InfluenceIndex,
    PooledFeatures,
    SketchFeatures,
    SketchFit,
    Vectors,
    check_index,
    custom_features,
    features_of,
    index_manifest,
    made_index,
    vectors_place,
    write_index,
)
from hf_fastif.influence.queries import CandidatePool
from hf_fastif.influence.timing import (
    in_words,
    index_cost,
    parameters_left_out,
    time_passes,
    time_product,
)
from hf_fastif.solvers import SolverSetup


logger = logging.get_logger(__name__)

SKETCH = "gradient_sketch"
CUSTOM = "own"
BRIEF = 5.0  # seconds: shorter work is not announced


@dataclass(frozen=True)
class Indexes:
    """The indexes of a session, in memory and in a folder.

    Attributes:
        args ([`InfluenceConfig`]): The settings.
        checkpoints ([`CheckpointSet`]): The checkpoints at which features are computed.
        setup (`Callable`): Returns the solver setup of the checkpoint that is currently loaded.
        sweep (`DatasetSweep`): Divides a pass over examples into batches and processes.
        train (`Callable`): Returns the training set.
        belongs (`Callable`): Returns the digests that an index of a pool must match.
        provenance (`Callable`): Returns the names of the model and of a pool's source, which an index records too.
        partial_results (`Callable`): Opens a store of finished parts.
        folder (`Path`): The folder of all indexes.
        attached (`Mapping`): Indexes that are attached to a dataset, by its fingerprint.
        cache (`dict`): Indexes that were built or read before, and what they depend on, by the name of their folder.
    """

    args: InfluenceConfig
    checkpoints: CheckpointSet
    setup: Callable[[], SolverSetup]
    sweep: DatasetSweep
    train: Callable[[], CandidatePool]
    belongs: Callable[[CandidatePool], Mapping[str, str]]
    provenance: Callable[[CandidatePool], Mapping[str, Any]]
    partial_results: Callable[..., AbstractContextManager[PartialResults]]
    folder: Path
    attached: Mapping[str, InfluenceIndex]
    cache: dict[str, tuple[str, InfluenceIndex]]

    @property
    def accelerator(self) -> Accelerator:
        """The processes."""
        return self.sweep.accelerator

    def of(self, pool: CandidatePool, kind: str | None = None) -> InfluenceIndex:
        """Return the index of a pool: the attached one, one from memory or disk, or a new one.

        Args:
            pool (`CandidatePool`): The candidates.
            kind (`str`, *optional*): The kind of features. By default that of the attached index, or else
                `args.index_features`.

        Raises:
            InfluenceError: If the attached index was built with another model, loss or other rows.
        """
        attached = self._attached(pool)
        if attached is not None and kind in (None, attached.name):
            return check_index(pool.name, attached, self.belongs(pool))
        return self.build(pool, kind or self.args.index_features)

    def sketch(self) -> Sketch:
        """Return the sketch of the training set at the checkpoint that is currently loaded."""
        sketches, checkpoints = self._train_sketches(), self.checkpoints
        return sketches[checkpoints.members.index(checkpoints.present)].to(self.accelerator.device)

    def build(
        self,
        pool: CandidatePool,
        kind: str,
        given: np.ndarray | str | None = None,
        add_to: InfluenceIndex | None = None,
    ) -> InfluenceIndex:
        """Return the index of a pool, which is computed unless the same index is in memory or on disk.

        Args:
            pool (`CandidatePool`): The candidates.
            kind (`str`): The kind of features.
            given (`np.ndarray` or `str`, *optional*): The user's features, or the name of the column that holds them.
            add_to ([`InfluenceIndex`], *optional*): An index of the first rows, whose vectors are reused.

        Raises:
            InfluenceError: If FAISS rejects the factory, or the user's features have the wrong shape.
        """
        matrix = None if given is None else custom_features(pool.dataset, given)
        if matrix is not None:
            kind = CUSTOM
        elif add_to is not None:
            kind = add_to.name
        train_digest = self.train().digest if kind == SKETCH else ""
        needed = index_manifest(self.args, kind, len(pool.batches), train_digest, matrix, self.belongs(pool))
        key, folder = json.dumps(needed), self.folder / f"{kind}-{pool.digest}"
        known, index = self.cache.get(folder.name, (None, None))
        if key == known and add_to is None:
            return index
        if add_to is not None or self.args.overwrite or not self._is_written(folder, kind, needed):
            width = matrix.shape[1] if matrix is not None else self.args.index_size
            # Raises before the work:
            made_index(width, self.args.index_factory, kind == SKETCH, self.args.index_search)
            with self.partial_results("build_index", pool.digest, kind, add_to and add_to.identity) as partials:
                vectors = self._vectors(pool, kind, matrix, add_to, partials)
                manifest = {**needed, **self.provenance(pool)}
                write_index(folder, kind, vectors, manifest, self.accelerator, self.args.seed, add_to)
        index = InfluenceIndex.load(folder, **vectors_place(self.args, self.accelerator.is_main_process))
        self.cache[folder.name] = (key, index)
        return index

    def _is_written(self, folder: Path, kind: str, manifest: Mapping[str, Any]) -> bool:
        return from_main(lambda: InfluenceIndex.is_written(folder, kind, manifest), self.accelerator)

    def _vectors(
        self,
        pool: CandidatePool,
        kind: str,
        matrix: np.ndarray | None,
        add_to: InfluenceIndex | None,
        partials: PartialResults,
    ) -> Vectors:
        if matrix is not None:
            return CustomVectors(matrix)
        objective = self.checkpoints.objective
        if add_to is not None:
            features = features_of(add_to, objective)
        elif kind != SKETCH:
            features = [PooledFeatures(objective, kind == "mean_pooled")] * len(self.checkpoints)
        elif pool.digest == self.train().digest:
            self._announce(len(pool.batches))
            return self._fitted(partials)
        else:
            device = self.accelerator.device
            features = [SketchFeatures(objective, sketch.to(device)) for sketch in self._train_sketches()]
        return ComputedVectors(features, pool.batches, self.checkpoints, self.sweep, partials)

    def _attached(self, pool: CandidatePool) -> InfluenceIndex | None:
        return self.attached.get(pool.dataset._fingerprint)

    def _train_sketches(self) -> list[Sketch]:
        """Return the sketch of each checkpoint: those of the index attached to the training set if it still fits."""
        train = self.train()
        attached = self._attached(train)
        if (
            attached is not None
            and attached.name == SKETCH
            and not differences(attached.manifest, self.belongs(train))
        ):
            return attached.sketches
        return self.build(train, SKETCH).sketches

    def _announce(self, count: int) -> None:
        """Say how long an index of the training set will take, and what it leaves out."""
        with self.checkpoints.at(0):
            setup = self.setup()
            passes = time_passes(setup)
            cost = index_cost(setup, passes, time_product(self.accelerator.device), len(self.checkpoints))
            left_out = parameters_left_out(setup)
        if not self.accelerator.is_main_process:
            return
        if cost.seconds > BRIEF:
            logger.warning(
                f"Building the index of {count:,} training examples, once: about {in_words(cost.seconds)}. Later "
                f"calls read it from {self.folder}."
            )
        if left_out:
            logger.warning(left_out)

    def _fitted(self, partials: PartialResults) -> FittedVectors:
        fits = []
        for number in range(len(self.checkpoints)):
            with self.checkpoints.at(number):
                fits.append(SketchFit(self.setup(), self.sweep, partials, f"gradients-{number}"))
        return FittedVectors(fits, self.checkpoints, len(self.train().batches))
