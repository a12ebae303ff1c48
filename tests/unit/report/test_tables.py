"""Tables of a made-up run with made-up scores, cell by cell; and their four forms, read back."""

import dataclasses
import re
from html.parser import HTMLParser

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markupsafe import escape
from reconstruct_run import ABOUT, EXTRA, ROWS, make_run

from neuroimagen.report import published, tables
from neuroimagen.report.formats import Cell, Column, Metric, Row, Table
from neuroimagen.scores.run_files import read_run

ACC = {"I": 0.1, "L": 0.6, "B": 0.5, "B+I": 0.55, "L+I": 0.7, "Brain2Image": 0.2, "Brain2Image-VAE": 0.15}
ACC |= {"NeuroVision": 0.25, "retrieval": 0.4, "random class": 0.05, "none": 0.04}


GUESSING = {"acc": {"value": 1 / 3, "low": 0.3, "high": 0.35}, "acc_balanced": {"value": 0.25, "low": 0.2, "high": 0.3}}


def found(acc):
    """Metrics of one row and group; everything follows from the accuracy."""
    e = {"low": acc - 0.04, "high": acc + 0.05, "n": 6}
    acc = {"value": acc, **e}
    ssim = {"value": 0.25, "low": 0.2, "high": 0.3, "n": 6}
    gain = {"value": -0.0125, "low": -0.02, "high": 0.01, "n": 6}
    plain = {"low": None, "high": None, "n": 6}
    shuffled, inception = {"value": 0.3, **plain}, {"value": 2.345, **plain}
    return {
        "acc": acc,
        "acc_balanced": {"value": acc["value"] - 0.04, **e},
        "shuffled": shuffled,
        "is": inception,
        "ssim": ssim,
        "ssim_grey": ssim,
        "ssim_other": ssim,
        "ssim_gain": gain,
    }


def by_hand(run, **changes):
    """What `neuroimagen evaluate` might have found: subject 1 is 0.1 worse than all, subject 2 as much better."""
    groups = {"all": 0, **{f"subject {s}": 0.2 * (s - 1.5) for s in sorted({t["subject"] for t in run.trials})}}
    return {
        "version": 4,
        "headline": "acc",
        "metrics": {
            "acc": {"chance": 0.25, "chance_of": "a guess", "ceiling": None, "definition": "4-way top-1 accuracy."},
            "is": {"chance": None, "chance_of": "one picture", "ceiling": 3.5, "definition": "Inception Score."},
        },
        "ssim_settings": "SSIM: sigma 1.5",
        "inception_splits": 1,
        "simulated": run.about["simulated"],
        "dataset": run.about["manifest"]["dataset"],
        "trials": len(run.trials),
        "pictures": 6,
        "subjects": len(groups) - 1,
        "samples": run.samples,
        "classifier": "the colour test",
        "classes": 4,
        "n_way": 4,
        "n_way_asked": 50,
        "top_k": 1,
        "chance": 0.25,
        "interval": "95 % percentile bootstrap over ground-truth pictures, 2000 resamples; n counts them",
        "captions_source": "drawn scene (simulator)",
        "truth": {"is": 3.5, "guessing": GUESSING},
        "rows": {row: {group: found(ACC.get(row, 0.5) + more) for group, more in groups.items()} for row in run.rows},
    } | changes


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "run"
    return read_run(make_run(path, rows=ROWS | EXTRA, about_rows=ABOUT))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Recorded, the paper's rows and "none", no baseline, no control."""
    path = tmp_path_factory.mktemp("run") / "run"
    return read_run(make_run(path, classes=2, simulated=False, rows={"none": (None, False), **ROWS}))


def named(found):
    return {table.name: table for table in found}


def texts(row):
    return [str(cell) for cell in row.cells]


def test_no_minus_before_zeros():
    estimate = {"value": -1e-14, "low": -0.00004, "high": 0.2, "n": 9}
    metric = Metric("ssim", "SSIM")
    assert tables.shown(estimate, metric) == Cell("0.000", "[0.000, 0.200]")
    assert tables.shown(estimate | {"low": -0.0006}, metric).range == "[-0.001, 0.200]"
    assert Metric("kid", "KID", digits=4)(-0.00004) == "0.0000" and Metric("kid", "KID", digits=4)(-0.0033) == "-0.0033"


