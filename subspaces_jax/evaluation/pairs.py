"""Two networks from what they predict: their ensemble, and how far they are from each other."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Shaped

from subspaces_jax import metrics, tasks
from subspaces_jax.arrays import Array
from subspaces_jax.evaluation.passes import Apply, Images, PyTree, Targets, labels_only, predict
from subspaces_jax.tasks import Task


def pair_scores(
    task: Task, outputs: Shaped[Array, "*shape"], others: Shaped[Array, "*shape"], labels: PyTree = (),
    images: Any = None, targets: Targets = labels_only,
) -> dict[str, Any]:  # fmt: skip
    """Scores of the ensemble of two networks, and how far they are from each other, from their outputs.

    Args:
        task, labels, targets: as in `score`.
        outputs, others: [N, ...] of the two.
        images: [N, ...] where targets need them; a stream counts for None.

    Returns:
        "pair_" and the names of the task's scores, and of `Task.compare`.
    """
    images = None if callable(images) else images
    sums, apart = _pair_sums(task.scores, task.mean, task.compare, targets, outputs, others, images, labels)
    scores = {f"pair_{name}": value for name, value in task.read(sums).items()}
    return jax.device_get(scores | {f"pair_{name}": value for name, value in tasks.read(apart).items()})


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _pair_sums(scores, mean, compare, targets, outputs, others, images, labels):
    wanted, mask = targets(images, labels), jnp.ones(outputs.shape[0])
    together = mean(jnp.stack([outputs, others]).astype(jnp.float32))
    return scores(together, wanted, mask), compare(outputs, others, wanted, mask)


def feature_cosine(
    features: Apply,
    variables_a: PyTree,
    variables_b: PyTree,
    images: Images,
    batch_size: int = 500,
    mesh: Mesh | None = None,
) -> tuple[float, float]:
    """Means over examples of the cosine of two networks' features, and of its square.

    Args:
        features: (variables, images [B, ...]) -> [B, ...]; hashable, compiled once for each.
        variables_a, variables_b: of the two networks.
        images: [N, ...], each counted once, or a stream.
        batch_size, mesh: as in `predict`.

    Returns:
        Two scalars, in [-1, 1] and [0, 1]; features that are all zero have cosine 0 with everything.
    """
    both = {"a": variables_a, "b": variables_b}
    values = predict(_CosinesOf(features), both, images, batch_size, mesh)  # type: ignore[arg-type]  # a NamedTuple can be called, too
    return float(np.mean(values)), float(np.mean(np.square(values)))


class _CosinesOf(NamedTuple):
    """(variables of two networks, images) -> cosines of their features [B]; equal where the features are."""

    features: Apply

    def __call__(self, both: PyTree, images: Shaped[jax.Array, "b ..."]) -> Float[jax.Array, " b"]:
        a, b = (
            self.features(both[name], images).reshape(images.shape[0], 1, -1).astype(jnp.float32) for name in ("a", "b")
        )
        return metrics.feature_cosine(a, b)
