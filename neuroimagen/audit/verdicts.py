"""Parts of an audit -> its verdicts, by the rules of questions.yaml."""

from pathlib import Path
from typing import Any, NamedTuple

import yaml
from scipy.stats import false_discovery_control

_FILE = yaml.safe_load(Path(__file__).with_name("questions.yaml").read_text(encoding="utf-8"))
LIMITS: dict[str, float] = _FILE["limits"]
QUESTIONS: dict[str, dict[str, str]] = _FILE["questions"]
YES, NO, UNKNOWN = "supported", "not supported", "cannot be told"
Part = dict[str, Any]


class Finding(NamedTuple):
    """What is known of a question before correction: its p, or why there is none; and the numbers in a few words."""

    p: float | None
    number: str
    why: list[str]
    holds: bool | None = None  # of a question without a p


class Verdict(NamedTuple):
    name: str
    answer: str
    number: str
    why: list[str]
    p: float | None
    q: float | None  # corrected over the questions of the page

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


def _chance(what: str, part: Part) -> str:
    return f"{what} {100 * part['value']:.1f} % (chance {100 * part['null']:.1f} %)"


def _tested(what: str, part: Part | None) -> Finding:
    if why := lacking(part):
        return Finding(None, "", [why])
    assert part is not None
    return Finding(part["p"], _chance(what, part), [])


def immune(parts: dict[str, Part], about: dict[str, Any]) -> tuple[dict[str, float], dict[str, str]]:
    """Controls that drift cannot pass: name -> p of those that can be asked, name -> why not of the others."""
    names = {"within": "picture within its class", "people": "people not trained on"}
    names |= {"blocks": "held-out blocks", "response": "response against before"}
    lack = {name: lacking(parts.get(name)) for name in names}
    if not lack["people"] and (about["same_order"] or 0) > LIMITS["same_order"]:
        lack["people"] = "blocks of classes came in the same order for all"
    can = {names[name]: parts[name]["p"] for name, why in lack.items() if not why}
    return can, {names[name]: why for name, why in lack.items() if why}


def drift(parts: dict[str, Part], about: dict[str, Any]) -> str:
    """What shows that drift or the like names the class; "" if nothing does."""
    real, before = parts.get("real"), parts.get("before")
    if real is None or not significant(real):
        return ""
    if before is not None and significant(before):
        share = (before["value"] - before["null"]) / (real["value"] - real["null"])
        if share >= LIMITS["explained"]:
            return (
                f"{100 * before['value']:.1f} % of pictures get their class from EEG of before {1000 * LIMITS['before']:g} ms, "
                "when no response can exist: the accuracy is no measure of vision"
            )
    if lacking(before) and about["class_blocks"] and significant(parts.get("clock")):
        return "the EEG tells when in its block a trial was, and each block has one class: drift can name the class"
    return ""


def vision(parts: dict[str, Part], about: dict[str, Any]) -> Finding:
    real = parts.get("real")
    can, cannot = immune(parts, about)
    why = [f"{name}: {reason}" for name, reason in cannot.items()]
    if reason := lacking(real):
        within = parts.get("within")
        if not about["zero_shot"] or lacking(within):
            return Finding(None, "", [reason, *why])
        real = within
    assert real is not None
    number = _chance("accuracy" if not about["zero_shot"] else "two-way", real)
    if not can:
        return Finding(None, number, ["no control that drift cannot pass is possible here", *why])
    best = min(can, key=lambda name: can[name])
    p = max(real["p"], min(1.0, len(can) * can[best]))
    why.insert(0, f"of the controls that drift cannot pass the best is: {best}, p = {can[best]:.4f}")
    if called := drift(parts, about):
        why.insert(0, f"Drift: {called}")
    if not about["timed"] and best == "people not trained on":
        why.append(
            "the files do not tell the order of trials; had classes the same order for all, drift could do this too"
        )
    return Finding(p, number, why)


def people(parts: dict[str, Part], about: dict[str, Any]) -> Finding:
    found = _tested("accuracy", parts.get("people"))
    if found.p is not None and (about["same_order"] or 0) > LIMITS["same_order"]:
        return Finding(None, found.number, ["blocks of classes came in the same order for all: drift could follow it"])
    return found


def linear(parts: dict[str, Part], about: dict[str, Any]) -> Finding:
    floor = parts.get("floor", {})
    if "why" in floor or "maps" not in floor:
        return Finding(None, "", [floor.get("why") or floor.get("maps_why") or "no reconstruct run was given (run=)"])
    wins = "" if floor["maps"] > floor["ridge"] else "ridge regression wins"
    return Finding(floor["p_maps"], f"r = {floor['maps']:.2f}, of ridge {floor['ridge']:.2f}", [wins] * bool(wins))


def unused(parts: dict[str, Part], about: dict[str, Any]) -> Finding:
    overlap = parts.get("overlap", {})
    if about["split_by"] == "run":
        return Finding(None, "test runs are held out whole", [], True)
    if "shared" not in overlap:
        return Finding(None, "", [overlap.get("why", "not computed")])
    same = overlap["shared"] or overlap["twins"]
    number = f"{max(overlap['shared'], overlap['twins'])} of {overlap['n_pictures']} test pictures in train"
    return Finding(None, number, [], about["split_by"] == "image" and not same)


def judge(parts: dict[str, Part], about: dict[str, Any]) -> list[Verdict]:
    """The verdict of every question, in order. about: class_blocks, timed, same_order, split_by, zero_shot."""
    found = {
        "vision": vision(parts, about),
        "picture": _tested("two-way", parts.get("within")),
        "people": people(parts, about),
        "nearest": _tested("two-way", parts.get("overlap")),
        "linear": linear(parts, about),
        "unused": unused(parts, about),
    }
    asked = [name for name, finding in found.items() if finding.p is not None]
    corrected = dict(zip(asked, false_discovery_control([found[n].p for n in asked]) if asked else [], strict=True))
    verdicts = []
    for name, finding in found.items():
        q = corrected.get(name)
        holds = finding.holds if q is None else q <= LIMITS["alpha"]
        answer = UNKNOWN if holds is None else YES if holds else NO
        verdicts.append(Verdict(name, answer, finding.number, finding.why, finding.p, None if q is None else float(q)))
    return verdicts
