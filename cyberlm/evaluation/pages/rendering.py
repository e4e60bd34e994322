"""Pages made of templates: one HTML file each, which needs no network and opens from disk."""

import base64
import hashlib
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from cyberlm.evaluation.pages.figures import to_svg


@dataclass(frozen=True)
class Picture:
    """A figure of a page: an SVG element, below it the caption as plain text."""

    title: str
    svg: Markup
    caption: str = ""


def picture(figure: Figure, title: str, caption: str = "") -> Picture:
    return Picture(title, Markup(to_svg(figure, title)), caption)


def render(template: str, **values: Any) -> str:
    """A page of a template. Texts are escaped, and the browser runs no script but the page's own."""
    strict: Any = {"autoescape": True, "undefined": StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    environment = Environment(loader=PackageLoader("cyberlm.evaluation.pages"), **strict)
    script = environment.get_template("page.js").render()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template(template).render(script_hash=digest, **values)
