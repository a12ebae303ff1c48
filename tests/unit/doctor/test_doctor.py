"""The doctor: every planted fault is found and named, and a clean study has none."""

import io
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from browser import axe, needs_chromium, violations  # noqa: F401  (fixtures)
from perceivelab_files import jpeg, make_split, write_study
from PIL import Image

from neuroimagen.cli import main
from neuroimagen.doctor import findings as rules
from neuroimagen.doctor.check import CheckConfig, sniff
from neuroimagen.doctor.examination import Examination, band_of, line_ratio, slope
from neuroimagen.doctor.findings import Finding, Findings
from neuroimagen.doctor.picture_hash import grey_copy, near_pairs, perceptual_hash
from neuroimagen.shards.pack import ShardsConfig, make_shards
from neuroimagen.studies.open import SourceConfig, open_study
from neuroimagen.studies.study import Faults

SPOILT = 17  # the trial that tests damage
Content = dict[str, Any]


def picture(folder: Path, image: str) -> Path:
    return folder / "images" / image.partition("_")[0] / f"{image}.JPEG"


def of_image(content: Content, number: int) -> list[int]:
    return [i for i, trial in enumerate(content["dataset"]) if trial["image"] == number]


def config(folder: Path, **changes: Any) -> CheckConfig:
    given = {"splits_file": str(folder / "splits.pth"), "images": str(folder / "images"), "n_chans": 4} | changes
    return CheckConfig(source=str(folder / "eeg.pth"), **given)


def look(folder: Path, **changes: Any) -> Findings:
    found, shards, _ = sniff(config(folder, **changes))
    assert shards is None
    return Findings(Examination(open_study(found, Faults(collect=True)), found.eeg_dtype), found.eeg)


def run(*arguments: str | Path) -> int:
    return main(["check", *map(str, arguments)])


def texts(findings: list[Finding]) -> str:
    return "\n".join(finding.short() for finding in findings)


