"""Text and tables that others saved, in whatever way; files of ours, which are UTF-8; and a terminal that is not.

Nothing here depends on the locale, and every open() of ours names its encoding (ruff: PLW1514).
"""

import codecs
import csv
import dataclasses
import io
import itertools
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

# UTF-32 before UTF-16, with whose mark its own begins
BOMS = dict.fromkeys((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE), "utf-32")
BOMS |= dict.fromkeys((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE), "utf-16")


def read_text(path: str | Path) -> str:
    """What a text file says; OSError as it comes, ValueError as `decode`."""
    return decode(Path(path).read_bytes(), path)


def decode(data: bytes, path: str | Path) -> str:
    r"""Text in UTF-8, with or without byte order mark, UTF-16 or UTF-32; its lines end in \n, whichever ends they had.

    UTF-16 without a mark is known by its zero bytes. Encodings of one country (Windows-1252, Mac Roman, Shift-JIS ...)
    cannot be told from each other, and a wrong letter makes another name: ValueError, naming file, line and place.
    """
    encoding = next((name for mark, name in BOMS.items() if data.startswith(mark)), "utf-8")
    if encoding == "utf-8" and b"\0" in data:
        even, odd = data[::2].count(0), data[1::2].count(0)
        if len(data) % 2 == 0 and 4 * max(even, odd) > len(data):  # more than half of the characters are of Latin-1
            encoding = "utf-16-be" if even > odd else "utf-16-le"
    try:
        text, wrong = data.decode(encoding), "a zero byte"
        text, broken, _ = text.partition("\0")
    except UnicodeDecodeError as error:
        text, broken = data[: error.start].decode(encoding, "ignore"), "yes"
        wrong = f"byte 0x{data[error.start : error.end].hex()}"
    text = text.lstrip("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    if broken:
        lines = text.split("\n")
        after = f" after {lines[-1][-20:]!r}" if lines[-1] else ""
        name = encoding[:6].upper().rstrip("-")
        raise ValueError(f"{path}, line {len(lines)}: {wrong}{after} is not {name} text: save the file as UTF-8")
    return text


@dataclasses.dataclass
class Table:
    """A table: its columns, and of each row that is not empty its line and as many cells."""

    delimiter: str
    header: list[str]
    rows: Iterator[tuple[int, list[str]]]
    mark: str = ""  # decimal mark, once one was seen

    def number(self, cell: str) -> float:
        """With a decimal comma, where commas do not part the cells. ValueError, too if the table has both marks."""
        if self.delimiter != ",":
            for mark in {",", "."} & {*cell}:
                if self.mark not in ("", mark):
                    raise ValueError(f"decimal {mark} after decimal {self.mark}")
                self.mark = mark
        return float(cell.replace(",", ".") if self.mark else cell)


def read_table(
    text: str, path: str | Path, columns: Sequence[str], fold: bool = False, remedy: str = "add it"
) -> Table:
    """The table in `text`, of file `path`, which must have `columns`; `fold`: whose names are in small letters.

    Commas, semicolons or tabs part the cells: what shows most of the columns asked for, then most columns. ValueError,
    naming the line, for a row shorter or longer than the header and for quotes without end.
    """
    said = re.match(r"sep=(.)\n", text, re.IGNORECASE)  # Excel's own first line
    file = io.StringIO(text[said.end() - 1 :] if said else text)

    def rows(delimiter: str, strict: bool) -> Iterator[tuple[int, list[str]]]:
        file.seek(0)
        reader = csv.reader(file, delimiter=delimiter, strict=strict, skipinitialspace=True)
        line = 0
        try:
            for cells in reader:
                line = reader.line_num
                if any(cell.strip() for cell in cells):
                    yield line, cells
        except csv.Error as error:
            raise ValueError(f"{path}, line {line + 1}, cannot be read as a table ({error}): mend it") from None

    def names(delimiter: str) -> list[str]:
        found = [name.strip() for name in next(rows(delimiter, False), (0, []))[1]]
        return [name.casefold() for name in found] if fold else found

    headers = {delimiter: names(delimiter) for delimiter in (said[1] if said else ",;\t")}
    delimiter, header = max(headers.items(), key=lambda item: (len({*columns} & {*item[1]}), len(item[1])))
    if not header:
        raise ValueError(f"{path} is empty: a table with the columns {', '.join(columns)} is wanted")
    for name in columns:
        if header.count(name) != 1:
            wrong = f"two columns {name!r}" if name in header else f"no column {name!r}"
            what = "remove one" if name in header else remedy
            raise ValueError(f"{path} has {wrong}, it has: {', '.join(header)}; {what}")

    def whole() -> Iterator[tuple[int, list[str]]]:
        for line, cells in itertools.islice(rows(delimiter, True), 1, None):
            while len(cells) > len(header) and not cells[-1].strip():
                cells.pop()
            if len(cells) != len(header):
                wrong = f"{len(cells)} cells and the header {len(header)}"
                raise ValueError(f"{path}, line {line} has {wrong}: mend that row")
            yield line, cells

    return Table(delimiter, header, whole())


def encode(text: str) -> bytes:
    r"""UTF-8; what of a file's name is none, lone surrogates to Python, as \udcXX, which JSON and YAML read back."""
    return text.encode("utf-8", "backslashreplace")


def show_any_name() -> None:
    """Print '?' for what the terminal cannot show."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def leave_locale() -> None:
    """Where the locale has another encoding for the names of files: start this very command anew in UTF-8.

    A name in a table then means the same file as anywhere, and libraries open their files as anywhere; what is printed
    stays in the terminal's encoding.
    """
    if sys.getfilesystemencoding() != "utf-8":
        os.environ.setdefault("PYTHONIOENCODING", sys.stdout.encoding)
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
