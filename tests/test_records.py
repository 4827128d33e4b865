"""The run directory: what is written whole, what is read back, and what is refused with one line."""

import fcntl
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

from subspaces_jax import records
from subspaces_jax.errors import RunDirectoryError, first_line

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = {"seed": 0, "learning_rate": 0.1, "network": "mlp_8", "betas": [0.9, 0.99]}


def one_line(caught):
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_header_is_written_once_and_read_back(tmp_path):
    facts = {"steps_per_epoch": 22, "num_steps": 88}
    written = records.write_header(tmp_path, "train", CONFIG | {"betas": (0.9, 0.99)}, facts, variant="beta=1")
    assert written == records.read_header(tmp_path)
    assert written._replace(run_id="") == records.Header("train", 2, "", "beta=1", facts, CONFIG)
    assert len(written.run_id) == 16 and int(written.run_id, 16) >= 0
    on_disk = json.loads((tmp_path / "config.json").read_text())
    assert set(on_disk) == {"format", "kind", "run_id", "variant", "facts", "config"} and on_disk["config"] == CONFIG
    before = (tmp_path / "config.json").read_bytes()
    assert records.write_header(tmp_path, "train", CONFIG, {"num_steps": 1}) == written
    assert (tmp_path / "config.json").read_bytes() == before
    assert records.read_config(tmp_path) == CONFIG


def test_every_run_has_an_id_of_its_own(tmp_path):
    ids = set()
    for name in map(str, range(20)):
        (tmp_path / name).mkdir()
        ids.add(records.write_header(tmp_path / name, "train", CONFIG).run_id)
    assert len(ids) == 20


def test_another_config_or_kind_is_refused_with_the_fields_that_differ(tmp_path):
    records.write_header(tmp_path, "train", CONFIG)
    with pytest.raises(RunDirectoryError, match=r"another config \(seed = 0 there, 1 here\): name another workdir"):
        records.write_header(tmp_path, "train", CONFIG | {"seed": 1})
    with pytest.raises(RunDirectoryError, match=r"kind 'train', not 'study': name another workdir"):
        records.write_header(tmp_path, "study", CONFIG)
    with pytest.raises(ValueError, match="kind is 'training'"):
        records.write_header(tmp_path, "training", CONFIG)


def test_the_label_of_a_variant_is_no_difference(tmp_path):
    first = records.write_header(tmp_path, "train", CONFIG | {"variant": "plain"})
    assert records.write_header(tmp_path, "train", CONFIG | {"variant": "line"}) == first
    assert records.write_header(tmp_path, "train", CONFIG) == first


def test_fields_that_a_stored_run_lacks_are_completed_before_they_are_compared(tmp_path):
    records.write_header(tmp_path, "train", CONFIG)

    def complete(config):
        renamed = {"lr" if name == "learning_rate" else name: value for name, value in config.items()}
        return {"dropout": 0.0} | renamed

    here = {name: value for name, value in CONFIG.items() if name != "learning_rate"} | {"lr": 0.1}
    records.write_header(tmp_path, "train", here | {"dropout": 0.0}, complete=complete)
    with pytest.raises(RunDirectoryError, match=r"\(dropout = 0.0 there, 0.5 here\)"):
        records.write_header(tmp_path, "train", here | {"dropout": 0.5}, complete=complete)
    with pytest.raises(RunDirectoryError, match="dropout = None there"):
        records.write_header(tmp_path, "train", CONFIG | {"dropout": 0.0})


@pytest.mark.parametrize(
    "config, kind",
    [
        (CONFIG | {"variant": "beta=1"}, "train"),
        ({"analysis": "ensemble", "runs": "a,b"}, "study"),
        ({"config": "configs/fashion_mnist.py", "fields": ""}, "sweep"),
    ],
)
def test_folders_of_the_first_format_are_read_and_left_as_they_are(config, kind, tmp_path):
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (tmp_path / "config.json").write_text(text)
    header = records.Header(kind, 1, "", config.get("variant", ""), {}, config)
    assert records.read_header(tmp_path) == header
    assert records.write_header(tmp_path, kind, config, {"num_steps": 5}) == header
    assert (tmp_path / "config.json").read_text() == text


