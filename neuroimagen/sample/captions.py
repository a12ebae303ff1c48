"""Captions of the pictures shown, and their CLIP embeddings: the targets ĥ_clip of M_s (Eq. 7).

Label captions follow the paper's Figure 2 ("An image of daisy"). BLIP captions (Li et al. 2023) are written once, by
the command `accelerate launch -m neuroimagen.cli captions ...`, into a captions file (studies/captions.py).
"""

import dataclasses
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from neuroimagen.config import option, path_option
from neuroimagen.errors import load_published, quiet_libraries
from neuroimagen.files import pass_on, write_atomic
from neuroimagen.pictures import list_pictures, see
from neuroimagen.run import inputs, processes
from neuroimagen.run.collectives import decided_by_main, on_every_rank, spread
from neuroimagen.studies.captions import line_of, lines_of, read_captions, write_captions
from neuroimagen.text_files import encode, read_text


def _text_encoders(pipeline: str, device: torch.device | str) -> list[tuple[Any, Any, int]]:
    """(tokenizer, encoder, which of its hidden states the U-Net reads): one, or the two of Stable Diffusion XL."""
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
    from transformers.utils import cached_file

    try:
        index = cached_file(pipeline, "model_index.json")
        kind = json.loads(read_text(index or ""))["_class_name"]
        kinds: list[tuple[str, Any, int]] = [("", CLIPTextModel, -1)]
        if kind.startswith("StableDiffusionXL"):
            kinds = [("", CLIPTextModel, -2), ("_2", CLIPTextModelWithProjection, -2)]
        found = []
        for suffix, encoder_class, layer in kinds:
            part = f"text_encoder{suffix}"
            with quiet_libraries():
                tokenizer = CLIPTokenizer.from_pretrained(pipeline, subfolder=f"tokenizer{suffix}")
                encoder = encoder_class.from_pretrained(pipeline, subfolder=part, use_safetensors=True)
            found.append((tokenizer, encoder.float().to(device).eval(), layer))
    except Exception as error:  # a damaged model can raise anything
        reason = " ".join(str(error).split())[:300].rstrip()
        raise ValueError(f"pipeline={pipeline}: its tokenizer and text encoder cannot be loaded: {reason}") from None
    return found


@torch.inference_mode()
def embed_captions(
    pipeline: str | Path, captions: Sequence[str], device: torch.device | str = "cpu", batch_size: int = 64
) -> torch.Tensor:
    """CLIP embeddings (n, L, D_s) float32, on the CPU, of n captions; equal captions are encoded once.

    pipeline: hub id or directory of the latent diffusion model that will draw: its own tokenizer and text encoder, used
    as its own `encode_prompt` does: padded to L tokens, the last hidden state, or for Stable Diffusion XL the last but
    one of both its encoders side by side.

    Raises ValueError if `pipeline` holds no text encoder; warns of captions longer than L tokens, which are cut.
    """
    unique = list(dict.fromkeys(captions))
    tables: list[torch.Tensor] = []
    for tokenizer, text_encoder, layer in _text_encoders(str(pipeline), device):
        length = min(tokenizer.model_max_length, text_encoder.config.max_position_embeddings)
        cut = [text for text in unique if len(tokenizer(text).input_ids) > length]
        if cut and not tables:
            said = f"{len(cut)} of {len(unique)} captions are longer than {length} tokens and are cut"
            warnings.warn(said, stacklevel=2)
        table = torch.empty(len(unique), length, text_encoder.config.hidden_size)
        for start in range(0, len(unique), batch_size):
            some, how = unique[start : start + batch_size], {"padding": "max_length", "truncation": True}
            tokens = tokenizer(some, max_length=length, return_tensors="pt", **how)
            masked = layer == -1 and getattr(text_encoder.config, "use_attention_mask", False)
            mask = tokens.attention_mask.to(device) if masked else None
            out = text_encoder(tokens.input_ids.to(device), attention_mask=mask, output_hidden_states=layer != -1)
            hidden = out[0] if layer == -1 else out.hidden_states[layer]
            table[start : start + batch_size] = hidden.float().cpu()
        tables.append(table)
    position = {text: i for i, text in enumerate(unique)}
    return torch.cat(tables, -1)[[position[text] for text in captions]]


