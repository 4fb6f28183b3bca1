"""A tiny model of every head, with data, and its loss written out from the outputs of one example."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from tiny import BERT_SIZES, VOCABULARY, tiny_config, tiny_tokenizer
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BartConfig,
    DataCollatorForMultipleChoice,
    DataCollatorForSeq2Seq,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    T5Config,
    ViTConfig,
    ViTForImageClassification,
    default_data_collator,
)

from hf_fastif import InfluenceConfig, InfluenceTrainer


WORDS = 12  # ids in use, so that oracles are quick
SMALL = {"vocab_size": WORDS, "initializer_range": 0.5, "num_hidden_layers": 1}
DECODER = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0, "decoder_start_token_id": 0}


def words(random: np.random.Generator, longest: int = 7) -> list[int]:
    return random.integers(2, WORDS, random.integers(3, longest)).tolist()


def texts(random, size: int, **columns: Callable[[list[int]], Any]) -> Dataset:
    """Random texts of differing length, with columns that are made of each."""
    rows = []
    for _ in range(size):
        ids = words(random)
        rows.append({"input_ids": ids, "attention_mask": [1] * len(ids)})
        rows[-1] |= {name: make(ids) for name, make in columns.items()}
    return Dataset.from_list(rows)


def ce(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")


@dataclass(frozen=True)
class HeadCase:
    """What the tests of one head need.

    Attributes:
        make (`Callable`): The model.
        rows (`Callable`): A dataset of so many rows, from a random generator.
        collator (`Callable`): From a tokenizer to a collator.
        outputs (`Callable`): The outputs f, of what the model returns for one example.
        loss (`Callable`): The loss of one example from f and its batch; of tokens their sum.
        trained (`str`): The parameters with this in their name are trained.
    """

    make: Callable[[], torch.nn.Module]
    rows: Callable[[np.random.Generator, int], Dataset]
    collator: Callable[..., Any]
    outputs: Callable[[Any], torch.Tensor]
    loss: Callable[[torch.Tensor, dict], torch.Tensor]
    trained: str = ""

    @cached_property
    def model(self) -> torch.nn.Module:
        torch.manual_seed(1)
        model = self.make().double().eval()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(self.trained in name)
        return model

    def data(self, size: int, seed: int = 0) -> Dataset:
        return self.rows(np.random.default_rng(seed), size)

    def trainer(self, folder, train: Dataset, padding_side: str = "right", **settings) -> InfluenceTrainer:
        defaults = {"output_dir": str(folder), "use_cpu": True, "disable_tqdm": True, "report_to": "none"}
        defaults |= {"remove_unused_columns": False, "curvature_samples": 16}
        tokenizer = tiny_tokenizer()
        tokenizer.padding_side = padding_side
        return InfluenceTrainer(
            model=self.model,
            args=InfluenceConfig(**defaults | settings),
            train_dataset=train,
            data_collator=self.collator(tokenizer),
        )


def some_ignored(random: np.random.Generator, labels: list[int]) -> list[int]:
    """-100 in place of the first labels, as of a prompt."""
    start = int(random.integers(1, len(labels) - 1))
    return [-100] * start + labels[start:]


def lm_rows(random, size):
    return texts(random, size, labels=lambda ids: some_ignored(random, ids))


def seq2seq_rows(random, size):
    return texts(random, size, labels=lambda _ids: words(random, 6))


def token_rows(random, size):
    return texts(random, size, labels=lambda ids: [-100, *random.integers(0, 3, len(ids) - 1).tolist()])


def span_rows(random, size):
    def place(ids):
        return int(random.integers(0, len(ids)))

    return texts(random, size, start_positions=place, end_positions=place)


def choice_rows(random, size):
    rows = [{"input_ids": [words(random) for _ in range(3)], "label": int(random.integers(3))} for _ in range(size)]
    return Dataset.from_list([row | {"attention_mask": [[1] * len(ids) for ids in row["input_ids"]]} for row in rows])


def label_rows(make):
    return lambda random, size: texts(random, size, label=lambda _ids: make(random))


def image_rows(random, size):
    return Dataset.from_list(
        [
            {"pixel_values": random.standard_normal((3, 4, 4)).tolist(), "label": int(random.integers(3))}
            for _ in range(size)
        ]
    ).with_format("torch")


def pick(auto, architecture: str, **changes):
    return lambda: auto.from_config(tiny_config(architecture, **SMALL | changes))


def of_auto(auto, config):
    return lambda: auto.from_config(config, attn_implementation="eager")


GPT2 = {"vocab_size": WORDS, "n_layer": 1, "n_positions": 10, "initializer_range": 0.5}
T5 = T5Config(
    vocab_size=WORDS, d_model=8, d_kv=4, d_ff=12, num_layers=1, num_heads=2, initializer_factor=1.0, **DECODER
)
BART_SIZES = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 12, "decoder_ffn_dim": 12}
BART_SIZES |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 12}
BART = BartConfig(vocab_size=WORDS, init_std=0.5, forced_eos_token_id=None, **BART_SIZES, **DECODER)
VIT = ViTConfig(
    image_size=4,
    patch_size=2,
    num_labels=3,
    **{n: v for n, v in BERT_SIZES.items() if "pos" not in n and "vocab" not in n},
)


def next_token_loss(f, batch):
    return ce(f[:-1], batch["labels"][0, 1:])


def token_loss(f, batch):
    return ce(f, batch["labels"][0])


def span_loss(f, batch):
    return (ce(f[:, 0][None], batch["start_positions"]) + ce(f[:, 1][None], batch["end_positions"])) / 2


def class_loss(f, batch):
    return ce(f[None], batch["labels"])


def logits(output):
    return output.logits[0]


CASES = {
    "causal-gpt2": HeadCase(
        pick(AutoModelForCausalLM, "gpt2", **GPT2),
        lm_rows,
        DataCollatorForTokenClassification,
        logits,
        next_token_loss,
    ),
    "causal-llama": HeadCase(
        pick(AutoModelForCausalLM, "llama"),
        lm_rows,
        DataCollatorForTokenClassification,
        logits,
        next_token_loss,
        "mlp",
    ),
    "masked-bert": HeadCase(
        pick(AutoModelForMaskedLM, "bert"),
        lm_rows,
        DataCollatorForTokenClassification,
        logits,
        token_loss,
        "layer.0",
    ),
    "seq2seq-t5": HeadCase(
        of_auto(AutoModelForSeq2SeqLM, T5), seq2seq_rows, DataCollatorForSeq2Seq, logits, token_loss, "decoder"
    ),
    "seq2seq-bart": HeadCase(
        of_auto(AutoModelForSeq2SeqLM, BART), seq2seq_rows, DataCollatorForSeq2Seq, logits, token_loss, "decoder"
    ),
    "token": HeadCase(
        pick(AutoModelForTokenClassification, "bert", num_labels=3),
        token_rows,
        DataCollatorForTokenClassification,
        logits,
        token_loss,
        "layer.0",
    ),
    "question-answering": HeadCase(
        pick(AutoModelForQuestionAnswering, "bert"),
        span_rows,
        DataCollatorWithPadding,
        lambda output: torch.stack([output.start_logits[0], output.end_logits[0]], dim=1),
        span_loss,
        "layer.0",
    ),
    "multiple-choice": HeadCase(
        pick(AutoModelForMultipleChoice, "bert"),
        choice_rows,
        DataCollatorForMultipleChoice,
        logits,
        class_loss,
        "layer.0",
    ),
    "regression": HeadCase(
        pick(AutoModelForSequenceClassification, "bert", num_labels=1),
        label_rows(lambda random: float(random.standard_normal())),
        DataCollatorWithPadding,
        logits,
        lambda f, batch: F.mse_loss(f, batch["labels"].to(f)),
        "layer.0",
    ),
    "regression-of-three": HeadCase(
        pick(AutoModelForSequenceClassification, "bert", num_labels=3, problem_type="regression"),
        label_rows(lambda random: random.standard_normal(3).tolist()),
        DataCollatorWithPadding,
        logits,
        lambda f, batch: F.mse_loss(f, batch["labels"][0].to(f)),
        "layer.0",
    ),
    "multi-label": HeadCase(
        pick(AutoModelForSequenceClassification, "bert", num_labels=3, problem_type="multi_label_classification"),
        label_rows(lambda random: random.integers(0, 2, 3).astype(float).tolist()),
        DataCollatorWithPadding,
        logits,
        lambda f, batch: F.binary_cross_entropy_with_logits(f, batch["labels"][0].to(f)),
        "layer.0",
    ),
    "image": HeadCase(
        lambda: ViTForImageClassification(VIT),
        image_rows,
        lambda _: default_data_collator,
        logits,
        class_loss,
        "layers.1",
    ),
}
assert len(VOCABULARY) > WORDS


def gradients_and_curvature(case: HeadCase, trainer: InfluenceTrainer, data: Dataset):
    """grad L (N, P) of every example alone, and the mean of J^T H J with H = d2 L / d f2, entry by entry."""
    parameters = [p for p in case.model.parameters() if p.requires_grad]
    gradients, matrix = [], 0
    for row in range(len(data)):
        batch = trainer.data_collator(data.__getitems__([row]))
        batch = {name: v.double() if v.is_floating_point() else v for name, v in batch.items()}
        f = case.outputs(case.model(**batch))
        back = torch.autograd.grad(
            f.flatten(), parameters, torch.eye(f.numel()).to(f), is_grads_batched=True, materialize_grads=True
        )
        jacobian = torch.cat([piece.flatten(1) for piece in back], dim=1)
        at = f.detach().flatten().requires_grad_()
        (slope,) = torch.autograd.grad(case.loss(at.view_as(f), batch), at)
        hessian = torch.autograd.functional.hessian(lambda z, f=f, b=batch: case.loss(z.view_as(f), b), at.detach())
        gradients.append(slope @ jacobian)
        matrix = matrix + jacobian.T @ hessian @ jacobian / len(data)
    return torch.stack(gradients), matrix
