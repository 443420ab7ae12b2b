"""Specification matrices: which differences of logits are bounded."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InvalidArgumentError
from ..utils.deferred import labels_checked, note_labels


def check_labels(
    labels: Tensor, num_classes: int, batch: int, device: torch.device | None = None
) -> None:
    """Raise InvalidArgumentError unless labels are integers (batch,), in range, on the device."""
    if not isinstance(labels, Tensor) or labels.dtype not in (
        torch.int64,
        torch.int32,
        torch.uint8,
        torch.int16,
    ):
        actual = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise InvalidArgumentError(
            f"labels must be an integer tensor, found {actual}; convert with labels.long()"
        )
    if labels.shape != (batch,):
        raise InvalidArgumentError(
            f"labels has shape {tuple(labels.shape)}; expected ({batch},), one class per input"
        )
    if device is not None and labels.device != device:
        raise InvalidArgumentError(
            f"labels is on {labels.device}, the inputs on {device}; move it with "
            f"labels.to('{device}')"
        )
    if not labels.numel() or labels_checked(labels, num_classes):
        return
    # Not deferred: a label out of range would end the process on a GPU where it is used.
    least, most = torch.stack(torch.aminmax(labels)).tolist()
    if not 0 <= least <= most < num_classes:
        raise InvalidArgumentError(
            f"labels run from {least} to {most}; the model has "
            f"{num_classes} outputs, so they must lie in 0 to {num_classes - 1}"
        )
    note_labels(labels, num_classes)


def margin_matrix(labels: Tensor, num_classes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return C with ``C f(x) = f_y - f_k`` for every class k other than the label y, k rising.

    Args:
        labels: True classes, shape (B,), integer.
        num_classes: K.
        dtype: Type of the result.

    Returns:
        C of shape (B, K - 1, K), as the host's ``compute_bounds`` takes it.

    Raises:
        InvalidArgumentError: labels of a wrong type, shape or range.

    Example:
        >>> margin_matrix(torch.tensor([1]), 3)
        tensor([[[-1.,  1.,  0.],
                 [ 0.,  1., -1.]]])
    """
    batch = labels.shape[0] if isinstance(labels, Tensor) and labels.ndim else 1
    check_labels(labels, num_classes, batch)
    labels = labels.long()
    eye = torch.eye(num_classes, dtype=dtype, device=labels.device)
    rivals = torch.arange(num_classes - 1, device=labels.device).expand(len(labels), -1)
    rivals = rivals + (rivals >= labels.unsqueeze(1))
    return eye[labels].unsqueeze(1) - eye[rivals]