@dataclasses.dataclass
class CaptionsConfig:
    """`neuroimagen captions`: fields."""

    images: str = path_option(help="folder of pictures; every .JPEG, .jpg, .jpeg and .png below it gets a caption")
    out: str = path_option(help="captions file to write (JSON lines); the same command continues a stopped one")
    model: str = path_option("Salesforce/blip2-opt-2.7b", "BLIP or BLIP-2: hub id or directory")
    batch_size: int = option(8, "pictures of each process at a time")
    precision: str = option("fp32", "fp32 | bf16 | fp16 (fp16 needs a GPU)")
    deterministic: bool = option(False, "on a GPU too the same captions each time; slower")


def _pictures(folder: Path) -> dict[str, Path]:
    """Image name (without extension) -> file, sorted by name."""
    if not folder.is_dir():
        raise ValueError(f"images={folder} is not a directory")
    named: dict[str, Path] = {}
    for path in list_pictures(folder):
        if path.stem in named:
            both = f"{named[path.stem]} and {path}"
            raise ValueError(f"{both} have the same name, so a caption could not tell them apart")
        named[path.stem] = path
    return dict(sorted(named.items()))


def _open_rgb(path: Path) -> Image.Image:
    try:
        return see(path.read_bytes()).image.convert("RGB")
    except (OSError, ValueError) as error:
        pass_on(error)
        raise ValueError(f"picture {path} cannot be read ({error}); replace or remove it") from None


