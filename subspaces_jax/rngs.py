"""Named random streams: the same name gives the same stream in every process and on every machine."""

import zlib

import jax


def stream(key: jax.Array, name: str) -> jax.Array:
    """The random stream `name` of `key`.

    Args:
        key: a PRNG key.
        name: any text. It is hashed with CRC-32, because Python's own `hash` differs from process to process.

    Returns:
        A PRNG key. Fold a step or an index into it to get the stream's elements.
    """
    return jax.random.fold_in(key, zlib.crc32(name.encode()))
