"""From a config to objects, once a command: `experiment(config)`. This package alone reads a config.

agreement.py  whether fields agree with one another
configured.py a field as an attribute
data.py       data sets, in memory or as streams; splits.py, those of an experiment
members.py    members that differ in options
images.py     images on their way to a network
model.py      the network as the functions that training and evaluation take
plan.py       a training in steps
steps.py      the mesh and the compiled steps; programs.py, those of an experiment
training.py   subspace, optimizer, schedule
"""

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from subspaces_jax import geometry, rngs
from subspaces_jax.experiments import choices
from subspaces_jax.experiments.build import data as build_data
from subspaces_jax.experiments.build import members as build_members
from subspaces_jax.experiments.build import model as build_model
from subspaces_jax.experiments.build import plan as build_plan
from subspaces_jax.experiments.build import steps as build_steps
from subspaces_jax.experiments.build import training as build_training
from subspaces_jax.experiments.build.agreement import check
from subspaces_jax.experiments.build.configured import Configured
from subspaces_jax.experiments.build.model import Model
from subspaces_jax.experiments.build.plan import Plan
from subspaces_jax.experiments.build.programs import Programs
from subspaces_jax.experiments.build.splits import Given, Splits
from subspaces_jax.experiments.calls import STOPS
from subspaces_jax.experiments.fields import ENDS
from subspaces_jax.experiments.schema import Config
from subspaces_jax.tasks import Task
from subspaces_jax.training.loop import Plateau

__all__ = ["Config", "Experiment", "Given", "Model", "Plan", "check", "experiment"]


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

    seed = Configured[int]()
    variant = Configured[str]()
    dataset = Configured[str]()
    network_text = Configured[str]("network")  # the calls that these are, for records and messages
    subspace_text = Configured[str]("subspace")
    initial_text = Configured[str]("initial")
    fork_text = Configured[str]("fork")
    profile_text = Configured[str]("profile_steps")
    inner_endpoints = Configured[str]()  # how those between two initial ends start, of fields.INNER
    num_samples = Configured[int]()
    num_members = Configured[int]()
    num_epochs = Configured[int]()
    log_every = Configured[int]()
    weight_decay = Configured[float]()  # the coefficient of |w|^2 / 2, whatever it is that decays
    captures = Configured[bool]("capture")
    scores_train = Configured[bool]("test_train")  # whether tests during training score the training split, too
    num_points = Configured[int]()
    eval_batch_size = Configured[int]()
    refreshes = Configured[bool]("refresh")  # whether BatchNorm statistics are taken anew at each point that is scored
    num_refresh_batches = Configured[int]()

    # what it is

    @property
    def batch_size(self) -> int:
        """Examples a step; the whole training split is read for their number where it is the batch."""
        return self.config["batch_size"] or self.data.num_examples

    @property
    def initial(self) -> list[choices.Source]:
        """Whose networks the endpoints start from: run directories, or RANDOM."""
        return [choices.source(text) for text in choices.split(self.config["initial"])]

    @property
    def fork(self) -> choices.Source | None:
        """The run and its step that training goes on from."""
        return choices.source(self.config["fork"]) if self.config["fork"] else None

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
    def model(self) -> Model:
        config = self.config
        settings = build_model.Settings(
            pixel_seed=self.data.settings.pixel_seed,
            own_orders=self.data.settings.own_orders,
            with_features=config["feature_diversity"] > 0,
            **{name: config[name] for name in build_model.Settings._fields if name in config},
        )
        return build_model.model(settings, self.data.info, self.task)

    @cached_property
    def space(self) -> Any:
        """The subspace, one point for all modules."""
        return build_training.subspace(self.config["subspace"], self.config["num_endpoints"])

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

    # what it is made of

    @cached_property
    def data(self) -> Splits:
        """The splits."""
        settings = build_data.Settings(**{name: self.config[name] for name in build_data.Settings._fields})
        unread = self.without_data or not self.num_epochs
        return Splits(settings, self.seed, self.config["eval_split"], self.given, unread)

    @property
    def programs(self) -> Programs:
        """What is compiled."""
        return Programs(self)

    # the plan, in steps

    @cached_property
    def plan(self) -> Plan:
        """The run in steps; reads the data for their number."""
        return self.plan_for(self.data.num_examples)

    def plan_for(self, num_examples: int) -> Plan:
        """The run in steps, for that many training examples."""
        return build_plan.plan(self.config, self.optimizer_settings, num_examples)

    @property
    def save_every(self) -> int:
        return self.config["checkpoint_every"] * self.plan.steps_per_epoch

    @property
    def profile_steps(self) -> tuple[int, ...]:
        """The first and the last step of what is profiled, () for none."""
        return tuple(map(int, choices.split(self.profile_text)))

    @property
    def test_every(self) -> int:
        return self.config["test_every"] * self.plan.steps_per_epoch

    @property
    def stops_early(self) -> bool:
        """Whether a plateau of its tests may end training."""
        return choices.make("stop", self.config["stop"], STOPS) is not None

    def plateau(self, rows: Sequence[dict[str, float]]) -> Plateau:
        """What ends training where it `stops_early`, after rows of metrics of an earlier part."""
        within = choices.make("stop", self.config["stop"], STOPS)
        return Plateau(f"{self.data.tested}_{self.task.columns[0].name}", within, rows)

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
    def schedule(self) -> optax.Schedule:
        """The learning rate as a function of the step."""
        return build_training.schedule(self.optimizer_settings, self.plan.steps_per_epoch)

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """The optimizer of the stack."""
        return self.optimizer_of(self.optimizer_settings)

    def optimizer_of(
        self, settings: build_training.OptimizerSettings, of_free: bool = False
    ) -> optax.GradientTransformation:
        """The optimizer of other settings, or `of_free` endpoints alone, see `build.training.optimizer`."""
        network = build_training.traits(self.model.network)
        return build_training.optimizer(
            settings, self.plan.steps_per_epoch, self.space.num_endpoints, network, of_free
        )  # fmt: skip

    @property
    def weight_statistics(self) -> Any:
        """Stack -> numbers of a row, or None."""
        return build_training.weight_statistics(self.config["statistics"], build_training.traits(self.model.network))

    # evaluation

    @property
    def refresh_key(self) -> jax.Array:
        """Of the draws with which BatchNorm statistics are refreshed, the same at every point."""
        return rngs.stream(jax.random.key(self.seed), "refresh")
