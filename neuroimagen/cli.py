"""`neuroimagen COMMAND key=value ...`: everything around the trainers."""

import importlib
import itertools
import json
import os
import re
import signal
import sys
from pathlib import Path
from typing import NamedTuple

import yaml

from neuroimagen.config import run_command
from neuroimagen.errors import exit_code
from neuroimagen.files import content_of
from neuroimagen.text_files import leave_locale


class Command(NamedTuple):
    """A line of commands.yaml."""

    module: str
    schema: str
    function: str
    summary: str
    positional: str = ""  # the field that may be given without its name
    several: bool = False  # it is a list, of all that come first
    section: str = ""  # of a config file; empty: that of its own name


_FILE = yaml.safe_load(Path(__file__).with_name("commands.yaml").read_text(encoding="utf-8"))
COMMANDS = {name: Command(**about) for name, about in _FILE.items()}

# What `evaluate` is of a contrastive run
RETRIEVAL = Command("retrieval.evaluate", "RetrievalConfig", "evaluate", "score a contrastive run", section="retrieval")


def usage() -> str:
    lines = ["usage: neuroimagen COMMAND key=value ...   (neuroimagen COMMAND --help lists its fields)", ""]
    return "\n".join(lines + [f"  {name:<10} {command.summary}" for name, command in COMMANDS.items()])


def contrastive(arguments: list[str]) -> bool:
    """Whether run=RUN is one of trainers/contrastive.py: its config names features files, a list."""
    given = dict(word.partition("=")[::2] for word in arguments)
    config = Path(os.path.expanduser(given.get("run", "")), "config.yaml")
    return isinstance(content_of(config).get("features"), list)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit code: 0 fine, 1 a check found faults, 2 the user has to change something.

    70 is a bug of ours, 130 comes after Ctrl-C (errors.exit_code).
    """
    if arguments is None:
        leave_locale()
        arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        print(f"error: {name!r} is not a command\n{usage()}", file=sys.stderr)
        return 2
    command = COMMANDS[name]
    plain = list(itertools.takewhile(lambda word: not re.match(r"-|\w+=", word), rest))  # runs/lr=0.1 is a path
    if command.several and plain:
        rest[: len(plain)] = [f"{command.positional}={json.dumps(plain, ensure_ascii=False)}"]
    elif command.positional and plain:
        rest[0] = f"{command.positional}={rest[0]}"

    def work() -> int:
        command = RETRIEVAL if name == "evaluate" and contrastive(rest) else COMMANDS[name]
        module = importlib.import_module(f"neuroimagen.{command.module}")
        shown = f"neuroimagen {name}: {command.summary}\n\nusage: neuroimagen {name} key=value ..."
        main, schema = getattr(module, command.function), getattr(module, command.schema)
        return run_command(main, schema, rest, command.section or name, shown)

    try:
        code = exit_code(work)
        print(end="", flush=True)
    except OSError as error:  # what is printed cannot be written
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # who reads it, such as head, has seen enough
            return 128 + signal.SIGPIPE
        print(f"error: standard output: {error.strerror}; send it elsewhere", file=sys.stderr)
        return 2
    if code and (distributed := sys.modules.get("torch.distributed")) and distributed.is_initialized():
        os._exit(code)  # a peer may be gone already, and gloo would abort at the end with a code of its own
    return code


if __name__ == "__main__":
    sys.exit(main())
