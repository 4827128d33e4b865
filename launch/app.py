"""What the launch scripts share: flags, errors as one line, and how a program ends."""

import gc
import os
import signal
import sys

if (_SPEC := getattr(sys.modules.get("__main__"), "__spec__", None)) and _SPEC.name.startswith("launch."):
    gc.set_threshold(100_000, 10, 10)  # to look for garbage after every 700 new objects is a quarter of tracing's time
    for _signum in (signal.SIGINT, signal.SIGTERM):  # of python -m launch.NAME: the imports below take seconds
        if signal.getsignal(_signum) != signal.SIG_IGN:
            signal.signal(
                _signum, lambda n, _: (os.write(2, b"error: interrupted before it began\n"), os._exit(128 + n))
            )

import atexit
import contextlib
import errno
import faulthandler
import io
import logging
import pathlib
import re
import select
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import jax
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import ConfigDict, config_flags

from launch import cache
from subspaces_jax import parallel, records
from subspaces_jax.errors import ConfigError, SubspacesError
from subspaces_jax.experiments import fields, schema

GOES_ON = "interrupted; the same command goes on from the last checkpoint"
BEGINS_ANEW = "interrupted; the same command begins anew, and what was written before it stays"
ENDING = (signal.SIGINT, signal.SIGTERM)
GRACE = 5.0  # seconds that an interrupted run has to close its files
WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EFBIG, errno.ENOTDIR, errno.EISDIR)
_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "configs/NAME.py, or configs/NAME.py:tiny for a run of seconds"
)
_WORKDIR = flags.DEFINE_string("workdir", None, "the run directory; the same command goes on with a run that was ended")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "host:port of process 0, to train in several processes")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", 1, "how many processes train together")
_PROCESS_ID = flags.DEFINE_integer("process_id", 0, "which of them this is")


def main(
    run: Callable[[dict[str, Any] | None, str], None],
    needs_config: bool = True,
    needs_workdir: bool = True,
    goes_on: bool = False,
    of_run: bool = False,
) -> None:
    """Parses flags, calls run(config, workdir), ends the process.

    Errors that the user can mend are one line and exit status 2, an interrupt is one line and 130 (SIGTERM: 143). A
    reader of the output that goes away, as `| head -1` does, ends nothing, and is seen in the exit status 141.

    Args:
        run: takes the resolved config as a plain dict (None without --config) and the run directory.
        needs_config, needs_workdir: whether --config and --workdir must be given.
        goes_on: whether the command, given again after an interrupt, goes on from a checkpoint.
        of_run: whether fields, as --config.seed=1, are changed in the config of the run in --workdir where no --config
            is given.
    """

    def call(argv: Sequence[str], interrupts: "_Interrupts") -> None:
        if len(argv) > 1:
            raise ConfigError(f"argument {argv[1]!r} is no flag: write --config=... --workdir=... --config.field=value")
        given = {"workdir": _WORKDIR.value or not needs_workdir, "config": _CONFIG.value or not needs_config}
        if missing := [name for name, is_there in given.items() if not is_there]:
            raise ConfigError(f"--{missing[0]} is missing: see the README")
        workdir = str(records.resolve(_WORKDIR.value)) if _WORKDIR.value else ""
        cache.keep_compiled()
        if _COORDINATOR.value:
            faulthandler.disable()  # absl's, which lists extension modules where XLA aborts the process
            parallel.initialize(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value, interrupts.lost)
        run(_CONFIG.value and to_dict(_CONFIG.value), workdir)
        parallel.finish()

    parse = (lambda argv: _parse(_with_config_of_run(argv))) if of_run else _parse
    program(call, parse, GOES_ON if goes_on else BEGINS_ANEW)


