"""Write and read a checkpoint: trained parameters and buffers, in a light file or a folder that `Trainer` saved."""

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
REPLACED = {"base_layer", "original_module"}  # PEFT's names of modules that its adapters replace
EPOCH_END = 1e-6  # `Trainer` counts epochs in batches, so that one ends at a whole number, except for rounding
STATE = "trainer_state.json"
RUN = "InfluenceRun"  # the entry of a trainer's state that names the run, if InfluenceTrainer started it


@dataclass(frozen=True)
class Checkpoint:
    """A moment of training and the file of its parameters. Facts that were not recorded are None.

    Attributes:
        path (`Path`, *optional*): A file that `save_checkpoint` wrote, or a folder with a model's safetensors. None
            stands for the weights that the model has now.
        step (`int`, *optional*): Optimizer steps taken.
        epoch (`float`, *optional*): Epochs trained, which may be fractional.
        learning_rate (`float`, *optional*): Learning rate of that step.
        train_dataset (`str`, *optional*): Digest of the training set.
        loss (`str`, *optional*): Identity of the training loss (see `loss_identity`).
        frozen (`str`, *optional*): Digest of the frozen parameters.
        run (`str`, *optional*): Name of the run.
        log_size (`int`, *optional*): Number of entries in the run's log.
        log (`str`, *optional*): Digest of these entries.
        pace (`str`, *optional*): Settings of the run that its state records (see `pace_of`).
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
        """Return the run and the step, for people to read."""
        if self.path is None:
            return "final"
        path = self.path
        return f"{path.parents[2].name}/step-{self.step}" if path.is_file() else "/".join(path.parts[-2:])

    @property
    def title(self) -> str:
        """Return the name with the epoch, if it is known."""
        return self.name if self.epoch is None else f"{self.name} (epoch {self.epoch:.3g})"

    @property
    def ends_epoch(self) -> int | None:
        """Return the number of the epoch that ends here, or None in the middle of one."""
        number = round(self.epoch or 0)
        return number if number and abs(self.epoch - number) < EPOCH_END else None

    @cached_property
    def saved_at(self) -> float:
        """Return the file's modification time, in seconds since 1970."""
        return (self.path if self.path.is_file() else self.path / STATE).stat().st_mtime


def save_checkpoint(folder: Path, tensors: Mapping[str, torch.Tensor], checkpoint: Checkpoint) -> Path:
    """Write trained parameters and buffers, with the facts on their checkpoint, and return the file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{checkpoint.step:08d}.safetensors"
    facts = {name: value for name, value in asdict(checkpoint).items() if name != "path"}
    values = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    return atomic_write(path, lambda file: save_file(values, file, {"checkpoint": json.dumps(facts)}))


def open_checkpoint(path: Path) -> Checkpoint:
    """Read the facts on a checkpoint from its file or folder, without its parameters."""
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
    """Return settings that tell runs apart: batch size, intervals of saving, logging and evaluation, learning rates.

    Learning rates are included if a folder is given that has them.
    """
    settings = [state.get(name) for name in ("train_batch_size", "save_steps", "logging_steps", "eval_steps")]
    if folder is not None and (folder / SCHEDULER).exists():
        settings.append(torch.load(folder / SCHEDULER, weights_only=True).get("base_lrs"))
    return str(settings)


def run_name(state: Mapping[str, Any]) -> str | None:
    """Return the run's name from a trainer's state, or None if `InfluenceTrainer` did not start the run.

    A trainer that resumes the run keeps its name.
    """
    entry = (state.get("stateful_callbacks") or {}).get(RUN)
    return None if entry is None else entry["attributes"]["run"]


def log_digest(entries: Sequence[Mapping[str, Any]]) -> str:
    """Return a digest of the entries of a run's log."""
    return hexdigest([json.dumps(list(entries), sort_keys=True, default=str)])


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_parameters(path: Path, names: Iterable[str]) -> dict[str, torch.Tensor]:
    """Read parameters and buffers of a checkpoint by name; names that it does not have are left out.

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
    """Tell whether a checkpoint has exactly these parameters and buffers; reading stops at the first difference."""
    missing = set(state)
    for name, values in _read_one_by_one(member.path, state):
        if values.shape != state[name].shape or not torch.equal(values.to(state[name]), state[name]):
            return False
        missing.remove(name)
    return not missing


def _homes(path: Path) -> dict[str, Path]:
    """Return the file of each parameter, by the name under which it is saved."""
    if path.is_dir() and (path / WEIGHTS_INDEX).exists():
        return {name: path / Path(file).name for name, file in read_json(path / WEIGHTS_INDEX)["weight_map"].items()}
    file = path
    if path.is_dir():
        file = path / (ADAPTER if (path / ADAPTER).exists() and not (path / WEIGHTS).exists() else WEIGHTS)
    if not file.is_file():
        raise InfluenceError(
            f"checkpoints: {path} holds no {WEIGHTS}; give a folder that Trainer or save_pretrained wrote, with the "
            "complete model and not a shard for each process."
        )
    with safe_open(file, framework="pt") as opened:
        return dict.fromkeys(opened.keys(), file)


def _saved_name(name: str, saved: Collection[str]) -> str | None:
    """Return the name under which a parameter is saved, or None: PEFT leaves out the name of its adapter."""
    if name in saved:
        return name
    parts = name.split(".")
    if not REPLACED.isdisjoint(parts):
        return None
    for place in range(1, len(parts)):
        before = parts[: place - 1] if parts[place - 1] == "modules_to_save" else parts[:place]
        for behind in (parts[place + 1 :], parts[place + 2 :]):  # DoRA leaves out the last part too
            shorter = ".".join([*before, *behind])
            if shorter in saved:
                return shorter
    return None
