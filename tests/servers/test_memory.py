"""The memory server; what it remembers is read from its file, and by a second server on the same file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

ADA = {"name": "Ada", "entityType": "person", "observations": ["likes engines"]}
ENGINE = {"name": "Engine", "entityType": "machine", "observations": []}
BYRON = {"name": "Byron", "entityType": "person", "observations": ["poet"]}
USES = {"from": "Ada", "to": "Engine", "relationType": "programs"}
FATHER = {"from": "Byron", "to": "Ada", "relationType": "father of"}


def test_all_tools_and_the_file(tmp_path: Path, node_server: Callable[..., Any], ask: Callable[..., Any]) -> None:
    file = tmp_path / "memory.jsonl"
    config = node_server("memory", MEMORY_FILE_PATH=str(file))
    more = {"observations": [{"entityName": "Ada", "contents": ["wrote notes", "was born in 1815"]}]}
    told = ask(
        config,
        ("memory__create_entities", {"entities": [ADA, ENGINE, BYRON]}),
        ("memory__create_relations", {"relations": [USES, FATHER]}),
        ("memory__add_observations", more),
        ("memory__delete_observations", {"deletions": [{"entityName": "Ada", "observations": ["wrote notes"]}]}),
        ("memory__delete_relations", {"relations": [FATHER]}),
        ("memory__delete_entities", {"entityNames": ["Byron"]}),
        ("memory__search_nodes", {"query": "engine"}),
    )
    assert [result.content for result in told if result.is_error] == []
    kept = [json.loads(line) for line in file.read_text().splitlines()]
    ada = {**ADA, "observations": ["likes engines", "was born in 1815"]}
    assert kept == [{"type": "entity"} | ada, {"type": "entity"} | ENGINE, {"type": "relation"} | USES]
    assert {entity["name"] for entity in json.loads(told[-1].content)["entities"]} == {"Ada", "Engine"}

    graph, opened = ask(config, ("memory__read_graph", {}), ("memory__open_nodes", {"names": ["Ada"]}))
    assert json.loads(graph.content) == {"entities": [ada, ENGINE], "relations": [USES]}
    assert json.loads(opened.content)["entities"] == [ada]


def test_an_entity_without_a_field_never_reaches_the_server(
    tmp_path: Path, node_server: Callable[..., Any], ask: Callable[..., Any]
) -> None:
    file = tmp_path / "memory.jsonl"
    config = node_server("memory", MEMORY_FILE_PATH=str(file))
    (told,) = ask(config, ("memory__create_entities", {"entities": [{"name": "Ada", "observations": []}]}))
    assert told.is_error and "entities[0].entityType: missing" in told.content
    assert not file.exists()
