"""`neuroimagen evaluate` of a contrastive run: its numbers against loops over single trials, and what is refused."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from contrastive_run import make_run, make_shards_of
from scipy.stats import rankdata
from torch.nn import functional as F

from neuroimagen.batches.stream import Batcher
from neuroimagen.cli import main
from neuroimagen.contrastive.encoder import ContrastiveEncoder
from neuroimagen.features.format import picture_digests, read_features, write_features
from neuroimagen.retrieval import queries
from neuroimagen.retrieval.evaluate import RetrievalConfig, evaluate
from neuroimagen.shards.format import ShardSplit

KINDS = (("picture", 24, "image"), ("layer", 8, "image"), ("caption", 12, "text"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("retrieval")
    make_shards_of(folder)
    make_run(folder, folder / "shards", KINDS, weights=[1.0, 3.0])
    return folder


@pytest.fixture(scope="module")
def report(folder):
    return evaluate(RetrievalConfig(str(folder / "run"), device="cpu", transductive=True))


class Loops:
    """The same from the exported model and the files alone, a query at a time."""

    def __init__(self, folder):
        self.model = ContrastiveEncoder.from_pretrained(folder / "run" / "model").eval()
        split = ShardSplit(folder / "shards", "test")
        self.eeg = Batcher(split, None)(np.arange(len(split)))["eeg"]
        self.subject = [split.info(i)["subject"] for i in range(len(split))]
        self.shown = picture_digests(split)
        self.pictures = sorted(set(self.shown))
        self.features = {}
        for name in self.model.targets:
            file = read_features(folder / f"{name}.safetensors")
            self.features[name] = file.vectors[file.rows(self.pictures)]
        first = [self.shown.index(digest) for digest in self.pictures]
        self.labels = np.array([split.info(i)["label"] for i in first])

    def predict(self, eeg):
        with torch.no_grad():
            return {name: z[0] for name, z in self.model(eeg[None]).items()}

    def asked(self, kind, k=0):
        """(subject, picture, prediction) of each query."""
        pairs = [(s, d, [i for i, both in enumerate(zip(self.subject, self.shown, strict=True)) if both == (s, d)])
                 for s in (1, 2) for d in self.pictures]  # fmt: skip
        if kind == "picture":
            pairs = [(0, d, [i for i, shown in enumerate(self.shown) if shown == d]) for d in self.pictures]
        for s, d, trials in pairs:
            if kind == "trial":
                yield from ((s, d, self.predict(self.eeg[i])) for i in trials)
            elif kind == "average":
                yield s, d, self.predict(self.eeg[trials].mean(0))
            elif kind == "k":
                yield from (
                    (s, d, self.predict(self.eeg[trials[i : i + k]].mean(0))) for i in range(0, len(trials) - k + 1, k)
                )
            else:
                each = [self.predict(self.eeg[i]) for i in trials]
                yield s, d, {name: torch.stack([z[name] for z in each]).mean(0) for name in self.features}

    def likeness(self, z, weights):
        def standard(name, x):
            at = list(self.features).index(name)
            start = sum(self.model.widths[:at])
            own = slice(start, start + self.model.widths[at])
            return (x - self.model.mean[own]) / self.model.std[own]

        found = [
            w * F.cosine_similarity(standard(name, z[name])[None], standard(name, self.features[name]))
            for name, w in weights.items()
        ]
        return torch.stack(found).sum(0).numpy()


@pytest.mark.parametrize("target", ["all", "layer", "caption"])
@pytest.mark.parametrize("kind", ["trial", "average", "subject", "picture"])
def test_numbers_are_those_of_loops(folder, report, kind, target):
    loops = Loops(folder)
    weights = {"picture": 0.25, "layer": 0.75} if target == "all" else {target: 1.0}
    found = []
    for s, d, z in loops.asked(kind):
        s_ij = loops.likeness(z, weights)
        found.append((s, rankdata(-s_ij)[loops.pictures.index(d)]))
    subject, rank = np.array(found).T
    rows = report["rows"][target][kind]
    assert set(rows) == ({"all"} if kind == "picture" else {"all", "subject 1", "subject 2"})
    for group, e in rows.items():
        mine = rank if group == "all" else rank[subject == int(group[-1])]
        for k in (1, 5, 10):
            assert e[f"top{k}"]["value"] == pytest.approx((mine <= k).mean())
        assert e["rank"]["value"] == pytest.approx(mine.mean()) and e["median"]["value"] == np.median(mine)
        m = len(loops.pictures)
        assert e["way2"]["value"] == pytest.approx(((m - mine) / (m - 1)).mean())
        assert e["top1"]["n"] == 16 and e["top1"]["low"] <= e["top1"]["value"] <= e["top1"]["high"]


def test_the_curve_over_repetitions_is_that_of_loops(folder, report):
    """Persons see a picture 2 or 3 times, as often each: half have 2 or more, so the curve ends at 2."""
    curve = report["curves"]["repetitions"]
    assert report["repetitions"] == 2 and [(p["k"], p["queries"]) for p in curve] == [(1, 80), (2, 32)]
    loops = Loops(folder)
    weights = {"picture": 0.25, "layer": 0.75}
    right = [
        rankdata(-loops.likeness(z, weights))[loops.pictures.index(d)] == 1
        for _, d, z in loops.asked("k", curve[1]["k"])
    ]
    assert curve[1]["top1"]["value"] == pytest.approx(np.mean(right))
    assert curve[0]["top1"]["value"] == pytest.approx(report["rows"]["all"]["trial"]["all"]["top1"]["value"])


def test_what_the_file_says(folder, report):
    assert json.loads((folder / "run" / "retrieval.json").read_text()) == report
    assert report["own"] == "all" and list(report["rows"]) == ["all", "picture", "layer", "caption"]
    assert report["gallery"] == 16 and report["trials"] == 80 and report["map_by"] == "class"
    e = report["rows"]["all"]["trial"]["all"]
    assert e["top1"]["chance"] == 1 / 16 and e["rank"]["chance"] == 8.5 and e["class"]["chance"] == 1 / 4
    # Random features: what is found is chance, and the p-values do not say otherwise. (One seed.)
    assert e["rank"]["p"] > 0.05 and e["rank"]["low"] < 8.5 < e["rank"]["high"]
    sizes = report["curves"]["gallery"]["trial"]
    assert [n for n, _ in sizes] == [2, 4, 8, 16] and sizes[-1][1] == pytest.approx(e["top1"]["value"])
    assert set(report["transductive"]) == {"average", "subject", "picture"}
    assert report["transductive"]["subject"]["matched"]["chance"] == 1 / 16
    assert sum(hub["n"] for hub in report["hubness"]["hubs"]) <= 80 * report["hubness"]["k"]


def values_of(report):
    return {
        (target, kind, group, metric): e["value"]
        for target, kinds in report["rows"].items()
        for kind, groups in kinds.items()
        for group, found in groups.items()
        for metric, e in found.items()
    }


def test_neither_batches_nor_chunks_change_a_number(folder, report, tmp_path, monkeypatch):
    run = shutil.copytree(folder / "run", tmp_path / "run")
    monkeypatch.setattr(queries, "CHUNK", 7)
    monkeypatch.setattr(queries, "PARTS", 3)
    again = evaluate(RetrievalConfig(str(run), device="cpu", batch_size=5))
    assert values_of(again) == pytest.approx(values_of(report))
    assert again["hubness"]["skewness"] == pytest.approx(report["hubness"]["skewness"])
    for kind, groups in again["rows"]["all"].items():
        for group, e in groups.items():
            assert e["rank"]["p"] == pytest.approx(report["rows"]["all"][kind][group]["rank"]["p"]), (kind, group)


def test_what_is_predicted_as_it_is_is_found_and_a_swapped_pair_is_not(tmp_path):
    """EEG without noise, and the network's own predictions as features: all are found. Two exchanged: these are not."""
    shards = make_shards_of(tmp_path, noise=0.0)
    run = make_run(tmp_path, shards)
    model = ContrastiveEncoder.from_pretrained(run / "model").eval()
    keys, rows = [], []
    for name in ("train", "val", "test"):
        split = ShardSplit(shards, name)
        for i, digest in enumerate(picture_digests(split)):
            if digest not in keys:
                with torch.no_grad():
                    rows.append(model(Batcher(split, None)(np.array([i]))["eeg"])["picture"][0])
                keys.append(digest)
    about = read_features(tmp_path / "picture.safetensors").about
    asked = RetrievalConfig(str(run), device="cpu")
    write_features(tmp_path / "picture.safetensors", torch.stack(rows), keys, about)
    for kind, groups in evaluate(asked)["rows"]["picture"].items():
        assert groups["all"]["top1"]["value"] == groups["all"]["top1"]["high"] == 1, kind
        assert groups["all"]["rank"]["p"] < 0.01
    rows[-1], rows[-2] = rows[-2], rows[-1]
    write_features(tmp_path / "picture.safetensors", torch.stack(rows), keys, about)
    assert evaluate(asked)["rows"]["picture"]["picture"]["all"]["top1"]["value"] == 14 / 16


