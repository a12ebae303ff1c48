"""Parts of an audit -> its verdicts, by the rules of questions.yaml."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from scipy.stats import false_discovery_control

_FILE = yaml.safe_load(Path(__file__).with_name("questions.yaml").read_text(encoding="utf-8"))
LIMITS: dict[str, float] = _FILE["limits"]
QUESTIONS: dict[str, dict[str, str]] = _FILE["questions"]
VARIANTS: dict[str, dict[str, dict[str, Any]]] = _FILE["variants"]  # who opens them -> name -> options
SAID, CONTROLS = _FILE["sentences"], _FILE["controls"]
YES, NO, UNKNOWN = "supported", "not supported", "cannot be told"
Part = dict[str, Any]


class Verdict(NamedTuple):
    """p: None where the question has none. q: p, corrected over the questions of the page."""

    name: str
    answer: str
    number: str
    why: list[str]
    p: float | None = None
    q: float | None = None


def lacking(part: Part | None) -> str:
    """Why a part cannot tell; "" if it can."""
    if part is None:
        return str(SAID["quick"])
    if "why" in part:
        return str(part["why"])
    few = part.get("unit") != "stretch" and part["n"] < LIMITS["fewest"]
    orders = part.get("ways", LIMITS["ways"]) < LIMITS["ways"]
    return SAID["few" if few else "orders"].format(**part) if few or orders else ""


def significant(part: Part | None) -> bool:
    return part is not None and not lacking(part) and part["p"] <= LIMITS["alpha"]


def _chance(part: Part) -> str:
    return f"{100 * part['value']:.1f} % (chance {100 * part['null']:.1f} %)"


def drift(parts: dict[str, Part], about: dict[str, Any]) -> str:
    """What shows that drift or the like names the class; "" if nothing does."""
    real, before = parts["real"], parts.get("before")
    if not significant(real):
        return ""
    excess = LIMITS["explained"] * (real["value"] - real["null"])
    if before and significant(before) and before["value"] - before["null"] >= excess:
        return str(SAID["drift"].format(ms=1000 * LIMITS["before"], percent=100 * before["value"]))
    untold = lacking(before) and about["class_blocks"] and significant(parts.get("clock"))
    return str(SAID["clock"]) if untold else ""


def _ordered(about: dict[str, Any]) -> str:
    pairs = about["people"] * (about["people"] - 1) / 2
    random = 3 / math.sqrt(max(1, (about["classes"] - 1) * pairs))  # standard deviations of it in random orders
    return SAID["same_order"] if (about["same_order"] or 0) > min(LIMITS["same_order"], random) else ""


def vision(parts: dict[str, Part], about: dict[str, Any]) -> Verdict:
    lack = {name: lacking(parts.get(name)) or (name == "people" and _ordered(about)) for name in CONTROLS}
    can = {name: parts[name]["p"] for name, reason in lack.items() if not reason}
    why = [f"{CONTROLS[name]}: {reason}" for name, reason in lack.items() if reason]
    real = parts["within" if about["zero_shot"] else "real"]
    if reason := lacking(real):
        return Verdict("vision", UNKNOWN, "", [reason, *why])
    called = [f"Drift: {said}"] if (said := drift(parts, about)) else []
    if not can:
        return Verdict("vision", UNKNOWN, _chance(real), [*called, SAID["no_control"], *why])
    best = min(can, key=lambda name: can[name])
    why = [*called, SAID["best"].format(name=CONTROLS[best], p=can[best]), *why]
    why += [SAID["untimed"]] if not about["timed"] and best == "people" else []
    return Verdict("vision", "", _chance(real), why, max(real["p"], min(1.0, len(can) * can[best])))


def tested(name: str, part: Part, reason: str = "") -> Verdict:
    """A question that one part answers."""
    if why := lacking(part) or reason:
        return Verdict(name, UNKNOWN, "", [why])
    return Verdict(name, "", _chance(part), [], part["p"])


def linear(parts: dict[str, Part]) -> Verdict:
    floor = parts["floor"]
    if "maps" not in floor:
        return Verdict("linear", UNKNOWN, "", [floor.get("why") or floor.get("maps_why") or SAID["no_run"]])
    wins = ["ridge regression wins"] if floor["ridge"] > floor["maps"] else []
    return Verdict("linear", "", f"r = {floor['maps']:.2f}, of ridge {floor['ridge']:.2f}", wins, floor["p_maps"])


def unused(parts: dict[str, Part], about: dict[str, Any]) -> Verdict:
    overlap = parts["overlap"]
    if copies := overlap.get("copies"):
        return Verdict("unused", NO, f"{copies} test trials hold the very EEG of a train trial", [])
    if about["split_by"] == "run":
        return Verdict("unused", YES, "test runs are held out whole", [])
    if "shared" not in overlap:
        return Verdict("unused", UNKNOWN, "", [overlap["why"]])
    same = max(overlap["shared"], overlap["twins"])
    answer = NO if same or about["split_by"] != "image" else YES
    return Verdict("unused", answer, f"{same} of {overlap['n_pictures']} test pictures in train", [])


def judge(parts: dict[str, Part], about: dict[str, Any]) -> list[Verdict]:
    """The verdict of every question, in order. about: as in audit.json, `study`."""
    found = [
        vision(parts, about),
        tested("picture", parts["within"]),
        tested("people", parts["people"], _ordered(about)),
        tested("nearest", parts["overlap"]),
        linear(parts),
        unused(parts, about),
    ]
    asked = {verdict.name: verdict.p for verdict in found if verdict.p is not None}
    q = dict(zip(asked, false_discovery_control([*asked.values()]).tolist() if asked else [], strict=True))
    answers = {name: YES if value <= LIMITS["alpha"] else NO for name, value in q.items()}
    return [v._replace(q=q[v.name], answer=answers[v.name]) if v.name in q else v for v in found]
