"""Trains the curve of a run once more in PyTorch: python -m launch.peer --curve=runs/mc/bezier_0_1

Between the same networks and on the same images; its highest loss and error along t, and the time of a step, are set
beside the run's.
"""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from launch import app
from launch.peers import residual
from subspaces_jax import geometry
from subspaces_jax.errors import ConfigError
from subspaces_jax.experiments import runs, starts
from subspaces_jax.experiments.benchmarks import Problem, curves
from subspaces_jax.experiments.build import Experiment
from subspaces_jax.experiments.runs import Networks, Run
from subspaces_jax.experiments.studies import profiles
from subspaces_jax.networks import CifarResNet

_CURVE = flags.DEFINE_string("curve", None, "the run directory of a curve between two residual networks")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "alternations in which the steps of a curve are timed")
TRAINS = {  # fields of a config, and what of them the peer trains
    "subspace": ("bezier(3)", "bezier"),
    "frozen_endpoints": ("ends",),
    "decay": ("point",),
    "inner_endpoints": ("linear",),
    "task": ("classification",),
    "optimizer": ("sgd",),
    "augmentation": ("none", "flip"),
    "normalisation": ("dataset",),
    "dtype": ("float32",),
    "num_samples": (1,),
    "layerwise": (False,),
    "beta": (0.0,),
    "dropout": (0.0,),
    "input_noise": (0.0,),
    "label_smoothing": (0.0,),
}
SHOWN = {"tr_loss": "training loss, nats, with L2", "tr_nll": "training nll, nats", "te_err": "test error, %"}


def compare_curve(folder: str, rounds: int = 5) -> str:
    """Trains a run's curve here too, and gives a table of the highest scores of both along t, and of their steps.

    The networks at the points of both curves are scored alike, see `studies.profiles`; steps are timed in turn on
    random images of the same shape.

    Raises:
        ConfigError: the run's config has something that the peer does not train; names the field.
        RunDirectoryError, CheckpointError, DataError: see `errors`.
    """
    run = runs.open_run(folder)
    made = run.experiment
    recipe, network = recipe_of(made), made.model.network
    first, _, last = geometry.unstack(jax.device_get(starts.start(made).params))
    bend, in_training = residual.train_curve((first, last), made.data.train.images, made.data.train.labels, recipe)
    own = runs.networks(run, "knots")
    both = own, own._replace(stack=geometry.stack([first, bend, last]))
    highest = [_highest(run, networks) for networks in both]
    size, _, channels = made.data.info.image_shape
    problem = Problem(f"cifar_resnet_{network.depth}_{network.width}", size, channels, made.batch_size)
    row = curves.compare_steps(problem, rounds, residual.curve_stepper)
    lines = [f"{run.folder.name}, step {own.step}, {made.num_points} points", _line("highest", "ours", "peer")]
    lines += [_line(text, *(f"{of[name]:.4f}" for of in highest)) for name, text in SHOWN.items()]
    lines += [_line("ms a step, in turn", f"{1e3 * row.seconds:.2f}", f"{1e3 * row.base_seconds:.2f}")]
    ratio = f"ratio of steps {row.ratio:.3f} ({row.low:.3f} to {row.high:.3f})"
    return "\n".join([*lines, f"{ratio}; the peer's step in its training took {in_training:.2f} ms"])


def recipe_of(made: Experiment) -> residual.Recipe:
    """An experiment's, where the peer can train it.

    Raises:
        ConfigError: it cannot; names the field.
    """
    config = made.config
    for name, accepted in TRAINS.items():
        if config[name] not in accepted:
            takes = " or ".join(map(repr, accepted))
            raise ConfigError(f"config.{name} is {config[name]!r}: the peer trains curves of {takes}")
    if not isinstance(made.model.network, CifarResNet) or made.model.network.width < residual.NARROWEST:
        takes = f"cifar_resnet, {residual.NARROWEST} channels wide or more"
        raise ConfigError(f"config.network is {config['network']!r}: the peer trains curves of {takes}")
    if len(made.initial) != 2:
        raise ConfigError(f"config.initial is {made.initial_text!r}: the peer trains curves between two networks")
    return residual.Recipe(
        np.asarray(jax.vmap(made.schedule)(jnp.arange(made.plan.num_steps))),
        made.batch_size,
        made.data.info.mean,
        made.data.info.std,
        config["momentum"],
        made.weight_decay,
        config["augmentation"] == "flip",
        made.seed,
    )


def _highest(run: Run, networks: Networks) -> dict[str, float]:
    """The highest of each of SHOWN along t."""
    made = run.experiment
    usual = {name: field.default for name, field in profiles.FIELDS.items()}
    settings = SimpleNamespace(**usual | {"eval_batch_size": made.eval_batch_size})
    found = profiles.scored(settings, [run], networks, made.space.grid(made.num_points), label="curve")
    return {name: float(np.max(found[name])) for name in SHOWN}


def _line(name: str, ours: str, peer: str) -> str:
    return f"{name:32}{ours:>12}{peer:>12}"


def main(argv, interrupts):
    if not _CURVE.value:
        raise ConfigError("--curve is missing: name the run directory of a curve, or run launch.benchmark for the rows")
    print(compare_curve(_CURVE.value, _ROUNDS.value))


if __name__ == "__main__":
    app.program(main)
