import base64
import csv
import hashlib
import html.parser
import io
import json
import os
import re
import shutil
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from reconstruct_run import ABOUT, EXTRA, ROWS, colours, make_run, score

from neuroimagen.pages import ENVIRONMENT
from neuroimagen.report import tables
from neuroimagen.report.charts import bars, confusions
from neuroimagen.report.figures import spaced
from neuroimagen.report.formats import Metric
from neuroimagen.report.gallery import FIXED, Pictures, choose, read_picture_scores
from neuroimagen.report.report import ReportConfig, report
from neuroimagen.scores import evaluate as scoring
from neuroimagen.scores.evaluate import EvaluateConfig, evaluate
from neuroimagen.scores.run_files import check_scores, read_run
from neuroimagen.studies.classes import CLASSES

VOID = {"meta", "img", "br"}
METRICS = {  # name -> (head, scale, better): what the made-up picture_scores.csv holds
    "acc": ("ACC (%)", 100, "higher"),
    "ssim": ("SSIM", 1, "higher"),
    "lpips": ("LPIPS", 1, "lower"),
}


class Tags(html.parser.HTMLParser):
    """Every tag closed in order; collects pictures and anything that would fetch or run."""

    def __init__(self):
        super().__init__()
        self.open, self.sources, self.links, self.ids, self.scripts, self.truths = [], [], [], Counter(), [], 0
        self.alts, self.cards = [], []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "img" and attrs["src"] != "data:,":  # that is the empty picture of the enlarging dialog
            self.sources.append(attrs["src"])
            self.truths += attrs.get("class") == "truth"
            self.alts.append(attrs["alt"])
            assert attrs["alt"]
        if tag == "script":
            self.scripts.append(attrs)
        if tag == "details" and attrs.get("class") == "card":
            self.cards.append(attrs["data-key"])
        if "id" in attrs:
            self.ids[attrs["id"]] += 1
        if tag in ("link", "iframe", "object", "embed") or "href" in attrs or "action" in attrs:
            self.links.append((tag, attrs.get("href")))
        assert not any(name.startswith("on") for name in attrs)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def scored(path, **kwargs):
    run = make_run(path, **kwargs)
    found = score(read_run(run), colours(CLASSES[: kwargs.get("classes", 4)]), 4, 1)
    (run / "scores.json").write_text(json.dumps(found))
    return run


def with_book(run):
    """A score book of made-up numbers for every picture, and what scores.json says beside."""
    read, rng = read_run(run), np.random.default_rng(5)
    with (run / "picture_scores.csv").open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow([*FIXED, *METRICS])
        for row in read.rows:
            for trial in read.trials:
                for sample in range(read.samples):
                    about = [trial[name] for name in ("subject", "label", "class_name", "image")]
                    numbers = rng.uniform(size=len(METRICS)).round(4).tolist()
                    lines.writerow([row, trial["key"], sample, *about, "a truth", "a <guess>", *numbers])
    found = json.loads((run / "scores.json").read_text())
    found["metrics"] = {
        name: {"head": head, "scale": scale, "digits": 1 if scale == 100 else 3, "better": better, "chance": 0.25,
               "chance_of": "a coin of four sides", "ceiling": 0.875, "ceiling_of": "the pictures seen",
               "definition": f"What {name} is <in words>.", "source": "A Source 2023"}
        for name, (head, scale, better) in METRICS.items()
    }  # fmt: skip
    found["unavailable"] = {"swav": "not available: no weights here; get them with: a command"}
    classes = [c.name for c in CLASSES[:4]]
    found["confusion"] = {row: {"classes": classes, "counts": [[3, 1, 0, 0], *[[0, 0, 0, 4]] * 3]} for row in read.rows}
    (run / "scores.json").write_text(json.dumps(found))
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    rows = {"rows": ROWS | EXTRA, "about_rows": ABOUT}
    return with_book(scored(tmp_path_factory.mktemp("run") / "run", classes=4, pictures=3, **rows))


@pytest.fixture
def fresh(run, tmp_path):
    return shutil.copytree(run, tmp_path / "run")


