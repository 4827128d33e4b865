"""Checkpoints of small states made by hand: what comes back, what is damage, whose it is, and what is neither."""

import errno
import gc
import json
import os
import pathlib
import shutil
import subprocess
import sys
import threading

import chex
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from subspaces_jax import checkpoints, records
from subspaces_jax.errors import CheckpointError, RunDirectoryError

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = {"seed": 0, "network": "mlp_5"}

# Orbax leaves tasks of a closed event loop behind where it meets damage
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def collected():
    gc.freeze()  # what is from before is not looked through
    yield
    gc.collect()  # so that what Orbax leaves goes with the tests of this file
    gc.unfreeze()


def state(seed, width=5, with_stats=True):
    """Two endpoints of one layer; every number is of the seed."""
    random = np.random.default_rng(seed)
    make = lambda *shape: jnp.asarray(random.normal(size=shape), jnp.float32)
    params = {"Dense_0": {"kernel": make(2, 3, width), "bias": make(2, width)}}
    stats = {"BatchNorm_0": {"mean": make(width)}} if with_stats else {}
    return checkpoints.Resumable(
        params, stats, (make(width), {"mu": params}), jax.random.key_data(jax.random.key(seed))
    )


def write(workdir, at=(1, 2), header=True, **options):
    """A run with checkpoints of some steps, whose states have the steps as seeds; returns its id."""
    workdir.mkdir(exist_ok=True, parents=True)
    run_id = records.write_header(workdir, "train", CONFIG).run_id if header else ""
    with checkpoints.open_manager(workdir, keep_last=len(at)) as manager:
        for step in at:
            checkpoints.save(manager, step, state(step, **options), CONFIG, run_id)
    return run_id


