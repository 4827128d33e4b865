"""The networks that are connected (Anokhin and Yarotsky 2020, arXiv:2008.00741): dense ones, and VGG16.

The words after the colon: one_100, one_500, one_1000, one_2000 (one hidden layer, with biases), fc3, fc5, fc7, fc9 (3
to 9 bias-free layers, widths 6144, 2000, 1000 ...), fc3_500 (a thin fc3), logistic, vgg16, cifar10 (for its images;
without it Fashion-MNIST), bezier for a curve whose ends stay, and tiny.

    python -m launch.train --config=configs/dense.py:one_500 --workdir=runs/one_500/0 \
        --config.idx_dir=/usr/share/datasets/fashion-mnist

SGD of rate 0.01, momentum 0.9 and decay 1e-4 at batch 128, images within [0, 1]; 30 epochs of Fashion-MNIST (of MNIST
in the paper), 400 of CIFAR-10. One hidden layer of 500 trains in a minute on a CPU core. What connecting them gives is
in the lab book, configs/README.md.
"""

from configs import base

DEEP = "mlp({}, bias=False, initialisation=uniform)"
ONE = "mlp({}, initialisation=uniform)"
NETWORKS = {
    **{f"one_{width}": ONE.format(f"({width},)") for width in (100, 500, 1000, 2000)},
    "fc3_500": DEEP.format("(500, 500)"),
    "fc3": DEEP.format("(6144, 2000)"),
    "fc5": DEEP.format("(6144, 2000, 1000, 1000)"),
    "fc7": DEEP.format("(6144, 2000, 1000, 1000, 1000, 1000)"),
    "fc9": DEEP.format("(6144, 2000, 1000, 1000, 1000, 1000, 1000, 1000)"),
    "logistic": ONE.format("()"),
    "vgg16": "vgg(depth=16)",
}
OTHERS = ("cifar10", "bezier", "tiny")


def get_config(form: str = "one_100"):
    names = base.words(form, (*NETWORKS, *OTHERS))
    config = make(base.one_of(names, tuple(NETWORKS), "one_100"), "cifar10" in names or "vgg16" in names)
    if "bezier" in names:
        config.subspace, config.frozen_endpoints, config.decay = "bezier(3)", "ends", "point"
    config.variant = ",".join(name for name in names if name != "tiny") or "one_100"
    return base.in_form(config, "tiny" if "tiny" in names else "")


def make(network: str, on_cifar: bool):
    config = base.get_config()
    config.network = NETWORKS[network]
    config.dataset = "cifar10" if on_cifar else "fashion_mnist"
    config.augmentation = "flip|crop(padding=4)" if on_cifar else "none"
    config.normalisation = "dataset" if on_cifar else "none"
    config.dropout = 0.5 if network == "vgg16" else 0.0
    config.subspace = "none"
    config.beta = 0.0
    config.schedule = "plateau"
    config.learning_rate = 0.01
    config.warmup_epochs = 0
    config.num_epochs = 400 if on_cifar else 30
    config.checkpoint_every = 10
    return config
