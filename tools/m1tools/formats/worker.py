"""Reads one document, in a process of its own: `main(KIND, IN, OUT, OPTIONS)`, with descriptors and JSON.

It writes what `Extracted.to_json` gives, or `{"error": why}`. The SDK is not imported here.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from typing import Any

from m1tools.formats.section import Extracted, Limits, Refused, bounded

NAMES = {"pdf": "PDF", "docx": "DOCX", "html": "HTML", "page": "HTML", "markdown": "Markdown"}


def main(kind: str, source: int, target: int, options: dict[str, Any]) -> None:
    """Read the document on `source` and write what it holds to `target`."""
    logging.disable(logging.CRITICAL)
    limits = Limits(**options["limits"])
    with open(source, "rb", closefd=False) as file:
        file.seek(0)
        data = file.read(limits.size + 1)
    try:
        answer = bounded(_read(kind, data, limits, options), limits).to_json()
    except Refused as error:
        answer = {"error": str(error)}
    except MemoryError:
        answer = {"error": "it takes more memory than is allowed. It may be meant to do harm."}
    except RecursionError:
        answer = {"error": "it is nested too deeply. It may be meant to do harm."}
    except Exception as error:
        words = " ".join(str(error).split())[:100]
        answer = {"error": f"it is damaged, or no {NAMES[kind]} ({type(error).__name__}: {words})."}
    with open(target, "wb", closefd=False) as file:
        file.write(json.dumps(answer, ensure_ascii=False).encode("utf-8", "replace"))
    os._exit(0)  # Some parsers take long to let go of what they built.


def _read(kind: str, data: bytes, limits: Limits, options: dict[str, Any]) -> Extracted:
    charset, address = options.get("charset", ""), options.get("address", "")
    match kind:
        case "pdf":
            from m1tools.formats.pdf import read_pdf

            return read_pdf(data, limits)
        case "docx":
            from m1tools.formats.word import read_word

            return read_word(data, limits)
        case _:
            from m1tools.formats import markup

            if kind == "markdown":
                return markup.read_markdown(data.decode("utf-8", "replace"), limits)
            if kind == "html":
                return markup.read_html(data, limits, charset)
            return markup.read_page(data, limits, charset, address)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4]))
