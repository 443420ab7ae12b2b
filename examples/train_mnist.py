"""SABR and CURE training on MNIST, certified against l_inf and l_2.

    python examples/train_mnist.py --output runs/mnist
"""

import sys

from lirpa_multinorm.cli import run_example
from lirpa_multinorm.training import Schedule, TrainConfig

DEFAULTS = TrainConfig(epochs=70, batch_size=256, learning_rate=5e-4, milestones=(50, 60), l1=1e-5,
                       loss_options={"ratio_inf": 0.4}, schedule=Schedule(natural_epochs=1, anneal_epochs=20))

if __name__ == "__main__":
    sys.exit(run_example(__doc__, "mnist", 0.1, 0.5, "cnn_small", DEFAULTS))
