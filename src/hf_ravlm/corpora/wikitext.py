"""The markup of a wiki page as plain text, section by section.

Links become their words; templates, tables, images, references and lists of sources go. The parser is
`mwparserfromhell`, with which the data set `wikimedia/wikipedia` was made. Its time can grow with the square of the
number of marks that are opened and never closed, so these are counted first.
"""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, NamedTuple

from ..errors import InvalidInputError


MAX_WIKITEXT_CHARACTERS = 4_000_000  # MediaWiki itself stores 2 MiB at most
MAX_UNCLOSED = 50

_DROPPED_TAGS = frozenset(
    "ref references gallery table tr td th caption timeline score style script templatestyles mapframe maplink "
    "imagemap inputbox indicator hiero graph categorytree section pagelist noinclude".split()
)
_LINE_TAGS = {"br", "hr"}
_BLOCK_TAGS = {"div", "blockquote", "center", "poem"}
_OFTEN_OPEN_TAGS = {"br", "hr", "li", "dt", "dd", "td", "th", "tr", "wbr", "references"}

# Sections of links and sources, not of prose.
_APPARATUS = frozenset(
    name.casefold()
    for name in (
        "References", "External links", "See also", "Further reading", "Notes", "Bibliography", "Sources", "Footnotes",
        "Notes and references", "Citations", "Works cited", "Gallery",
        "参考文献", "參考文獻", "参考资料", "參考資料", "外部链接", "外部連結", "外部鏈接", "参见", "參見", "参看",
        "參看",
        "相关条目", "相關條目", "注释", "註釋", "注解", "延伸阅读", "延伸閱讀", "脚注", "来源", "來源",
        "Einzelnachweise", "Weblinks", "Literatur", "Siehe auch", "Anmerkungen",
        "Références", "Liens externes", "Voir aussi", "Bibliographie", "Notes et références", "Articles connexes",
        "Referencias", "Enlaces externos", "Véase también", "Bibliografía",
    )
)  # fmt: skip

_JOINS = {"-", "–", "to", "and", "or", "by", "x", "×", "±"}
_NUMBER = re.compile(r"[-+−]?[\d.,/⁄ ]+$")

_TAG = re.compile(r"<(?![/a-zA-Z][^<>]*>)")
_PARAGRAPH_TAG = re.compile(r"</?p\b[^<>]*>", re.IGNORECASE)
_REF = re.compile(r"<ref\b[^<>]*?(/?)>|</ref\s*>", re.IGNORECASE)
_BLOCK = re.compile(r"\{\{|\}\}|^[ \t:]*\{\||^[ \t]*\|\}(?!\})", re.MULTILINE)
_TEMPLATE_NAME = re.compile(r"\{\{([^|{}]{0,80})")
_MARK = re.compile(r"\{\{|\}\}|\[\[|\]\]|\{\||\|\}|\[(?=https?:|//)|\]|<(/?)([a-zA-Z]+)[^<>]*?(/?)>")
_CLOSED_BY = {"}}": "{{", "]]": "[[", "|}": "{|", "]": "["}
_VARIANTS = re.compile(r"-\{([^{}]*)\}-")
_VARIANT = re.compile(r"\s*(zh(?:-\w+)?)\s*:(.*)", re.DOTALL)
_VARIANT_ORDER = ("zh-cn", "zh-hans", "zh", "zh-sg", "zh-hant", "zh-tw", "zh-hk")
_MAGIC_WORD = re.compile(r"__[A-Z]{3,}__")
_EMPTY_BRACKETS = re.compile(r" ?\([\s,;:/–-]*\)|（[\s，；：、]*）")
_AFTER_BRACKET = re.compile(r"([(（])[ \t]*[,;，；][ \t]*")
_SPACES = re.compile(r"[^\S\n]+")
_LINE_SPACES = re.compile(r" ?\n ?")
_BLANK_LINES = re.compile(r"\n{3,}")
_LANGUAGE_PREFIX = re.compile(r"[a-z]{2,3}(-[a-z-]+)?$")


class Section(NamedTuple):
    """A part of a page: its headings from the outermost on, none for the lead, and its text."""

    headings: tuple[str, ...]
    text: str


