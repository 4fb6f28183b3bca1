"""Provide the tools that all analyses share: temporary settings, manifests and stores of finished parts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datasets import Dataset

from hf_fastif.config import with_settings
from hf_fastif.data import hexdigest
from hf_fastif.errors import InfluenceError
from hf_fastif.execution import PartialResults
from hf_fastif.trainer import InfluenceTrainer


@contextmanager
def changed(trainer: InfluenceTrainer, **settings: Any) -> Iterator[None]:
    """Change influence settings of a trainer within the block.

    Args:
        trainer ([`InfluenceTrainer`]): The trainer, whose previous settings are restored afterwards.
        **settings: New values by the names of fields of [`InfluenceConfig`].

    Raises:
        InfluenceError: If a setting does not exist or its value is invalid.

    Example:
        ```python
        with changed(trainer, solver="exact", damping=0.1):
            exact = trainer.compute_influence(queries)
        ```
    """
    before, args = trainer.args, with_settings(trainer.args, **settings)
    if unknown := set(settings) - set(before.influence_settings()):
        raise InfluenceError(
            f"settings: {', '.join(sorted(unknown))} is not an influence setting; give fields of InfluenceConfig."
        )
    args.check()
    trainer.args = args
    try:
        yield
    finally:
        trainer.args = before


def influence_manifest(trainer: InfluenceTrainer, **datasets: Dataset) -> dict[str, str]:
    """Return everything that influence depends on: model, loss, seed, settings, and digests of the datasets.

    Args:
        trainer ([`InfluenceTrainer`]): The trainer, whose training set is included.
        **datasets: Other datasets by name, such as `queries`.

    Returns:
        `dict[str, str]`: The manifest for `open_analysis_results`.

    Example:
        ```python
        parts = open_analysis_results(trainer, "recall", influence_manifest(trainer, queries=queries))
        ```
    """
    with trainer.session() as session:
        manifest = session.manifest()
    return manifest | digests(trainer, train_dataset=trainer.train_dataset, **datasets)


def digests(trainer: InfluenceTrainer, **datasets: Dataset) -> dict[str, str]:
    """Return a short digest of the rows of each dataset, as the model sees them, by name.

    Example:
        ```python
        print(digests(trainer, train=trainer.train_dataset, queries=queries)["queries"])
        ```
    """
    with trainer.session() as session:
        return {name: session.examples(name, rows).digest for name, rows in datasets.items()}


def open_analysis_results(trainer: InfluenceTrainer, name: str, manifest: Mapping[str, str]) -> PartialResults:
    """Open the store of finished parts of an analysis.

    The store is a folder in `output_dir/NAME`, one for each manifest. It is never deleted, so that an interrupted or
    extended analysis resumes from its finished parts. With `trainer.args.overwrite`, it is emptied first.

    Args:
        trainer ([`InfluenceTrainer`]): The trainer whose `output_dir` holds the store.
        name (`str`): Name of the analysis.
        manifest (`Mapping[str, str]`): What the parts depend on.

    Returns:
        `PartialResults`: The store.

    Example:
        ```python
        parts = open_analysis_results(trainer, "scores", influence_manifest(trainer, queries=queries))
        scores = parts.get("scan", lambda: {"scores": torch.from_numpy(trainer.compute_influence(queries))})
        ```
    """
    # Probe values of a loss may differ by rounding. They are compared when the store is opened.
    exact = {key: value for key, value in manifest.items() if key != "loss"}
    folder = Path(trainer.args.output_dir) / name / hexdigest([json.dumps(exact, sort_keys=True)])
    with trainer.session() as session:
        begun = session.cache.begun
    if trainer.args.overwrite and folder not in begun and trainer.is_world_process_zero():
        shutil.rmtree(folder, ignore_errors=True)
    begun.add(folder)
    return PartialResults(folder, manifest, trainer.accelerator)
