"""The subspace paper's experiments at a size for two CPU cores: Fashion-MNIST, few examples, a thin ResNet-8.

    python -m launch.train --config=configs/fashion_mnist.py:line --workdir=runs/fashion_mnist/line_0 \
        --config.idx_dir=/usr/share/datasets/fashion-mnist
    python -m launch.sweep --config=configs/sweep_fashion_mnist.py --workdir=runs/fashion_mnist

A CPU core trains a variant in 75 to 110 s and evaluates a curve in 60 s, anything else in 2 to 35 s. The lab book,
configs/README.md, has the results of all variants.
"""

from configs import base, variants


def get_config(form: str = ""):
    return variants.choose(make, form, usual="line")


def make():
    config = base.get_config()
    config.dataset = "fashion_mnist"
    config.augmentation = "flip"
    config.network = "cifar_resnet_8_8"
    config.num_train_examples = 2000
    config.batch_size = 64
    config.num_epochs = 80
    config.checkpoint_every = 20
    return config
