"""Residual networks, their training steps, and Bezier curves between two of them, in PyTorch."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from launch.peers import layouts
from subspaces_jax.experiments.benchmarks import Problem

Tree = Mapping[str, Any]
NARROWEST = 8  # channels: with fewer, PyTorch 2.13 on CPU errs in the gradients of strided 1x1 kernels (oneDNN 3.12)


class Recipe(NamedTuple):
    """How a curve is trained.

    Attributes:
        rates: learning rate of each step.
        batch_size: B; what is left of an epoch beyond whole batches is left out.
        mean, std: of the channels, of pixels in [0, 1].
        momentum: of SGD.
        decay: coefficient of |w(t)|^2 / 2.
        flip: whether images are mirrored with probability 1/2.
        seed: of order, mirroring and t.
    """

    rates: Sequence[float] | np.ndarray
    batch_size: int
    mean: Sequence[float]
    std: Sequence[float]
    momentum: float = 0.9
    decay: float = 0.0
    flip: bool = False
    seed: int = 0


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
    network, kind = _network(problem), device()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
    forward = torch.compile(network) if kind == "cuda" else network
    images, labels = _batch(problem)

    def run() -> None:
        for _ in range(num_steps):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(kind, dtype=torch.bfloat16, enabled=problem.dtype == "bfloat16"):
                loss = F.cross_entropy(forward(images.float() / 255).float(), labels)
            loss.backward()
            optimizer.step()
        loss.item()

    return run


def curve_stepper(problem: Problem, num_steps: int) -> Callable[[], None]:
    """Likewise, of the bend of a Bezier curve between two networks that stay."""
    network = _network(problem)
    ends = [_parameters(one) for one in (network, _network(problem))]
    step = curve_step(network, ends, _between(*ends), 0.9, 1e-4, problem.dtype == "bfloat16")
    images, labels = _batch(problem)

    def run() -> None:
        for _ in range(num_steps):
            loss = step(images.float() / 255, labels, torch.rand((), device=images.device), 1e-3)
        loss.item()

    return run


def curve_step(
    network: nn.Module, ends: Sequence[Tree], bend: Tree, momentum: float, decay: float, bfloat16: bool = False
) -> Callable[..., torch.Tensor]:
    """(inputs, labels, t, rate) -> loss: a step of SGD of the bend, in place, for the point t of the curve.

    The loss is the mean cross entropy and decay |w|^2 / 2 of w = (1 - t)^2 end_0 + 2 t (1 - t) bend + t^2 end_1.
    """
    optimizer, kind = torch.optim.SGD(bend.values(), lr=0.0, momentum=momentum), device()

    def loss_of(inputs: torch.Tensor, labels: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        of_first, of_bend, of_last = (1 - t) ** 2, 2 * t * (1 - t), t**2
        point = {name: of_first * ends[0][name] + of_bend * bend[name] + of_last * ends[1][name] for name in bend}
        with torch.autocast(kind, dtype=torch.bfloat16, enabled=bfloat16):
            logits = torch.func.functional_call(network, point, (inputs,))
        return F.cross_entropy(logits.float(), labels) + 0.5 * decay * sum(w.square().sum() for w in point.values())

    forward = torch.compile(loss_of) if kind == "cuda" else loss_of

    def step(inputs: torch.Tensor, labels: torch.Tensor, t: torch.Tensor, rate: float) -> torch.Tensor:
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        loss = forward(inputs, labels, t)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def train_curve(
    ends: Sequence[Tree], images: np.ndarray, labels: np.ndarray, recipe: Recipe, ts: Sequence[float] | None = None
) -> tuple[dict[str, Any], float]:
    """Trains the bend of the Bezier curve between two networks, from the middle between them on.

    Args:
        ends: parameters of two `networks.CifarResNet`, NumPy.
        images: uint8 [N, H, W, channels].
        labels: [N].
        recipe: see there.
        ts: t of each step; None draws them uniformly from [0, 1).

    Returns:
        The bend as such parameters, and the median milliseconds of a step.
    """
    torch.manual_seed(recipe.seed)
    kind, (stem, classifier) = device(), (ends[0][name]["kernel"] for name in ("Conv_0", "Conv_1"))
    network = resnet(2 * layouts.num_blocks(ends[0]) + 2, stem.shape[-1], stem.shape[-2], classifier.shape[-1])
    ends = [{name: _tensor(leaf) for name, leaf in layouts.to_torch(end).items()} for end in ends]
    bend, seconds = _between(*ends), []
    step = curve_step(placed(network), ends, bend, recipe.momentum, recipe.decay)
    data, classes = pixels(torch.from_numpy(images)), torch.from_numpy(labels).long().to(kind)
    mean, std = (torch.tensor(of, device=kind).view(1, -1, 1, 1) for of in (recipe.mean, recipe.std))
    epoch = len(images) // recipe.batch_size
    for number, rate in enumerate(recipe.rates):
        started = time.perf_counter()
        if number % epoch == 0:
            order = torch.randperm(len(images), device=kind)
        rows = order[number % epoch * recipe.batch_size :][: recipe.batch_size]
        inputs = (data[rows].float() / 255 - mean) / std
        if recipe.flip:
            mirrored = torch.rand(len(rows), 1, 1, 1, device=kind) < 0.5
            inputs = torch.where(mirrored, inputs.flip(-1), inputs)
        t = torch.rand((), device=kind) if ts is None else torch.tensor(float(ts[number]), device=kind)
        step(inputs, classes[rows], t, float(rate)).item()
        seconds.append(time.perf_counter() - started)
    found = {name: leaf.detach().cpu().numpy() for name, leaf in bend.items()}
    return layouts.to_flax(found)[0], 1e3 * float(np.median(seconds))


def device() -> str:
    """The GPU, where there is one; on CPU as many threads as this process may use."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    return "cuda" if torch.cuda.is_available() else "cpu"


def placed(network: nn.Module) -> nn.Module:
    """A network on the device, channels last in memory."""
    return network.to(device(), memory_format=torch.channels_last)


def _network(problem: Problem) -> nn.Module:
    depth, width = ([int(size) for size in problem.network.split("_")[2:]] + [16])[:2]
    return placed(resnet(depth, width, problem.channels))


def _batch(problem: Problem) -> tuple[torch.Tensor, torch.Tensor]:
    """Random images and labels."""
    shape = (problem.batch_size, problem.size, problem.size, problem.channels)
    images = torch.randint(0, 256, shape, dtype=torch.uint8)
    return pixels(images), torch.randint(0, 10, shape[:1], device=device())


def pixels(images: torch.Tensor) -> torch.Tensor:
    """[N, H, W, channels] -> [N, channels, H, W], channels last in memory."""
    return images.permute(0, 3, 1, 2).to(device(), memory_format=torch.channels_last)


def _parameters(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: leaf.detach().clone() for name, leaf in network.named_parameters()}


def _tensor(leaf: np.ndarray) -> torch.Tensor:
    made = torch.tensor(leaf, device=device())
    return made.to(memory_format=torch.channels_last) if made.ndim == 4 else made


def _between(first: Tree, last: Tree) -> dict[str, torch.Tensor]:
    """The middle of two networks, to be trained."""
    return {name: (0.5 * (first[name] + last[name])).requires_grad_() for name in first}
