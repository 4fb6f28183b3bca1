"""Make a trainer from the settings of a recipe: model, frozen layers, tokenized examples."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from datasets import DatasetDict
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollator,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)
from transformers.utils import ADAPTER_CONFIG_NAME, CONFIG_NAME

from hf_fastif.artifacts import atomic_write
from hf_fastif.config import InfluenceConfig, with_settings
from hf_fastif.errors import InfluenceError, NotFoundError, check_path
from hf_fastif.model import freeze
from hf_fastif.trainer import InfluenceTrainer
from hf_fastif.training.corpora.encoder import default_encoder
from hf_fastif.training.datasets import DataArguments, load_examples, tokenize


ACCURACY = "accuracy.json"  # accuracy and training settings; written last, so that its presence marks a finished run
TRAINING = (  # settings that determine the trained model
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "num_train_epochs",
    "max_steps",
    "train_batch_size",
    "gradient_accumulation_steps",
    "train_sampling_strategy",
    "world_size",
    "optim",
    "weight_decay",
    "max_grad_norm",
    "label_smoothing_factor",
    "bf16",
    "fp16",
    "seed",
)


@dataclass
class ModelArguments:
    """Model that a recipe works on."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Model on the Hub, or its folder; None uses the packaged MiniLM encoder."}
    )
    num_frozen_layers: int = field(
        default=3, metadata={"help": "Freeze the embeddings and this many first layers; -1 freezes nothing."}
    )


def read_examples(model: ModelArguments, data: DataArguments, config: InfluenceConfig) -> DatasetDict:
    """Read and tokenize the splits `train` and `validation` for a classifier.

    Args:
        model ([`ModelArguments`]): The model, whose tokenizer and labels are used.
        data ([`DataArguments`]): What to read.
        config ([`InfluenceConfig`]): With `do_train` the model need not know the labels of the data yet.

    Raises:
        InfluenceError: If there is no such model or file, or the labels do not fit the model.
    """
    path = _checked_path(model)
    examples = load_examples(data, AutoConfig.from_pretrained(path).id2label, new_head=config.do_train)
    with config.main_process_first(desc="tokenizing"):
        return tokenize(examples, AutoTokenizer.from_pretrained(path), data)


