"""`neuroimagen new STUDY.yaml dataset=... eeg=... images=...`: a first overlay for a study, after a look at its files.

What is not as by default is a line with its reason, every other field of the data set a comment with its help; the
sections of the trainers, in templates/new_overlay.j2, fit the number of trials.
"""

import dataclasses
import os
import shlex
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import yaml

from neuroimagen.config import option, path_option
from neuroimagen.doctor.check import plain
from neuroimagen.doctor.examination import Examination
from neuroimagen.doctor.guess import Line, Tables, trials_table
from neuroimagen.files import write_atomic
from neuroimagen.pages import render
from neuroimagen.shards.tars import ShardsConfig
from neuroimagen.studies.classes import UNEVEN
from neuroimagen.studies.config import StudyConfig
from neuroimagen.studies.epochs import EpochsConfig
from neuroimagen.studies.epochs_table import TrialTable
from neuroimagen.studies.open import DATASETS, PATHS, SourceConfig, chosen, open_study
from neuroimagen.studies.pth import is_table, load_lists
from neuroimagen.studies.recordings import UNKNOWN_PICTURE, RecordingConfig
from neuroimagen.studies.recordings_tables import Marker, StudyFile
from neuroimagen.studies.study import Faults, some
from neuroimagen.text_files import encode

BESIDE = {"recording": ("recording", "_recordings.yaml"), "epochs": ("trials", "_trials.csv")}  # what is written, too
USUAL = Path(__file__).with_name("new.yaml")


@dataclasses.dataclass
class NewTables(RecordingConfig):
    """`dataset=recording`, with a study file or without one yet."""

    recording: str = path_option("", "the study's YAML file; empty: one is written beside `out`, from eeg and images")
    eeg: str = path_option("", "folder or pattern of tables, one a run (.csv, .tsv, or either with .gz)")
    images: str = path_option("", "folder of the pictures shown")
    markers: list[str] = option(
        [],
        "what markers show, where they are not called so: a picture, a folder or a pattern below images=, e.g. "
        "[1=houses,2=faces/*_3.jpg]",
    )


@dataclasses.dataclass
class NewEpochs(EpochsConfig):
    """`dataset=epochs`, with a table or without one yet."""

    trials: str = path_option("", "CSV table of which event shows which picture; empty: one is written beside `out`")


KINDS = {name: schema for name, (schema, _) in DATASETS.items()} | {"recording": NewTables, "epochs": NewEpochs}


@dataclasses.dataclass
class NewConfig(SourceConfig):
    """`neuroimagen new STUDY.yaml`"""

    dataset: Literal[tuple(DATASETS)] = option(help="which data set", kinds=KINDS)  # type: ignore[valid-type]
    markers: list[str] = option([], "what markers show")
    out: str = path_option(help="overlay to write; no file is overwritten")


def new(config: NewConfig) -> int:
    """Write the overlay, and beside it the study file or table it needs; 0: ready to run, 1: something is left to do.

    ValueError, in one sentence, for files that cannot be read, and for a file that would be overwritten.
    """
    out, dataset = Path(os.path.abspath(config.out)), str(config.dataset)
    needs, ending = BESIDE.get(dataset, ("", ""))
    own = out.with_name(out.stem + ending) if needs and not getattr(config, needs) else None
    if os.path.lexists(out):
        raise ValueError(f"{out} is there already and is not overwritten: remove it, or give another name")
    lines = {name: Line(getattr(config, name)) for name in sorted(config.given - {"out"})}
    lines |= {name: Line(os.path.abspath(lines[name].value)) for name in PATHS & lines.keys() if lines[name].value}
    lines |= {needs: Line(str(own))} if own else {}
    text, left, found, seen = "", list[str](), list[str](), dict[str, Any]()
    if own and dataset == "recording":
        if not config.eeg:
            raise ValueError("dataset=recording needs eeg=... or recording=... (--help says what they are)")
        said = dict(entry.partition("=")[::2] for entry in config.markers)
        guess = Tables(config.eeg, config.images, said, config.ignore_markers)
        left, found = guess.left, guess.found
        fields = _fields(StudyFile, [], guess.lines)
        text = _text("study", **fields, left=left, found=[f"the tables of {config.eeg}", *found])
        lines = {name: lines[name] for name in lines if name not in ("eeg", "images", "markers", "ignore_markers")}
    if "markers" in lines:
        raise ValueError("markers is for dataset=recording without recording=: leave it out")
    chosen(_source(lines))  # what is missing, or not of this data set
    lines = _usual(dataset, Path(config.eeg), config.given) | lines
    if own and dataset == "epochs":
        own_config = chosen(_source(lines))
        assert isinstance(own_config, EpochsConfig)
        text, left, found = trials_table(own_config)
    out.parent.mkdir(parents=True, exist_ok=True)
    if own and os.path.lexists(own) and own.read_bytes() != encode(text):  # else of this command, killed just after
        raise ValueError(f"{own} is there already and is not overwritten: give {needs}={own}, or remove it")
    if own:
        write_atomic(own, text)
    try:
        seen = _look(lines, left, found) if not left else {}
    except ValueError as error:
        if not own:
            raise
        left.append(str(error))
    again = [f"{name}={lines[name].value}" for name in ("dataset", "eeg", "images", needs) if name in lines]
    values = {"seen": seen, "left": left, "name": plain(out.stem), "out": plain(shlex.quote(str(out)))}
    about = _text("found", **values, found=found, own=own, again=shlex.join(again)).splitlines()
    images = "" if seen.get("unknown") else lines.get("images", Line(seen.get("folder", ""))).value
    fields = _fields(DATASETS[dataset][0], ["eeg_dtype", "picture_size"], lines)
    write_atomic(out, _text("overlay", **values, **fields, found=about, images=images))
    print(out, *([own] if own else []), *about, sep="\n")
    return 1 if left else 0


