"""`edgepd doctor`: whether everything is in order, with the command that mends what is not.

The idea: each check is a function from the situation to findings (doctor_checks/, edgepd_profiles.integrity), listed in
CHECKS; they are run in that order and printed alike. The invariant: without --repair nothing is changed, and no check
ends the others: what one raises is a finding, too.
What this does not do: mend anything while a daemon has the profile open.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path

import click

from edgepd.atomic import replacing
from edgepd.cli.doctor_checks import machine, model, native, places, prediction, records, resources, serving
from edgepd.cli.doctor_checks import report as reporting
from edgepd.cli.doctor_checks.own_words import OwnWords
from edgepd.cli.doctor_checks.situation import Check, Situation
from edgepd.cli.output import columns, json_option, note, show
from edgepd.config import Paths, load, paths
from edgepd.errors import ConfigError, ConflictError, EdgepdError, StoreError
from edgepd_daemon.listener import hold_lock
from edgepd_profiles.integrity import Finding, examine, repair

UNHEALTHY = 1  # exit code
STDOUT = "-"
NOWHERE = Path(os.devnull)  # read as settings, it is empty


@click.command()
@click.option("--repair", "mend", is_flag=True, help="Mend what can be made anew; the daemon must be stopped.")
@click.option("--deep", is_flag=True, help="Read files as a whole, however large they are.")
@click.option(
    "--report",
    "report_to",
    is_flag=False,
    flag_value=STDOUT,
    metavar="[FILE]",
    help="Make a text to attach to a bug report, without anything private; to stdout without FILE.",
)
@json_option
def doctor(mend: bool, deep: bool, report_to: str | None, as_json: bool) -> None:
    """Check that everything is in order, and name the command that mends what is not.

    It works with and without the daemon. --repair makes the search index anew, takes rights on your files from others,
    and moves what waits in the WAL into the profile. --report leaves out every word that is not edgepd's own: what you
    and the model wrote, facts, names and paths of yours. Ends with 1 if something is wrong.
    """
    try:
        where = paths()
    except ConfigError as error:
        findings = [Finding("paths", str(error), "set EDGEPD_HOME to a directory with a shorter path")]
        _tell(None, findings, [], report_to, as_json)
        return
    repaired: list[str] = []
    if mend:
        with hold_lock(where.lock):
            repaired = repair(where.profile)
    with _undisturbed(where) as locked:
        situation = _situation(where, locked, deep=deep)
        findings = [finding for what, check in CHECKS for finding in guarded(what, check, situation)]
        _tell(situation, findings, repaired, report_to, as_json)


def guarded(what: str, check: Check, situation: Situation) -> list[Finding]:
    """Run one check. That it cannot be run to its end is a finding."""
    try:
        return check(situation)
    except (EdgepdError, OSError) as error:
        return [Finding(what, f"it cannot be checked: {error}", "mend that first, then: edgepd doctor")]
    except Exception as error:  # noqa: BLE001 - a mistake in one check must not hide what the others find
        problem = f"this check failed: {type(error).__name__}: {error}; please report it"
        return [Finding(what, problem, "edgepd doctor --report FILE")]


@contextmanager
def _undisturbed(where: Paths) -> Iterator[bool]:
    """Keep a daemon from starting meanwhile; yields True if one runs, which does not disturb."""
    if not where.data_dir.is_dir():
        yield False
        return
    with ExitStack() as stack:
        try:
            stack.enter_context(hold_lock(where.lock))
            locked = False
        except ConflictError:
            locked = True
        except StoreError:
            locked = False  # the directory is read-only, so no daemon can start either; the checks tell
        yield locked


def _situation(where: Paths, locked: bool, *, deep: bool) -> Situation:
    """Read the settings; where that fails, everything else is checked with the defaults."""
    try:
        return Situation(where, locked, load(where.config_file), deep=deep)
    except ConfigError as error:
        return Situation(where, locked, load(NOWHERE, {}), settings_problem=str(error), deep=deep)


def _settings(situation: Situation) -> list[Finding]:
    file = situation.paths.config_file
    if situation.settings_problem is not None:
        advice = f"change {file} or the environment; docs/config.md lists the settings"
        return [Finding("settings", situation.settings_problem, advice)]
    return [Finding("settings", detail=str(file) if file.exists() else "all at their defaults")]


def _profile(situation: Situation) -> list[Finding]:
    return examine(situation.paths.profile, backup_days=situation.settings.keep.backup_days)


CHECKS: tuple[tuple[str, Check], ...] = (
    ("settings", _settings),
    ("python", machine.python),
    ("packages", machine.packages),
    ("llama.cpp", native.llama_cpp),
    ("processor", machine.processor),
    ("cores", machine.cores),
    ("memory", resources.memory),
    ("model", model.model),
    ("prediction", prediction.prediction),
    ("directories", places.directories),
    ("runtime directory", places.runtime_directory),
    ("socket", places.socket),
    ("service", places.service),
    ("daemon", serving.daemon),
    ("sensors", resources.sensors),
    ("room for training", resources.disk),
    ("budget", resources.budget),
    ("clock", records.clock),
    ("profile", _profile),
    ("rescue", records.rescued),
    ("generations", records.generations),
    ("training runs", records.training_runs),
)


def _tell(
    situation: Situation | None, findings: list[Finding], repaired: list[str], report_to: str | None, as_json: bool
) -> None:
    """Print the findings or write the report, and end with UNHEALTHY if something is wrong."""
    well = not any(finding.problem for finding in findings)
    if report_to is not None:
        _report(situation, findings, report_to, as_json)
    else:
        found = {"ok": well, "repaired": repaired, "findings": [asdict(finding) for finding in findings]}
        show(found, _text(findings, repaired), as_json)
    if not well:
        click.get_current_context().exit(UNHEALTHY)


def _report(situation: Situation | None, findings: list[Finding], report_to: str, as_json: bool) -> None:
    told = reporting.report(situation, findings, OwnWords.here())
    if report_to == STDOUT:
        show(told, reporting.text(told), as_json)
        return
    with replacing(Path(report_to).absolute()) as file:
        file.write(f"{reporting.text(told)}\n".encode())
    show({"report": report_to}, report_to, as_json)
    note("look through it before you attach it")


def _text(findings: list[Finding], repaired: list[str]) -> str:
    rows = []
    for finding in findings:
        rows.append((finding.what, "PROBLEM" if finding.problem else "ok", finding.problem or finding.detail))
        if finding.advice:
            rows.append(("", "", f"-> {finding.advice}"))
    return "\n".join([*(f"repaired: {each}" for each in repaired), columns(rows)])
