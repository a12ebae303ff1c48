"""What the score book can measure: metrics.yaml, with the controls of metrics that compare pictures."""

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import yaml


class Metric(NamedTuple):
    """One metric; texts may hold {facts} of `describe`. Fields: metrics.yaml."""

    head: str
    definition: str
    source: str
    chance_of: str = ""
    better: str | None = "higher"  # | "lower"
    scale: int = 1  # 100: shown in per cent
    digits: int = 3
    by_class: bool = True  # makes sense within one class
    kind: str = "alone"
    network: str | None = None
    layer: str = ""
    chance: float | None = None  # where it is the same number in every run


def _controls(name: str, of: Metric) -> dict[str, Metric]:
    """What a row's reconstructions get blindly, and what they gain over that: `controls` of metrics.yaml.
    Smooth or frequent pictures do well in comparisons of two pictures, whatever was seen.
    """
    gain = f"{of.head} - {of.head} other" if of.better == "higher" else f"{of.head} other - {of.head}"
    told = {"head": of.head, "gain": gain}
    return {
        f"{name}_{which}": Metric(**about | {field: about[field].format(**told) for field in ("head", "definition")})
        for which, about in _CONTROLS.items()
    }


_FILE = yaml.safe_load(Path(__file__).with_name("metrics.yaml").read_text(encoding="utf-8"))
_CONTROLS = _FILE.pop("controls")
METRICS: dict[str, Metric] = {}
CONTROL_OF: dict[str, str] = {}
for _name, _entry in _FILE.items():
    _entry["definition"] = _entry["definition"].replace("{of}", _entry.pop("of", ""))
    METRICS[_name] = Metric(**({"scale": 100, "digits": 1} if _entry.pop("percent", False) else {}) | _entry)
    if METRICS[_name].kind in ("pair", "distance"):
        _both = _controls(_name, METRICS[_name])
        METRICS |= _both
        CONTROL_OF |= dict.fromkeys(_both, _name)
# The paper's three with their controls: cheap, and what the tables are made of, so always measured.
PAPERS = ("acc", "acc_balanced", "auc", "shuffled", "gap", "acc_label", "is", "ssim", "ssim_grey")
# Better means nothing for a control, and a set has no best sample.
BEST = [name for name, metric in METRICS.items() if metric.better and metric.by_class]


def of_kind(*kinds: str) -> dict[str, Metric]:
    return {name: metric for name, metric in METRICS.items() if metric.kind in kinds}


def chosen(names: Iterable[str]) -> list[str]:
    """The metrics asked for and the paper's, each with its controls, in the order of METRICS; "all" is all.

    ValueError: no such metric.
    """
    names = list(names)
    for name in names:
        if name not in ("all", "paper", *METRICS):
            near = difflib.get_close_matches(name, METRICS, 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"metrics: {name!r} is not one of all, paper, {', '.join(METRICS)}.{hint}")
    asked = [*(CONTROL_OF.get(name, name) for name in names), *PAPERS]
    return [name for name in METRICS if "all" in names or CONTROL_OF.get(name, name) in asked]


def describe(name: str, **facts: Any) -> dict[str, Any]:
    """What scores.json says of a metric, before its ceiling.

    facts: n_way, top_k, n_classes; distractors, "classifier" or "study"; gallery, how many different ground-truth
    pictures, gallery_way; splits; n_pictures, reconstructions of a row; dealt, over which shuffles X other is a mean.
    """
    metric = METRICS[name]
    return {
        **{key: getattr(metric, key) for key in ("head", "scale", "digits", "better", "chance")},
        "chance_of": metric.chance_of.format(**facts) or "no chance level is defined",
        "ceiling": None,
        "ceiling_of": "the ground-truth pictures themselves",
        "definition": metric.definition.format(**facts),
        "source": metric.source,
    }
