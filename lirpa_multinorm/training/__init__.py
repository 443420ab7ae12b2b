"""Training: settings, schedules, checkpoints and a thin loop."""

from .checkpoint import Checkpoint, initial_weights, load_checkpoint, load_weights, save_checkpoint
from .config import ModelSpec, TrainConfig
from .loop import train
from .projection import Projection, merge_epochs, project_update
from .schedule import Schedule, smooth_ramp

__all__ = [
    "Checkpoint",
    "ModelSpec",
    "Projection",
    "Schedule",
    "TrainConfig",
    "initial_weights",
    "load_checkpoint",
    "load_weights",
    "merge_epochs",
    "project_update",
    "save_checkpoint",
    "smooth_ramp",
    "train",
]
