"""The Grafana dashboard as code: `make dashboard` writes syslogger.json beside this file from it.

Every query is of one instance variable and one metric of `/metrics`; tests/test_dashboard.py holds the file to this
code and the queries to what a running syslogger serves.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

from grafana_foundation_sdk.builders.common import ReduceDataOptions, VizLegendOptions
from grafana_foundation_sdk.builders.dashboard import (
    Dashboard,
    DatasourceVariable,
    QueryVariable,
    Row,
    ThresholdsConfig,
)
from grafana_foundation_sdk.builders.heatmap import HeatmapColorOptions, YAxisConfig
from grafana_foundation_sdk.builders.heatmap import Panel as Heatmap
from grafana_foundation_sdk.builders.prometheus import Dataquery as Query
from grafana_foundation_sdk.builders.stat import Panel as Stat
from grafana_foundation_sdk.builders.timeseries import Panel as Timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import BigValueColorMode, BigValueGraphMode, LegendDisplayMode
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardSpecialValueMapOptions,
    DataSourceRef,
    SpecialValueMap,
    SpecialValueMatch,
    Threshold,
    ThresholdsMode,
    ValueMap,
    ValueMappingResult,
    VariableRefresh,
)
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

FILE = Path(__file__).with_name("syslogger.json")

_SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
_WIDTH = 24
"""Columns of Grafana's grid."""


def _of(metric: str) -> str:
    """Return a selector of the chosen instances."""
    return f'{metric}{{instance=~"$instance"}}'


def _rate(metric: str) -> str:
    return f"rate({_of(metric)}[$__rate_interval])"


def _quantile(share: float) -> str:
    buckets = _rate("syslogger_delivery_duration_seconds_bucket")
    return f"histogram_quantile({share}, sum by (le) ({buckets}))"


def _query(expr: str, legend: str) -> Query:
    return Query().expr(expr).legend_format(legend).ref_id("A")


def _graph(title: str, unit: str, text: str, *queries: Query, width: int = 8) -> Timeseries:
    legend = VizLegendOptions().display_mode(LegendDisplayMode.LIST).show_legend(show_legend=True)
    panel = Timeseries().title(title).description(text).unit(unit).min(0).fill_opacity(8).legend(legend)
    panel = panel.datasource(_SOURCE).span(width).height(8)
    for letter, query in zip("ABC", queries, strict=False):
        panel = panel.with_target(query.ref_id(letter))
    return panel


