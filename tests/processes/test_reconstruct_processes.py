"""trainers/reconstruct.py: on any number of processes, after any kill, it equals one process byte by byte."""

import importlib.util
import json
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from tiny_models import (
    TINY_TARGETS,
    tiny_features,
    tiny_image_prompt,
    tiny_pipeline,
    tiny_shards,
    tiny_stage_runs,
)

from neuroimagen.baselines.brain2image import Brain2Image
from neuroimagen.config import load_config
from neuroimagen.rows import IMAGE, VALIDITY, adds_rows
from neuroimagen.run import processes
from neuroimagen.run.seeds import seed_from

TRAINER = Path(__file__).parents[2] / "trainers" / "reconstruct.py"
CONTROLS = ("oracle", "random class", "retrieval")
BASELINES = ("Brain2Image", "Brain2Image-VAE", "NeuroVision")
ROWS = ("I", "L", "B", "B+I", "L+I", *CONTROLS, *BASELINES)


@pytest.fixture(scope="module")
def trainer():
    spec = importlib.util.spec_from_file_location("reconstruct", TRAINER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def here(trainer):
    """Run the trainer in this process: here(arguments) -> exit code."""
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
    return {name: data for name, data in content(run_dir).items() if name.endswith(".png") and name != "look.png"}


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
    assert about["rows"][8]["means"].startswith(
        "conditional GAN on EEG features (Kavasidis et al. 2017), trained here: "
    )
    assert (about["samples"], about["simulated"], about["settings"]["attention"]) == (2, False, "sdpa")
    assert about["captions_source"] == "captions.jsonl"
    lines = [json.loads(line) for line in (run / "pictures.jsonl").read_text().splitlines()]
    assert {line["file"] for line in lines} == {name for name in pictures(run) if name.startswith("images/")}
    first = {"file": f"images/I/{trials[0]['key']}_0.png", "key": trials[0]["key"], "row": "I", "sample": 0}
    first |= {name: trials[0][name] for name in ("subject", "label", "class_name", "image")}
    assert lines[0] == first | {"seed": seed_from(0, trials[0]["key"], 0)}
    assert len({(line["key"], line["sample"]): line["seed"] for line in lines}) == len({x["seed"] for x in lines}) == 12
    assert about["diffusion"]["safety_checker"] == "off" and about["diffusion"]["scheduler"] == "DDIMScheduler"
    names = {f"{folder}/{trial['key']}.png" for trial in trials for folder in ("truth", "maps")}
    names |= {f"images/{row}/{trial['key']}_{s}.png" for trial in trials for row in ROWS for s in range(2)}
    assert set(pictures(run)) == names and (run / "DONE").exists()
    for name, size in (("truth", 64), ("images/L+I", 64), ("maps", 16)):
        with Image.open(next((run / name).iterdir())) as picture:
            assert picture.size == (size, size) and picture.mode == "RGB"


def wait_for_pictures(processes, folder):
    deadline = time.monotonic() + 900
    while not list(folder.glob("*.png")):
        assert all(p.poll() is None for p in processes.all), processes.log.read_text()
        assert time.monotonic() < deadline, processes.log.read_text()
        time.sleep(0.02)


def test_two_processes_stopped_and_continued_by_one_equal_one(made, start, here):
    root, arguments = made
    run = root / "two"
    hold = "neuroimagen.reconstruction.picture_files:PictureFiles.save:4"  # truth, maps, I, L
    processes = start([str(TRAINER), *arguments, f"run_dir={run}"], 2, hold=hold)
    wait_for_pictures(processes, run / "images" / "L")
    processes.signal(signal.SIGTERM)
    assert processes.wait() == [143, 143], processes.log.read_text()
    assert (run / "PREEMPTED").exists() and not (run / "DONE").exists()
    drawn = {path: path.stat().st_mtime_ns for path in (run / "images").rglob("*.png")}
    assert 0 < len(drawn) < 6 * 2 * len(ROWS)
    assert here([*arguments, f"run_dir={run}"]) == 0
    assert (run / "DONE").exists() and not (run / "PREEMPTED").exists()
    assert pictures(run) == pictures(root / "one")
    assert all(path.stat().st_mtime_ns == when for path, when in drawn.items()), "finished pictures were drawn again"


def test_three_processes_killed_three_times_equal_one(made, start):
    root, arguments = made
    run, seen = root / "killed", 0
    command = [str(TRAINER), *arguments, f"run_dir={run}"]
    for world in (3, 2, 1):
        processes = start(command, world, hold="neuroimagen.reconstruction.picture_files:PictureFiles.save:4")
        deadline = time.monotonic() + 900
        wanted = 12 if world == 3 else seen + 1  # then all hold, after a chunk each; or they are in the middle of one
        while len(drawn := list((run / "images").rglob("*.png"))) < wanted:
            assert time.monotonic() < deadline, processes.log.read_text()
            time.sleep(0.02)
        processes.signal(signal.SIGKILL)
        assert processes.wait() == [-signal.SIGKILL] * world, processes.log.read_text()
        seen = len(drawn)
    when = {path: path.stat().st_mtime_ns for path in (run / "images").rglob("*.png")}
    assert len(when) < 60 and not (run / "DONE").exists() and not (run / "pictures.jsonl").exists()
    processes = start(command, 3)
    assert processes.wait() == [0, 0, 0], processes.log.read_text()
    assert pictures(run) == pictures(root / "one")
    assert (run / "pictures.jsonl").read_bytes() == (root / "one" / "pictures.jsonl").read_bytes()
    keys = [json.loads(line)["key"] for line in (run / "trials.jsonl").read_text().splitlines()]
    drawn = {}
    for path in when:
        drawn.setdefault((path.parent, keys.index(path.name[:-6]) // 2), []).append(path)
    finished = [path for files in drawn.values() if len(files) == 4 for path in files]
    assert len(finished) >= 8 and all(path.stat().st_mtime_ns == when[path] for path in finished), "drawn twice"


def test_rows_of_other_trials_and_of_train_are_the_same_on_two_processes_and_after_a_kill(made, start, here):
    """Of train, whose classes have several pictures each. Ridge regression and the mean map read all of it."""
    root, arguments = made
    arguments = [*arguments, f"rows=[{','.join(VALIDITY)}]", "split=train", "limit=6", "rescale_embeddings=true"]
    assert here([*arguments, f"run_dir={root / 'rows-one'}"]) == 0
    one, run = pictures(root / "rows-one"), root / "rows-two"
    names = {Path(name).parent.name for name in one if name.startswith("images/")}
    assert names == set(VALIDITY) and len(one) == 6 * 2 * len(VALIDITY) + 12
    assert len(set(one.values())) > 6 * 2 * len(VALIDITY) - 12  # "class" may be drawn alike, the others differ
    hold = "neuroimagen.reconstruction.picture_files:PictureFiles.save:5"
    processes = start([str(TRAINER), *arguments, f"run_dir={run}"], 2, hold=hold)
    wait_for_pictures(processes, run / "images" / "mean map")
    processes.signal(signal.SIGKILL)
    processes.wait()
    for row in ("ridge L+I", "surrogate"):
        assert not list((run / "images" / row).glob("*.png"))
    processes = start([str(TRAINER), *arguments, f"run_dir={run}"], 2)
    assert processes.wait() == [0, 0], processes.log.read_text()
    assert pictures(run) == one


@pytest.fixture(scope="module")
def prompted(made):
    """What the rows of image features need beside `made`."""
    root, _ = made
    adapter = tiny_image_prompt(root / "image_prompt", root / "pipeline", 12, TINY_TARGETS["picture"])
    return [f"image_prompt={adapter}", f"image_features={tiny_features(root / 'picture', root / 'shards', 12)}"]


def test_rows_of_image_features_join_a_run_and_are_the_same_on_two_processes(made, prompted, start, here):
    root, arguments = made
    run = shutil.copytree(root / "one", root / "prompted-two")
    arguments = [*arguments, *prompted, f"rows=[{','.join((*ROWS, *IMAGE))}]"]
    processes = start([str(TRAINER), *arguments, f"run_dir={run}"], 2)
    assert processes.wait() == [0, 0], processes.log.read_text()
    two, before = pictures(run), pictures(root / "one")
    assert {name: two[name] for name in before} == before
    rows = [f"rows=[L,{','.join(IMAGE)}]", f"run_dir={root / 'prompted-one'}"]
    assert here([*arguments, *rows]) == 0
    one = pictures(root / "prompted-one")  # L again, now with an adapter in the U-Net
    assert one == {name: two[name] for name in one} and len({Path(name).parent for name in one}) == len(IMAGE) + 3
    drawn = [data for name, data in two.items() if name.startswith("images/") and Path(name).parent.name in IMAGE]
    assert len(drawn) == len(set(drawn)) == 6 * 2 * len(IMAGE)
    about = json.loads((run / "rows.json").read_text())
    assert [row["name"] for row in about["rows"] if row["kind"] == "image"] == ["E", "E+L", "E+I", "E+L+I"]
    assert about["diffusion"]["image_prompt"]["width"] == 12


@pytest.mark.parametrize(
    "change, message",
    [
        (["rows=[E]", "image_prompt=null", "image_features=null"], "rows E need image_prompt="),
        (["rows=[E oracle]", "image_features=null"], "rows E oracle need image_features="),
        (["rows=[L]", "image_features=null"], "image_prompt=.* no row of L uses it"),
        (["rows=[E,L]"], "image_features=.* no row of E, L uses it"),
        (
            ["rows=[E]", "image_features=null", "contrastive=null"],
            "rows E need contrastive=RUN_DIR, a run of trainers/c",
        ),
        (["rows=[E]", "image_features=null", "image_prompt_scale=-1"], "image_prompt_scale=-1.0 must be at least 0"),
        (["rows=[E]", "image_features=null", "attention=sliced"], "attention=sliced cannot be had with image_prompt"),
        (["rows=[E oracle]", "image_features={root}/other-features"], "image_features=.* has those of .* width 8"),
        (["rows=[E]", "image_features=null", "image_prompt={root}/other-prompt"], "contrastive=.* has those of"),
    ],
)
def test_image_features_that_do_not_fit_are_refused_in_a_sentence(made, prompted, here, change, message):
    root, arguments = made
    if "other" in change[-1]:
        tiny_features(root / "other-features", root / "shards", 8)
        about = TINY_TARGETS["picture"] | {"layer": 3}
        tiny_image_prompt(root / "other-prompt", root / "pipeline", 12, about)
    change = [text.format(root=root) for text in change]
    with pytest.raises(ValueError, match=message):
        here([*arguments, *prompted, *change, f"run_dir={root / 'refused'}"])
    assert not (root / "refused" / "images").exists()


@pytest.mark.parametrize("world, seconds", [(4, None), (2, 0.5)])
def test_a_rank_that_does_not_see_the_run_yet(made, start, world, seconds):
    """It waits for what rank 0 sees, or all end in one sentence (tests/processes/stale.py)."""
    root, arguments = made
    run = shutil.copytree(root / "one", root / f"stale-{world}")
    next((run / "images" / "L").iterdir()).unlink()
    told = {"rank": 1, "root": str(run), "seconds": seconds, "patience": 10 if seconds else 0.5}
    script = str(Path(__file__).with_name("stale.py"))
    processes = start([script, str(TRAINER), *arguments, f"run_dir={run}"], world, STALE=json.dumps(told))
    codes, said = processes.wait(), processes.log.read_text()
    if seconds is None:
        assert codes == [2] * world and said.count("config.yaml does not show there") == world, said
    else:
        assert codes == [0] * world and pictures(run) == pictures(root / "one"), said


def test_deleted_and_damaged_pictures_are_drawn_again_identically(made, here, capsys):
    root, arguments = made
    run = shutil.copytree(root / "one", root / "mended")
    before, files = content(run), sorted((run / "images" / "L").iterdir())
    when = {path: path.stat().st_mtime_ns for path in run.rglob("*.png")}
    files[0].unlink()
    files[4].write_bytes(files[4].read_bytes()[:-5])  # truncated: of the second chunk
    other, truth = run / "images" / "I" / files[11].name, sorted((run / "truth").iterdir())[5]
    Image.new("RGB", (32, 32)).save(other)
    truth.write_bytes(b"")
    assert here([*arguments, f"run_dir={run}"]) == 0
    assert "4 files are missing or damaged, such as images/I" in capsys.readouterr().out
    assert pictures(run) == pictures(root / "one") and (run / "DONE").exists()
    assert (run / "pictures.jsonl").read_bytes() == before["pictures.jsonl"]
    keys = [json.loads(line)["key"] for line in before["trials.jsonl"].splitlines()]
    redrawn = [
        path for path, then in when.items() if path.stat().st_mtime_ns != then and path.parent.parent.name == "images"
    ]
    chunks = {(path.parent.name, keys.index(path.name[:-6]) // 2) for path in redrawn}
    assert chunks == {("L", 0), ("L", 1), *((row, 2) for row in ROWS)}, "more was drawn than needed"


def test_a_chunk_found_by_trial_is_kept_for_the_whole_run(made, here, trainer, monkeypatch, capsys):
    root, arguments = made
    arguments = [*arguments, f"run_dir={root / 'found'}", "rows=[L]", "chunk=0"]
    monkeypatch.setattr(trainer, "find_chunk", lambda diffusion, trials, settings: 2)
    assert here(arguments) == 0
    assert json.loads((root / "found" / "rows.json").read_text())["settings"]["chunk"] == 2
    assert pictures(root / "found").items() <= pictures(root / "one").items()
    monkeypatch.setattr(trainer, "find_chunk", lambda diffusion, trials, settings: 1 / 0)
    lost = next((root / "found" / "images" / "L").iterdir())
    lost.unlink()
    assert here(arguments) == 0 and lost.exists()
    assert pictures(root / "found").items() <= pictures(root / "one").items()


def test_a_finished_run_is_left_alone(made, here, capsys):
    root, arguments = made
    before = content(root / "one")
    assert here([*arguments, f"run_dir={root / 'one'}"]) == 0 and "already done" in capsys.readouterr().out
    with pytest.raises(ValueError, match="seed: 0 there, 1 here"):
        here([*arguments, f"run_dir={root / 'one'}", "seed=1"])
    assert content(root / "one") == before


def test_a_row_that_was_renamed_is_a_row_all_the_same(made, here, tmp_path, capsys):
    """As `neuroimagen evaluate` advises where two rows have one name."""
    run = shutil.copytree(made[0] / "one", tmp_path / "renamed")
    (run / "images" / "I").rename(run / "images" / "mine")
    about = json.loads((run / "rows.json").read_text())
    about["rows"][0]["name"] = "mine"
    (run / "rows.json").write_text(json.dumps(about))
    (run / "config.yaml").write_text((run / "config.yaml").read_text().replace(str(made[0] / "one"), str(run)))
    assert here([*made[1], f"run_dir={run}"]) == 0 and "already done" in capsys.readouterr().out
    assert (run / "DONE").exists()


def test_rows_change_nothing_but_their_own_pictures(made, here):
    root, arguments = made
    arguments = [a for a in arguments if not a.startswith(("saliency=", "semantics_blip="))]
    assert here([*arguments, f"run_dir={root / 'l'}", "rows=[L]"]) == 0
    found = pictures(root / "l")
    assert not (root / "l" / "maps").exists()
    assert len(found) == 18 and found.items() <= pictures(root / "one").items()


def test_a_finished_run_may_be_given_further_rows_and_no_other_change(made, here, capsys):
    root, arguments = made
    few = [a for a in arguments if not a.startswith(("semantics_blip=", "brain2image", "neurovision="))]
    run = f"run_dir={root / 'grown'}"
    assert here([*few, run, "rows=[I,L]"]) == 0
    drawn = {path: path.stat().st_mtime_ns for path in (root / "grown" / "images").rglob("*.png")}
    for other in ("seed=1", "samples=1", "rows=[I]", "strength=0.5"):
        with pytest.raises(ValueError, match="holds a run of another config"):
            here([*few, run, "rows=[I,L,L+I]" if "rows" not in other else other, other])
    with pytest.raises(ValueError, match="semantics_label: '.*' there, '.*' here"):
        here([*arguments, run, f"semantics_label={root / 'runs' / 'semantics_blip'}"])
    assert here([*arguments, run]) == 0 and "already done" not in capsys.readouterr().out
    assert pictures(root / "grown") == pictures(root / "one")
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in drawn.items())
    for name in ("trials.jsonl", "pictures.jsonl", "inputs.json"):
        assert (root / "grown" / name).read_bytes() == (root / "one" / name).read_bytes()
    assert here([*arguments, run]) == 0 and "already done" in capsys.readouterr().out
    with pytest.raises(ValueError, match="holds a run of another config"):
        here([*few, run, "rows=[I,L]"])


def test_make_paper_goes_on_from_what_make_demo_drew(trainer):
    configs = TRAINER.parents[1] / "configs"
    files = [f"config={configs / name}" for name in ("reconstruct.yaml", "demo.yaml")]
    runs = ["shards=s", "run_dir=r", "saliency=a", "semantics_label=l", "semantics_blip=b"]
    baselines = ("brain2image", "brain2image_vae", "neurovision")
    demo = load_config(trainer.ReconstructConfig, [*files, *runs], "reconstruct")
    more = [f"config={configs / 'demo_whole.yaml'}", *runs, *(f"{name}=n" for name in baselines)]
    whole = load_config(trainer.ReconstructConfig, [*files, *more], "reconstruct")
    changed = {name for name, value in vars(whole).items() if value != getattr(demo, name)}
    assert changed == {"rows", *baselines} and adds_rows(vars(demo), vars(whole), changed)
    assert not adds_rows(vars(whole), vars(demo), changed)


@pytest.mark.parametrize(
    "change, message",
    [
        (["strength=0.1"], "leaves no denoising step"),
        (["rows=[I,X]"], "different names out of I, L, B"),
        (["rows=[I,I]"], "different names"),
        (["chunk=-1"], "chunk=-1 must be at least 0"),
        (["scheduler=lcm"], "scheduler=lcm is for latent consistency models"),
        (["num_inference_steps=1001"], "more than the 1000"),
        (["rows=[L,L+I]", "semantics_label=null"], "rows L, L.I need semantics_label=RUN_DIR"),
        (["saliency=null", "semantics_label=null", "semantics_blip=null"], "rows=null draws what the given runs allow"),
        (["rows=[retrieval]", "semantics_label=null", "semantics_blip=null"], "rows retrieval need semantics_label"),
        (["brain2image={root}/runs/brain2image_vae"], "was trained with variant=vae, so it is not for row Brain2Image"),
        (["rows=[NeuroVision]", "neurovision=null"], "rows NeuroVision need neurovision=RUN_DIR, a run of trainers/n"),
        (["neurovision={root}/runs/unfinished"], "is not finished"),
        (["brain2image={root}/runs/shorter"], "takes EEG of 4 x 100, but .* holds 4 x 440"),
        (["samples=25"], "train has fewer than samples=25 pictures"),
        (["saliency=/no/such/run"], "is not a run; run trainers/pixel_saliency.py"),
        (["semantics_label={root}/runs/semantics_blip"], "was trained with captions=captions.jsonl"),
        (["semantics_blip={root}/runs/unfinished"], "is not finished"),
        (["pipeline={root}/wide"], "16 x 32 .* takes 16 x 64"),
        (["pipeline={root}/other"], "was trained for the text encoder of"),
        (["shards=/no/such/shards"], "shard"),
        (["image_size=60"], "multiples of 8"),
        (["rows=[I]", "rescale_embeddings=true"], "no row of I has a decoded embedding"),
    ],
)
def test_mistakes_are_named_and_make_no_run(made, here, tmp_path, change, message):
    root, arguments = made
    if not (root / "wide").exists():
        tiny_pipeline(root / "wide", text_width=64)
        tiny_pipeline(root / "other", seed=1)
        shorter = root / "runs" / "shorter"
        Brain2Image(4, 100, 3, n_features=8, image_size=16, width=4).save_pretrained(str(shorter / "model"))
        for name in ("config.yaml", "DONE"):
            (shorter / name).write_text("")
        (root / "runs" / "unfinished").mkdir()
        (root / "runs" / "unfinished" / "config.yaml").write_text("captions: captions.jsonl\n")
    changed = [argument.format(root=root) for argument in change]
    with pytest.raises(ValueError, match=message):
        here([*arguments, *changed, f"run_dir={tmp_path / 'new'}"])
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "change, message",
    [
        ("rows=[I,X]", "different names out of I, L, B"),
        ("saliency=null semantics_label=null semantics_blip=null", "rows=null draws what the given runs allow"),
        ("chunk=-1", "chunk=-1 must be at least 0"),
        ("limit=-1", "limit=-1 must be at least 1"),
        ("strength=0", "strength=0.0 must be above 0"),
        ("rows=[I] rescale_embeddings=true", "no row of I has a decoded embedding"),
    ],
)
def test_a_config_is_checked_before_processes_are_started(made, here, monkeypatch, change, message):
    monkeypatch.setattr(processes, "make_accelerator", lambda *_: pytest.fail("processes were started"))
    with pytest.raises(ValueError, match=message):
        here([*made[1], *change.split(), "run_dir=/no/such/run"])
