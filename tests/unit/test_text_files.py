"""Text is text: however a table or a config was saved, it is read as meant, or refused by file and line."""

import ast
import csv
import gzip
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from neuroimagen.config import load_config, stage_section
from neuroimagen.studies.captions import read_captions, write_captions
from neuroimagen.studies.epochs_files import BidsFiles
from neuroimagen.studies.epochs_table import TrialTable
from neuroimagen.studies.recordings import Recordings
from neuroimagen.studies.recordings_tables import StudyFile
from neuroimagen.studies.recordings_tables import read_table as read_recording
from neuroimagen.text_files import decode, encode, read_table, show_any_name

REPO = Path(__file__).parents[2]
NAME = "Häuser 犬 é"
TOLD = ["utf-8", "utf-8-sig", "utf-16", "utf-32", "le mark", "be mark", "utf-16-le", "utf-16-be"]
ENDS = ["\n", "\r\n", "\r"]
words = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufeff"), max_size=8)


def save(text: str, encoding: str = "utf-8", end: str = "\n") -> bytes:
    text = text.replace("\n", end)
    if encoding.endswith(" mark"):
        return ("\ufeff" + text).encode(f"utf-16-{encoding[:2]}")
    return text.encode(encoding)


@given(
    rows=st.lists(st.lists(words, min_size=3, max_size=3), max_size=6),
    extra=words,
    how=st.tuples(st.sampled_from(TOLD), st.sampled_from(ENDS), st.sampled_from(",;\t"), st.sampled_from([0, 1])),
    layout=st.fixed_dictionaries({name: st.booleans() for name in ("said", "space", "blank", "last", "trail")}),
)
def test_a_table_comes_back_however_it_was_saved(rows, extra, how, layout):
    encoding, end, delimiter, quoting = how
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=delimiter, quoting=quoting, lineterminator="\n")
    file.write(f"sep={delimiter}\n" if layout["said"] else "")
    space = "  " if layout["space"] and not quoting else ""
    writer.writerow([f"event{space}", f"{space}image", extra])
    for row in rows:
        file.write("\n" if layout["blank"] else "")
        writer.writerow([*row, *[""] * (2 if layout["trail"] else 0)])
    text = file.getvalue().removesuffix("" if layout["last"] else "\n")
    data = save(text, encoding, end)
    try:
        found = decode(data, "t.csv")
    except ValueError as error:  # mostly of letters beyond Latin-1, and nothing says that it is UTF-16
        assert encoding in ("utf-16-le", "utf-16-be") and str(error).startswith("t.csv, line ")
        return
    table = read_table(found, "t.csv", ("event", "image"))
    assert table.delimiter == delimiter and table.header == ["event", "image", extra.strip()]
    read = list(table.rows)
    assert [[cell.strip() for cell in cells] for _, cells in read] == [
        stripped for row in rows if any(stripped := [cell.strip() for cell in row])
    ]
    lines = text.split("\n")
    assert all(cells[0].strip() in lines[line - 1].replace('""', '"') for line, cells in read)


@given(st.binary(max_size=40))
def test_bytes_are_their_text_or_are_refused_by_line(data):
    try:
        text = decode(data, "folder/x")
    except ValueError as error:
        assert str(error).startswith("folder/x, line ") and str(error).endswith(": save the file as UTF-8")
        return
    assert "\0" not in text and "\r" not in text
    same = [text.encode(name) for name in ("utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be")]
    plain = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    assert b"\r" in data or any(plain.endswith(option) for option in same)


@given(
    st.lists(st.text("aZ9 ,;äöüßéñ€Šž–ИванŁбяあ犬", min_size=1), min_size=1),
    st.sampled_from(["cp1252", "latin-1", "cp1250", "mac_roman", "koi8_r", "cp1251", "shift_jis", "euc_jp", "gbk"]),
    st.sampled_from(ENDS),
)
def test_what_cannot_be_told_is_never_another_word(lines, encoding, end):
    data = "\n".join(lines).replace("\n", end).encode(encoding, "ignore")
    try:
        expected = data.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        line = len(data[: error.start].decode("utf-8").replace("\r\n", "\n").replace("\r", "\n").split("\n"))
        with pytest.raises(ValueError, match=f"^x, line {line}: byte 0x{data[error.start]:02x}.* is not UTF-8 text"):
            decode(data, "x")
    else:
        assert decode(data, "x") == expected


