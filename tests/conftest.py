"""As strict as Flax allows: rank promotion raises, warnings are errors, and nothing reaches a network."""

import gc
import importlib.util
import itertools
import os
from importlib.metadata import version

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Four virtual devices; programs that run for milliseconds are not worth seconds of optimisation; and on a busy machine
# XLA takes virtual devices that wait for one another for 40 s for stuck, and aborts. XLA's older emitters of loops take
# a third of the time to compile; later versions lack them, and end the process at a flag that they do not know, as
# libtpu does at this one. What users run is optimised, and may round otherwise: OPTIMISED=1 pytest tests that.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=4",
        "--xla_cpu_collective_call_terminate_timeout_seconds=600",
        *(
            ["--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"]
            if not os.environ.get("OPTIMISED")
            else []
        ),
        *(
            ["--xla_cpu_use_fusion_emitters=false"]
            if not os.environ.get("OPTIMISED")
            and version("jaxlib").startswith("0.10.")
            and importlib.util.find_spec("libtpu") is None
            else []
        ),
    ]
)

import jax
import jax.numpy as jnp
import pytest

from launch import cache

jax.config.update("jax_numpy_rank_promotion", "raise")

LONG = (
    "test_devices.py",
    "test_configs.py",
    "test_connectivity.py",
    "test_families.py",
    "test_launch.py",
    "test_runs.py",
    "test_networks.py",
    "autoencoders.ipynb",
    "mode_connectivity.ipynb",
    "weight_regularity.ipynb",
    "test_regularity_studies.py",
    "quickstart.ipynb",
    "hyperplanes.ipynb",
    "test_hyperplane_studies.py",
    "test_layers.py",
    "test_lpips.py",
    "test_images.py",
    "test_benchmark.py",
)


def pytest_collection_modifyitems(items):
    """Long files first, so that no worker is left alone with one at the end."""
    place = {name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.name, len(LONG)))


def pytest_collection_finish():
    """Python looks for garbage after every 700 new objects, which is a quarter of the time that tracing takes."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(300_000, 10, 10)


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(request):
    """One cache of compiled programs for all tests, in all workers, and for the processes that they start; kept for the
    next run, until pytest --cache-clear."""
    folder = request.config.cache.mkdir(f"compiled-{cache.processor()}")
    cache.make_room(folder)
    os.environ |= {"JAX_COMPILATION_CACHE_DIR": str(folder), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


@pytest.fixture(scope="session", autouse=True)
def kernels_of_notebooks(tmp_path_factory):
    """Notebooks run in kernels of their own, without what the user's profile starts, and look for garbage as seldom."""
    folder = tmp_path_factory.mktemp("ipython")
    startup = folder / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "garbage.py").write_text("import gc; gc.freeze(); gc.set_threshold(300_000, 10, 10); del gc\n")
    os.environ["IPYTHONDIR"] = str(folder)


@pytest.fixture(scope="session", autouse=True)
def data_dir(tmp_path_factory):
    """The TFDS data directory of all tests, empty at first, where digits are prepared once."""
    folder = str(tmp_path_factory.mktemp("tensorflow_datasets"))
    os.environ["TFDS_DATA_DIR"] = folder
    return folder


@pytest.fixture
def optimised():
    """Options of `jax.jit` with which XLA optimises as it does by default, and not as it does here."""
    options = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
    return options | ({"xla_cpu_use_fusion_emitters": True} if version("jaxlib").startswith("0.10.") else {})


@pytest.fixture
def getkey():
    """Fresh PRNG keys, a new one a call."""
    counter = itertools.count()
    return lambda: jax.random.fold_in(jax.random.key(20261121), next(counter))


@pytest.fixture
def strict_dtypes():
    """No implicit promotion of dtypes: for our own mathematics, where a silent float64 or int would be a bug."""
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture
def small_stack(getkey):
    """(K) -> a stack of K two-layer parameter trees."""

    def make(num_endpoints):
        return {
            "Dense_0": {
                "kernel": jax.random.normal(getkey(), (num_endpoints, 3, 5)),
                "bias": jax.random.normal(getkey(), (num_endpoints, 5)),
            },
            "inner": {
                "scale": jax.random.normal(getkey(), (num_endpoints, 5)),
                "Dense_1": {
                    "kernel": jax.random.normal(getkey(), (num_endpoints, 5, 2)),
                    "bias": jnp.ones((num_endpoints, 2)),
                },
            },
        }

    return make
