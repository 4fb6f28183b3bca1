"""Directions of the outputs against the Hessian of the loss in the outputs, by double differentiation, in float64."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from tiny import batches, tiny_data, tiny_model
from tiny_heads import CASES
from torch.nn import functional as F

from hf_fastif.curvature import GaussNewton, LossAndCurvature
from hf_fastif.curvature.directions import NUM_RANDOM, curvature_directions, random_directions
from hf_fastif.model import Objective


SIZE = 5
EXACT = ["regression", "regression-of-three", "multi-label", "multiple-choice"]
TOKENS = ["causal-gpt2", "seq2seq-t5", "token", "question-answering", "masked-bert"]


def classifier(num_labels: int, label_smoothing: float = 0.0) -> Objective:
    return Objective(tiny_model(double=True, num_labels=num_labels), label_smoothing)


def classified(num_labels: int) -> dict[str, torch.Tensor]:
    return batches(tiny_data(SIZE, labels=num_labels)).take(range(SIZE))


class Setting(SimpleNamespace):
    """An objective, a batch of examples and their outputs.

    Attributes:
        objective (`Objective`): The loss.
        batch (`dict`): Examples.
        logits (`torch.Tensor`): Their outputs, which may be other ones than the model's.
        labels (`torch.Tensor`): Their labels.
    """

    @property
    def curvature(self) -> GaussNewton:
        return GaussNewton(self.objective)

    def drawn(self, seed: int = 0) -> LossAndCurvature:
        return LossAndCurvature.of(self.curvature, self.batch, range(len(self.labels)), seed, self.logits, self.labels)

    def slopes(self) -> torch.Tensor:
        """d L / d f (B, F) of every example, over all its outputs in one row."""
        at = self.logits.clone().requires_grad_()
        return torch.autograd.grad(self.objective.losses_of_logits(at, self.labels).sum(), at)[0].flatten(1)

    def hessians(self) -> torch.Tensor:
        """d2 L / d f2 (B, F, F) of every example."""

        def of(row: int) -> torch.Tensor:
            shape, labels = self.logits[row : row + 1].shape, self.labels[row : row + 1]
            loss = lambda f: self.objective.losses_of_logits(f.view(shape), labels).sum()  # noqa: E731
            return torch.autograd.functional.hessian(loss, self.logits[row].flatten())

        return torch.stack([of(row) for row in range(len(self.labels))])


def setting_of(name: str, tmp_path, size: int = SIZE) -> Setting:
    """A head of `tiny_heads`, or a classifier that is named by its number of labels and more."""
    if name in CASES:
        case = CASES[name]
        data = case.data(size)
        trainer = case.trainer(tmp_path, data)
        with trainer.session() as session:
            objective, batch = session.objective, session.examples("examples", data).take(range(size))
    else:
        words = name.split(", ")
        objective = classifier(int(words[0]), 0.2 if "smoothed" in words else 0.0)
        batch = classified(int(words[0]))
        if "hidden" in words:
            batch["labels"][1] = -100
        if "custom" in words:
            objective.use_loss(lambda f, labels: torch.stack([_custom(*pair) for pair in zip(f, labels, strict=True)]))
    with torch.no_grad():
        logits = objective.logits(objective.theta, batch)
    if "confident" in name:
        logits = 18 * F.one_hot(torch.arange(len(logits)) % logits.shape[1], logits.shape[1]).to(logits) + 0.1 * logits
    return Setting(objective=objective, batch=batch, logits=logits, labels=objective.labels(batch))


def _custom(f: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    return f.exp().mean() + f.square() @ torch.tensor([0.1, 0.5, 0.2]).to(f) + 3 * f[0] * f[1] - f[label]


CLASSIFIERS = ["2", "3", "5", "3, smoothed", "3, hidden", "3, confident", "2, confident"]


def assert_close(found: torch.Tensor, expected: torch.Tensor):
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-12 * float(expected.abs().max()))


@pytest.mark.parametrize("name", [*CLASSIFIERS, *EXACT])
def test_exact_directions_are_a_root_of_the_hessian_in_the_outputs(name, tmp_path):
    setting = setting_of(name, tmp_path)
    directions = curvature_directions(setting.curvature, setting.batch, range(SIZE), 0)(setting.logits, setting.labels)

    assert len(directions) == setting.objective.output_rank(setting.batch)
    assert_close(torch.einsum("kbi,kbj->bij", directions, directions), setting.hessians())


@pytest.mark.parametrize("name", [*CLASSIFIERS, *EXACT, "3, custom"])
def test_losses_and_curvature_are_combinations_of_few_fixed_directions(name, tmp_path):
    setting = setting_of(name, tmp_path)
    drawn = setting.drawn()
    rows = torch.einsum("brk,kbc->brc", drawn.of_curvature, drawn.directions)

    assert_close(torch.einsum("bk,kbc->bc", drawn.of_loss, drawn.directions), setting.slopes())
    hessians = setting.hessians()
    if "custom" in name:  # whose convex part alone counts
        values, vectors = torch.linalg.eigh(hessians)
        assert values.min() < 0
        hessians = (vectors * values.clamp_min(0)[:, None]) @ vectors.mT
    assert_close(rows.mT @ rows, hessians)
    assert (len(drawn.directions), rows.shape[1]) == LossAndCurvature.counts(setting.objective, setting.batch)
    fixed = drawn.directions[:, :1].expand_as(drawn.directions)
    assert torch.equal(drawn.directions, fixed)
    torch.testing.assert_close(fixed[:, 0] @ fixed[:, 0].T, torch.eye(len(fixed), dtype=torch.float64))


def test_confident_outputs_have_the_curvature_of_their_small_probabilities(tmp_path):
    setting = setting_of("3, confident", tmp_path)
    p = setting.logits.softmax(dim=1)
    assert 1e-9 < float(p.min()) < 1e-7
    drawn = setting.drawn()

    rows = torch.einsum("brk,kbc->brc", drawn.of_curvature, drawn.directions)
    diagonal = rows.square().sum(dim=1)

    torch.testing.assert_close(diagonal, p * (1 - p), rtol=1e-6, atol=0)


def test_confident_outputs_in_single_precision(tmp_path):
    setting = setting_of("3, confident", tmp_path)
    exact = setting.drawn()
    setting.objective = Objective(tiny_model())
    setting.logits = setting.logits.float()
    rounded = setting.drawn()

    torch.testing.assert_close(rounded.of_curvature, exact.of_curvature.float(), rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("name", ["8", "8, hidden", "8, smoothed", *TOKENS])
def test_random_directions_have_the_hessian_in_expectation(name, tmp_path):
    setting = setting_of(name, tmp_path, size=3)
    rows, hessians = range(len(setting.labels)), setting.hessians()

    def estimate(seed: int) -> torch.Tensor:
        draws = random_directions(setting.curvature, setting.logits, setting.labels, 400, seed, rows).flatten(2)
        return torch.einsum("kbi,kbj->bij", draws, draws)

    mean = torch.stack([estimate(seed) for seed in range(20)]).mean(dim=0)

    for found, expected in zip(mean, hessians, strict=True):
        assert (found - expected).norm() <= 0.06 * expected.norm()
        assert (found - expected).abs().max() <= 0.05 * expected.abs().max()


@pytest.mark.parametrize("name", ["8", *TOKENS])
def test_few_random_directions_are_drawn_with_the_gradient_of_the_loss(name, tmp_path):
    setting = setting_of(name, tmp_path)
    drawn = setting.drawn()

    assert len(drawn.directions) == 1 + NUM_RANDOM
    assert_close(torch.einsum("bk,kbi->bi", drawn.of_loss, drawn.directions.flatten(2)), setting.slopes())
    rows = torch.einsum("brk,kbi->bri", drawn.of_curvature, drawn.directions.flatten(2))
    same = random_directions(setting.curvature, setting.logits, setting.labels, NUM_RANDOM, 0, range(SIZE))
    assert torch.equal(rows.transpose(0, 1), same.flatten(2))
    assert (len(drawn.directions), rows.shape[1]) == LossAndCurvature.counts(setting.objective, setting.batch)


@pytest.mark.parametrize("name", ["causal-gpt2", "token", "question-answering", "masked-bert"])
def test_directions_of_a_row_do_not_depend_on_its_batch_or_padding(name, tmp_path):
    case = CASES[name]
    data = case.data(9)
    with case.trainer(tmp_path, data).session() as session:
        objective, examples = session.objective, session.examples("examples", data)
        curvature, found = GaussNewton(objective), []
        for rows in ([4], [4, 0], [8, 4, 2, 1], list(range(9))):
            batch = examples.take(rows)
            with torch.no_grad():
                logits = objective.logits(objective.theta, batch)
            directions = random_directions(curvature, logits, objective.labels(batch), 2, 7, rows)
            found.append(directions[:, rows.index(4)])
    assert len({directions.shape for directions in found}) > 1  # padded
    alone = found[0]
    for directions in found[1:]:
        beyond = directions.clone()
        beyond[tuple(slice(0, size) for size in alone.shape)] = 0
        assert not beyond.any()
        part = directions[tuple(slice(0, size) for size in alone.shape)]
        torch.testing.assert_close(part, alone, rtol=1e-4, atol=1e-6)  # labels alike, outputs to rounding


def test_directions_of_many_classes_do_not_depend_on_the_batch(tmp_path):
    objective, examples = classifier(8), batches(tiny_data(9, labels=8))
    curvature, found = GaussNewton(objective), []
    for rows in ([4], [8, 4, 2], list(range(9))):
        batch = examples.take(rows)
        with torch.no_grad():
            logits = objective.logits(objective.theta, batch)
        found.append(random_directions(curvature, logits, batch["labels"], 2, 7, rows)[:, rows.index(4)])
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0])
    other = random_directions(curvature, logits, batch["labels"], 2, 8, rows)
    assert not torch.allclose(other[:, 4], found[0], rtol=0.1)
    assert not torch.allclose(other[:, 3], other[:, 4], rtol=0.1)


def test_a_single_choice_is_refused(tmp_path):
    setting = setting_of("multiple-choice", tmp_path)
    single = {name: values[:, :1] if values.ndim == 3 else values for name, values in setting.batch.items()}
    with pytest.raises(ValueError, match="model: its loss chooses among a single class or text"):
        curvature_directions(setting.curvature, single, range(SIZE), 0)


def test_a_custom_loss_over_tokens_is_refused(tmp_path):
    setting = setting_of("token", tmp_path)
    setting.objective.custom_loss = lambda f, labels: f.sum(dim=(1, 2))
    with pytest.raises(ValueError, match="compute_loss_func: EK-FAC needs a square root"):
        random_directions(setting.curvature, setting.logits, setting.labels, 2, 0, range(SIZE))


def test_outputs_that_are_not_numbers_are_refused(tmp_path):
    setting = setting_of("token", tmp_path)
    setting.logits[0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="train_dataset: the curvature of the training loss contains NaN"):
        random_directions(setting.curvature, setting.logits, setting.labels, 2, 0, range(SIZE))
