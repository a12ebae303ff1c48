"""`neuroimagen export`: the runs of a study as one directory, which `NeuroImagen.from_pretrained` takes (model.py)."""

import dataclasses
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import yaml

from neuroimagen.config import option, path_option
from neuroimagen.data.given import Contract
from neuroimagen.data.shards import Manifest, read_manifest, sha256
from neuroimagen.decoders import Decoders
from neuroimagen.model import FOLDER, NeuroImagen

# Where launch/paper.sh puts them, below RUNS
FOLDERS = {
    "saliency": "pixel_saliency",
    "semantics_label": "semantics_label",
    "semantics_blip": "semantics_blip",
    "reconstruct": "reconstruct",
    "shards": "shards",
}
STAGES = ("saliency", "semantics_label", "semantics_blip")
# What a model draws with where no reconstruct run says it: the values of configs/reconstruct.yaml
SETTINGS: dict[str, Any] = {
    "samples": 3,
    "seed": 0,
    "strength": 0.8,
    "guidance_scale": 7.5,
    "num_inference_steps": 50,
    "rescale_embeddings": False,
    "image_size": None,
    "chunk": 4,
    "precision": "fp32",
}
LOADED_WITH = ("scheduler", "channels_last", "vae_slicing", "vae_tiling")  # what else a run may say of its pipeline


@dataclasses.dataclass
class ExportConfig:
    """`neuroimagen export`"""

    out: str = path_option(help="directory to make; what is there already is never overwritten")
    runs: str = path_option("", "directory that launch/paper.sh filled; the fields below name single runs instead")
    saliency: str | None = path_option(None, "run of stage 1b; none: RUNS/pixel_saliency, if it is there")
    semantics_label: str | None = path_option(
        None, "run of stage 2, label captions; none: RUNS/semantics_label, if there"
    )
    semantics_blip: str | None = path_option(
        None, "run of stage 2, picture captions; none: RUNS/semantics_blip, if there"
    )
    reconstruct: str | None = path_option(
        None, "run of stage 3: settings, pipeline, scores; none: RUNS/reconstruct, if there"
    )
    shards: str | None = path_option(None, "the shards of these runs; none: RUNS/shards, or what the runs name")
    pipeline: str | None = path_option(None, "latent diffusion model, directory or hub id; none: the one of the runs")
    diffusion: Literal["copy", "name"] = option(
        "copy", "copy puts a diffusion model that is a directory into out; name keeps its name alone, as of a hub id"
    )
    name: str = option("", "name of the model on its card; empty: that of out")


def export(config: ExportConfig) -> None:
    """Write `config.out`, whole or not at all. ValueError for runs that are not done or do not belong together."""
    out = Path(config.out)
    if out.exists() or out.is_symlink():
        raise ValueError(f"out={out} is there already: give another out=, or remove it")
    places = _places(config)
    said = {field: _config_of(field, place) for field, place in places.items() if place and field != "shards"}
    shards = places["shards"] or Path(next((run["shards"] for run in said.values() if run.get("shards")), ""))
    manifest = read_manifest(shards)
    _check_study(shards, manifest, {field: places[field] for field in said}, said)
    if "reconstruct" in said:
        _check_weights(places, said["reconstruct"])
    stages = {field: str(places[field]) if places[field] else None for field in STAGES}
    rows = [row for row, field in zip("ILB", STAGES, strict=True) if stages[field]]
    trained = Decoders(rows, stages, SimpleNamespace(manifest=manifest, folder=shards))  # type: ignore[arg-type]
    pipeline = config.pipeline or next(
        (str(run["pipeline"]) for run in reversed(said.values()) if run.get("pipeline")), ""
    )
    copied = Path(pipeline).is_dir() and config.diffusion == "copy"
    if not Path(pipeline).is_dir() and pipeline.count("/") != 1:
        raise ValueError(f"pipeline={pipeline} is neither a directory here nor a hub id: say pipeline=, where it is")
    # rows.json says what came of settings that were left to the run, such as chunk=0
    drawn = said.get("reconstruct", {}) | _json(places["reconstruct"], "rows.json").get("settings", {})
    settings = {name: drawn.get(name, value) for name, value in SETTINGS.items()}
    settings |= {name: drawn[name] for name in LOADED_WITH if name in drawn}
    model = NeuroImagen(
        eeg=Contract.of(manifest),
        pipeline=FOLDER if copied else pipeline,
        settings=settings,
        features=trained.f_theta and trained.f_theta._hub_mixin_config,
        generator=trained.g and trained.g._hub_mixin_config,
        semantics={kind: m_s._hub_mixin_config for kind, m_s in trained.m_s.items()},  # type: ignore[misc]
        about=_about(config.name or out.name, manifest, places, settings, pipeline),
    )
    for ours, theirs in (
        (model.f_theta, trained.f_theta),
        (model.g, trained.g),
        *((model.m_s[k], m) for k, m in trained.m_s.items()),
    ):
        if ours is not None:
            ours.load_state_dict(theirs.state_dict())
    model.folder = Path(pipeline) if copied else None
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)  # of an export that was killed
    try:
        model.save_pretrained(partial)
        os.replace(partial, out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) / 1e6
    scored = "scored" if model.about["scores"] else "not scored"
    print(f"{out}: rows {', '.join(model.rows)}; {model.eeg}; {scored}; {size:.1f} MB")
    if not copied:
        print(f"the diffusion model is not in it: {pipeline} is loaded by name")


