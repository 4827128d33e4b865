"""What a folder holds: of a run, a path, an analysis or a sweep, as text and as one HTML file to send to a colleague.

The report, report.html in the folder, stands alone: figures are within it, and nothing is loaded from elsewhere.
"""

import base64
import html
import json
import pathlib
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from subspaces_jax import checkpoints, records, trees
from subspaces_jax.errors import CheckpointError, RunDirectoryError, SubspacesError
from subspaces_jax.experiments import analyze, connect, evaluate, fields, plot, references, runs, sweep
from subspaces_jax.experiments.studies import STUDIES, family

REPORT = "report.html"
IMAGES = {".png": "image/png", ".gif": "image/gif"}
KINDS = {"train": "training run", "connect": "path between networks", "study": "analysis", "sweep": "sweep"}
FIELDS_OF = {"train": fields.FIELDS, "connect": fields.FIELDS, "sweep": fields.SWEEP_FIELDS}


def run(config: Any, workdir: str | pathlib.Path) -> dict[str, Any]:
    """Reads what is in a folder, draws its figures where there are none yet, and writes its report.

    Args:
        config: not needed and not read; every experiment takes (config, workdir).
        workdir: the directory of a run, or the folder of an analysis or a sweep.

    Returns:
        {"folder", "kind", "variant", "config" (every field), "changed" (those that differ from their defaults),
        "facts" (of the header), "layers" [(name, shape, parameters, norms of each row [K])], "rows" (K of the stack),
        "parameters" (of one network), "checkpoints" (steps), "metrics" (the last row), "tables" {results: text}, "runs"
        {name: state} of a sweep, "figures" (paths), "references", "problems" (what could not be read, a line each),
        "report" (its path)}.

    Raises:
        RunDirectoryError: no run directory.
    """
    header, folder = records.read_header(workdir), records.resolve(workdir)
    defaults = analyze.fields_of(header.config) if header.kind == "study" else FIELDS_OF[header.kind]
    found: dict[str, Any] = {
        "folder": str(folder),
        "kind": header.kind,
        "variant": header.variant,
        "config": header.config,
        "changed": {
            name: value
            for name, value in header.config.items()
            if name not in defaults or records.plain(defaults[name].default) != records.plain(value)
        },
        "facts": header.facts,
        "layers": [],
        "rows": 0,
        "parameters": 0,
        "checkpoints": checkpoints.steps(folder),
        "metrics": {},
        "tables": {},
        "runs": {},
        "figures": [],
        "problems": [],
        "references": references.of(header.config),
    }
    parts = {"train": _of_weights, "connect": _of_weights, "sweep": _of_sweep}
    for part in (parts.get(header.kind), _of_metrics, _of_results, _of_figures):
        if part is None:
            continue
        try:
            found |= part(folder, header)
        except SubspacesError as error:  # what cannot be read is said, and the rest is shown
            found["problems"].append(str(error))
    found["report"] = str(folder / REPORT)
    records.write_text(folder / REPORT, document(found))
    return found


def _of_weights(folder: pathlib.Path, header: records.Header) -> dict[str, Any]:
    """The layers of the last checkpoint."""
    if not checkpoints.has_any(folder):
        raise CheckpointError(f"no checkpoint in {folder} yet")
    stack = checkpoints.restore(folder).params
    leaves = trees.leaf_names(stack)
    rows = len(next(iter(leaves.values())))
    layers = [(name, leaf.shape[1:], int(np.prod(leaf.shape[1:])), _norms(leaf)) for name, leaf in leaves.items()]
    return {"layers": layers, "rows": rows, "parameters": sum(layer[2] for layer in layers)}


def _norms(leaf: np.ndarray) -> list[float]:
    """The Euclidean norm of each row of a leaf [K, ...]."""
    return [float(np.linalg.norm(np.asarray(row, np.float64))) for row in leaf]


