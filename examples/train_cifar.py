"""SABR and CURE training on CIFAR-10, certified against l_inf and l_2.

Usage:
    python examples/train_cifar.py --output runs/cifar10
    python examples/train_cifar.py --output runs/part --data images.npz --model cnn_small --epochs 5
    python examples/train_cifar.py --output runs/ours --preset cifar10-union-2_255-0.25
"""

import sys

from lirpa_multinorm.cli import run_example
from lirpa_multinorm.experiments.presets import load_preset

if __name__ == "__main__":
    sys.exit(run_example(__doc__, load_preset("cifar10-2_255-0.25-max").settings()))