def load_classifier(model: ModelArguments, examples: DatasetDict) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a classifier with a head for the labels of some examples, freeze its first layers, and load its tokenizer.

    Args:
        model ([`ModelArguments`]): The model. A head that it lacks is initialized at random.
        examples (`datasets.DatasetDict`): What `read_examples` returned.
    """
    path, names = _checked_path(model), examples["train"].features["label"].names
    classifier = AutoModelForSequenceClassification.from_pretrained(
        path, num_labels=len(names), id2label=dict(enumerate(names)), label2id={n: i for i, n in enumerate(names)}
    )
    if model.num_frozen_layers >= 0:
        freeze(classifier, model.num_frozen_layers)
    return classifier, AutoTokenizer.from_pretrained(path)


def build_trainer(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    examples: DatasetDict,
    config: InfluenceConfig,
    data_collator: DataCollator | None = None,
) -> InfluenceTrainer:
    """Make the trainer of a model and its examples.

    Args:
        model (`torch.nn.Module`): The model.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        examples (`datasets.DatasetDict`): Tokenized splits `train` and `validation`.
        config ([`InfluenceConfig`]): The settings of training and influence.
        data_collator (`Callable`, *optional*): Makes batches; unless given, `Trainer` chooses.
    """
    return InfluenceTrainer(
        model=model,
        args=config,
        train_dataset=examples["train"],
        eval_dataset=examples["validation"],
        processing_class=tokenizer,
        data_collator=data_collator,
    )


def make_trainer(
    model: ModelArguments, data: DataArguments, config: InfluenceConfig
) -> tuple[InfluenceTrainer, DatasetDict]:
    """Read the examples, load the classifier, and make the trainer of both.

    Args:
        model ([`ModelArguments`]): The model.
        data ([`DataArguments`]): The examples.
        config ([`InfluenceConfig`]): With `do_train` the model gets a head for the labels of the data; otherwise it
            must have one for them.

    Returns:
        The trainer with its training set, and the tokenized splits `train` and `validation`.

    Raises:
        InfluenceError: If there is no such model or file, or the labels do not fit the model.

    Example:

    ```python
    config = InfluenceConfig("out", do_train=True)
    trainer, examples = make_trainer(ModelArguments(), DataArguments(), config)  # the packaged encoder, embedded data
    trainer.train()
    ```
    """
    examples = read_examples(model, data, config)
    return build_trainer(*load_classifier(model, examples), examples, config), examples


def _checked_path(model: ModelArguments) -> str:
    path = model.model_name_or_path or default_encoder()
    check_model_path(path)
    return path


def check_model_path(path: str) -> None:
    """Check that a path is a folder that holds a model, or may be the name of a model on the Hub.

    Raises:
        NotFoundError: If the folder does not exist or holds no model.
    """
    check_path("model_name_or_path", path)
    folder = Path(path)
    if folder.is_dir() and not any((folder / name).is_file() for name in (CONFIG_NAME, ADAPTER_CONFIG_NAME)):
        inner = sorted(each.parent.name for each in folder.glob(f"*/{CONFIG_NAME}"))
        fix = f"it has the folders {', '.join(inner)} with one" if inner else "trainer.save_model() writes one"
        raise NotFoundError(f"model_name_or_path={path!r} holds no model (there is no {CONFIG_NAME}); {fix}.")


def runs_of(config: InfluenceConfig, num_seeds: int) -> list[InfluenceConfig]:
    """Return the settings of several runs that differ in their seed.

    Each run has a folder `OUTPUT_DIR/seed-N`. A single run stays in `OUTPUT_DIR`.

    Raises:
        InfluenceError: If `num_seeds` is less than 1.
    """
    if num_seeds < 1:
        raise InfluenceError(f"num_seeds={num_seeds}: give at least 1.")
    if num_seeds == 1:
        return [with_settings(config)]
    seeds = range(config.seed, config.seed + num_seeds)
    return [
        with_settings(config, seed=seed, output_dir=str(Path(config.output_dir, f"seed-{seed}"))) for seed in seeds
    ]


def training_settings(model: ModelArguments, data: DataArguments, config: InfluenceConfig) -> dict[str, str]:
    """Return the settings that, besides the examples, determine the trained model."""
    settings = {one.name: getattr(model, one.name) for one in fields(ModelArguments)} | {"max_length": data.max_length}
    settings |= {name: getattr(config, name) for name in TRAINING}
    return {name: str(value) for name, value in settings.items()}


def check_training(config: InfluenceConfig) -> None:
    """Check that a recipe that retrains models also trains the first one, from the same start.

    Raises:
        InfluenceError: If `config.do_train` is not set.
    """
    if not config.do_train:
        raise InfluenceError(
            "do_train=False: this recipe trains several models from model_name_or_path, including the first one; give "
            "--do_train and the pretrained encoder. A finished model in output_dir is not trained again."
        )


def fine_tune(
    model: ModelArguments, data: DataArguments, config: InfluenceConfig, examples: DatasetDict | None = None
) -> float:
    """Train a model, save it in `config.output_dir`, and return its validation accuracy.

    A finished model is not trained again.

    Args:
        model ([`ModelArguments`]): What training starts from.
        data ([`DataArguments`]): Training and validation examples.
        config ([`InfluenceConfig`]): How to train; with `overwrite` a finished model is trained again.
        examples (`datasets.DatasetDict`, *optional*): The examples, as `read_examples` returns them, or with another
            training set; unless given, they are read.

    Raises:
        InfluenceError: If the finished model was trained with other settings or on other examples.

    Example:

    ```python
    data = DataArguments("nyu-mll/multi_nli", dataset_test_split="validation_matched")
    accuracy = fine_tune(ModelArguments("bert-base-uncased"), data, InfluenceConfig("out"))
    ```
    """
    path, config = Path(config.output_dir) / ACCURACY, with_settings(config, do_train=True)
    examples = read_examples(model, data, config) if examples is None else examples
    set_seed(config.seed)
    trainer = build_trainer(*load_classifier(model, examples), examples, config)
    train_digest = trainer.example_batches(trainer.train_dataset).training_digest
    settings = training_settings(model, data, config) | {"train_dataset": train_digest}
    if config.overwrite or not path.exists():
        trainer.train()
        trainer.save_model()
        wrong = trainer.find_misclassified(examples["validation"])
        record = {"validation": 1 - len(wrong) / len(examples["validation"]), "trained_with": settings}
        if trainer.is_world_process_zero():
            atomic_write(path, lambda file: file.write_text(json.dumps(record, indent=2), "utf-8"))
        trainer.accelerator.wait_for_everyone()
    record = json.loads(path.read_text("utf-8"))
    _check_trained_with(record.get("trained_with", {}), settings, config.output_dir)
    return record["validation"]


def _check_trained_with(recorded: dict[str, str], wanted: dict[str, str], folder: str) -> None:
    changes = [
        f"{name} was {recorded.get(name, 'not recorded')} and is {wanted.get(name, 'not known')}"
        for name in wanted | recorded
        if recorded.get(name) != wanted.get(name)
    ]
    if changes:
        raise InfluenceError(
            f"output_dir={folder!r}: the model there was trained differently ({'; '.join(changes)}). Give another "
            "folder, --overwrite to train it again, or use the model there with --do_train false "
            f"--model_name_or_path {folder}."
        )


def trained(
    model: ModelArguments, data: DataArguments, config: InfluenceConfig, examples: DatasetDict | None = None
) -> tuple[InfluenceTrainer, DatasetDict]:
    """Return the trainer and the examples of a model that is trained first if `config.do_train` is set.

    The arguments and errors are those of `fine_tune`.
    """
    examples = read_examples(model, data, config) if examples is None else examples
    if config.do_train:
        fine_tune(model, data, config, examples)
        model = replace(model, model_name_or_path=config.output_dir)
        config = with_settings(config, do_train=False)
    return build_trainer(*load_classifier(model, examples), examples, config), examples


def train_again(
    model: ModelArguments, examples: DatasetDict, config: InfluenceConfig, repeat: int
) -> InfluenceTrainer:
    """Train a model without leaving anything on disk, and return its trainer.

    Args:
        model ([`ModelArguments`]): What training starts from.
        examples (`datasets.DatasetDict`): Tokenized examples to train on and to validate with.
        config ([`InfluenceConfig`]): How to train.
        repeat (`int`): The number of the repeat; repeats differ in their seed.
    """
    seed, quiet = 1000 + config.seed + repeat, {"disable_tqdm": True, "logging_strategy": "no", "save_strategy": "no"}
    with TemporaryDirectory() as folder:
        run = with_settings(config, output_dir=folder, seed=seed, do_train=True, checkpoints=["final"], **quiet)
        set_seed(seed)
        trainer = build_trainer(*load_classifier(model, examples), examples, run)
        trainer.train()
    return trainer
