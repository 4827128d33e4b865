"""Weights of PyTorch's modules, whose layers are named as torchvision's, give the same outputs here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subspaces_jax import state_dicts
from subspaces_jax.networks import AlexNet, ImageNetResNet, ImageNetVGG, torch_names

torch = pytest.importorskip("torch")
nn = torch.nn


class Plain(nn.Module):
    """Features, average pooling, classifier."""

    def __init__(self, features, side, classifier):
        super().__init__()
        self.features, self.avgpool = nn.Sequential(*features), nn.AdaptiveAvgPool2d(side)
        self.classifier = nn.Sequential(*classifier)

    def forward(self, x):
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


def alexnet(width, hidden):
    channels = [3, width, 3 * width, 6 * width, 4 * width, 4 * width]
    features = []
    for i, (size, stride, pad) in enumerate([(11, 4, 2), (5, 1, 2), (3, 1, 1), (3, 1, 1), (3, 1, 1)]):
        features += [nn.Conv2d(channels[i], channels[i + 1], size, stride, pad), nn.ReLU()]
        features += [nn.MaxPool2d(3, 2)] if i in (0, 1, 4) else []
    dense = [nn.Dropout(), nn.Linear(4 * width * 36, hidden), nn.ReLU(), nn.Dropout(), nn.Linear(hidden, hidden)]
    return Plain(features, 6, [*dense, nn.ReLU(), nn.Linear(hidden, 5)])


def vgg(width, hidden):
    features, before = [], 3
    for number, factor in zip((1, 1, 2, 2, 2), (1, 2, 4, 8, 8)):
        for _ in range(number):
            features += [nn.Conv2d(before, factor * width, 3, 1, 1), nn.BatchNorm2d(factor * width), nn.ReLU()]
            before = factor * width
        features.append(nn.MaxPool2d(2, 2))
    dense = [nn.Linear(8 * width * 49, hidden), nn.ReLU(), nn.Dropout(), nn.Linear(hidden, hidden), nn.ReLU()]
    return Plain(features, 7, [*dense, nn.Dropout(), nn.Linear(hidden, 5)])


class Bottleneck(nn.Module):
    def __init__(self, before, inner, stride):
        super().__init__()
        after = 4 * inner
        self.conv1, self.bn1 = nn.Conv2d(before, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = nn.Conv2d(inner, inner, 3, stride, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = nn.Conv2d(inner, after, 1, bias=False), nn.BatchNorm2d(after)
        if stride > 1 or before != after:
            self.downsample = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))
        else:
            self.downsample = None

    def forward(self, x):
        y = torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))
        return torch.relu(self.bn3(self.conv3(y)) + (x if self.downsample is None else self.downsample(x)))


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width)
        before = width
        for i, number in enumerate((1, 2, 1, 1)):
            blocks = []
            for j in range(number):
                blocks.append(Bottleneck(before, width * 2**i, 2 if i and not j else 1))
                before = 4 * width * 2**i
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(before, 5)

    def forward(self, x):
        x = nn.functional.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        for i in range(1, 5):
            x = getattr(self, f"layer{i}")(x)
        return self.fc(x.mean((2, 3)))


PAIRS = {
    "alexnet": (lambda: alexnet(4, 10), AlexNet(5, 4, 10), 99),
    "vgg": (lambda: vgg(2, 10), ImageNetVGG(5, 11, True, width=2, hidden=10), 72),
    "resnet": (lambda: Residual(4), ImageNetResNet(5, (1, 2, 1, 1), True, width=4, classifier_bias=True), 48),
}


@pytest.mark.parametrize("name", PAIRS)
def test_outputs_are_those_of_pytorch(name, tmp_path):
    make, network, side = PAIRS[name]
    torch.manual_seed(0)
    module = make()
    images = torch.randn(3, 3, side, side)
    module.train()(images)  # so that running statistics are others than at the start
    module.eval()
    for zipped in (True, False):
        torch.save(module.state_dict(), tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
        variables = torch_names.from_torch(network, state_dicts.load(tmp_path / "x.pth"))
    found = jax.jit(network.apply)(variables, jnp.asarray(images.numpy().transpose(0, 2, 3, 1)))
    with torch.no_grad():
        np.testing.assert_allclose(found, module(images).numpy(), rtol=1e-4, atol=1e-4)
    state = {key: torch.tensor(value) for key, value in torch_names.to_torch(network, variables).items()}
    other = make()
    other.load_state_dict(state)
    with torch.no_grad():
        np.testing.assert_allclose(other.eval()(images), module(images), rtol=1e-6, atol=1e-6)
