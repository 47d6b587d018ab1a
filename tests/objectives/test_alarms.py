"""When a method's alarm rings, what it says, and what it remembers."""

import pytest

from diffpref.objectives.alarms import NOTHING, Collapse, Saturation


def ratios(chosen: float, rejected: float) -> dict[str, float]:
    return {"error/chosen/ratio": chosen, "error/rejected/ratio": rejected}


def listen(*summaries: dict[str, float]) -> list[str | None]:
    """What the alarm says to each of the summaries in turn."""
    alarm, remembered, texts = Collapse(), NOTHING, []
    for summary in summaries:
        text, remembered = alarm(summary, remembered)
        texts.append(text)
    return texts


@pytest.mark.parametrize(("chosen", "rejected"), [(1.0, 1.0), (1.05, 1.5), (1.5, 1.05), (0.9, 30.0), (1.1, 1.1)])
def test_the_alarm_is_silent_while_one_side_is_well(chosen: float, rejected: float) -> None:
    assert listen(*[ratios(chosen, rejected)] * 20) == [None] * 20


def test_the_alarm_names_both_figures_and_the_remedies() -> None:
    (text,) = listen(ratios(1.23, 1.87))
    assert text is not None
    for part in ("1.23 times the reference's on chosen", "1.87 times on rejected"):
        assert part in text
    for remedy in ("earlier checkpoint", "lower learning_rate", "raise beta", "set anchor"):
        assert remedy in text


def test_the_alarm_is_smoothed() -> None:
    # From 1: (1 + 1.15) / 2 = 1.075 is silent, (1.075 + 1.15) / 2 = 1.1125 is not; then 1.056 again is.
    texts = listen(*(ratios(r, r) for r in (1.0, 1.15, 1.15, 1.0)))
    assert [text is not None for text in texts] == [False, False, True, False]
    assert texts[2] is not None and "1.11 times" in texts[2]


def test_an_alarm_remembers_nothing_by_itself() -> None:
    before: dict[str, float] = {}
    text, after = Collapse()(ratios(9.0, 9.0), before)
    assert text is not None and not before and after == {"chosen": 9.0, "rejected": 9.0}
    assert Collapse()(ratios(1.0, 1.0), before)[0] is None


@pytest.mark.parametrize(("told", "warns"), [(0.5, False), (0.7, False), (0.75, False), (0.8, True)])
def test_a_saturated_discriminator_is_named(told: float, warns: bool) -> None:
    text, remembered = Saturation()({"rewards/discrimination": told}, NOTHING)
    assert (text is not None) == warns and remembered == NOTHING
    assert text is None or "80% of real and fake" in text
