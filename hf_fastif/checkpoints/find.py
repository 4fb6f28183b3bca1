"""Find the checkpoints and weights that a setting names."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from torch import nn

from hf_fastif.checkpoints.checkpoint import STATE, Checkpoint, open_checkpoint
from hf_fastif.checkpoints.runs import FOLDER, RunEnd, checkpoints_of, latest_run, run_that_led_to
from hf_fastif.errors import InfluenceError, NotFoundError, check_path, did_you_mean
from hf_fastif.settings import CHECKPOINT_WORDS, CHECKPOINTS_FIX, check_checkpoints


# Shares of training, at which the sum of influence predicted retraining best on all tasks that were tried. They are
# exact, so that the final weights, at 1.5 times the last share, are never near it because of rounding.
EARLY = (Fraction(1, 6), Fraction(1, 3), Fraction(2, 3))
NEAR = Fraction(3, 2)  # ratio of two steps below which a checkpoint stands in for one of these moments


def find_checkpoints(wanted: Sequence[str], output_dir: str, model: nn.Module) -> tuple[list[Checkpoint], str]:
    """Find the checkpoints that `InfluenceConfig.checkpoints` names.

    Args:
        wanted (`Sequence[str]`): `["auto"]`, `["final"]`, `["epochs"]`, `["3"]`, `["early-3"]`, or paths and Hub
            revisions.
        output_dir (`str`): The folder that training wrote to.
        model (`torch.nn.Module`): The model with its final weights.

    Returns:
        `tuple[list[Checkpoint], str]`: The checkpoints, and a message that explains an automatic choice to the user.
        The message is empty if there was no choice.

    Raises:
        InfluenceError: If there are no such checkpoints.

    Example:

    ```python
    checkpoints, message = find_checkpoints(["early-3"], "out", model)
    ```
    """
    if list(wanted) == ["final"]:
        return [Checkpoint()], ""
    check_checkpoints(wanted)
    if shares_of(wanted) is None and list(wanted) != ["epochs"]:
        return [member for name in wanted for member in _named(name, output_dir)], ""
    end = run_that_led_to(output_dir, model)
    if list(wanted) == ["auto"]:
        return _automatic(output_dir, end)
    end = end or latest_run(output_dir)
    members = checkpoints_of(output_dir, end)
    if list(wanted) == ["epochs"]:
        return _epochs(output_dir, members)
    return _spaced(members, wanted[0], end.step if end else 0), ""


def _automatic(output_dir: str, end: RunEnd | None) -> tuple[list[Checkpoint], str]:
    """Return the checkpoints of a run near the moments of `EARLY`, or the final weights if there are none."""
    final = "using the final weights. Early checkpoints usually give better scores"
    if end is None:
        reason = "The model's weights match no training run" if latest_run(output_dir) else "No training checkpoints"
        return [Checkpoint()], (
            f"{reason} in {output_dir}: {final}; train with InfluenceTrainer or pass checkpoints=[...]."
        )
    members = checkpoints_of(output_dir, end)
    early = automatic_checkpoints(members, end.step)
    if not early:
        epochs = ", ".join(f"{member.epoch:.4g}" for member in members)
        left = f" (only at epoch {epochs})" if members else ""
        is_earlier = bool(members) and members[0].step < end.step
        earliest = f"pass checkpoints=['{members[0].path}'] for the earliest" if is_earlier else ""
        return [Checkpoint()], (
            f"No training checkpoint near a sixth, a third or two thirds of training in {output_dir}{left}: {final}; "
            f"{earliest or 'train with InfluenceTrainer, for two steps or more'}."
        )
    names = ", ".join(member.name for member in early)
    which = f"Using the checkpoint {names}" if len(early) == 1 else f"Summing influence over the checkpoints {names}"
    is_guess = any(member.run is None for member in early)
    unnamed = " Its folders do not name the run, but steps, logs and settings match." if is_guess else ""
    return early, (
        f"{which}, before training examples are fitted: it usually gives better scores than the final weights, which "
        f"checkpoints='final' selects.{unnamed}"
    )


def automatic_checkpoints(members: Sequence[Checkpoint], num_steps: int) -> list[Checkpoint]:
    """Return the checkpoints that checkpoints="auto" sums over: those near a sixth, a third and two thirds of a run.

    The nearest one stands in for each of these moments if the ratio of their steps is below 1.5. A checkpoint that is
    nearest to two moments is returned once.

    Args:
        members (`Sequence[Checkpoint]`): The checkpoints of a run, by step.
        num_steps (`int`): The steps of the run.

    Example:

    ```python
    early = automatic_checkpoints(kept_checkpoints("out"), num_steps=1000)
    ```
    """
    chosen = {}
    for moment in [share * num_steps for share in EARLY] if members else []:
        ratios = [max(member.step / moment, moment / member.step) for member in members]
        if min(ratios) < NEAR:
            nearest = members[ratios.index(min(ratios))]
            chosen[nearest.step] = nearest
    return list(chosen.values())


def _epochs(output_dir: str, members: list[Checkpoint]) -> tuple[list[Checkpoint], str]:
    ends = {member.ends_epoch: member for member in members if member.ends_epoch}
    if not ends:
        raise InfluenceError(
            f"checkpoints='epochs': {output_dir} holds no checkpoint from the end of an epoch; train with this "
            "setting, or with save_strategy='epoch'."
        )
    missing = sorted(set(range(1, max(ends))) - set(ends))
    line = f"Summing influence over the ends of epochs {', '.join(map(str, sorted(ends)))}: no others were saved."
    return [ends[number] for number in sorted(ends)], line if missing else ""


def weights_of(members: Sequence[Checkpoint], wanted: Sequence[str]) -> list[float]:
    """Return the weights that `InfluenceConfig.checkpoint_weights` names, scaled to sum to 1.

    Raises:
        InfluenceError: If a learning rate is unknown or 0, or the number of weights is not that of the checkpoints.
    """
    if list(wanted) == ["uniform"]:
        values = [1.0] * len(members)
    elif list(wanted) == ["learning_rate"]:
        unknown = [member.name for member in members if not member.learning_rate]
        if unknown:
            raise InfluenceError(
                f"checkpoint_weights='learning_rate': it is unknown or 0 for {', '.join(unknown)}; give numbers."
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
    """Return the checkpoints of the latest run in a folder, by step.

    Example:

    ```python
    trainer.args.checkpoints = [str(checkpoint.path) for checkpoint in kept_checkpoints("out")]
    ```
    """
    return checkpoints_of(output_dir, latest_run(output_dir))


def shares_of(wanted: Sequence[str]) -> Sequence[Fraction] | None:
    """Return the shares of training that "auto", "3" (each third) or "early-3" (a quarter, a half, all) name.

    Any other setting names none (None).
    """
    if list(wanted) == ["auto"]:
        return EARLY
    number = wanted[0].removeprefix("early-") if len(wanted) == 1 else ""
    if not number.isdecimal():
        return None
    count = int(number)
    if wanted[0].startswith("early-"):
        return [Fraction(1, 2**halvings) for halvings in reversed(range(count))]
    return [Fraction(number, count) for number in range(1, count + 1)]


def steps_of(wanted: Sequence[str], num_steps: int) -> list[int]:
    """Return the training steps at the shares that a setting names, of so many steps."""
    return sorted({max(1, round(num_steps * share)) for share in shares_of(wanted)})


def _spaced(members: list[Checkpoint], wanted: str, num_steps: int) -> list[Checkpoint]:
    steps = np.array([member.step for member in members])
    nearest = [int(np.abs(steps - step).argmin()) for step in steps_of([wanted], num_steps)] if members else []
    if len(set(nearest)) < len(shares_of([wanted])):
        raise InfluenceError(
            f"checkpoints={wanted!r}: training left {len(members)} checkpoints, of which {len(set(nearest))} are near "
            "the steps that it names; train with this setting (and a save_total_limit that allows as many), or give a "
            "smaller number."
        )
    return [members[number] for number in nearest]


def _named(name: str, output_dir: str) -> list[Checkpoint]:
    """Open a file, a folder, the light checkpoints of an output_dir, or a model on the Hub (id or id@revision)."""
    path = Path(name)
    run = sorted((path / FOLDER).glob("step-*.safetensors"))
    if run:
        return [open_checkpoint(file) for file in run]
    if not path.exists():
        if "/" not in name and (near := did_you_mean(name, CHECKPOINT_WORDS)):
            raise InfluenceError(
                f"checkpoints={name!r} is neither a path nor one of {', '.join(CHECKPOINT_WORDS)}{near}"
            )
        check_path("checkpoints", name)
        repo, _, revision = name.partition("@")
        patterns = ["*.safetensors", "*.safetensors.index.json", STATE]
        try:
            path = Path(snapshot_download(repo, revision=revision or None, allow_patterns=patterns))
        except (
            HFValidationError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        ) as error:
            present = ", ".join(str(member.path) for member in kept_checkpoints(output_dir)) or "no checkpoints"
            raise NotFoundError(
                f"checkpoints={name!r} is neither a path nor a model on the Hub within reach; {CHECKPOINTS_FIX} "
                f"({output_dir} holds {present})."
            ) from error
    return [open_checkpoint(path)]
