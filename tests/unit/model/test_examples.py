"""docs/examples: each script is run, as its docstring says."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from reconstruct_run import colours, make_run, score
from test_model import exported, runs, trials  # noqa: F401  (fixtures: a model of random weights, EEG of noise)

from neuroimagen.scores.run_files import read_run

EXAMPLES = Path(__file__).parents[3] / "docs" / "examples"


def example(name, *arguments) -> str:
    line = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """Two reconstruct runs of made-up pictures, at two strengths, scored by the colour test."""
    found = []
    for strength in (0.5, 0.8):
        run = make_run(tmp_path_factory.mktemp("scored") / f"strength-{strength}")
        config = yaml.safe_load((run / "config.yaml").read_text())
        (run / "config.yaml").write_text(yaml.safe_dump(config | {"strength": strength}))
        (run / "scores.json").write_text(json.dumps(score(read_run(run), colours(), 3, 1)))
        found.append(run)
    return found


def test_epochs_to_pictures(exported, trials, tmp_path):  # noqa: F811
    np.save(tmp_path / "eeg.npy", trials[0][:2])
    said = example("epochs_to_pictures.py", exported, tmp_path / "eeg.npy", tmp_path / "out")
    assert "NeuroImagen exported" in said and "Reconstruction of 2 trials, 2 pictures each, row L+I" in said
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"0_0.png", "0_1.png", "1_0.png", "1_1.png", "index.html"}


def test_compare_runs(scored):
    scores = json.loads((scored[0] / "scores.json").read_text())
    lines = example("compare_runs.py", "L+I", *scored).splitlines()
    assert lines[0].startswith("row L+I (simulated EEG)") and lines[0].endswith(str(scored[1]))
    about, cell = scores["metrics"]["acc"], scores["rows"]["L+I"]["all"]["acc"]
    (line,) = (line for line in lines if line.startswith(about["head"] + " "))
    assert line.count(f"{cell['value'] * about['scale']:.{about['digits']}f}") >= 2, "both runs have the same pictures"


def test_score_curve(scored, tmp_path):
    pytest.importorskip("matplotlib")
    example("score_curve.py", tmp_path / "curve.png", "acc", "strength", *scored)
    picture = Image.open(tmp_path / "curve.png").convert("RGB")
    assert picture.size == (720, 480) and len(set(picture.get_flattened_data())) > 20
