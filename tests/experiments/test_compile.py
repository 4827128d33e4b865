"""Every config's step lowered for accelerators that are not here, and compiled for TPUs where libtpu is installed."""

import dataclasses
import importlib
import importlib.util
import pathlib
import re
import subprocess
import sys
from typing import NamedTuple

import jax
import numpy as np
import pytest

from launch import app
from subspaces_jax.errors import ConfigError
from subspaces_jax.experiments import aot, build, compile

ROOT = pathlib.Path(__file__).parents[2]
WITHOUT_RUN = ("__init__", "base", "variants", "analyze", "connect")
CONFIGS = sorted(
    path.stem
    for path in (ROOT / "configs").glob("*.py")
    if path.stem not in WITHOUT_RUN and not path.stem.startswith("sweep")
)
needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu (extra tpu) is missing")


def load(name="line_digits", form="tiny", **fields):
    config = importlib.import_module(f"configs.{name}").get_config(form)
    config.update(fields)
    return app.to_dict(config)


def on_host(made, num_devices=1):
    return made.mesh_over(jax.devices()[:num_devices])


def experiment(*args, **fields):
    return build.experiment(load(*args, **fields), without_data=True)


KERNEL_GRADIENT = "[f, 0, 1, b]x[i, 0, 1, o]->"  # as JAX derives it: the form that CPU never gets


@pytest.mark.parametrize("name", CONFIGS)
def test_every_configs_step_is_lowered_for_gpus_and_tpus(name):
    made = experiment(name)
    program = aot.training_step(made, on_host(made))
    lowered = compile.lower(program)
    assert lowered.platforms == ("cuda", "tpu") and lowered.nr_devices == 1
    kernels = sum(leaf.ndim == 5 for leaf in jax.tree.leaves(program.args[0].params))  # [K, k, k', C_in, C_out]
    assert kernels or name in ("line_transformer_digits", "dense", "deep_residual")
    # JAX itself has a form of a convolution for each of the two
    assert lowered.mlir_module().count(KERNEL_GRADIENT) == 2 * kernels


def test_lowered_for_cpu_the_same_step_has_the_forms_of_the_cpu():
    made = experiment()
    lowered = compile.lower(aot.training_step(made, on_host(made)), ("cpu",))
    assert "stablehlo.convolution" in lowered.mlir_module() and KERNEL_GRADIENT not in lowered.mlir_module()


def test_samples_layers_and_passes_are_lowered_too():
    made = experiment(network="cifar_resnet_8_2", layerwise=True, num_samples=2, dtype="bfloat16")
    found = aot.programs(made, on_host(made))
    assert set(found) == {"step", "refresh", "predict", "data set"}
    assert all(compile.lower(program).platforms == ("cuda", "tpu") for program in found.values())


def test_members_are_lowered_over_their_groups_of_devices():
    made = experiment("fashion_mnist", "ensemble,tiny", network="mlp_8", num_members=2)
    mesh = on_host(made, 4)
    assert dict(mesh.shape) == {"members": 2, "batch": 2}
    assert compile.lower(aot.training_step(made, mesh)).nr_devices == 4


@pytest.mark.parametrize("augmentation", ["none", "crop_flip", "crop(padding=1)|flip"])
def test_each_device_computes_its_share_of_every_pass(augmentation):
    """A batch that came together again, by a gather over its rows say, would be computed whole on each."""
    made = experiment(network="outside_module:Small", augmentation=augmentation, eval_batch_size=64)
    found = [aot.programs(made, on_host(made, devices)) for devices in (1, 4)]
    for name in ("refresh", "predict"):
        one, four = (compile.costs(programs[name]) for programs in found)
        assert four["flops"] < 0.4 * one["flops"], name
        assert set(four["collectives"]) <= {"all-reduce"}, name


def test_costs_are_counted_for_devices_that_are_here():
    """The data set is 1,437 images of 64 bytes, of which 128 are read through as many int32."""
    made = experiment()
    program = aot.reading(made, on_host(made))
    found = compile.costs(program, hbm=10**6)
    assert (found["arguments"], found["outputs"]) == (1437 * 64 + 128 * 4, 128 * 64)
    assert found["fits"] and found["collectives"] == {}
    assert compile.costs(program, hbm=1000)["fits"] is False and compile.costs(program)["fits"] is None


