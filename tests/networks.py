"""Small networks and inputs that tests of several folders share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lirpa_multinorm.models import Normalize


def pixels(*shape: int, seed: int = 0, beyond: float = 0.2, dtype=torch.float32) -> Tensor:
    """Images of which some pixels stand at the ends of [0, 1], so that clip acts."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(*shape, generator=generator, dtype=dtype)
    return (x * (1 + 2 * beyond) - beyond).clamp(0, 1)


@torch.no_grad()
def with_parameters(model: nn.Module, *values) -> nn.Module:
    """The model in eval mode with these parameters, in order; a number fills its tensor."""
    for parameter, value in zip(model.parameters(), values):
        parameter.copy_(torch.as_tensor(value))
    return model.eval()


# --- of single inputs -----------------------------------------------------------------------------


class Single(nn.Module):
    """Its reshape names a batch of one."""

    def __init__(self, body: nn.Sequential) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.reshape(1, self.body[0].in_features))


class Merging(Single):
    """Takes any batch, and returns one row whatever came."""

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.reshape(1, -1)[:, : self.body[0].in_features])


# --- flat ones ------------------------------------------------------------------------------------


def dense(*widths: int) -> nn.Sequential:
    """Linear layers of these widths with ReLUs between them, on flattened inputs."""
    layers: list[nn.Module] = [nn.Flatten()]
    for width, following in zip(widths, widths[1:]):
        layers += [nn.Linear(width, following), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Skip(nn.Module):
    """Layers with a sum around them."""

    def __init__(self, *layers: nn.Module, share: float = 1.0) -> None:
        super().__init__()
        self.layers, self.share = nn.Sequential(*layers), share

    def forward(self, x: Tensor) -> Tensor:
        return self.share * x + self.layers(x)


# --- of images (2, 4, 4), three classes -----------------------------------------------------------


def linear() -> nn.Sequential:
    model = dense(32, 3)
    nn.init.normal_(model[1].bias)  # so that some margins are large beside the radii
    return model


def mlp() -> nn.Sequential:
    return dense(32, 12, 8, 3)


def conv() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=1, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 3, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(12, 3),
    )


class Negative(Normalize):
    """The colours inverted."""

    def forward(self, x: Tensor) -> Tensor:
        return -super().forward(x)


def normalized_conv() -> nn.Sequential:
    return nn.Sequential(Normalize([0.4, 0.5], [0.2, 0.3]), *conv())


def flipped_conv() -> nn.Sequential:
    """A normalisation with a negative scale."""
    return nn.Sequential(Negative([0.4, 0.5], [0.2, 0.3]), *conv())


def batch_norm_conv() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16, 6),
        nn.BatchNorm1d(6),
        nn.ReLU(),
        nn.Linear(6, 3),
    )


def skips() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1),
        nn.ReLU(),
        Skip(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 3, 1)),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(48, 5),
        nn.ReLU(),
        nn.Linear(5, 3),
    )


def max_pool() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1),
        nn.LeakyReLU(0.1),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(12, 5),
        nn.ReLU(),
        nn.Linear(5, 3),
    )


def in_float64(make) -> nn.Sequential:
    """A network in float64 whose BatchNorm layers have scales of both signs."""
    model = make().double()
    for layer in model:
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.normal_(layer.weight)
            nn.init.normal_(layer.bias)
    return model
