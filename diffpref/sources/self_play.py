"""Self-play (DDO, Zheng et al. 2025, section 4 and appendix C): real images against the reference's own samples.

Each round freezes the reference, samples from it, trains real against fake, and takes the step that measured best as
the next round's reference. The optimizer starts again each time; everything is float32, for the loss is a difference of
nearly equal numbers.
"""

import json
from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from accelerate import Accelerator
from annotated_types import Ge

from diffpref.data.images import read_images
from diffpref.evaluate.measure import find_measure
from diffpref.files import atomic
from diffpref.probes import Batch
from diffpref.run.done import finished, is_done
from diffpref.sources.claim import claim
from diffpref.sources.fakes import Fakes
from diffpref.sources.measured import Measured
from diffpref.training.rounds import Basis, Gives, Round

HISTORY = "self_play.json"


@dataclass(frozen=True)
class SelfPlay:
    """Learn to tell real images from the reference's own samples, in rounds."""

    rounds: Annotated[int, Ge(1)] = 1
    """Rounds of self-play, each from the best of the last."""
    samples_per_round: Annotated[int, Ge(0)] = 0
    """The reference's own samples in a round; 0 means one for each real image."""
    measure: str = ""
    """What chooses the best step of a round: fashion_frechet, or module:function of (images, prompts), where lower is
    better. Without it the last step is taken."""
    measure_samples: Annotated[int, Ge(2)] = 2000
    """Samples for each measurement, taken every `validation_steps`."""

    @property
    def gives(self) -> Gives:
        """A real image and a fake one for each prompt."""
        return Gives(batch=Batch, forms=("real_fake",))

    def check(self, basis: Basis) -> None:
        """Raise ValueError for settings that cannot work."""
        if not basis.data.dataset_name:
            raise ValueError("DDO needs real images: set dataset_name to a folder, a file or a data set on the hub.")
        if basis.run.mixed_precision != "no":
            raise ValueError(
                f"DDO needs float32, its log-ratio is a difference of nearly equal numbers, got mixed_precision "
                f"{basis.run.mixed_precision}: set mixed_precision: no."
            )
        if basis.data.random_flip:
            raise ValueError(
                "DDO's fakes are not mirrored, and a mirrored real image would give itself away: set random_flip: "
                "false."
            )
        if self.rounds > 1 and basis.adapter.added:
            raise ValueError(
                "each round of self-play replaces the reference, which LoRA cannot: set adapter: full, or rounds: 1."
            )
        if basis.run.resume_from_checkpoint not in (None, "latest"):
            raise ValueError("rounds go on from where they were: leave resume_from_checkpoint out.")

    def each_round(self, basis: Basis, settings: Mapping[str, object]) -> Generator[Round, None, Path]:
        """Every round; a killed run goes on where it was when it is started again.

        `self_play.json` in the output directory has a line for each round: the measure at each step and the best one.
        A round that does not improve ends the game; what is returned is the folder with the best weights."""
        data, run = basis.data, basis.run
        real = read_images(
            data.dataset_name, split=data.dataset_split, max_rows=data.max_train_samples, on_bad_row=data.on_bad_row
        )
        measure = find_measure(self.measure, "cpu") if self.measure else None
        accelerator = Accelerator(mixed_precision="no")
        fresh = run.overwrite_output_dir and run.resume_from_checkpoint is None
        out = claim(run.output_dir, settings, overwrite=fresh, main=accelerator.is_main_process)
        accelerator.wait_for_everyone()
        basis.say(real.summary())
        # Fakes of all rounds lie beside the real images.
        basis = replace(basis, data=replace(data, cache_dir=data.cache_dir or run.output_dir / "cache"))
        best: Path | None = None
        history = _read_history(out)
        for number in range(1, self.rounds + 1):
            this, folder = basis.round(number).after(best), out / f"round-{number}"
            if len(history) < number:
                basis.say(f"round {number} of {self.rounds}")
                # Killed between a round's end and its line in the history: nothing is left to train.
                if not is_done(this.run.output_dir):
                    watch = (
                        Measured(this, real, self.measure, measure, self.measure_samples, folder) if measure else None
                    )
                    fakes = Fakes(this, real, number, self.samples_per_round or len(real))
                    yield Round(basis=this, summary=fakes.summary(), encode=fakes.encode, watch=watch)
                accelerator.wait_for_everyone()
                history.append(_result(folder, number))
                if accelerator.is_main_process:
                    atomic.write_json(out / HISTORY, {"rounds": history})
            last, best = best, out / str(history[number - 1]["best"])
            if _no_better(history[number - 1]):
                basis.say(f"round {number} did not improve {self.measure}: the game ends here")
                return last or best
        return best or out

    def result(self, output: Path) -> Path:
        """The best weights of the last round that improved, or of the round that is named."""
        history = _read_history(output)
        if len(history) > 1 and _no_better(history[-1]):
            del history[-1]
        if not history:
            return finished(output, [output])
        return output / str(history[-1]["best"])


def _no_better(entry: dict[str, Any]) -> bool:
    """Whether a round's best is what it started from."""
    values = entry["measures"]
    return bool(values) and min(values.values()) >= values["0"]


def _read_history(out: Path) -> list[dict[str, Any]]:
    path = out / HISTORY
    return json.loads(path.read_text())["rounds"] if path.is_file() else []


def _result(folder: Path, number: int) -> dict[str, Any]:
    # From the file: the measuring runs in the main process alone, and all must go on from the same weights.
    kept = folder / "measures.json"
    measures: dict[str, float] = json.loads(kept.read_text()) if kept.is_file() else {}
    step = min(measures, key=measures.__getitem__) if measures else None
    best = f"{folder.name}/{'best' if measures else 'train'}"
    return {"round": number, "measures": measures, "best_step": None if step is None else int(step), "best": best}
