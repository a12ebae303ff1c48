"""`neuroimagen check SOURCE`: the doctor. What is in a study, what is wrong with it, what a reviewer would ask.

SOURCE is a shard directory, a published file or folder, a simulated study, or a YAML file; `sniff` says which. What is
looked at: docs/doctor.md.
"""

import dataclasses
import re
from collections import defaultdict
from pathlib import Path
from typing import Any, Literal

from neuroimagen import __version__
from neuroimagen.config import option, path_option, stage_section, typed
from neuroimagen.doctor import examination, picture_hash
from neuroimagen.doctor import findings as rules
from neuroimagen.doctor.examination import Examination
from neuroimagen.doctor.findings import Finding, Findings
from neuroimagen.doctor.shards import ShardStudy
from neuroimagen.files import write_atomic
from neuroimagen.pages import render
from neuroimagen.shards.format import SPLITS, ShardSplit, local_folder
from neuroimagen.shards.remote import is_remote
from neuroimagen.studies.classes import UNEVEN
from neuroimagen.studies.open import SourceConfig, open_study
from neuroimagen.studies.pth import load_plain
from neuroimagen.studies.study import Faults, Study, absent

ALIKE = 3  # sentences that differ in names and numbers only, before they are counted
BESIDE = ("block_splits_by_image_all.pth", "splits.pth")  # splits files looked for beside an EEG file
MOST_CLASSES = 200  # rows of the class table; THINGS has 1,854
MOST_SUBJECTS = 16  # columns of it
MOST_LISTED = 500  # findings of a kind on the page, and trials of a finding; faults.txt has them all
YAML = (".yaml", ".yml")
FOLDERS = (  # what is in it, its reader, what it is
    ("dataset_description.json", "epochs", "a BIDS folder"),
    ("sub-*/preprocessed_eeg_*.npy", "things_eeg2", "THINGS-EEG2, for it has sub-*/preprocessed_eeg_*.npy"),
    ("EEG-ImageNet_*.pth", "eeg_imagenet", "EEG-ImageNet (2024), for it has EEG-ImageNet_*.pth"),
    ("**/*[-_][Ee][Pp][Oo].[Ff][Ii][Ff]*", "epochs", "mne.Epochs, for it has files named *-epo.fif or *_epo.fif"),
)


@dataclasses.dataclass
class CheckConfig(SourceConfig):
    """`neuroimagen check SOURCE`"""

    source: str = path_option(
        "",
        "shard directory, published file or folder, or YAML file with a `shards:` section; or give dataset=, eeg= ...",
    )
    eeg_dtype: Literal["float16", "float32"] = option("float16", "that of the shards to be made, which may refuse it")
    shown: int = option(20, "faults, and as many questions, to print; 0: every one")
    report: str = path_option("", "folder for index.html, faults.txt and pictures; empty: text only")


def check(config: CheckConfig) -> int:
    """Examine and print; 0 fine, 1 faults found. ValueError if the source cannot be read at all."""
    config, shards, how = sniff(config)
    fault = Faults(collect=True)
    try:
        study: Study = ShardStudy(shards, fault) if shards else open_study(config, fault)
    except ValueError as error:
        if not fault.found:
            raise
        listed = _listed([Finding(text) for text in fault.found], config)
        raise ValueError(f"{error}\nbefore that:\n{listed}") from None
    said = study.manifest.config if isinstance(study, ShardStudy) else dataclasses.asdict(config)
    dtype = "float32" if shards else config.eeg_dtype
    examined = Examination(study, dtype, said.get("background", ""), said.get("orientation", ""))
    findings = Findings(examined, str(shards or config.recording or config.eeg))
    print(summary(findings, how, config), end="")
    if config.report:
        write_page(findings, how, Path(config.report))
        print(f"{Path(config.report) / 'index.html'}")
    return 1 if findings.faults else 0


def sniff(config: CheckConfig) -> tuple[CheckConfig, Path | None, str]:
    """What `config.source` is: the config with the fields it stands for, or a shard directory; and a sentence.

    Fields that the user gave go before what the source says. ValueError if it is nothing known.
    """
    if not config.source:
        if not (config.eeg or config.recording):
            raise ValueError("please give a source: a shard directory, a published file or folder, or a YAML file")
        return config, None, f"dataset={config.dataset}, as the arguments say"
    path = local_folder(config.source)
    if is_remote(config.source):
        for split in SPLITS:
            ShardSplit(config.source, split)  # fetched into the cache, where they are looked at
    if (path / "manifest.json").is_file():
        return config, path, f"{path}: a shard directory, for it has a manifest.json"
    if path.is_dir():
        found, what = _folder(path)
    elif path.is_file():
        found, what = _file(path)
    else:
        raise ValueError(f"{path} {absent(path) or 'does not exist'}")
    taken = found.get("dataset") if path.suffix not in YAML else ""
    found |= {name: getattr(config, name) for name in config.given}
    filled = CheckConfig(**found)
    files = [file for name in BESIDE if (file := Path(filled.eeg).parent / name).is_file()]
    published = taken == filled.dataset == "perceivelab" and filled.splits == "official"
    if files and published and not filled.splits_file:
        filled = CheckConfig(**found | {"splits_file": str(files[0])})
        what += f"; splits from {files[0].name} beside it"
    return filled, None, what


