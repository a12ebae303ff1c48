"""A name or a path is what was typed, in every text field of every command and trainer; numbers are what they say."""

import dataclasses
import importlib
import os
import runpy
import typing
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from neuroimagen.cli import COMMANDS, main
from neuroimagen.config import EegAugmentConfig, TrainConfig, load_config, option, path_option, stage_section
from neuroimagen.doctor.check import CheckConfig, sniff
from neuroimagen.run.directory import _claim
from neuroimagen.studies.recordings_tables import Marker, StudyFile

TRAINERS = sorted((Path(__file__).parents[2] / "trainers").glob("*.py"))
SCHEMAS: dict[str, type] = {
    name: getattr(importlib.import_module(f"neuroimagen.{command.module}"), command.schema)
    for name, command in COMMANDS.items()
}
for trainer in TRAINERS:
    SCHEMAS[trainer.stem] = runpy.run_path(str(trainer), run_name="imported")["main"].__annotations__["config"]
SCHEMAS["study"] = StudyFile
HOME = "/home/somebody"  # of whoever runs these tests

# What YAML, OmegaConf, a shell or a path library would read as something else.
WORDS = [
    *("2024_01_15", "2024-01-15", "2001-12-14t21:59:43.10-05:00", "007", "0o7", "0x10", "0b1", "1.10", "1e5", "1_000"),
    *("12:30", "1:2:3.5", ".5", "3.", ".inf", "-.INF", ".nan", "+1", "-", "- a", "yes", "No", "on", "OFF", "true", "y"),
    *(
        "NULL",
        "Null",
        "None",
        "nil",
        "a #b",
        "#b",
        "a: b",
        "a:b",
        "key=value",
        "=",
        "==",
        "x=1,y=2",
        "'quoted'",
        "'",
        '"',
    ),
    *(
        '"q"',
        "''",
        "[a,b]",
        "[",
        "]",
        "{x}",
        "{x: 1}",
        "}",
        "${x}",
        "${oc.env:HOME}",
        "$x",
        "???",
        "?",
        "? x",
        "*a",
        "*",
    ),
    *(
        "&a",
        "&a b",
        "!tag",
        "!!int 5",
        "%x",
        "%",
        "@x",
        "`x`",
        "|",
        ">",
        ">-",
        "\\",
        "a\\b",
        "C:\\data\\n",
        "--",
        "---",
    ),
    *(
        "...",
        "<<",
        ",",
        "a,b",
        " lead",
        "trail ",
        " ",
        "\ttab",
        "two  spaces",
        "a\nb",
        "a\rb",
        "é",
        "日本",
        "😀",
    ),
    *(
        "./~x",
        "a~",
        "a/~/b",
        "hf://x/y",
        "https://h/x?y=1&z#t",
        "./null",
        "http:",
        "runs/lr=0.1",
        "~/x",
        "~",
        *(["~root/x"] if os.path.expanduser("~root") != "~root" else []),
    ),
]
texts = st.sampled_from(WORDS) | st.text(st.characters(exclude_categories=("C", "Zl", "Zp")), min_size=1, max_size=20)


def fields(schema: type, wanted: typing.Callable[[typing.Any], bool]) -> list[str]:
    hints = typing.get_type_hints(schema)
    return [field.name for field in dataclasses.fields(schema) if wanted(hints[field.name])]


def text_fields(schema: type) -> list[str]:
    """But for those of EncoderConfig, which know what may stand there: test_encoders.py."""
    own = fields(schema, lambda kind: kind is str or kind == (str | None))
    return [name for name in own if name not in ("encoder", "pretrained")]


def is_path(schema: type, name: str) -> bool:
    return next(field.metadata["path"] for field in dataclasses.fields(schema) if field.name == name)


def others(schema: type, name: str = "") -> dict[str, str]:
    """Something for each field that must be given."""
    kinds = typing.get_type_hints(schema)
    required = [field.name for field in dataclasses.fields(schema) if field.default == "???" and field.name != name]
    choices = {key: typing.get_args(kinds[key]) for key in required if typing.get_origin(kinds[key]) is typing.Literal}
    plain = {float: "5", list[str]: "[other]"}
    return {key: plain.get(kinds[key]) or choices.get(key, ["other"])[0] for key in required}


def as_arguments(values: dict[str, str]) -> list[str]:
    return [f"{key}={value}" for key, value in values.items()]


def check_text(schema: type, name: str, text: str, arguments: list[str]) -> None:
    wanted = os.path.expanduser(text) if is_path(schema, name) else text
    if is_path(schema, name) and text.startswith("~") and wanted == text:
        with pytest.raises(ValueError, match="names no home directory"):
            load_config(schema, arguments, "x")
        return
    found = getattr(load_config(schema, arguments, "x"), name)
    assert type(found) is str and found == wanted


