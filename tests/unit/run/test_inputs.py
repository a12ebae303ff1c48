"""A run knows what it was made of: the same command on other inputs is refused with what changed, wherever they lie."""

import dataclasses
import functools
import json
import os
import runpy
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from tiny_models import tiny_features, tiny_pipeline, tiny_shards, tiny_stage_runs
from torch import nn

from neuroimagen.config import TrainConfig, load_config
from neuroimagen.files import sha256
from neuroimagen.pixel.features import FeatureExtractor
from neuroimagen.rows import RUNS
from neuroimagen.run import directory as run_dir
from neuroimagen.run import inputs
from neuroimagen.run import run as running
from neuroimagen.run.directory import claim_run_dir
from neuroimagen.run.processes import make_accelerator
from neuroimagen.run.run import Run
from neuroimagen.studies.captions import read_captions, write_captions

TRAINERS = Path(__file__).parents[3] / "trainers"
CLASSES = ("n02389026", "n03888257", "n03584829")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Everything that a stage can stand on."""
    root = tmp_path_factory.mktemp("made")
    tiny_shards(root / "shards")
    (root / "shards_study" / "images").rename(root / "images")
    tiny_stage_runs(root, tiny_pipeline(root / "pipeline"))
    FeatureExtractor(4, 440, "conv", 5, width=4).save_pretrained(str(root / "features" / "model"))
    (root / "autoencoder" / "model").mkdir(parents=True)
    save_file({"weight": torch.zeros(4)}, root / "autoencoder" / "model" / "weights.safetensors")
    for name in ("features", "autoencoder"):
        (root / name / "config.yaml").touch()
        (root / name / "DONE").touch()
    captions = {path.stem: f"a picture of {path.stem}" for path in (root / "images").rglob("*.JPEG")}
    write_captions(root / "captions.jsonl", captions, "by hand")
    return root


@pytest.fixture
def root(made, tmp_path, monkeypatch):
    monkeypatch.setattr(run_dir, "environment", lambda accelerator: {})
    yield Path(shutil.copytree(made, tmp_path / "root"))
    AcceleratorState._reset_state(reset_partial_state=True)


STAGES = {
    "pixel_features": ["shards"],
    "pixel_saliency": ["shards", "features"],
    "sample_semantics": ["shards", "pipeline", "captions"],
    "brain2image": ["shards"],
    "neurovision": ["shards"],
    "latent_diffusion": ["images", "captions", "autoencoder"],
    "latent_diffusion part=autoencoder": ["images"],
    "latent_diffusion init": ["images", "init"],
    "image_prompt": ["images", "captions", "pipeline"],
    "reconstruct": ["shards", "pipeline", *RUNS],
}


@functools.cache
def trainer(script: str):
    """Its main."""
    return runpy.run_path(str(TRAINERS / f"{script}.py"), run_name="imported")["main"]


def config_of(stage: str, root: Path, place: Path | None = None):
    """place: where the run is; else below root"""
    script, *more = stage.split()
    names = {"captions": "captions.jsonl", "init": "pipeline"}
    given = [f"{field}={root / names.get(field, field)}" for field in STAGES[stage]]
    given += [f"run_dir={place or root / 'run'}", *(word for word in more if "=" in word)]
    return load_config(trainer(script).__annotations__["config"], given, script)


def claim(config) -> bool:
    """Whether the run is done; ValueError if it is of other inputs."""
    return claim_run_dir(config, make_accelerator("fp32"))


def edit_manifest(shards: Path, **changes) -> None:
    path = shards / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def one_byte(shards: Path) -> None:
    """Of a tar, with the manifest made anew."""
    tar = shards / "test-000000.tar"
    data = bytearray(tar.read_bytes())
    data[700] ^= 1
    tar.write_bytes(data)
    splits = json.loads((shards / "manifest.json").read_text())["splits"]
    splits["test"]["shards"][0]["sha256"] = sha256(tar)
    edit_manifest(shards, splits=splits)


def another_study(shards: Path) -> None:
    shutil.rmtree(shards)
    tiny_shards(shards, seed=1)


def more_trials(shards: Path) -> None:
    splits = json.loads((shards / "manifest.json").read_text())["splits"]
    splits["train"]["trials"] += 12
    edit_manifest(shards, splits=splits)


def class_renamed(shards: Path) -> None:
    classes = json.loads((shards / "manifest.json").read_text())["classes"]
    classes[0]["name"] = "another"
    edit_manifest(shards, classes=classes)


def made_elsewhere(shards: Path) -> None:
    edit_manifest(shards, inputs={"/another/eeg.pth": "0" * 64}, notes=["a note"], config={"eeg": "/another/eeg.pth"})


def touched(path: Path) -> None:
    for file in [path, *path.rglob("*")]:
        os.utime(file, (1e9, 1e9))


def picture(folder: Path, wnid: int, number: int) -> Path:
    return folder / CLASSES[wnid] / f"{CLASSES[wnid]}_{number}.JPEG"


def to_another_class(folder: Path) -> None:
    picture(folder, 0, 1).rename(folder / CLASSES[1] / "moved.JPEG")


def swapped(folder: Path) -> None:
    a, b = picture(folder, 0, 1), picture(folder, 1, 1)
    a.rename(folder / "other")
    b.rename(a)
    (folder / "other").rename(b)


def redrawn(folder: Path) -> None:
    """The same size in bytes and the same time of change."""
    path = picture(folder, 2, 3)
    known, data = path.stat(), bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(known.st_atime_ns, known.st_mtime_ns))


def added(folder: Path) -> None:
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / CLASSES[0] / "new.png")


def other_weights(run: Path) -> None:
    file = min((run / "model").rglob("*.safetensors"))
    save_file({"weight": torch.ones(4)}, file)


def of_text_encoder(pipeline: Path) -> None:
    save_file({"weight": torch.ones(4)}, pipeline / "text_encoder" / "model.safetensors")


def of_unet(pipeline: Path) -> None:
    save_file({"weight": torch.ones(4)}, min((pipeline / "unet").glob("*.safetensors")))


def caption(name: str, text: str | None):
    def edit(path: Path) -> None:
        captions = read_captions(path)
        captions[name] = text
        write_captions(path, {k: v for k, v in captions.items() if v is not None}, "by hand")

    return edit


def reordered(path: Path) -> None:
    path.write_text("\n\n".join(reversed(path.read_text(encoding="utf-8").splitlines())) + "\n", encoding="utf-8")


FIRST = f"{CLASSES[0]}_0"
# What happens to an input -> what is said of it; None: the run is still done
SHARDS = {
    one_byte: r"1 changed, such as test-000000.tar\)",
    another_study: r"\d changed, such as its channel_mean\)",
    more_trials: r"train trials: 48 then, 60 now\)",
    class_renamed: r"1 changed, such as its classes\)",
    made_elsewhere: None,
    touched: None,
}
IMAGES = {
    to_another_class: rf"1 new, such as {CLASSES[1]}/moved.JPEG; 1 gone, such as {CLASSES[0]}/{CLASSES[0]}_1.JPEG\)",
    swapped: rf"2 changed, such as {CLASSES[0]}/{CLASSES[0]}_1.JPEG\)",
    redrawn: rf"1 changed, such as {CLASSES[2]}/{CLASSES[2]}_3.JPEG\)",
    added: rf"1 new, such as {CLASSES[0]}/new.png\)",
    (lambda folder: picture(folder, 0, 0).unlink()): rf"1 gone, such as {CLASSES[0]}/{FIRST}.JPEG\)",
    (lambda folder: (folder / "notes.txt").write_text("of no interest")): None,
    touched: None,
}
CAPTIONS = {
    caption(FIRST, "another"): rf"1 changed, such as {FIRST}\)",
    caption("extra", "one more"): r"1 new, such as extra\)",
    caption(FIRST, None): rf"1 gone, such as {FIRST}\)",
    reordered: None,
    touched: None,
}
WEIGHTS = {
    other_weights: r"1 changed, such as .*safetensors\)",
    (lambda run: (run / "model" / "config.json").write_text('{"width": 1}')): r"1 (changed|new), such as config.json\)",
    (lambda run: (run / "stats.jsonl").write_text("{}\n")): None,
    touched: None,
}
PIPELINE = {
    of_text_encoder: r"1 changed, such as text_encoder/model.safetensors\)",
    of_unet: r"1 changed, such as unet/.*\)",
    (lambda pipeline: (pipeline / "README.md").write_text("a model")): None,
    touched: None,
}
CHANGES = {"shards": SHARDS, "images": IMAGES, "captions": CAPTIONS, "pipeline": PIPELINE, "init": PIPELINE}
CASES = [
    (stage, field, number)
    for stage, fields in STAGES.items()
    for field in fields
    for number in range(len(CHANGES.get(field, WEIGHTS)))
]


@pytest.mark.parametrize("stage, field, number", CASES)
def test_other_inputs_are_refused_with_what_changed(stage, field, number, root, capsys):
    change, said = list(CHANGES.get(field, WEIGHTS).items())[number]
    if change is of_unet and stage == "sample_semantics":
        said = None  # it reads the text encoder alone
    config = config_of(stage, root)
    path, place = Path(getattr(config, field)), Path(config.run_dir)
    assert not claim(config)
    (place / "checkpoints" / "step-00000002").mkdir(parents=True)  # cut off after two steps
    assert not claim(config)
    change(path)
    for done in (False, True):
        if done:
            (place / "DONE").touch()
        before = {file: file.read_bytes() for file in place.glob("*.*")}
        if said is None:
            assert claim(config) == done
            continue
        with pytest.raises(ValueError, match=f"another {field}={path} than there is now .*{said}") as error:
            claim(config)
        assert str(error.value).startswith(f"run_dir {place} was made of another {field}=")
        assert str(error.value).endswith("): choose another run_dir or delete it")
        assert "\n" not in str(error.value)
        assert {file: file.read_bytes() for file in place.glob("*.*")} == before
    assert "note:" not in capsys.readouterr().out


@pytest.mark.parametrize("stage", STAGES)
def test_a_study_may_move_but_not_to_another_one(stage, root, tmp_path):
    assert not claim(config_of(stage, root))
    (root / "run" / "DONE").touch()
    moved = Path(shutil.copytree(root, tmp_path / "moved"))
    assert claim(config_of(stage, moved, root / "run")) and claim(config_of(stage, moved))
    field = STAGES[stage][0]
    (another_study if field == "shards" else added)(moved / field)
    with pytest.raises(ValueError, match=rf"holds a run of another config \({field}: '"):
        claim(config_of(stage, moved, root / "run"))


@pytest.mark.parametrize("stage", STAGES)
def test_what_was_begun_but_not_made_may_have_its_inputs_mended(stage, root):
    config, field = config_of(stage, root), STAGES[stage][0]
    assert not claim(config)
    (another_study if field == "shards" else added)(Path(getattr(config, field)))
    assert not claim(config)
    (root / "run" / "DONE").touch()
    assert claim(config)


@pytest.mark.parametrize("stage", STAGES)
def test_runs_made_before_it_was_kept_are_taken_with_a_note(stage, root, capsys):
    config = config_of(stage, root)
    assert not claim(config)
    (root / "run" / "inputs.json").unlink()
    (root / "run" / "DONE").touch()
    assert claim(config)
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"note: run_dir {root}/run was made before it was kept of which inputs")
    assert not (root / "run" / "inputs.json").exists()


@pytest.mark.parametrize(
    "text", ["", '{"shards": {"pa', "[]", "[1]", "null", '{"shards": 1}', '{"shards": {"path": "a", "content": [1]}}']
)
def test_inputs_json_that_is_cut_off_is_named(text, root):
    config = config_of("pixel_features", root)
    assert not claim(config)
    (root / "run" / "DONE").touch()
    (root / "run" / "inputs.json").write_text(text)
    with pytest.raises(ValueError, match="inputs.json cannot be read"):
        claim(config)


def test_models_of_the_hub_are_told_apart_by_their_id(root, monkeypatch):
    """Fine-tuned ones often come with the very model_index.json of their base."""
    monkeypatch.setattr(inputs, "hf_hub_download", lambda pipeline, name: str(root / "pipeline" / name))
    config = dataclasses.replace(config_of("sample_semantics", root), pipeline="a-lab/base")
    assert not claim(config)
    (root / "run" / "DONE").touch()
    assert claim(config)
    with pytest.raises(ValueError, match="of another config .pipeline: 'a-lab/base' there, 'a-lab/tuned' here"):
        claim(dataclasses.replace(config, pipeline="a-lab/tuned"))


def test_features_files_are_known_by_their_content(root):
    """`features` of contrastive.py are files, of pixel_saliency.py a run."""
    for name, kind in (("a", "image"), ("text", "text")):
        tiny_features(root / f"{name}.safetensors", root / "shards", 4, kind)
    given = [f"shards={root}/shards", f"features=[{root}/a.safetensors]", f"run_dir={root}/run"]
    given += [f"text_features={root}/text.safetensors", "text_weight=1"]
    config = load_config(trainer("contrastive").__annotations__["config"], given, "contrastive")
    assert not claim(config)
    (root / "run" / "DONE").touch()
    (root / "moved").mkdir()
    shutil.copy(root / "a.safetensors", root / "moved")
    assert claim(dataclasses.replace(config, features=[f"{root}/moved/a.safetensors"], loss_chunk=7))
    for name, field in (("a", "features"), ("text", "text_features")):
        kept = (root / f"{name}.safetensors").read_bytes()
        tiny_features(root / f"{name}.safetensors", root / "shards", 5)
        with pytest.raises(ValueError, match=rf"another {field}=.*\(1 changed, such as {name}.safetensors\)"):
            claim(config)
        (root / f"{name}.safetensors").write_bytes(kept)


def test_the_order_of_features_files_is_part_of_the_config(root):
    """Weights, and the columns of what is predicted, go by it: a stopped run is not continued in another one."""
    files = [f"{root}/b.safetensors", f"{root}/a.safetensors"]
    for width, name in enumerate(files, 4):
        tiny_features(Path(name), root / "shards", width)
    given = [f"shards={root}/shards", f"features=[{','.join(files)}]", "weights=[0.9,0.1]", f"run_dir={root}/run"]
    config = load_config(trainer("contrastive").__annotations__["config"], given, "contrastive")
    assert not claim(config)
    (root / "run" / "DONE").touch()
    with pytest.raises(ValueError, match="holds a run of another config .features: "):
        claim(dataclasses.replace(config, features=files[::-1]))


def test_rows_that_are_not_drawn_need_no_finished_run(root):
    (root / "saliency" / "DONE").unlink()
    config = dataclasses.replace(config_of("reconstruct", root), rows=["L"])
    assert not claim(config) and "saliency" not in json.loads((root / "run" / "inputs.json").read_text())
    (root / "run" / "DONE").touch()
    (root / "saliency" / "DONE").touch()
    assert claim(config)


@pytest.mark.parametrize("lacks, said", [("DONE", "is not finished"), ("config.yaml", "is not a run; run trainers/")])
@pytest.mark.parametrize("stage, field", [("pixel_saliency", "features"), ("latent_diffusion", "autoencoder")])
def test_a_stage_stands_on_finished_runs(stage, field, lacks, said, root):
    (root / field / lacks).unlink()
    with pytest.raises(ValueError, match=f"{field}={root / field} {said}"):
        claim(config_of(stage, root))
    assert not (root / "run").exists()


def test_a_run_of_other_shards_may_be_stood_on_with_a_note(root, capsys):
    """As for a decoder trained on several people and used for one; or by mistake, with a new split."""
    now = inputs.of_shards(root / "shards")
    for other, said in ((now, ""), (now | {"train trials": 7}, "(train trials: 7 then, ")):
        text = json.dumps({"shards": {"path": "elsewhere", "content": other}})
        (root / "features" / "inputs.json").write_text(text, "utf-8")
        assert not claim(config_of("pixel_saliency", root, root / f"run{len(said)}"))
        notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: features=")]
        assert len(notes) == bool(said) and all(said in note and "test here" in note for note in notes)


def test_a_file_is_read_once(root, monkeypatch):
    read = []
    monkeypatch.setattr(inputs, "sha256", lambda path: read.append(path) or sha256(path))
    files = {path.name: path for path in (root / "images").rglob("*.JPEG")}
    assert inputs.hashes(files) == inputs.hashes(files) and len(read) == len(files) == 30
    redrawn(root / "images")
    inputs.hashes(files)
    assert len(read) == 31


contents = st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 3) | st.sampled_from(["x", "y"]), max_size=6)


@given(contents, contents)
def test_words_for_every_difference(then, now):
    said = inputs.changes({"images": {"path": "a", "content": then}}, {"images": {"path": "b", "content": now}})
    assert bool(said) == (then != now)
    if said:
        assert said.startswith("another images=b than there is now (") and "()" not in said and "\n" not in said
        new, gone = now.keys() - then.keys(), then.keys() - now.keys()
        assert (f"{len(new)} new, such as {min(new, default='')}" in said) == bool(new)
        assert (f"{len(gone)} gone, such as {min(gone, default='')}" in said) == bool(gone)
    assert not inputs.changes({}, {"images": {"path": "b", "content": now}})


# In a run that computes


@dataclasses.dataclass
class Config(TrainConfig):
    shards: str = ""
    captions: str = ""


class Model(nn.Linear):
    def save_pretrained(self, directory):
        Path(directory).mkdir(parents=True)
        save_file(self.state_dict(), Path(directory) / "model.safetensors")


def train(config: Config, meanwhile=lambda step: None) -> int:
    run = Run(config)
    model = Model(2, 1)
    meanwhile(0)
    model, optimizer = run.prepare(model, torch.optim.Adam(model.parameters(), 0.1))
    run.resume()
    while run.going():
        loss = model(run.randn(4, 2)).square().mean()
        run.backward(loss, [], loss=loss)
        run.update(optimizer, model)
        run.advance()
        meanwhile(run.step)
    return run.finish(model=model)


@pytest.fixture
def config(root):
    names = {"shards": str(root / "shards"), "captions": str(root / "captions.jsonl"), "run_dir": str(root / "run")}
    return Config(**names, max_steps=4, checkpoint_every=2, log_every=2, global_batch_size=4)


def test_shards_replaced_while_a_run_reads_them(config, root):
    """Nothing is exported; what was saved goes on once they are put back."""

    def replace(step):
        if step == 3:
            shutil.move(root / "shards", root / "first")
            tiny_shards(root / "shards", seed=1)

    with pytest.raises(ValueError, match="another shards=.*channel_mean.*choose another run_dir or delete it"):
        train(config, replace)
    assert not (root / "run" / "DONE").exists() and not (root / "run" / "model").exists()
    run_dir.release(root / "run")
    with pytest.raises(ValueError, match="another shards="):
        train(config)
    shutil.rmtree(root / "shards")
    shutil.move(root / "first", root / "shards")
    assert train(config, lambda step: None if step in (0, 4) else pytest.fail("begun again")) == 0
    assert (root / "run" / "DONE").exists()


def test_an_input_that_changes_while_it_is_loaded(config, root):
    with pytest.raises(ValueError, match="another captions="):
        train(config, lambda step: step or caption(FIRST, "another")(root / "captions.jsonl"))


def test_an_input_that_was_read_may_change_while_the_run_goes_on(config, root):
    assert train(config, lambda step: caption(FIRST, "another")(root / "captions.jsonl") if step == 2 else None) == 0
    with pytest.raises(ValueError, match="another captions="):
        train(config)


def test_a_preempted_run_is_not_continued_on_other_shards(config, root):
    def stop(step):
        if step == 1:
            signal.raise_signal(signal.SIGTERM)

    assert train(config, stop) == running.processes.STOPPED and (root / "run" / "PREEMPTED").exists()
    one_byte(root / "shards")
    with pytest.raises(ValueError, match=r"another shards=.* \(1 changed, such as test-000000.tar\)"):
        train(config)
    assert (root / "run" / "PREEMPTED").exists()


@pytest.mark.parametrize(
    "stage, change, said",
    [
        ("pixel_features", {"trackers": "paper"}, "'paper' is not one of none"),
        ("pixel_saliency", {"augment": "colour"}, "augmentation 'colour' is unknown"),
        ("pixel_features", {"eeg_shift": 9.0}, "eeg_shift=9 s is not within a trial of"),
        ("pixel_saliency", {"eeg_noise": 1.0}, "eeg_noise varies what .* it needs finetune_features=true"),
        ("brain2image", {"classifier_steps": 10, "max_steps": 10}, "leave some of max_steps=10"),
        ("neurovision", {"max_steps": 10}, "max_steps=10 is too short"),
        ("latent_diffusion part=autoencoder", {"accumulate": 2}, "use accumulate=1"),
        ("latent_diffusion", {"autoencoder": ""}, "needs autoencoder=RUN"),
    ],
)
def test_a_config_is_checked_before_anything_starts(stage, change, said, root, monkeypatch):
    monkeypatch.setattr(running.processes, "make_accelerator", lambda *_, **__: pytest.fail("processes were started"))
    with pytest.raises(ValueError, match=said):
        trainer(stage.split()[0])(dataclasses.replace(config_of(stage, root), **({"global_batch_size": 8} | change)))
    assert not (root / "run").exists()


# Stage 0


def stage0(root: Path, *more: str) -> int:
    main = trainer("latent_diffusion")
    given = [f"images={root / 'images'}", f"run_dir={root / 'run'}", f"init={root / 'pipeline'}", "image_size=32"]
    given += ["global_batch_size=2", "max_steps=1", *more]
    return main(load_config(main.__annotations__["config"], given, "latent_diffusion"))


def flatten(images: Path, into: str = ".") -> None:
    (images / into).mkdir(exist_ok=True)
    for path in list(images.rglob("*.JPEG")):
        path.rename(images / into / path.name)
    for wnid in CLASSES:
        (images / wnid).rmdir()


@pytest.mark.parametrize("into", [".", "pictures"])
def test_a_flat_folder_has_no_classes(into, root):
    flatten(root / "images", into)
    folder = "images" if into == "." else into
    said = (
        rf"images=.*/images: 30 pictures, such as .*{FIRST}.JPEG, lie in no class folder, so that each would be "
        rf"captioned 'An image of {folder}': sort them into a folder for each class, or give captions=FILE"
    )
    for more in ([], [f"captions={root / 'captions.jsonl'}"]):
        with pytest.raises(ValueError, match=said):
            stage0(root, *more)
    assert not (root / "run").exists()
    assert stage0(root, f"captions={root / 'captions.jsonl'}", "label_captions=0") == 0


def test_one_picture_beside_the_class_folders(root):
    picture(root / "images", 0, 0).rename(root / "images" / "loose.JPEG")
    with pytest.raises(ValueError, match="1 pictures, such as .*loose.JPEG, lie in no class folder"):
        stage0(root)


def test_folders_that_are_classes(root):
    shutil.rmtree(root / "images" / CLASSES[0])
    shutil.rmtree(root / "images" / CLASSES[1])
    assert stage0(root) == 0, "a wnid is a class, also when it is the only one"


@pytest.mark.parametrize("part", ["autoencoder", "denoiser"])
def test_fewer_pictures_than_a_batch(part, root):
    with pytest.raises(ValueError, match=r"holds 30 pictures, fewer than a batch \(global_batch_size=31\)"):
        stage0(root, f"part={part}", "global_batch_size=31")
    assert not (root / "run").exists()


def test_pictures_of_one_name(root, monkeypatch):
    """A captions file cannot tell them apart; class folders can."""
    twin = root / "images" / CLASSES[1] / f"{FIRST}.JPEG"
    shutil.copy(picture(root / "images", 0, 0), twin)
    with pytest.raises(ValueError, match=f"holds several {FIRST}, which captions="):
        stage0(root, f"captions={root / 'captions.jsonl'}")
    assert stage0(root) == 0


def test_a_run_that_is_given_more_knows_all_its_inputs_wherever_it_was_killed(root, monkeypatch):
    few = dataclasses.replace(config_of("reconstruct", root), rows=["L"], saliency=None)
    more = dataclasses.replace(config_of("reconstruct", root), rows=["L", "L+I"])
    assert not claim(few)
    for name in ("DONE", "rows.json"):
        (root / "run" / name).touch()
    write = run_dir.write_atomic
    for killed_at in ("inputs.json", "config.yaml", ""):

        def write_or_die(path, content, killed_at=killed_at):
            if path.name == killed_at:
                raise KeyboardInterrupt
            write(path, content)

        monkeypatch.setattr(run_dir, "write_atomic", write_or_die)
        if killed_at:
            with pytest.raises(KeyboardInterrupt):
                claim(more)
        else:
            assert not claim(more)
    assert set(json.loads((root / "run" / "inputs.json").read_text())) >= {"saliency", "semantics_label"}