def test_a_constant_prediction_is_chance_exactly(tmp_path):
    run = make_run(tmp_path, make_shards_of(tmp_path))
    model = ContrastiveEncoder.from_pretrained(run / "model")
    for parameter in model.output.parameters():
        torch.nn.init.zeros_(parameter)
    model.save_pretrained(run / "model")
    report = evaluate(RetrievalConfig(str(run), device="cpu"))
    for kind, groups in report["rows"]["picture"].items():
        for group, found in groups.items():
            for name, e in found.items():
                assert e["value"] == pytest.approx(e["chance"], abs=1e-12), (kind, group, name)
            assert found["top1"]["p"] == found["rank"]["p"] == 1
    assert report["hubness"]["skewness"] == 0 == report["hubness"]["never"]


def test_one_person_who_saw_each_picture_once_in_its_own_class(tmp_path, capsys):
    """Nothing to average, no groups of people, no classes to share."""
    run = make_run(tmp_path, make_shards_of(tmp_path, repetitions=((1, 1),), in_test=1))
    report = evaluate(RetrievalConfig(str(run), device="cpu", transductive=True))
    assert list(report["rows"]["picture"]) == list(report["transductive"]) == ["trial"] and list(
        report["rows"]["picture"]["trial"]
    ) == ["all"]
    assert report["map_by"] == "picture" and "class" not in report["rows"]["picture"]["trial"]["all"]
    assert report["curves"]["repetitions"] == [] and report["gallery"] == 4
    assert report["rows"]["picture"]["trial"]["all"]["top1"]["low"] is None, "four pictures have no interval"
    assert "retrieval.html" in capsys.readouterr().out


