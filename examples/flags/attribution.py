"""Knows whose work the flags data is: sources, authors, licences, and what each asks of those who pass it on."""

from __future__ import annotations


MIT_NOTICE = """\
The MIT License (MIT)

Copyright (c) {holder}

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.
"""

RASTERISED = "The vector drawings were rasterised to at most 256 x 256 pixels and laid on white."


def _entry(source: str, author: str, url: str, licence: str, licence_url: str, notice: str, changes: str) -> dict:
    return {
        "source": source,
        "author": author,
        "url": url,
        "licence": licence,
        "licence_url": licence_url,
        "notice": notice,
        "changes": changes,
    }


LICENCES: dict[str, dict] = {
    "images": {
        "mledoze": _entry(
            "npm world-countries 5.1.0",
            "Mohammed Le Doze and contributors",
            "https://github.com/mledoze/countries",
            "no licence of its own",
            "https://en.wikipedia.org/wiki/Wikipedia:Copyright_on_emblems",
            "The package says that its flags are not under the ODbL of its data and points to Wikipedia's page on the "
            "copyright of emblems.",
            RASTERISED,
        ),
        "flagicons": _entry(
            "npm @iconify-json/flag 1.2.12 (Flag Icons)",
            "Panayiotis Lipiridis",
            "https://github.com/lipis/flag-icons",
            "MIT",
            "https://github.com/lipis/flag-icons/blob/main/LICENSE",
            MIT_NOTICE.format(holder="2025 Panayiotis Lipiridis"),
            RASTERISED,
        ),
        "flagpack": _entry(
            "npm @iconify-json/flagpack 1.2.8 (Flagpack)",
            "Yummygum",
            "https://github.com/Yummygum/flagpack-core",
            "MIT",
            "https://github.com/Yummygum/flagpack-core/blob/main/LICENSE",
            MIT_NOTICE.format(holder="2021 Yummygum"),
            RASTERISED,
        ),
        "coreui": _entry(
            "npm @iconify-json/cif 1.2.7 (CoreUI Flags)",
            "creativeLabs Łukasz Holeczek",
            "https://github.com/coreui/coreui-icons",
            "CC0-1.0",
            "https://creativecommons.org/publicdomain/zero/1.0/",
            "Dedicated to the public domain; named out of courtesy.",
            RASTERISED,
        ),
        "svgcf": _entry(
            "npm svg-country-flags 1.2.10",
            "Hampus Nilsson",
            "https://github.com/hjnilsson/country-flags",
            "public domain",
            "https://github.com/hjnilsson/country-flags",
            "In the public domain; named out of courtesy.",
            "The package's own pictures, 250 pixels wide, were laid on white.",
        ),
        "twemoji": _entry(
            "npm @iconify-json/twemoji 1.2.5 (Twitter Emoji)",
            "Twitter",
            "https://github.com/jdecked/twemoji",
            "CC-BY-4.0",
            "https://creativecommons.org/licenses/by/4.0/",
            "Twemoji by Twitter, licensed under CC BY 4.0; rasterised.",
            RASTERISED,
        ),
        "openmoji": _entry(
            "npm @iconify-json/openmoji 1.2.29 (OpenMoji)",
            "OpenMoji",
            "https://github.com/hfg-gmuend/openmoji",
            "CC-BY-SA-4.0",
            "https://creativecommons.org/licenses/by-sa/4.0/",
            "OpenMoji by the OpenMoji project, licensed under CC BY-SA 4.0; rasterised. Adaptations stay under the "
            "same licence.",
            RASTERISED,
        ),
    },
    "facts": _entry(
        "npm world-countries 5.1.0",
        "Mohammed Le Doze and contributors",
        "https://github.com/mledoze/countries",
        "ODbL-1.0",
        "https://opendatacommons.org/licenses/odbl/1-0/",
        "Contains information from the world-countries database by Mohammed Le Doze, which is made available under "
        "the Open Database License (ODbL) 1.0; a database derived from it stays under that licence when published.",
        "Columns were selected and renamed; fact questions were made from them.",
    ),
    "factbook": _entry(
        "The World Factbook, as converted by factbook/factbook.json, state of May 2026",
        "Central Intelligence Agency (United States)",
        "https://github.com/factbook/factbook.json",
        "public domain",
        "https://github.com/factbook/factbook.json",
        "In the public domain; named out of courtesy.",
        "Description and meaning of a flag were told apart by pattern; backgrounds were cut at 1,200 characters.",
    ),
}

