"""`neuroimagen audit` on small files and on arrays whose answer is known."""

import html
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from browser import axe, needs_chromium, violations  # noqa: F401  (fixtures)
from perceivelab_files import make_content, write_pictures
from PIL import Image

from neuroimagen.audit import audit as command
from neuroimagen.audit.parts import Parts, centred, decode
from neuroimagen.audit.trials import AuditConfig, Source, Trials, Untold
from neuroimagen.audit.verdicts import QUESTIONS
from neuroimagen.cli import main
from neuroimagen.studies.study import Facts


def write(folder, signal=0.0, drift=0.0, timed=True, subjects=2, images=80, seed=0):
    """3 classes in blocks. signal: a pattern of the class from 150 ms on; drift: an offset of the block."""
    rng = np.random.default_rng(seed)
    folder.mkdir(exist_ok=True)
    content = make_content(rng, n_chans=8, subjects=subjects, images_per_class=images)
    write_pictures(folder / "images", content, rng)
    patterns = rng.standard_normal((3, 8))
    offsets = rng.standard_normal((subjects + 1, 3, 8))
    orders = [rng.permutation(3) for _ in range(subjects + 1)]
    for trial in content["dataset"]:
        label, person = trial["label"], trial["subject"]
        late = torch.arange(trial["eeg"].shape[1])[None] >= 150
        trial["eeg"] += torch.tensor(signal * patterns[label])[:, None] * late
        trial["eeg"] += torch.tensor(drift * offsets[person, label])[:, None]
        trial["eeg"] = trial["eeg"].float()
        if timed:
            block = int(orders[person].tolist().index(label))
            trial |= {"block": block + 1, "onset": 100.0 * block + trial["image"] % images / 2}
    torch.save(content, folder / "eeg.pth")
    return {"eeg": str(folder / "eeg.pth"), "images": str(folder / "images"), "splits": "by_image", "n_chans": 8}


def config(given, out, **more):
    return AuditConfig(dataset="perceivelab", out=str(out), **given | more)


@pytest.fixture(scope="module")
def drifting(tmp_path_factory):
    return write(tmp_path_factory.mktemp("drifting"), drift=0.5)


