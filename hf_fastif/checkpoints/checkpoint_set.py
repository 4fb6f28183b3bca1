"""Load checkpoints one after the other into the one model in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property

import torch

from hf_fastif.artifacts import same_loss
from hf_fastif.checkpoints.checkpoint import Checkpoint, read_parameters
from hf_fastif.data import ExampleBatches, hexdigest
from hf_fastif.errors import InfluenceError
from hf_fastif.model import Objective, frozen_digest, trained_state


FINAL = "use the final weights with checkpoints='final'"


class CheckpointSet:
    """The checkpoints that influence is summed over: I(z, z') = sum_m w_m I_m(z, z').

    Args:
        objective (`Objective`): The model of the checkpoints.
        members (`Sequence[Checkpoint]`): At least one checkpoint.
        weights (`Sequence[float]`): The weights w_m, which sum to 1.
    """

    def __init__(self, objective: Objective, members: Sequence[Checkpoint], weights: Sequence[float]):
        self.objective = objective
        self.members = list(members)
        self.weights = list(weights)
        self.present = Checkpoint()  # whose parameters the model has now

    def __len__(self) -> int:
        return len(self.members)

    @property
    def size(self) -> int:
        """Return the number of values in an s_test, which concatenates the parameters of all checkpoints."""
        return len(self) * self.objective.space.size

    @contextmanager
    def at(self, number: int) -> Iterator[float]:
        """Load a checkpoint's parameters and buffers into the model for a block, which gets its weight w_m."""
        member, before = self.members[number], self.present
        if member == before:
            yield self.weights[number]
            return
        with self.objective.holding(read_parameters(member.path, trained_state(self.objective.model))):
            self.present = member
            try:
                yield self.weights[number]
            finally:
                self.present = before

    @cached_property
    def fingerprint(self) -> str:
        """Return a digest of the parameters of all checkpoints, of the weights w_m, and of what is trained."""
        prints = []
        for number in range(len(self)):
            with self.at(number) as weight:
                prints.append((self.objective.fingerprint, weight))
        if len(self) == 1:
            return prints[0][0]
        return hexdigest([repr(prints)])

    def check(self, train: ExampleBatches) -> None:
        """Refuse checkpoints of another architecture, frozen part, training set or loss.

        Args:
            train (`ExampleBatches`): The training set.

        Raises:
            InfluenceError: Naming the first such checkpoint.
        """
        loss = self.objective.training_loss_identity
        for member in self.members:
            if member.path is None:
                continue
            self._check_parameters(member)
            if member.train_dataset is not None and not train.is_trained_on(member.train_dataset):
                raise InfluenceError(
                    f"checkpoints: {member.path} was trained on rows with the digest {member.train_dataset}, but "
                    f"train_dataset has {train.training_digest}: its rows, their order or their preprocessing differ. "
                    "Give the training set of that run as train_dataset; to score only some of its rows, pass them as "
                    f"candidates=...; or {FINAL}."
                )
            if member.loss is not None and not same_loss(member.loss, loss):
                raise InfluenceError(
                    f"checkpoints: {member.path} was trained with the loss {member.loss}, but the trainer has "
                    f"{loss}. Give the trainer the compute_loss_func and label_smoothing_factor of that run, or "
                    f"{FINAL}."
                )

    def _check_parameters(self, member: Checkpoint) -> None:
        model = self.objective.model
        state = trained_state(model)
        tensors = dict(model.named_parameters()) | state
        saved = read_parameters(member.path, tensors)
        for name in state:
            if name not in saved and member.frozen is not None:
                raise InfluenceError(
                    f"checkpoints: {member.path} holds no {name}, which was frozen in its run and is trained now; "
                    f"freeze the parameters that were frozen in that run, or {FINAL}."
                )
            if name not in saved or saved[name].shape != tensors[name].shape:
                raise InfluenceError(
                    f"checkpoints: {member.path} has another architecture than this {type(model).__name__}: its "
                    f"{name} is {tuple(saved[name].shape) if name in saved else 'missing'}, and the "
                    f"model's is {tuple(tensors[name].shape)}."
                )
        for name, p in tensors.items():
            if name in saved and name not in state and not torch.equal(saved[name].to(p), p):
                raise InfluenceError(
                    f"checkpoints: {member.path} has other values of {name} than the model, where it is frozen; only "
                    "trained parameters may differ. Train the parameters that were trained in that run "
                    f"(requires_grad_(True)) and freeze the others, or {FINAL}."
                )
        frozen = frozen_digest(model)
        if member.frozen not in (None, frozen) and set(saved) == set(state):
            raise InfluenceError(
                f"checkpoints: {member.path} was trained with frozen parameters of the digest {member.frozen}, but "
                f"the model's have {frozen}; load the model that its training started from, or {FINAL}."
            )