def test_ranges_say_what_they_are_about(run):
    for table in tables.build(run, by_hand(run))[:3]:
        (said,) = [note for note in table.notes if note.startswith("Ranges")]
        assert "2000 resamples. People are not resampled" in said and "not about other people" in said


def test_table_1(run):
    table = named(tables.build(run, by_hand(run)))["table1"]
    size = "12 trials, 6 pictures, 2 subjects, 2 samples each"
    assert table.title == f"Table 1. NeuroImagen, baselines and controls, on simulated EEG ({size})"
    heads = ["Model", "ACC (%)", "paper", "shuffled (%)", "IS", "paper", "SSIM", "paper", "SSIM other", "SSIM gain"]
    assert table.head == heads
    rest = ["0.250", "-0.013 [-0.020, 0.010]"]
    ssim = "0.250 [0.200, 0.300]"
    assert [texts(row) for row in table.rows] == [
        ["Brain2Image", "20.0 [16.0, 25.0]", "", "30.0", "2.35", "5.01", ssim, "", *rest],
        ["Brain2Image-VAE", "15.0 [11.0, 20.0]", "", "30.0", "2.35", "", ssim, "", *rest],
        ["NeuroVision", "25.0 [21.0, 30.0]", "", "30.0", "2.35", "5.23", ssim, "", *rest],
        ["NeuroImagen (L+I)", "70.0 [66.0, 75.0]", "85.6", "30.0", "2.35", "33.50", ssim, "0.249", *rest],
        ["control: retrieval", "40.0 [36.0, 45.0]", "", "30.0", "2.35", "", ssim, "", *rest],
        ["control: random class", "5.0 [1.0, 10.0]", "", "30.0", "2.35", "", ssim, "", *rest],
        ["chance", "25.0", *[""] * 8],
        ["guessing in the study", "33.3 [30.0, 35.0]", *[""] * 8],
        ["the pictures seen", "", "", "", "3.50", *[""] * 5],
    ]
    assert [row.kind for row in table.rows][3:] == ["full", "control", "control", "chance", "chance", "ceiling"]
    assert [i for i, row in enumerate(table.rows) if row.rule] == [4, 6]
    assert "Brain2Image: a Brain2Image of the test." in table.notes
    drawn = dataclasses.replace(run, rows=run.rows[::-1])  # the order of drawing is not that of the table
    assert [texts(row)[0] for row in tables.build(drawn, by_hand(drawn))[0].rows] == [
        texts(row)[0] for row in table.rows
    ]


def test_uneven_classes_bring_balanced_accuracy_first(run):
    table = named(tables.build(run, by_hand(run, headline="acc_balanced")))["table1"]
    assert table.head[:4] == ["Model", "balanced ACC (%)", "ACC (%)", "paper"]
    lines = {texts(row)[0]: texts(row)[1:3] for row in table.rows}
    assert lines["NeuroImagen (L+I)"] == ["66.0 [66.0, 75.0]", "70.0 [66.0, 75.0]"]
    assert lines["guessing in the study"] == ["25.0 [20.0, 30.0]", "33.3 [30.0, 35.0]"]
    assert any("more than 2 times the trials of the rarest" in note for note in table.notes)
    assert any(note.startswith("Guessing in the study: 33.3 %, balanced 25.0 %, the most") for note in table.notes)


