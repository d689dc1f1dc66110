"""`hf-ravlm`: results on stdout, everything else on stderr, and the exit code.

    0    done, and all is well
    1    it could not be done, or `verify` found damage; one line on stderr says why
    2    the command line was not understood
    130  stopped by Ctrl-C

With `--json` stdout holds exactly one JSON document, also after an error: `{"error": {"type", "message"}}`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module

from . import __version__, register
from .commands.command_line import make_parser
from .errors import RavlmError


# Of these all messages are shown, of the rest of the library warnings.
_HEARD = ("hf_ravlm.commands", "hf_ravlm.retrieval.encoding.corpus")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code.

    Args:
        argv: The arguments; `None` for those of the process.
    """
    arguments = make_parser(__version__).parse_args(argv)
    try:
        # Whatever a library prints is no result.
        with _messages(arguments.quiet), contextlib.redirect_stdout(sys.stderr):
            register()
            module, _, function = arguments.run.partition(".")
            outcome = getattr(import_module(f".commands.{module}", __package__), function)(arguments)
    except KeyboardInterrupt:
        _say(arguments.interrupted)
        return 130
    except (RavlmError, OSError, ImportError, MemoryError) as error:
        message = str(error) or type(error).__name__
        _say(f"error: {' '.join(message.split())}")
        if arguments.json:
            _show(json.dumps({"error": {"type": type(error).__name__, "message": message}}))
        return 1
    _show(json.dumps(outcome.record, indent=2) if arguments.json else outcome.text)
    return outcome.exit_code


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