def test_what_the_compiler_finds_too_large_does_not_fit():
    class Function(NamedTuple):
        message: str

        def lower(self, *_):
            return self

        def compile(self):
            raise jax.errors.JaxRuntimeError(self.message)

    found = compile.costs(aot.Program(Function("RESOURCE_EXHAUSTED: Used 20G\nof 16G hbm"), ()))
    assert found == {"fits": False, "reason": "RESOURCE_EXHAUSTED: Used 20G of 16G hbm"}
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        compile.costs(aot.Program(Function("INTERNAL: a bug"), ()))


def test_collectives_are_counted_once_each():
    text = """
      %all-reduce.1 = f32[8]{0:T(128)} all-reduce(f32[8]{0} %x), channel_id=1, to_apply=%sum
      %start = (f32[8]{0}, f32[8]{0}) all-reduce-start(%x), channel_id=2, to_apply=%sum
      %done = f32[8]{0} all-reduce-done(%start), metadata={op_name="all-reduce"}
      %gather = f32[32]{0} all-gather(f32[8]{0} %x), dimensions={0}
      %fused = f32[8]{0} fusion(%all-reduce.1), kind=kLoop
    """
    assert compile.collectives(text) == {"all-reduce": 2, "all-gather": 1}


@pytest.mark.parametrize(
    "fields, devices, message",
    [
        ({"batch_size": 130}, 4, "batch_size is 130, which 1 samples .* on 4 devices do not divide.* multiple of 4"),
        ({"batch_size": 100, "num_samples": 3}, 1, "which 3 samples .* on 1 devices .* multiple of 3"),
        ({"num_devices": 5}, 4, "num_devices is 5 but there are 4 devices"),
    ],
)
def test_what_does_not_divide_is_named(fields, devices, message):
    with pytest.raises(ConfigError, match=message) as caught:
        on_host(experiment(**fields), devices)
    assert "\n" not in str(caught.value)


def test_a_topology_that_there_is_not_is_named_and_so_is_what_is_missing(monkeypatch):
    with pytest.raises(ConfigError, match="topology 'v5e' is not chip:shape: write it as in v5e:2x2"):
        compile.topology_devices("v5e")
    from jax.experimental import topologies

    def missing(*_, **__):
        raise RuntimeError("JAX TPU support not installed; cannot generate TPU topology.")

    monkeypatch.setattr(topologies, "get_topology_desc", missing)
    with pytest.raises(ConfigError, match=r"libtpu is not installed: pip install -e '.\[tpu\]'"):
        compile.topology_devices("v5e:2x2")


def test_the_command_says_what_is_wrong_in_one_line():
    command = ["-m", "launch.compile", "--config=configs/line_digits.py:tiny", "--topology=v5e"]
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: topology 'v5e' is not chip:shape")
    assert done.stderr.count("\n") == 1


@needs_libtpu
@pytest.mark.parametrize(
    "topology, message", [("v5e:2x3", "topology 'v5e:2x3' is unknown .*not divisible"), ("v99:2x2", "'v99:2x2' is unk")]
)
def test_a_topology_that_libtpu_does_not_know_is_named(topology, message):
    with pytest.raises(ConfigError, match=message) as caught:
        compile.topology_devices(topology)
    assert "\n" not in str(caught.value)


@needs_libtpu
@pytest.mark.parametrize(
    "topology, kind, chips", [("v4:2x2x1", "TPU v4", 4), ("v5p:2x2x1", "TPU v5", 4), ("v6e:4x4", "TPU v6 lite", 16)]
)
def test_every_chip_is_one_device_whose_memory_is_known(topology, kind, chips):
    devices = compile.topology_devices(topology)
    assert {device.device_kind for device in devices} == {kind} and len(devices) == chips
    assert compile.HBM[kind] >= 2**34


@pytest.fixture(scope="module")
def facts():
    """Of a line of an MLP with one hidden layer of 256, on four chips."""
    return compile.run(load(network="mlp_256", augmentation="none", test_every=0), "v5e:2x2", compare=True)


