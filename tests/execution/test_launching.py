"""Launching by Accelerate itself: its configs that we ship, and folders that processes share."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from tiny import tiny_data, tiny_trainer

from hf_fastif.errors.classes import InfluenceError
from hf_fastif.execution.processes import SingleProcess, check_same_folder, check_shared_folder, from_main


ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "recipes" / "accelerate_configs"
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch"]


@pytest.mark.parametrize(
    ("name", "processes", "machines", "flags"),
    [
        ("one_gpu", 1, 1, []),
        ("eight_gpus", 8, 1, []),
        ("two_cpu_processes", 2, 1, []),
        ("two_machines", 16, 2, ["--machine_rank", "1", "--main_process_ip", "10.0.0.1"]),
    ],
)
def test_accelerate_reads_the_configs(name, processes, machines, flags):
    words = ["--config_file", str(CONFIGS / f"{name}.yaml"), *flags, "recipe.py"]
    asked, *_ = _validate_launch_command(launch_command_parser().parse_args(words))
    assert (asked.num_processes, asked.num_machines, asked.multi_gpu) == (processes, machines, processes > 1)


def test_two_machines_find_each_other(tmp_path):
    """Both on this one, with a process each."""
    script = tmp_path / "hello.py"
    script.write_text("import os; print(*(os.environ[name] for name in ('RANK', 'WORLD_SIZE', 'LOCAL_WORLD_SIZE')))")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    where = ["--num_processes", "2", "--main_process_ip", "127.0.0.1", "--main_process_port", port]
    command = [*ACCELERATE, "--config_file", str(CONFIGS / "two_machines.yaml"), *where]
    machines = [
        subprocess.Popen([*command, "--machine_rank", str(rank), script], stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    said = [machine.communicate(timeout=120)[0].split() for machine in machines]
    assert said == [["0", "2", "1"], ["1", "2", "1"]]


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