def test_command_to_the_page(tmp_path, capsys, drifting, monkeypatch):
    """Blocks of one class, drift and no response: a high accuracy that is called out, on terminal, page and in JSON."""
    overlay = tmp_path / "study.yaml"
    overlay.write_text(
        f"shards: {json.dumps(drifting | {'dataset': 'perceivelab', 'processes': 2})}\n", encoding="utf-8"
    )
    network = {"seeds": [0, 1], "values": [0.41, 0.43], "value": 0.42, "spread": 0.01, "chance": 0.33, "n": 48}
    monkeypatch.setattr(command, "trained", lambda out: {"shuffled": network})
    assert main(["audit", f"config={overlay}", f"out={tmp_path / 'audit'}", "quick=true"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) <= 15 and printed[-1] == str(tmp_path / "audit" / "audit.html")
    assert all(len(line) <= 80 for line in printed[:-1])
    assert [line[:39].strip() for line in printed[:6]] == [about["title"] for about in QUESTIONS.values()]
    assert "not supported" in printed[0] and printed[-2].startswith("DRIFT")
    report = json.loads((tmp_path / "audit" / "audit.json").read_text(encoding="utf-8"))
    assert report["parts"]["real"]["value"] > 0.9 and report["parts"]["before"]["value"] > 0.7
    assert report["parts"]["surrogate"]["p"] > 0.01 and report["parts"]["people"]["unit"] == "stretch"
    assert report["study"]["class_blocks"] and not report["study"]["simulated"]
    page = html.unescape((tmp_path / "audit" / "audit.html").read_text(encoding="utf-8"))
    assert all(about["title"] in page and about["rule"][:60] in page for about in QUESTIONS.values())
    assert "0: 41.0\xa0%, 1: 43.0\xa0%" in page and report["networks"] == {"shuffled": network}
    assert "no measure of vision" in page and "SIMULATED" not in page and "http" not in page


@needs_chromium
@pytest.mark.parametrize("width", [400, 1280])
def test_the_page_shuts_nobody_out(tmp_path, drifting, axe, width):  # noqa: F811
    command.audit(config(drifting, tmp_path / "audit", quick=True))
    assert violations(tmp_path, (tmp_path / "audit" / "audit.html").read_text(encoding="utf-8"), axe, width) == []


@pytest.fixture(scope="module")
def seeing(tmp_path_factory):
    return write(tmp_path_factory.mktemp("seeing"), signal=0.5, timed=False)


def test_whole_audit_of_files_that_tell_no_time(tmp_path, seeing):
    report = command.audit(config(seeing, tmp_path))
    parts = report["parts"]
    assert parts["real"]["value"] > 0.9 and parts["people"]["value"] > 0.9 and report["drift"] == ""
    assert parts["before"]["value"] < 0.6 and parts["within"]["p"] > 0.01  # the response is that of the class
    assert parts["response"]["response"] > 0.9 and parts["response"]["p"] < 0.001  # which begins at 150 ms
    for name in ("shuffled", "surrogate", "amplitude"):
        assert parts[name]["value"] < 0.6, name
    assert parts["nonsense"]["value"] < 0.75 < 1.5 * parts["nonsense"]["null"]  # halves of classes that are told
    for name in ("blocks", "other_trial", "clock", "blocks held out"):
        assert "block" in parts[name]["why"] or "when" in parts[name]["why"], name
    assert parts["detrended"]["value"] > 0.5 and parts["band 5-95 Hz"]["n"] == 24
    sizes = [size for size, _ in parts["training"]["curve"]]
    assert sizes == sorted(sizes) and sizes[-1] == 192 and parts["gallery"]["curve"][-1][0] == 24
    assert [size for size, *_ in parts["repetitions"]["curve"]] == [1, 2]
    answers = {question["name"]: question["answer"] for question in report["questions"]}
    assert answers == dict.fromkeys(QUESTIONS, "supported") | {
        "picture": "not supported",
        "people": "cannot be told",
        "nearest": "cannot be told",
        "linear": "cannot be told",
    }


def test_killed_and_continued(tmp_path, seeing, monkeypatch):
    """What was made before it was killed is not made again, and the end is the same; what is stale or damaged is."""
    whole = command.audit(config(seeing, tmp_path / "whole", quick=True))

    lock = tmp_path / "audit" / "audit.lock"  # by which `neuroimagen status` sees it

    def killed(self):
        assert lock.exists()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Parts, "within", killed)
        with pytest.raises(KeyboardInterrupt):
            command.audit(config(seeing, tmp_path / "audit", quick=True))
    assert not lock.exists()
    files = tmp_path / "audit" / "parts"
    before = {path.name: path.stat().st_mtime_ns for path in files.iterdir()}
    assert "people.json" in before and "within.json" not in before and not (tmp_path / "audit" / "audit.json").exists()
    (files / "real.json").write_text("{", encoding="utf-8")
    report = command.audit(config(seeing, tmp_path / "audit", quick=True))
    after = {path.name: path.stat().st_mtime_ns for path in files.iterdir()}
    assert {name for name in before if before[name] != after[name]} == {"real.json"}
    assert report["parts"] == whole["parts"] and report["questions"] == whole["questions"]
    kept = command.kept(files / "real.json", "another hash", lambda: {"value": 7})
    assert kept["result"] == {"value": 7}


def test_the_audit_of_another_study_stays(tmp_path, seeing, drifting):
    command.audit(config(seeing, tmp_path, quick=True))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="holds the audit of another study"):
        command.audit(config(drifting, tmp_path, quick=True))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_picture_or_option_that_changed_makes_every_part_anew(tmp_path, monkeypatch):
    given = write(tmp_path / "study", timed=False, subjects=1, images=10)
    made = []
    monkeypatch.setattr(Parts, "table", lambda self, quick: {"real": lambda: made.append(1) or {"why": "a test"}})
    monkeypatch.setattr(command, "judge", lambda *_: [])
    monkeypatch.setattr(command, "drift", lambda *_: "")
    monkeypatch.setattr(command, "write_page", lambda *_: None)
    for n, change in [(1, {}), (1, {}), (2, {"seed": 1}), (3, {}), (3, {"quick": True})]:
        command.audit(config(given, tmp_path / "audit", **change))
        assert len(made) == n
    picture = sorted((tmp_path / "study" / "images").rglob("*.JPEG"))[0]
    Image.new("RGB", (40, 30)).save(picture)
    command.audit(config(given, tmp_path / "audit"))
    assert len(made) == 4


