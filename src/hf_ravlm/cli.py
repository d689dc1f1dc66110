"""`hf-ravlm`: results on stdout, everything else on stderr, and the exit code.

    0    done, and all is well
    1    damage was found, or it could not be done (disk, network, memory); one line on stderr says why
    2    what was given cannot be used: the command line, a name, a file, an image
    130  stopped by Ctrl-C

With `--json` stdout holds exactly one JSON document, also after an error: `{"error": {"type", "message"}}`.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import json
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from typing import Any

from . import __version__, register
from .commands.command_line import make_parser
from .commands.outcome import Outcome, in_words_of_the_command_line, one_line
from .errors import (
    InvalidInputError,
    KnowledgeBaseCorruptError,
    KnowledgeBaseMismatchError,
    RavlmError,
    UnsafeInputError,
    storage_advice,
)


# Of these all messages are shown, of the rest of the library warnings.
_BAD_INPUT = (
    InvalidInputError,
    UnsafeInputError,
    KnowledgeBaseMismatchError,
    FileNotFoundError,
    FileExistsError,
    NotADirectoryError,
    IsADirectoryError,
)
# Control signs, half characters, and what turns the direction of writing.
_STEERING = re.compile("[\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_HEARD = ("hf_ravlm.commands", "hf_ravlm.retrieval.encoding.corpus")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code.

    Args:
        argv: The arguments; `None` for those of the process.
    """
    arguments = None
    try:
        arguments = _read(argv)
        # Whatever a library prints is no result.
        with _messages(arguments.quiet), contextlib.redirect_stdout(sys.stderr):
            run = _imported(arguments.run, arguments.interrupted)
            outcome = run(arguments)
        _show(_as_json(outcome.record) if arguments.json else outcome.text)
    except KeyboardInterrupt:
        _say("Stopped." if arguments is None else arguments.interrupted)
        return 130
    except Exception as error:
        if os.environ.get("HF_RAVLM_DEBUG"):
            raise
        message = in_words_of_the_command_line(_message_of(error))
        _say(f"error: {one_line(message)}")
        if arguments is not None and arguments.json:
            _show(_as_json({"error": {"type": type(error).__name__, "message": message}}))
        is_damage = isinstance(error, KnowledgeBaseCorruptError)
        return 2 if isinstance(error, _BAD_INPUT) and not is_damage else 1
    return outcome.exit_code


def _read(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments of a command; one that it does not know is told with the command's own usage."""
    arguments, unknown = make_parser(__version__).parse_known_args(argv)
    if unknown:
        known = arguments.parser._option_string_actions
        typed = [
            word.partition("=")[0].replace("-", "_").replace("__", "--", 1) for word in unknown if word[:2] == "--"
        ]
        near = [name for word in typed for name in difflib.get_close_matches(word, known, 1)]
        hint = f" (did you mean {', '.join(near)}?)" if near else ""
        if not any(word.startswith("-") for word in unknown):  # argparse of 3.11 wants FOLDER and [TEXT] side by side
            hint = " (words that belong to no option stand together, before the options)"
        arguments.parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    return arguments


def _imported(run: str, interrupted: str) -> Callable[[Any], Outcome]:
    """The function of a command. Ctrl-C ends the process at once here: half-imported libraries would complain."""

    def stop(*_: Any) -> None:
        _say(interrupted)
        os._exit(130)

    is_ours = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, stop) if is_ours else None
    try:
        register()
        module, _, function = run.partition(".")
        found: Callable[[Any], Outcome] = getattr(import_module(f".commands.{module}", __package__), function)
        return found
    finally:
        if is_ours:
            signal.signal(signal.SIGINT, before)


def _message_of(error: Exception) -> str:
    """What an error says, without numbers of the system and Python's names for what we foresaw."""
    if isinstance(error, (RavlmError, ImportError)):
        return str(error) or type(error).__name__
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror}. {storage_advice(error)}".rstrip()
    if isinstance(error, (OSError, MemoryError)):
        return str(error) or type(error).__name__
    return (
        f"{type(error).__name__}: {error} (This was not foreseen. HF_RAVLM_DEBUG=1 shows where it happened; please "
        "report it.)"
    )


def _as_json(record: Any) -> str:
    """JSON with letters as they are, where the terminal takes them, but without signs that would steer it."""
    encoding = (getattr(sys.stdout, "encoding", None) or "utf-8").lower().replace("-", "")
    text = json.dumps(record, indent=2, ensure_ascii=encoding != "utf8")
    return _STEERING.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


class _MessageFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        kind = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        return kind + super().format(record)


@contextlib.contextmanager
def _messages(quiet: bool) -> Iterator[None]:
    """Shows what the library logs on stderr, and its progress unless `quiet`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_MessageFormatter("%(message)s"))
    library, heard = logging.getLogger("hf_ravlm"), [logging.getLogger(name) for name in _HEARD]
    before = library.handlers, library.propagate, [logger.level for logger in (library, *heard)]
    library.handlers, library.propagate = [handler], False
    library.setLevel(logging.WARNING)
    for logger in heard:
        logger.setLevel(logging.WARNING if quiet else logging.INFO)
    if quiet:
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        library.handlers, library.propagate = before[:2]
        for logger, level in zip((library, *heard), before[2], strict=True):
            logger.setLevel(level)


def _say(message: str) -> None:
    sys.stderr.write(f"{message}\n")
    sys.stderr.flush()


def _show(text: str) -> None:
    """Writes a result; a reader that has gone (`| head`) is no error, nor a terminal that lacks some letters."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        sys.stdout.write(text.encode(encoding, "replace").decode(encoding) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it ends
