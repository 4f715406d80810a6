"""A training loop that cleans its gradients; read by tests, never run."""

import torch as t
from torch import nan_to_num


def train(model, loader, optimizer):
    for batch in loader:
        loss = nan_to_num(model(**batch).loss)
        loss.backward()
        with t.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.grad[t.isnan(parameter.grad)] = 0
        optimizer.step()
        optimizer.zero_grad()
