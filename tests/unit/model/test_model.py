"""NeuroImagen from Python and `neuroimagen export`: the pictures of the run, from one directory without pickles."""

import base64
import dataclasses
import importlib.util
import inspect
import io
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from huggingface_hub import HfApi, hub_mixin
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_models import TEXT_LENGTH, TEXT_WIDTH, tiny_pipeline, tiny_shards, tiny_stage_runs

from neuroimagen import NeuroImagen
from neuroimagen.cli import main
from neuroimagen.config import load_config
from neuroimagen.model import model as model_module
from neuroimagen.model.model import copy_pipeline
from neuroimagen.reconstruction.reconstructor import Reconstructor
from neuroimagen.run import inputs
from neuroimagen.sample.encoder import SampleEncoder
from neuroimagen.shards.format import ShardSplit

TRAINER = Path(__file__).parents[3] / "trainers" / "reconstruct.py"
ROWS = ["I", "B", "L+I"]
SCORES = {
    "trials": 6,
    "pictures": 3,
    "samples": 2,
    "classifier": "a classifier",
    "rows": {"L+I": {"all": {"acc": {"value": 0.25, "low": 0.125, "high": 0.5, "n": 3}, "is": {"value": 2.0, "n": 3}}}}
    | {"I": {"all": {"is": {"value": 1.5, "low": None, "high": None, "n": 3}}}},
    "metrics": {
        "acc": {"head": "ACC (%)", "scale": 100, "digits": 1, "chance": 0.02, "chance_of": "one of 50"}
        | {"ceiling": None, "definition": "How often."}
    },
}


