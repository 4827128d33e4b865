"""Which examples of a split are used: of some classes, and those that are held out for validation.

Random choices are those of NumPy's legacy generator, whose numbers NumPy keeps as they are for good.
"""

from typing import Any

import numpy as np

from subspaces_jax.errors import ConfigError


def first_classes(num_classes: int, num: int) -> np.ndarray:
    """The classes 0 to num - 1, int [num]."""
    return np.arange(num_classes)[: _enough(num_classes, num)]


def drawn_classes(num_classes: int, num: int, seed: int) -> np.ndarray:
    """The first `num` of all classes in a random order, int [num].

    >>> drawn_classes(6, 3, seed=42)
    array([0, 1, 5])
    """
    order = np.arange(num_classes)
    np.random.RandomState(seed).shuffle(order)
    return order[: _enough(num_classes, num)]


def of_classes(labels: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The examples of some classes, in their order, and their labels: places in `classes`.

    Args:
        labels: int [N].
        classes: int [C], all different.

    Returns:
        (rows int [n], labels [n] of the dtype of `labels`).
    """
    places = np.full(max(int(labels.max(initial=0)), int(classes.max())) + 1, -1, np.int64)
    places[classes] = np.arange(len(classes))
    rows = np.flatnonzero(places[labels] >= 0)
    return rows, places[labels[rows]].astype(labels.dtype)


def last(num: int, fraction: float, seed: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Examples to train on, and floor(N fraction) that are held out: the last ones, of a random order with a seed.

    >>> last(10, 0.3, seed=42)
    (array([8, 1, 5, 0, 7, 2, 9]), array([4, 3, 6]))

    Raises:
        ConfigError: the fraction is outside (0, 1), or leaves one of both without an example.
    """
    order = np.arange(num)
    if seed is not None:
        np.random.RandomState(seed).shuffle(order)
    held = int(np.floor(num * _inner(fraction)))
    if not 0 < held < num:
        raise ConfigError(f"validation takes {held} of {num} examples: choose a fraction that leaves some of both")
    return order[: num - held], order[num - held :]


def stratified(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """As `last` in a random order, every class being in both parts as often as in all; scikit-learn's.

    Args:
        labels: int [N].
        fraction: in (0, 1).
        seed: of the order.

    Raises:
        ConfigError: the fraction, or classes of too few examples.
    """
    from sklearn.model_selection import train_test_split

    held = int(np.floor(len(labels) * _inner(fraction)))
    try:
        parts = train_test_split(np.arange(len(labels)), test_size=held, stratify=labels, random_state=seed)
    except ValueError as error:
        raise ConfigError(f"validation cannot be stratified: {' '.join(str(error).split())}") from None
    return parts[0], parts[1]


class Selected:
    """Some examples of a source of encoded images, for `stream`: selected[i] is source[rows[i]].

    Args:
        source: images and labels by index, as of `sources.open_source`.
        rows: int [n].
        labels: int [n] in the place of the source's, None for these.
    """

    def __init__(self, source: Any, rows: np.ndarray, labels: np.ndarray | None = None):
        self._source, self._rows, self._labels = source, rows, labels

    def __len__(self) -> int:
        return len(self._rows)

    def labels(self) -> np.ndarray | tuple[()]:
        """All labels, as of `sources.Encoded`."""
        if self._labels is not None:
            return self._labels
        found = self._source.labels()
        return found[self._rows] if isinstance(found, np.ndarray) else found

    def __getitem__(self, index: int) -> tuple[bytes, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"there is no example {index} of {len(self)}")
        image, label = self._source[int(self._rows[index])]
        return image, label if self._labels is None else int(self._labels[index])


def _enough(num_classes: int, num: int) -> int:
    if not 2 <= num <= num_classes:
        raise ConfigError(f"classes takes {num} of {num_classes} classes: choose 2 to {num_classes}")
    return num


def _inner(fraction: float) -> float:
    if not 0.0 < fraction < 1.0:
        raise ConfigError(f"validation takes the fraction {fraction}: choose one in (0, 1), or validation='none'")
    return fraction
