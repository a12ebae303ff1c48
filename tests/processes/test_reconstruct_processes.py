"""trainers/reconstruct.py: stopped on two real processes and continued on one, it equals one process byte by byte."""

import importlib.util
import json
import signal
import time
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from tiny_models import tiny_pipeline, tiny_shards, tiny_stage_runs

from neuroimagen.config import load_config

TRAINER = Path(__file__).parents[2] / "trainers" / "reconstruct.py"
CONTROLS = ("oracle", "random class", "retrieval")
BASELINES = ("Brain2Image", "Brain2Image-VAE", "NeuroVision")
ROWS = ("I", "L", "B", "B+I", "L+I", *CONTROLS, *BASELINES)


@pytest.fixture(scope="module")
def here():
    """Run the trainer in this process: here(arguments) -> exit code."""
    spec = importlib.util.spec_from_file_location("reconstruct", TRAINER)
    trainer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(trainer)
    handler, threads = signal.getsignal(signal.SIGTERM), torch.get_num_threads()

    def run(arguments: list[str]) -> int:
        try:
            return trainer.main(load_config(trainer.ReconstructConfig, arguments, "reconstruct"))
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "yes")
        torch.set_num_threads(1)  # as in the two processes
        yield run
    torch.set_num_threads(threads)
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture(scope="module")
def made(tmp_path_factory, here):
    """Shards, a pipeline and finished stage runs, as `key=value` arguments; and root/one, drawn by one process."""
    root = tmp_path_factory.mktemp("made")
    pipeline = tiny_pipeline(root / "pipeline")
    fields = {"shards": tiny_shards(root / "shards"), "pipeline": pipeline}
    fields |= tiny_stage_runs(root / "runs", pipeline) | {"num_inference_steps": 4, "samples": 2, "chunk": 2}
    fields["rows"] = "null"  # all that these runs allow
    arguments = [f"{name}={value}" for name, value in fields.items()]
    assert here([*arguments, f"run_dir={root / 'one'}"]) == 0
    return root, arguments


def content(run_dir: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run_dir)): path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}


def pictures(run_dir: Path) -> dict[str, bytes]:
    return {name: data for name, data in content(run_dir).items() if name.endswith(".png")}


def test_the_run_directory_is_what_evaluate_reads(made):
    run = made[0] / "one"
    trials = [json.loads(line) for line in (run / "trials.jsonl").read_text().splitlines()]
    assert len(trials) == 6
    assert {"key", "subject", "label", "wnid", "class_name", "image", "index"} <= set(trials[0])
    about = json.loads((run / "rows.json").read_text())
    assert [row["name"] for row in about["rows"]] == list(ROWS)
    means = "meaning learnt from picture captions, and the saliency map"
    assert about["rows"][3] == {"name": "B+I", "kind": "paper", "semantics": "blip", "map": True, "means": means}
    assert [row["kind"] for row in about["rows"]] == ["paper"] * 5 + ["control"] * 3 + ["baseline"] * 3
    assert about["rows"][7]["means"].endswith("(label captions)")
    assert (about["samples"], about["simulated"], about["settings"]["attention"]) == (2, False, "sdpa")
    assert about["captions_source"] == "captions.jsonl"
    names = {f"{folder}/{trial['key']}.png" for trial in trials for folder in ("truth", "maps")}
    names |= {f"images/{row}/{trial['key']}_{s}.png" for trial in trials for row in ROWS for s in range(2)}
    assert set(pictures(run)) == names and (run / "DONE").exists()
    for name, size in (("truth", 64), ("images/L+I", 64), ("maps", 16)):
        with Image.open(next((run / name).iterdir())) as picture:
            assert picture.size == (size, size) and picture.mode == "RGB"