def test_protocol_is_said_under_every_table(run):
    *others, protocol = tables.build(run, by_hand(run))
    for table in others:
        (said,) = [note for note in table.notes if note.startswith("Protocol")]
        for part in (
            "EEG: SIMULATED, in the format of the perceivelab data set, 2 subjects (paper: PerceiveLab's recordings",
            "Split: test of 80/10/10 by image, all subjects of an image on one side (paper: 80/10/10",
            "Band: files not noted; no filter of ours (paper: not stated).",
            "Classifier: the colour test (paper: an ImageNet-1k ViT",
            "ACC: 4-way top-1, exact over all draws (paper: 50-way top-1",
            "IS: by the classifier, 1 split (paper: by Inception-v3",
            "Samples: 2 a trial, all scored (paper: ",
            "sigma 1.5",
        ):
            assert part in said
    assert [texts(row)[0] for row in protocol.rows] == [
        "EEG",
        "Split",
        "Band",
        "Selected on",
        "Classifier",
        "ACC",
        "IS",
        "Samples",
        "SSIM",
    ]
    about = {**run.about, "eeg_files": ["eeg_5_95_std.pth"]}
    about["manifest"] = {**about["manifest"], "protocol": "by image; signal: band 1-40 Hz, z-scored"}
    other = dataclasses.replace(run, about=about)
    lines = [texts(row) for row in tables.build(other, by_hand(other, simulated=False))[-1].rows]
    assert lines[0][1] == "perceivelab data set, 2 subjects" and lines[1][1] == "test of by image"
    assert lines[2] == ["Band", "eeg_5_95_std.pth; band 1-40 Hz, z-scored", "not stated"]


def test_baselines_that_were_not_trained_keep_their_line(small):
    table = named(tables.build(small, by_hand(small)))["table1"]
    assert [texts(row)[:6] for row in table.rows[:3]] == [
        ["Brain2Image", "–", "", "–", "–", "5.01"],
        ["Brain2Image-VAE", "–", "", "–", "–", ""],
        ["NeuroVision", "–", "", "–", "–", "5.23"],
    ]
    assert {row.kind for row in table.rows[:3]} == {"absent"}
    (said,) = [note for note in table.notes if note.startswith("Not in this run")]
    assert (
        "Brain2Image, Brain2Image-VAE, NeuroVision; trained on the same shards by trainers/brain2image.py and" in said
    )


def test_table_2_with_the_papers_persons(small):
    table = named(tables.build(small, by_hand(small)))["table2"]
    assert table.head[:3] == ["Subject", "ACC (%)", "paper"]
    assert [texts(row)[:3] for row in table.rows[:4]] == [
        ["subject 1", "60.0 [56.0, 65.0]", "83.84"],
        ["subject 2", "80.0 [76.0, 85.0]", "84.26"],
        ["mean over subjects", "70.0", "85.69"],  # 514.11 / 6
        ["spread (SD)", "14.1", "1.48"],  # sqrt(200) / 10; of the six: sqrt(10.89555 / 5)
    ]
    assert table.rows[2].rule and "recorded EEG" in table.title


def test_table_2_of_anybody_else_has_no_column_of_the_papers(run, small):
    table = named(tables.build(run, by_hand(run)))["table2"]
    assert "paper" not in table.head
    assert any("these subjects are simulated" in note and "ACC (%) 85.69 (SD 1.48)" in note for note in table.notes)
    table = named(tables.build(small, by_hand(small, dataset="things_eeg2")))["table2"]
    assert "paper" not in table.head and any("these are other subjects" in note for note in table.notes)


def test_one_subject_has_no_table_2(tmp_path):
    run = read_run(make_run(tmp_path / "run", subjects=1, pictures=1))
    scores = by_hand(run)
    assert "table2" not in named(tables.build(run, scores))
    assert "Table 2 compares subjects, and this run has one." in tables.format_tables(run, scores)


def test_table_3(small):
    table = named(tables.build(small, by_hand(small)))["table3"]
    assert [texts(row)[:8] for row in table.rows] == [
        ["1", "I", "–", "–", "✓", "10.0 [6.0, 15.0]", "4.5", "30.0"],
        ["2", "L", "–", "✓", "–", "60.0 [56.0, 65.0]", "85.9", "30.0"],
        ["3", "B", "✓", "–", "–", "50.0 [46.0, 55.0]", "74.1", "30.0"],
        ["4", "B+I", "✓", "–", "✓", "55.0 [51.0, 60.0]", "65.3", "30.0"],
        ["5", "L+I", "–", "✓", "✓", "70.0 [66.0, 75.0]", "85.6", "30.0"],
        ["", "none", "–", "–", "–", "4.0 [0.0, 9.0]", "", "30.0"],
        ["", "chance", "", "", "", "25.0", "", ""],
        ["", "guessing in the study", "", "", "", "33.3 [30.0, 35.0]", "", ""],
        ["", "the pictures seen", "", "", "", "", "", ""],
    ]
    assert [i for i, row in enumerate(table.rows) if row.rule] == [5, 6] and table.rows[4].kind == "full"


