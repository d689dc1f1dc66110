"""Knows how people ask about a flag: one official wording per kind, paraphrases to train on, others to be judged by.

Kinds are what an answer is about. `SHORT_KINDS` and `meaning` have a passage of their own, as in `flags.texts.KINDS`:
a few words out of it answer the former, all that stands behind its colon the latter. `describe` is answered by the
sentences that `flags.texts.description` makes, out of the passages on the flag and its meaning.
"""

from __future__ import annotations

import random

from hf_ravlm.model.configuration_ravlm import DESCRIBE_PROMPT


SHORT_KINDS = ("name", "capital", "language", "currency", "subregion")
KINDS = (*SHORT_KINDS, "meaning", "describe")

# The questions of `vqa.jsonl`, word for word; that file has none for `describe`.
OFFICIAL = {
    "name": "Which country or territory does this flag belong to?",
    "capital": "What is the capital of the country that uses this flag?",
    "language": "Name an official language of the country with this flag.",
    "currency": "Which currency is used in the country with this flag?",
    "subregion": "In which part of the world is the country with this flag?",
    "meaning": "What do the colours of this flag stand for?",
    "describe": "Describe this flag: whose is it, what does it show and what does it mean?",
}
PARAPHRASES = {
    "name": (
        "Whose flag is this?",
        "Which country is this?",
        "What country does this flag represent?",
        "Name the country with this flag.",
        "Which place uses this flag?",
        "This flag is from which country?",
        "Tell me the country this flag belongs to.",
        "What is the name of the country or territory shown here?",
        "Identify the country of this flag.",
        "To which nation does the flag belong?",
        "Where is this flag from?",
        "Who flies this flag?",
        "Can you name this territory?",
    ),
    "capital": (
        "What is the capital?",
        "Which city is the capital of this country?",
        "What is this country's capital city?",
        "Name the capital.",
        "What city is the seat of government here?",
        "Tell me the capital of the place with this flag.",
        "Which capital belongs to this flag?",
        "What is the capital city of this nation?",
        "The capital of this country is called what?",
        "Capital city?",
        "Give the capital of the country shown.",
        "Which town is the capital of this territory?",
    ),
    "language": (
        "Which language is spoken there?",
        "What is the official language?",
        "Name a language of this country.",
        "What do people speak in this country?",
        "Which languages are spoken in the country with this flag?",
        "Give one language spoken there.",
        "What language do they speak?",
        "Tell me an official language of this nation.",
        "In which language would people talk here?",
        "Language?",
        "What tongue is used in this territory?",
        "Which language is official here?",
    ),
    "currency": (
        "What is the currency?",
        "What money do they use there?",
        "Which money is used in this country?",
        "What is this country's currency?",
        "Name the currency.",
        "What do people pay with there?",
        "Tell me the currency of this nation.",
        "In what currency are prices there?",
        "Which currency belongs to this flag?",
        "What is the legal tender in this territory?",
        "Give the currency of the country shown.",
        "Currency?",
    ),
    "subregion": (
        "Where is this country?",
        "Which region of the world is it in?",
        "Where in the world is this country?",
        "Which part of the world is this?",
        "In what region does this country lie?",
        "Name the part of the world.",
        "Tell me the region of the country with this flag.",
        "Where does this country lie?",
        "What region of the globe is this nation in?",
        "Region?",
        "Where on the map is this territory found?",
        "To which world region does the country belong?",
    ),
    "meaning": (
        "What does this flag mean?",
        "What is the meaning of this flag?",
        "What do the colors stand for?",
        "What do the symbols of this flag mean?",
        "Explain the colours of the flag.",
        "What does the flag symbolize?",
        "Why does the flag have these colours?",
        "What is the flag meant to express?",
        "Tell me the meaning of the flag.",
        "What do the colours and symbols represent?",
        "Meaning?",
        "What does the design stand for?",
    ),
    "describe": (
        DESCRIBE_PROMPT,  # what the processor asks where no question is given
        "Describe this flag.",
        "Describe the flag.",
        "Describe this picture.",
        "What can you tell me about this flag?",
        "Tell me about this flag.",
        "Give a description of this flag and its meaning.",
        "Describe the flag, its country and its meaning.",
        "Write a short text about this flag.",
        "What is this? Describe it in full.",
        "Describe whose flag this is, what it shows and what it means.",
        "Explain this flag in detail.",
    ),
}
# Never trained on: how well the reader does when people ask in words of their own.
UNSEEN = {
    "name": (
        "What nation uses this flag?",
        "Please tell me which country this banner belongs to.",
        "Which state or territory is this flag for?",
    ),
    "capital": (
        "Can you tell me the capital city of the flag's country?",
        "Which city serves as capital there?",
        "What would the capital of this land be?",
    ),
    "language": (
        "What is one of the languages people speak in this land?",
        "Can you name an official language there?",
        "Which language is used by the people with this flag?",
    ),
    "currency": (
        "What kind of money is used in this land?",
        "Can you tell me the currency there?",
        "With which currency do people pay here?",
    ),
    "subregion": (
        "Whereabouts in the world is this land?",
        "Can you tell me the region where this country lies?",
        "What part of the globe is it in?",
    ),
    "meaning": (
        "What is the symbolism of the colours?",
        "Can you explain what the flag stands for?",
        "What do this flag's colours represent?",
    ),
    "describe": (
        "Please describe the flag.",
        "Can you describe this flag and say what it means?",
        "What is shown here? Describe the flag.",
    ),
}

# Questions that no picture goes with, for the retriever: they name the country.
NAMED = {
    "name": ("Which flag is the flag of {name}?", "Show me the flag of {name}.", "{name}"),
    "capital": ("What is the capital of {name}?", "Which city is the capital of {name}?", "capital of {name}"),
    "language": ("Which language is spoken in {name}?", "What do people speak in {name}?", "languages of {name}"),
    "currency": ("What is the currency of {name}?", "Which money is used in {name}?", "currency of {name}"),
    "subregion": ("Where is {name}?", "In which part of the world is {name}?", "region of {name}"),
    "meaning": ("What does the flag of {name} mean?", "What do the colours of the flag of {name} stand for?"),
    "describe": ("Describe the flag of {name}.", "What does the flag of {name} look like?", "flag of {name}"),
    "background": ("What is the history of {name}?", "Tell me about the past of {name}.", "history of {name}"),
}
# With a picture, for the retriever: the reader has no answer of this kind.
BACKGROUND = (
    "What is the history of this country?",
    "Tell me about the history of the country with this flag.",
    "How did this country come about?",
    "What is the background of this nation?",
    "What happened here in the past?",
)

_GREETINGS = (
    "Please tell me: ",
    "Look at this flag. ",
    "Can you tell me? ",
    "Here is a flag. ",
    "I wonder: ",
    "Hello! ",
)


def ask(kind: str, rng: random.Random) -> str:
    """One question to train on: the official one two times in five, now and then in lower case or with a greeting.

    Args:
        kind (`str`): One of `KINDS`.
        rng (`random.Random`): The only source of chance.

    Example:

    ```python
    >>> ask("capital", random.Random(1))
    'What is the capital of the country that uses this flag?'

    ```
    """
    question = OFFICIAL[kind] if rng.random() < 0.4 else rng.choice(PARAPHRASES[kind])
    manner = rng.random()
    if manner < 0.06:
        return question.lower()
    if manner < 0.12:
        return question.rstrip("?.")
    if manner < 0.17:
        return rng.choice(_GREETINGS) + question
    return question
