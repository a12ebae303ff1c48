"""The doctor's figures: spectra, evoked averages with topographies, amplitudes and lengths, as PNG.

Needs matplotlib, and mne for topographies: both come with the `mne` extra.
"""

import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy  # whose parts are imported when first used

from neuroimagen.doctor.findings import LINES, Findings

MOST_SUBJECTS = 12  # in the evoked figure
MOST_MAPS = 5
INK, SOFT, GRID = "#1b1d22", "#5d6470", "#e6e3db"


def channel_names(findings: Findings) -> list[str] | None:
    """The study's; for a simulated study in PerceiveLab format, whose files name none, those of its simulation.json."""
    study = findings.study
    if study.channels or not study.simulated or not study.inputs:
        return study.channels
    path = study.inputs[0].parent / "simulation.json"
    names = json.loads(path.read_text(encoding="utf-8")).get("channels") if path.is_file() else None
    return list(names) if names and len(names) == study.n_chans else None


def figures(findings: Findings) -> dict[str, bytes]:
    """Name -> PNG. ImportError without matplotlib; without mne there are no topographies."""
    import matplotlib

    draw: dict[str, Callable[[Findings], Any]] = {
        "spectrum": spectrum,
        "evoked": evoked,
        "amplitude": amplitude,
        "lengths": lengths,
    }
    found = {}
    style: Any = {
        "font.family": "sans-serif",
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": SOFT,
        "axes.labelcolor": SOFT,
        "xtick.color": SOFT,
        "ytick.color": SOFT,
        "axes.grid": True,
        "grid.color": GRID,
        "legend.frameon": False,
        "axes.titlesize": 10,
        "axes.titlelocation": "left",
        "axes.axisbelow": True,
    }
    with matplotlib.rc_context(style):
        for name, function in draw.items():
            figure = function(findings)
            if figure is not None:
                if findings.study.simulated:
                    figure.suptitle("SIMULATED", x=0.995, ha="right", color="#b3261e", weight="bold", size=11)
                buffer = io.BytesIO()
                figure.savefig(buffer, format="png", dpi=110, facecolor="white")
                found[name] = buffer.getvalue()
    return found


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _colours(n: int) -> Any:
    import matplotlib

    return matplotlib.colormaps["viridis"](np.linspace(0, 0.88, max(n, 1)))


