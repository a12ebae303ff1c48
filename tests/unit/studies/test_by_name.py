"""Nothing that is there by name vanishes: it is read, or named in an error or a note with the reason and the count."""

import gzip
import os
import shutil
from pathlib import Path

import pytest

pytest.importorskip("mne_bids", reason="a lab's own epochs are read by mne and mne-bids (extras)")

import eeg_imagenet_files
import things_files
from lab_files import NAMES, TABLE, opened, write_bids, write_epochs, write_epochs_file, write_table

from neuroimagen.doctor.check import CheckConfig, sniff
from neuroimagen.studies.eeg_imagenet import EegImageNet, EegImageNetConfig
from neuroimagen.studies.pth import find_picture
from neuroimagen.studies.study import Faults, absent, some
from neuroimagen.studies.things_eeg2 import ThingsEeg2, ThingsEeg2Config

SECOND = "sub-02_run-a-epo.fif"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    write_epochs(folder / "epochs")
    write_bids(folder / "bids")
    return folder


@pytest.fixture
def lab(written, tmp_path):
    return Path(shutil.copytree(written / "epochs", tmp_path / "lab"))


@pytest.fixture
def bids(written, tmp_path):
    return Path(shutil.copytree(written / "bids", tmp_path / "lab"))


def link(path):
    path.unlink()
    path.symlink_to("../.git/annex/objects/x9/MD5E-s12--aa.fif")


def pointer(path):
    path.write_text("/annex/objects/MD5E-s12--aa.fif\n")


def lfs(path):
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 12\n")


def empty(path):
    path.write_bytes(b"")


GONE = [(link, "is a link to what is not here"), (pointer, "datalad get"), (lfs, "git lfs pull"), (empty, "is empty")]


@pytest.mark.parametrize("lose, why", GONE)
def test_what_holds_nothing_is_told_from_what_does(tmp_path, lose, why):
    path = tmp_path / "a.fif"
    path.write_bytes(b"something")
    assert absent(path) == "" == absent(tmp_path) == absent(tmp_path / "no such name")
    lose(path)
    assert why in absent(path)


def refused(folder, *options):
    """What shards answers; check, which collects faults, must name the file too and go on without it."""
    with pytest.raises(ValueError) as error:
        opened(folder, *options)
    fault = Faults(collect=True)
    study = opened(folder, *options, fault=fault)
    assert fault.found == [str(error.value)] and "\n" not in fault.found[0]
    return fault.found[0], study


@pytest.mark.parametrize("lose, why", GONE)
def test_epochs_files_without_content(lab, lose, why):
    lose(lab / "eeg" / SECOND)
    sentence, study = refused(lab)
    assert f"{lab / 'eeg' / SECOND} {why}" in sentence or why in sentence and SECOND in sentence
    assert len(study) == 40
    lose(lab / "eeg" / "sub-01_run-a-epo.fif")
    assert "so it is with 2 of 3 recordings" in refused(lab)[0]


@pytest.mark.parametrize("ending", ["eeg.eeg", "eeg.vhdr", "eeg.vmrk", "events.tsv", "channels.tsv"])
@pytest.mark.parametrize("lose, why", GONE)
def test_bids_recordings_without_content(bids, lose, why, ending):
    name = f"sub-02_task-view_run-1_{ending}"
    lose(bids / "bids" / "sub-02" / "eeg" / name)
    sentence, study = refused(bids, "splits=by_image", "window=[0,0.4]")
    assert name in sentence and why in sentence and len(study) == 40


@pytest.mark.parametrize(
    "name",
    ["sub-02_run-a_epo.fif", "sub-02_run-a-epo.fif.gz", "sub-02_run-a_epo.fif.gz", "sub-02_run-a-EPO.FIF"]
    + ["sub-02/ses-02/run-a-epo.fif", "deep/subject02/a_epo.fif", "sub-02_run-a-epo.FIF"],
)
def test_epochs_files_by_any_name_that_mne_gives_them(lab, name):
    plain = opened(lab)
    expected = {plain.trial(i).key: plain.trial(i).eeg.tobytes() for i in range(60)}
    data = (lab / "eeg" / SECOND).read_bytes()
    (lab / "eeg" / SECOND).unlink()
    path = lab / "eeg" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data, 1) if name.endswith("gz") else data)
    study = opened(lab)
    assert {study.trial(i).key: study.trial(i).eeg.tobytes() for i in range(60)} == expected and study.notes == []
    alone = CheckConfig(source=str(path))
    assert sniff(alone)[0].dataset == "epochs" == sniff(CheckConfig(source=str(lab / "eeg")))[0].dataset


