"""The subspace paper's experiments on CIFAR-10: cResNet20, 160 epochs, batch 128, rate 0.1, weight decay 1e-4, beta 1.

    python -m launch.train --config=configs/cifar10.py:line_layerwise --workdir=runs/cifar10/line_layerwise_0
    python -m launch.sweep --config=configs/sweep_cifar10.py --workdir=runs/cifar10

For an accelerator (--config.dtype=bfloat16). The paper's window for cResNet20 is 91.3 % to 93.5 % (Wortsman et al.
2021, arXiv:2102.10472, figure 4). Not yet run here: CIFAR-10 has to be prepared first, and training says with which
command.
"""

from configs import base, variants


def get_config(form: str = ""):
    return variants.choose(make, form, usual="line")


def make():
    config = base.get_config()
    config.dataset = "cifar10"
    config.augmentation = "crop_flip"
    config.network = "cifar_resnet_20"
    config.test_every = 10
    return config
