"""Typed configuration: dataclass <- YAML files <- key=value.

A stage declares its fields once, as a dataclass whose fields are made by `option`. The command line takes any number
of `config=FILE.yaml` (later ones win) and `key=value` (these win over files). A YAML file holds either the fields of
one stage, or sections named after stages (`pixel_features:`, `reconstruct:` ...), of which only the running stage's is
read; so one overlay can carry a whole study. Misspelt keys and wrong types are errors, answered with the nearest name.

Every value is text until its field says what it means (`_value`): a name or a path is what was typed, on the command
line and in a file: 2024_01_15, 1.10 and 12:30 stay so; only a path's leading ~ or ~user is expanded.
"""

import atexit
import dataclasses
import difflib
import os
import sys
import textwrap
import typing
from collections.abc import Callable, Sequence
from operator import ge, gt, le, lt
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from neuroimagen.errors import exit_code
from neuroimagen.text_files import leave_locale, read_text, show_any_name

C = TypeVar("C")
MISSING: Any = "???"  # the default of a field that must be given
LIMITS: dict[str, Callable[[Any, Any], bool]] = {"at_least": ge, "above": gt, "at_most": le, "below": lt}
BOOLS = dict.fromkeys(("true", "yes", "on", "y", "1"), True) | dict.fromkeys(("false", "no", "off", "n", "0"), False)
PLAIN: dict[Any, tuple[Callable[[str], Any], str]] = {
    bool: (lambda text: BOOLS[text.lower()], "true or false"),
    int: (int, "an integer"),
    float: (lambda text: float(text.lower().replace(".inf", "inf").replace(".nan", "nan")), "a number"),  # YAML's too
}

STAGES = (
    *("simulate", "shards", "captions", "latent_diffusion", "pixel_features", "pixel_saliency", "sample_semantics"),
    *("brain2image", "neurovision", "reconstruct", "evaluate", "report", "probe", "export", "dashboard", "features"),
    *("contrastive", "image_prompt", "retrieval"),
)


def option(
    default: Any = MISSING,
    help: str = "",
    path: bool = False,
    kinds: dict[str, type] | None = None,
    newer: bool = False,
    **limits: float,
) -> Any:
    """A config field with its meaning; without a default it must be given.

    kinds: what it may be, and the dataclass of those fields that it can be given with.
    newer: than files that list a config and may not change a byte; those list it where it is not its default.
    limits: those of LIMITS that its value keeps, in a `Limited` config.
    """
    assert limits.keys() <= LIMITS.keys()
    meaning = {"help": help, "path": path, "kinds": kinds, "newer": newer, **limits}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=meaning)
    return dataclasses.field(default=default, metadata=meaning)


def path_option(default: Any = MISSING, help: str = "") -> Any:
    """An `option` that is, or may be, a file or folder: a leading ~ or ~user stands for a home directory."""
    return option(default, help, path=True)


@dataclasses.dataclass
class Limited:
    """A config that cannot be made with a value beyond the limits of its field, or none of its choices: ValueError."""

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value, choices = getattr(self, field.name), typing.get_args(hints[field.name])
            if typing.get_origin(hints[field.name]) is Literal and value not in choices:
                raise ValueError(f"{field.name}={value!r} is not one of {', '.join(choices)}")
            for limit in LIMITS.keys() & field.metadata.keys():
                end = field.metadata[limit]
                if value is not None and not LIMITS[limit](value, end):
                    raise ValueError(f"{field.name}={value} must be {limit.replace('_', ' ')} {end:g}")


