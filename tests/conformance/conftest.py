"""Runs the suites only inside their harness, and holds the list of expected failures to be exact.

A test on the list has to fail, and every failure of it (each subtest's, too) has to show the words that the list
gives; it is then reported as `xfailed`. If it passes, fails in another way or does not exist, the run fails.
"""

from __future__ import annotations

import fnmatch
import importlib.util
import re
import sys
from pathlib import Path

import pytest


sys.path.insert(0, str(Path(__file__).parent))

from expected_failures import EXPECTED_FAILURES, ExpectedFailure


if importlib.util.find_spec("tests") is None or importlib.util.find_spec("tests.test_modeling_common") is None:
    collect_ignore_glob = ["*.py"]  # `make conformance` runs these files where the suites are

# They write over a file of a saved folder or remove one, which our checksums notice.
TAMPERING = ("test_model_weights_reload_no_missing_tied_weights", "test_chat_template_save_loading")

FAILED = pytest.StashKey[bool]()


@pytest.fixture(autouse=True)
def _no_checksums_where_the_test_itself_changes_files(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if request.node.name in TAMPERING:
        monkeypatch.setenv("HF_RAVLM_VERIFY", "0")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Refuses entries of the list for tests that are not there, in classes that are."""
    if any("::" in argument for argument in config.args):
        return
    names = [item.nodeid.split("::", 1)[1] for item in items if "::" in item.nodeid]
    classes = {name.split("::")[0] for name in names}
    for entry in EXPECTED_FAILURES:
        if fnmatch.filter(classes, entry.test.split("::")[0]) and not fnmatch.filter(names, entry.test):
            raise pytest.UsageError(f"expected_failures.py lists {entry.test}, which is no test: take it off the list")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    """Turns failures that are expected into `xfailed`, and a success that is not into a failure."""
    report = yield
    expected = find_expected(item.nodeid)
    if expected is None or report.skipped:
        return report
    if report.failed:
        item.stash[FAILED] = True
        if re.search(expected.failure, str(report.longrepr)):
            report.outcome, report.wasxfail = "skipped", expected.reason
    elif report.when == "teardown" and not item.stash.get(FAILED, False):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} passes now: take it off the list in expected_failures.py"
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says how many tests are behind the `xfailed`, which counts subtests."""
    tests = {report.nodeid for report in terminalreporter.stats.get("xfailed", [])}
    if tests:
        terminalreporter.write_line(f"{len(tests)} tests fail as expected_failures.py says, for the reasons it gives")


def find_expected(nodeid: str) -> ExpectedFailure | None:
    """The first entry of the list for a test, by class and name: `ReaderTest::test_training`."""
    test = nodeid.split("::", 1)[1]
    return next((entry for entry in EXPECTED_FAILURES if fnmatch.fnmatchcase(test, entry.test)), None)
