"""Published numbers, from published.yaml. Ours stand beside them, never among them.

A protocol field that a source does not state is NOT_STATED; that is a difference too.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import yaml

NOT_STATED = "not stated"
PERCEIVELAB = "perceivelab"  # the paper's data set, as our manifests name it


class Published(NamedTuple):
    """One published row of numbers; `dataset` as our manifests name it, `remark` a sentence for the table's notes.

    protocol: how they were made, one phrase for each field of `unsaid` in published.yaml
    """

    name: str
    values: dict[str, str]
    source: str
    dataset: str
    protocol: dict[str, str]
    remark: str = ""


def _entry(line: dict[str, Any], dataset: str) -> Published:
    return Published(**line | {"dataset": dataset, "protocol": _FILE["unsaid"] | line["protocol"]})


def _table(number: int) -> dict[Any, Published]:
    """A table of the paper, by our row names or by subject number."""
    usual = {"source": f"{PAPER}, Table {number}", "protocol": _FILE["paper_protocol"]}
    return {name: _entry(usual | line, PERCEIVELAB) for name, line in _FILE[f"table_{number}"].items()}


_FILE = yaml.safe_load(Path(__file__).with_name("published.yaml").read_text(encoding="utf-8"))
HEADS: dict[str, str] = _FILE["heads"]
PAPER: str = _FILE["paper"]
PAPER_PROTOCOL: dict[str, str] = _FILE["unsaid"] | _FILE["paper_protocol"]
TABLE_1, TABLE_2, TABLE_3 = _table(1), _table(2), _table(3)
OTHERS = [_entry(line, dataset) for dataset, lines in _FILE["others"].items() for line in lines]


def over_subjects(of: Callable[[list[float]], float]) -> Published:
    """The mean, say, of the paper's Table 2 over its subjects, in as many decimals as are printed."""
    values = {}
    for name in TABLE_2[1].values:
        printed = [entry.values[name] for entry in TABLE_2.values()]
        values[name] = f"{of(list(map(float, printed))):.{len(printed[0].partition('.')[2])}f}"
    return TABLE_2[1]._replace(values=values)


def on(dataset: str | None) -> list[Published]:
    """All that is published on a data set, the paper's own first."""
    return [entry for entry in (*TABLE_1.values(), *OTHERS) if entry.dataset == dataset]
