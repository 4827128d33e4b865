"""However a program ends, it says so in one line, and its files are whole."""

import os
import pathlib
import random
import resource
import signal
import socket
import subprocess
import sys
import time
import warnings

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import image

from launch import app, cache, of_run
from subspaces_jax import checkpoints, parallel, records
from subspaces_jax.errors import ConfigError
from subspaces_jax.experiments import runs
from subspaces_jax.plots import style

ROOT = pathlib.Path(__file__).parents[1]
STORED = ROOT / "tests" / "experiments" / "stored_run"
FIELDS = dict(num_epochs=2, num_devices=1, network="mlp_16", batch_size=64, log_every=5, checkpoint_every=1)
INTERRUPTED = "error: interrupted; the same command goes on from the last checkpoint"


def start(name, *flags, **options):
    options = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE) | options
    command = [sys.executable, "-m", f"launch.{name}", *map(str, flags)]
    return subprocess.Popen(command, cwd=ROOT, text=True, **options)


def launch(name, *flags, **options):
    process = start(name, *flags, **options)
    process.out, process.err = process.communicate(timeout=180)
    return process


def training(workdir, *more, **fields):
    options = [f"--config.{name}={value}" for name, value in (FIELDS | fields).items()]
    return ["--config=configs/line_digits.py:tiny", f"--workdir={workdir}", *options, *more]


def seen(condition, process, seconds=120):
    """Waits for a condition on the files of a live process."""
    until = time.time() + seconds
    while not condition():
        assert process.poll() is None and time.time() < until, process.communicate()
        time.sleep(0.02)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("launch") / "run"
    process = launch("train", *training(folder))
    assert process.returncode == 0, process.err
    return folder


