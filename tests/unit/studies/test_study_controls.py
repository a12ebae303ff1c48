"""Splits and controls on a study of trials that are known one by one."""

import numpy as np
import pytest

from neuroimagen.studies.config import SignalOptions, StudyConfig
from neuroimagen.studies.controls import Controlled, check_controls, random_phases, with_controls
from neuroimagen.studies.open import listed
from neuroimagen.studies.recordings import RecordingConfig
from neuroimagen.studies.signal import Prepared
from neuroimagen.studies.study import Facts, Study, Trial


class Known(Study):
    """Trials of (subject, image, label, block, onset) and a split letter each; its EEG is its number, and noise."""

    dataset, n_chans, n_times, sfreq, units, protocol = "known", 2, 16, 100.0, "uV", "as given"
    classes = [{"label": k, "wnid": f"n{k}", "name": "abc"[k]} for k in range(3)]
    inputs = []

    def __init__(self, trials: list[tuple[Facts, str]]) -> None:
        super().__init__()
        self.trials = [facts for facts, _ in trials]
        names = {"t": "train", "v": "val", "x": "test"}
        self.splits = {name: [i for i, (_, s) in enumerate(trials) if s == letter] for letter, name in names.items()}

    def __len__(self) -> int:
        return len(self.trials)

    def facts(self, index: int) -> Facts:
        return self.trials[index]._replace(picture=self.trials[index].image.encode())

    def trial(self, index: int) -> Trial:
        eeg = np.random.default_rng(index).normal(index, 1, (2, 16)).astype(np.float32)
        return self.make_trial(f"t{index:02}", eeg, self.facts(index), {"n": index})


def by_blocks() -> Known:
    """Two subjects, three blocks each of one class and four trials: train, train, val, test. Pictures differ."""
    trials = []
    for subject, order in ((1, (0, 1, 2)), (2, (2, 0, 1))):
        for block, label in enumerate(order):
            for k, side in enumerate("ttvx"):
                trials.append((Facts(subject, f"{'abc'[label]}{k}", label, f"b{block}", 10.0 * block + k), side))
    return Known(trials)


def made(study: Study, **options: object) -> Study:
    config = StudyConfig(**options)
    check_controls(config)
    return with_controls(study, config)


def labels(study: Study) -> list[int]:
    return [study.facts(i).label for own in study.splits.values() for i in own]


def test_nothing_asked_for_is_the_very_same_study() -> None:
    study = by_blocks()
    assert made(study) is study and made(study, seed=3, subject=0) is study and not study.mark


def test_whole_blocks_are_held_out_in_order_of_time() -> None:
    study = made(by_blocks(), hold_out=[-1])  # class 2 of subject 1, class 1 of subject 2
    assert {study.facts(i)[:4] for i in study.splits["test"]} == {(1, "c3", 2, "b2"), (2, "b3", 1, "b2")}
    assert [i for own in (study.splits["train"], study.splits["val"]) for i in own] == [
        0,
        1,
        4,
        5,
        12,
        13,
        16,
        17,
        2,
        6,
        14,
        18,
    ]
    assert study.protocol == "as given; of these, held out for test alone: blocks -1" and study.split_by == "image"
    with pytest.raises(ValueError, match="hold_out=3, but subject 1 has 3 blocks"):
        made(by_blocks(), hold_out=[3])
    with pytest.raises(ValueError, match="class 'a' was shown in held-out blocks alone, so it could not be trained on"):
        made(by_blocks(), hold_out=[0, 1])