@pytest.fixture(scope="module")
def page(run, tmp_path_factory):
    """The page of `run`, written once for all tests that only read it: folder, text, tags."""
    folder = shutil.copytree(run, tmp_path_factory.mktemp("page") / "run")
    return folder, *page_of(folder)


@pytest.fixture
def bare(tmp_path):
    """A run whose scores hold neither definitions nor a confusion table, and no picture scores."""
    run = scored(tmp_path / "run", classes=4)
    found = json.loads((run / "scores.json").read_text())
    for name in ("metrics", "unavailable", "confusion", "best_of_n"):
        found.pop(name, None)
    (run / "scores.json").write_text(json.dumps(found))
    (run / "picture_scores.csv").unlink(missing_ok=True)
    return run


def page_of(run, **kwargs):
    report(ReportConfig(run=str(run), **kwargs))
    text = (run / "report.html").read_text()
    tags = Tags()
    tags.feed(text)
    assert not tags.open
    return text, tags


def test_page_is_whole_and_self_contained(page):
    folder, text, tags = page
    assert {(tag, href[:1]) for tag, href in tags.links} == {("a", "#")}
    assert {href[1:] for _, href in tags.links} <= set(tags.ids) and set(tags.ids.values()) == {1}
    assert "url(" not in text and "@import" not in text
    assert [script.get("type") for script in tags.scripts] == ["application/json", None]
    # The policy allows this very script, and nothing from anywhere.
    policy = re.search(r'Content-Security-Policy" content="(.*?)"', text).group(1)
    script = re.search(r"<script>(.*?)</script>", text, re.S).group(1)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'") and f"script-src 'sha256-{digest}'" in policy
    for source in tags.sources:
        kind, content = source.split(";base64,")
        assert kind == "data:image/png"
        assert Image.open(io.BytesIO(base64.b64decode(content))).size == (16, 16)
    for said in ("No person was recorded", "OpenMoji", "CC BY-SA", "None was picked by hand", "strength: 0.8", "2.13.0",
                 "abc1234", "drawn scene (simulator)", "Table 1. ", "Table 2. ", "Table 3. Ablation, on simulated EEG",
                 "Figure 3. ", "Figure 4. ", "Figure 5. ", "the first trial of each class in the order of trial keys",
                 "What lpips is &lt;in words&gt;.", "A Source 2023", "a coin of four sides",
                 "not available: no weights here; get them with: a command", "a Brain2Image of the test"):  # fmt: skip
        assert said in text, said
    assert (folder / "figures/figure3.png").exists() and (folder / "tables/table3.tex").exists()


def test_every_number_can_be_made_again(fresh):
    found = json.loads((fresh / "scores.json").read_text())
    config = {"run": "x", "classifier": "embedded", "n_way": 50, "batch_size": 8}
    (fresh / "scores.json").write_text(json.dumps(found | {"config": config}))
    text, _ = page_of(fresh, each=2)
    assert f"neuroimagen evaluate {fresh} classifier=embedded batch_size=8\n" in text  # 50 is the default
    assert f"neuroimagen report {fresh} each=2\n" in text
    assert f"python trainers/reconstruct.py config={fresh}/config.yaml\n" in text


def test_tables_hold_the_numbers_and_heads_tell_what_they_are(page):
    folder, text, tags = page
    table = text.split("<h3>Table 3. ")[1].split("</table>")[0]
    rows = json.loads((folder / "scores.json").read_text())["rows"]
    for row in ROWS:
        line = re.search(rf">{re.escape(row)}</td>.*?</tr>", table).group()
        found = rows[row]["all"]
        assert f">{100 * found['acc']['value']:.1f} <small>[{100 * found['acc']['low']:.1f}, " in line
        assert f">{found['ssim']['value']:.3f} <small>" in line
    assert 'class="def" popovertarget="def-0">ACC (%)</button></th>' in table
    for target in re.findall(r'popovertarget="(.*?)"', text):
        assert tags.ids[target] == 1
    # What guessing gets and what the pictures seen get, beside every number.
    assert ">25.0</td>" in re.search('<tr class="chance">.*?</tr>', table).group()
    assert ">87.5</td>" in re.search('<tr class="ceiling">.*?</tr>', table).group()


