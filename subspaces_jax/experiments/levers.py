"""What each lever of a training step does to it on TPUs that are not here: compiled with one lever changed at a time.

A lever changes how a step is computed, not what is trained: its precision, how samples are taken, parts of a batch,
what the gradient computes again, and where the data are. Counts are the compiler's, see `compile`, and of a loop's body
they are counts of one pass through it: such rows have no ratios of FLOPs and bytes, but memory is what it is. The loop
over an epoch's steps has a step as its body, so that its counts are a step's, too.
"""

from collections.abc import Iterator
from typing import Any

from jax.sharding import Mesh

from subspaces_jax import parallel
from subspaces_jax.experiments import aot, build, compile
from subspaces_jax.experiments.aot import Program
from subspaces_jax.experiments.build import Experiment
from subspaces_jax.experiments.calls import DTYPES, PRECISIONS, REMATERIALISED
from subspaces_jax.training.step import FORMS

AS_IT_IS = "as it is"
LEVERS: dict[str, tuple[Any, ...]] = {
    "dtype": tuple(DTYPES),
    "matmul_precision": PRECISIONS,
    "rematerialise": REMATERIALISED,
    "over_samples": FORMS,
    "leaves": ("flat", "shaped"),
    "num_parts": (1, 2, 4),
}
IN_MEMORY, STREAMED = "in memory, an epoch's steps a dispatch", "streamed, a step a dispatch"
COLUMNS = {"FLOPs": "flops", "bytes": "bytes", "temp.": "temporaries"}


def run(config: build.Config, topology: str) -> dict[str, Any]:
    """Compiles a config's training step as it is, and with each lever changed, for the chips of a topology.

    Args:
        config, topology: as `compile.run` takes them.

    Returns:
        "topology", "device_kind", "num_devices", "hbm", "config" and "title" as of `compile.run`, and "rows": {name:
        `compile.costs` and "loops", how many passes through loops the counts are one of}, the first being AS_IT_IS.

    Raises:
        ConfigError: the config, a topology that there is not, a batch that the devices do not divide, no libtpu.
    """
    made = build.experiment(config, without_data=True)
    mesh = made.mesh_over(compile.topology_devices(topology))
    kind = mesh.devices.flat[0].device_kind
    hbm = compile.HBM.get(kind)
    rows = {}
    for name, changed, program in programs(made, mesh):
        rows[name] = compile.costs(program, hbm) | {"loops": loops(changed, parallel.platform(mesh))}
    return {
        "topology": topology,
        "device_kind": kind,
        "num_devices": int(mesh.devices.size),
        "hbm": hbm,
        "config": made.config,
        "title": made.title,
        "rows": rows,
    }


def changes(made: Experiment, mesh: Mesh) -> dict[str, dict[str, Any]]:
    """The fields that each lever changes, by "field=value": values of LEVERS that are not the config's own, and that
    do something to its step on these devices."""
    shares = mesh.shape[parallel.AXIS] * made.num_samples
    form = made.programs.over_samples(parallel.platform(mesh))
    in_flat_leaves = made.programs.in_flat_leaves(parallel.platform(mesh), many_steps=not made.data.streams)
    own = {name: made.config[name] for name in LEVERS} | {"over_samples": form}
    own["leaves"] = "flat" if in_flat_leaves else "shaped"
    has_effect = {
        "matmul_precision": lambda value: own["dtype"] == "float32",
        "over_samples": lambda value: made.num_samples > 1 or made.num_members > 1,
        "leaves": lambda value: made.programs.takes_flat_leaves,
        "num_parts": lambda value: made.batch_size % (shares * value) == 0,
    }
    return {
        f"{name}={value}": {name: value}
        for name, values in LEVERS.items()
        for value in values
        if value != own[name] and has_effect.get(name, lambda value: True)(value)
    }


def programs(made: Experiment, mesh: Mesh) -> Iterator[tuple[str, Experiment, Program]]:
    """(name, experiment, program) of each row: steps on a batch that lies on the devices, and training's dispatches."""
    yield AS_IT_IS, made, aot.training_step(made, mesh)
    for name, fields in changes(made, mesh).items():
        changed = build.experiment(made.config | fields, without_data=True)
        yield name, changed, aot.training_step(changed, mesh)
    if not made.data.streams:
        yield IN_MEMORY, made, aot.in_memory(made, mesh)
    yield STREAMED, made, aot.streamed(made, mesh)


def loops(made: Experiment, platform: str) -> int:
    """Passes through the loops of a step's parts, samples and members, of which the compiler counts one."""
    form = made.programs.over_samples(platform)
    return made.programs.num_parts * (made.num_samples * made.num_members if form == "scan" else 1)


def table(facts: dict[str, Any]) -> str:
    """A line a lever, with ratios to the step as it is where both count the same."""
    rows, first = facts["rows"], facts["rows"][AS_IT_IS]
    width = max(map(len, rows)) + 2
    lines = [
        f"{facts['title']}, on {facts['num_devices']} x {facts['device_kind']} ({facts['topology']}); one step, per "
        "device:",
        f"{'':{width}}{'GFLOP':>10}{'MiB moved':>11}{'temporary':>11}{'arguments':>11}"
        + "".join(f"{title:>8}" for title in COLUMNS),
    ]
    lines += [f"{name:{width}}{_cells(row, first)}" for name, row in rows.items()]
    lines.append("memory in MiB; on the right ratios to the step as it is; FLOPs and bytes are the compiler's counts")
    if any(row.get("loops", 1) > 1 for row in rows.values()):
        lines.append("* of a loop over parts, samples or members the compiler counts one pass, of so many")
    if any(name.startswith("matmul_precision") for name in rows):
        lines.append(
            "passes that the matrix unit takes for a higher precision are not in the counts: 3 of high, 6 of highest"
        )
    return "\n".join(lines)


def _cells(row: dict[str, Any], first: dict[str, Any]) -> str:
    if "bytes" not in row:
        return f"does not fit: {row['reason']}"
    mib = lambda key: row[key] / 2**20
    text = f"{row['flops'] / 1e9:10.3f}{mib('bytes'):11.1f}{mib('temporaries'):11.1f}{mib('arguments'):11.1f}"
    for key in COLUMNS.values():
        comparable = key == "temporaries" or row["loops"] == first["loops"]
        text += f"{row[key] / first[key]:8.3f}" if comparable and first.get(key) else f"{'':8}"
    return (text + (f"  * 1 of {row['loops']}" if row["loops"] > 1 else "")).rstrip()
