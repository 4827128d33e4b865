"""Paths that go from layer to layer of a feed-forward network: butterfly, and weight adjustment at every point.

With layers 0 to L - 1, W^ of layer l > 0 is its kernel of network a, adjusted to what network b gives to that layer;
W^ of layer 0 is the kernel of a. When layers below l are those of b, layer l is W^ and layers above are those of a, the
network does on the data about what a does.

    butterfly           L - 1 pieces. Piece l moves the hidden units of layer l: what they read, from W^ to b, and what
                        reads them, from a to the next W^. In the last one the outputs go from a to b at once.
    weight adjustment   L pieces. Piece l moves what the units of layer l read, from W^ to b, and fits what reads them
                        at every point anew; the kernel after that moves to what the next piece begins with. The last
                        piece moves the outputs.

Biases and scales move with their units; those of the outputs in the last piece. With `bias` W^ is a kernel and a bias,
fitted together, and both go where above the kernel goes. With transport the units of b are
matched to those of a layer by layer, where they are to move, and stay in that order.

The paper's code goes back to the units' own order after each piece, leaves kernels to jump where a piece begins, never
moves the bias of a convolutional network's outputs, and leaves out the last piece of its weight adjustment; it fits
with every singular value, and convolutions to every other image. `reference=True` does so too.

Reference: Anokhin and Yarotsky, Low-loss connection of weight vectors: distribution-based approaches, 2020,
arXiv:2008.00741, section 4.
"""

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from subspaces_jax import trees
from subspaces_jax.connecting import adjustment
from subspaces_jax.connecting.chains import Layer, layers_of
from subspaces_jax.connecting.features import Features
from subspaces_jax.connecting.matching import check_same, match
from subspaces_jax.connecting.methods import METHODS, by_name
from subspaces_jax.connecting.paths import Path
from subspaces_jax.connecting.permutations import permute, positions_first, with_leaves
from subspaces_jax.connecting.pieces import Fit, Move, Piece
from subspaces_jax.connecting.simultaneous import joint_samples, move_of, reading_slots, writing_slots
from subspaces_jax.networks import axes
from subspaces_jax.networks.axes import AxisTable

PyTree = Any