def page_sections(wikitext: str, no_prose: Collection[str] = ("file", "image", "category")) -> list[Section]:
    r"""Turns the markup of a page into its sections of prose, in order, without lists of references and links.

    Args:
        wikitext: The markup.
        no_prose: Namespaces in small letters whose links are dropped.

    Raises:
        InvalidInputError: If the markup is too long, or so broken that parsing would take unbounded time.
        ImportError: If `mwparserfromhell` is missing.

    Example:

    ```python
    >>> from hf_ravlm.corpora.wikitext import page_sections
    >>> page_sections("A '''wren''' is a [[bird|small bird]].<ref>Book</ref>\n== Song ==\nAbout {{cvt|90|dB}}.")
    [Section(headings=(), text='A wren is a small bird.'), Section(headings=('Song',), text='About 90 dB.')]

    ```
    """
    try:
        import mwparserfromhell
    except ImportError as error:
        raise ImportError(
            'Reading wiki markup needs mwparserfromhell: pip install "hf_ravlm[wikipedia]". The Parquet files of '
            "wikimedia/wikipedia are read without it."
        ) from error
    if len(wikitext) > MAX_WIKITEXT_CHARACTERS:
        raise InvalidInputError(
            f"The markup has {len(wikitext):,} characters; {MAX_WIKITEXT_CHARACTERS:,} are allowed."
        )
    source = _without(_comments, wikitext)
    source = _REF.sub("", _without(_references, source))
    source = _without(_blocks, source)
    source = _TAG.sub("&lt;", _PARAGRAPH_TAG.sub("\n\n", source))
    num_unclosed = _count_unclosed(source)
    if num_unclosed > MAX_UNCLOSED:
        raise InvalidInputError(f"{num_unclosed} marks of the markup are opened and never closed.")
    try:
        nodes = mwparserfromhell.parse(source).nodes
        return list(_sections(nodes, frozenset(no_prose)))
    except (mwparserfromhell.parser.ParserError, RecursionError) as error:
        raise InvalidInputError(f"The markup cannot be parsed ({type(error).__name__}: {error}).") from error


def _sections(nodes: Iterable[Any], no_prose: frozenset[str]) -> Iterator[Section]:
    headings: list[tuple[int, str]] = []
    parts: list[str] = []
    for node in nodes:
        if type(node).__name__ == "Heading":
            yield from _section(headings, parts)
            headings = [heading for heading in headings if heading[0] < node.level]
            headings.append((node.level, _tidy(_plain(node.title.nodes, no_prose))))
            parts = []
        else:
            parts.append(_plain([node], no_prose))
    yield from _section(headings, parts)


def _section(headings: list[tuple[int, str]], parts: list[str]) -> Iterator[Section]:
    text = _tidy("".join(parts))
    titles = tuple(title for _, title in headings)
    if text and not any(title.casefold() in _APPARATUS for title in titles):
        yield Section(titles, text)


def _plain(nodes: Iterable[Any], no_prose: frozenset[str]) -> str:
    """The words of parsed markup."""
    return "".join(_PLAIN[type(node).__name__](node, no_prose) for node in nodes if type(node).__name__ in _PLAIN)


def _plain_link(node: Any, no_prose: frozenset[str]) -> str:
    title = str(node.title).strip()
    prefix, colon, _ = title.partition(":")
    prefix = prefix.strip().replace("_", " ").lower()
    if colon and (prefix in no_prose or (node.text is None and _LANGUAGE_PREFIX.match(prefix))):
        return ""
    return title.lstrip(":") if node.text is None else _plain(node.text.nodes, no_prose)


def _plain_tag(node: Any, no_prose: frozenset[str]) -> str:
    name = str(node.tag).strip().lower()
    if name in _DROPPED_TAGS:
        return ""
    if name in _LINE_TAGS:
        return "\n"
    if node.wiki_markup and node.self_closing:  # the mark of a list or an indented line
        return "- " if name == "li" else ""
    text = _plain(node.contents.nodes, no_prose) if node.contents is not None else ""
    return f"\n{text}\n" if name in _BLOCK_TAGS else text


def _plain_template(node: Any, no_prose: frozenset[str]) -> str:
    read = _inline_reader(str(node.name))
    if read is None:
        return ""
    return read([_plain(each.value.nodes, no_prose).strip() for each in node.params if not each.showkey])


def _inline_reader(name: str) -> Callable[[list[str]], str] | None:
    """The reader of a template that stands in sentences, given its arguments without a name; `None` for others."""
    name = name.strip().lower().replace("_", " ")
    if name in _MARKS:
        return lambda _: _MARKS[name]
    if name.startswith(("link-", "lang-", "internal link helper/")):
        return _first
    return _INLINE_TEMPLATES.get(name)


def _first(arguments: list[str]) -> str:
    return "".join(arguments[:1])


def _quantity(arguments: list[str]) -> str:
    """`5|km|mi` and `60|to|170|kg|lb`: numbers up to the first unit."""
    parts: list[str] = []
    for argument in arguments:
        parts.append(argument)
        if argument not in _JOINS and not _NUMBER.match(argument):
            break
    return " ".join(parts)


