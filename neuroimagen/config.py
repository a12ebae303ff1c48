"""Typed configuration: dataclass <- YAML files <- key=value.

A stage declares its fields once, as a dataclass whose fields are made by `option`. The command line takes any number
of `config=FILE.yaml` (later ones win) and `key=value` (these win over files). A YAML file holds either the fields of
one stage, or sections named after stages (`pixel_features:`, `reconstruct:` ...), of which only the running stage's is
read; so one overlay can carry a whole study. Misspelt keys and wrong types are errors, answered with the nearest name.
"""

import dataclasses
import difflib
import errno
import os
import sys
import textwrap
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from neuroimagen.text_files import leave_locale, read_text, show_any_name

C = TypeVar("C")

STAGES = (
    "simulate",
    "shards",
    "captions",
    "latent_diffusion",
    "pixel_features",
    "pixel_saliency",
    "sample_semantics",
    "brain2image",
    "neurovision",
    "reconstruct",
    "evaluate",
    "report",
    "probe",
    "export",
)


def option(default: Any = MISSING, help: str = "") -> Any:
    """A config field with its meaning; without a default it must be given."""
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata={"help": help})
    return dataclasses.field(default=default, metadata={"help": help})


@dataclasses.dataclass
class TrainConfig:
    """Fields that every trainer has."""

    run_dir: str = option(help="directory of this run; the same command continues what it holds")
    seed: int = option(0, "all randomness is a function of (seed, step) or (seed, epoch)")
    precision: str = option("fp32", "fp32 | bf16 | fp16; what the device cannot do is refused")
    tf32: bool = option(False, "with precision=fp32 on an NVIDIA GPU: multiply with 10 bits instead of 23, faster")
    deterministic: bool = option(False, "on a GPU too the same bits each time, as resuming promises; slower")
    compile: bool = option(False, "torch.compile the models: minutes at the start, then faster steps or not: measure")
    global_batch_size: int = option(64, "samples a step over all processes; must divide by their number")
    accumulate: int = option(1, "parts a rank cuts its batch into, to need less memory; changes nothing else")
    max_steps: int = option(1000, "optimizer steps")
    checkpoint_every: int = option(500, "steps between checkpoints; 0 keeps only those at a stop signal")
    validate_every: int = option(0, "steps between validations; 0 validates at the end only")
    log_every: int = option(20, "steps between lines in stats.jsonl and tracker updates")
    trackers: str = option("none", "none | tensorboard | wandb (WANDB_MODE=offline works without a network)")
    project: str = option("neuroimagen", "project name shown by the tracker")
    workers: int = option(0, "loader processes for each rank: speed only, never results (data/stream.py: how many)")
    max_bad_samples: int = option(
        0, "unreadable train trials, different ones on a rank, that are replaced by others before it stops; 0: none"
    )
    nonfinite: Literal["stop", "skip"] = option("stop", "a loss that is NaN or infinite: stop, or skip that step")
    timeout_minutes: float = option(30.0, "a rank without progress prints where it is, and the others give up")


@dataclasses.dataclass
class EegAugmentConfig:
    """Fields of the trainers that learn from EEG: its augmentation, on train batches only (data/eeg_augment.py)."""

    eeg_shift: float = option(0.0, "EEG of a trial moves by up to so many seconds, either way; 0: not")
    eeg_channel_dropout: float = option(0.0, "probability that a channel of a trial is set to zero")
    eeg_noise: float = option(0.0, "Gaussian noise added, in standard deviations of the channel over the train set")
    eeg_band_mask: float = option(0.0, "width in Hz of a band removed from each trial, at a random place; 0: none")
    eeg_band_limit: float = option(100.0, "upper end in Hz of where that band may lie")


