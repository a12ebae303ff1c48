"""The table that says which picture belongs to which event of a lab's own recordings; its columns: docs/data.md."""

import dataclasses
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from neuroimagen.studies.study import SPLITS
from neuroimagen.text_files import read_table, read_text

COLUMNS = ("file", "subject", "event", "trial", "image", "class", "wnid", "split")
Key = tuple[str, str, str]  # file, subject, event or trial: a row holds for these, "" for any


@dataclasses.dataclass(eq=False)
class Row:
    """One row, checked; picture is None if its events are to be left out."""

    line: int
    picture: Path | None = None
    class_name: str = ""
    wnid: str = ""
    split: str = ""
    used: bool = False


def plain(value: str) -> str:
    """Text as it is compared: no space around it, one Unicode form (macOS writes another), 7 for 7.0."""
    value = unicodedata.normalize("NFC", value.strip())
    return re.sub(r"^(-?\d+)\.0+$", r"\1", value)


def plain_subject(label: str) -> str:
    """A subject as it is compared: 1 for sub-001 (spreadsheets take the zeros away)."""
    label = plain(label).removeprefix("sub-")
    return str(int(label)) if label.isdecimal() else label


class TrialTable:
    """The rows of `path`, and which of them an event belongs to."""

    def __init__(self, path: Path, images: Path) -> None:
        """ValueError, naming the line, for whatever in the table cannot be; missing pictures are in `missing`."""
        self.path, self.images = path, images
        self.rows: dict[Key, Row] = {}
        self.missing: dict[Path, int] = {}  # picture -> the first line that names it
        self.wnids: dict[str, str] = {}  # class -> wnid
        self.classes: dict[Path, str] = {}  # picture -> class
        self.folders: dict[Path, dict[Path, Path]] = {}  # folder -> its files by their names with endings in lower case
        self.stems: dict[str, Path] = {}  # picture's name without its ending -> picture
        if not images.is_dir():
            raise ValueError(f"images={images} is not a folder: give the one that column image of {path} starts from")
        try:
            table = read_table(read_text(path), path, ("image", "class"), fold=True)
        except OSError as error:
            raise ValueError(f"trials={path} cannot be read as a table ({error.strerror}): save it as CSV") from None
        for name in COLUMNS:
            if table.header.count(name) > 1:
                raise ValueError(f"{path} has two columns {name!r}: remove one")
        self.by_event, self.has_split = "event" in table.header, "split" in table.header
        if self.by_event == ("trial" in table.header):
            raise ValueError(f"{path} must have a column 'event' or a column 'trial', and not both")
        for line, cells in table.rows:
            self._add(line, table.header, cells)
        if not self.rows:
            raise ValueError(f"{path} has no row below its header: add one for each event that shows a picture")

    def _add(self, line: int, header: list[str], cells: list[str]) -> None:
        where = f"{self.path}, line {line}"
        cell = {name: plain(value) for name, value in zip(header, cells, strict=True)}
        what = cell["event" if self.by_event else "trial"]
        if not what or not (self.by_event or what.isdecimal()):
            wanted = "an event's name or number" if self.by_event else "a whole number from 0"
            raise ValueError(f"{where}: column {'event' if self.by_event else 'trial'} must hold {wanted}")
        key = (cell.get("file", ""), plain_subject(cell.get("subject", "")), what if self.by_event else str(int(what)))
        if key in self.rows:
            raise ValueError(f"{where} says the same event as line {self.rows[key].line}: remove one of them")
        self.rows[key] = row = Row(line)
        if not cell["image"]:
            return
        row.class_name, row.wnid = cell["class"], cell.get("wnid", "") or cell["class"]
        row.split = cell.get("split", "").casefold()
        if not row.class_name:
            raise ValueError(f"{where}: column class is empty; name the class of {cell['image']}")
        if self.has_split and row.split not in SPLITS:
            raise ValueError(f"{where}: split {row.split!r} must be train, val or test")
        row.picture = self._picture(where, cell["image"])
        if self.classes.setdefault(row.picture, row.class_name) != row.class_name:
            raise ValueError(
                f"{where}: {cell['image']} is of class {row.class_name!r} here and {self.classes[row.picture]!r} above"
            )
        if self.wnids.setdefault(row.class_name, row.wnid) != row.wnid:
            raise ValueError(
                f"{where}: class {row.class_name!r} has wnid {row.wnid} here and {self.wnids[row.class_name]} above"
            )
        if self.stems.setdefault(row.picture.stem, row.picture) != row.picture:
            raise ValueError(
                f"{where}: {row.picture} and {self.stems[row.picture.stem]} have the same name, by which images are "
                "known: rename one"
            )
        if row.picture not in self.missing and not row.picture.is_file():
            self.missing[row.picture] = line

    def _picture(self, where: str, name: str) -> Path:
        """The file that `name` names below the folder of pictures, in whichever Unicode form its name is written.

        Or, where that is not there, with \\ as Windows writes / and with its ending in another case.
        """
        if Path(name).is_absolute() or ".." in re.split(r"[/\\]", name):
            raise ValueError(f"{where}: image {name} must be a path below images={self.images}, without '..'")
        names = dict.fromkeys([name, name.replace("\\", "/")])
        forms = [self.images / unicodedata.normalize(form, one) for one in names for form in ("NFC", "NFD")]
        if found := next((path for path in forms if path.is_file()), None):
            return found
        for path in forms:
            if path.parent not in self.folders:
                inside = path.parent.iterdir() if path.parent.is_dir() else []
                self.folders[path.parent] = {p.with_suffix(p.suffix.lower()): p for p in sorted(inside)}
            if found := self.folders[path.parent].get(path.with_suffix(path.suffix.lower())):
                return found
        return forms[0]

    def find(self, files: Iterable[str], subject: str, whats: Iterable[str]) -> Row | None:
        """The row for an event: the first of its names that has one, and of that the row that says most."""
        files = [*map(plain, files), ""]
        for what in whats:
            for file in files:
                for who in (subject, ""):
                    row = self.rows.get((file, who, plain(what)))
                    if row:
                        row.used = True
                        return row
        return None
