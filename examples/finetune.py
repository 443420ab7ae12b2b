"""CURE-Finetune: make a network certified for one norm robust in the union of l_inf and l_2.

Usage:
    python examples/finetune.py runs/digits/sabr_l_inf/checkpoint.pt --output runs/finetuned
    python examples/finetune.py w.pt --data mnist --model cnn7 --eps-inf 0.1 --eps-2 0.5 --output y
"""

import sys

from lirpa_multinorm.cli import finetune_example

if __name__ == "__main__":
    sys.exit(finetune_example(__doc__))
