"""Adapters of PEFT: attributed as any parameters are, and no others."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from tiny import tiny_data, tiny_model, tiny_tokenizer, tiny_trainer
from tiny_heads import CASES, HeadCase, gradients_and_curvature
from transformers import TrainerCallback

from hf_fastif.curvature import GaussNewton
from hf_fastif.model import Objective


peft = pytest.importorskip("peft", reason="adapters need peft")


pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")  # peft calls what transformers renames
CASE = CASES["causal-llama"]
TRAIN, QUERIES = CASE.data(6), CASE.data(2, seed=1)


def with_adapters(model, **settings):
    torch.manual_seed(2)
    defaults = {"r": 2, "target_modules": ["q_proj", "v_proj"], "lora_dropout": 0.5}
    adapted = peft.get_peft_model(copy.deepcopy(model).requires_grad_(True), peft.LoraConfig(**defaults | settings))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:  # which starts at zero
            parameter.data.normal_(std=0.5)
    return adapted.double()


def trainer_of(folder, model, **settings):
    trainer = CASE.trainer(folder, TRAIN, **{"solver": "exact", "damping": 0.3} | settings)
    trainer.model = model
    return trainer


def test_lora_is_full_attribution_restricted_to_the_adapters(tmp_path):
    """W + s B A as a full weight: the chain rule takes its gradients G to those of A and B."""
    adapted = with_adapters(CASE.model)
    rank = adapted.peft_config["default"].r
    scaling = adapted.peft_config["default"].lora_alpha / rank
    merged = copy.deepcopy(adapted).merge_and_unload()
    for name, parameter in merged.named_parameters():
        parameter.requires_grad_("q_proj" in name or "v_proj" in name)
    full = trainer_of(tmp_path / "full", merged, solver="identity")
    gradients = full.compute_s_test(TRAIN).vectors  # of the identity they are the gradients
    with full.session() as session:
        partials = session.objective.space.split(gradients)
    expected = []
    for name, grads in partials.items():
        own = adapted.get_submodule("base_model.model." + name.removesuffix(".weight"))
        a, b = own.lora_A["default"].weight, own.lora_B["default"].weight
        assert a.shape[0] == rank
        expected += [scaling * (b.T @ grads).flatten(1), scaling * (grads @ a.T).flatten(1)]

    found = trainer_of(tmp_path / "lora", adapted, solver="identity").compute_s_test(TRAIN).vectors

    torch.testing.assert_close(found, torch.cat(expected, dim=1).detach(), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("scoring", ["forward_mode", "gradients"])
def test_s_test_over_adapters_is_the_exact_inverse(scoring, tmp_path):
    adapted = with_adapters(CASE.model).eval()
    trainer = trainer_of(tmp_path, adapted, scoring=scoring)
    case = HeadCase(lambda: adapted, CASE.rows, CASE.collator, CASE.outputs, CASE.loss)
    case.__dict__["model"] = adapted
    gradients, matrix = gradients_and_curvature(case, trainer, TRAIN)
    wanted, _ = gradients_and_curvature(case, trainer, QUERIES)
    system = matrix + 0.3 * torch.eye(len(matrix)).to(matrix)
    expected = -(torch.linalg.solve(system, wanted.T).T @ gradients.T).detach()

    adapted.train()  # dropout on
    np.testing.assert_allclose(trainer.compute_influence(QUERIES), expected, rtol=1e-3, atol=1e-4)
    assert adapted.training


def test_adapters_are_whole_in_ekfac_and_sketches(tmp_path):
    trainer = trainer_of(tmp_path, with_adapters(CASE.model), solver="ekfac", index_size=16)
    diagnosis = trainer.diagnose(QUERIES)
    assert diagnosis.in_blocks == diagnosis.captured == 1
    trainer.build_index()
    scan = trainer.compute_influence(QUERIES)
    found = trainer.find_influential(QUERIES, num_examples=None, num_neighbors=len(TRAIN)).influences
    for row in found:
        assert row["influence"] == pytest.approx(scan[row["query_index"], row["train_index"]], rel=1e-3)


def test_checkpointed_training_of_adapters_leaves_forward_mode_alone(tmp_path):
    adapted = with_adapters(CASE.model)
    expected = trainer_of(tmp_path / "one", adapted).compute_influence(QUERIES)
    adapted.enable_input_require_grads()  # as Trainer does for checkpointing
    found = trainer_of(tmp_path / "two", adapted).compute_influence(QUERIES)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert adapted.get_input_embeddings()(torch.tensor([1])).requires_grad


def test_merged_adapters_are_refused(tmp_path):
    adapted = with_adapters(CASE.model)
    adapted.merge_adapter()
    with pytest.raises(ValueError, match="its adapters are merged.*unmerge_adapter"):
        trainer_of(tmp_path, adapted).compute_influence(QUERIES)


def test_a_head_that_is_saved_with_the_adapters_is_attributed(tmp_path):
    model = tiny_model("llama", frozen=None)
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["v_proj"]))
    trainer = tiny_trainer(tmp_path, adapted, tiny_data(10), solver="sdca", damping=0.5, sdca_visits=20)
    s_test = trainer.compute_s_test(tiny_data(2, seed=1))
    names = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert any("modules_to_save" in name for name in names) and len(names) == 5
    assert s_test.vectors.shape[1] == sum(adapted.get_parameter(name).numel() for name in names)
    trainer.args.index_features = "pooled"
    trainer.build_index()


@pytest.mark.parametrize("kept_by", ["ours", "folders"])
@pytest.mark.parametrize("more", [{}, {"modules_to_save": ["lm_head"]}])
def test_the_early_moments_of_adapters_are_found(tmp_path, caplog, kept_by, more):
    """In a light checkpoint, or in folders of an ordinary run, whose files leave out the adapter's name."""
    adapted = with_adapters(CASE.model, **more).float()
    settings = {"num_train_epochs": 2, "per_device_train_batch_size": 2, "learning_rate": 1e-2, "solver": "identity"}
    checkpoints = "auto" if kept_by == "ours" else "final"
    run = CASE.trainer(tmp_path, TRAIN, checkpoints=checkpoints, save_strategy="epoch", **settings)
    trainer = type(run)(adapted, run.args, train_dataset=TRAIN, data_collator=run.data_collator)
    states = {}

    class Snapshot(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
            states[state.global_step] = copy.deepcopy(trained)

    trainer.add_callback(Snapshot())
    trainer.train()
    trainer.args.checkpoints = ["auto"]
    with trainer.session() as session:
        members = session.checkpoints.members
        assert all(member.path.is_file() == (kept_by == "ours") for member in members)
        assert kept_by == "ours" or [member.epoch for member in members] == [1.0]
        for number, member in enumerate(members):
            with session.checkpoints.at(number):
                now, then = session.objective.theta, states[member.step]
                assert now.keys() == then.keys() and all(torch.equal(now[name], then[name]) for name in then)
    assert "before training examples are fitted" in caplog.text


KINDS = {
    "prompt": lambda task: peft.PromptTuningConfig(task_type=task, num_virtual_tokens=3),
    "prefix": lambda task: peft.PrefixTuningConfig(task_type=task, num_virtual_tokens=3),
    "prompt encoder": lambda task: peft.PromptEncoderConfig(
        task_type=task, num_virtual_tokens=3, encoder_hidden_size=6
    ),
    "ia3": lambda task: peft.IA3Config(
        task_type=task, target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]
    ),
    "lora of embeddings": lambda task: peft.LoraConfig(task_type=task, r=2, target_modules=["q_proj", "embed_tokens"]),
    "dora": lambda task: peft.LoraConfig(task_type=task, r=2, target_modules=["q_proj"], use_dora=True),
}


