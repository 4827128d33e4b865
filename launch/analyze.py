"""Analyses trained runs together:

python -m launch.analyze --config=configs/analyze.py --config.runs=runs/a,runs/b --workdir=runs/a_and_b
"""

from launch import app
from subspaces_jax import parallel
from subspaces_jax.experiments import analyze, plot, references


def run(config, workdir):
    facts = analyze.run(config, workdir)
    if not parallel.is_main():
        return
    print(analyze.table(facts))
    print(references.text(facts["config"]))
    print("\n".join(plot.run(None, workdir)["figures"]))


if __name__ == "__main__":
    app.main(run)
