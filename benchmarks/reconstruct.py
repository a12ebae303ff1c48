"""Pictures a second: diffusers' pipeline trial by trial, as published code draws, and this engine, at equal settings
and at equal quality; and what each back end of attention needs in memory.

    python benchmarks/reconstruct.py [rounds] [speed] [machine] [quality] [memory] [gpu]     # default: 3 rounds, all

The sides take turns, round by round; medians. speed and quality compare one thread with one thread, in seconds of the
processor, which other work on the machine changes little. machine is what one waits for, by the clock, on all cores:
diffusers in one process with torch's default threads, as one would run it, against our processes of one thread each, as
launch/one_node.yaml starts them; it wants an idle machine. quality: the label captions of the embedded model's 16
classes, each from a blurred picture of the class as the saliency map; the embedded classifier judges.
"""

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from neuroimagen.reconstruction.draw import to_image
from neuroimagen.reconstruction.reconstructor import Reconstructor, noise_seed

EMBEDDED = Path(__file__).parents[1] / "neuroimagen/embedded/diffusion"
SETTINGS = {"samples": 3, "strength": 0.7, "guidance_scale": 4.0, "num_inference_steps": 12}
PEER_STEPS = 100  # of DDIM or PLMS, as published code has it


def draw_by_diffusers(directory: str, settings: dict[str, Any], at_once: int):
    """A plain loop over trials: pipe(...) for `at_once` of a trial's samples."""
    from diffusers import AutoPipelineForImage2Image, DDIMScheduler
    from diffusers.utils import logging

    logging.set_verbosity_error()
    pipe = AutoPipelineForImage2Image.from_pretrained(directory, dtype=torch.float32, use_safetensors=True)
    pipe.set_progress_bar_config(disable=True)
    if settings.get("scheduler") == "ddim":
        pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    told = {name: settings[name] for name in ("strength", "guidance_scale", "num_inference_steps")}

    def draw(embeds: torch.Tensor, maps: torch.Tensor, keys: list[str]) -> list[np.ndarray]:
        drawn = []
        for embed, map_, key in zip(embeds, maps, keys, strict=True):
            size = (settings["size"],) * 2
            image = to_image(map_).resize(size)
            for start in range(0, settings["samples"], at_once):
                seeds = [noise_seed(0, key, sample) for sample in range(start, start + at_once)]
                drawn += pipe(
                    prompt_embeds=embed[None],
                    negative_prompt="",
                    image=image,
                    num_images_per_prompt=at_once,
                    generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                    **told,
                ).images
        return [np.asarray(picture) for picture in drawn]

    return draw


def draw_by_us(directory: str, settings: dict[str, Any], chunk: int):
    settings = dict(settings)
    size, scheduler = settings.pop("size"), settings.pop("scheduler", "default")
    model = Reconstructor(directory, scheduler=scheduler, channels_last=settings.pop("channels_last", False))

    def draw(embeds: torch.Tensor, maps: torch.Tensor, keys: list[str]) -> list[np.ndarray]:
        drawn = []
        for part in torch.arange(len(keys)).split(chunk):
            names = [keys[i] for i in part.tolist()]
            found = model.reconstruct(embeds[part], maps[part], names, height=size, width=size, **settings)
            drawn += [np.asarray(to_image(picture)) for picture in found.flatten(0, 1)]
        return drawn

    return draw


class Side:
    """One way to draw. Reports processor time, so several of them may live in this process."""

    def __init__(self, name: str, make: Any, *arguments: Any) -> None:
        self.name, self.way = name, make(*arguments)
        self.seconds: list[float] = []  # of the processor, for one picture

    def draw(self, *inputs: Any, measured: bool = True) -> list[np.ndarray]:
        began = time.process_time()
        pictures = self.way(*inputs)
        if measured:
            self.seconds.append((time.process_time() - began) / len(pictures))
        return pictures

    def row(self, against: "Side") -> list[str]:
        ratio = statistics.median(a / b for a, b in zip(against.seconds, self.seconds, strict=True))
        return [self.name, f"{1 / statistics.median(self.seconds):.2f}", f"{ratio:.2f} x"]


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows))