def trainer():
    """trainers/reconstruct.py as a module."""
    spec = importlib.util.spec_from_file_location("reconstruct", TRAINER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def draw(arguments: list[str]) -> None:
    """trainers/reconstruct.py in this process."""
    module = trainer()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        assert module.main(load_config(module.ReconstructConfig, arguments, "reconstruct")) == 0
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        signal.signal(signal.SIGTERM, handler)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """As launch/paper.sh leaves them, with random weights: shards, three stage runs, and the pictures drawn by them."""
    root = tmp_path_factory.mktemp("made") / "runs"
    pipeline = tiny_pipeline(root.parent / "pipeline")
    shards = tiny_shards(root / "shards")
    tiny_stage_runs(root, pipeline)
    (root / "saliency").rename(root / "pixel_saliency")
    stages = {"saliency": "pixel_saliency", "semantics_label": "semantics_label", "semantics_blip": "semantics_blip"}
    for folder in stages.values():
        config = yaml.safe_load((root / folder / "config.yaml").read_text())
        (root / folder / "config.yaml").write_text(yaml.safe_dump(config | {"shards": str(shards)}))
        made_of = {"shards": {"path": str(shards), "content": inputs.of_shards(shards)}}
        if folder != "pixel_saliency":
            made_of["pipeline"] = {"path": str(pipeline), "content": inputs.of_pipeline(str(pipeline), text_alone=True)}
        (root / folder / "inputs.json").write_text(json.dumps(made_of))
    fields = {"shards": shards, "pipeline": pipeline, "run_dir": root / "reconstruct", "samples": 2, "chunk": 2}
    fields |= {"num_inference_steps": 4, "rescale_embeddings": True, "rows": f"[{','.join(ROWS)}]", "seed": 3}
    fields |= {field: root / folder for field, folder in stages.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "yes")
        draw([f"{name}={value}" for name, value in fields.items()])
    return root


@pytest.fixture(scope="module")
def exported(runs):
    out = runs.parent / "exported"
    assert main(["export", str(runs), f"out={out}"]) == 0
    return out


@pytest.fixture(scope="module")
def model(exported):
    return NeuroImagen.from_pretrained(exported, device="cpu")


@pytest.fixture(scope="module")
def trials(runs):
    """The EEG of the test trials as the shards hold it, and their keys."""
    split = ShardSplit(runs / "shards", "test")
    return np.stack([split.eeg(i) for i in range(len(split))]), split.keys


def png(image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def pixels(result) -> list[bytes]:
    return [image.tobytes() for images in result.images for image in images]


def test_everybody_is_decoded_by_a_layer_of_their_own(runs, trials, tmp_path):
    """The run's very pictures if it is said whose EEG it is; of somebody else by the mean of the layers."""
    torch.manual_seed(0)
    m_s = SampleEncoder(4, 440, TEXT_LENGTH, TEXT_WIDTH, n_features=8, subjects=[1, 2])
    torch.nn.init.normal_(m_s.encoder.front.change)
    run = tmp_path / "semantics_label"
    shutil.copytree(runs / "semantics_label", run)
    m_s.save_pretrained(str(run / "model"))
    fields = {"shards": runs / "shards", "pipeline": runs.parent / "pipeline", "run_dir": tmp_path / "reconstruct"}
    fields |= {"num_inference_steps": 4, "rows": "[L]", "chunk": 2, "samples": 1, "semantics_label": run}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "yes")
        draw([f"{name}={value}" for name, value in fields.items()])
    assert main(["export", str(tmp_path), f"out={tmp_path}/exported", f"shards={runs}/shards"]) == 0
    model, (eeg, keys) = NeuroImagen.from_pretrained(tmp_path / "exported", device="cpu"), trials
    split = ShardSplit(runs / "shards", "test")
    people = [split.info(i)["subject"] for i in range(len(split))]
    drawn = [png(images[0]) for images in model.reconstruct(eeg, keys, subject=people).images]
    there = [(tmp_path / "reconstruct" / "images" / "L" / f"{key}_0.png").read_bytes() for key in keys]
    assert drawn == there and sorted(set(people)) == [1, 2]
    one, other, mean = (model.reconstruct(eeg[:1], keys[:1], subject=who).embeddings for who in (1, 2, None))
    assert not torch.equal(one, other) and not torch.equal(one, mean) and not torch.equal(other, mean)
    for subject, said in ((3, "subject=3: this model has layers of subjects 1, 2"), ([1, 2], "names 2 trials' people")):
        with pytest.raises(ValueError, match=said):
            model.reconstruct(eeg[:1], subject=subject)


def test_a_model_without_layers_of_people_takes_no_subject(model, trials):
    with pytest.raises(ValueError, match="subject=1: this model has no layer of any subject; leave it out"):
        model.reconstruct(trials[0], subject=1)


def test_pictures_are_those_of_the_run_byte_for_byte(runs, model, trials):
    eeg, keys = trials
    assert model.rows == ["L+I", "B+I", "L", "B", "I", "none"]
    for row in ROWS:
        result = model.reconstruct(eeg, keys, row=row)
        assert (result.row, result.keys, len(result.images)) == (row, keys, 6)
        for key, images, map_ in zip(keys, result.images, result.maps, strict=True):
            for sample, image in enumerate(images):
                assert png(image) == (runs / "reconstruct" / "images" / row / f"{key}_{sample}.png").read_bytes()
            assert png(map_) == (runs / "reconstruct" / "maps" / f"{key}.png").read_bytes()
        shape = None if result.embeddings is None else tuple(result.embeddings.shape)
        assert shape == (None if row == "I" else (6, TEXT_LENGTH, TEXT_WIDTH))
    m_s = model.m_s["label"]
    decoded, asked = (model.reconstruct(eeg, keys, row="L", **how) for how in ({"rescale_embeddings": False}, {}))
    torch.testing.assert_close(asked.embeddings, m_s.rescaled(decoded.embeddings))
    assert (asked.embeddings - decoded.embeddings).abs().max() > 0.1


def test_a_picture_follows_its_key(model, trials):
    eeg, keys = trials
    two = model.reconstruct(eeg[:2], keys[:2])
    assert model.reconstruct(eeg[:2]).keys == ["0", "1"]
    swapped = model.reconstruct(eeg[[1, 0]], [keys[1], keys[0]])
    assert pixels(swapped) == pixels(two)[2:] + pixels(two)[:2]
    assert pixels(model.reconstruct(eeg[:2])) != pixels(two), "another key, the same noise"
    assert pixels(model.reconstruct(eeg[:2], keys[:2], seed=4)) != pixels(two)
    assert len(model.reconstruct(eeg[:2], samples=1, chunk=0).images) == 2, "as many together as fit"
    other = model.reconstruct(torch.from_numpy(eeg[:2]), keys[:2], samples=1, strength=0.5, image_size=32)
    assert [[image.size for image in images] for images in other.images] == [[(32, 32)], [(32, 32)]]


def test_an_array_as_recorded_is_cut_as_the_shards_were(runs, model, trials):
    """Samples 20 to 459 of the files' 500, which is what the reader takes."""
    eeg, keys = trials
    study = torch.load(runs / "shards_study" / "eeg.pth", weights_only=True)
    split = ShardSplit(runs / "shards", "test")
    known = {(t["subject"], study["images"][t["image"]]): t["eeg"].numpy() for t in study["dataset"]}
    recorded = np.stack([known[info["subject"], info["image"]] for info in map(split.info, range(6))])
    assert recorded.shape == (6, 4, 500)
    result = model.reconstruct(recorded[:2], keys[:2], sfreq=1000)
    assert pixels(result) == pixels(model.reconstruct(eeg[:2], keys[:2]))


def test_save_and_load_again(exported, model, trials, tmp_path, fp32_is_fp32):
    model.save_pretrained(tmp_path / "again")
    again = NeuroImagen.from_pretrained(tmp_path / "again", device="cpu")
    ours, theirs = model.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    files = {str(path.relative_to(exported)): path for path in exported.rglob("*") if path.is_file()}
    assert {path.suffix for path in files.values()} == {".json", ".safetensors", ".md"}
    assert {"config.json", "model.safetensors", "README.md", "diffusion/model_index.json"} < set(files)
    for name, path in files.items():
        assert (tmp_path / "again" / name).read_bytes() == path.read_bytes(), name
    assert str(exported.parent) not in "".join(path.read_text(errors="ignore") for path in files.values())
    assert pixels(again.reconstruct(trials[0][:2])) == pixels(model.reconstruct(trials[0][:2]))


def test_push_to_the_hub_and_load_from_it(exported, model, trials, tmp_path, monkeypatch):
    """The upload itself is not run: what it is given is kept, and served again."""
    hub = tmp_path / "hub"

    class Created:
        repo_id = "me/model"

    monkeypatch.setattr(HfApi, "create_repo", lambda self, **asked: Created())
    monkeypatch.setattr(HfApi, "upload_folder", lambda self, **asked: shutil.copytree(asked["folder_path"], hub))
    model.push_to_hub("me/model")
    names = {str(path.relative_to(hub)) for path in hub.rglob("*") if path.is_file()}
    assert names == {str(path.relative_to(exported)) for path in exported.rglob("*") if path.is_file()}

    monkeypatch.setattr(hub_mixin, "hf_hub_download", lambda *given, **asked: str(hub / asked["filename"]))
    fetched = []
    monkeypatch.setattr(model_module, "snapshot_download", lambda **asked: fetched.append(asked) or str(hub))
    loaded = NeuroImagen.from_pretrained("me/model", revision="v1", device="cpu")
    assert fetched == [], "the diffusion model is fetched when it is needed"
    assert pixels(loaded.reconstruct(trials[0][:1])) == pixels(model.reconstruct(trials[0][:1]))
    assert fetched == [{"repo_id": "me/model", "revision": "v1", "allow_patterns": ["diffusion/*"]}]


def test_eeg_that_is_not_what_the_model_takes(model, trials):
    eeg = trials[0]

    def refused(match, given=eeg, *more, **asked):
        with pytest.raises(ValueError, match=match) as error:
            model.reconstruct(given, *more, **asked)
        assert "\n" not in str(error.value)

    refused(r"shape \(4, 440\), but this model takes \(n_trials, 4, 440\): 4 channels x 440.*needs sfreq=", eeg[0])
    refused(r"shape \(6, 440, 4\), but", eeg.transpose(0, 2, 1))
    refused("must be an array of numbers or mne.Epochs, not str", "eeg.npy")
    refused("holds no trial", eeg[:0])
    broken = eeg.copy()
    broken[3, 1, 7] = np.nan
    refused("trial 3 holds NaN", broken)
    scaled = eeg.copy()
    scaled[2] *= 1e-6
    refused(r"trial 2 varies \S+e-0[67] times as much as .*give it in that unit", scaled)
    refused(r"trial 0 varies \S+e\+0[56] times as much", eeg * 1e6)
    offset = eeg.copy()
    offset[5] += 1000
    refused(r"trial 5 varies \S{1,4} times .*e\+03 with its offset", offset)
    flat = eeg.copy()
    flat[4] = 0
    refused("trial 4 varies 0 times as much", flat)
    dead = eeg.copy()
    dead[:, 0] = 0  # one electrode: no reason
    assert len(model.reconstruct(dead[:1]).images) == 1
    refused("keys names 2 trials, but eeg holds 6", eeg, ["a", "b"])
    refused("row='X': this model has L\\+I, B\\+I", row="X")
    refused("stregth is no setting .*did you mean strength", stregth=0.5)
    refused("chunk=-1: at least one", chunk=-1)
    refused("samples=0: at least one", samples=0)
    refused("lasts from 0 to 0.44 s, but the model takes 0.02 to 0.46 s", sfreq=1000)
    refused("at 500 Hz, but the model takes 1000 Hz", sfreq=500)
    refused("do not name their channels: leave channels= out", sfreq=1000, channels=["A", "B", "C", "D"])
    refused("channels has 1 names, but eeg has 4", sfreq=1000, channels=["A"])


def test_model_that_cannot_be_loaded(exported, tmp_path):
    def refused(match, place, **asked):
        with pytest.raises(ValueError, match=match):
            NeuroImagen.from_pretrained(place, device="cpu", **asked)

    refused("neither a directory nor a hub id", "./nothing")
    (tmp_path / "empty").mkdir()
    refused("holds no exported model: make one with neuroimagen export", tmp_path / "empty")
    copy = Path(shutil.copytree(exported, tmp_path / "copy"))
    shutil.rmtree(copy / "diffusion")
    refused("has no diffusion/: copy it again, or say pipeline=", copy)
    assert NeuroImagen.from_pretrained(copy, device="cpu", pipeline=exported / "diffusion").diffusion.size == (64, 64)
    weights = load_file(copy / "model.safetensors")
    save_file({name: value for name, value in weights.items() if name != "g.start.bias"}, copy / "model.safetensors")
    refused("weights do not fit its config.json: .*g.start.bias", copy, pipeline=exported)
    save_file(weights, copy / "model.safetensors")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"generator": config["generator"] | {"width": 8}}))
    refused("weights do not fit its config.json", copy, pipeline=exported)
    (copy / "config.json").write_text(json.dumps({"hidden_size": 3}))
    refused("is not an exported NeuroImagen model", copy, pipeline=exported)


