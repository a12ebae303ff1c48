"""What DESIGN.md and docs/measured.md name is there."""

import re
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]


def test_every_test_that_measured_md_names_exists():
    text = (REPO / "docs" / "measured.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:unit|processes|canaries|launch|slurm)/[\w/]+\.py)?(?:::(\w+))?`", text)
    path, found = "", 0
    for file, test in named:
        path = file or path
        if not path:
            continue
        content = (REPO / "tests" / path).read_text(encoding="utf-8")
        assert not test or f"def {test}(" in content, f"{path} has no {test}"
        found += 1
    assert found > 25


def test_the_tree_of_design_md_is_the_tree():
    text = (REPO / "DESIGN.md").read_text(encoding="utf-8").partition("## Tree")[2].partition("## ")[0]
    files = {path.relative_to(REPO / "neuroimagen").as_posix() for path in (REPO / "neuroimagen").rglob("*.py")}
    rooms = {path.split("/")[0] for path in files if "/" in path}
    room, named = "", set()
    for line in text.splitlines():
        if found := re.match(r"( +)(\w+)/ ", line):
            room = found[2] if len(found[1]) > 4 else ""
            if room:
                assert room in rooms | {"embedded"}, f"DESIGN.md names {room}/, which is not there"
                named.add(room)
        elif room or re.match(r" {6}\w", line):
            for pattern in re.findall(r"[\w*]+\.py", line):
                where = [f"{room}/{pattern}"] if room and len(line) - len(line.lstrip()) > 6 else [pattern]
                pattern = re.escape(where[0]).replace(r"\*", r"\w*")
                in_trainers = (REPO / "trainers" / where[0]).exists()
                assert in_trainers or any(re.fullmatch(pattern, file) for file in files), f"DESIGN.md: {where[0]}"
    assert named >= rooms - {"embedded"}, f"DESIGN.md says nothing of {rooms - named}"


@pytest.mark.parametrize("folder,most", [("neuroimagen", 400), ("trainers", 160)])
def test_no_module_is_longer_than_agreed(folder, most):
    long = {str(p): n for p in (REPO / folder).rglob("*.py") if (n := len(p.read_text("utf-8").splitlines())) > most}
    assert not long
