"""The rules of questions.yaml, on numbers made up for each."""

from pathlib import Path

import pytest

from neuroimagen.audit.verdicts import LIMITS, NO, QUESTIONS, UNKNOWN, YES, drift, judge

REPO = Path(__file__).parents[3]
ABOUT = {
    "class_blocks": False,
    "timed": True,
    "same_order": None,
    "split_by": "image",
    "zero_shot": False,
    "people": 4,
    "classes": 6,
}


def part(value, p, null=0.1, n=40, ways=1e9, **more):
    return {"value": value, "null": null, "p": p, "n": n, "ways": ways} | more


def parts(**changed):
    """A study in which everything is as one hopes."""
    found = {
        "real": part(0.6, 0.0002),
        "before": part(0.1, 0.6),
        "people": part(0.4, 0.0002, unit="picture"),
        "within": part(0.8, 0.0002, null=0.5),
        "overlap": part(0.8, 0.0002, null=0.5, shared=0, twins=0, n_pictures=40),
        "floor": part(0.6, 0.0002, maps=0.7, ridge=0.6, p_maps=0.0002, p_ridge=1.0, n_maps=40),
    }
    return {name: about for name, about in (found | changed).items() if about is not None}


def answers(about=ABOUT, **changed):
    return {verdict.name: verdict.answer for verdict in judge(parts(**changed), about)}


def test_all_is_well():
    assert answers() == dict.fromkeys(QUESTIONS, YES) and drift(parts(), ABOUT) == ""


def test_accuracy_alone_is_not_vision():
    """Drift in blocks: the class is decoded, and nothing that drift cannot give."""
    nothing = {
        "within": part(0.5, 0.5, null=0.5),
        "people": part(0.1, 0.4, unit="stretch"),
        "before": part(0.5, 0.0002),
    }
    about = ABOUT | {"class_blocks": True, "same_order": 0.1}
    found = answers(about, **nothing)
    assert found["vision"] == found["people"] == found["picture"] == NO
    said = drift(parts(**nothing), about)
    assert "50 ms" in said and "no measure of vision" in said
    vision = judge(parts(**nothing), about)[0]
    assert any(said in why for why in vision.why) and vision.number == "60.0 % (chance 10.0 %)"


def test_signal_in_drift_is_vision_and_drift_is_named():
    before = part(0.5, 0.0002)
    about = ABOUT | {"class_blocks": True, "same_order": 0.1}
    assert answers(about, before=before)["vision"] == YES and drift(parts(before=before), about)


@pytest.mark.parametrize("value,called", [(0.36, True), (0.34, False)])
def test_a_small_share_before_a_response_is_not_called_drift(value, called):
    """Of 50 % above chance more than 25 %."""
    assert bool(drift(parts(before=part(value, 0.0002)), ABOUT)) == called
    assert drift(parts(before=part(value, 0.02)), ABOUT) == ""


def test_without_such_a_window_the_clock_tells_where_a_block_has_one_class():
    clock = part(0.3, 0.0002, unit="stretch")
    lost = {"before": {"why": "nothing from before 50 ms"}, "clock": clock}
    assert drift(parts(**lost), ABOUT | {"class_blocks": True}) and drift(parts(**lost), ABOUT) == ""


def test_no_accuracy_is_not_supported_whatever_else_is():
    assert answers(real=part(0.1, 0.4))["vision"] == NO


def test_controls_share_the_limit():
    """One of two controls below the limit, and not half of it: other draws of it are what chance gives."""
    weak = {"within": part(0.6, 0.6 * LIMITS["alpha"], null=0.5), "people": part(0.1, 0.5, unit="picture")}
    assert answers(**weak)["vision"] == NO
    alone = judge(parts(**weak | {"people": {"why": "there is one person"}}), ABOUT)[0]
    assert alone.p == pytest.approx(0.006) and alone.answer == YES


