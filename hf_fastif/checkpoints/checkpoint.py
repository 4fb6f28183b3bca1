"""One checkpoint: the trained parameters at one moment, in a file of ours or in a folder that `Trainer` saved."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from hf_fastif.errors import InfluenceError
from hf_fastif.files import write_whole


WEIGHTS, WEIGHTS_INDEX, STATE = "model.safetensors", "model.safetensors.index.json", "trainer_state.json"


@dataclass(frozen=True)
class Checkpoint:
    """Where training stood, and where the parameters of that moment are.

    Attributes:
        path (`Path`, *optional*): A file that `save_checkpoint` wrote, or a folder with a model's safetensors. None is
            the model as it is.
        step (`int`, *optional*): Optimizer steps taken.
        epoch (`float`, *optional*): Passes over the training set.
        learning_rate (`float`, *optional*): Of that step.
        train_dataset (`str`, *optional*): Digest of the training set, where it was written down.
    """

    path: Path | None = None
    step: int | None = None
    epoch: float | None = None
    learning_rate: float | None = None
    train_dataset: str | None = None

    @property
    def name(self) -> str:
        """The run and the step, for people."""
        if self.path is None:
            return "final"
        path = self.path
        return f"{path.parents[2].name}/step-{self.step}" if path.is_file() else "/".join(path.parts[-2:])

    @property
    def title(self) -> str:
        """The same with the epoch."""
        return self.name if self.epoch is None else f"{self.name} (epoch {self.epoch:.3g})"


def save_checkpoint(folder: Path, parameters: Mapping[str, torch.Tensor], about: Checkpoint) -> None:
    """Writes the trained parameters alone, with what is known of them."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{about.step:08d}.safetensors"
    facts = {name: value for name, value in asdict(about).items() if name != "path"}
    tensors = {name: p.detach().contiguous() for name, p in parameters.items()}
    write_whole(path, lambda file: save_file(tensors, file, {"checkpoint": json.dumps(facts)}))


def open_checkpoint(path: Path) -> Checkpoint:
    """What is known of a file or folder, without its parameters."""
    facts = {}
    if path.is_file():
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {}).get("checkpoint", "{}"))
    elif (path / STATE).exists():
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
        rates = [entry["learning_rate"] for entry in state["log_history"] if "learning_rate" in entry]
        facts = {"step": state["global_step"], "epoch": state["epoch"], "learning_rate": (rates or [None])[-1]}
    return Checkpoint(path=path, **facts)


def read_parameters(path: Path, names: Iterable[str]) -> dict[str, torch.Tensor]:
    """Parameters of a checkpoint by name; those that it does not hold are left out.

    Raises:
        ValueError: If the folder has no safetensors.
    """
    homes = _homes(path)
    found: dict[str, torch.Tensor] = {}
    for home in sorted(set(homes.values())):
        with safe_open(home, framework="pt") as file:
            found |= {name: file.get_tensor(name) for name in names if homes.get(name) == home}
    return found


def holds(member: Checkpoint, theta: Mapping[str, torch.Tensor]) -> bool:
    """Whether a checkpoint has just these parameters."""
    found = read_parameters(member.path, theta)
    return all(name in found and torch.equal(found[name].to(p), p) for name, p in theta.items())


def _homes(path: Path) -> dict[str, Path]:
    """The file of each parameter."""
    if path.is_dir() and (path / WEIGHTS_INDEX).exists():
        index = json.loads((path / WEIGHTS_INDEX).read_text(encoding="utf-8"))
        return {name: path / Path(file).name for name, file in index["weight_map"].items()}
    file = path / WEIGHTS if path.is_dir() else path
    if not file.is_file():
        raise InfluenceError(
            f"checkpoints: {path} holds no {WEIGHTS}; give a folder that Trainer or save_pretrained wrote (of a model "
            "that is saved whole, not in the shards of its processes)."
        )
    with safe_open(file, framework="pt") as opened:
        return dict.fromkeys(opened.keys(), file)
