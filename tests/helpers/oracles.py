"""The formulas, written out one example and one entry at a time."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def trainable(model):
    return [p for p in model.parameters() if p.requires_grad]


def flat(gradients, parameters):
    partials = zip(gradients, parameters, strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).reshape(-1) for g, p in partials])


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


def jacobian(model, batch):
    """d f / d theta of the one example in a batch: a row for each output."""
    parameters = trainable(model)
    logits = model(**{name: value for name, value in batch.items() if name != "labels"}).logits[0]
    return torch.stack(
        [
            flat(torch.autograd.grad(output, parameters, retain_graph=True, allow_unused=True), parameters)
            for output in logits
        ]
    )


def softmax_hessian(logits):
    """d2 L / d f2 of the cross entropy of one example."""
    p = logits.softmax(-1)
    return p.diag() - p.outer(p)


def gauss_newton(model, examples, rows=None, output_hessian=softmax_hessian):
    """1/N sum J^T H J, H for cross entropy unless told."""
    rows = range(len(examples)) if rows is None else rows
    total = 0
    for row in rows:
        jac = jacobian(model, examples.take([row]))
        logits, _ = logits_of(model, examples, row)
        total = total + jac.T @ output_hessian(logits[0].detach()) @ jac
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
