"""Natural, SABR and CURE training on scikit-learn's handwritten digits, certified against l_inf and l_2.

    python examples/train_digits.py --output runs/digits
"""

import sys

from lirpa_multinorm.cli import run_example
from lirpa_multinorm.training import Schedule, TrainConfig

DEFAULTS = TrainConfig(epochs=40, batch_size=64, learning_rate=2e-3, milestones=(30, 36),
                       loss_options={"ratio_inf": 0.6}, schedule=Schedule(natural_epochs=2, anneal_epochs=15))

if __name__ == "__main__":
    sys.exit(run_example(__doc__, "digits", 0.1, 0.4, "cnn_small", DEFAULTS))