@dataclasses.dataclass(frozen=True, eq=False)
class StepWise:
    """What both kinds of paths take.

    Attributes:
        params_a, params_b: two networks of one feed-forward architecture without BatchNorm.
        table: their axis table.
        features: of the data that weights are adjusted on; the butterfly of one hidden layer needs none.
        interpolation, num_components: the connect method, as in `simultaneous`.
        transport: whether the units of b are matched to those of a.
        reference: whether to do as the paper's code does, see the top of this file.
        bias: whether biases are fitted together with the kernels that are adjusted; else they stay as they are until
            their units move, as in the paper.
        floor, ridge: as in `adjustment.solve`. Features that barely vary in some directions need a ridge, 1e-3 for
            example: plain least squares fits them with weights so large that the butterfly is lost between its ends.
    """

    params_a: PyTree
    params_b: PyTree
    table: AxisTable
    features: Features | None = None
    interpolation: str = "linear"
    num_components: int | None = None
    transport: bool = False
    reference: bool = False
    bias: bool = False
    floor: float = adjustment.FLOOR
    ridge: float = 0.0

    def __post_init__(self):
        check_same(self.params_a, self.params_b)
        axes.units(self.table, self.params_a)
        layers_of(self.table)
        by_name(self.interpolation, self.num_components)
        if self.bias and not any(self._fitted(layer)[1:] for layer in layers_of(self.table)[1:]):
            raise ValueError("bias=True fits biases, and no layer that weights are adjusted in has one: leave it out")
        if self.reference:
            object.__setattr__(self, "floor", 0.0)
        if self.reference and self.features is not None:
            object.__setattr__(self, "features", self.features._replace(patches="coarse", every=2))

    def butterfly(self) -> Path:
        """The path of L - 1 pieces."""
        layers, reached = layers_of(self.table), trees.leaf_names(self.params_b)
        hats, ranks = self._adjusted(layers[:-1])
        before, pieces, permutations = trees.leaf_names(self.params_a), [], {}
        for here, after in zip(layers[:-1], layers[1:]):
            last, moved, hats_moved = after is layers[-1], reached, hats
            if self.transport:
                slots = writing_slots(here, self._shapes) + reading_slots(after, self._shapes)
                aims = reached | ({} if last else self._hat(hats, after))
                order = self._order(here, slots, before, aims)
                moved, hats_moved = self._permuted(reached, hats, here, after, order)
                permutations |= {here.units: order}
            end = before | {name: moved[name] for name in (here.kernel, *here.vectors)}
            end |= {after.kernel: moved[after.kernel]} if last else self._hat(hats_moved, after)
            if last and not (self.reference and self._convolutional):
                end |= {name: moved[name] for name in after.vectors}
            names = [here.kernel, *here.vectors, *(after.vectors if last else self._fitted(after)[1:])]
            pieces.append(self._piece(before, end, [*map(self._move, names), self._move_read(after)]))
            if self.reference and not last:  # back to the units' own order
                own = {name: reached[name] for name in (here.kernel, *here.vectors)}
                before, permutations = end | own | self._hat(hats, after), {}
            else:
                before, reached, hats = end, moved, hats_moved
        return Path(tuple(pieces), permutations, ranks)

    def weight_adjusted(self) -> Path:
        """The path of L pieces."""
        layers, reached = layers_of(self.table), trees.leaf_names(self.params_b)
        hats, ranks = self._adjusted(layers)
        before, pieces, permutations = trees.leaf_names(self.params_a), [], {}
        for number, (here, after) in enumerate(zip(layers[:-1], layers[1:])):
            moved, hats_moved = reached, hats
            if self.transport:
                slots = writing_slots(here, self._shapes)
                slots = slots[:1] if self.reference and not self._convolutional else slots
                order = self._order(here, slots, before, reached)
                moved, hats_moved = self._permuted(reached, hats, here, after, order)
                permutations |= {here.units: order}
            end = before | {name: moved[name] for name in (here.kernel, *here.vectors)}
            end |= self._hat(hats_moved, after)
            moves = list(map(self._move, (here.kernel, *here.vectors)))
            if after is not layers[-1] and not self.reference:
                following = layers[number + 2]
                settled = self._fit(following)
                end |= settled.named(settled.solve(self._network(end)))
                moves += [self._move(name)._replace(method=METHODS["linear"]) for name in settled.leaves]
            fit = self._fit(after, exact=not self.reference, determined=self.reference or number > 0)
            pieces.append(self._piece(before, end, moves, fit))
            if self.reference:  # back to the units' own order
                own = {name: reached[name] for name in (here.kernel, *here.vectors)}
                before, permutations = end | own | self._hat(hats, after), {}
            else:
                before, reached, hats = end, moved, hats_moved
        if not (self.reference and self._convolutional):
            names = (layers[-1].kernel, *layers[-1].vectors)
            end = before | {name: reached[name] for name in names}
            pieces.append(self._piece(before, end, list(map(self._move, names))))
        return Path(tuple(pieces), permutations, ranks)

    def _adjusted(self, layers: tuple[Layer, ...]) -> tuple[dict[str, jax.Array], dict[str, tuple[int, int]]]:
        """W^ of all layers but the first, and the ranks of the features that they are adjusted to."""
        if layers[1:] and not isinstance(self.features, Features):
            raise ValueError("weights are adjusted on data: pass features=Features(layer_inputs(module), images)")
        if layers[1:] and (scales := [leaf for leaf in self.table if leaf.endswith("/scale")]):
            raise ValueError(f"weights are adjusted in networks without BatchNorm, this one has {scales[0]}")
        fits = {layer.name: self._fit(layer) for layer in layers[1:]}
        found = {name: fit.solve(self.params_b) for name, fit in fits.items()}
        ranks = {name: (adjusted.rank, adjusted.size) for name, adjusted in found.items()}
        return {leaf: value for name, fit in fits.items() for leaf, value in fit.named(found[name]).items()}, ranks

    def _fitted(self, layer: Layer) -> tuple[str, ...]:
        """The leaves of a layer that are adjusted."""
        bias = f"{layer.name}/bias"
        return (layer.kernel, *((bias,) if self.bias and bias in layer.vectors else ()))

    def _hat(self, hats: Mapping[str, jax.Array], layer: Layer) -> dict[str, jax.Array]:
        """W^ of one layer."""
        return {name: hats[name] for name in self._fitted(layer)}

    def _fit(self, layer: Layer, exact: bool = True, determined: bool = True) -> Fit:
        leaves, names = trees.leaf_names(self.params_a), self._fitted(layer)
        kernel, bias = leaves[layer.kernel], leaves[names[1]] if names[1:] else None
        of_data = (self.features, self.floor, self.ridge)
        return Fit(names, layer.name, kernel, bias, self.params_a, *of_data, exact, determined)

    def _order(self, layer: Layer, slots: tuple, leaves_a: Mapping, leaves_b: Mapping) -> np.ndarray:
        num = self._shapes[layer.kernel][-1]
        where = self.features and self.features.where
        samples_a, samples_b = (joint_samples(leaves, slots, num) for leaves in (leaves_a, leaves_b))
        return match(samples_a, samples_b, where)

    def _permuted(
        self, reached: dict, hats: dict, here: Layer, after: Layer, order: np.ndarray
    ) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """Network b with the units of one layer in another order, and W^ of the layer that reads them."""
        assert here.units is not None, "the last layer stays as it is"
        moved = trees.leaf_names(permute(self._network(reached), self.table, {here.units: order}))
        if after.kernel not in hats:
            return moved, hats
        hat = np.asarray(hats[after.kernel])
        return moved, hats | {after.kernel: np.take(hat, positions_first(order, hat.shape[-2]), axis=-2)}

    def _piece(self, start: dict, end: dict, moves: list[Move], fit: Fit | None = None) -> Piece:
        return Piece(self._network(start), self._network(end), tuple(moves), fit)

    def _network(self, leaves: Mapping[str, Any]) -> PyTree:
        return with_leaves(self.params_a, leaves)

    def _move(self, name: str) -> Move:
        return move_of(name, self._shapes[name], by_name(self.interpolation, self.num_components))

    def _move_read(self, layer: Layer) -> Move:
        """The kernel of a layer by the units that it reads."""
        units = next(axis for axis in self.table[layer.kernel][:-1] if axis is not None).removeprefix(axes.FLATTENED)
        num = axes.units(self.table, self.params_a)[units]
        return Move(reading_slots(layer, self._shapes), num, by_name(self.interpolation, self.num_components))

    @property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: leaf.shape for name, leaf in trees.leaf_names(self.params_a).items()}

    @property
    def _convolutional(self) -> bool:
        return any(len(shape) > 2 for shape in self._shapes.values())


def butterfly(*given: Any, **options: Any) -> Path:
    """The butterfly path; with transport that of matched units. Arguments as of `StepWise`."""
    return StepWise(*given, **options).butterfly()


def weight_adjusted(*given: Any, **options: Any) -> Path:
    """The path of weights adjusted at every point; with transport that of matched units. Arguments as of `StepWise`."""
    return StepWise(*given, **options).weight_adjusted()


# what calls by name are checked against
butterfly.__signature__ = weight_adjusted.__signature__ = inspect.signature(StepWise)  # type: ignore[attr-defined]  # as functools does it