def test_pictures_shown_are_the_right_files(page):
    folder, text, tags = page
    trial = read_run(folder).trials[7]
    who = f"{trial['class_name']}, subject {trial['subject']}"
    for name, alt in (
        ("truth/{}.png", f"seen: {who}"),
        ("maps/{}.png", f"saliency map: {who}"),
        ("images/L+I/{}_1.png", f"L+I, sample 2: {who}"),
        ("images/NeuroVision/{}_0.png", f"NeuroVision, sample 1: {who}"),
    ):
        content = base64.b64encode((folder / name.format(trial["key"])).read_bytes()).decode()
        assert (f"data:image/png;base64,{content}", alt) in list(zip(tags.sources, tags.alts, strict=True))
    # In the gallery, with n = 24: every trial; a group may repeat one. Each has 1 + 1 + 2 + 9 + 1 pictures.
    assert set(tags.cards) == {trial["key"] for trial in read_run(folder).trials}
    cards = text.split('<div id="groups">')[1].split('<div id="found"')[0]
    assert cards.count("<img") == len(tags.cards) * 14


def test_groups_follow_their_rule(run):
    read, metrics = read_run(run), {name: Metric(name, head, better=b) for name, (head, _, b) in METRICS.items()}
    book = read_picture_scores(read)
    # By hand: ACC of all trials is 0.5 but of one that has 0.9, two 0.1 and one unknown; SSIM parts the rest.
    acc, ssim = np.full((24, 2), 0.5), np.arange(48.0).reshape(24, 2)
    acc[20], acc[3], acc[4], acc[8] = [1, 0.8], [0, 0.2], 0.1, np.nan
    book.values |= {"acc": {"L": acc}, "ssim": {"L": ssim}}
    book.__post_init__()
    groups, rule = choose(read, book, metrics, "L", 2)
    # Order: 20, then 23 22 21 19 ... 0 by falling SSIM without 3, 4, 8; then 4, 3; last the unknown 8.
    order = [20, 23, 22, 21, *range(19, 8, -1), 7, 6, 5, 2, 1, 0, 4, 3, 8]
    assert [group.name for group in groups] == ["Best", "Median", "Worst", "Random"]
    assert [group.trials for group in groups[:3]] == [order[:2], order[11:13], [8, 3]]
    assert groups[3].trials == np.random.default_rng(0).permutation(24)[:2].tolist()
    assert "ordered by ACC of row L (mean over the samples; higher is better; ties: SSIM, then the trial key)" in rule
    lower = {name: m._replace(better="lower") for name, m in metrics.items()}
    assert choose(read, book, lower, "L", 2)[0][0].trials == [3, 4]  # the lower ACC first, 0.1 both: the lower SSIM


def test_a_few_of_many_trials(fresh):
    text, tags = page_of(fresh, trials=10, each=2, ablation=1)
    assert len(set(tags.cards)) == 10 and "10 of the run's 24 trials are on this page" in text
    assert spaced(list(range(10)), 4) == [0, 2, 5, 7] and spaced([1, 2], 4) == [1, 2]


def test_recorded_eeg_and_a_run_without_maps(tmp_path):
    run = scored(tmp_path / "run", classes=4, subjects=1, samples=1, simulated=False, rows={"L": ROWS["L"]})
    shutil.rmtree(run / "maps")
    text, tags = page_of(run)
    assert "imulated EEG" not in text and "recorded EEG" in text and "Read with care" in text
    assert not any(alt.startswith("saliency map") for alt in tags.alts)
    assert "Table 2 compares subjects, and this run has one." in text and 'id="subjects"' not in text
    assert "Figure 4 compares with the baselines, and this run has none" in text
    about = (run / "rows.json").read_text()
    for dataset, blocks in (("eeg_imagenet", True), ("things_eeg2", False)):
        (run / "rows.json").write_text(about.replace('"perceivelab"', f'"{dataset}"'))
        assert ("Read with care" in page_of(run)[0]) == blocks


