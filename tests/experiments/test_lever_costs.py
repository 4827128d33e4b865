"""Which levers there are for a config, what their programs take, and how their costs are told."""

import jax
import numpy as np
import pytest
from test_compile import Chip, experiment, load, needs_libtpu, on_host

from subspaces_jax.experiments import aot, compile, levers

CHIPS = [Chip(i) for i in range(4)]
ALWAYS = ["dtype=bfloat16", "matmul_precision=high", "matmul_precision=highest"]
ALWAYS += ["rematerialise=all", "rematerialise=all_but_products", "num_parts=2", "num_parts=4"]
ALWAYS += ["leaves=shaped"]  # on a TPU they are flat


@pytest.mark.parametrize(
    "fields, more, fewer",
    [
        ({}, [], []),
        ({"num_samples": 2}, ["over_samples=vmap", "over_samples=scan"], []),  # on a TPU it unrolls
        ({"num_samples": 2, "over_samples": "scan"}, ["over_samples=vmap", "over_samples=unroll"], []),
        ({"batch_size": 8}, [], ["num_parts=4"]),  # of 4 devices each has 2 examples
        ({"num_parts": 2}, ["num_parts=1"], ["num_parts=2"]),
        ({"dtype": "bfloat16"}, ["dtype=float32"], ALWAYS[:3]),  # products of bfloat16 have one precision
    ],
)
def test_levers_are_those_that_do_something(fields, more, fewer):
    made = experiment(network="mlp_8", **fields)
    found = levers.changes(made, made.mesh_over(CHIPS))
    assert set(found) == {*ALWAYS, *more} - {*fewer}
    assert all(f"{field}={value}" == name for name, change in found.items() for field, value in change.items())


@pytest.mark.parametrize(
    "fields, platform, passes",
    [({}, "tpu", 1), ({"num_samples": 2}, "tpu", 1), ({"num_samples": 2}, "cpu", 2)]
    + [({"num_samples": 2, "num_parts": 4, "over_samples": "scan"}, "tpu", 8)],
)
def test_loops_are_those_of_parts_and_of_samples_that_are_scanned(fields, platform, passes):
    assert levers.loops(experiment(network="mlp_8", **fields), platform) == passes


def test_dispatches_take_the_data_set_or_a_batch():
    """Of 1,437 images of 64 bytes and labels of 4, in 11 batches of 128; the state is that of the step."""
    made = experiment(network="mlp_8", augmentation="none")
    mesh = on_host(made)
    step, memory, stream = (
        compile.costs(make(made, mesh)) for make in (aot.training_step, aot.in_memory, aot.streamed)
    )
    state = step["arguments"] - 128 * (64 + 4 + 4)
    assert memory["arguments"] == state + 1437 * (64 + 4) + 11 * 128 * 4 + 4
    assert stream["arguments"] == state + 128 * (64 + 4)
    np.testing.assert_allclose(
        [memory["flops"], stream["flops"]], step["flops"], rtol=0.1
    )  # of the body of the loop, once


def test_members_stream_a_batch_each():
    made = experiment("fashion_mnist", "ensemble,tiny", network="mlp_8", num_members=2)
    mesh = on_host(made, 4)
    for make in (aot.in_memory, aot.streamed):
        assert compile.lower(make(made, mesh)).nr_devices == 4
    assert aot.streamed(made, mesh).args[1]["images"].shape[:2] == (2, 128)


def row(flops, moved, temporaries, passes=1):
    mib = 2**20
    return {
        "flops": flops,
        "bytes": moved * mib,
        "temporaries": temporaries * mib,
        "arguments": 2 * mib,
        "loops": passes,
    }


def test_the_table_has_ratios_where_both_count_the_same():
    rows = {
        "as it is": row(4e9, 8, 16),
        "dtype=bfloat16": row(4e9, 5, 4),
        "num_parts=2": row(2e9, 3, 8, passes=2),
        "rematerialise=all": {"fits": False, "reason": "RESOURCE_EXHAUSTED", "loops": 1},
    }
    facts = {"title": "a line", "num_devices": 4, "device_kind": "TPU v5 lite", "topology": "v5e:2x2", "rows": rows}
    lines = levers.table(facts).splitlines()
    assert lines[0].startswith("a line, on 4 x TPU v5 lite (v5e:2x2)")
    assert lines[2].split() == [*"as it is".split(), "4.000", "8.0", "16.0", "2.0", "1.000", "1.000", "1.000"]
    assert lines[3].split() == ["dtype=bfloat16", "4.000", "5.0", "4.0", "2.0", "1.000", "0.625", "0.250"]
    assert lines[4].split() == ["num_parts=2", "2.000", "3.0", "8.0", "2.0", "0.500", "*", "1", "of", "2"]
    assert lines[5].split() == ["rematerialise=all", "does", "not", "fit:", "RESOURCE_EXHAUSTED"]
    assert "one pass" in lines[-1]
    assert "one pass" not in levers.table(facts | {"rows": {"as it is": rows["as it is"]}})


@needs_libtpu
def test_levers_compiled_for_four_chips():
    facts = levers.run(load(network="mlp_64", augmentation="none", num_parts=2, dtype="bfloat16"), "v5e:2x2")
    made = experiment(network="mlp_64", augmentation="none", num_parts=2, dtype="bfloat16")
    changed = levers.changes(made, made.mesh_over(compile.topology_devices("v5e:2x2")))
    assert list(facts["rows"]) == [levers.AS_IT_IS, *changed, levers.IN_MEMORY, levers.STREAMED]
    rows = facts["rows"]
    assert rows["num_parts=1"]["flops"] > 1.5 * rows[levers.AS_IT_IS]["flops"], "of two parts one is counted"
    assert all(np.isfinite(row["bytes"]) and row["fits"] for row in rows.values())
    assert jax.devices()[0].platform == "cpu"