def random_model(folder: Path, widths: tuple[int, ...], text: tuple[int, int], size: int, **parts: Any) -> str:
    """A Stable Diffusion directory with random weights, around the embedded model's tokenizer. size: px"""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(EMBEDDED, subfolder="tokenizer", model_max_length=text[0])
    torch.manual_seed(0)
    down = ["CrossAttnDownBlock2D"] * (len(widths) - 1) + ["DownBlock2D"]
    up = ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * (len(widths) - 1)
    vae = parts.get("vae", (32, 64, 64, 64))
    StableDiffusionPipeline(
        vae=AutoencoderKL(
            block_out_channels=vae,
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            latent_channels=4,
            layers_per_block=parts.get("vae_layers", 1),
            sample_size=size,
        ),
        text_encoder=CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=text[1],
                intermediate_size=4 * text[1],
                num_hidden_layers=parts.get("text_layers", 2),
                num_attention_heads=text[1] // 64,
                max_position_embeddings=text[0],
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
        ),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(
            sample_size=size // 8,
            block_out_channels=widths,
            down_block_types=down,
            up_block_types=up,
            layers_per_block=parts.get("layers", 1),
            cross_attention_dim=text[1],
            attention_head_dim=8,  # heads, in spite of its name
        ),
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).to(dtype=parts.get("dtype", torch.float32)).save_pretrained(folder)
    return str(folder)


def speed(folder: Path, rounds: int) -> str:
    """Equal settings: the embedded model, and a mid-size one with random weights (128 px, 77 x 256 embeddings)."""
    blocks = []
    for title, directory, text, size, trials, chunk in models(folder):
        embeds, maps, keys = inputs(text, trials)
        settings = SETTINGS | {"size": size}
        sides = [
            Side("diffusers, a picture at a time", draw_by_diffusers, directory, settings, 1),
            Side("diffusers, a trial at a time", draw_by_diffusers, directory, settings, settings["samples"]),
            Side(f"ours, {chunk} trials at a time", draw_by_us, directory, settings, chunk),
            Side("ours, channels last", draw_by_us, directory, settings | {"channels_last": True}, chunk),
        ]
        for side in sides:
            side.draw(embeds[:1], maps[:1], keys[:1], measured=False)
        for _ in range(rounds):
            for side in sides:
                side.draw(embeds, maps, keys)
        blocks.append(table([title, "pictures/s", "speed"], [side.row(sides[1]) for side in sides]))
    return "\n\n".join(blocks)


def models(folder: Path) -> list[tuple[str, str, tuple[int, int], int, int, int]]:
    """(title, directory, tokens and width, px, trials, our chunk) of the models that speed and machine draw with."""
    middle = random_model(folder / "middle", (96, 192, 192), (77, 256), 128)
    return [
        ("embedded (64 px, 12 steps)", str(EMBEDDED), (24, 128), 64, 8, 8),
        ("mid-size, random weights (128 px, 12 steps)", middle, (77, 256), 128, 2, 2),
    ]


def inputs(text: tuple[int, int], trials: int) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    generator = torch.Generator().manual_seed(0)
    embeds, maps = torch.randn(trials, *text, generator=generator), torch.rand(trials, 3, 32, 32, generator=generator)
    return embeds, maps, [f"trial {i}" for i in range(trials)]


def drawer(way: str, directory: str, text: list[int], size: int, trials: int, together: int) -> None:
    """A process of `machine`: says when it is ready, then draws `trials` for every line that it is given."""
    if way == "ours":
        torch.set_num_threads(1)
    make: Any = draw_by_us if way == "ours" else draw_by_diffusers
    draw, given = make(directory, SETTINGS | {"size": size}, together), inputs((text[0], text[1]), trials)
    draw(*given)
    print("ready", flush=True)
    for _ in sys.stdin:
        draw(*given)
        print("drawn", flush=True)


