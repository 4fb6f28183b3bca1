"""Which layers a capture covers, and that what it tells are the gradients of single examples, in float64."""

from __future__ import annotations

from types import SimpleNamespace

import oracles
import pytest
import torch
from tiny import VOCABULARY, batches, tiny_data, tiny_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_fastif.curvature.captures import EmbeddingCapture, capture_layers, loss_captures
from hf_fastif.curvature.layers import Layer, captured_layers
from hf_fastif.influence.predictions import loss_gradients
from hf_fastif.model import Objective


ROWS = list(range(7))
ARCHITECTURES = ["bert", "roberta", "distilbert", "gpt2", "modernbert"]


@pytest.fixture(scope="module")
def examples():
    return batches(tiny_data(7))  # lengths differ, so the batch is padded


class Classifier(nn.Module):
    """Frozen embeddings, a body, and a head over the sum of all tokens."""

    def __init__(self, body: nn.Module):
        super().__init__()
        self.config = SimpleNamespace(num_labels=3, problem_type=None)
        self.embedding = nn.Embedding(len(VOCABULARY), 4).requires_grad_(False)
        self.body = body
        self.head = nn.Linear(4, 3)

    def forward(self, input_ids, attention_mask):
        hidden = self.body(self.embedding(input_ids)) * attention_mask[..., None]
        return SimpleNamespace(logits=self.head(hidden.sum(dim=1)))


class Body(nn.Module):
    """A layer, and a function of it and of the embeddings."""

    def __init__(self, layer: nn.Module, function):
        super().__init__()
        self.layer = layer
        self.function = function

    def forward(self, x):
        return self.function(self.layer, x)