@pytest.fixture
def interruptible():
    """Processes started by one whose SIGINT is ignored, as in the background of a shell, ignore it too."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_training_is_one_line_and_goes_on(number, status, interruptible, tmp_path):
    process = start("train", *training(tmp_path, num_epochs=5000))
    seen(lambda: checkpoints.has_any(tmp_path), process)
    process.send_signal(number)
    err = process.communicate(timeout=30)[1]
    assert process.returncode == status, err
    assert err.splitlines()[-1] == INTERRUPTED and "Traceback" not in err
    step = checkpoints.restore(tmp_path).step
    assert step > 0 and records.read_metrics(tmp_path)[-1]["step"] >= step - 22


def test_an_evaluation_interrupted_at_any_moment_is_one_line(interruptible, trained):
    moments = random.Random(0)
    for _ in range(2):
        process = start("evaluate", f"--workdir={trained}")
        time.sleep(0.3 + 5 * moments.random())
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 130 and "Traceback" not in err or process.returncode == 0, err
        if process.returncode:
            assert err.splitlines()[-1].startswith("error: interrupted")


def test_an_interrupt_that_compiled_code_or_a_callback_swallows_ends_the_program(interruptible):
    program = (
        "import time; from launch import app\n"
        "def run(argv, interrupts):\n"
        "    print('here', flush=True)\n"
        "    while True:\n"
        "        try: time.sleep(60)\n"
        "        except KeyboardInterrupt: pass\n"
        "app.GRACE = 0.5; app.program(run)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "here\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30)[1] == f"error: {app.BEGINS_ANEW}\n" and process.returncode == 130


def test_importing_the_launch_programs_leaves_signals_alone():
    program = (
        "import signal, sys; before = [signal.getsignal(n) for n in (2, 15)], sys.stdout, sys.excepthook\n"
        "from launch import app, evaluate\n"
        "assert before == ([signal.getsignal(n) for n in app.ENDING], sys.stdout, sys.excepthook)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_a_reader_that_goes_away_ends_nothing(tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    process = launch("train", *training(tmp_path), stdout=writing, env=os.environ | {"PYTHONUNBUFFERED": "1"})
    os.close(writing)
    assert process.returncode == 141 and "Traceback" not in process.err and "error" not in process.err, process.err
    assert (tmp_path / "figures" / "profile.pdf").exists() and records.load_facts(tmp_path, "points")["step"] == 44


def test_a_full_standard_output_is_one_line(trained):
    with open("/dev/full", "w") as full:
        process = launch("plot", f"--workdir={trained}", stdout=full)
    assert process.returncode == 2
    assert process.err.splitlines()[-1].startswith("error: cannot write to the standard output: [Errno 28]")


@pytest.mark.parametrize("platform", ["cuda", "tpu", "nonsense"])
def test_a_missing_accelerator_is_named(platform, trained):
    process = launch("evaluate", f"--workdir={trained}", env=os.environ | {"JAX_PLATFORMS": platform})
    assert process.returncode == 2 and "Traceback" not in process.err
    last = process.err.splitlines()[-1]
    assert last.startswith(f"error: no device for JAX_PLATFORMS={platform} (") and "unset JAX_PLATFORMS" in last


def test_a_remote_workdir_is_refused_at_once_and_a_home_is_expanded(tmp_path):
    process = launch("evaluate", "--workdir=gs://bucket/run")
    assert process.returncode == 2 and not (ROOT / "gs:").exists()
    assert process.err.startswith("error: workdir gs://bucket/run is a URL: ") and process.err.count("\n") == 1
    process = launch("evaluate", "--workdir=~/run", env=os.environ | {"HOME": str(tmp_path)})
    assert process.returncode == 2 and f"error: {tmp_path}/run is no run directory" in process.err
    assert not (ROOT / "~").exists()


def draw(folder):
    with style.panels(2) as (figure, axes):
        axes[0].plot([0, 1, 2], [1, 4, 9], color=style.COLOURS["single"], label="point $t$")
        axes[0].legend()
        axes[1].set_title("a % and an _")
    return style.save(figure, folder, "figure")


def test_figures_are_the_same_whatever_the_user_has_set(tmp_path, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    plain = draw(tmp_path / "plain")
    users = {"text.usetex": True, "axes.facecolor": "black", "font.size": 30, "savefig.dpi": 10, "pdf.fonttype": 3}
    with mpl.rc_context(users | {"figure.figsize": (1, 1), "savefig.format": "svg", "lines.linewidth": 9}):
        changed = draw(tmp_path / "changed")
        assert mpl.rcParams["text.usetex"] and mpl.rcParams["lines.linewidth"] == 9
    np.testing.assert_array_equal(image.imread(plain[1]), image.imread(changed[1]))
    assert plain[0].read_bytes() == changed[0].read_bytes()


def test_a_figure_is_of_the_texts_width_unless_it_needs_more_room(tmp_path):
    """At 200 dots per inch; a word that no line has room for is not cut."""
    width = round(200 * style.WIDTH)
    assert image.imread(draw(tmp_path)[1]).shape[1] == width
    for title, is_wider in (("a title of many words " * 20, False), ("runs/" + "x" * 200, True)):
        with style.panels(1) as (figure, axes):
            axes[0].plot([0, 1], label="line")
            style.finished(figure, axes[0], title)
        pixels = image.imread(style.save(figure, tmp_path, "titled")[1])
        assert (pixels.shape[1] > width) == is_wider and pixels.shape[1] >= width
        assert pixels[:, [0, -1], :3].min() > 0.98, "nothing is cut off at the sides"


def test_a_figure_is_written_whole_or_not_at_all(tmp_path):
    paths = draw(tmp_path)
    before = [path.read_bytes() for path in paths]
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:  # stands for a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        with pytest.raises(OSError, match="File too large"):
            draw(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert [path.read_bytes() for path in paths] == before and sorted(os.listdir(tmp_path)) == sorted(
        path.name for path in paths
    )


def pair(workdir, **fields):
    """Two processes that train together."""
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    joint = [f"--coordinator=localhost:{port}", "--num_processes=2"]
    environment = os.environ | {"XLA_FLAGS": ""}
    options = training(workdir, *joint, **fields | {"num_devices": 0})
    return [start("train", *options, f"--process_id={i}", env=environment) for i in range(2)]


@pytest.mark.parametrize("victim", [0, 1])
def test_the_death_of_a_process_ends_the_others_with_a_line(victim, tmp_path):
    processes = pair(tmp_path, num_epochs=5000)
    seen(lambda: checkpoints.has_any(tmp_path), processes[1 - victim])
    processes[victim].kill()
    died = time.time()
    err = processes[1 - victim].communicate(timeout=60)[1]
    assert time.time() - died < 60
    processes[victim].communicate()
    assert processes[1 - victim].returncode == 2, err
    assert err.splitlines()[-1] == (
        f"error: process {victim} of 2 died or cannot be reached; start all processes again with the same command, "
        "training goes on from the last checkpoint"
    )
    assert "Traceback" not in err and "Extension modules" not in err and "Check failure" not in err, err
    assert checkpoints.restore(tmp_path).step > 0


def two(program):
    """Two processes that run a program with `i` the number of each and `join()`: their outputs and exit statuses."""
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    start = "import os, sys, time; from subspaces_jax import parallel"
    join = f"join = lambda: parallel.initialize('localhost:{port}', 2, i)"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", f"{start}; i = {i}; {join}\n{program}"], cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
        for i in range(2)
    ]
    errors = [process.communicate(timeout=60)[1].splitlines() for process in processes]
    return [(process.returncode, lines[-1] if lines else "") for process, lines in zip(processes, errors)]


@pytest.mark.parametrize("first", [0, 1])
def test_processes_that_end_do_not_take_one_another_for_dead(first):
    assert two(f"join(); time.sleep(2 if i == {first} else 0); parallel.finish()") == [(0, ""), (0, "")]
    assert two(f"join(); time.sleep(2 if i == {first} else 0)") == [(0, ""), (0, "")]  # as a notebook's user forgets


def test_an_error_of_all_processes_is_each_ones_own_to_tell_and_an_error_of_one_ends_all():
    program = "join(); time.sleep(0.5 * i); parallel.failed(); print('mine', file=sys.stderr); os._exit(3)"
    assert two(program) == [(3, "mine"), (3, "mine")]
    program = "join(); i and time.sleep(60); parallel.failed(); print('mine', file=sys.stderr); os._exit(3)"
    line = "error: process 0 of 2 ended with an error; start all processes again with the same command, "
    assert two(program) == [(3, "mine"), (2, f"{line}training goes on from the last checkpoint")]


def test_what_cannot_join_says_so():
    with pytest.raises(ConfigError, match="coordinator 'localhost', process 0 of 2: give host:port"):
        parallel.initialize("localhost", 2, 0)
    with pytest.raises(ConfigError, match="process 2 of 2: give host:port .* from 0 to num_processes - 1"):
        parallel.initialize("localhost:1", 2, 2)


@pytest.mark.parametrize("given, kept", [({}, True), ({"JAX_COMPILATION_CACHE_DIR": ""}, False)])
def test_what_is_compiled_is_kept_unless_jax_is_told_otherwise(given, kept, tmp_path, monkeypatch):
    class Config(dict):
        update = dict.__setitem__

    monkeypatch.setattr(cache.jax, "config", Config())
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (given | {"XDG_CACHE_HOME": str(tmp_path)}).items():
        monkeypatch.setenv(name, value)
    with warnings.catch_warnings():
        cache.keep_compiled()
    folders = list(tmp_path.glob("subspaces_jax/*"))
    assert len(folders) == kept
    expected = {"jax_compilation_cache_dir": str(*folders), "jax_persistent_cache_min_compile_time_secs": 0.0}
    assert cache.jax.config == (expected if kept else {})


def test_a_cache_that_is_full_loses_what_was_not_used_for_longest(tmp_path, monkeypatch):
    for at, name in enumerate(("b", "a", "c", "d")):
        (tmp_path / name).write_bytes(bytes(50))
        os.utime(tmp_path / name, (1000 + at, 900))  # read, written
    os.utime(tmp_path / "b", (800, 2000))  # of a disk that does not say when it is read
    monkeypatch.setattr(cache, "MOST_BYTES", 120)
    cache.make_room(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "d"]
    cache.make_room(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    cache.make_room(tmp_path / "missing")


def test_a_cache_that_cannot_be_written_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(cache.jax, "config", None)  # which nothing may touch
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    cache.keep_compiled()


def test_a_field_without_a_config_says_what_it_needs():
    ended = launch("train", "--workdir=nowhere", "--config.num_points=3")
    assert (ended.returncode, ended.out) == (2, "")
    assert ended.err == "error: --config.num_points changes a field of a config: give --config=FILE, too, before it\n"


def test_an_evaluation_changes_fields_of_the_config_of_its_run():
    """Wherever the run directory is named, and with its own --config as before."""
    fields, config = ["--config.num_points=3", "--config.refresh=False"], f"{ROOT / 'launch' / 'of_run.py'}"
    given = app._with_config_of_run
    assert given(["x", *fields, "--workdir=a"]) == ["x", f"--config={config}:a", *fields, "--workdir=a"]
    assert given(["x", "--workdir", "a", *fields])[1] == f"--config={config}:a"
    for argv in (["x", "--workdir=a"], ["x", "--config=c.py", *fields, "--workdir=a"], ["x", *fields]):
        assert given(argv) == argv
    assert of_run.get_config(str(STORED)).to_dict() == runs.open_run(STORED).config
    ended = launch("evaluate", "--workdir=nowhere", "--config.num_points=3")
    assert (ended.returncode, ended.out) == (2, "") and "Configuration" not in ended.err
    assert "nowhere is no run directory (config.json is missing)" in ended.err
    ended = launch("evaluate", f"--workdir={STORED}", "--config.num_pints=3")
    assert ended.err.startswith("error: config field 'num_pints', which is unknown: did you mean num_points")


def test_a_warning_is_told_once():
    """Whatever a library has made of the logging before."""
    program = "logging.basicConfig(); app.program(lambda *_: logging.getLogger('x').warning('take care'))"
    command = [sys.executable, "-c", f"import logging; from launch import app; {program}"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0 and ended.stderr.count("take care") == 1
