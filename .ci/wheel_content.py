"""Exits with an error where a wheel lacks what a run needs, or holds what only the repository needs."""

import sys
import zipfile

NEEDED = (
    "diffpref/py.typed",
    "diffpref/report/templates/page.html",
    "diffpref/people/page.html",
    "diffpref/counting/counts.json",
    "diffpref/_embedded/configs/tiny-sdxl/dpo.yaml",
    "diffpref/_embedded/assets/tiny-sdxl/model_index.json",
)
ONLY_HERE = ("benchmarks/", "tests/", "examples/", "docs/", "diffpref/bench/")

if __name__ == "__main__":
    names = zipfile.ZipFile(sys.argv[1]).namelist()
    lacking = [name for name in NEEDED if name not in names]
    extra = [name for name in names if name.startswith(ONLY_HERE)]
    if lacking or extra:
        sys.exit(f"{sys.argv[1]} lacks {lacking} and should not hold {extra[:5]}.")
    print(f"{sys.argv[1]}: {len(names)} files, as they should be")
