"""From the settings of a recipe to a trainer: model, frozen layers, tokenized examples."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from tempfile import TemporaryDirectory

from datasets import Dataset, DatasetDict
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, set_seed
from transformers.utils import ADAPTER_CONFIG_NAME, CONFIG_NAME

from hf_fastif.artifacts import atomic_write
from hf_fastif.config import InfluenceConfig
from hf_fastif.errors import InfluenceError, NotFoundError, check_path
from hf_fastif.model import freeze
from hf_fastif.trainer import InfluenceTrainer
from hf_fastif.training.corpora.encoder import default_encoder
from hf_fastif.training.datasets import DataArguments, load_examples, tokenize


ACCURACY = "accuracy.json"  # written last: a run that has it is finished; it also says how the model was trained
TRAINING = (  # settings that decide which model comes out
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
    """Which model a recipe works on."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Hub id or folder; unless given, the packaged MiniLM encoder."}
    )
    num_frozen_layers: int = field(
        default=3, metadata={"help": "Freeze the embeddings and that many layers; -1 freezes nothing."}
    )


def make_trainer(
    model: ModelArguments, data: DataArguments, config: InfluenceConfig
) -> tuple[InfluenceTrainer, DatasetDict]:
    """A trainer with its training set, and the splits `train` and `validation`.

    With `config.do_train` the model gets a head for the labels of the data; else it must have one for them.
    """
    path = model.model_name_or_path or default_encoder()
    check_model_path(path)
    examples = load_examples(data, AutoConfig.from_pretrained(path).id2label, new_head=config.do_train)
    names = examples["train"].features["label"].names
    classifier = AutoModelForSequenceClassification.from_pretrained(
        path, num_labels=len(names), id2label=dict(enumerate(names)), label2id={n: i for i, n in enumerate(names)}
    )
    if model.num_frozen_layers >= 0:
        freeze(classifier, model.num_frozen_layers)
    tokenizer = AutoTokenizer.from_pretrained(path)
    with config.main_process_first(desc="tokenizing"):
        examples = tokenize(examples, tokenizer, data)
    trainer = InfluenceTrainer(
        model=classifier,
        args=config,
        train_dataset=examples["train"],
        eval_dataset=examples["validation"],
        processing_class=tokenizer,
    )
    return trainer, examples


def check_model_path(path: str) -> None:
    """Check that a model is a folder that holds one, or may be the name of one on the Hub.

    Raises:
        NotFoundError: If a folder is named that is not there, or holds no model.
    """
    check_path("model_name_or_path", path)
    folder = Path(path)
    if folder.is_dir() and not any((folder / name).is_file() for name in (CONFIG_NAME, ADAPTER_CONFIG_NAME)):
        inner = sorted(each.parent.name for each in folder.glob(f"*/{CONFIG_NAME}"))
        fix = f"it has the folders {', '.join(inner)} with one" if inner else "trainer.save_model() writes one"
        raise NotFoundError(f"model_name_or_path={path!r} holds no model (there is no {CONFIG_NAME}); {fix}.")


def runs_of(config: InfluenceConfig, num_seeds: int) -> list[InfluenceConfig]:
    """The settings of several runs that differ in their seed, in the folders `OUTPUT_DIR/seed-N`; of one, its own."""
    if num_seeds < 1:
        raise InfluenceError(f"num_seeds={num_seeds}: give at least 1.")
    runs = [copy.copy(config) for _ in range(num_seeds)]
    for number, run in enumerate(runs if num_seeds > 1 else []):
        run.seed = config.seed + number
        run.output_dir = str(Path(config.output_dir) / f"seed-{run.seed}")
    return runs


def training_settings(model: ModelArguments, data: DataArguments, config: InfluenceConfig) -> dict[str, str]:
    """What decides which model training gives, beside the examples."""
    settings = {one.name: getattr(model, one.name) for one in fields(ModelArguments)} | {"max_length": data.max_length}
    settings |= {name: getattr(config, name) for name in TRAINING}
    return {name: str(value) for name, value in settings.items()}


