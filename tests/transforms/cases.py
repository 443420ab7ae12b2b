"""Images, boxes of parameters, and transforms drawn from them."""

import torch

from lirpa_multinorm.transforms import IDENTITY

#: Half of the widest range of each parameter in the cases.
WIDEST = (40.0, 3.0, 3.0, 0.4, 0.5, 0.4, 0.3)


def case(seed, dtype=torch.float32):
    """Return (images, lower, upper, active) of a random box; images have black and white parts."""
    generator = torch.Generator().manual_seed(seed)
    height, width = torch.randint(1, 12, (2,), generator=generator).tolist()

    def uniform(*shape):
        return torch.rand(*shape, generator=generator, dtype=dtype)

    images = (uniform(1, 2, height, width) * 1.6 - 0.3).clamp(0, 1)
    active = [index for index in range(7) if uniform(1) > 0.5] or [seed % 7]
    lower = torch.tensor([IDENTITY], dtype=dtype)
    upper, size = lower.clone(), float(10 ** (-2.5 * uniform(1)))
    for index in active:
        middle, half = (2 * uniform(1) - 1) * WIDEST[index], uniform(1) * WIDEST[index] * size
        lower[0, index] += float(middle - half)
        upper[0, index] += float(middle + half)
    for end in (lower, upper):
        end[:, 3].clamp_(min=0.3)
    return images, lower, upper, [index for index in active if upper[0, index] > lower[0, index]]


def drawn(lower, upper, count, seed=0):
    """Return parameters (count, 7) of a box and their kappa in [-1, 1]: corners and others."""
    generator = torch.Generator().manual_seed(seed)
    kappa = 2 * torch.rand(count, 7, generator=generator, dtype=lower.dtype) - 1
    kappa[: count // 3] = kappa[: count // 3].sign()
    return (lower + upper) / 2 + kappa * (upper - lower) / 2, kappa