def stage_section(path: str | Path, stage: str) -> dict[str, Any]:
    """What one YAML file says about `stage`: the file's own fields, or its section of that name."""
    try:
        content = yaml.safe_load(read_text(path)) or {}
    except FileNotFoundError:
        raise ValueError(f"config file {path} does not exist") from None
    except yaml.YAMLError as error:
        raise ValueError(f"config file {path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ValueError(f"config file {path} must hold `field: value` lines")
    if not any(key in STAGES and (value is None or isinstance(value, dict)) for key, value in content.items()):
        return content
    unknown = [key for key in content if key not in STAGES]
    if unknown:
        near = difflib.get_close_matches(unknown[0], STAGES, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"config file {path}: {unknown[0]!r} is not a stage (one of {', '.join(STAGES)}).{hint}")
    return content.get(stage) or {}


def load_config(schema: type[C], arguments: Sequence[str], stage: str) -> C:
    """Build `schema` from `config=FILE` and `key=value` arguments.

    Raises ValueError with one sentence for a misspelt key, a value of the wrong type, or a missing field.
    """
    config = OmegaConf.structured(schema)
    source = ""
    try:
        for argument in arguments:
            key, equals, value = argument.lstrip("-").partition("=")
            if not equals:
                raise ValueError(f"cannot read {argument!r}: arguments are written key=value (--help lists the keys)")
            if key == "config":
                source = f"{value}: "
                config = OmegaConf.merge(config, OmegaConf.create(stage_section(value, stage)))
        source = ""
        for override in [a.lstrip("-") for a in arguments if not a.lstrip("-").startswith("config=")]:
            try:
                config = OmegaConf.merge(config, OmegaConf.from_dotlist([override]))
            except yaml.YAMLError as error:
                raise ValueError(f"the value of {override!r} is not YAML: {' '.join(str(error).split())}") from None
        missing = sorted(OmegaConf.missing_keys(config))
        if missing:
            raise ValueError(f"please give {', '.join(f'{key}=...' for key in missing)} (--help says what each means)")
        return typing.cast(C, OmegaConf.to_object(config))
    except OmegaConfBaseException as error:
        said, full_key = str(error).splitlines()[0], getattr(error, "full_key", None)
        at = f" (key {full_key})" if full_key and not said.startswith(f"Key '{full_key}' ") else ""
        raise ValueError(f"{source}{said}{at}") from None


def describe(schema: type, usage: str) -> str:
    """The --help text: usage, then every field with its type, default and meaning."""
    assert dataclasses.is_dataclass(schema)
    hints = typing.get_type_hints(schema)
    lines = [usage, "", "  config=FILE.yaml  read fields from a file; may be repeated, later files win", ""]
    for field in dataclasses.fields(schema):
        kind = hints[field.name]
        if typing.get_origin(kind) is typing.Literal:
            name = " | ".join(map(str, typing.get_args(kind)))
        else:
            name = kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "")
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        shown = "required" if default is MISSING else f"default {'none' if default is None else default}"
        lines.append(f"  {field.name}=  ({name}; {shown})")
        lines += textwrap.wrap(field.metadata.get("help", ""), 104, initial_indent=" " * 8, subsequent_indent=" " * 8)
    return "\n".join(lines)


def run_command(main: Callable[[C], Any], schema: type[C], arguments: Sequence[str], stage: str, usage: str) -> int:
    """Parse, run `main(config)`, and turn a user's mistake (ValueError) or a full disk into a sentence and code 2.

    So is an operation that cannot do what deterministic=true asks for. Set NEUROIMAGEN_TRACEBACK=1 to see where such an
    error came from.
    """
    if any(a in ("-h", "--help", "help") for a in arguments):
        print(describe(schema, usage))
        return 0
    show_any_name()
    try:
        code = main(load_config(schema, arguments, stage))
    except (ValueError, OSError, RuntimeError) as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        what, random, _ = str(error).partition(" does not have a deterministic implementation")
        if os.environ.get("NEUROIMAGEN_TRACEBACK") or not (full or random or isinstance(error, ValueError)):
            raise
        said = f"deterministic=true, but torch's {what}{random} on this device: leave it out" if random else error
        rank = os.environ.get("RANK", "0")
        print(f"error{'' if rank == '0' else f' (rank {rank})'}: {said}", file=sys.stderr, flush=True)
        return 2
    return code if isinstance(code, int) else 0


def run_trainer(main: Callable[[C], Any], schema: type[C]) -> None:
    """What a trainer's `__main__` calls: `main(config)` with the arguments of the command line."""
    leave_locale()
    stage = Path(sys.argv[0]).stem
    doc = sys.modules["__main__"].__doc__ or ""
    code = run_command(main, schema, sys.argv[1:], stage, f"{doc.strip()}\n\nusage: {stage}.py key=value ...")
    if code in (0, 143) and (processes := sys.modules.get("neuroimagen.processes")):
        processes.leave_process_group()  # after an error peers may be gone: then just exit
    sys.exit(code)
