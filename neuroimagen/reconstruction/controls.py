"""What the rows need that no decoder of ours draws for: the oracle's and the random class's captions, the gallery of
training pictures for retrieval, the baselines' noise (rows.py says what each of them is)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from neuroimagen.batches.decode import load_picture
from neuroimagen.batches.stream import Batcher
from neuroimagen.reconstruction.reconstructor import Reconstructor, noise_seed
from neuroimagen.run.collectives import sum_over_processes
from neuroimagen.run.seeds import seed_from
from neuroimagen.sample.encoder import SampleEncoder, short_embeddings
from neuroimagen.shards.format import ShardSplit
from neuroimagen.studies.captions import label_caption

TRIALS_AT_ONCE = 128  # through M_s; always the same ones together, whichever rank takes them, so the same bits


def random_class(seed: int, key: str, sample: int, n_classes: int) -> int:
    """A class, 0 to n_classes - 1, for one picture of a trial; it may be the one that was seen."""
    return seed_from(seed, "random class", key, sample) % n_classes


class ClassCaptions:
    """Embeddings of "An image of <class name>", of each class of the study once, by the pipeline's own text encoder.

    They reach the diffusion model as M_s(x) does: by its cross-attention alone.
    classes: the manifest's; seed: with key and sample number it draws the random class
    """

    @torch.inference_mode()
    def __init__(self, diffusion: Reconstructor, classes: Sequence[dict[str, Any]], seed: int) -> None:
        self.seed, self.place = seed, {about["label"]: place for place, about in enumerate(classes)}
        captions = [label_caption(about["name"]) for about in classes]
        told = {"device": diffusion.device, "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
        encode = diffusion.img2img.encode_prompt
        found = [encode(captions[i : i + 64], **told)[0] for i in range(0, len(captions), 64)]
        self.embeddings = torch.cat(found).float().cpu()  # (classes, L, D_s)

    def __call__(self, labels: Sequence[int], keys: Sequence[str], samples: int) -> dict[str, Tensor]:
        """By row: of the classes seen (B, L, D_s), and of classes drawn for each picture (B, samples, L, D_s)."""
        drawn = [[random_class(self.seed, key, sample, len(self.place)) for sample in range(samples)] for key in keys]
        seen = self.embeddings[[self.place[label] for label in labels]]
        return {"oracle": seen, "random class": self.embeddings[torch.tensor(drawn)]}

    def nearest(self, decoded: Tensor, mean: Tensor) -> Tensor:
        """Of each decoded embedding (B, L, D_s) that of the nearest class, by cosine about `mean` (L, D_s)."""
        asked, known = ((x.float().cpu() - mean.cpu()).flatten(1) for x in (decoded, self.embeddings))
        return self.embeddings[(F.normalize(asked) @ F.normalize(known).T).argmax(1)]


def train_split(shards: str, samples: int) -> ShardSplit:
    """The train split, for the row retrieval; ValueError if it has not as many pictures as a trial gets."""
    train = ShardSplit(shards, "train")
    if train.manifest.splits["train"]["images"] < samples:
        raise ValueError(f"{shards}: train has fewer than samples={samples} pictures for row retrieval")
    return train


def nearest_pictures(queries: Tensor, vectors: Tensor, pictures: Tensor, count: int) -> Tensor:
    """For each query (B, k) the `count` nearest different pictures, by cosine: rows (B, count) of `vectors` (n, k),
    which have unit length.

    pictures (n,): the picture shown in each row. A picture is as near as the nearest of its trials; of two that are
    equally near the one whose trial comes first is nearer. There must be `count` different ones.
    """
    cosine = F.normalize(queries, dim=1) @ vectors.T
    found = []
    for order in cosine.argsort(dim=1, descending=True, stable=True).cpu():
        _, first = np.unique(pictures[order].numpy(), return_index=True)  # the nearest trial of each picture
        found.append(order[np.sort(first)[:count]])
    return torch.stack(found)


class Gallery:
    """The train trials of a study by decoded embedding, centred on the train captions' mean: what all captions share,
    the largest part of an embedding, says nothing of a picture.

    train: the train split; size: of the pictures returned, in px. Trials are spread over the processes, and every
    process then holds n_features + 1 numbers of each (16 MB for PerceiveLab's 8,000). Collective: every rank.
    """

    def __init__(
        self, m_s: SampleEncoder, train: ShardSplit, size: int, device: Any = "cpu", rank: int = 0, world: int = 1
    ) -> None:
        self.train, self.size, self.device, self.embed = train, size, device, short_embeddings(m_s)
        batcher, n = Batcher(train, image_size=None), len(train)
        for sentence in batcher.read_labels()[1].values():
            raise ValueError(f"{sentence}: row retrieval needs all of train; make the shards again or leave it out")
        self.pictures = torch.from_numpy(np.unique(batcher.image, return_inverse=True)[1])
        with torch.inference_mode():
            width = self.embed(torch.zeros(1, *train.shape, device=device)).shape[1]
        self.vectors = torch.zeros(n, width, device=device)
        starts = range(rank * TRIALS_AT_ONCE, n, world * TRIALS_AT_ONCE)
        for start in tqdm(starts, "train EEG for retrieval", unit="batch", disable=True if rank else None, delay=5):
            rows = torch.arange(start, min(start + TRIALS_AT_ONCE, n))
            batch = batcher(rows.numpy())
            with torch.inference_mode():
                self.vectors[rows] = F.normalize(self.embed(batch["eeg"].to(device), batch["subject"]).float(), dim=1)
        sum_over_processes(self.vectors)  # each row is another's zeros

    def __call__(self, eeg: Tensor, samples: int, subject: Tensor | None = None) -> Tensor:
        """EEG (B, C, T) -> the `samples` nearest different train pictures, (B, samples, 3, size, size) in [0, 1]."""
        with torch.inference_mode():
            asked = self.embed(eeg.to(self.device), subject).float()
            rows = nearest_pictures(asked, self.vectors, self.pictures, samples)
        found = [load_picture(self.train.picture(row), self.size) for row in rows.flatten().tolist()]
        return torch.stack(found).div(255).unflatten(0, rows.shape)


@torch.inference_mode()
def draw_baseline(
    model: Any, eeg: Tensor, keys: Sequence[str], samples: int, seed: int, size: int, subject: Tensor | None = None
) -> Tensor:
    """EEG (B, C, T) -> pictures of a baseline, (B, samples, 3, size, size) in [0, 1]; resized bicubically if need be.

    The noise z of a picture is a function of (seed, key, sample number), as the diffusion model's is.
    """
    noises = [noise_seed(seed, key, sample) for key in keys for sample in range(samples)]
    z = torch.stack([torch.randn(model.z_dim, generator=torch.Generator().manual_seed(noise)) for noise in noises])
    whose = None if subject is None else subject.repeat_interleave(samples)
    drawn = model.draw(eeg.repeat_interleave(samples, 0), z.to(eeg.device), whose).float()
    if drawn.shape[-2:] != (size, size):
        drawn = F.interpolate(drawn, (size, size), mode="bicubic", antialias=True)
    if not drawn.isfinite().all():
        raise ValueError(f"{type(model).__name__} drew NaN for {keys[0]} and others: its training has diverged")
    return drawn.clamp(0, 1).cpu().unflatten(0, (len(keys), samples))