def test_a_newer_format_says_so(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"format": 3, "shape": "unknown"}))
    with pytest.raises(RunDirectoryError, match=r"newer version of the package \(format 3, .* 2\): install that"):
        records.read_header(tmp_path)


GOOD = {"format": 2, "kind": "train", "run_id": "0123456789abcdef", "variant": "", "facts": {}, "config": CONFIG}


@pytest.mark.parametrize(
    "content",
    [b"", b"[1, 2]", b"3", b"null", b"\xff\xfe{}", b'{"seed": 0, "lear', b"hello", b"[" * 100_000]
    + [json.dumps(GOOD | other).encode() for other in ({"kind": "cake"}, {"run_id": "../x"}, {"config": [1]})]
    + [json.dumps({"format": "two"}).encode(), json.dumps({"format": 2}).encode()],
)
def test_a_damaged_config_is_one_line(content, tmp_path):
    (tmp_path / "config.json").write_bytes(content)
    for attempt in (records.read_header, records.read_config, lambda f: records.write_header(f, "train", CONFIG)):
        with pytest.raises(records.DamagedError, match=r"config\.json is damaged \(.*\): restore it") as caught:
            attempt(tmp_path)
        assert len(one_line(caught)) < 500


def test_what_is_no_run_directory(tmp_path):
    (tmp_path / "file").write_text("")
    for name in ("nowhere", "file", "."):
        with pytest.raises(RunDirectoryError, match=r"is no run directory \(config.json is missing\)"):
            records.read_header(tmp_path / name)
    (tmp_path / "config.json").mkdir()
    with pytest.raises(records.DamagedError, match="config.json is a folder"):
        records.read_header(tmp_path)
    (tmp_path / "other" / "checkpoints").mkdir(parents=True)
    with pytest.raises(RunDirectoryError, match="holds a run without its config.json"):
        records.write_header(tmp_path / "other", "train", CONFIG)


READERS = {
    "locked": lambda workdir: records.locked(workdir).__enter__(),
    "read_header": records.read_header,
    "load_results": lambda workdir: records.load_results(workdir, "points"),
    "load_facts": lambda workdir: records.load_facts(workdir, "points"),
    "save_results": lambda workdir: records.save_results(workdir, "points", {}, {}),
    "read_metrics": records.read_metrics,
}


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
@pytest.mark.parametrize("workdir", ["gs://bucket/run", "s3://bucket/run", "file:///tmp/run", pathlib.Path("gs://b/r")])
def test_urls_are_refused_at_once(reader, workdir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunDirectoryError, match=r"is a URL: run directories are local folders, mount it") as caught:
        reader(workdir)
    one_line(caught)
    assert not list(tmp_path.iterdir())


