"""A line of thin ResNet-8s on scikit-learn's digits: the toolkit's first job, on any machine.

    python -m launch.train --config=configs/line_digits.py --workdir=runs/line_digits
"""

from configs import base


def get_config(form: str = ""):
    config = base.get_config()
    config.dataset = "digits"
    config.augmentation = "shift1"
    config.network = "cifar_resnet_8"
    config.num_epochs = 40
    config.checkpoint_every = 5
    return base.tiny(config) if form == "tiny" else config
