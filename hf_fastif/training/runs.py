"""Train the models of recipes: once, with several seeds, or again on changed training sets."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

from datasets import DatasetDict
from transformers import set_seed

from hf_fastif.artifacts import atomic_write
from hf_fastif.config import InfluenceConfig, with_settings
from hf_fastif.errors import InfluenceError
from hf_fastif.trainer import InfluenceTrainer
from hf_fastif.training.classifier import ModelArguments
from hf_fastif.training.datasets import DataArguments


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


def make_trainer(
    model: ModelArguments, data: DataArguments, config: InfluenceConfig
) -> tuple[InfluenceTrainer, DatasetDict]:
    """Read the examples, load the model, and make the trainer of both.

    Args:
        model ([`ModelArguments`]): The model: a classifier, or a causal language model.
        data ([`DataArguments`]): The examples.
        config ([`InfluenceConfig`]): With `do_train` a classifier gets a head for the labels of the data; otherwise it
            must have one for them.

    Returns:
        The trainer with its training set, and the tokenized splits `train` and `validation`.

    Raises:
        InfluenceError: If there is no such model or file, or the examples do not fit the model.

    Example:

    ```python
    config = InfluenceConfig("out", do_train=True)
    trainer, examples = make_trainer(ModelArguments(), DataArguments(), config)  # the packaged encoder, embedded data
    trainer.train()
    ```
    """
    examples = model.read_examples(data, config)
    return _trainer_of(model, examples, config), examples


def _trainer_of(model: ModelArguments, examples: DatasetDict, config: InfluenceConfig) -> InfluenceTrainer:
    loaded, tokenizer = model.load(examples)
    return InfluenceTrainer(
        model=loaded,
        args=config,
        train_dataset=examples["train"],
        eval_dataset=examples["validation"],
        processing_class=tokenizer,
        data_collator=model.collator(tokenizer),
    )


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
    settings = model.settings() | {"max_length": data.max_length}
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
        examples (`datasets.DatasetDict`, *optional*): The examples, as `model.read_examples` returns them, or with
            another training set; unless given, they are read.

    Raises:
        InfluenceError: If the finished model was trained with other settings or on other examples.

    Example:

    ```python
    data = DataArguments("nyu-mll/multi_nli", dataset_test_split="validation_matched")
    accuracy = fine_tune(ModelArguments("bert-base-uncased"), data, InfluenceConfig("out"))
    ```
    """
    path, config = Path(config.output_dir) / ACCURACY, with_settings(config, do_train=True)
    examples = model.read_examples(data, config) if examples is None else examples
    set_seed(config.seed)
    trainer = _trainer_of(model, examples, config)
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
    examples = model.read_examples(data, config) if examples is None else examples
    if config.do_train:
        fine_tune(model, data, config, examples)
        model = model.trained_in(config.output_dir)
        config = with_settings(config, do_train=False)
    return _trainer_of(model, examples, config), examples


def train_again(
    model: ModelArguments, examples: DatasetDict, config: InfluenceConfig, repeat: int | None
) -> InfluenceTrainer:
    """Train a model without leaving anything on disk, and return its trainer.

    Args:
        model ([`ModelArguments`]): What training starts from.
        examples (`datasets.DatasetDict`): Tokenized examples to train on and to validate with.
        config ([`InfluenceConfig`]): How to train.
        repeat (`int`, *optional*): The number of the repeat; repeats differ in their seed. None takes the seed of
            `config`, so that only the examples differ from those of the first run.
    """
    seed = config.seed if repeat is None else 1000 + config.seed + repeat
    quiet = {"disable_tqdm": True, "logging_strategy": "no", "save_strategy": "no"}
    with TemporaryDirectory() as folder:
        run = with_settings(config, output_dir=folder, seed=seed, do_train=True, checkpoints=["final"], **quiet)
        set_seed(seed)
        trainer = _trainer_of(model, examples, run)
        trainer.train()
    return trainer