def _places(config: ExportConfig) -> dict[str, Path | None]:
    """Field -> directory, None for what there is not."""
    places: dict[str, Path | None] = {}
    if config.runs and not Path(config.runs).is_dir():
        raise ValueError(f"{config.runs} is not a directory: name the one that launch/paper.sh filled")
    for field, folder in FOLDERS.items():
        given = getattr(config, field)
        below = Path(config.runs) / folder if config.runs else None
        places[field] = Path(given) if given else below if below and below.exists() else None
    if not any(places[field] for field in STAGES):
        where = f"{config.runs} holds none" if config.runs else "none is named"
        raise ValueError(f"a model needs trained decoders, and {where}: give RUNS, or {'=, '.join(STAGES)}=RUN_DIR")
    return places


def _config_of(field: str, run: Path) -> dict[str, Any]:
    """config.yaml of a finished run."""
    if not (run / "config.yaml").is_file():
        raise ValueError(f"{field}={run} is not a run (no config.yaml)")
    if not (run / "DONE").exists():
        raise ValueError(f"{field}={run} is not finished (no DONE); run its command again to continue it")
    return yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))


def _fingerprint(manifest: Manifest) -> tuple[Any, ...]:
    tars = [tar["sha256"] for split in manifest.splits.values() for tar in split["shards"]]
    return manifest.dataset, manifest.n_chans, manifest.n_times, manifest.sfreq, tars


def _check_study(
    shards: Path, manifest: Manifest, runs: dict[str, Path | None], said: dict[str, dict[str, Any]]
) -> None:
    """ValueError unless all runs were made from `shards`, as far as that can still be told."""
    named = {field: str(run["shards"]) for field, run in said.items() if run.get("shards")}
    for field, theirs in named.items():
        if (Path(theirs) / "manifest.json").is_file():
            if _fingerprint(read_manifest(theirs)) != _fingerprint(manifest):
                raise ValueError(f"{field}={runs[field]} was made from {theirs}, another study than {shards}")
        elif theirs != next(iter(named.values())):  # moved: then all must have been made from the same place at least
            first = next(iter(named))
            raise ValueError(
                f"{field}={runs[field]} was made from {theirs} and {first}={runs[first]} from {named[first]}, which "
                "are not there any more: they are of different studies, or of one whose shards have to be put back"
            )
    if "reconstruct" in runs:
        known = _json(runs["reconstruct"], "rows.json").get("manifest", {})
        if other := [name for name, value in known.items() if getattr(manifest, name, value) != value]:
            raise ValueError(
                f"reconstruct={runs['reconstruct']} is of another study than {shards}: its {other[0]} differs"
            )


def _check_weights(places: dict[str, Path | None], drawn: dict[str, Any]) -> None:
    """ValueError unless the reconstruct run, whose scores the card will show, drew with these very decoders."""
    for field in STAGES:
        ours, theirs = places[field], Path(drawn[field]) if drawn.get(field) else None
        if ours is None or theirs is None or (theirs.exists() and theirs.samefile(ours)):
            continue
        if theirs.exists():
            same = _weights(ours) == _weights(theirs)
        else:
            same = theirs.name == ours.name  # all were moved
        if not same:
            raise ValueError(
                f"reconstruct={places['reconstruct']} drew with {field}={theirs}, not with {ours}: its scores are not "
                f"those of this model; name the {field} it drew with, or another reconstruct="
            )


def _weights(run: Path) -> list[str]:
    return [sha256(path) for path in sorted((run / "model").rglob("*.safetensors"))]


def _json(run: Path | None, name: str) -> dict[str, Any]:
    """What a JSON file of a run holds, {} if there is none."""
    if run is None or not (run / name).is_file():
        return {}
    try:
        return json.loads((run / name).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{run / name} is not JSON ({error}): make it again") from None


def _about(
    name: str, manifest: Manifest, places: dict[str, Path | None], settings: dict[str, Any], pipeline: str
) -> dict[str, Any]:
    """What the model card says; no path of this machine."""
    drawn = places["reconstruct"]
    rows, scores = _json(drawn, "rows.json"), _json(drawn, "scores.json")
    environment = _json(drawn or next(place for place in places.values() if place), "environment.json")
    captions = str(rows.get("captions_source") or "")
    kept = ("trials", "pictures", "samples", "classifier", "interval", "n_way", "chance", "metrics")
    shown = {name: scores[name] for name in kept if name in scores} | {
        "split": rows.get("settings", {}).get("split", "test"),
        "rows": {row: groups["all"] for row, groups in scores.get("rows", {}).items()},
    }
    versions = {k: v for k, v in environment.get("versions", {}).items() if v != "not installed"}
    return {
        "name": name,
        "simulated": manifest.simulated,
        "subjects": manifest.subjects,
        "classes": [str(c["name"]) for c in manifest.classes],
        "trials": {split: content["trials"] for split, content in manifest.splits.items()},
        "protocol": manifest.protocol,
        "notes": manifest.notes,
        "captions": Path(captions).name if captions.endswith(".jsonl") else captions,
        "diffusion": Path(pipeline).name if Path(pipeline).is_dir() else pipeline,
        "settings": settings,
        "scores": shown if scores else None,
        "versions": versions | ({"commit": environment["commit"]} if environment.get("commit") else {}),
    }
