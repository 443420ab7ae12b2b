"""SABR and CURE training on CIFAR-10, certified against l_inf and l_2.

python examples/train_cifar.py --output runs/cifar10
python examples/train_cifar.py --output runs/part --data images.npz --model cnn_small --epochs 5
python examples/train_cifar.py --output runs/scratch --preset cifar10-8_255-0.5-scratch --device
cuda
"""

import sys

from lirpa_multinorm.cli import run_example
from lirpa_multinorm.experiments.presets import load_preset

if __name__ == "__main__":
    sys.exit(run_example(__doc__, load_preset("cifar10-2_255-0.25-max").settings()))
