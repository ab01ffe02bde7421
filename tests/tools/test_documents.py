"""The documents toolset on real files: read by their anchors, searched, and made to do harm."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
import zipfile
import zlib
from pathlib import Path

import anyio
import pytest
from docx import Document
from pypdf import PdfReader, PdfWriter

from m1agent import ToolError, Toolset
from m1agent.toolset import installed_toolsets
from m1tools.documents import Limits, documents
from m1tools.documents.chunks import chunks

SECRET = "the word is swordfish"


def pdf(*pages: str, extra: str = "") -> bytes:
    """A PDF with a line of text a page, written by hand."""
    streams = [f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET" if text else "" for text in pages]
    kids = " ".join(f"{4 + 2 * i} 0 R" for i in range(len(pages)))
    objects = [
        f"<< /Type /Catalog /Pages 2 0 R {extra} >>",
        f"<< /Type /Pages /Count {len(pages)} /Kids [{kids}] >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for i, stream in enumerate(streams):
        resources = "/MediaBox [0 0 612 792] /Resources << /Font << /F1 3 0 R >> >>"
        objects.append(f"<< /Type /Page /Parent 2 0 R {resources} /Contents {5 + 2 * i} 0 R >>")
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
    return assembled([body.encode("latin-1") for body in objects])


def assembled(objects: list[bytes]) -> bytes:
    out, places = io.BytesIO(), list[int]()
    out.write(b"%PDF-1.4\n")
    for number, body in enumerate(objects, 1):
        places.append(out.tell())
        out.write(b"%d 0 obj\n%s\nendobj\n" % (number, body))
    start = out.tell()
    out.write(b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1))
    out.writelines(b"%010d 00000 n \n" % place for place in places)
    out.write(b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, start))
    return out.getvalue()


def report(path: Path) -> None:
    document = Document()
    document.add_heading("Yearly report", 0)
    document.add_paragraph("In short, it went well.")
    document.add_heading("Sales", 1)
    document.add_paragraph("Kettles sold best in Öland.")
    document.add_paragraph("A bullet", style="List Bullet")
    document.add_heading("By region", 2)
    table = document.add_table(2, 2)
    for cell, text in zip(
        (cell for row in table.rows for cell in row.cells), ("Where", "Sold", "N|S", "7"), strict=True
    ):
        cell.text = text
    document.save(str(path))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.txt").write_text(SECRET)
    return folder


@pytest.fixture
def tools(root: Path) -> Toolset:
    return documents(root)


def call(tools: Toolset, name: str, **arguments: object) -> str:
    return anyio.run(tools[name].call, arguments)


def refused(tools: Toolset, name: str, **arguments: object) -> str:
    began = time.monotonic()
    with pytest.raises(ToolError) as caught:
        call(tools, name, **arguments)
    assert time.monotonic() - began < 60
    text = str(caught.value)
    assert "swordfish" not in text and "\n" not in text and len(text) < 300
    return text


def told(tools: Toolset, name: str, **arguments: object) -> str:
    """What a model reads, be it a result or an error."""
    try:
        return call(tools, name, **arguments)
    except ToolError as error:
        return str(error)


# Reading


def test_word(root: Path, tools: Toolset) -> None:
    report(root / "r.docx")
    opened = call(tools, "open_document", path="r.docx").split("\n")
    assert opened[0].startswith("r.docx: 'Yearly report' DOCX, 3 sections, ")
    assert [line.rpartition(" ")[0] for line in opened[1:]] == ["s1 Yearly report", "s2 Sales", "  s3 By region"]
    assert call(tools, "read_document", path="r.docx", anchor="s2").startswith(
        "[s2] Sales\nKettles sold best in Öland.\n\n- A bullet\n\n[Next: s3]"
    )
    table = "[s3] By region\n| Where | Sold |\n| --- | --- |\n| N\\|S | 7 |"
    assert call(tools, "read_document", path="r.docx", anchor="s3") == table


def test_pdf_by_page(root: Path, tools: Toolset) -> None:
    (root / "p.pdf").write_bytes(pdf("On kettles", "", "On teapots and lids"))
    opened = call(tools, "open_document", path="p.pdf")
    assert "PDF, 3 pages" in opened and "1 of 3 pages hold no text, perhaps images of it: p2." in opened
    assert "[p3] On teapots and lids\nOn teapots and lids" in call(tools, "read_document", path="p.pdf", anchor="p3")
    assert call(tools, "search_documents", query="teapot").startswith("[p.pdf p3] On teapots")


def test_pdf_titles_are_its_bookmarks(root: Path, tools: Toolset) -> None:
    writer = PdfWriter(PdfReader(io.BytesIO(pdf("a", "b", "c"))))
    part = writer.add_outline_item(title="Part one", page_number=0)
    writer.add_outline_item(title="Chapter", page_number=2, parent=part)
    writer.write(str(root / "b.pdf"))
    assert "p1 Part one (1)\np2 b (1)\n  p3 Chapter (1)" in call(tools, "outline_document", path="b.pdf")


def test_html_and_markdown_by_their_headings(root: Path, tools: Toolset) -> None:
    (root / "a.html").write_text(
        "<title>T</title><h1>One</h1><p>x <b>y</b><script>bad()</script><h2>Two</h2><ul><li>z</ul>"
    )
    (root / "a.md").write_text("before\n\n# One\n\n```\n# not a heading\n```\n\nTwo\n---\nx\n")
    assert call(tools, "read_document", path="a.html", until="s2") == "[s1] One\nx **y**\n\n[s2] Two\n- z"
    outline = call(tools, "outline_document", path="a.md").split("\n")
    assert [line.rpartition(" ")[0] for line in outline[1:]] == ["s1 (no title)", "s2 One", "  s3 Two"]


def test_text_much_longer_than_a_context(root: Path, tools: Toolset) -> None:
    lines = [f"Line {number} says nothing of note.\n" for number in range(40_000)]
    lines[31_234] = "Here a rare heron was seen.\n"
    (root / "long.txt").write_text("".join(lines))
    found = call(tools, "search_documents", query="herons seen", path="long.txt")
    anchor = found.partition("]")[0].strip("[")
    assert "rare heron" in found and len(found) < 3000
    part = call(tools, "read_document", path="long.txt", anchor=anchor)
    assert "Line 31233 says" in part and len(part) < 2500
    whole = call(tools, "read_document", path="long.txt")
    assert len(whole) < 13_000 and "[Goes on at s1." in whole


def test_reading_on_gives_all_of_it(root: Path, tools: Toolset) -> None:
    text = "".join(f"Word{number} and more.\n\n" for number in range(3000))
    (root / "t.txt").write_text(text)
    anchor, seen = "", ""
    while True:
        part = call(tools, "read_document", path="t.txt", anchor=anchor, until="s1")
        seen += part
        if "[Goes on at " not in part:
            break
        anchor = part.rpartition("[Goes on at ")[2].rstrip("]")
    assert all(f"Word{number} and" in seen for number in range(3000))


def test_words_without_spaces_between_them(root: Path, tools: Toolset) -> None:
    (root / "zh.txt").write_text("数据库系统概论第五版介绍查询优化")
    assert "[zh.txt s1]" in call(tools, "open_document", path="zh.txt") + call(
        tools, "search_documents", query="查询优化"
    )
    assert "Nothing matches" in call(tools, "search_documents", query="化优询")


@pytest.mark.parametrize("query", ['"', "a AND", "NEAR(", "x* OR", "col:a", "-", "'; DROP TABLE pieces; --", "(", "^a"])
def test_no_query_is_an_operator(root: Path, tools: Toolset, query: str) -> None:
    (root / "t.txt").write_text("plain words")
    call(tools, "open_document", path="t.txt")
    answer = told(tools, "search_documents", query=query)
    assert "Nothing matches" in answer or "expected words" in answer
    assert "[t.txt s1]: plain words" in call(tools, "search_documents", query="words")


def test_a_changed_file_is_read_again(root: Path, tools: Toolset) -> None:
    (root / "t.txt").write_text("first")
    assert "first" in call(tools, "read_document", path="t.txt")
    (root / "t.txt").write_text("second version")
    assert "second" in call(tools, "read_document", path="t.txt")
    assert "Nothing matches" in call(tools, "search_documents", query="first")


def test_an_index_in_a_file_lasts(root: Path, tmp_path: Path) -> None:
    (root / "p.pdf").write_bytes(pdf("On kettles"))
    call(documents(root, index=tmp_path / "i/index.db"), "open_document", path="p.pdf")
    assert "kettles" in call(documents(root, index=tmp_path / "i/index.db"), "search_documents", query="kettles")
    assert os.stat(tmp_path / "i/index.db").st_mode & 0o777 == 0o600
    (tmp_path / "no.db").write_text("something else entirely, and long enough to be looked at")
    with pytest.raises(ValueError, match="cannot be used as a database"):
        documents(root, index=tmp_path / "no.db")


def test_wrong_anchors_are_told_what_there_is(root: Path, tools: Toolset) -> None:
    (root / "p.pdf").write_bytes(pdf("a", "b"))
    assert refused(tools, "read_document", path="p.pdf", anchor="p9") == (
        "There is no anchor 'p9' in p.pdf. Anchors: from p1 to p2."
    )
    assert "expected an anchor after p2" in refused(tools, "read_document", path="p.pdf", anchor="p2", until="p1")
    assert "No document was opened" in refused(documents(root), "search_documents", query="a")


@pytest.mark.parametrize("text", ["", "x" * 10_000, "a b\n" * 3000, "é. " * 5000, "\n" * 9000])
def test_chunks_are_the_text(text: str) -> None:
    parts = list(chunks(text, 500))
    assert "".join(parts) == text
    assert all(0 < len(part) <= 500 for part in parts)


def test_found_through_its_entry_point(root: Path) -> None:
    assert {"documents", "memory", "web"} <= set(installed_toolsets())
    done = subprocess.run(
        [sys.executable, "-c", "from m1agent import load_toolset; print([t.name for t in load_toolset('documents')])"],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "read_document" in done.stdout


# Out of the root


@pytest.mark.parametrize("path", ["../outside/secret.txt", "/etc/passwd", "sub/../../outside/secret.txt", "a\0b"])
def test_paths_do_not_leave_the_root(root: Path, tools: Toolset, path: str) -> None:
    (root / "sub").mkdir()
    refused(tools, "open_document", path=path)


def test_links_do_not_leave_the_root(root: Path, tools: Toolset) -> None:
    (root / "link.txt").symlink_to(root.parent / "outside/secret.txt")
    (root / "folder").symlink_to(root.parent / "outside")
    refused(tools, "open_document", path="link.txt")
    refused(tools, "read_document", path="folder/secret.txt")
    os.mkfifo(root / "pipe.txt")
    assert "got a pipe" in refused(tools, "open_document", path="pipe.txt")


# Meant to do harm


def bomb(path: Path, part: str, size: int) -> None:
    report(path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as packed, packed.open(part, "w") as file:
        for _ in range(size >> 20):
            file.write(bytes(1 << 20))


def test_a_zip_bomb_is_not_unpacked(root: Path, tools: Toolset) -> None:
    bomb(root / "bomb.docx", "word/media/image1.png", 200 << 20)
    assert (root / "bomb.docx").stat().st_size < 1 << 20
    assert "it unpacks to" in refused(tools, "open_document", path="bomb.docx")


def packed_word(body: str, before: str = "") -> bytes:
    out = io.BytesIO()
    namespace = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
    kinds = "http://schemas.openxmlformats.org/package/2006/content-types"
    links = "http://schemas.openxmlformats.org/package/2006/relationships"
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument"
    main = "application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr(
            "[Content_Types].xml",
            f'<Types xmlns="{kinds}"><Default Extension="rels" ContentType="application/vnd.openxmlformats-package'
            f'.relationships+xml"/><Override PartName="/word/document.xml" ContentType="{main}"/></Types>',
        )
        packed.writestr(
            "_rels/.rels",
            f'<Relationships xmlns="{links}"><Relationship Id="r1" Type="{office}" Target="word/document.xml"/>'
            "</Relationships>",
        )
        packed.writestr(
            "word/document.xml", f'{before}<w:document xmlns:w="{namespace}"><w:body>{body}</w:body></w:document>'
        )
    return out.getvalue()


def test_a_zip_bomb_that_lies_of_its_size(root: Path, tools: Toolset) -> None:
    data = packed_word("<w:p><w:r><w:t>x</w:t></w:r></w:p>" * 300_000)
    with zipfile.ZipFile(io.BytesIO(data)) as packed:
        size = packed.getinfo("word/document.xml").file_size
    lie = data.replace(size.to_bytes(4, "little"), (100).to_bytes(4, "little"))
    assert lie != data and len(lie) < 1 << 20 < size
    (root / "lie.docx").write_bytes(lie)
    assert "it is damaged, or no DOCX" in refused(tools, "open_document", path="lie.docx")


LAUGHS = "<!DOCTYPE x [<!ENTITY a0 'ha'>{}]>".format(
    "".join(f"<!ENTITY a{n} '{f'&a{n - 1};' * 10}'>" for n in range(1, 10))
)


@pytest.mark.parametrize(
    ("before", "body", "says"),
    [
        (LAUGHS, "<w:p><w:r><w:t>&a9;</w:t></w:r></w:p>", "it is damaged"),
        (
            "<!DOCTYPE x [<!ENTITY s SYSTEM 'file://{secret}'>]>",
            "<w:p><w:r><w:t>and &s;</w:t></w:r></w:p>",
            "[s1]\nand",
        ),
        ("", "<w:p>" * 20_000, "it is damaged"),
        ("", "<w:tbl><w:tr><w:tc>" * 300 + "</w:tc></w:tr></w:tbl>" * 300, "it is damaged"),
    ],
    ids=["billion laughs", "foreign entity", "never closed", "tables in tables"],
)
def test_xml_that_means_harm(root: Path, tools: Toolset, before: str, body: str, says: str) -> None:
    secret = str(root.parent / "outside/secret.txt")
    (root / "x.docx").write_bytes(packed_word(body, before.replace("{secret}", secret)))
    answer = told(tools, "read_document", path="x.docx")
    assert says in answer and "swordfish" not in answer and len(answer) < 300


@pytest.mark.parametrize("cut", [5, 20, 300, -200])
def test_truncated_files(root: Path, tools: Toolset, cut: int) -> None:
    report(root / "r.docx")
    (root / "cut.docx").write_bytes((root / "r.docx").read_bytes()[:cut])
    refused(tools, "open_document", path="cut.docx")


TREE = [b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Type /Pages /Count 9999999 /Kids [2 0 R] >>"]


@pytest.mark.parametrize(
    "data",
    [
        b"%PDF-1.7\n",
        pdf("a")[:200],
        assembled(TREE),
        assembled([TREE[0], b"<< /Type /Pages /Kids [" + b"[" * 50_000 + b"]" * 50_000 + b"] >>"]),
        assembled([TREE[0], b"<< /Kids " + b"<< /Kids " * 50_000 + b">>" * 50_001]),
        b"%PDF-1.4\nxref\n0 1\ntrailer << /Root 1 0 R /Prev 9 >>\nstartxref\n9\n%%EOF",
    ],
    ids=["header only", "cut", "its own page", "brackets", "dictionaries", "circle"],
)
def test_malicious_pdf(root: Path, tools: Toolset, data: bytes) -> None:
    (root / "x.pdf").write_bytes(data)
    assert refused(tools, "open_document", path="x.pdf").startswith("x.pdf: it is")


def test_a_bomb_in_a_pdf(root: Path) -> None:
    stream = zlib.compress(zlib.compress(b"BT (x) Tj ET " * (20 << 20), 9), 9)
    page = b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 9 9] /Resources << >> /Contents 4 0 R >>"
    body = b"<< /Length %d /Filter [/FlateDecode /FlateDecode] >>\nstream\n%s\nendstream" % (len(stream), stream)
    data = assembled([b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Type /Pages /Count 1 /Kids [3 0 R] >>", page, body])
    (root / "bomb.pdf").write_bytes(data)
    assert len(data) < 1 << 20
    tools = documents(root, limits=Limits(seconds=10, memory=400 << 20))
    assert "1 of 1 pages hold no text" in call(tools, "open_document", path="bomb.pdf")


def test_a_document_that_takes_too_long(root: Path) -> None:
    (root / "slow.pdf").write_bytes(pdf("a", "b"))
    tools = documents(root, limits=Limits(seconds=0.01))
    assert "it took more than 0.01 s" in refused(tools, "open_document", path="slow.pdf").replace("reading ", "")


def test_encrypted_pdf(root: Path, tools: Toolset) -> None:
    for name, user in (("closed", "letmein"), ("open", "")):
        writer = PdfWriter(PdfReader(io.BytesIO(pdf("On kettles"))))
        writer.encrypt(user, "owner", algorithm="AES-256")
        writer.write(str(root / f"{name}.pdf"))
    assert "encrypted with a password" in refused(tools, "open_document", path="closed.pdf")
    assert "On kettles" in call(tools, "read_document", path="open.pdf")


def test_actions_in_a_pdf_are_not_taken(root: Path, tools: Toolset) -> None:
    mark = root.parent / "outside/touched"
    action = f"/OpenAction << /S /Launch /F (/usr/bin/touch) /P ({mark}) >>"
    (root / "x.pdf").write_bytes(pdf("On kettles", extra=action))
    assert "On kettles" in call(tools, "read_document", path="x.pdf")
    assert not mark.exists()


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("a.docx", b"PK\x03\x04 and no more", "it is damaged, or no DOCX"),
        ("a.doc", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), "Save it as DOCX"),
        ("a.bin", bytes(range(256)), "expected PDF, DOCX, HTML, Markdown or text"),
    ],
)
def test_what_is_no_document(root: Path, tools: Toolset, name: str, data: bytes, told: str) -> None:
    (root / name).write_bytes(data)
    assert told in refused(tools, "open_document", path=name)


def test_too_large(root: Path) -> None:
    tools = documents(root, limits=Limits(size=1000, characters=500, pages=2))
    (root / "big.txt").write_text("x" * 1001)
    assert "expected at most 1000 bytes, got 1001" in refused(tools, "open_document", path="big.txt")
    (root / "text.txt").write_text("word " * 150)
    assert "Only its beginning was read" in call(tools, "open_document", path="text.txt")
    (root / "p.pdf").write_bytes(pdf("a", "b", "c"))
    tools = documents(root, limits=Limits(pages=2))
    assert "Only its first 2 of 3 pages were read" in call(tools, "open_document", path="p.pdf")


def test_html_nested_without_end(root: Path, tools: Toolset) -> None:
    (root / "deep.html").write_text("<html>" + "<div>" * 100_000 + "x")
    answer = told(tools, "read_document", path="deep.html")
    assert answer == "deep.html: it is nested too deeply. It may be meant to do harm."


def test_limits_are_above_nothing() -> None:
    with pytest.raises(ValueError, match=r"Limits.pages must be above 0"):
        Limits(pages=0)