def test_few_pictures_tell_nothing():
    few = part(0.9, 0.0002, n=19)
    found = answers(real=few, within=few, people=few)
    assert found["vision"] == found["picture"] == found["people"] == UNKNOWN
    stretches = answers(people=part(0.9, 0.0002, n=12, unit="stretch"))
    assert stretches["people"] == YES
    assert answers(people=part(0.9, 0.0002, n=4, ways=6, unit="stretch"))["people"] == UNKNOWN


def test_the_same_order_for_all_leaves_people_open():
    about = ABOUT | {"class_blocks": True, "same_order": 0.9}
    assert answers(about)["people"] == UNKNOWN
    assert answers(about, within=part(0.5, 0.5, null=0.5))["vision"] == NO
    alike = {"class_blocks": True, "same_order": 0.3}  # which random orders of 6 classes may have, not those of 40
    assert answers(ABOUT | alike)["people"] == YES and answers(ABOUT | alike | {"classes": 40})["people"] == UNKNOWN
    nothing = answers(about, within={"why": "the files do not say which picture was shown, only its class"})
    assert nothing["vision"] == nothing["picture"] == UNKNOWN


def test_an_unknown_order_is_said():
    about = ABOUT | {"timed": False}
    why = judge(parts(within=part(0.5, 0.5, null=0.5)), about)[0].why
    assert "if it was the same for all, drift could do this too" in why[-1]


def test_recordings_of_a_category():
    """As of the N170: one person, runs held out in turn, the picture not recorded."""
    untold = {"why": "the files do not say which picture was shown, only its class"}
    about = ABOUT | {"split_by": "run"}
    changed = {"within": untold, "overlap": untold, "floor": untold, "people": {"why": "there is one person"}}
    found = answers(about, **changed, **{"blocks held out": part(0.7, 0.0002, null=0.5)})
    assert found == {"vision": YES, "unused": YES} | dict.fromkeys(["picture", "people", "nearest", "linear"], UNKNOWN)


def test_zero_shot_is_told_by_pictures():
    about = ABOUT | {"zero_shot": True}
    untold = {"why": "no class of test is in train"}
    found = judge(parts(real=untold, people=untold), about)[0]
    assert found.answer == YES and found.number.startswith("80.0 %")


def test_ridge_that_wins_is_said():
    floor = part(0.6, 0.0002, maps=0.4, ridge=0.6, p_maps=1.0, p_ridge=0.0002, n_maps=40)
    linear = judge(parts(floor=floor), ABOUT)[4]
    assert linear.answer == NO and linear.why == ["ridge regression wins"]
    assert answers(floor=part(0.6, 0.0002))["linear"] == UNKNOWN


@pytest.mark.parametrize("change", [{"shared": 1}, {"twins": 1}, {"copies": 1}])
def test_test_pictures_in_train_are_no_unused_data(change):
    overlap = part(0.8, 0.0002, null=0.5, shared=0, twins=0, n_pictures=40) | change
    assert answers(overlap=overlap)["unused"] == NO
    assert answers(ABOUT | {"split_by": "trial"})["unused"] == NO


def test_questions_are_corrected_together():
    """p of .006 of one of five questions; the others hold none: .006 x 5 is above the limit of .01."""
    none = {
        "real": part(0.1, 0.5),
        "people": part(0.1, 0.9),
        "overlap": part(0.5, 0.9, shared=0, twins=0, n_pictures=40),
    }
    floor = part(0.6, 0.9, maps=0.4, ridge=0.6, p_maps=0.9, p_ridge=0.1, n_maps=40)
    verdict = judge(parts(**none, floor=floor, within=part(0.6, 0.006, null=0.5)), ABOUT)[1]
    assert verdict.q == pytest.approx(0.03) and verdict.answer == NO


def test_docs_have_the_rules_as_they_are():
    text = " ".join((REPO / "docs" / "audit.md").read_text(encoding="utf-8").split())
    for about in QUESTIONS.values():
        assert f"**{about['title']}** {' '.join(about['rule'].split())}" in text
