"""YAML files and command lines to typed values and back."""
