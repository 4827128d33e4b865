"""Curves between autoencoders (AEproject 2022), with MAE and Laplacian losses.

The words after the colon: how convolutions begin (normal, kaiming_normal, kaiming_uniform), bezier or chain for a curve
whose ends stay, laplacian for that loss, celeba for the full size (64x64 CelebA, 17,944,512 parameters; without it thin
networks on Fashion-MNIST at 32x32), and tiny.

    python -m launch.train --config=configs/autoencoders.py:normal --workdir=runs/ae/normal \
        --config.idx_dir=/usr/share/datasets/fashion-mnist
    python -m launch.train --config=configs/autoencoders.py:kaiming_normal --workdir=runs/ae/kaiming_normal \
        --config.idx_dir=/usr/share/datasets/fashion-mnist
    python -m launch.train --config=configs/autoencoders.py:bezier --workdir=runs/ae/bezier \
        --config.initial=runs/ae/normal,runs/ae/kaiming_normal --config.idx_dir=/usr/share/datasets/fashion-mnist
    python -m launch.analyze --config=configs/analyze.py:curve --config.runs=runs/ae/bezier --config.lpips=alex \
        --workdir=runs/ae/curve

Their results are in the lab book, configs/README.md. CelebA (--config.archive=img_align_celeba, the folder of aligned
crops) is for an accelerator and has not been run here; the published segment peaks at a MAE of 0.209 between ends of
0.045, and the curve stays at 0.046.
"""

from configs import base

BEGINNINGS = ("normal", "kaiming_normal", "kaiming_uniform")
CURVES = ("bezier", "chain")
OTHERS = ("laplacian", "celeba", "tiny")


def get_config(form: str = "normal"):
    names = base.words(form, (*BEGINNINGS, *CURVES, *OTHERS))
    base.one_of(names, CURVES, "")
    config = make(names)
    config.variant = ",".join(name for name in names if name != "tiny") or "normal"
    return base.in_form(config, "tiny" if "tiny" in names else "", tiny)


def make(names: list[str]):
    full = "celeba" in names
    beginning = base.one_of(names, BEGINNINGS, "normal")
    sizes = "width=64, latent=128" if full else "width=8, latent=32"
    config = base.get_config()
    config.network = f"autoencoder({sizes}, initialisation={beginning}, dropout=0.05)"
    loss, levels = "laplacian" if "laplacian" in names else "mae", 5 if full else 4
    config.task = f"reconstruction(loss={loss}, levels={levels})"
    config.dataset = "celeba" if full else "fashion_mnist"
    config.image_size = 0 if full else 32
    config.normalisation = "none"
    config.input_noise = 0.05
    config.optimizer = "adam(b1=0.5, b2=0.999)"
    config.schedule = "plateau"
    config.warmup_epochs = 0
    config.beta = 0.0
    config.subspace = "none"
    config.batch_size = 64
    config.num_epochs = 100 if full else 15
    config.learning_rate = 1e-4 if full else 1e-3
    config.weight_decay = 1e-6
    config.checkpoint_every = 5
    config.num_points = 61 if full else 21
    if not full:
        config.num_train_examples = 4000
    if curve := next((name for name in names if name in CURVES), None):
        config.subspace, config.frozen_endpoints, config.decay = f"{curve}(3)", "ends", "point"
    return config


def tiny(config):
    """Digits at 32x32, the thinnest network."""
    config = base.tiny(config)
    config.image_size = 32
    config.network = "autoencoder(width=1, latent=2)"
    return config