def spectrum(findings: Findings) -> Any:
    """Median over trials of the mean over channels, one line a subject."""
    found = findings.found
    lines = {subject: findings.spectrum(subject) for subject in found.subjects}
    if not any(density is not None for density in lines.values()):
        return None
    figure = _figure(10.4, 3.6)
    axes = figure.subplots()
    top = min(found.frequencies[-1], 1.6 * max((band[1] for band in findings.bands.values()), default=1e9), 250)
    used = (found.frequencies > 0) & (found.frequencies <= max(top, 5 * found.frequencies[1]))
    for colour, (subject, density) in zip(_colours(len(lines)), lines.items(), strict=True):
        if density is not None:
            values = np.where(density > 0, density, np.nan)
            axes.semilogy(found.frequencies[used], values[used], color=colour, lw=1.4, label=f"subject {subject}")
    for line in LINES:
        if line < top:
            axes.axvline(line, color="#b3261e", lw=0.8, ls=":", zorder=0)
            axes.annotate(f"{line} Hz", (line, 1), xycoords=("data", "axes fraction"), size=8, color="#b3261e")
    axes.set(xlabel="frequency in Hz", ylabel=f"power in ({_short(findings.study.units)})²/Hz")
    if len(lines) <= 16:
        axes.legend(ncols=1 + len(lines) // 7, fontsize=8)
    return figure


def _short(units: str) -> str:
    short = {"standard deviations": "SD", "as in the file": "units of the file"}.get(units, units)
    return "".join(c for c in short if c.isprintable()).replace("$", r"\$")  # text of a file, not a formula


def _positions(names: list[str] | None) -> Any:
    """mne Info of the channels that the 10-05 system names, and which they are; None below 8, or without mne."""
    try:
        import mne
    except ImportError:
        return None
    montage = mne.channels.make_standard_montage("colin27_1005")
    lower = {name.lower(): name for name in montage.ch_names}
    known = [i for i, name in enumerate(names or []) if str(name).lower() in lower]
    named = [lower[str((names or [])[i]).lower()] for i in known]
    if len(known) < 8 or len(set(named)) < len(named):
        return None
    info = mne.create_info(named, 1000.0, "eeg", verbose="error")
    info.set_montage(montage, verbose="error")
    return info, known


def evoked(findings: Findings) -> Any:
    """Mean over all trials: maps at its largest moments, then the channels of all subjects and of each."""
    found, study = findings.found, findings.study
    subjects = [s for s in found.subjects if found.summed[s]]
    if not subjects:
        return None
    onset = study.tmin  # s from picture onset to the first sample, where the reader says so
    ms = 1000 * (np.arange(study.n_times) / study.sfreq + (onset or 0))
    total: np.ndarray = np.sum([found.evoked[s] for s in subjects], axis=0) / sum(found.summed[s] for s in subjects)
    power = total.std(axis=0) if study.n_chans > 1 else np.abs(total[0])
    peaks, _ = scipy.signal.find_peaks(power, distance=max(1, round(0.04 * study.sfreq)))
    peaks = np.sort(peaks[np.argsort(-power[peaks])[:MOST_MAPS]])
    place = _positions(channel_names(findings))
    shown = subjects[:MOST_SUBJECTS]
    n_rows = -(-len(shown) // 4)
    figure = _figure(10.4, (2.0 if place else 0) + 2.7 + 1.9 * n_rows)
    heights = ([2.0] if place else []) + [2.7, 1.9 * n_rows]
    parts = list(figure.subfigures(len(heights), 1, height_ratios=heights))
    if place and len(peaks):
        _maps(parts.pop(0), total, place, peaks, ms)
    elif place:
        parts.pop(0)
    axes = parts[0].subplots()
    every = max(1, study.n_chans // 64)
    axes.plot(ms, total[::every].T, color="#23509e", lw=0.5, alpha=0.5)
    axes.plot(ms, power, color=INK, lw=1.8, label="spread over channels (global field power)")
    axes.legend(fontsize=8, loc="upper right")
    some = "" if every == 1 else f", one in {every} channels shown"
    axes.set(
        title=f"all subjects, mean of {sum(found.summed.values()):,} trials{some}",
        ylabel=_short(study.units),
        xlabel="ms from the first sample of a trial" if onset is None else "ms from picture onset",
    )
    grid = parts[1].subplots(n_rows, 4, sharex=True, sharey=True, squeeze=False).ravel()
    for axes, subject in zip(grid, shown, strict=False):
        axes.plot(ms, (found.evoked[subject][::every] / found.summed[subject]).T, color="#23509e", lw=0.4, alpha=0.5)
        axes.set_title(f"subject {subject}, {found.summed[subject]:,} trials")
    for axes in grid[len(shown) :]:
        axes.set_visible(False)
    return figure


def _maps(figure: Any, total: np.ndarray, place: Any, peaks: np.ndarray, ms: np.ndarray) -> None:
    from mne.viz import plot_topomap

    info, known = place
    limit = float(np.abs(total[known][:, peaks]).max()) or 1.0
    for axes, peak in zip(np.atleast_1d(figure.subplots(1, MOST_MAPS)), list(peaks) + [None] * MOST_MAPS, strict=False):
        if peak is None:
            axes.set_visible(False)
            continue
        plot_topomap(total[known, peak], info, axes=axes, show=False, vlim=(-limit, limit), contours=4, sensors=False)
        axes.set_title(f"{ms[peak]:.0f} ms", loc="center")


def amplitude(findings: Findings) -> Any:
    """Median standard deviation of each subject and channel, on a logarithmic scale."""
    subjects = findings.found.subjects
    table = np.full((len(subjects), findings.study.n_chans), np.nan)
    for row, subject in enumerate(subjects):
        spread = findings.spread[findings.subject == subject]
        spread = spread[np.isfinite(spread).all(axis=1)]
        if len(spread):
            table[row] = np.median(spread, axis=0)
    seen = table[table > 0]
    if not len(seen):
        return None
    figure = _figure(10.4, 1.2 + 0.24 * len(subjects))
    axes = figure.subplots()
    axes.grid(False)
    from matplotlib.colors import LogNorm

    low, high = np.quantile(seen, [0.01, 0.99])
    norm = LogNorm(min(low, 0.8 * np.median(seen)), max(high, 1.25 * np.median(seen)))
    axes.set_facecolor("#b3261e")  # what never moves has no logarithm, and is seen
    image = axes.imshow(np.where(table > 0, table, np.nan), aspect="auto", norm=norm, interpolation="nearest")
    axes.set_yticks(range(len(subjects)), [f"subject {s}" for s in subjects], size=8)
    axes.set_xlabel("channel (red: never moves)")
    figure.colorbar(image, ax=axes, pad=0.01).ax.tick_params(labelsize=7, which="both")
    return figure


def lengths(findings: Findings) -> Any:
    values = findings.study.lengths()
    if not values:
        return None
    figure = _figure(10.4, 2.4)
    axes = figure.subplots()
    axes.hist(
        values, bins=np.arange(min(values), max(values) + 3, max(1, (max(values) - min(values)) // 80)), color="#23509e"
    )
    axes.set(yscale="log", xlabel="samples of a trial in the file, before any cut", ylabel="trials")
    return figure
