"""Features against the input of each head, and FAISS against brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import accelerator, batches, tiny_data, tiny_model

from hf_fastif.index import attach_index, pooled_features, search_index, without_indexes
from hf_fastif.index.features import output_layer
from hf_fastif.objective import Objective
from hf_fastif.passes import Passes


DATA = tiny_data(17)


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

    features = pooled_features(Objective(model), examples, Passes(4, accelerator()))

    with torch.no_grad():
        expected = torch.cat([reference_state(model, architecture, examples.take([row])) for row in range(len(DATA))])
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)
    assert features.dtype == np.float32


def test_outputs_are_the_output_layer_of_the_features():
    model, examples = tiny_model(), batches(DATA)
    features = torch.from_numpy(pooled_features(Objective(model), examples, Passes(4, accelerator())))
    batch = examples.take(range(len(DATA)))

    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        torch.testing.assert_close(output_layer(model)(features), logits, rtol=1e-4, atol=1e-5)


def test_search_is_brute_force():
    random = np.random.default_rng(0)
    features, queries = random.standard_normal((17, 5), np.float32), random.standard_normal((4, 5), np.float32)
    attach_index(DATA, features, "pooled")

    found = search_index(DATA, "pooled", queries, 6)

    distances = ((queries[:, None] - features[None]) ** 2).sum(-1)
    np.testing.assert_array_equal(found, np.argsort(distances, axis=1)[:, :6])
    assert DATA.get_nearest_examples("pooled", features[3], 1).examples["text"] == [DATA[3]["text"]]


def test_attaching_again_replaces():
    attach_index(DATA, np.zeros((17, 2), np.float32), "pooled")
    attach_index(DATA, np.arange(34, dtype=np.float32).reshape(17, 2), "pooled")
    assert search_index(DATA, "pooled", np.array([[32, 33]], np.float32), 1).tolist() == [[16]]


def test_view_without_indexes_leaves_the_dataset_its_index():
    attach_index(DATA, np.zeros((17, 2), np.float32), "pooled")
    view = without_indexes(DATA)
    assert view.list_indexes() == []
    assert DATA.list_indexes() == ["pooled"]
    assert view.select([2])[0] == DATA[2]


def test_no_output_layer_is_an_error():
    model = tiny_model()
    model.config.num_labels = 5
    with pytest.raises(ValueError, match="no linear layer with 5 outputs"):
        output_layer(model)