@pytest.mark.parametrize(
    "given,said",
    [
        (["out=FILE"], "is a file: give a folder"),
        (["out=OUT", "run=NONE"], "NONE"),
        (["out=OUT", "quik=true"], "Did you mean: 'quick'?"),
        (["out=OUT", "eeg=NONE"], "NONE"),
        ([], "please give out="),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(tmp_path, seeing, given, said, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").touch()
    assert main(["audit", *(f"{name}={value}" for name, value in seeing.items()), *given]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert said in error[-1] and error[-1].startswith("error: ")
    assert [path.name for path in tmp_path.iterdir()] == ["FILE"]


# ---- on arrays ----
def trials(labels, people, split, blocks=None, onsets=None, **more):
    n = len(labels)
    facts = [
        Facts(int(people[i]), f"image {i}", int(labels[i]), blocks and blocks[i], onsets and float(onsets[i]))
        for i in range(n)
    ]
    return Trials(facts, split, **more)


def parts_of(x, t, colours=None):
    grey = np.random.default_rng(0).integers(0, 255, (len(x), 32, 32)).astype(np.uint8)
    source = SimpleNamespace(trials=t, real=x, pictures=(colours, grey), config=SimpleNamespace(seed=0))
    return Parts(source)  # type: ignore[arg-type]


def arrays(n=300, d=20, people=3, seed=0):
    rng = np.random.default_rng(seed)
    labels, person = rng.integers(3, size=n), np.arange(n) % people
    split = np.array(["train", "train", "train", "val", "test"])[rng.integers(5, size=n)]
    return rng, labels, person, split.tolist(), rng.standard_normal((n, d))


def test_labels_that_are_swapped_in_test_are_wrong():
    _, labels, people, split, x = arrays()
    x[:, :3] += 6 * np.eye(3)[labels]
    right = parts_of(x, trials(labels, people, split)).real()
    swapped = np.where(np.array(split) == "test", np.array([1, 0, 2])[labels], labels)
    wrong = parts_of(x, trials(swapped, people, split)).real()
    assert right["value"] == pytest.approx(1) and abs(wrong["value"] - 1 / 3) < 0.01 and wrong["p"] > 0.3


def test_a_constant_feature_changes_little():
    _, labels, people, split, x = arrays()
    x[:, :3] += np.eye(3)[labels]
    t = trials(labels, people, split)
    flat = np.concatenate([x, np.full((len(x), 1), 7.0)], 1)
    one, other = (decode(features, t, t.train, t.test).argmax(1) for features in (x, flat))
    assert (one == other).mean() > 0.9 and np.isfinite(decode(flat, t, t.train, t.test)).all()


def test_a_class_that_train_lacks_is_never_the_answer():
    _, labels, people, split, x = arrays()
    split = ["test" if label == 2 else side for label, side in zip(labels, split, strict=True)]
    t = trials(labels, people, split)
    assert (decode(x, t, t.train, t.test)[:, 2] == -np.inf).all()
    with pytest.raises(Untold, match="fewer than two classes"):
        decode(x, t, t.train[labels[t.train] == 0], t.test)
    few = [int(t.train[labels[t.train] == label][0]) for label in (0, 1)]
    with pytest.raises(Untold, match="2 trials to train on, no more than classes"):
        decode(x, t, np.array(few), t.test)
    apart = trials(labels, people, ["test" if label == 2 else "train" for label in labels])
    with pytest.raises(Untold, match="zero-shot"):
        decode(x, apart, apart.train, apart.test)


def test_one_person_holds_nobody_out():
    _, labels, people, split, x = arrays()
    with pytest.raises(Untold, match="one person"):
        parts_of(x, trials(labels, 0 * people, split)).people()


def test_within_a_class_neither_class_nor_block_helps():
    """EEG that tells class and block, and nothing of the picture; and EEG that tells the picture's colours."""
    rng, labels, people, split, x = arrays(n=600)
    colours = rng.random((600, 192)) + np.eye(192)[labels]
    t = trials(labels, people, split)
    assert parts_of(x + 9 * rng.standard_normal((3, 3, 20))[people, labels], t, colours).within()["p"] > 0.01
    offsets = rng.integers(-8, 9, (3, 3, 20))[people, labels] * 1.0  # whose means are exact
    assert parts_of(offsets, t, colours).within()["value"] == pytest.approx(0.5)  # nothing of them is left
    _, truths, kinds = parts_of(x, t, colours)._residuals
    mean = colours[t.train[labels[t.train] == 1]].mean(0)
    np.testing.assert_allclose(truths[kinds == 1], colours[t.test[labels[t.test] == 1]] - mean)
    told = parts_of(x + 3 * (colours @ rng.standard_normal((192, 20))), t, colours).within()
    assert told["p"] < 0.001 and told["value"] > 0.7


def test_blocks_of_random_order_are_held_out_whole(monkeypatch):
    """No block and no picture is on both sides; with runs as the split, every trial is tested once."""
    _, labels, people, split, x = arrays(n=600)
    blocks, onsets = [str(i // 60) for i in range(600)], list(range(600))
    t = trials(labels, people, split, blocks, onsets)
    assert t.randomised and not t.class_blocks
    assert parts_of(x, t).blocks()["p"] > 0.01
    x[:, :3] += 2 * np.eye(3)[labels]
    seen = []
    monkeypatch.setattr("neuroimagen.audit.parts.decode", lambda *given: seen.append(given[2:]) or decode(*given))
    assert parts_of(x, t).blocks()["p"] < 0.001
    by_run = trials(labels, people, split, blocks, onsets, split_by="run")
    assert parts_of(x, by_run).blocks()["p"] < 0.001
    for train, test in seen:
        assert not set(t.stretch[train]) & set(t.stretch[test]) and not set(train) & set(test)
    assert len(seen) == 10 and set(t.test) == {i for _, test in seen[:5] for i in test}
    assert sorted(i for _, test in seen[5:] for i in test) == list(range(600))
    with pytest.raises(Untold, match="do not tell blocks"):
        parts_of(x, trials(labels, people, split)).blocks()


def test_nobody_is_trained_on_and_tested(monkeypatch):
    _, labels, people, split, x = arrays()
    t, seen = trials(labels, people, split), []
    monkeypatch.setattr("neuroimagen.audit.parts.decode", lambda *given: seen.append(given[2:]) or decode(*given))
    parts_of(x, t).people()
    assert len(seen) == 3 and {i for _, test in seen for i in test} == set(t.test)
    for train, test in seen:
        assert not set(t.person[train]) & set(t.person[test]) and set(train) <= set(t.train)


def test_the_clock_hears_drift_and_nothing_else():
    rng, labels, people, split, x = arrays(n=600, people=1)
    blocks, onsets = [str(i // 300) for i in range(600)], list(range(600))
    t = trials(labels, people, split, blocks, onsets)
    still = parts_of(x, t).clock()
    walk = rng.standard_normal((600, 20)).cumsum(0) / 10
    moving = parts_of(x + walk, t).clock()
    assert still["p"] > 0.01 and abs(still["value"]) < 0.2 and moving["p"] < 0.001 and moving["value"] > 0.4
    with pytest.raises(Untold, match="has 40 trials"):
        parts_of(x[:30], trials(labels[:30], people[:30], split[:30], blocks[:30], onsets[:30])).clock()


def test_order_of_blocks_between_people():
    labels, people = np.tile(np.repeat(np.arange(4), 5), 2), np.repeat([0, 1], 20)
    blocks = [str(i // 5) for i in range(40)]
    split = ["train", "val", "test", "train", "train"] * 8
    same = trials(labels, people, split, blocks, list(range(20)) * 2)
    assert same.class_blocks and same.same_order() == pytest.approx(1)
    backwards = trials(labels, people, split, blocks, [*range(20), *range(20, 0, -1)])
    assert backwards.same_order() == pytest.approx(-1)
    assert trials(labels, people, split).same_order() is None


@pytest.mark.parametrize("each,blocks", [(1, False), (4, True)])
def test_classes_in_turn_within_a_run_are_blocks(each, blocks):
    """Runs that hold every class, `each` trials of one after another: drift along a run could name the class."""
    rng = np.random.default_rng(0)
    labels = np.concatenate([np.repeat(rng.permutation(np.repeat(np.arange(3), 20 // each)), each) for _ in range(4)])
    n = len(labels)
    t = trials(labels, np.zeros(n, int), ["train"] * n, [str(i * 4 // n) for i in range(n)], list(range(n)))
    assert t.class_blocks == blocks and t.randomised != blocks
    if blocks:
        with pytest.raises(Untold, match="classes came in blocks"):
            parts_of(rng.standard_normal((n, 5)), t).blocks()


def test_the_same_eeg_on_both_sides_or_in_two_people_is_said():
    _, labels, people, split, x = arrays()
    colours = np.random.default_rng(1).random((300, 192))
    t = trials(labels, people, split)
    assert parts_of(x, t, colours).overlap()["copies"] == 0 and "why" not in parts_of(x, t).people()
    one, two = t.train[people[t.train] == 0][:2]
    x[t.test[people[t.test] == 0][:2]] = x[[one, two]]
    assert parts_of(x, t, colours).overlap()["copies"] == 2 and "why" not in parts_of(x, t).people()
    unknown = trials(labels, people, split, known=False)
    assert parts_of(x, unknown).overlap()["copies"] == 2
    x[t.val[people[t.val] == 1][0]] = x[one]
    with pytest.raises(Untold, match="1 trials hold the very EEG of another person"):
        parts_of(x, t).people()


def test_centred_by_hand():
    values = np.array([[1.0], [3.0], [10.0], [5.0]])
    found = centred(values, np.array([0, 0, 0, 1]), np.array([0, 1]))  # group 1 has no train row: the mean of all, 2
    assert found.ravel().tolist() == [-1, 1, 8, 3]


def test_pictures_are_read_as_they_are(tmp_path, seeing):
    source = Source(config(seeing, tmp_path))
    coarse, grey = source.pictures
    assert coarse.shape == (240, 192) and grey.shape == (240, 32, 32) and 0 <= coarse.min() < coarse.max() <= 1
    assert source.real.shape == (480, 8 * 9)
    with pytest.raises(Untold, match="files hold"):
        source.study.before["band"] = [55, 95]
        source.varied("below")
    source = Source(config(seeing, tmp_path, baseline=[0.02, 0.05]))
    assert source._window("before")["baseline"] == source._window("response")["baseline"] == []
    source.study.before["baseline"] = [0.02, 0.05]
    with pytest.raises(Untold, match="drift grows as a response does"):
        source.varied("response")


def test_the_maps_of_a_run_beside_ridge(tmp_path, seeing):
    """Maps that are the pictures themselves win, those of others do not; without maps a sentence says so."""
    source = Source(config(seeing, tmp_path))
    folder = tmp_path / "maps"
    folder.mkdir()
    test = [source.study.trial(source.indices[i]) for i in source.trials.test]
    listed = [{"key": trial.key, "image": trial.image} for trial in test]
    run = SimpleNamespace(path=tmp_path, trials=listed, map=lambda key: folder / f"{key}.png")
    parts = Parts(source, run)  # type: ignore[arg-type]
    assert "no map of these trials" in parts.floor()["maps_why"]
    for trial in test:
        Image.open(trial.jpeg).save(run.map(trial.key))
    told = parts.floor()
    assert told["maps"] > 0.99 > told["ridge"] and told["p_maps"] < 0.001 and told["n_maps"] == 24
    for trial, other in zip(test, test[1:] + test[:1], strict=True):
        Image.open(other.jpeg).save(run.map(trial.key))
    assert parts.floor()["p_maps"] > 0.01
    run.trials = [trial | {"image": "another"} for trial in listed]
    assert "no map of these trials" in parts.floor()["maps_why"]


def test_what_is_untrue_on_purpose_stands_on_terminal_and_page(tmp_path, capsys):
    given = write(tmp_path / "study", timed=False, images=10)
    command.audit(config(given | {"splits": "trials", "audit": True}, tmp_path / "audit", quick=True))
    assert "TEST PICTURES WERE TRAINED ON" in capsys.readouterr().out
    assert "TEST PICTURES WERE TRAINED ON" in (tmp_path / "audit" / "audit.html").read_text(encoding="utf-8")