def _text(template: str, **values: Any) -> str:
    """A template filled in; what files say in `left` and `found`, without what could end a comment."""
    said = {name: list(map(plain, values[name])) for name in ("left", "found")}
    return render(f"doctor/templates/new_{template}.j2", **values | said)


def _source(lines: dict[str, Line]) -> SourceConfig:
    own = SourceConfig.__dataclass_fields__
    return SourceConfig(**{name: line.value for name, line in lines.items() if name in own})


def _usual(dataset: str, eeg: Path, given: frozenset[str]) -> dict[str, Line]:
    """What of a data set is not as by default, though it was not given: new.yaml, and what its files show."""
    bids = dataset == "epochs" and os.path.lexists(eeg / "dataset_description.json")
    known = yaml.safe_load(USUAL.read_text(encoding="utf-8")).get("BIDS" if bids else dataset, {})
    found = {name: Line(*line) for name, line in known.items() if not (name == "splits" and "splits_file" in given)}
    if dataset == "perceivelab" and "n_chans" not in given:
        trials = load_lists(eeg, "a PerceiveLab EEG", ("labels", "images"))["dataset"]
        shapes = Counter(t["eeg"].shape[0] for t in trials if isinstance(t, dict) and is_table(t.get("eeg")))
        if shapes and (n_chans := shapes.most_common(1)[0][0]) != 128:
            found["n_chans"] = Line(n_chans, "in most trials; the published files have 128")
    if dataset == "things_eeg2":
        people = sorted(int(path.name[4:]) for path in eeg.glob("sub-*") if path.name[4:].isdecimal())
        why = f"the field scores each person alone; there are {some([*map(str, people)], 20)}; 0: all"
        found["subject"] = Line(people[0] if people else 1, why)
    return found


def _split(trials: str, images: str) -> dict[str, Line]:
    """How the trials of a lab's table are split: as it says, by image, or by file where a class has too few images."""
    table = TrialTable(Path(trials), Path(images))
    pictures = {(row.class_name, row.picture) for row in table.rows.values() if row.picture}
    fewest = min(Counter(name for name, _ in pictures).values(), default=0)
    if table.has_split:
        return {}
    if fewest >= 3:
        return {"splits": Line("by_image", "80/10/10 of the images of each class")}
    return {"hold_out": Line([-1], f"whole files: a class has {fewest} images, and splits=by_image needs 3")}


def _look(lines: dict[str, Line], left: list[str], found: list[str]) -> dict[str, Any]:
    """The doctor's examination, for the templates. What it shows to be needed is added to `lines`."""
    given, fault = {name: line.value for name, line in lines.items()}, Faults(collect=True)
    if given["dataset"] == "epochs" and not {"splits", "hold_out"} & given.keys():
        lines |= _split(given["trials"], given["images"])
    try:
        study = open_study(_source(lines), fault)
    except ValueError as error:
        raise ValueError("; ".join([str(error), *fault.found[:3]])) from None
    how = [given.get(name, "") for name in ("background", "orientation")]
    seen = Examination(study, given.get("eeg_dtype", "float16"), *how)
    if seen.refused:
        lines["eeg_dtype"] = Line("float32", "float16 is too coarse for these numbers")
    found += study.notes
    faults = [text for text in fault.found if "holds the same data" not in text]  # which is left out, as a note says
    left += [f"{len(faults):,} faults, of which neuroimagen check lists all: {'; '.join(faults[:3])}"] if faults else []
    names = {known["label"]: known["name"] for known in study.classes}
    train = Counter(trial.label for trial in seen.trials if trial.split == "train")
    shows = (study.trial(i).extra.get("picture") for i in study.splits["train"][:200])
    return {
        **{"study": study, "examined": seen, "train": train, "unknown": UNKNOWN_PICTURE in shows},
        **{"uneven": bool(train) and max(train.values()) > UNEVEN * min(train.values())},
        **{"classes": Counter(names[label] for label in sorted(trial.label for trial in seen.trials))},
        **{"runs": len({t.recording for t in seen.trials if not t.recording.startswith("subject ")})},
        **{"folder": os.path.commonpath(study.picture_folders) if study.picture_folders else ""},
    }


def shown(value: Any) -> str:
    """A value as our YAML files hold it."""
    if isinstance(value, list) and value and isinstance(value[0], Marker):
        return "".join(f"\n  - {shown({k: v for k, v in vars(marker).items() if v})}" for marker in value)
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=1 << 30)
    return text.removesuffix("\n").removesuffix("\n...")


def _fields(schema: Any, packing: list[str], lines: dict[str, Line]) -> dict[str, Any]:
    """For templates/new_fields.j2: the fields, the data set's own first, their values or defaults, how to write one."""
    common = vars(StudyConfig()).keys() - {"dataset"} if issubclass(schema, StudyConfig) else set()
    own = sorted(dataclasses.fields(schema), key=lambda field: field.name in common)
    fields = [*own, *(ShardsConfig.__dataclass_fields__[name] for name in packing)]
    lines = {name: Line(value, plain(why)) for name, (value, why) in lines.items()}
    return {"fields": fields, "usual": vars(ShardsConfig()) | vars(schema()), "lines": lines, "shown": shown}
