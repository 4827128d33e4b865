"""Draws a run's figures from its files: python -m launch.plot --workdir=runs/line_digits"""

from launch import app
from subspaces_jax.experiments import plot


def run(config, workdir):
    print("\n".join(plot.run(config, workdir)["figures"]))


if __name__ == "__main__":
    app.main(run, needs_config=False)
