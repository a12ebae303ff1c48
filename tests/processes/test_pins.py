"""What may not change while the code is moved: the bytes of a tiny study's shards, of what each trainer exports after
20 steps on one and on two processes, of a reconstruct run's pictures, of its scores, tables and page, of the doctor's.

pins.json has a SHA-256 of each, and an outline. Bits of floating point are those of one kind of processor and one
version of torch: elsewhere the outlines are compared, to a hundredth. Pages are compared as a browser reads them: tags,
sorted attributes, words; without dates, paths and versions. A change that is meant is recorded by

    PINS=record python -m pytest tests/processes/test_pins.py

and explained in its commit. PINS=/some/folder only leaves there what would be hashed: made of two states of the code on
one machine, two such folders are compared by `diff -r`.
"""

import hashlib
import html.parser
import json
import math
import os
import platform
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run_cli
from PIL import Image
from safetensors.torch import load_file
from test_trainers import NEEDS, command
from tiny_models import tiny_pipeline, tiny_shards, tiny_stage_runs

FILE = Path(__file__).with_name("pins.json")
HOW = os.environ.get("PINS", "")
CPU = ("model name", "cpu family", "model", "stepping", "flags")  # libraries choose their kernels by these
CPUINFO = Path("/proc/cpuinfo").read_text("utf-8").splitlines() if platform.system() == "Linux" else []
KNOWN = dict(line.split("\t", 1) for line in CPUINFO if "\t" in line)
CHOSEN = [os.environ.get(name, "") for name in ("OPENBLAS_CORETYPE", "MKL_ENABLE_INSTRUCTIONS", "ATEN_CPU_CAPABILITY")]
PROCESSOR = hashlib.sha256("".join([*(KNOWN.get(name, "") for name in CPU), *CHOSEN]).encode()).hexdigest()[:12]
MACHINE = f"{platform.machine()} {PROCESSOR}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"
STAGES = (
    *("pixel_features", "pixel_saliency", "sample_semantics", "brain2image", "brain2image_vae", "neurovision"),
    *("latent_diffusion", "denoiser"),
)


def check(name: str, content: bytes, outline: list[float]) -> None:
    """That `content` is what pins.json says of `name`; its `outline`, where the machine is another."""
    if os.path.isdir(HOW):
        (Path(HOW) / name.replace("/", "_")).write_bytes(content)
        return
    now = {"sha256": hashlib.sha256(content).hexdigest(), "outline": [float(f"{x:.6g}") for x in outline]}
    pins = json.loads(FILE.read_text()) if FILE.exists() else {"machine": MACHINE, "pins": {}}
    if HOW == "record":
        pins["machine"], pins["pins"][name] = MACHINE, now
        FILE.write_text(json.dumps(pins, indent=1, sort_keys=True) + "\n")
    then = pins["pins"][name]
    if pins["machine"] == MACHINE:
        assert now == then, f"{name} has changed"
    assert now["outline"] == pytest.approx(then["outline"], rel=0.01, abs=1e-3), f"{name} has changed"


def of_weights(folder: Path) -> tuple[bytes, list[float]]:
    """All safetensors below a folder, and of each kind how many numbers there are and their root mean square."""
    content, outline = b"", []
    for path in sorted(folder.rglob("*.safetensors")):
        tensors = load_file(path)
        content += path.relative_to(folder).as_posix().encode() + b"\n" + path.read_bytes()
        outline += [sum(t.numel() for t in tensors.values())]
        outline += [math.sqrt(sum(t.double().square().sum().item() for t in tensors.values()) / outline[-1])]
    assert outline, f"{folder} holds no weights"
    return content, outline


def of_pictures(folder: Path) -> tuple[bytes, list[float]]:
    paths = sorted(path for path in folder.rglob("*.png") if path.name != "look.png")  # Pillow's letters
    content = b"".join(path.relative_to(folder).as_posix().encode() + b"\n" + path.read_bytes() for path in paths)
    return content, [len(paths), float(np.mean([np.asarray(Image.open(path)).mean() for path in paths]))]