def test_the_sentence():
    for data, sentence in [
        (
            b"value,name\r\n1,H\xe4user\r\n",
            "m.csv, line 2: byte 0xe4 after '1,H' is not UTF-8 text: save the file as UTF-8",
        ),
        (b"a\0b", "m.csv, line 1: a zero byte after 'a' is not UTF-8 text: save the file as UTF-8"),
        (
            "a\nb".encode("utf-16") + b"\n",
            "m.csv, line 2: byte 0x0a after 'b' is not UTF-16 text: save the file as UTF-8",
        ),
    ]:
        with pytest.raises(ValueError) as error:
            decode(data, "m.csv")
        assert str(error.value) == sentence


# Of each reader: the file that it is given, and what it makes of it where `NAME` and a number 0.5 are in it.
TABLES = {
    "trials.csv": f"event,image,class\n1,p.png,{NAME}\n2,,\n",
    "markers.csv": f"value,name,pictures\n1,{NAME},p*.png\n2,b,p*.png\n",
    "run.csv": f"t,A,{NAME},m\n" + "".join(f"{i / 8},0.5,{i % 7}.25,{'x' * (i == 5)}\n" for i in range(32)),
    "run.csv.gz": f"t,A,{NAME},m\n" + "".join(f"{i / 8},0.5,{i % 7}.25,{'x' * (i == 5)}\n" for i in range(32)),
    "sub-01_events.tsv": f"onset\tduration\ttrial_type\n0.5\t1\t{NAME}\n",
}
TEXTS = {
    "config.yaml": f"# {NAME}\nshards:\n  eeg: {NAME}\n",
    "study.yaml": f"files: x\nfile_name: x\ntime: t\nchannels: [{NAME}]\nmarker: m\nrate: 8\n",
    "captions.jsonl": json.dumps({"image": "a", "caption": NAME}, ensure_ascii=False) + "\n",
}


def read(path: Path):
    """What the program makes of the file, by the reader of files of this name."""
    for name in ("p.png", "p2.png"):
        if not (path.parent / name).exists():
            Image.new("L", (8, 8)).save(path.parent / name)
    if path.name == "trials.csv":
        return {key: (row.line, row.class_name, row.picture) for key, row in TrialTable(path, path.parent).rows.items()}
    if path.name == "markers.csv":
        study = SimpleNamespace(path=path.parent / "study.yaml", study=StudyFile("", "", "", markers_file=path.name))
        study.inputs, study._below = [], lambda pattern: str(path.parent / pattern)
        return Recordings._markers(study)
    if path.name.startswith("run.csv"):
        table = read_recording(path, StudyFile("", "", "t", ["A", NAME], "m", rate=8))
        return table.eeg.tolist(), table.onsets.tolist(), table.values, table.digest
    if path.name.endswith("events.tsv"):
        return BidsFiles.shown(path)
    if path.name == "config.yaml":
        return stage_section(path, "shards")
    if path.name == "study.yaml":
        return load_config(StudyFile, [f"config={path}"], "shards")
    assert path.name == "captions.jsonl"
    return read_captions(path)


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("name", [*TABLES, *TEXTS])
def test_every_reader_reads_text_however_it_was_saved(name, tmp_path):
    text = (TABLES | TEXTS)[name]
    expected = read(write(tmp_path / name, save(text)))
    assert NAME in str(expected) or name.startswith("run")
    for encoding in TOLD:
        for end in ENDS:
            for whole in (text, text.removesuffix("\n")):
                assert read(write(tmp_path / name, save(whole, encoding, end))) == expected, (encoding, end)


