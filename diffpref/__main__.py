"""`python -m diffpref` is the `diffpref` command."""

import sys

from diffpref.cli import main

sys.exit(main())
