"""Which checkpoints a setting means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import snapshot_download
from transformers.utils import logging

from hf_fastif.checkpoints.checkpoint import STATE, Checkpoint, holds, open_checkpoint
from hf_fastif.errors import InfluenceError
from hf_fastif.suggestions import check_path


logger = logging.get_logger(__name__)


FOLDER = Path("influence", "checkpoints")  # of the light ones, under output_dir
EPOCH_END = 0.01  # an epoch this close to a whole number is whole


def find_checkpoints(wanted: Sequence[str], output_dir: str, theta: Mapping[str, torch.Tensor]) -> list[Checkpoint]:
    """The checkpoints that `InfluenceConfig.checkpoints` names.

    Args:
        wanted (`Sequence[str]`): `["auto"]`, `["final"]`, `["epochs"]`, `["3"]`, `["early-3"]`, or paths and Hub
            revisions.
        output_dir (`str`): Where training kept some.
        theta (`Mapping`): The trained parameters of the model as it is.

    Raises:
        ValueError: If there are none such.
    """
    if list(wanted) == ["final"]:
        return [Checkpoint()]
    kept = kept_checkpoints(output_dir)
    if list(wanted) == ["auto"]:
        return [_automatic(kept, theta)]
    if list(wanted) == ["epochs"]:
        ends = [member for member in kept if _ends_epoch(member)]
        if not ends:
            raise InfluenceError(
                f"checkpoints='epochs': {output_dir} holds no checkpoint from the end of an epoch; train with this "
                "setting, or with save_strategy='epoch'."
            )
        return ends
    count = count_of(wanted)
    return [member for name in wanted for member in _named(name)] if count is None else _spaced(kept, wanted[0])


def _automatic(kept: list[Checkpoint], theta: Mapping[str, torch.Tensor]) -> Checkpoint:
    """The end of the first epoch, if the model as it is comes from the run whose checkpoints these are."""
    own = any(holds(member, theta) for member in reversed(kept))
    early = [member for member in kept if (member.epoch or 0) > 1 - EPOCH_END] if own else []
    if early and not holds(early[0], theta):
        logger.warning_once(
            f"Influence is taken at the end of the first epoch ({early[0].name}), where training examples are not "
            "fitted yet and still pull at the parameters; checkpoints='final' takes the model as it is."
        )
        return early[0]
    logger.warning_once(
        "Influence is taken at the final model, whose training examples may be fitted and have little left to say: "
        "there is no earlier checkpoint of its run. InfluenceTrainer keeps one at the end of each epoch."
    )
    return Checkpoint()


def weights_of(members: Sequence[Checkpoint], wanted: Sequence[str]) -> list[float]:
    """The weights, which sum to 1, that `InfluenceConfig.checkpoint_weights` names.

    Raises:
        ValueError: If a learning rate is not known, or there is not a number for each checkpoint.
    """
    if list(wanted) == ["uniform"]:
        values = [1.0] * len(members)
    elif list(wanted) == ["learning_rate"]:
        unknown = [member.name for member in members if not member.learning_rate]
        if unknown:
            raise InfluenceError(
                f"checkpoint_weights='learning_rate': it is not known, or 0, for {', '.join(unknown)}; give numbers."
            )
        values = [member.learning_rate for member in members]
    else:
        values = [float(weight) for weight in wanted]
        if len(values) != len(members):
            raise InfluenceError(
                f"checkpoint_weights={list(wanted)}: there are {len(members)} checkpoints "
                f"({', '.join(member.name for member in members)}); give a number for each."
            )
    return [value / sum(values) for value in values]


def kept_checkpoints(output_dir: str) -> list[Checkpoint]:
    """What training left in its folder, by step: checkpoints of ours, or else the folders that `Trainer` saved."""
    light = sorted((Path(output_dir) / FOLDER).glob("step-*.safetensors"))
    folders = [path.parent for path in Path(output_dir).glob(f"checkpoint-*/{STATE}")]
    return sorted((open_checkpoint(path) for path in light or folders), key=lambda member: member.step)


def count_of(wanted: Sequence[str]) -> int | None:
    """The number in "3" or "early-3", or None for anything else."""
    number = wanted[0].removeprefix("early-") if len(wanted) == 1 else ""
    return int(number) if number.isdecimal() else None


def steps_of(wanted: Sequence[str], num_steps: int) -> list[int]:
    """The steps of training that "3" (thirds) and "early-3" (a quarter, a half, the whole) mean."""
    count = count_of(wanted)
    early = wanted[0].startswith("early-")
    shares = 2.0 ** -np.arange(count)[::-1] if early else np.arange(1, count + 1) / count
    return sorted({max(1, round(num_steps * share)) for share in shares})


def _spaced(kept: list[Checkpoint], wanted: str) -> list[Checkpoint]:
    steps = np.array([member.step for member in kept])
    found = [int(np.abs(steps - step).argmin()) for step in steps_of([wanted], int(steps[-1]))] if kept else []
    if len(set(found)) < count_of([wanted]):
        raise InfluenceError(
            f"checkpoints={wanted!r}: training left {len(kept)} checkpoints, {len(set(found))} of them where they are "
            "wanted; train with this setting, or give fewer."
        )
    return [kept[number] for number in found]


def _named(name: str) -> list[Checkpoint]:
    """A file or folder, all light checkpoints of a run's output_dir, or a model (revision) on the Hub."""
    path = Path(name)
    run = sorted((path / FOLDER).glob("step-*.safetensors"))
    if run:
        return [open_checkpoint(file) for file in run]
    if not path.exists():
        check_path("checkpoints", name)
        repo, _, revision = name.partition("@")
        patterns = ["*.safetensors", "*.safetensors.index.json", STATE]
        path = Path(snapshot_download(repo, revision=revision or None, allow_patterns=patterns))
    return [open_checkpoint(path)]


def _ends_epoch(member: Checkpoint) -> bool:
    return member.epoch is not None and abs(member.epoch - max(1, round(member.epoch))) < EPOCH_END