@pytest.mark.parametrize("name", [*TABLES, *TEXTS])
def test_every_reader_names_file_and_line(name, tmp_path):
    text = (TABLES | TEXTS)[name]
    line = text[: text.index(NAME)].count("\n") + 1
    for bad in ("Häuser".encode("cp1252"), b"a\0b", "犬é".encode("euc_jp"), b"\xed\xb3\xa4"):
        path = write(tmp_path / name, text.encode().replace(NAME.encode(), bad, 1))
        with pytest.raises(ValueError) as error:
            read(path)
        assert str(error.value).startswith(f"{path}, line {line}: ") and "save the file as UTF-8" in str(error.value)
    write(tmp_path / name, save(text, "utf-16")[:-1])
    with pytest.raises(ValueError, match=f"{name}, line [0-9]+: byte .* is not UTF-16 text"):
        read(path)


@pytest.mark.parametrize("name", [name for name in TABLES if not name.endswith("events.tsv")])
def test_every_table_may_have_semicolons_or_tabs_and_decimal_commas(name, tmp_path):
    expected = read(write(tmp_path / name, save(TABLES[name])))
    for delimiter in ";\t":
        text = TABLES[name].replace(",", delimiter)
        for data in (text, f"sep={delimiter}\n" + text, text.replace(".", ",") if name.startswith("run") else text):
            found = read(write(tmp_path / name, save(data, "utf-16", "\r\n")))
            moved = data.startswith("sep") and name == "trials.csv"
            assert found == ({k: (v[0] + 1, *v[1:]) for k, v in expected.items()} if moved else expected), data[:60]


@pytest.mark.parametrize("name", TABLES)
def test_every_table_names_file_and_line_of_a_row_that_does_not_fit(name, tmp_path):
    header, *rows = TABLES[name].splitlines()
    mark = "\t" if "\t" in header else ","
    n = header.count(mark) + 1
    for row, said in [
        (rows[0].rpartition(mark)[0], f" has {n - 1} cells and the header {n}: mend that row"),
        (rows[0] + mark + "9", f" has {n + 1} cells and the header {n}: mend that row"),
        (mark.join(['"a', *rows[0].split(mark)[1:]]), ", cannot be read as a table"),
    ]:
        path = write(tmp_path / name, "\n".join([header, "", row, *rows[1:]]).encode())
        with pytest.raises(ValueError) as error:
            read(path)
        assert str(error.value).startswith(f"{path}, line 3{said}")
    for data, said in [(b"", " is empty"), (b"\xef\xbb\xbf\r\n\r\n", " is empty"), (b"x\n1\n", " has no column ")]:
        with pytest.raises(ValueError) as error:
            read(write(tmp_path / name, data))
        assert str(error.value).startswith(f"{path}{said}")
    twice = mark.join([header.split(mark)[0], header])
    with pytest.raises(ValueError, match="two columns"):
        read(write(tmp_path / name, "\n".join([twice, *(f"1{mark}{row}" for row in rows)]).encode()))


def test_two_decimal_marks_in_one_recording_are_refused(tmp_path):
    rows = [f"{i / 8}".replace(".", ",") + ";1;2;" for i in range(32)]
    rows[9] = "1,125;1.234;2;"
    path = write(tmp_path / "run.csv", "\n".join([f"t;A;{NAME};m", *rows]).encode())
    with pytest.raises(ValueError, match="run.csv, line 11: A is not a finite number"):
        read(path)


@given(st.binary(min_size=1, max_size=12))
def test_names_of_any_bytes_come_back_from_our_files(tmp_path_factory, name):
    assume(b"\0" not in name and b"/" not in name)
    path, text = tmp_path_factory.mktemp("x"), os.fsdecode(name)
    write_captions(path / "captions.jsonl", {text: text}, text)
    assert read_captions(path / "captions.jsonl") == {text: text}
    assert json.loads(encode(json.dumps({text: text}, ensure_ascii=False)).decode("utf-8")) == {text: text}
    assert yaml.safe_load(encode(yaml.safe_dump({"run_dir": text}, allow_unicode=True))) == {"run_dir": text}