def test_pictures_that_few_saw_twice(tmp_path):
    """Most pairs of person and picture have one trial: there is no curve, and each asks once where all are used."""
    run = make_run(tmp_path, make_shards_of(tmp_path, repetitions=((1, 1), (2, 1))))
    report = evaluate(RetrievalConfig(str(run), device="cpu", transductive=True))
    assert report["repetitions"] == 1 and report["curves"]["repetitions"] == []
    assert list(report["rows"]["picture"]) == ["trial", "average", "subject", "picture"]
    assert list(report["transductive"]) == ["average", "subject", "picture"]
    assert report["trials"] == 40 and report["rows"]["picture"]["average"]["all"]["top1"]["n"] == 16


def test_the_terminal_has_nine_lines_of_80_columns(folder, tmp_path, capsys):
    marked(folder, tmp_path)
    assert main(["evaluate", str(tmp_path / "run"), f"shards={tmp_path / 'shards'}", "device=cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    lines = lines[[i for i, line in enumerate(lines) if "SIMULATED" in line][0] :]
    assert len(lines) == 9 and max(map(len, lines[:-1])) <= 80
    assert lines[1].startswith("CONTROL: labels shuffled") and "top-1 % (6.2)" in lines[3]


def marked(folder, tmp_path):
    """A copy whose shards say that they are simulated, and a control."""
    for name in ("shards", "run"):
        shutil.copytree(folder / name, tmp_path / name)
    manifest = json.loads((tmp_path / "shards" / "manifest.json").read_text())
    manifest |= {"simulated": True, "control": "CONTROL: labels shuffled"}
    (tmp_path / "shards" / "manifest.json").write_text(json.dumps(manifest))


def test_the_page_says_what_it_is(folder, report, tmp_path):
    page = (folder / "run" / "retrieval.html").read_text()
    assert "Simulated EEG" not in page and "Untrue on purpose" not in page
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page) and "<script" not in page
    assert page.count('class="truth"') >= 6 and "Not comparable with the numbers above" in page
    marked(folder, tmp_path)
    evaluate(RetrievalConfig(str(tmp_path / "run"), shards=str(tmp_path / "shards"), device="cpu", split="val"))
    page = (tmp_path / "run" / "retrieval.val.html").read_text()
    assert all(
        said in page for said in ("Simulated EEG", "Untrue on purpose", "CONTROL: labels shuffled", "Validation")
    )
    assert "Transductive" not in page


def test_what_is_chosen_on_val_leaves_the_report_on_test_alone(folder, report, tmp_path):
    run = shutil.copytree(folder / "run", tmp_path / "run")
    before = (run / "retrieval.json").read_bytes()
    found = evaluate(RetrievalConfig(str(run), split="val", device="cpu"))
    assert found["split"] == "val" and found["gallery"] == 8
    assert (run / "retrieval.json").read_bytes() == before and (run / "retrieval.val.json").exists()


def said_by(capsys, *arguments):
    capsys.readouterr()
    assert main(["evaluate", *map(str, arguments), "device=cpu"]) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    return line


def test_bad_input_is_one_sentence_each(folder, tmp_path, capsys):
    run = shutil.copytree(folder / "run", tmp_path / "run")
    (run / "DONE").unlink()
    assert "is not finished (no DONE); continue it with: python trainers/contrastive.py" in said_by(capsys, run)
    (run / "DONE").touch()
    assert "Key 'classifier' not in 'RetrievalConfig'" in said_by(capsys, run, "classifier=embedded")
    other = make_shards_of(tmp_path / "other", seed=1)
    assert f"was made of another shards={other}" in said_by(capsys, run, f"shards={other}")
    assert "is not a shard directory" in said_by(capsys, run, f"shards={tmp_path}")
    (tmp_path / "few").mkdir()
    files = {name: tmp_path / "few" / f"{name}.safetensors" for name, _, _ in KINDS}

    def given():
        return f"features=[{','.join(map(str, files.values()))}]"

    for name, file in files.items():
        shutil.copy(folder / f"{name}.safetensors", file)
    assert main(["evaluate", str(run), given(), "device=cpu"]) == 0
    whole = read_features(files["layer"])
    write_features(files["layer"], whole.vectors[::2], whole.keys[::2], whole.about)
    assert re.search(
        "few/layer.safetensors is of other pictures: it has none of [0-9]+ of these", said_by(capsys, run, given())
    )
    write_features(files["layer"], whole.vectors, whole.keys, whole.about | {"model": "another"})
    assert "layer.safetensors holds other features (model: another there, random" in said_by(capsys, run, given())
    write_features(files["layer"], whole.vectors[:, :5], whole.keys, whole.about)
    assert "layer.safetensors holds other features (width: 5 there, 8 in" in said_by(capsys, run, given())
    files.pop("layer")
    assert "features: no file is called layer" in said_by(capsys, run, given())
    model = ContrastiveEncoder.from_pretrained(run / "model")
    model.output.bias.data.fill_(torch.nan)
    model.save_pretrained(run / "model")
    assert "predicts numbers that are not finite" in said_by(capsys, run)
    (run / "model" / "config.json").unlink()
    assert f"{run}/model cannot be loaded" in said_by(capsys, run)
    assert "transductive" in said_by(capsys, tmp_path, "transductive=true")
