"""Which run led to a model: the end of its first epoch is found after any training, or a line says why not."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
from tiny import tiny_data, tiny_model, tiny_tokenizer, tiny_trainer
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_fastif import InfluenceConfig, InfluenceTrainer
from hf_fastif.checkpoints import has_same_parameters
from hf_fastif.checkpoints.runs import light_checkpoints
from hf_fastif.errors import NotFoundError
from hf_fastif.model.parameters import trained_state


TRAIN, QUERIES = tiny_data(24), tiny_data(2, seed=1)  # 3 steps an epoch
TRAINING = {
    "num_train_epochs": 3,
    "per_device_train_batch_size": 8,
    "learning_rate": 1e-2,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
}


class Snapshot(TrainerCallback):
    """Copies the model at the end of the first epoch, and interrupts training where that is wanted."""

    def __init__(self, stop_at=None):
        self.stop_at, self.first_epoch = stop_at, None

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == 3 and self.first_epoch is None:
            self.first_epoch = copy.deepcopy({name: p.detach() for name, p in trained_state(model).items()})
        if state.global_step == self.stop_at:
            raise KeyboardInterrupt


def ours(folder, model=None, callbacks=(), **settings):
    args = InfluenceConfig(str(folder), **{"solver": "identity"} | TRAINING | settings)
    data = {"train_dataset": TRAIN, "eval_dataset": QUERIES, "processing_class": tiny_tokenizer()}
    return InfluenceTrainer(tiny_model() if model is None else model, args, callbacks=list(callbacks), **data)


def plain(folder, model=None, callbacks=(), **settings):
    args = TrainingArguments(str(folder), **TRAINING | settings)
    model = tiny_model() if model is None else model
    tokenizer = tiny_tokenizer()
    return Trainer(model, args, train_dataset=TRAIN, processing_class=tokenizer, callbacks=list(callbacks))


def moment(folder, model, caplog):
    """The moment at which influence is taken of a model, and the line that says so."""
    trainer = ours(folder, model)
    caplog.clear()
    with trainer.session() as session:
        (member,) = session.checkpoints.members
    (line,) = [record.message for record in caplog.records if "final weights" in record.message]
    return member, line


def check_first_epoch(folder, model, snapshot, caplog):
    member, line = moment(folder, model, caplog)
    assert "at the end of the first epoch" in line
    assert member.step == 3 and has_same_parameters(member, snapshot.first_epoch)


BEST = {"load_best_model_at_end": True, "metric_for_best_model": "loss"}
PATTERNS = {
    "best by steps": BEST | {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 2, "save_steps": 2},
    "best by epochs": BEST | {"eval_strategy": "epoch", "save_strategy": "epoch", "save_total_limit": 1},
    "steps": {"save_strategy": "steps", "save_steps": 4, "save_total_limit": 1},
    "nothing saved": {},
    "more epochs": {"num_train_epochs": 5, "save_strategy": "epoch", "save_total_limit": 2},
    "compiled": {"torch_compile": True, "torch_compile_backend": "eager"},
    "logged": {"logging_steps": 1, "save_strategy": "epoch"},
}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_our_trainer_keeps_the_end_of_the_first_epoch_alone(tmp_path, caplog, pattern):
    snapshot = Snapshot()
    trainer = ours(tmp_path, callbacks=[snapshot], **PATTERNS[pattern])
    trainer.train()
    assert [member.step for member in light_checkpoints(str(tmp_path))] == [3]
    assert (
        "parameters at the end of the first epoch to" in caplog.text and "MB each); checkpoints='final'" in caplog.text
    )
    snapshot.first_epoch = {name.removeprefix("_orig_mod."): p for name, p in snapshot.first_epoch.items()}
    check_first_epoch(tmp_path, trainer.model, snapshot, caplog)

    trainer.save_model(str(tmp_path / "saved"))
    loaded = type(tiny_model()).from_pretrained(tmp_path / "saved")
    for (_, p), (_, q) in zip(loaded.named_parameters(), tiny_model().named_parameters(), strict=True):
        p.requires_grad_(q.requires_grad)
    check_first_epoch(tmp_path, loaded, snapshot, caplog)


def test_interrupted_within_an_epoch_and_resumed(tmp_path, caplog):
    snapshot = Snapshot(stop_at=5)
    trainer = ours(tmp_path, callbacks=[snapshot], save_strategy="steps", save_steps=4)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    check_first_epoch(tmp_path, trainer.model, snapshot, caplog)
    again = ours(tmp_path, save_strategy="steps", save_steps=4)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 9
    check_first_epoch(tmp_path, again.model, snapshot, caplog)


def test_training_again_begins_a_new_run(tmp_path, caplog):
    trainer = ours(tmp_path)
    trainer.train()
    snapshot = Snapshot()
    trainer.add_callback(snapshot)
    trainer.train()
    check_first_epoch(tmp_path, trainer.model, snapshot, caplog)


@pytest.mark.parametrize(("first", "second"), [(plain, ours), (ours, plain)])
def test_a_run_that_another_trainer_resumed(tmp_path, caplog, first, second):
    snapshot = Snapshot(stop_at=7)
    with pytest.raises(KeyboardInterrupt):
        first(tmp_path, callbacks=[snapshot], save_strategy="epoch").train()
    trainer = second(tmp_path, save_strategy="epoch")
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 9
    check_first_epoch(tmp_path, trainer.model, snapshot, caplog)


def test_folders_of_trainer_that_end_the_first_epoch(tmp_path, caplog):
    snapshot = Snapshot()
    trainer = plain(tmp_path, callbacks=[snapshot], save_strategy="steps", save_steps=3)
    trainer.train()
    check_first_epoch(tmp_path, trainer.model, snapshot, caplog)


@pytest.mark.parametrize(
    ("settings", "epochs"),
    [
        ({"save_strategy": "steps", "save_steps": 4}, "1.333, 2.667, 3"),
        ({"save_strategy": "epoch", "save_total_limit": 2}, "2, 3"),
        ({"save_strategy": "steps", "save_steps": 2, "max_steps": 2}, "0.6667"),
    ],
)
def test_folders_of_trainer_without_that_moment(tmp_path, caplog, settings, epochs):
    trainer = plain(tmp_path, **settings)
    trainer.train()
    for _ in range(2):  # it is said each time
        member, line = moment(tmp_path, trainer.model, caplog)
        assert member.path is None
        assert f"No training checkpoint at the end of the first epoch in {tmp_path} (only at epoch {epochs})" in line
        assert f"checkpoints=['{tmp_path}/checkpoint-" in line


def test_several_runs_in_one_folder(tmp_path, caplog):
    plain(tmp_path, save_strategy="epoch").train()  # checkpoint-3, -6, -9
    longer = Snapshot()
    second = plain(tmp_path, callbacks=[longer], save_strategy="epoch", per_device_train_batch_size=4, seed=1)
    second.train()  # checkpoint-6, -12, -18; of the first run -3 and -9 are left
    member, _ = moment(tmp_path, second.model, caplog)
    assert member.path == tmp_path / "checkpoint-6"
    leftover = type(second.model).from_pretrained(tmp_path / "checkpoint-9")
    for (_, p), (_, q) in zip(leftover.named_parameters(), second.model.named_parameters(), strict=True):
        p.requires_grad_(q.requires_grad)
    member, _ = moment(tmp_path, leftover, caplog)
    assert member.path == tmp_path / "checkpoint-3"
    shutil.rmtree(tmp_path / "checkpoint-3")
    member, line = moment(tmp_path, leftover, caplog)
    assert member.path is None and "only at epoch 3)" in line


def test_another_trainer_in_the_folder_of_ours(tmp_path, caplog):
    ours(tmp_path).train()
    snapshot = Snapshot()
    other = plain(tmp_path, tiny_model(frozen=0), [snapshot], save_strategy="epoch")
    other.train()
    member, _ = moment(tmp_path, other.model, caplog)
    assert member.path == tmp_path / "checkpoint-3" and has_same_parameters(member, snapshot.first_epoch)


def test_a_shorter_run_resumed_in_a_folder(tmp_path):
    ours(tmp_path, checkpoints="epochs", save_strategy="epoch").train()
    again = ours(tmp_path, checkpoints="epochs", num_train_epochs=2, learning_rate=1e-3)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    checkpoints = again.find_influential(QUERIES).summary.checkpoints
    assert [(one["step"], one["epoch"]) for one in checkpoints] == [(3, 1.0), (6, 2.0)]


def test_edited_weights_are_of_no_run(tmp_path, caplog):
    trainer = ours(tmp_path)
    trainer.train()
    trainer.model.classifier.bias.data += 0.1
    for _ in range(2):
        caplog.clear()
        assert trainer.find_influential(QUERIES).summary.checkpoints[0]["name"] == "final"
        assert "The model's weights match no training run" in caplog.text


def test_one_epoch_is_the_model_itself(tmp_path, caplog):
    trainer = ours(tmp_path, num_train_epochs=1)
    trainer.train()
    member, line = moment(tmp_path, trainer.model, caplog)
    assert member.path is None and "which are those at the end of the first epoch" in line


def test_never_more_than_save_total_limit(tmp_path, caplog):
    trainer = ours(tmp_path, checkpoints="epochs", save_total_limit=2)
    trainer.train()
    assert [member.step for member in light_checkpoints(str(tmp_path))] == [6, 9]
    assert "at the end of every epoch (at most 2) to" in caplog.text
    caplog.clear()
    assert [one["epoch"] for one in trainer.find_influential(QUERIES).summary.checkpoints] == [2.0, 3.0]
    assert "over the ends of epochs 2, 3: no others were saved" in caplog.text


def test_final_keeps_nothing(tmp_path):
    ours(tmp_path, checkpoints="final").train()
    assert light_checkpoints(str(tmp_path)) == []


def test_frozen_or_cut_down_after_training_names_the_way_out(tmp_path):
    trainer = ours(tmp_path, tiny_model(frozen=0))
    trainer.train()
    model = copy.deepcopy(trainer.model)
    model.bert.encoder.layer[0].requires_grad_(False)
    with pytest.raises(ValueError, match="where it is frozen; only trained.*requires_grad_.*checkpoints='final'"):
        ours(tmp_path, model).compute_influence(QUERIES)
    part = tiny_trainer(tmp_path, trainer.model, TRAIN.select(range(9)), solver="identity", **TRAINING)
    with pytest.raises(ValueError, match="was trained on rows with.*candidates=.*checkpoints='final'"):
        part.compute_influence(QUERIES)
    unfrozen = copy.deepcopy(trainer.model).requires_grad_(True)
    with pytest.raises(ValueError, match="which was frozen in its run and is trained now"):
        ours(tmp_path, unfrozen).compute_influence(QUERIES)
    other_base = copy.deepcopy(trainer.model)
    path = light_checkpoints(str(tmp_path))[0].path
    other_base.bert.embeddings.word_embeddings.weight.data[5] += 1
    with pytest.raises(
        ValueError, match="was trained with frozen parameters of the digest [0-9a-f]+, but the model's have"
    ):
        ours(tmp_path, other_base, checkpoints=[str(path)]).compute_influence(QUERIES)


def test_a_checkpoint_of_another_loss_or_preprocessing_is_refused(tmp_path):
    trainer = ours(tmp_path)
    trainer.train()
    with pytest.raises(ValueError, match="was trained with the loss .*label_smoothing_factor of that run"):
        ours(tmp_path, trainer.model, label_smoothing_factor=0.1).compute_influence(QUERIES)
    other = ours(tmp_path, trainer.model)
    collate = other.data_collator
    other.data_collator = lambda rows: {**(batch := collate(rows)), "input_ids": batch["input_ids"].clamp_max(40)}
    with pytest.raises(ValueError, match="was trained on rows with .*their preprocessing differ"):
        other.compute_influence(QUERIES)


def test_training_leaves_the_model_that_trainer_would_leave(tmp_path):
    states = []
    for kind in (ours, plain):
        trainer = kind(tmp_path / kind.__name__)
        trainer.train()
        states.append(trainer.model.state_dict())
    assert all(torch.equal(values, states[1][name]) for name, values in states[0].items())


@pytest.mark.parametrize("kind", [ours, plain])
def test_the_short_last_step_of_an_epoch_under_accumulation(tmp_path, caplog, kind):
    settings = {"per_device_train_batch_size": 5, "gradient_accumulation_steps": 4}  # ends at .8, 1.0, 1.8, ...
    trainer = kind(tmp_path, save_strategy="steps", save_steps=1, **settings)
    trainer.train()
    member, line = moment(tmp_path, trainer.model, caplog)
    assert (member.step, member.epoch) == (2, 1.0) and "at the end of the first epoch" in line
    shutil.rmtree(tmp_path / "checkpoint-2")
    for light in light_checkpoints(str(tmp_path)):
        light.path.unlink()
    member, line = moment(tmp_path, trainer.model, caplog)
    assert member.path is None and "only at epoch 0.8, 1.8, 2" in line


@pytest.mark.parametrize("change", [{"max_grad_norm": 0.01}, {"label_smoothing_factor": 0.4}])
def test_another_trainer_goes_on_from_within_the_first_epoch(tmp_path, caplog, change):
    ours(tmp_path, save_strategy="steps", save_steps=2).train()
    other = plain(tmp_path, save_strategy="steps", save_steps=100, **change)
    other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    member, line = moment(tmp_path, other.model, caplog)
    assert member.path is None and "No training checkpoint at the end of the first epoch" in line


@pytest.mark.parametrize("change", [{"learning_rate": 5e-2}, {"save_strategy": "steps", "save_steps": 9}])
def test_two_runs_without_names_are_told_apart_by_their_settings(tmp_path, caplog, change):
    plain(tmp_path, save_strategy="epoch").train()
    shutil.copytree(tmp_path / "checkpoint-3", tmp_path / "of-the-first-run")
    second = plain(tmp_path, **{"save_strategy": "epoch"} | change)
    second.train()
    shutil.rmtree(tmp_path / "checkpoint-3")
    (tmp_path / "of-the-first-run").rename(tmp_path / "checkpoint-3")
    member, _ = moment(tmp_path, second.model, caplog)
    assert member.path is None


def test_folders_that_do_not_name_their_run_are_said_to(tmp_path, caplog):
    trainer = plain(tmp_path, save_strategy="epoch")
    trainer.train()
    assert "Its folder does not name the run" in moment(tmp_path, trainer.model, caplog)[1]


def test_a_word_that_was_mistyped(tmp_path):
    with pytest.raises(ValueError, match="checkpoints='finla' is neither a path.*did you mean 'final'"):
        ours(tmp_path, checkpoints="finla").compute_influence(QUERIES)


@pytest.mark.parametrize("name", ["zebra", "zebra/stripes@v1", "not an id"])
def test_a_name_that_is_neither_a_path_nor_on_the_hub(tmp_path, name):
    trainer = plain(tmp_path, save_strategy="epoch")
    trainer.train()
    with pytest.raises(
        NotFoundError, match=f"checkpoints='{name}' is neither a path nor a model.*give one of auto, fin"
    ):
        ours(tmp_path, trainer.model, checkpoints=[name]).compute_influence(QUERIES)
