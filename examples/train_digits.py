"""Natural, SABR and CURE training on scikit-learn's digits, certified against l_inf and l_2.

Usage:
    python examples/train_digits.py --output runs/digits
"""

import sys

from lirpa_multinorm.cli import DEFAULTS, run_example

if __name__ == "__main__":
    sys.exit(run_example(__doc__, DEFAULTS))
