"""What the pages name is there: files, tests, modules, and the sentences that the program says."""

import ast
import functools
import re
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
PAGES = [REPO / name for name in ("README.md", "DESIGN.md", "CONTRIBUTING.md")] + sorted(REPO.glob("docs/**/*.md"))
PAGES += sorted(REPO.glob("neuroimagen/**/*.md"))
SOURCES = [
    *(path for folder in ("neuroimagen", "trainers", "benchmarks", "tests") for path in REPO.glob(f"{folder}/**/*.py")),
    *(path for folder in ("configs", "launch") for path in REPO.glob(f"{folder}/**/*") if path.is_file()),
    *REPO.glob("neuroimagen/**/*.yaml"),
    *(REPO / name for name in ("Makefile", "setup.cfg", "pyproject.toml")),
]


def named(path: Path) -> str:
    return path.relative_to(REPO).as_posix()


def anchors(page: Path) -> set[str]:
    """What GitHub makes of a page's headings."""
    heads = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_link_leads_somewhere(page):
    text = page.read_text(encoding="utf-8")
    lost = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        target, _, anchor = link.partition("#")
        if re.match(r"\w+:", link):
            continue
        path = (page.parent / target).resolve() if target else page
        if not path.exists() or (anchor and anchor not in anchors(path)):
            lost.append(link)
    assert not lost


@pytest.mark.parametrize("path", PAGES + SOURCES, ids=named)
def test_every_page_and_file_that_is_named_is_there(path):
    named = re.findall(
        r"\b(?:docs|configs|launch|benchmarks|trainers)/[\w./]*\w\.\w+", path.read_text(encoding="utf-8")
    )
    roots = (REPO, REPO / "tests")  # docs/measured/versions.md names tests from there
    there = {name for name in named if any((root / name).exists() for root in roots)}
    assert not set(named) - there - {"launch/site.sh"}  # the user makes that one


def test_every_page_is_on_the_map():
    """From docs/README.md and docs/measured/README.md each page is one link away."""
    linked = set()
    for map in (REPO / "docs" / "README.md", REPO / "docs" / "measured" / "README.md"):
        links = re.findall(r"\]\(([^)#\s:]+)", map.read_text(encoding="utf-8"))
        linked |= {(map.parent / link).resolve() for link in links}
    assert {path.resolve() for path in REPO.glob("docs/**/*.md")} - linked <= {REPO / "docs" / "README.md"}


@functools.cache
def said() -> list[str]:
    """All texts of the program, with a NUL in the place of what is filled in."""

    def text(node: ast.AST) -> str:
        match node:
            case ast.Constant(value=str()):
                return node.value
            case ast.JoinedStr():
                return "".join(map(text, node.values))
            case ast.BinOp(op=ast.Add()):
                return text(node.left) + text(node.right)
        return "\0"

    found = []
    for path in [*REPO.glob("neuroimagen/**/*.py"), *REPO.glob("trainers/*.py")]:
        found += [text(node) for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    return sorted(set(found) - {"\0"})


def is_said(sentence: str) -> bool:
    """Whether the program has it, `...` being anything, at most at the two ends or where something is filled in."""
    parts = [re.escape(part.strip()) for part in sentence.split("...")]
    pattern = re.compile(r"[^\n]*?\0[^\n]*?".join(part for part in parts if part))
    return any(pattern.search(text) for text in said())


def test_the_program_says_what_the_troubleshooting_page_quotes():
    text = (REPO / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    first = re.findall(r"^\| (`.+?`(?: or `.+?`)*) \|", text, re.MULTILINE)
    quoted = [sentence for cell in first for sentence in re.findall(r"`(.+?)`", cell)]
    assert len(quoted) > 30
    assert not [sentence for sentence in quoted if not is_said(sentence)]


def test_another_sentence_is_noticed():
    assert is_said("run_dir ... is in use by ...; wait for that run, stop it, or choose another run_dir")
    assert not is_said("run_dir ... is used by ...; wait for that run") and not is_said("run_dir ... by ... is in use")


def test_every_test_that_versions_md_names_exists():
    text = (REPO / "docs" / "measured" / "versions.md").read_text(encoding="utf-8")
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