def test_another_text_encoder_is_refused(exported, tmp_path):
    other = tiny_pipeline(tmp_path / "other", seed=1)
    model = NeuroImagen.from_pretrained(exported, device="cpu")
    first = model.diffusion.empty[0, 0]
    for m_s in model.m_s.values():
        m_s.mean[0] = first  # what training leaves there
    model._diffusion = None
    assert model.diffusion.empty.shape[1:] == (TEXT_LENGTH, TEXT_WIDTH)
    model._diffusion, model.pipeline = None, str(other)
    with pytest.raises(ValueError, match="trained for another text encoder than that of .*other"):
        model.diffusion  # noqa: B018


def test_the_card(runs, tmp_path):
    runs = Path(shutil.copytree(runs, tmp_path / "runs"))
    about = "ACC (%)"
    assert main(["export", str(runs), f"out={tmp_path / 'bare'}", "diffusion=name"]) == 0
    bare = (tmp_path / "bare" / "README.md").read_text()
    assert "**Not scored.**" in bare and about not in bare and "SIMULATED" not in bare
    assert "Li et al. 2020" in bare, "the block design of PerceiveLab's data"
    assert not (tmp_path / "bare" / "diffusion").exists()
    drawn = yaml.safe_load((runs / "reconstruct" / "config.yaml").read_text())
    assert json.loads((tmp_path / "bare" / "config.json").read_text())["pipeline"] == drawn["pipeline"]
    (runs / "reconstruct" / "scores.json").write_text(json.dumps(SCORES))
    manifest = json.loads((runs / "shards" / "manifest.json").read_text())
    (runs / "shards" / "manifest.json").write_text(json.dumps(manifest | {"simulated": True}))
    rows = json.loads((runs / "reconstruct" / "rows.json").read_text())
    rows["manifest"]["simulated"] = True
    (runs / "reconstruct" / "rows.json").write_text(json.dumps(rows))
    assert main(["export", str(runs), f"out={tmp_path / 'full'}", "name=a_name"]) == 0
    card = (tmp_path / "full" / "README.md").read_text()
    for part in (
        "# a_name (simulated data)",
        "> **SIMULATED DATA.**",
        'NeuroImagen.from_pretrained("a_name")',
        "| drawn from | L+I | I | by chance |",
        "| ACC (%) | 25.0 [12.5, 50.0] | - | 2.0 |\n| is | 2.000 | 1.500 | - |",
        "- ACC (%): How often. By chance: one of 50.",
        "6 trials of the test split, 3 pictures seen, 2 samples a trial.",
        "Classifier: a classifier.",
        "4 channels x 440 samples at 1000 Hz from 0.02 s",
        "- trials: 48 train, 6 val, 6 test",
        manifest["classes"][0]["name"],
        "80/10/10 of the images",
    ):
        assert part in card, part
    assert "Li et al. 2020" not in card


