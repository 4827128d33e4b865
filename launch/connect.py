"""Connects two trained networks:

python -m launch.connect --config=configs/connect.py:arc --config.runs=runs/a,runs/b --workdir=runs/path
"""

from launch import app
from subspaces_jax.experiments import connect, plot, references


def run(config, workdir):
    facts = connect.run(config, workdir)
    print(connect.table(facts))
    print(references.text(facts["config"]))
    plot.run(config, workdir)


if __name__ == "__main__":
    app.main(run)