class Gated(nn.Module):
    """A layer that multiplies by a parameter, and by more if told."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4))

    def forward(self, x, gate=1.0):
        return self.weight * x * gate


def classifier(layer: nn.Module, function) -> Classifier:
    return Classifier(Body(layer, function)).double()


def two_directions(logits, labels):
    return torch.linspace(-1, 1, 2 * logits.numel(), dtype=logits.dtype).view(2, *logits.shape)


def names(layers: list[Layer]) -> set[str]:
    return {name for layer in layers for name in layer.names}


def captured_rows(model, batch) -> dict[str, torch.Tensor]:
    """The gradients of single examples along two directions, by captures."""
    objective, rows = Objective(model), {}
    for capture in capture_layers(objective, batch, captured_layers(objective, batch), two_directions):
        rows |= capture.rows()
    return rows


def expected_rows(model, batch) -> dict[str, torch.Tensor]:
    """The same from one backward pass for each output of each example."""
    objective = Objective(model)
    size = len(batch["labels"])
    with torch.no_grad():
        directions = two_directions(objective.logits(objective.theta, batch), batch["labels"])
    alone = [{name: values[i : i + 1] for name, values in batch.items()} for i in range(size)]
    rows = [directions[:, i] @ oracles.jacobian(model, one) for i, one in enumerate(alone)]
    return objective.space.split(torch.stack(rows, dim=1))


def assert_rows_are_right(model, batch, rtol=1e-9, atol=1e-10):
    rows, expected = captured_rows(model, batch), expected_rows(model, batch)
    for name, values in rows.items():
        torch.testing.assert_close(values, expected[name], rtol=rtol, atol=atol)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_all_that_is_trained_above_frozen_embeddings_is_captured(architecture, examples):
    objective = Objective(tiny_model(architecture))

    assert names(captured_layers(objective, examples.take(ROWS))) == set(objective.theta)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_only_embeddings_are_left_out_where_nothing_is_frozen(architecture, examples):
    model = tiny_model(architecture, frozen=None)
    objective = Objective(model)
    embeddings = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Embedding)}

    left_out = set(objective.theta) - names(captured_layers(objective, examples.take(ROWS)))

    assert left_out == embeddings


def test_a_weight_that_stands_in_two_places_is_left_out(examples):
    model = tiny_model()
    model.tied = nn.Linear(8, 3)
    model.tied.weight = model.classifier.weight
    objective = Objective(model)

    found = names(captured_layers(objective, examples.take(ROWS)))

    assert {name.rpartition(".")[0] for name in set(objective.theta) - found} == {"classifier", "tied"}


def test_a_layer_that_stands_in_two_places_sees_the_tokens_of_both(examples):
    model = tiny_model(double=True)
    attention = model.bert.encoder.layer[1].attention.self
    attention.key = attention.query
    objective = Objective(model)

    assert names(captured_layers(objective, examples.take(ROWS))) == set(objective.theta)
    found = loss_gradients(objective, examples, ROWS)
    torch.testing.assert_close(found, oracles.loss_gradients(model, examples, ROWS), rtol=1e-5, atol=1e-9)


def test_a_linear_layer_whose_bias_alone_is_trained_is_left_out(examples):
    model = tiny_model()
    model.classifier.weight.requires_grad_(False)
    objective = Objective(model)

    assert set(objective.theta) - names(captured_layers(objective, examples.take(ROWS))) == {"classifier.bias"}


def test_a_weight_whose_bias_is_frozen_is_captured_alone(examples):
    model = tiny_model(double=True)
    model.classifier.bias.requires_grad_(False)
    batch = examples.take(ROWS)

    assert "classifier.weight" in captured_rows(model, batch)
    assert_rows_are_right(model, batch)


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "albert"])
def test_rows_are_the_gradients_of_single_examples(architecture, examples):
    model = tiny_model(architecture, frozen=None, double=True)

    # ModernBERT takes its softmax in float32, whatever the model's type.
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if architecture == "modernbert" else {}
    assert_rows_are_right(model, examples.take(ROWS), **tolerance)


def test_rows_do_not_depend_on_the_padding(examples):
    model = tiny_model(double=True)
    batch = examples.take(ROWS)
    assert not batch["attention_mask"].all()
    one = int(batch["attention_mask"].sum(dim=1).argmin())

    padded = captured_rows(model, batch)

    directions = two_directions(torch.empty(len(ROWS), 3, dtype=torch.float64), None)[:, one]
    alone = Objective(model).space.split(directions @ oracles.jacobian(model, examples.take([one])))
    for name, values in padded.items():
        torch.testing.assert_close(values[:, one], alone[name], rtol=1e-9, atol=1e-10)


def test_rows_of_some_outputs_are_a_part_of_all(examples):
    for architecture in ("bert", "gpt2"):
        objective, batch = Objective(tiny_model(architecture, double=True)), examples.take(ROWS)
        layers = [layer for layer in captured_layers(objective, batch) if layer.kind == "linear"]
        for capture in capture_layers(objective, batch, layers, two_directions):
            part, whole = (capture.layer.to_matrix(capture.rows(outputs)) for outputs in (slice(1, 3), slice(None)))
            torch.testing.assert_close(part, whole[..., 1:3, :])


def test_the_bias_is_the_weight_of_an_input_of_one(examples):
    for architecture in ("bert", "gpt2"):
        objective, batch = Objective(tiny_model(architecture, double=True)), examples.take(ROWS)
        layers = [layer for layer in captured_layers(objective, batch) if layer.kind == "linear"]
        for capture in capture_layers(objective, batch, layers, two_directions):
            whole = capture.as_matrix()
            matrix = torch.einsum("rbto,bti->rboi", whole.gradients, whole.inputs)
            torch.testing.assert_close(matrix, capture.layer.to_matrix(capture.rows()))


def test_tokens_without_a_gradient_are_dropped(examples):
    objective, batch = Objective(tiny_model(double=True)), examples.take(ROWS)
    layers = captured_layers(objective, batch)
    tokens = {
        capture.layer.module.removeprefix("bert.encoder.layer.1."): capture.inputs.shape[1]
        for capture in capture_layers(objective, batch, layers, two_directions)
        if capture.layer.kind == "linear"
    }

    assert tokens["attention.self.key"] == batch["input_ids"].shape[1]
    assert tokens["attention.self.query"] == tokens["intermediate.dense"] == tokens["classifier"] == 1


def test_small_gradients_are_kept(examples):
    objective, batch = Objective(tiny_model(double=True)), examples.take(ROWS)
    layers = captured_layers(objective, batch)
    large = capture_layers(objective, batch, layers, two_directions)
    small = capture_layers(objective, batch, layers, lambda *outputs: 1e-12 * two_directions(*outputs))

    for one, other in zip(large, small, strict=True):
        for name, values in one.rows().items():
            torch.testing.assert_close(1e12 * other.rows()[name], values, rtol=1e-9, atol=1e-10)


def test_a_layer_called_twice_gives_the_sum_of_both_calls(examples):
    for layer in (nn.Linear(4, 4), Conv1D(4, 4), nn.LayerNorm(4)):
        model = classifier(layer, lambda layer, x: layer(layer(x).tanh()))
        batch = examples.take(ROWS)

        assert set(captured_rows(model, batch)) == set(Objective(model).theta)
        assert_rows_are_right(model, batch)


def test_a_layer_whose_output_the_logits_do_not_see_has_no_gradient(examples):
    model = classifier(nn.Linear(4, 4), lambda layer, x: (layer(x), x)[1])
    batch = examples.take(ROWS)

    rows = captured_rows(model, batch)

    assert rows["body.layer.weight"].shape == (2, 7, 4, 4)
    assert not rows["body.layer.weight"].any()
    assert_rows_are_right(model, batch)


@pytest.mark.parametrize(
    ("layer", "function"),
    [
        (nn.Linear(4, 4), lambda layer, x: layer(x).relu_()),  # its output is gone when the gradient comes
        (nn.Linear(4, 4), lambda layer, x: layer(x.flatten(0, 1)).view(x.shape).tanh()),  # rows are tokens
        (Gated(), lambda layer, x: layer(x, gate=3.0)),
    ],
)
def test_a_layer_that_no_capture_can_tell_is_left_out(layer, function, examples):
    model = classifier(layer, function)
    batch = examples.take(ROWS)

    assert set(captured_rows(model, batch)) == {"head.weight", "head.bias"}
    assert_rows_are_right(model, batch)


@pytest.mark.parametrize(
    ("size", "function"),
    [
        (5, lambda layer, x: layer(x.transpose(0, 1)).transpose(0, 1).tanh()),  # (T, B), as in XLNet
        (1, lambda layer, x: (x + layer(x[:1, :3].tanh()).mean(dim=1)).tanh()),  # for all examples, as in DeBERTa
    ],
)
def test_no_layer_is_taken_because_sizes_happen_to_agree(size, function, examples):
    model = classifier(nn.Linear(4, 4), function)
    batch = {"input_ids": torch.randint(2, 60, (size, 5)), "attention_mask": torch.ones(size, 5, dtype=torch.long)}
    batch["labels"] = torch.zeros(size, dtype=torch.long)

    assert names(captured_layers(Objective(model), batch)) == {"head.weight", "head.bias"}


def test_no_layers_give_no_captures(examples):
    objective = Objective(tiny_model())

    assert list(capture_layers(objective, examples.take(ROWS), [], two_directions)) == []


@pytest.mark.parametrize("module", [nn.Linear(5, 3), nn.Linear(5, 3, bias=False), Conv1D(3, 5)])
def test_a_layer_as_one_matrix_and_back(module):
    own = dict(module.named_parameters(prefix="layer"))
    layer = Layer("layer", tuple(own), kind="linear", transposed=isinstance(module, Conv1D))
    x = torch.randn(5)

    matrix = layer.to_matrix(own)
    assert matrix.shape == (3, 5 + (len(own) == 2))
    torch.testing.assert_close(matrix @ torch.cat([x, torch.ones(len(own) - 1)]), module(x))

    stack = {name: torch.randn(2, 4, *parameter.shape) for name, parameter in own.items()}
    back = layer.from_matrix(layer.to_matrix(stack))
    assert list(back) == list(own)
    assert all(torch.equal(back[name], stack[name]) for name in own)


# ------------------------------------------------------------------------------------------ embeddings


def embedding_captures(model, batch, directions=two_directions) -> list[EmbeddingCapture]:
    objective = Objective(model)
    layers = [layer for layer in captured_layers(objective, batch, embeddings=True) if layer.kind == "embedding"]
    return list(capture_layers(objective, batch, layers, directions))


@pytest.mark.parametrize(("architecture", "count"), [("bert", 3), ("roberta", 3), ("distilbert", 2), ("gpt2", 2)])
def test_the_rows_of_a_table_have_the_gradients_of_single_examples(architecture, count, examples):
    model = tiny_model(architecture, frozen=None, double=True)
    batch = examples.take(ROWS)
    expected = expected_rows(model, batch)
    found = embedding_captures(model, batch)

    assert len(found) == count
    for capture in found:
        table = expected[capture.layer.names[0]]  # (r, B, rows, size)
        for rows in (torch.arange(table.shape[2]), capture.ids.unique(), torch.tensor([1, 0])):
            one_hot = capture.at_rows(rows)
            torch.testing.assert_close(one_hot.matrices(), table[:, :, rows].mT, rtol=1e-9, atol=1e-10)
            torch.testing.assert_close(one_hot.squares(), table[:, :, rows].square().sum(dim=(2, 3)))
        seen = torch.zeros(table.shape[2], dtype=torch.bool)
        seen[capture.ids.unique()] = True
        assert not table[:, :, ~seen].any()


def test_products_and_squares_of_a_table_are_those_of_its_gradients(examples):
    model = tiny_model(frozen=None, double=True)
    batch = examples.take(ROWS)
    expected = expected_rows(model, batch)
    for capture in embedding_captures(model, batch):
        name = capture.layer.names[0]
        vectors = {name: torch.randn(3, *expected[name].shape[2:], dtype=torch.float64)}
        weights = {name: torch.rand_like(vectors[name][0])}
        along = torch.einsum("qvh,rbvh->qrb", vectors[name], expected[name])
        torch.testing.assert_close(capture.along(vectors), along, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(capture.squares(), expected[name].square().sum(dim=(2, 3)))
        weighted = (expected[name].square() * weights[name]).sum(dim=(2, 3))
        torch.testing.assert_close(capture.squares(weights), weighted, rtol=1e-9, atol=1e-9)


def test_the_row_of_padding_learns_nothing(examples):
    model = tiny_model(frozen=None, double=True)
    assert model.bert.embeddings.word_embeddings.padding_idx == 0
    batch = examples.take(ROWS)
    assert (batch["input_ids"] == 0).any()
    words = next(c for c in embedding_captures(model, batch) if "word" in c.layer.module)

    assert not words.at_rows(torch.tensor([0])).matrices().any()
    weights = {words.layer.names[0]: torch.zeros_like(model.bert.embeddings.word_embeddings.weight)}
    weights[words.layer.names[0]][0] = 1.0
    assert not words.squares(weights).any()


@pytest.mark.parametrize("num_directions", [1, 2, 5])
@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_any_number_of_directions_shares_a_forward_pass(architecture, num_directions, examples, monkeypatch):
    model, batch = tiny_model(architecture, frozen=None, double=True), examples.take(ROWS)
    objective = Objective(model)
    layers = captured_layers(objective, batch, embeddings=True)
    directions = torch.randn(num_directions, len(ROWS), 3, dtype=torch.float64)
    forwards, logits = [], Objective.logits
    monkeypatch.setattr(Objective, "logits", lambda self, *given: forwards.append(1) or logits(self, *given))

    together = list(capture_layers(objective, batch, layers, lambda *_outputs: directions))

    assert len(forwards) == 1 and len(together) == len(layers)
    for number, direction in enumerate(directions):
        alone = capture_layers(objective, batch, layers, lambda *_outputs, direction=direction: direction[None])
        for one, all_of_them in zip(alone, together, strict=True):
            torch.testing.assert_close(one.squares()[0], all_of_them.squares()[number], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "distilbert"])
def test_loss_captures_are_gradients_of_losses(architecture, examples):
    model, batch = tiny_model(architecture, frozen=None, double=True), examples.take(ROWS)
    objective = Objective(model)
    gradients = objective.space.split(oracles.loss_gradients(model, examples, ROWS))
    layers = captured_layers(objective, batch, embeddings=True)

    for capture in loss_captures(objective, batch, layers):
        if isinstance(capture, EmbeddingCapture):
            table = gradients[capture.layer.names[0]]
            matrices = capture.at_rows(torch.arange(table.shape[1])).matrices()[0]
        else:
            matrices = capture.as_matrix().matrices()[0]
        torch.testing.assert_close(matrices, capture.layer.to_matrix(gradients), rtol=1e-6, atol=1e-8)
