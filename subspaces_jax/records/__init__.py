"""The run directory: one lock, the config and its header, rows of metrics, TensorBoard events, results, progress.

config.json  metrics.jsonl  events/  checkpoints/  results/<name>.npz + .json  figures/

Run directories are local folders. What is read back was written by another process, perhaps on a disk that filled up
or by hand: whatever it holds, it is read or refused with one line.
"""

from subspaces_jax.records.files import DamagedError, is_url, resolve
from subspaces_jax.records.header import FORMAT, KINDS, Header, read_config, read_header, write_header
from subspaces_jax.records.locks import locked
from subspaces_jax.records.metrics import Metrics, read_metrics
from subspaces_jax.records.names import CONFIG, EVENTS, FIGURES, LOCK, METRICS, RESULTS
from subspaces_jax.records.progress import Progress
from subspaces_jax.records.results import below, load_facts, load_results, plain, save_json, save_results
from subspaces_jax.records.series import read_series
from subspaces_jax.writing import write_bytes, write_text

__all__ = [
    "CONFIG",
    "EVENTS",
    "FIGURES",
    "FORMAT",
    "KINDS",
    "LOCK",
    "METRICS",
    "RESULTS",
    "DamagedError",
    "Header",
    "Metrics",
    "Progress",
    "below",
    "is_url",
    "load_facts",
    "load_results",
    "locked",
    "plain",
    "read_config",
    "read_header",
    "read_metrics",
    "read_series",
    "resolve",
    "save_json",
    "save_results",
    "write_bytes",
    "write_header",
    "write_text",
]
