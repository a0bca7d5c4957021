"""Token marks, steps and shapes of a ramp."""

import pytest

from lmx.data.ramp import Phase, Ramp

RAMP = Ramp(
    (
        Phase(from_tokens=0, batch_size=2, length=4),
        Phase(from_tokens=24, batch_size=2, length=8),
        Phase(from_tokens=88, batch_size=4, length=8, microbatches=2),
    )
)


def test_the_token_counter_switches_at_exactly_the_marks() -> None:
    assert RAMP.first_steps == (0, 3, 7)
    assert [RAMP.tokens(step) for step in range(10)] == [0, 8, 16, 24, 40, 56, 72, 88, 120, 152]
    assert [RAMP.index(step) for step in range(9)] == [0, 0, 0, 1, 1, 1, 1, 2, 2]
    assert RAMP.longest == 8


def test_steps_are_the_fewest_that_hold_the_tokens() -> None:
    for step in range(1, 12):
        assert RAMP.steps(RAMP.tokens(step)) == step
        assert RAMP.steps(RAMP.tokens(step) - 1) == step
        assert RAMP.steps(RAMP.tokens(step) + 1) == step + 1


def test_the_parts_add_up_to_the_run() -> None:
    assert [steps for _, steps in RAMP.parts(9)] == [3, 4, 2]
    assert [steps for _, steps in RAMP.parts(5)] == [3, 2, 0]
    assert sum(phase.batch_tokens * steps for phase, steps in RAMP.parts(9)) == RAMP.tokens(9)


def test_the_marks_of_llama_31_are_whole_batches() -> None:
    # 252M and 2.87T tokens, rounded to batches of 1,024 x 4,096 and 1,024 x 8,192.
    first = 60 * 1024 * 4096
    second = first + 342_131 * 1024 * 8192
    ramp = Ramp(
        (
            Phase(from_tokens=0, batch_size=1024, length=4096),
            Phase(from_tokens=first, batch_size=1024, length=8192),
            Phase(from_tokens=second, batch_size=2048, length=8192),
        )
    )
    assert ramp.first_steps == (60 - 60, 60, 60 + 342_131)
    assert ramp.tokens(ramp.steps(15_600_000_000_000)) >= 15_600_000_000_000


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ((Phase(from_tokens=8, batch_size=2, length=4),), "starts with a phase from_tokens=0"),
        ((*RAMP.phases, Phase(from_tokens=80, batch_size=8, length=8)), "goes backwards: the mark 80 follows 88"),
        (
            (RAMP.phases[0], Phase(from_tokens=20, batch_size=2, length=4)),
            "mark 20 is not reached by whole batches of 2 x 4 tokens from 0; the nearest marks are 16 and 24",
        ),
        ((RAMP.phases[0], Phase(from_tokens=24, batch_size=2, length=16)), "mark 24 is no multiple of the length 16"),
    ],
)
def test_impossible_ramps_are_refused_in_a_sentence(phases: tuple[Phase, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Ramp(phases)


def test_impossible_phases_are_refused_in_a_sentence() -> None:
    with pytest.raises(ValueError, match="batch_size=4 must be a multiple of microbatches=3"):
        Phase(from_tokens=0, batch_size=4, length=8, microbatches=3)
    with pytest.raises(
        ValueError, match="loop.steps=7 ends after 88 tokens, before the ramp's mark of 88; raise loop.steps beyond 7"
    ):
        RAMP.check(7)
    RAMP.check(8)