def test_people_and_classes_are_held_out() -> None:
    study = made(by_blocks(), hold_out_subject=2, hold_out_classes=1)
    ((subject, image, label, *_),) = {study.facts(i) for i in study.splits["test"]}
    assert subject == 2 and image == f"{'abc'[label]}3"
    rest = [study.facts(i) for name in ("train", "val") for i in study.splits[name]]
    assert len(rest) == 6 and {facts.subject for facts in rest} == {1} and label not in {facts.label for facts in rest}
    drawn = {made(by_blocks(), hold_out_classes=1, seed=seed).splits["test"][0] for seed in range(20)}
    assert len(drawn) > 1  # the seed draws


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"hold_out_subject": 3}, r"hold_out_subject=3 has no trial here; there are subjects \[1, 2\]"),
        ({"hold_out_subject": 2, "subject": 2}, "subject=2 keeps one subject, so nobody is left to train on"),
        ({"hold_out_classes": 2}, "hold_out_classes=2 of 3 leaves fewer than two classes to train on: give 1 or fewer"),
        ({"hold_out_classes": -1}, "hold_out_classes is a number of classes"),
        ({"audit": True}, "audit=true only allows splits=trials: leave it out"),
    ],
)
def test_what_cannot_be_is_one_sentence(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as refused:
        made(by_blocks(), **options)
    assert "\n" not in str(refused.value)


def test_one_subject_and_blocks_that_are_not_told_are_one_sentence() -> None:
    one = Known([(Facts(1, f"{k}", k % 2), side) for k, side in enumerate("ttttvvxx")])
    for options, sentence in (
        ({"hold_out_subject": 1}, "subject 1 is the only one here, so nobody is left to train on"),
        ({"hold_out": [0]}, r"hold_out=\[0\] needs to know the blocks"),
        ({"control_labels": "blocks"}, "control_labels=blocks needs to know the blocks"),
        ({"control_eeg": "other_trial"}, "control_eeg=other_trial needs to know the blocks"),
    ):
        with pytest.raises(ValueError, match=sentence):
            made(one, **options)
    alone = Known([(Facts(1, f"{k}", k % 2, f"b{k // 7}"), side) for k, side in enumerate("ttttvvxx")])
    with pytest.raises(ValueError, match="block b1 of subject 1 has one trial, so there is no other"):
        made(alone, control_eeg="other_trial")
    with pytest.raises(ValueError, match="subject 2 has 0 in train, and two are needed"):
        made(by_blocks(), hold_out_subject=2, control_eeg="surrogate")
    with pytest.raises(ValueError, match="class 'a' has one picture in train, which cannot be cut in two"):
        made(Known([(Facts(1, "a0", 0), "t"), (Facts(1, "b0", 1), "t")]), control_labels="nonsense")


def test_whole_blocks_change_their_class() -> None:
    plain, study = by_blocks(), made(by_blocks(), control_labels="blocks")
    assert study.mark == "CONTROL: labels, with their pictures, permuted between the blocks of each subject (seed 0)"
    for subject in (1, 2):
        of_block: dict[str | None, set[int]] = {}
        for i in range(24):
            facts, was = study.facts(i), plain.facts(i)
            assert facts.image[1] == was.image[1] and facts.label != was.label  # the place in the block stays
            if facts.subject == subject:
                of_block.setdefault(facts.block, set()).add(facts.label)
        assert sorted(map(tuple, of_block.values())) == [(0,), (1,), (2,)]


def test_labels_in_blocks_of_one_class_are_shuffled_within_the_subject() -> None:
    plain, study = by_blocks(), made(by_blocks(), control_labels="shuffled")
    assert "as each block holds one class" in study.mark
    for name, own in plain.splits.items():
        for subject in (1, 2):
            mine = [i for i in own if plain.facts(i).subject == subject]
            pictures = [sorted(s.facts(i).image for i in mine) for s in (plain, study)]
            assert pictures[0] == pictures[1], name
    assert labels(study) != labels(plain) and sorted(labels(study)) == sorted(labels(plain))
    trial = study.trial(0)
    assert trial.jpeg == trial.image.encode() and trial.extra == {"n": 0, "shown": "a0"} and trial.key == "t00"


def test_a_picture_has_one_half_in_every_split_and_halves_are_even_in_each() -> None:
    trials = [(Facts(s, f"{'ab'[c]}{k}", c), "ttttvvxx"[k]) for s in (1, 2) for c in (0, 1) for k in range(8)]
    study = made(Known(trials), control_labels="nonsense")
    for own in study.splits.values():
        for label in range(4):
            assert len({study.facts(i).image for i in own if study.facts(i).label == label}) == len(own) // 8
    assert [known["name"] for known in study.classes] == ["a a", "a b", "b a", "b b", "c a", "c b"]
    assert study.trial(0).class_name in ("a a", "a b") and study.trial(0).wnid == "n0"
    halves = {tuple(labels(made(Known(trials), control_labels="nonsense", seed=seed))) for seed in range(9)}
    assert len(halves) > 1


@pytest.mark.parametrize("n", [15, 16])
def test_random_phases_keep_amplitudes_and_cross_spectra(n: int) -> None:
    eeg = np.random.default_rng(0).normal(3, 1, (3, n)).astype(np.float32)
    turned = random_phases(eeg, np.random.default_rng(1))
    was, now = np.fft.rfft(eeg), np.fft.rfft(turned)
    np.testing.assert_allclose(np.abs(now), np.abs(was), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(now[0] * now[1].conj(), was[0] * was[1].conj(), atol=1e-3)
    np.testing.assert_allclose(np.cov(turned), np.cov(eeg), atol=1e-4)  # Parseval
    several = [random_phases(eeg, np.random.default_rng(k)) for k in range(4000)]
    assert np.abs(np.mean(several, axis=0)).max() < 0.3 and np.abs(eeg).max() > 3


def test_surrogates_and_other_trials_come_from_where_they_should() -> None:
    plain, study = by_blocks(), made(by_blocks(), control_eeg="surrogate")
    for i in range(24):
        donor = int(study.trial(i).extra["eeg_of"][1:])
        assert donor in plain.splits["train"] and donor != i and donor // 12 == i // 12
    assert len({study.trial(0).extra["eeg_of"], *(study.trial(i).extra["eeg_of"] for i in range(12))}) > 3
    own = made(by_blocks(), control_eeg="amplitude").trial(5)
    np.testing.assert_allclose(
        np.abs(np.fft.rfft(own.eeg)), np.abs(np.fft.rfft(plain.trial(5).eeg)), rtol=1e-3, atol=1e-3
    )
    with pytest.raises(ValueError, match="no trial is left in split 'val'"):  # each block has one there
        made(by_blocks(), control_eeg="other_trial")
    several = Known([(Facts(1, f"{k}", k % 2, f"b{k // 9}"), side) for k, side in enumerate("ttttvvxxxttttvvxxv")])
    study = made(several, control_eeg="other_trial")
    given = {i: int(study.trial(i).extra["eeg_of"][1:]) for own in study.splits.values() for i in own}
    assert sorted(given) == sorted(given.values()) == list(range(18))  # each once
    assert all(i != k and i // 9 == k // 9 for i, k in given.items())
    assert all({given[i] for i in own} == set(own) for own in several.splits.values())


def test_signal_options_see_the_controlled_trials() -> None:
    study = made(by_blocks(), control_eeg="surrogate", control_labels="shuffled")
    prepared = Prepared(study, SignalOptions(detrend=True, repetitions="all"))
    assert prepared.mark == study.mark and "least-squares line" in prepared.protocol
    eeg, time = prepared.trial(0).eeg, np.arange(16)
    np.testing.assert_allclose(np.polyfit(time, eeg.T, 1), 0, atol=1e-5)
    assert isinstance(study, Controlled) and prepared.facts(0).block == "b0"


def test_a_manifest_lists_what_it_listed_before() -> None:
    plain = listed(RecordingConfig())
    assert list(plain)[:3] == ["picks", "notch", "band"] and "splits" not in plain and "control_eeg" not in plain
    own = ["recording", "ignore_markers", "hold_out", "average", "shuffle_labels"]
    assert list(plain)[-5:] == own and not {"audit", "detrend", "hold_out_subject"} & plain.keys()
    assert listed(RecordingConfig(control_eeg="surrogate", detrend=True)) == plain | {
        "control_eeg": "surrogate",
        "detrend": True,
    }
