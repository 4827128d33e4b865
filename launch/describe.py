"""Says what a run, a path, an analysis or a sweep holds, and writes it into one HTML file:

python -m launch.describe --workdir=runs/line_digits
"""

from launch import app
from subspaces_jax.experiments import describe


def run(config, workdir):
    print(describe.table(describe.run(config, workdir)))


if __name__ == "__main__":
    app.main(run, needs_config=False)
