"""metrics.jsonl of a run, whose lines a resumed run continues."""

import json
from pathlib import Path

from diffpref.files import atomic


class MetricsLog:
    """metrics.jsonl: one line for each summary, whole lines only; on resume, later lines of the old run are dropped."""

    def __init__(self, path: Path, first_step: int) -> None:
        self.path = path
        kept = []
        for line in path.read_text().splitlines() if path.exists() else []:
            try:
                if json.loads(line)["step"] <= first_step:
                    kept.append(line)
            except (json.JSONDecodeError, KeyError):
                continue
        atomic.write_text(path, "".join(line + "\n" for line in kept))

    def write(self, step: int, metrics: dict[str, float], alarm: str | None, **words: str) -> None:
        """Append one summary; `words` are entries that are no numbers."""
        record: dict[str, object] = {"step": step, **metrics, **words}
        if alarm:
            record["alarm"] = alarm
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
