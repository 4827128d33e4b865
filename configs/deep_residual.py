"""Weights of very deep residual networks as paths over depth (after Cont, Rossier and Xu 2022, arXiv:2204.07261).

The words after the colon: what is learned (cifar10, with the code beside the thesis; fashion_mnist and digits, small
forms for a CPU; constant and sine, values of functions; resnet_56, resnet_104 or resnet_224, convolutional networks on
CIFAR-10), alphas (nine members: alpha 0.49, 0.75 and 1 at the rate L^(2 alpha - 1.05), three seeds each), variation
(the learning rate by p-variation), and tiny.

    python -m launch.train --config=configs/deep_residual.py:cifar10 --workdir=runs/deep/cifar10
    python -m launch.train --config=configs/deep_residual.py:fashion_mnist,alphas --workdir=runs/deep/alphas \
        --config.idx_dir=/usr/share/datasets/fashion-mnist

Steps are of full-batch gradient descent without momentum or decay; every row has the variations of exponents 1, 1.5
and 2 of L^(1 - alpha) W, and Omega. The recipes cifar10 (depth 100 as the published command has it, 2000 as its text
says: --config.network="deep_residual(depth=2000, ...)"), constant and resnet are the published ones; what small ones
give is in the lab book, configs/README.md.
"""

from configs import base

ALPHAS = (0.49, 0.75, 1.0)
CIFAR10 = {
    "dataset": "cifar10",
    "normalisation": "given(mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010))",
    "train_fraction": 0.25,
    "seed": 1234,
}
VALUES = {"task": "regression(p=2, detailed=True)", "num_epochs": 25, "seed": 1234}
TASKS = {  # fields, depth, width, initial blocks
    "cifar10": (CIFAR10, 100, 15, "ntrunc"),
    "fashion_mnist": ({"dataset": "fashion_mnist", "num_train_examples": 500}, 128, 15, "ntrunc"),
    "digits": ({"dataset": "digits", "num_train_examples": 500}, 32, 15, "ntrunc"),
    "constant": ({"dataset": "constant/n_10000"} | VALUES, 128, 1, "constant"),
    "sine": ({"dataset": "sine/n_10000"} | VALUES, 128, 10, "ntrunc"),
}
RESNETS = {"resnet_56": 56, "resnet_104": 104, "resnet_224": 224}
CONVOLUTIONAL = {
    "dataset": "cifar10",
    "task": "classification(detailed=True, top=2)",
    "seed": 1231,
    "normalisation": "given(mean=0.5, std=0.5)",
    "augmentation": "crop(padding=4)",
    "num_epochs": 16,
    "batch_size": 128,
    "log_every": 1,
    "statistics": "none",
}
OTHERS = ("alphas", "variation", "tiny")


def get_config(form: str = "cifar10"):
    names = base.words(form, (*TASKS, *RESNETS, *OTHERS))
    chosen = base.one_of(names, (*TASKS, *RESNETS), "cifar10")
    if chosen in RESNETS and (others := [name for name in names if name in ("alphas", "variation")]):
        raise ValueError(f"variants {chosen} and {others[0]} contradict each other: choose one")
    config = base.get_config()
    config.update(usual())
    if chosen in RESNETS:
        convolutional(config, RESNETS[chosen])
    else:
        of_task(config, *TASKS[chosen], "alphas" in names)
    if "variation" in names:
        config.optimizer = "p_variation_sgd(most=20.0)"
    config.variant = ",".join(name for name in names if name != "tiny") or "cifar10"
    return base.in_form(config, "tiny" if "tiny" in names else "", tiny)


def usual():
    return {
        "task": "classification(detailed=True)",
        "statistics": "p_variation(p=2)",
        "subspace": "none",
        "beta": 0.0,
        "schedule": "constant",
        "warmup_epochs": 0,
        "learning_rate": 9.0,
        "momentum": 0.0,
        "weight_decay": 0.0,
        "num_epochs": 39,
        "batch_size": 0,
        "checkpoint_every": 0,
    }


def of_task(config, fields, depth: int, width: int, initialisation: str, alphas: bool):
    config.update(fields)
    config.network = (
        f"deep_residual(depth={depth}, width={width}, alpha=0.75, gamma=1.0, initialisation={initialisation})"
    )
    if alphas:
        parts = [f"alpha={alpha} learning_rate={depth ** (2 * alpha - 1.05):.6g}" for alpha in ALPHAS]
        config.member_options, config.num_members = "; ".join(parts), 3 * len(parts)


def convolutional(config, depth: int):
    config.update(CONVOLUTIONAL)
    config.network = f"depth_scaled_resnet(depth={depth})"
    config.learning_rate = depth**0.45  # L^(alpha - beta - 0.05) with alpha = 0.75


def tiny(config):
    config = base.tiny(config)
    config.normalisation = "dataset"
    config.train_fraction = 1.0
    config.network = "deep_residual(depth=6, width=4, alpha=0.75, gamma=1.0)"
    return config