@dataclasses.dataclass
class TrainConfig(Limited):
    """Fields that every trainer has."""

    run_dir: str = path_option(help="directory of this run; the same command continues what it holds")
    seed: int = option(0, "all randomness is a function of (seed, step) or (seed, epoch)")
    precision: str = option("fp32", "fp32 | bf16 | fp16; what the device cannot do is refused")
    tf32: bool = option(False, "with precision=fp32 on an NVIDIA GPU: multiply with 10 bits instead of 23, faster")
    deterministic: bool = option(False, "on a GPU too the same bits each time, as resuming promises; slower")
    compile: bool = option(False, "torch.compile the models: minutes at the start, then faster steps or not: measure")
    global_batch_size: int = option(64, "samples a step over all processes; must divide by their number", at_least=1)
    accumulate: int = option(1, "parts that a rank cuts its batch into, to need less memory alone", at_least=1)
    max_steps: int = option(1000, "optimizer steps", at_least=0)
    checkpoint_every: int = option(500, "steps between checkpoints; 0 keeps only those at a stop signal", at_least=0)
    validate_every: int = option(0, "steps between validations; 0 validates at the end only", at_least=0)
    log_every: int = option(20, "steps between lines in stats.jsonl and tracker updates", at_least=1)
    trackers: Literal["none", "tensorboard", "wandb"] = option("none", "WANDB_MODE=offline works without a network")
    project: str = option("neuroimagen", "project name shown by the tracker")
    workers: int = option(0, "loader processes for each rank, for speed alone (docs/shards.md: how many)", at_least=0)
    max_bad_samples: int = option(
        0, "unreadable train trials that a rank may replace by others before it stops; 0: none", at_least=0
    )
    nonfinite: Literal["stop", "skip"] = option("stop", "a loss that is NaN or infinite: stop, or skip that step")
    timeout_minutes: float = option(30.0, "a rank without progress prints where it is, and the others give up", above=0)

    def check(self) -> None:
        """ValueError for what cannot go together; Run asks before it starts anything. Trainers have their own."""


@dataclasses.dataclass
class EegAugmentConfig(Limited):
    """Fields of the trainers that learn from EEG: its augmentation, on train batches only (batches/augment.py)."""

    eeg_shift: float = option(0.0, "EEG of a trial moves by up to so many seconds, either way; 0: not", at_least=0)
    eeg_channel_dropout: float = option(0.0, "probability that a channel is set to zero", at_least=0, below=1)
    eeg_noise: float = option(0.0, "Gaussian noise, in standard deviations of the train set's channel", at_least=0)
    eeg_band_mask: float = option(0.0, "Hz: width of a band taken out of each trial, anywhere; 0: none", at_least=0)
    eeg_band_limit: float = option(100.0, "upper end in Hz of where that band may lie")
    eeg_smooth: float = option(0.0, "probability that a channel is smoothed: moving average", at_least=0, at_most=1)
    eeg_smooth_window: int = option(5, "samples of that average, an odd number", at_least=3)

    def check_eeg(self, n_times: int, sfreq: float) -> None:
        """ValueError for what makes no sense with trials of n_times samples at sfreq Hz; asked before a run starts."""
        if round(self.eeg_shift * sfreq) >= n_times:
            raise ValueError(f"eeg_shift={self.eeg_shift:g} s is not within a trial of {n_times / sfreq:g} s")
        limit = min(self.eeg_band_limit, sfreq / 2)
        if self.eeg_band_mask and not self.eeg_band_mask < limit:
            raise ValueError(f"eeg_band_mask={self.eeg_band_mask:g} Hz is not within 0 to {limit:g} Hz")
        if self.eeg_smooth and not (self.eeg_smooth_window % 2 and self.eeg_smooth_window <= n_times):
            raise ValueError(f"eeg_smooth_window={self.eeg_smooth_window} is not an odd number up to {n_times}")


class _Null(str):
    """null, ~ or nothing, as it stands there: None to a field that may be None, and text to any other."""


