"""Influence beside other trainers than `Trainer`: a mix-in."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from tiny import tiny_data, tiny_model, tiny_tokenizer, tiny_trainer
from transformers import Trainer, TrainingArguments

from hf_fastif import InfluenceConfig, InfluenceMixin


@dataclass
class OwnConfig(TrainingArguments):
    """Arguments of a trainer that changes what trl's trainers change."""

    num_metrics: int = field(default=0)
    learning_rate: float = field(default=2e-5)
    logging_steps: float = field(default=10)

    def __post_init__(self):
        super().__post_init__()
        self.num_metrics += 1


class OwnTrainer(Trainer):
    """Prepares datasets, keeps columns of its own, wraps the forward pass and counts in `compute_loss`."""

    def __init__(self, model, args=None, train_dataset=None, **named):
        self.counted = 0
        super().__init__(model, args, train_dataset=self.prepared(train_dataset), **named)
        inner = self.model.forward
        self.model.forward = lambda *given, extra=False, **inputs: inner(*given, **inputs)

    def prepared(self, dataset):
        return dataset.map(lambda rows: tiny_tokenizer()(rows["text"]), batched=True)

    def _set_signature_columns_if_needed(self):
        self._signature_columns = ["input_ids", "attention_mask", "label"]

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        self.counted += 1
        return super().compute_loss(model, {**inputs, "extra": True}, return_outputs, num_items_in_batch)


@dataclass
class BothConfig(OwnConfig, InfluenceConfig):
    """Settings of both."""


class Both(InfluenceMixin, OwnTrainer):
    """Both trainers."""


def arguments(kind, folder, **settings):
    return kind(str(folder), use_cpu=True, report_to="none", disable_tqdm=True, **settings)


def test_the_mixin_gives_a_trainer_what_influence_trainer_can(tmp_path):
    plain, queries = tiny_data(20), tiny_data(2, seed=1)
    texts = plain.select_columns(["text", "label"])
    args = arguments(BothConfig, tmp_path / "both", sdca_visits=200, max_steps=2, learning_rate=0.0, bf16=True)
    trainer = Both(tiny_model(), args, train_dataset=texts, processing_class=tiny_tokenizer())
    assert trainer.args.num_metrics == 1
    trainer.train()
    assert list((tmp_path / "both" / "influence" / "checkpoints").iterdir())
    counted = trainer.counted

    found = trainer.compute_influence(queries)

    expected = tiny_trainer(tmp_path / "plain", tiny_model(), plain, sdca_visits=200).compute_influence(queries)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
    assert counted < trainer.counted < counted + 10  # it was asked what its loss is, and no more
    trainer.compute_influence(queries)
    trainer.build_index()
    assert trainer.find_influential(queries, num_neighbors=5, num_examples=2).helpful(0)["text"][:]


def test_arguments_of_another_trainer_need_the_settings_of_influence(tmp_path):
    with pytest.raises(
        ValueError, match=r"args is a OwnConfig.*class InfluenceOwnConfig\(OwnConfig, InfluenceConfig\)"
    ):
        Both(tiny_model(), arguments(OwnConfig, tmp_path), train_dataset=tiny_data(4))


def test_the_arguments_of_another_trainer_keep_their_defaults_and_both_are_checked(tmp_path):
    args = arguments(BothConfig, tmp_path)
    assert (args.learning_rate, args.logging_steps, args.num_metrics) == (2e-5, 10, 1)
    assert args.solver == "auto" and args.influence_batch_size == 32
    assert arguments(BothConfig, tmp_path, damping="0.5").damping == 0.5  # text becomes a number
    with pytest.raises(ValueError, match="solver='sdac'"):
        arguments(BothConfig, tmp_path, solver="sdac")


@pytest.mark.slow
@pytest.mark.skipif(
    find_spec("trl") is None or find_spec("peft") is None, reason="trl and peft are not installed (pip install .[sft])"
)
def test_sft_trainer_of_trl(tmp_path):
    script = Path(__file__).parents[1] / "scripts" / "run_sft.py"
    done = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    full, lora = [json.loads(line[6:]) for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    for found in (full, lora):
        assert found["hidden"] == 3  # the prompt
        np.testing.assert_allclose(found["losses"], found["alone"], rtol=1e-4)
        assert len(found["helpful"]) > 0 and np.isfinite(found["loss_after"])
    assert lora["parameters"] == lora["adapters"] < full["parameters"]