@pytest.fixture(scope="module")
def clean(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clean")
    write_study(folder)
    return folder


@pytest.fixture
def study(clean, tmp_path) -> Path:
    return Path(shutil.copytree(clean, tmp_path / "study"))


def change(folder: Path, apply: Callable[[Content], Any]) -> Content:
    """Change what the EEG file holds."""
    content = torch.load(folder / "eeg.pth", weights_only=True)
    apply(content)
    torch.save(content, folder / "eeg.pth")
    return content


# What is clean


def test_a_clean_study_has_no_fault(clean, tmp_path, capsys):
    code = run(clean / "eeg.pth", f"images={clean / 'images'}", "n_chans=4", f"report={tmp_path / 'report'}")
    out = capsys.readouterr().out
    assert code == 0 and "no fault in 60 trials" in out and "wrong" not in out
    assert "read as PerceiveLab EEG-ImageNet-40; splits from splits.pth beside it" in out
    assert "train             40 trials, 20 images, 2 subjects" in out
    assert "published: 11,965 or 11,964" in out and "SIMULATED" not in out
    assert (tmp_path / "report" / "faults.txt").read_text() == ""
    page = (tmp_path / "report" / "index.html").read_text()
    assert "No fault found" in page and "SIMULATED" not in page
    assert not re.search(r'(src|href)="(?!data:image/)', page)  # self-contained


@needs_chromium
@pytest.mark.parametrize("width", [400, 1280])
def test_a_reader_who_cannot_see_or_use_a_mouse_is_not_shut_out(clean, tmp_path, axe, width):  # noqa: F811
    assert run(clean / "eeg.pth", f"images={clean / 'images'}", "n_chans=4", f"report={tmp_path / 'report'}") == 0
    assert violations(tmp_path, (tmp_path / "report" / "index.html").read_text(), axe, width) == []


def test_statistics_are_those_of_the_trials(clean):
    findings = look(clean)
    found = findings.found
    trials = {trial.key: trial for trial in (findings.study.trial(i) for i in range(60))}
    assert {trial.name for trial in found.trials} == set(trials)
    for subject in (1, 2):
        own = np.stack([trial.eeg for trial in trials.values() if trial.subject == subject])
        assert found.summed[subject] == len(own) == 30
        np.testing.assert_allclose(found.evoked[subject] / 30, own.mean(axis=0, dtype=np.float64), atol=1e-6)
    for seen, spread in zip(found.trials, found.spread, strict=True):
        np.testing.assert_allclose(spread, trials[seen.name].eeg.std(axis=1), rtol=1e-4)
    rows = found.amplitudes()
    assert [row["trials"] for row in rows] == [30, 30]
    assert all(row["median"] == pytest.approx(1, abs=0.02) for row in rows)  # noise of variance 1
    # Parseval: density of white noise of variance 1 at 1000 Hz is 1 / 500 in each of the 220 bins
    assert np.median(found.spectra[1].density[1:]) == pytest.approx(1 / 500, rel=0.1)


# Faults of EEG


def test_nan_is_named(study, capsys):
    content = change(study, lambda c: c["dataset"][SPOILT]["eeg"][2].__setitem__(100, float("nan")))
    trial = content["dataset"][SPOILT]
    assert run(study / "eeg.pth", f"images={study / 'images'}", "n_chans=4") == 1
    out = capsys.readouterr().out
    where = (
        f"{study / 'eeg.pth'}: trial {SPOILT} (subject {trial['subject']}, image {content['images'][trial['image']]})"
    )
    assert f"{where} holds NaN or infinity in channel 2" in out
    assert "1 fault in 60 trials, 1 of them could not be used" in out


@pytest.mark.parametrize(
    "spoil, word",
    [
        (lambda eeg: eeg.fill_(3), "is flat"),
        (lambda eeg: eeg.clamp_(-1, 1), "is clipped"),
        (lambda eeg: eeg.clamp_(-9, 0.5), "is clipped"),
    ],
)
def test_a_bad_channel_is_named(study, spoil, word):
    content = change(study, lambda c: spoil(c["dataset"][SPOILT]["eeg"][3]))
    trial = content["dataset"][SPOILT]
    findings = look(study)
    assert len(findings.faults) == 1
    key = f"s{trial['subject']}_i{trial['image']:04d}_t{SPOILT:05d}"
    expected = f"{study / 'eeg.pth'}: channel 3 of subject {trial['subject']} {word}"
    assert findings.faults[0].text.startswith(expected) and findings.faults[0].text.endswith("in 1 of 30 trials")
    assert findings.faults[0].trials == [key]


def test_a_channel_that_is_flat_throughout(study):
    def spoil(content):
        for trial in content["dataset"]:
            if trial["subject"] == 2:
                trial["eeg"][1] = 0

    change(study, spoil)
    findings = look(study)
    assert texts(findings.faults).count("\n") == 0
    assert "channel 1 of subject 2 is flat in 30 of 30 trials" in findings.faults[0].text
    assert len(findings.faults[0].trials) == 30 and findings.faults[0].short().endswith("and 27 more")


def test_very_large_channels_and_trials(study):
    def spoil(content):
        content["dataset"][SPOILT]["eeg"][0] *= 100
        for trial in content["dataset"]:
            if trial["subject"] == 2:
                trial["eeg"][1] *= 1000

    content = change(study, spoil)
    subject = content["dataset"][SPOILT]["subject"]
    findings = look(study)
    assert not findings.faults
    asked = texts(findings.questions)
    assert "channel 1 of subject 2 is very large: 9" in asked or "channel 1 of subject 2 is very large: 1e+03" in asked
    assert "channel 1 of subject 1" not in asked
    assert re.search(rf"1 trials of subject {subject} have a channel over 20 times .*_t000{SPOILT}", asked)


def test_line_noise_of_one_subject(study):
    def spoil(content):
        for trial in content["dataset"]:
            if trial["subject"] == 2:
                seconds = torch.arange(trial["eeg"].shape[1]) / 1000
                trial["eeg"][2] += torch.sin(2 * torch.pi * 50 * seconds)

    assert "line noise at" not in texts(look(study).questions)
    change(study, spoil)
    findings = look(study)
    asked = texts(findings.questions)
    assert re.search(r"subject 2 has line noise at 50 Hz: \d+\.\d times .* \(most in channel 2, ", asked)
    assert "subject 1 has line" not in asked and "60 Hz" not in asked
    assert not any(text.startswith("no line noise at 50") for text in findings.fine)


def test_the_same_eeg_twice(study):
    content = change(study, lambda c: c["dataset"][3].__setitem__("eeg", c["dataset"][40]["eeg"].clone()))
    keys = {f"s{content['dataset'][i]['subject']}_i{content['dataset'][i]['image']:04d}_t{i:05d}" for i in (3, 40)}
    findings = look(study)
    assert len(findings.faults) == 1 and "two trials hold the same EEG" in findings.faults[0].text
    assert set(findings.faults[0].trials) == keys


def brainlike(content: Content) -> None:
    """Every trial another 1/f noise of 10 uV, instead of white noise of which a sketch keeps little."""
    rng = np.random.default_rng(11)
    for trial in content["dataset"]:
        walk = torch.from_numpy(rng.normal(size=tuple(trial["eeg"].shape))).cumsum(1)
        trial["eeg"] = (10 * (walk - walk.mean(1, keepdim=True)) / walk.std()).float()


def test_what_is_worst_comes_first_in_one_line_for_each_pair_of_recordings(study, capsys):
    def spoil(content):
        brainlike(content)
        for i, trial in enumerate(content["dataset"]):
            trial["eeg"][i % 4] = 0  # flat in every trial
        split = make_split(content["dataset"])
        for a, b in zip(split["train"][:8], split["test"][:8], strict=True):
            eeg = content["dataset"][a]["eeg"]
            content["dataset"][b]["eeg"] = torch.round(torch.roll(eeg, 3, 1) * 8) / 8
            content["dataset"][b]["subject"] = content["dataset"][a]["subject"]

    change(study, spoil)
    findings = look(study)
    first, *others = findings.faults
    # two people: at most two lines for eight pairs
    assert "hold the same EEG and in two splits, train and test" in first.text and "of subject" not in first.text
    assert sum("the same EEG" in finding.text for finding in findings.faults) <= 2
    assert sum(len(finding.trials) for finding in findings.faults if "the same EEG" in finding.text) == 16
    assert ["is flat" in finding.text for finding in others[-2:]] == [True, True]
    assert len(findings.faults) <= 4  # two for EEG, one a person for channels
    assert run(study / "eeg.pth", f"images={study / 'images'}", "n_chans=4", "shown=0") == 1
    out = capsys.readouterr().out
    assert all(trial in out for finding in findings.faults for trial in finding.trials)
    assert out.index("the same EEG") < out.index("is flat")


def test_coarse_data_are_not_clipped(study):
    def spoil(content):
        brainlike(content)
        for trial in content["dataset"]:
            low, high = trial["eeg"][3].min(), trial["eeg"][3].max()
            trial["eeg"][3] = torch.round((trial["eeg"][3] - low) / (high - low) * 10)  # ten steps
            trial["eeg"][2] = 20 * torch.sin(torch.arange(trial["eeg"].shape[1]) / 90).round(decimals=2)
        content["dataset"][SPOILT]["eeg"][1].clamp_(max=5)

    change(study, spoil)
    faults = texts(look(study).faults)
    assert faults.count("is clipped") == 1 and "channel 1 of subject" in faults and "in 1 of 30 trials" in faults


def test_line_noise_that_is_a_hundred_thousandth_is_not_asked_about(study):
    def spoil(content, size):
        brainlike(content)
        for trial in content["dataset"]:
            n = trial["eeg"].shape[1]
            band = torch.fft.rfft(trial["eeg"], dim=1)
            band[:, torch.fft.rfftfreq(n, 1 / 1000) > 30] *= 1e-3
            trial["eeg"] = torch.fft.irfft(band, n, dim=1) + size * torch.sin(
                torch.arange(n) / 1000 * 2 * torch.pi * 50
            )

    change(study, lambda content: spoil(content, 0.1))
    findings = look(study)
    assert max(
        spectrum.lines[50] for spectrum in findings.found.spectra.values()
    ) > 20 and "line noise at" not in texts(findings.questions)
    change(study, lambda content: spoil(content, 10.0))
    assert re.search(r"up to \d\d % of a channel's", texts(look(study).questions))


# Units and offsets


def scaled(content: Content, sizes: dict[int, float], offset: float = 0.0) -> None:
    brainlike(content)
    for trial in content["dataset"]:
        trial["eeg"] = trial["eeg"] * sizes[trial["subject"]] + offset


@pytest.mark.parametrize(
    "sizes, offset, faults, questions",
    [
        ({1: 1, 2: 1}, 0, [], []),
        ({1: 0.02, 2: 1}, 0, [], []),  # 50 apart: thick hair
        ({1: 1, 2: 200}, 0, ["times as large as that of subject 1"], []),
        ({1: 1e-6, 2: 1}, 0, ["times as large as that of subject 1"], []),
        ({1: 1e6, 2: 1e6}, 0, ["mend the units", "mend the units"], []),
        ({1: 1e-6, 2: 1e-6}, 0, [], []),  # volts: float16 holds them yet
        ({1: 1e-7, 2: 1e-7}, 0, ["does not fit float16: mend the units", "of 30 trials of subject 2"], []),
        ({1: 1, 2: 1}, 3e5, ["by baseline= or band=", "by baseline= or band="], []),
        ({1: 1, 2: 1}, 3e4, ["on an offset of 3e+04 does not fit", "of 30 trials of subject 2"], []),
        ({1: 1, 2: 1}, 110, [], ["offset of"]),
    ],
)
def test_units_and_offsets(study, sizes, offset, faults, questions):
    change(study, lambda content: scaled(content, sizes, offset))
    findings = look(study)
    units = [finding.text for finding in findings.faults]
    asked = [finding.text for finding in findings.questions if "offset" in finding.text]
    assert len(units) == len(faults) and all(part in said for part, said in zip(faults, units, strict=True)), units
    assert bool(asked) == bool(questions), asked
    refused = run_shards(study)
    assert bool(refused) == bool(faults)  # what shards refuses is known before
    if faults and "times as large" not in faults[-1]:
        assert not look(study, eeg_dtype="float32").faults
        assert refused.partition("float16")[2] in units[0]
    else:
        assert ("times as large as that of subject 1" in refused) == bool(faults)


def run_shards(folder: Path) -> str:
    """What `neuroimagen shards` answers where it refuses."""
    files = {"eeg": "eeg.pth", "images": "images", "splits_file": "splits.pth"}
    given = {name: str(folder / file) for name, file in files.items()}
    try:
        make_shards(ShardsConfig(out=str(folder / "out"), n_chans=4, **given))
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("size, odd", [(1e-6, True), (0.009, True), (0.02, False), (50, False), (300, True)])
def test_microvolts_that_no_person_has(study, size, odd):
    change(study, lambda content: scaled(content, {1: size, 2: size}))
    found, _, _ = sniff(config(study))
    study_ = open_study(found, Faults(collect=True))
    study_.units = "uV"
    asked = texts(Findings(Examination(study_), "here").questions)
    assert ("where EEG has 0.1 to 1,000 uV" in asked) == odd
    assert "0.1 to 1,000" not in texts(look(study).questions)  # units are not in these files


# Faults of pictures


def test_missing_truncated_and_orphan_pictures_are_all_listed(study, capsys, tmp_path):
    images = torch.load(study / "eeg.pth", weights_only=True)["images"]
    for image in (images[0], images[11]):
        picture(study, image).unlink()
    cut = picture(study, images[20])
    cut.write_bytes(cut.read_bytes()[:-200])
    not_a_picture = picture(study, images[21])
    not_a_picture.write_bytes(b"GIF89a")
    orphan = picture(study, f"{images[20].partition('_')[0]}_999999")
    orphan.write_bytes(jpeg(np.random.default_rng(5)))
    report = tmp_path / "report"
    assert run(study / "eeg.pth", f"images={study / 'images'}", "n_chans=4", f"report={report}") == 1
    out = capsys.readouterr().out
    for image in (images[0], images[11]):
        assert f"picture {picture(study, image)} is missing" in out
    assert re.search(f"picture {cut} cannot be decoded .*(?i:truncated).*first shown in trial s", out)
    assert f"picture {not_a_picture} cannot be decoded (not a JPEG or PNG)" in out
    assert f"1 orphan images, which no readable trial shows: {orphan}" in out
    assert "4 faults in 56 trials" in out  # two subjects saw each of the missing pictures
    assert len((report / "faults.txt").read_text().splitlines()) == 4


def test_a_copy_in_another_split_is_a_fault(study):
    images = torch.load(study / "eeg.pth", weights_only=True)["images"]
    shutil.copy(picture(study, images[0]), picture(study, images[5]))  # train, test
    findings = look(study)
    named = f"{images[0]} (train) and {images[5]} (test) are the same picture"
    assert len(findings.faults) == 1 and named in findings.faults[0].text
    assert "look like copies" not in texts(findings.questions)


def test_a_copy_in_the_same_split_is_no_fault(study):
    images = torch.load(study / "eeg.pth", weights_only=True)["images"]
    shutil.copy(picture(study, images[0]), picture(study, images[1]))
    findings = look(study)
    assert not findings.faults and "1 pictures are there under several names" in texts(findings.questions)


def test_a_recompressed_smaller_copy_is_a_hint(study):
    images = torch.load(study / "eeg.pth", weights_only=True)["images"]
    large = Image.open(io.BytesIO(jpeg(np.random.default_rng(9), (400, 300))))
    large.save(picture(study, images[0]), "JPEG")
    large.resize((200, 150)).save(picture(study, images[5]), "JPEG", quality=60)
    findings = look(study)
    asked = texts(findings.questions)
    assert not findings.faults
    assert f"{images[0]} (train) and {images[5]} (test) look like copies of one picture" in asked
    assert asked.count("look like copies") == 1


# Faults of labels and splits


def test_wrong_labels_are_all_named(study):
    def spoil(content):
        for index in (4, 9):
            content["dataset"][index]["label"] = (content["dataset"][index]["label"] + 1) % 3
        content["dataset"][12]["label"] = 77

    change(study, spoil)
    said = texts(look(study).faults)
    for index in (4, 9):
        assert re.search(rf"eeg\.pth: trial {index} .*labelled n\d+, which is not the class of its image", said)
    assert "trial 12 has label 77" in said


def test_an_image_on_two_sides(study):
    content = torch.load(study / "eeg.pth", weights_only=True)
    split = make_split(content["dataset"])
    moved = of_image(content, 0)[0]
    split["train"].remove(moved)
    split["test"].append(moved)
    torch.save({"splits": [split]}, study / "splits.pth")
    findings = look(study)
    assert len(findings.faults) == 1
    assert f"image {content['images'][0]} is in both train and test" in findings.faults[0].text
    assert not any("none of 30 pictures is in two splits" in text for text in findings.fine)


def test_blocks_and_uneven_classes_are_asked_about(study):
    assert any("do not come in blocks" in text for text in look(study).fine)
    content = change(study, lambda c: c["dataset"].sort(key=lambda t: (t["subject"], t["label"])))
    split = make_split(content["dataset"])
    split["val"] = [i for i in split["val"] if content["dataset"][i]["label"] != 1]
    torch.save({"splits": [split]}, study / "splits.pth")
    asked = texts(look(study).questions)
    # 30 trials of a subject in 3 blocks: 27 of 29, less those of val that are gone
    assert re.search(r"in the order of the file 9\d % of trials are followed by one of the same class", asked)
    assert "split val has no trial of 1 of 3 classes: parachute" in asked
    assert "the label table is not the published one" in asked  # 3 classes of 40
    assert "Li et al. 2020" in asked


def test_zero_shot_is_told_from_missing_classes(study):
    dataset = torch.load(study / "eeg.pth", weights_only=True)["dataset"]
    images = {"train": range(0, 15), "val": range(15, 20), "test": range(20, 30)}  # 10 images a class, 3 classes
    split = {name: [i for i, t in enumerate(dataset) if t["image"] in own] for name, own in images.items()}
    torch.save({"splits": [split]}, study / "splits.pth")
    findings = look(study)
    assert any("zero-shot" in text for text in findings.fine)
    asked = texts(findings.questions)
    assert "has no trial of" not in asked
    assert "classes of split train are uneven" not in asked  # 20 and 10 trials: just a factor of 2
    split["train"] = [i for i in split["train"] if dataset[i]["image"] < 12]
    torch.save({"splits": [split]}, study / "splits.pth")
    assert "classes of split train are uneven: 20 trials of sorrel, 4 of parachute" in texts(look(study).questions)


def test_uneven_classes_are_one_question_with_the_remedy(study):
    content = torch.load(study / "eeg.pth", weights_only=True)
    split = make_split(content["dataset"])
    labels = [trial["label"] for trial in content["dataset"]]
    rare = [i for i in split["train"] if labels[i] == 1]
    split["train"] = [i for i in split["train"] if i not in rare[3:]]
    torch.save({"splits": [split]}, study / "splits.pth")
    asked = [finding.text for finding in look(study).questions if "are uneven" in finding.text]
    n = len(split["train"])
    most = max(Counter(labels[i] for i in split["train"]).values())
    assert len(asked) == 1 and asked[0].startswith(f"classes of split train are uneven: {most} trials of sorrel, 3 of ")
    assert "3 of parachute (so are those of subject 1" in asked[0] and f"{100 * most / n:.1f} % right" in asked[0]
    assert "classes_per_batch" in asked[0] and "class_weights=true" in asked[0] and "balanced accuracy" in asked[0]
    assert not any("classes are even" in text for text in look(study).fine)


# The parts


def test_perceptual_hash_by_hand():
    x = np.arange(32) + 0.5
    wave = [np.cos(np.pi * x / 32 * k) for k in range(3)]
    # Component (row 0, column 1) is number 0 of the 63; (row 2, column 0) is number 2 * 8 - 1.
    horizontal = np.tile(wave[1], (32, 1))
    assert np.flatnonzero(perceptual_hash(100 + 50 * horizontal)).tolist() == [0]
    assert np.flatnonzero(perceptual_hash(100 - 50 * horizontal)).tolist() == []  # below the median, not above it
    assert np.flatnonzero(perceptual_hash(100 + 50 * horizontal + 20 * wave[2][:, None])).tolist() == [0, 15]
    assert not perceptual_hash(np.full((32, 32), 77)).any()


def test_copies_are_found_and_other_pictures_are_not():
    rng = np.random.default_rng(3)
    originals = [jpeg(rng, (160, 120)) for _ in range(40)]
    a = [grey_copy(Image.open(io.BytesIO(data))) for data in originals]
    copies = []
    for data in originals:
        buffer = io.BytesIO()
        Image.open(io.BytesIO(data)).resize((80, 60)).save(buffer, "JPEG", quality=75)
        copies.append(grey_copy(Image.open(buffer)))
    assert [(i, j) for i, j, _ in near_pairs(a, copies)] == [(i, i) for i in range(40)]
    assert near_pairs(a[:1], []) == [] == near_pairs([], a)
    plain = [np.full((32, 32), value, np.uint8) for value in (10, 10, 200)]
    assert [(i, j) for i, j, _ in near_pairs(plain[:1], plain[1:])] == [(0, 0)]


def test_line_ratio_band_and_slope_by_hand():
    f = np.arange(0, 501, 2.0)
    density = np.ones(len(f))
    assert line_ratio(f, density, 50) == pytest.approx(1)
    density[25] = 5  # 50 Hz
    assert line_ratio(f, density, 50) == pytest.approx(5)
    assert line_ratio(f, density, 60) == pytest.approx(5**-0.25)  # the peak is one of the four neighbours below
    edge = np.where(f < 55, 1e-4, 1.0)  # the edge of a filter is no line
    assert line_ratio(f, edge, 60) == pytest.approx(1)
    assert line_ratio(f[:30], density[:30], 50) is None  # ends at 58 Hz: not enough above
    assert line_ratio(np.arange(0, 500, 10.0), np.ones(50), 50) is None  # bins of 10 Hz
    fall = np.concatenate([[0], f[1:] ** -1.5])
    assert slope(f, fall) == pytest.approx(-1.5)
    assert slope(f, np.ones(len(f))) == pytest.approx(0, abs=1e-12)
    flat = np.zeros(len(f))
    flat[1:101] = 1  # 2 to 200 Hz
    assert band_of(f, flat) == (2, 198)


# The command


def test_simulated_is_said_everywhere(study, capsys, tmp_path):
    (study / "simulation.json").write_text("{}")
    # a folder with eeg.pth is a study
    assert run(study, "n_chans=4", f"report={tmp_path / 'report'}") == 0
    assert "SIMULATED data: no person was recorded" in capsys.readouterr().out
    page = (tmp_path / "report" / "index.html").read_text()
    assert "<title>Data doctor: SIMULATED data" in page and "<strong>SIMULATED data" in page


def test_sources(clean, study, tmp_path, capsys):
    files = f"eeg: {clean / 'eeg.pth'}\n  images: {clean / 'images'}\n  splits: by_image\n  n_chans: 4\n"
    (tmp_path / "config.yaml").write_text(f"shards:\n  {files}")
    assert run(tmp_path / "config.yaml") == 0
    assert "80/10/10 of the images of each class (seed 0)" in capsys.readouterr().out
    assert run(tmp_path / "config.yaml", "seed=3") == 0  # the command line goes before the file
    assert "(seed 3)" in capsys.readouterr().out
    assert run(f"eeg={clean / 'eeg.pth'}", f"images={clean / 'images'}", "splits=by_image", "n_chans=4") == 0
    capsys.readouterr()
    (tmp_path / "empty").mkdir()
    (tmp_path / "other.yaml").write_text("shards:\n  out: x\n")
    for source, sentence in {
        tmp_path / "nowhere": "does not exist",
        tmp_path / "empty": "neither a shard directory",
        tmp_path / "other.yaml": "no `shards:` section that says which files to read",
    }.items():
        assert run(source) == 2
        error = capsys.readouterr().err
        assert sentence in error and error.count("\n") == 1
    assert run() == 2 and "please give a source" in capsys.readouterr().err
    assert run(clean / "eeg.pth", f"images={clean / 'images'}", "n_chans=5") == 2  # no trial is left
    error = capsys.readouterr().err
    assert "has 4 channels instead of 5" in error and "and 57 more of this kind" in error and "Traceback" not in error


@pytest.mark.parametrize(
    "file, given, reader, eeg",
    [
        ("sub-01/preprocessed_eeg_test.npy", "", "things_eeg2", ""),
        ("sub-01/preprocessed_eeg_test.npy", "sub-01/preprocessed_eeg_test.npy", "things_eeg2", ""),
        ("EEG-ImageNet_1.pth", "", "eeg_imagenet", ""),
        ("EEG-ImageNet_1.pth", "EEG-ImageNet_1.pth", "eeg_imagenet", "EEG-ImageNet_1.pth"),
        ("dataset_description.json", "", "epochs", ""),
        ("a-epo.fif", "", "epochs", ""),
        ("a-epo.fif", "a-epo.fif", "epochs", "a-epo.fif"),
    ],
)
def test_published_files_are_known_by_name_or_content(tmp_path, file, given, reader, eeg):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    torch.save({"dataset": [{"eeg_data": torch.zeros(62, 500)}]}, tmp_path / file)
    found, shards, how = sniff(CheckConfig(source=str(tmp_path / given)))
    assert (found.dataset, found.eeg, shards) == (reader, str(tmp_path / eeg), None)
    assert how.startswith(str(tmp_path))
    kept, _, _ = sniff(CheckConfig(source=str(tmp_path / given), eeg="mine"))
    assert kept.eeg == "mine"  # what the user gave goes first


def test_what_is_given_goes_first_though_it_is_the_default(clean, tmp_path, capsys):
    files = f"eeg: {clean / 'eeg.pth'}\n  images: {clean / 'images'}\n  splits: by_image\n  n_chans: 4\n  seed: 3\n"
    (tmp_path / "config.yaml").write_text(f"shards:\n  {files}")
    assert run(tmp_path / "config.yaml", "seed=0") == 0
    assert "(seed 0)" in capsys.readouterr().out
    (tmp_path / "dataset_description.json").touch()
    found, _, _ = sniff(CheckConfig(source=str(tmp_path), dataset="perceivelab"))
    assert found.dataset == "perceivelab" == CheckConfig().dataset


def test_readers_are_named_in_full(tmp_path, monkeypatch):
    """A reader that comes before another in the list, and has the same word in its name, is not taken for it."""
    readers = Literal["old_epochs", "perceivelab", "epochs"]
    monkeypatch.setitem(SourceConfig.__annotations__, "dataset", readers)
    (tmp_path / "dataset_description.json").touch()
    assert sniff(CheckConfig(source=str(tmp_path)))[0].dataset == "epochs"


def test_long_lists_are_cut_on_the_terminal_only(study, tmp_path, capsys):
    def spoil(content):
        for trial in content["dataset"][:30]:
            trial["eeg"][0, 50] = float("inf")

    change(study, spoil)
    report = tmp_path / "report"
    assert run(study / "eeg.pth", f"images={study / 'images'}", "n_chans=4", f"report={report}") == 1
    out = capsys.readouterr().out
    assert out.count("holds NaN or infinity in channel 0") == 3 and "and 27 more of this kind" in out
    assert f"{report / 'faults.txt'} has all faults" in out
    assert run(study / "eeg.pth", f"images={study / 'images'}", "n_chans=4") == 1
    assert "shown=0 prints all" in capsys.readouterr().out
    assert run(study / "eeg.pth", f"images={study / 'images'}", "n_chans=4", "shown=0") == 1
    assert capsys.readouterr().out.count("holds NaN or infinity in channel 0") == 30
    assert len((report / "faults.txt").read_text().splitlines()) == 30
    assert (report / "index.html").read_text().count("holds NaN or infinity in channel 0") == 30


def test_without_the_mne_extra_the_page_says_how_to_get_it(clean, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "neuroimagen.doctor.plots", raising=False)
    assert run(clean, "n_chans=4", f"report={tmp_path}") == 0
    page = (tmp_path / "index.html").read_text()
    assert "matplotlib is not installed; pip install &#39;neuroimagen[mne]&#39; brings it" in page
    assert sorted(path.name for path in tmp_path.iterdir()) == ["faults.txt", "index.html"]


def test_figures_and_topographies(clean, tmp_path, monkeypatch):
    pytest.importorskip("mne", reason="figures need the mne extra")
    from neuroimagen.doctor import plots as doctor_plots

    maps = []
    draw = doctor_plots._maps
    monkeypatch.setattr(doctor_plots, "_maps", lambda *arguments: (maps.append(arguments), draw(*arguments)))
    findings = look(clean)
    drawn = doctor_plots.figures(findings.found)
    assert set(drawn) == {"spectrum", "evoked", "amplitude"} and not maps  # channels have no names
    for png in drawn.values():
        assert min(Image.open(io.BytesIO(png)).size) > 100
    folder = tmp_path / "named"
    write_study(folder, n_chans=9)
    named = look(folder, n_chans=9)
    named.study.channels = [
        "Fp1",
        "FP2",
        "Cz",
        "Pz",
        "Oz",
        "O1",
        "O2",
        "T7",
        "extra",
    ]  # any case; what is unknown is left out
    doctor_plots.figures(named.found)
    assert len(maps) == 1 and maps[0][2][1] == list(range(8))


def test_every_sentence_of_the_doctor_is_said_somewhere():
    source = Path(rules.__file__).read_text("utf-8")
    used = set(re.findall(r'"(\w+)"', source))
    assert set(rules.SAID) <= used
    for name, told in rules.SAID.items():
        kind, *rank = told
        assert kind in ("wrong", "ask", "fine") and rank in ([], ["rank"]), name
        assert told.get("rank", "signal") in rules.RANKS, name
