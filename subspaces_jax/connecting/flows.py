"""Networks with one hidden layer connected in the coordinates of an invertible map of their neurons.

A neuron is what it reads, its bias and what reads it, side by side. A RealNVP f takes neurons theta to z = f(theta);
on the path theta(t) is f^-1(c f(theta_a) + s f(theta_b)) with c and s as in `methods`, an arc that is not centred.

    flow        f is fitted to the neurons of several networks by maximum likelihood: z is about N(0, I), and arcs
                keep that distribution.
    bijection   f is fitted so that networks about midway between two of them have a low loss on training examples.

Fitting begins where the path is the arc about the mean of all neurons, see `couplings`. Needs flowjax, the extra
"flows".

Reference: Anokhin and Yarotsky, Low-loss connection of weight vectors: distribution-based approaches, 2020,
arXiv:2008.00741 ("Flow" and "Bijection").
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from subspaces_jax import trees
from subspaces_jax.arrays import Array
from subspaces_jax.connecting import couplings
from subspaces_jax.connecting.couplings import Flow
from subspaces_jax.connecting.matching import check_same
from subspaces_jax.connecting.methods import METHODS, Method
from subspaces_jax.connecting.paths import Path
from subspaces_jax.connecting.permutations import with_leaves
from subspaces_jax.connecting.pieces import Move, Piece
from subspaces_jax.connecting.simultaneous import move_of, neurons_of
from subspaces_jax.geometry import Arc
from subspaces_jax.networks.axes import AxisTable

PyTree = Any
MIDWAY = (0.4, 0.6)  # shares of a path at which a bijection is trained
DECAY = 1e-4  # of weights, with Adam


class Criterion(NamedTuple):
    """What a bijection is trained on.

    Attributes:
        loss: (params, *batch) -> scalar; jittable.
        batches: (batch_size, seed) -> one pass over the training examples, an iterable of tuples of arrays.
    """

    loss: Callable[..., jax.Array]
    batches: Callable[[int, int], Iterable[tuple]]


def fit_flow(
    samples: np.ndarray,
    *,
    num_couplings: int = 2,
    width: int = 128,
    num_epochs: int = 100,
    learning_rate: float = 1e-3,
    batch_size: int = 512,
    seed: int = 0,
) -> Flow:
    """The flow under which samples are most likely to be of N(0, I), by Adam with weight decay 1e-4.

    Args:
        samples: [n, d], n at least 10 and d at least 2, from all networks together. A tenth is held out; training ends
            early after 5 epochs in which it did not become likelier, and the best weights are kept.
        num_couplings: at least 1.
        width: of the hidden layer that gives scales and shifts, at least 1.
        num_epochs: at most; 0 leaves the couplings at the identity.
        learning_rate: of Adam.
        batch_size: of samples.
        seed: of what is held out and the order of the rest.

    Raises:
        ConfigError: flowjax is not installed.
        ValueError: samples or options out of range.
    """
    _check(num_epochs, learning_rate, batch_size)
    found = couplings.begun(samples, num_couplings, width)
    standard = (samples - found.weights["mean"]) / found.weights["scale"]
    fitted, _ = couplings.libraries().fit_to_data(
        jax.random.key(seed),
        couplings.at_identity(found.form),
        jnp.asarray(standard, jnp.float32),
        optimizer=optax.adamw(learning_rate, weight_decay=DECAY),
        max_epochs=num_epochs,
        batch_size=batch_size,
        show_progress=False,
    )
    return dataclasses.replace(found, weights=found.weights | couplings.weights_of(fitted))


def fit_bijection(
    neurons: Array,
    loss: Callable[..., jax.Array],
    batches: Callable[[int, int], Iterable[tuple]],
    *,
    num_couplings: int = 2,
    width: int = 128,
    num_epochs: int = 20,
    learning_rate: float = 1e-3,
    batch_size: int = 512,
    seed: int = 0,
) -> Flow:
    """The flow whose path between two networks drawn at random has a low loss at t drawn from U(0.4, 0.6).

    Args:
        neurons: [M, n, d] of M >= 2 networks.
        loss: (neurons [n, d], pair [2], t, *batch) -> scalar; jittable.
        batches: as in `Criterion`; each step takes one, with a pair of its own.
        num_couplings, width, learning_rate: as in `fit_flow`.
        num_epochs: passes over the batches.
        batch_size: of training examples.
        seed: of pairs, t and batches.

    Raises: as `fit_flow`.
    """
    neurons = np.asarray(neurons, np.float32)
    if neurons.ndim != 3 or len(neurons) < 2:
        raise ValueError(f"expected neurons [M, n, d] of at least 2 networks, got shape {neurons.shape}")
    _check(num_epochs, learning_rate, batch_size)
    begun = couplings.begun(neurons.reshape(-1, neurons.shape[-1]), num_couplings, width)
    fixed = {name: begun.weights[name] for name in ("mean", "scale")}
    weights = {name: leaf for name, leaf in begun.weights.items() if name not in fixed}
    optimizer, drawn = optax.adamw(learning_rate, weight_decay=DECAY), np.random.default_rng(seed)

    def of_weights(weights, neurons, pair, t, batch):
        here = Flow(begun.form, fixed | weights)
        first, second, _ = Arc().coordinates(t)
        latent = first * here.to_normal(neurons[pair[0]]) + second * here.to_normal(neurons[pair[1]])
        return loss(here.from_normal(latent), pair, t, *batch)

    @jax.jit
    def step(weights, moments, *given):
        updates, moments = optimizer.update(jax.grad(of_weights)(weights, *given), moments, weights)
        return optax.apply_updates(weights, updates), moments

    moments, neurons = optimizer.init(weights), jnp.asarray(neurons)
    for epoch in range(num_epochs):
        for batch in batches(batch_size, seed + epoch):
            pair = drawn.choice(len(neurons), 2, replace=False)
            weights, moments = step(weights, moments, neurons, pair, np.float32(drawn.uniform(*MIDWAY)), batch)
    if not all(np.all(np.isfinite(leaf)) for leaf in weights.values()):
        raise ValueError(f"the bijection diverged at learning_rate = {learning_rate}: take a smaller one")
    return Flow(begun.form, fixed | weights)


def flow(
    params_a: PyTree, params_b: PyTree, table: AxisTable, others: Sequence[PyTree] = (), *,
    latent: str = "arc", num_couplings: int = 2, width: int = 128, num_epochs: int = 100,
    learning_rate: float = 1e-3, batch_size: int = 512, seed: int = 0,
) -> Path:  # fmt: skip
    """Neurons in the coordinates of a flow fitted to those of all networks; biases of the outputs go straight.

    Args:
        params_a, params_b, table: as in `simultaneous.whole_neurons`.
        others: more networks of this architecture, trained alike.
        latent: "arc" as in the paper; or "linear", by which a network is connected with itself by itself.
        num_couplings, width, num_epochs, learning_rate, batch_size, seed: as in `fit_flow`.

    Raises:
        ConfigError: flowjax is not installed.
        ValueError: networks that differ or have not one hidden layer, or what `fit_flow` refuses.
    """
    couplings.check_latent(latent)
    neurons = _neurons((params_a, params_b, *others), table)
    fitted = fit_flow(
        np.concatenate(neurons), num_couplings=num_couplings, width=width, num_epochs=num_epochs,
        learning_rate=learning_rate, batch_size=batch_size, seed=seed,
    )  # fmt: skip
    return _path(params_a, params_b, table, fitted.method(latent))


def bijection(
    params_a: PyTree, params_b: PyTree, table: AxisTable, others: Sequence[PyTree] = (),
    criterion: Criterion | None = None, *,
    latent: str = "arc", num_couplings: int = 2, width: int = 128, num_epochs: int = 20,
    learning_rate: float = 1e-3, batch_size: int = 512, seed: int = 0,
) -> Path:  # fmt: skip
    """Neurons in the coordinates of a bijection that is trained on networks midway; biases of the outputs go straight.

    Args:
        params_a, params_b, table, others, latent: as in `flow`.
        criterion: of the training examples.
        num_couplings, width, num_epochs, learning_rate, batch_size, seed: as in `fit_bijection`.

    Raises: as `flow`, and ValueError where no criterion is given.
    """
    if criterion is None:
        raise ValueError("a bijection is trained on examples: pass criterion=Criterion(loss, batches)")
    couplings.check_latent(latent)
    networks = (params_a, params_b, *others)
    neurons = np.stack(_neurons(networks, table))
    slots, num, vectors = neurons_of(params_a, table)
    leaves = [trees.leaf_names(network) for network in networks]
    shapes = {name: leaf.shape for name, leaf in leaves[0].items()}
    own = {name: jnp.stack([of[name] for of in leaves]) for name in vectors}

    def loss(found, pair, t, *batch):
        of_outputs = {name: (1.0 - t) * values[pair[0]] + t * values[pair[1]] for name, values in own.items()}
        moved = with_leaves(params_a, Move(slots, num).leaves(found, shapes) | of_outputs)
        return criterion.loss(moved, *batch)

    fitted = fit_bijection(
        neurons, loss, criterion.batches, num_couplings=num_couplings, width=width, num_epochs=num_epochs,
        learning_rate=learning_rate, batch_size=batch_size, seed=seed,
    )  # fmt: skip
    return _path(params_a, params_b, table, fitted.method(latent))


def _neurons(networks: Sequence[PyTree], table: AxisTable) -> list[np.ndarray]:
    """Of each network, [n, d]."""
    for network in networks[1:]:
        check_same(networks[0], network)
    slots, num, _ = neurons_of(networks[0], table)
    return [np.asarray(Move(slots, num).samples(trees.leaf_names(network)), np.float64) for network in networks]


def _path(params_a: PyTree, params_b: PyTree, table: AxisTable, method: Method) -> Path:
    slots, num, vectors = neurons_of(params_a, table)
    outputs = (move_of(name, shape, METHODS["linear"]) for name, shape in vectors.items())
    return Path((Piece(params_a, params_b, (Move(slots, num, method), *outputs)),))


def _check(num_epochs: int, learning_rate: float, batch_size: int) -> None:
    if num_epochs < 0 or batch_size < 1 or learning_rate <= 0:
        raise ValueError(
            "num_epochs is at least 0, batch_size at least 1 and learning_rate above 0, "
            f"got {num_epochs}, {batch_size} and {learning_rate}"
        )
