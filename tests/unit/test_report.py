import base64
import html.parser
import io
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image
from reconstruct_run import ROWS, make_run
from test_scores import colours

from neuroimagen.data.classes import CLASSES
from neuroimagen.evaluation.report import ReportConfig, first_of_each_class, inline, report, spaced
from neuroimagen.evaluation.scores import read_run, score

VOID = {"meta", "img", "br"}


class Tags(html.parser.HTMLParser):
    """Every tag closed in order; collects pictures and anything that would fetch."""

    def __init__(self):
        super().__init__()
        self.open, self.sources, self.links, self.truths = [], [], [], 0

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "img":
            self.sources.append(attrs["src"])
            self.truths += attrs.get("class") == "truth"
            assert attrs["alt"]
        if tag in ("script", "link", "iframe") or "href" in attrs:
            self.links.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def scored(path, **kwargs):
    run = make_run(path, **kwargs)
    found = score(read_run(run), colours(CLASSES[: kwargs.get("classes", 4)]), 4, 1)
    (run / "scores.json").write_text(json.dumps(found))
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return scored(tmp_path_factory.mktemp("run") / "run", classes=4)


@pytest.fixture
def fresh(run, tmp_path):
    return shutil.copytree(run, tmp_path / "run")


def page_of(run, **kwargs):
    report(ReportConfig(run=str(run), **kwargs))
    text = (run / "report.html").read_text()
    tags = Tags()
    tags.feed(text)
    assert not tags.open
    return text, tags


def test_page_is_whole_and_self_contained(fresh):
    text, tags = page_of(fresh)
    assert not tags.links and "http://" not in text and "https://" not in text and "url(" not in text
    # 4 classes: truth, map, two samples; then truth, map, five rows.
    assert len(tags.sources) == 4 * 4 + 4 * 7 and tags.truths == 8
    for source in tags.sources:
        kind, content = source.split(";base64,")
        assert kind == "data:image/png"
        assert Image.open(io.BytesIO(base64.b64decode(content))).size == (16, 16)
    for said in ("No person was recorded", "Table 3. Ablation (simulated EEG)", "Table 2. By subject", "OpenMoji"):
        assert said in text
    for said in (
        "strength: 0.8",
        "2.13.0",
        "abc1234",
        "drawn scene (simulator)",
        "CC BY-SA",
        "the first trial of each class in the order",
    ):
        assert said in text
    for c in CLASSES[:4]:
        assert f"<b>{c.name.replace(chr(39), '&#x27;')}</b>" in text
    # Table 3 holds the numbers of scores.json.
    table = text.split("Table 3.")[1].split("</table>")[0]
    rows = json.loads((fresh / "scores.json").read_text())["rows"]
    for row in ROWS:
        line = re.search(rf"<td>{re.escape(row)}</td>.*?</tr>", table).group()
        assert f"<td>{100 * rows[row]['all']['acc']['value']:.1f}<small>" in line
        assert f"<td>{rows[row]['all']['is']['value']:.2f}<" in line
        assert f"<td>{100 * rows[row]['all']['shuffled']['value']:.1f}<" in line
        assert f"<td>{rows[row]['all']['ssim_other']['value']:.3f}</td>" in line
        gain = rows[row]["all"]["ssim_gain"]
        assert "<td>{value:.3f}<small>{low:.3f} to {high:.3f}</small>".format(**gain) in line
        assert line.count("&#10003;") == len(row.split("+"))


def test_pictures_shown_are_the_right_files(fresh):
    text, tags = page_of(fresh)
    trial = first_of_each_class(read_run(fresh))[0][2]
    for path in ("truth/{}.png", "maps/{}.png", "images/L+I/{}_1.png", "images/B/{}_0.png"):
        content = base64.b64encode((fresh / path.format(trial["key"])).read_bytes()).decode()
        assert f"data:image/png;base64,{content}" in tags.sources


def test_which_trials_are_shown(run):
    shown, _ = first_of_each_class(read_run(run))
    assert [trial["label"] for trial in shown] == [0, 1, 2, 3]
    for trial in shown:
        assert trial["key"] == min(t["key"] for t in read_run(run).trials if t["label"] == trial["label"])
    assert spaced(list(range(10)), 4) == [0, 2, 5, 7] and spaced([1, 2], 4) == [1, 2]


def test_fewer_classes_by_config(fresh):
    text, tags = page_of(fresh, classes=2, ablation=1, sheet=3)
    assert len(tags.sources) == 2 * 4 + 7 and "(2 of 4)" in text


