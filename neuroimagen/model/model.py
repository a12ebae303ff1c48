"""NeuroImagen from Python: all trained parts in one directory, EEG in, pictures out.

    from neuroimagen import NeuroImagen

    model = NeuroImagen.from_pretrained("my_model")  # a directory of `neuroimagen export`, or a hub id
    result = model.reconstruct(eeg)  # (n_trials, n_chans, n_times), or mne.Epochs
    result.images[0][0].save("trial_0.png")

The directory is that of huggingface_hub's mixin: config.json, model.safetensors (f_θ, G and M_s), README.md; and
diffusion/, the latent diffusion model, unless config.json names it by its hub id. Nothing in it is unpickled.
"""

import difflib
import json
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin, snapshot_download
from torch import nn
from tqdm import tqdm

from neuroimagen.batches.stream import channel_statistics
from neuroimagen.encoders import SubjectLayer
from neuroimagen.errors import quiet_libraries
from neuroimagen.files import share_weights
from neuroimagen.model.card import write_card
from neuroimagen.model.eeg import Contract, take
from neuroimagen.model.show import Reconstruction, describe
from neuroimagen.pixel.features import FeatureExtractor
from neuroimagen.pixel.saliency import Generator
from neuroimagen.reconstruction.draw import decode, draw, find_chunk
from neuroimagen.reconstruction.picture_files import to_image
from neuroimagen.reconstruction.reconstructor import DRAWN_WITH, Reconstructor, check_settings
from neuroimagen.rows import BEST_FIRST, ROWS
from neuroimagen.run.processes import DTYPES, set_tf32
from neuroimagen.sample.encoder import SampleEncoder
from neuroimagen.text_files import encode, read_text

FOLDER = "diffusion"  # below a model's directory; as `pipeline` in its config: the diffusion model is there
LOADING = ("precision", "scheduler", "channels_last", "vae_slicing", "vae_tiling")  # settings that F is loaded with
NOT_LOADED = ("safety_checker", "feature_extractor", "image_encoder")  # parts of a pipeline: see load_pipeline
WEIGHTS = re.compile(r"(diffusion_pytorch_model|model)(-\d+-of-\d+)?\.safetensors(\.index\.json)?")


def copy_pipeline(source: Path, target: Path) -> None:
    """Copy a diffusion model as far as it is used: configs, vocabularies, safetensors; licences; no pickled weights."""
    try:
        index = json.loads(read_text(source / "model_index.json"))
        parts = [name for name, kind in index.items() if isinstance(kind, list) and kind[0] and name not in NOT_LOADED]
    except (OSError, ValueError, AttributeError, IndexError):
        lacking = "has no sound model_index.json, so it is not a diffusers pipeline directory"
        raise ValueError(f"{source} {lacking}") from None
    target.mkdir(parents=True)
    wanted = [source / "model_index.json", *source.glob("README*"), *source.glob("LICENSE*")]
    for part in parts:
        files = [path for path in (source / part).glob("*") if path.is_file()]
        kept = [path for path in files if path.suffix in (".json", ".txt", ".model") or WEIGHTS.fullmatch(path.name)]
        endings = {path.suffix for path in kept}
        if not kept or (".safetensors" not in endings and any(path.suffix == ".bin" for path in files)):
            raise ValueError(f"{source / part} holds no safetensors: save the pipeline with diffusers' save_pretrained")
        (target / part).mkdir()
        wanted += kept
    for path in wanted:
        shutil.copyfile(path, target / path.relative_to(source))