def _folder(path: Path) -> tuple[dict[str, Any], str]:
    """The fields that a folder stands for, and what it is."""
    if (path / "eeg.pth").is_file():
        found = {"dataset": "perceivelab", "eeg": str(path / "eeg.pth"), "images": str(path / "images")}
        return found, f"{path}: a folder with eeg.pth and images, PerceiveLab format"
    for pattern, dataset, what in FOLDERS:
        if any(path.glob(pattern)):
            return {"dataset": dataset, "eeg": str(path)}, f"{path}: {what}"
    raise ValueError(f"{path} is neither a shard directory (manifest.json) nor a folder of a study that is known")


def _file(path: Path) -> tuple[dict[str, Any], str]:
    """The fields that a file stands for, and what it is."""
    if path.suffix in YAML:
        content = stage_section(path, "shards")
        if {"files", "markers"} & set(content):
            return {"dataset": "recording", "recording": str(path)}, f"{path}: a description of recordings"
        known = {field.name for field in dataclasses.fields(SourceConfig)}
        if not known & set(content):
            raise ValueError(f"{path} has no `shards:` section that says which files to read")
        own = {name: value for name, value in content.items() if name in (*known, "eeg_dtype")}
        given = typed(CheckConfig, own, f"{path}: ")
        return given, f"{path}: a config, of which the `shards:` section says what to read"
    if re.search(r"\.fif(\.gz)?$", path.name, re.IGNORECASE):
        return {"dataset": "epochs", "eeg": str(path)}, f"{path}: an mne file"
    if path.suffix == ".npy":  # of a subject; the reader takes the folder of all subjects
        folder = path.absolute().parent.parent
        return {"dataset": "things_eeg2", "eeg": str(folder)}, f"{folder}: THINGS-EEG2, all of it"
    content = load_plain(path)
    first = content.get("dataset") if isinstance(content, dict) else None
    if isinstance(first, list) and first and isinstance(first[0], dict) and "eeg_data" in first[0]:
        what = f"{path}: EEG-ImageNet (2024), for its trials hold `eeg_data`"
        return {"dataset": "eeg_imagenet", "eeg": str(path)}, what
    return {"dataset": "perceivelab", "eeg": str(path)}, f"{path}: a torch file, read as PerceiveLab EEG-ImageNet-40"


def plain(text: str) -> str:
    """What a file said, without what could steer a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _listed(findings: list[Finding], config: CheckConfig) -> str:
    """So many as `config.shown` says, and of those that are alike a few and their number."""
    alike: dict[str, list[str]] = defaultdict(list)
    for number, finding in enumerate(findings, 1):
        kind = re.sub(r"\S*[\d/]\S*", "", finding.text) if config.shown else str(number)
        most = 3 if config.shown else len(finding.trials)
        alike[kind].append(f"  {number}. {plain(finding.short(most))}")
    lines = []
    for same in alike.values():
        lines += same[:ALIKE] + [f"     and {len(same) - ALIKE} more of this kind"] * (len(same) > ALIKE)
    printed = lines[: config.shown or None]
    if len(printed) < len(lines) or any(len(same) > ALIKE for same in alike.values()):
        where = f"{Path(config.report) / 'faults.txt'} has all faults" if config.report else "shown=0 prints all"
        printed.append(f"  {where}")
    return "\n".join(printed)


def summary(findings: Findings, how: str, config: CheckConfig) -> str:
    """The verdict, for a terminal."""
    return render(
        "doctor/templates/summary.j2",
        **{"findings": findings, "found": findings.found, "study": findings.study, "how": how, "plain": plain},
        **{"wrong": _listed(findings.faults, config), "asked": _listed(findings.questions, config)},
    )


def write_page(findings: Findings, how: str, folder: Path) -> None:
    """index.html, faults.txt and PNGs in `folder`; other files there are left alone. ValueError if it is a file."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"report={folder} is a file: give a folder")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        from neuroimagen.doctor.plots import figures

        drawn, missing = figures(findings.found), ""
    except ImportError as error:
        drawn, missing = {}, f"No figures: {error.name} is not installed; pip install 'neuroimagen[mne]' brings it."
    for name, png in drawn.items():
        write_atomic(folder / f"{name}.png", png)
    faults = "".join(f"{finding.short(len(finding.trials))}\n" for finding in findings.faults)
    write_atomic(folder / "faults.txt", faults.encode("utf-8", "replace"))
    found, study = findings.found, findings.study
    subjects = found.subjects if len(found.subjects) <= MOST_SUBJECTS else []
    page = render(
        "doctor/templates/page.j2",
        **{"findings": findings, "found": found, "study": study, "how": how, "drawn": drawn, "missing": missing},
        **{"rules": rules, "examination": examination, "picture_hash": picture_hash, "uneven": UNEVEN},
        **{"most_listed": MOST_LISTED, "subjects": subjects, "classes": classes(findings, subjects)},
        **{"more_classes": len(study.classes) - MOST_CLASSES, "version": __version__},
    )
    write_atomic(folder / "index.html", page.encode("utf-8", "replace"))


def classes(findings: Findings, subjects: list[int]) -> list[dict[str, Any]]:
    """The first of the label table: label, wnid and name, pictures, the first of them; trials by split and subject."""
    found, rows = findings.found, []
    for c in sorted(findings.study.classes, key=lambda c: c["label"])[:MOST_CLASSES]:
        own = found.label == c["label"]
        images = sum(picture.label == c["label"] for picture in found.pictures.values())
        examples = [(image, found.pictures[image].example) for image in found.examples.get(c["label"], [])]
        groups = [found.split == split for split in findings.study.splits] + [found.subject == s for s in subjects]
        counts = [int((own & group).sum()) for group in groups]
        rows.append({**c, "images": images, "examples": examples, "counts": counts})
    return rows