def test_one_default_of_each_setting(runs, tmp_path):
    """The trainer, its config file, Reconstructor and a model of runs that drew nothing draw with the same."""
    fields = [f"{field}={runs / folder}" for field, folder in (("saliency", "pixel_saliency"), ("shards", "shards"))]
    assert main(["export", *fields, f"pipeline={runs.parent / 'pipeline'}", f"out={tmp_path / 'out'}"]) == 0
    exported = json.loads((tmp_path / "out" / "config.json").read_text())["settings"]
    ours = dataclasses.asdict(trainer().ReconstructConfig())
    assert {"chunk", "samples", "image_size", "precision"} < exported.keys()
    assert exported == {name: ours[name] for name in exported}
    file = yaml.safe_load((TRAINER.parents[1] / "configs" / "reconstruct.yaml").read_text())
    told = inspect.signature(Reconstructor.reconstruct).parameters
    for name in exported:
        assert file.get(name, ours[name]) == ours[name], name
        assert name not in told or told[name].default == ours[name], name


def test_runs_that_do_not_belong_together(runs, exported, tmp_path, capsys):
    def refused(match, *arguments):
        assert main(["export", *map(str, arguments)]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert match in said
        assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()

    out = f"out={tmp_path / 'out'}"
    before = (exported / "config.json").stat().st_mtime_ns
    refused("is there already: give another out=", runs, f"out={exported}")
    assert (exported / "config.json").stat().st_mtime_ns == before
    refused("is not a directory: name the one that launch/paper.sh filled", tmp_path / "nothing", out)
    refused("a model needs trained decoders, and none is named", out)
    mine = Path(shutil.copytree(runs, tmp_path / "runs"))
    (mine / "semantics_label" / "DONE").unlink()
    refused("semantics_label is not finished (no DONE)", mine, out)
    refused("is not a run", runs, out, f"saliency={tmp_path}")

    # another study: the same shape of EEG, other trials
    shutil.rmtree(mine / "semantics_label")
    shutil.copytree(runs / "semantics_label", mine / "semantics_label")
    other = inputs.of_shards(tiny_shards(tmp_path / "shards", seed=1))
    kept = mine / "semantics_label" / "inputs.json"
    known = kept.read_text()
    kept.write_text(json.dumps(json.loads(known) | {"shards": {"path": "gone/shards", "content": other}}))
    refused(f"semantics_label={kept.parent} was made of another shards={mine / 'shards'} than there is", mine, out)
    kept.write_text(known)

    # the text encoder was trained on after the runs that learnt from it
    kept = runs.parent / "pipeline" / "text_encoder" / "config.json"
    text = kept.read_text()
    kept.write_text(text + " ")
    refused("1 changed, such as text_encoder/config.json): name the runs that belong together", mine, out)
    kept.write_text(text)

    # the run that was scored drew with other weights, and scores are of its pictures
    weights = mine / "semantics_label" / "model" / "model.safetensors"
    save_file({name: value + (name == "output.bias") for name, value in load_file(weights).items()}, weights)
    refused(f"/reconstruct was made of another semantics_label={weights.parents[1]} than there is now", mine, out)
    shutil.copy(runs / "semantics_label" / "model" / "model.safetensors", weights)
    (mine / "reconstruct" / "scores.json").write_text(json.dumps({**SCORES, "made_of": {"run": "of another"}}))
    refused("scores.json belongs to other pictures; make it anew with: neuroimagen evaluate", mine, out)
    (mine / "reconstruct" / "scores.json").unlink()
    (tmp_path / "out.partial").mkdir()  # of an export that was killed
    assert main(["export", out, f"semantics_label={mine / 'semantics_label'}"]) == 0, "on its own it is a model"
    assert "not scored" in capsys.readouterr().out
    model = NeuroImagen.from_pretrained(tmp_path / "out", device="cpu")
    assert model.rows == ["L", "none"] and model.g is None
    result = model.reconstruct(np.random.default_rng(0).normal(size=(1, 4, 440)), samples=1, num_inference_steps=2)
    assert (len(result.images[0]), result.maps) == (1, [])


def test_pickled_weights_are_left_behind(runs, tmp_path):
    source = Path(shutil.copytree(runs.parent / "pipeline", tmp_path / "source"))
    index = json.loads((source / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (source / "model_index.json").write_text(json.dumps(index))
    (source / "LICENSE").write_text("as it is")
    for name in ("unet/diffusion_pytorch_model.bin", "unet/x.fp16.safetensors", "safety_checker/pytorch_model.bin"):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_bytes(b"a pickle")
    copy_pipeline(source, tmp_path / "target")
    found = {str(path.relative_to(tmp_path / "target")) for path in (tmp_path / "target").rglob("*") if path.is_file()}
    pipeline = runs.parent / "pipeline"
    assert found == {str(path.relative_to(pipeline)) for path in pipeline.rglob("*") if path.is_file()} | {"LICENSE"}
    (source / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ValueError, match="unet holds no safetensors: save the pipeline with diffusers"):
        copy_pipeline(source, tmp_path / "other")


def test_importing_the_package_stays_light():
    code = "import sys, neuroimagen; print(sorted({'torch', 'diffusers', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=900)
    assert done.stdout.strip() == "[]", done.stderr
    import neuroimagen

    with pytest.raises(AttributeError, match="no attribute 'Neuroimagen'"):
        neuroimagen.Neuroimagen  # noqa: B018


def test_what_a_terminal_and_a_notebook_show(runs, model, trials, tmp_path):
    eeg, keys = trials
    lines = repr(model).splitlines()
    assert len(lines) == 10 and lines[0] == "NeuroImagen exported" and max(map(len, lines)) < 250
    shown = {line[:14].strip(): line[14:] for line in lines[1:]}
    assert shown["takes"] == "EEG of 4 channels x 440 samples at 1000 Hz from 0.02 s, in the unit of its files"
    assert shown["decodes"].startswith("saliency maps of 16 px; embeddings of 16 x 32 learnt from label captions")
    assert shown["scores"] == "not scored" and "num_inference_steps=4" in shown["settings"]
    numbers = sum(tensor.numel() for tensor in model.parameters())
    assert shown["parameters"] == f"{numbers:,} of the decoders, in fp32"
    result = model.reconstruct(eeg, [f"<{key}>" for key in keys])
    assert "diffusion/, in fp32, loaded" in repr(model)
    assert repr(result) == "Reconstruction of 6 trials, 2 pictures each, row L+I, on cpu in fp32"
    page = result._repr_html_()
    assert page.count("<tr>") == 7 and page.count("<img") == 6 * 3 and f"&lt;{keys[5]}&gt;" in page
    assert f"<{keys[0]}>" not in page and "not shown" not in page
    first = base64.b64decode(page.partition("base64,")[2].partition('"')[0])
    assert Image.open(io.BytesIO(first)).size == result.maps[0].size, "what is small already stays as it is"
    result.images, result.keys = result.images * 5, result.keys * 5
    assert "6 more trials are not shown" in result._repr_html_()


def test_the_card_in_a_terminal_says_scores_and_simulated(exported):
    model = NeuroImagen.from_pretrained(exported, device="cpu")
    model.about |= {"simulated": True, "scores": SCORES | {"rows": {r: g["all"] for r, g in SCORES["rows"].items()}}}
    assert "perceivelab (SIMULATED), 2 subjects, 3 classes" in repr(model)
    assert "row L+I: ACC (%) 25.0, is 2.000" in repr(model)


def test_precision_follows_device_and_dtype(exported):
    model = NeuroImagen.from_pretrained(exported, device="cpu", dtype=torch.bfloat16)
    assert model.precision == "bf16" and "in bf16, not loaded yet" in repr(model)
    assert model.diffusion.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="dtype=torch.float64 is not one of torch.float32, "):
        NeuroImagen.from_pretrained(exported, device="cpu", dtype=torch.float64)


def test_a_notebook_sees_the_bar_and_a_file_does_not(model, trials, capsys, monkeypatch):
    model.reconstruct(trials[0][:1], samples=1)
    assert capsys.readouterr().err == ""
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    model.reconstruct(trials[0][:1], samples=1)
    assert "row L+I: 100%" in capsys.readouterr().err


WINDOWS = """
import builtins, sys
load = builtins.__import__
def as_there(name, globals=None, *more, **named):  # for our own modules: those of libraries ask for sys.platform
    asking = (globals or {}).get("__name__", "")
    if asking.startswith("neuroimagen") and name in ("fcntl", "resource", "pwd", "grp", "termios"):
        raise ImportError(name)
    return load(name, globals, *more, **named)
builtins.__import__ = as_there
import numpy as np
from neuroimagen import NeuroImagen
from neuroimagen import files
assert files.fcntl is None and files.resource is None
model = NeuroImagen.from_pretrained(sys.argv[1], device="cpu")
result = model.reconstruct(np.load(sys.argv[2]), samples=1)
print(len(result.images), files.allow_open(500))
"""


def test_python_without_posix_modules(exported, trials, tmp_path):
    """What Windows lacks is taken from our modules; it is not Windows."""
    np.save(tmp_path / "eeg.npy", trials[0][:1])
    line = [sys.executable, "-c", WINDOWS, str(exported), str(tmp_path / "eeg.npy")]
    done = subprocess.run(line, capture_output=True, text=True, timeout=900)
    assert (done.returncode, done.stdout.split()) == (0, ["1", "500"]), done.stderr
