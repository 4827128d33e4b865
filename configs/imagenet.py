"""The subspace paper's experiments on ImageNet: WideResNet-50-2, 200 epochs, batch 256, weight decay 5e-5.

    python -m launch.train --config=configs/imagenet.py:line --workdir=runs/imagenet/line_0

For several accelerators (--config.dtype=bfloat16). Images stream from ArrayRecord files, decoded and cropped on the
host. BatchNorm statistics are refreshed on 500 batches of 500 at each point; --config.num_refresh_batches=0 takes the
paper's whole pass over the training split. Not yet run here: ImageNet has to be prepared first, and training says with
which command.
"""

from configs import base, variants


def get_config(form: str = ""):
    return variants.choose(make, form, usual="line")


def make():
    config = base.get_config()
    config.dataset = "imagenet2012"
    config.network = "wide_resnet_50_2"
    config.num_epochs = 200
    config.batch_size = 256
    config.weight_decay = 5e-5
    config.test_every = 100
    config.num_refresh_batches = 500
    return config