def write_as_before(workdir, at=(1, 2)):
    """A run as the first version of the package wrote it: a flat config, items without origins."""
    workdir.mkdir(exist_ok=True, parents=True)
    (workdir / "config.json").write_text(json.dumps(CONFIG))
    with ocp.CheckpointManager(workdir / "checkpoints") as manager:
        for step in at:
            of_step = state(step)
            items = {
                "params": ocp.args.StandardSave(of_step.params),
                "optimizer": ocp.args.StandardSave({"opt_state": of_step.opt_state, "key": of_step.key}),
                "batch_stats": ocp.args.StandardSave(of_step.batch_stats),
                "config": ocp.args.JsonSave(CONFIG),
            }
            manager.save(step, args=ocp.args.Composite(**items))


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Runs with checkpoints of steps 1 and 2, written once: "run", "other", and "before" by the first version."""
    root = tmp_path_factory.mktemp("stored")
    write(root / "run")
    write(root / "other")
    write_as_before(root / "before")
    return root


@pytest.fixture
def run(stored, tmp_path):
    """A copy of the first of them, to be damaged."""
    return pathlib.Path(shutil.copytree(stored / "run", tmp_path / "run"))


def resume(workdir, like=None, run_id=None):
    run_id = records.read_header(workdir).run_id if run_id is None else run_id
    with checkpoints.open_manager(workdir) as manager:
        return checkpoints.resume(manager, state(0) if like is None else like, run_id)


def cut(folder):
    """Cuts every array of a checkpoint short."""
    for path in folder.rglob("*"):
        if path.is_file() and path.parent.name == "d":
            path.write_bytes(path.read_bytes()[:20])


def folder(workdir, step, item=""):
    return workdir / "checkpoints" / str(step) / item


def put(source, target):
    if target.exists():
        shutil.rmtree(target)
    shutil.copytree(source, target)


def one_line(caught):
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("with_stats", [True, False])
def test_what_is_saved_comes_back(with_stats, tmp_path):
    write(tmp_path, (3, 7), with_stats=with_stats)
    for step in (3, 7):
        saved, found = state(step, with_stats=with_stats), checkpoints.restore(tmp_path, step)
        chex.assert_trees_all_equal(found.params, jax.tree.map(np.asarray, saved.params))
        assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves((found.params, found.batch_stats)))
        assert list(found.params) == ["Dense_0"] and list(found.batch_stats) == ["BatchNorm_0"] * with_stats
        assert (found.step, found.config) == (step, CONFIG)
    assert checkpoints.restore(tmp_path).step == 7
    resumed, step, notes = resume(tmp_path, state(0, with_stats=with_stats))
    chex.assert_trees_all_equal(resumed, state(7, with_stats=with_stats))
    assert (step, notes) == (7, [])


def test_steps_are_listed_without_reading_or_making_anything(tmp_path):
    assert checkpoints.steps(tmp_path / "nowhere") == [] and not (tmp_path / "nowhere").exists()
    assert not checkpoints.has_any(tmp_path)
    write(tmp_path, (0, 2, 10, 100), header=False)
    for name in ("5.orbax-checkpoint-tmp", "notes", "007"):
        folder(tmp_path, name).mkdir()
    folder(tmp_path, 6).write_text("no folder")
    assert checkpoints.steps(tmp_path) == checkpoints.steps(str(tmp_path)) == [0, 2, 10, 100]
    cut(folder(tmp_path, 10))
    assert 10 in checkpoints.steps(tmp_path) and checkpoints.has_any(tmp_path)


def test_the_beginning_may_be_kept(tmp_path):
    with checkpoints.open_manager(tmp_path, keep_last=1, keep_steps=(0, 2)) as manager:
        for step in range(5):
            checkpoints.save(manager, step, state(step), CONFIG)
            checkpoints.save(manager, step, state(step + 50), CONFIG)  # stays as it was
    assert checkpoints.steps(tmp_path) == [0, 2, 4]
    chex.assert_trees_all_equal(checkpoints.restore(tmp_path, 0).params, jax.tree.map(np.asarray, state(0).params))
    assert resume(tmp_path, run_id="")[1] == 4


def test_runs_of_the_first_version_are_read_and_resumed(stored, tmp_path):
    shutil.copytree(stored / "before", tmp_path, dirs_exist_ok=True)
    found = checkpoints.restore(tmp_path)
    assert (found.step, found.config) == (2, CONFIG)
    chex.assert_trees_all_equal(found.params, jax.tree.map(np.asarray, state(2).params))
    header = records.write_header(tmp_path, "train", CONFIG)
    with checkpoints.open_manager(tmp_path) as manager:
        resumed, step, notes = checkpoints.resume(manager, state(0), header.run_id)
        assert (header.run_id, step, notes) == ("", 2, [])
        chex.assert_trees_all_equal(resumed, state(2))
        checkpoints.save(manager, 3, state(3), CONFIG, header.run_id)
    assert checkpoints.restore(tmp_path).step == 3 and resume(tmp_path)[1] == 3
    cut(folder(tmp_path, 3))
    assert resume(tmp_path)[1] == 2


ITEMS = ("params", "batch_stats", "optimizer")


@pytest.mark.parametrize("item", ITEMS)
@pytest.mark.parametrize("of", ["another step", "another run", "a run of the first version"])
def test_an_item_that_is_of_something_else_is_noticed(item, of, run, stored):
    if of == "another step":
        put(folder(run, 1, item), folder(run, 2, item))
        message = f"{item} is of step 1 of this run"
    elif of == "another run":
        other = records.read_header(stored / "other").run_id
        put(folder(stored / "other", 2, item), folder(run, 2, item))
        message = rf"{item} is of step 2 of another run \({other}\)"
    else:
        put(folder(stored / "before", 2, item), folder(run, 2, item))
        message = f"{item} does not say which run it is of"
    for step in (None, 2):
        with pytest.raises(CheckpointError, match=f"checkpoint 2 in .*: {message}") as caught:
            checkpoints.restore(run, step)
        one_line(caught)
    assert checkpoints.restore(run, 1).step == 1
    resumed, step, notes = resume(run)
    chex.assert_trees_all_equal(resumed, state(1))
    assert step == 1 and len(notes) == 1 and "checkpoint 2 is damaged" in notes[0]
    assert checkpoints.steps(run) == [1]
    assert [path.name.split("-")[0] for path in (run / "damaged").iterdir()] == ["2"]


def test_a_checkpoint_that_is_renamed_is_noticed(run):
    folder(run, 2).rename(folder(run, 9))
    with pytest.raises(CheckpointError, match="checkpoint 9 in .* params is of step 2 of this run"):
        checkpoints.restore(run)
    assert resume(run)[1] == 1


def test_a_checkpoint_of_another_run_is_noticed(stored, tmp_path):
    other = records.read_header(stored / "other").run_id
    for name in ("run", "before", "other"):
        workdir = pathlib.Path(shutil.copytree(stored / name, tmp_path / name))
        source = stored / ("before" if name == "other" else "other")
        put(folder(source, 2), folder(workdir, 2))
        message = "params does not say" if name == "other" else rf"params is of step 2 of another run \({other}\)"
        with pytest.raises(CheckpointError, match=rf"checkpoint 2 in .* {message}"):
            checkpoints.restore(workdir)
        assert resume(workdir)[1] == 1


def test_a_config_of_another_run_is_noticed(run, stored):
    put(folder(stored / "other", 2, "config"), folder(run, 2, "config"))
    with pytest.raises(CheckpointError, match="config and params are of different runs or steps"):
        checkpoints.restore(run)


@pytest.mark.parametrize("config", [None, "hello"])
def test_weights_are_read_without_the_runs_config_if_they_agree(config, run, stored):
    (run / "config.json").unlink()
    if config is not None:
        (run / "config.json").write_text(config)
    assert checkpoints.restore(run).config == CONFIG
    put(folder(stored / "other", 2, "batch_stats"), folder(run, 2, "batch_stats"))
    with pytest.raises(CheckpointError, match="batch_stats is of step 2 of another run"):
        checkpoints.restore(run)


def test_a_copied_run_is_the_same_run(run):
    assert checkpoints.restore(run).step == resume(run)[1] == 2


@pytest.mark.parametrize("item", ITEMS)
def test_an_item_that_is_gone_is_damage(item, run):
    shutil.rmtree(folder(run, 2, item))
    assert checkpoints.restore(run).step == (2 if item == "optimizer" else 1)  # weights are enough
    assert resume(run)[1] == 1


def test_an_item_too_many_is_noticed(tmp_path):
    write(tmp_path / "run", with_stats=False)
    run_id = records.read_header(tmp_path / "run").run_id
    with checkpoints.open_manager(tmp_path / "other") as manager:
        checkpoints.save(manager, 2, state(2), CONFIG, run_id)
    put(folder(tmp_path / "other", 2, "batch_stats"), folder(tmp_path / "run", 2, "batch_stats"))
    with pytest.raises(CheckpointError, match="batch_stats was not in it"):
        checkpoints.restore(tmp_path / "run")


def damage_metadata(folder):
    (folder / "params" / "_METADATA").write_text("{")


def remove_metadata(folder):
    (folder / "params" / "_METADATA").unlink()


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def foreign_origin(folder):
    path = folder / "params" / "_METADATA"
    found = json.loads(path.read_text())
    found["custom_metadata"] = {"__origin__": [1, 2]}
    path.write_text(json.dumps(found))


@pytest.mark.parametrize("damage", [cut, damage_metadata, remove_metadata, empty, foreign_origin])
def test_damage_is_passed_over_and_set_aside(damage, run, caplog):
    damage(folder(run, 2))
    with caplog.at_level("WARNING"):
        assert checkpoints.restore(run).step == 1
    assert "checkpoint 2 is damaged" in caplog.text
    with pytest.raises(CheckpointError, match="checkpoint 2 is damaged .*: restore another step") as caught:
        checkpoints.restore(run, 2)
    one_line(caught)
    resumed, step, notes = resume(run)
    chex.assert_trees_all_equal(resumed, state(1))
    assert step == 1 and notes[0].startswith("checkpoint 2 is damaged (")
    assert len(list((run / "damaged").iterdir())) == 1
    for path in (run / "checkpoints").iterdir():
        if path.name.isdigit():
            cut(path)
    for attempt in (checkpoints.restore, resume):
        with pytest.raises(CheckpointError, match="checkpoint 1 is damaged") as caught:
            attempt(run)
        one_line(caught)


def test_another_architecture_is_refused_with_the_leaves_that_differ(run):
    message = r"checkpoint 2 .* another architecture than the config: .*Dense_0/bias \(2, 5\) instead of \(2, 4\)"
    with pytest.raises(CheckpointError, match=message):
        checkpoints.restore(run, like=state(0, width=4).params)
    with pytest.raises(CheckpointError, match=message):
        resume(run, state(0, width=4))
    assert checkpoints.steps(run) == [1, 2]


def test_what_is_not_there_is_named(tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match="no checkpoints in .*nowhere: train with"):
        checkpoints.restore(tmp_path / "nowhere")
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(CheckpointError, match="no finished checkpoint"):
        checkpoints.restore(tmp_path)
    assert resume(tmp_path, run_id="") is None
    (tmp_path / "checkpoints").rmdir()
    write(tmp_path)
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 3 in .*: there are \[1, 2\]"):
        checkpoints.restore(tmp_path, 3)
    with pytest.raises(RunDirectoryError, match="is a URL"), checkpoints.open_manager("gs://bucket/run"):
        pass
    monkeypatch.setenv("HOME", str(tmp_path))
    assert checkpoints.restore("~").step == 2 and checkpoints.steps("~") == [1, 2]
    with pytest.raises(CheckpointError, match="no run directories"):
        checkpoints.restore_stack([])


def test_weights_behind_a_url_are_restored(tmp_path, monkeypatch):
    """A file system in memory stands for a cloud's; what it lacks, and what is not installed, is one line."""
    import fsspec

    write(tmp_path, (1, 2))
    system = fsspec.filesystem("memory")
    system.put(str(tmp_path / "checkpoints"), "/bucket/run/checkpoints", recursive=True)
    for step in (None, 1, 2):
        found, own = (checkpoints.restore(place, step) for place in ("memory://bucket/run", tmp_path))
        chex.assert_trees_all_equal(found.params, own.params)
        assert found.step == own.step and found.config == own.config
    both = checkpoints.restore_stack(["memory://bucket/run", tmp_path])
    assert jax.tree.leaves(both.params)[0].shape[0] == 2 * jax.tree.leaves(own.params)[0].shape[0]
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 3 in memory://bucket/run: there are \[1, 2\]"):
        checkpoints.restore("memory://bucket/run", 3)
    with pytest.raises(CheckpointError, match="no checkpoints at memory://bucket/other: name the run's own"):
        checkpoints.restore("memory://bucket/other")
    with pytest.raises(RunDirectoryError, match="nothing://x cannot be read .*nothing"):
        checkpoints.restore("nothing://x")
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(RunDirectoryError, match=r"needs what is not installed .*\[remote\]"):
        checkpoints.restore("memory://bucket/run")


