"""Low-loss curves between trained classifiers (Garipov et al. 2018, arXiv:1802.10026): ends, curves, and FGE.

The words after the colon: an architecture (vgg16, vgg19, vgg16_bn, pre_resnet110, pre_resnet164, wide_resnet28x10,
conv_fc; or small, a thin ResNet-8 on 2,000 images of Fashion-MNIST), what is trained (ends, one network; bezier or
chain, a curve whose ends stay; fge), cifar100 for CIFAR-100, and tiny.

    python -m launch.train --config=configs/mode_connectivity.py:small,ends --config.seed=0 --workdir=runs/mc/end_0 \
        --config.idx_dir=/usr/share/datasets/fashion-mnist
    python -m launch.train --config=configs/mode_connectivity.py:small,ends --config.seed=1 --workdir=runs/mc/end_1 \
        --config.idx_dir=/usr/share/datasets/fashion-mnist
    python -m launch.train --config=configs/mode_connectivity.py:small,bezier --workdir=runs/mc/bezier_0_1 \
        --config.initial=runs/mc/end_0,runs/mc/end_1 --config.idx_dir=/usr/share/datasets/fashion-mnist
    python -m launch.analyze --config=configs/analyze.py:curve --config.runs=runs/mc/bezier_0_1 --workdir=runs/mc/curve

A small end trains in 75 s on a CPU core, a curve in 80 s; their results are in the lab book, configs/README.md. The
recipes of the paper's networks are for an accelerator and have not been run here: the published numbers are 27.5 % test
error of VGG16 on CIFAR-100 at the ends and at most 30.1 % on the Bezier curve. Rates, decays and epochs are those of
the authors' README, but for the lowest rate of FGE with VGG16, there as high as the highest. FGE goes on from a network
that is trained to about 80 % of its epochs (train an end with --config.keep_steps of that step, and start from
--config.initial=runs/mc/end_0@62400), with a fresh momentum; its captures are those at the lowest rates.
"""

from configs import base

ARCHITECTURES = {  # network, dropout; (epochs, rate, decay) of ends and of curves
    "vgg16": ("vgg(depth=16)", 0.5, (200, 0.05, 5e-4), (600, 0.015, 5e-4)),
    "vgg19": ("vgg(depth=19)", 0.5, (200, 0.05, 5e-4), (600, 0.015, 5e-4)),
    "vgg16_bn": ("vgg(depth=16, batch_norm=True)", 0.5, (200, 0.05, 5e-4), (600, 0.015, 5e-4)),
    "pre_resnet110": ("pre_resnet(depth=110)", 0.0, (150, 0.1, 3e-4), (200, 0.03, 3e-4)),
    "pre_resnet164": ("pre_resnet(depth=164)", 0.0, (150, 0.1, 3e-4), (200, 0.03, 3e-4)),
    "wide_resnet28x10": ("cifar_wide_resnet(depth=28, factor=10)", 0.0, (200, 0.1, 5e-4), (200, 0.03, 5e-4)),
    "conv_fc": ("conv_fc", 0.0, (200, 0.01, 1e-4), (200, 0.01, 1e-4)),
    "small": ("cifar_resnet_8_8", 0.0, (80, 0.1, 1e-3), (80, 0.05, 1e-3)),
}
FGE = {  # (epochs, highest rate, lowest rate) after an end
    "vgg16": (40, 0.01, 0.0005),
    "small": (16, 0.05, 0.005),
}
USUAL_FGE = (40, 0.05, 0.01)
RESNETS = ("pre_resnet110", "pre_resnet164", "wide_resnet28x10")  # whose images the authors prepare otherwise
OF_RESNETS = "given(mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010))"
ROLES = ("ends", "bezier", "chain", "fge")


def get_config(form: str = "small,ends"):
    names = base.words(form, (*ARCHITECTURES, *ROLES, "cifar100", "tiny"))
    architecture = base.one_of(names, tuple(ARCHITECTURES), "small")
    config = make(architecture, base.one_of(names, ROLES, "ends"))
    if "cifar100" in names:
        config.dataset = "cifar100"
    config.variant = ",".join(name for name in names if name != "tiny") or "small,ends"
    return base.in_form(config, "tiny" if "tiny" in names else "")


def make(architecture: str, role: str):
    network, dropout, ends, curves = ARCHITECTURES[architecture]
    config = base.get_config()
    config.network, config.dropout = network, dropout
    config.dataset = "cifar10"
    config.augmentation = "flip|crop(padding=4)"
    if architecture in RESNETS:
        config.augmentation, config.normalisation = "crop(padding=4)|flip", OF_RESNETS
    config.warmup_epochs = 0
    config.checkpoint_every = 20
    config.num_points = 61
    config.beta = 0.0
    config.schedule = "plateau"
    config.num_epochs, config.learning_rate, config.weight_decay = ends
    config.subspace = "none"
    if architecture == "small":
        config.dataset, config.augmentation = "fashion_mnist", "flip"
        config.num_train_examples, config.batch_size, config.num_points = 2000, 64, 21
    if role in ("bezier", "chain"):
        config.num_epochs, config.learning_rate, config.weight_decay = curves
        config.subspace, config.frozen_endpoints, config.decay = f"{role}(3)", "ends", "point"
    if role == "fge":
        config.num_epochs, config.learning_rate, lowest = FGE.get(architecture, USUAL_FGE)
        config.schedule, config.capture = f"fge(low={lowest}, cycle={2 if architecture != 'small' else 4})", True
    return config
