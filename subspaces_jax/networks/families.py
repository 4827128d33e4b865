"""Networks by name: calls of NETWORKS; a family and its sizes joined by underscores; or a module from anywhere, as
package.module:Name."""

import importlib
import inspect
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from subspaces_jax.errors import did_you_mean
from subspaces_jax.networks import imagenet_resnet
from subspaces_jax.networks.alexnet import AlexNet
from subspaces_jax.networks.autoencoder import Autoencoder
from subspaces_jax.networks.bottleneck_mlp import BottleneckMLP
from subspaces_jax.networks.cifar_resnet import CifarResNet
from subspaces_jax.networks.cifar_wide_resnet import CifarWideResNet
from subspaces_jax.networks.conv_fc import ConvFC
from subspaces_jax.networks.deep_lenet import DeepLeNet
from subspaces_jax.networks.deep_residual import DeepResidual
from subspaces_jax.networks.depth_scaled_resnet import DepthScaledResNet
from subspaces_jax.networks.imagenet_vgg import ImageNetVGG
from subspaces_jax.networks.lenet import LeNet
from subspaces_jax.networks.mlp import MLP
from subspaces_jax.networks.pre_resnet import PreResNet
from subspaces_jax.networks.vgg import BLOCKS, VGG
from subspaces_jax.networks.vision_transformer import VisionTransformer


class Family(NamedTuple):
    """How names of a family are written, and (num_classes, sizes, options) -> network or None where the sizes do not
    fit.

    `options` are dtype, and of axis_name and dropout those that the family has.
    """

    names: str
    make: Callable[[int, Any, dict[str, Any]], nn.Module | None]
    options: tuple[str, ...] = ("dtype",)


def _of_depth(**by_depth: Any) -> Callable[..., nn.Module | None]:
    """Makes what is listed for the sizes, written "d50" or "d50_2"."""

    def make(num_classes: int, sizes: tuple[int, ...], options: dict[str, Any]) -> nn.Module | None:
        found = by_depth.get("d" + "_".join(map(str, sizes)))
        return found and found(num_classes, **options)

    return make


RESNET_OPTIONS = ("dtype", "axis_name")
FAMILIES: dict[str, Family] = {
    "mlp": Family("mlp or mlp_256_256", lambda c, sizes, options: MLP(c, sizes or (256, 256), **options)),
    "lenet": Family("lenet", lambda c, sizes, options: None if sizes else LeNet(c, **options)),
    "conv_fc": Family("conv_fc", lambda c, sizes, options: None if sizes else ConvFC(c, **options)),
    "vgg": Family(
        "vgg_16 or vgg_19",
        lambda c, sizes, options: VGG(c, *sizes, **options) if len(sizes) == 1 and sizes[0] in BLOCKS else None,
        (*RESNET_OPTIONS, "dropout"),
    ),
    "imagenet_vgg": Family(
        "imagenet_vgg_16 or imagenet_vgg_19",
        lambda c, sizes, options: ImageNetVGG(c, *sizes, **options) if len(sizes) == 1 and sizes[0] in BLOCKS else None,
        (*RESNET_OPTIONS, "dropout"),
    ),
    "alexnet": Family(
        "alexnet", lambda c, sizes, options: None if sizes else AlexNet(c, **options), ("dtype", "dropout")
    ),
    "deep_lenet": Family(
        "deep_lenet", lambda c, sizes, options: None if sizes else DeepLeNet(c, **options), ("dtype", "dropout")
    ),
    "bottleneck_mlp": Family(
        "bottleneck_mlp or bottleneck_mlp_4096_1024_3 (width, bottleneck, blocks)",
        lambda c, sizes, options: BottleneckMLP(c, *sizes, **options) if len(sizes) in (0, 3) else None,
        (*RESNET_OPTIONS, "dropout"),
    ),
    "cifar_resnet": Family(
        "cifar_resnet_20 or cifar_resnet_20_16",
        lambda c, sizes, options: CifarResNet(c, *sizes, **options) if 1 <= len(sizes) <= 2 else None,
        (*RESNET_OPTIONS, "dropout"),
    ),
    "pre_resnet": Family(
        "pre_resnet_110, pre_resnet_164 or pre_resnet_110_16",
        lambda c, sizes, options: PreResNet(c, *sizes, **options) if 1 <= len(sizes) <= 2 else None,
        RESNET_OPTIONS,
    ),
    "cifar_wide_resnet": Family(
        "cifar_wide_resnet_28_10",
        lambda c, sizes, options: CifarWideResNet(c, *sizes, **options) if len(sizes) == 2 else None,
        (*RESNET_OPTIONS, "dropout"),
    ),
    "tiny_imagenet_resnet": Family(
        "tiny_imagenet_resnet_18 or _50",
        _of_depth(d18=imagenet_resnet.TinyImageNetResNet18, d50=imagenet_resnet.TinyImageNetResNet50),
        RESNET_OPTIONS,
    ),
    "resnet": Family(
        "resnet_18, _34, _50, _101 or _152",
        _of_depth(**{f"d{depth}": made for depth, made in imagenet_resnet.BY_DEPTH.items()}),
        RESNET_OPTIONS,
    ),
    "wide_resnet": Family(
        "wide_resnet_50_2 or wide_resnet_101_2",
        _of_depth(d50_2=imagenet_resnet.WideResNet50, d101_2=imagenet_resnet.WideResNet101),
        RESNET_OPTIONS,
    ),
    "vision_transformer": Family(
        "vision_transformer_4_64_4_4 (patch, width, depth, heads)",
        lambda c, sizes, options: VisionTransformer(c, *sizes, **options) if len(sizes) == 4 else None,
        ("dtype", "dropout"),
    ),
    "autoencoder": Family(
        "autoencoder or autoencoder_64_128 (width, latent)",
        lambda c, sizes, options: Autoencoder(c, *sizes, **options) if len(sizes) in (0, 2) else None,
        (*RESNET_OPTIONS, "dropout"),
    ),
}


