"""Several checkpoints, one after the other in the one model that is in memory."""

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


FINAL = "take the model as it is with checkpoints='final'"


class CheckpointSet:
    """The checkpoints that influence is summed over: I(z, z') = sum_m w_m I_m(z, z').

    Args:
        objective (`Objective`): The model that they are checkpoints of.
        members (`Sequence[Checkpoint]`): At least one.
        weights (`Sequence[float]`): w_m, which sum to 1.
    """

    def __init__(self, objective: Objective, members: Sequence[Checkpoint], weights: Sequence[float]):
        self.objective = objective
        self.members = list(members)
        self.weights = list(weights)
        self.present = Checkpoint()  # the one that is in the model

    def __len__(self) -> int:
        return len(self.members)

    @property
    def size(self) -> int:
        """Numbers in an s_test: the parameters of all checkpoints, one behind the other."""
        return len(self) * self.objective.space.size

    @contextmanager
    def at(self, number: int) -> Iterator[float]:
        """Put a checkpoint's parameters and buffers into the model, give its weight, and put back the model's own."""
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
        """What stands for the weights of all checkpoints, how they are weighted, and which of them are trained."""
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
            InfluenceError: If one is, naming it.
        """
        loss = self.objective.training_loss_identity
        for member in self.members:
            if member.path is None:
                continue
            self._check_parameters(member)
            if member.train_dataset is not None and not train.is_trained_on(member.train_dataset):
                raise InfluenceError(
                    f"checkpoints: {member.path} was trained on the rows {member.train_dataset}, and train_dataset is "
                    f"{train.training_digest}: other rows, another order or other preprocessing. Give the training "
                    "set of that run as train_dataset; to score only some rows of it, pass them as candidates=...; "
                    f"or {FINAL}."
                )
            if member.loss is not None and not same_loss(member.loss, loss):
                raise InfluenceError(
                    f"checkpoints: {member.path} was trained with the loss {member.loss}, and this is {loss}. Give "
                    f"the trainer the compute_loss_func and label_smoothing_factor of that run, or {FINAL}."
                )

    def _check_parameters(self, member: Checkpoint) -> None:
        model = self.objective.model
        state = trained_state(model)
        tensors = dict(model.named_parameters()) | state
        saved = read_parameters(member.path, tensors)
        for name in state:
            if name not in saved and member.frozen is not None:
                raise InfluenceError(
                    f"checkpoints: {member.path} holds no {name}, which was frozen then and is trained now; freeze "
                    f"the model as it was when it was trained, or {FINAL}."
                )
            if name not in saved or saved[name].shape != tensors[name].shape:
                raise InfluenceError(
                    f"checkpoints: {member.path} is of another architecture than this {type(model).__name__}: its "
                    f"{name} is {tuple(saved[name].shape) if name in saved else 'missing'}, and the "
                    f"model's is {tuple(tensors[name].shape)}."
                )
        for name, p in tensors.items():
            if name in saved and name not in state and not torch.equal(saved[name].to(p), p):
                raise InfluenceError(
                    f"checkpoints: {member.path} has another {name} than the model, which is frozen; only trained "
                    "parameters may differ. Leave trained what was trained then (requires_grad_(True)) and freeze "
                    f"what was frozen, or {FINAL}."
                )
        frozen = frozen_digest(model)
        if member.frozen not in (None, frozen) and set(saved) == set(state):
            raise InfluenceError(
                f"checkpoints: {member.path} was trained beside the frozen parameters {member.frozen}, and the "
                f"model's are {frozen}; load the model that it was trained from, or {FINAL}."
            )
