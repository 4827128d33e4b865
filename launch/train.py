"""Trains, evaluates and plots: python -m launch.train --config=configs/line_digits.py --workdir=runs/line_digits"""

from launch import app
from subspaces_jax import parallel
from subspaces_jax.experiments import evaluate, train


def run(config, workdir):
    rows = train.run(config, workdir)
    if not rows["step"]:
        print(f"step 0: saved in {rows['seconds']:.0f} s; see {workdir}")
        return
    facts = evaluate.run(config, workdir)
    if not parallel.is_main():
        return
    from subspaces_jax.experiments import plot, references  # a second, with Matplotlib, that training need not wait for

    print(evaluate.table(facts))
    plot.run(config, workdir)
    print(references.text(facts["config"]))
    print(
        f"step {facts['step']}: trained in {rows['seconds']:.0f} s, evaluated in {facts['seconds']:.0f} s; "
        f"see {workdir}"
    )


if __name__ == "__main__":
    app.main(run, goes_on=True)
