"""Natural, SABR and CURE training on scikit-learn's handwritten digits, certified against l_inf and l_2.

    python examples/train_digits.py --output runs/digits
"""

import argparse
import sys

from lirpa_multinorm.cli import add_data_arguments, add_set_arguments, add_train_arguments, run_training
from lirpa_multinorm.training import Schedule, TrainConfig

DEFAULTS = TrainConfig(epochs=40, batch_size=64, learning_rate=2e-3, milestones=(30, 36),
                       loss_options={"ratio_inf": 0.6}, schedule=Schedule(natural_epochs=2, anneal_epochs=15))

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_arguments(parser, "digits")
    add_set_arguments(parser, eps_inf=0.1, eps_2=0.4)
    add_train_arguments(parser, "cnn_small", DEFAULTS)
    sys.exit(run_training(parser.parse_args()))
