"""SABR and CURE training on MNIST, certified against l_inf and l_2.

    python examples/train_mnist.py --output runs/mnist
"""

import argparse
import sys

from lirpa_multinorm.cli import add_data_arguments, add_set_arguments, add_train_arguments, run_training
from lirpa_multinorm.training import Schedule, TrainConfig

DEFAULTS = TrainConfig(epochs=70, batch_size=256, learning_rate=5e-4, milestones=(50, 60), l1=1e-5,
                       loss_options={"ratio_inf": 0.4}, schedule=Schedule(natural_epochs=1, anneal_epochs=20))

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_arguments(parser, "mnist")
    add_set_arguments(parser, eps_inf=0.1, eps_2=0.5)
    add_train_arguments(parser, "cnn_small", DEFAULTS)
    sys.exit(run_training(parser.parse_args()))