def _load_model(model: str, dtype: torch.dtype, device: torch.device) -> tuple[Any, Any]:
    """(processor, model) of a BLIP or BLIP-2 hub id or directory."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    def load() -> tuple[Any, Any]:
        processor = AutoProcessor.from_pretrained(model, backend="pil")  # the other back end needs torchvision
        return processor, AutoModelForImageTextToText.from_pretrained(model, dtype=dtype, use_safetensors=True)

    processor, network = load_published(model, load)
    if network.config.model_type not in ("blip", "blip-2"):
        raise ValueError(f"model={model} is a {network.config.model_type} model, not BLIP or BLIP-2")
    return processor, network.to(device).eval()


def _found_already(out: Path, source: str) -> dict[str, str]:
    """Captions that earlier starts left in OUT and in the part files of all ranks; a line cut by a kill is left out."""
    captions: dict[str, str] = {}
    entries = lines_of(out) if out.exists() else []
    for part in sorted(out.parent.glob(out.name + ".part-*")):
        lines = part.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
        entries += [json.loads(line) for line in lines if line.endswith("}")]
    for entry in entries:
        if entry.get("source") != source:
            raise ValueError(
                f"out={out} holds captions by {entry.get('source')}, not by {source}; choose another out, or delete it"
            )
        captions[entry["image"]] = entry["caption"]
    return captions


def _caption(
    names: Sequence[str], pictures: Mapping[str, Path], config: CaptionsConfig, loaded: tuple[Any, Any], part: Path
) -> dict[str, str]:
    """Captions of these pictures, also appended to `part`; after SIGTERM those of the batches until then."""
    processor, model = loaded
    captions: dict[str, str] = {}
    hidden = True if os.environ.get("RANK", "0") != "0" else None
    with open(part, "a+b") as file, tqdm(total=len(names), desc="captions", disable=hidden) as bar:
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)  # what a kill cut in the middle of a line is dropped
        for start in range(0, len(names), config.batch_size):
            if processes.stop_requested():
                break
            some = names[start : start + config.batch_size]
            images = [_open_rgb(pictures[name]) for name in some]
            pixels = processor(images=images, return_tensors="pt").to(model.device, model.dtype)
            with torch.inference_mode(), quiet_libraries():  # transformers says what length it takes by itself
                tokens = model.generate(**pixels)
            texts = [text.strip() for text in processor.batch_decode(tokens, skip_special_tokens=True)]
            file.write(encode("".join(map(line_of, some, texts, [config.model] * len(some)))))
            file.flush()
            captions.update(zip(some, texts, strict=True))
            bar.update(len(some))
    return captions


def caption_pictures(config: CaptionsConfig) -> int:
    """Caption every picture below `config.images`, spread over all processes; returns the exit code.

    The model's own generation settings are used, as in the paper. Each rank appends to OUT.part-<rank>; at the end they
    are merged into OUT. After SIGTERM the same command, on any number of processes, continues. Collective: every rank.
    """
    if config.precision not in processes.DTYPES or config.batch_size < 1:
        raise ValueError("precision must be fp32, bf16 or fp16, and batch_size at least 1")
    processes.set_deterministic(config.deterministic)
    accelerator = processes.make_accelerator(config.precision)
    processes.watch_stop_signal()
    out = Path(config.out)
    path = out.with_name(out.name + ".inputs.json")

    def check(pictures: dict[str, Path], captioned: Mapping[str, str]) -> None:
        """ValueError if pictures that have a caption, or the model, have changed since; keeps what they are."""
        found = inputs.hashes(pictures)
        now = {"images": {"path": config.images, "content": found}}
        if Path(config.model).is_dir():
            now["model"] = {"path": config.model, "content": inputs.of_model(config.model)}
        then = inputs.read(path) if captioned else {}
        known = {name: old for name, old in then.get("images", now["images"])["content"].items() if name in captioned}
        if captioned:  # pictures may come and go
            both = then and {"images": {"content": found | {name: known[name] for name in known if name in found}}}
            inputs.check(then | both, now, f"out={out}", "choose another out, or delete it")
        now["images"]["content"] = found | known
        if now != then:
            write_atomic(path, json.dumps(now, indent=1))

    def look() -> tuple[dict[str, Path], dict[str, str], bool]:
        """The pictures, the captions there are, and whether OUT has them all."""
        if out.exists() and not out.is_file():  # a device, a pipe: it would be replaced
            raise ValueError(f"out={out} is there and is no file: give another out=")
        out.parent.mkdir(parents=True, exist_ok=True)
        pictures, captions = _pictures(Path(config.images)), _found_already(out, config.model)
        check(pictures, captions)
        return pictures, captions, out.exists() and pictures.keys() <= read_captions(out).keys()

    pictures, captions, complete = decided_by_main(look)
    if complete:
        accelerator.print(f"{out} already holds a caption of each of {len(pictures)} pictures")
        return 0
    rank, world = accelerator.process_index, accelerator.num_processes
    dtype, part = processes.DTYPES[config.precision], out.with_name(f"{out.name}.part-{rank:04d}")
    mine = [name for name in pictures if name not in captions][rank::world]
    loaded = on_every_rank(lambda: _load_model(config.model, dtype, accelerator.device) if mine else None)
    for found in spread(lambda _: _caption(mine, pictures, config, loaded, part) if loaded else {}, range(world)):
        captions |= found
    missing = pictures.keys() - captions.keys()

    def merge() -> None:
        if not missing:
            check(pictures, captions)
            write_captions(out, captions, config.model)
            for path in out.parent.glob(out.name + ".part-*"):
                path.unlink()

    decided_by_main(merge)
    state = f"{len(pictures) - len(missing)} of {len(pictures)} pictures have a caption"
    accelerator.print(f"{out}: {state}" + ("; run the same command to continue" if missing else ""))
    processes.leave_process_group()
    return processes.STOPPED if missing else 0
