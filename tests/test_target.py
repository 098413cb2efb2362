"""What a student may cost: how it is said, and the largest images that keep to it."""

import pytest

from distilltool.errors import DistillError, Exit
from distilltool.target import PARETO, STEP, USUAL, largest, parse


@pytest.mark.parametrize(
    ("text", "measure", "limit", "share", "threads"),
    [
        ("flops<0.1x", "flops", 0.1, True, 1),
        ("flops<100M", "flops", 1e8, False, 1),
        ("flops<=100M", "flops", 1e8, False, 1),
        ("flops<1.5G", "flops", 1.5e9, False, 1),
        ("flops<2000", "flops", 2000, False, 1),
        ("p50<5ms@cpu:1", "p50", 5, False, 1),
        ("p50<5ms@cpu:4", "p50", 5, False, 4),
        (" p50<500us ", "p50", 0.5, False, 1),
        ("p50<0.02s@cpu", "p50", 20, False, 1),
    ],
)
def test_targets_are_read(text: str, measure: str, limit: float, share: bool, threads: int) -> None:
    found = parse(text)
    assert (found.measure, found.share, found.threads) == (measure, share, threads)
    assert found.limit == pytest.approx(limit)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "fast",
        "flops",
        "p50<5",
        "p50<5x",
        "p50>5ms",
        "flops<5ms",
        "flops<0x",
        "flops<0.1x@cpu",
        "p99<5ms",
        "p50<5ms@cuda:1",
    ]
    + ["p50<5ms@cpu:0", "flops<-1M", "flops<1e9"],
)
def test_what_is_no_target_is_wrong_usage(text: str) -> None:
    with pytest.raises(DistillError) as found:
        parse(text)
    assert found.value.code == Exit.USAGE and "p50<5ms" in found.value.fix


def test_the_usual_targets_are_targets() -> None:
    assert [parse(one).limit for one in PARETO] == [0.5, 0.25, 0.1, 0.05] and parse(USUAL).limit == 0.1


@pytest.mark.parametrize("offset", [0.0, 3.0])
@pytest.mark.parametrize("limit", [3.9, 5, 9, 17.3, 20, 33, 50, 60])
@pytest.mark.parametrize("first", [None, 16, 96, 112, 208, 400])
def test_the_largest_side_is_found_in_few_looks(limit: float, offset: float, first: int | None) -> None:
    """Of a cost that grows with the pixels, with or without something that does not."""
    looked = list[int]()

    def measure(side: int) -> float:
        looked.append(side)
        return side**2 / 1000 + offset

    fit = [side for side in range(64, 225, STEP) if side**2 / 1000 + offset <= limit]
    found = largest(measure, limit, 64, 224, first)
    assert (None if found is None else found[0]) == (fit[-1] if fit else None)
    assert len(looked) <= 5 and len(set(looked)) == len(looked) and all(64 <= side <= 224 for side in looked)


def test_a_side_that_is_asked_for_is_the_only_one() -> None:
    assert largest(lambda side: side, 100, 90, 90) == (90, 90)
    assert largest(lambda side: side, 80, 90, 90) is None
    assert largest(lambda side: side, float("inf"), 64, 224) == (224, 224)
    assert largest(lambda side: side, 100, 64, 48) == (48, 48)  # of a teacher that looks at no more
