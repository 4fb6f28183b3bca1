"""A YAML file gives defaults that flags override."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field

import pytest
from recipe_modules import RECIPES

from hf_fastif import InfluenceConfig
from hf_fastif.errors.classes import InfluenceError
from hf_fastif.training import DataArguments
from hf_fastif.training.cli import parse_arguments, run_recipe


@dataclass
class Steps:
    rate: float = 0.1
    count: int | None = None


@dataclass
class Lists:
    indices: list[int] | None = None
    names: list[str] = field(default_factory=lambda: ["a"])


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text("rate: 1e-3\ncount: 4\ntext_columns: [premise, hypothesis]\nlabel_mapping: {neutral: other}\n")
    return str(path)


def test_file_and_flags(file):
    steps, data = parse_arguments(Steps, DataArguments, argv=["--config", file, "--count", "5"])
    assert (steps.rate, steps.count) == (1e-3, 5)  # YAML leaves 1e-3 a string
    assert data.text_columns == ["premise", "hypothesis"]
    assert data.label_mapping == '{"neutral": "other"}'


def test_a_number_of_the_file_is_what_the_same_flag_gives(tmp_path):
    path = tmp_path / "whole.yaml"
    path.write_text("rate: 3\ncount: 4\n")
    for argv in (["--config", str(path)], ["--rate", "3", "--count", "4"]):
        steps = parse_arguments(Steps, argv=argv)[0]
        assert (repr(steps.rate), repr(steps.count)) == ("3.0", "4")


@pytest.mark.parametrize(
    ("text", "indices", "names"),
    [
        ("indices: 3\nnames: b", [3], ["b"]),
        ("indices: ['3', 4]\nnames: [1, b]", [3, 4], ["1", "b"]),
        ("indices: null", None, ["a"]),
    ],
)
def test_flags_with_several_values(tmp_path, text, indices, names):
    path = tmp_path / "lists.yaml"
    path.write_text(text)
    assert parse_arguments(Lists, argv=["--config", str(path)])[0] == Lists(indices, names)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("indices: [1.5]", "indices=[1.5]: invalid int value: '1.5'"),
        ("indices: [a]", "indices=['a']: invalid int value: 'a'"),
        ("indices: []", "indices=[]: expected at least one argument"),
        ("names: {a: 1}", "names={'a': 1}: it cannot be a dict; give one value."),
        ("names: null", "names=None: give a value, or leave the line out for ['a']."),
        ("rate: null", "rate=None: give a value, or leave the line out for 0.1."),
        ("count: 1.5", "count=1.5: invalid int value: '1.5'"),
        ("lissa_depth: [3]", "lissa_depth=[3]: it cannot be a list; give one value."),
        ("damping: null", "damping=None: give a value, or leave the line out for 'auto'."),
        ("num_repeats: null", "num_repeats=None: give a value, or leave the line out for 1."),
        ("num_neighbors: [3]", "num_neighbors=[3]: it cannot be a list; give one value."),
        ("output_dir: [a, b]", "output_dir=['a', 'b']: it cannot be a list; give one value."),
        ("curvature: fisher", "curvature='fisher': invalid choice: 'fisher' (choose from "),
        ("checkpoints: [2.0]", "checkpoints='2.0': give one of auto, final, epochs, a number"),
    ],
)
def test_values_of_the_wrong_type_end_a_recipe_with_one_line(tmp_path, monkeypatch, capsys, text, said):
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    monkeypatch.setattr("sys.argv", ["recipe.py", "--config", str(path), "--use_cpu"])
    with pytest.raises(SystemExit, match="2"):
        run_recipe(lambda *_: None, Steps, Lists, InfluenceConfig)
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1) and err.startswith(f"error: {said}")


def test_lists_and_dictionaries_that_a_flag_cannot_give(tmp_path):
    path = tmp_path / "more.yaml"
    path.write_text(
        f"output_dir: {tmp_path}\nreport_to: [none]\nlr_scheduler_kwargs: {{num_cycles: 2}}\nuse_cpu: true\n"
    )
    args = parse_arguments(InfluenceConfig, argv=["--config", str(path)])[0]
    assert (args.report_to, args.lr_scheduler_kwargs, args.use_cpu) == ([], {"num_cycles": 2}, True)


def test_equals_sign_and_no_file(file):
    assert parse_arguments(Steps, DataArguments, argv=[f"--config={file}"])[0].count == 4
    assert parse_arguments(Steps, argv=[])[0] == Steps()


def test_unknown_setting(file):
    with pytest.raises(ValueError, match="label_mapping, text_columns"):
        parse_arguments(Steps, argv=["--config", file])


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("rate: [1, 2", "is not YAML: .*line 1"),
        ("- rate\n- count\n", "holds a list; give settings"),
        ("just words", "holds a str; give settings"),
        ("rat: 3\n", r"has .* does not know: rat; did you mean 'rate'\?"),
        ("3: 3\n", "has .* does not know: 3"),
    ],
)
def test_a_file_that_holds_no_settings(tmp_path, text, match):
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    with pytest.raises(InfluenceError, match=f"(?s)config='{path}' {match}"):
        parse_arguments(Steps, argv=["--config", str(path)])


def test_a_file_that_is_empty_or_not_there(tmp_path, file):
    (tmp_path / "empty.yaml").write_text("")
    assert parse_arguments(Steps, argv=["--config", str(tmp_path / "empty.yaml")])[0] == Steps()
    with pytest.raises(
        FileNotFoundError, match=r"setting.yaml': there is no such file; did you mean 'settings.yaml'\?"
    ):
        parse_arguments(Steps, argv=["--config", file.replace("settings", "setting")])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--rat 3", "this recipe does not know '--rat'; did you mean '--rate'?"),
        ("--conf x.yaml", "this recipe does not know '--conf'; did you mean '--config'?"),
        ("--rat_e 3", "this recipe does not know '--rat_e'; did you mean '--rate'?"),
        ("--coutn=3", "this recipe does not know '--coutn'; did you mean '--count'?"),
        ("--zzz", "this recipe does not know '--zzz'; --help lists the flags"),
        ("word", "this recipe does not know 'word'; --help lists the flags"),
        ("--count many", "argument --count: invalid int value: 'many'"),
        ("--config", "argument --config: expected one argument"),
    ],
)
def test_flags_with_a_typing_error_end_a_recipe_with_one_line(monkeypatch, capsys, words, said):
    monkeypatch.setattr("sys.argv", ["recipe.py", *words.split()])
    with pytest.raises(SystemExit, match="2"):
        run_recipe(lambda _steps: None, Steps)
    assert capsys.readouterr() == ("", f"error: {said}\n")


def test_help_lists_flags_and_the_file(monkeypatch, capsys, file):
    monkeypatch.setattr("sys.argv", ["recipe.py", "--config", file, "--help"])
    with pytest.raises(SystemExit, match="0"):
        run_recipe(lambda _steps, _data: None, Steps, DataArguments)
    text = " ".join(capsys.readouterr().out.split())
    assert "--config CONFIG" in text and "--rate RATE" in text and "(default: ['premise', 'hypothesis'])" in text


@pytest.mark.parametrize(
    "error",
    [
        InfluenceError("damping=0:\n  give more"),
        FileNotFoundError(errno.ENOENT, "No such file", "rows.jsonl"),
        OSError(errno.ENOSPC, "No space left on device"),
    ],
)
def test_what_a_user_can_mend_is_said_in_one_line(monkeypatch, capsys, error):
    def fail(steps):
        assert steps == Steps(count=3)
        raise error

    monkeypatch.setattr("sys.argv", ["recipe.py", "--count", "3"])
    with pytest.raises(SystemExit, match="2"):
        run_recipe(fail, Steps)
    assert capsys.readouterr().err == f"error: {' '.join(str(error).split())}\n"


@pytest.mark.parametrize("error", [ValueError("a bug"), OSError(errno.EIO, "disk on fire"), KeyError("x")])
def test_other_errors_keep_their_traceback(monkeypatch, error):
    monkeypatch.setattr("sys.argv", ["recipe.py"])
    with pytest.raises(type(error)) as caught:
        run_recipe(lambda _steps: (_ for _ in ()).throw(error), Steps)
    assert caught.value is error


def test_every_recipe_ends_that_way():
    for path in RECIPES.glob("*.py"):
        assert "    run_recipe(main, RecipeArguments, DataArguments, InfluenceConfig)\n" in path.read_text("utf-8")


def test_help_begins_with_what_the_recipe_does(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["recipe.py", "--help"])
    with pytest.raises(SystemExit, match="0"):
        run_recipe(test_help_begins_with_what_the_recipe_does, Steps)
    usage, description = capsys.readouterr().out.split("\n\n")[:2]
    assert usage == "usage: recipe.py [--config FILE.yaml] [--FLAG VALUE ...]"
    assert description.split() == __doc__.split()
