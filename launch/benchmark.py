"""Measures ratios on this machine: python -m launch.benchmark [--network=cifar_resnet_20 --size=32 --peer]"""

import importlib.util

import jax
from absl import flags

from launch import app
from subspaces_jax.experiments import benchmarks

_NETWORK = flags.DEFINE_string("network", "cifar_resnet_20", "a network of the config field of that name")
_SIZE = flags.DEFINE_integer("size", 32, "height and width of the images", 1)
_CHANNELS = flags.DEFINE_integer("channels", 3, "channels of the images", 1)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 128, "images a step", 1)
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "of the computation")
_NUM_UNITS = flags.DEFINE_integer(
    "num_units", 2000, "of the hidden layers that are matched; 6144 takes minutes", lower_bound=1
)
_NUM_EXAMPLES = flags.DEFINE_integer(
    "num_examples", 6000, "that weights are adjusted on; 60,000 in the paper", lower_bound=1
)
_PATH_UNITS = flags.DEFINE_integer(
    "path_units", 300, "of the network whose path is compared; 2,000 takes minutes", lower_bound=1
)
_SYSTEMS = flags.DEFINE_multi_enum("systems", list(benchmarks.SYSTEMS), benchmarks.SYSTEMS, "whose rows are measured")
_NUM_LAYERS = flags.DEFINE_integer("num_layers", 2000, "points of the paths whose p-variation is found", 1)
_ROUNDS = flags.DEFINE_integer("rounds", 5, "alternations of each row", 1)
_PEER = flags.DEFINE_bool("peer", importlib.util.find_spec("torch") is not None, "compare with PyTorch (extra 'peer')")


def main(argv, interrupts):
    of_images = _SIZE.value, _CHANNELS.value, _BATCH_SIZE.value, _DTYPE.value
    sizes = _NUM_UNITS.value, _NUM_EXAMPLES.value, _PATH_UNITS.value, _NUM_LAYERS.value
    problem = benchmarks.Problem(_NETWORK.value, *of_images, *sizes)
    peer = None
    if _PEER.value:
        from launch.peers import features, residual

        peer = benchmarks.Peer(residual.stepper, residual.curve_stepper, features.distance)
    device = jax.devices()[0]
    print(
        f"{problem} on {device.platform} ({device.device_kind}), jax {jax.__version__}, "
        f"median of {_ROUNDS.value} rounds"
    )
    print(benchmarks.table(benchmarks.run(problem, _ROUNDS.value, peer, _SYSTEMS.value)))


if __name__ == "__main__":
    app.program(main)