_FIRST_ARGUMENT = (
    "nowrap nobr small big larger abbr tooltip em strong ill nihongo quote blockquote cquote mvar var math angbr "
    "sic le"
).split()
_MARKS = {
    "ndash": "–", "endash": "–", "–": "–", "snd": " – ", "spaced ndash": " – ", "mdash": "—", "nbsp": " ", "'": "'",
    "!": "|", "=": "=",
}  # fmt: skip
_INLINE_TEMPLATES: dict[str, Callable[[list[str]], str]] = {
    **dict.fromkeys([*_FIRST_ARGUMENT, "interlanguage link", "visible anchor", "not a typo", "as written"], _first),
    **dict.fromkeys(["convert", "cvt"], _quantity),
    **dict.fromkeys(["circa", "c."], lambda arguments: f"c. {_first(arguments)}".strip()),
    "as of": lambda arguments: " ".join(["As of", *arguments]),
    "lang": lambda arguments: "".join(arguments[1:2]),
    "tsl": lambda arguments: "".join(arguments[-1:]),
}

_PLAIN = {
    "Text": lambda node, _: str(node.value),
    "HTMLEntity": lambda node, _: node.normalize() or "",
    "ExternalLink": lambda node, no_prose: _plain(node.title.nodes, no_prose) if node.title is not None else "",
    "Wikilink": _plain_link,
    "Tag": _plain_tag,
    "Template": _plain_template,
}


def _tidy(text: str) -> str:
    text = html.unescape(text)
    text = _VARIANTS.sub(_chosen_variant, text)
    text = _MAGIC_WORD.sub("", text)
    text = _SPACES.sub(" ", text)
    text = _EMPTY_BRACKETS.sub("", text)
    text = _AFTER_BRACKET.sub(r"\1", text)
    text = _LINE_SPACES.sub("\n", text)
    return _BLANK_LINES.sub("\n\n", text).strip()


def _chosen_variant(match: re.Match[str]) -> str:
    """`-{zh-hans:计算机; zh-hant:電腦}-` of the Chinese wikis is one word in two scripts; simplified goes first."""
    flag, bar, content = match.group(1).rpartition("|")
    if bar and flag.strip().upper() in ("H", "T", "-", "D"):
        return ""
    found = (_VARIANT.match(rule) for rule in content.split(";"))
    words = {rule.group(1).lower(): rule.group(2).strip() for rule in found if rule}
    if not words:
        return content
    return next((words[name] for name in _VARIANT_ORDER if name in words), next(iter(words.values())))


def _without(find: Callable[[str], Iterable[tuple[int, int]]], text: str) -> str:
    """A text without the spans that `find` yields from left to right. What goes need not be parsed: most of a page."""
    kept: list[str] = []
    position = 0
    for start, end in find(text):
        kept.append(text[position:start])
        position = end
    return "".join([*kept, text[position:]])


def _comments(text: str) -> Iterator[tuple[int, int]]:
    position = 0
    while (start := text.find("<!--", position)) >= 0 and (end := text.find("-->", start)) >= 0:
        position = end + 3
        yield start, position


def _references(text: str) -> Iterator[tuple[int, int]]:
    opened: int | None = None
    for match in _REF.finditer(text):
        is_end = match.group().startswith("</")
        is_empty = not is_end and match.group(1) == "/"
        if is_end and opened is not None:
            yield opened, match.end()
            opened = None
        elif is_empty and opened is None:
            yield match.span()
        elif not is_end and not is_empty:
            opened = match.start()


def _blocks(text: str) -> Iterator[tuple[int, int]]:
    """Tables, and templates that are not read."""
    opened: list[tuple[str, int]] = []
    for match in _BLOCK.finditer(text):
        mark = match.group().strip(" \t:")
        if mark in ("{{", "{|"):
            opened.append((mark, match.start()))
        elif opened and opened[-1][0] == _CLOSED_BY[mark]:
            start = opened.pop()[1]
            name = _TEMPLATE_NAME.match(text, start) if mark == "}}" else None
            if not opened and (name is None or _inline_reader(name.group(1)) is None):
                yield start, match.end()


def _count_unclosed(text: str) -> int:
    """The number of marks that are opened and not closed, or not before what they stand in is closed."""
    num_unclosed = 0
    opened: list[str] = []
    depths: Counter[str] = Counter()
    for match in _MARK.finditer(text):
        mark, name = match.group(), (match.group(2) or "").lower()
        if name in _OFTEN_OPEN_TAGS or match.group(3):
            continue
        is_end = mark in _CLOSED_BY or match.group(1) == "/"
        kind = name or _CLOSED_BY.get(mark, mark)
        if not is_end:
            opened.append(kind)
            depths[kind] += 1
        elif depths[kind]:
            while (inner := opened.pop()) != kind:
                depths[inner] -= 1
                num_unclosed += 1
            depths[kind] -= 1
    return num_unclosed + len(opened)
