"""Analyses trained runs together:

python -m launch.analyze --config=configs/analyze.py --config.runs=runs/a,runs/b --workdir=runs/a_and_b
"""

from launch import app
from subspaces_jax.experiments import analyze, plot


def run(config, workdir):
    print(analyze.table(analyze.run(config, workdir)))
    print("\n".join(plot.run(None, workdir)["figures"]))


if __name__ == "__main__":
    app.main(run)
