"""Networks from elsewhere: those that are taken, and one line for each of those that are not."""

import pathlib
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subspaces_jax.networks import MLP, CifarResNet, VisionTransformer
from subspaces_jax.networks.checks import Traits, alone, check_network

sys.path.append(str(pathlib.Path(__file__).parents[1] / "experiments"))
import outside_module  # noqa: E402

IMAGE, CLASSES = (8, 8, 1), 10
TOLD = ({"train": True}, {"train": False})


def check(module, name="my:Net", **options):
    return check_network(name, module, IMAGE, (CLASSES,), **options)


@pytest.mark.parametrize(
    "module, expected",
    [
        (MLP(CLASSES, (4,)), Traits(*TOLD, False, True, False)),
        (CifarResNet(CLASSES, 8, 2, dropout=0.1), Traits(*TOLD, True, True, False)),
        (VisionTransformer(CLASSES, 4, 8, 1, 2, dropout=0.1), Traits(*TOLD, False, True, False)),
        (CifarResNet(CLASSES, 8, 2, axis_name="batch"), Traits(*TOLD, True, True, True)),
        (outside_module.Classifier(CLASSES), Traits(*TOLD, True, True, False)),
        (outside_module.OutsideNet(CLASSES), Traits({}, {}, False, False, False)),
        (outside_module.MustBeTold(CLASSES), Traits(*TOLD, True, False, False)),
        (outside_module.NoKernels(CLASSES, jnp.float32), Traits({}, {}, False, False, False)),
        (outside_module.OverTheBatch(CLASSES), Traits(*TOLD, True, False, True)),
        (
            outside_module.HalfFrozen(CLASSES),
            Traits({"deterministic": False}, {"deterministic": True}, True, False, False),
        ),
        (nn.Sequential([lambda x: x.reshape(x.shape[0], -1), nn.Dense(CLASSES)]), Traits({}, {}, False, False, False)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_what_is_taken(module, expected):
    assert check(module, axis_name="batch")._replace(params=None) == expected


@pytest.mark.parametrize("with_gradient", [True, False])
def test_its_parameters_are_told_and_each_form_is_traced_once(with_gradient, monkeypatch):
    calls, call = [], outside_module.Classifier.__call__

    def counted(self, x, train=False):
        calls.append(train)
        return call(self, x, train)

    monkeypatch.setattr(outside_module.Classifier, "__call__", counted)
    found = check(outside_module.Classifier(CLASSES), with_gradient=with_gradient).params
    assert jax.tree.map(lambda leaf: leaf.shape, found["Dense_0"]) == {"kernel": (64, CLASSES), "bias": (CLASSES,)}
    assert calls == [False, False, True]


REFUSED = {
    "Seven": r"gives outputs \[2, 7\] for 2 examples, \[2, 10\] is expected",
    "Twelve": r"gives outputs \[2, 12\] for 2 examples, \[2, 10\] is expected",
    "OneForAll": r"gives outputs \[10\] for 2 examples, \[2, 10\] is expected",
    "Pair": r"gives a tuple of \[2, 10\], \[2, 4\] as outputs: one array \[2, 10\] is expected",
    "PairInTraining": r"gives a dict of \[2, 10\] as outputs",
    "Nothing": r"gives None as outputs",
    "Integers": r"gives outputs of int32: real floating numbers are expected",
    "Complex": r"gives outputs of complex64: real floating numbers are expected",
    "Divides": r"fails in training: ZeroDivisionError: integer division or modulo by zero$",
    "LongWinded": r"fails in initialisation: RuntimeError: the first line$",
    "NoGradient": r"fails in training: ValueError: Reverse-mode differentiation does not work",
    "ComplexWeights": r"has the parameter w of complex64: real floating numbers are expected",
    "NoParameters": r"has no parameters: there is nothing to train",
    "OfOneBatch": r"fails in evaluation: ScopeParamShapeError: .*\"bias\"",
    "Noisy": r"fails in training: InvalidRngError: .*noise.*given by the names params and dropout",
    "Constant": r"fails in evaluation: ScopeCollectionNotFound: .*it has constants, but only params and batch_stats",
    "ToldAtItsMaking": r"batch_stats that training, a call with no word of it, does not update: let the call",
    "Counts": r"has the statistic count of int32",
    "LateStatistics": r"other batch_stats after training than at initialisation: mean",
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("axis_name", [None, "batch"])
def test_what_is_refused(name, axis_name):
    with pytest.raises(ValueError, match=REFUSED[name]) as caught:
        check(getattr(outside_module, name)(CLASSES), f"my:{name}", axis_name=axis_name)
    assert str(caught.value).startswith(f"'my:{name}' ") and "\n" not in str(caught.value)
    assert caught.value.__context__ is None or caught.value.__suppress_context__  # no second traceback


def test_frozen_statistics_tell_how_the_call_was_told():
    class Frozen(nn.Module):
        @nn.compact
        def __call__(self, x, training):
            return nn.Dense(CLASSES)(nn.BatchNorm(use_running_average=True)(x.reshape(x.shape[0], -1)))

    with pytest.raises(ValueError, match="a call with training=True, does not update"):
        check(Frozen())


def test_an_axis_that_no_step_binds_is_refused():
    with pytest.raises(ValueError, match="fails in training: NameError: .*batch"):
        check(outside_module.OverTheBatch(CLASSES))


@pytest.mark.parametrize("name, error", [("Interrupted", KeyboardInterrupt), ("OutOfMemory", MemoryError)])
def test_interrupts_pass_through(name, error):
    with pytest.raises(error):
        check(getattr(outside_module, name)(CLASSES))


def test_images_that_do_not_fit_are_the_networks_own_word():
    with pytest.raises(ValueError, match="fails in initialisation: ValueError: patches of 3 do not divide"):
        check(VisionTransformer(CLASSES, 3, 8, 1, 2))


def test_nothing_is_computed(monkeypatch):
    calls = []

    class Watched(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dense(CLASSES)(x.reshape(x.shape[0], -1))
            jax.debug.callback(calls.append, x.sum())
            return x

    check(Watched())
    jax.effects_barrier()
    assert not calls


def test_alone_binds_the_axis_and_changes_nothing_else(getkey):
    """BatchNorm over a mesh of one share is BatchNorm."""
    x = jax.random.normal(getkey(), (6, *IMAGE))
    named = outside_module.OverTheBatch(CLASSES)
    variables = named.init(getkey(), x)
    train = lambda v, x: named.apply(v, x, train=True, mutable=["batch_stats"])
    outputs, updated = jax.jit(alone(train, "batch"))(variables, x)
    dense = variables["params"]["Dense_0"]
    y = np.asarray(x, np.float64).reshape(6, -1) @ np.asarray(dense["kernel"], np.float64)
    np.testing.assert_allclose(outputs, (y - y.mean(0)) / np.sqrt(y.var(0) + 1e-5), rtol=1e-4, atol=1e-5)
    found = updated["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(found["mean"], 0.01 * y.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["var"], 0.99 + 0.01 * y.var(0), rtol=1e-5)