class NeuroImagen(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="neuroimagen",
    license="apache-2.0",
    tags=["eeg", "brain-decoding", "image-reconstruction", "diffusers"],
    paper_url="https://arxiv.org/abs/2308.02510",
):
    """f_θ, G and M_s with what they take and how they were drawn from; the diffusion model F is loaded at first use.

    eeg: what EEG it takes (also what `reconstruct` checks and converts); settings: of `reconstruct`, by default
    pipeline: hub id of F, or "diffusion": the folder of that name in the model's own directory
    features, generator, semantics: the arguments of f_θ, G, and of M_s for "label" and "blip"; None: not in this model
    about: what the model card says of data, protocol, scores (card.py)
    """

    def __init__(
        self,
        eeg: Contract,
        pipeline: str,
        settings: dict[str, Any],
        features: dict[str, Any] | None = None,
        generator: dict[str, Any] | None = None,
        semantics: dict[str, dict[str, Any]] | None = None,
        about: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.eeg, self.pipeline, self.about = eeg, pipeline, about or {}
        self.settings = {"rescale_embeddings": False} | settings
        self.f_theta = FeatureExtractor(**features) if features else None
        self.g = Generator(**generator) if generator else None
        self.m_s: Any = nn.ModuleDict({kind: SampleEncoder(**given) for kind, given in (semantics or {}).items()})
        self.mean, self.std = channel_statistics(eeg)
        self.folder: Path | None = None  # where F is, once that is known
        self.origin: dict[str, Any] = {}  # the hub's repository that this was loaded from
        self.dtype: torch.dtype | None = None
        self.loading = {name: self.settings.pop(name) for name in LOADING if name in self.settings}
        self._diffusion: Reconstructor | None = None

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        directory: str | Path,
        *,
        pipeline: str | Path | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        attention: str = "auto",
        scheduler: str | None = None,
        **hub: Any,
    ) -> "NeuroImagen":
        """Load a directory of `neuroimagen export`, or a hub id.

        pipeline: another copy of the diffusion model, directory or hub id; device: None takes a GPU if there is one
        dtype, scheduler: of the diffusion model; None: as in the run that was scored (dtype on a CPU: float32)
        attention: auto | xformers | sdpa | sliced; hub: revision, token, cache_dir, local_files_only, force_download

        Raises ValueError, in a sentence, for what is not such a model.
        """
        name, local = str(directory), Path(directory).is_dir()
        if dtype is not None and dtype not in DTYPES.values():
            raise ValueError(f"dtype={dtype} is not one of {', '.join(map(str, DTYPES.values()))}")
        if not local and (name.startswith((".", "/", "~")) or name.count("/") != 1):
            raise ValueError(f"{name} is neither a directory nor a hub id (owner/name)")
        if local and not all((Path(directory) / file).is_file() for file in ("config.json", "model.safetensors")):
            raise ValueError(f"{name} holds no exported model: make one with neuroimagen export RUNS out={name}")
        try:
            with quiet_libraries():
                model = super().from_pretrained(name, strict=True, **hub)
        except (TypeError, KeyError) as error:  # no config.json, or another model's
            raise ValueError(f"{name} is not an exported NeuroImagen model ({error})") from None
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{name}: its weights do not fit its config.json: {reason}") from None
        known = ("revision", "token", "cache_dir", "local_files_only")
        model.origin = {} if local else {"repo_id": name} | {key: hub[key] for key in known if key in hub}
        model.folder = Path(directory) / FOLDER if local else None
        if pipeline is not None:
            model.pipeline, model.folder = str(pipeline), None
        if model.pipeline == FOLDER and local and not (Path(directory) / FOLDER).is_dir():
            raise ValueError(f"{name} has no {FOLDER}/: copy it again, or say pipeline=, where the diffusion model is")
        set_tf32(False)  # the decoders compute in fp32
        model.dtype = dtype
        model.loading |= {"attention": attention} | ({"scheduler": scheduler} if scheduler else {})
        return model.requires_grad_(False).to(device or ("cuda" if torch.cuda.is_available() else "cpu"))

    @classmethod
    def _load_as_pickle(cls, model: Any, model_file: str, map_location: str, strict: bool) -> Any:
        raise ValueError("that repository holds no model.safetensors; pickled weights are not opened")

    def _save_pretrained(self, save_directory: Path) -> None:
        super()._save_pretrained(save_directory)
        share_weights(save_directory)
        config: Any = self._hub_mixin_config
        # By ourselves: the mixin would sort the keys, and with them the rows and columns of the card's table.
        (save_directory / "config.json").write_bytes(encode(json.dumps(config, indent=1, ensure_ascii=False) + "\n"))
        if config["pipeline"] == FOLDER:
            target, source = save_directory / FOLDER, Path(self._pipeline())
            if not source.is_dir():
                raise ValueError(f"the diffusion model {source} is no directory, so it cannot be saved along")
            if not target.exists():
                copy_pipeline(source, target)

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        info: Any = self._hub_mixin_info
        return ModelCard(write_card(self, info.model_card_data.to_yaml(), info.paper_url))

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def rows(self) -> list[str]:
        """What this model can draw from, best first: rows of the paper's Table 3."""
        given = {None, *self.m_s}
        return [row for row in BEST_FIRST if ROWS[row].semantics in given and (self.g is not None or not ROWS[row].map)]

    @property
    def precision(self) -> str:
        """What the diffusion model computes in: fp32 | bf16 | fp16. (The decoders: fp32.)"""
        as_scored = "fp32" if self.device.type == "cpu" else self.loading.get("precision", "fp32")
        return next((name for name, dtype in DTYPES.items() if dtype == self.dtype), as_scored)

    @property
    def place(self) -> str:
        """Where the diffusion model is: a hub id or a directory, "diffusion/" for the model's own."""
        return f"{FOLDER}/" if self.pipeline == FOLDER else self.pipeline

    def __repr__(self) -> str:
        return describe(self)  # not the 140 lines of its modules, which nn.Module.__repr__ has

    @property
    def diffusion(self) -> Reconstructor:
        """F, on the device of this model; loaded at first use. ValueError if it cannot be, or does not fit M_s."""
        if self._diffusion is None or self._diffusion.device != self.device:
            loading = {name: value for name, value in self.loading.items() if name != "precision"}
            loaded = Reconstructor(self._pipeline(), self.device, DTYPES[self.precision], **loading)
            for kind, m_s in self.m_s.items():
                loaded.check_embedding(m_s.n_tokens, m_s.width, f"what the model decodes ({kind} captions)")
                # A caption's first token is always the same one and sees no other: M_s knows how it was encoded.
                first, ours = loaded.empty[0, 0].float().cpu(), m_s.mean[0].cpu()
                if ours.any() and (first - ours).norm() > 0.05 * ours.norm():
                    raise ValueError(f"the model was trained for another text encoder than that of {loaded.name}")
            self._diffusion = loaded
        return self._diffusion

    def _pipeline(self) -> str:
        """Hub id or directory of F; fetched from the model's own repository if it is there."""
        if self.pipeline != FOLDER:
            return self.pipeline
        if self.folder is None and self.origin:
            self.folder = Path(snapshot_download(allow_patterns=[f"{FOLDER}/*"], **self.origin)) / FOLDER
        return str(self.folder)

    @torch.no_grad()
    def reconstruct(
        self,
        eeg: Any,
        keys: Sequence[str] | None = None,
        *,
        row: str | None = None,
        subject: int | Sequence[int] | None = None,
        sfreq: float | None = None,
        tmin: float = 0.0,
        channels: list[str] | None = None,
        **settings: Any,
    ) -> Reconstruction:
        """Draw pictures for each trial.

        eeg: mne.Epochs, which are picked, filtered, resampled and cut as the training data were; or an array (n_trials,
            n_chans, n_times) as the shards hold it; or one as recorded, if `sfreq` (Hz) says so, from `tmin` s after
            picture onset, with `channels` (names) if yours are others or in another order. `print(model.eeg)`: what it
            takes
        keys: names of the trials; with `seed` they fix the noise, so the same key and EEG give the same picture.
            None: "0", "1", ...
        row: what to draw from, one of `model.rows`; None: the first of them
        subject: number of the person, or of each trial's, one it was trained on, for a model with a layer of each
            (subject_layer); None: anybody else, who gets the mean of these layers
        settings: samples, seed, strength, guidance_scale, num_inference_steps, rescale_embeddings (as far from
            the train captions' mean as captions are), image_size, chunk (trials drawn together; another value may
            change the last bit of a picture; 0: found by trial); others as in the run

        Raises ValueError, in a sentence, for EEG that is not what the model takes, or settings that cannot be.
        """
        asked = self._settings(settings)
        row = self.rows[0] if row is None else row
        if row not in self.rows:
            raise ValueError(f"row={row!r}: this model has {', '.join(self.rows)}")
        if settings.get("rescale_embeddings") and ROWS[row].semantics is None:
            raise ValueError(f"rescale_embeddings=True: row {row} has no decoded embedding; leave it out")
        x = take(self.eeg, eeg, sfreq, tmin, channels)
        keys = [str(i) for i in range(len(x))] if keys is None else [str(key) for key in keys]
        if len(keys) != len(x):
            raise ValueError(f"keys names {len(keys)} trials, but eeg holds {len(x)}")
        whose = self._whose(subject, len(x))
        size = {"height": asked["image_size"], "width": asked["image_size"]}
        drawn_with = {name: asked[name] for name in DRAWN_WITH} | size
        chunk = asked["chunk"] or find_chunk(self.diffusion, len(x), drawn_with)
        result = Reconstruction([], [], None, keys, row, str(self.device), self.precision)
        embedded, semantics = [], ROWS[row].semantics
        hidden = False if "ipykernel" in sys.modules else None  # None: shown at a terminal only
        with tqdm(total=len(x), desc=f"row {row}", unit="trial", disable=hidden, dynamic_ncols=True) as bar:
            for start, part in zip(range(0, len(x), chunk), x.split(chunk), strict=True):
                some = keys[start : start + chunk]
                standardised = part.sub(self.mean).div(self.std).to(self.device)
                person = None if whose is None else whose[start : start + chunk]
                decoded = decode(standardised, some, self, asked["seed"], asked["rescale_embeddings"], person)
                (drawn,) = draw([row], standardised, some, {"trial": decoded}, self.diffusion, drawn_with)
                result.images += [[to_image(picture) for picture in pictures] for pictures in drawn]
                result.maps += [to_image(picture) for picture in (() if decoded.maps is None else decoded.maps)]
                embedded += [decoded.embeddings[semantics].cpu()] if semantics else []
                bar.update(len(some))
        result.embeddings = torch.cat(embedded) if embedded else None
        return result

    def _whose(self, subject: int | Sequence[int] | None, n: int) -> torch.Tensor | None:
        """(n,) numbers of people; ValueError for what no layer knows."""
        if subject is None:
            return None
        known = {i for part in self.modules() if isinstance(part, SubjectLayer) for i in part.numbers.tolist()}
        numbers = [subject] * n if isinstance(subject, int) else [int(number) for number in subject]
        if not known or not known.issuperset(numbers):
            has = f"layers of subjects {', '.join(map(str, sorted(known)))}" if known else "no layer of any subject"
            raise ValueError(f"subject={subject}: this model has {has}; leave it out for anybody else")
        if len(numbers) != n:
            raise ValueError(f"subject names {len(numbers)} trials' people, but eeg holds {n}")
        return torch.tensor(numbers)

    def _settings(self, given: dict[str, Any]) -> dict[str, Any]:
        """All settings of a drawing: `given`, else the model's."""
        for name in given:
            if name not in self.settings:
                near = difflib.get_close_matches(name, self.settings, 1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise ValueError(f"{name} is no setting ({', '.join(self.settings)}){hint}")
        asked = self.settings | given
        check_settings(**asked)
        return asked