class Canonical(html.parser.HTMLParser):
    """A page as a list of tags with sorted attributes and of texts with single spaces."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.verbatim = False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.verbatim = tag in ("script", "style")
        self.parts.append(f"<{tag} {sorted((k, v or '') for k, v in attrs)}>")

    def handle_endtag(self, tag):
        self.verbatim = False
        if tag not in ("p", "li", "td", "th", "tr", "thead", "tbody", "option", "dt", "dd"):  # that may be left out
            self.parts.append(f"</{tag}>")

    def handle_data(self, data):
        words = " ".join(data.split())
        if words and not self.verbatim:  # how it looks and sorts is not what it says
            self.parts.append(words)


def of_page(path: Path, *folders: Path) -> tuple[bytes, list[float]]:
    page = "\n".join(Canonical(path.read_text("utf-8")).parts)
    for folder in folders:
        page = page.replace(str(folder), "FOLDER")
    page = re.sub(r"(?m)^\{'ACCELERATE_USE_CPU': .*\}$", "VARIABLES", page)  # of the shell
    page = re.sub(r"(?m)^[0-9a-f]{7,40}(-dirty)?$", "COMMIT", page)
    page = re.sub(r"data:image/[^'\")]*", "PICTURE", page)
    page = re.sub(
        r"'sha256-[^']*'|\d{4}-\d\d-\d\d([ T][\d:]+Z?)?|\d+\.\d+\.\d+\S*|\d[\d.]* (seconds|s)\b", "VARIES", page
    )
    return page.encode(), [float(page.count("\n")), float(len(re.sub(r"[\d.]+", "", page)))]


def numbers(content: object) -> list[float]:
    if isinstance(content, dict):
        content = [content[key] for key in sorted(content)]
    if isinstance(content, list):
        return [x for item in content for x in numbers(item)]
    return [float(content)] if isinstance(content, int | float) else []


def test_shards(study):
    names = sorted(path.relative_to(study.shards) for path in study.shards.rglob("*") if path.is_file())
    digests = {str(name): hashlib.sha256((study.shards / name).read_bytes()).hexdigest() for name in names}
    manifest = json.loads((study.shards / "manifest.json").read_text())
    digests.pop("manifest.json")
    text = json.dumps([digests, manifest], indent=1, sort_keys=True).replace(str(study.folder), "FOLDER")
    text = re.sub(r'"neuroimagen": "[^"]*"', '"neuroimagen": "VARIES"', text)
    check("shards", text.encode(), [len(digests)])


@pytest.fixture(scope="module")
def trained(study, tmp_path_factory):
    """Where 20 steps of a stage on so many processes were exported, after those of the stages that it needs."""
    folder = tmp_path_factory.mktemp("trained")

    def get(stage, world, start):
        run_dir = folder / f"{stage}_{world}"
        if not (run_dir / "DONE").exists():
            finished = get(NEEDS[stage], 1, start) if stage in NEEDS else None
            name, _, variant = stage.partition("_vae")
            arguments = command(name, study, run_dir, finished) + ["max_steps=20", "checkpoint_every=100"]
            if stage.endswith("_vae"):
                arguments += ["variant=vae"]
            processes = start(arguments, world)
            assert processes.wait() == [0] * world, processes.log.read_text()[-3000:]
        return run_dir

    return get


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("stage", STAGES)
def test_trainer(stage, world, trained, start):
    check(f"{stage} on {world}", *of_weights(trained(stage, world, start) / "model"))


@pytest.fixture(scope="module")
def reconstructed(tmp_path_factory):
    root = tmp_path_factory.mktemp("reconstructed")
    pipeline = tiny_pipeline(root / "pipeline")
    fields = {"shards": tiny_shards(root / "shards"), "pipeline": pipeline, **tiny_stage_runs(root / "runs", pipeline)}
    return root, [f"{k}={v}" for k, v in (fields | {"num_inference_steps": 4, "samples": 2, "chunk": 2}).items()]


@pytest.mark.parametrize("world", [1, 2])
def test_reconstruct(world, reconstructed, start):
    root, fields = reconstructed
    run = root / f"run_{world}"
    processes = start(["trainers/reconstruct.py", *fields, "rows=null", f"run_dir={run}"], world)
    assert processes.wait() == [0] * world, processes.log.read_text()[-3000:]
    check("reconstruct", *of_pictures(run))
    for name in ("rows.json", "trials.jsonl", "pictures.jsonl"):
        text = (run / name).read_text().replace(str(root), "FOLDER").replace(run.name, "RUN")
        check(f"reconstruct/{name}", text.encode(), [text.count("\n")])


def test_scores_tables_and_page(reconstructed, start):
    pytest.importorskip("efficientnet_lite_pytorch")
    root, fields = reconstructed
    run = root / "scored"
    processes = start(["trainers/reconstruct.py", *fields, "rows=null", f"run_dir={run}"], 1)
    assert processes.wait() == [0], processes.log.read_text()[-3000:]
    metrics = "metrics=[paper,two_way,retrieval_top5,fid_classifier,kid_classifier,pixcorr]"
    evaluate = ["-m", "neuroimagen.cli", "evaluate", f"run={run}", "classifier=embedded", "device=cpu", metrics]
    processes = start(evaluate, 1)
    assert processes.wait() == [0], processes.log.read_text()[-3000:]
    said = processes.log.read_text().replace(str(root), "FOLDER")
    check("evaluate/terminal", said.encode(), [said.count("\n")])
    run_cli("report", f"run={run}")
    for path in sorted([*run.glob("scores.*"), *run.glob("picture_scores.csv"), *run.glob("tables/*.*")]):
        if path.suffix in (".json", ".csv", ".md", ".tex"):
            text = path.read_text().replace(str(root), "FOLDER")
            outline = [text.count("\n")]
            if path.name == "scores.json":  # elsewhere untrained models may draw another class, find another picture
                rows = {row: groups["all"]["ssim"]["value"] for row, groups in json.loads(text)["rows"].items()}
                outline = [len(numbers(json.loads(text))), *(rows[row] for row in rows if row != "retrieval")]
            check(f"report/{path.name}", text.encode(), outline)
    for path in [*sorted(run.glob("*.html")), *sorted(run.glob("tables/*.html"))]:
        check(f"report/{path.name}", *of_page(path, root))
    check("report/figures", *of_pictures(run / "figures"))


@pytest.mark.parametrize("what", ["files", "shards"])
def test_the_doctors_page(what, study, tmp_path):
    files = [f"eeg={study.folder}/study/eeg.pth", f"images={study.folder}/study/images", "splits=by_image"]
    run_cli("check", *([str(study.shards)] if what == "shards" else files), f"report={tmp_path}")
    (path,) = tmp_path.glob("*.html")
    check(f"doctor/{what}", *of_page(path, tmp_path, study.folder))
