"""What a run, a captions file or a score file was made of: its inputs by their content, kept in a JSON file beside it.

    {"<field>": {"path": as it was given, "content": {name: count, text or SHA-256}}, ...}

Only content is compared, so a study may move: of shards the manifest, which holds the hashes of all tars; of a folder
the hash of each picture; of a captions file its captions; of a run the weights that it exported; of a diffusion model
its weights, or as a hub id that and its model_index.json.
"""

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from tqdm import tqdm

from neuroimagen.files import sha256
from neuroimagen.shards.format import read_manifest

Inputs = dict[str, dict[str, Any]]  # of the module's docstring
WEIGHTS = (".json", ".txt", ".safetensors")  # what is read of a model's directory


@functools.cache
def _hashed(path: Path, *stat: int) -> str:
    """SHA-256 of a file as it is, so that looking again costs no reading."""
    return sha256(path)


def hashes(files: Mapping[str, Path]) -> dict[str, str]:
    """Name -> SHA-256 of each file; with a bar, if it takes long."""
    found = {}
    for name, path in tqdm(files.items(), desc="hashing inputs", unit="file", delay=2, disable=None):
        try:
            s = path.stat()
            found[name] = _hashed(path.absolute(), s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns)
        except OSError as error:
            raise ValueError(f"{path} cannot be read ({error.strerror}); replace or remove it") from None
    return found


def digest(content: Any) -> str:
    """SHA-256 of what JSON can say."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def digests(found: Inputs) -> dict[str, str]:
    """Field -> SHA-256 of its content, wherever it lies."""
    return {field: digest(about["content"]) for field, about in found.items()}


def of_files(folder: str | Path, paths: Iterable[Path]) -> dict[str, str]:
    return hashes({path.relative_to(folder).as_posix(): path for path in sorted(paths)})


def of_model(folder: str | Path) -> dict[str, str]:
    """Of all weights and configs below a directory."""
    return of_files(folder, (path for path in Path(folder).rglob("*") if path.suffix in WEIGHTS))


def of_adapter(image_prompt: str) -> dict[str, str]:
    """Of an image prompt: a directory, a file, or on the hub, of which nothing is read here."""
    path = Path(image_prompt)
    return of_model(path) if path.is_dir() else hashes({path.name: path}) if path.is_file() else {}


def of_shards(shards: str | Path) -> dict[str, Any]:
    """Of what is read of shards; not of the places they were made from, nor of the notes on them."""
    manifest = read_manifest(shards)
    about = ("dataset", "n_chans", "n_times", "sfreq", "eeg_dtype", "units", "channels", "classes")
    content = {f"its {name}": digest(getattr(manifest, name)) for name in (*about, "channel_mean", "channel_std")}
    for name, split in manifest.splits.items():
        content |= {f"{name} trials": split["trials"], f"{name} pictures": split["images"]}
        content |= {tar["name"]: tar["sha256"] for tar in split["shards"]}
    return content


def of_pipeline(pipeline: str, text_alone: bool = False) -> dict[str, str]:
    """text_alone: its tokenizers and text encoders, all that stage 2 reads."""
    folder = Path(pipeline)
    if not folder.is_dir():
        try:
            return {"id": pipeline} | hashes({"model_index.json": Path(hf_hub_download(pipeline, "model_index.json"))})
        except (OSError, ValueError):
            return {}  # whoever loads it says what is wrong
    parts = [path for path in folder.glob("*/*") if path.suffix in WEIGHTS]
    if text_alone:
        return of_files(folder, (path for path in parts if path.parent.name.startswith(("tokenizer", "text_encoder"))))
    return of_files(folder, [*folder.glob("model_index.json"), *parts])


def read(path: Path) -> Inputs:
    """What was kept; {} if nothing was."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict) or not all(isinstance(about["content"], dict) for about in found.values()):
            raise ValueError("it is not of neuroimagen")
        return found
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} cannot be read ({error}): it says what was used here; put it back") from None


def changes(then: Inputs, now: Inputs) -> str:
    """What differs, in words, of the inputs of both; "" if nothing does."""
    both = [field for field in now if field in then and then[field]["content"] != now[field]["content"]]
    told = ((field, _differences(then[field]["content"], now[field]["content"])) for field in both)
    return " and ".join(f"another {field}={now[field]['path']} than there is now ({what})" for field, what in told)


def _differences(then: dict[str, Any], now: dict[str, Any]) -> str:
    other = {name for name in then.keys() & now.keys() if then[name] != now[name]}
    counts = sorted(name for name in other if isinstance(now[name], int))
    said = [f"{name}: {then[name]} then, {now[name]} now" for name in counts]
    groups = {"new": now.keys() - then.keys(), "gone": then.keys() - now.keys(), "changed": other - {*counts}}
    return "; ".join(said + [f"{len(names)} {what}, such as {min(names)}" for what, names in groups.items() if names])


@functools.cache
def note(text: str) -> None:
    print(f"note: {text}")


def check(then: Inputs, now: Inputs, made: str, remedy: str) -> None:
    """ValueError if inputs are not `then`, what `made` was made of; a note if that was not kept."""
    if now and not then:
        note(f"{made} was made before it was kept of which inputs: they are taken to be the same")
    if said := changes(then, now):
        raise ValueError(f"{made} was made of {said}: {remedy}")
