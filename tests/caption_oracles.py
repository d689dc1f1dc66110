"""Asks the reference implementation of the caption metrics; what it said is kept in `metrics/oracles`.

It needs `pip install --no-deps pycocoevalcap` (1.2) and a Java runtime, which tests must not need:

    python tests/caption_oracles.py                 # writes the file again
    python tests/caption_oracles.py captions.txt    # how often the tokens of a file, a caption a line, agree
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path


FIXTURE = Path(__file__).parent / "metrics" / "oracles" / "captions.json"
CAPTIONS = [
    "A man's dog can't jump, won't he? I'd say \"yes\" (maybe) [no] {x}.",
    "Black-and-white t-shirt; U.S. flag at 10:30 p.m. in St. Louis.",
    "It cost $1,000.50, 5% off, and R&B stock #1 @user #tag.",
    "A colour photo of a grey theatre centre.",
    "They're gonna cannot gotta wanna; 'tis his, 'twas hers.",
    "1/2 cup on 10/12/2010 by a man/woman and/or he/she",
    "Café ½ £5 … “quoted” ‘single’ — em--dash word—word 日本語",
    "I'm sure he'll say they've met at o'clock; rock 'n' roll of the '90s and 1990's, the boys' dog",
    "Mr. Smith Jr. and Dr. No. It is No. 5, Inc., etc., i.e. e.g. vs. the U.S.",
    "A dog.. Two... three.... four . . .",
    "3rd 2nd 1st at 7pm and 7 p.m. a 12-year-old 3-4 -5 1.5 .5 5. 1,000,000",
    "dont cant isnt ain't 'em 'cause ma'am Hallowe'en o'neil Xi'an Ka'aba",
    "d'angelo l'oeil qu'il jack-o'-lantern mother-in-law's it's-me",
    "x.y.z 3.5.2 a.b end.Start word,word word;word word:word",
    "two men, J. R. R. Tolkien and B. Smith, in World War I. In 1918, vitamin A. The end",
    "!!! ??? ?! , ; '' `` a_b snake_case a*b",
    "the boys’ dog can’t; it’s manu’a d’ivoire",
    "A red and white flag (left) with a five-pointed star",
    "two people on skis at the top of a mountain",
    'A stop sign says "STOP" in the rain',
]


def ask_tokens(captions: list[str]) -> list[list[str]]:
    """The tokens of the Java program, punctuation dropped as the official script drops it."""
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    found = PTBTokenizer().tokenize({row: [{"caption": text}] for row, text in enumerate(captions)})
    return [found[row][0].split() for row in range(len(captions))]


def ask_metrics(candidates: list[list[str]], references: list[list[list[str]]]) -> dict:
    """BLEU-1..4, ROUGE-L and CIDEr-D of tokens, for the corpus and per image."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    accepted = {row: [" ".join(tokens) for tokens in of_image] for row, of_image in enumerate(references)}
    said = {row: [" ".join(tokens)] for row, tokens in enumerate(candidates)}
    bleu, bleu_each = Bleu(4).compute_score(accepted, said, verbose=0)
    rouge, rouge_each = Rouge().compute_score(accepted, said)
    cider, cider_each = Cider().compute_score(accepted, said)
    return {
        "bleu": [float(value) for value in bleu],
        "bleu_each": [[float(value) for value in of_order] for of_order in bleu_each],
        "rouge_l": [float(rouge), [float(value) for value in rouge_each]],
        "cider_d": [float(cider), [float(value) for value in cider_each]],
    }


def random_corpus(seed: int) -> tuple[list[list[str]], list[list[list[str]]]]:
    """A small corpus with common words, repeated words and, for odd seeds, empty candidates."""
    rng = random.Random(seed)
    words = "a the of dog cat sits on red mat".split()

    def caption(least: int) -> list[str]:
        return [rng.choice(words) for _ in range(rng.randint(least, 9))]

    num_images = rng.choice([1, 2, 5])
    candidates = [caption(1 - seed % 2) for _ in range(num_images)]
    return candidates, [[caption(1) for _ in range(rng.randint(1, 3))] for _ in range(num_images)]


def main() -> None:
    if len(sys.argv) > 1:
        from hf_ravlm.metrics import caption_tokens

        lines = Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()
        equal = sum(caption_tokens(line) == tokens for line, tokens in zip(lines, ask_tokens(lines)))
        sys.stdout.write(f"{equal} of {len(lines)} lines agree token by token\n")
        return
    corpora = []
    for seed in range(6):
        candidates, references = random_corpus(seed)
        corpora.append({"candidates": candidates, "references": references, **ask_metrics(candidates, references)})
    tokens = [[text, found] for text, found in zip(CAPTIONS, ask_tokens(CAPTIONS))]
    said = {"made_by": "python tests/caption_oracles.py, pycocoevalcap 1.2, OpenJDK 17"}
    FIXTURE.write_text(
        json.dumps({**said, "tokens": tokens, "corpora": corpora}, ensure_ascii=False) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
