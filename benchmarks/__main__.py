"""`python -m benchmarks counted|timed|micro|cpu|peer`, from the repository's root."""

import sys

from benchmarks.command import main
from diffpref.cli import report_errors

if __name__ == "__main__":
    sys.exit(report_errors(main, sys.argv[1:]))