@needs_libtpu
def test_a_line_compiled_for_four_chips(facts):
    assert (facts["num_devices"], facts["device_kind"], facts["hbm"]) == (4, "TPU v5 lite", 2**34)
    assert facts["passes"] == {"refresh": 3, "predict": 1}
    step, plain, predict = (facts["programs"][name] for name in ("step", "plain step", "predict"))
    assert step["collectives"]["all-reduce"] >= 1 and predict["collectives"] == {}
    weights = 64 * 256 + 256 * 10
    # of 500 and of 128 images a quarter; the gradient of the kernels, and of the hidden layer
    np.testing.assert_allclose(predict["flops"], 2 * 125 * weights, rtol=0.1)
    np.testing.assert_allclose(plain["flops"], 2 * 32 * (2 * weights + 256 * 10), rtol=0.15)
    endpoints_and_momenta = 4 * 2 * 2 * (weights + 256 + 10)
    assert endpoints_and_momenta <= step["outputs"] <= 2 * endpoints_and_momenta
    assert step["bytes"] > plain["bytes"] and step["fits"] and plain["fits"]


@needs_libtpu
def test_flat_leaves_are_held_without_padding():
    """Kernels of 8 columns, which lie in tiles of 128: of two endpoints and their momenta."""
    programs = [
        compile.run(load(network="mlp((8, 8))", leaves=leaves, augmentation="none"), "v5e:2x2")["programs"]["step"]
        for leaves in ("shaped", "auto")
    ]
    shaped, flat = (program["outputs"] for program in programs)
    numbers = 4 * 4 * (64 * 8 + 8 * 8 + 8 * 10 + 8 + 8 + 10)
    assert shaped > 4 * numbers and numbers <= flat < 0.5 * shaped
    assert programs[1]["bytes"] < programs[0]["bytes"]


@needs_libtpu
def test_its_table_has_a_line_a_program_and_the_ratios(facts):
    text = compile.table(facts)
    assert text.startswith("line of mlp_256 on digits, float32, batch 128 in 1 samples, on 4 x TPU v5 lite (v5e:2x2)")
    for name, program in facts["programs"].items():
        assert re.search(rf"^{name} +{program['flops'] / 1e9:.3f} +{program['bytes'] / 2**20:.1f} ", text, re.M)
    step, plain = facts["programs"]["step"], facts["programs"]["plain step"]
    assert f"bytes {step['bytes'] / plain['bytes']:.3f}" in text
    assert "it fits in 16 GiB" in text and "a point takes 1 of predict" in text


@dataclasses.dataclass(frozen=True)
class Chip:
    """A device that is not here, as a mesh knows it."""

    id: int
    platform: str = "tpu"
    device_kind: str = "TPU v5 lite"
    process_index: int = 0


@pytest.mark.parametrize(
    "batch_size, num_samples, chips, thin",
    [(128, 2, 1, "into 64 examples .*up to 2.0 times .*batch_size=256"), (512, 4, 1, None), (512, 2, 4, "into 64 exam")]
    + [(64, 1, 4, None), (1024, 2, 4, None)],
)
def test_samples_that_are_too_thin_for_a_tpu_are_told_of(batch_size, num_samples, chips, thin):
    made = experiment(batch_size=batch_size, num_samples=num_samples)
    found = build.steps.thin_parts(batch_size, num_samples, made.mesh_over([Chip(i) for i in range(chips)]))
    assert found is None if thin is None else re.search(thin, found)
    assert made.thin_parts is None, "on a CPU"


@pytest.mark.parametrize("platform, form", [("cpu", "scan"), ("tpu", "unroll"), ("cuda", "vmap")])
def test_the_form_of_samples_is_that_of_the_platform_it_is_compiled_for(platform, form):
    assert build.steps.form("auto", platform) == form and build.steps.form("vmap", platform) == "vmap"


def test_the_table_of_what_does_not_fit():
    program = {"fits": False, "reason": "RESOURCE_EXHAUSTED: Used 20G of 16G hbm"}
    facts = {name: "x" for name in ("title", "device_kind", "topology")}
    facts |= {"num_devices": 4, "hbm": 2**34, "passes": {}}
    text = compile.table(facts | {"programs": {"step": program}})
    assert "step        does not fit: RESOURCE_EXHAUSTED" in text and "training does not fit" in text
