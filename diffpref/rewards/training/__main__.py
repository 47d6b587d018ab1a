"""`accelerate launch -m diffpref.rewards.training --config FILE [--key value]`: the same as `diffpref reward train`."""

import sys

from diffpref.cli import report_errors
from diffpref.rewards.training.command import train

if __name__ == "__main__":
    sys.exit(report_errors(train, sys.argv[1:]))
