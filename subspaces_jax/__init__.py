"""Geometry of neural networks' weights: train, connect and dissect sets of networks in JAX and Flax.

The one idea: endpoints are a leading axis, a point is a contraction. A *stack* is a parameter tree whose leaves have
shape [K, ...]; *coordinates* are a vector [K] (or one such vector a layer); `contract(stack, coordinates)` is an
ordinary parameter tree that any Flax module's `apply` accepts.

One legend for shapes, used in every docstring:

    K endpoints    T points of a path    S samples per batch    M members of an ensemble
    N examples     B batch               C classes              L layers
    D flattened weights                  H W C image height, width, channels (where no classes are near)

The floors, each importing only from those below it:

    3  experiments
    2  training  connecting  analysis  plots
    1  evaluation  checkpoints  parallel  records  events
    0  geometry  networks  data  trees  rngs  losses  metrics  logs  errors
"""
