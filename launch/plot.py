"""Draws the figures of a run or of a sweep from its files, and prints a sweep's table:

python -m launch.plot --workdir=runs/line_digits
"""

from launch import app
from subspaces_jax import records
from subspaces_jax.experiments import plot, sweep


def run(config, workdir):
    if records.read_header(workdir).kind == "sweep":
        sweep.gather(workdir)
    drawn = plot.run(config, workdir)
    print("\n".join([*filter(None, [drawn["table"]]), *drawn["figures"]]))


if __name__ == "__main__":
    app.main(run, needs_config=False)