@pytest.fixture(autouse=True)
def home(monkeypatch):
    """The user's, who may have none."""
    monkeypatch.setenv("HOME", HOME)


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("typed") / "config.yaml"


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_text_is_taken_as_it_is(name, file):
    """Each of WORDS in all text fields at once: typed, and in a file as any YAML library writes it."""
    schema = SCHEMAS[name]
    for word in WORDS:
        names = [n for n in text_fields(schema) if word not in ("", "null")]
        given = others(schema) | dict.fromkeys(names, word)
        file.write_text(yaml.safe_dump(given, allow_unicode=True), "utf-8")
        for arguments in (as_arguments(given), [f"config={file}"]):
            found = load_config(schema, arguments, "x")
            for key in names:
                wanted = os.path.expanduser(word) if is_path(schema, key) else word
                assert getattr(found, key) == wanted, (key, word, arguments)


@pytest.mark.parametrize("name", SCHEMAS)
def test_any_text_in_any_field(name, file):
    schema = SCHEMAS[name]

    @given(st.sampled_from(text_fields(schema)), texts)
    def typed(field, text):
        rest = as_arguments(others(schema, field))
        if text != "null":
            check_text(schema, field, text, [*rest, f"{field}={text}"])
        file.write_text(yaml.safe_dump({field: text}), "utf-8")
        check_text(schema, field, text, [*rest, f"config={file}"])

    typed()


@pytest.mark.parametrize("name", SCHEMAS)
def test_lists_hold_texts_as_they_are(name, file):
    schema = SCHEMAS[name]
    for field in fields(schema, lambda kind: kind == list[str]):
        rest = as_arguments(others(schema, field))
        one_or_many = typing.get_type_hints(schema)[field] == str | list[str]  # what is typed is one
        plain = ["007", "1.10", "12:30", "2024_01_15", "yes", "null", "1e5", "0x10", "O1", "EEG 1", "a/b"]
        words = [w for w in WORDS if "\n" not in w and "\r" not in w and w.isprintable()]
        if is_path(schema, field):
            words = [w for w in words if not w.startswith("~") or os.path.expanduser(w) != w]
        for elements in (plain, words):
            wanted = [os.path.expanduser(w) if is_path(schema, field) else w for w in elements]
            shown = f"[{', '.join(plain)}]" if elements is plain else yaml.safe_dump(words, width=10**6).strip()
            shown = (
                "[" + ", ".join("'" + w.replace("'", "''") + "'" for w in words) + "]" if elements is words else shown
            )
            file.write_text(f"{field}: {shown}\n", "utf-8")
            for argument in (f"{field}={shown}", f"config={file}"):
                found = getattr(load_config(schema, [*rest, argument], "x"), field)
                assert found == (shown if one_or_many and argument.startswith(field) else wanted)
        empty = getattr(load_config(schema, [*rest, f"{field}=[]"], "x"), field)
        assert empty == ("[]" if one_or_many else [])


@dataclasses.dataclass
class Kinds:
    path: str = path_option("", "a path")
    name: str = option("", "a name")
    maybe: str | None = path_option(None, "a path or none")
    whole: int = option(0, "an integer")
    real: float = option(0.0, "a number")
    flag: bool = option(False, "yes or no")
    choice: typing.Literal["none", "5-95"] = option("none", "one of two")
    reals: list[float] = option([], "numbers")
    maybes: list[float] | None = option(None, "numbers or none")
    markers: list[Marker] = option([], "as of a study")


# line of a file -> what the field is: the scalar as it stands there
LINES = {
    "path: 1.10": "1.10",
    "path: 007": "007",
    "path: 2024_01_15": "2024_01_15",
    "path: 12:30": "12:30",
    "path: 2024-01-15": "2024-01-15",
    "path: yes": "yes",
    "path: null": "null",
    "path:": "",
    "path: ${x}": "${x}",
    "path: a=b": "a=b",
    "path: a\\b": "a\\b",
    "path: a#b": "a#b",
    "path: a   # a comment": "a",
    "path: 'it''s'": "it's",
    'path: "\\u00e9"': "é",
    "path: >-\n  two\n  lines": "two lines",
    "path: '~'": HOME,
    "name: ~/x": "~/x",
    "name: ~": "~",
    "name: =": "=",
    "name: <<": "<<",
    "maybe: null": None,
    "maybe: ~": None,
    "maybe:": None,
    "maybe: 'null'": "null",
    "maybe: 007": "007",
    "maybe: ~/x": f"{HOME}/x",
    "whole: 1_000": 1000,
    "whole: 010": 10,
    "whole: '5'": 5,
    "real: 1e-3": 0.001,
    "real: 1": 1.0,
    "real: .inf": float("inf"),
    "real: -.Inf": float("-inf"),
    "flag: On": True,
    "flag: 0": False,
    "choice: 5-95": "5-95",
    "choice: none": "none",
    "reals: [1, 2.5, 1e2]": [1.0, 2.5, 100.0],
    "reals: [-.inf, 0]": [float("-inf"), 0.0],
    "maybes: null": None,
    "maybes: []": [],
    "base: &b {name: 007}": "refused",
}


