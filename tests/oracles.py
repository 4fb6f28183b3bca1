"""The formulas, written out one example and one entry at a time."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def trainable(model):
    return [p for p in model.parameters() if p.requires_grad]


def flat(gradients, parameters):
    pieces = zip(gradients, parameters, strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).reshape(-1) for g, p in pieces])


def logits_of(model, examples, row):
    batch = examples.take([row])
    return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits, batch["labels"]


def loss_gradient(model, examples, row):
    """grad L(z) of one example, without padding, by plain autograd."""
    logits, labels = logits_of(model, examples, row)
    loss = F.cross_entropy(logits, labels)
    return flat(torch.autograd.grad(loss, trainable(model), allow_unused=True), trainable(model))


def loss_gradients(model, examples, rows=None):
    rows = range(len(examples)) if rows is None else rows
    return torch.stack([loss_gradient(model, examples, row) for row in rows])


def gauss_newton(model, examples, rows=None):
    """1/N sum J^T (diag(p) - p p^T) J, for cross entropy."""
    rows = range(len(examples)) if rows is None else rows
    parameters = trainable(model)
    total = 0
    for row in rows:
        logits, _ = logits_of(model, examples, row)
        jacobian = torch.stack(
            [
                flat(torch.autograd.grad(output, parameters, retain_graph=True, allow_unused=True), parameters)
                for output in logits[0]
            ]
        )
        p = logits[0].softmax(-1).detach()
        total = total + jacobian.T @ (p.diag() - p.outer(p)) @ jacobian
    return total / len(rows)


def hessian(model, examples, rows=None):
    """d2 / d theta2 of the mean loss, row by row."""
    rows = range(len(examples)) if rows is None else rows
    parameters = trainable(model)
    loss = sum(F.cross_entropy(*logits_of(model, examples, row)) for row in rows) / len(rows)
    gradient = flat(torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True), parameters)
    return torch.stack(
        [
            flat(torch.autograd.grad(entry, parameters, retain_graph=True, materialize_grads=True), parameters)
            for entry in gradient
        ]
    )
