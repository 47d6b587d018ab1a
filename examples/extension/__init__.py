"""One small member of each axis, from outside the package: what the pages "Add a ..." of the documentation show."""
