"""The frame of all pictures in SVG, and the colours of their text and lines.

A picture has no ground of its own, and its colours can be seen on white and on black: in a page that embeds it, it follows
the page's theme. Where it is a part of the page it takes the page's own ``--text`` and ``--quiet``.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

_TEXT, _LINE = "#727c88", "#8a9099"
_STYLE = (
    f".drawn text{{fill:var(--text,{_TEXT});font:12px system-ui,sans-serif}}.drawn .quiet{{fill:var(--quiet,{_TEXT})}}"
    f".drawn .head{{font-weight:600}}.drawn .mean{{stroke:var(--text,{_TEXT})}}.drawn .dot{{fill:var(--text,{_TEXT})}}"
    f".drawn .axis{{stroke:{_LINE};fill:none}}.drawn .grid{{stroke:{_LINE}40;fill:none}}"
)


def svg(parts: Sequence[str], width: float, height: float, title: str, *, alone: bool = True) -> str:
    """A picture.

    Args:
        parts: Its elements. Texts may have the class ``head`` or ``quiet``, lines ``axis``, ``grid`` or ``mean``.
        width: Its width.
        height: Its height.
        title: The picture in words.
        alone: Whether it is a picture of its own, which needs a size.
    """
    size = f'width="{1.4 * width:g}" ' if alone else ""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" class="drawn" {size}viewBox="0 0 {width:g} {height:g}" role="img">'
    return "\n".join([head, f"<title>{escape(title)}</title>", f"<style>{_STYLE}</style>", *parts, "</svg>", ""])
