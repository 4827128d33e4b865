"""Evaluates a trained run again: python -m launch.evaluate --workdir=runs/line_digits"""

from launch import app
from subspaces_jax.experiments import evaluate


def run(config, workdir):
    print(evaluate.table(evaluate.run(config, workdir)))


if __name__ == "__main__":
    app.main(run, needs_config=False)
