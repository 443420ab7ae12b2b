"""Training: settings, schedules, checkpoints and a thin loop."""

from .checkpoint import Checkpoint, load_checkpoint, load_weights, save_checkpoint
from .config import ModelSpec, TrainConfig
from .loop import train
from .schedule import Schedule, smooth_ramp

__all__ = ["Checkpoint", "ModelSpec", "Schedule", "TrainConfig", "load_checkpoint", "load_weights", "save_checkpoint",
           "smooth_ramp", "train"]