def resnet(
    num_classes: int,
    depth: int = 18,
    classifier_bias: bool = False,
    dtype: Any = jnp.float32,
    axis_name: str | None = None,
) -> nn.Module:
    """A `ImageNetResNet` for 224x224 images of depth 18, 34, 50, 101 or 152; with a bias torchvision's.

    Reference: He et al., Deep Residual Learning for Image Recognition, 2015, arXiv:1512.03385.
    """
    options = {"dtype": dtype, "axis_name": axis_name, "classifier_bias": classifier_bias}
    return _listed(FAMILIES["resnet"], num_classes, (depth,), options)


def wide_resnet(
    num_classes: int, depth: int = 50, factor: int = 2, dtype: Any = jnp.float32, axis_name: str | None = None
) -> nn.Module:
    """A wide `ImageNetResNet` of depth 50 or 101 and factor 2.

    Reference: Zagoruyko and Komodakis, Wide Residual Networks, 2016, arXiv:1605.07146.
    """
    return _listed(FAMILIES["wide_resnet"], num_classes, (depth, factor), {"dtype": dtype, "axis_name": axis_name})


def tiny_imagenet_resnet(
    num_classes: int, depth: int = 18, dtype: Any = jnp.float32, axis_name: str | None = None
) -> nn.Module:
    """A `ImageNetResNet` for 64x64 images of depth 18 or 50.

    Reference: He et al., Deep Residual Learning for Image Recognition, 2015, arXiv:1512.03385.
    """
    return _listed(FAMILIES["tiny_imagenet_resnet"], num_classes, (depth,), {"dtype": dtype, "axis_name": axis_name})


def _listed(family: Family, num_classes: int, sizes: tuple[int, ...], options: dict[str, Any]) -> nn.Module:
    made = family.make(num_classes, sizes, options)
    if made is None:
        raise ValueError(f"there is no such size: write {family.names}")
    return made


