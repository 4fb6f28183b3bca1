"""Influence in a script of trl's `SFTTrainer`, with and without adapters; prints what the test compares.

python run_sft.py OUTPUT_DIR
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

import numpy as np  # noqa: E402
from datasets import Dataset  # noqa: E402
from peft import LoraConfig  # noqa: E402
from tiny import VOCABULARY, tiny_tokenizer  # noqa: E402
from tiny_heads import CASES  # noqa: E402
from trl import SFTConfig, SFTTrainer  # noqa: E402

from hf_fastif import InfluenceConfig, InfluenceMixin


@dataclass
class InfluenceSFTConfig(SFTConfig, InfluenceConfig):
    """Settings of both."""


class InfluenceSFTTrainer(InfluenceMixin, SFTTrainer):
    """Both trainers."""


def texts(size: int, seed: int) -> Dataset:
    random = np.random.default_rng(seed)

    def some(count):
        return " ".join(random.choice(VOCABULARY[2:12], count))

    return Dataset.from_list([{"prompt": some(3) + " ", "completion": some(2 + i % 3)} for i in range(size)])


def main(folder: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = "w0"
    for name, adapters in (("full", None), ("lora", LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))):
        args = InfluenceSFTConfig(
            f"{folder}/{name}",
            max_steps=2,
            learning_rate=0.1,
            bf16=False,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            solver="identity",
            checkpoints="final",
            save_strategy="no",
        )
        trainer = InfluenceSFTTrainer(
            CASES["causal-llama"].make(),
            args,
            train_dataset=texts(8, 0),
            eval_dataset=texts(2, 1),
            processing_class=tokenizer,
            peft_config=adapters,
        )
        trainer.train()
        labels = trainer.train_dataset[0]["labels"]
        with trainer.session() as session:
            rows = session.examples("train_dataset", trainer.train_dataset)
            losses = session.objective.losses(session.objective.theta, rows.take(range(8))).tolist()
            alone = [float(trainer.compute_loss(trainer.model, dict(rows.take([row])))) for row in range(8)]
        counts = [sum(label != -100 for label in row["labels"][1:]) for row in trainer.train_dataset]
        result = trainer.find_influential(trainer.eval_dataset, num_examples=2)
        found = {
            "name": name,
            "hidden": labels.count(-100),
            "losses": losses,
            "alone": (np.array(alone) * counts).tolist(),
            "parameters": result.summary.num_parameters,
            "adapters": sum(p.numel() for n, p in trainer.model.named_parameters() if "lora" in n),
            "helpful": result.helpful(0)["completion"][:],
            "loss_after": trainer.evaluate()["eval_loss"],
        }
        print("FOUND", json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
