"""A solver registers itself, and is then chosen, built and checked by its name."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from tiny import tiny_data, tiny_model, tiny_tokenizer, tiny_trainer

from hf_fastif import InfluenceConfig, InfluenceError, InfluenceTrainer
from hf_fastif.settings import check_at_least_one, setting
from hf_fastif.solvers import (
    DampedSystem,
    Solution,
    SolverSetup,
    register,
    registered_solvers,
    solver_flags,
    unregister,
)


TRAIN, QUERIES = tiny_data(40), tiny_data(3, seed=1)


@dataclass(frozen=True)
class ToySettings:
    steps: int = setting(4, "Steps of gradient descent.")

    def __post_init__(self):
        check_at_least_one(toy_steps=self.steps)


@dataclass
class Toy:
    """x <- x + (v - (C + lambda I) x) / (largest eigenvalue + lambda), from x = 0."""

    system: DampedSystem
    settings: ToySettings
    largest: float

    @classmethod
    def build(cls, setup: SolverSetup, settings: ToySettings) -> Toy:
        return cls(setup.system, settings, setup.spectrum.largest)

    def solve(self, vectors: torch.Tensor) -> Solution:
        x, damping = torch.zeros_like(vectors), self.system.damping
        for _ in range(self.settings.steps):
            x = x + (vectors - self.system.sample.product(x) - damping * x) / (self.largest + damping)
        return Solution.direct(x, self.system.residual(vectors, x), damping)


@dataclass
class ToyConfig(InfluenceConfig):
    toy_steps: int = setting(300, "Steps of gradient descent.")


@pytest.fixture
def toy():
    def describe(setup: SolverSetup, settings: ToySettings) -> str:
        return f"{settings.steps} steps of gradient descent"

    register("toy", help="gradient descent", settings=ToySettings, build=Toy.build, describe=describe)
    yield
    unregister("toy")


def test_a_registered_solver_is_chosen_by_its_name(tmp_path, toy):
    settings = {"damping": 1.0, "curvature_samples": 40}
    exact = tiny_trainer(tmp_path, tiny_model(frozen=2), TRAIN, solver="exact", **settings).compute_s_test(QUERIES)
    trainer = tiny_trainer(tmp_path, tiny_model(frozen=2), TRAIN, solver="toy", **settings)
    few = trainer.compute_s_test(QUERIES)
    assert ((few.vectors - exact.vectors).norm(dim=1) > 0.01 * exact.vectors.norm(dim=1)).all()
    assert trainer.find_influential(QUERIES).summary.solver == "4 steps of gradient descent"


def test_its_settings_are_flags_of_a_configuration_that_has_them(tmp_path, toy):
    settings = {"damping": 1.0, "curvature_samples": 40, "use_cpu": True, "disable_tqdm": True, "report_to": "none"}
    exact = tiny_trainer(tmp_path, tiny_model(frozen=2), TRAIN, solver="exact", **settings).compute_s_test(QUERIES)
    args = ToyConfig(str(tmp_path), solver="toy", **settings)
    trainer = InfluenceTrainer(tiny_model(frozen=2), args, train_dataset=TRAIN, processing_class=tiny_tokenizer())
    torch.testing.assert_close(trainer.compute_s_test(QUERIES).vectors, exact.vectors, rtol=1e-3, atol=1e-4)
    with pytest.raises(InfluenceError, match="toy_steps=0: give a whole number of at least 1"):
        ToyConfig(str(tmp_path), use_cpu=True, toy_steps=0)


def test_an_unknown_name_lists_those_that_are_registered(tmp_path, toy):
    names = "auto, cg, ekfac, exact, identity, lissa, sdca, sketch, toy"
    with pytest.raises(InfluenceError, match=f"solver='tyo': give one of {names}; did you mean 'toy'\\?"):
        InfluenceConfig(str(tmp_path), use_cpu=True, solver="tyo")


def test_a_name_is_registered_once(toy):
    assert "toy" in [solver.name for solver in registered_solvers()]
    for name, fix in (
        ("toy", "give another name, or call unregister\\('toy'\\) first"),
        ("auto", "give another name"),
    ):
        with pytest.raises(InfluenceError, match=f"name='{name}'.*{fix}"):
            register(name, help="", build=Toy, describe=str)


def test_a_definition_that_is_run_again_replaces_the_solver(toy):
    register("toy", help="run again", settings=ToySettings, build=Toy.build, describe=str)
    assert [solver.help for solver in registered_solvers() if solver.name == "toy"] == ["run again"]


def test_a_setting_may_be_a_list(tmp_path):
    @dataclass(frozen=True)
    class ListSettings:
        rates: list[float] = setting([0.1, 0.2], "Rates.")

    register("listed", help="", settings=ListSettings, build=Toy.build, describe=str)
    try:
        assert solver_flags()(str(tmp_path), use_cpu=True).listed_rates == [0.1, 0.2]
    finally:
        unregister("listed")


def test_an_unregistered_solver_is_unknown(tmp_path):
    with pytest.raises(InfluenceError, match="solver='toy'"):
        InfluenceConfig(str(tmp_path), use_cpu=True, solver="toy")
