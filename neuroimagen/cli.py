"""`neuroimagen COMMAND key=value ...`: everything around the trainers."""

import importlib
import itertools
import json
import os
import re
import signal
import sys
from typing import NamedTuple

from neuroimagen.config import run_command
from neuroimagen.errors import exit_code
from neuroimagen.text_files import leave_locale


class Command(NamedTuple):
    module: str
    schema: str
    function: str
    summary: str
    positional: str = ""  # the field that may be given without its name
    several: bool = False  # it is a list, of all that come first
    section: str = ""  # of a config file; empty: that of its own name


COMMANDS = {
    "simulate": Command(
        "simulation.study", "SimulateConfig", "simulate", "write a simulated study, in PerceiveLab format"
    ),
    "new": Command("doctor.new", "NewConfig", "new", "look at a study's files and write its first config", "out"),
    "shards": Command("shards.pack", "ShardsConfig", "make_shards", "pack a study into WebDataset shards"),
    "check": Command(
        "doctor.check", "CheckConfig", "check", "say what is in a study or its shards, and what is wrong", "source"
    ),
    "audit": Command(
        "audit.audit", "AuditConfig", "audit", "is it real? controls and verdicts of a study", section="shards"
    ),
    "plan": Command("planning.plan", "PlanConfig", "plan", "say what a study will run and take", "overlays", True),
    "status": Command("planning.status", "StatusConfig", "status", "where each stage of a study stands", "runs"),
    "captions": Command("sample.captions", "CaptionsConfig", "caption_pictures", "caption pictures with BLIP, BLIP-2"),
    "features": Command("features.extract", "FeaturesConfig", "extract", "what CLIP, DINOv2, SigLIP make of pictures"),
    "probe": Command("scores.probe", "ProbeConfig", "probe", "train a classifier for the scores"),
    "evaluate": Command("report.tables", "EvaluateConfig", "evaluate", "score a reconstruct run", "run"),
    "export": Command("model.export", "ExportConfig", "export", "runs as one model for Python and the hub", "runs"),
    "report": Command("report.report", "ReportConfig", "report", "write a reconstruct run's page", "run"),
    "dashboard": Command("report.dashboard", "DashboardConfig", "dashboard", "wandb report of a study's runs", "runs"),
}


def usage() -> str:
    lines = ["usage: neuroimagen COMMAND key=value ...   (neuroimagen COMMAND --help lists its fields)", ""]
    return "\n".join(lines + [f"  {name:<10} {command.summary}" for name, command in COMMANDS.items()])


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