class _Texts(yaml.SafeLoader):
    """YAML whose scalars stay text: what they mean is for the field to say."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag.endswith((":null", ":merge"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    yaml_constructors = {
        tag: make
        for tag, make in yaml.SafeLoader.yaml_constructors.items()
        if not tag or tag[-4:] in (":str", ":seq", ":map")
    }

    def compose_mapping_node(self, anchor: str | None) -> Any:
        node, known = super().compose_mapping_node(anchor), set()
        for key in (key for key, _ in node.value if key.tag.endswith(":str")):
            if key.value in known:  # the last would win without a word
                raise yaml.MarkedYAMLError(
                    problem=f"{key.value} is given twice: remove one", problem_mark=key.start_mark
                )
            known.add(key.value)
        return node


_Texts.add_constructor("tag:yaml.org,2002:null", lambda loader, node: _Null(node.value))
_Texts.add_constructor("tag:yaml.org,2002:merge", lambda loader, node: node.value)  # `<<` as a value


def _yaml(text: str, what: str) -> Any:
    try:
        return yaml.load(text, _Texts)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{what} YAML: {' '.join(str(error).split())}") from None


def stage_section(path: str | Path, stage: str) -> dict[str, Any]:
    """What one YAML file says about `stage`, as texts: the file's own fields, or its section of that name."""
    try:
        content = _yaml(read_text(path), f"config file {path} is not valid") or {}
    except FileNotFoundError:
        raise ValueError(f"config file {path} does not exist") from None
    if not isinstance(content, dict):
        raise ValueError(f"config file {path} must hold `field: value` lines")
    sections = any(key in STAGES and isinstance(value, dict) for key, value in content.items())
    empty = all(key in STAGES and isinstance(value, _Null) for key, value in content.items())
    if not sections and not empty:  # `brain2image: null` may be a field of reconstruct too
        return content
    if unknown := [key for key in content if key not in STAGES]:
        near = difflib.get_close_matches(unknown[0], STAGES, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"config file {path}: {unknown[0]!r} is not a stage (one of {', '.join(STAGES)}).{hint}")
    section = content.get(stage, {})
    if not isinstance(section, (_Null, dict)):
        raise ValueError(f"config file {path}: section {stage} must hold `field: value` lines")
    return {} if isinstance(section, _Null) else section


def typed(schema: type, content: dict[str, Any], source: str = "") -> dict[str, Any]:
    """The fields of `schema` that `content` gives as texts, as what they are; ValueError for one that there is not, and
    for a value that it cannot have."""
    hints, fields = typing.get_type_hints(schema), {field.name: field for field in dataclasses.fields(schema)}
    found = {}
    for key, value in content.items():
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, 1)
            hint = f" Did you mean: {near[0]!r}?" if near else ""
            raise ValueError(f"{source}Key {key!r} not in {schema.__name__!r}.{hint}")
        try:
            found[key] = _value(hints[key], value, bool(fields[key].metadata.get("path")))
        except ValueError as error:
            raise ValueError(f"{source}{key}: {error}") from None
    return found


def _value(kind: Any, value: Any, is_path: bool) -> Any:
    """A text, or a list or mapping of texts, as `kind`; ValueError if it is none."""
    choices = typing.get_args(kind)
    if type(None) in choices:
        return None if isinstance(value, _Null) else _value(choices[0], value, is_path)
    if kind == str | list[str]:
        return _value(list[str] if isinstance(value, list) else str, value, is_path)
    if typing.get_origin(kind) is list:
        elements = _yaml(value, f"{value!r} is not") if isinstance(value, str) else value
        if not isinstance(elements, list):
            raise ValueError(f"{value!r} is not a list, which is written [a, b]")
        return [_value(choices[0], element, is_path) for element in elements]
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict) or not set(_required(kind)) <= set(value):
            raise ValueError(f"{value!r} needs {', '.join(_required(kind))}, each with its value")
        return typing.cast(type, kind)(**typed(typing.cast(type, kind), value))
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not one value; a text that means more to YAML goes in quotes")
    if kind is str:
        return _expanded(str(value)) if is_path else str(value)
    if typing.get_origin(kind) is Literal:
        if value not in choices:
            raise ValueError(f"{value!r} is not one of {', '.join(choices)}")
        return str(value)
    read, name = PLAIN[kind]
    try:
        return read(value)
    except (KeyError, ValueError):
        raise ValueError(f"{value!r} is not {name}") from None


def _expanded(path: str) -> str:
    """`path` as typed, but for a home directory in the place of a leading ~ or ~user."""
    expanded = os.path.expanduser(path)
    if path.startswith("~") and expanded == path:
        raise ValueError(f"{path!r} names no home directory; a file of that name is ./{path}")
    return expanded


def _required(schema: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(schema) if field.default is MISSING]


