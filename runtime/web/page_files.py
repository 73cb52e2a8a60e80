"""The page's own files: a fixed table, read once."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).with_name("page")
INDEX = "index.html"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".webmanifest": "application/manifest+json",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".woff2": "font/woff2",
}


def read_page(folder: Path = FOLDER) -> dict[str, tuple[str, bytes]]:
    """Every path that is served -> its type and bytes; nothing of a request gets to a file system.

    The index is "/", the others are "/page/NAME"; files of other types are left out.
    """
    found = {}
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix in TYPES:
            place = "/" if path.name == INDEX else f"/page/{path.name}"
            found[place] = (TYPES[path.suffix], path.read_bytes())
    assert "/" in found
    return found
