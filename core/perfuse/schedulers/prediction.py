"""What the model's output means: noise, clean sample, velocity or flow.

With a sample x = alpha * x0 + sigma * epsilon, each is a combination of x and the output.
The velocity is v = alpha * epsilon - sigma * x0 (Salimans & Ho 2022).
"""

from __future__ import annotations

from .linear import OUT, Linear, X

__all__ = ["PREDICTIONS", "epsilon_of", "x0_of"]

PREDICTIONS = ("epsilon", "sample", "v_prediction")


def x0_of(prediction_type: str, alpha: float, sigma: float) -> Linear:
    """The clean sample."""
    if prediction_type == "epsilon":
        return (X - sigma * OUT) / alpha
    if prediction_type == "v_prediction":
        return alpha * X - sigma * OUT
    if prediction_type == "flow_prediction":  # v = epsilon - x0, and alpha + sigma = 1
        return X - sigma * OUT
    return OUT


def epsilon_of(prediction_type: str, alpha: float, sigma: float) -> Linear:
    """The noise."""
    if prediction_type == "sample":
        return (X - alpha * OUT) / sigma
    if prediction_type == "v_prediction":
        return alpha * OUT + sigma * X
    return OUT