def _stat(title: str, unit: str, text: str, expr: str, *steps: tuple[float | None, str]) -> Stat:
    """Return a single number; `steps` are the colours from a value on, the first from None."""
    levels = [Threshold(value=value, color=color) for value, color in steps or ((None, "text"),)]
    return (
        Stat()
        .title(title)
        .description(text)
        .unit(unit)
        .thresholds(ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(levels))
        .color_mode(BigValueColorMode.VALUE)
        .graph_mode(BigValueGraphMode.NONE)
        .reduce_options(ReduceDataOptions().calcs(["lastNotNull"]))
        .datasource(_SOURCE)
        .span(_WIDTH // 8)
        .height(4)
        .with_target(_query(expr, ""))
    )


def _at_a_glance() -> list[Stat]:
    words = ValueMap(
        options={
            "0": ValueMappingResult(text="not ready", color="red", index=0),
            "1": ValueMappingResult(text="ready", color="green", index=1),
        }
    )
    idle = SpecialValueMap(
        DashboardSpecialValueMapOptions(SpecialValueMatch.NULL_AND_NAN, ValueMappingResult(text="idle"))
    )
    return [
        _stat(
            "State",
            "none",
            "Ready: it listens, and Kafka acknowledges. The worst of the instances; /readyz says why not.",
            f"min({_of('syslogger_ready')})",
        ).mappings([words]),
        _stat(
            "Delivered",
            "cps",
            "Records a second that Kafka acknowledged.",
            f"sum({_rate('syslogger_records_delivered_total')})",
        ),
        _stat(
            "In flight",
            "short",
            "Records received and not yet acknowledged.",
            f"sum({_of('syslogger_records_in_flight')})",
        ),
        _stat(
            "Latency, p99",
            "s",
            "From a batch's first submission to its acknowledgement.",
            _quantile(0.99),
            (None, "green"),
            (1, "orange"),
            (10, "red"),
        ).mappings([idle]),
        _stat(
            "Connections",
            "percentunit",
            "Open connections of those that max_connections allows; the fullest instance.",
            f"max({_of('syslogger_connections_open')} / {_of('syslogger_max_connections')})",
            (None, "green"),
            (0.8, "orange"),
            (1, "red"),
        ),
        _stat(
            "Dead letters",
            "short",
            "Records that went to the dead-letter topic in the time shown.",
            f"sum(increase({_of('syslogger_records_dead_lettered_total')}[$__range]))",
            (None, "green"),
            (1, "orange"),
        ),
        _stat(
            "Lost at the last stop",
            "bytes",
            "Bytes that the last stop could not deliver within drain_seconds.",
            f"max({_of('syslogger_last_stop_undelivered_bytes')})",
            (None, "green"),
            (1, "red"),
        ),
        _stat(
            "Running for",
            "s",
            "Since the start of the process; a reload does not count. The youngest instance.",
            f"min(time() - {_of('process_start_time_seconds')})",
        ),
    ]


def _delivery() -> list[Timeseries | Heatmap]:
    heatmap = (
        Heatmap()
        .title("Latency of deliveries")
        .description("How many batches took how long, from the first submission to the acknowledgement, with retries.")
        .datasource(_SOURCE)
        .calculate(calculate=False)
        .color(HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Oranges").steps(64))
        .y_axis(YAxisConfig().unit("s"))
        .show_legend()
        .span(12)
        .height(8)
        .with_target(
            _query(
                f"sum by (le) (increase({_of('syslogger_delivery_duration_seconds_bucket')}[$__rate_interval]))",
                "{{le}}",
            ).format(PromQueryFormat.HEATMAP)
        )
    )
    return [
        _graph(
            "Records",
            "cps",
            "Received and delivered; they lie on one another unless Kafka is behind.",
            _query(f"sum({_rate('syslogger_records_received_total')})", "received"),
            _query(f"sum({_rate('syslogger_records_delivered_total')})", "delivered"),
        ),
        _graph(
            "Lag",
            "short",
            "Records received and not yet delivered. It is bounded: what Kafka does not take stays with the senders.",
            _query(_of("syslogger_records_in_flight"), "{{instance}}"),
        ),
        _graph(
            "Bytes",
            "Bps",
            "Of delivered records, without framing.",
            _query(f"sum({_rate('syslogger_bytes_delivered_total')})", "delivered"),
        ),
        heatmap,
        _graph(
            "Latency",
            "s",
            "Of deliveries; read from the buckets of the heat map.",
            _query(_quantile(0.5), "p50"),
            _query(_quantile(0.95), "p95"),
            _query(_quantile(0.99), "p99"),
            width=12,
        ),
    ]


def _peers() -> list[Timeseries]:
    return [
        _graph(
            "Connections",
            "short",
            "Open, and as many as max_connections allows.",
            _query(_of("syslogger_connections_open"), "{{instance}}"),
            _query(f"max({_of('syslogger_max_connections')})", "max_connections"),
        ),
        _graph(
            "Accepted and ended",
            "cps",
            "Connections a second, by why they ended.",
            _query(f"sum({_rate('syslogger_connections_accepted_total')})", "accepted"),
            _query(f"sum by (cause) ({_rate('syslogger_connections_ended_total')})", "{{cause}}"),
        ),
        _graph(
            "Accepting paused",
            "cps",
            "By cause: max_connections was reached, or no more files may be opened. Nobody is turned away.",
            _query(f"sum by (cause) ({_rate('syslogger_accept_pauses_total')})", "{{cause}}"),
        ),
        _graph(
            "Records cut or misframed",
            "cps",
            "Pieces of what was sent, by cause; and records whose octet count is wrong or missing.",
            _query(f"sum by (cause) ({_rate('syslogger_records_cut_total')})", "cut: {{cause}}"),
            _query(f"sum({_rate('syslogger_records_misframed_total')})", "misframed"),
        ),
        _graph(
            "Refused",
            "cps",
            "Connections that may not be, by cause; and TLS handshakes that failed, by cause.",
            _query(f"sum by (cause) ({_rate('syslogger_connections_refused_total')})", "refused: {{cause}}"),
            _query(f"sum by (cause) ({_rate('syslogger_tls_handshake_failures_total')})", "handshake: {{cause}}"),
        ),
        _graph(
            "Certificates",
            "d",
            "Days until the certificate of each TLS listener expires.",
            _query(
                f"({_of('syslogger_tls_certificate_expiry_timestamp_seconds')} - time()) / 86400",
                "{{listener}} of {{instance}}",
            ),
        ),
    ]


def _kafka() -> list[Timeseries]:
    return [
        _graph(
            "Errors by cause",
            "cps",
            "Batches that failed and were sent again. Nothing is lost by them.",
            _query(f"sum by (error) ({_rate('syslogger_batch_failures_total')})", "{{error}}"),
        ),
        _graph(
            "Sent again",
            "cps",
            "Records of failed batches: at most so many may stand in the topic twice.",
            _query(f"sum({_rate('syslogger_records_redelivered_total')})", "records"),
        ),
        _graph(
            "Dead letters",
            "cps",
            "Records that Kafka refused for themselves, by why.",
            _query(f"sum by (error) ({_rate('syslogger_records_dead_lettered_total')})", "{{error}}"),
        ),
        _graph(
            "Producer rebuilds",
            "short",
            "How often another Kafka producer took over, in each interval.",
            _query(f"sum(increase({_of('syslogger_producer_rebuilds_total')}[$__rate_interval]))", "rebuilds"),
        ),
        _graph(
            "Brokers",
            "short",
            "Brokers whose address is known.",
            _query(_of("syslogger_brokers_known"), "{{instance}}"),
        ),
        _graph(
            "Records in a batch",
            "short",
            "The mean: more at once when there is more to send.",
            _query(
                f"sum({_rate('syslogger_batch_records_sum')}) / sum({_rate('syslogger_batch_records_count')})", "mean"
            ),
        ),
    ]


def _process() -> list[Timeseries]:
    return [
        _graph(
            "Processor",
            "percentunit",
            "Of one core; it uses one at most for records.",
            _query(_rate("process_cpu_seconds_total"), "{{instance}}"),
        ),
        _graph(
            "Memory",
            "bytes",
            "Resident. Undelivered bytes are the kernel's and not in it.",
            _query(_of("process_resident_memory_bytes"), "{{instance}}"),
        ),
        _graph(
            "Open files",
            "short",
            "Of the process, and how many it may open.",
            _query(_of("process_open_fds"), "{{instance}}"),
            _query(f"min({_of('process_max_fds')})", "allowed"),
        ),
    ]


def build() -> str:
    """Return the dashboard as the JSON that Grafana imports; it ends with a newline."""
    instance = (
        QueryVariable("instance")
        .label("Instance")
        .datasource(_SOURCE)
        .query("label_values(syslogger_ready, instance)")
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .multi(multi=True)
        .include_all(include_all=True)
        .all_value(".*")
    )
    dashboard = (
        Dashboard("syslogger")
        .uid("syslogger")
        .description("syslog from rsyslog to Kafka: what is delivered, how fast, from whom, and what went wrong.")
        .tags(["syslogger"])
        .editable()
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .refresh("30s")
        .time("now-1h", "now")
        .timezone("browser")
        .with_variable(DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(instance)
    )
    number = itertools.count(1)
    for title, panels in (
        ("At a glance", _at_a_glance()),
        ("Delivery", _delivery()),
        ("Peers", _peers()),
        ("Kafka", _kafka()),
        ("Process", _process()),
    ):
        dashboard = dashboard.with_row(Row(title).id(next(number)))
        for panel in panels:
            dashboard = dashboard.with_panel(panel.id(next(number)))
    return json.dumps(dashboard.build(), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


if __name__ == "__main__":
    FILE.write_text(build())