def test_patterns_and_links_to_folders_keep_subject_and_session(lab, tmp_path):
    for subject in ("01", "02"):
        for session in ("01", "02"):
            folder = lab / "eeg" / f"sub-{subject}" / f"ses-{session}"
            write_epochs_file(folder / "faces-epo.fif", 0, NAMES[5 : 15 + int(session)])
    for path in (lab / "eeg").glob("*.fif"):
        path.unlink()
    names = [f"sub-0{s}/ses-0{n}/faces-epo.fif" for s in (1, 2) for n in (1, 2)]

    def found(eeg):
        study = opened(lab, "splits=by_image", f"eeg={eeg}")
        keys = {study.trial(i).key for i in range(len(study))}
        assert len(keys) == len(study) == 46 and study.notes == [
            "8 rows of trials.csv fit no event, the first in line 2"
        ]
        assert {study.facts(i).subject for i in range(46)} == {1, 2}
        return list(dict.fromkeys(study.trial(i).extra["run"] for i in range(46)))

    table = [TABLE[0].replace("event", "event,subject")] + [line.replace(",", ",,", 1) for line in TABLE[1:]]
    write_table(lab / "trials.csv", table)
    assert found(lab / "eeg") == found(f"{lab}/eeg/sub-*/ses-*/faces-epo.fif") == names
    shutil.move(lab / "eeg" / "sub-02", tmp_path / "elsewhere")
    (lab / "eeg" / "sub-02").symlink_to(tmp_path / "elsewhere")
    assert found(lab / "eeg") == names
    alone = opened(lab, "splits=by_image", f"eeg={lab / 'eeg' / 'sub-02'}")  # more files than one, and whose is above
    assert {alone.facts(i).subject for i in range(23)} == {2}


def test_other_fif_files_are_counted(lab):
    for name in (
        "sub-03.fif",
        "sub-03_raw.fif",
        "sub-04-epo-1.fif",
        "sub-05_ave.fif.gz",
        ".sub-06.fif",
        "._sub-01-epo.fif",
    ):
        (lab / "eeg" / name).write_bytes(b"x")
    assert opened(lab).notes == [
        "4 .fif files were left out, whose names do not end in -epo.fif or _epo.fif: "
        "sub-03.fif, sub-03_raw.fif, sub-04-epo-1.fif, sub-05_ave.fif.gz"
    ]


def test_a_subject_without_a_trial_is_named(lab):
    rows = [TABLE[0].replace("event", "event,subject")] + [line.replace(",", ",,", 1) for line in TABLE[1:]]
    write_table(lab / "trials.csv", [*rows, *(f"{name},2,,,,".rstrip(",") + ",,," for name in NAMES)])
    assert opened(lab).notes[:2] == [
        "1 of 3 files give no trial: sub-02_run-a-epo.fif",
        "1 of 2 subjects have no trial: 2",
    ]


OTHER = ["eeg.cnt", "eeg.mff", "eeg.fif", "eeg.edf.gz", "eeg.gdf", "eeg.eeg", "eeg.fdt", "eeg.xdf", "eeg.nwb"]


@pytest.mark.parametrize("ending", OTHER)
def test_bids_recordings_in_other_formats_are_counted(bids, ending):
    path = bids / "bids" / "sub-03" / "ses-1" / "eeg" / f"sub-03_ses-1_task-view_{ending}"
    path.parent.mkdir(parents=True)
    path.mkdir() if ending.endswith("mff") else path.write_bytes(b"x")
    (bids / "bids" / "sub-04").mkdir()
    (bids / "bids" / "sub-05").symlink_to("nowhere")
    study = opened(bids, "splits=by_image", "window=[0,0.4]")
    assert len(study) == 60 and study.notes == [
        f"1 recordings were left out, which are not there as .vhdr, .edf, .bdf, .set: sub-03/ses-1/eeg/{path.name}",
        "3 subjects have no EEG recording that is read: sub-03, sub-04, sub-05",
    ]


@pytest.mark.parametrize("ending", [".VHDR", ".Vhdr", ".BDF", ".SET"])
def test_bids_endings_in_capitals_are_named(bids, ending):
    path = bids / "bids" / "sub-02" / "eeg" / "sub-02_task-view_run-1_eeg.vhdr"
    path.rename(path.with_suffix(ending))
    sentence, study = refused(bids, "splits=by_image", "window=[0,0.4]")
    assert sentence.endswith(f"run-1_eeg{ending} ends in capitals: rename it, BIDS has {ending.lower()}")
    assert len(study) == 40


