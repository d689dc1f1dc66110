"""A process that reads `huggingface_hub` settings from its environment once and then does what it is told, by lines.

Each line on stdin is a JSON string with Python code; each on stdout is JSON: what the code left in `result`, or the
error it ended with. Names that the code defines stay for the next line.
"""

from __future__ import annotations

import json
import os
import sys


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print, also those that are not Python
    names: dict = {}
    for line in sys.stdin:
        names["result"] = None
        try:
            exec(json.loads(line), names)
            answer = {"result": names["result"]}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
