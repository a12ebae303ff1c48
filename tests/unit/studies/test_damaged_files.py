"""Whatever befalls a file, `shards` and `check` answer with one sentence or with sound shards, and harm nothing."""

import hashlib
import os
import random
import shutil
from pathlib import Path

import eeg_imagenet_files
import lab_files
import perceivelab_files
import pytest
import things_files
from whole_shards import check_shards

from neuroimagen.cli import main

RANDOM = os.environ.get("HYPOTHESIS_PROFILE") == "random"  # make test-random
EACH, FIRST = (300, random.randrange(10**9)) if RANDOM else (16, 0)  # damaged copies of each study; the first's seed


def perceivelab(folder: Path) -> list[str]:
    perceivelab_files.write_study(folder)
    return ["n_chans=4", f"eeg={folder}/eeg.pth", f"images={folder}/images", f"splits_file={folder}/splits.pth"]


def things(folder: Path) -> list[str]:
    things_files.write_study(folder)
    return ["dataset=things_eeg2", f"eeg={folder}/eeg", f"images={folder}/images"]


def eeg_imagenet(folder: Path) -> list[str]:
    eeg_imagenet_files.write_study(folder, per_class=12)
    return ["dataset=eeg_imagenet", "eeg_dtype=float32", f"eeg={folder}/eeg", f"images={folder}/images"]


def epochs(folder: Path) -> list[str]:
    pytest.importorskip("mne")
    lab_files.write_epochs(folder)
    files = [f"eeg={folder}/eeg", f"images={folder}/images", f"trials={folder}/trials.csv"]
    return ["dataset=epochs", "splits=by_image", *files]


def shards(folder: Path) -> list[str]:
    source = folder.with_name("source")
    assert main(["shards", *perceivelab(source), f"out={folder}", "shard_size=16"]) == 0
    return []


def damage(path: Path, rng: random.Random) -> str:
    """Change a file as disks, networks and people do; says how."""
    data, how = bytearray(path.read_bytes()), rng.choice(["cut", "flip", "zeros", "twice", "empty", "text", "folder"])
    if how == "cut":
        del data[rng.randrange(len(data)) :]
    elif how == "flip":
        for _ in range(rng.choice([1, 3, 100])):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif how == "zeros":
        start = rng.randrange(len(data))
        data[start : start + 512] = bytes(len(data[start : start + 512]))
    elif how == "twice":
        data.extend(bytes(data))
    elif how == "empty":
        data.clear()
    elif how == "text":
        data[:] = b"<html><body>404 Not Found</body></html>\n"
    path.unlink()
    if how == "folder":
        path.mkdir()
    else:
        path.write_bytes(data)
    return how


def digest(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


@pytest.mark.hypothesis  # make test-random runs it too
@pytest.mark.parametrize("make", [perceivelab, things, eeg_imagenet, epochs, shards])
def test_damage_is_answered_with_one_sentence(make, tmp_path, capsys):
    """Mostly files that hold many trials are hit, as a picture is one of many that each has the same reader."""
    whole, copy = tmp_path / "whole", tmp_path / "study"
    arguments = [a.replace(str(whole), str(copy)) for a in make(whole)]
    earlier = tmp_path / "earlier"  # what another command has made is not touched
    earlier.mkdir()
    (earlier / "manifest.json").write_text("{}")
    files = sorted(p for p in whole.rglob("*") if p.is_file())
    large = [p for p in files if p.suffix.lower() not in (".jpeg", ".jpg", ".png")]
    codes = []
    for seed in range(FIRST, FIRST + EACH):
        rng = random.Random(f"{make.__name__}{seed}")
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(whole, copy)
        victim = rng.choice(large if rng.random() < 0.7 else files)
        how = damage(copy / victim.relative_to(whole), rng)
        what = f"{victim.name}: {how}, seed {seed}"
        before = digest(copy)
        out = tmp_path / f"out-{seed}"
        command = ["check", str(copy)] if make is shards else ["shards", *arguments, f"out={out}"]
        capsys.readouterr()
        codes.append(main(command))
        said = capsys.readouterr().err.strip()
        assert digest(copy) == before, what  # input is never written to
        if codes[-1] == 0:  # a byte that means nothing, such as one of a JPEG's comment, or one of many numbers
            assert not said and check_shards(copy if make is shards else out), what
            continue
        assert codes[-1] == (1 if make is shards else 2) or (make is shards and codes[-1] == 2), what
        assert "Traceback" not in said and said.count("\n") == 0, (what, said)
        assert make is shards or (said.startswith("error: ") and len(said) > 20 and not out.exists()), (what, said)
    assert sum(code != 0 for code in codes) >= EACH // 2  # the damage is real
    assert digest(earlier) == {"manifest.json": hashlib.sha256(b"{}").hexdigest()}