def program(
    call: Callable[[Sequence[str], "_Interrupts"], None],
    parse: Callable[[list[str]], Sequence[str]] = app.parse_flags_with_usage,
    interrupted: str = BEGINS_ANEW,
) -> None:
    """Runs call(argv, interrupts) as `absl.app.run` does, and ends the process as `main` says.

    The process ends by `os._exit`, after what is registered with atexit: XLA's threads go on while the interpreter is
    torn down, and now and then one of them ends in a segmentation fault.
    """
    gc.freeze()  # what was imported stays
    root = logging.getLogger()  # a library that was imported may have given it a handler, beside which comes absl's
    root.handlers = [handler for handler in root.handlers if type(handler) is not logging.StreamHandler]
    interrupts, streams = _Interrupts(interrupted), [_outlive("stdout"), _outlive("stderr")]
    status = 1
    try:
        app.run(lambda argv: _one_line(call, argv, interrupts), flags_parser=parse)
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except KeyboardInterrupt:
        interrupts.end()
    except BaseException:
        if interrupts.signum:  # whatever the interrupt was turned into
            interrupts.end()
        parallel.failed(is_known=False)
        sys.excepthook(*sys.exc_info())
    if status == 0:
        atexit._run_exitfuncs()
    status = _flushed(status)
    interrupts.leave(141 if status == 0 and any(stream.is_broken for stream in streams) else status)


def to_dict(config: ConfigDict) -> dict[str, Any]:
    """A config as plain values."""
    return config.copy_and_resolve_references().to_dict()


def _one_line(call: Callable[..., None], argv: Sequence[str], interrupts: "_Interrupts") -> None:
    """Calls, with one line instead of a traceback where the user can mend what is wrong."""
    absl_logging.set_verbosity(absl_logging.WARNING)
    logging.getLogger("fontTools").setLevel(logging.ERROR)  # it tells of every glyph it embeds in a PDF
    try:
        call(argv, interrupts)
    except Exception as error:
        if interrupts.signum or (line := _line_of(error)) is None:
            raise
        _fail(line)


def _line_of(error: Exception) -> Any:
    """What to tell the user of an error, None where it is a bug of ours."""
    if isinstance(error, SubspacesError):
        return error
    if isinstance(error, OSError) and error.errno in WRITING:
        return f"cannot write: {error}; make room or name another workdir, then run the same command again"
    platforms = jax.config.jax_platforms  # type: ignore[attr-defined]  # JAX declares none of its options
    if isinstance(error, (RuntimeError, AssertionError)) and platforms:
        return _missing_platform(platforms)
    return None


def _missing_platform(platforms: str) -> str | None:
    """A line on the platforms of JAX_PLATFORMS where JAX cannot start them."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # of an assertion where a plugin is not installed
        detail = str(error).partition(" (set JAX_PLATFORMS")[0] or f"JAX does not know {platforms!r} here"
        return (
            f"no device for JAX_PLATFORMS={platforms} ({detail}): unset JAX_PLATFORMS, or pip install -e '.[cuda]' "
            "on a machine with a GPU, '.[tpu]' on one with a TPU"
        )
    return None


def _with_config_of_run(argv: Sequence[str]) -> list[str]:
    """The arguments, and where only fields of a config are among them the config of the run in --workdir first."""
    has = lambda flag: any(re.match(rf"--?{flag}", part) for part in argv)
    workdirs = [
        part.partition("=")[2] if "=" in part else following
        for part, following in zip(argv, [*argv[1:], ""])
        if re.match(r"--?workdir(=|$)", part)
    ]
    if not has(r"config\.") or has("config(=|$)") or not workdirs:
        return list(argv)
    return [argv[0], f"--config={pathlib.Path(__file__).with_name('of_run.py')}:{workdirs[-1]}", *argv[1:]]


def _parse(argv: Sequence[str]) -> Sequence[str]:
    """Absl's parser, with one line instead of a traceback where a config file or field is wrong."""
    try:
        config = re.compile(r"(--?config=)(~.*)")  # which a shell leaves as it is
        rest = flags.FLAGS([config.sub(lambda found: found[1] + os.path.expanduser(found[2]), part) for part in argv])
        if _CONFIG.value is not None:
            to_dict(_CONFIG.value)  # a file that cannot be loaded says so only when it is used
        return rest
    except (AttributeError, KeyError) as error:
        _fail(schema.unknown_field(re.findall(r"\w+", str(error))[0], _known_fields()))
    except OSError as error:
        last = str(error).splitlines()[-1].strip()
        _fail(f"the config cannot be loaded: {last.rpartition('earlier failure to load: ')[2]}")
    except (flags.Error, ValueError) as error:
        if flags.FLAGS["config"].value is None and (field := re.search(r"'config\.(\w+)'", str(error))):
            _fail(f"--config.{field[1]} changes a field of a config: give --config=FILE, too, before it")
        text = str(error)  # with a whole traceback, whose last line says what is wrong, where the config file raised
        _fail(text.strip().splitlines()[-1].partition(": ")[2] if "Traceback" in text else text)


