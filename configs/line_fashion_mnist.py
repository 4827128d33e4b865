"""A line of thin ResNet-8s on Fashion-MNIST, small enough for two CPU cores.

    python -m launch.train --config=configs/line_fashion_mnist.py --workdir=runs/line_fashion_mnist \
        --config.idx_dir=/usr/share/datasets/fashion-mnist

On one CPU core 5 minutes of training and 4 of evaluation. Midpoint 90.36 ± 0.12 %, ends 89.59 ± 0.22 %, ensemble of
t = 0.2 and 0.8 90.55 ± 0.17 % (seeds 0, 1, 2): below standard training, see configs/README.md.
"""

from configs import base


def get_config(form: str = ""):
    config = base.get_config()
    config.dataset = "fashion_mnist"
    config.augmentation = "flip"
    config.network = "cifar_resnet_8_8"
    config.num_epochs = 10
    config.warmup_epochs = 1
    config.log_every = 100
    return base.in_form(config, form)
