"""Captions of the pictures shown, and the file that keeps them: JSON lines of

{"image": name of the picture without extension, "caption": text, "source": who wrote it}
"""

import json
from collections.abc import Mapping
from pathlib import Path

from neuroimagen.files import write_atomic
from neuroimagen.text_files import read_text


def label_caption(name: str) -> str:
    """The paper's label caption: "An image of <class name>"."""
    return f"An image of {name}"


def lines_of(path: Path) -> list[dict[str, str]]:
    """The entries of a captions file, checked."""
    try:
        text = read_text(path)
    except FileNotFoundError:
        raise ValueError(f"captions file {path} does not exist; make one with neuroimagen captions") from None
    entries = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            raise ValueError(f"captions file {path}, line {number} is not JSON") from None
        fields = ("image", "caption", "source")
        if not isinstance(entry, dict) or not all(isinstance(entry.get(field, ""), str) for field in fields):
            raise ValueError(f'captions file {path}, line {number} must be {{"image": ..., "caption": ...}} with texts')
        if "image" not in entry or "caption" not in entry:
            raise ValueError(f"captions file {path}, line {number} has no {'caption' if 'image' in entry else 'image'}")
        entries.append(entry)
    return entries


def read_captions(path: str | Path) -> dict[str, str]:
    """Read a captions file: image name -> caption. Raises ValueError naming the line that is wrong."""
    captions: dict[str, str] = {}
    for entry in lines_of(Path(path)):
        if captions.setdefault(entry["image"], entry["caption"]) != entry["caption"]:
            raise ValueError(f"captions file {path} holds two different captions of {entry['image']}")
    return captions


def captions_source(path: str | Path) -> str:
    """Who wrote the captions of a file: its distinct `source` fields, joined."""
    return ", ".join(sorted({entry.get("source", "unknown") for entry in lines_of(Path(path))}))


def write_captions(path: str | Path, captions: Mapping[str, str], source: str) -> None:
    """Write a captions file, sorted by image name, whole or not at all."""
    lines = [line_of(image, captions[image], source) for image in sorted(captions)]
    write_atomic(Path(path), "".join(lines))


def line_of(image: str, caption: str, source: str) -> str:
    return json.dumps({"image": image, "caption": caption, "source": source}, ensure_ascii=False) + "\n"
