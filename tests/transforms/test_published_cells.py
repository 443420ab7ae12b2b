"""Ten thousand transforms of each column of the paper's tables, in cells of up to eight widths."""

import pytest
import torch

from lirpa_multinorm.perturbations.paper_transforms import paper_transforms
from lirpa_multinorm.transforms import PARAMETERS, exact_range, linear_forms, transformed
from tests.transforms.cases import drawn

CELLS, POINTS = 20, 500
COLUMNS = [
    (data, column) for data, count in (("mnist", 4), ("cifar10", 3)) for column in range(count)
]


def image(data):
    """Return a blob with sharp and smooth edges, black around it on MNIST."""
    generator = torch.Generator().manual_seed(0)
    channels, size = (1, 28) if data == "mnist" else (3, 32)
    small = torch.rand(1, channels, 7, 7, generator=generator)
    large = torch.nn.functional.interpolate(small, (size, size), mode="nearest")
    places = torch.arange(size) - (size - 1) / 2
    inside = places.view(-1, 1) ** 2 + places**2 < (0.35 * size) ** 2
    return large * inside if data == "mnist" else large


@pytest.mark.parametrize("times", [1, 8])
@pytest.mark.parametrize(("data", "column"), COLUMNS)
def test_no_transform_lies_outside(data, column, times):
    transforms, x = paper_transforms(data)[column], image(data)
    lower, upper = transforms.box(x)
    width = torch.tensor([times * transforms.splits.get(name, 1e9) for name in PARAMETERS])
    width = torch.minimum(width, upper - lower)
    generator = torch.Generator().manual_seed(column)
    for cell in range(CELLS):
        share = (
            torch.rand(7, generator=generator).round()
            if cell < 4
            else torch.rand(7, generator=generator)
        )
        start = (lower + share * (upper - lower - width)).unsqueeze(0)
        end = start + width
        points, kappa = drawn(start, end, POINTS, cell)
        values = transformed(x.expand(POINTS, -1, -1, -1), points)
        exact, forms = exact_range(x, start, end), linear_forms(x, start, end, transforms.active)
        assert (values >= exact.lower).all() and (values <= exact.upper).all()
        value = forms.center + torch.einsum(
            "np,pchw->nchw", kappa[:, transforms.active], forms.generators[0]
        )
        assert ((values - value).abs() <= forms.radius).all()
        assert (values >= forms.lower).all() and (values <= forms.upper).all()