@pytest.mark.parametrize("line", LINES)
def test_a_line_of_a_file_is_taken_as_it_stands(line, file):
    file.write_text(line + "\n", "utf-8")
    if LINES[line] == "refused":
        with pytest.raises(ValueError, match="config.yaml: Key 'base' not in 'Kinds'"):
            load_config(Kinds, [f"config={file}"], "x")
        return
    found = getattr(load_config(Kinds, [f"config={file}"], "x"), line.partition(":")[0])
    assert found == LINES[line] and type(found) is type(LINES[line])


def test_anchors_and_merges_still_mean_what_they_do(file):
    file.write_text("simulate: &a\n  path: 007\n  whole: 3\nshards:\n  <<: *a\n  whole: 4\n")
    assert load_config(Kinds, [f"config={file}"], "shards") == Kinds(path="007", whole=4)
    file.write_text(
        "markers:\n- {value: 01, name: yes, pictures: ~/a*.png}\n- {value: 1.0, name: no, pictures: b, wnid: 3}\n"
    )
    first, second = load_config(Kinds, [f"config={file}"], "x").markers
    assert first == Marker("01", "yes", os.path.expanduser("~/a*.png")) and second == Marker("1.0", "no", "b", "3")


@pytest.mark.parametrize(
    "argument, said",
    {
        "whole=12:30": "whole: '12:30' is not an integer",
        "whole=0x10": "whole: '0x10' is not an integer",
        "whole=1.5": "whole: '1.5' is not an integer",
        "whole=1e3": "whole: '1e3' is not an integer",
        "whole=": "whole: '' is not an integer",
        "whole=null": "whole: 'null' is not an integer",
        "whole=true": "whole: 'true' is not an integer",
        "real=1:30": "real: '1:30' is not a number",
        "real=1,5": "real: '1,5' is not a number",
        "flag=2": "flag: '2' is not true or false",
        "flag=": "flag: '' is not true or false",
        "choice=5_95": "choice: '5_95' is not one of none, 5-95",
        "reals=5": "reals: '5' is not a list, which is written [a, b]",
        "reals=[12:30]": "reals: '12:30' is not a number",
        "reals=[[1]]": "reals: ['1'] is not one value",
        "reals=[1": "reals: '[1' is not YAML",
        "markers=[a]": "markers: 'a' needs value, name, pictures, each with its value",
        "markers=[{value: 1, name: x}]": "needs value, name, pictures",
        "markers=[{value: 1, name: x, pictures: y, nam: z}]": "markers: Key 'nam' not in 'Marker'. Did you mean",
        "path=~no_such_user/x": "path: '~no_such_user/x' names no home directory; a file of that name is ./~no",
        "maybe=~no_such_user": "names no home directory",
        "config=~no_such_user/x.yaml": "names no home directory",
        "pth=x": "Key 'pth' not in 'Kinds'. Did you mean: 'path'?",
        "path.x=1": "Key 'path.x' not in 'Kinds'",
    }.items(),
)
def test_what_a_field_cannot_be_is_refused(argument, said, file):
    with pytest.raises(ValueError) as error:
        load_config(Kinds, [argument], "x")
    assert said in str(error.value) and "\n" not in str(error.value)
    key, _, value = argument.partition("=")
    if key in Kinds.__dataclass_fields__ and "[" not in value and value and key not in ("path", "maybe"):
        file.write_text(f"{key}: {value}\n")
        with pytest.raises(ValueError, match="config.yaml: "):
            load_config(Kinds, [f"config={file}"], "x")


@pytest.mark.parametrize(
    "line",
    ["path: [a, b]", "path: {x: y}", "path: {x}", "path: a: b", "path: *x", "path: !tag", "path: !!int 5", "path: %x"]
    + ["path: @x", "path: !!binary aGk=", "path: !!python/name:os.system", "name: [", "path: 'x", "path: \t- x\n\ty"]
    + ["path: " + "[" * 5000, "? [a]\n: b", "path: a\npath: b", "- a", "just text", "whole: [1]", "maybe: {a: b}"],
)
def test_what_is_no_text_in_a_file_is_one_sentence_with_its_name(line, file):
    file.write_text(line + "\n")
    with pytest.raises(ValueError, match="config.yaml") as error:
        load_config(Kinds, [f"config={file}"], "x")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text", ["shards: {path: a}\nshards: {name: b}", "markers:\n- {value: 1, value: 2, name: a, pictures: b}"]
)
def test_a_field_given_twice_is_refused(text, file):
    """The last one would win, and the first go without a word."""
    file.write_text(text + "\n")
    with pytest.raises(ValueError, match=r"config.yaml is not valid YAML: .* given twice: remove one .*line [12]"):
        load_config(Kinds, [f"config={file}"], "shards")