def test_a_lone_header_or_a_strange_name_is_an_error(bids):
    folder = bids / "bids" / "sub-02" / "eeg"
    (folder / "sub-02_task-view_run-1_eeg.eeg").unlink()
    with pytest.raises(ValueError, match=r"sub-02_task-view_run-1_eeg.vhdr cannot be read as a BIDS recording"):
        opened(bids, "splits=by_image", "window=[0,0.4]").trial(50)
    (folder / "sub-02_task-a-b_eeg.edf").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"sub-02_task-a-b cannot be read as a BIDS name .*: rename its files"):
        opened(bids, "splits=by_image", "window=[0,0.4]")


def test_pictures_by_any_case_of_their_ending_and_windows_paths(lab):
    plain = opened(lab)
    shown = [plain.facts(i)[:5] for i in range(60)]
    for i, path in enumerate(sorted((lab / "images").rglob("*.jpg"))):
        path.rename(path.with_suffix([".JPG", ".Jpg", ".jpg"][i % 3]))
    write_table(lab / "trials.csv", [TABLE[0]] + [line.replace("/", "\\") for line in TABLE[1:]])
    study = opened(lab)
    assert [study.facts(i)[:5] for i in range(60)] == shown and study.trial(0).jpeg.is_file()
    write_table(lab / "trials.csv", [TABLE[0]] + [line.replace("/", "\\..\\", 1) for line in TABLE[1:]])
    with pytest.raises(ValueError, match=r"without '\.\.'"):
        opened(lab)


@pytest.mark.parametrize("ending", [".JPEG", ".jpeg", ".Jpeg", ".jpg", ".JPG", ".JpG", ".png", ".PNG", ".Png"])
def test_endings_of_published_pictures(ending, tmp_path):
    names = ["n1_2.JPEG", "n1_2.jpeg", "n1_2.jpg", "n1_2.JPG", "n1_2.png"]
    assert find_picture({f"n1_2{ending}", "n1_20.PNG", "n1_3.JPEG", "n1_2.txt"}, names) == f"n1_2{ending}"
    assert find_picture({"n1_20.PNG", "n1_2.txt", "N1_2.JPEG"}, names) is None
    eeg_imagenet_files.write_study(tmp_path, per_class=12)
    for path in (tmp_path / "images").rglob("*.JPEG"):
        path.rename(path.with_suffix(ending))
    study = imagenet(tmp_path, "by_image")
    assert {study.trial(i).jpeg.suffix for i in range(len(study))} == {ending}


def imagenet(folder, splits="official"):
    return EegImageNet(EegImageNetConfig(eeg=folder / "eeg", images=folder / "images", splits=splits))


def things(folder):
    return ThingsEeg2(ThingsEeg2Config(eeg=folder / "eeg", images=folder / "images"))


def test_published_files_that_are_not_here(tmp_path):
    eeg_imagenet_files.write_study(tmp_path / "imagenet", per_class=12)
    second = tmp_path / "imagenet" / "eeg" / "EEG-ImageNet_2.pth"
    link(second)
    with pytest.raises(ValueError, match=r"EEG-ImageNet_2.pth is a link to what is not here"):
        imagenet(tmp_path / "imagenet")
    second.unlink()
    assert "EEG-ImageNet_2.pth is not there" in imagenet(tmp_path / "imagenet", "by_image").notes
    truth = things_files.write_study(tmp_path / "things")
    eeg = truth.folder / "eeg"
    for name in ("sub03", "Sub-04", "sub-05_old"):
        (eeg / name).mkdir()
    assert things(truth.folder).notes[0] == (
        "left out, for it is not called sub-01, sub-02, ...: Sub-04, sub-05_old, sub03"
    )
    os.rename(eeg / "sub-02", tmp_path / "moved")
    (eeg / "sub-02").symlink_to("nowhere")
    with pytest.raises(ValueError, match="sub-02 is a link to what is not here"):
        things(truth.folder)
    (eeg / "sub-02").unlink()
    (eeg / "sub-02").symlink_to(tmp_path / "moved")
    link(tmp_path / "moved" / "preprocessed_eeg_test.npy")
    with pytest.raises(ValueError, match=r"preprocessed_eeg_test.npy is a link to what is not here"):
        things(truth.folder)
    (tmp_path / "moved" / "preprocessed_eeg_test.npy").unlink()
    with pytest.raises(ValueError, match=r"sub-02/preprocessed_eeg_test.npy does not exist"):
        things(truth.folder)


def test_names_are_counted():
    assert some(["a"]) == "a" and some("abcde") == "a, b, c, d, e" and some("abcdefg") == "a, b, c, d, e and 2 more"
