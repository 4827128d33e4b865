"""Writes the weights of a run: of deep_residual all of them to an .npz, or the blocks as a list of tensors to a .pth;
of alexnet, imagenet_vgg and resnet the state dict of torchvision's network to a .safetensors.

python -m launch.export --workdir=runs/deep --out=weights/resnet_128.npz
"""

from absl import flags

from launch import app
from subspaces_jax.errors import ConfigError
from subspaces_jax.experiments import export

_OUT = flags.DEFINE_string("out", "", "the file, .npz, .pth or .safetensors; of several networks m it is NAME_m")
_STEP = flags.DEFINE_integer("step", -1, "of the checkpoint, -1 for the last")


def run(config, workdir):
    if not _OUT.value:
        raise ConfigError("--out is missing: name a file, .npz, .pth or .safetensors")
    print("\n".join(map(str, export.run(workdir, _OUT.value, None if _STEP.value < 0 else _STEP.value))))


if __name__ == "__main__":
    app.main(run, needs_config=False)
