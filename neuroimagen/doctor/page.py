"""The doctor's page: `report=DIR` gets index.html, which needs no other file, faults.txt and the figures as PNG."""

from pathlib import Path
from typing import Any

from neuroimagen import __version__
from neuroimagen.doctor import examination, picture_hash
from neuroimagen.doctor import findings as rules
from neuroimagen.doctor.findings import Findings
from neuroimagen.files import write_atomic
from neuroimagen.pages import render
from neuroimagen.studies.classes import UNEVEN

MOST_CLASSES = 200  # rows of the class table; THINGS has 1,854
MOST_SUBJECTS = 16  # columns of it
MOST_LISTED = 500  # findings of a kind on the page, and trials of a finding; faults.txt has them all


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
