"""What an experiment compiles: first states, steps, and orders of examples."""

import dataclasses
import itertools
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from subspaces_jax import parallel
from subspaces_jax.experiments.build import steps as build_steps
from subspaces_jax.training.dispatch import Form
from subspaces_jax.training.state import State
from subspaces_jax.training.step import Step

if TYPE_CHECKING:
    from subspaces_jax.experiments.build import Experiment


@dataclasses.dataclass(frozen=True, eq=False)
class Programs:
    """The compiled programs of an experiment, each made once for the same arguments, see `build.steps`."""

    made: "Experiment"

    @property
    def row_statistics(self) -> Any:
        """State -> what a row says of it, see `build.steps.statistics`."""
        made = self.made
        return build_steps.statistics(made.schedule, made.space.num_endpoints, made.weight_statistics)

    def initial_state(self) -> State:
        """The state before the first step, of random weights."""
        made = self.made
        platform = parallel.platform(made.mesh)
        state = lambda of, optimizer, keys: build_steps.initial_state(
            of.model.init, optimizer, made.space.num_endpoints, len(keys), platform
        )(jnp.stack(keys))
        if not made.members:
            return state(made, made.optimizer, made.keys)
        alike = lambda member: (member.config["network"], member.config["learning_rate"])
        groups = [list(group) for _, group in itertools.groupby(made.members, alike)]
        rates = [made.optimizer_settings._replace(learning_rate=group[0].config["learning_rate"]) for group in groups]
        keys = [[key for member in group for key in member.keys] for group in groups]
        return build_steps.joined_states(
            [state(group[0], made.optimizer_of(rate), own) for group, rate, own in zip(groups, rates, keys)]
        )

    def random_stack(self, key: jax.Array, num: int) -> Any:
        """Parameters of `num` networks of random weights, leaves [num, ...]."""
        return build_steps.random_stack(self.made.model.init, num, parallel.platform(self.made.mesh))(key)

    @property
    def state_shapes(self) -> State:
        """Shapes of that state, nothing being computed."""
        made = self.made
        num_endpoints = made.space.num_endpoints
        make = build_steps.state_of(made.model.init, made.optimizer, num_endpoints, made.num_members)
        return jax.eval_shape(lambda: make(jnp.stack(made.keys)))

    def step(self, params: Any, platform: str) -> Step:
        """The training step of one device's share in its `form`, for a stack with the names of `params`."""
        made = self.made
        settings = build_steps.StepSettings(
            point_decay=made.weight_decay if made.config["decay"] == "point" else 0.0,
            **{name: made.config[name] for name in build_steps.StepSettings._fields if name in made.config},
        )
        still = self.form(platform).still
        optimizer = made.optimizer_of(made.optimizer_settings, of_free=bool(still))
        return build_steps.step(
            made.model.objective, made.drawn_space(params), optimizer, settings, made.num_members, platform, still
        )  # fmt: skip

    def over_samples(self, platform: str) -> str:
        """How a platform takes samples and members, of calls.OVER_SAMPLES but "auto"."""
        return build_steps.form(self.made.config["over_samples"], platform)

    @property
    def num_parts(self) -> int:
        """Of a batch, whose gradients are added up."""
        return self.made.config["num_parts"]

    def form(self, platform: str, many_steps: bool = True) -> Form:
        """In which a dispatch takes the state."""
        made = self.made
        still = build_steps.still_endpoints(made.frozen_endpoints, made.config["beta"], made.config["optimizer"])
        return Form(self.in_flat_leaves(platform, many_steps), still)

    @property
    def takes_flat_leaves(self) -> bool:
        """Whether steps can be taken on flat leaves."""
        return build_steps.takes_flat_leaves(self.made.config["optimizer"])

    def in_flat_leaves(self, platform: str, many_steps: bool = True) -> bool:
        """Whether steps are taken on flat leaves, see `build.steps.in_flat_leaves`."""
        return build_steps.in_flat_leaves(
            self.made.config["leaves"], self.made.config["optimizer"], platform, many_steps
        )

    def advance(self, params: Any, mesh: Mesh | None = None) -> Any:
        """Compiled steps on data in memory, see `build.steps.advance`; for another mesh than this host's, too."""
        made = self.made
        mesh = mesh or made.mesh
        platform = parallel.platform(mesh)
        return build_steps.advance(
            self.step(params, platform), self.row_statistics, mesh, made.num_members, bool(made.members),
            self.form(platform),
        )  # fmt: skip

    def advance_on_batch(self, params: Any, mesh: Mesh | None = None) -> Any:
        """A compiled step on a batch of a stream, see `build.steps.advance_on_batch`."""
        made = self.made
        mesh = mesh or made.mesh
        platform = parallel.platform(mesh)
        return build_steps.advance_on_batch(
            self.step(params, platform), self.row_statistics, mesh, made.num_members, made.config["num_samples"],
            bool(made.members), self.form(platform, many_steps=False),
        )  # fmt: skip

    def epoch_order(self) -> Any:
        """Compiled (keys [M], epoch) -> indices of its batches, see `build.steps.epoch_order`."""
        made = self.made
        return build_steps.epoch_order(
            made.data.num_examples, made.batch_size, made.config["num_samples"], made.num_members, made.mesh,
            made.config["shuffle"],
        )  # fmt: skip
