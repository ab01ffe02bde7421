"""Objects of a cube: pieces in which counts are told by which members there are, and the keywords of what is left."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations

from m1runtime.grammar.keywords import Node, Schema
from m1runtime.grammar.normalise_cube import NEVER, Cube, Members, Rest, State, Where, both
from m1runtime.grammar.normalise_expand import Expander
from m1runtime.grammar.normalise_values import domain, matches, texts
from m1runtime.grammar.reach import compiles
from m1runtime.grammar.writer import json_value

_OPEN = frozenset({"propertyNames", "additionalProperties"})
"""Where they admit any member still, a tool takes any."""
MAX_NAMES = 64
MAX_OPTIONAL = 6
"""Members that may be there or not, where the number of members counts."""
Lose = Callable[[tuple[Where, ...], str], None]
Write = Callable[[State], Schema]


class MemberWriter:
    """Splits and writes the objects of cubes."""

    def __init__(self, expander: Expander, lose: Lose) -> None:
        self._expander = expander
        self._lose = lose

    def split(self, cube: Cube) -> list[Members]:
        """Objects whose union the cube's are, declared so that they can be written; what cannot be is listed."""
        members = self._settled(cube, cube.members)
        if members is None:
            return []
        if members.some_names:
            self._lose(cube.places("propertyNames"), "a member of such a name cannot be asked for")
        some = members.some
        members = replace(members, some=(), some_names=())
        if not some:
            return self._counted(cube, members)
        parts = self._with_some(members, some[0]) if len(some) == 1 else None
        if parts is None:
            self._lose(cube.places("additionalProperties"), "a member of an undeclared name cannot be asked for")
            parts = [members]
        return [one for part in parts for one in self._counted(cube, part)]

    def _with_some(self, members: Members, some: Rest) -> list[Members] | None:
        """Objects with one more member than those of the names that `some` leaves aside, if counting can tell."""
        names = [name for name, state in members.properties if state is not NEVER]
        optional = [name for name in dict.fromkeys([*names, *sorted(some.names)]) if name not in members.required]
        optional = [name for name in optional if dict(members.properties).get(name, ()) is not NEVER]
        if some.state or some.patterns or len(optional) > MAX_OPTIONAL - 2:
            return None
        if not {*names, *members.required} <= some.names:
            return None
        found: list[Members] = []
        for count in range(len(optional) + 1):
            for chosen in combinations(optional, count):
                declared = dict(members.properties) | {n: NEVER for n in optional if n not in chosen}
                required = (*members.required, *chosen)
                least = max(members.least, len(required) + 1)
                found.append(replace(members, properties=tuple(declared.items()), required=required, least=least))
        return found

    # Names and rests

    def _settled(self, cube: Cube, members: Members) -> Members | None:
        """With one rest at most, without names to check; None where no object can be."""
        members = self._named(cube, members)
        names = dict.fromkeys(name for name, _ in members.properties)
        names |= dict.fromkeys(name for rest in members.rests for name in sorted(rest.names))
        properties = dict(members.properties)
        for name in names:
            state = properties.get(name, ())
            for rest in members.rests:
                if name not in rest.names and all(matches(p, name) is False for p in rest.patterns):
                    state = both(state, rest.state)
            properties[name] = state
        patterns: dict[str, State] = {}
        for pattern, state in members.patterns:
            kept = self._by_pattern(cube, members, pattern, state)
            if kept is NEVER and any(rest.state is NEVER for rest in members.rests):
                for name in names:
                    if matches(pattern, name):
                        properties[name] = both(properties[name], state)
            else:
                patterns[pattern] = kept
        rest_state: State = ()
        for rest in members.rests:
            rest_state = both(rest_state, rest.state)
        if self._expander.never(rest_state):
            rest_state = NEVER
        patterns = self._apart(cube, patterns, rest_state)
        never = {name for name, state in properties.items() if state is NEVER or self._expander.never(state)}
        if never & set(members.required):
            return None
        declared = tuple((name, NEVER if name in never else state) for name, state in properties.items())
        rests = (Rest(frozenset(properties), tuple(patterns), rest_state),) if rest_state else ()
        return replace(members, properties=declared, patterns=tuple(patterns.items()), rests=rests)

    def _by_pattern(self, cube: Cube, members: Members, pattern: str, state: State) -> State:
        """What members that match a pattern are of, the rests that they belong to among it."""
        for rest in members.rests:
            if pattern in rest.patterns:
                continue
            declared = [name for name in rest.names if matches(pattern, name)]
            if rest.patterns or (declared and rest.state is not NEVER):
                self._lose(cube.places("additionalProperties"), "a pattern and the rest of the names overlap")
                continue
            state = both(state, rest.state)
        return state

    def _apart(self, cube: Cube, patterns: dict[str, State], rest: State) -> dict[str, State]:
        """Patterns no two of which match one name, as llguidance asks for."""
        kept: dict[str, State] = {}
        if not rest:
            patterns = {pattern: state for pattern, state in patterns.items() if state}
        for pattern, state in patterns.items():
            readable = [one for one in kept if matches(one, "") is not None]
            other = next((one for one in readable if not _apart(one, pattern)), None)
            other = None if matches(pattern, "") is None else other
            if other is None:
                kept[pattern] = state
                continue
            same = kept.pop(other)
            if same != state:
                self._lose(cube.places("patternProperties"), f"the patterns {other} and {pattern} match the same names")
            joined = f"(?:{other})|(?:{pattern})"
            kept = self._apart(cube, {**kept, joined: state if same == state else ()}, rest)
        return kept

    def _named(self, cube: Cube, members: Members) -> Members:
        """With `propertyNames` turned into declared names or a pattern."""
        for state in members.names:
            members = self._with_names(cube, replace(members, names=()), state)
        return members

    def _with_names(self, cube: Cube, members: Members, state: State) -> Members:
        where = cube.places("propertyNames")
        known = [*(name for name, _ in members.properties), *members.required]
        properties = dict(members.properties)
        for name in known:
            if not self._expander.values.is_of(state, name):
                properties[name] = NEVER
        members = replace(members, properties=tuple(properties.items()))
        cubes = [one for one in self._expander.cubes(state) if "string" in one.kinds] if state is not NEVER else []
        values = domain([replace(one, kinds=one.kinds & {"string"}) for one in cubes], MAX_NAMES)
        if values is not None:
            allowed = [name for name in texts(values) if self._expander.values.is_of(state, name)]
            for name in allowed:
                properties.setdefault(name, self._expander.values.member_state(members, name))
            closed = Rest(frozenset(properties), (), NEVER)
            return replace(members, properties=tuple(properties.items()), rests=(*members.rests, closed))
        pattern = _one_pattern(cubes)
        if pattern is None:
            self._lose(where, "such names cannot be told apart")
            return members
        if pattern == "":
            return members
        if any(one != pattern for one, _ in members.patterns) or any(rest.state for rest in members.rests):
            closing = [rest for rest in members.rests if not rest.patterns]
            closed_only = not members.patterns and all(rest.state is NEVER for rest in closing)
            if not closed_only:
                self._lose(where, "names that must match one pattern more cannot be told apart")
            return members
        rests = (*members.rests, Rest(frozenset(properties), (pattern,), NEVER))
        patterns = members.patterns or ((pattern, ()),)
        return replace(members, patterns=patterns, rests=rests)

    # Counts

    def _counted(self, cube: Cube, members: Members) -> list[Members]:
        """Objects in which every declared member is there or is not, where the number of members counts.

        llguidance counts members as long as none of the declared ones is optional.
        """
        least, most = members.least, members.most
        required = len(members.required)
        closed = any(rest.state is NEVER for rest in members.rests) and not members.patterns
        declared = [name for name, state in members.properties if state is not NEVER]
        optional = [name for name in declared if name not in members.required]
        least = 0 if least <= required else least
        if closed and most is not None and most >= required + len(optional):
            most = None
        members = replace(members, least=least, most=most)
        if not least and most is None:
            return [members]
        if most is None and least - required == 1:
            ways = [(optional[i : i + 1], optional[:i]) for i in range(len(optional))]
            ways += [] if closed else [(list[str](), optional)]
        elif len(optional) <= MAX_OPTIONAL:
            chosen = [set(names) for n in range(len(optional) + 1) for names in combinations(optional, n)]
            ways = [([n for n in optional if n in one], [n for n in optional if n not in one]) for one in chosen]
        else:
            return self._uncounted(cube, members)
        made = [_present(members, there, absent) for there, absent in ways]
        return [one for one in (_told(part, closed=closed) for part in made) if one is not None]

    def _uncounted(self, cube: Cube, members: Members) -> list[Members]:
        for keyword, other, value in (
            ("minProperties", "not maxProperties", members.least),
            ("maxProperties", "not minProperties", members.most),
        ):
            if value:
                self._lose(cube.places(keyword, other), "members cannot be counted beside optional ones")
        return [replace(members, least=0, most=None)]

    # Keywords

    def write(self, cube: Cube, node: Node, write: Write) -> None:
        """The keywords of objects into `node`."""
        members = cube.members
        rest: State = members.rests[0].state if members.rests else ()
        declared = {name: state for name, state in members.properties if state is not NEVER}
        closed = rest is NEVER and not members.patterns
        written = declared if closed else dict(members.properties)
        if written or (closed and members.properties):
            node["properties"] = {name: write(state) for name, state in written.items()}
        if members.patterns:
            node["patternProperties"] = {pattern: write(state) for pattern, state in members.patterns}
        if members.required:
            node["required"] = list(members.required)
        if rest:
            node["additionalProperties"] = write(rest)
        elif written and (not declared or _OPEN & {kind for kind, _ in cube.where}):
            node["additionalProperties"] = True
        if members.least:
            node["minProperties"] = members.least
        if members.most is not None:
            node["maxProperties"] = members.most


