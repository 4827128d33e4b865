"""From a config to objects, once a command: `experiment(config)`. This package alone reads a config.

agreement.py  whether fields agree with one another
data.py       splits, in memory or as streams
members.py    members that differ in options
model.py      the network as the functions that training and evaluation take
training.py   subspace, optimizer, mesh and the compiled steps
"""

import dataclasses
import itertools
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from subspaces_jax import geometry, parallel, rngs
from subspaces_jax.data import batches, catalogue, sources
from subspaces_jax.experiments import choices
from subspaces_jax.experiments.build import data as build_data
from subspaces_jax.experiments.build import members as build_members
from subspaces_jax.experiments.build import model as build_model
from subspaces_jax.experiments.build import steps as build_steps
from subspaces_jax.experiments.build import training as build_training
from subspaces_jax.experiments.build.agreement import check
from subspaces_jax.experiments.build.model import Model
from subspaces_jax.experiments.calls import STOPS
from subspaces_jax.experiments.fields import ENDS
from subspaces_jax.experiments.schema import Config
from subspaces_jax.tasks import Task
from subspaces_jax.training.dispatch import Form
from subspaces_jax.training.loop import Plateau
from subspaces_jax.training.state import State
from subspaces_jax.training.step import Step

__all__ = ["Config", "Experiment", "Given", "Model", "Plan", "check", "experiment"]


class Given(NamedTuple):
    """Data that stand in for the data set of a config: what is known of them, and their splits."""

    info: catalogue.DatasetInfo
    train: sources.Arrays
    test: sources.Arrays


def experiment(config: Config, given: Given | None = None, without_data: bool = False) -> "Experiment":
    """The experiment of a config, checked; nothing is read or computed before it is asked for.

    Args:
        config: a mapping with fields of FIELDS.
        given: data in the place of the config's data set.
        without_data: whether what the catalogue says of the data set is enough, and it is never read.

    Raises:
        ConfigError: a field that is unknown or out of range, or fields at odds with each other.
    """
    made = Experiment(check(config), given, without_data)
    made.model, made.optimizer_settings.of_schedule, made.weight_statistics, made.members  # noqa: B018  refused now
    return made