def test_runs_restore_as_one_stack(tmp_path):
    write(tmp_path / "a", (1,))
    write(tmp_path / "b", (2,))
    both = checkpoints.restore_stack([tmp_path / "a", tmp_path / "b"])
    expected = [state(1).params["Dense_0"]["kernel"], state(2).params["Dense_0"]["kernel"]]
    np.testing.assert_array_equal(both.params["Dense_0"]["kernel"], np.concatenate(expected))
    write(tmp_path / "c", (1,), width=4)
    with pytest.raises(CheckpointError, match="cannot be stacked"):
        checkpoints.restore_stack([tmp_path / "a", tmp_path / "c"])


def caused(error, cause):
    error.__cause__ = cause
    return error


DENIED = "PERMISSION_DENIED: Error opening local file \"/x/d/1\": Permission denied [os_error_code='13']"
OUTSIDE = [
    (MemoryError(), MemoryError, None),
    (KeyboardInterrupt(), KeyboardInterrupt, None),
    (OSError(errno.EMFILE, "Too many open files"), OSError, errno.EMFILE),
    (PermissionError(errno.EACCES, "Permission denied", "/x"), PermissionError, errno.EACCES),
    (ValueError(DENIED), PermissionError, errno.EACCES),
    (ValueError("Failed writing [os_error_code='28']"), OSError, errno.ENOSPC),
    (caused(ValueError("Failed to restore"), OSError(errno.ENFILE, "")), OSError, errno.ENFILE),
    (RuntimeError("Unable to initialize backend 'cuda': ..."), RuntimeError, None),
    (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"), jax.errors.JaxRuntimeError, None),
]


@pytest.mark.parametrize("error, kind, code", OUTSIDE, ids=lambda value: type(value).__name__)
def test_reasons_outside_the_run_are_no_damage(error, kind, code, run, monkeypatch):

    def fail(*_, **__):
        raise error

    for reader in (ocp.CheckpointManager, ocp.Checkpointer):
        monkeypatch.setattr(reader, "restore", fail)
    for attempt in (resume, checkpoints.restore):
        with pytest.raises(kind) as caught:
            attempt(run)
        assert not isinstance(caught.value, CheckpointError) and getattr(caught.value, "errno", None) == code
    assert checkpoints.steps(run) == [1, 2] and not (run / "damaged").exists()


def test_damage_that_is_read_while_another_error_is_handled_is_damage(run):
    cut(folder(run, 2))
    try:
        raise MemoryError
    except MemoryError:
        assert checkpoints.restore(run).step == 1


def script(code, *arguments):
    """Runs code in a process of its own, with the helpers of this file."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    environment["JAX_COMPILATION_CACHE_DIR"] = ""  # JAX warns where a full disk keeps it from writing there
    return subprocess.run(
        [sys.executable, "-c", "import sys, pathlib\nfrom test_checkpoints import *\n" + code, *map(str, arguments)],
        env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


FILES = """
import resource
from absl import logging
logging.set_verbosity(logging.WARNING)
like = state(0)
with checkpoints.open_manager(sys.argv[1]) as manager:
    checkpoints.resume(manager, like, sys.argv[2])
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")), 4096))
    try:
        print(checkpoints.resume(manager, like, sys.argv[2]))
    except OSError as error:
        print(errno.errorcode[error.errno])
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
"""


def test_too_many_open_files_are_no_damage(run):
    run_id = records.read_header(run).run_id
    process = script(FILES, run, run_id)
    assert process.stdout.strip() == "EMFILE", process
    assert checkpoints.steps(run) == [1, 2] and not (run / "damaged").exists()


LIMITED = """
import resource, signal
from absl import logging
logging.set_verbosity(logging.WARNING)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for most_bytes in (50, 200, 5_000, 20_000):  # met by metadata or by arrays, of few or all items
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, resource.RLIM_INFINITY))
    try:
        with checkpoints.open_manager(pathlib.Path(sys.argv[1]) / str(most_bytes)) as manager:
            for step in range(1, 5):
                checkpoints.save(manager, step, state(step, width=1000), {})
    except OSError as error:
        print(errno.errorcode[error.errno], file=sys.stderr)
