"""The peer of the benchmark: the same residual network and step, idiomatic PyTorch on the same threads or GPU."""

import os
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from subspaces_jax.experiments.benchmarks import Problem


class Block(nn.Module):
    def __init__(self, channels: int, features: int, stride: int):
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(channels, features, 3, stride, 1, bias=False),
            nn.BatchNorm2d(features),
            nn.ReLU(inplace=True),
            nn.Conv2d(features, features, 3, 1, 1, bias=False),
            nn.BatchNorm2d(features),
        )
        self.shortcut = nn.Identity()
        if stride != 1 or channels != features:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, features, 1, stride, bias=False), nn.BatchNorm2d(features)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.branch(x) + self.shortcut(x))


def resnet(depth: int, width: int, channels: int, num_classes: int = 10) -> nn.Module:
    """The network of `subspaces_jax.networks.CifarResNet`."""
    layers = [nn.Conv2d(channels, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    current = width
    for stage in range(3):
        for block in range((depth - 2) // 6):
            features = width * 2**stage
            layers.append(Block(current, features, 2 if stage and not block else 1))
            current = features
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Conv2d(current, num_classes, 1, bias=False), nn.Flatten())


def stepper(problem: Problem, num_steps: int) -> Callable[[], None]:
    """`num_steps` training steps, channels last; on a GPU compiled, and in bfloat16 where the problem is."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    depth, width = ([int(size) for size in problem.network.split("_")[2:]] + [16])[:2]
    network = resnet(depth, width, problem.channels).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
    forward = torch.compile(network) if device == "cuda" else network
    shape = (problem.batch_size, problem.channels, problem.size, problem.size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, device=device).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (problem.batch_size,), device=device)

    def run() -> None:
        for _ in range(num_steps):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device, dtype=torch.bfloat16, enabled=problem.dtype == "bfloat16"):
                loss = F.cross_entropy(forward(images.float() / 255).float(), labels)
            loss.backward()
            optimizer.step()
        loss.item()

    return run
