"""The prefix tree: boundaries are found by their tokens, whoever computed them, and given up by what they are worth."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from m1runtime import Engine, SamplingParams, Session
from m1runtime.prefix import GHOSTS, Node, PrefixTree, Snapshot, common

GREEDY = SamplingParams(max_new_tokens=6, temperature=0)
PROMPT = [n * 7 % 90 for n in range(200)]


@pytest.fixture
def engine(tiny_folder: Path) -> Engine:
    return Engine.from_pretrained(tiny_folder, device="cpu", progress=False, snapshots=2)


def follows(session: Session, engine: Engine) -> bool:
    return bool((session.logits - engine.score(session.tokens)[-1]).abs().max() < 1e-5)


def computed(engine: Engine) -> int:
    return engine.stats().tokens_computed


# The tree itself

runs = st.lists(st.integers(0, 2), min_size=1, max_size=12)


def kept(*_: int) -> Snapshot:
    return Snapshot(torch.zeros(3), torch.zeros(2), [])


@settings(max_examples=200, derandomize=True, deadline=None)
@given(kept_runs=st.lists(runs, max_size=8), dropped=st.lists(st.integers(0, 7), max_size=4), asked=runs)
def test_a_match_is_the_longest_kept_prefix(kept_runs: list[list[int]], dropped: list[int], asked: list[int]) -> None:
    tree, have = PrefixTree(lambda _: None), dict[tuple[int, ...], Node]()
    for run in kept_runs:
        node = tree.insert(run, len(run))
        if node.kept is None:
            tree.keep(node, kept())
        have[tuple(run)] = node
    for n in dropped:
        if n < len(kept_runs) and have.get(tuple(kept_runs[n])) is not None:
            tree.drop(have.pop(tuple(kept_runs[n])))
    expected = max((run for run in have if tuple(asked[: len(run)]) == run), key=len, default=())
    match = tree.match(asked)
    assert match.length == len(expected)
    assert match.base is have.get(expected)
    assert match.common == max((common(asked, run) for run in have), default=0)
    assert all(node.tokens() == list(run) for run, node in have.items())
    assert tree.kept == set(have.values())
    assert tree.bytes == 20 * len(have)


def test_an_empty_tree_has_no_nodes() -> None:
    released: list[int] = []
    tree = PrefixTree(released.extend)
    for run in ([1, 2, 3], [1, 2, 4], [1, 2], [5]):
        tree.keep(tree.insert(run, len(run)), Snapshot(torch.zeros(1), torch.zeros(1), [sum(run)]))
    tree.clear()
    assert sorted(released) == [3, 5, 6, 7]
    assert (tree.root.children, tree.kept, tree.bytes) == ({}, set(), 0)


def test_the_least_worth_goes_first_and_forks_go_last() -> None:
    tree = PrefixTree(lambda _: None)
    long, short, fork = [1] * 100, [1] * 90 + [2] * 5, [1] * 90
    nodes = {len(run): tree.insert(run, len(run)) for run in (long, short, fork)}
    for node in nodes.values():
        tree.keep(node, kept())
    order: list[int] = []
    while tree.kept:
        node = tree.cheapest(lambda *_: 0, protected=False) or tree.cheapest(lambda *_: 0, protected=True)
        assert node is not None
        order.append(node.length)
        tree.drop(node, lost=True)
    # 95 costs 5 tokens beyond the fork; then 100 costs 10; the fork, no fork any more, costs 90.
    assert order == [95, 100, 90]
    assert tree.match(long).lost == 100


def test_what_was_dear_once_and_is_never_wanted_ages() -> None:
    tree = PrefixTree(lambda _: None)
    tree.keep(old := tree.insert([9] * 50, 50), kept())
    for n in range(8):
        tree.keep(tree.insert([n] * 20, 20), kept())
        cheapest = tree.cheapest(lambda *_: 0, protected=False)
        assert cheapest is not None
        tree.drop(cheapest)
        if cheapest is old:
            return
    pytest.fail("the oldest boundary is never given up")


def test_losses_are_remembered_within_bounds() -> None:
    tree = PrefixTree(lambda _: None)
    for n in range(GHOSTS + 50):
        tree.keep(node := tree.insert([n, 1], 2), kept())
        tree.drop(node, lost=True)
    assert len(tree.root.children) == GHOSTS


# Through the engine


def test_a_closed_sessions_prefix_is_found_at_first_sighting(engine: Engine) -> None:
    with engine.session(PROMPT) as session:
        session.append([1, 2, 3])
    before = computed(engine)
    with engine.session([*PROMPT, 1, 2, 3, 4, 5]) as again:
        assert computed(engine) == before + 2
        assert follows(again, engine)
        assert engine.stats().cache_hits["prefix"] == 1
    assert engine.stats().tokens_recomputed == {}


def test_a_prompt_known_whole_costs_nothing(engine: Engine) -> None:
    first = engine.generate([PROMPT], GREEDY)
    before = computed(engine)
    again = engine.generate([PROMPT], GREEDY)
    assert again == first
    assert (again[0].reused_tokens, first[0].reused_tokens) == (200, 0)
    assert computed(engine) == before + 5  # The last token of a reply is never computed.


def test_the_next_turn_goes_on_from_the_reply(engine: Engine) -> None:
    (first,) = engine.generate([PROMPT], GREEDY)
    before = computed(engine)
    (second,) = engine.generate([[*PROMPT, *first.ids, 7, 8, 9]], GREEDY)
    assert second.reused_tokens == 205
    assert computed(engine) == before + 4 + 5
    assert engine.stats().tokens_recomputed == {}


@pytest.mark.parametrize("count", [2, 7])
def test_equal_prompts_are_computed_once(engine: Engine, count: int) -> None:
    replies = engine.generate([PROMPT] * count, GREEDY)
    assert len({reply.ids for reply in replies}) == 1
    assert computed(engine) == 200 + 5 * count
    assert sorted(reply.reused_tokens for reply in replies) == [0] + [200] * (count - 1)


def test_a_common_beginning_of_prompts_is_computed_once(engine: Engine) -> None:
    prompts = [[*PROMPT, n, *range(n, 30)] for n in range(4)]
    replies = engine.generate(prompts, GREEDY)
    assert computed(engine) == 200 + sum(len(ids) - 200 for ids in prompts) + 5 * 4
    engine.clear_cache()
    assert replies == [engine.generate([prompt], GREEDY)[0] for prompt in prompts]
    assert engine.stats().tokens_recomputed.keys() == {"no_state"}


def test_a_parting_becomes_a_boundary(engine: Engine) -> None:
    engine.session([*PROMPT, 1, 2, 3]).close()
    engine.session([*PROMPT, 4, 5, 6]).close()
    assert engine.stats().tokens_recomputed == {"no_state": 200}
    before = computed(engine)
    with engine.session([*PROMPT, 7, 8, 9]) as third:
        assert follows(third, engine)
        assert computed(engine) - 203 == before + 3
    assert engine.stats().tokens_recomputed == {"no_state": 200}


def test_inner_boundaries_serve_other_sessions(engine: Engine) -> None:
    with engine.session() as session:
        session.append(PROMPT, boundaries=[120])
        before = computed(engine)
        with engine.session([*PROMPT[:120], 5, 5]) as other:
            assert computed(engine) == before + 2
            assert follows(other, engine)


def test_a_fork_takes_nothing_until_it_writes(engine: Engine) -> None:
    with engine.session(PROMPT) as session:
        before = engine.stats()
        forks = [session.fork() for _ in range(5)]
        after = engine.stats()
        assert (after.pages, after.slots, after.tokens_computed) == (before.pages, before.slots, before.tokens_computed)
        for n, fork in enumerate(forks):
            fork.append([n, n])
            assert follows(fork, engine)
            fork.close()
        assert engine.stats().tokens_recomputed == {}


def test_pages_and_slots_return_to_zero(engine: Engine) -> None:
    sessions = [engine.session(PROMPT[: 30 * n + 5]) for n in range(5)]
    sessions.append(sessions[-1].fork())
    for session in sessions:
        session.generate(GREEDY)
        session.commit()
        session.close()
    stats = engine.stats()
    assert stats.boundaries and stats.pages and stats.prefix_bytes
    assert (stats.slots, stats.sessions, stats.kv_bytes, stats.snapshot_bytes) == (0, 0, 0, 0)
    engine.clear_cache()
    stats = engine.stats()
    assert (stats.boundaries, stats.pages, stats.slots, stats.prefix_bytes) == (0, 0, 0, 0)


def test_a_live_session_survives_a_cleared_cache(engine: Engine) -> None:
    with engine.session(PROMPT) as session:
        engine.clear_cache()
        session.append([3])
        assert follows(session, engine)
        session.rewind(20)
        session.append([4])
        assert follows(session, engine)
        assert engine.stats().tokens_recomputed == {"rewind": 20}
