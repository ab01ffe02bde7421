"""Requests for a time server, with the tool descriptions and the results the public `mcp-server-time` gives."""

from __future__ import annotations

import random

from m1agent.messages import ToolSpec
from m1agent.schema import canonical_json
from training.data.requests import Request, question
from training.data.values import DAYS
from training.data.words import Words

ZONES = {
    "Tokyo": "Asia/Tokyo", "London": "Europe/London", "Paris": "Europe/Paris", "Berlin": "Europe/Berlin", "New York": "America/New_York",
    "Los Angeles": "America/Los_Angeles", "Chicago": "America/Chicago", "Sydney": "Australia/Sydney", "Moscow": "Europe/Moscow", "Dubai": "Asia/Dubai",
    "Singapore": "Asia/Singapore", "Hong Kong": "Asia/Hong_Kong", "Shanghai": "Asia/Shanghai", "Seoul": "Asia/Seoul", "Madrid": "Europe/Madrid",
    "Rome": "Europe/Rome", "Cairo": "Africa/Cairo", "Lagos": "Africa/Lagos", "Nairobi": "Africa/Nairobi", "Toronto": "America/Toronto",
    "Denver": "America/Denver", "Lisbon": "Europe/Lisbon", "Vienna": "Europe/Vienna", "Amsterdam": "Europe/Amsterdam", "Stockholm": "Europe/Stockholm",
    "Athens": "Europe/Athens", "Istanbul": "Europe/Istanbul", "Bangkok": "Asia/Bangkok", "Jakarta": "Asia/Jakarta", "Karachi": "Asia/Karachi",
    "Lima": "America/Lima", "Warsaw": "Europe/Warsaw", "Prague": "Europe/Prague", "Dublin": "Europe/Dublin", "Zurich": "Europe/Zurich",
    "Oslo": "Europe/Oslo", "Helsinki": "Europe/Helsinki", "Brussels": "Europe/Brussels", "Manila": "Asia/Manila", "Auckland": "Pacific/Auckland",
}  # fmt: skip
HINT = "IANA timezone name (e.g., 'America/New_York', 'Europe/London'). Use 'UTC' as local timezone if no {}timezone provided by the user."
TARGET_HINT = (
    "Target IANA timezone name (e.g., 'Asia/Tokyo', 'America/San_Francisco'). "
    "Use 'UTC' as local timezone if no target timezone provided by the user."
)
NOW = ("what time is it in {p}", "what is the time in {p}", "what time is it in {p} now", "what is the current time in {p}", "what's the time in {p}",
       "how late is it in {p}", "what time is it right now in {p}", "what does the clock say in {p}")  # fmt: skip
CONVERT = ("what time is {t} in {a} in {b}", "if it is {t} in {a}, what time is it in {b}", "convert {t} from {a} to {b} time", "what is {t} {a} time in {b}",
           "when it is {t} in {a}, what time is it in {b}", "what is {t} in {a} in {b} time", "convert {t} {a} time to {b} time")  # fmt: skip


def specs(rng: random.Random) -> tuple[ToolSpec, ToolSpec]:
    """The server's two tools under the usual prefixes."""
    prefix = rng.choice(("time__", "time__", "clock__", ""))
    now = ToolSpec(prefix + "get_current_time", "Get current time in a specific timezone", {
        "type": "object", "properties": {"timezone": {"type": "string", "description": HINT.format("")}}, "required": ["timezone"]})  # fmt: skip
    names = {
        "source_timezone": "Source " + HINT.format("source "),
        "time": "Time to convert in 24-hour format (HH:MM)",
        "target_timezone": TARGET_HINT,
    }
    properties = {name: {"type": "string", "description": text} for name, text in names.items()}
    convert = ToolSpec(prefix + "convert_time", "Convert time between timezones", {
        "type": "object", "properties": properties, "required": list(properties)})  # fmt: skip
    return now, convert


def request(rng: random.Random, words: Words, tools: tuple[ToolSpec, ToolSpec]) -> Request:
    """A question about the time somewhere, for one of the two tools."""
    now, convert = tools
    place, zone = _place(rng, words)
    if rng.random() < 0.65:
        moment = _moment(rng, zone)
        answer = f"It is {moment['datetime'][11:16]} in {zone}."
        return Request(
            question(rng, rng.choice(NOW).format(p=place)), now, {"timezone": zone}, canonical_json(moment), answer
        )
    other, other_zone = _place(rng, words)
    clock = f"{rng.randint(0, 23):02d}:{rng.choice(('00', '30', '15', '45', f'{rng.randint(0, 59):02d}'))}"
    source, target = _moment(rng, zone), _moment(rng, other_zone)
    result = canonical_json(
        {
            "source": source,
            "target": target,
            "time_difference": f"{rng.choice('+-')}{rng.randint(0, 12)}.{rng.choice('005')}h",
        }
    )
    arguments = {"source_timezone": zone, "time": clock, "target_timezone": other_zone}
    said = question(rng, rng.choice(CONVERT).format(t=clock, a=place, b=other))
    return Request(said, convert, arguments, result, f"It is {target['datetime'][11:16]} in {other_zone}.")


def _place(rng: random.Random, words: Words) -> tuple[str, str]:
    if rng.random() < 0.2:
        zone = f"{rng.choice(('Asia', 'Europe', 'America', 'Africa', 'Australia', 'Pacific'))}/{words.city()}"
        return zone, zone
    city, zone = rng.choice(list(ZONES.items()))
    return (zone, zone) if rng.random() < 0.15 else (city, zone)


def _moment(rng: random.Random, zone: str) -> dict[str, str | bool]:
    date = f"{rng.randint(2024, 2032)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"
    clock = f"{rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}:{rng.randint(0, 59):02d}"
    shift = f"{rng.choice('+-')}{rng.randint(0, 12):02d}:{rng.choice(('00', '00', '30'))}"
    return {
        "timezone": zone,
        "datetime": f"{date}T{clock}{shift}",
        "day_of_week": rng.choice(DAYS),
        "is_dst": rng.random() < 0.5,
    }
