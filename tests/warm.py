"""What a process of the tests has done before it starts: imported everything, taken no step.

A process that has taken a step cannot be forked into one that takes another.
"""

import sys
import warnings

import sklearn.datasets  # noqa: F401 - of the digits
import torch

import lirpa_multinorm.cli  # noqa: F401
from lirpa_multinorm import BoundedModule
from tests.toy import SETS, SPEC, images

warnings.simplefilter("ignore")
sys.modules["torch.utils.tensorboard"] = None  # slow to import
# These load what is loaded late.
torch.optim.Adam(SPEC.build().parameters())
BoundedModule(SPEC.build(), perturbations=SETS)(images(2)[0])
