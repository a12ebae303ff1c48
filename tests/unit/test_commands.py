"""Every field that README and docs give to a command of ours is one that it has."""

import dataclasses
import functools
import re
from pathlib import Path

import pytest
from tutorials import REPO, schema_of

from neuroimagen.retrieval.evaluate import RetrievalConfig

PAGES = [REPO / "README.md", REPO / "CONTRIBUTING.md", *sorted(REPO.glob("docs/**/*.md"))]
SHELLS = [path for path in sorted(REPO.glob("launch/*")) if path.suffix in (".sh", ".sbatch", ".yaml")]
OURS = re.compile(r"(?:neuroimagen(?:\.cli)? [a-z]+|trainers/\w+\.py)(?= )")
schema = functools.cache(lambda command: schema_of(command.split()))


def commands(path: Path) -> list[str]:
    """Lines of code that start one of ours; comments of scripts, too, which show how they are called."""
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    if path.suffix == ".md":
        text = "\n".join(re.findall(r"^    [^\n]*$|`[^`\n]*`|(?<=```sh\n).*?(?=```)", text, re.MULTILINE | re.DOTALL))
    return [line for line in re.sub(r"\\\n#", " ", text).splitlines() if OURS.search(line)]


@pytest.mark.parametrize("path", PAGES + SHELLS, ids=lambda path: path.relative_to(REPO).as_posix())
def test_fields_that_are_given_are_there(path):
    for line in commands(path):
        for start in OURS.finditer(line):
            if not (found := schema(start[0])):
                continue
            asked = RetrievalConfig if "evaluate RUN/contrastive" in line else found[0]
            known = {field.name for field in dataclasses.fields(asked)} | {"config", "key"}  # key=value
            rest = re.split(r"#|->|;|\||\)", line[start.end() :])[0]
            given = set(re.findall(r"(?<![\w/\-.])([^\W\d]\w*)=", rest))
            assert given <= known, f"{start[0]} has no {given - known}: {line}"


def test_they_are_many():
    assert sum(len(commands(path)) for path in PAGES) > 40
