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
    """Every module stands in it, in its room, and nothing else does."""
    text = (
        (REPO / "DESIGN.md").read_text(encoding="utf-8").partition("    neuroimagen/ ")[2].partition("    tests/ ")[0]
    )
    room, named = "", set()
    for line in text.splitlines()[1:]:
        if found := re.match(r" {6}(\w+)/ ", line):
            room = found[1]
        elif re.match(r" {6}\w", line):
            room = ""
        files = re.match(r" {6,8}((?:\w+\.py(?:, )?)*)", line)
        named |= {f"{room}/{name}".strip("/") for name in files[1].split(", ") if name}
    there = {path.relative_to(REPO / "neuroimagen").as_posix() for path in (REPO / "neuroimagen").rglob("*.py")}
    assert named == {name for name in there if not name.endswith("__init__.py")}


@pytest.mark.parametrize("folder,most", [("neuroimagen", 400), ("trainers", 160)])
def test_no_module_is_longer_than_agreed(folder, most):
    long = {str(p): n for p in (REPO / folder).rglob("*.py") if (n := len(p.read_text("utf-8").splitlines())) > most}
    assert not long
