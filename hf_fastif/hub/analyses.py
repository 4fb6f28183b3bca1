"""What is published of an analysis."""

from __future__ import annotations

import inspect
from dataclasses import MISSING, Field, asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from datasets import Dataset
from huggingface_hub import CommitInfo, DatasetCard

from hf_fastif.analysis.result import AnalysisResult
from hf_fastif.config import InfluenceConfig
from hf_fastif.hub.cards import analysis_card
from hf_fastif.hub.publishing import PushOptions, push
from hf_fastif.provenance import model_name, sources, versions


if TYPE_CHECKING:
    from hf_fastif.trainer import InfluenceTrainer


def push_analysis(
    found: AnalysisResult, repo_id: str, name: str, trainer: InfluenceTrainer, **options: Unpack[PushOptions]
) -> CommitInfo:
    """Publishes the result of an analysis; see `AnalysisResult.push_to_hub`."""
    tables = {key: rows for key, rows in asdict(found).items() if isinstance(rows, list) and _is_table(rows)}
    about = {"model": model_name(trainer.model), **sources(trainer.model, trainer.train_dataset)}

    def stage(folder: Path, repo_id: str) -> tuple[DatasetCard, dict[str, Path]]:
        found.write(folder, name)
        for key, rows in tables.items():
            Dataset.from_list(rows).to_parquet(folder / f"{key}.parquet")
        description, _, attributes = inspect.getdoc(type(found)).partition("\n\nAttributes:\n")
        texts = {"description": description, "attributes": inspect.cleandoc(attributes), "printed": str(found)}
        kind = type(found).__name__
        card = analysis_card(about, _settings(trainer), list(tables), repo_id=repo_id, name=name, kind=kind, **texts)
        return card, {path.name: path for path in sorted(folder.iterdir())}

    owned = [f"{name}.*", *(f"{field.name}.parquet" for field in fields(found))]
    return push(repo_id, "dataset", stage, owned, **options)


def _is_table(rows: list[Any]) -> bool:
    return bool(rows) and all(isinstance(row, dict) for row in rows)


def _settings(trainer: InfluenceTrainer) -> list[tuple[str, str]]:
    """What the answer depends on and is not as it is by default."""
    args, defaults = trainer.args, {field.name: field for field in fields(InfluenceConfig)}
    changed = {name: value for name, value in args.influence_settings().items() if value != _value(defaults[name])}
    if "checkpoints" in changed:  # other people's paths are not for reading
        changed["checkpoints"] = ["/".join(Path(entry).parts[-2:]) for entry in args.checkpoints]
    about = {"seed": args.seed, "training examples": f"{len(trainer.train_dataset):,}"}
    known = {"versions": ", ".join(f"{package} {number}" for package, number in versions().items())}
    return [(name, str(value)) for name, value in (about | changed | known).items()]


def _value(field: Field) -> Any:
    return field.default_factory() if field.default is MISSING else field.default
