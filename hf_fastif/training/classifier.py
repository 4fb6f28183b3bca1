"""Read the examples of a classifier, and load it: the model that recipes work on unless they name another."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

from datasets import DatasetDict
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollator,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import ADAPTER_CONFIG_NAME, CONFIG_NAME

from hf_fastif.config import InfluenceConfig
from hf_fastif.errors import NotFoundError, check_path
from hf_fastif.model import freeze
from hf_fastif.training.corpora.encoder import default_encoder
from hf_fastif.training.datasets import DataArguments, load_examples, tokenize


@dataclass
class ModelArguments:
    """Classifier that a recipe works on."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Model on the Hub, or its folder; None uses the packaged MiniLM encoder."}
    )
    num_frozen_layers: int = field(
        default=3, metadata={"help": "Freeze the embeddings and this many first layers; -1 freezes nothing."}
    )

    def read_examples(self, data: DataArguments, config: InfluenceConfig) -> DatasetDict:
        """Read and tokenize the splits `train` and `validation`.

        Args:
            data ([`DataArguments`]): What to read.
            config ([`InfluenceConfig`]): With `do_train` the model need not know the labels of the data yet.

        Raises:
            InfluenceError: If there is no such model or file, or the labels do not fit the model.
        """
        path = self._checked_path()
        examples = load_examples(data, AutoConfig.from_pretrained(path).id2label, new_head=config.do_train)
        with config.main_process_first(desc="tokenizing"):
            return tokenize(examples, AutoTokenizer.from_pretrained(path), data)

    def load(self, examples: DatasetDict) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Load the model with a head for the labels of some examples, freeze its first layers, load its tokenizer.

        Args:
            examples (`datasets.DatasetDict`): What `read_examples` returned. A head that the model lacks is
                initialized at random.
        """
        path, names = self._checked_path(), examples["train"].features["label"].names
        classifier = AutoModelForSequenceClassification.from_pretrained(
            path, num_labels=len(names), id2label=dict(enumerate(names)), label2id={n: i for i, n in enumerate(names)}
        )
        if self.num_frozen_layers >= 0:
            freeze(classifier, self.num_frozen_layers)
        return classifier, AutoTokenizer.from_pretrained(path)

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> DataCollator | None:
        """Return what makes batches of the examples; None leaves the choice to `Trainer`."""
        return None

    def trained_in(self, folder: str) -> Self:
        """Return the arguments of the model that was trained from this one and saved in a folder."""
        return replace(self, model_name_or_path=folder)

    def retrained_like(self, folder: str) -> Self:
        """Return the arguments to train on other examples, tokenized as for the model in a folder."""
        return self

    def settings(self) -> dict[str, Any]:
        """Return the arguments that determine the model that training starts from."""
        return {one.name: getattr(self, one.name) for one in fields(ModelArguments)}

    def _checked_path(self) -> str:
        path = self.model_name_or_path or default_encoder()
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