"""


def test_a_save_that_fails_says_it_in_one_line(tmp_path):
    """A limit on file sizes stands for a full disk. Whatever thread of Orbax met it, and however late, nothing but our
    own line is printed."""
    process = script(LIMITED, tmp_path)
    assert process.stderr == "EFBIG\n" * 4 and process.stdout == "", process
    assert [checkpoints.steps(folder) for folder in tmp_path.iterdir()] == [[]] * 4


LEAVING = """
from subspaces_jax.checkpoints import failures

class StandIn:
    def __getattribute__(self, name):
        raise AssertionError("asked for " + name)

stand_in = [StandIn()]

async def write():
    pass

of_orbax = dict(globals())
exec(compile("async def async_serialize():\\n    pass", "/site/orbax/checkpoint/file.py", "exec"), of_orbax)
try:
    with failures.without_tracebacks():
        raise OSError("disk full")
except OSError:
    left = [of_orbax["async_serialize"](), write()]  # as long as Python lives
    of_orbax["async_serialize"]()  # and at once
"""


def test_writes_that_nobody_began_are_not_spoken_of(tmp_path):
    """Orbax leaves them behind where the disk is full, and Python warns of them when it ends."""
    process = script(LEAVING, tmp_path)
    assert process.stderr == "sys:1: RuntimeWarning: coroutine 'write' was never awaited\n", process


def test_other_messages_are_let_through(tmp_path, caplog):
    from absl import logging

    hook = sys.unraisablehook
    with checkpoints.open_manager(tmp_path):
        logging.error("of somebody else")
    assert sys.unraisablehook == hook
    assert "of somebody else" in caplog.text


def test_runs_in_threads_do_not_disturb_each_other(tmp_path):
    """As in a notebook. With directories made in the background the first saves of two runs failed."""
    errors, hook = [], sys.unraisablehook

    def run(name):
        try:
            workdir = tmp_path / name
            run_id = records.write_header(tmp_path / name, "train", CONFIG).run_id
            with checkpoints.open_manager(workdir) as manager:
                for step in range(1, 16):
                    checkpoints.save(manager, step, state(step), CONFIG, run_id)
                    if step % 5 == 0:
                        assert checkpoints.restore(workdir).step in (step, step - 1)
            found, step, notes = resume(workdir)
            assert (step, notes) == (15, [])
            chex.assert_trees_all_equal(found, state(15))
        except BaseException as error:
            errors.append(error)

    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    threads = [threading.Thread(target=run, args=(name,)) for name in ("a", "b", "c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and sys.unraisablehook == hook


PROCESS = """
import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
workdir, port, index = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{port}", 2, index)
whole = NamedSharding(Mesh(np.asarray(jax.devices()), ("batch",)), PartitionSpec())
on_all = lambda tree: jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(whole, np.asarray(leaf)), tree)
if index == 0:
    records.write_header(workdir, "train", CONFIG)
