"""Rows: what each needs, which are drawn unasked, and how they stand in the tables."""

import pytest

from neuroimagen.rows import (
    BASELINES,
    BEST_FIRST,
    FULL,
    IMAGE,
    IN_TABLES,
    PAPER,
    ROWS,
    RUNS,
    VALIDITY,
    kind_of,
    rows_to_draw,
    uses,
)


def test_rows_say_what_they_need():
    assert {row: about.needs for row, about in ROWS.items() if about.kind == "paper"} == {
        "I": ["saliency"],
        "L": ["semantics_label"],
        "B": ["semantics_blip"],
        "B+I": ["saliency", "semantics_blip"],
        "L+I": ["saliency", "semantics_label"],
        "none": [],
    }
    assert ROWS["oracle"].needs == ROWS["random class"].needs == [] and ROWS["NeuroVision"].needs == ["neurovision"]
    assert {row: ROWS[row].needs for row in VALIDITY} == {
        "class": ["semantics_label"],
        "mean map": ["saliency"],
        "map of class": ["saliency"],
        "surrogate": ["saliency", "semantics_label"],
        "ridge I": [],
        "ridge L": [],
        "ridge L+I": [],
    }
    assert {row: ROWS[row].needs for row in IMAGE} == {
        "E": ["contrastive"],
        "E+L": ["semantics_label", "contrastive"],
        "E+I": ["saliency", "contrastive"],
        "E+L+I": ["saliency", "semantics_label", "contrastive"],
        "E oracle": [],
    }
    kinds = ("paper", "image", "control", "linear", "baseline")
    assert all(set(about.needs) <= set(RUNS) and about.kind in kinds for about in ROWS.values())


def test_without_names_the_given_runs_decide():
    runs = dict.fromkeys(RUNS) | {"saliency": "s", "semantics_blip": "b", "neurovision": "n"}
    assert rows_to_draw(None, runs) == ["I", "B", "B+I", "oracle", "random class", "retrieval", "NeuroVision"]
    assert rows_to_draw(None, dict.fromkeys(RUNS) | {"saliency": "s"}) == ["I", "oracle", "random class"]
    assert (
        "none" not in rows_to_draw(None, dict.fromkeys(RUNS, "r"))
        and len(rows_to_draw(None, dict.fromkeys(RUNS, "r"))) == 11
    )
    assert not {*IMAGE, *VALIDITY} & set(rows_to_draw(None, dict.fromkeys(RUNS, "r")))  # only when they are named
    assert rows_to_draw(VALIDITY, dict.fromkeys(RUNS)) == list(VALIDITY)
    with pytest.raises(ValueError, match="different names"):
        rows_to_draw(["L", "Brain"], runs)


def test_every_list_of_rows_is_of_the_same_rows():
    paper = [row for row in ROWS if kind_of(row) == "paper"]
    assert set(BEST_FIRST) == set(paper) == {*PAPER, "none"} and BEST_FIRST[0] == FULL
    assert set(IN_TABLES) == set(ROWS) - {"none"} and kind_of("of a colleague") == "paper"
    trainers = ["trainers/brain2image.py", "trainers/brain2image.py", "trainers/neurovision.py"]
    assert list(BASELINES.values()) == trainers and all(kind_of(row) == "baseline" for row in BASELINES)


def test_a_row_uses_what_its_name_says():
    for row in ("ridge I", "ridge L", "ridge L+I"):
        assert uses(row) == uses(row.removeprefix("ridge ")) == uses(ROWS[row].beside)
    assert uses("surrogate") == uses("L+I") and uses("mean map") == uses("map of class") == uses("I")
    for row in (
        *(row for row in ROWS if row not in VALIDITY),
        "of a colleague",
        "B+L",
        "B+L+I",
        "B+mine",
        "L+mine",
        "mine+I",
    ):
        assert uses(row) == tuple(letter in row.split("+") for letter in "BLI"), row
