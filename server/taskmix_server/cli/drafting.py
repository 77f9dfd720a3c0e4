"""How an experiment is written on the command line."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import click

from taskmix_client import Arm, ExperimentDesign, Guardrail, ShadowArm

_NAME = r"[a-z0-9][a-z0-9._-]*"
_GUARDRAIL = re.compile(
    rf"(?P<metric>{_NAME}(?:/{_NAME})?)(?::p(?P<percentile>[0-9.]+))?"
    r"(?P<limit><=|>=)(?P<bound>[0-9.eE+-]+)(?P<relative>x?)"
)
_LIMITS = {"<=": "at_most", ">=": "at_least"}

_OPTIONS = (
    click.option(
        "--arm",
        "arms",
        multiple=True,
        required=True,
        metavar="ARM=MIX",
        help="An arm and its mix, @NAME for a registered one; repeated.",
    ),
    click.option(
        "--share", "shares", multiple=True, metavar="ARM=SHARE", help="Equal shares if absent."
    ),
    click.option(
        "--shadow",
        "shadows",
        multiple=True,
        metavar="ARM=MIX",
        help="A mix that answers copies of requests, unseen; repeated.",
    ),
    click.option(
        "--rate", "rates", multiple=True, metavar="ARM=RATE", help="Requests copied; 1 if absent."
    ),
    click.option("--salt", default="", help="What subjects are hashed with; the name if absent."),
    click.option("--tenant", "tenants", multiple=True, metavar="GLOB", help="Whose; repeated."),
    click.option(
        "--override",
        "overrides",
        multiple=True,
        metavar="SUBJECT=ARM",
        help="The arm of a test subject; repeated.",
    ),
    click.option(
        "--guardrail",
        "guardrails",
        multiple=True,
        metavar="RULE",
        help="What an arm must keep to: error_rate<=0.02, latency_s:p95<=1.5x (times the "
        "control's), right/right.count>=0.6 (reported, over how often it was reported); repeated.",
    ),
)


def design_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the flags that `to_design` reads."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def to_design(name: str, options: Mapping[str, Any]) -> ExperimentDesign:
    """The design that the flags say."""
    arms, shadows = _pairs(options["arms"], "--arm"), _pairs(options["shadows"], "--shadow")
    shares = _numbers(options["shares"], "--share", arms, default=1 / len(arms))
    rates = _numbers(options["rates"], "--rate", shadows, default=1.0)
    return ExperimentDesign(
        name=name,
        arms=tuple(Arm(arm, share=shares[arm], **_source(arms[arm])) for arm in arms),
        salt=options["salt"],
        shadows=tuple(ShadowArm(arm, rate=rates[arm], **_source(shadows[arm])) for arm in shadows),
        tenants=options["tenants"],
        overrides=_pairs(options["overrides"], "--override", at_last=True),
        guardrails=tuple(map(_guardrail, options["guardrails"])),
    )


def _pairs(texts: Iterable[str], flag: str, *, at_last: bool = False) -> dict[str, str]:
    """Read NAME=VALUE, cut at the last `=` where names may have some of their own."""
    pairs: dict[str, str] = {}
    for text in texts:
        name, separator, value = text.rpartition("=") if at_last else text.partition("=")
        if not (name and separator and value):
            raise click.UsageError(f"{flag} takes NAME=VALUE, got {text!r}")
        if name in pairs:
            raise click.UsageError(f"{flag} names {name!r} twice")
        pairs[name] = value
    return pairs


def _numbers(
    texts: Iterable[str], flag: str, arms: Iterable[str], *, default: float
) -> dict[str, float]:
    """A number for each arm: all of them are given, or none."""
    given = _pairs(texts, flag)
    if given and given.keys() != set(arms):
        raise click.UsageError(f"{flag} must name every arm, or none: {', '.join(arms)}")
    try:
        return {arm: float(given[arm]) if given else default for arm in arms}
    except ValueError as error:
        raise click.UsageError(f"{flag}: {error}") from error


def _source(mix: str) -> dict[str, Any]:
    return {"mix_name": mix[1:]} if mix.startswith("@") else {"mix": mix}


def _guardrail(text: str) -> Guardrail:
    match = _GUARDRAIL.fullmatch(text.replace(" ", ""))
    if match is None:
        raise click.UsageError(
            "--guardrail takes a rule such as error_rate<=0.02, latency_s:p95<=1.5x or "
            f"right/right.count>=0.6, got {text!r}"
        )
    try:
        percentile = match["percentile"]
        return Guardrail(
            match["metric"],
            _LIMITS[match["limit"]],
            float(match["bound"]),
            is_relative=bool(match["relative"]),
            quantile=float(percentile) / 100 if percentile else None,
        )
    except ValueError as error:
        raise click.UsageError(f"--guardrail {text!r}: {error}") from error
