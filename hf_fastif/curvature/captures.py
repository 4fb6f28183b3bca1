"""Inputs and output gradients of layers in one pass of a batch: the two halves of the gradients of single examples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.func import functional_call, vjp, vmap
from torch.nn.functional import pad

from hf_fastif.curvature.layers import Layer, recorded
from hf_fastif.model import Batch, Objective


Directions = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
STRIP_MEMORY = 1 << 30  # bytes for the gradients of single examples that exist at once


@dataclass(frozen=True)
class LinearCapture:
    """A linear layer: the gradient of its weight for one example is sum_t g_t x_t^T over the tokens t.

    Attributes:
        layer (`Layer`): The layer.
        inputs (`torch.Tensor` of shape `(B, T, inputs)`): x.
        gradients (`torch.Tensor` of shape `(r, B, T, outputs)`): g, for each of r directions of the model's outputs.
    """

    layer: Layer
    inputs: torch.Tensor
    gradients: torch.Tensor

    @property
    def nbytes(self) -> int:
        """Return the memory of the capture in bytes."""
        return self.inputs.nbytes + self.gradients.nbytes

    @property
    def num_inputs(self) -> int:
        """Return the number of inputs of the layer."""
        return self.inputs.shape[-1]

    @property
    def num_outputs(self) -> int:
        """Return the number of outputs of the layer."""
        return self.gradients.shape[-1]

    def rows(self, outputs: slice = slice(None)) -> dict[str, torch.Tensor]:
        """Return the gradients (r, B, *shape) of single examples, by parameter, for all or some outputs."""
        g = self.gradients[..., outputs]
        weight = torch.einsum("bti,rbto->rbio" if self.layer.transposed else "rbto,bti->rboi", *self._ordered(g))
        return dict(zip(self.layer.names, (weight, g.sum(dim=2)), strict=False))

    def matrices(self, outputs: slice = slice(None)) -> torch.Tensor:
        """Return the gradients (r, B, outputs, inputs) of the weight for single examples, for all or some outputs."""
        return torch.einsum("rbto,bti->rboi", self.gradients[..., outputs], self.inputs)

    def strips(self) -> Iterator[slice]:
        """Yield slices of the outputs, each as wide as fits into `STRIP_MEMORY`."""
        directions, examples = self.gradients.shape[:2]
        width = max(1, STRIP_MEMORY // (directions * examples * self.num_inputs * self.inputs.element_size()))
        for start in range(0, self.num_outputs, width):
            yield slice(start, start + width)

    def along(self, vectors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the products (Q, r, B) of the gradients of single examples with vectors (Q, *shape), by parameter."""
        weight = vectors[self.layer.names[0]]
        if len(weight) > 1:
            return sum(self._rows_along(vectors, outputs) for outputs in self.strips())
        # For a single vector, forming rows costs more than it saves.
        images = self.inputs @ (weight[0] if self.layer.transposed else weight[0].mT)
        total = (images * self.gradients).sum(dim=(2, 3))[None]
        if len(self.layer.names) == 2:
            total += torch.einsum("qo,rbto->qrb", vectors[self.layer.names[1]], self.gradients)
        return total

    def squares(self, weights: torch.Tensor | None = None) -> torch.Tensor:
        """Return sum_k w_k g_k^2 (r, B) over the entries k of each example's weight gradient g; w = 1 by default."""
        tokens, size = self.inputs.shape[1], self.num_inputs * self.num_outputs
        if weights is None and tokens * (self.num_inputs + self.num_outputs) < size:
            # ||sum_t g_t x_t^T||^2 = sum_ts (x_t . x_s) (g_t . g_s)
            products = self.gradients @ self.gradients.mT
            return products.mul_(self.inputs @ self.inputs.mT).sum(dim=(2, 3))
        total = self.gradients.new_zeros(self.gradients.shape[:2])
        for outputs in self.strips():
            squares = self.matrices(outputs).square_()
            total += (squares if weights is None else squares.mul_(weights[outputs])).sum(dim=(2, 3))
        return total

    def as_matrix(self) -> LinearCapture:
        """Return the capture of `Layer.to_matrix`, in which the bias, if there is one, has an input of 1."""
        if len(self.layer.names) == 1:
            return self
        ones = torch.ones_like(self.inputs[..., :1])
        return LinearCapture(self.layer, torch.cat([self.inputs, ones], dim=-1), self.gradients)

    def rotated(self, output_basis: torch.Tensor, input_basis: torch.Tensor | None = None) -> LinearCapture:
        """Return the capture with outputs and inputs in other orthonormal bases, which are given as columns."""
        inputs = self.inputs if input_basis is None else self.inputs @ input_basis
        return LinearCapture(self.layer, inputs, self.gradients @ output_basis)

    def _rows_along(self, vectors: Mapping[str, torch.Tensor], outputs: slice) -> torch.Tensor:
        total = 0
        for name, rows in self.rows(outputs).items():
            by_row = name == self.layer.names[0] and not self.layer.transposed
            piece = vectors[name][:, outputs] if by_row else vectors[name][..., outputs]
            total = total + piece.flatten(1) @ rows.flatten(0, 1).flatten(1).T
        return total.unflatten(1, self.gradients.shape[:2])

    def _ordered(self, g: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return (self.inputs, g) if self.layer.transposed else (g, self.inputs)


@dataclass(frozen=True)
class EmbeddingCapture:
    """An embedding: the gradient of its table for one example is sum_t e(id_t) g_t^T over the tokens t.

    Attributes:
        layer (`Layer`): The layer.
        ids (`torch.Tensor` of shape `(B, T)`): The rows of the table that were looked up.
        gradients (`torch.Tensor` of shape `(r, B, T, size)`): g, for each of r directions of the model's outputs.
    """

    layer: Layer
    ids: torch.Tensor
    gradients: torch.Tensor

    def at_rows(self, rows: torch.Tensor) -> LinearCapture:
        """Return the capture of some rows (t,) of the table, as a linear layer whose inputs are one-hot."""
        one_hot = (self.ids[..., None] == rows).to(self.gradients)
        return LinearCapture(self.layer, one_hot, self.gradients)

    def along(self, vectors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the products (Q, r, B) of the gradients of single examples with vectors (Q, *shape), by parameter."""
        tables = vectors[self.layer.names[0]]
        return torch.stack([torch.einsum("bth,rbth->rb", table[self.ids], self.gradients) for table in tables])

    def squares(self, weights: Mapping[str, torch.Tensor] | None = None) -> torch.Tensor:
        """Return sum_k w_k g_k^2 (r, B) over the entries k of each example's gradient g; w = 1 by default."""
        same = (self.ids[:, :, None] == self.ids[:, None]).to(self.gradients)
        products = self.gradients * torch.einsum("bts,rbsh->rbth", same, self.gradients)
        if weights is not None:
            products = products * weights[self.layer.names[0]][self.ids]
        return products.sum(dim=(2, 3))


@dataclass(frozen=True)
class TiedCapture:
    """An embedding whose table is the weight of a linear layer too: its gradient is the sum of those of both uses.

    Attributes:
        layer (`Layer`): The layer.
        lookup ([`EmbeddingCapture`]): The use as an embedding.
        output ([`LinearCapture`]): The use as a linear layer, whose outputs are the rows of the table.
    """

    layer: Layer
    lookup: EmbeddingCapture
    output: LinearCapture

    @property
    def nbytes(self) -> int:
        """Return the memory of the capture in bytes."""
        return self.lookup.gradients.nbytes + self.output.nbytes

    def at_rows(self, rows: torch.Tensor) -> TiedRows:
        """Return the capture of some rows (t,) of the table."""
        return TiedRows(self.lookup.at_rows(rows), self.output.inputs, self.output.gradients[..., rows])

    def squares(self) -> torch.Tensor:
        """Return the squared norm (r, B) of each example's gradient."""
        # The product of the two parts is sum_ts (g_t . x_s) G_s[id_t] over the places t and s of the two uses.
        products = self.lookup.gradients @ self.output.inputs.mT
        ids = self.lookup.ids[None, :, None].expand(*self.output.gradients.shape[:3], -1)
        both = (products * self.output.gradients.gather(3, ids).mT).sum(dim=(2, 3))
        return self.lookup.squares() + self.output.squares() + 2 * both


@dataclass(frozen=True)
class TiedRows:
    """Some rows (t,) of a tied table: gradients (r, B, size, t) of single examples, as a linear layer has them.

    Attributes:
        lookup ([`LinearCapture`]): The use as an embedding, at these rows.
        states (`torch.Tensor` of shape `(B, S, size)`): The inputs of the linear layer.
        gradients (`torch.Tensor` of shape `(r, B, S, t)`): The gradients of its outputs at these rows.
    """

    lookup: LinearCapture
    states: torch.Tensor
    gradients: torch.Tensor

    def rotated(self, output_basis: torch.Tensor) -> TiedRows:
        """Return the capture with the columns of the table in another orthonormal basis."""
        return TiedRows(self.lookup.rotated(output_basis), self.states @ output_basis, self.gradients)

    def strips(self) -> Iterator[slice]:
        """Yield slices of the columns, each as wide as fits into `STRIP_MEMORY`."""
        return self.lookup.strips()

    def matrices(self, outputs: slice = slice(None)) -> torch.Tensor:
        """Return the gradients (r, B, columns, t) for single examples, for all or some columns."""
        of_output = torch.einsum("bsh,rbst->rbht", self.states[..., outputs], self.gradients)
        return self.lookup.matrices(outputs) + of_output


@dataclass(frozen=True)
class LeafCapture:
    """Any other layer, such as a norm, with the gradients (r, B, *shape) of single examples already computed."""

    layer: Layer
    gradients: dict[str, torch.Tensor]

    num_inputs = num_outputs = 1  # not split into strips

    def as_matrix(self) -> LinearCapture:
        """Return the capture of `Layer.to_matrix`: its only row is sum_t g_t x_t, with one t per direction."""
        rows = torch.cat([self.gradients[name].flatten(2) for name in self.layer.names], dim=-1)
        count, size = rows.shape[:2]
        directions = torch.eye(count).to(rows)[:, None, :, None].expand(-1, size, -1, -1)
        return LinearCapture(self.layer, rows.transpose(0, 1), directions)

    @property
    def nbytes(self) -> int:
        """Return the memory of the capture in bytes."""
        return sum(gradients.nbytes for gradients in self.gradients.values())

    def rows(self, _outputs: slice = slice(None)) -> dict[str, torch.Tensor]:
        """Return the gradients (r, B, *shape) of single examples, by parameter."""
        return self.gradients

    def along(self, vectors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the products (Q, r, B) of the gradients of single examples with vectors (Q, *shape), by parameter."""
        return sum(
            torch.einsum("qk,rbk->qrb", vectors[name].flatten(1), g.flatten(2)) for name, g in self.gradients.items()
        )

    def squares(self, weights: Mapping[str, torch.Tensor] | None = None) -> torch.Tensor:
        """Return sum_k w_k g_k^2 (r, B) over the entries k of each example's gradient g; w = 1 by default."""
        squares = {name: g.square() for name, g in self.gradients.items()}
        return sum((g if weights is None else g * weights[name]).flatten(2).sum(dim=2) for name, g in squares.items())


TableCapture = EmbeddingCapture | TiedCapture
Capture = LinearCapture | TableCapture | LeafCapture


def capture_layers(
    objective: Objective, batch: Batch, layers: list[Layer], directions: Directions
) -> Iterator[Capture]:
    """Run a batch forward, and backward from r directions of its outputs; yield the capture of each layer.

    If the examples share the input of some layer, they run one by one.

    Args:
        objective (`Objective`): The model.
        batch (`dict`): B examples.
        layers (`list[Layer]`): Layers that `captured_layers` returned.
        directions (`Callable`): From outputs (B, ..., C) and labels to directions (r, B, ..., C), such as
            `GaussNewton.output_roots`.
    """
    if any(layer.common for layer in layers) and len(objective.labels(batch)) > 1:
        singles = (
            {name: values[i : i + 1] for name, values in batch.items()} for i in range(len(objective.labels(batch)))
        )
        parts = [list(capture_layers(objective, single, layers, directions)) for single in singles]
        yield from (_side_by_side(same) for same in zip(*parts, strict=True))
        return
    model = objective.model
    if not layers:
        return
    labels, uses = objective.labels(batch), [use for layer in layers for use in layer.uses]
    with torch.enable_grad(), recorded(model, uses, objective.head.rows(batch)) as calls:
        logits = objective.logits(objective.theta, batch)
    outputs = [call.outputs for use in uses for call in calls[use]]
    cotangents = directions(logits.detach(), labels)
    gradients = iter(_output_gradients(logits, outputs, cotangents))
    makers = {"linear": _linear_capture, "embedding": _embedding_capture, "other": _leaf_capture}
    for layer in layers:
        parts = []
        for use in layer.uses:
            pairs = [(call.inputs.detach(), next(gradients)) for call in calls[use]]
            parts.append(makers[use.kind](model, use, pairs, len(labels)))
        yield TiedCapture(layer, *parts) if layer.kind == "tied" else parts[0]


def _output_gradients(
    logits: torch.Tensor, outputs: list[torch.Tensor], cotangents: torch.Tensor
) -> list[torch.Tensor]:
    """Return the gradients (r, *shape) of r combinations of the logits with respect to the outputs of layers.

    Each direction takes one backward pass, which ends at the first of these layers.
    """
    passes = [
        torch.autograd.grad(logits, outputs, direction, retain_graph=number + 1 < len(cotangents), allow_unused=True)
        for number, direction in enumerate(cotangents)
    ]
    return [
        torch.stack([torch.zeros_like(output) if g is None else g for g in gradients]).to(logits.dtype)
        for output, gradients in zip(outputs, zip(*passes, strict=True), strict=True)
    ]


def _side_by_side(singles: Sequence[LinearCapture | LeafCapture]) -> LinearCapture | LeafCapture:
    """Join the captures of single examples in one layer into that of their batch."""
    first = singles[0]
    if isinstance(first, LeafCapture):
        names = first.gradients
        return LeafCapture(first.layer, {n: torch.cat([part.gradients[n] for part in singles], dim=1) for n in names})
    longest = max(part.inputs.shape[1] for part in singles)

    def padded(tokens: torch.Tensor) -> torch.Tensor:
        return pad(tokens, (0, 0, 0, longest - tokens.shape[-2]))

    inputs = torch.cat([padded(part.inputs) for part in singles])
    return LinearCapture(first.layer, inputs, torch.cat([padded(part.gradients) for part in singles], dim=1))


def loss_captures(objective: Objective, batch: Batch, layers: list[Layer]) -> Iterator[Capture]:
    """Yield the captures for the gradients of the losses of single examples: r = 1."""
    return capture_layers(
        objective, batch, layers, lambda *outputs: loss_gradients_of_outputs(objective, *outputs)[None]
    )


def loss_gradients_of_outputs(objective: Objective, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the gradients (B, ..., C) of the losses of single examples with respect to their outputs."""
    outputs = logits.detach().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(objective.losses_of_logits(outputs, labels).sum(), outputs)[0]


Pairs = list[tuple[torch.Tensor, torch.Tensor]]


def _linear_capture(_model: nn.Module, layer: Layer, pairs: Pairs, size: int) -> LinearCapture:
    # Several calls, or several rows per example, count as more tokens; inputs without tokens count as one token.
    x = torch.cat([x.unflatten(0, (size, -1)).flatten(1, -2) for x, _ in pairs], dim=1)
    g = torch.cat([g.unflatten(1, (size, -1)).flatten(2, -2) for _, g in pairs], dim=2)
    # Padding gets no gradient; above an encoder's last attention, only the first token gets one.
    alive = g.abs().amax(dim=(0, 1, 3)) != 0
    return LinearCapture(layer, x[:, alive].to(g), g[:, :, alive])


def _embedding_capture(model: nn.Module, layer: Layer, pairs: Pairs, size: int) -> EmbeddingCapture:
    ids = torch.cat([ids.unflatten(0, (size, -1)).flatten(1) for ids, _ in pairs], dim=1)
    g = torch.cat([g.unflatten(1, (size, -1)).flatten(2, -2) for _, g in pairs], dim=2)
    padding = model.get_submodule(layer.module).padding_idx
    return EmbeddingCapture(layer, ids, g if padding is None else g * (ids != padding)[..., None])


def _leaf_capture(model: nn.Module, layer: Layer, pairs: Pairs, size: int) -> LeafCapture:
    module = model.get_submodule(layer.module)
    trained = {name.rpartition(".")[2] for name in layer.names}
    dtype = pairs[0][1].dtype
    values = {name: p.detach().to(dtype) for name, p in module.named_parameters()}
    parameters = {name: p for name, p in values.items() if name in trained}

    def of_example(x, g):
        back = vjp(lambda theta: functional_call(module, values | theta, (x,)), parameters)[1]
        return vmap(lambda direction: back(direction)[0])(g)

    split = [(x.to(g).unflatten(0, (size, -1)), g.unflatten(1, (size, -1))) for x, g in pairs]
    parts = [vmap(of_example, in_dims=(0, 1), out_dims=1)(x, g) for x, g in split]
    return LeafCapture(layer, {name: sum(part[name.rpartition(".")[2]] for part in parts) for name in layer.names})
