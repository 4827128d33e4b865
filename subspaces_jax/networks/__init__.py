"""Networks: pure Flax modules that know nothing of subspaces, one family a file, each with its axis table."""

from subspaces_jax.networks.cifar_resnet import CifarResNet
from subspaces_jax.networks.lenet import LeNet
from subspaces_jax.networks.mlp import MLP

__all__ = ["MLP", "CifarResNet", "LeNet"]
