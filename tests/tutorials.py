"""The tutorials of docs/start as their reader meets them: commands, what they print, the files they want.

A fenced block of a page is
- `sh`: commands, run in the page's order as in one shell, in the folder that holds configs/, launch/ and data/;
- `text`, after such a block: lines of what it prints, in order; any number stands for any number, `...` for any text;
- `files`: paths that must be there, one a line, what follows two spaces says what it is; digits stand for any digits;
- `yaml` or `py` whose first line is `# NAME`: the file NAME, which the reader writes;
- `csv`: what data/trials.csv looks like;
- any of these below `<!-- not run: WHY -->`: looked at (shell syntax, fields of commands), and no more.
A path below data/, doctor/ or runs/ in backticks must be there when the page is done.
"""

import dataclasses
import importlib
import re
import runpy
import shlex
import subprocess
from pathlib import Path

from neuroimagen.cli import COMMANDS
from neuroimagen.config import load_config

REPO = Path(__file__).parents[1]
START = REPO / "docs" / "start"
KINDS = ("sh", "text", "files", "yaml", "py", "csv")
NUMBER = r"[-+]?\d[\d.,]*(?:e[-+]?\d+)?"


@dataclasses.dataclass
class Block:
    kind: str
    text: str
    line: int
    not_run: str  # why, or ""


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page; AssertionError for one whose kind has no meaning."""
    text = page.read_text(encoding="utf-8")
    found = []
    for block in re.finditer(r"(?:<!-- not run: ([^\n]+) -->\n)?```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        line = text.count("\n", 0, block.start(3))
        assert block[2] in KINDS, f"{page.name}:{line}: {block[2]!r} is no kind of block"
        found.append(Block(block[2], block[3], line, block[1] or ""))
    assert text.count("\n```") == 2 * len(found), f"{page.name}: a fence is not closed, or is indented"
    return found


def unlike(quoted: str, printed: str) -> str:
    """The first line of `quoted` that `printed` does not hold after the one before it; "" if it has them all."""
    lines = [" ".join(line.split()) for line in re.split(r"[\r\n]+", printed)]
    for line in quoted.splitlines():
        wanted = " ".join(line.split())
        if wanted in ("", "..."):
            continue
        parts = re.split(rf"(\.\.\.|{NUMBER})", wanted)
        pattern = "".join(
            re.escape(p) if i % 2 == 0 else ".*" if p == "..." else NUMBER for i, p in enumerate(parts)
        )  # fmt: skip
        at = next((i for i, one in enumerate(lines) if re.fullmatch(pattern, one)), None)
        if at is None:
            return line
        del lines[: at + 1]
    return ""


def absent(path: str, folder: Path) -> bool:
    """Whether nothing below `folder` is called so, whatever digits stand in its name."""
    pattern = re.sub(r"\d", "[0-9]", path.rstrip("/"))
    return not any(folder.glob(re.sub(r"(\[0-9\])+", "[0-9]*", pattern)))


def schema_of(words: list[str]) -> tuple[type, str, list[str]] | None:
    """(config class, stage, arguments) of a command line that starts one of ours."""
    for i, word in enumerate(words):
        if re.fullmatch(r"trainers/\w+\.py", word):
            stage = Path(word).stem
            names = runpy.run_path(str(REPO / word), run_name="looked at")
            (schema,) = [v for k, v in names.items() if k.endswith("Config") and v.__module__ == "looked at"]
            return schema, stage, words[i + 1 :]
        if word in ("neuroimagen", "neuroimagen.cli") and words[i + 1] in COMMANDS:
            command = COMMANDS[words[i + 1]]
            schema = getattr(importlib.import_module(f"neuroimagen.{command.module}"), command.schema)
            arguments = words[i + 2 :]
            if command.positional and arguments and "=" not in arguments[0]:
                arguments[0] = f"{command.positional}={arguments[0]}"
            return schema, words[i + 1], arguments
    return None


def look_at(commands: str) -> int:
    """How many of the command lines are ours, with fields that there are; AssertionError or ValueError for others."""
    done = subprocess.run(["bash", "-n"], input=commands, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    ours = 0
    for line in commands.replace("\\\n", " ").splitlines():
        if found := schema_of(shlex.split(line, comments=True)):
            schema, stage, arguments = found
            load_config(schema, arguments, stage)
            ours += 1
    return ours


def promised(page: Path) -> list[str]:
    """Paths in backticks that the commands of a page make."""
    prose = re.sub(r"```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return sorted(set(re.findall(r"`((?:runs|shards|doctor\w*|data)(?:/[\w.*-]+)+)`", prose)))
