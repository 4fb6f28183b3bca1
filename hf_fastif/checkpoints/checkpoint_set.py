"""Several checkpoints, one after the other in the one model that is in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property

import torch

from hf_fastif.checkpoints.checkpoint import Checkpoint, read_parameters
from hf_fastif.errors import InfluenceError
from hf_fastif.objective import Objective
from hf_fastif.parameters import fill, model_fingerprint


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
        """Puts the parameters of one checkpoint into the model, gives its weight, and puts the model's own back."""
        member, parameters = self.members[number], self.objective.theta
        if member == self.present:
            yield self.weights[number]
            return
        own, before = {name: p.detach().clone() for name, p in parameters.items()}, self.present
        try:
            fill(parameters, read_parameters(member.path, parameters))
            self.present = member
            yield self.weights[number]
        finally:
            fill(parameters, own)
            self.present = before

    @cached_property
    def fingerprint(self) -> str:
        """A short digest of the weights of all checkpoints and how they are weighted."""
        found = []
        for number in range(len(self)):
            with self.at(number) as weight:
                found.append((model_fingerprint(self.objective.model), weight))
        if len(self) == 1:
            return found[0][0]
        return hashlib.blake2b(repr(found).encode(), digest_size=8).hexdigest()

    def check(self, train_dataset: str) -> None:
        """Refuses checkpoints of another architecture, of another frozen part, or of another training set.

        Args:
            train_dataset (`str`): Digest of the training set.

        Raises:
            ValueError: If one is, naming it.
        """
        model = self.objective.model
        shapes = {name: p.shape for name, p in model.named_parameters()}
        for member in self.members:
            if member.path is None:
                continue
            found = read_parameters(member.path, shapes)
            wrong = [name for name in self.objective.theta if name not in found or found[name].shape != shapes[name]]
            if wrong:
                raise InfluenceError(
                    f"checkpoints: {member.path} is of another architecture than this {type(model).__name__}: its "
                    f"{wrong[0]} is {tuple(found[wrong[0]].shape) if wrong[0] in found else 'missing'}, and the "
                    f"model's is {tuple(shapes[wrong[0]])}."
                )
            for name, p in model.named_parameters():
                if name in found and name not in self.objective.theta and not torch.equal(found[name].to(p), p):
                    raise InfluenceError(
                        f"checkpoints: {member.path} has another {name} than the model, which is frozen; only "
                        "trained parameters may differ (freeze the model as it was when it was trained)."
                    )
            if member.train_dataset not in (None, train_dataset):
                raise InfluenceError(
                    f"checkpoints: {member.path} was trained on the rows {member.train_dataset}, and train_dataset is "
                    f"{train_dataset}; give the training set of that run, in its order."
                )
