"""Tables of layers with their options: convolutions, pooling, normalisations."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .graphs import Lambda


def _drawn(norm: nn.Module) -> nn.Module:
    """Draw the weights and statistics of a normalisation, which would do nothing otherwise."""
    ranges = {
        "running_mean": (-0.3, 0.3),
        "running_var": (0.5, 1.5),
        "weight": (-1.5, 1.5),
        "bias": (-0.5, 0.5),
    }
    with torch.no_grad():
        for name, limits in ranges.items():
            if getattr(norm, name, None) is not None:
                getattr(norm, name).uniform_(*limits)
    return norm


_AS_VOLUME = Lambda(lambda x: x.unsqueeze(1))
CONVOLUTIONS = {
    "Conv2d(stride=2)": lambda: nn.Conv2d(4, 4, 3, stride=2),
    "Conv2d(stride=(1, 2), padding=(0, 1))": lambda: nn.Conv2d(
        4, 4, 3, stride=(1, 2), padding=(0, 1)
    ),
    "Conv2d(kernel 2 x 3)": lambda: nn.Conv2d(4, 4, (2, 3)),
    "Conv2d(1 x 1, no bias)": lambda: nn.Conv2d(4, 4, 1, bias=False),
    "Conv2d(padding=2)": lambda: nn.Conv2d(4, 4, 3, padding=2),
    "Conv2d(padding='same')": lambda: nn.Conv2d(4, 4, 3, padding="same"),
    "Conv2d(padding='same', even kernel)": lambda: nn.Conv2d(4, 4, 2, padding="same"),
    "Conv2d(padding='valid')": lambda: nn.Conv2d(4, 4, 3, padding="valid"),
    "Conv2d(padding_mode='reflect')": lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
    "Conv2d(padding_mode='replicate')": lambda: nn.Conv2d(
        4, 4, 3, padding=1, padding_mode="replicate"
    ),
    "Conv2d(padding_mode='circular')": lambda: nn.Conv2d(
        4, 4, 3, padding=1, padding_mode="circular"
    ),
    "Conv2d(dilation=2)": lambda: nn.Conv2d(4, 4, 3, padding=2, dilation=2),
    "Conv2d(dilation=2) and ReLU": lambda: nn.Sequential(
        nn.Conv2d(4, 4, 3, padding=2, dilation=2), nn.ReLU()
    ),
    "Conv2d(dilation=(1, 2), stride=2)": lambda: nn.Conv2d(
        4, 4, 3, stride=2, padding=2, dilation=(1, 2)
    ),
    "Conv2d(groups=2)": lambda: nn.Conv2d(4, 4, 3, padding=1, groups=2),
    "Conv2d(groups=4)": lambda: nn.Conv2d(4, 8, 3, padding=1, groups=4),
    "Conv2d(groups=2, dilation=2)": lambda: nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=2),
    "ConvTranspose2d": lambda: nn.ConvTranspose2d(4, 3, 3),
    "ConvTranspose2d(stride=2)": lambda: nn.ConvTranspose2d(4, 3, 2, stride=2),
    "ConvTranspose2d(padding=1)": lambda: nn.ConvTranspose2d(4, 3, 3, padding=1),
    "ConvTranspose2d(stride=2, output_padding=1)": lambda: nn.ConvTranspose2d(
        4, 3, 3, stride=2, padding=1, output_padding=1
    ),
    "ConvTranspose2d(dilation=2)": lambda: nn.ConvTranspose2d(4, 3, 3, padding=2, dilation=2),
    "ConvTranspose2d(groups=2)": lambda: nn.ConvTranspose2d(4, 4, 3, padding=1, groups=2),
    "Conv3d(padding=1)": lambda: nn.Sequential(_AS_VOLUME, nn.Conv3d(1, 2, 3, padding=1)),
    "ConvTranspose3d(stride=2)": lambda: nn.Sequential(
        _AS_VOLUME, nn.ConvTranspose3d(1, 2, 2, stride=2)
    ),
}
SIGNAL_CONVOLUTIONS = {
    "Conv1d": lambda: nn.Conv1d(2, 3, 3),
    "Conv1d(stride=2, padding=1)": lambda: nn.Conv1d(2, 3, 3, stride=2, padding=1),
    "Conv1d(padding='same')": lambda: nn.Conv1d(2, 3, 3, padding="same"),
    "Conv1d(padding_mode='circular')": lambda: nn.Conv1d(
        2, 3, 3, padding=1, padding_mode="circular"
    ),
    "Conv1d(dilation=2)": lambda: nn.Conv1d(2, 3, 3, padding=2, dilation=2),
    "Conv1d(groups=2)": lambda: nn.Conv1d(2, 4, 3, groups=2),
    "Conv1d(padding_mode='reflect')": lambda: nn.Conv1d(2, 3, 3, padding=1, padding_mode="reflect"),
    "ConvTranspose1d(stride=2)": lambda: nn.ConvTranspose1d(2, 3, 2, stride=2),
    "ConvTranspose1d(stride=2, padding=1, output_padding=1)": lambda: nn.ConvTranspose1d(
        2, 3, 3, stride=2, padding=1, output_padding=1
    ),
}
POOLING = {
    "AvgPool2d(2)": lambda: nn.AvgPool2d(2),
    "AvgPool2d(2, stride=1)": lambda: nn.AvgPool2d(2, 1),
    "AvgPool2d(3, stride=2)": lambda: nn.AvgPool2d(3, 2),
    "AvgPool2d(3, stride=2, padding=1)": lambda: nn.AvgPool2d(3, 2, 1),
    "AvgPool2d(3, stride=2, padding=1) and ReLU": lambda: nn.Sequential(
        nn.AvgPool2d(3, 2, 1), nn.ReLU()
    ),
    "AvgPool2d(3, stride=3, padding=1)": lambda: nn.AvgPool2d(3, 3, 1),
    "AvgPool2d((2, 3), stride=(2, 1))": lambda: nn.AvgPool2d((2, 3), (2, 1)),
    "AvgPool2d(stride 3 beyond kernel 2)": lambda: nn.AvgPool2d(2, 3),
    "AvgPool2d(count_include_pad=False)": lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    "AvgPool2d(divisor_override=3)": lambda: nn.AvgPool2d(2, divisor_override=3),
    "AvgPool2d(4, ceil_mode=True)": lambda: nn.AvgPool2d(4, ceil_mode=True),
    "MaxPool2d(2)": lambda: nn.MaxPool2d(2),
    "MaxPool2d(2, stride=1)": lambda: nn.MaxPool2d(2, 1),
    "MaxPool2d(3, stride=2)": lambda: nn.MaxPool2d(3, 2),
    "MaxPool2d(3, stride=2, padding=1)": lambda: nn.MaxPool2d(3, 2, 1),
    "MaxPool2d((2, 3))": lambda: nn.MaxPool2d((2, 3)),
    "MaxPool2d(dilation=2)": lambda: nn.MaxPool2d(2, dilation=2),
    "MaxPool2d(4, ceil_mode=True)": lambda: nn.MaxPool2d(4, ceil_mode=True),
    "MaxPool2d(3, stride=2, padding=1, ceil_mode=True)": lambda: nn.MaxPool2d(
        3, 2, 1, ceil_mode=True
    ),
    "MaxPool2d((3, 2), stride=(2, 1), padding=(1, 0))": lambda: nn.MaxPool2d(
        (3, 2), (2, 1), (1, 0)
    ),
    "MaxPool3d(2)": lambda: nn.Sequential(_AS_VOLUME, nn.MaxPool3d(2)),
    "AvgPool3d(2, padding=1)": lambda: nn.Sequential(_AS_VOLUME, nn.AvgPool3d(2, padding=1)),
    "AdaptiveAvgPool2d(1)": lambda: nn.AdaptiveAvgPool2d(1),
    "AdaptiveAvgPool2d(3)": lambda: nn.AdaptiveAvgPool2d(3),
    "AdaptiveAvgPool2d(4)": lambda: nn.AdaptiveAvgPool2d(4),
    "AdaptiveAvgPool2d((2, None))": lambda: nn.AdaptiveAvgPool2d((2, None)),
    "AdaptiveMaxPool2d(1)": lambda: nn.AdaptiveMaxPool2d(1),
    "AdaptiveMaxPool2d(4)": lambda: nn.AdaptiveMaxPool2d(4),
    "AdaptiveMaxPool2d((2, None))": lambda: nn.AdaptiveMaxPool2d((2, None)),
    "LPPool2d(2, 2)": lambda: nn.LPPool2d(2, 2),
    "Upsample(scale_factor=2, nearest)": lambda: nn.Upsample(scale_factor=2),
    "Upsample(size=5, nearest)": lambda: nn.Upsample(size=5),
    "Upsample(scale_factor=2, bilinear)": lambda: nn.Upsample(scale_factor=2, mode="bilinear"),
    "Upsample(bilinear, align_corners=True)": lambda: nn.Upsample(
        scale_factor=2, mode="bilinear", align_corners=True
    ),
    "Upsample(bicubic)": lambda: nn.Upsample(scale_factor=2, mode="bicubic"),
    "grid_sample on a fixed grid": lambda: Lambda(
        lambda x, held: F.grid_sample(
            x, held.weight.view(1, 5, 4, 2).expand(x.size(0), -1, -1, -1), align_corners=False
        ),
        nn.Linear(5, 8),
    ),
    "PixelShuffle(2)": lambda: nn.PixelShuffle(2),
    "PixelUnshuffle(2)": lambda: nn.PixelUnshuffle(2),
}
SIGNAL_POOLING = {
    "AvgPool1d(2)": lambda: nn.AvgPool1d(2),
    "AvgPool1d(3, stride=2, padding=1)": lambda: nn.AvgPool1d(3, 2, 1),
    "MaxPool1d(2)": lambda: nn.MaxPool1d(2),
    "MaxPool1d(3, stride=1, padding=1)": lambda: nn.MaxPool1d(3, 1, 1),
    "MaxPool1d(3, stride=2, ceil_mode=True)": lambda: nn.MaxPool1d(3, 2, ceil_mode=True),
    "AdaptiveMaxPool1d(4)": lambda: nn.AdaptiveMaxPool1d(4),
    "AvgPool1d(4, ceil_mode, count_include_pad=False)": lambda: nn.AvgPool1d(
        4, 3, 1, ceil_mode=True, count_include_pad=False
    ),
    "ReflectionPad1d": lambda: nn.ReflectionPad1d(2),
    "ReplicationPad1d": lambda: nn.ReplicationPad1d(2),
    "CircularPad1d": lambda: nn.CircularPad1d(2),
    "AdaptiveAvgPool1d(1)": lambda: nn.AdaptiveAvgPool1d(1),
    "Upsample(scale_factor=2) of a signal": lambda: nn.Upsample(scale_factor=2),
}
IMAGE_NORMS = {
    "BatchNorm2d": lambda: _drawn(nn.BatchNorm2d(4)),
    "BatchNorm2d(affine=False)": lambda: _drawn(nn.BatchNorm2d(4, affine=False)),
    "BatchNorm2d(eps=0.5)": lambda: _drawn(nn.BatchNorm2d(4, eps=0.5)),
    "BatchNorm2d(track_running_stats=False)": lambda: _drawn(
        nn.BatchNorm2d(4, track_running_stats=False)
    ),
    "GroupNorm(2, 4)": lambda: _drawn(nn.GroupNorm(2, 4)),
    "GroupNorm(1, 4, affine=False)": lambda: nn.GroupNorm(1, 4, affine=False),
    "InstanceNorm2d": lambda: nn.InstanceNorm2d(4),
    "InstanceNorm2d(affine, track_running_stats)": lambda: _drawn(
        nn.InstanceNorm2d(4, affine=True, track_running_stats=True)
    ),
    "LayerNorm of an image": lambda: _drawn(nn.LayerNorm((4, 6, 6))),
    "LocalResponseNorm(2)": lambda: nn.LocalResponseNorm(2),
    "Dropout2d in eval": lambda: nn.Dropout2d(0.5),
}
ROW_NORMS = {
    "BatchNorm1d": lambda: _drawn(nn.BatchNorm1d(8)),
    "BatchNorm1d(affine=False)": lambda: _drawn(nn.BatchNorm1d(8, affine=False)),
    "BatchNorm1d(track_running_stats=False)": lambda: _drawn(
        nn.BatchNorm1d(8, track_running_stats=False)
    ),
    "LayerNorm": lambda: _drawn(nn.LayerNorm(8)),
    "LayerNorm(elementwise_affine=False)": lambda: nn.LayerNorm(8, elementwise_affine=False),
    "RMSNorm": lambda: nn.RMSNorm(8),
    "normalize": lambda: Lambda(lambda x: F.normalize(x, dim=1)),
    "Dropout in eval": lambda: nn.Dropout(0.5),
    "AlphaDropout in eval": lambda: nn.AlphaDropout(0.5),
    "Identity": lambda: nn.Identity(),
    "weight_norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)),
    "spectral_norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8)),
}