def machine(folder: Path, rounds: int) -> str:
    """By the clock, on all cores."""
    cores, samples, blocks = len(os.sched_getaffinity(0)), SETTINGS["samples"], []
    for title, directory, text, size, trials, chunk in models(folder):
        ways = [
            ("diffusers, a picture at a time", "diffusers", 1, 1),
            ("diffusers, a trial at a time", "diffusers", samples, 1),
            (f"ours, {cores} processes, {chunk} trials at a time", "ours", chunk, cores),
        ]
        sides: dict[str, list[subprocess.Popen]] = {}
        for name, way, together, number in ways:
            told = json.dumps([way, directory, text, size, trials, together])
            command = [sys.executable, __file__, "drawer", told]
            pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            sides[name] = [subprocess.Popen(command, **pipes) for _ in range(number)]
            for process in sides[name]:
                assert process.stdout and process.stdout.readline() == "ready\n"
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(rounds):
            for name, processes in sides.items():
                began = time.perf_counter()
                for process in processes:
                    assert process.stdin
                    process.stdin.write("draw\n")
                    process.stdin.flush()
                for process in processes:
                    assert process.stdout and process.stdout.readline() == "drawn\n"
                seconds[name].append((time.perf_counter() - began) / (len(processes) * trials * samples))
        for process in (p for processes in sides.values() for p in processes):
            process.communicate()
        peer = seconds[ways[1][0]]
        rows = [
            [name, f"{1 / statistics.median(found):.2f}",
             f"{statistics.median(a / b for a, b in zip(peer, found, strict=True)):.2f} x"]
            for name, found in seconds.items()
        ]  # fmt: skip
        blocks.append(table([f"{title}, {cores} cores", "pictures/s by the clock", "speed"], rows))
    return "\n\n".join(blocks)