def test_paths_are_treated_alike(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert records.resolve("~/x") == records.resolve(pathlib.Path("~/x")) == tmp_path / "home" / "x"
    assert records.resolve("runs/a") == tmp_path / "runs" / "a"
    assert records.resolve("./a:b/c") == tmp_path / "a:b" / "c"
    with records.locked("~/x") as folder:
        assert folder == tmp_path / "home" / "x"
        records.write_header(folder, "train", CONFIG)
    records.save_results("~/x", "points", {"a": np.arange(3)}, {"b": 1})
    assert records.load_facts("~/x", "points") == {"b": 1} and records.read_config("~/x") == CONFIG
    assert not (tmp_path / "~").exists()
    for bad in ("", "a\0b", "~nobody-of-that-name/x"):
        with pytest.raises(RunDirectoryError, match="name a directory"):
            records.resolve(bad)


def test_a_workdir_in_use_is_refused_in_threads_too(tmp_path, monkeypatch):
    """Some file systems lock for a process: the second of two threads is then refused without the system's help."""
    for flock in (fcntl.flock, lambda *_: None):
        monkeypatch.setattr(fcntl, "flock", flock)
        (tmp_path / "link").unlink(missing_ok=True)
        (tmp_path / "link").symlink_to(tmp_path / "run")
        refused = []

        def attempt(refused=refused):
            for name in ("run", "link"):
                try:
                    with records.locked(tmp_path / name):
                        pass
                except RunDirectoryError as error:
                    refused.append(str(error))

        with records.locked(tmp_path / "run"), records.locked(tmp_path / "another"):
            thread = threading.Thread(target=attempt)
            thread.start()
            thread.join()
        assert len(refused) == 2 and all("in use by a live run" in text for text in refused)
        with records.locked(tmp_path / "run"):
            pass


def test_the_lock_of_another_process_is_respected_and_goes_with_it(tmp_path):
    code = (
        f"from subspaces_jax import records\nwith records.locked({str(tmp_path)!r}): print('held', flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(RunDirectoryError, match="in use by a live run"), records.locked(tmp_path):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
    with records.locked(tmp_path):
        pass


def dead_pid():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_what_killed_processes_left_is_removed_with_the_lock_held(tmp_path):
    pid, alive = dead_pid(), os.getppid()
    results = tmp_path / "results"
    results.mkdir()
    stray = [tmp_path / f".config.json.{pid}", tmp_path / f".metrics.jsonl.{pid}"]
    stray += [results / f".points.{pid}.npz", results / f".points_44.json.{pid}", tmp_path / f".config.json.{10**30}"]
    kept = [results / f".points.{alive}.npz", tmp_path / ".notes", tmp_path / f"notes.json.{pid}", results / "a.npz"]
    for path in stray + kept:
        path.write_text("half")
    assert all(path.exists() for path in stray)
    with records.locked(tmp_path):
        assert not any(path.exists() for path in stray) and all(path.exists() for path in kept)


def test_a_folder_that_is_refused_is_left_as_it_is(tmp_path):
    stray = tmp_path / f".config.json.{dead_pid()}"
    with records.locked(tmp_path):
        stray.write_text("half")
        with pytest.raises(RunDirectoryError), records.locked(tmp_path):
            pass
        assert stray.exists()


def test_results_are_on_the_disk_before_they_take_their_place(tmp_path, monkeypatch):
    """The order is: the file's bytes are synced, it is renamed, and its folder is synced."""
    calls = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor):
        calls.append(("sync", os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")).split(".")[-1]))
        fsync(descriptor)

    def replaced(source, target):
        calls.append(("replace", os.path.basename(target)))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    records.save_results(tmp_path, "x", {"a": np.arange(3)}, {"b": 1})
    pid = str(os.getpid())
    assert calls == [("sync", "npz"), ("replace", "x.npz"), ("sync", "results")] + [
        ("sync", pid),
        ("replace", "x.json"),
        ("sync", "results"),
    ]
    arrays, facts = records.load_results(tmp_path, "x")
    np.testing.assert_array_equal(arrays["a"], np.arange(3))
    assert facts == {"b": 1} and sorted(os.listdir(tmp_path / "results")) == ["x.json", "x.npz"]


def test_missing_results_name_the_command(tmp_path):
    for reader in (records.load_results, records.load_facts):
        with pytest.raises(RunDirectoryError, match="no results 'points' .* python -m launch.evaluate") as caught:
            reader(tmp_path, "points")
        assert not isinstance(caught.value, records.DamagedError)


@pytest.mark.parametrize(
    "kind, name, command",
    [
        ("train", "points", "launch.evaluate"),
        ("study", "plane", "launch.analyze .* with its config"),
        ("connect", "path", "launch.connect .* with its config"),
        ("connect", "points", "launch.evaluate"),
        ("sweep", "family", "launch.plot"),
    ],
)
def test_results_that_are_missing_or_damaged_name_the_command_of_their_folder(kind, name, command, tmp_path):
    records.write_header(tmp_path, kind, {})
    with pytest.raises(RunDirectoryError, match=f"no results '{name}' in .*: run python -m {command}"):
        records.load_facts(tmp_path, name)
    records.save_json(tmp_path, name, {})
    (tmp_path / "results" / f"{name}.json").write_text("{")
    with pytest.raises(records.DamagedError, match=f"make them again, python -m {command}"):
        records.load_facts(tmp_path, name)


def npy(array):
    import io

    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"1", b"null", b"\xff", b'"text"', None])
def test_damaged_facts_are_one_line_and_told_apart_from_missing_ones(content, tmp_path):
    records.save_results(tmp_path, "points", {"a": np.arange(3)}, {"b": 1})
    path = tmp_path / "results" / "points.json"
    path.unlink()
    path.mkdir() if content is None else path.write_bytes(content)
    for reader in (records.load_results, records.load_facts):
        with pytest.raises(
            records.DamagedError, match=r"points.json.*make them again, python -m launch.evalu"
        ) as caught:
            reader(tmp_path, "points")
        assert str(tmp_path) in one_line(caught)


@pytest.mark.parametrize("kind", ["empty", "foreign", "cut", "array", "flipped", "pickle", "member", "folder"])
def test_damaged_arrays_are_one_line(kind, tmp_path):
    import pickle
    import zipfile

    records.save_results(tmp_path, "points", {"a": np.arange(300), "b": np.ones(3)}, {})
    path = tmp_path / "results" / "points.npz"
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[400] ^= 255
    content = {"empty": b"", "foreign": b"hello", "cut": whole[:700], "array": npy(np.arange(3)), "flipped": flipped}
    if kind in content:
        path.write_bytes(content[kind])
    elif kind == "pickle":
        path.write_bytes(pickle.dumps({"a": 1}))
    elif kind == "member":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.txt", "hello")
    else:
        path.unlink()
        path.mkdir()
    with pytest.raises(records.DamagedError, match=r"points.npz.*make them again, python -m launch.evaluate") as caught:
        records.load_results(tmp_path, "points")
    one_line(caught)
    assert records.load_facts(tmp_path, "points") == {}


ROWS = b'{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n'


@pytest.mark.parametrize("tail", [b"", b'{"step": 3, "lo', b"{", b'{"step": 3, "loss": NaN, "a'])
def test_a_row_that_a_kill_cut_short_is_left_out(tail, tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(ROWS + tail)
    assert [row["step"] for row in records.read_metrics(tmp_path)] == [1, 2]
    with records.Metrics(tmp_path, resume_from=1) as metrics:
        metrics.write(2, {"loss": 0.5})
    assert records.read_metrics(tmp_path) == [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 0.5}]


def test_a_whole_row_without_its_end_of_line_counts(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(ROWS + b'{"step": 3, "loss": 0.5}')
    assert [row["step"] for row in records.read_metrics(tmp_path)] == [1, 2, 3]


@pytest.mark.parametrize(
    "content, line",
    [
        (b"garbage\n" + ROWS, 1),
        (ROWS + b"garbage\n" + ROWS, 3),
        (ROWS + b'{"step": 3, "lo\n' + ROWS, 3),
        (ROWS + b"garbage", 3),
        (ROWS + b"[1]\n", 3),
        (b"7\n", 1),
        (b'{"loss": 1.0}\n', 1),
        (b'{"step": "one"}\n', 1),
        (ROWS + b"\n" + ROWS, 3),
        (ROWS + b"\xff\xfe\n", 3),
        (b"\x80\x02pickle", 1),
    ],
)
def test_rows_that_are_none_are_one_line(content, line, tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(content)
    for attempt in (records.read_metrics, records.Metrics):
        with pytest.raises(records.DamagedError, match=rf"metrics.jsonl is damaged \(line {line} is no row") as caught:
            attempt(tmp_path)
        one_line(caught)
    assert (tmp_path / "metrics.jsonl").read_bytes() == content


def test_metrics_that_are_not_there(tmp_path):
    with pytest.raises(RunDirectoryError, match="has no metrics.jsonl yet: train first"):
        records.read_metrics(tmp_path)
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(records.DamagedError, match="damaged"):
        records.read_metrics(tmp_path)


LIMITED = """
import errno, resource, signal, sys
import numpy as np
from subspaces_jax import records
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder, what = records.resolve(sys.argv[1]), sys.argv[2]
records.save_results(folder, "x", {"a": np.zeros(3)}, {"b": 0})
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
try:
    if what == "rows":
        with records.Metrics(folder) as metrics:
            for step in range(1, 1_000):
                metrics.write(step, {})
    elif what == "events":
        with records.Metrics(folder) as metrics:
            for step in range(1, 1_000):
                metrics.write(step, {"loss": 1.0})
    elif what == "arrays":
        records.save_results(folder, "x", {"a": np.zeros(10_000)}, {"b": 1})
    else:
        records.save_results(folder, "x", {"a": np.zeros(3)}, {"b": "1" * 10_000})
except OSError as error:
    print(errno.errorcode[error.errno], error.filename)
"""


@pytest.mark.parametrize(
    "what, name", [("rows", "metrics.jsonl"), ("events", "events"), ("arrays", "x.npz"), ("facts", "x.json")]
)
def test_a_full_disk_is_the_error_that_it_is(what, name, tmp_path):
    """A limit on file sizes stands for it. What was there stays, nothing half written does."""
    process = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path), what], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert process.stdout.startswith("EFBIG ") and process.stdout.strip().endswith(name), process
    assert process.stderr == ""
    assert sorted(os.listdir(tmp_path / "results")) == ["x.json", "x.npz"]
    arrays, facts = records.load_results(tmp_path, "x")
    assert facts == {"b": 0} and (len(arrays["a"]) == 3)
    if what == "rows":
        assert [row["step"] for row in records.read_metrics(tmp_path)][:3] == [1, 2, 3]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_not_called_damaged(tmp_path):
    for name in ("config.json", "metrics.jsonl"):
        (tmp_path / name).touch(mode=0)
    for reader in (records.read_header, records.read_metrics):
        with pytest.raises(PermissionError):
            reader(tmp_path)


@pytest.mark.parametrize("error", [MemoryError(), OSError(24, "Too many open files"), KeyboardInterrupt()])
def test_reasons_outside_the_run_are_no_damage(error, tmp_path, monkeypatch):
    records.save_results(tmp_path, "x", {"a": np.zeros(3)}, {})
    records.write_header(tmp_path, "train", CONFIG)
    (tmp_path / "metrics.jsonl").write_bytes(ROWS)

    def fail(*_):
        raise error

    monkeypatch.setattr(pathlib.Path, "read_bytes", fail)
    monkeypatch.setattr(np, "load", fail)
    for read in (
        lambda: records.load_results(tmp_path, "x"),
        lambda: records.load_facts(tmp_path, "x"),
        lambda: records.read_header(tmp_path),
        lambda: records.read_metrics(tmp_path),
    ):
        with pytest.raises(type(error)) as caught:
            read()
        assert caught.value is error


def test_the_first_line_of_an_error():
    assert first_line(ValueError("\n one\ntwo")) == "one"
    assert first_line(KeyError()) == "KeyError"
    assert len(first_line(ValueError("x" * 1000))) == 120


def test_arrays_of_objects_are_refused_when_they_are_written(tmp_path):
    with pytest.raises(TypeError, match="results/study: names is an array of objects"):
        records.save_results(tmp_path, "study", {"names": np.array(["a", None])}, {})
    assert not (tmp_path / "results").exists()


def test_facts_keep_their_order(tmp_path):
    """Layers come in the order of the network, which is not that of the alphabet."""
    records.save_results(tmp_path, "x", {}, {"parts": {"Dense_2": 1, "Dense_10": 2, "Conv_0": 3}, "a": 0})
    facts = records.load_facts(tmp_path, "x")
    assert list(facts["parts"]) == ["Dense_2", "Dense_10", "Conv_0"] and list(facts) == ["parts", "a"]
