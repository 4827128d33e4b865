"""Evaluates a trained run again: python -m launch.evaluate --workdir=runs/line_digits

Fields that an evaluation may change, as --config.eval_split=train, are changed in the run's own config.
"""

from absl import flags

from launch import app
from subspaces_jax import parallel
from subspaces_jax.experiments import evaluate

_STEP = flags.DEFINE_integer("step", None, "of the checkpoint, default the last", lower_bound=0)


def run(config, workdir):
    facts = evaluate.run(config, workdir, _STEP.value)
    if parallel.is_main():
        print(evaluate.table(facts))


if __name__ == "__main__":
    app.main(run, needs_config=False, of_run=True)
