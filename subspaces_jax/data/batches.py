"""Which examples make up a batch, as arrays of indices: the images themselves stay where they are."""

import jax
import jax.numpy as jnp
import numpy as np

from subspaces_jax.errors import DataError


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
    """Full batches in one pass; what is left over is dropped and, the order being new each epoch, seen in another."""
    if not 1 <= batch_size <= num_examples:
        raise DataError(
            f"batch_size is {batch_size} but the data have {num_examples} examples; choose 1 to {num_examples}"
        )
    return num_examples // batch_size


def epoch_indices(key: jax.Array, epoch: jax.Array, num_examples: int, batch_size: int) -> jax.Array:
    """One epoch's batches in random order, int32 [steps, batch_size]; each example at most once."""
    steps = steps_per_epoch(num_examples, batch_size)
    order = jax.random.permutation(jax.random.fold_in(key, epoch), num_examples)
    return order[: steps * batch_size].reshape(steps, batch_size).astype(jnp.int32)


def every_example(num_examples: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """All examples in order: indices int32 [batches, batch_size] and mask bool of the same shape.

    The last batch is padded with index 0, where the mask is False.
    """
    batches = -(-num_examples // batch_size)
    indices = np.arange(batches * batch_size)
    mask = indices < num_examples
    return np.where(mask, indices, 0).reshape(batches, batch_size).astype(np.int32), mask.reshape(batches, batch_size)


def full_batches(num_examples: int, batch_size: int) -> np.ndarray:
    """One pass in batches of equal size, int32 [batches, batch_size], for statistics of batches.

    The last batch is filled up with examples from the beginning, so that no example is left out; where there are fewer
    examples than batch_size, the one batch is all of them.
    """
    batch_size = min(batch_size, num_examples)
    batches = -(-num_examples // batch_size)
    return (np.arange(batches * batch_size) % num_examples).reshape(batches, batch_size).astype(np.int32)
