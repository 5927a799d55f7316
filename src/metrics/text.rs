//! The text format of Prometheus, version 0.0.4: <https://prometheus.io/docs/instrumenting/exposition_formats/>.

use std::fmt::Write as _;

use super::family::Family;
use super::instrument::{CounterBy, Histogram};
use crate::model::Timestamp;

/// A page of metrics as it is written, family by family.
#[derive(Debug, Default)]
pub struct Exposition(String);

impl Exposition {
    /// The media type of the page.
    pub const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

    /// Writes a metric of one number.
    pub fn number(&mut self, family: &Family, value: f64) {
        self.head(family);
        self.line(format_args!("{} {value}", family.name));
    }

    /// Writes a metric of one whole number.
    pub fn count(&mut self, family: &Family, value: u64) {
        self.head(family);
        self.line(format_args!("{} {value}", family.name));
    }

    /// Writes an instant in seconds since the epoch; nothing if it has not come.
    pub fn instant(&mut self, family: &Family, at: Option<Timestamp>) {
        if let Some(at) = at {
            self.number(family, seconds(at));
        }
    }

    /// Writes one number for each value of the family's label.
    pub fn by<V: std::fmt::Display>(
        &mut self,
        family: &Family,
        values: impl IntoIterator<Item = (&'static str, V)>,
    ) {
        let label = family.label.map_or("", |label| label.name);
        self.head(family);
        for (value, number) in values {
            let value = escaped(value);
            self.line(format_args!(
                "{}{{{label}=\"{value}\"}} {number}",
                family.name
            ));
        }
    }

    /// Writes the counters of a family with a label.
    pub fn counters(&mut self, family: &Family, counters: &CounterBy) {
        self.by(family, counters.get());
    }

    /// Writes a histogram.
    pub fn histogram(&mut self, family: &Family, histogram: &Histogram) {
        let reading = histogram.read();
        let name = family.name;
        self.head(family);
        for (bound, count) in reading.cumulative {
            self.line(format_args!("{name}_bucket{{le=\"{bound}\"}} {count}"));
        }
        self.line(format_args!(
            "{name}_bucket{{le=\"+Inf\"}} {}",
            reading.count
        ));
        self.line(format_args!("{name}_sum {}", reading.sum));
        self.line(format_args!("{name}_count {}", reading.count));
    }

    /// The page.
    #[must_use]
    pub fn finish(self) -> String {
        self.0
    }

    fn head(&mut self, family: &Family) {
        let Family {
            name, kind, help, ..
        } = family;
        self.line(format_args!("# HELP {name} {}", help.replace('\\', "\\\\")));
        self.line(format_args!("# TYPE {name} {}", kind.name()));
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        writeln!(self.0, "{line}").expect("writing to a string cannot fail");
    }
}

/// Seconds since the epoch, to the millisecond.
#[expect(
    clippy::cast_precision_loss,
    reason = "milliseconds of this age fit a double's mantissa for 285,000 years"
)]
fn seconds(at: Timestamp) -> f64 {
    at.as_millis() as f64 / 1000.0
}

fn escaped(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::family::{self, Kind, Label};
    use super::*;

    #[test]
    fn each_kind_is_written_as_the_format_wants_it() {
        const SHORT: Family = Family {
            name: "short_seconds",
            kind: Kind::Histogram(&[0.5, 1.0]),
            help: "A \\ in help.",
            label: None,
        };
        let histogram = Histogram::of(&SHORT);
        histogram.observe(Duration::from_millis(250));
        histogram.observe(Duration::from_secs(2));
        let counters = CounterBy::of(&family::POLLS);
        counters.add("failed");
        let mut page = Exposition::default();
        page.histogram(&SHORT, &histogram);
        page.counters(&family::POLLS, &counters);
        page.instant(
            &family::LAST_POLL,
            Some(Timestamp::from_millis(1_700_000_000_250)),
        );
        page.instant(&family::LAST_SWEEP, None);
        assert_eq!(
            page.finish(),
            "# HELP short_seconds A \\\\ in help.\n\
             # TYPE short_seconds histogram\n\
             short_seconds_bucket{le=\"0.5\"} 1\n\
             short_seconds_bucket{le=\"1\"} 1\n\
             short_seconds_bucket{le=\"+Inf\"} 2\n\
             short_seconds_sum 2.25\n\
             short_seconds_count 2\n\
             # HELP reconciled_polls_total Polls by whether they were complete.\n\
             # TYPE reconciled_polls_total counter\n\
             reconciled_polls_total{outcome=\"completed\"} 0\n\
             reconciled_polls_total{outcome=\"failed\"} 1\n\
             # HELP reconciled_last_poll_timestamp_seconds When the last complete poll of this process ended; absent before the first.\n\
             # TYPE reconciled_last_poll_timestamp_seconds gauge\n\
             reconciled_last_poll_timestamp_seconds 1700000000.25\n"
        );
    }

    #[test]
    fn a_label_value_cannot_break_its_line() {
        const FAMILY: Family = Family {
            name: "x",
            kind: Kind::Gauge,
            help: "X.",
            label: Some(Label {
                name: "v",
                values: &[],
            }),
        };
        let mut page = Exposition::default();
        page.by(&FAMILY, [("a\"b\\c\nd", 1)]);
        assert!(page.finish().ends_with("x{v=\"a\\\"b\\\\c\\nd\"} 1\n"));
    }
}
