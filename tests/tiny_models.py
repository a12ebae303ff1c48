"""Small models with random weights in the very directory layouts of the real ones, so that tests need no download.

`tiny_pipeline(dir)` writes a Stable Diffusion directory (64 px; U-Net, VAE, CLIP text encoder, tokenizer, scheduler);
`tiny_blip(dir)` and `tiny_blip2(dir)` write captioning models. The numbers they compute mean nothing.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch

TEXT = (
    "a an and at bag banana bike black blue boat brown butterfly camera car cat chair daisy dog elephant face fish "
    "flower giant green guitar horse house image in mountain mug of on orange panda parachute phone piano pink "
    "pizza plane red running shoe sky standing tent the train tree two watch white with yellow"
)
WORDS = TEXT.split()
TEXT_LENGTH, TEXT_WIDTH = 16, 32
# What the tiny contrastive run decodes, and what `tiny_features` of them says of itself.
TINY_TARGETS = {
    name: {"model": "random numbers", "kind": "image", "width": width}
    for name, width in (("layer", 8), ("picture", 12))
}
SD2 = {"attention_head_dim": (2, 4), "use_linear_projection": True, "upcast_attention": True}  # heads by level


def _bpe_files(directory: Path, words: list[str]) -> tuple[str, str, int]:
    """A CLIP-style byte-pair vocabulary: every byte, every byte ending a word, and `words` as whole tokens."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    vocab = letters + [letter + "</w>" for letter in letters]
    merges: list[str] = []
    for word in words:
        parts = list(word[:-1]) + [word[-1] + "</w>"]
        while len(parts) > 1:
            merge, joined = f"{parts[0]} {parts[1]}", parts[0] + parts[1]
            if merge not in merges:
                merges.append(merge)
                vocab.append(joined)
            parts[:2] = [joined]
    vocab = list(dict.fromkeys(vocab)) + ["<|startoftext|>", "<|endoftext|>"]
    (directory / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocab)}))
    (directory / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    return str(directory / "vocab.json"), str(directory / "merges.txt"), len(vocab)


def tiny_pipeline(
    directory: str | Path,
    vae: str = "kl",
    latent_channels: int = 4,
    prediction_type: str = "epsilon",
    text_length: int = TEXT_LENGTH,
    text_width: int = TEXT_WIDTH,
    seed: int = 0,
    **unet_settings: Any,
) -> Path:
    """Write a random StableDiffusionImg2ImgPipeline for 64 px pictures; `vae` is "kl" (AutoencoderKL) or "tiny".

    unet_settings: e.g. those in which Stable Diffusion 2.x differs from 1.x, see SD2.
    """
    from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
    from diffusers import StableDiffusionImg2ImgPipeline as Pipeline
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    directory = Path(directory)
    with tempfile.TemporaryDirectory() as scratch:
        vocab, merges, n_tokens = _bpe_files(Path(scratch), WORDS)
        tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=text_length)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=n_tokens,
                hidden_size=text_width,
                intermediate_size=2 * text_width,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=text_length,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        if vae == "kl":
            autoencoder = AutoencoderKL(
                block_out_channels=(8, 8, 16, 16),
                down_block_types=["DownEncoderBlock2D"] * 4,
                up_block_types=["UpDecoderBlock2D"] * 4,
                latent_channels=latent_channels,
                norm_num_groups=4,
                sample_size=64,
            )
        else:
            autoencoder = AutoencoderTiny(
                encoder_block_out_channels=(8, 8, 8, 8),
                decoder_block_out_channels=(8, 8, 8, 8),
                num_encoder_blocks=(1, 1, 1, 1),
                num_decoder_blocks=(1, 1, 1, 1),
                latent_channels=latent_channels,
            )
        unet = UNet2DConditionModel(
            sample_size=8,
            out_channels=latent_channels,
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            norm_num_groups=8,
            **{"attention_head_dim": 8, "in_channels": latent_channels, "cross_attention_dim": text_width}
            | unet_settings,
        )
    pipe = Pipeline(
        vae=autoencoder,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
            prediction_type=prediction_type,
        ),
        safety_checker=None,
        feature_extractor=None,
        image_encoder=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(directory)
    return directory