def version_3(run):
    lpips = {
        "head": "LPIPS",
        "scale": 1,
        "digits": 2,
        "better": "lower",
        "chance": 0.9,
        "ceiling": 0.0,
        "chance_of": "another",
    }
    about = {"acc": {"chance": 0.25, "ceiling": 1.0, "chance_best_of_n": 0.4375}}
    about |= {"lpips": lpips | {"definition": "A distance."}}
    scores = by_hand(run, metrics=about)
    for groups in scores["rows"].values():
        groups["all"]["lpips"] = {"value": 0.456, "low": 0.4, "high": 0.5, "n": 6}
    scores["best_of_n"] = {row: {"all": {"acc": found(0.9)["acc"]}} for row in run.rows}
    return scores | {"unavailable": {"clip": "not available: no weights; give weights=DIR"}}


def test_all_metrics(run):
    scores = version_3(run)
    table = named(tables.build(run, scores))["metrics"]
    rows = ["I", "L", "B", "B+I", "L+I", *EXTRA]
    assert table.head == ["Metric", "better", *rows, "chance", "pictures seen"]
    lines = {texts(row)[0]: texts(row) for row in table.rows}
    assert lines["LPIPS"] == ["LPIPS", "lower", *["0.46 [0.40, 0.50]"] * 10, "0.90", "0.00"]
    assert lines["ACC (%)"][6] == "70.0 [66.0, 75.0]" and lines["ACC (%)"][-2:] == ["25.0", "100.0"]
    assert lines["SSIM grey"][1:3] == ["higher", "0.250 [0.200, 0.300]"] and lines["SSIM grey"][-2:] == ["", ""]
    assert lines["best of 2: ACC (%)"][-2:] == ["43.8", ""]  # 1 - (1 - 0.25) ** 2
    assert lines["best of 2: ACC (%)"][6] == "90.0 [86.0, 95.0]" and "CLIP (%)" not in lines
    (rule,) = [i for i, row in enumerate(table.rows) if row.rule]
    assert texts(table.rows[rule])[0] == "best of 2: ACC (%)"
    for note in ("LPIPS: A distance.", "CLIP (%): not available: no weights; give weights=DIR"):
        assert note in table.notes
    assert "CLIP (%): not available: no weights; give weights=DIR" in tables.format_tables(run, scores)


def test_the_papers_inception_score_stands_beside_that_of_its_network(run):
    scores = by_hand(run)
    for groups in scores["rows"].values():
        for metrics in groups.values():
            metrics["is_inception"] = {"value": 7.125, "low": 6, "high": 8, "n": 6}
    found = named(tables.build(run, scores))
    at = found["table1"].head.index("IS (Inception)")
    assert found["table1"].head[at - 1 : at + 2] == ["IS", "IS (Inception)", "paper"]
    assert texts(found["table1"].rows[3])[at - 1 : at + 2] == ["2.35", "7.12 [6.00, 8.00]", "33.50"]
    assert texts(found["published"].rows[0])[2] == "7.12 [6.00, 8.00]"


def test_some_metrics_alone(run):
    scores = by_hand(run, truth={}, metrics={})
    for groups in scores["rows"].values():
        for group in groups:
            groups[group] = {"ssim": groups[group]["ssim"]}
    found = named(tables.build(run, scores))
    assert found["table2"].head == ["Subject", "SSIM"] and found["table3"].head[5:] == ["SSIM", "paper"]
    assert [texts(row)[0] for row in found["table1"].rows][-1] == "control: random class"
    assert "nan" not in tables.format_tables(run, scores)