def test_recorded_eeg_and_a_run_without_maps(tmp_path):
    run = scored(tmp_path / "run", classes=4, subjects=1, samples=1, simulated=False, rows={"L": ROWS["L"]})
    shutil.rmtree(run / "maps")
    text, tags = page_of(run)
    assert "imulated EEG" not in text and "recorded EEG" in text and "Read with care" in text
    assert len(tags.sources) == 4 * 2 + 4 * 2 and "Table 2" not in text
    about = (run / "rows.json").read_text()
    for dataset, blocks in (("eeg_imagenet", True), ("things_eeg2", False)):
        (run / "rows.json").write_text(about.replace('"perceivelab"', f'"{dataset}"'))
        assert ("Read with care" in page_of(run)[0]) == blocks


def test_every_column_is_explained_and_chance_is_told_twice(fresh):
    text, _ = page_of(fresh)
    table, said = re.search(r"Table 3\..*?<table>(.*?)</table>.*<ul class=\"notes\">(.*?)</ul>", text, re.S).groups()
    for head in re.findall("<th>(.*?)</th>", table):
        if head not in ("", "Model"):
            assert f"{head.replace(' (%)', '')}: " in html.unescape(said), head
    heads, chance, guess = table.count("<th>"), *re.findall('<tr class="chance">(.*?)</tr>', table)
    assert "<td>25.0</td>" in chance and "guessing in the study" in guess and "<td>25.0</td>" in guess
    assert chance.count("<td") - 1 + 4 == heads  # one cell spans four columns


def test_a_run_of_one_picture(tmp_path):
    run = make_run(tmp_path / "run", classes=1, pictures=1)
    (run / "scores.json").write_text(json.dumps(score(read_run(run), colours(), 4, 1)))
    text, _ = page_of(run)
    assert "not available, as all trials show one and the same picture" in text and "guessing in the study" not in text


def test_names_are_escaped(fresh):
    lines = [json.loads(line) for line in (fresh / "trials.jsonl").read_text().splitlines()]
    for trial in lines:
        trial["class_name"] = f"<script>alert({trial['label']})</script>"
    (fresh / "trials.jsonl").write_text("".join(json.dumps(trial) + "\n" for trial in lines))
    (fresh / "scores.json").write_text(json.dumps(score(read_run(fresh), colours(), 4, 1)))
    text, tags = page_of(fresh)
    assert "<script" not in text and "&lt;script&gt;" in text


def test_budget_shrinks_pictures(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(4):
        Image.fromarray(rng.integers(0, 255, (300, 300, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    paths = [tmp_path / f"{i}.png" for i in range(4)]
    natural, small = inline(paths), inline(paths, budget=60_000)
    assert all(uri.startswith("data:image/png") for uri in natural.values())
    assert sum(map(len, small.values())) <= 60_000
    assert all(uri.startswith("data:image/jpeg") for uri in small.values())


def test_contact_sheet(fresh):
    page_of(fresh, sheet=4)
    sheet = np.asarray(Image.open(fresh / "gallery.png").convert("RGB"), np.int16)
    red = (np.abs(sheet - np.array([0xD1, 0x1F, 0x1F])) < 3).all(-1)
    assert red.sum() > 4 * 4 * 112  # four frames
    assert sheet.shape[1] > 600


def test_mistakes(fresh):
    with pytest.raises(ValueError, match="sheet=0 must be at least 1"):
        report(ReportConfig(run=str(fresh), sheet=0))
    stale = json.loads((fresh / "scores.json").read_text())
    (fresh / "scores.json").write_text(json.dumps({**stale, "trials": 3}))
    with pytest.raises(ValueError, match="belongs to other pictures; make it anew with: neuroimagen evaluate"):
        report(ReportConfig(run=str(fresh)))
    (fresh / "scores.json").write_text(json.dumps({**stale, "version": 1}))
    with pytest.raises(ValueError, match="of another version; make it anew with: neuroimagen evaluate"):
        report(ReportConfig(run=str(fresh)))
    (fresh / "scores.json").unlink()
    with pytest.raises(ValueError, match="no scores.json; make it with: neuroimagen evaluate"):
        report(ReportConfig(run=str(fresh)))
    (fresh / "DONE").unlink()
    with pytest.raises(ValueError, match="is not finished"):
        report(ReportConfig(run=str(fresh)))
    assert not (fresh / "report.html").exists()
