"""`accelerate launch -m diffpref.train --config FILE [--key value ...]`: the same as `diffpref train`.

This file only runs. Imported as a module it would take the place of the function `diffpref.train`.
"""

import sys

if __name__ == "diffpref.train":
    raise ImportError("diffpref.train is a command, and in Python a function: from diffpref import train.")

if __name__ == "__main__":
    from diffpref.cli import report_errors
    from diffpref.training.command import main

    sys.exit(report_errors(main, sys.argv[1:]))