_README = """\
# The flags data

National flags as {num_views} independent projects draw them, and what an almanac and a fact table say about each
country or territory: {num_images:,} pictures, {num_entities} countries, {num_questions:,} questions. The answer to
most questions is not in the pixels, so something has to be looked up. The program `prepare_data.py`, one folder up,
wrote everything here: change it there.

| file | what |
|---|---|
| `images.parquet` | one row per picture: `file_name`, `entity`, `view`, `role`, `split`, `image` |
| `kb.jsonl` | one row per country: facts and almanac texts; `null` where the source says nothing |
| `vqa.jsonl` | one row per question: `entity`, `type`, `question`, `answer` (the accepted strings) |
| `licences.json` | the table below for programs, with all notices |

A `view` is a drawing style. The `role` is `kb_key` for the picture that stands in the knowledge base, else `query`.
The `split` goes by country. An `image` is lossless WebP, RGB on white, at most 256 pixels a side, pixel for pixel as
it was rendered; `datasets.load_dataset("parquet", data_files="images.parquet")` decodes it by itself.

Countries of the split `test` are in the knowledge base only, with one drawing each. Some entries share one drawing
(Norway with Svalbard and Bouvet Island, Réunion with Saint Martin, Australia with Heard and McDonald Islands, the
United States with its Outlying Islands): no picture tells them apart, so count each group as one.

## Whose work this is

| part | pictures | source | author | licence |
|---|---|---|---|---|
{rows}

What the licences ask of whoever passes this folder on, or a picture made from it:

* **Twemoji** (CC BY 4.0): credit Twitter, link the licence, and say that the drawings were rasterised, as this
  sentence does.
* **OpenMoji** (CC BY-SA 4.0): the same for the OpenMoji project, and adaptations of these drawings keep this licence.
  A sheet that shows them beside others should carry both credits.
* **Flag Icons** and **Flagpack** (MIT): keep the copyright line and the permission notice printed below.
* **Facts** (ODbL 1.0): name the database and its licence, and keep a derived database under it when publishing. The
  fact columns of `kb.jsonl` and the questions of `vqa.jsonl` made from them are such a derivation in our reading,
  which is not legal advice.
* **Drawings of `world-countries`**: the package puts them under no licence and points to
  [Wikipedia's page on emblems](https://en.wikipedia.org/wiki/Wikipedia:Copyright_on_emblems).
* **Almanac texts, CoreUI Flags, `svg-country-flags`**: public domain or CC0; they ask for nothing.

The use of a national flag can have legal limits of its own, whoever drew it. The code of this repository is under
Apache-2.0; that licence does not extend to this folder.

## MIT notices

{notices}"""


def render_readme(views: dict[str, int], num_entities: int, num_questions: int) -> str:
    """The page for people. `views` counts the pictures of each drawing style."""
    parts = [(f"`{view}`", f"{views[view]:,}", LICENCES["images"][view]) for view in sorted(views)]
    parts += [("facts", "", LICENCES["facts"]), ("almanac texts", "", LICENCES["factbook"])]
    rows = [
        f"| {name} | {count} | [{entry['source']}]({entry['url']}) | {entry['author']} "
        f"| [{entry['licence']}]({entry['licence_url']}) |"
        for name, count, entry in parts
    ]
    notices = [
        f"{entry['source']}:\n\n```text\n{entry['notice']}```\n" for _, _, entry in parts if entry["licence"] == "MIT"
    ]
    return _README.format(
        num_views=len(views),
        num_images=sum(views.values()),
        num_entities=num_entities,
        num_questions=num_questions,
        rows="\n".join(rows),
        notices="\n".join(notices),
    )
