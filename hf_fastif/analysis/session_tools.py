"""What the analyses share: queries, other settings for a while, and finished parts that are kept."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datasets import Dataset

from hf_fastif.data import hexdigest
from hf_fastif.errors import InfluenceError
from hf_fastif.execution import PartialResults
from hf_fastif.trainer import InfluenceTrainer


@contextmanager
def changed(trainer: InfluenceTrainer, **settings: Any) -> Iterator[None]:
    """Gives a trainer other settings of influence within the block.

    Raises:
        ValueError: If there is no such setting, or its value is refused.
    """
    before, args = trainer.args, copy.copy(trainer.args)
    if unknown := set(settings) - set(args.influence_settings()):
        raise InfluenceError(
            f"settings: {', '.join(sorted(unknown))} is no setting of influence; see InfluenceConfig."
        )
    for name, value in settings.items():
        setattr(args, name, value)
    args.check()
    trainer.args = args
    try:
        yield
    finally:
        trainer.args = before


def influence_manifest(trainer: InfluenceTrainer, **datasets: Dataset) -> dict[str, str]:
    """What influence depends on: the model, the training set, settings, and other datasets by their names."""
    settings = {name: str(value) for name, value in trainer.args.influence_settings().items()}
    with trainer.session() as session:
        about = {"model": session.checkpoints.fingerprint, "loss": session.loss, "seed": str(trainer.args.seed)}
    return about | settings | digests(trainer, train_dataset=trainer.train_dataset, **datasets)


def digests(trainer: InfluenceTrainer, **datasets: Dataset) -> dict[str, str]:
    """Short digests of the rows of some datasets, as the model sees them, by their names."""
    with trainer.session() as session:
        return {name: session.examples(name, rows).digest for name, rows in datasets.items()}


def open_analysis_results(trainer: InfluenceTrainer, name: str, manifest: Mapping[str, str]) -> PartialResults:
    """Finished parts of an analysis, in `output_dir/NAME`: in a folder of their own for each manifest.

    They are left there, so that an analysis that was stopped or is made larger goes on from them, unless
    `trainer.args.overwrite` is set.
    """
    # Probe values of a loss may differ by rounding; they are compared when the folder is opened.
    exact = {key: value for key, value in manifest.items() if key != "loss"}
    folder = Path(trainer.args.output_dir) / name / hexdigest([json.dumps(exact, sort_keys=True)])
    with trainer.session() as session:
        begun = session.cache.begun
    if trainer.args.overwrite and folder not in begun and trainer.is_world_process_zero():
        shutil.rmtree(folder, ignore_errors=True)
    begun.add(folder)
    return PartialResults(folder, manifest, trainer.accelerator)
