"""Choices as calls: what is read, what is refused with which word, and one splitter for all lists."""

import dataclasses

import pytest

from subspaces_jax.errors import ConfigError
from subspaces_jax.experiments import choices
from subspaces_jax.experiments.choices import Call, split


@dataclasses.dataclass
class Deep:
    num_classes: int
    depth: int = 20
    alpha: float = 0.5
    init: str = "normal"
    widths: tuple = ()


TABLE = {"deep": Deep, "flip": lambda: "flip", "crop": lambda padding=4: f"crop {padding}"}


@pytest.mark.parametrize(
    "text, parts",
    [
        ("a,b", ["a", "b"]),
        (" a, b ,", ["a", "b"]),
        ("", []),
        ("bezier(4, t=(0, 1)), chain", ["bezier(4, t=(0, 1))", "chain"]),
        ("f('a,b'),c", ["f('a,b')", "c"]),
    ],
)
def test_a_list_is_split_outside_parentheses_and_quotes(text, parts):
    assert split(text) == parts


def test_other_separators():
    assert split("crop(padding=4)|flip", "|") == ["crop(padding=4)", "flip"]
    assert split("a=1  b=f(2, 3)\nc='x y'", " ") == ["a=1", "b=f(2, 3)", "c='x y'"]


@pytest.mark.parametrize("text", ["f(1", "f)", "'a", "f(1]"[:3] + "("])
def test_what_is_not_closed_is_refused(text):
    with pytest.raises(ConfigError, match="not closed"):
        split(text)


@pytest.mark.parametrize(
    "text, calls",
    [
        ("digits", [Call("digits")]),
        ("bezier(4)", [Call("bezier", (4,))]),
        (
            "deep_residual(depth=256, alpha=-0.5, init=ntrunc, skip=True, widths=[1, 2], name='x y', seed=None)",
            [
                Call(
                    "deep_residual",
                    (),
                    (
                        ("depth", 256),
                        ("alpha", -0.5),
                        ("init", "ntrunc"),
                        ("skip", True),
                        ("widths", (1, 2)),
                        ("name", "x y"),
                        ("seed", None),
                    ),
                )
            ],
        ),
        ("crop(padding=4)|flip()", [Call("crop", (), (("padding", 4),)), Call("flip")]),
        ("my.module:Net(width=2)", [Call("my.module:Net", (), (("width", 2),))]),
    ],
)
def test_calls_are_read(text, calls):
    assert choices.parse(text) == calls


@pytest.mark.parametrize(
    "text",
    ["f(x=open('/etc/passwd'))", "f(*[1])", "f(**{'a': 1})", "f(1 + 1)", "f(lambda: 1)", "f(b'x')", "f(1)(2)", "f()g"]
    + ["f(a.b)", "f(a=1, 2)", "", "f(x:=1)", "f(1); g()"],
)  # fmt: skip
def test_only_literals_are(text):
    with pytest.raises(ConfigError):
        choices.parse(text)


def test_options_come_from_the_call_then_from_the_program_then_from_the_usual():
    made = choices.make("network", "deep(depth=8)", TABLE, given={"num_classes": 3}, usual={"depth": 1, "alpha": 2.0})
    assert made == Deep(3, 8, 2.0)
    assert choices.make("network", "deep(8, .5, widths=(1, 2))", TABLE, {"num_classes": 3}) == Deep(
        3, 8, 0.5, widths=(1, 2)
    )
    assert choices.make_all("augmentation", "crop(2)|flip", TABLE) == ("crop 2", "flip")
    assert choices.options("network", "deep(depth=8)", TABLE, {"alpha": 1.0, "other": 2}) == {"depth": 8, "alpha": 1.0}


@pytest.mark.parametrize(
    "text, message",
    [
        ("deap", "config.x is 'deap': it takes one of deep, flip, crop; did you mean deep"),
        ("deep(dept=3)", r"config.x 'deep\(dept=3\)': its option 'dept' is unknown: did you mean depth"),
        ("deep(num_classes=3)", "its option 'num_classes' is unknown: did you mean|there are"),
        ("deep(1, 2., 'a', (), 5)", "it takes at most 4 arguments"),
        ("deep(8, depth=9)", "its option 'depth' is given twice"),
        ("deep(depth=2.5)", "its option depth takes int, got 2.5"),
        ("deep(depth=True)", "its option depth takes int, got True"),
        ("deep(init=3)", "its option init takes str, got 3"),
        ("flip(3)", "it takes at most 0 arguments"),
        ("flip(a=3)", "its option 'a' is unknown: it takes none"),
        ("flip|crop", "it takes one call, and here are 2"),
        ("deep(", "not closed"),
    ],
)
def test_what_a_choice_does_not_take_is_named_before_anything_is_made(text, message):
    for act in (choices.check, lambda *args: choices.make(*args[:3], given={"num_classes": 2})):
        with pytest.raises(ConfigError, match=message) as caught:
            act("x", text, TABLE, ("num_classes",))
        assert "\n" not in str(caught.value)


def test_what_a_constructor_refuses_is_named():
    def picky(size=1):
        raise ValueError(f"size {size}\nis odd")

    with pytest.raises(ConfigError, match=r"config.x 'picky\(size=3\)': size 3 is odd") as caught:
        choices.make("x", "picky(size=3)", {"picky": picky})
    assert isinstance(caught.value.__cause__, ValueError), "whose traceback says where"


def test_a_mistake_within_a_constructor_is_no_fault_of_the_config():
    with pytest.raises(TypeError, match="unsupported operand") as caught:
        choices.make("x", "wrong", {"wrong": lambda size=1: size + "a"})
    assert not isinstance(caught.value, ConfigError)
    with pytest.raises(ConfigError, match="config.x 'wrong': .*missing 1 required positional argument: 'size'"):
        choices.make("x", "wrong", {"wrong": lambda size: size})
