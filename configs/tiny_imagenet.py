"""The subspace paper's experiments on TinyImageNet: a ResNet-18 for 64x64 images; the rest as on CIFAR-10.

    python -m launch.train --config=configs/tiny_imagenet.py:curve --workdir=runs/tiny_imagenet/curve_0

For an accelerator (--config.dtype=bfloat16). The paper's window is 62.5 % to 67.5 % (figure 4). Not yet run here: the
archive has to be downloaded first, and training says from where.
"""

from configs import cifar10, variants


def get_config(form: str = ""):
    return variants.choose(make, form, usual="line")


def make():
    config = cifar10.make()
    config.dataset = "tiny_imagenet"
    config.network = "tiny_imagenet_resnet_18"
    return config
