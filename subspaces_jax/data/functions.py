"""Values of functions of one variable, to be predicted: the laws of the data sets `constant` and `sine`, and their
options.

Reference: the code beside the thesis "Weights regularity for residual neural networks in the depth limit", whose sine
is scaled so that inputs are as nearly orthogonal as a theorem of Cont, Rossier and Xu (2022, arXiv:2204.07261) asks.
"""

import math
import re
from typing import NamedTuple

import numpy as np

from subspaces_jax.errors import DataError

FAMILIES = ("constant", "sine")
SEED = 20240301
LARGEST = 10_000_000
EXAMPLES = {"constant": "constant/n_10000-c_0.1", "sine": "sine/n_1000-wide"}


class Options(NamedTuple):
    """Attributes:
    num: N, examples of both splits.
    c: the constant, or what says how nearly orthogonal inputs of the sine are.
    wide: of the sine, whether it is y = sin x on [-1, 1], as the published text says, rather than as the code has it.
    """

    num: int = 100_000
    c: float = 0.01
    wide: bool = False

    @property
    def num_test(self) -> int:
        """A tenth of N, rounded down; the others are the training split."""
        return self.num // 10


def options(name: str) -> Options:
    """The options that a data set's name holds: "constant", "constant/n_10000-c_0.1", "sine/n_1000-wide".

    Raises:
        DataError: it is of another form, or fewer than 10 or more than 10,000,000 examples.
    """
    family, _, config = name.partition("/")
    match = re.fullmatch(r"(n_(\d+))?-?(c_(\d*\.?\d+(?:e[+-]?\d+)?))?-?(wide)?", config)
    found = None
    if match and "-".join(filter(None, (match[1], match[3], match[5]))) == config:
        found = Options(int(match[2] or Options().num), float(match[4] or Options().c), match[5] is not None)
    of_radius = family == "sine" and not (found and found.wide)
    if found and not (_is_normal(_radius(found)) if of_radius else found.c == 0 or _is_normal(found.c)):
        raise DataError(
            f"data set {name!r} has a constant c of which float32 holds no {'value' if family == 'constant' else 'r'}: "
            f"choose another, as in {EXAMPLES[family]}"
        )
    if not found or not 10 <= found.num <= LARGEST or (found.wide and family != "sine"):
        raise DataError(
            f"data set {name!r} is unknown: name its number of examples, 10 to {LARGEST:,}, its constant c"
            f"{', or wide' * (family == 'sine')}, in this order with - between them, as in {EXAMPLES[family]}"
        )
    return found


def canonical(name: str) -> str:
    """The part after the slash with every option that counts."""
    found = options(name)
    return "-".join([f"n_{found.num}", f"c_{repr(found.c).removesuffix('.0')}", *["wide"] * found.wide])


def _radius(found: Options) -> float:
    """r of the sine."""
    return math.sqrt(math.exp(-4 * found.c) / (8 * found.num))


def _is_normal(value: float) -> bool:
    """Whether float32 holds a number with all its digits."""
    return float(np.finfo(np.float32).tiny) <= abs(value) <= float(np.finfo(np.float32).max)


def examples(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Inputs float32 [N, 1] and values float32 [N], drawn with one seed; the last tenth is the test split.

    constant: x uniform in [-1, 1], y = c. sine: x uniform in (-r, r) and y = sin(pi x / r) with r^2 = e^(-4c) / (8 N),
    so that every product of two inputs is below r^2; or, wide, x uniform in [-1, 1] and y = sin x.
    """
    found, rng = options(name), np.random.default_rng(SEED)
    inputs = rng.uniform(-1.0, 1.0, (found.num, 1))
    if name.partition("/")[0] == "constant":
        values = np.full(found.num, found.c)
    elif found.wide:
        values = np.sin(inputs[:, 0])
    else:
        values, inputs = np.sin(math.pi * inputs[:, 0]), inputs * _radius(found)
    return inputs.astype(np.float32), values.astype(np.float32)
