from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gft_edge.budget import MIN_TOKENS, NO_BUDGET, TokenBudget, patches_per_block, rows_per_block
from gft_edge.constants import MAX_TOPK
from gft_edge.errors import ConfigError


@st.composite
def budgets(draw):
    num_patches = draw(st.integers(MIN_TOKENS, MAX_TOPK))
    keep = draw(st.lists(st.integers(MIN_TOKENS, num_patches), min_size=1, max_size=6))
    return TokenBudget(tuple(sorted(keep, reverse=True)), num_patches)


@given(budgets())
def test_json_round_trip(budget):
    assert TokenBudget.from_json(json.loads(json.dumps(budget.to_json()))) == budget


@given(budgets(), st.sampled_from(["-", ",", " , "]))
def test_parsing_the_id_gives_the_budget_back(budget, separator):
    assert TokenBudget.parse(budget.id.replace("-", separator), budget.num_patches) == budget


@pytest.mark.parametrize(
    ("stages", "keep", "expected"),
    [
        ((2, 4, 6), (12, 8, 4), (16, 16, 12, 12, 8, 8, 4, 4)),
        ((1, 8), (12, 8), (16, 12, 12, 12, 12, 12, 12, 12)),
        ((), (), (16,) * 8),
    ],
)
def test_blocks_get_what_the_stages_before_them_kept(stages, keep, expected):
    assert patches_per_block(stages, keep, 16, 8) == expected


@given(budgets())
def test_stage_inputs_are_what_the_stage_before_kept(budget):
    assert budget.stage_inputs == (budget.num_patches, *budget.keep)[: len(budget.keep)]


@pytest.mark.parametrize(
    ("num_patches", "keep"), [(196, (147, 98, 49)), (144, (108, 72, 36)), (197, (147, 98, 49)), (9, (6, 4, 2))]
)
def test_ratios_are_floored_as_published(num_patches, keep):
    assert TokenBudget.from_ratios((0.75, 0.5, 0.25), num_patches).keep == keep


def test_shares_and_points_and_ids_are_all_read():
    expected = TokenBudget((147, 98, 49), 196)
    for text in ("147,98,49", "147-98-49", " 147, 98 ,49 ", "75%,50%,25%", "0.75,.5,0.25"):
        assert TokenBudget.parse(text, 196) == expected
    assert expected.id == "147-98-49"


@given(st.integers(1, 5), st.integers(MIN_TOKENS, MAX_TOPK))
def test_full_keeps_everything(num_stages, num_patches):
    assert TokenBudget.full(num_stages, num_patches).keep == (num_patches,) * num_stages


@pytest.mark.parametrize(
    ("stages", "keep", "expected"),
    [
        ((3, 5, 7), (12, 8, 4), (16, 16, 12, 12, 8, 8, 4, 0)),
        ((1, 8), (12, 8), (12, 12, 12, 12, 12, 12, 12, 0)),
        ((1, 8), (16, 8), (16, 16, 16, 16, 16, 16, 16, 0)),
        ((1, 8), (16, 16), (16,) * 8),
        ((), (), (16,) * 8),
    ],
)
def test_a_selecting_block_computes_the_rows_it_keeps(stages, keep, expected):
    assert rows_per_block(stages, keep, 16, 8) == expected


@given(budgets(), st.integers(1, 64), st.integers(1, 5))
def test_align_gives_the_nearest_multiples(budget, multiple, prefix):
    aligned = budget.align(multiple, prefix)
    assert aligned.num_patches == budget.num_patches
    for before, after, available in zip(budget.keep, aligned.keep, aligned.stage_inputs):
        smallest_multiple = -(-(MIN_TOKENS + prefix) // multiple) * multiple
        if before == budget.num_patches:
            assert after == before
        elif (after + prefix) % multiple:
            assert after <= before
            assert after + prefix < smallest_multiple, "could have been rounded down"
        elif before <= available:
            nearest = min(abs(t - before - prefix) for t in range(smallest_multiple, available + prefix + 1, multiple))
            assert abs(after - before) == nearest


@given(budgets(), st.integers(1, 64), st.integers(1, 5))
def test_align_twice_is_align_once(budget, multiple, prefix):
    assert budget.align(multiple, prefix).align(multiple, prefix) == budget.align(multiple, prefix)


def test_align_examples():
    budget = TokenBudget((147, 98, 49), 196)
    assert budget.align(8, 1).keep == (151, 95, 47)
    assert budget.align(8, 2).keep == (150, 102, 46)
    assert budget.align(8, 5).keep == (147, 99, 51)
    assert budget.align(1, 1) == budget
    assert TokenBudget((196, 98), 196).align(8, 1).keep == (196, 95)
    assert TokenBudget((3,), 196).align(8, 1).keep == (7,), "a tie goes up"


@pytest.mark.parametrize("multiple", [0, -8, 2.0, True, "8"])
def test_align_refuses_what_is_no_positive_integer(multiple):
    with pytest.raises(ConfigError, match="align needs a positive integer"):
        TokenBudget((147,), 196).align(multiple, 1)


@pytest.mark.parametrize(
    ("keep", "num_patches", "message"),
    [
        ((98, 99), 196, r"token budget 98-99: stage 2 keeps 99 but stage 1 keeps only 98; counts must not grow"),
        ((197,), 196, r"stage 1 keeps 197 but the image has only 196"),
        ((98, 1), 196, r"stage 2 keeps 1, must keep at least 2"),
        ((0,), 196, r"must keep at least 2"),
        ((-5,), 196, r"must keep at least 2"),
        ((98.0,), 196, r"counts must be integers, found \(98\.0,\) of 196"),
        ((True,), 196, r"counts must be integers"),
        (("98",), 196, r"counts must be integers"),
        ((98,), 196.0, r"counts must be integers"),
        ((98,), None, r"counts must be integers"),
        ((98,), 3841, r"number of patches must be 2 to 3840, found 3841"),
        ((2,), 1, r"number of patches must be 2 to 3840, found 1"),
        ((), 196, r"needs at least one stage"),
    ],
)
def test_bad_counts_are_refused_with_the_reason(keep, num_patches, message):
    with pytest.raises(ConfigError, match=message):
        TokenBudget(keep, num_patches)


@pytest.mark.parametrize("text", ["", "a,b", "147,,49", "147;98", "75%,x", "%", "-98,49", "1e2,50"])
def test_bad_text_is_refused_with_examples(text):
    with pytest.raises(ConfigError, match="expected counts such as '147,98,49' or shares such as '75%,50%,25%'"):
        TokenBudget.parse(text, 196)


@pytest.mark.parametrize("text", ["0.0,0.5", "1.5", "120%", "75%,50", "nan%"])
def test_shares_out_of_range_are_refused(text):
    with pytest.raises(ConfigError, match="ratios must be above 0 and at most 1"):
        TokenBudget.parse(text, 196)


def test_text_with_growing_counts_keeps_its_own_message():
    with pytest.raises(ConfigError, match="counts must not grow"):
        TokenBudget.parse("49,98", 196)


@pytest.mark.parametrize("data", [{}, {"keep": [4]}, {"keep": 4, "num_patches": 16}, [4], None])
def test_malformed_json_is_refused(data):
    with pytest.raises(ConfigError, match="expected keep and num_patches"):
        TokenBudget.from_json(data)


def test_a_model_without_stages_has_a_budget_of_nothing():
    assert (NO_BUDGET.id, NO_BUDGET.stage_inputs) == ("all", (0,))
    assert TokenBudget.from_json(NO_BUDGET.to_json()) == NO_BUDGET == TokenBudget.full(0, 0)
