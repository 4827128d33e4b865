"""Geometry of neural networks' weights: train, connect and dissect sets of networks in JAX and Flax.

The one idea: endpoints are a leading axis, a point is a contraction. A *stack* is a parameter tree whose leaves have
shape [K, ...]; *coordinates* are a vector [K] (or one such vector a layer); `contract(stack, coordinates)` is an
ordinary parameter tree that any Flax module's `apply` accepts.

One legend for shapes, used in every docstring:

    K endpoints    T points of a path    S samples per batch    M members of an ensemble
    N examples     B batch               C classes              L layers
    D flattened weights                  H W C image height, width, channels (where no classes are near)

The rooms in their order, floor by floor; a module imports only from rooms before its own:

    0  errors logs arrays rngs trees writing losses metrics tasks pvariation geometry networks data
    1  events records remote processes parallel checkpoints state_dicts batch_stats evaluation
    2  training connecting analysis plots
    3  experiments: choices schema calls fields build runs starts train aot compile levers evaluate studies connect
       export analyze plot sweep references describe benchmarks
"""

import importlib.metadata

__version__ = importlib.metadata.version("subspaces_jax")
