"""l_inf-distance networks, whose outputs move no further than their inputs in l_inf."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real

import torch
from torch import Tensor, nn

from ..errors import InvalidArgumentError
from ..utils import distributed
from ..utils.distances import distances, exponent
from .normalize import Normalize

_IDENTITY = -10.0  # initial weight by which a neuron passes an input on


class LinfDistance(nn.Module):
    """Compute ``u_j = ||x - w_j||_p``, whose limit for p = inf is 1-Lipschitz in l_inf.

    Training begins with a small p, which has gradients in all weights, and ends with inf.

    Args:
        in_features: Number of inputs n.
        out_features: Number of outputs m.

    Raises:
        InvalidArgumentError: A number of features is not positive, or an input is not (B, n).

    Source: Zhang et al. 2021, "Towards Certifying l_inf Robustness using Neural Networks with
        l_inf-dist Neurons", sections 3 and 5; initial weights as in the code of Zhang et al. 2022,
        "Boosting the Certified Robustness of L-infinity Distance Nets".

    Example:
        >>> layer = LinfDistance(2, 1)
        >>> _ = nn.init.zeros_(layer.weight)
        >>> x = torch.tensor([[3.0, -4.0]])
        >>> layer(x).item(), layer.set_p(2)(x).item()
        (4.0, 5.0)
    """

    #: 1 / p, a buffer that a traced graph follows; it is 0 for inf, which no checkpoint may hold.
    inverse_p: Tensor

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        if min(in_features, out_features) < 1:
            raise InvalidArgumentError(
                f"in_features={in_features}, out_features={out_features}: a distance layer needs at"
                " least one input and one output"
            )
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.register_buffer("inverse_p", torch.zeros(()))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw weights from N(0, 1); a layer that does not shrink passes each input on."""
        self.weight.normal_()
        if self.in_features <= self.out_features:
            neurons = torch.arange(self.out_features, device=self.weight.device)
            self.weight[neurons, neurons % self.in_features] = _IDENTITY

    @property
    def p(self) -> float:
        """The exponent; 1 / p is kept in the type of the weights."""
        return exponent(self.inverse_p)

    def set_p(self, p: float) -> LinfDistance:
        """Set the exponent, at least 1 and up to inf; returns self."""
        if isinstance(p, bool) or not isinstance(p, Real) or not p >= 1:
            raise InvalidArgumentError(f"p={p!r} must be a number of at least 1, or math.inf")
        self.inverse_p.fill_(1 / float(p))
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Return the distances (B, m) of inputs (B, n)."""
        tracing = torch.jit.is_tracing()  # where sizes are tensors
        if not tracing and (x.ndim != 2 or x.shape[1] != self.in_features):
            raise InvalidArgumentError(
                f"x: shape {tuple(x.shape)} is not (B, {self.in_features}); flatten images first"
            )
        return distances(x, self.weight, self.inverse_p)

    def lipschitz_bound(self, norm: float) -> float:
        """Return how far outputs move at most where inputs move by 1, in l_inf, l_2 or l_1.

        Each output moves by no more than the input in l_p, which is at most ``n^(1/p - 1/norm)``
        times as long as in another norm, or as long.
        """
        growth = max(0.0, 1 / self.p - 1 / norm) if self.p < math.inf else 0.0
        return float(self.in_features**growth * self.out_features ** (1 / norm))

    def rounding_error(self, largest: Tensor, unit: float) -> Tensor:
        """Bound what rounding adds to outputs whose exact values are at most ``largest``.

        For p = inf a difference is rounded once, and nothing else.
        """
        return largest * (2 * unit if self.p == math.inf else math.inf)

    def extra_repr(self) -> str:
        """Return the sizes, which ``print(model)`` shows."""
        return f"in_features={self.in_features}, out_features={self.out_features}, p={self.p:g}"


class DistanceLogits(LinfDistance):
    """The last layer: logits ``b_k - ||x - w_k||_p``, large for the nearest class.

    Args:
        in_features: Number of inputs n.
        out_features: Number of classes K.

    Attributes:
        scale: A learnable number that a cross-entropy multiplies the logits with in training; the
            outputs are without it.

    Source: Zhang et al. 2022, section 4 (the scalar).
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.bias = nn.Parameter(torch.zeros(out_features))
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (B, K) of inputs (B, n)."""
        return self.bias - super().forward(x)

    def rounding_error(self, largest: Tensor, unit: float) -> Tensor:
        """Bound rounding; the distance behind an output is at most its value and the bias."""
        return super().rounding_error(2 * (largest + float(self.bias.detach().abs().max())), unit)


class MeanShift(nn.Module):
    """Subtract each feature's mean: the batch's in training, the running one in eval mode.

    Several processes take the mean of their joint batch. There is no scale, which would change the
    Lipschitz constant.

    Args:
        features: Number of features.
        momentum: Share of a batch's mean in the new running mean.

    Source: Zhang et al. 2021, section 5 (normalization).

    Example:
        >>> layer = MeanShift(1)
        >>> layer(torch.tensor([[1.0], [3.0]])).flatten(), layer.running_mean
        (tensor([-1.,  1.]), tensor([[0.2000]]))
    """

    running_mean: Tensor

    def __init__(self, features: int, momentum: float = 0.1) -> None:
        super().__init__()
        self.features, self.momentum = features, momentum
        # With an axis of examples, which the host 0.3 needs of what it subtracts.
        self.register_buffer("running_mean", torch.zeros(1, features))

    def forward(self, x: Tensor) -> Tensor:
        """Shift values (B, m)."""
        if not self.training:
            return x - self.running_mean
        mean = x.mean(0, keepdim=True)
        if distributed.is_active():
            mean = distributed.all_sum(x.sum(0, keepdim=True)) / distributed.all_sum(
                x.new_tensor(float(len(x)))
            )
        with torch.no_grad():
            self.running_mean.lerp_(mean.detach(), self.momentum)
        return x - mean

    def lipschitz_bound(self, norm: float) -> float:
        """Return 1; in training, where an output depends on the whole batch, infinity."""
        return math.inf if self.training else 1.0

    def rounding_error(self, largest: Tensor, unit: float) -> Tensor:
        """Bound what rounding adds to outputs whose exact values are at most ``largest``."""
        return 2 * unit * largest

    def extra_repr(self) -> str:
        """Return the number of features and the momentum."""
        return f"{self.features}, momentum={self.momentum:g}"


def linf_dist_mlp(
    in_shape: Sequence[int],
    num_classes: int,
    hidden: Sequence[int] = (5120, 5120, 5120, 5120),
    pool: int = 1,
    input_std: float = 1.0,
) -> nn.Sequential:
    """Build layers of l_inf distances with mean shifts between them, on the flattened image.

    Args:
        in_shape: Shape (C, H, W) of one image.
        num_classes: Number of outputs K.
        hidden: Units of the hidden layers.
        pool: Side of the squares of which the largest value is taken in front, which costs no
            Lipschitz constant and saves time; 1 takes all values. Rows and columns that fill no
            square are left out.
        input_std: Number that inputs are divided by first, so that initial weights and learning
            rate suit them; 0.3081 for MNIST in [0, 1] as published.

    Returns:
        A network from (B, C, H, W) to (B, K), with p = inf.

    Raises:
        InvalidArgumentError: The squares are larger than the image.

    Example:
        >>> model = linf_dist_mlp((1, 8, 8), 10, hidden=[32], pool=2)
        >>> print(*(type(layer).__name__ for layer in model))
        MaxPool2d Flatten LinfDistance MeanShift DistanceLogits
    """
    channels, height, width = in_shape
    layers: list[nn.Module] = [nn.Flatten()]
    if pool > min(height, width):
        raise InvalidArgumentError(
            f"pool={pool} is larger than the image, {height} x {width}; use a smaller one, or 1"
        )
    if pool > 1:
        layers.insert(0, nn.MaxPool2d(pool))
    if input_std != 1:
        layers.insert(0, Normalize([0.0] * channels, [input_std] * channels))
    features = channels * (height // pool) * (width // pool)
    for units in hidden:
        layers += [LinfDistance(features, units), MeanShift(units)]
        features = units
    return nn.Sequential(*layers, DistanceLogits(features, num_classes))
