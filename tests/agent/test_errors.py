from __future__ import annotations

import inspect

import m1agent.errors as errors


def documented() -> dict[str, str]:
    """Each error of the docstring's tree with its parent, read by indentation."""
    parents: list[tuple[int, str]] = [(-1, "Exception")]
    found: dict[str, str] = {}
    for line in (errors.__doc__ or "").splitlines():
        words = [word for word in line.split() if word.isidentifier() and hasattr(errors, word)]
        if not words or not line.startswith("    "):
            continue
        depth = line.index(words[0])
        parents = [parent for parent in parents if parent[0] < depth]
        found[words[0]] = parents[-1][1]
        parents.append((depth, words[0]))
    return found


def test_the_documented_tree_is_the_tree() -> None:
    classes = [item for _, item in inspect.getmembers(errors, inspect.isclass) if issubclass(item, Exception)]
    assert documented() == {item.__name__: item.__base__.__name__ for item in classes}
