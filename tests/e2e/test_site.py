"""The guide as a site: it builds without a warning, shows every public name, and quotes errors as they are."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import m1agent
import m1runtime

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PACKAGES = ("kernels/m1kernels", "runtime/m1runtime", "m1agent", "tools/m1tools")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(build, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("package", [m1agent, m1runtime], ids=lambda package: package.__name__)
def test_the_reference_shows_every_public_name(site: Path, package: object) -> None:
    shown = set()
    for page in (site / "reference").glob("*/index.html"):
        shown |= set(re.findall(r'id="[\w.]*?\.?(\w+)" class="doc doc-heading"', page.read_text()))
    assert set(package.__all__) - shown == set()


def test_nothing_is_fetched_by_a_reader(site: Path) -> None:
    page = (site / "index.html").read_text()
    assert re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="https?://', page) == []


def _quoted() -> list[str]:
    page = (DOCS / "troubleshooting.md").read_text()
    return re.findall(r"^### `(.+)`$", page, re.MULTILINE)


@pytest.fixture(scope="module")
def source() -> str:
    text = "".join(file.read_text() for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py")))
    return re.sub(r'"\s*\n\s*f?"', "", text)  # as texts stand that are written over several lines


@pytest.mark.parametrize("heading", [quoted for quoted in _quoted() if " == " not in quoted])
def test_errors_are_quoted_as_they_are(heading: str, source: str) -> None:
    missing = [part for part in re.split("…", heading) if part.strip("' ;.,") and part.strip() not in source]
    assert missing == []
