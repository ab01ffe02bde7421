"""The page at a server's address, driven in a headless Chromium as a person would: by keyboard, roles and labels."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Error, Page, expect, sync_playwright

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
PICTURES = os.environ.get("M1AGENT_PICTURES")
KEY = "sk-page"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    command = [sys.executable, "-m", "m1agent.cli", "serve", "--port", "0", "--log-level", "warning"]
    environment = {**os.environ, "M1AGENT_API_KEY": KEY, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as server:
        try:
            assert server.stderr is not None
            found = re.search(r"http://\S+", server.stderr.readline())
            assert found
            yield found[0]
        finally:
            server.kill()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    program = next((path for name in NAMES if (path := shutil.which(name))), None)
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        except Error:
            pytest.skip("there is no Chromium here: install one, or run playwright install chromium")
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, url: str, request: pytest.FixtureRequest) -> Iterator[Page]:
    context = browser.new_context(**getattr(request, "param", {}))
    page = context.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
    page.goto(url)
    expect(page.get_by_role("alert")).to_contain_text("API key")
    page.get_by_label("API key").fill(KEY)
    page.keyboard.press("Tab")
    expect(page.get_by_role("heading", level=1)).to_have_text("m1agent m1-nano")
    yield page
    # What the server refuses is told on the page; Chromium tells it on the console, too.
    assert [fault for fault in faults if not fault.startswith("Failed to load resource")] == []
    context.close()


def ask(page: Page, question: str) -> None:
    page.get_by_label("Your message").focus()
    page.keyboard.type(question)
    page.keyboard.press("Enter")


def call_weather(page: Page, city: str = "Lisbon") -> None:
    """A question, the model's call, and its result, by keyboard alone once the tools are there."""
    page.get_by_role("button", name="An example").click()
    page.get_by_label("Temperature").fill("0")
    page.get_by_text("Options and tools").click()
    ask(page, f"What is the weather in {city}?")
    card = page.get_by_role("group", name="Call of get_weather")
    expect(card).to_contain_text(f'{{"city": "{city}"}}')
    expect(page.get_by_role("status")).to_have_text("The model calls tools.")
    expect(page.get_by_label("Its result")).to_be_focused()
    page.keyboard.type("21 degrees and sunny")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_have_text("The reply is complete.")
    expect(page.get_by_role("listitem").last).to_contain_text(f"The weather in {city}: 21 degrees and sunny.")


SIZES: list[Any] = [
    {"color_scheme": "light", "viewport": {"width": 900, "height": 800}},
    {"color_scheme": "dark", "viewport": {"width": 900, "height": 800}},
    {"color_scheme": "light", "viewport": {"width": 360, "height": 700}},
]


@pytest.mark.parametrize("page", SIZES, ids=["light", "dark", "narrow"], indirect=True)
def test_a_call_its_result_and_the_answer(page: Page, request: pytest.FixtureRequest) -> None:
    call_weather(page)
    figures = page.get_by_text(re.compile(r"\d+ tokens read, \d+ of them known before"))
    expect(figures).to_have_count(2)
    first, second = (int(found[1]) for text in figures.all_inner_texts() if (found := re.search(r", (\d+) of", text)))
    assert second > first
    expect(page.get_by_role("group", name="Call of get_weather")).to_contain_text("21 degrees and sunny")
    overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    style = "getComputedStyle(document.body)"
    ink, ground = page.evaluate(f"[{style}.color, {style}.backgroundColor]")
    assert overflow == 0 and contrast(ink, ground) > 7
    if PICTURES:
        page.screenshot(path=Path(PICTURES) / f"serve-{request.node.callspec.id}.png")


def test_a_fork_leaves_the_conversation_it_comes_from(page: Page) -> None:
    call_weather(page)
    turns = page.get_by_role("list", name="The conversation").get_by_role("listitem")
    expect(turns).to_have_count(3)
    turns.nth(0).get_by_role("button", name="Fork from here").press("Enter")
    expect(turns).to_have_count(0)
    expect(page.get_by_label("Your message")).to_be_focused()
    expect(page.get_by_label("Your message")).to_have_value("What is the weather in Lisbon?")
    page.get_by_label("Your message").fill("What is the weather in Oslo?")
    page.keyboard.press("Enter")
    expect(page.get_by_role("group", name="Call of get_weather")).to_contain_text("Oslo")
    page.get_by_label("Conversation", exact=True).select_option(label="Conversation 1")
    expect(turns).to_have_count(3)
    expect(turns.last).to_contain_text("Lisbon")
    turns.nth(1).get_by_role("button", name="Fork from here").press("Enter")
    expect(turns).to_have_count(2)
    expect(page.get_by_role("group", name="Call of get_weather")).to_contain_text("21 degrees and sunny")


def test_escape_stops_a_reply_and_errors_are_told(page: Page) -> None:
    page.get_by_label("Tokens at most").fill("0")
    ask(page, "Hi")
    expect(page.get_by_role("alert")).to_contain_text("max_tokens")
    page.get_by_label("Tokens at most").fill("4000")
    page.get_by_label("Temperature").fill("2")
    page.route("**/v1/chat/completions", lambda route: None)  # It is never answered.
    ask(page, "Tell me more.")
    expect(page.get_by_role("button", name="Stop (Esc)")).to_be_visible()
    expect(page.get_by_role("button", name="Send", exact=True)).to_be_disabled()
    page.keyboard.press("Escape")
    expect(page.get_by_role("status")).to_have_text("Stopped.")
    expect(page.get_by_role("button", name="Send", exact=True)).to_be_enabled()
    page.get_by_label("Tools").fill("{")
    ask(page, "Again.")
    expect(page.get_by_role("alert")).to_contain_text("Tools:")


def test_thinking_is_folded_and_nothing_said_is_html(page: Page) -> None:
    deltas = [{"reasoning_content": "Let me see."}, {"content": "<img src=x onerror=alert(1)> & <b>done</b>"}]
    chunks: list[str] = [chunk(delta) for delta in deltas]
    body = "".join(f"data: {one}\n\n" for one in [*chunks, "[DONE]"])
    page.route("**/v1/chat/completions", lambda route: route.fulfill(body=body, content_type="text/event-stream"))
    ask(page, "Hi")
    expect(page.get_by_text("<img src=x onerror=alert(1)> & <b>done</b>")).to_be_visible()
    expect(page.get_by_text("Let me see.")).to_be_hidden()
    page.get_by_text("Thinking", exact=True).press("Enter")
    expect(page.get_by_text("Let me see.")).to_be_visible()
    assert page.locator("#turns img").count() == 0


def chunk(delta: dict[str, str]) -> str:
    import json

    return json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})


def contrast(first: str, second: str) -> float:
    """Of two colours, as WCAG counts it."""

    def light(colour: str) -> float:
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    dark, bright = sorted((light(first), light(second)))
    return (bright + 0.05) / (dark + 0.05)
