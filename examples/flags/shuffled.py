"""Knows fictional countries: real rows whose facts are exchanged or made up, so that they can be copied but not known.

A reader that is trained on 150 real countries learns them by heart and answers from memory; asked about the 151st, it
names one of the 150. Here no two examples agree on any fact, so looking it up in the passages is all that helps. The
passages are those of the knowledge base, one for each fact that people ask for.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from flags.invented import MONEY, InventedNames, exchange_words
from flags.questions import KINDS, SHORT_KINDS, ask
from flags.texts import DESCRIBING, description, fact_fields, facts_text, passage_texts
from flags.wordings import ask_in_noise


UNKNOWN = "unknown"  # the answer where no passage has one
CLOSED_BOOK_SHARE = 0.05
ANSWERED_FIRST_SHARE = 0.88
WHOLE_SHARE, RIVALS_SHARE, MOST_PASSAGES = 0.75, 0.2, 9  # of `whole_example`
# Of `whole_example`, too: what a search brings, what stage 3 reads, and of the former whether it stands first, or not
# at all, and how many have a long answer.
FOUND_SHARE, USUAL_SHARE, FOUND_FIRST_SHARE, MISSED_SHARE, LONG_SHARE = 0.5, 0.3, 0.5, 0.06, 0.5
LEFT_OUT = {"facts": 0.65, "background": 0.75}  # shares; any other passage is missing less often
ASKED_BY_PASSAGE = {**{kind: kind for kind in (*SHORT_KINDS, "meaning")}, "flag": "describe"}
_LESSER_FIELDS = ("demonym", "calling", "area", "independence", "national_symbol", "national_colors")

# With a tokenizer of bytes, a reader that was not asked so took the particle 吗 for a letter of what is asked for; a
# search did not gain by it. What it is worth where letters are tokens was not measured.
ask_reader = partial(ask_in_noise, particle_share=0.5)


class Example(NamedTuple):
    """Passages, best first, and questions on them.

    Attributes:
        passages (`list[str]`): Empty for closed-book questions.
        turns (`list[tuple[str, str, str]]`): (kind, question, answer).
    """

    passages: list[str]
    turns: list[tuple[str, str, str]]


class Shown(NamedTuple):
    """One passage of an example: its kind, the country that it tells of, its text."""

    kind: str
    row: Mapping
    text: str


class ShuffledCountries:
    """Samples fictional countries and questions on them without end; everything follows from `rows` and `seed`.

    Args:
        rows (`Sequence[dict]`): Rows of the knowledge base; no others lend facts or words.
        seed (`int`): The same seed gives the same examples in the same order.

    Raises:
        ValueError: If there is a field that no row has a value of.

    Example:

    ```python
    >>> rows = [{"id": "ut", "name": "Utopia", "languages": ["Utopian"], "currency": ["gold"], "capital": "Amaurot",
    ...          "region": "Ocean", "subregion": "Middle Ocean", "official": "State of Utopia", "demonym": "Utopian",
    ...          "flag_desc": "white", "flag_meaning": "white for peace", "calling": "+1", "area": 1,
    ...          "independence": "1516", "national_symbol": "book", "national_colors": "white", "background": "None."}]
    >>> passages, turns = ShuffledCountries(rows, seed=0).example()
    >>> all(answer in " ".join(passages) for kind, _, answer in turns if kind != "describe" and answer != "unknown")
    True

    ```
    """

    def __init__(self, rows: Sequence[Mapping], seed: int = 0):
        self.rows, self.rng = rows, random.Random(seed)
        self.pools = {
            field: [row[field] for row in rows if row.get(field)]
            for field in ("name", "capital", "subregion", "region", "official", *_LESSER_FIELDS)
        }
        self.pools["language"] = [language for row in rows for language in row.get("languages") or []]
        self.pools["currency"] = [currency for row in rows for currency in row.get("currency") or []]
        self.texts = {
            field: [row[field] for row in rows if row.get(field)]
            for field in ("flag_desc", "flag_meaning", "background")
        }
        self.clauses = {
            field: [clause.strip() for text in self.texts[field] for clause in text.split(";")]
            for field in ("flag_desc", "flag_meaning")
        }
        empty = [field for field, values in (self.pools | self.clauses).items() if not values]
        if empty:
            raise ValueError(f"no row has a value of {', '.join(empty)}: pass more rows, there is nothing to shuffle")
        words = sorted({word for texts in self.texts.values() for text in texts for word in _words(text)})
        self.names = InventedNames(words, self.pools["name"] + self.pools["capital"], self.rng)

    def example(self, short_only: bool = False, ask: Callable[[str, random.Random], str] = ask) -> Example:
        """The next example.

        Most of them ask one question whose passage stands first, as a good retriever puts it; the others ask several,
        so that the reader must look for the passage that answers.

        Args:
            short_only (`bool`): Only contexts of one country, with few passages: what to start with.
            ask (`Callable[[str, random.Random], str]`): words a question of a kind.
        """
        rng = self.rng
        if rng.random() < CLOSED_BOOK_SHARE:
            return self._closed_book()
        shown = self._shown(rng.choice([1, 2, 3]) if short_only else rng.choice([1, 2, 3, 4, 4, 4, 5]))
        if not short_only and rng.random() < 0.5:
            other = self._shown(rng.choice([1, 1, 2, 3]))
            shown = (shown + other)[: rng.choice([4, 4, 6])]
            if rng.random() < 0.1:
                rng.shuffle(shown)
        if rng.random() < ANSWERED_FIRST_SHARE:
            shown = self._as_retrieved(shown, num_rivals=0 if short_only else rng.choice([0, 0, 1, 2, 3]))
            kinds = [ASKED_BY_PASSAGE.get(shown[0].kind, "name")]
            answers = answers_from(shown)
        else:
            answers = answers_from(shown)
            kinds = self._kinds_to_ask(answers, len(shown))
        return Example([passage.text for passage in shown], [(kind, ask(kind, rng), answers[kind]) for kind in kinds])

    def whole_example(self) -> Example:
        """Passages of one country in any order, and many questions on them, in the wordings of `flags.wordings`.

        Most are what a search for one passage brings, see `_found_example`, many those of `example` in other words. Of
        the others most are all that is known of the country, as a search by group brings it; some are a few of them,
        and behind some stand passages about other countries. What no passage of the country answers is asked for, too.
        """
        rng = self.rng
        if rng.random() < CLOSED_BOOK_SHARE:
            return self._closed_book()
        if (sort := rng.random()) < FOUND_SHARE:
            return self._found_example()
        if sort < FOUND_SHARE + USUAL_SHARE:
            return self.example(ask=rng.choice((ask, ask, ask_reader)))
        row = self.country()
        shown = [one for one in self.passages_of(row) if rng.random() >= LEFT_OUT.get(one.kind, 0.06)]
        shown = shown or self.passages_of(row)
        rng.shuffle(shown)
        if rng.random() >= WHOLE_SHARE:
            shown = shown[: rng.choice([1, 1, 2, 3, 4])]
        answers = answers_from(shown)
        if rng.random() < RIVALS_SHARE:
            rivals = self.passages_of(self.country())
            shown = (shown + rng.sample(rivals, min(rng.choice([1, 2, 3]), len(rivals))))[:MOST_PASSAGES]
        turns = [(kind, ask_reader(kind, rng), answers[kind]) for kind in self._many_kinds(answers)]
        return Example([passage.text for passage in shown], turns)

    def country(self) -> dict:
        """A row like those of the knowledge base, of a country that does not exist."""
        rng = self.rng
        row = dict(rng.choice(self.rows))
        old_name = row["name"]
        row["name"] = name = self._value("name", row["name"])
        self._exchange_main_facts(row)
        self._exchange_lesser_facts(row, old_name)
        if rng.random() < 0.1:  # as in Gibraltar, Singapore, Djibouti
            row["capital"] = name
        if rng.random() < 0.75:
            self._name_after_country(row)
        for field, share in (("flag_desc", 0.95), ("flag_meaning", 0.9)):
            row[field] = self._flag_text(field, row, old_name) if rng.random() < share else None
        if row.get("background"):
            if rng.random() < 0.5:
                row["background"] = rng.choice(self.texts["background"])
            row["background"] = row["background"].replace(old_name, name)
        return row

    def passages_of(self, row: Mapping) -> list[Shown]:
        """The passages of a country; some of "More facts" are often missing, and the background is cut short."""
        rng = self.rng
        texts = {kind: text for kind, (_, text) in passage_texts(row).items()}
        fields = fact_fields(row)
        if fields:
            rng.shuffle(fields)
            texts["facts"] = facts_text(row["name"], fields[: rng.randint(1, len(fields))])
        if "background" in texts and rng.random() < 0.6:  # the longest passage, and no question needs it
            header, colon, told = texts["background"].partition(": ")  # a name may hold a full stop ("St. Lucia")
            kept = ". ".join(told.split(". ")[: rng.randint(1, 2)]).rstrip(".")
            texts["background"] = f"{header}{colon}{kept}."
        return [Shown(kind, row, text) for kind, text in texts.items()]

    def _closed_book(self) -> Example:
        """No passage: what the question itself tells is answered, half of the time, and nothing else is known."""
        rng = self.rng
        told = {one.kind: one for one in self.passages_of(self.country())}
        answers = answers_from(list(told.values()))
        turns = []
        for kind in KINDS:
            question, answer = rng.choice((ask, ask_reader))(kind, rng), UNKNOWN
            if kind in SHORT_KINDS and kind in told and rng.random() < 0.5:
                question, answer = f"{told[kind].text} {question}", answers[kind]
            turns.append((kind, question, answer))
        return Example([], turns)

    def _shown(self, num_passages: int) -> list[Shown]:
        """Some passages of a new country, long ones less often; one time in five, first those on the flag."""
        rng = self.rng
        passages = self.passages_of(self.country())
        rng.shuffle(passages)
        if rng.random() < 0.4:
            passages = [passage for passage in passages if passage.kind not in ("facts", "background")]
        if rng.random() < 0.2:
            passages.sort(key=lambda passage: passage.kind not in ("flag", "meaning"))
        return passages[:num_passages]

    def _as_retrieved(self, shown: list[Shown], num_rivals: int) -> list[Shown]:
        """Brings a passage that answers to the front, and behind it what a retriever brings along: further passages of
        the country, and those of the same kind about others.
        """
        first = next((passage for passage in shown if passage.kind in ASKED_BY_PASSAGE), shown[0])
        rivals = [
            passage
            for _ in range(num_rivals)
            for passage in self.passages_of(self.country())
            if passage.kind == first.kind
        ]
        rest = [passage for passage in shown if passage is not first] + rivals
        self.rng.shuffle(rest)
        return [first, *rest][:6]

    def _found_example(self) -> Example:
        """A passage that answers, most times the first of a few, and questions on it in several wordings.

        Seldom the search missed it, and then the answer is not known. Behind it stand passages of the country and, in
        some examples, such as answer the same question about others.
        """
        rng = self.rng
        passages = [one for one in self.passages_of(self.country()) if rng.random() >= LEFT_OUT.get(one.kind, 0)]
        rng.shuffle(passages)
        gold = next(one for one in passages if one.kind in ASKED_BY_PASSAGE)
        if rng.random() < LONG_SHARE:
            wanted = rng.choice(("flag", "flag", "meaning"))
            gold = next((one for one in passages if one.kind == wanted), gold)
        kind = ASKED_BY_PASSAGE[gold.kind]
        rest = [one for one in passages if one is not gold][: rng.choice([0, 0, 1, 1, 2, 3])]
        missed = bool(rest) and kind != "name" and rng.random() < MISSED_SHARE
        first = missed or rng.random() < FOUND_FIRST_SHARE
        shown = rest if missed else [gold, *rest] if first else rng.sample([gold, *rest], len(rest) + 1)
        answers = answers_from(shown)
        if rng.random() < RIVALS_SHARE:
            rivals = self.passages_of(self.country())
            shown = shown + ([one for one in rivals if one.kind == gold.kind] or rivals[:1])
        kinds = [kind] * (1 if kind in ("meaning", "describe") else 3)
        kinds += [one.kind for one in rest if one.kind in SHORT_KINDS and rng.random() < 0.5]
        if kind == "meaning" or kind != "describe" and rng.random() < 0.15:
            kinds.append("describe")
        turns = [(kind, ask_reader(kind, rng), answers[kind]) for kind in kinds]
        return Example([passage.text for passage in shown], turns)

    def _kinds_to_ask(self, answers: Mapping[str, str], num_passages: int) -> list[str]:
        rng = self.rng
        known = [kind for kind in KINDS if answers[kind] != UNKNOWN]
        missing = [kind for kind in KINDS if answers[kind] == UNKNOWN]
        kinds = [kind for kind in known if kind in SHORT_KINDS]
        rng.shuffle(kinds)
        if "meaning" in known and rng.random() < 0.6:
            kinds.append("meaning")
        if rng.random() < (0.3 if num_passages > 1 else 0.05):
            kinds.append("describe")
        if missing and rng.random() < 0.1:
            kinds.append(rng.choice(missing))
        rng.shuffle(kinds)
        return kinds

    def _many_kinds(self, answers: Mapping[str, str]) -> list[str]:
        """Short answers two or three times each, in as many wordings; long ones and what is not known less often."""
        rng = self.rng
        kinds = [kind for kind in SHORT_KINDS if answers[kind] != UNKNOWN for _ in range(rng.choice([2, 3]))]
        kinds += [kind for kind in (*SHORT_KINDS, "meaning") if answers[kind] == UNKNOWN and rng.random() < 0.6]
        if answers["meaning"] != UNKNOWN and rng.random() < 0.6:
            kinds.append("meaning")
        if rng.random() < 0.7:
            kinds.append("describe")
        rng.shuffle(kinds)
        return kinds

    def _value(self, field: str, own: str | None = None) -> str:
        """One value of a field: the country's own, another country's, or an invented one."""
        sort = self.rng.random()
        if own and sort < 0.2:
            value = own
        else:
            value = self.rng.choice(self.pools[field]) if sort < 0.5 else self.names.value(field)
        return _as_shown(value)

    def _values(self, field: str, num_values: int) -> list[str]:
        return list(dict.fromkeys(self._value(field) for _ in range(num_values)))

    def _exchange_main_facts(self, row: dict) -> None:
        """What has a passage of its own and is asked for; each is missing now and then."""
        rng = self.rng
        row["capital"] = self._value("capital", row.get("capital")) if self._present() else None
        row["subregion"] = self._value("subregion", row.get("subregion")) if self._present() else ""
        if rng.random() < 0.5:
            row["region"] = rng.choice(self.pools["region"]) if rng.random() < 0.5 else self.names.word()
        num_languages = rng.choice([1, 1, 1, 2, 2, 3, 4])
        row["languages"] = self._values("language", num_languages) if self._present() else []
        row["currency"] = self._values("currency", rng.choice([1, 1, 1, 2, 3])) if self._present() else []

    def _present(self) -> bool:
        return self.rng.random() < 0.97

    def _exchange_lesser_facts(self, row: dict, old_name: str) -> None:
        rng = self.rng
        if old_name in (row.get("official") or ""):
            row["official"] = row["official"].replace(old_name, row["name"])
        else:
            row["official"] = rng.choice(["Republic of ", "Kingdom of ", "Territory of ", ""]) + row["name"]
        if rng.random() < 0.3:
            row["official"] = rng.choice(self.pools["official"])
        for field in _LESSER_FIELDS:
            if rng.random() < 0.6:
                row[field] = rng.choice(self.pools[field])
        row["borders"] = [self._value("name") for _ in range(rng.choice([0, 1, 2, 3, 5]))]

    def _name_after_country(self, row: dict) -> None:
        """Bulgaria, Bulgarian, Bulgarian lev: values with one beginning, where copying must not slip."""
        rng = self.rng
        row["demonym"] = people = self.names.people(row["name"])
        if row["currency"] and rng.random() < 0.8:
            row["currency"][0] = f"{people} {rng.choice([*MONEY, self.names.word().lower()])}"
        if row["languages"] and rng.random() < 0.6:
            row["languages"][rng.randrange(len(row["languages"]))] = people
        if row["capital"] and rng.random() < 0.15:
            town = rng.random() < 0.5
            row["capital"] = (
                f"{row['name']} {rng.choice(['City', 'Town'])}" if town else self.names.people(row["name"])
            )

    def _flag_text(self, field: str, row: Mapping, old_name: str) -> str:
        """Description or meaning: the row's own, or clauses of several; some words exchanged, the name strewn in."""
        rng, own = self.rng, row.get(field)
        if own and rng.random() < 0.3:
            text = own
        else:
            num_clauses = min(rng.choice([1, 1, 2, 2, 3, 4]), len(self.clauses[field]))
            text = "; ".join(rng.sample(self.clauses[field], num_clauses))
        text = exchange_words(text, rng.choice([0, 0.05, 0.2, 0.2, 0.5, 1]), self.names)
        text = text.replace(old_name, row["name"]).strip()
        if rng.random() >= 0.5:
            return text
        mentions = [row["name"], row["name"] + "'s", row["demonym"] or row["name"]]
        return " ".join(rng.choice(mentions) if rng.random() < 0.06 else word for word in text.split(" "))