def _of_metrics(folder: pathlib.Path, header: records.Header) -> dict[str, Any]:
    rows = runs.rows_of(folder)
    return {"metrics": rows[-1]} if rows else {}


def _of_results(folder: pathlib.Path, header: records.Header) -> dict[str, Any]:
    """The table of every results file that a table is known for."""
    tables: dict[str, Callable[[dict[str, Any]], str]] = {name: study.table for name, study in STUDIES.items()}
    tables[connect.RESULTS] = connect.table
    names = sorted(path.stem for path in (folder / records.RESULTS).glob("*.json"))
    known = {name: evaluate.table if evaluate.is_result(name) else tables.get(name) for name in names}
    texts = {name: _text(records.load_facts(folder, name), table) for name, table in known.items() if table}
    return {
        "tables": {name: text or "of another version of the package: make them again" for name, text in texts.items()}
    }


def _text(facts: dict[str, Any], table: Callable[[dict[str, Any]], str]) -> str:
    """The table of facts, "" of such as lack what it shows."""
    try:
        return table(facts)
    except (LookupError, TypeError, ValueError, AttributeError):
        return ""


def _of_sweep(folder: pathlib.Path, header: records.Header) -> dict[str, Any]:
    """Which of a sweep's runs are finished, and which ended before they had a folder."""
    found = sorted(path.parent for path in folder.glob(f"*/{records.CONFIG}"))
    states = {path.name: "finished" if sweep.is_finished(path) else "not finished" for path in found}
    if found and not (folder / records.RESULTS / f"{plot.FAMILY}.json").exists() and family.finished([folder]):
        sweep.gather(folder)
    failed = {path.stem: path for path in sorted((folder / sweep.LOGS).glob("*.txt")) if path.stem not in states}
    return {"runs": states | {name: f"no run: {sweep.last_line(path)}" for name, path in failed.items()}}


def _of_figures(folder: pathlib.Path, header: records.Header) -> dict[str, Any]:
    """The figures that are there; where results were never drawn, or changed since, they are drawn now."""
    changed = [path.stat().st_mtime for path in (folder / records.RESULTS).glob("*.json")]
    drawn = [path.stat().st_mtime for path in _figures(folder)]
    if changed and max(changed) > min(drawn, default=0.0):
        plot.run(None, folder)
    return {"figures": [str(path) for path in _figures(folder)]}


def _figures(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in (folder / records.FIGURES).glob("*") if path.suffix in IMAGES)


def table(found: dict[str, Any]) -> str:
    """All of it as text."""
    sections = [
        ("", [f"{found['folder']}: {KINDS[found['kind']]}{_labelled(found['variant'])}"]),
        ("config, where it is not the default", _pairs(found["changed"])),
        ("plan", _pairs(found["facts"])),
        (_parameters_title(found), [_layer(layer) for layer in found["layers"]]),
        ("checkpoints", [", ".join(map(str, found["checkpoints"]))] if found["checkpoints"] else []),
        ("last row of metrics", _pairs(found["metrics"])),
        ("runs", _pairs(found["runs"])),
        *((f"results/{name}", text.splitlines()) for name, text in found["tables"].items()),
        ("figures", [str(pathlib.Path(path).relative_to(found["folder"])) for path in found["figures"]]),
        ("references", found["references"]),
        ("could not be read", found["problems"]),
        ("", [f"report: {found['report']}"]),
    ]
    blocks = []
    for title, lines in sections:
        if lines:
            blocks.append("\n".join([title, *(f"  {line}" for line in lines)] if title else lines))
    return "\n\n".join(blocks)


def _labelled(variant: str) -> str:
    return f" ({variant})" if variant else ""


def _parameters_title(found: dict[str, Any]) -> str:
    return f"{found['parameters']:,} parameters, {found['rows']} rows of the stack: shape, number, norm of each row"


def _pairs(values: dict[str, Any]) -> list[str]:
    width = max(map(len, values), default=0)
    return [f"{name:<{width}}  {_number(value)}" for name, value in values.items()]