def _known_fields() -> dict[str, schema.Field]:
    """Fields of all configs."""
    from subspaces_jax.experiments import analyze, connect  # with SciPy and Matplotlib, a second

    return fields.FIELDS | fields.SWEEP_FIELDS | analyze.FIELDS | connect.FIELDS


def _fail(error: Any, status: int = 2) -> NoReturn:
    parallel.failed()
    _silence()  # what is torn down from here on may complain, and the last word is this line's
    with contextlib.suppress(OSError):
        sys.stdout.flush()  # what was printed before comes before
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(status)


def _silence() -> None:
    logging.disable()
    sys.unraisablehook = lambda _: None
    threading.excepthook = lambda _: None


class _Interrupts:
    """Ctrl-C and SIGTERM in a program: the first raises KeyboardInterrupt, so that the run closes its files.

    A second one, or GRACE seconds without an end, end the process from a thread of its own: the main one may be in
    compiled code, wait for another process, or have lost the exception in a callback. Checkpoints and results are
    written whole or not at all, so that nothing is lost.
    """

    def __init__(self, line: str):
        self._line = line
        self.signum, self._leaving, self._one = 0, False, threading.Lock()
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        threading.Thread(target=self._wait, args=(reading,), daemon=True).start()
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        for signum in ENDING:
            if signal.getsignal(signum) != signal.SIG_IGN:  # as under nohup, or in the background of a script
                signal.signal(signum, self._handle)
        sys.excepthook, self._excepthook = self._unhandled, sys.excepthook

    def end(self, line: str = "", status: int = 0):
        """Ends the process with the line, by default that of an interrupt, whichever thread says it first."""
        self._one.acquire()  # not released: the first one ends the process
        start = "\n" if os.isatty(2) else ""  # a progress bar may be on this line
        try:
            os.write(2, f"{start}error: {line or self._line}\n".encode())
        finally:
            os._exit(status or 128 + (self.signum or signal.SIGINT))

    def leave(self, status: int) -> None:
        """Ends the process, with `status` unless it is interrupted meanwhile."""
        self._leaving = True
        if self.signum:
            self.end()
        os._exit(status)

    def lost(self, line: str) -> None:
        """Ends the process for another one that is gone, which a Ctrl-C in their terminal ends as it does this one."""
        time.sleep(0.2)  # it reaches them one after another
        if self.signum:
            self.end()
        self.end(line, 2)

    def _handle(self, signum: int, frame: Any) -> None:
        if self.signum:
            return  # the thread ends the process
        self.signum = signum
        _silence()
        if not self._leaving:
            raise KeyboardInterrupt

    def _wait(self, reading: int) -> None:
        while (signum := os.read(reading, 1)[0]) not in ENDING:
            pass
        until = time.monotonic() + GRACE
        while (left := until - time.monotonic()) > 0 and select.select([reading], [], [], left)[0]:
            if os.read(reading, 1)[0] in ENDING:
                break
        self.signum = self.signum or signum
        self.end()

    def _unhandled(self, *error: Any) -> None:
        if self.signum:
            self.end()
        self._excepthook(*error)


class _Outliving(io.FileIO):
    """A standard stream that outlives its reader: what is written once that has gone away goes nowhere."""

    is_broken = False

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):  # EIO: of a terminal
                raise
            self.is_broken = True
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            return len(data)


def _outlive(name: str) -> _Outliving:
    """Puts an `_Outliving` in the place of sys.stdout or sys.stderr."""
    stream, descriptor = getattr(sys, name), {"stdout": 1, "stderr": 2}[name]
    if stream is None:  # closed by the shell: the descriptor would be the next file's, and what XLA prints go there
        os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    raw = _Outliving(descriptor, "w", closefd=False)
    lines = name == "stderr" or raw.isatty() or getattr(stream, "line_buffering", False)
    encoding, errors = getattr(stream, "encoding", "utf-8"), getattr(stream, "errors", "backslashreplace")
    setattr(sys, name, io.TextIOWrapper(io.BufferedWriter(raw), encoding, errors, line_buffering=lines))
    return raw


def _flushed(status: int) -> int:
    """The exit status once what was printed is on its way."""
    try:
        sys.stdout.flush()
    except OSError as error:
        print(f"error: cannot write to the standard output: {error}", file=sys.stderr)
        status = status or 2
    sys.stderr.flush()
    return status
