"""HTML as values: everything that is not already ``Html`` is escaped, so no text from data can become markup."""

from __future__ import annotations

import html
from collections.abc import Iterable

from uplift.study.wording import visible

VOID = frozenset({"meta", "br", "col"})


class Html(str):
    """Markup that is safe to put into a page as it is."""

    __slots__ = ()


def text(value: object) -> Html:
    """Any value as text: escaped, with characters that hide or break text made visible."""
    return Html(html.escape(visible(str(value)), quote=True))


def join(*content: object) -> Html:
    """Content side by side; None is left out and iterables are laid out in order."""
    parts: list[str] = []
    for item in content:
        if item is None or item is False:
            continue
        if isinstance(item, Html):
            parts.append(item)
        elif isinstance(item, Iterable) and not isinstance(item, str):
            parts.append(join(*item))
        else:
            parts.append(text(item))
    return Html("".join(parts))


def element(tag: str, *content: object, **attributes: object) -> Html:
    """One element. ``class_`` is written ``class``, underscores become hyphens, None leaves an attribute out, True is bare."""
    written = "".join(
        f" {_attribute(name)}" if value is True else f' {_attribute(name)}="{text(value)}"'
        for name, value in attributes.items()
        if value is not None and value is not False
    )
    return Html(f"<{tag}{written}>" if tag in VOID else f"<{tag}{written}>{join(*content)}</{tag}>")


def prose(value: str) -> Html:
    """A sentence; what stands in backticks becomes ``<code>``."""
    parts = value.split("`")
    if len(parts) % 2 == 0:  # an odd backtick is only a character
        return text(value)
    return join(*(element("code", part) if index % 2 else part for index, part in enumerate(parts)))


def _attribute(name: str) -> str:
    return name.removesuffix("_").replace("_", "-")
