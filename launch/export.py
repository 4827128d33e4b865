"""Writes the weights of a run, or of a point of its line: of any network to a .msgpack of Flax; of deep_residual all of
them to an .npz, or the blocks as a list of tensors to a .pth; of alexnet, imagenet_vgg and resnet the state dict of
torchvision's network to a .safetensors.

python -m launch.export --workdir=runs/deep --out=weights/resnet_128.npz
python -m launch.export --workdir=runs/line_digits --t=0.5 --out=weights/middle.msgpack
"""

from absl import flags

from launch import app
from subspaces_jax.errors import ConfigError
from subspaces_jax.experiments import export

_OUT = flags.DEFINE_string("out", "", "the file, .msgpack, .npz, .pth or .safetensors; of several networks m NAME_m")
_T = flags.DEFINE_float("t", None, "of a point of a line or curve, in [0, 1]; without it all endpoints")
_WHICH = flags.DEFINE_enum("which", "endpoints", export.WHICH, "networks; the midpoint of captures is their mean")
_REFRESH = flags.DEFINE_boolean(
    "refresh", True, "whether BatchNorm statistics of points are those of the training images there; else of training"
)
_STEP = flags.DEFINE_integer("step", None, "of the checkpoint, default the last", lower_bound=0)


def run(config, workdir):
    if not _OUT.value:
        raise ConfigError("--out is missing: name a file, .msgpack, .npz, .pth or .safetensors")
    written = export.run(workdir, _OUT.value, _STEP.value, _T.value, _WHICH.value, _REFRESH.value)
    print("\n".join(map(str, written)))


if __name__ == "__main__":
    app.main(run, needs_config=False)
