"""What is known of each data set before it is read."""

import dataclasses
import difflib
from collections.abc import Iterable

from subspaces_jax.data import functions
from subspaces_jax.errors import DataError, did_you_mean


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """What is known of a data set before it is read.

    Attributes:
        image_shape: of an example: (H, W, channels), or any shape where inputs are real; of imagenet2012 that of a
            crop, as its images are of all sizes.
        num_classes: C; 0 where there are none.
        num_train, num_test: examples of each split.
        mean, std: a channel, of pixels scaled to [0, 1], for normalisation; empty where inputs stay as they are.
        streams: whether it is too big for `load` and read image by image with `open_source`.
        test_split: TFDS's name of what is "test" here.
        label: "class" (int, one of num_classes), "real" (values to predict) or "none".
        label_shape: of an example's real label.
        input_dtype: "uint8" of images, "float32" of real inputs.
    """

    image_shape: tuple[int, ...]
    num_classes: int
    num_train: int
    num_test: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    streams: bool = False
    test_split: str = "test"
    label: str = "class"
    label_shape: tuple[int, ...] = ()
    input_dtype: str = "uint8"


_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # what the subspace paper's code uses for CIFAR as well

DATASETS: dict[str, DatasetInfo] = {
    "digits": DatasetInfo((8, 8, 1), 10, 1_437, 360, (0.3053,), (0.3762,)),
    "mnist": DatasetInfo((28, 28, 1), 10, 60_000, 10_000, (0.1307,), (0.3081,)),
    "fashion_mnist": DatasetInfo((28, 28, 1), 10, 60_000, 10_000, (0.2860,), (0.3530,)),
    "kmnist": DatasetInfo((28, 28, 1), 10, 60_000, 10_000, (0.1918,), (0.3483,)),  # the usual values, not measured here
    "cifar10": DatasetInfo((32, 32, 3), 10, 50_000, 10_000, *_IMAGENET),
    "cifar100": DatasetInfo((32, 32, 3), 100, 50_000, 10_000, *_IMAGENET),
    "tiny_imagenet": DatasetInfo((64, 64, 3), 200, 100_000, 10_000, (0.480, 0.448, 0.397), (0.276, 0.269, 0.282)),
    "celeba": DatasetInfo((64, 64, 3), 0, 151_950, 50_649, (), (), label="none"),
    "imagenet2012": DatasetInfo(
        (224, 224, 3), 1_000, 1_281_167, 50_000, *_IMAGENET, streams=True, test_split="validation"
    ),
    **{
        name: DatasetInfo((1,), 0, 90_000, 10_000, (), (), label="real", input_dtype="float32")
        for name in functions.FAMILIES
    },
    "imagenet_c": DatasetInfo((224, 224, 3), 1_000, 0, 50_000, *_IMAGENET, streams=True),  # imagenet_c/snow_1 ...
}


def info(name: str) -> DatasetInfo:
    """What is known of a data set.

    Args:
        name: a key of DATASETS; imagenet_c takes a corruption and a severity with it, as in "imagenet_c/snow_1", and
            celeba may take options, as in "celeba/test_0.2-skip_unreadable", see `builders.celeba.Options`, and so may
            constant and sine, see `functions.options`.

    Raises:
        DataError: the name is unknown.
    """
    family, slash, config = name.partition("/")
    if family == "celeba" and slash:
        from subspaces_jax.data.builders.celeba import options  # imports TFDS: a second, and only where it is needed

        known = DATASETS[family]
        num, fraction = known.num_train + known.num_test, options(config).test_fraction
        return dataclasses.replace(known, num_train=num - int(num * fraction), num_test=int(num * fraction))
    if family in functions.FAMILIES:
        chosen = functions.options(name)
        return dataclasses.replace(DATASETS[family], num_train=chosen.num - chosen.num_test, num_test=chosen.num_test)
    if family != "imagenet_c":
        check_known("data set", name, DATASETS)
    else:
        from subspaces_jax.data.builders.imagenet_c import CONFIGS  # imports TFDS: a second, for this data set only

        if config not in CONFIGS:
            near = [*difflib.get_close_matches(config, CONFIGS, n=1), "snow_1"][0]
            raise DataError(
                f"data set {name!r} is unknown: name a corruption and a severity of 1 to 5, as in imagenet_c/{near}"
            )
    return DATASETS[family]


def check_known(what: str, name: str, known: Iterable[str]) -> None:
    """Refuses a name that is not among the known ones."""
    if name not in known:
        hint = f"{did_you_mean(name, known, '')} there are {', '.join(known)}"
        raise DataError(f"{what} {name!r} is unknown: {hint.strip()}")
