"""Results of analyses: numbers that are saved as JSON, drawn as figures, and published."""

from __future__ import annotations

import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import MISSING, Field, asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, Unpack

from datasets import Dataset
from huggingface_hub import CommitInfo, DatasetCard

from hf_fastif.artifacts import PushOptions, atomic_write, model_name, push, sources, versions
from hf_fastif.artifacts.cards import cells, dataset_card
from hf_fastif.artifacts.plots import save_figure, try_to_draw
from hf_fastif.config import InfluenceConfig
from hf_fastif.trainer import InfluenceTrainer


if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class AnalysisResult(ABC):
    """Base of the results of all analyses. Their attributes are numbers, texts, and lists or tables of them."""

    @abstractmethod
    def figure(self) -> Figure:
        """Draws the result."""

    def figures(self, name: str) -> dict[str, Figure]:
        """All figures of the result, by the names of their files when it is called `name`."""
        return {name: self.figure()}

    def save(self, path: str | Path) -> Path:
        """Writes a JSON file."""
        text = json.dumps(asdict(self), indent=2, allow_nan=False)
        return atomic_write(Path(path), lambda file: file.write_text(text, encoding="utf-8"))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads what `save` wrote."""
        return cls(**json.loads(Path(path).read_text("utf-8")))

    def plot(self, path: str | Path) -> Path:
        """Writes the figure; the suffix of the path says in which format, such as `.png` or `.svg`."""
        return save_figure(self.figure(), path)[0]

    def write(self, folder: str | Path, name: str) -> Path:
        """Write `NAME.json`, `NAME.png` and `NAME.svg` into a folder, and return the path of the first.

        Without matplotlib only the first is written.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)

        def draw() -> None:
            for called, figure in self.figures(name).items():
                save_figure(figure, *(folder / f"{called}.{suffix}" for suffix in ("png", "svg")))

        try_to_draw(draw)
        return self.save(folder / f"{name}.json")

    def push_to_hub(
        self, repo_id: str, name: str, trainer: InfluenceTrainer, **options: Unpack[PushOptions]
    ) -> CommitInfo:
        """Publishes the result as a dataset repository: what `write` writes, its tables as parquet, and a card.

        Args:
            repo_id (`str`): Where to. The repository is created if it is not there.
            name (`str`): Of the files, such as `"recall"`.
            trainer ([`InfluenceTrainer`]): With which it was computed; the card names its model, data and settings.
            **options: `private`, `revision` (a branch, created if needed), `create_pr`, `token` and `commit_message`,
                as in `huggingface_hub`.

        Returns:
            `huggingface_hub.CommitInfo`: The commit, or the pull request.

        Raises:
            PermissionError: If the token may not write there.
        """
        return push_analysis(self, repo_id, name, trainer, **options)


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
        known = {"kind": type(found).__name__, "package": type(found).__module__.rpartition(".")[0]}
        known["figure"] = (folder / f"{name}.png").exists()
        card = analysis_card(about, _settings(trainer), list(tables), repo_id=repo_id, name=name, **known, **texts)
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


def analysis_card(
    about: dict[str, Any], settings: Sequence[tuple[str, str]], tables: Sequence[str], **values: Any
) -> DatasetCard:
    """The card of an analysis; see `push_analysis`."""
    title = values["name"].replace("_", " ").capitalize()
    known = {"title": title, "model": about["model"], "settings": cells(settings), "tables": tables}
    return dataset_card("analysis.md", about, tables, **known, **values)
