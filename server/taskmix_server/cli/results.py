"""An experiment's results on a terminal, and as a picture."""

from collections.abc import Iterable
from pathlib import Path

import click

from taskmix_client import Comparison, Estimate, Interval, MetricResult, Results
from taskmix_server.cli.table import print_table


def print_results(results: Results) -> None:
    """Print what reached the arms, how they differ, and what shadows did."""
    item = results.experiment
    click.echo(f"{item.name}@{item.version} is {item.status}, ramp {item.ramp_percent:g} %")
    for halt in item.halted:
        click.echo(f"arm {halt.arm} was stopped: {halt.why}")
        if halt.arm != item.design.arms[0].name:
            click.echo("its metrics, and the control's that they are compared with, end there")
    click.echo()
    _print_traffic(results)
    click.echo()
    rows = [row for metric in results.metrics for row in _metric_rows(metric)]
    sure = f"{100 * (1 - results.alpha):g} %"
    print_table(("metric", "arm", "subjects", "value", "difference", sure, "lift", "p"), rows)
    if results.shadows:
        click.echo()
        _print_shadows(results)


def write_plot(results: Results, path: Path) -> None:
    """Draw the differences from the control."""
    try:
        from taskmix_server.experiments import plot
        from taskmix_server.experiments.statistics import comparison, interval
    except ImportError as error:
        raise click.ClickException(
            f"--plot cannot be loaded ({error}); run: pip install 'taskmix[composer,edges]'"
        ) from error

    def drawn(found: Comparison) -> comparison.Comparison:
        return comparison.Comparison(
            found.difference,
            interval.Interval(found.interval.low, found.interval.high),
            found.p_value,
            found.lift,
            interval.Interval(found.lift_interval.low, found.lift_interval.high),
            found.is_ready,
        )

    panels = [
        plot.Panel(result.metric, [(arm, drawn(found)) for arm, found in compared])
        for result in results.metrics
        if (compared := _compared(result))
    ]
    item = results.experiment
    plot.draw(panels, f"{item.name}, version {item.version}", path)
    click.echo(f"\nwrote {path}")


def _print_traffic(results: Results) -> None:
    rows = [
        (
            traffic.arm,
            f"{traffic.share:g}",
            str(traffic.num_subjects),
            str(traffic.num_requests),
            str(traffic.num_without_subject),
        )
        for traffic in results.traffic
    ]
    print_table(("arm", "share", "subjects", "requests", "without subject"), rows)
    ratio = results.sample_ratio
    verdict = (
        "MISMATCH: subjects are lost or repeated in some arm, and no comparison means anything"
        if ratio.is_mismatch
        else "as planned"
    )
    click.echo(
        f"sample ratio: {verdict} (p = {ratio.p_value:.3g}; chi-square, for a single look, "
        f"{ratio.chi_square_p_value:.3g})"
    )


def _metric_rows(result: MetricResult) -> Iterable[tuple[str, ...]]:
    for estimate in result.estimates:
        cells = (result.metric, estimate.arm, str(estimate.count), f"{estimate.value:.4g}")
        yield (*cells, *_difference(estimate))


def _difference(estimate: Estimate) -> tuple[str, str, str, str]:
    found = estimate.comparison
    if found is None:
        return "-", "-", "-", "-"
    if not found.is_ready:
        return f"{found.difference:+.4g}", "too few subjects", "-", "-"
    lift = f"{100 * found.lift:+.3g} %"
    return f"{found.difference:+.4g}", _interval(found.interval), lift, f"{found.p_value:.3g}"


def _interval(interval: Interval) -> str:
    return f"[{interval.low:+.4g}, {interval.high:+.4g}]"


def _compared(result: MetricResult) -> list[tuple[str, Comparison]]:
    return [(item.arm, item.comparison) for item in result.estimates if item.comparison is not None]


def _print_shadows(results: Results) -> None:
    head = (
        *("shadow", "requests", "error rate", "agreement", "log-probability"),
        *("tokens", "served tokens"),
    )
    rows = [
        (
            shadow.arm,
            str(shadow.num_requests),
            f"{shadow.error_rate:.4g}",
            _optional(shadow.agreement),
            _optional(shadow.served_logprob),
            f"{shadow.tokens:.4g}",
            f"{shadow.served_tokens:.4g}",
        )
        for shadow in results.shadows
    ]
    print_table(head, rows)


def _optional(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