class Plan(NamedTuple):
    """A run in steps: of an epoch, of the whole, those after which checkpoints are captured for averages and snapshots,
    and those whose checkpoints stay for good."""

    steps_per_epoch: int
    num_steps: int
    captured_steps: tuple[int, ...]
    kept_steps: tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Experiment:
    """What a config means: data, model, task, subspace, optimizer, plan and compiled steps, each made when asked for.

    Attributes:
        config: every field, for the record: what is configured is read here and nowhere below.
        given: data in the place of the config's data set.
        without_data: whether the catalogue's numbers of examples stand for data that are not read.
    """

    config: dict[str, Any]
    given: Given | None = None
    without_data: bool = False

    # what it is

    @property
    def seed(self) -> int:
        return self.config["seed"]

    @property
    def variant(self) -> str:
        return self.config["variant"]

    @property
    def num_samples(self) -> int:
        return self.config["num_samples"]

    @property
    def num_members(self) -> int:
        return self.config["num_members"]

    @property
    def batch_size(self) -> int:
        """Examples a step; the whole training split is read for their number where it is the batch."""
        return self.config["batch_size"] or self.num_examples

    @property
    def dataset(self) -> str:
        return self.config["dataset"]

    @property
    def initial(self) -> list[choices.Source]:
        """Whose networks the endpoints start from: run directories, or RANDOM."""
        return [choices.source(text) for text in choices.split(self.config["initial"])]

    @property
    def initial_text(self) -> str:
        """The field, for messages."""
        return self.config["initial"]

    @property
    def inner_endpoints(self) -> str:
        """How those between two initial ends start, of fields.INNER."""
        return self.config["inner_endpoints"]

    @property
    def fork(self) -> choices.Source | None:
        """The run and its step that training goes on from."""
        return choices.source(self.config["fork"]) if self.config["fork"] else None

    @property
    def fork_text(self) -> str:
        """The field, for messages."""
        return self.config["fork"]

    @property
    def alone(self) -> "Experiment":
        """The experiment of one member."""
        return dataclasses.replace(self, config=self.config | {"num_members": 1, "member_options": ""})

    @cached_property
    def members(self) -> list["Experiment"]:
        """The experiment of each member by itself, [M], where they differ in options; else none are made."""
        if not self.config["member_options"]:
            return []
        options = getattr(self.model.network, "initial_options", ())
        configs = [build_members.alone(self.config, m, options) for m in range(self.num_members)]
        return [experiment(config, self.given, self.without_data) for config in configs]

    @property
    def captures(self) -> bool:
        return self.config["capture"]

    @property
    def keys(self) -> list[jax.Array]:
        """The PRNG key of each member, [M]."""
        seeds = [member.seed for member in self.members] or range(self.seed, self.seed + self.num_members)
        return [jax.random.key(seed) for seed in seeds]

    @cached_property
    def mesh(self) -> Mesh:
        """The devices that train and evaluate."""
        return self.mesh_over(None)

    def mesh_over(self, devices: Sequence[jax.Device] | None) -> Mesh:
        """Likewise, of devices that need not be here."""
        config = self.config
        return build_steps.mesh(
            config["num_devices"],
            config["num_members"],
            self.batch_size,
            config["num_samples"],
            config["num_parts"],
            devices,
        )

    @property
    def title(self) -> str:
        """What is trained, in a line."""
        fields = "{subspace} of {network} on {dataset}, {dtype}, batch {batch_size} in {num_samples} samples"
        return fields.format(**self.config | {"batch_size": self.config["batch_size"] or "of all"})

    @property
    def thin_parts(self) -> str | None:
        """What to say where samples of a batch are too few examples for the devices."""
        return build_steps.thin_parts(self.batch_size, self.num_samples, self.mesh)

    @property
    def task(self) -> Task:
        return build_training.task(self.config["task"], self.config["label_smoothing"])

    @property
    def info(self) -> catalogue.DatasetInfo:
        return self.given.info if self.given else self.data_settings.info

    @property
    def network_text(self) -> str:
        """The call that the network is, for records."""
        return self.config["network"]

    @property
    def model(self) -> Model:
        config = self.config
        settings = build_model.Settings(
            pixel_seed=self.data_settings.pixel_seed,
            own_orders=self.data_settings.own_orders,
            with_features=config["feature_diversity"] > 0,
            **{name: config[name] for name in build_model.Settings._fields if name in config},
        )
        return build_model.model(settings, self.info, self.task)

    @cached_property
    def space(self) -> Any:
        """The subspace, one point for all modules."""
        return build_training.subspace(self.config["subspace"], self.config["num_endpoints"])

    @property
    def subspace_text(self) -> str:
        """The call that the subspace is, for messages."""
        return self.config["subspace"]

    def drawn_space(self, params: Any) -> Any:
        """The subspace as training draws from it: layerwise where the config says so."""
        return geometry.layerwise(self.space, params) if self.config["layerwise"] else self.space

    @property
    def num_rows(self) -> int:
        """Rows of the stack that a run's checkpoints hold: endpoints, or members."""
        return max(self.space.num_endpoints, self.num_members)

    @property
    def stack_shapes(self) -> Any:
        """Names and shapes of that stack."""
        rows = self.num_rows
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((rows, *leaf.shape), leaf.dtype), self.model.shapes)

    @property
    def is_curve(self) -> bool:
        """Whether points have mirror images: a line or a curve."""
        return self.space.num_endpoints > 1 and not isinstance(self.space, geometry.Simplex)

    # data

    @cached_property
    def data_settings(self) -> build_data.Settings:
        return build_data.Settings(**{name: self.config[name] for name in build_data.Settings._fields})

    @property
    def streams(self) -> bool:
        """Whether data are read image by image."""
        return self.info.streams

    @cached_property
    def train(self) -> sources.Arrays:
        """The training split, see `build.data.load`."""
        return self.given.train if self.given else build_data.load(self.data_settings, "train", self.seed, _part())

    @cached_property
    def test(self) -> sources.Arrays:
        """The test split."""
        return self.given.test if self.given else build_data.load(self.data_settings, "test", self.seed, _part())

    @cached_property
    def validation(self) -> sources.Arrays | None:
        """What is held out of the training split, None where nothing is."""
        if self.given or self.data_settings.held_out is None:
            return None
        return build_data.load(self.data_settings, "validation", self.seed, _part())

    @property
    def eval_split(self) -> str:
        """What is scored, of calls.SPLITS."""
        return self.config["eval_split"]

    @cached_property
    def scored(self) -> sources.Arrays:
        """The split that evaluation scores; training images without augmentation."""
        return self.scored_split(self.eval_split)

    def scored_split(self, split: str) -> sources.Arrays:
        """A split as evaluation reads it, see `build.data.scored`."""
        if split == "train" and self.streams and not self.given:
            return build_data.scored(self.data_settings, split, _part())
        found = {"train": lambda: self.train, "validation": lambda: self.validation, "test": lambda: self.test}[split]()
        assert found is not None, f"nothing is held out for {split}, which `check` refuses"
        return found

    @property
    def shuffles_pixels(self) -> bool:
        return self.config["pixel_shuffle"]

    def info_of(self, dataset: str) -> catalogue.DatasetInfo:
        """What is known of another data set, read as this one is."""
        return self.data_settings._replace(dataset=dataset).info

    def test_of(self, dataset: str, archive: str) -> sources.Arrays:
        """Another data set's test split, read as this one's is."""
        other = self.data_settings._replace(dataset=dataset, archive=archive, idx_dir="")
        return build_data.load(other, "test", self.seed, _part())

    def train_streams(self, start_step: int) -> list[Any]:
        """A stream of training batches for each member, this process' share of each."""
        return [
            build_data.train_stream(self.data_settings, self.batch_size, self.seed + m, start_step, _part())
            for m in range(self.num_members)
        ]

    @property
    def num_examples(self) -> int:
        """Of the training split; where no data are read, as the catalogue says."""
        if self.without_data or not self.config["num_epochs"]:
            return self.data_settings.num_train
        return len(self.train.labels) if self.streams else len(self.train.images)

    # the plan, in steps

    @cached_property
    def plan(self) -> "Plan":
        """The run in steps; reads the data for their number."""
        return self.plan_for(self.num_examples)

    def plan_for(self, num_examples: int) -> "Plan":
        """The run in steps, for that many training examples."""
        config, settings = self.config, self.optimizer_settings
        epoch = batches.steps_per_epoch(num_examples, config["batch_size"] or num_examples)
        captured = build_training.capture_steps(settings, epoch) if self.captures else ()
        named = build_training.kept_steps(
            config["keep_steps"], config["keep_every"], config["num_epochs"], epoch, config["keep_first"]
        )
        kept = tuple(sorted({*captured, *named} or ({0} if not config["num_epochs"] else set())))
        return Plan(epoch, config["num_epochs"] * epoch, captured, kept)

    @property
    def num_epochs(self) -> int:
        return self.config["num_epochs"]

    @property
    def log_every(self) -> int:
        return self.config["log_every"]

    @property
    def save_every(self) -> int:
        return self.config["checkpoint_every"] * self.plan.steps_per_epoch

    @property
    def profile_steps(self) -> tuple[int, ...]:
        """The first and the last step of what is profiled, () for none."""
        return tuple(map(int, choices.split(self.profile_text)))

    @property
    def profile_text(self) -> str:
        return self.config["profile_steps"]

    @property
    def test_every(self) -> int:
        return self.config["test_every"] * self.plan.steps_per_epoch

    @property
    def scores_train(self) -> bool:
        """Whether tests during training score the training split, too."""
        return self.config["test_train"]

    @property
    def tested(self) -> str:
        """The split that tests during training score: what is held out, or the test split."""
        return "test" if self.data_settings.held_out is None else "validation"

    @property
    def stops_early(self) -> bool:
        """Whether a plateau of its tests may end training."""
        return choices.make("stop", self.config["stop"], STOPS) is not None

    def plateau(self, rows: Sequence[dict[str, float]]) -> Plateau:
        """What ends training where it `stops_early`, after rows of metrics of an earlier part."""
        within = choices.make("stop", self.config["stop"], STOPS)
        return Plateau(f"{self.tested}_{self.task.columns[0].name}", within, rows)

    @property
    def overridden(self) -> tuple[str, ...]:
        """Fields that may differ from those of a run that is gone on with."""
        return tuple(choices.split(self.config["override"]))

    # training

    @property
    def frozen_endpoints(self) -> tuple[int, ...]:
        """Endpoints that stay as they are."""
        named, ends = choices.split(self.config["frozen_endpoints"]), (0, self.space.num_endpoints - 1)
        return tuple(sorted({k for name in named for k in (ends if name == ENDS else (int(name),))}))

    @property
    def optimizer_settings(self) -> build_training.OptimizerSettings:
        config = self.config
        return build_training.OptimizerSettings(
            frozen=self.frozen_endpoints,
            peak_in_state=bool(config["member_options"]),
            weight_decay=config["weight_decay"] if config["decay"] == "endpoints" else 0.0,
            **{
                name: config[name]
                for name in build_training.OptimizerSettings._fields
                if name in config and name != "weight_decay"
            },
        )

    @property
    def weight_decay(self) -> float:
        """The coefficient of |w|^2 / 2, whatever it is that decays."""
        return self.config["weight_decay"]

    @property
    def schedule(self) -> optax.Schedule:
        """The learning rate as a function of the step."""
        return build_training.schedule(self.optimizer_settings, self.plan.steps_per_epoch)

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """The optimizer of the stack."""
        return self._optimizer(self.optimizer_settings)

    def _optimizer(
        self, settings: build_training.OptimizerSettings, of_free: bool = False
    ) -> optax.GradientTransformation:
        network = build_training.traits(self.model.network)
        return build_training.optimizer(
            settings, self.plan.steps_per_epoch, self.space.num_endpoints, network, of_free
        )  # fmt: skip

    @property
    def weight_statistics(self) -> Any:
        """Stack -> numbers of a row, or None."""
        return build_training.weight_statistics(self.config["statistics"], build_training.traits(self.model.network))

    @property
    def row_statistics(self) -> Any:
        """State -> what a row says of it, see `build.steps.statistics`."""
        return build_steps.statistics(self.schedule, self.space.num_endpoints, self.weight_statistics)

    def initial_state(self) -> State:
        """The state before the first step, of random weights."""
        platform = parallel.platform(self.mesh)
        state = lambda made, optimizer, keys: build_steps.initial_state(
            made.model.init, optimizer, self.space.num_endpoints, len(keys), platform
        )(jnp.stack(keys))
        if not self.members:
            return state(self, self.optimizer, self.keys)
        alike = lambda member: (member.config["network"], member.config["learning_rate"])
        groups = [list(group) for _, group in itertools.groupby(self.members, alike)]
        rates = [self.optimizer_settings._replace(learning_rate=group[0].config["learning_rate"]) for group in groups]
        keys = [[key for member in group for key in member.keys] for group in groups]
        return build_steps.joined_states(
            [state(group[0], self._optimizer(rate), of) for group, rate, of in zip(groups, rates, keys)]
        )

    @property
    def state_shapes(self) -> State:
        """Shapes of that state, nothing being computed."""
        num_endpoints = self.space.num_endpoints
        make = build_steps.state_of(self.model.init, self.optimizer, num_endpoints, self.num_members)
        return jax.eval_shape(lambda: make(jnp.stack(self.keys)))

    def step(self, params: Any, platform: str) -> Step:
        """The training step of one device's share in its `form`, for a stack with the names of `params`."""
        config = self.config
        settings = build_steps.StepSettings(
            point_decay=config["weight_decay"] if config["decay"] == "point" else 0.0,
            **{name: config[name] for name in build_steps.StepSettings._fields if name in config},
        )
        still = self.form(platform).still
        optimizer = self._optimizer(self.optimizer_settings, of_free=bool(still))
        return build_steps.step(
            self.model.objective, self.drawn_space(params), optimizer, settings, self.num_members, platform, still
        )  # fmt: skip

    def over_samples(self, platform: str) -> str:
        """How a platform takes samples and members, of calls.OVER_SAMPLES but "auto"."""
        return build_steps.form(self.config["over_samples"], platform)

    @property
    def num_parts(self) -> int:
        """Of a batch, whose gradients are added up."""
        return self.config["num_parts"]

    def form(self, platform: str, many_steps: bool = True) -> Form:
        """In which a dispatch takes the state."""
        still = build_steps.still_endpoints(self.frozen_endpoints, self.config["beta"], self.config["optimizer"])
        return Form(self.in_flat_leaves(platform, many_steps), still)

    @property
    def takes_flat_leaves(self) -> bool:
        """Whether steps can be taken on flat leaves."""
        return build_steps.takes_flat_leaves(self.config["optimizer"])

    def in_flat_leaves(self, platform: str, many_steps: bool = True) -> bool:
        """Whether steps are taken on flat leaves, see `build.steps.in_flat_leaves`."""
        return build_steps.in_flat_leaves(self.config["leaves"], self.config["optimizer"], platform, many_steps)

    def advance(self, params: Any, mesh: Mesh | None = None) -> Any:
        """Compiled steps on data in memory, see `build.steps.advance`; for another mesh than this host's, too."""
        mesh = mesh or self.mesh
        platform = parallel.platform(mesh)
        return build_steps.advance(
            self.step(params, platform), self.row_statistics, mesh, self.num_members, bool(self.members),
            self.form(platform),
        )  # fmt: skip

    def advance_on_batch(self, params: Any, mesh: Mesh | None = None) -> Any:
        """A compiled step on a batch of a stream, see `build.steps.advance_on_batch`."""
        mesh = mesh or self.mesh
        platform = parallel.platform(mesh)
        return build_steps.advance_on_batch(
            self.step(params, platform), self.row_statistics, mesh, self.num_members, self.config["num_samples"],
            bool(self.members), self.form(platform, many_steps=False),
        )  # fmt: skip

    def epoch_order(self) -> Any:
        """Compiled (keys [M], epoch) -> indices of its batches, see `build.steps.epoch_order`."""
        return build_steps.epoch_order(
            self.num_examples, self.batch_size, self.config["num_samples"], self.num_members, self.mesh,
            self.config["shuffle"],
        )  # fmt: skip

    # evaluation

    @property
    def num_points(self) -> int:
        return self.config["num_points"]

    @property
    def eval_batch_size(self) -> int:
        return self.config["eval_batch_size"]

    @property
    def num_refresh_batches(self) -> int:
        return self.config["num_refresh_batches"]

    @property
    def refresh_key(self) -> jax.Array:
        """Of the draws with which BatchNorm statistics are refreshed, the same at every point."""
        return rngs.stream(jax.random.key(self.seed), "refresh")


def _part() -> tuple[int, int]:
    return jax.process_index(), jax.process_count()