def test_a_control_is_marked_in_every_table_on_the_page_and_in_the_terminal(tmp_path):
    run = make_run(tmp_path / "run", classes=4, subjects=2, samples=1, simulated=False)
    about = json.loads((run / "rows.json").read_text())
    about["manifest"]["mark"] = "CONTROL: labels shuffled (seed 0); TEST PICTURES WERE TRAINED ON: at random"
    (run / "rows.json").write_text(json.dumps(about))
    scores = score(read_run(run), colours(), 2, 1)
    (run / "scores.json").write_text(json.dumps(scores))
    text, _ = page_of(run)
    assert text.index("<strong>CONTROL</strong> labels shuffled (seed 0); TEST") < text.index("class=lead")
    assert "recorded EEG (CONTROL)" in tables.summary(read_run(run), scores)
    for table in tables.build(read_run(run), scores):
        assert "EEG (CONTROL)" in table.title, table.name
    said = (
        "CONTROL: labels shuffled (seed 0); TEST PICTURES WERE TRAINED ON: at random. No result may rest on this run."
    )
    assert said in tables.format_tables(read_run(run), scores).replace("\n", " ")


def test_what_is_not_there_is_left_out(bare):
    text, tags = page_of(bare)
    assert "this run has no picture_scores.csv" in text.lower().replace("\n", " ")
    assert {"confusion", "unavailable"}.isdisjoint(tags.ids) and "<h3>Best" not in text and "<h3>Random" in text
    assert 'name="metric"' not in text and 'name="row"' in text and 'value="best"' not in text
    assert "ACC (%)" in text and {"classes", "subjects", "metrics", "made"} <= set(tags.ids)


def test_chance_within_a_class_is_not_the_best_constant_guess_of_the_study(page):
    """One answer for all trials gets all of one class and nothing of another: no line at its mean over classes."""
    _, text, _ = page
    by_class, by_subject = (text.split(f'id="{ident}"')[1].split("<section>")[0] for ident in ("classes", "subjects"))
    assert "guessing in the study" in by_subject and "guessing in the study" not in by_class
    assert "(1/4)" in by_class or "chance 25" in by_class


def test_a_run_of_one_picture(tmp_path):
    run = make_run(tmp_path / "run", classes=1, pictures=1)
    (run / "scores.json").write_text(json.dumps(score(read_run(run), colours(), 4, 1)))
    text, _ = page_of(run)
    assert "not available, as all trials show one and the same picture" in text and "guessing in the study" not in text


def test_names_are_escaped(fresh):
    bad = "</script></style><b id=bad onclick='x'>\"&'"
    for name in ("trials.jsonl", "rows.json", "scores.json"):
        text = (fresh / name).read_text()
        for old in (
            CLASSES[0].name,
            "a NeuroVision of the test",
            "What lpips is",
            "no weights here",
            "drawn scene",
            "LPIPS",
        ):
            text = text.replace(old, json.dumps(bad)[1:-1])
        (fresh / name).write_text(text)
    path = fresh / "picture_scores.csv"
    path.write_text(path.read_text().replace("a <guess>", '"' + bad.replace('"', '""') + '"'))
    (fresh / "config.yaml").write_text(f"# {bad}\n")
    text, tags = page_of(fresh)
    assert "bad" not in tags.ids and len(tags.scripts) == 2 and "<b id=bad" not in text
    assert any(bad in alt for alt in tags.alts)  # as it was, for whoever reads it
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S).group(1))
    assert len(data["trials"]) == 24


def test_pictures_are_made_to_fit(tmp_path):
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{i}.png" for i in range(4)]
    for path in paths:
        Image.fromarray(rng.integers(0, 255, (300, 300, 3), dtype=np.uint8)).save(path)

    def fitted(budget, times):
        pictures = Pictures(budget)
        for path in paths * times:
            assert pictures(path) == ""
        pictures.fit()
        return pictures

    assert (
        fitted(3_000_000, 1)(paths[0]).startswith("data:image/png") and fitted(3_000_000, 1).size == "at their own size"
    )
    for budget, times in ((3_000_000, 4), (60_000, 1), (60_000, 3)):
        small = fitted(budget, times)
        assert small(paths[0]).startswith("data:image/webp") and "WebP" in small.size
        assert times * sum(len(small(path)) for path in paths) <= budget  # a picture shown twice counts twice


