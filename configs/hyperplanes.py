"""Networks whose hyperplanes are looked at and whose layers are reset (Gamba et al. 2020, arXiv:2003.07797; Zhang et
al. 2019, arXiv:1902.01996): training that keeps its start, its first epochs and every tenth.

The words after the colon: a form (orientation_digits, orientation_fashion_mnist, reinit_digits, reinit_fashion_mnist;
for an accelerator orientation_cifar10, orientation_cifar100, orientation_imagenet, reinit_cifar10), another network
(lenet, fcn, alexnet, vgg11 to vgg19, vgg11_bn to vgg19_bn, vgg19_orig, mlp, mlp_bn), line for a line, noise_50 for
labels half of which are another class, pixel_shuffle for another order of pixels in every training image, unnormalised,
ten_classes, validation (a tenth is held out), upscaled and upscaled_padded for 224x224 pixels (the latter of 112x112
within black), and tiny.

    python -m launch.train --config=configs/hyperplanes.py:orientation_digits --workdir=runs/hyperplanes/lenet_0
    python -m launch.analyze --config=configs/analyze.py:orientation --config.runs=runs/hyperplanes/lenet_0 \
        --config.with_dense=True --workdir=runs/hyperplanes/orientation
    python -m launch.analyze --config=configs/analyze.py:reinit --config.runs=runs/hyperplanes/lenet_0 \
        --config.parts=convolutions --workdir=runs/hyperplanes/reinit

Digits are 20x20 pixels with a border of 4; LeNet trains on them in a minute on a CPU core, on Fashion-MNIST (4,000
images, --config.idx_dir=/usr/share/datasets/fashion-mnist) in two. What they give is in the lab book,
configs/README.md. SGD of rate 0.01, momentum 0.9 and decay 1e-4 at batch 32 or 128 are the authors' program's, as are
300 epochs at decay 5e-4 with a tenth of the rate every 100; the forms for accelerators have not been run here.
"""

from configs import base

NETWORKS = {
    "lenet": "deep_lenet",
    "fcn": "mlp((256, 256, 256), initialisation=uniform)",
    "alexnet": "alexnet",
    **{f"vgg{depth}": f"imagenet_vgg(depth={depth})" for depth in (11, 13, 16, 19)},
    **{f"vgg{depth}_bn": f"imagenet_vgg(depth={depth}, batch_norm=True)" for depth in (11, 13, 16, 19)},
    "vgg19_orig": "imagenet_vgg(depth=19, initialisation=normal)",
    "mlp": "bottleneck_mlp",
    "mlp_bn": "bottleneck_mlp(batch_norm=True)",
}
DROPOUT = {"fcn": 0.0, "mlp": 0.2, "mlp_bn": 0.2}
DATASETS = {  # epochs, batch
    "digits": (40, 32),
    "fashion_mnist": (30, 32),
    "cifar10": (300, 128),
    "cifar100": (300, 128),
    "imagenet2012": (40, 128),
}
FORMS = {  # network, data set
    "orientation_digits": ("lenet", "digits"),
    "orientation_fashion_mnist": ("lenet", "fashion_mnist"),
    "orientation_cifar10": ("vgg16", "cifar10"),
    "orientation_cifar100": ("vgg16", "cifar100"),
    "orientation_imagenet": ("vgg19", "imagenet2012"),
    "reinit_digits": ("fcn", "digits"),
    "reinit_fashion_mnist": ("fcn", "fashion_mnist"),
    "reinit_cifar10": ("vgg11", "cifar10"),
}
CHANGES = {
    "line": {"subspace": "line", "beta": 1.0},
    "noise_50": {"label_noise": 0.5, "label_noise_kind": "wrong"},
    "pixel_shuffle": {"pixel_shuffle": True, "pixel_orders": "own"},
    "unnormalised": {"normalisation": "none"},
    "ten_classes": {"classes": "drawn(10, seed=0)"},
    "validation": {"validation": "drawn(0.1, seed=0)"},
    "upscaled": {"image_size": 224},
    "upscaled_padded": {"image_size": 112, "image_padding": 56},
}
GIVEN = "given(mean=({}), std=({}))"  # a channel, of the authors' program
NORMALISATIONS = {  # of a data set, as it is and enlarged
    ("cifar10", ""): GIVEN.format("0.4914, 0.4822, 0.4465", "0.2023, 0.1994, 0.2010"),
    ("cifar100", ""): GIVEN.format("0.5071, 0.4865, 0.4409", "0.2009, 0.1984, 0.2023"),
    ("cifar10", "upscaled"): GIVEN.format("0.4914, 0.4822, 0.4465", "0.1953, 0.1925, 0.1942"),
    ("cifar10", "upscaled_padded"): GIVEN.format("0.1229, 0.1206, 0.1117", "0.2367, 0.2323, 0.2190"),
    ("cifar100", "upscaled"): GIVEN.format("0.5071, 0.4865, 0.4409", "0.1942, 0.1918, 0.1958"),
    ("cifar100", "upscaled_padded"): GIVEN.format("0.1268, 0.1217, 0.1103", "0.2435, 0.2343, 0.2177"),
}


def get_config(form: str = "orientation_digits"):
    names = base.words(form, (*FORMS, *NETWORKS, *CHANGES, "tiny"))
    network, dataset = FORMS[base.one_of(names, tuple(FORMS), "orientation_digits")]
    config = make(base.one_of(names, tuple(NETWORKS), network), dataset)
    for name in names:
        config.normalisation = NORMALISATIONS.get((dataset, name), config.normalisation)
        config.update(CHANGES.get(name, {}))
    config.variant = ",".join(name for name in names if name != "tiny") or "orientation_digits"
    return base.in_form(config, "tiny" if "tiny" in names else "")


def make(network: str, dataset: str):
    config = base.get_config()
    config.network, config.dropout = NETWORKS[network], DROPOUT.get(network, 0.5)
    config.dataset = dataset
    config.num_epochs, config.batch_size = DATASETS[dataset]
    config.subspace, config.beta = "none", 0.0
    config.learning_rate, config.momentum, config.weight_decay = 0.01, 0.9, 1e-4
    config.schedule, config.warmup_epochs = "constant", 0
    config.checkpoint_every = config.keep_every = 10
    config.keep_first = 3 if dataset in ("digits", "fashion_mnist") else 10
    if dataset == "digits":
        config.image_size, config.image_padding = 20, 4
        config.num_epochs = 100 if network == "fcn" else config.num_epochs
    if dataset == "fashion_mnist":
        config.num_train_examples = 4000
    if dataset.startswith("cifar"):
        config.augmentation = "flip|crop(padding=4)"
        config.normalisation = NORMALISATIONS[dataset, ""]
        if network == "alexnet":
            config.image_size, config.normalisation = 224, NORMALISATIONS[dataset, "upscaled"]
        config.weight_decay, config.schedule = 5e-4, "multistep(every=100, factor=0.1)"
    if dataset == "imagenet2012":
        config.augmentation = "flip"
    return config