def quality(folder: Path, rounds: int) -> str:
    """Equal quality: DDIM with 100 steps trial by trial, and us with fewer; who draws what the caption says?"""
    from neuroimagen.batches.pictures import class_names, load_pictures
    from neuroimagen.cli import main as cli
    from neuroimagen.pictures import list_pictures
    from neuroimagen.sample.captions import embed_captions
    from neuroimagen.scores.classifiers import load_classifier
    from neuroimagen.scores.metrics import ranks_of, success_by_rank
    from neuroimagen.scores.similarity import ssim
    from neuroimagen.studies.captions import label_caption

    demo = Path(__file__).parents[1] / "configs/demo.yaml"
    pictures = [f"images_per_class={max(2, rounds)}", "picture_size=64", "pictures_only=true", "seed=7"]
    assert cli(["simulate", f"config={demo}", f"out={folder}/pictures", *pictures]) == 0
    paths = list_pictures(folder / "pictures/images")
    names, truths = class_names(paths), load_pictures(paths, 64).float() / 255
    order = torch.randperm(len(paths), generator=torch.Generator().manual_seed(0))
    truths, names = truths[order], [names[i] for i in order.tolist()]
    maps = F.interpolate(F.interpolate(truths, size=(8, 8), mode="area"), size=(32, 32), mode="bicubic").clamp(0, 1)
    embeds, keys = embed_captions(EMBEDDED, [label_caption(name) for name in names]), [f"trial {i}" for i in order]
    starts = F.interpolate(maps, size=(64, 64), mode="bilinear")
    classifier = load_classifier("embedded")
    labels = np.array([classifier.find("", name) for name in names])

    def side(name: str, make: Any, together: int, **changed: Any) -> Side:
        return Side(name, make, str(EMBEDDED), SETTINGS | {"size": 64, "samples": 2} | changed, together)

    peer = side(f"diffusers, DDIM {PEER_STEPS} steps, a trial at a time", draw_by_diffusers, 2,
                scheduler="ddim", num_inference_steps=PEER_STEPS)  # fmt: skip
    sides = [peer, side("ours, its own (DDIM), 12 steps", draw_by_us, 8)]
    steps = {"dpm++": (6, 12), "unipc": (6,)}
    for scheduler, counts in steps.items():
        for n in counts:
            told = {"scheduler": scheduler, "num_inference_steps": n}
            sides.append(side(f"ours, {scheduler}, {n} steps", draw_by_us, 8, **told))
    drawn: dict[str, list[np.ndarray]] = {side.name: [] for side in sides}
    for each in sides:
        each.draw(embeds[:1], maps[:1], keys[:1], measured=False)
    for part in torch.arange(len(keys)).chunk(max(2, rounds)):  # every round draws other trials
        for each in sides:
            drawn[each.name] += each.draw(embeds[part], maps[part], [keys[i] for i in part.tolist()])
    rows, right = [], {}
    for each in sides:
        images = torch.from_numpy(np.stack(drawn[each.name])).permute(0, 3, 1, 2).float() / 255
        found = torch.cat([classifier.outputs(some)["probabilities"] for some in images.split(32)]).numpy()
        ranks = ranks_of(found, labels.repeat(2)[:, None])[:, 0]
        right[each.name] = success_by_rank(found.shape[1], min(50, found.shape[1]), 1)[ranks]
        pairs = torch.stack([torch.arange(len(images)), torch.arange(len(images)) // 2], 1)
        likeness = [ssim(images, which, pairs)[:, 0].mean().item() for which in (truths, starts)]
        gap = right[each.name] - right[peer.name]
        error = 1.96 * gap.std() / len(gap) ** 0.5
        accuracy = f"{100 * right[each.name].mean():.1f}"
        accuracy += "" if each is peer else f" ({100 * gap.mean():+.1f} ± {100 * error:.1f})"
        rows.append([*each.row(peer), accuracy, *(f"{value:.3f}" for value in likeness)])
    head = [f"embedded, {len(images)} pictures", "pictures/s", "speed", "named as the caption, %"]
    return table([*head, "SSIM to the picture", "to the map"], rows)


def attention_memory(back_end: str) -> None:
    """Prints the peak of one self-attention of Stable Diffusion 1.5 at 512 px, in MB: 2 x 4096 tokens, 8 heads."""
    from diffusers.models.attention_processor import (
        Attention,
        AttnProcessor,
        AttnProcessor2_0,
        SlicedAttnProcessor,
        XFormersAttnProcessor,
    )

    device = "cuda" if torch.cuda.is_available() else "cpu"
    layer = Attention(320, heads=8, dim_head=40).to(device).requires_grad_(False)
    made = {"eager": AttnProcessor, "sdpa": AttnProcessor2_0, "xformers": XFormersAttnProcessor}
    layer.set_processor(SlicedAttnProcessor(4) if back_end == "sliced" else made[back_end]())
    layer(torch.zeros(1, 64, 320, device=device))  # what it needs once
    tokens = torch.randn(2, 4096, 320, device=device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        layer(tokens)
        print((torch.cuda.max_memory_allocated() - before) / 2**20)
    else:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        layer(tokens)
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10)


def memory() -> str:
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU, resident set"
    rows = []
    for back_end in ("eager", "sliced", "sdpa", "xformers"):
        if back_end == "xformers" and not torch.cuda.is_available():
            rows.append([back_end, "not run: no GPU"])
            continue
        command = [sys.executable, __file__, "attention", back_end]
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
        last = done.stderr.strip().splitlines()[-1:] or [""]
        rows.append([back_end, f"{float(done.stdout):.0f}" if done.returncode == 0 else f"not run: {last[0]}"])
    return table([f"attention, 2 x 4096 tokens, 8 heads of 40 ({where})", "MB beyond what was there"], rows)


def on_gpu(folder: Path, rounds: int, device: str = "cuda", tiny: bool = False) -> str:
    """Stable Diffusion 1.5's sizes with random weights at 512 px: diffusers' defaults a picture, and us.

    tiny: a small model instead, to try the code on a CPU.
    """
    from diffusers import AutoPipelineForImage2Image

    sizes: Any = ((320, 640, 1280, 1280), (77, 768), 512)
    parts: Any = {"layers": 2, "vae": (128, 256, 512, 512), "vae_layers": 2, "text_layers": 12, "dtype": torch.float16}
    if tiny:
        sizes, parts = ((32, 64), (24, 64), 64), {}
    directory = random_model(folder / "sd15", *sizes, **parts)
    size, trials, generator = sizes[2], 8, torch.Generator().manual_seed(0)
    embeds = torch.randn(trials, *sizes[1], generator=generator)
    maps, keys = torch.rand(trials, 3, 128, 128, generator=generator), [f"trial {i}" for i in range(trials)]
    settings: dict[str, Any] = {"samples": 3, "strength": 0.8, "guidance_scale": 7.5, "num_inference_steps": 50}
    cuda = torch.device(device).type == "cuda"

    def measure(draw: Any, pictures: int) -> list[str]:
        draw()  # also compiles
        times = []
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        for _ in range(rounds):
            began = time.perf_counter()
            draw()
            times.append((time.perf_counter() - began) / pictures)
        peak = f"{torch.cuda.max_memory_allocated() / 2**30:.1f}" if cuda else "-"
        return [f"{1 / statistics.median(times):.2f}", peak]

    rows = []
    types = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
    for precision in ("fp16", "bf16") if cuda else ("fp32",):
        pipe = AutoPipelineForImage2Image.from_pretrained(directory, dtype=types[precision]).to(device)
        pipe.set_progress_bar_config(disable=True)
        told = {name: settings[name] for name in ("strength", "guidance_scale", "num_inference_steps")}
        image, first = to_image(maps[0]).resize((size, size)), embeds[:1].to(device, types[precision])

        def one(pipe: Any = pipe, told: Any = told, image: Any = image, first: Any = first) -> Any:
            return pipe(prompt_embeds=first, negative_prompt="", image=image, **told)

        rows.append([f"diffusers' defaults, {precision}, a picture at a time", *measure(one, 1)])
        del pipe, one
        for attention in ("sdpa", "xformers") if cuda else ("sdpa",):
            for compiled in (False, True) if cuda else (False,):
                name = (
                    f"ours, {precision}, {attention}{', compile' * compiled}, channels last, {trials} trials at a time"
                )
                try:
                    model = Reconstructor(
                        directory, device, types[precision], attention, channels_last=True, compile=compiled
                    )
                    rows.append([name, *measure(lambda m=model: m.reconstruct(embeds, maps, keys, **settings), 24)])
                    del model
                except ValueError as error:
                    rows.append([name, f"not run: {error}", "-"])
    return table([f"{size} px, {settings['num_inference_steps']} steps, {device}", "pictures/s", "peak GB"], rows)


def main() -> None:
    if sys.argv[1:2] == ["attention"]:
        return attention_memory(sys.argv[2])
    if sys.argv[1:2] == ["drawer"]:
        return drawer(*json.loads(sys.argv[2]))
    rounds = next((int(a) for a in sys.argv[1:] if a.isdigit()), 3)
    parts = [a for a in sys.argv[1:] if not a.isdigit()] or ["speed", "machine", "quality", "memory", "gpu"]
    torch.set_num_threads(1)
    print(f"{platform.machine()}, torch {torch.__version__}, {rounds} rounds\n")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if "speed" in parts:
            print("Equal settings\n\n" + speed(folder, rounds), end="\n\n", flush=True)
        if "machine" in parts:
            print("Equal settings, the whole machine\n\n" + machine(folder, rounds), end="\n\n", flush=True)
        if "quality" in parts:
            print("Equal quality\n\n" + quality(folder, rounds), end="\n\n", flush=True)
        if "memory" in parts:
            print("Memory\n\n" + memory(), end="\n\n", flush=True)
        if "gpu" in parts:
            gpu = on_gpu(folder, rounds) if torch.cuda.is_available() else "not run: no GPU"
            print(f"Stable Diffusion 1.5's sizes at 512 px, random weights\n\n{gpu}", flush=True)
        if "gpu-code" in parts:  # not measured: that the GPU's part runs
            print(json.dumps(on_gpu(folder, 1, "cpu", tiny=True).splitlines(), indent=1))


if __name__ == "__main__":
    main()
