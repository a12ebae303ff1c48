"""Epochs in, pictures out.

python docs/examples/epochs_to_pictures.py MODEL FILE-epo.fif|FILE.npy OUT

MODEL: a directory of `neuroimagen export`, or a hub id; FILE: mne Epochs, or an array (n_trials, n_chans, n_times) as
the shards hold it. Writes OUT/<trial>_<sample>.png and OUT/index.html, the grid that a notebook shows of `result`.
"""

import sys
from pathlib import Path

import numpy as np

from neuroimagen import NeuroImagen


def main(model_name: str, file: str, out: str) -> None:
    model = NeuroImagen.from_pretrained(model_name)
    print(model)
    if file.endswith(".npy"):
        eeg = np.load(file)
    else:
        import mne

        eeg = mne.read_epochs(file)
    result = model.reconstruct(eeg)
    print(result)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    for key, pictures in zip(result.keys, result.images, strict=True):
        for sample, picture in enumerate(pictures):
            picture.save(folder / f"{key}_{sample}.png")
    (folder / "index.html").write_text(result._repr_html_(), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