def adapted_by(kind: str, task: str, model):
    torch.manual_seed(2)
    adapted = peft.get_peft_model(copy.deepcopy(model).requires_grad_(True), KINDS[kind](task)).eval()
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.3 * torch.randn_like(parameter))
    return adapted


def products_by_rows(adapted, rows, queries):
    """- grad L . grad L' of batches of one example each, by the adapted model's own loss."""
    parameters = [p for p in adapted.parameters() if p.requires_grad]

    def gradients(batches):
        partials = (
            torch.autograd.grad(adapted(**batch).loss, parameters, materialize_grads=True) for batch in batches
        )
        return torch.stack([torch.cat([piece.flatten() for piece in own]) for own in partials])

    return -(gradients(queries) @ gradients(rows).T).numpy()


def collated(trainer, data):
    return [trainer.data_collator([{k: v for k, v in row.items() if k != "text"}]) for row in data]


@pytest.mark.parametrize("kind", KINDS)
def test_every_adapter_of_a_classifier_is_attributed(kind, tmp_path):
    architecture = "bert" if "prompt" in kind else "llama"  # which cannot tell padding behind prompts
    adapted = adapted_by(kind, "SEQ_CLS", tiny_model(architecture, frozen=None, initializer_range=0.3))
    train, queries = tiny_data(8), tiny_data(2, seed=1)
    trainer = tiny_trainer(tmp_path, adapted, train, solver="identity", index_features="pooled")
    expected = products_by_rows(adapted, collated(trainer, train), collated(trainer, queries))
    tolerance = {"rtol": 1e-3, "atol": 1e-5 * np.abs(expected).max()}
    np.testing.assert_allclose(trainer.compute_influence(queries), expected, **tolerance)
    own = products_by_rows(adapted, collated(trainer, train), collated(trainer, train))
    np.testing.assert_allclose(trainer.self_influence(), -own.diagonal(), **tolerance)
    trainer.build_index()
    for row in trainer.find_influential(queries, None, len(train)).influences:
        assert row["influence"] == pytest.approx(expected[row["query_index"], row["train_index"]], rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("kind", ["prompt", "prefix"])
def test_prompts_before_a_text_are_attributed(kind, tmp_path):
    adapted = adapted_by(kind, "CAUSAL_LM", copy.deepcopy(CASE.model).float())
    trainer = trainer_of(tmp_path, adapted, solver="identity", loss_reduction="mean", index_features="mean_pooled")
    trainer.train_dataset = CASE.data(6)  # which gets an index
    expected = products_by_rows(adapted, *([trainer.data_collator([row]) for row in d] for d in (TRAIN, QUERIES)))
    np.testing.assert_allclose(trainer.compute_influence(QUERIES), expected, rtol=1e-3, atol=1e-4)
    trainer.build_index()
    assert trainer.find_candidates(CASE.data(6).select([3]), 1)[0, 0] == 3


@pytest.mark.parametrize("kind", ["prompt", "prefix", "lora", "saved"])
def test_an_output_layer_with_adapters_or_behind_a_prompt_computes_labelled_places_only(kind):
    model = copy.deepcopy(CASE.model).float()
    if kind in KINDS:
        adapted = adapted_by(kind, "CAUSAL_LM", model)
    else:
        changes = {"lora": {"target_modules": ["v_proj", "lm_head"]}, "saved": {"modules_to_save": ["lm_head"]}}
        adapted = with_adapters(model, **changes[kind]).float().eval()
    rows = [dict(row) for row in TRAIN] + [dict(TRAIN[0]) | {"labels": [-100] * len(TRAIN[0]["labels"])}]
    batch = CASE.collator(tiny_tokenizer())(rows)
    early, received = Objective(adapted), []
    late = copy.copy(early)
    late.selects_early = False
    adapted.get_base_model().lm_head.register_forward_hook(lambda _m, args, _: received.append(args[0].shape[1]))
    torch.testing.assert_close(early.losses(early.theta, batch), late.losses(late.theta, batch))
    most = int((batch["labels"][:, 1:] != -100).sum(dim=1).max())
    assert received == [most, batch["labels"].shape[1] + 3 * (kind == "prompt")] and received[0] < received[1]
    vectors = torch.randn(2, early.space.size)
    one, other = (GaussNewton(objective).product(batch, vectors) for objective in (early, late))
    torch.testing.assert_close(one, other)
