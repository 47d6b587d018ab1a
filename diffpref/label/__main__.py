"""`python -m diffpref.label --config FILE`: the same as `diffpref label`."""

import sys

from diffpref.cli import report_errors
from diffpref.label.command import main

if __name__ == "__main__":
    sys.exit(report_errors(main, sys.argv[1:]))