NETWORKS: dict[str, Callable[..., nn.Module]] = {  # name of a call -> constructor(num_classes, ...)
    "mlp": MLP,
    "lenet": LeNet,
    "conv_fc": ConvFC,
    "vgg": VGG,
    "imagenet_vgg": ImageNetVGG,
    "alexnet": AlexNet,
    "deep_lenet": DeepLeNet,
    "bottleneck_mlp": BottleneckMLP,
    "cifar_resnet": CifarResNet,
    "pre_resnet": PreResNet,
    "cifar_wide_resnet": CifarWideResNet,
    "tiny_imagenet_resnet": tiny_imagenet_resnet,
    "resnet": resnet,
    "wide_resnet": wide_resnet,
    "vision_transformer": VisionTransformer,
    "autoencoder": Autoencoder,
    "deep_residual": DeepResidual,
    "depth_scaled_resnet": DepthScaledResNet,
}
EVERY_NAME = f"{'; '.join(family.names for family in FAMILIES.values())}; or package.module:Name"


def by_name(name: str, num_classes: int, **options: Any) -> nn.Module:
    """The network of a name.

    Args:
        name: such as "cifar_resnet_20_16", or "package.module:Name", see `make_imported`.
        num_classes: C.
        options: dtype, axis_name, dropout; a network takes those that it has. Dropout is refused where there is none.

    Raises:
        ValueError: unknown, or sizes or options that the family does not have.
    """
    if ":" in name:
        return make_imported(name, num_classes, options, {})
    match = re.fullmatch(r"([a-z_]*[a-z])((?:_[1-9][0-9]*)*)", name)
    family = FAMILIES.get(match.group(1)) if match else None
    if match is None or family is None:
        raise ValueError(f"{name!r}, {did_you_mean(name, FAMILIES, 'unknown')} ({EVERY_NAME})")
    if options.get("dropout") and "dropout" not in family.options:
        raise ValueError(f"{name!r}, which has no dropout: set dropout=0")
    sizes = tuple(int(size) for size in re.findall(r"\d+", match.group(2)))
    made = family.make(num_classes, sizes, {key: options[key] for key in family.options if key in options})
    if made is None:
        raise ValueError(f"{name!r}: write {family.names}")
    return made


def train_options(network: nn.Module, train: bool) -> dict[str, bool]:
    """How a module is told that it trains: the one of `train`, `training` and `deterministic` that its call takes."""
    names = inspect.signature(type(network).__call__).parameters
    values = {"train": train, "training": train, "deterministic": not train}
    return {name: value for name, value in values.items() if name in names}


def imported(name: str) -> Callable[..., Any]:
    """What "package.module:Name" names: a Flax module, Linen or NNX, or a function that makes a Linen one; it takes
    num_classes.

    Raises:
        ValueError: it cannot be imported.
    """
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever a module of the user's raises when it is imported
        raise ValueError(f"{name!r}, which cannot be made ({type(error).__name__}: {error})") from None


def make_imported(name: str, num_classes: int, options: dict[str, Any], given: dict[str, Any]) -> nn.Module:
    """A network from elsewhere.

    Args:
        name: package.module:Name.
        num_classes: C.
        options: dtype, axis_name, dropout; it gets those that it takes, and is refused where one is set that it does
            not.
        given: further arguments of its own.

    Raises:
        ValueError: it cannot be imported, cannot be made or is no Flax module.
    """
    from flax import nnx  # takes a quarter of a second to import

    from subspaces_jax.networks import nnx_modules

    make = imported(name)
    try:
        taken = {key: value for key, value in options.items() if key in inspect.signature(make).parameters}
        options_of = {"num_classes": num_classes} | taken | given
        is_nnx = inspect.isclass(make) and issubclass(make, nnx.Module)
        made = nnx_modules.adapted(make, options_of) if is_nnx else make(**options_of)
    except Exception as error:  # whatever a constructor of the user's raises
        raise ValueError(
            f"{name!r}, which cannot be made ({type(error).__name__}: {error}): it is called with num_classes"
        ) from None
    if not isinstance(made, nn.Module):
        raise ValueError(f"{name!r}, which is {type(made).__name__}: it is to be a Flax module")
    usual = {"dtype": jnp.float32, "axis_name": None, "dropout": 0.0}
    for key in options.keys() - taken.keys():
        if options[key] != usual[key]:
            value = jnp.dtype(options[key]).name if key == "dtype" else options[key]
            raise ValueError(f"{name!r}, which takes no {key}: it cannot be {value} there")
    return made
