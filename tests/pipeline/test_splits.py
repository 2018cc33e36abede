"""Splits stay put as subjects are added."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.splits import draw_splits

SUBJECTS = st.lists(st.text("abcdef0123", min_size=1, max_size=3), unique=True, max_size=40)


@given(SUBJECTS, SUBJECTS, st.floats(0, 0.9), st.integers(0, 5))
def test_nobody_changes_sides(first, more, share, seed):
    kept = draw_splits({}, first, share, seed)
    grown = draw_splits(kept, {*first, *more}, share, seed)
    assert {subject: grown[subject] for subject in kept} == kept
    assert set(grown) == {*first, *more}


@given(SUBJECTS, st.floats(0, 0.9), st.integers(0, 5))
def test_the_share_is_kept_and_the_order_does_not_matter(subjects, share, seed):
    drawn = draw_splits({}, subjects, share, seed)
    assert abs(list(drawn.values()).count("held_out") - share * len(subjects)) <= 0.5
    assert draw_splits({}, reversed(subjects), share, seed) == drawn


def test_another_seed_draws_others():
    subjects = [f"{i:03d}" for i in range(30)]
    assert draw_splits({}, subjects, 0.3, 0) != draw_splits({}, subjects, 0.3, 1)
