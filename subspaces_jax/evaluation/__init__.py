"""Evaluation of points: predictions, scores, and measures at all points of a path.

Two functions stand for a network here, both of raw images as the data set holds them:

    apply(variables, images [B, ...]) -> outputs [B, ...]                  eval mode
    apply_train(variables, images [B, ...], key) -> (outputs, batch_stats) train mode, for `batch_stats`

Everything jitted compiles once for all points, and data are arguments, never constants of the program. Every pass over
data splits each batch over the devices of a mesh, with the numbers of one device. What does not fit on the device
streams: in the place of images [N, ...] every function here takes a function without arguments that begins one pass, an
iterable of batches (images [B, ...], labels [B], mask [B]) as of `data.stream`; of several processes each gives its own
share of every batch.

passes.py  one pass over data at one network
pairs.py   two networks from what they predict
points.py  all points of a path
"""

from subspaces_jax.batch_stats import refresh_batch_stats
from subspaces_jax.evaluation.pairs import feature_cosine, pair_scores
from subspaces_jax.evaluation.passes import Measure, Targets, labels_only, measure, on_device, predict, score
from subspaces_jax.evaluation.points import along

__all__ = [
    "Measure",
    "Targets",
    "along",
    "feature_cosine",
    "labels_only",
    "measure",
    "on_device",
    "pair_scores",
    "predict",
    "refresh_batch_stats",
    "score",
]
