"""When the alarms of every run ring: drift, spent margins, few pairs too often, held-out images that get worse."""

import pytest
import torch
from accelerate import Accelerator

from diffpref.training.alarms import Drifted, NotGeneral, Repeated, Spent, alarms_of
from diffpref.training.health import COLUMNS
from diffpref.training.meter import Meter

WELL = {"saturated": 0.1, "epoch": 1.0, "error/chosen/ratio": 0.98, "error/rejected/ratio": 1.02}


@pytest.mark.parametrize(
    ("drift", "rings"), [(1.008, False), (1.068, False), (1.3, False), (1.31, True), (1.812, True)]
)
def test_drift_rings_above_its_limit_alone(drift: float, rings: bool) -> None:
    text, _ = Drifted()({**WELL, "drift": drift}, {})
    assert (text is not None) == rings
    assert text is None or (f"{drift:.2f} times" in text and "learning_rate" in text and "max_train_steps" in text)


def test_without_a_measurement_there_is_no_drift() -> None:
    assert Drifted()(WELL, {}) == (None, {})


def test_one_summary_of_a_pair_or_two_is_not_yet_spent() -> None:
    alarm, kept, texts = Spent(), {}, []
    for share in (0.0, 1.0, 1.0, 0.0):
        text, kept = alarm({**WELL, "saturated": share}, kept)
        texts.append(text)
    # From 0: 0.5 is the limit, 0.75 is above it, 0.375 below.
    assert [text is not None for text in texts] == [False, False, True, False]
    assert texts[2] is not None and "75%" in texts[2] and "5 nats" in texts[2]


@pytest.mark.parametrize(("groups", "epoch", "rings"), [(48, 10.0, False), (48, 10.1, True), (500, 90.0, False)])
def test_few_pairs_too_often(groups: int, epoch: float, rings: bool) -> None:
    text, kept = Repeated(groups)({**WELL, "epoch": epoch}, {})
    assert (text is not None) == rings
    assert text is None or "48 pairs" in text
    assert Repeated(groups)({**WELL, "epoch": epoch + 1}, kept) == (None, kept) or not rings, "it is said once"


@pytest.mark.parametrize(("held", "trained", "rings"), [(1.2, 0.9, True), (1.2, 1.1, False), (1.05, 0.9, False)])
def test_images_learned_by_heart(held: float, trained: float, rings: bool) -> None:
    metrics = {**WELL, "heldout/error/chosen/ratio": held, "error/chosen/ratio": trained}
    text, _ = NotGeneral()(metrics, {})
    assert (text is not None) == rings
    assert NotGeneral()({**WELL, "error/chosen/ratio": trained}, {})[0] is None, "no row was held out"


def test_a_meter_gives_every_alarm_its_own_line_and_memory() -> None:
    def meter() -> Meter:
        accelerator = Accelerator(cpu=True)
        return Meter(accelerator=accelerator, time_fraction=lambda t: t, beta=1.0, alarms=alarms_of(groups=48))

    first, ruined = meter(), {**WELL, "drift": 1.8, "saturated": 0.9, "epoch": 53.0}
    text = first.trouble(ruined)
    assert text is not None
    assert [line.partition(":")[0] for line in text.splitlines()] == ["Drift", "Spent", "Repetition"]
    resumed = meter()
    resumed.restore(first.pending() | {"tables": torch.zeros(1, len(COLUMNS) + 1)})
    again = resumed.trouble(ruined)
    assert again is not None and "Repetition" not in again, "it was said before the checkpoint"
