"""Small runs of every kind that devices share, for `test_devices`; as a program, one of several processes of them.

python tests/experiments/matrix.py FOLDER IMAGENET COORDINATOR NUM_PROCESSES PROCESS_ID
"""

import dataclasses
import gc
import pathlib
import sys

from subspaces_jax import parallel
from subspaces_jax.data import catalogue
from subspaces_jax.experiments import evaluate, train

SIZE = 16  # of the images of the data set that streams
SHARED = dict(dataset="digits", num_epochs=1, batch_size=64, warmup_epochs=0, num_points=3, eval_batch_size=64)
STREAM = dict(dataset="imagenet2012", batch_size=8, num_epochs=2, eval_batch_size=8, num_refresh_batches=3)
SMALL = "outside_module:Small"
PLAIN = dict(subspace="none", beta=0.0)
RUNS = {
    "line": dict(network=SMALL, batch_norm="global", augmentation="crop(padding=1)|flip", test_every=1),
    "layerwise": dict(network="mlp_8", subspace="simplex(3)", layerwise=True, test_every=1),
    "samples": dict(network=SMALL, dropout=0.1, batch_norm="global", num_samples=2),
    "members": dict(network="mlp_8", num_members=4, test_every=1, **PLAIN),
    "captures": dict(network="mlp_8", num_epochs=4, capture=True, schedule="swa_constant", swa_start=0.5, **PLAIN),
    "stream": dict(network=SMALL, batch_norm="global", **STREAM),
}


def run_all(folder: pathlib.Path, imagenet: str, num_devices: int) -> None:
    """Trains and evaluates each into a folder of its name."""
    small = dataclasses.replace(catalogue.DATASETS["imagenet2012"], image_shape=(SIZE, SIZE, 3))
    catalogue.DATASETS["imagenet2012"] = small
    for name, fields in RUNS.items():
        data_dir = imagenet if name == "stream" else ""
        train.run(SHARED | {"num_devices": num_devices, "data_dir": data_dir} | fields, folder / name)
        evaluate.run(None, folder / name)


if __name__ == "__main__":
    gc.freeze()
    gc.set_threshold(100_000, 10, 10)  # as `launch` does
    place, images, coordinator, *numbers = sys.argv[1:]
    parallel.initialize(coordinator, *map(int, numbers))
    run_all(pathlib.Path(place), images, 0)
    parallel.finish()