def test_published(run):
    table = named(tables.build(run, by_hand(run)))["published"]
    assert table.head[:5] == ["Work", "ACC (%)", "IS", "FID", "SSIM"]
    lines = {texts(row)[0]: texts(row) for row in table.rows}
    assert lines["NeuroImagen (L+I)"][1:4] == ["70.0 [66.0, 75.0]", "2.35", "–"]
    assert lines["GWIT"][1:5] == ["91", "33.87", "78.11", ""] and lines["NeuroImagen"][1:3] == ["85.6", "33.50"]
    assert table.head[5:] == ["Band", "Selected on", "Subjects", "Split", "N", "Source"]
    assert lines["NeuroImagen (L+I)"][6] == "last: no trainer chooses a checkpoint"
    assert lines["NeuroImagen"][5:7] == ["not stated", "not stated"]
    assert lines["DreamDiffusion"][1] == "45.8" and lines["DreamDiffusion"][5:8] == [
        "5-95 Hz",
        "test",
        "subject 4 only",
    ]
    assert lines["GWIT"][5] == lines["EEGStyleGAN-ADA"][5] == "raw, unfiltered"
    for form in (table.html(), table.markdown(), table.latex(), table.text()):
        assert all(said in form for said in ("Selected on", "raw, unfiltered", "5-95 Hz", "96.7"))
    mine = named(tables.build(run, by_hand(run, dataset="eeg_imagenet")))["published"]
    assert [texts(row)[1] for row in mine.rows[1:]] == ["40.5", "40.4", "53.4", "81.6"]
    assert "ATM" not in lines and "published" not in named(tables.build(run, by_hand(run, dataset="mine")))
    things = named(tables.build(run, by_hand(run, dataset="things_eeg2")))["published"]
    assert {"ATM", "NICE"} <= {texts(row)[0] for row in things.rows} and "GWIT" not in things.text()
    assert texts(things.rows[0])[1] == "–"  # SSIM of the suite's settings is not ours
    at = things.head.index("Selected on")
    selected = {texts(row)[0]: texts(row)[at] for row in things.rows}
    assert [selected[name] for name in ("NICE", "UBP", "NeuroBridge", "SAMGA", "SAMGA, done again")] == [
        "val", "last", "test", "not stated", "test",
    ]  # fmt: skip


def test_published_numbers_are_numbers_with_a_source():
    assert published.TABLE_1["L+I"].values == published.TABLE_3["L+I"].values
    assert list(published.TABLE_2) == [1, 2, 3, 4, 5, 6]
    entries = [*published.TABLE_1.values(), *published.TABLE_2.values(), *published.TABLE_3.values(), *published.OTHERS]
    for entry in entries:
        assert entry.source and all(entry.protocol.values()) and set(entry.values) <= set(published.HEADS)
        assert entry.protocol["selected"] in ("test", "val", "last", published.NOT_STATED)
        assert all(float(value) > 0 for value in entry.values.values())


class Cells(HTMLParser):
    """Texts of a table's rows; refuses tags that do not nest."""

    def __init__(self, text):
        super().__init__()
        self.open, self.rows = [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


def unescaped(tex):
    return re.sub(r"\\(text)?[a-z]+\{\}|\\.", "", tex)


def tex_rows(tex):
    body = tex.split(r"\toprule")[1].split(r"\bottomrule")[0]
    body = re.sub(r"\\shortstack\[r\]\{(.*?)\\\\\{\\scriptsize (.*?)\}\}", r"\1 \2", body)
    lines = [line.removesuffix(r" \\") for line in body.strip().splitlines() if line != r"\midrule"]
    return [re.split(r"(?<!\\)&", line) for line in lines]


def test_every_form_of_every_table_has_every_cell(run, small):
    for each, scores in ((run, version_3(run)), (small, by_hand(small))):
        for table in tables.build(each, scores):
            wanted = [table.head, *map(texts, table.rows)]
            assert Cells(table.html()).rows == wanted
            piped = [line[2:-2].split(" | ") for line in table.markdown().splitlines() if line.startswith("|")]
            assert {len(line) for line in piped} == {len(table.head)}
            plain = [[re.sub(r"\*\*|\\", "", cell).strip() for cell in line] for line in piped]
            assert [line for line in plain[2:] if any(line)] == wanted[1:]
            lines = tex_rows(table.latex())
            assert {len(line) for line in lines} == {len(table.head)} and len(lines) == len(wanted)
            assert table.latex().count("{") == table.latex().count("}")
            assert re.search(r"begin\{tabular\}\{(.*)\}", table.latex()).group(1).count("r") == sum(
                column.numeric for column in table.columns
            )
            drawn = table.text(notes=False).splitlines()
            assert len([line for line in drawn if set(line) != {"-"}]) == len(wanted) + 1
            for form in (table.html(), table.markdown(), table.latex(), table.text()):
                assert ("simulated EEG" in form) == each.about["simulated"]
            assert table.text().isascii()


@example("<b>&amp; [1]_|~\\\\")
@given(st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), max_size=20))
def test_no_text_breaks_out_of_its_cell(text):
    table = Table("t", text, [Column(text), Column("x", "x")], [Row([Cell(text), Cell(text, "[1, 2]")])], [text])
    rows = Cells(table.html()).rows
    assert rows[1][0] == text and rows[1][1] == f"{text} [1, 2]" and escape(text) in table.html()
    for line in table.markdown().splitlines():
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line.replace(r"\\", ""))) == 3
    lines = tex_rows(table.latex())
    assert [len(line) for line in lines] == [2, 2]
    for cell in (lines[0][0], lines[1][0]):
        assert not set(unescaped(cell)) & set("&%#_~^\\")
        assert "[" not in cell.replace("{[}", "")  # after \\\\ or \\midrule it would begin an option


