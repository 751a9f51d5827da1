"""HTML for tests: is it well formed, and what does a reader see?"""

from __future__ import annotations

from html.parser import HTMLParser

VOID = frozenset(("br", "meta", "link", "hr", "img"))


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.classes: list[tuple[str, str]] = []
        self.text: list[str] = []
        self._in_class: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
            self._in_class.append(dict(attrs).get("class") or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> in {self.open}"
        self.open.pop()
        self._in_class.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "style":
            return
        self.text.append(data)
        if self._in_class and self._in_class[-1]:
            self.classes.append((self._in_class[-1], data))


class Seen:
    """A page as read: `text`, the `tags` in order, `marked("changed")` the texts of a class."""

    def __init__(self, html: str) -> None:
        reader = _Reader()
        reader.feed(html)
        reader.close()
        assert not reader.open, f"never closed: {reader.open}"
        self.tags = reader.tags
        self.text = "".join(reader.text)
        self._classes = reader.classes

    def marked(self, name: str) -> list[str]:
        """The texts directly inside elements of a class."""
        return [text for names, text in self._classes if name in names.split()]


def seen(shown: object) -> Seen:
    """What a notebook shows of an object."""
    html: str = shown._repr_html_()  # type: ignore[attr-defined]
    return Seen(html)
