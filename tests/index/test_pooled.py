"""Pooled features against the input of each head."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import accelerator, batches, tiny_data, tiny_model

from hf_fastif.execution.sweeps import DatasetSweep
from hf_fastif.index import PooledFeatures, output_layer
from hf_fastif.model import Objective


DATA = tiny_data(17)


def features_of(model):
    return PooledFeatures(Objective(model)).of_queries(batches(DATA), DatasetSweep(4, accelerator()))


def reference_state(model, architecture, batch):
    """What each architecture documents as the input of its output layer."""
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    hidden = model.base_model(**inputs).last_hidden_state
    if architecture == "bert":
        return torch.tanh(model.bert.pooler.dense(hidden[:, 0]))
    if architecture == "roberta":
        return torch.tanh(model.classifier.dense(hidden[:, 0]))
    if architecture == "distilbert":
        return torch.relu(model.pre_classifier(hidden[:, 0]))
    if architecture == "electra":
        return torch.nn.functional.gelu(model.classifier.dense(hidden[:, 0]))
    return hidden[:, -1]  # gpt2 reads the last token; one row has no padding


@pytest.mark.parametrize("architecture", ["bert", "roberta", "distilbert", "electra", "gpt2"])
def test_features_are_what_the_output_layer_sees(architecture):
    model, examples = tiny_model(architecture), batches(DATA)

    features = features_of(model)

    with torch.no_grad():
        expected = torch.cat([reference_state(model, architecture, examples.take([row])) for row in range(len(DATA))])
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)
    assert features.dtype == np.float32


def test_outputs_are_the_output_layer_of_the_features():
    model, examples = tiny_model(), batches(DATA)
    features = torch.from_numpy(features_of(model))
    batch = examples.take(range(len(DATA)))
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        torch.testing.assert_close(output_layer(Objective(model))(features), logits, rtol=1e-4, atol=1e-5)


def test_no_output_layer_is_an_error():
    model = tiny_model()
    model.config.num_labels = 5
    with pytest.raises(ValueError, match="no linear layer with 5 outputs"):
        output_layer(Objective(model))