def answers_from(shown: Sequence[Shown]) -> dict[str, str]:
    """Every kind's answer: from the first passage that has it; name and description are the first passage's country's.

    Returns:
        `dict[str, str]`: Kind → answer, `UNKNOWN` where no passage has one.
    """
    first = shown[0].row
    answers = dict.fromkeys(KINDS, UNKNOWN)
    answers["name"] = first["name"]
    for kind, row, _ in shown:
        if kind in SHORT_KINDS and answers[kind] == UNKNOWN:
            answers[kind] = _short_answers(row).get(kind, UNKNOWN)
        elif kind in ("flag", "meaning") and row.get("flag_meaning") and answers["meaning"] == UNKNOWN:
            answers["meaning"] = row["flag_meaning"].strip()
    own = {kind: text for kind, row, text in shown if row is first}
    answers["describe"] = next((own[kind] for kind in DESCRIBING if kind in own), description({"name": first["name"]}))
    return answers


def _short_answers(row: Mapping) -> dict[str, str]:
    """The answers that a country's passages give; of several languages or currencies the first."""
    values = {
        "name": row["name"],
        "capital": row.get("capital"),
        "language": next(iter(row.get("languages") or []), None),
        "currency": next(iter(row.get("currency") or []), None),
        "subregion": row.get("subregion") or row.get("region"),
    }
    return {key: _as_shown(value) for key, value in values.items() if value}


def _as_shown(value: str) -> str:
    """A value as its passage shows it: `answer_values` takes full stops off the ends."""
    return value.strip(" .")


def _words(text: str) -> list[str]:
    return re.findall(r"[\w'-]+", text)