def test_a_terminal_that_cannot_show_a_name(monkeypatch):
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for encoding in ("ascii", "utf-8")]
    for name, stream in zip(("stdout", "stderr"), streams, strict=True):
        monkeypatch.setattr(sys, name, stream)
    show_any_name()
    for stream in streams:
        print("süß \udce4", file=stream, flush=True)
    assert [stream.buffer.getvalue() for stream in streams] == [b"s?? ?\n", "süß ?\n".encode()]
    monkeypatch.setattr(sys, "stdout", None)  # a program without a terminal
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    show_any_name()


def text_opened(tree: ast.Module):
    """Calls that open or decode text; ruff's PLW1514 knows those whose types it can see."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        keys = {key.arg: key.value for key in node.keywords}
        modes = [n.value for n in [*node.args, keys.get("mode")] if isinstance(n, ast.Constant) and n.value != ""]
        binary = any(isinstance(m, str) and "b" in m and set(m) <= set("rwaxb+") for m in modes)
        is_open = name == "open" and isinstance(node.func, ast.Name) and not binary
        is_text = name == "read_text" and not node.args or name == "write_text"
        is_process = any(
            isinstance(keys.get(k), ast.Constant) and keys[k].value for k in ("text", "universal_newlines")
        )
        if (is_open or is_text or is_process) and "encoding" not in keys:
            yield node.lineno


@pytest.mark.parametrize("folder", ["neuroimagen", "trainers", "benchmarks"])
def test_every_text_file_is_opened_in_a_named_encoding(folder):
    unnamed = []
    for path in sorted((REPO / folder).rglob("*.py")):
        unnamed += [f"{path}:{line}" for line in text_opened(ast.parse(path.read_text(encoding="utf-8")))]
    assert not unnamed, "name the encoding: " + ", ".join(unnamed)


LEGACY = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
SAY = """
import sys
from neuroimagen.text_files import leave_locale
leave_locale()
print(sys.getfilesystemencoding(), len(sys.argv[1]))
print(open(sys.argv[2], encoding=None).read(), len(open(sys.argv[2], encoding=None).read()))
"""


def test_another_locale_changes_nothing_but_the_terminal(tmp_path):
    (tmp_path / "say.py").write_text(SAY, encoding="utf-8")
    (tmp_path / "x").write_text("sü", encoding="utf-8")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONIOENCODING"} | LEGACY
    command = [sys.executable, tmp_path / "say.py", "ü", tmp_path / "x"]
    environment |= {"PYTHONPATH": str(REPO)}
    said = subprocess.run(command, capture_output=True, env=environment | {"PYTHONIOENCODING": "latin-1"}, timeout=600)
    assert (said.stdout, said.stderr) == (b"utf-8 1\ns\xfc 2\n", b"")
    said = subprocess.run(command, capture_output=True, env=environment, timeout=600)
    assert said.stdout == b"utf-8 1\n" and b"UnicodeEncodeError" in said.stderr  # show_any_name was not called


def test_our_modules_leave_no_encoding_to_the_locale(tmp_path):
    """What Python itself says of it (PEP 597), while a study is simulated and checked."""
    code = (
        "from neuroimagen.cli import main; import sys; out = sys.argv[1]\n"
        "size = ['classes=2', 'images_per_class=6', 'picture_size=64']\n"
        "assert main(['simulate', f'out={out}/study', *size]) == 0\n"
        "files = [f'eeg={out}/study/eeg.pth', f'images={out}/study/images', 'splits=by_image']\n"
        "assert main(['shards', f'out={out}/shards', *files]) == 0 and main(['check', f'{out}/shards']) in (0, 1)\n"
    )
    command = [sys.executable, "-X", "warn_default_encoding", "-W", "always::EncodingWarning", "-c", code, tmp_path]
    environment = os.environ | {"PYTHONPATH": str(REPO)}
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=environment, timeout=900)
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if "EncodingWarning" in line]
    assert not [line for line in said if line.startswith(f"{REPO}/neuroimagen/")]
