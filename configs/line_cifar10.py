"""The line of the subspace paper: cResNet20 on CIFAR-10, 160 epochs, beta = 1.

    python -m launch.train --config=configs/line_cifar10.py --workdir=runs/line_cifar10 --config.dtype=bfloat16

For an accelerator. The paper's window for cResNet20 is 91.3 % to 93.5 % (Wortsman et al. 2021, arXiv:2102.10472,
figure 4). Not yet run here: CIFAR-10 has to be prepared first, and training says with which command.
"""

from configs import cifar10


def get_config(form: str = ""):
    return cifar10.get_config(f"line,{form}")
