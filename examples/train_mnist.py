"""SABR and CURE training on MNIST, certified against l_inf and l_2.

Usage:
    python examples/train_mnist.py --output runs/mnist
    python examples/train_mnist.py --output runs/ours --preset mnist-0.3-1.0-scratch --device cuda
    torchrun --nproc_per_node 2 examples/train_mnist.py --output runs/mnist --losses Max
"""

import sys

from lirpa_multinorm.cli import run_example
from lirpa_multinorm.experiments.presets import load_preset
from lirpa_multinorm.experiments.settings import merge

DEFAULTS = merge(load_preset("mnist-0.1-0.5-max").settings(), {"model": {"name": "cnn_small"}})

if __name__ == "__main__":
    sys.exit(run_example(__doc__, DEFAULTS))
