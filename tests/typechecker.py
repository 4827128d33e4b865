"""How tests check the annotations of numeric modules: see --jaxtyping-packages in pyproject.toml."""

from beartype import BeartypeConf, beartype


def checked(function):
    """`beartype`, which takes whole numbers for floats; constructors say themselves what they do not take."""
    if function.__name__ == "__init__":
        return function
    return beartype(function, conf=BeartypeConf(is_pep484_tower=True))
