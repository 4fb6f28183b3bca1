"""Save the results of analyses as JSON, draw them, and publish them."""

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
    """Base class of the results of all analyses, whose attributes are numbers, strings, and lists or tables of them.

    Example:
        ```python
        result = recall(trainer, queries)
        print(result)
        result.write("results", "recall")
        ```
    """

    @abstractmethod
    def figure(self) -> Figure:
        """Draw the result.

        Example:
            ```python
            recall(trainer, queries).figure().savefig("recall.pdf")
            ```
        """

    def figures(self, name: str) -> dict[str, Figure]:
        """Return all figures of the result by file name without suffix, given the name of the result.

        Example:
            ```python
            for name, figure in result.figures("recall").items():
                figure.savefig(f"{name}.pdf")
            ```
        """
        return {name: self.figure()}

    def save(self, path: str | Path) -> Path:
        """Write a JSON file and return its path.

        Example:
            ```python
            path = result.save("recall.json")
            ```
        """
        text = json.dumps(asdict(self), indent=2, allow_nan=False)
        return atomic_write(Path(path), lambda file: file.write_text(text, encoding="utf-8"))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a file that `save` wrote.

        Example:
            ```python
            result = Recall.load("recall.json")
            ```
        """
        return cls(**json.loads(Path(path).read_text("utf-8")))

    def plot(self, path: str | Path) -> Path:
        """Write the figure in the format given by the suffix, such as `.png` or `.svg`, and return the path.

        Raises:
            MissingExtraError: If matplotlib is not installed.

        Example:
            ```python
            result.plot("recall.png")
            ```
        """
        return save_figure(self.figure(), path)[0]

    def write(self, folder: str | Path, name: str) -> Path:
        """Write `NAME.json`, `NAME.png` and `NAME.svg` into a folder, and return the path of the JSON file.

        The figures are skipped if matplotlib is not installed.

        Example:
            ```python
            result.write("results", "recall")
            ```
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)

        def draw() -> None:
            for stem, figure in self.figures(name).items():
                save_figure(figure, *(folder / f"{stem}.{suffix}" for suffix in ("png", "svg")))

        try_to_draw(draw)
        return self.save(folder / f"{name}.json")

    def push_to_hub(
        self, repo_id: str, name: str, trainer: InfluenceTrainer, **options: Unpack[PushOptions]
    ) -> CommitInfo:
        """Publish the result as a dataset repository: the files of `write`, its tables as parquet, and a card.

        Args:
            repo_id (`str`): The repository, which is created if it does not exist.
            name (`str`): Name of the files, such as `"recall"`.
            trainer ([`InfluenceTrainer`]): The trainer that computed the result. The card names its model, data and
                settings.
            **options: `private`, `revision` (a branch, created if needed), `create_pr`, `token` and `commit_message`,
                as in `huggingface_hub`.

        Returns:
            `huggingface_hub.CommitInfo`: The commit or the pull request.

        Raises:
            NotAllowedError: If the token has no write access to the repository.

        Example:
            ```python
            recall(trainer, queries).push_to_hub("me/recall", "recall", trainer, private=True)
            ```
        """
        return push_analysis(self, repo_id, name, trainer, **options)


def push_analysis(
    result: AnalysisResult, repo_id: str, name: str, trainer: InfluenceTrainer, **options: Unpack[PushOptions]
) -> CommitInfo:
    """Publish the result of an analysis; see `AnalysisResult.push_to_hub`."""
    tables = {key: rows for key, rows in asdict(result).items() if isinstance(rows, list) and _is_table(rows)}
    origin = {"model": model_name(trainer.model), **sources(trainer.model, trainer.train_dataset)}

    def stage(folder: Path, repo_id: str) -> tuple[DatasetCard, dict[str, Path]]:
        result.write(folder, name)
        for key, rows in tables.items():
            Dataset.from_list(rows).to_parquet(folder / f"{key}.parquet")
        description, _, attributes = inspect.getdoc(type(result)).partition("\n\nAttributes:\n")
        texts = {"description": description, "attributes": inspect.cleandoc(attributes), "printed": str(result)}
        facts = {"kind": type(result).__name__, "package": type(result).__module__.rpartition(".")[0]}
        facts["figure"] = (folder / f"{name}.png").exists()
        card = analysis_card(origin, _settings(trainer), list(tables), repo_id=repo_id, name=name, **facts, **texts)
        return card, {path.name: path for path in sorted(folder.iterdir())}

    owned = [f"{name}.*", *(f"{field.name}.parquet" for field in fields(result))]
    return push(repo_id, "dataset", stage, owned, **options)


def _is_table(rows: list[Any]) -> bool:
    return bool(rows) and all(isinstance(row, dict) for row in rows)


def _settings(trainer: InfluenceTrainer) -> list[tuple[str, str]]:
    """Return names and values of the seed, the size of the training set, changed settings, and package versions."""
    args, defaults = trainer.args, {field.name: field for field in fields(InfluenceConfig)}
    changed = {name: value for name, value in args.influence_settings().items() if value != _value(defaults[name])}
    if "checkpoints" in changed:  # local paths stay private
        changed["checkpoints"] = ["/".join(Path(entry).parts[-2:]) for entry in args.checkpoints]
    run = {"seed": args.seed, "training examples": f"{len(trainer.train_dataset):,}"}
    packages = {"versions": ", ".join(f"{package} {number}" for package, number in versions().items())}
    return [(name, str(value)) for name, value in (run | changed | packages).items()]


def _value(field: Field) -> Any:
    return field.default_factory() if field.default is MISSING else field.default


def analysis_card(
    origin: dict[str, Any], settings: Sequence[tuple[str, str]], tables: Sequence[str], **values: Any
) -> DatasetCard:
    """Return the card of an analysis; see `push_analysis`."""
    title = values["name"].replace("_", " ").capitalize()
    texts = {"title": title, "model": origin["model"], "settings": cells(settings), "tables": tables}
    return dataset_card("analysis.md", origin, tables, **texts, **values)
