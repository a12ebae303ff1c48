"""A locale that is not UTF-8, a terminal that cannot show a name, names of files that are no text: nothing changes."""

import dataclasses
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mne", reason="a lab's own epochs are read by mne (an extra)")

from lab_files import config, write_epochs

from neuroimagen.shards.format import ShardSplit, read_manifest
from neuroimagen.shards.pack import make_shards
from neuroimagen.text_files import show_any_name

REPO = Path(__file__).parents[2]
CLASS = "Straße 犬"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A study, class and pictures with letters beyond ASCII, and its shards as they are made in a UTF-8 locale."""
    folder = tmp_path_factory.mktemp("lab")
    write_epochs(folder)
    (folder / "study.yaml").write_text(
        f"# {CLASS}\ndataset: epochs\neeg: {folder}/eeg\nimages: {folder}/images\ntrials: {folder}/trials.csv\n"
        "splits: by_image\nresample: 200\n",
        encoding="utf-8",
    )
    make_shards(config(folder, "splits=by_image", "resample=200", f"out={folder}/shards"))
    return folder


def locale(name: str, folder: Path) -> dict[str, str]:
    """The environment of a locale: "ascii", one that is made here, or a terminal that shows ASCII alone."""
    if name == "terminal":
        return {"PYTHONIOENCODING": "ascii"}
    if name == "ascii":
        return {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    language, _, encoding = name.partition(".")
    define = ["localedef", "-i", language, "-f", encoding, folder / name]
    if not shutil.which("localedef") or subprocess.run(define, capture_output=True).returncode:
        pytest.skip(f"{name} cannot be made here")
    return {"LC_ALL": name, "LOCPATH": str(folder)}


def run(*command, **environment: str) -> subprocess.CompletedProcess:
    kept = {k: v for k, v in os.environ.items() if k not in ("LC_ALL", "LANG", "PYTHONUTF8", "PYTHONIOENCODING")}
    environment = kept | {"PYTHONPATH": str(REPO), "ACCELERATE_USE_CPU": "yes", "OMP_NUM_THREADS": "1"} | environment
    return subprocess.run([sys.executable, *command], capture_output=True, cwd=REPO, env=environment, timeout=900)


@pytest.mark.parametrize("name", ["ascii", "terminal", "de_DE.ISO-8859-15", "ja_JP.EUC-JP"])
def test_another_locale_makes_the_same_shards_and_tables(name, lab, tmp_path):
    there = locale(name, tmp_path)
    out = f"out={tmp_path}/shards-é"
    made = run("-m", "neuroimagen.cli", "shards", f"config={lab}/study.yaml", out, **there)
    assert made.returncode == 0, made.stderr
    said = made.stdout.decode(dict(zip(["ja", "de"], ["euc_jp", "iso8859-15"], strict=True)).get(name[:2], "ascii"))
    assert {"de": "shards-é", "ja": "shards-"}.get(name[:2], "shards-?") in said
    tars = {path.name: path.read_bytes() for path in (tmp_path / "shards-é").glob("*.tar")}
    assert tars and tars == {path.name: path.read_bytes() for path in (lab / "shards").glob("*.tar")}
    if name != "ascii":
        return
    options = ["encoder=conv", "n_features=16", "max_steps=1", "global_batch_size=8", "validate_every=1"]
    command = ["trainers/pixel_features.py", f"shards={tmp_path}/shards-é", f"run_dir={tmp_path}/run-é", *options]
    trained = run(*command, **there)
    assert trained.returncode == 0, trained.stderr
    (table,) = (tmp_path / "run-é" / "tables").glob("*.csv")
    assert CLASS in table.read_text(encoding="utf-8")


def test_names_of_files_that_are_no_text(lab, tmp_path, monkeypatch):
    folder, name = tmp_path / "l\udce4b", "sub-01_run-\udcff-epo.fif"
    shutil.copytree(lab, folder)
    (folder / "eeg" / "sub-01_run-a-epo.fif").rename(folder / "eeg" / name)
    files = {"eeg": "eeg", "images": "images", "trials": "trials.csv", "out": "out\udce4"}
    made = config(lab, "splits=by_image")
    made = dataclasses.replace(made, **{field: str(folder / where) for field, where in files.items()})
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
    show_any_name()
    make_shards(made)
    make_shards(made)  # is complete
    sys.stdout.flush()
    assert b"/l?b/out? is complete" in sys.stdout.buffer.getvalue()
    manifest = read_manifest(made.out)
    assert all(Path(path).is_file() for path in manifest.inputs) and manifest.config["eeg"] == made.eeg
    train = ShardSplit(made.out, "train")
    assert name in {train.info(i)["run"] for i in range(len(train))}
    (folder / "trials.csv").write_text("event,image,class\n", encoding="utf-8")
    with pytest.raises(ValueError, match="has no row"):
        make_shards(dataclasses.replace(made, out=str(tmp_path / "other")))
