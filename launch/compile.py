"""Says what a config will cost on TPUs that are not here, see `experiments.compile`; needs the extra `tpu`.

python -m launch.compile --config=configs/line_cifar10.py --config.dtype=bfloat16 --topology=v5e:2x2 --compare
python -m launch.compile --config=configs/line_cifar10.py --config.num_samples=2 --topology=v5e:2x2 --levers
"""

import os

os.environ["JAX_PLATFORMS"] = "cpu"  # before jax is imported: the chips are only described, here or on a TPU's host
os.environ["JAX_COMPILATION_CACHE_DIR"] = ""  # programs for chips that are not here cannot be read back

from absl import flags

from launch import app
from subspaces_jax.experiments import compile, levers

_TOPOLOGY = flags.DEFINE_string("topology", "v5e:2x2", "chip:shape, as in v5e:2x2, v4:2x2x1, v5p:2x2x1, v6e:2x2")
_LEVERS = flags.DEFINE_bool("levers", False, "instead, the training step with each of its levers changed")
_COMPARE = flags.DEFINE_bool("compare", False, "compile a step of plain training too, and give ratios")


def run(config, workdir):
    if _LEVERS.value:
        print(levers.table(levers.run(config, _TOPOLOGY.value)))
        return
    print(compile.table(compile.run(config, _TOPOLOGY.value, _COMPARE.value)))


if __name__ == "__main__":
    app.main(run, needs_workdir=False)
