"""`neuroimagen export`: the runs of a study as one directory, which `NeuroImagen.from_pretrained` takes (model.py)."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import yaml

from neuroimagen.config import option, path_option
from neuroimagen.files import replacing
from neuroimagen.model.eeg import Contract
from neuroimagen.model.model import FOLDER, LOADING, NeuroImagen
from neuroimagen.reconstruction.decoders import Decoders
from neuroimagen.reconstruction.reconstructor import DRAWN_WITH, Settings
from neuroimagen.rows import PAPER, ROWS, STAGES
from neuroimagen.run import inputs
from neuroimagen.run.directory import open_run
from neuroimagen.scores.run_files import check_scores, read_run
from neuroimagen.shards.format import Manifest, read_manifest

# Where launch/paper.sh puts them, below RUNS: by their own names, but for saliency
FOLDERS = {field: field for field in (*STAGES, "reconstruct", "shards")} | {"saliency": "pixel_saliency"}


@dataclasses.dataclass
class ExportConfig:
    """`neuroimagen export`"""

    out: str = path_option(help="directory to make; what is there already is never overwritten")
    runs: str = path_option("", "directory that launch/paper.sh filled; the fields below name single runs instead")
    saliency: str | None = path_option(None, "run of stage 1b; none: RUNS/pixel_saliency, if it is there")
    semantics_label: str | None = path_option(None, "run of stage 2, label captions; none: RUNS/semantics_label")
    semantics_blip: str | None = path_option(None, "run of stage 2, picture captions; none: RUNS/semantics_blip")
    reconstruct: str | None = path_option(None, "of stage 3: settings, pipeline, scores; none: RUNS/reconstruct")
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
    runs = {field: open_run(place, field) for field, place in places.items() if place and field != "shards"}
    said = {field: yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8")) for field, run in runs.items()}
    shards = places["shards"] or Path(next((config["shards"] for config in said.values() if config.get("shards")), ""))
    manifest = read_manifest(shards)
    rows = [row for row in PAPER if runs.keys() >= set(ROWS[row].needs)]
    stages = {field: str(run) for field, run in runs.items()}
    trained = Decoders(rows, stages, SimpleNamespace(manifest=manifest, folder=shards))  # type: ignore[arg-type]
    named = [str(config["pipeline"]) for config in said.values() if config.get("pipeline")]
    pipeline = config.pipeline or (named[-1] if named else "")
    made_of = _check_inputs(runs, shards, pipeline)
    copied = Path(pipeline).is_dir() and config.diffusion == "copy"
    if not Path(pipeline).is_dir() and pipeline.count("/") != 1:
        raise ValueError(f"pipeline={pipeline} is neither a directory here nor a hub id: say pipeline=, where it is")
    # rows.json says what came of settings that were left to the run, such as chunk=0
    drawn = said.get("reconstruct", {}) | _json(runs.get("reconstruct"), "rows.json").get("settings", {})
    names = (*DRAWN_WITH, "rescale_embeddings", "image_size", "chunk")
    settings = {name: drawn.get(name, getattr(Settings, name)) for name in names}
    settings |= {"precision": "fp32"} | {name: drawn[name] for name in LOADING if name in drawn}
    model = NeuroImagen(
        eeg=Contract.of(manifest),
        pipeline=FOLDER if copied else pipeline,
        settings=settings,
        features=trained.f_theta and trained.f_theta._hub_mixin_config,
        generator=trained.g and trained.g._hub_mixin_config,
        semantics={kind: m_s._hub_mixin_config for kind, m_s in trained.m_s.items()},  # type: ignore[misc]
        about=_about(config.name or out.name, manifest, runs, settings, pipeline) | {"made_of": made_of},
    )
    model.f_theta, model.g = trained.f_theta, trained.g
    model.m_s.update(trained.m_s)
    model.folder = Path(pipeline) if copied else None
    with replacing(out) as partial:
        model.save_pretrained(partial)
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


def _check_inputs(runs: dict[str, Path], shards: Path, pipeline: str) -> dict[str, str]:
    """ValueError unless the runs were made from these shards, and the one whose scores the card will show with these
    very decoders; field -> SHA-256 of each of them."""
    now: inputs.Inputs = {"shards": {"path": str(shards), "content": inputs.of_shards(shards)}}
    for field, run in runs.items():
        if field in STAGES:
            now[field] = {"path": str(run), "content": inputs.of_model(run / "model")}
    for field, run in runs.items():
        then, drawn = inputs.read(run / "inputs.json"), dict(now)
        if then.get("pipeline", {}).get("path") == pipeline:
            content = inputs.of_pipeline(pipeline, text_alone=field in STAGES)
            drawn["pipeline"] = {"path": pipeline, "content": content}
        inputs.check(then, drawn, f"{field}={run}", "name the runs that belong together")
    return inputs.digests(now)


def _json(run: Path | None, name: str) -> dict[str, Any]:
    """What a JSON file of a run holds, {} if there is none."""
    if run is None or not (run / name).is_file():
        return {}
    try:
        return json.loads((run / name).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{run / name} is not JSON ({error}): make it again") from None


def _about(
    name: str, manifest: Manifest, runs: dict[str, Path], settings: dict[str, Any], pipeline: str
) -> dict[str, Any]:
    """What the model card says; no path of this machine."""
    drawn = runs.get("reconstruct")
    rows, scores = _json(drawn, "rows.json"), _json(drawn, "scores.json")
    if drawn and "made_of" in scores:
        check_scores(read_run(drawn), scores)
    environment = _json(drawn or next(iter(runs.values())), "environment.json")
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
        **({"mark": manifest.mark} if manifest.mark else {}),
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
