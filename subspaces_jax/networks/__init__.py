"""Networks: pure Flax modules that know nothing of subspaces, one family a file, each with its axis table.

Each sows what the subspace paper calls features as "features" among its intermediates; it costs nothing where they are
not asked for.
"""

from subspaces_jax.networks.alexnet import AlexNet
from subspaces_jax.networks.autoencoder import Autoencoder
from subspaces_jax.networks.bottleneck_mlp import BottleneckMLP
from subspaces_jax.networks.cifar_resnet import CifarResNet
from subspaces_jax.networks.cifar_wide_resnet import CifarWideResNet
from subspaces_jax.networks.conv_fc import ConvFC
from subspaces_jax.networks.deep_lenet import DeepLeNet
from subspaces_jax.networks.deep_residual import DeepResidual
from subspaces_jax.networks.depth_scaled_resnet import DepthScaledResNet
from subspaces_jax.networks.imagenet_resnet import (
    ImageNetResNet,
    ResNet18,
    ResNet34,
    ResNet50,
    ResNet101,
    ResNet152,
    TinyImageNetResNet18,
    TinyImageNetResNet50,
    WideResNet50,
    WideResNet101,
)
from subspaces_jax.networks.imagenet_vgg import ImageNetVGG
from subspaces_jax.networks.lenet import LeNet
from subspaces_jax.networks.mlp import MLP
from subspaces_jax.networks.pre_resnet import PreResNet
from subspaces_jax.networks.vgg import VGG
from subspaces_jax.networks.vision_transformer import VisionTransformer

__all__ = [
    "MLP",
    "VGG",
    "AlexNet",
    "Autoencoder",
    "BottleneckMLP",
    "CifarResNet",
    "CifarWideResNet",
    "ConvFC",
    "DeepLeNet",
    "DeepResidual",
    "DepthScaledResNet",
    "ImageNetResNet",
    "ImageNetVGG",
    "LeNet",
    "PreResNet",
    "ResNet101",
    "ResNet152",
    "ResNet18",
    "ResNet34",
    "ResNet50",
    "TinyImageNetResNet18",
    "TinyImageNetResNet50",
    "VisionTransformer",
    "WideResNet101",
    "WideResNet50",
]
