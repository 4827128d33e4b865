"""Invertible maps of neurons: a RealNVP of flowjax as pure functions of its weights.

A coupling scales and shifts one half of the coordinates by what a network with one hidden layer makes of the other
half; after each one the coordinates change their order. Before the first one each coordinate's mean is subtracted and
it is divided by its deviation. Couplings begin as the identity.

Reference: Dinh, Sohl-Dickstein and Bengio, Density estimation using Real NVP, 2016, arXiv:1605.08803.
"""

import dataclasses
import functools
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from subspaces_jax.connecting.methods import Method, State
from subspaces_jax.errors import ConfigError
from subspaces_jax.geometry import Arc

LATENT = ("arc", "linear")
LEAST = 10  # samples, of which a tenth may be held out
KEPT = 8  # forms whose couplings are kept at the identity


class Form(NamedTuple):
    """Of a flow: the size d of samples, the number of couplings, the width of their hidden layer."""

    size: int
    num_couplings: int
    width: int


@dataclasses.dataclass(frozen=True, eq=False)
class Flow:
    """An invertible map f of samples [n, d].

    Attributes:
        form: see `Form`.
        weights: "mean" and "scale" [d] of the samples, and the leaves of the couplings by their numbers "0", "1" ...
    """

    form: Form
    weights: State

    def to_normal(self, samples: jax.Array) -> jax.Array:
        """f, [n, d] -> [n, d]."""
        return to_normal(self.form, self.weights, jnp.asarray(samples))

    def from_normal(self, latent: jax.Array) -> jax.Array:
        """The inverse of f, [n, d] -> [n, d]."""
        return from_normal(self.form, self.weights, jnp.asarray(latent))

    def log_prob(self, samples: jax.Array) -> jax.Array:
        """Logarithm of the density that N(0, I) has when it goes back through f, in nats, [n, d] -> [n]."""
        return log_prob(self.form, self.weights, jnp.asarray(samples))

    def method(self, latent: str = "arc") -> Method:
        """The connect method that is an arc without centre, or a line, between f(a) and f(b).

        Raises:
            ValueError: another name.
        """
        check_latent(latent)
        return Method(functools.partial(_latents, self), _Between(self.form, latent))


def check_latent(name: str) -> None:
    """Refuses what is no path between latents."""
    if name not in LATENT:
        raise ValueError(f"latent is one of {', '.join(LATENT)}, got {name!r}")


@dataclasses.dataclass(frozen=True)
class _Between:
    """(state, t) -> samples, equal for flows of one form."""

    form: Form
    latent: str

    def __call__(self, state: State, t: jax.Array) -> jax.Array:
        first, second = (1.0 - t, t) if self.latent == "linear" else Arc().coordinates(t)[:2]
        return from_normal(self.form, state, first * state["latent_a"] + second * state["latent_b"])


def begun(samples: np.ndarray, num_couplings: int, width: int) -> Flow:
    """The flow whose couplings are the identity.

    Args:
        samples: [n, d] to be standardised, n at least 10 and d at least 2.
        num_couplings, width: at least 1.

    Raises:
        ConfigError: flowjax is not installed.
        ValueError: samples or numbers out of range.
    """
    if np.ndim(samples) != 2 or len(samples) < LEAST or samples.shape[1] < 2:
        raise ValueError(f"expected samples [n, d], n at least {LEAST} and d at least 2, got {np.shape(samples)}")
    if num_couplings < 1 or width < 1:
        raise ValueError(f"expected at least 1 coupling of at least 1 unit, got {num_couplings} of {width}")
    form, deviations = Form(samples.shape[1], num_couplings, width), np.std(samples, axis=0)
    own = {"mean": np.mean(samples, axis=0), "scale": np.where(deviations > 0, deviations, 1.0)}
    return Flow(form, {name: np.asarray(of, np.float32) for name, of in own.items()} | weights_of(at_identity(form)))


def _latents(flow: Flow, a: np.ndarray, b: np.ndarray) -> State:
    return flow.weights | {f"latent_{name}": flow.to_normal(jnp.asarray(of)) for name, of in (("a", a), ("b", b))}


@functools.partial(jax.jit, static_argnums=0)
def to_normal(form: Form, weights: State, samples: jax.Array) -> jax.Array:
    inverse = _couplings(form, weights).bijection.inverse
    return jax.vmap(lambda sample: inverse((sample - weights["mean"]) / weights["scale"]))(samples)


@functools.partial(jax.jit, static_argnums=0)
def from_normal(form: Form, weights: State, latent: jax.Array) -> jax.Array:
    transform = _couplings(form, weights).bijection.transform
    return jax.vmap(lambda sample: transform(sample) * weights["scale"] + weights["mean"])(latent)


@functools.partial(jax.jit, static_argnums=0)
def log_prob(form: Form, weights: State, samples: jax.Array) -> jax.Array:
    density = _couplings(form, weights).log_prob
    of_one = lambda sample: density((sample - weights["mean"]) / weights["scale"])
    return jax.vmap(of_one)(samples) - jnp.sum(jnp.log(weights["scale"]))


def libraries() -> SimpleNamespace:
    """What is used of flowjax and of what it is made of.

    Raises:
        ConfigError: flowjax is not installed.
    """
    try:
        import equinox  # all of the extra "flows"
        import paramax
        from flowjax.bijections import Coupling
        from flowjax.distributions import StandardNormal
        from flowjax.flows import coupling_flow
        from flowjax.train import fit_to_data
    except ImportError:
        raise ConfigError("the connectors flow and bijection need flowjax: pip install -e '.[flows]'") from None
    return SimpleNamespace(
        equinox=equinox,
        paramax=paramax,
        Coupling=Coupling,
        StandardNormal=StandardNormal,
        coupling_flow=coupling_flow,
        fit_to_data=fit_to_data,
    )


@functools.lru_cache(KEPT)
def at_identity(form: Form) -> Any:
    """The distribution of flowjax whose couplings are the identity."""
    used = libraries()
    made = used.coupling_flow(
        jax.random.key(0),
        base_dist=used.StandardNormal((form.size,)),
        flow_layers=form.num_couplings,
        nn_width=form.width,
        nn_activation=jax.nn.leaky_relu,
    )

    def last_layers(tree):
        is_coupling = lambda node: isinstance(node, used.Coupling)
        found = [node for node in jax.tree.leaves(tree, is_leaf=is_coupling) if is_coupling(node)]
        return [
            leaf for node in found for leaf in (node.conditioner.layers[-1].weight, node.conditioner.layers[-1].bias)
        ]

    return used.equinox.tree_at(last_layers, made, replace_fn=jnp.zeros_like)


def weights_of(made: Any) -> State:
    """The trained leaves of a distribution of flowjax, by their numbers."""
    leaves = jax.tree.leaves(libraries().equinox.filter(made, libraries().equinox.is_inexact_array))
    return {str(number): leaf for number, leaf in enumerate(leaves)}


def _couplings(form: Form, weights: State) -> Any:
    """The distribution of flowjax with given weights."""
    used = libraries()
    with jax.ensure_compile_time_eval():
        own, rest = used.equinox.partition(at_identity(form), used.equinox.is_inexact_array)
    structure = jax.tree.structure(own)
    leaves = [weights[str(number)] for number in range(len(jax.tree.leaves(own)))]
    return used.paramax.unwrap(used.equinox.combine(jax.tree.unflatten(structure, leaves), rest))