def check_training(config: InfluenceConfig) -> None:
    """Recipes that train again and again must start from what the first training started from.

    Raises:
        ValueError: If `config.do_train` is not set.
    """
    if not config.do_train:
        raise InfluenceError(
            "do_train=False: this recipe trains models from model_name_or_path, the first one among them; give "
            "--do_train and the pretrained encoder. A model that is in output_dir already is not trained again."
        )


def fine_tune(
    model: ModelArguments, data: DataArguments, config: InfluenceConfig, train: Dataset | None = None
) -> float:
    """Trains and saves a model in `config.output_dir`, unless that is done, and returns its validation accuracy.

    Args:
        model ([`ModelArguments`]): What training starts from.
        data ([`DataArguments`]): Training and validation examples.
        config ([`InfluenceConfig`]): How to train; with `overwrite` a finished model is trained again.
        train (`datasets.Dataset`, *optional*): Other training examples than those of the data, tokenized.

    Raises:
        ValueError: If the model there was trained in another way or on other examples.
    """
    path, config = Path(config.output_dir) / ACCURACY, copy.copy(config)
    config.do_train = True
    set_seed(config.seed)
    trainer, examples = make_trainer(model, data, config)
    if train is not None:
        trainer.train_dataset = train
    train_digest = trainer.example_batches(trainer.train_dataset).training_digest
    settings = training_settings(model, data, config) | {"train_dataset": train_digest}
    if config.overwrite or not path.exists():
        trainer.train()
        trainer.save_model()
        wrong = trainer.find_misclassified(examples["validation"])
        found = {"validation": 1 - len(wrong) / len(examples["validation"]), "trained_with": settings}
        if trainer.is_world_process_zero():
            atomic_write(path, lambda file: file.write_text(json.dumps(found, indent=2), "utf-8"))
        trainer.accelerator.wait_for_everyone()
    found = json.loads(path.read_text("utf-8"))
    _check_trained_with(found.get("trained_with", {}), settings, config.output_dir)
    return found["validation"]


def _check_trained_with(there: dict[str, str], wanted: dict[str, str], folder: str) -> None:
    changed = [
        f"{name} was {there.get(name, 'not noted')} and is {wanted.get(name, 'not known')}"
        for name in wanted | there
        if there.get(name) != wanted.get(name)
    ]
    if changed:
        raise InfluenceError(
            f"output_dir={folder!r}: the model that was trained there is another one ({'; '.join(changed)}). Give "
            "another folder, --overwrite to train it again, or take it as it is with --do_train false "
            f"--model_name_or_path {folder}."
        )


def trained(
    model: ModelArguments, data: DataArguments, config: InfluenceConfig, train: Dataset | None = None
) -> tuple[InfluenceTrainer, DatasetDict]:
    """What `make_trainer` returns, with `config.do_train` of a model that was trained first (see `fine_tune`)."""
    if config.do_train:
        fine_tune(model, data, config, train)
        model, config = copy.copy(model), copy.copy(config)
        model.model_name_or_path, config.do_train = config.output_dir, False
    trainer, examples = make_trainer(model, data, config)
    if train is not None:
        trainer.train_dataset = train
    return trainer, examples


def train_again(
    model: ModelArguments, data: DataArguments, config: InfluenceConfig, train: Dataset, repeat: int
) -> InfluenceTrainer:
    """Trains a model on other training examples as `config` says; leaves nothing on disk.

    Args:
        model ([`ModelArguments`]): What training starts from.
        data ([`DataArguments`]): Whose labels the model predicts.
        config ([`InfluenceConfig`]): How to train.
        train (`datasets.Dataset`): Tokenized training examples.
        repeat (`int`): Models of several repeats differ in their seed.
    """
    config = copy.copy(config)
    config.seed, config.do_train, config.checkpoints = 1000 + config.seed + repeat, True, ["final"]
    config.disable_tqdm, config.logging_strategy, config.save_strategy = True, "no", "no"
    set_seed(config.seed)
    with TemporaryDirectory() as config.output_dir:
        trainer, _ = make_trainer(model, data, config)
        trainer.train_dataset = train
        trainer.train()
    return trainer
