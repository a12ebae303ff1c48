"""Parameters, and trials a second forward and backward, of every encoder at the sizes of THINGS-EEG2's two montages.

    python benchmarks/encoders.py [SECONDS [braindecode:NAME ...]]        5

A batch of 64 trials, 128 features, fp32, the encoder's usual width; on a GPU if there is one. The rate is of the median
step; rounds go through all encoders in turn, so that a busy machine is busy for all.
"""

import statistics
import sys
import time

import torch

from neuroimagen.encoders import ENCODERS, make_encoder

BATCH, FEATURES, ROUNDS = 64, 128, 5
SIZES = [(17, 250), (63, 250)]
NAMES = ["P7", "P5", "P3", "P1", "Pz", "P2", "P4", "P6", "P8", "PO7", "PO3", "POz", "PO4", "PO8", "O1", "Oz", "O2"]


def steps(model: torch.nn.Module, eeg: torch.Tensor, seconds: float) -> list[float]:
    """Seconds of each step, as many as fit, and one at least."""
    found: list[float] = []
    while not found or sum(found) < seconds:
        began = time.perf_counter()
        model(eeg).square().mean().backward()
        model.zero_grad(set_to_none=True)
        if eeg.is_cuda:
            torch.cuda.synchronize()
        found.append(time.perf_counter() - began)
    return found


def main(seconds: float, library: list[str]) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}; batch {BATCH}, {FEATURES} features")
    for n_chans, n_times in SIZES:
        models = {kind: make_encoder(kind, n_chans, n_times, FEATURES) for kind in ENCODERS}
        for kind in library if n_chans == len(NAMES) else ():  # those we know the names of; at the rate most want
            models[kind] = make_encoder(kind, n_chans, 200, FEATURES, channels=NAMES, sfreq=200.0)
        took: dict[str, list[float]] = {kind: [] for kind in models}
        for number in range(ROUNDS + 1):
            for kind, model in models.items():
                eeg = torch.randn(BATCH, n_chans, model.n_times, device=device)
                found = steps(model.to(device), eeg, seconds / ROUNDS if number else 0)
                took[kind] += found if number else []  # the first is warming up
        rates = {kind: BATCH / statistics.median(times) for kind, times in took.items()}
        print(f"\n{n_chans} channels x {n_times} samples\n")
        print("| encoder | parameters | trials/s | of lstm's |\n|---|---|---|---|")
        for kind, model in models.items():
            count = sum(p.numel() for p in model.parameters())
            print(f"| {kind} | {count:,} | {rates[kind]:,.0f} | {rates[kind] / rates['lstm']:.2f} |")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 5.0, sys.argv[2:])
