"""Arrays in annotations: `Array` is one of JAX, tracers among them, or one of NumPy."""

import jax
import numpy as np

Array = jax.Array | np.ndarray
