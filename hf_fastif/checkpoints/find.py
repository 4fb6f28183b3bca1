"""Which checkpoints a setting means."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from huggingface_hub import snapshot_download
from torch import nn

from hf_fastif.checkpoints.checkpoint import STATE, Checkpoint, has_same_parameters, open_checkpoint
from hf_fastif.checkpoints.runs import FOLDER, RunEnd, checkpoints_of, latest_run, run_that_led_to
from hf_fastif.errors import InfluenceError, check_path, did_you_mean
from hf_fastif.model import trained_state


WORDS = ("auto", "final", "epochs")


def find_checkpoints(wanted: Sequence[str], output_dir: str, model: nn.Module) -> tuple[list[Checkpoint], str]:
    """Find the checkpoints that `InfluenceConfig.checkpoints` names.

    Args:
        wanted (`Sequence[str]`): `["auto"]`, `["final"]`, `["epochs"]`, `["3"]`, `["early-3"]`, or paths and Hub
            revisions.
        output_dir (`str`): Where training kept some.
        model (`torch.nn.Module`): The model as it is.

    Returns:
        The checkpoints, and a line for the user about a choice that was made; empty where there was none.

    Raises:
        InfluenceError: If there are none such.
    """
    if list(wanted) == ["final"]:
        return [Checkpoint()], ""
    count, by_name = count_of(wanted), list(wanted) not in (["auto"], ["epochs"])
    if count is None and by_name:
        return [member for name in wanted for member in _named(name)], ""
    end = run_that_led_to(output_dir, model)
    if list(wanted) == ["auto"]:
        return _automatic(output_dir, end, model)
    members = checkpoints_of(output_dir, end or latest_run(output_dir))
    return (_spaced(members, wanted[0]), "") if count is not None else _epochs(output_dir, members)


def _automatic(output_dir: str, end: RunEnd | None, model: nn.Module) -> tuple[list[Checkpoint], str]:
    """The end of the first epoch of the run that led to the model; the model as it is where that is not known."""
    final = (
        "Influence is taken at the model as it is, whose training examples may be fitted and have little left to say"
    )
    if end is None:
        there = latest_run(output_dir) is not None
        why = "its weights are not those that a run there left" if there else "no run left checkpoints there"
        return [Checkpoint()], (
            f"{final}: the end of the first epoch of its training is not known, since {why} ({output_dir}). "
            "InfluenceTrainer keeps that moment while it trains; checkpoints=['FOLDER'] names one."
        )
    members = checkpoints_of(output_dir, end)
    first = next((member for member in members if member.ends_epoch == 1), None)
    if first is None:
        moments = ", ".join(f"{member.epoch:.4g}" for member in members)
        way_out = f"checkpoints=['{members[0].path}'] takes the earliest of these" if members else "train again for it"
        return [Checkpoint()], (
            f"{final}: its run left no checkpoint at the end of the first epoch (those in {output_dir} are of epoch "
            f"{moments or '-'}); {way_out}."
        )
    if has_same_parameters(first, trained_state(model)):
        return [Checkpoint()], (
            f"Influence is taken at the model as it is, which is the end of the first epoch of its run ({first.name})."
        )
    unnamed = "" if first.run else " It is of the same run as far as its folder tells, which does not name it."
    return [first], (
        f"Influence is taken at the end of the first epoch ({first.name}), where training examples are not fitted yet "
        f"and still pull at the parameters; checkpoints='final' takes the model as it is.{unnamed}"
    )


def _epochs(output_dir: str, members: list[Checkpoint]) -> tuple[list[Checkpoint], str]:
    ends = {member.ends_epoch: member for member in members if member.ends_epoch}
    if not ends:
        raise InfluenceError(
            f"checkpoints='epochs': {output_dir} holds no checkpoint from the end of an epoch; train with this "
            "setting, or with save_strategy='epoch'."
        )
    missing = sorted(set(range(1, max(ends))) - set(ends))
    line = f"Influence is summed over the ends of the epochs {', '.join(map(str, sorted(ends)))}: no others were kept."
    return [ends[number] for number in sorted(ends)], line if missing else ""


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
    """The checkpoints of the run that wrote last into its folder, by step."""
    return checkpoints_of(output_dir, latest_run(output_dir))


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
            "wanted; train with this setting (and a save_total_limit that allows as many), or give fewer."
        )
    return [kept[number] for number in found]


def _named(name: str) -> list[Checkpoint]:
    """A file or folder, all light checkpoints of a run's output_dir, or a model (revision) on the Hub."""
    path = Path(name)
    run = sorted((path / FOLDER).glob("step-*.safetensors"))
    if run:
        return [open_checkpoint(file) for file in run]
    if not path.exists():
        if "/" not in name and (near := did_you_mean(name, WORDS)):
            raise InfluenceError(f"checkpoints={name!r} is no path, and none of {', '.join(WORDS)}{near}")
        check_path("checkpoints", name)
        repo, _, revision = name.partition("@")
        patterns = ["*.safetensors", "*.safetensors.index.json", STATE]
        path = Path(snapshot_download(repo, revision=revision or None, allow_patterns=patterns))
    return [open_checkpoint(path)]