def test_files(run, tmp_path):
    tables.write(run, by_hand(run), tmp_path / "tables")
    assert {path.name for path in (tmp_path / "tables").iterdir()} == {
        f"{name}.{suffix}" for name in tables.NAMES for suffix in ("html", "md", "tex")
    }
    table = named(tables.build(run, by_hand(run)))["table2"]
    page = (tmp_path / "tables/table2.html").read_text()
    assert page.startswith("<!doctype html>") and page.endswith(table.html())
    assert (tmp_path / "tables/table2.md").read_text() == table.markdown()
    assert (tmp_path / "tables/table2.tex").read_text() == table.latex()
    one = by_hand(run, dataset="mine")
    for groups in one["rows"].values():
        del groups["subject 2"]
    tables.write(run, one, tmp_path / "tables")
    left = {path.stem for path in (tmp_path / "tables").iterdir()}
    assert left == {"table1", "table3", "metrics", "protocol"}


@pytest.mark.parametrize(
    "low, high, wins",
    [(0.1, 0.2, "the GAN wins"), (-0.2, -0.1, "ridge regression wins"), (-0.1, 0.2, "which is better cannot be told")],
)
def test_controls_and_linear_rows(tmp_path, low, high, wins):
    """In their order under their kind; which map wins is said from the interval of the difference."""
    rows = ("oracle", "random class", "ridge L", "mean map", "class", "ridge I", "I", "L")
    run = read_run(make_run(tmp_path / "run", rows={row: (None, False) for row in rows}))
    scores = by_hand(run)
    for groups in scores["rows"].values():
        groups["all"]["gap"] = {"value": 0.25, "low": 0.2, "high": 0.3}
    for row, value in (("I", 0.394), ("ridge I", 0.58)):
        scores["rows"][row]["all"]["pixcorr"] = {"value": value, "low": None, "high": None}
    gain = {"value": (low + high) / 2, "low": low, "high": high, "n": 6}
    scores["beside"] = {"ridge I": {"pixcorr": gain, "ssim": gain}, "class": {"acc": gain}}
    table = named(tables.build(run, scores))["table1"]
    lines = {texts(row)[0]: texts(row) for row in table.rows}
    others = [name for name in lines if name.startswith(("linear", "control"))]
    assert others == [
        *("linear: ridge I", "linear: ridge L"),
        *("control: class", "control: mean map", "control: oracle", "control: random class"),
    ]
    assert lines["control: class"][table.head.index("of the gap (%)")] == "25.0 [20.0, 30.0]"
    (said,) = [note for note in table.notes if note.startswith("Pixel correlation")]
    assert "0.39 from the GAN's saliency map (row I), 0.58 from that of ridge regression (row ridge I): " in said
    assert said.endswith(f"{wins}.")
    assert (
        f"L less class, picture by picture: ACC {100 * gain['value']:.1f} [{100 * low:.1f}, {100 * high:.1f}]."
        in table.notes
    )
    assert any(note.startswith("I less ridge I, picture by picture: SSIM ") for note in table.notes)
    names = named(tables.build(run, scores))["metrics"].head
    assert names[2:10] == ["I", "L", "ridge I", "ridge L", "class", "mean map", "oracle", "random class"]