def test_an_unset_variable_is_no_path(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["simulate", "out="]) == 2 and "please give out=..." in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_home_of_config_files_and_of_what_is_made(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home").mkdir()
    (tmp_path / "home/small.yaml").write_text("classes: 2\nimages_per_class: 6\nn_subjects: 1\npicture_size: 32\n")
    for out in ("~/study", "2024_01_15", "007", "1.10", "12:30", "a #b", "a=b", "null"):
        assert main(["simulate", "config=~/small.yaml", f"out={out}"]) == 0
        assert (tmp_path / out.replace("~", "home") / "eeg.pth").is_file()
    assert len(list(tmp_path.iterdir())) == 8


def test_a_positional_path_may_hold_an_equals_sign(tmp_path, capsys):
    for path in (tmp_path / "lr=0.1", tmp_path / "2024_01_15"):
        assert main(["check", str(path)]) == 2 and f"{path} does not exist" in capsys.readouterr().err


def test_check_takes_the_fields_of_a_config_as_shards_does(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(
        "shards: {dataset: epochs, eeg: 007, images: ~/x, hold_out: [-1], seed: 010, window: [0, 1.5], out: y}"
    )
    found, _, _ = sniff(CheckConfig(source=str(path)))
    assert found.eeg == "007" and found.images == os.path.expanduser("~/x") and found.hold_out == [-1]
    assert found.seed == 10 and found.window == [0.0, 1.5] and type(found.window[0]) is float
    path.write_text("shards: {eeg: x, seed: 12:30}")
    with pytest.raises(ValueError, match="config.yaml: seed: '12:30' is not an integer"):
        sniff(CheckConfig(source=str(path)))


@dataclasses.dataclass
class Trained(TrainConfig, EegAugmentConfig):
    shards: str = path_option(help="shards")
    rate: float = option(1e-3, "rate")
    maybe: str | None = option(None, "or none")
    names: list[str] = option(["a"], "names")


@given(texts, st.floats(allow_nan=False))
def test_a_run_is_its_own_config(tmp_path_factory, text, rate):
    """config.yaml of a run is the config that made it, when read by us or by YAML, and as `config=`."""
    run = tmp_path_factory.mktemp("run") / "run"
    text = text.lstrip("~") or "x"
    config = Trained(run_dir=str(run), shards=text, rate=rate, maybe=text, names=[text, "b"])
    _claim(run, config, {})
    _claim(run, config, {})
    with pytest.raises(ValueError, match="holds a run of another config"):
        _claim(run, dataclasses.replace(config, shards=text + "."), {})
    assert yaml.safe_load((run / "config.yaml").read_text("utf-8")) == dataclasses.asdict(config)
    assert load_config(Trained, [f"config={run / 'config.yaml'}"], "x") == config


def test_a_field_that_is_null_is_no_section_of_that_stage(tmp_path):
    """brain2image: null in the config.yaml of a reconstruct run, which names no baseline."""
    (tmp_path / "config.yaml").write_text("shards: x\nrun_dir: y\nbrain2image: null\n")
    assert set(stage_section(tmp_path / "config.yaml", "reconstruct")) == {"shards", "run_dir", "brain2image"}
    (tmp_path / "config.yaml").write_text("shards:\nreport:\n")
    assert stage_section(tmp_path / "config.yaml", "shards") == {}


def test_a_run_of_before_is_met_by_the_same_command(tmp_path):
    """What the command line said was dumped with its types then as now."""
    before = dataclasses.asdict(Trained(run_dir="r", shards="s", rate=0.002, eeg_shift=1.0, seed=7, names=["x", "y"]))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(before, sort_keys=False, allow_unicode=True))
    given = ["run_dir=r", "shards=s", "rate=2e-3", "eeg_shift=1", "seed=7", "names=[x,y]", "maybe=null", "tf32=no"]
    _claim(tmp_path, load_config(Trained, given, "x"), {})


def test_sections(file):
    file.write_text("shards:\nsimulate: null\nreport: {run: 007}\n")
    assert stage_section(file, "shards") == stage_section(file, "simulate") == stage_section(file, "probe") == {}
    assert stage_section(file, "report") == {"run": "007"}
    file.write_text("report: {run: 1}\nshards: text\n")
    with pytest.raises(ValueError, match="section shards must hold"):
        stage_section(file, "shards")
