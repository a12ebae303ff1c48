"""The doctor's figures: spectra, evoked averages with topographies, and amplitudes, as PNG.

Needs matplotlib and mne: both come with the `mne` extra.
"""

import io
import json
from pathlib import Path
from typing import Any

import mne
import numpy as np
import scipy  # whose parts are imported when first used
from matplotlib import colormaps, style
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from neuroimagen.doctor.examination import LINES, Examination
from neuroimagen.studies.study import Study

MOST_SUBJECTS = 12  # in the evoked figure
MOST_MAPS = 5
WIDTH = 10.4  # inches
STYLE = Path(__file__).with_name("figures.mplstyle")
INK, BLUE, RED = "#1b1d22", "#23509e", "#b3261e"


def figures(found: Examination) -> dict[str, bytes]:
    """Name -> PNG."""
    drawn = {}
    with style.context(STYLE):
        for draw in (spectrum, evoked, amplitude):
            figure = draw(found)
            if figure is not None:
                if found.study.simulated:
                    figure.suptitle("SIMULATED", x=0.995, ha="right", color=RED, weight="bold", size=11)
                buffer = io.BytesIO()
                figure.savefig(buffer, format="png", dpi=110, facecolor="white")
                drawn[draw.__name__] = buffer.getvalue()
    return drawn


def _figure(height: float) -> Any:
    return Figure(figsize=(WIDTH, height), layout="constrained")