def tiny_lcm(directory: str | Path, base: Path) -> Path:
    """Write a random latent consistency model: `base` (a tiny_pipeline) whose U-Net takes the guidance as an input."""
    from diffusers import LatentConsistencyModelPipeline, LCMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    pipe = StableDiffusionPipeline.from_pretrained(base, safety_checker=None, feature_extractor=None)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DConditionModel.from_config({**pipe.unet.config, "time_cond_proj_dim": 8})
    parts = {**pipe.components, "unet": unet, "scheduler": LCMScheduler.from_config(pipe.scheduler.config)}
    LatentConsistencyModelPipeline(**parts, requires_safety_checker=False).save_pretrained(directory)
    return Path(directory)


def tiny_xl(directory: str | Path, base: Path, zeros_for_empty: bool = True) -> Path:
    """Write a random Stable Diffusion XL around the autoencoder of `base` (a tiny_pipeline of 4 channels): two text
    encoders of 32 and 48, whose embeddings side by side are 80 wide, and the second one's pooled embedding of 24."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from diffusers import StableDiffusionXLPipeline as Pipeline
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    pipe = StableDiffusionPipeline.from_pretrained(base, safety_checker=None, feature_extractor=None)
    config = pipe.text_encoder.config.to_dict()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first = CLIPTextModel(CLIPTextConfig(**config | {"hidden_act": "quick_gelu"}))
        wider = {"hidden_size": 48, "intermediate_size": 96, "projection_dim": 24, "hidden_act": "gelu"}
        second = CLIPTextModelWithProjection(CLIPTextConfig(**config | wider))
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=80,
            attention_head_dim=(2, 4),
            norm_num_groups=8,
            use_linear_projection=True,
            transformer_layers_per_block=(1, 2),
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=24 + 6 * 8,
        )
    Pipeline(
        vae=pipe.vae,
        text_encoder=first,
        text_encoder_2=second,
        tokenizer=pipe.tokenizer,
        tokenizer_2=pipe.tokenizer,
        unet=unet,
        scheduler=EulerDiscreteScheduler.from_config(pipe.scheduler.config, timestep_spacing="leading"),
        force_zeros_for_empty_prompt=zeros_for_empty,
        add_watermarker=False,
    ).save_pretrained(directory)
    return Path(directory)


def _bert_tokenizer(directory: Path):
    from transformers import BertTokenizer

    directory.mkdir(parents=True, exist_ok=True)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]", *WORDS]
    (directory / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    tokenizer = BertTokenizer(vocab={token: i for i, token in enumerate(vocabulary)})
    tokenizer.add_special_tokens({"bos_token": "[DEC]", "additional_special_tokens": ["[ENC]"]})
    return tokenizer, len(vocabulary)


def tiny_blip(directory: str | Path, seed: int = 0) -> Path:
    """Write a random BlipForConditionalGeneration with its processor (32 px pictures)."""
    from transformers import BlipConfig, BlipForConditionalGeneration, BlipProcessor
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    directory = Path(directory)
    tokenizer, size = _bert_tokenizer(directory)
    config = BlipConfig(
        text_config={
            "vocab_size": size,
            "hidden_size": 16,
            "encoder_hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "max_position_embeddings": 32,
            "bos_token_id": 5,
            "eos_token_id": 3,
            "sep_token_id": 3,
            "pad_token_id": 0,
        },
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
        },
        projection_dim=16,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = BlipForConditionalGeneration(config)
        for parameter in model.parameters():  # the default spread (0.02) gives every picture the same caption
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(directory)
    BlipProcessor(BlipImageProcessorPil(size={"height": 32, "width": 32}), tokenizer).save_pretrained(directory)
    return directory


def tiny_blip2(directory: str | Path, seed: int = 0) -> Path:
    """Write a random Blip2ForConditionalGeneration (ViT, Q-Former, OPT) with its processor (32 px pictures)."""
    from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2Processor, GPT2Tokenizer
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    directory = Path(directory)
    with tempfile.TemporaryDirectory() as scratch:
        vocab, merges, _ = _bpe_files(Path(scratch), [])
        begin, end = "<|startoftext|>", "<|endoftext|>"
        tokenizer = GPT2Tokenizer(vocab=vocab, merges=merges, bos_token=begin, eos_token=end, pad_token=end)
    image_processor = BlipImageProcessorPil(size={"height": 32, "width": 32})
    processor = Blip2Processor(image_processor, tokenizer, num_query_tokens=4)
    layers = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = Blip2Config(
        vision_config={**layers, "image_size": 32, "patch_size": 8},
        qformer_config={**layers, "vocab_size": 8, "encoder_hidden_size": 16, "max_position_embeddings": 32},
        text_config={
            "model_type": "opt",
            "vocab_size": len(tokenizer),
            "hidden_size": 16,
            "word_embed_proj_dim": 16,
            "ffn_dim": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "max_position_embeddings": 64,
            "pad_token_id": tokenizer.pad_token_id,
            **ends,
        },
        num_query_tokens=4,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Blip2ForConditionalGeneration(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory


def tiny_shards(directory: str | Path, seed: int = 0) -> Path:
    """A shard directory of noise EEG: 4 channels x 440 samples, 3 classes, 2 subjects, 6 test trials."""
    import numpy as np
    from PIL import Image

    from neuroimagen.shards.pack import ShardsConfig, make_shards

    directory = Path(directory)
    rng = np.random.default_rng(seed)
    wnids = ["n02389026", "n03888257", "n03584829"]
    images = [f"{wnid}_{i}" for wnid in wnids for i in range(10)]
    trials = [
        {
            "eeg": torch.from_numpy(rng.standard_normal((4, 500), dtype=np.float32)),
            "image": image,
            "label": image // 10,
            "subject": subject,
        }
        for subject in (1, 2)
        for image in range(len(images))
    ]
    study = directory.with_name(directory.name + "_study")
    for image in images:
        folder = study / "images" / image.partition("_")[0]
        folder.mkdir(parents=True, exist_ok=True)
        colours = rng.integers(0, 256, (3, 4, 3), dtype=np.uint8)
        Image.fromarray(colours).resize((60, 48), Image.Resampling.BICUBIC).save(folder / f"{image}.JPEG")
    torch.save({"dataset": trials, "labels": wnids, "images": images}, study / "eeg.pth")
    make_shards(
        ShardsConfig(
            out=str(directory),
            eeg=str(study / "eeg.pth"),
            images=str(study / "images"),
            splits="by_image",
            n_chans=4,
        )
    )
    return directory


def tiny_features(path: str | Path, shards: str | Path, width: int, kind: str = "image") -> Path:
    """A features file of random numbers for all pictures of a shard directory."""
    from neuroimagen.features.format import picture_digests, write_features
    from neuroimagen.shards.format import SPLITS, ShardSplit

    keys = sorted({key for split in SPLITS for key in picture_digests(ShardSplit(shards, split))})
    numbers = 2 + torch.randn(len(keys), width, generator=torch.Generator().manual_seed(width))
    write_features(Path(path), numbers, keys, {"model": "random numbers", "kind": kind})
    return Path(path)


def tiny_image_prompt(directory: str | Path, pipeline: Path, width: int, about: dict[str, Any]) -> Path:
    """A random directory of trainers/image_prompt.py for a pipeline, of features around 2 with a spread of 3."""
    from neuroimagen.reconstruction.image_prompt import Adapter
    from neuroimagen.reconstruction.pipelines import load_pipeline

    with torch.random.fork_rng():
        torch.manual_seed(0)
        adapter = Adapter(load_pipeline(str(pipeline)), about, 2 + 3 * torch.randn(50, width))
        for parameter in adapter.readers.parameters():
            torch.nn.init.normal_(parameter)
    adapter.save_pretrained(str(directory))
    return Path(directory)


def tiny_stage_runs(directory: str | Path, pipeline: Path) -> dict[str, str]:
    """Finished runs of stages 1b and 2 and of the baselines with random weights, for `tiny_shards`; the fields that
    `reconstruct.py` takes."""
    import yaml

    from neuroimagen.baselines.brain2image import Brain2Image
    from neuroimagen.baselines.neurovision import NeuroVision
    from neuroimagen.contrastive.encoder import ContrastiveEncoder
    from neuroimagen.pixel.features import FeatureExtractor
    from neuroimagen.pixel.saliency import Generator
    from neuroimagen.sample.encoder import SampleEncoder

    directory = Path(directory)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        models = {
            "saliency/model/features": FeatureExtractor(4, 440, n_features=8),
            "saliency/model/generator": Generator(8, z_dim=4, image_size=16, width=4),
            "semantics_label/model": SampleEncoder(4, 440, TEXT_LENGTH, TEXT_WIDTH, n_features=8),
            "semantics_blip/model": SampleEncoder(4, 440, TEXT_LENGTH, TEXT_WIDTH, n_features=8),
            "brain2image/model": Brain2Image(4, 440, 3, n_features=8, z_dim=4, image_size=16, width=4),
            "brain2image_vae/model": Brain2Image(4, 440, 3, "vae", n_features=8, z_dim=4, image_size=16, width=4),
            "neurovision/model": NeuroVision(4, 440, 3, n_features=8, z_dim=4, image_size=16, width=4, max_width=8),
            "contrastive/model": ContrastiveEncoder(4, 440, TINY_TARGETS, n_features=8),
        }
        models["contrastive/model"].mean.fill_(2.0)
        models["contrastive/model"].std.fill_(3.0)
    for name, model in models.items():
        model.save_pretrained(str(directory / name))
    captions = {"semantics_label": "label", "semantics_blip": "captions.jsonl"}
    names = sorted({name.partition("/")[0] for name in models})
    for name in names:
        config = {"captions": captions.get(name), "pipeline": str(pipeline), "max_steps": 9, "global_batch_size": 8}
        (directory / name / "config.yaml").write_text(yaml.safe_dump(config))
        (directory / name / "DONE").write_text("step 1\n")
    return {name: str(directory / name) for name in names}


def tiny_tower(directory: str | Path, kind: str, seed: int = 0) -> Path:
    """Write a random CLIPModel, SiglipModel or Dinov2Model with its image processor, and tokenizer if it has one."""
    import transformers
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    directory = Path(directory)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    sides = {"image_size": 32, "patch_size": 8}
    cropped = {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}}
    with tempfile.TemporaryDirectory() as scratch:
        vocab, merges, n_tokens = _bpe_files(Path(scratch), WORDS)
        tokenizer = transformers.CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=TEXT_LENGTH)
    ends = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    words = shape | ends | {"vocab_size": n_tokens, "max_position_embeddings": TEXT_LENGTH}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if kind == "clip":
            config = transformers.CLIPConfig(text_config=words, vision_config=shape | sides, projection_dim=12)
            model, processor = transformers.CLIPModel(config), CLIPImageProcessorPil(**cropped)
        elif kind == "siglip":
            config = transformers.SiglipConfig(text_config=words | {"projection_size": 16}, vision_config=shape | sides)
            model, processor = (
                transformers.SiglipModel(config),
                SiglipImageProcessorPil(size={"height": 32, "width": 32}),
            )
        else:  # at another size than it was trained at, as the published ones
            shape.pop("intermediate_size")
            config = transformers.Dinov2Config(**shape, image_size=64, patch_size=8)
            model, processor = transformers.Dinov2Model(config), BitImageProcessorPil(**cropped)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    if kind != "dinov2":
        tokenizer.save_pretrained(directory)
    return directory
