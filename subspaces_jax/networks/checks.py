"""A network from elsewhere is judged by what it gives, not by how it is written.

Both forms, evaluation and training with its gradient, are traced; nothing is computed. What a network must give to be
trained here as a stack of endpoints:

    parameters      real floating arrays, at least one, in the same number and shapes for every batch size
    outputs         one array of real floats [B, ...], of the shape that the task scores
    variables       "params" and "batch_stats" alone are kept; whatever else it sows is dropped
    batch_stats     real floating arrays of one form, of which training updates at least one leaf. A module is told
                    that it trains by its call (`train`, `training`, `deterministic`), not by an attribute
    randomness      under the names "params" and "dropout"
    its own code    raises nothing
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import meta
from flax.errors import InvalidRngError

from subspaces_jax import trees
from subspaces_jax.networks import families

PyTree = Any
BATCH = 2
MAX_REASON = 200


class Traits(NamedTuple):
    """What the rest needs to know of a network that passed.

    Attributes:
        train_options, eval_options: how its call is told whether it trains, see `families.train_options`.
        has_batch_stats: whether it keeps statistics.
        sows_features: whether it sows "features", [B, ...], in both forms.
        binds_axis: whether its code uses the mesh axis by name, as `nn.BatchNorm(axis_name="batch")` does: outside the
            mapped step it runs under `alone`.
        params: shapes of its parameters.
    """

    train_options: dict[str, bool]
    eval_options: dict[str, bool]
    has_batch_stats: bool
    sows_features: bool
    binds_axis: bool
    params: PyTree = None


class _Given(NamedTuple):
    """What a network gave in one trace, as shapes."""

    params: PyTree
    batch_stats: PyTree  # at initialisation
    outputs: PyTree
    intermediates: PyTree
    train_outputs: PyTree
    train_batch_stats: PyTree  # after training
    train_intermediates: PyTree
    updated: set[str]  # statistics that training replaces


def check_network(
    name: str,
    module: nn.Module,
    input_shape: tuple[int, ...],
    output_shape: tuple[int, ...],
    *,
    axis_name: str | None = None,
    dtype: Any = jnp.float32,
    with_gradient: bool = True,
) -> Traits:
    """Whether a network can be trained and scored here, by tracing it.

    Args:
        name: what to call it in errors.
        module: any Flax module.
        input_shape: of one example, (H, W, channels).
        output_shape: of one example's outputs, (C,).
        axis_name: mesh axis that the step binds, which the module may use by name; None for none.
        dtype: of the inputs.
        with_gradient: whether training is traced with its gradient, which takes half of the time.

    Raises:
        ValueError: one line that names the network and what it gave.
    """
    train, test = (families.train_options(module, trains) for trains in (True, False))
    trace = lambda axis: _traced(name, module, input_shape, dtype, train, test, axis, with_gradient)
    given, binds_axis = None, False
    try:
        given = trace(None)
    except ValueError:
        if axis_name is None:
            raise
    if given is None:  # perhaps for want of the axis
        given, binds_axis = trace(axis_name), True
    _check_outputs(name, given.outputs, output_shape)
    _check_outputs(name, given.train_outputs, output_shape)
    _check_batch_stats(name, given, train)
    sows = _sows_features(given.intermediates) and _sows_features(given.train_intermediates)
    return Traits(train, test, bool(jax.tree.leaves(given.batch_stats)), sows, binds_axis, given.params)


def alone(function: Callable[..., PyTree], axis_name: str) -> Callable[..., PyTree]:
    """`function` as the only share of a mesh axis: for code that uses the axis by name, where no step binds it."""

    def bound(*args: Any) -> PyTree:
        mapped = jax.vmap(lambda _: function(*args), axis_name=axis_name)
        return jax.tree.map(lambda leaf: leaf[0], mapped(jnp.zeros(1)))

    return bound


def _traced(
    name: str,
    module: nn.Module,
    input_shape: tuple[int, ...],
    dtype: Any,
    train: dict,
    test: dict,
    axis: str | None,
    with_gradient: bool,
) -> _Given:
    """One trace of initialisation, evaluation and training; `axis` is bound in all of them."""
    others: list[str] = []

    def run(during: str, function: Callable[..., PyTree], *args: PyTree) -> PyTree:
        try:
            return jax.eval_shape(alone(function, axis) if axis else function, *args)
        except MemoryError:
            raise
        except Exception as error:  # the module's own code may raise anything
            raise ValueError(f"{name!r} fails in {during}: {_first_line(error)}{_remedy(error, others)}") from None

    key = jax.eval_shape(lambda: jax.random.key(0))
    one = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)  # stacks are initialised with one example
    batch = jax.ShapeDtypeStruct((BATCH, *input_shape), dtype)
    variables = run("initialisation", lambda key, x: dict(meta.unbox(module.init(key, x, **test))), key, one)
    _check_parameters(name, variables.get("params", {}))
    kept = {
        collection: variables.pop(collection) for collection in ("params", "batch_stats") if collection in variables
    }
    others.extend(variables)
    updated: set[str] = set()
    in_evaluation = run("evaluation", _evaluation(module, test), kept, batch)
    in_training = run("training", _training(module, train, updated, with_gradient), kept, batch, key)
    return _Given._make([kept["params"], kept.get("batch_stats", {}), *in_evaluation, *in_training, updated])


def _evaluation(module: nn.Module, options: dict) -> Callable[..., PyTree]:
    """(variables, inputs) -> (outputs, intermediates)."""

    def evaluate(variables, x):
        outputs, sown = module.apply(variables, x, **options, mutable=["intermediates"])
        return outputs, sown.get("intermediates", {})

    return evaluate


def _training(module: nn.Module, options: dict, updated: set[str], with_gradient: bool) -> Callable[..., PyTree]:
    """(variables, inputs, key) -> (outputs, batch_stats, intermediates); maybe through the outputs' gradient.

    Notes in `updated` which statistics are other ones than before.
    """

    def train(variables, x, key):
        def loss(params):
            outputs, new = module.apply(
                variables | {"params": params},
                x,
                **options,
                mutable=["batch_stats", "intermediates"],
                rngs={"dropout": key},
            )
            stats = new.get("batch_stats", {})
            before = trees.leaf_names(variables.get("batch_stats", {}))
            updated.update(leaf for leaf, value in trees.leaf_names(stats).items() if before.get(leaf) is not value)
            floats = [leaf for leaf in jax.tree.leaves(outputs) if jnp.issubdtype(jnp.result_type(leaf), jnp.floating)]
            value = sum((jnp.sum(jnp.asarray(leaf, jnp.float32)) for leaf in floats), jnp.zeros(()))
            return value, (outputs, stats, new.get("intermediates", {}))

        return (jax.grad(loss, has_aux=True) if with_gradient else loss)(variables["params"])[1]

    return train


def _check_parameters(name: str, params: PyTree) -> None:
    leaves = trees.leaf_names(params)
    if not leaves or not any(math.prod(leaf.shape) for leaf in leaves.values()):
        raise ValueError(f"{name!r} has no parameters: there is nothing to train")
    for path, _ in jax.tree.leaves_with_path(params):
        if strange := [key.key for key in path if not isinstance(getattr(key, "key", ""), str)]:
            raise ValueError(
                f"{name!r} has parameters under the key {strange[0]!r}, which comes back from a checkpoint as text: "
                "hold its parts in attributes or an nnx.Dict, not in a list"
            )
    if empty := [leaf for leaf, value in leaves.items() if not math.prod(value.shape)]:
        raise ValueError(f"{name!r} has the parameter {empty[0]} without a number, which cannot be saved: leave it out")
    _check_floats(name, "parameter", leaves)


def _check_floats(name: str, kind: str, leaves: dict[str, Any]) -> None:
    for leaf_name, leaf in leaves.items():
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(f"{name!r} has the {kind} {leaf_name} of {leaf.dtype}: real floating numbers are expected")


def _check_outputs(name: str, outputs: PyTree, output_shape: tuple[int, ...]) -> None:
    expected = _shape((BATCH, *output_shape))
    if not isinstance(outputs, jax.ShapeDtypeStruct):
        kind = "None" if outputs is None else f"a {type(outputs).__name__} of {_shapes(outputs)}"
        raise ValueError(f"{name!r} gives {kind} as outputs: one array {expected} is expected")
    if outputs.shape != (BATCH, *output_shape):
        raise ValueError(f"{name!r} gives outputs {_shape(outputs.shape)} for {BATCH} examples, {expected} is expected")
    if not jnp.issubdtype(outputs.dtype, jnp.floating):
        raise ValueError(f"{name!r} gives outputs of {outputs.dtype}: real floating numbers are expected")


def _check_batch_stats(name: str, given: _Given, train: dict[str, bool]) -> None:
    _check_floats(name, "statistic", trees.leaf_names(given.batch_stats))
    forms = lambda tree: {leaf: (tuple(x.shape), x.dtype) for leaf, x in trees.leaf_names(tree).items()}
    before, after = forms(given.batch_stats), forms(given.train_batch_stats)
    if before != after:
        changed = sorted(leaf for leaf in before | after if before.get(leaf) != after.get(leaf))
        raise ValueError(f"{name!r} has other batch_stats after training than at initialisation: {', '.join(changed)}")
    if before and not given.updated:
        called = ", ".join(f"{option}={value}" for option, value in train.items()) or "no word of it"
        raise ValueError(
            f"{name!r} has batch_stats that training, a call with {called}, does not update: "
            "let the call take train, not the module, and pass it on as BatchNorm's use_running_average=not train"
        )


def _sows_features(intermediates: PyTree) -> bool:
    features = intermediates.get("features", ())
    return isinstance(features, tuple) and bool(features) and getattr(features[0], "shape", ())[:1] == (BATCH,)


def _first_line(error: Exception) -> str:
    """The exception's type and the first line of what it says."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:MAX_REASON]}".rstrip(": ")


def _remedy(error: Exception, others: list[str]) -> str:
    if isinstance(error, InvalidRngError):
        return " (random numbers are given by the names params and dropout)"
    return f" (it has {', '.join(others)}, but only params and batch_stats are kept)" if others else ""


def _shape(shape: tuple[int, ...]) -> str:
    return str(list(shape))


def _shapes(outputs: PyTree) -> str:
    return ", ".join(_shape(leaf.shape) for leaf in jax.tree.leaves(outputs)) or "nothing"
