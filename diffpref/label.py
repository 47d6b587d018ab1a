"""`python -m diffpref.label --config FILE [--key value ...]`: the same as `diffpref label`.

This file only runs. Imported as a module it would take the place of the function `diffpref.label`.
"""

import sys

if __name__ == "diffpref.label":
    raise ImportError("diffpref.label is a command, and in Python a function: from diffpref import label.")

if __name__ == "__main__":
    from diffpref.cli import report_errors
    from diffpref.labelling.command import main

    sys.exit(report_errors(main, sys.argv[1:]))
