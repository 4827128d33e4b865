"""What a config costs on TPUs that are not here: its programs compiled ahead of time; and lowered for any platform.

libtpu (extra `tpu`) has the compiler of the chips, and jax descriptions of them, so neither a TPU nor the data set is
needed: shapes come from `data.catalogue`. What is compiled is one step, not the loop of many that training dispatches:
XLA counts the body of a loop once, whatever its trip count. FLOPs are those of the compiled program, bytes moved are
what the compiler's model of the memory says, and seconds are an estimate that is good for ratios at most.
"""

import math
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export, lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from subspaces_jax import geometry, parallel
from subspaces_jax.data import catalogue
from subspaces_jax.errors import ConfigError
from subspaces_jax.experiments import build
from subspaces_jax.training.state import init_state

GIB = 2**30
HBM = {  # per chip, https://cloud.google.com/tpu/docs/system-architecture-tpu-vm (v4, v5e, v5p, v6e), by device_kind
    "TPU v4": 32 * GIB,
    "TPU v5 lite": 16 * GIB,
    "TPU v5": 95 * GIB,
    "TPU v6 lite": 32 * GIB,
}
ONE_DEVICE_A_CHIP = {"v4": {"chip_config_name": "megacore"}}  # as Cloud TPU runs them; else v4 has two devices a chip
EXAMPLES = "write it as in v5e:2x2, v4:2x2x1, v5p:2x2x1 or v6e:2x2, shapes being multiples of 2x2"
LIBTPU = {  # so that it asks no metadata server, and several processes may use it; read when it is first loaded
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
PLAIN = {  # one network trained on whole batches: what a subspace is compared with
    "subspace": "none",
    "num_endpoints": 0,
    "layerwise": False,
    "beta": 0.0,
    "num_samples": 1,
    "feature_diversity": 0.0,
    "own_coordinates": False,
    "num_members": 1,
    "initial": "",
}
COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
RATIOS = {"FLOPs": "flops", "bytes": "bytes", "temporary memory": "temporaries", "est. time": "estimated_seconds"}


class Program(NamedTuple):
    """Attributes:
    function: jitted.
    args: shapes with their shardings.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]


def run(config: build.Config, topology: str, compare: bool = False) -> dict[str, Any]:
    """Compiles a config's training step, and the two passes that evaluate a point, for the chips of a topology.

    Args:
        config: a mapping with the fields of `fields.FIELDS`; num_devices of the chips are used, 0 for all.
        topology: such as "v5e:2x2", "v4:2x2x1", "v5p:2x2x1", "v6e:4x4".
        compare: whether to compile a step of plain training too, of the same network at the same batch.

    Returns:
        "topology", "device_kind", "num_devices", "hbm" (bytes a device, or None), some of the config's fields, "passes"
        (batches of each pass for one point), and "programs": {name: `costs`}, the names being "step", "plain step",
        "refresh" and "predict" (a batch each), and "data set" (a batch read from where all of it lies).

    Raises:
        ConfigError: the config, a topology that there is not, a batch that the devices do not divide, no libtpu.
    """
    config = build.check(config)
    mesh = device_mesh(config, topology_devices(topology))
    kind = mesh.devices.flat[0].device_kind
    hbm = HBM.get(kind)
    made = programs(config, mesh)
    if compare:
        made["plain step"] = training_step(build.check(config | PLAIN), mesh)
    return {
        "topology": topology,
        "device_kind": kind,
        "num_devices": int(mesh.devices.size),
        "hbm": hbm,
        "passes": _passes(config),
        **{name: config[name] for name in ("network", "dataset", "subspace", "dtype", "batch_size", "num_samples")},
        "programs": {name: costs(program, hbm) for name, program in made.items()},
    }


def lower(program: Program, platforms: Sequence[str] = ("cuda", "tpu")) -> export.Exported:
    """The program as StableHLO for platforms that need not be here; jax raises where a part of it has no form there.

    Args:
        program: over devices of any platform, of which the mesh alone counts.
        platforms: of "cpu", "cuda", "rocm", "tpu".
    """
    return export.export(program.function, platforms=list(platforms))(*program.args)


def topology_devices(topology: str) -> Sequence[Any]:
    """Descriptions of a topology's devices, one a chip.

    Raises:
        ConfigError: libtpu is not installed, or knows no such topology.
    """
    from jax.experimental import topologies  # takes half a second to import

    for name, value in LIBTPU.items():
        os.environ.setdefault(name, value)
    if not re.fullmatch(r"\w+:\d+(x\d+)*", topology):
        raise ConfigError(f"topology {topology!r} is not chip:shape: {EXAMPLES}")
    options = ONE_DEVICE_A_CHIP.get(topology.partition(":")[0], {})
    try:
        return topologies.get_topology_desc(topology, platform="tpu", **options).devices
    except RuntimeError as error:  # of jax itself where there is no libtpu, else libtpu's
        if "not installed" in str(error):
            raise ConfigError("libtpu is not installed: pip install -e '.[tpu]'") from None
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"topology {topology!r} is unknown ({reason}): {EXAMPLES}") from None


def device_mesh(config: build.Config, devices: Sequence[Any]) -> Mesh:
    """The mesh of `parallel.device_mesh` over devices that may not be here; the batch must split evenly over it."""
    num = config["num_devices"] or len(devices)
    if num > len(devices):
        raise ConfigError(f"config.num_devices is {num}, but there are {len(devices)} chips: choose at most that")
    groups = math.gcd(num, config["num_members"])
    parts = num // groups * config["num_samples"]
    if config["batch_size"] % parts:
        raise ConfigError(
            f"config.batch_size is {config['batch_size']}, which {config['num_samples']} samples (config.num_samples) "
            f"on {num // groups} devices do not divide: choose a multiple of {parts}"
        )
    used = np.asarray(devices[:num], dtype=object).reshape(groups, -1)
    return Mesh(used, (parallel.MEMBERS, parallel.AXIS), axis_types=(AxisType.Auto,) * 2)


def programs(config: build.Config, mesh: Mesh) -> dict[str, Program]:
    """All programs of a checked config for the devices of a mesh, by name."""
    made = {"step": training_step(config, mesh)} | evaluation_passes(config, mesh)
    return made if build.streams(config) else made | {"data set": reading(config, mesh)}


def training_step(config: build.Config, mesh: Mesh) -> Program:
    """One step of a checked config, on a batch that lies on the devices."""
    many, samples = config["num_members"], config["num_samples"]
    made, space = build.model(config), build.subspace(config)
    optimizer = build.optimizer(config, build.schedule(config, max(_num_train(config) // config["batch_size"], 1)))

    def init(key):
        return init_state(made.init(key, space.num_endpoints), optimizer, key)

    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), many))
    state = jax.eval_shape(jax.vmap(init), keys) if many > 1 else jax.eval_shape(init, jax.random.key(0))
    if config["layerwise"]:
        space = geometry.layerwise(space, state.params)
    step = build.step(_on_platform(config, mesh), made, space, optimizer)
    whole = PartitionSpec()
    members = PartitionSpec(parallel.MEMBERS) if many > 1 else whole
    split = PartitionSpec(*members, None, parallel.AXIS)  # [(M,) S, b]
    compiled = parallel.pmapped(step, mesh, (members, whole, whole, split), (members, whole), donate_argnums=(0,))
    size = config["batch_size"]
    indices = jax.ShapeDtypeStruct((*[many] * (many > 1), samples, size // samples), jnp.int32)
    labels = jax.ShapeDtypeStruct((size,), jnp.int32)
    args = (state, _images(config, size), labels, indices)
    return Program(compiled, tuple(map(_laid_out(mesh), args, (members, whole, whole, split))))


def evaluation_passes(config: build.Config, mesh: Mesh) -> dict[str, Program]:
    """A batch of each pass over data at one point, split over all devices: contraction, and the network on it."""
    made = build.model(config)
    variables = jax.eval_shape(lambda: made.init(jax.random.key(0), build.num_rows(config)))
    stats = variables.get("batch_stats", {})
    shapes = jax.tree.leaves(variables["params"])
    coordinates = jax.ShapeDtypeStruct((shapes[0].shape[0],), jnp.float32)

    def at_point(stack, coordinates, stats):
        return {"params": geometry.contract(stack, coordinates), "batch_stats": stats}

    def refresh(stack, coordinates, stats, key, images):
        key = jax.random.fold_in(key, lax.axis_index(parallel.AXIS))
        stats = made.apply_train(at_point(stack, coordinates, stats), images, key)[1]
        return lax.pmean(stats, (parallel.MEMBERS, parallel.AXIS))

    def predict(stack, coordinates, stats, images):
        return made.apply(at_point(stack, coordinates, stats), images)

    whole, split = PartitionSpec(), PartitionSpec((parallel.MEMBERS, parallel.AXIS))
    laid_out = _laid_out(mesh)
    point = tuple(laid_out(tree, whole) for tree in (variables["params"], coordinates, stats))
    key = laid_out(jax.eval_shape(lambda: jax.random.key(0)), whole)
    images = laid_out(_images(config, -(-config["eval_batch_size"] // mesh.devices.size) * mesh.devices.size), split)
    found = {"predict": Program(parallel.pmapped(predict, mesh, (*[whole] * 3, split), split), (*point, images))}
    if jax.tree.leaves(stats):
        mapped = parallel.pmapped(refresh, mesh, (*[whole] * 4, split), whole)
        found = {"refresh": Program(mapped, (*point, key, images))} | found
    return found


def reading(config: build.Config, mesh: Mesh) -> Program:
    """A batch taken from a data set that each device holds whole: what it needs is how the data set is laid out."""
    images, split = _images(config, _num_train(config)), PartitionSpec(parallel.AXIS)
    indices = jax.ShapeDtypeStruct((config["batch_size"],), jnp.int32)
    taken = parallel.pmapped(lambda images, rows: jnp.take(images, rows, axis=0), mesh, (PartitionSpec(), split), split)
    laid_out = _laid_out(mesh)
    return Program(taken, (laid_out(images, PartitionSpec()), laid_out(indices, split)))


def costs(program: Program, hbm: int | None = None) -> dict[str, Any]:
    """A program compiled, and what the compiler says of it, per device.

    Args:
        program: for devices that are here or not.
        hbm: bytes a device.

    Returns:
        "flops", "bytes" (moved to and from memory), "arguments", "outputs", "temporaries" and "memory" (what it holds
        at once, bytes), "estimated_seconds", "collectives" {kind: number}, "fits" (None where hbm is), and
        "compile_seconds". A program that the compiler itself finds too large has "fits" False, "reason", and no more.
    """
    clock, lowered = time.perf_counter(), program.function.lower(*program.args)
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {"fits": False, "reason": " ".join(str(error).split())[:200]}
    counts, memory = compiled.cost_analysis(), compiled.memory_analysis()
    sizes = {
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
    }
    held = sum(sizes.values()) - memory.alias_size_in_bytes
    seconds = counts.get("optimal_seconds", math.nan)
    return sizes | {
        "memory": held,
        "flops": counts["flops"],
        "bytes": counts["bytes accessed"],
        "estimated_seconds": seconds - math.floor(seconds) if math.isfinite(seconds) else None,  # unknown counts -1 s
        "collectives": collectives(compiled.as_text()),
        "fits": None if hbm is None else held <= hbm,
        "compile_seconds": time.perf_counter() - clock,
    }


def collectives(text: str) -> dict[str, int]:
    """How many of each kind of collective a compiled program has: as one operation, or as a start and a done."""
    found = re.findall(rf" ({'|'.join(COLLECTIVES)})(?:-start)?\(", text)
    return dict(Counter(found))


def table(facts: dict[str, Any]) -> str:
    """The costs as text: a line a program, what is an estimate said to be one."""
    lines = [
        f"{facts['subspace']} of {facts['network']} on {facts['dataset']}, {facts['dtype']}, batch "
        f"{facts['batch_size']} in {facts['num_samples']} samples, on {facts['num_devices']} x {facts['device_kind']} "
        f"({facts['topology']}); per device:",
        f"{'':12}{'GFLOP':>10}{'MiB moved':>11}{'arguments':>11}{'outputs':>9}{'temporary':>11}{'est. ms':>9}  fits",
    ]
    lines += [_line(name, program) for name, program in facts["programs"].items()]
    step, plain = (facts["programs"].get(name, {}) for name in ("step", "plain step"))
    if "bytes" in step and "bytes" in plain:
        ratios = [f"{what} {step[name] / plain[name]:.3f}" for what, name in RATIOS.items() if plain[name]]
        lines.append(f"step / plain step: {', '.join(ratios)}")
    lines.append(_memory_of_training(facts))
    batches = ", ".join(f"{n} of {name}" for name, n in facts["passes"].items() if name in facts["programs"])
    lines += [
        f"a point takes {batches} (a batch each, above); memory in MiB",
        "FLOPs and bytes are the compiler's counts for one step; of a loop (over_samples='scan') it counts the body "
        "once",
        "est. ms is the compiler's estimate without what it cannot estimate: good for ratios at most",
    ]
    return "\n".join(lines)


def _line(name: str, program: dict[str, Any]) -> str:
    if "bytes" not in program:
        return f"{name:12}does not fit: {program['reason']}"
    mib = lambda key: program[key] / 2**20
    seconds = program["estimated_seconds"]
    cells = (
        f"{program['flops'] / 1e9:10.3f}{mib('bytes'):11.1f}{mib('arguments'):11.1f}{mib('outputs'):9.1f}"
        f"{mib('temporaries'):11.1f}{'' if seconds is None else f'{1e3 * seconds:.3f}':>9}"
    )
    fits = {True: "yes", False: "no", None: "?"}[program["fits"]]
    collectives = ", ".join(f"{number} {kind}" for kind, number in sorted(program["collectives"].items()))
    return f"{name:12}{cells}  {fits:4} {collectives}".rstrip()


def _memory_of_training(facts: dict[str, Any]) -> str:
    """The step's memory with the data set's, against the device's."""
    held = [facts["programs"][name].get("memory") for name in ("step", "data set") if name in facts["programs"]]
    if None in held:
        return "training does not fit"
    total = sum(held) / GIB
    what = f"training holds {total:.2f} GiB a device" + (", the data set with it" if len(held) > 1 else "")
    if facts["hbm"] is None:
        return f"{what}; how much a {facts['device_kind']} has is not known here"
    return f"{what}: it {'fits' if sum(held) <= facts['hbm'] else 'does not fit'} in {facts['hbm'] / GIB:.0f} GiB"


def _on_platform(config: build.Config, mesh: Mesh) -> build.Config:
    """over_samples="auto" as the platform of the mesh has it, rather than that of the host."""
    cpu = mesh.devices.flat[0].platform == "cpu"
    return config if config["over_samples"] != "auto" else config | {"over_samples": "scan" if cpu else "vmap"}


def _passes(config: build.Config) -> dict[str, int]:
    """Batches of each pass over data for one point."""
    size, num_test = config["eval_batch_size"], catalogue.info(config["dataset"]).num_test
    refresh = -(-_num_train(config) // size)
    if build.streams(config):
        refresh = min(config["num_refresh_batches"] or refresh, _num_train(config) // size)
    return {"refresh": refresh, "predict": -(-num_test // size)}


def _num_train(config: build.Config) -> int:
    return config["num_train_examples"] or catalogue.info(config["dataset"]).num_train


def _images(config: build.Config, num: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((num, *catalogue.info(config["dataset"]).image_shape), jnp.uint8)


def _laid_out(mesh: Mesh) -> Callable[[Any, PartitionSpec], Any]:
    """(tree of shapes, spec) -> the same with their sharding."""

    def laid_out(tree, spec):
        sharding = NamedSharding(mesh, spec)
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)

    return laid_out
