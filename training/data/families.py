"""Everyday tools with natural wordings. Each name, parameter and wording has several forms; the last form of each name is
held out of training."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from m1agent.messages import ToolSpec
from training.data import values
from training.data.requests import Request, command, question
from training.data.values import Value
from training.data.words import Words


@dataclass(frozen=True, slots=True)
class Parameter:
    names: str  # space-separated forms, the last held out
    kind: str  # a kind of values.TEXT_KINDS, or integer, number, boolean, list, or "a|b|c" for an enum
    description: str
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Family:
    names: str
    descriptions: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    asked: tuple[
        str, ...
    ]  # slots {0}, {1}…; "q:" marks a question; an optional parameter is left out where its slot is missing
    answers: tuple[
        str, str
    ]  # how the tool's result looks ("text", "number", "done"), and the answer with {r} and slots


P = Parameter
FAMILIES = (
    Family("get_weather weather current_weather weather_lookup fetch_weather", ("Get the current weather for a city.", "Current weather in a city.", "Look up the weather."),
           (P("city location place town", "city", "The city."), P("unit units scale", "celsius|fahrenheit", "Temperature unit.", True)),
           ("q:what is the weather in {0}", "q:what's the weather like in {0}", "q:how is the weather in {0} in {1}", "check the weather in {0}", "q:is it warm in {0}",
            "get the weather for {0} in {1}", "tell me the weather in {0}", "q:will I need a coat in {0}"), ("text", "The weather in {0}: {r}.")),
    Family("send_email email mail_send write_email dispatch_mail", ("Send an email.", "Send an email to somebody.", "Write and send an email message."),
           (P("to recipient address receiver", "email", "Email address of the recipient."), P("subject title topic heading", "phrase", "Subject line."),
            P("body text message content", "phrase", "Text of the email.", True)),
           ("send an email to {0} about {1}", "email {0} with the subject {1}", "write to {0} with subject {1} and text {2}", "send {0} an email with subject {1} saying {2}",
            "mail {0} about {1}"), ("done", "I sent the email to {0}.")),
    Family("send_message message text_someone sms deliver_text", ("Send a text message to a person.", "Message somebody.", "Send a chat message."),
           (P("to person contact recipient name", "person", "Who gets the message."), P("text message body words", "phrase", "The message.")),
           ("tell {0} that {1}", "send a message to {0} saying {1}", "text {0}: {1}", "message {0} and say {1}", "let {0} know {1}", "write {0} a message: {1}"), ("done", "I told {0}: {1}.")),
    Family("set_reminder reminder create_reminder add_reminder remember_task", ("Set a reminder.", "Remind the user of something.", "Create a reminder for a time."),
           (P("text task what about", "phrase", "What to be reminded of."), P("time when at moment", "clock", "Time of the reminder.")),
           ("remind me of {0} at {1}", "set a reminder for {0} at {1}", "remind me about {0} at {1}", "create a reminder at {1}: {0}", "at {1} remind me of {0}"), ("done", "I will remind you of {0} at {1}.")),
    Family("create_event add_event calendar_add schedule_event plan_meeting", ("Add an event to the calendar.", "Create a calendar event.", "Schedule an event."),
           (P("title name event label", "phrase", "Title of the event."), P("date day on when", "date", "Date of the event."), P("time start at hour", "clock", "Start time.", True)),
           ("schedule {0} on {1}", "add {0} to my calendar on {1} at {2}", "put {0} on the calendar for {1}", "create an event called {0} on {1} at {2}", "plan {0} for {1} at {2}"), ("done", "{0} is on your calendar for {1}.")),
    Family("convert_currency currency exchange_money money_convert swap_currency", ("Convert an amount of money between currencies.", "Currency conversion.", "Exchange money from one currency to another."),
           (P("amount value sum quantity", "number", "Amount of money."), P("source from_currency base origin", "USD|EUR|GBP|JPY|CHF|CAD|AUD|CNY", "Currency to convert from."),
            P("target to_currency goal destination", "USD|EUR|GBP|JPY|CHF|CAD|AUD|CNY", "Currency to convert to.")),
           ("convert {0} {1} to {2}", "q:how much is {0} {1} in {2}", "change {0} {1} into {2}", "exchange {0} {1} for {2}", "q:what is {0} {1} worth in {2}", "q:how many {2} do I get for {0} {1}"), ("number", "{0} {1} is {r} {2}.")),
    Family("convert_units unit_converter units_convert measure_convert change_unit", ("Convert a value between units.", "Unit conversion.", "Convert measurements."),
           (P("value amount number figure", "number", "Value to convert."), P("source from_unit unit_in start_unit", "km|miles|kg|pounds|meters|feet|liters|gallons", "Unit of the value."),
            P("target to_unit unit_out end_unit", "km|miles|kg|pounds|meters|feet|liters|gallons", "Unit to convert to.")),
           ("convert {0} {1} to {2}", "q:how many {2} are {0} {1}", "q:what is {0} {1} in {2}", "turn {0} {1} into {2}", "express {0} {1} in {2}"), ("number", "{0} {1} is {r} {2}.")),
    Family("web_search search search_web find_online internet_lookup", ("Search the web.", "Find pages on the internet.", "Search the internet for information."),
           (P("query q search_term terms", "phrase", "What to search for."), P("limit count max_results top", "integer", "Number of results.", True)),
           ("search for {0}", "search the web for {0}", "look up {0} online", "find {1} pages about {0}", "google {0}", "search the internet for {0} and show {1} results", "q:what does the web say about {0}"), ("text", "I found: {r}.")),
    Family("translate translate_text translator text_translate render_language", ("Translate a text into another language.", "Translation.", "Translate words."),
           (P("text phrase words source_text", "phrase", "Text to translate."), P("language target to_language into", "French|German|Spanish|Italian|Japanese|Chinese|Korean|Polish|Dutch|Greek", "Language to translate into.")),
           ("translate {0} into {1}", "translate {0} to {1}", "q:how do you say {0} in {1}", "q:what is {0} in {1}", "say {0} in {1}"), ("text", "In {1} that is: {r}.")),
    Family("play_music play_song music_play start_track spin_tune", ("Play a song.", "Play music.", "Start playing a track."),
           (P("song title track tune", "phrase", "Name of the song."), P("artist singer band musician", "person", "Who made it.", True)),
           ("play {0}", "play {0} by {1}", "put on {0}", "play the song {0} by {1}", "I want to hear {0} by {1}", "start {0}"), ("done", "Now playing {0}.")),
    Family("book_table reserve_table table_booking restaurant_reserve hold_table", ("Book a table at a restaurant.", "Reserve a restaurant table.", "Make a restaurant reservation."),
           (P("restaurant place venue diner", "phrase", "Name of the restaurant."), P("people guests party_size seats", "integer", "Number of people."), P("time when at hour", "clock", "Time of the booking.")),
           ("book a table for {1} at {0} at {2}", "reserve a table at {0} for {1} people at {2}", "get a table for {1} at {0}, {2}", "make a reservation at {0} for {1} at {2}"), ("done", "Your table at {0} is booked for {2}.")),
    Family("find_flights search_flights flights flight_search lookup_planes", ("Find flights between two cities.", "Search for flights.", "Flight search."),
           (P("origin from_city departure start", "city", "City of departure."), P("destination to_city arrival goal", "city", "City of arrival."), P("date day on travel_day", "date", "Day of travel.", True)),
           ("find flights from {0} to {1}", "find a flight from {0} to {1} on {2}", "q:are there flights from {0} to {1} on {2}", "show flights to {1} from {0}", "I need a flight from {0} to {1}", "search flights from {0} to {1} on {2}"), ("text", "Flights from {0} to {1}: {r}.")),
    Family("set_light light_control lights switch_light lamp_state", ("Switch a light on or off.", "Control a light in the house.", "Turn lights on and off."),
           (P("room where place area", "kitchen|bedroom|bathroom|garage|garden|office|hall", "Which room."), P("state power mode status", "on|off", "On or off.")),
           ("turn {1} the light in the {0}", "switch the {0} light {1}", "turn the {0} lights {1}", "switch {1} the light in the {0}", "lights {1} in the {0}"), ("done", "The light in the {0} is {1}.")),
    Family("get_stock_price stock_price stock quote_price share_value", ("Get the price of a stock.", "Current stock price.", "Price of a share."),
           (P("symbol ticker stock share", "AAPL|MSFT|GOOG|AMZN|TSLA|META|NFLX|NVDA|code", "Ticker symbol."),),
           ("q:what is the stock price of {0}", "q:how much is a share of {0}", "get the price of {0} stock", "q:what is {0} trading at", "check the stock {0}"), ("number", "{0} is at {r}.")),
    Family("read_file open_file file_read load_file get_contents", ("Read a file.", "Read the text of a file.", "Return the content of a file."),
           (P("path file filename name", "file", "Path of the file."),),
           ("read {0}", "open the file {0}", "show me {0}", "q:what is in {0}", "q:what does {0} say", "print the content of {0}", "load {0}"), ("text", "{0} says: {r}.")),
    Family("delete_file remove_file file_delete erase_file drop_path", ("Delete a file.", "Remove a file for ever.", "Erase a file."),
           (P("path file filename name", "file", "Path of the file."),), ("delete {0}", "remove the file {0}", "erase {0}", "get rid of {0}", "delete the file {0}"), ("done", "I deleted {0}.")),
    Family("add_note create_note take_note note save_memo", ("Save a note.", "Write down a note.", "Add a note to the notebook."),
           (P("text note content body", "phrase", "Text of the note."), P("tags labels topics marks", "list", "Tags of the note.", True)),
           ("note {0}", "write down {0}", "take a note: {0}", "add a note {0} with tags {1}", "save the note {0} and tag it {1}", "make a note of {0}"), ("done", "I noted {0}.")),
    Family("order_status track_order get_order order_lookup find_purchase", ("Get the status of an order.", "Track an order.", "Look up an order."),
           (P("order_id id order number", "code", "Number of the order."),), ("q:where is my order {0}", "track order {0}", "q:what is the status of order {0}", "check order {0}", "look up order {0}"), ("text", "Order {0}: {r}.")),
    Family("find_contact lookup_contact contact_search get_contact person_details", ("Find a contact.", "Look up a person in the address book.", "Get contact details of a person."),
           (P("name person contact who", "person", "Name of the person."),), ("find the contact {0}", "q:what is the phone number of {0}", "look up {0} in my contacts", "q:how can I reach {0}", "get the contact details of {0}"), ("text", "{0}: {r}.")),
    Family("set_timer timer start_timer countdown begin_countdown", ("Start a timer.", "Set a countdown timer.", "Count down minutes."),
           (P("minutes duration length span", "integer", "Length in minutes."), P("label name title caption", "phrase", "Name of the timer.", True)),
           ("set a timer for {0} minutes", "start a {0} minute timer called {1}", "timer for {0} minutes", "count down {0} minutes for {1}", "set a timer of {0} minutes named {1}"), ("done", "The timer runs for {0} minutes.")),
)  # fmt: skip


def spec(rng: random.Random, words: Words, family: Family, *, rename: bool = False) -> ToolSpec:
    """The tool of a family; with `rename` its names are invented ones."""
    properties: dict[str, Any] = {}
    for parameter in family.parameters:
        name = _unused(words, properties) if rename else _pick(rng, parameter.names.split(), words.held_out)
        properties[name] = _schema(rng, parameter)
    required = [name for name, parameter in zip(properties, family.parameters, strict=True) if not parameter.optional]
    name = _invented_name(rng, words) if rename else _style(rng, _pick(rng, family.names.split(), words.held_out))
    return ToolSpec(
        name, rng.choice(family.descriptions), {"type": "object", "properties": properties, "required": required}
    )


def request(rng: random.Random, words: Words, family: Family, tool: ToolSpec) -> Request:
    """One request for `tool`, made by `spec` of the same family."""
    template = rng.choice(family.asked)
    drawn = [value(rng, words, parameter.kind) for parameter in family.parameters]
    slots = [one.said for one in drawn]
    text = template.removeprefix("q:").format(*slots)
    said = question(rng, text) if template.startswith("q:") else command(rng, text)
    names = list(tool.parameters["properties"])
    arguments = {
        name: one.argument for i, (name, one) in enumerate(zip(names, drawn, strict=True)) if f"{{{i}}}" in template
    }
    kind, answer = family.answers
    result = {
        "text": _report,
        "number": lambda r, w: values.decimal(r).said,
        "done": lambda r, w: r.choice(("ok", "done", "success", "true")),
    }[kind](rng, words)
    return Request(said, tool, arguments, result, answer.format(*slots, r=result))


def value(rng: random.Random, words: Words, kind: str) -> Value:
    """A value of a parameter's kind."""
    if "|" in kind:
        choice = rng.choice(kind.split("|"))
        return values.code(rng) if choice == "code" else values.same(choice)
    simple = {"integer": lambda: values.integer(rng, 1), "list": lambda: values.listing(rng, words)}
    if kind == "number":
        return values.integer(rng) if rng.random() < 0.6 else values.decimal(rng)
    if kind == "boolean":
        flag = rng.random() < 0.5
        return Value("yes" if flag else "no", flag)
    return simple[kind]() if kind in simple else values.TEXT_KINDS[kind](rng, words)


