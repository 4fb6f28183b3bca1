"""The output layer of language models: it computes labelled places only, and nothing else changes."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny import BERT_SIZES, tiny_tokenizer
from tiny_heads import CASES, WORDS
from transformers import (
    MobileBertConfig,
    MobileBertForMaskedLM,
    ProphetNetConfig,
    ProphetNetForConditionalGeneration,
)

from hf_fastif.curvature import GaussNewton, captured_layers, loss_captures
from hf_fastif.model import Objective, derivatives_along, differentiable


TEXTS = ["causal-gpt2", "causal-llama", "masked-bert"]
NAMES = [*TEXTS, "seq2seq-t5", "seq2seq-bart"]


def batch_of(name, side="right"):
    """Five examples of differing length with differing numbers of labels; the last one is a prompt without any."""
    case, tokenizer = CASES[name], tiny_tokenizer()
    tokenizer.padding_side = side
    rows = [dict(row) for row in case.data(5)]
    rows[-1]["labels"] = [-100] * len(rows[-1]["labels"])
    return case.collator(tokenizer)(rows)


def objectives(model, trained=""):
    """One that selects places before the output layer, and one that selects among all outputs."""
    model = copy.deepcopy(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained in name)
    early = Objective(model)
    late = copy.copy(early)
    late.selects_early = False
    return early, late


def rows_of_output_layer(objective, batch):
    """The shapes of what the output layer receives while the losses of a batch are computed."""
    shapes, layer = [], objective.model.get_output_embeddings()
    handle = layer.register_forward_hook(lambda _module, args, _output: shapes.append(tuple(args[0].shape[:-1])))
    objective.losses(objective.theta, batch)
    handle.remove()
    return shapes


def labelled_places(objective, batch):
    """The places of each example that predict a label."""
    shift = int(objective.head.shift)
    return [[t - shift for t, y in enumerate(row) if y != -100 and t >= shift] for row in batch["labels"].tolist()]


@pytest.mark.parametrize("name", NAMES)
def test_the_output_layer_receives_labelled_places_only(name):
    objective, batch = objectives(CASES[name].model)[0], batch_of(name)
    most = max(map(len, labelled_places(objective, batch)))
    assert rows_of_output_layer(objective, batch) == [(5, most)]
    assert name not in TEXTS or most < batch["labels"].shape[1]
    assert objective.selects_early


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_the_models_own_at_each_label(name, side):
    (early, late), batch = objectives(CASES[name].model), batch_of(name, side)
    logits, everywhere = early.logits(early.theta, batch), early.run(early.theta, batch).logits
    for example, places in enumerate(labelled_places(early, batch)):
        assert bool(places) == (example < 4)
        torch.testing.assert_close(logits[example, : len(places)], everywhere[example, places])
    losses = early.losses(early.theta, batch)
    torch.testing.assert_close(losses, late.losses(late.theta, batch))
    assert losses[-1] == 0 < losses[:-1].min()


@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_single_examples_are_the_same(name):
    (early, late), batch = objectives(CASES[name].model), batch_of(name)
    with differentiable(early.model):
        for one, other in zip(_gradients(early, batch), _gradients(late, batch), strict=True):
            torch.testing.assert_close(one, other)


def _gradients(objective, batch):
    yield from (objective.gradient({entry: values[i : i + 1] for entry, values in batch.items()}) for i in range(5))
    layers = captured_layers(objective, batch, embeddings=True, tied=True)
    vectors = torch.randn(3, objective.space.size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for capture in loss_captures(objective, batch, layers):
        yield capture.along(objective.space.split(vectors))


@pytest.mark.parametrize("name", NAMES)
def test_products_and_derivatives_along_vectors_are_the_same(name):
    (early, late), batch = objectives(CASES[name].model), batch_of(name)
    vectors = torch.randn(3, early.space.size, dtype=torch.float64)
    with differentiable(early.model):
        one, other = (
            (
                GaussNewton(objective).product(batch, vectors),
                *derivatives_along(objective, lambda theta, o=objective: o.losses(theta, batch), vectors),
            )
            for objective in (early, late)
        )
    torch.testing.assert_close(one, other)
    assert early.forward_mode and early.selects_early


def test_the_output_layer_is_captured_at_labelled_places():
    early, late = objectives(CASES["causal-llama"].model, "lm_head")
    batch = {name: values[[1, 3]] for name, values in batch_of("causal-llama").items()}  # labels at different places
    (layer,) = captured_layers(early, batch)
    (one,), (other,) = (list(loss_captures(objective, batch, [layer])) for objective in (early, late))
    assert (one.inputs.shape[1], other.inputs.shape[1]) == (3, 5)
    torch.testing.assert_close(one.rows(), other.rows())


# ------------------------------------------------------------------------------------- models that do it another way


def prophetnet():
    """Its output layer receives two streams of predictions at once."""
    sizes = {"hidden_size": 8, "encoder_ffn_dim": 12, "decoder_ffn_dim": 12, "ngram": 2}
    sizes |= {f"num_{part}_layers": 1 for part in ("encoder", "decoder")}
    sizes |= {f"num_{part}_attention_heads": 2 for part in ("encoder", "decoder")}
    return ProphetNetForConditionalGeneration(ProphetNetConfig(vocab_size=WORDS, init_std=0.5, **sizes))


def mobilebert():
    """It multiplies by the weight of its output layer without calling it."""
    sizes = {"embedding_size": 8, "intra_bottleneck_size": 8, "true_hidden_size": 8, "vocab_size": WORDS}
    return MobileBertForMaskedLM(MobileBertConfig(**BERT_SIZES | sizes))


def twice():
    """It calls its output layer for something else first."""

    def call(module, _args):
        module.lm_head(torch.ones(5, 12, 8))

    model = copy.deepcopy(CASES["causal-llama"].model)
    model.register_forward_pre_hook(call)
    return model


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize(
    ("make", "name"), [(prophetnet, "seq2seq-bart"), (mobilebert, "masked-bert"), (twice, "causal-llama")]
)
def test_models_that_use_the_layer_in_another_way_select_afterwards(make, name):
    torch.manual_seed(1)
    (early, late), batch = objectives(make().float().eval()), batch_of(name)
    torch.testing.assert_close(early.logits(early.theta, batch), late.logits(late.theta, batch))
    assert not early.selects_early


@pytest.mark.parametrize("name", ["causal-gpt2", "seq2seq-t5"])
def test_a_custom_loss_sees_all_places(name):
    objective, batch = objectives(CASES[name].model)[0], batch_of(name)
    objective.use_loss(lambda logits, _labels: logits.square().sum(dim=(1, 2)))
    assert rows_of_output_layer(objective, batch) == [tuple(batch["labels"].shape)]