def test_two_processes_stopped_and_continued_by_one_equal_one(made, start, here):
    root, arguments = made
    run = root / "two"
    processes = start([str(TRAINER), *arguments, f"run_dir={run}"], 2)
    deadline = time.monotonic() + 200
    while not list((run / "images" / "L").glob("*.png")):
        assert all(p.poll() is None for p in processes.all), processes.log.read_text()
        assert time.monotonic() < deadline, processes.log.read_text()
        time.sleep(0.02)
    processes.signal(signal.SIGTERM)
    assert processes.wait() == [143, 143], processes.log.read_text()
    assert (run / "PREEMPTED").exists() and not (run / "DONE").exists()
    drawn = {path: path.stat().st_mtime_ns for path in (run / "images").rglob("*.png")}
    assert 0 < len(drawn) < 6 * 2 * len(ROWS)
    assert here([*arguments, f"run_dir={run}"]) == 0
    assert (run / "DONE").exists() and not (run / "PREEMPTED").exists()
    assert pictures(run) == pictures(root / "one")
    assert all(path.stat().st_mtime_ns == when for path, when in drawn.items()), "finished pictures were drawn again"


def test_a_finished_run_is_left_alone(made, here, capsys):
    root, arguments = made
    before = content(root / "one")
    with pytest.raises(SystemExit) as exit:
        here([*arguments, f"run_dir={root / 'one'}"])
    assert exit.value.code == 0 and "already done" in capsys.readouterr().out
    with pytest.raises(ValueError, match="seed: 0 there, 1 here"):
        here([*arguments, f"run_dir={root / 'one'}", "seed=1"])
    assert content(root / "one") == before


def test_rows_change_nothing_but_their_own_pictures(made, here):
    root, arguments = made
    arguments = [a for a in arguments if not a.startswith(("saliency=", "semantics_blip="))]
    assert here([*arguments, f"run_dir={root / 'l'}", "rows=[L]"]) == 0
    found = pictures(root / "l")
    assert not (root / "l" / "maps").exists()
    assert len(found) == 18 and found.items() <= pictures(root / "one").items()


@pytest.mark.parametrize(
    "change, message",
    [
        (["strength=0.1"], "leaves no denoising step"),
        (["rows=[I,X]"], "different names out of I, L, B"),
        (["rows=[I,I]"], "different names"),
        (["chunk=0"], "at least one trial"),
        (["rows=[L,L+I]", "semantics_label=null"], "rows L, L.I need semantics_label=RUN_DIR"),
        (["saliency=null", "semantics_label=null", "semantics_blip=null"], "rows=null draws what the given runs allow"),
        (["rows=[retrieval]", "semantics_label=null", "semantics_blip=null"], "rows retrieval need semantics_label"),
        (["brain2image={root}/runs/brain2image_vae"], "was trained with variant=vae, so it is not for row Brain2Image"),
        (
            ["rows=[NeuroVision]", "neurovision=null"],
            "rows NeuroVision need neurovision=RUN_DIR, a run of trainers/neuro",
        ),
        (["neurovision={root}/runs/unfinished"], "is not finished"),
        (["samples=25"], "train has fewer than samples=25 pictures"),
        (["saliency=/no/such/run"], "is not a run; run trainers/pixel_saliency.py"),
        (["semantics_label={root}/runs/semantics_blip"], "was trained with captions=captions.jsonl"),
        (["semantics_blip={root}/runs/unfinished"], "is not finished"),
        (["pipeline={root}/wide"], "16 x 32 .* takes 16 x 64"),
        (["pipeline={root}/other"], "was trained for the text encoder of"),
        (["shards=/no/such/shards"], "shard"),
        (["image_size=60"], "multiples of 8"),
    ],
)
def test_mistakes_are_named_and_make_no_run(made, here, tmp_path, change, message):
    root, arguments = made
    if not (root / "wide").exists():
        tiny_pipeline(root / "wide", text_width=64)
        tiny_pipeline(root / "other", seed=1)
        (root / "runs" / "unfinished").mkdir()
        (root / "runs" / "unfinished" / "config.yaml").write_text("captions: captions.jsonl\n")
    changed = [argument.format(root=root) for argument in change]
    with pytest.raises(ValueError, match=message):
        here([*arguments, *changed, f"run_dir={tmp_path / 'new'}"])
    assert not (tmp_path / "new").exists()