def json_type(rng: random.Random, kind: str) -> dict[str, Any]:
    """The schema of a kind, without description."""
    if "|" in kind and "code" not in kind:
        return {"type": "string", "enum": kind.split("|")}
    if kind == "list":
        return {"type": "array", "items": {"type": "string"}}
    if kind in ("integer", "number", "boolean"):
        return {"type": kind}
    return {"type": "string"}


def _schema(rng: random.Random, parameter: Parameter) -> dict[str, Any]:
    schema = json_type(rng, parameter.kind)
    if rng.random() < 0.85:
        schema["description"] = parameter.description
    return schema


def _pick(rng: random.Random, forms: list[str], held_out: bool) -> str:
    return forms[-1] if held_out else rng.choice(forms[:-1])


def _unused(words: Words, taken: dict[str, Any]) -> str:
    while (name := words.invented()) in taken:
        pass
    return name


def _invented_name(rng: random.Random, words: Words) -> str:
    return rng.choice(
        (
            words.invented(),
            f"{words.invented()}_{words.invented()}",
            f"{words.invented()}{words.invented().capitalize()}",
        )
    )


def _style(rng: random.Random, name: str) -> str:
    style = rng.random()
    if style < 0.7:
        return name
    if style < 0.85:
        first, *rest = name.split("_")
        return first + "".join(part.capitalize() for part in rest)
    return name.replace("_", "-")


def _report(rng: random.Random, words: Words) -> str:
    kind = rng.random()
    if kind < 0.3:
        return f"{rng.randint(-20, 40)} degrees, {words.adjective()}"
    if kind < 0.6:
        return values.phrase(rng, words).said
    if kind < 0.8:
        return f"{words.first_name()} {rng.randint(100, 9999)} {words.noun()}"
    return f"{values.phrase(rng, words).said}, {values.code(rng).said}"
