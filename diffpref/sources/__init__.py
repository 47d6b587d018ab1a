"""Sources: where a run's groups come from; one choice a file."""

SOURCES: dict[str, type | str] = {
    "dataset": "diffpref.sources.dataset:Dataset",
    "on_policy": "diffpref.sources.on_policy:OnPolicy",
    "self_play": "diffpref.sources.self_play:SelfPlay",
}
"""The names in a config. Your own needs no line here: `source: my_file.py:Name`."""
