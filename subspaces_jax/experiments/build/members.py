"""Members that differ in more than their seed: config.member_options.

Every member is a run of its own: the config that `alone` gives is that of the run whose numbers it has.
"""

from collections.abc import Sequence
from typing import Any

from subspaces_jax.errors import ConfigError
from subspaces_jax.experiments import choices, fields, schema
from subspaces_jax.networks import families

OPTIONS = ("learning_rate", "seed")  # fields of the config that members may differ in


def parts(text: str) -> list[dict[str, str]]:
    """ "alpha=0.5 seed=3; alpha=1" as a dictionary for each part."""
    try:
        return [schema.key_values(part) for part in choices.split(text, ";")]
    except ConfigError as error:
        raise ConfigError(f"config.member_options: {error}") from None


def check(config: schema.Config) -> None:
    """Refuses members that are not as many for each part, or that start from elsewhere."""
    if not config["member_options"]:
        return
    named, num = parts(config["member_options"]), config["num_members"]
    if not named or num % len(named) or num < 2:
        raise ConfigError(
            f"config.member_options has {len(named)} parts and config.num_members is {num}: set a multiple of the "
            "parts, at least 2"
        )
    if config["fork"] or config["initial"]:
        raise ConfigError("config.member_options is of members at random weights: set initial='' and fork=''")


def alone(config: schema.Config, m: int, initial_options: Sequence[str]) -> dict[str, Any]:
    """The config of member m as a run of its own.

    Args:
        config: of all members, checked.
        m: which member.
        initial_options: of the network, those that change its initial values alone.

    Raises:
        ConfigError: an option that members cannot differ in, or a value that it does not take.
    """
    named = parts(config["member_options"]) or [{}]
    part, place = divmod(m, config["num_members"] // len(named))
    found = dict(config) | {"num_members": 1, "member_options": ""}
    of_network = {}
    for name, text in named[part].items():
        if name in OPTIONS:
            found[name] = schema.from_text(name, text, fields.FIELDS)
        elif name in initial_options:
            of_network[name] = dict(choices.parse(f"options({name}={text})")[0].options)[name]
        else:
            raise ConfigError(
                f"config.member_options has {name}: members of {config['network']} may differ in "
                f"{', '.join((*OPTIONS, *initial_options))}"
            )
    found["seed"] += place
    if of_network:
        found["network"] = _changed(config["network"], of_network)
    return found


def _changed(text: str, options: dict[str, Any]) -> str:
    """The call of a network with other options."""
    name = choices.parse(text)[0].name
    changed = choices.options("network", text, families.NETWORKS) | options
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in changed.items())})"