def drawn_by(macro, *values):
    charts = ENVIRONMENT.get_template("report/templates/charts.j2").make_module({"fewest": 5, "full": "L"})
    return str(getattr(charts, macro)(*values))


def test_bars_and_confusion():
    metric = Metric("acc", "ACC (%)", 100, 1, "higher", chance=0.25, ceiling=1.0)
    groups = {"a": {"value": 0.5, "low": 0.4, "high": 0.6}, "<b>": {"value": 0.75, "low": None, "high": None}}
    drawn = drawn_by("bars", bars(metric, groups, best_first=True))
    assert drawn.index("&lt;b&gt;") < drawn.index("<span>a</span>")
    assert '<u style="left:0.00%;width:50.00%"></u><s style="left:40.00%;width:20.00%"></s>' in drawn
    assert drawn.count('<i class="chance" style="left:25.00%"></i><i class="ceiling" style="left:100.00%"></i>') == 2
    below = {"a": {"value": -0.1, "low": -0.2, "high": 0.0}, "b": {"value": 0.3, "low": 0.2, "high": 0.3}}
    drawn = drawn_by("bars", bars(Metric("ssim_gain", "SSIM gain"), below, best_first=False))  # from -0.2 to 0.3
    assert 'left:20.00%;width:20.00%"></u><s style="left:0.00%;width:40.00%">' in drawn
    assert 'left:40.00%;width:60.00%"></u><s style="left:80.00%;width:20.00%">' in drawn
    table = {"classes": ["cat", "dog"], "counts": [[3, 1], [0, 0]]}
    drawn = drawn_by("confusion", confusions({"L": table}, "L")[0][0])
    assert 'title="cat, drawn as dog: 1 of 4 (25 %)"' in drawn and "3 of 4 pictures (75.0&nbsp;%)" in drawn
    many = {"classes": [str(i) for i in range(100)], "counts": [[1] * 100] * 100}
    page = drawn_by("all_confusions", *confusions({row: many for row in ("L", "L+I", "B")}, "L+I"))
    assert page.count("<table") == 2 and page.index("Row L+I:") < page.index("Row L:") and "scores.json: B." in page


def redrawn(run):
    with open(min((run / "images" / "L").iterdir()), "ab") as file:
        file.write(b" ")


def relabelled(run):
    lines = (run / "trials.jsonl").read_text().splitlines(keepends=True)
    (run / "trials.jsonl").write_text("".join([lines[1], lines[0], *lines[2:]]))


def judge_trained_again(run):
    (run.parent / "judge" / "config.json").write_text('{"classes": 2}')


def of_another_run(run):
    scores = json.loads((run / "scores.json").read_text())
    scores["made_of"]["run"] = "0" * 64
    (run / "scores.json").write_text(json.dumps(scores))


@pytest.mark.parametrize(
    "change, said",
    [
        (
            redrawn,
            r"was made of another run=.* than there is now \(1 changed, such as images/L/s1_i.*_0.png\)",
        ),
        (relabelled, r"was made of another run=.*1 changed, such as trials.jsonl"),
        (judge_trained_again, r"was made of another classifier=.*/judge than there is now \(1 changed, such as config"),
        (of_another_run, "belongs to other pictures"),
        (lambda run: shutil.rmtree(run.parent / "judge"), None),
        (lambda run: [os.utime(path) for path in run.rglob("*.png")], None),
        (lambda run: (run / "maps" / "notes.txt").touch(), None),
    ],
)
def test_scores_are_of_the_pictures_that_are_there(change, said, tmp_path, monkeypatch):
    """Of a run that was moved, too."""
    made = make_run(tmp_path / "made", classes=2, pictures=1, samples=1)
    monkeypatch.setattr(scoring, "load_classifier", lambda *_: colours())
    judge = tmp_path / "judge"
    judge.mkdir()
    (judge / "config.json").write_text("{}")
    evaluate(EvaluateConfig(run=str(made), classifier=str(judge), device="cpu", metrics=["paper"]))
    run = made.rename(tmp_path / "run")
    scores = json.loads((run / "scores.json").read_text())
    check_scores(read_run(run), scores)
    change(run)
    scores = json.loads((run / "scores.json").read_text())
    if said is None:
        check_scores(read_run(run), scores)
        return
    with pytest.raises(ValueError, match=f"^{run}/scores.json .*{said}.* it anew with: neuroimagen evaluate {run}$"):
        report(ReportConfig(run=str(run)))
    evaluate(EvaluateConfig(run=str(run), classifier=str(judge), device="cpu", metrics=["paper"]))
    check_scores(read_run(run), json.loads((run / "scores.json").read_text()))