def _present(members: Members, there: list[str], absent: list[str]) -> Members:
    required = (*members.required, *there)
    properties = {name: NEVER if name in absent else state for name, state in members.properties}
    rest: State = members.rests[0].state if members.rests else ()
    for name in required:
        if name not in properties:
            by_pattern = any(matches(pattern, name) for pattern, _ in members.patterns)
            properties[name] = () if by_pattern else rest
    return replace(members, properties=tuple(properties.items()), required=required)


def _told(members: Members, *, closed: bool) -> Members | None:
    """With the counts that declared members leave; None where they leave no object."""
    there = len(members.required)
    optional = sum(state is not NEVER and name not in members.required for name, state in members.properties)
    if members.most is not None and there > members.most:
        return None
    if closed and there + optional < members.least:
        return None
    least = 0 if there >= members.least else members.least
    most = None if closed and members.most is not None and there + optional <= members.most else members.most
    return replace(members, least=least, most=most)


def _apart(one: str, other: str) -> bool:
    schema = {"type": "object", "patternProperties": {one: {}, other: {"type": "null"}}}
    return not compiles(json_value(json.dumps(schema)))[0]


def _one_pattern(cubes: list[Cube]) -> str | None:
    """One pattern for the strings of a union; None if there is none, "" if every string will do."""
    if len(cubes) != 1 or cubes[0].excluded or cubes[0].also:
        return None
    strings = cubes[0].strings
    if strings.avoid or strings.formats or len(strings.patterns) > 1:
        return None
    lengths = strings.least or strings.most is not None
    if strings.patterns:
        return None if lengths else strings.patterns[0]
    if not lengths:
        return ""
    return rf"^[\s\S]{{{strings.least},{'' if strings.most is None else strings.most}}}$"
