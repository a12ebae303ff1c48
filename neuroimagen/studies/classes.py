"""The 40 classes of the PerceiveLab data set, in its label order, and 40 fine ones of EEG-ImageNet (classes.csv).

Sources: Spampinato et al. 2017; Zhu et al. 2024, whose other 40 are those of the former.
"""

from pathlib import Path
from typing import NamedTuple

from neuroimagen.text_files import read_table, read_text

UNEVEN = 2.0  # most frequent class / rarest: above it classes are to be weighed alike


class ImageClass(NamedTuple):
    label: int
    wnid: str
    name: str
    glyph: str  # the OpenMoji pictogram that stands for the class in the simulated study; "" = drawn by us


def _rows() -> list[list[str]]:
    path = Path(__file__).with_name("classes.csv")
    return [cells for _, cells in read_table(read_text(path), path, ("set", "wnid", "name", "openmoji")).rows]


_TABLE = _rows()
CLASSES = tuple(
    ImageClass(label, wnid, name, chr(int(code, 16)) if code else "")
    for label, (_, wnid, name, code) in enumerate(row for row in _TABLE if row[0] == "perceivelab")
)
BY_WNID = {c.wnid: c for c in CLASSES}
NAMES = {wnid: name for _, wnid, name, _ in _TABLE}  # wnid -> name, of all 80