multihost_utils.sync_global_devices("header")
run_id = records.read_header(workdir).run_id
with checkpoints.open_manager(workdir) as manager:
    for step in (1, 2):
        checkpoints.save(manager, step, on_all(state(step)), CONFIG, run_id)
multihost_utils.sync_global_devices("saved")
if index == 0:
    put(folder(workdir, 1, "optimizer"), folder(workdir, 2, "optimizer"))
multihost_utils.sync_global_devices("damaged")
with checkpoints.open_manager(workdir) as manager:
    found, step, notes = checkpoints.resume(manager, on_all(state(0)), run_id)
np.testing.assert_array_equal(found.params["Dense_0"]["bias"].addressable_data(0), state(1).params["Dense_0"]["bias"])
print(step, len(notes))
"""


def test_two_processes_agree_on_what_is_damaged(tmp_path):
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = os.environ | {"PYTHONPATH": path, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    port, code = str(20_000 + os.getpid() % 20_000), "import sys\nfrom test_checkpoints import *\n" + PROCESS
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path), port, str(index)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for index in range(2)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [out.splitlines()[-1] for out, _ in outputs] == ["1 1", "1 1"], outputs
    assert checkpoints.steps(tmp_path) == [1] and len(list((tmp_path / "damaged").iterdir())) == 1
