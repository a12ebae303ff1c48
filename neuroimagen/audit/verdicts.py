"""Parts of an audit -> its verdicts, by the rules of questions.yaml."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from scipy.stats import false_discovery_control

_FILE = yaml.safe_load(Path(__file__).with_name("questions.yaml").read_text(encoding="utf-8"))
LIMITS: dict[str, float] = _FILE["limits"]
QUESTIONS: dict[str, dict[str, str]] = _FILE["questions"]
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

    @property
    def title(self) -> str:
        return QUESTIONS[self.name]["title"]

    @property
    def rule(self) -> str:
        return QUESTIONS[self.name]["rule"]


def lacking(part: Part | None) -> str:
    """Why a part cannot tell; "" if it can."""
    if part is None:
        return "not computed with quick=true"
    if "why" in part:
        return str(part["why"])
    if part.get("unit") != "stretch" and part["n"] < LIMITS["fewest"]:
        return f"{part['n']} units are too few to tell by pictures"
    if part.get("ways", LIMITS["ways"]) < LIMITS["ways"]:
        return f"there are {part['ways']:.0f} orders of the right answers, too few for a small p"
    return ""


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
        named = f"EEG of before {1000 * LIMITS['before']:g} ms names {100 * before['value']:.1f} % of classes"
        return f"{named}, when no response can exist: the accuracy is no measure of vision"
    if lacking(before) and about["class_blocks"] and significant(parts.get("clock")):
        return "the EEG tells when in its block a trial was, and classes came in blocks: drift can name the class"
    return ""


def vision(parts: dict[str, Part], about: dict[str, Any]) -> Verdict:
    names = {"within": "picture within its class", "people": "people not trained on"}
    names |= {"blocks held out": "held-out blocks", "response": "response against before"}
    lack = {name: lacking(parts.get(name)) or (name == "people" and _ordered(about)) for name in names}
    can = {names[name]: parts[name]["p"] for name, reason in lack.items() if not reason}
    why = [f"{names[name]}: {reason}" for name, reason in lack.items() if reason]
    real = parts["within"] if about["zero_shot"] else parts["real"]
    if reason := lacking(real):
        return Verdict("vision", UNKNOWN, "", [reason, *why])
    number = _chance(real)
    called = [f"Drift: {said}"] if (said := drift(parts, about)) else []
    if not can:
        return Verdict("vision", UNKNOWN, number, [*called, "no control that drift cannot pass is possible here", *why])
    best = min(can, key=lambda name: can[name])
    why = [*called, f"of the controls that drift cannot pass the best is: {best}, p = {can[best]:.4f}", *why]
    if not about["timed"] and best == names["people"]:
        why.append("the files do not tell the order of trials: if it was the same for all, drift could do this too")
    return Verdict("vision", "", number, why, max(real["p"], min(1.0, len(can) * can[best])))


def _ordered(about: dict[str, Any]) -> str:
    pairs = about["people"] * (about["people"] - 1) / 2
    random = 3 / math.sqrt(max(1, (about["classes"] - 1) * pairs))  # standard deviations of it in random orders
    same = (about["same_order"] or 0) > min(LIMITS["same_order"], random)
    return "blocks of classes came in much the same order for all, which drift could follow" if same else ""


def tested(name: str, part: Part | None, reason: str = "") -> Verdict:
    """A question that one part answers."""
    if why := lacking(part) or reason:
        return Verdict(name, UNKNOWN, "", [why])
    assert part is not None
    return Verdict(name, "", _chance(part), [], part["p"])


def linear(parts: dict[str, Part]) -> Verdict:
    floor = parts["floor"]
    if "maps" not in floor:
        why = floor.get("why") or floor.get("maps_why") or "no reconstruct run was given (run=)"
        return Verdict("linear", UNKNOWN, "", [why])
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
    asked = [verdict.p for verdict in found if verdict.p is not None]
    corrected = iter(false_discovery_control(asked) if asked else [])
    for i, verdict in enumerate(found):
        if verdict.p is not None:
            q = float(next(corrected))
            found[i] = verdict._replace(q=q, answer=YES if q <= LIMITS["alpha"] else NO)
    return found
