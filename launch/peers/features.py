"""LPIPS in PyTorch."""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from launch.peers.residual import device, pixels, placed
from subspaces_jax.analysis import lpips


def distance(weights: lpips.Weights, images_a: np.ndarray, images_b: np.ndarray) -> Callable[[], np.ndarray]:
    """() -> LPIPS [B] of pairs of images [B, H, W, 3] in [0, 1] with AlexNet, as `analysis.lpips.distance` has it."""
    features, kind = alexnet(), device()
    for i, layer in enumerate(layer for layer in features if isinstance(layer, nn.Conv2d)):
        leaves = weights.features[f"Conv_{i}"]
        layer.weight.data = torch.tensor(np.transpose(np.asarray(leaves["kernel"]), (3, 2, 0, 1)))
        layer.bias.data = torch.tensor(np.asarray(leaves["bias"]))
    features = placed(features)
    heads = [torch.tensor(np.asarray(head), device=kind).view(1, -1, 1, 1) for head in weights.heads]
    shift, scale = (torch.tensor(of, device=kind).view(1, -1, 1, 1) for of in (lpips.SHIFT, lpips.SCALE))
    pair = [pixels(torch.from_numpy(images)) for images in (images_a, images_b)]

    def directions(x: torch.Tensor) -> list[torch.Tensor]:
        taps = []
        for layer in features:
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                taps.append(x / (x.square().sum(1, keepdim=True).sqrt() + lpips.EPSILON))
        return taps

    @torch.inference_mode()
    def run() -> np.ndarray:
        taps = zip(heads, *(directions((2 * images - 1 - shift) / scale) for images in pair))
        return sum((head * (a - b).square()).sum(1).mean((1, 2)) for head, a, b in taps).cpu().numpy()

    return run


def alexnet() -> nn.Sequential:
    """The convolutions of AlexNet as torchvision has them, up to the last ReLU."""
    layers, channels, last = [], 3, (256, 3, 1, 1)
    for i, (features, *form) in enumerate(((64, 11, 4, 2), (192, 5, 1, 2), (384, 3, 1, 1), last, last)):
        layers += [nn.MaxPool2d(3, 2)] if i in (1, 2) else []
        layers += [nn.Conv2d(channels, features, *form), nn.ReLU()]
        channels = features
    return nn.Sequential(*layers)
