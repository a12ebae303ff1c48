"""The pages of NeuroImagen (the report's and the doctor's): one Jinja2 environment, layout.j2 and page.css for both.

A template is named by its path in the package. Values are escaped unless a template marks them as HTML; a value that a
template does not get is an error, not a gap. A page needs no other file: style, script and pictures stand in it.
"""

import base64
import hashlib
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

PACKAGE = Path(__file__).parent.parent


def inlined(path: str) -> Markup:
    """A stylesheet or script of the package, as it is."""
    return Markup((PACKAGE / path).read_text(encoding="utf-8"))


def sha256_source(script: str) -> str:
    """How a Content-Security-Policy names this very script: sha256-..."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def data_address(content: bytes, kind: str) -> str:
    """A picture as the src of its <img>; kind: png, jpeg, webp."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def aligned(text: str) -> str:
    """Lines of cells with | between them as columns, two spaces apart."""
    cells = [[cell.strip() for cell in line.split("|")] for line in text.splitlines()]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in cells)


def render(template: str, **values: Any) -> str:
    """render("doctor/templates/page.j2", title="..."): the page, with "\\n" at its end."""
    return ENVIRONMENT.get_template(template).render(values)


ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader(PACKAGE),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
ENVIRONMENT.globals |= {"inlined": inlined}
ENVIRONMENT.filters |= {"aligned": aligned, "sha256_source": sha256_source, "data_address": data_address}
