"""SABR and CURE training on CIFAR-10, certified against l_inf and l_2.

    python examples/train_cifar.py --output runs/cifar10
    python examples/train_cifar.py --output runs/part --data images.npz --model cnn_small --epochs 5
"""

import sys

from lirpa_multinorm.cli import run_example
from lirpa_multinorm.training import Schedule, TrainConfig

DEFAULTS = TrainConfig(epochs=160, batch_size=128, learning_rate=5e-4, milestones=(120, 140), l1=1e-6, augment=True,
                       loss_options={"ratio_inf": 0.1}, schedule=Schedule(natural_epochs=1, anneal_epochs=80))

if __name__ == "__main__":
    sys.exit(run_example(__doc__, "cifar10", 2 / 255, 0.25, "cnn7", DEFAULTS))
