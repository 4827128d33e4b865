"""What the launch scripts share: flags, and errors as one line."""

import errno
import logging
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import ConfigDict, config_flags

from subspaces_jax import parallel
from subspaces_jax.errors import ConfigError, SubspacesError
from subspaces_jax.experiments import fields

WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EFBIG, errno.ENOTDIR, errno.EISDIR)
_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "configs/NAME.py, or configs/NAME.py:tiny for a run of seconds"
)
_WORKDIR = flags.DEFINE_string("workdir", None, "the run directory; the same command goes on with a run that was ended")
_KNOWN = fields.FIELDS | fields.SWEEP_FIELDS | fields.ANALYSIS_FIELDS
_COORDINATOR = flags.DEFINE_string("coordinator", None, "host:port of process 0, to train in several processes")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", 1, "how many processes train together")
_PROCESS_ID = flags.DEFINE_integer("process_id", 0, "which of them this is")


def main(run: Callable[[dict[str, Any] | None, str], None], needs_config: bool = True) -> None:
    """Parses flags, calls run(config, workdir) and turns errors that the user can mend into one line and exit status 2.

    Args:
        run: takes the resolved config as a plain dict (None without --config) and the run directory.
        needs_config: whether --config must be given.
    """

    def call(argv: Sequence[str]) -> None:
        absl_logging.set_verbosity(absl_logging.WARNING)
        logging.getLogger("fontTools").setLevel(logging.ERROR)  # it tells of every glyph it embeds in a PDF
        try:
            if len(argv) > 1:
                raise ConfigError(
                    f"argument {argv[1]!r} is no flag: write --config=... --workdir=... --config.field=value"
                )
            if not _WORKDIR.value or (needs_config and _CONFIG.value is None):
                raise ConfigError(f"--{'config' if _WORKDIR.value else 'workdir'} is missing: see the README")
            if _COORDINATOR.value:
                parallel.initialize(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
            run(_CONFIG.value and to_dict(_CONFIG.value), _WORKDIR.value)
        except SubspacesError as error:
            _fail(error)
        except OSError as error:
            if error.errno not in WRITING:
                raise
            _fail(f"cannot write: {error}; make room or name another workdir, then run the same command again")
        except KeyboardInterrupt:
            _fail("interrupted; the same command goes on from the last checkpoint", 130)

    app.run(call, flags_parser=_parse)


def to_dict(config: ConfigDict) -> dict[str, Any]:
    """A config as plain values."""
    return config.copy_and_resolve_references().to_dict()


def _parse(argv: Sequence[str]) -> Sequence[str]:
    """Absl's parser, with one line instead of a traceback where a config file or field is wrong."""
    try:
        rest = flags.FLAGS(list(argv))
        if _CONFIG.value is not None:
            to_dict(_CONFIG.value)  # a file that cannot be loaded says so only when it is used
        return rest
    except (AttributeError, KeyError) as error:
        _fail(fields.unknown_field(re.search(r"\w+", str(error)).group(), _KNOWN))
    except OSError as error:
        _fail(f"the config cannot be loaded: {str(error).splitlines()[-1].strip()}")
    except (flags.Error, ValueError) as error:
        text = str(error)  # with a whole traceback, whose last line says what is wrong, where the config file raised
        _fail(text.strip().splitlines()[-1].partition(": ")[2] if "Traceback" in text else text)


def _fail(error: Any, status: int = 2) -> None:
    logging.disable()  # what is torn down from here on may complain, and the last word is this line's
    sys.unraisablehook = lambda unraisable: None
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(status)
