"""Launching by Accelerate itself: its configs that we ship, and folders that processes share."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from tiny import tiny_data, tiny_trainer

from hf_fastif.errors.classes import InfluenceError
from hf_fastif.execution.processes import SingleProcess, check_same_folder, check_shared_folder, from_main


ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "recipes" / "accelerate_configs"
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch"]


@pytest.mark.parametrize(
    ("name", "processes", "machines"),
    [("one_gpu", 1, 1), ("eight_gpus", 8, 1), ("two_cpu_processes", 2, 1), ("two_machines", 16, 2)],
)
def test_accelerate_reads_the_configs(name, processes, machines):
    config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))
    assert (config.num_processes, config.num_machines) == (processes, machines)
    assert config.distributed_type == ("MULTI_GPU" if processes > 1 else "NO")  # MULTI_CPU starts a single process


def one_of_two(main: bool) -> SimpleNamespace:
    return SimpleNamespace(
        num_processes=2, is_main_process=main, process_index=int(not main), wait_for_everyone=lambda: None
    )


def test_machines_that_share_no_folder_are_refused(tmp_path, monkeypatch):
    check_shared_folder(tmp_path / "out", one_of_two(main=False))  # one machine
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    check_shared_folder(tmp_path / "out", one_of_two(main=True))
    assert not list((tmp_path / "out").iterdir())
    with pytest.raises(ValueError, match="output_dir: the processes 1 do not see what the main process writes"):
        check_shared_folder(tmp_path / "out", one_of_two(main=False))


def test_processes_with_different_folders_end_alike(tmp_path, monkeypatch):
    for main in (True, False):
        given = ["out/10-59", "out/11-00"]
        monkeypatch.setattr("hf_fastif.execution.processes.gather_object", lambda own, given=given: given)
        with pytest.raises(
            InfluenceError,
            match=r"output_dir: process 0 was given 'out/10-59' and process 1 'out/11-00'.*--output_dir",
        ):
            check_same_folder(Path(given[not main]), one_of_two(main))
        monkeypatch.setattr("hf_fastif.execution.processes.gather_object", lambda own: own * 2)
        check_same_folder(tmp_path, one_of_two(main))


def test_a_trainer_looks_whether_all_processes_have_its_folder(tmp_path, monkeypatch):
    trainer = tiny_trainer(tmp_path, train=tiny_data(10))
    monkeypatch.setattr(
        "hf_fastif.influence.session.check_same_folder", lambda folder, _: (_ for _ in ()).throw(KeyError(folder))
    )
    with pytest.raises(KeyError, match=str(tmp_path)):
        trainer.find_misclassified(tiny_data(2))


def test_an_error_of_the_main_process_is_raised_by_all():
    def fail():
        raise KeyError("here")

    for accelerator in (SingleProcess("cpu"), one_of_two(main=True)):
        with pytest.raises(KeyError, match="here"):
            from_main(fail, accelerator)
    assert from_main(lambda: os.sep, SingleProcess("cpu")) == os.sep