def _number(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else json.dumps(value)


def _layer(layer: tuple[str, tuple[int, ...], int, list[float]]) -> str:
    name, shape, number, norms = layer
    return f"{name:<44} {' x '.join(map(str, shape)):<20} {number:>12,}  {_shown(norms)}"


def _shown(norms: list[float]) -> str:
    text = " ".join(f"{norm:.4g}" for norm in norms[:6])
    return f"{text} ..." if len(norms) > 6 else text


STYLE = """
body { font: 15px/1.5 Georgia, serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem; border-bottom: 1px solid #ccc }
table { border-collapse: collapse } td, th { padding: .1rem .8rem .1rem 0; text-align: left; vertical-align: top }
td, pre { font: 13px/1.45 ui-monospace, Menlo, Consolas, monospace } pre { overflow-x: auto }
figure { margin: 1.5rem 0 } img { max-width: 100% } figcaption { color: #555 } .problem { color: #a00 }
"""


def document(found: dict[str, Any]) -> str:
    """All of it as one HTML page, images within it."""
    name = pathlib.Path(found["folder"]).name
    title = f"{name}: {KINDS[found['kind']]}{_labelled(found['variant'])}"
    body = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p>subspaces_jax on JAX {jax.__version__}, written {time.strftime('%Y-%m-%d %H:%M')}</p>",
        *(f'<p class="problem">{html.escape(problem)}</p>' for problem in found["problems"]),
        *(
            f"<h2>Scores: {html.escape(name)}</h2>\n<pre>{html.escape(text)}</pre>"
            for name, text in found["tables"].items()
        ),
        _section("Figures", map(_figure, map(pathlib.Path, found["figures"]))),
        _section("Runs", _html_table(found["runs"].items())),
        _section("Config, where it is not the default", _html_table(found["changed"].items())),
        _section("Plan", _html_table(found["facts"].items())),
        _section("Last row of metrics", _html_table(found["metrics"].items())),
        _section(
            f"{found['parameters']:,} parameters, {found['rows']} rows of the stack",
            _html_table(
                [
                    (name, " x ".join(map(str, shape)), f"{number:,}", _shown(norms))
                    for name, shape, number, norms in found["layers"]
                ],
                ("layer", "shape", "number", "norm of each row"),
            ),
        ),
        _section(
            "Checkpoints", [f"<p>{', '.join(map(str, found['checkpoints']))}</p>"] if found["checkpoints"] else []
        ),
        _section("References", (f"<p>{html.escape(reference)}</p>" for reference in found["references"])),
        _section("Every field of the config", _html_table(found["config"].items())),
    ]
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n'
        + "\n".join(filter(None, body))
        + "\n</body></html>\n"
    )


def _section(title: str, parts: Iterable[str]) -> str:
    text = "\n".join(parts)
    return f"<h2>{html.escape(title)}</h2>\n{text}" if text else ""


def _html_table(rows: Iterable[tuple], titles: tuple[str, ...] = ()) -> list[str]:
    cell = lambda value: value if isinstance(value, str) else _number(value)
    lines = [f"<tr>{''.join(f'<td>{html.escape(cell(value))}</td>' for value in row)}</tr>" for row in rows]
    head = f"<tr>{''.join(f'<th>{title}</th>' for title in titles)}</tr>\n" if titles else ""
    return [f"<table>\n{head}" + "\n".join(lines) + "\n</table>"] if lines else []


def _figure(path: pathlib.Path) -> str:
    try:
        content = base64.b64encode(path.read_bytes()).decode()
    except OSError as error:
        raise RunDirectoryError(f"{path} cannot be read: {error}") from None
    source = f"data:{IMAGES[path.suffix]};base64,{content}"
    caption = html.escape(path.stem.replace("_", " "))
    return f'<figure><img alt="{caption}" src="{source}"><figcaption>{caption}</figcaption></figure>'
