"""Which run led to a model: its early moments are found after any training, or a line says why not."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
from tiny import tiny_data, tiny_model, tiny_tokenizer, tiny_trainer
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_fastif import InfluenceConfig, InfluenceTrainer
from hf_fastif.checkpoints import find_checkpoints, has_same_parameters
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
    """Copies the model after each step, and interrupts training where that is wanted."""

    def __init__(self, stop_at=None):
        self.stop_at, self.states = stop_at, {}

    def on_step_end(self, args, state, control, model=None, **kwargs):
        parameters = {name.removeprefix("_orig_mod."): p.detach() for name, p in trained_state(model).items()}
        self.states[state.global_step] = copy.deepcopy(parameters)
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


def moments(folder, model, caplog):
    """The checkpoints at which influence is taken of a model, and the line that says so."""
    trainer = ours(folder, model)
    caplog.clear()
    with trainer.session() as session:
        members = session.checkpoints.members
    (line,) = [record.message for record in caplog.records if "final weights" in record.message]
    return members, line


def check_final(folder, model, caplog, reason):
    """The final weights are used, and the line begins with the reason."""
    (member,), line = moments(folder, model, caplog)
    assert member.path is None and line.startswith(f"{reason}: using the final weights. Early checkpoints")
    return line


def check_moments(folder, model, snapshot, caplog, steps):
    members, line = moments(folder, model, caplog)
    assert [member.step for member in members] == steps
    assert all(has_same_parameters(member, snapshot.states[member.step]) for member in members)
    said = "Using the checkpoint " if len(steps) == 1 else "Summing influence over the checkpoints "
    assert line.startswith(said + ", ".join(member.name for member in members) + ", before training examples are")
    return members


BEST = {"load_best_model_at_end": True, "metric_for_best_model": "loss"}
BY_STEPS = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 2, "save_steps": 2}
PATTERNS = {
    "best by steps": (BEST | BY_STEPS, [2, 3, 6]),
    "best by epochs": (BEST | {"eval_strategy": "epoch", "save_strategy": "epoch", "save_total_limit": 2}, [3, 6]),
    "steps": ({"save_strategy": "steps", "save_steps": 4, "save_total_limit": 1}, [6]),
    "nothing saved": ({}, [2, 3, 6]),
    "more epochs": ({"num_train_epochs": 5, "save_strategy": "epoch", "save_total_limit": 3}, [2, 5, 10]),
    "compiled": ({"torch_compile": True, "torch_compile_backend": "eager"}, [2, 3, 6]),
    "logged": ({"logging_steps": 1, "save_strategy": "epoch"}, [2, 3, 6]),
    "two moments in a step": ({"max_steps": 4}, [1, 3]),
    "two steps": ({"max_steps": 2}, [1]),
}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_our_trainer_keeps_the_early_moments_alone(tmp_path, caplog, pattern):
    snapshot, (settings, steps) = Snapshot(), PATTERNS[pattern]
    trainer = ours(tmp_path, callbacks=[snapshot], **settings)
    trainer.train()
    assert [member.step for member in light_checkpoints(str(tmp_path))] == steps
    count = {"two moments in a step": "2 steps", "two steps": "step 1"}.get(pattern, "3 steps")
    limit = f" (at most {settings['save_total_limit']})" if "save_total_limit" in settings else ""
    assert f"Saving the trained parameters at {count}{limit} to {tmp_path}" in caplog.text
    assert "MB each); checkpoints='final' saves none" in caplog.text
    check_moments(tmp_path, trainer.model, snapshot, caplog, steps)

    trainer.save_model(str(tmp_path / "saved"))
    loaded = type(tiny_model()).from_pretrained(tmp_path / "saved")
    for (_, p), (_, q) in zip(loaded.named_parameters(), tiny_model().named_parameters(), strict=True):
        p.requires_grad_(q.requires_grad)
    check_moments(tmp_path, loaded, snapshot, caplog, steps)


def test_a_single_step_is_the_model_itself(tmp_path, caplog):
    trainer = ours(tmp_path, max_steps=1)
    trainer.train()
    near = f"No training checkpoint near a sixth, a third or two thirds of training in {tmp_path}"
    line = check_final(tmp_path, trainer.model, caplog, f"{near} (only at epoch 0.3333)")
    assert "; train with InfluenceTrainer, for two steps or more." in line


def test_interrupted_within_an_epoch_and_resumed(tmp_path, caplog):
    snapshot = Snapshot(stop_at=5)
    trainer = ours(tmp_path, callbacks=[snapshot], save_strategy="steps", save_steps=4)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    check_moments(tmp_path, trainer.model, snapshot, caplog, [2, 3])
    snapshot.stop_at = None
    again = ours(tmp_path, callbacks=[snapshot], save_strategy="steps", save_steps=4)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 9
    check_moments(tmp_path, again.model, snapshot, caplog, [2, 3, 6])


def test_a_model_from_the_middle_of_a_run(tmp_path, caplog):
    snapshot = Snapshot()
    trainer = ours(tmp_path, callbacks=[snapshot])
    trainer.train()
    trainer.model.load_state_dict(snapshot.states[6], strict=False)
    check_moments(tmp_path, trainer.model, snapshot, caplog, [2, 3])  # not the model itself, the last of training


def test_training_again_begins_a_new_run(tmp_path, caplog):
    trainer = ours(tmp_path)
    trainer.train()
    snapshot = Snapshot()
    trainer.add_callback(snapshot)
    trainer.train()
    check_moments(tmp_path, trainer.model, snapshot, caplog, [2, 3, 6])


@pytest.mark.parametrize(("first", "second", "steps"), [(plain, ours, [3, 6]), (ours, plain, [2, 3, 6])])
def test_a_run_that_another_trainer_resumed(tmp_path, caplog, first, second, steps):
    snapshot = Snapshot(stop_at=7)
    with pytest.raises(KeyboardInterrupt):
        first(tmp_path, callbacks=[snapshot], save_strategy="epoch").train()
    trainer = second(tmp_path, save_strategy="epoch")
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 9
    check_moments(tmp_path, trainer.model, snapshot, caplog, steps)


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"save_strategy": "steps", "save_steps": 3}, [3, 6]),
        ({"save_strategy": "steps", "save_steps": 4}, [4, 8]),
        ({"save_strategy": "epoch", "save_total_limit": 2}, [6]),
        ({"save_strategy": "steps", "save_steps": 1}, [2, 3, 6]),
    ],
)
def test_folders_of_trainer_near_the_early_moments(tmp_path, caplog, settings, steps):
    snapshot = Snapshot()
    trainer = plain(tmp_path, callbacks=[snapshot], **settings)
    trainer.train()
    for member in check_moments(tmp_path, trainer.model, snapshot, caplog, steps):
        assert member.path == tmp_path / f"checkpoint-{member.step}"


@pytest.mark.parametrize(
    ("settings", "epochs"),
    [
        ({"save_strategy": "steps", "save_steps": 9}, "3"),
        ({"save_strategy": "epoch", "save_total_limit": 1}, "3"),
        ({"save_strategy": "steps", "save_steps": 2, "max_steps": 2}, "0.6667"),
        ({"save_strategy": "steps", "save_steps": 1}, "0.3333, 3"),
    ],
)
def test_folders_of_trainer_without_these_moments(tmp_path, caplog, settings, epochs):
    trainer = plain(tmp_path, **settings)
    trainer.train()
    if settings.get("save_steps") == 1:
        for step in range(2, 9):
            shutil.rmtree(tmp_path / f"checkpoint-{step}")
    near = f"No training checkpoint near a sixth, a third or two thirds of training in {tmp_path}"
    for _ in range(2):  # it is said each time
        line = check_final(tmp_path, trainer.model, caplog, f"{near} (only at epoch {epochs})")
        advice = f"pass checkpoints=['{tmp_path}/checkpoint-1'] for the earliest."
        assert line.endswith(
            advice if epochs == "0.3333, 3" else "train with InfluenceTrainer, for two steps or more."
        )


def test_several_runs_in_one_folder(tmp_path, caplog):
    first = Snapshot()
    plain(tmp_path, callbacks=[first], save_strategy="epoch").train()  # checkpoint-3, -6, -9
    longer = Snapshot()
    second = plain(tmp_path, callbacks=[longer], save_strategy="epoch", per_device_train_batch_size=4, seed=1)
    second.train()  # checkpoint-6, -12, -18; of the first run -3 and -9 are left
    check_moments(tmp_path, second.model, longer, caplog, [6, 12])
    leftover = type(second.model).from_pretrained(tmp_path / "checkpoint-9")
    for (_, p), (_, q) in zip(leftover.named_parameters(), second.model.named_parameters(), strict=True):
        p.requires_grad_(q.requires_grad)
    check_moments(tmp_path, leftover, first, caplog, [3])
    shutil.rmtree(tmp_path / "checkpoint-3")
    (member,), line = moments(tmp_path, leftover, caplog)
    assert member.path is None and "only at epoch 3)" in line


def test_another_trainer_in_the_folder_of_ours(tmp_path, caplog):
    ours(tmp_path).train()
    snapshot = Snapshot()
    other = plain(tmp_path, tiny_model(frozen=0), [snapshot], save_strategy="epoch")
    other.train()
    members = check_moments(tmp_path, other.model, snapshot, caplog, [3, 6])
    assert [member.path for member in members] == [tmp_path / "checkpoint-3", tmp_path / "checkpoint-6"]


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
    ends, _ = find_checkpoints(["epochs"], str(tmp_path), trainer.model)
    assert [(member.step, member.epoch) for member in ends] == [(2, 1.0), (4, 2.0), (6, 3.0)]
    members, _ = moments(tmp_path, trainer.model, caplog)
    assert [(member.step, member.epoch) for member in members] == [(1, 0.8), (2, 1.0), (4, 2.0)]
    shutil.rmtree(tmp_path / "checkpoint-2")
    for light in light_checkpoints(str(tmp_path)):
        light.path.unlink()
    members, _ = moments(tmp_path, trainer.model, caplog)
    assert [(member.step, member.epoch) for member in members] == [(1, 0.8), (4, 2.0)]


@pytest.mark.parametrize("change", [{"max_grad_norm": 0.01}, {"label_smoothing_factor": 0.4}])
def test_another_trainer_goes_on_from_within_the_first_epoch(tmp_path, caplog, change):
    ours(tmp_path, save_strategy="steps", save_steps=2).train()
    snapshot = Snapshot()
    other = plain(tmp_path, callbacks=[snapshot], save_strategy="steps", save_steps=2, **change)
    other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    check_moments(tmp_path, other.model, snapshot, caplog, [4, 6])  # of the other trainer
    for step in (4, 6, 8):
        shutil.rmtree(tmp_path / f"checkpoint-{step}")
    (member,), line = moments(tmp_path, other.model, caplog)
    assert member.path is None and "No training checkpoint near a sixth, a third or two thirds of training" in line


@pytest.mark.parametrize(
    ("change", "steps"), [({"learning_rate": 5e-2}, [6]), ({"save_strategy": "steps", "save_steps": 9}, [None])]
)
def test_two_runs_without_names_are_told_apart_by_their_settings(tmp_path, caplog, change, steps):
    plain(tmp_path, save_strategy="epoch").train()
    shutil.copytree(tmp_path / "checkpoint-3", tmp_path / "of-the-first-run")
    second = plain(tmp_path, **{"save_strategy": "epoch"} | change)
    second.train()
    shutil.rmtree(tmp_path / "checkpoint-3")
    (tmp_path / "of-the-first-run").rename(tmp_path / "checkpoint-3")
    members, _ = moments(tmp_path, second.model, caplog)
    assert [member.step for member in members] == steps


def test_folders_that_do_not_name_their_run_are_said_to(tmp_path, caplog):
    trainer = plain(tmp_path, save_strategy="epoch")
    trainer.train()
    assert moments(tmp_path, trainer.model, caplog)[1].endswith(
        "Its folders do not name the run, but steps, logs and settings match."
    )


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
