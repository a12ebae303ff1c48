"""Config: files, sections, overrides, and errors that say what to change."""

import dataclasses
import signal
import subprocess
import sys
from typing import Literal

import pytest

from neuroimagen.config import describe, load_config, option, run_command


@dataclasses.dataclass
class Example:
    shards: str = option(help="a directory")
    steps: int = option(10, "how many")
    mining: Literal["all", "hard"] = option("all", "which triplets")
    rows: list[str] = option(["L", "I"], "which rows")


def test_later_files_win_and_overrides_win_over_files(tmp_path):
    (tmp_path / "a.yaml").write_text("shards: here\nsteps: 3\nmining: hard\n")
    (tmp_path / "b.yaml").write_text("pixel_features:\n  steps: 4\nreconstruct:\n  unrelated: 1\n")
    arguments = [f"config={tmp_path}/a.yaml", f"config={tmp_path}/b.yaml", "mining=all", "rows=[B]"]
    config = load_config(Example, arguments, "pixel_features")
    assert config == Example("here", 4, "all", ["B"])
    assert load_config(Example, [*arguments, "steps=5"], "pixel_features").steps == 5
    assert load_config(Example, arguments, "reconstruct_something_else").steps == 3


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["shards=x", "setps=3"], "Did you mean"),
        (["shards=x", "steps=many"], "steps"),
        (["shards=x", "mining=some"], "mining"),
        (["steps=3"], "please give shards="),
        (["shards=x", "steps"], "key=value"),
        (["shards=x", "config=/nowhere.yaml"], "/nowhere.yaml does not exist"),
        (["shards=x", "rows=[L,I"], "rows: '[L,I' is not YAML"),
    ],
)
def test_mistakes_are_one_sentence_with_exit_code_2(arguments, said, capsys):
    assert run_command(lambda config: None, Example, arguments, "x", "usage") == 2
    error = capsys.readouterr().err
    assert said in error and error.startswith("error: ") and error.count("\n") == 1


@pytest.mark.parametrize(
    "argument, said",
    [
        ("setps=3", "Key 'setps' not in 'Example'. Did you mean: 'steps'?"),
        ("steps=many", "steps: 'many' is not an integer"),
        ("steps=steps", "steps: 'steps' is not an integer"),
    ],
)
def test_the_key_is_named_once(argument, said):
    with pytest.raises(ValueError) as error:
        load_config(Example, ["shards=x", argument], "x")
    assert str(error.value) == said


def test_misspelt_section_and_field_in_a_file_name_the_file(tmp_path):
    path = tmp_path / "overlay.yaml"
    path.write_text("pixel_features:\n  steps: 1\npixel_featurs:\n  steps: 2\n")
    with pytest.raises(ValueError, match="overlay.yaml.*Did you mean 'pixel_features'"):
        load_config(Example, [f"config={path}", "shards=x"], "pixel_features")
    path.write_text("stepz: 1\n")
    with pytest.raises(ValueError, match="overlay.yaml.*stepz"):
        load_config(Example, [f"config={path}", "shards=x"], "pixel_features")


def test_help_shows_every_field(capsys):
    assert run_command(lambda config: None, Example, ["--help"], "x", "usage") == 0
    text = capsys.readouterr().out
    for field in dataclasses.fields(Example):
        assert f"{field.name}=" in text and field.metadata["help"] in text
    assert "all | hard" in text and "required" in text and describe(Example, "usage") in text


def test_exit_code_of_main_is_kept():
    assert run_command(lambda config: 143, Example, ["shards=x"], "x", "usage") == 143


def test_a_reader_that_leaves_early_is_no_error():
    process = subprocess.Popen(
        [sys.executable, "-m", "neuroimagen.cli", "simulate", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()  # as `| head` does
    assert process.wait(300) == 128 + signal.SIGPIPE and process.stderr.read() == b""
    process.stderr.close()