def load_config(schema: type[C], arguments: Sequence[str], stage: str) -> C:
    """Build `schema` from `config=FILE` and `key=value` arguments; ValueError for a misspelt key, a value of the wrong
    type, or a missing field."""
    files: dict[str, Any] = {}
    given: dict[str, Any] = {}
    for argument in arguments:
        key, equals, text = argument.lstrip("-").partition("=")
        if argument.startswith("--") and typing.get_type_hints(schema).get(key) is bool and not equals:
            equals, text = "=", "true"  # --verbose
        if not equals:
            raise ValueError(f"cannot read {argument!r}: arguments are written key=value (--help lists the keys)")
        if key == "config":
            path = _expanded(text)
            files |= typed(schema, stage_section(path, stage), f"{path}: ")
            continue
        given |= typed(schema, {key: _Null(text) if text in ("", "null") else text})
    found = files | given
    if missing := sorted(key for key in _required(schema) if found.get(key, "") == ""):  # out=$UNSET is no folder
        raise ValueError(f"please give {', '.join(f'{key}=...' for key in missing)} (--help says what each means)")
    return schema(**found)


def describe(schema: type, usage: str, arguments: Sequence[str] = ()) -> str:
    """The --help text: usage, then every field with its type, default and meaning.

    Of fields that come with some value of another one (`kinds`) only those that come with its value in `arguments`.
    """
    assert dataclasses.is_dataclass(schema)
    hints, fields = typing.get_type_hints(schema), {field.name: field for field in dataclasses.fields(schema)}
    given = dict(argument.lstrip("-").partition("=")[::2] for argument in arguments)
    lines = [usage, "", "  config=FILE.yaml  read fields from a file; may be repeated, later files win", ""]
    for name in [name for name, field in fields.items() if field.metadata.get("kinds")]:
        kinds = {k: {f.name: f for f in dataclasses.fields(s)} for k, s in fields[name].metadata["kinds"].items()}
        common = {n: fields[n] for n in set.intersection(*map(set, kinds.values()))}
        own = kinds.get(given.get(name, ""), common)
        hidden = set().union(*kinds.values()) - own.keys()
        order = sorted(fields.keys() - hidden, key=lambda n: (n in common and n != name, [*fields].index(n)))
        fields = {n: fields[n] if n == name else own.get(n, fields[n]) for n in order}
        if given.get(name, "") not in kinds:
            lines += [f"  Further fields come with {name}=: `--help {name}=NAME` shows them ({', '.join(kinds)})", ""]
    for field in fields.values():
        kind = hints[field.name]
        name = kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "")
        if typing.get_origin(kind) is Literal:
            name = " | ".join(map(str, typing.get_args(kind)))
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        shown = "required" if default is MISSING else f"default {'none' if default is None else default}"
        shown += "".join(f"; {limit.replace('_', ' ')} {v:g}" for limit, v in field.metadata.items() if limit in LIMITS)
        lines.append(f"  {field.name}=  ({name}; {shown})")
        lines += textwrap.wrap(field.metadata.get("help", ""), 104, initial_indent=" " * 8, subsequent_indent=" " * 8)
    return "\n".join(lines)


def run_command(main: Callable[[C], Any], schema: type[C], arguments: Sequence[str], stage: str, usage: str) -> int:
    """Parse and run `main(config)`; the exit code, and one sentence for an error: errors.exit_code."""
    if any(a in ("-h", "--help", "help") for a in arguments):
        print(describe(schema, usage, arguments))
        return 0
    show_any_name()
    return exit_code(lambda: main(load_config(schema, arguments, stage)))


def run_trainer(main: Callable[[C], Any], schema: type[C]) -> None:
    """What a trainer's `__main__` calls: `main(config)` with the arguments of the command line."""
    leave_locale()
    failed: list[int] = []

    def leave() -> None:
        """After an error peers may be gone, and gloo would abort in C++'s own end, with a code of its own."""
        if failed and (distributed := sys.modules.get("torch.distributed")) and distributed.is_initialized():
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(failed[0])

    def work(config: C) -> Any:
        try:
            return main(config)
        except Exception as error:
            if directory := sys.modules.get("neuroimagen.run.directory"):
                directory.keep_failure(error)
            raise

    atexit.register(leave)  # of what is registered from here on, trackers say, the last to be called
    stage = Path(sys.argv[0]).stem
    doc = sys.modules["__main__"].__doc__ or ""
    code = run_command(work, schema, sys.argv[1:], stage, f"{doc.strip()}\n\nusage: {stage}.py key=value ...")
    if code in (0, 143) and (processes := sys.modules.get("neuroimagen.run.processes")):
        processes.leave_process_group()
    elif code:
        failed.append(code)
    sys.exit(code)
