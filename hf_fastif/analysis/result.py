"""What an analysis found: numbers that are saved as JSON and drawn as a figure."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from hf_fastif.files import write_whole


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class AnalysisResult(ABC):
    """Base of the results of all analyses. Their attributes are numbers, texts, and lists or tables of them."""

    @abstractmethod
    def figure(self) -> Figure:
        """Draws the result."""

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
        return draw(self.figure(), Path(path))

    def write(self, folder: str | Path, name: str) -> Path:
        """Writes `NAME.json`, `NAME.png` and `NAME.svg` into a folder, and returns the path of the first."""
        folder, figure = Path(folder), self.figure()
        folder.mkdir(parents=True, exist_ok=True)
        for suffix in ("png", "svg"):
            draw(figure, folder / f"{name}.{suffix}")
        return self.save(folder / f"{name}.json")


def mark_sizes(axes: Axes, sizes: Iterable[int]) -> None:
    """Marks the sizes that occur on a logarithmic x axis, and no others."""
    marked = sorted(set(sizes))
    axes.set_xticks(marked, [f"{size:,}" for size in marked])
    axes.minorticks_off()


def draw(figure: Figure, path: Path) -> Path:
    """Writes a figure; the suffix of the path says in which format."""
    return write_whole(path, lambda file: figure.savefig(file, format=path.suffix[1:], dpi=130))
