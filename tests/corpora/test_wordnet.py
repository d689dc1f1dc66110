from __future__ import annotations

import pytest

from hf_ravlm.corpora import from_wordnet
from hf_ravlm.errors import InvalidInputError


LICENCE = (
    "  1 This software and database is being provided to you  \n  2 WordNet {version} Copyright 2006 by Princeton  \n"
)
# Lines in the form of wndb(5WN): pointers of several kinds, a hexadecimal word count, verb frames, adjective markers.
NOUNS = (
    "02084071 05 n 03 dog 0 domestic_dog 0 Canis_familiaris 0 "
    "003 @ 02083346 n 0000 @i 01317541 n 0000 ~ 01322604 n 0000"
    ' | a member of the genus Canis; "the dog barked | all night"  \n'
    "00001740 03 n 01 entity 0 000 | that which is perceived  \n"
    "00002000 05 n 0b " + " ".join(f"name_{number} 0" for number in range(11)) + " 000 | eleven names  \n"
)
VERBS = "00001740 29 v 02 breathe 0 respire 1 001 @ 02108377 v 0000 02 + 02 00 + 08 00 | draw air into the lungs  \n"
ADJECTIVES = (
    '00003552 00 s 02 galore(ip) 0 well_nigh(p) 0 001 & 00003356 a 0000 | in abundance; "daffodils galore"  \n'
)
ADVERBS = "00001837 02 r 01 a_cappella 0 000 | without musical accompaniment  \n"


@pytest.fixture
def wordnet(tmp_path):
    contents = {"noun": NOUNS, "verb": VERBS, "adj": ADJECTIVES, "adv": ADVERBS}
    for name, lines in contents.items():
        (tmp_path / f"data.{name}").write_text(LICENCE.format(version="3.0") + lines, encoding="utf-8")
    return tmp_path


def test_a_synset_becomes_its_words_and_its_gloss(wordnet):
    knowledge_base = from_wordnet(wordnet)
    assert knowledge_base.ids == ["n02084071", "n00001740", "n00002000", "v00001740", "a00003552", "r00001837"]
    dog = knowledge_base["n02084071"]
    assert dog.text == 'dog, domestic dog, Canis familiaris: a member of the genus Canis; "the dog barked | all night"'
    assert (dog.title, dog.source, dog.revision, dog.licence) == ("dog", "WordNet", "3.0", "WordNet-3.0")
    assert dog.metadata == {
        "part_of_speech": "noun",
        "category": "noun.animal",
        "words": ["dog", "domestic dog", "Canis familiaris"],
        "hypernyms": ["n02083346", "n01317541"],
    }
    assert knowledge_base["a00003552"].text == 'galore, well nigh: in abundance; "daffodils galore"'
    assert knowledge_base["v00001740"].metadata["category"] == "verb.body"
    assert len(knowledge_base["n00002000"].metadata["words"]) == 11


def test_parts_of_speech_are_chosen(wordnet):
    assert from_wordnet(wordnet, parts_of_speech=["adverb", "verb"]).ids == ["r00001837", "v00001740"]
    with pytest.raises(InvalidInputError, match=r"\['nouns'\].*'noun', 'verb'"):
        from_wordnet(wordnet, parts_of_speech=["nouns"])


def test_the_files_may_lie_in_a_folder_named_dict(wordnet):
    (wordnet / "package").mkdir()
    (wordnet / "package" / "dict").symlink_to(wordnet)
    assert len(from_wordnet(wordnet / "package")) == 6
    with pytest.raises(InvalidInputError, match="data.noun: there is no such file"):
        from_wordnet(wordnet / "dict")


@pytest.mark.parametrize(
    "line",
    [
        "no synset",
        "00001741 03 n 02 entity 0 000 | a word is missing",
        "00001741 99 n 01 entity 0 000 | no such file number",
        "00001741 03 n 01 entity 0 002 @ 00001740 n 0000 | a pointer is missing",
        "00001741 03 n 01 entity 0 000",
        "00001741 03 n 01 entity 0 000 | \udcff",
    ],
)
def test_a_broken_line_is_named_or_skipped(wordnet, line):
    with open(wordnet / "data.noun", "a", encoding="utf-8", errors="surrogateescape") as file:
        file.write(line + "\n")
    with pytest.raises(InvalidInputError, match="data.noun line 6 is not"):
        from_wordnet(wordnet)
    knowledge_base = from_wordnet(wordnet, on_error="skip")
    assert len(knowledge_base) == 6
    assert [item.where for item in knowledge_base.skipped] == ["data.noun line 6"]
