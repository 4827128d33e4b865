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
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
from jax import export

from subspaces_jax.errors import ConfigError
from subspaces_jax.experiments import aot, build
from subspaces_jax.experiments.build import Experiment
from subspaces_jax.experiments.build import steps as build_steps
from subspaces_jax.experiments.fields import FIELDS, ONE_NETWORK

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
# one network trained on whole batches: what a subspace is compared with
PLAIN = ONE_NETWORK | {name: FIELDS[name].default for name in ("num_parts", "rematerialise", "matmul_precision")}
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


def run(config: build.Config, topology: str, compare: bool = False) -> dict[str, Any]:
    """Compiles a config's training step, and the two passes that evaluate a point, for the chips of a topology.

    Args:
        config: a mapping with the fields of `fields.FIELDS`; num_devices of the chips are used, 0 for all.
        topology: such as "v5e:2x2", "v4:2x2x1", "v5p:2x2x1", "v6e:4x4".
        compare: whether to compile a step of plain training too, of the same network at the same batch.

    Returns:
        "topology", "device_kind", "num_devices", "hbm" (bytes a device, or None), "config", "title", "passes" (batches
        of each pass for one point), and "programs": {name: `costs`}, the names being "step", "plain step", "refresh"
        and "predict" (a batch each), and "data set" (a batch read from where all of it lies).

    Raises:
        ConfigError: the config, a topology that there is not, a batch that the devices do not divide, no libtpu.
    """
    made = build.experiment(config, without_data=True)
    mesh = made.mesh_over(topology_devices(topology))
    kind = mesh.devices.flat[0].device_kind
    hbm = HBM.get(kind)
    compiled = aot.programs(made, mesh)
    if compare:
        compiled["plain step"] = aot.training_step(build.experiment(made.config | PLAIN, without_data=True), mesh)
    return {
        "topology": topology,
        "device_kind": kind,
        "num_devices": int(mesh.devices.size),
        "hbm": hbm,
        "passes": _passes(made),
        "config": made.config,
        "title": made.title,
        "thin_parts": build_steps.thin_parts(made.batch_size, made.num_samples, mesh),
        "programs": {name: costs(program, hbm) for name, program in compiled.items()},
    }


def lower(program: aot.Program, platforms: Sequence[str] = ("cuda", "tpu")) -> export.Exported:
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


def costs(program: aot.Program, hbm: int | None = None) -> dict[str, Any]:
    """A program compiled, and what the compiler says of it, per device.

    Args:
        program: for devices that are here or not.
        hbm: bytes a device.

    Returns:
        "flops", "bytes" (moved to and from memory), "arguments", "outputs", "temporaries" and "memory" (what is
        held at once, bytes), "estimated_seconds", "collectives" {kind: number}, "fits" (None where hbm is), and
        "compile_seconds". A program that the compiler itself finds too large has "fits" False, "reason", and no more.
    """
    clock, lowered = time.perf_counter(), program.function.lower(*program.args)
    try:
        with warnings.catch_warnings():  # programs for chips that are not here cannot be read back, and are made anew
            warnings.filterwarnings("ignore", "Error reading persistent compilation cache")
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
    held = sum(sizes.values()) - memory.alias_size_in_bytes + program.beside
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
        f"{facts['title']}, on {facts['num_devices']} x {facts['device_kind']} ({facts['topology']}); per device:",
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
        *filter(None, [facts.get("thin_parts")]),
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


def _passes(made: Experiment) -> dict[str, int]:
    """Batches of each pass over data for one point."""
    size, num = made.eval_batch_size, made.data.num_examples
    refresh = -(-num // size)
    if made.data.streams:
        refresh = min(made.num_refresh_batches or refresh, num // size)
    return {"refresh": refresh, "predict": -(-made.data.info.num_test // size)}