def spectrum(found: Examination) -> Any:
    """Median over trials of the mean over channels, one line a subject."""
    if not found.spectra:
        return None
    figure, f = _figure(3.6), found.frequencies
    axes = figure.subplots()
    top = min(f[-1], 1.6 * max(spectrum.band[1] for spectrum in found.spectra.values()), 250)
    used = (f > 0) & (f <= max(top, 5 * f[1]))
    colours = colormaps["viridis"](np.linspace(0, 0.88, len(found.subjects)))
    for colour, subject in zip(colours, found.subjects, strict=True):
        if subject in found.spectra:
            density = found.spectra[subject].density[used]
            density = np.where(density > 0, density, np.nan)
            axes.semilogy(f[used], density, color=colour, lw=1.4, label=f"subject {subject}")
    for line in LINES:
        if line < top:
            axes.axvline(line, color=RED, lw=0.8, ls=":", zorder=0)
            axes.annotate(f"{line} Hz", (line, 1), xycoords=("data", "axes fraction"), size=8, color=RED)
    axes.set(xlabel="frequency in Hz", ylabel=f"power in ({_short(found.study.units)})²/Hz")
    if len(found.subjects) <= 16:
        axes.legend(ncols=1 + len(found.subjects) // 7, fontsize=8)
    return figure


def _short(units: str) -> str:
    short = {"standard deviations": "SD", "as in the file": "units of the file"}.get(units, units)
    return "".join(c for c in short if c.isprintable()).replace("$", r"\$")  # text of a file, not a formula


def _positions(study: Study) -> Any:
    """mne Info of the channels that the 10-05 system names, and which they are; None below 8."""
    names = study.channels or []
    if not names and study.simulated and study.inputs:  # in PerceiveLab format, whose files name none
        path = study.inputs[0].parent / "simulation.json"
        names = json.loads(path.read_text(encoding="utf-8")).get("channels") or [] if path.is_file() else []
    if len({str(name).lower() for name in names}) != study.n_chans:
        return None
    info = mne.create_info([*map(str, names)], 1000.0, "eeg", verbose="error")
    info.set_montage("colin27_1005", match_case=False, on_missing="ignore", verbose="error")
    known = [i for i, channel in enumerate(info["chs"]) if np.isfinite(channel["loc"][:3]).all()]
    return (mne.pick_info(info, known), known) if len(known) >= 8 else None


def evoked(found: Examination) -> Any:
    """Mean over all trials: maps at its largest moments, then the channels of all subjects and of each."""
    study, subjects = found.study, [s for s in found.subjects if found.summed[s]]
    if not subjects:
        return None
    ms = 1000 * (np.arange(study.n_times) / study.sfreq + (study.tmin or 0))
    total: np.ndarray = np.sum([found.evoked[s] for s in subjects], axis=0) / found.summed.total()
    power = total.std(axis=0) if study.n_chans > 1 else np.abs(total[0])
    peaks, _ = scipy.signal.find_peaks(power, distance=max(1, round(0.04 * study.sfreq)))
    peaks = np.sort(peaks[np.argsort(-power[peaks])[:MOST_MAPS]])
    place = _positions(study)
    shown = subjects[:MOST_SUBJECTS]
    n_rows = -(-len(shown) // 4)
    heights = [2.0] * bool(place) + [2.7, 1.9 * n_rows]
    figure = _figure(sum(heights))
    *above, middle, below = figure.subfigures(len(heights), 1, height_ratios=heights)
    if above and len(peaks):
        _maps(above[0], total, place, peaks, ms)
    every = max(1, study.n_chans // 64)
    axes = middle.subplots()
    axes.plot(ms, total[::every].T, color=BLUE, lw=0.5, alpha=0.5)
    axes.plot(ms, power, color=INK, lw=1.8, label="spread over channels (global field power)")
    axes.legend(fontsize=8, loc="upper right")
    some = "" if every == 1 else f", one in {every} channels shown"
    axes.set(
        title=f"all subjects, mean of {found.summed.total():,} trials{some}",
        ylabel=_short(study.units),
        xlabel="ms from the first sample of a trial" if study.tmin is None else "ms from picture onset",
    )
    grid = below.subplots(n_rows, 4, sharex=True, sharey=True, squeeze=False).ravel()
    for axes, subject in zip(grid, shown, strict=False):
        axes.plot(ms, (found.evoked[subject][::every] / found.summed[subject]).T, color=BLUE, lw=0.4, alpha=0.5)
        axes.set_title(f"subject {subject}, {found.summed[subject]:,} trials")
    for axes in grid[len(shown) :]:
        axes.set_visible(False)
    return figure


def _maps(figure: Any, total: np.ndarray, place: Any, peaks: np.ndarray, ms: np.ndarray) -> None:
    info, known = place
    limit = float(np.abs(total[known][:, peaks]).max()) or 1.0
    grid = figure.subplots(1, MOST_MAPS)
    for axes, peak in zip(grid, peaks, strict=False):
        how: dict[str, Any] = {"vlim": (-limit, limit), "contours": 4, "sensors": False, "show": False}
        mne.viz.plot_topomap(total[known, peak], info, axes=axes, **how)
        axes.set_title(f"{ms[peak]:.0f} ms", loc="center")
    for axes in grid[len(peaks) :]:
        axes.set_visible(False)


def amplitude(found: Examination) -> Any:
    """Median standard deviation of each subject and channel, on a logarithmic scale."""
    table = np.full((len(found.subjects), found.study.n_chans), np.nan)
    for row, subject in enumerate(found.subjects):
        spread = found.spread[found.subject == subject]
        spread = spread[np.isfinite(spread).all(axis=1)]
        if len(spread):
            table[row] = np.median(spread, axis=0)
    seen = table[table > 0]
    if not len(seen):
        return None
    figure = _figure(1.2 + 0.24 * len(table))
    axes = figure.subplots()
    axes.grid(False)
    low, high = np.quantile(seen, [0.01, 0.99])
    norm = LogNorm(min(low, 0.8 * np.median(seen)), max(high, 1.25 * np.median(seen)))
    axes.set_facecolor(RED)  # what never moves has no logarithm, and is seen
    image = axes.imshow(np.where(table > 0, table, np.nan), aspect="auto", norm=norm, interpolation="nearest")
    axes.set_yticks(range(len(table)), [f"subject {s}" for s in found.subjects], size=8)
    axes.set_xlabel("channel (red: never moves)")
    figure.colorbar(image, ax=axes, pad=0.01).ax.tick_params(labelsize=7, which="both")
    return figure
