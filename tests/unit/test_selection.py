"""What is chosen cannot be chosen on test without editing code: tried through configs, the command line and Python.

tests/processes/test_trainers.py goes further: without a byte of test every trainer ends with the same bits.
"""

import dataclasses
import inspect
import runpy
import typing
from pathlib import Path

import pytest

from neuroimagen.batches.stream import eval_batches, train_batches
from neuroimagen.config import MISSING, load_config
from neuroimagen.shards.format import ShardSplit

TRAINERS = {path.stem: path for path in (Path(__file__).parents[2] / "trainers").glob("*.py")}
CONFIGS = {
    name: runpy.run_path(str(path), run_name="imported")["main"].__annotations__["config"]
    for name, path in TRAINERS.items()
}
LEARN = sorted(
    TRAINERS.keys() - {"reconstruct"}
)  # and choose; reconstruct.py draws what is reported, and learns nothing


@pytest.mark.parametrize("trainer", LEARN)
def test_no_field_of_what_learns_names_a_split(trainer):
    hints = typing.get_type_hints(CONFIGS[trainer])
    for field in dataclasses.fields(CONFIGS[trainer]):
        assert "split" not in field.name
        assert "test" not in typing.get_args(hints[field.name]), field.name
        assert field.default is MISSING or field.default != "test", field.name


@pytest.mark.parametrize("trainer", LEARN)
@pytest.mark.parametrize("asked", ["split", "val_split", "validate_on", "eval_split", "val"])
def test_a_config_or_command_line_that_asks_for_test_is_refused(trainer, asked, tmp_path):
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(f"{trainer}:\n  {asked}: test\n")
    for arguments in ([f"{asked}=test"], [f"config={overlay}"]):
        with pytest.raises(ValueError, match=asked):
            load_config(CONFIGS[trainer], arguments, trainer)


def test_from_python_train_is_train_and_validation_is_not_test(study):
    assert "split" not in inspect.signature(train_batches).parameters
    trained = set(next(train_batches(study.shards, batch_size=1000))["key"])
    assert trained == set(ShardSplit(study.shards, "train").keys)
    with pytest.raises(ValueError, match="chosen on val"):
        eval_batches(study.shards, "test", batch_size=4)
