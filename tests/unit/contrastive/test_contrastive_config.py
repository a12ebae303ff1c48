"""What cannot be trained is refused in one sentence, before a process group is there or a run directory is made."""

import runpy
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_features, tiny_shards

from neuroimagen.config import load_config

REPO = Path(__file__).parents[3]
TRAINER = REPO / "trainers" / "contrastive.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("contrastive")
    tiny_shards(folder / "shards")
    for name, kind in (("image", "image"), ("text", "text")):
        tiny_features(folder / f"{name}.safetensors", folder / "shards", 4, kind)
    (folder / "twin").mkdir()
    (folder / "twin" / "image.safetensors").write_bytes((folder / "image.safetensors").read_bytes())
    (folder / "damaged.safetensors").write_bytes((folder / "image.safetensors").read_bytes()[:200])
    return folder


ONE = "features=[image.safetensors]"
TWO = "features=[image.safetensors,b.safetensors]"


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["features=[]"], "0 features files with 0 weights: give at least one file"),
        ([TWO, "weights=[1]"], "2 features files with 1 weights"),
        (["features=[image.safetensors,image.safetensors]"], "two features files are called image: leave one out"),
        (["features=[image.safetensors,twin/image.safetensors]"], "two features files are called image: leave one out"),
        ([ONE, "text_features=image.safetensors", "text_weight=1"], "two features files are called image"),
        ([ONE, "text_features=text.safetensors"], "text_features and a text_weight above 0 belong together"),
        ([ONE, "text_weight=0.5"], "text_features and a text_weight above 0 belong together"),
        ([ONE, "weights=[0]"], r"weights=\[0.0\] must be above 0"),
        ([ONE, "weights=[-1]", "mse_weight=1"], "must be above 0"),
        ([ONE, "weights=[nan]", "mse_weight=1"], "must be above 0"),
        ([ONE, "max_bad_samples=1"], "max_bad_samples is not offered here"),
        ([ONE, "eeg_smooth=0.3", "eeg_smooth_window=4"], "eeg_smooth_window=4 is not an odd number"),
        (["features=[text.safetensors]"], "holds features of kind text, where image is asked for"),
        (["features=[damaged.safetensors]"], "damaged.safetensors is no features file, or is damaged"),
        (["features=[none.safetensors]"], "none.safetensors does not exist; make it with neuroimagen features"),
        ([ONE, "head=none"], "head=none needs one features file and n_features=4, its width"),
        ([ONE, "loss_chunk=0"], "loss_chunk=0 must be at least 1"),
        ([ONE, "positives=subject"], "'subject' is not one of picture, class, trial"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(arguments, said, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    main = runpy.run_path(str(TRAINER), run_name="imported")["main"]
    with pytest.raises(ValueError, match=said):
        main(
            load_config(
                main.__annotations__["config"],
                ["shards=shards", f"run_dir={tmp_path}/run", *arguments],
                "contrastive",
            )
        )
    assert not (tmp_path / "run").exists() and not torch.distributed.is_initialized()


@pytest.mark.parametrize("path", sorted((REPO / "configs" / "zoo").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_published_way_is_a_config_that_the_trainer_takes(path):
    text = ["text_features=t.safetensors"] if "text_weight" in path.read_text(encoding="utf-8") else []
    files = [f"config={REPO / 'configs' / 'contrastive.yaml'}", f"config={path}", "shards=s", "run_dir=r"]
    schema = runpy.run_path(str(TRAINER), run_name="imported")["ContrastiveConfig"]
    config = load_config(schema, [*files, "features=[f.safetensors]", *text], "contrastive")
    config.check()
    assert config.max_steps > 0 and config.encoder in ("tsconv", "atm", "projection")
