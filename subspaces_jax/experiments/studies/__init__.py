"""Studies: one module an analysis of runs.

Each has FIELDS, those of networks with `members.FIELDS` in them, and

    run(settings) -> (arrays, facts)            settings have the fields as attributes, "runs" among them
    table(facts) -> text
    figures(arrays, facts) -> {name: Figure}    from results alone
    panel(axis, arrays, facts)                  where `overview` draws it, into one panel
    summary(facts) -> plots.tables.Table        where there is one, which `plot` writes as CSV and LaTeX
    animations(arrays, facts) -> {name: path -> None}, where there are any, likewise
    exports(arrays, facts) -> (name, tree) of each further JSON file, where there are any, in a form of others

Adding one is adding its module and its name here.
"""

from types import ModuleType

from subspaces_jax.experiments.studies import (
    average,
    barriers,
    chain,
    connections,
    curve,
    ensemble,
    family,
    instability,
    line,
    matched,
    orientation,
    overview,
    path_variation,
    plane,
    power_law,
    regularity,
    reinit,
    shared_trunk,
    training_variation,
)

STUDIES: dict[str, ModuleType] = {
    "ensemble": ensemble,
    "average": average,
    "line": line,
    "curve": curve,
    "chain": chain,
    "plane": plane,
    "barriers": barriers,
    "connections": connections,
    "matched": matched,
    "shared_trunk": shared_trunk,
    "instability": instability,
    "orientation": orientation,
    "reinit": reinit,
    "power_law": power_law,
    "family": family,
    "regularity": regularity,
    "training_variation": training_variation,
    "path_variation": path_variation,
    "overview": overview,
}