def test_pictures_that_change_while_they_are_scored(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", classes=2, pictures=1, samples=1)
    monkeypatch.setattr(scoring, "load_classifier", lambda *_: redrawn(run) or colours())
    with pytest.raises(ValueError, match="run was being scored with another run=.* give the same command again"):
        evaluate(EvaluateConfig(run=str(run), device="cpu", metrics=["paper"]))
    assert not (run / "scores.json").exists()


def test_scores_of_before_are_taken_with_a_note(fresh, capsys):
    check_scores(read_run(fresh), json.loads((fresh / "scores.json").read_text()))
    assert "scores.json was made before it was kept of which inputs" in capsys.readouterr().out


def test_mistakes(fresh):
    def refused(match):
        with pytest.raises(ValueError, match=match):
            report(ReportConfig(run=str(fresh)))

    with pytest.raises(ValueError, match="each=0 must be at least 1"):
        report(ReportConfig(run=str(fresh), each=0))
    path = fresh / "picture_scores.csv"
    lines = path.read_text().splitlines(keepends=True)
    for damaged, said in (
        (lines[:-1], "picture_scores.csv belongs to other pictures; make it anew with: neuroimagen evaluate"),
        (
            [lines[0], lines[1].replace("I,s1", "I,s9"), *lines[2:]],
            "picture_scores.csv, line 2 is damaged or of another",
        ),
        (
            [lines[0], lines[1].rstrip() + "x\n", *lines[2:]],
            "line 2 is damaged or of another run .ValueError: could not",
        ),
        ([lines[0].replace("guess", "gues"), *lines[1:]], "picture_scores.csv, line 2 is damaged or of another"),
    ):
        path.write_text("".join(damaged))
        refused(said)
    path.unlink()
    stale = json.loads((fresh / "scores.json").read_text())
    (fresh / "scores.json").write_text(json.dumps({**stale, "trials": 3}))
    refused("belongs to other pictures; make it anew with: neuroimagen evaluate")
    (fresh / "scores.json").write_text(json.dumps({**stale, "version": 1}))
    refused("of another version; make it anew with: neuroimagen evaluate")
    (fresh / "scores.json").unlink()
    refused("no scores.json; make it with: neuroimagen evaluate")
    (fresh / "DONE").unlink()
    refused("is not finished")
    assert not (fresh / "report.html").exists()


def test_the_audit_of_the_study_is_linked_where_there_is_one(tmp_path):
    run = scored(tmp_path / "runs" / "reconstruct")
    report(ReportConfig(run=str(run)))
    assert "audit.html" not in (run / "report.html").read_text(encoding="utf-8")
    (tmp_path / "runs" / "audit").mkdir()
    asked = [
        {"title": "Is it <vision>?", "answer": "not supported", "number": "16.7 % (chance 16.7 %)", "why": []},
        {"title": "New people?", "answer": "cannot be told", "number": "", "why": ["one person"]},
    ]
    audit = {"questions": asked, "drift": "drift names the class"}
    (tmp_path / "runs" / "audit" / "audit.json").write_text(json.dumps(audit), encoding="utf-8")
    report(ReportConfig(run=str(run)))
    page = (run / "report.html").read_text(encoding="utf-8")
    assert 'href="../audit/audit.html"' in page and "Drift names the class" in page
    for said in ("Is it &lt;vision&gt;?", "not supported", "16.7 % (chance 16.7 %)", "cannot be told", "one person"):
        assert said in page
