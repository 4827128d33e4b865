"""Runs a family of configs over seeds:

python -m launch.sweep --config=configs/sweep_fashion_mnist.py --workdir=runs/fashion_mnist
"""

from launch import app
from subspaces_jax.experiments import plot, sweep


def run(config, workdir):
    print("{finished} runs were finished, {ran} ran".format(**sweep.run(config, workdir)))
    drawn = plot.run(None, workdir)
    print("\n".join([drawn["table"], *drawn["figures"]]))


if __name__ == "__main__":
    app.main(run, goes_on=True)
