"""What an analysis found: numbers that are saved as JSON and drawn as a figure."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self, Unpack

from hf_fastif.files import write_whole


if TYPE_CHECKING:
    from huggingface_hub import CommitInfo
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from hf_fastif.hub.publishing import PushOptions
    from hf_fastif.trainer import InfluenceTrainer


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
        return write_whole(Path(path), lambda file: file.write_text(text, encoding="utf-8"))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads what `save` wrote."""
        return cls(**json.loads(Path(path).read_text("utf-8")))

    def plot(self, path: str | Path) -> Path:
        """Writes the figure; the suffix of the path says in which format, such as `.png` or `.svg`."""
        return _draw(self.figure(), Path(path))

    def write(self, folder: str | Path, name: str) -> Path:
        """Writes `NAME.json`, `NAME.png` and `NAME.svg` into a folder, and returns the path of the first."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for called, figure in self.figures(name).items():
            for suffix in ("png", "svg"):
                _draw(figure, folder / f"{called}.{suffix}")
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
        from hf_fastif.hub.analyses import push_analysis

        return push_analysis(self, repo_id, name, trainer, **options)


def mark_sizes(axes: Axes, sizes: Iterable[int]) -> None:
    """Marks the sizes that occur on a logarithmic x axis, and no others."""
    marked = sorted(set(sizes))
    axes.set_xticks(marked, [f"{size:,}" for size in marked])
    axes.minorticks_off()


def _draw(figure: Figure, path: Path) -> Path:
    return write_whole(path, lambda file: figure.savefig(file, format=path.suffix[1:], dpi=130))
