"""One checkpoint: trained parameters and buffers at one moment, in a file of ours or a folder that `Trainer` saved."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from hf_fastif.artifacts import atomic_write
from hf_fastif.data import hexdigest
from hf_fastif.errors import InfluenceError


WEIGHTS, WEIGHTS_INDEX, ADAPTER = "model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors"
SCHEDULER = "scheduler.pt"
REPLACED = {"base_layer", "original_module"}  # what PEFT calls a part of the model that its own stands in for
EPOCH_END = 1e-6  # `Trainer` counts epochs in batches, so that the end of one is a whole number but for rounding
STATE = "trainer_state.json"
RUN = "InfluenceRun"  # the entry of a trainer's state that names the run, where our trainer began it


@dataclass(frozen=True)
class Checkpoint:
    """Where training stood, and where the parameters of that moment are.

    Attributes:
        path (`Path`, *optional*): A file that `save_checkpoint` wrote, or a folder with a model's safetensors. None is
            the model as it is.
        step (`int`, *optional*): Optimizer steps taken.
        epoch (`float`, *optional*): DatasetSweep over the training set.
        learning_rate (`float`, *optional*): Of that step.
        train_dataset (`str`, *optional*): Digest of the training set, where it was written down.
        loss (`str`, *optional*): What stands for the loss of training, where it was written down.
        frozen (`str`, *optional*): Digest of the parameters that were not trained, where it was written down.
        run (`str`, *optional*): Name of the run, where it was written down.
        log_size (`int`, *optional*): How many entries the run's log had.
        log (`str`, *optional*): Digest of these entries.
        pace (`str`, *optional*): Settings of the run that its state tells (see `pace_of`).
    """

    path: Path | None = None
    step: int | None = None
    epoch: float | None = None
    learning_rate: float | None = None
    train_dataset: str | None = None
    loss: str | None = None
    frozen: str | None = None
    run: str | None = None
    log_size: int | None = None
    log: str | None = None
    pace: str | None = None

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

    @property
    def ends_epoch(self) -> int | None:
        """The epoch that ends here, or None in the middle of one."""
        number = round(self.epoch or 0)
        return number if number and abs(self.epoch - number) < EPOCH_END else None

    @cached_property
    def saved_at(self) -> float:
        """When it was written, in seconds, as far as the file system remembers."""
        return (self.path if self.path.is_file() else self.path / STATE).stat().st_mtime


def save_checkpoint(folder: Path, tensors: Mapping[str, torch.Tensor], about: Checkpoint) -> Path:
    """Write trained parameters and buffers, with what is known of them."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{about.step:08d}.safetensors"
    facts = {name: value for name, value in asdict(about).items() if name != "path"}
    values = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    return atomic_write(path, lambda file: save_file(values, file, {"checkpoint": json.dumps(facts)}))


def open_checkpoint(path: Path) -> Checkpoint:
    """Read what is known of a file or folder, without its parameters."""
    facts: dict[str, Any] = {}
    if path.is_file():
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {}).get("checkpoint", "{}"))
        facts = {name: facts[name] for name in facts if name in {field.name for field in fields(Checkpoint)}}
    elif (path / STATE).exists():
        state = read_json(path / STATE)
        rates = [entry["learning_rate"] for entry in state["log_history"] if "learning_rate" in entry]
        facts = {"step": state["global_step"], "epoch": state["epoch"], "learning_rate": (rates or [None])[-1]}
        facts |= {"log_size": len(state["log_history"]), "log": log_digest(state["log_history"])}
        facts |= {"run": run_name(state), "pace": pace_of(state, path)}
    return Checkpoint(path=path, **facts)


def pace_of(state: Mapping[str, Any], folder: Path | None = None) -> str:
    """Return how a run went: batch size, what it saved and logged, and its learning rates where a folder has them."""
    settings = [state.get(name) for name in ("train_batch_size", "save_steps", "logging_steps", "eval_steps")]
    if folder is not None and (folder / SCHEDULER).exists():
        settings.append(torch.load(folder / SCHEDULER, weights_only=True).get("base_lrs"))
    return str(settings)


def run_name(state: Mapping[str, Any]) -> str | None:
    """Return the name that our trainer gave the run, from a trainer's state; whoever resumes it keeps the name."""
    entry = (state.get("stateful_callbacks") or {}).get(RUN)
    return None if entry is None else entry["attributes"]["run"]


def log_digest(entries: Sequence[Mapping[str, Any]]) -> str:
    """Return a digest of entries of a run's log."""
    return hexdigest([json.dumps(list(entries), sort_keys=True, default=str)])


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_parameters(path: Path, names: Iterable[str]) -> dict[str, torch.Tensor]:
    """Read parameters and buffers of a checkpoint by name; those that it does not hold are left out.

    Raises:
        InfluenceError: If the folder has no safetensors.
    """
    return dict(_read_one_by_one(path, names))


def _read_one_by_one(path: Path, names: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
    homes = _homes(path)
    places = {name: saved for name in names if (saved := _saved_name(name, homes)) is not None}
    for home in sorted({homes[saved] for saved in places.values()}):
        with safe_open(home, framework="pt") as file:
            for name, saved in places.items():
                if homes[saved] == home:
                    yield name, file.get_tensor(saved)


def has_same_parameters(member: Checkpoint, state: Mapping[str, torch.Tensor]) -> bool:
    """Tell whether a checkpoint has just these parameters and buffers; it is read until one differs."""
    missing = set(state)
    for name, values in _read_one_by_one(member.path, state):
        if values.shape != state[name].shape or not torch.equal(values.to(state[name]), state[name]):
            return False
        missing.remove(name)
    return not missing


def _homes(path: Path) -> dict[str, Path]:
    """The file of each parameter, by the name that it is saved under."""
    if path.is_dir() and (path / WEIGHTS_INDEX).exists():
        return {name: path / Path(file).name for name, file in read_json(path / WEIGHTS_INDEX)["weight_map"].items()}
    file = path
    if path.is_dir():
        file = path / (ADAPTER if (path / ADAPTER).exists() and not (path / WEIGHTS).exists() else WEIGHTS)
    if not file.is_file():
        raise InfluenceError(
            f"checkpoints: {path} holds no {WEIGHTS}; give a folder that Trainer or save_pretrained wrote (of a model "
            "that is saved whole, not in the shards of its processes)."
        )
    with safe_open(file, framework="pt") as opened:
        return dict.fromkeys(opened.keys(), file)


def _saved_name(name: str, saved: Collection[str]) -> str | None:
    """The name that a parameter is saved under: PEFT leaves out the name of its adapter."""
    if name in saved:
        return name
    parts = name.split(".")
    if not REPLACED.isdisjoint(parts):
        return None
    for place in range(1, len(parts)):
        before = parts[: place - 1] if parts[place - 1] == "modules_to_save" else parts[:place]
        for behind in (parts[place + 1 :], parts[place + 2 :]):  # of DoRA the last part too
            shorter = ".".join([*before, *behind])
            if shorter in saved:
                return shorter
    return None
