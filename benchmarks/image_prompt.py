"""What the embedded adapter draws from the features of pictures that nobody has seen, against the true class's caption.

    python benchmarks/image_prompt.py [IMAGE_PROMPT] [guidance=3] [scale=1] [seed=3001] [pictures=10] [sheet=FILE.png]

Simulates so many pictures of each of the demo's 16 classes, by a seed that no study and no training uses, draws each
from its own features (row E oracle), from features and caption, and from the caption (row oracle), with the demo's
scheduler and steps. Of each: class accuracy by the embedded classifier, the correlation of pixels with the picture and
with another picture of the same class, and the mean error of its colour.
"""

import sys
import tempfile
from pathlib import Path

import torch
import yaml
from torch import Tensor
from torch.nn import functional as F

from neuroimagen.batches.pictures import class_names, load_pictures
from neuroimagen.features.towers import load_tower
from neuroimagen.pictures import list_pictures, see
from neuroimagen.reconstruction.picture_files import to_image
from neuroimagen.reconstruction.reconstructor import Reconstructor
from neuroimagen.scores.classifiers import load_classifier
from neuroimagen.simulation.study import SimulateConfig, simulate
from neuroimagen.studies.captions import label_caption

EMBEDDED = Path(__file__).parents[1] / "neuroimagen" / "embedded"
DEMO = yaml.safe_load((Path(__file__).parents[1] / "configs" / "demo.yaml").read_text(encoding="utf-8"))


def correlation(a: Tensor, b: Tensor) -> float:
    """Mean over pictures (n, 3, H, W) of Pearson's r over their numbers."""
    a, b = (x.flatten(1) - x.flatten(1).mean(1, keepdim=True) for x in (a, b))
    return F.cosine_similarity(a, b).mean().item()


def main() -> None:
    given = dict(word.split("=") for word in sys.argv[1:] if "=" in word)
    adapter = next((word for word in sys.argv[1:] if "=" not in word), str(EMBEDDED / "image_prompt"))
    n = int(given.get("pictures", 10))
    with tempfile.TemporaryDirectory() as folder:
        told = {"seed": int(given.get("seed", 3001)), "classes": DEMO["simulate"]["classes"], "pictures_only": True}
        simulate(SimulateConfig(out=f"{folder}/study", images_per_class=n, **told))
        paths = list_pictures(f"{folder}/study/images")
        truth, names = load_pictures(paths, 64).float() / 255, class_names(paths)
        tower = load_tower("embedded", "image", "last", "", 0, torch.float32, torch.device("cpu"))
        seen = torch.stack([tower.pixels(see(path.read_bytes()).image.convert("RGB")) for path in paths])
        features = tower.encode(seen)
    model = Reconstructor(
        str(EMBEDDED / "diffusion"),
        scheduler="dpm++",
        image_prompt=adapter,
        image_prompt_scale=float(given.get("scale", 1)),
    )
    captions = model.img2img.encode_prompt([label_caption(name) for name in names], "cpu", 1, False)[0]
    judge = load_classifier("embedded")
    want = torch.tensor([judge.find("", name) for name in names])
    other = torch.roll(truth.unflatten(0, (-1, n)), 1, 1).flatten(0, 1)  # of the same class
    keys = [path.stem for path in paths]
    how = {"samples": 1, "num_inference_steps": 6, "guidance_scale": float(given.get("guidance", 3))}
    sheet = [truth]
    for row, embeds, told in (("E", None, features), ("E+L", captions, features), ("L", captions, None)):
        parts = []
        for part in torch.arange(len(keys)).split(16):
            own = None if embeds is None else embeds[part]
            picture = None if told is None else told[part]
            parts.append(model.reconstruct(own, None, [keys[i] for i in part], image_embeds=picture, **how))
        drawn = torch.cat(parts)[:, 0]
        sheet.append(drawn)
        right = (judge.outputs(drawn)["probabilities"].argmax(1) == want).float().mean()
        colour = (drawn.mean((2, 3)) - truth.mean((2, 3))).abs().mean()
        print(
            f"{row:4} class {100 * right:5.1f} %  r {correlation(drawn, truth):.3f} (same class, another picture: "
            f"{correlation(drawn, other):.3f})  colour error {colour:.3f}"
        )
    if "sheet" in given:
        some = torch.linspace(0, len(keys) - 1, 24).long()
        to_image(torch.cat([torch.cat(list(x[some]), 2) for x in sheet], 1)).save(given["sheet"])


if __name__ == "__main__":
    main()
