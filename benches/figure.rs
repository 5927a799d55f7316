//! A figure with its bar: the median, the least and the greatest of its rounds.

use serde::Serialize;

/// What a figure is held against.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Bar {
    AtLeast(f64),
    AtMost(f64),
    /// An absolute number beside a ratio: it depends on the machine, and nothing is asked of it.
    None,
}

/// One row of the table.
#[derive(Debug, Serialize)]
pub(crate) struct Figure {
    pub(crate) name: String,
    pub(crate) unit: &'static str,
    pub(crate) bar: Bar,
    pub(crate) rounds: Vec<f64>,
}

impl Figure {
    pub(crate) fn new(name: impl Into<String>, unit: &'static str, bar: Bar) -> Self {
        Self {
            name: name.into(),
            unit,
            bar,
            rounds: Vec::new(),
        }
    }

    /// A figure without a bar.
    pub(crate) fn plain(name: impl Into<String>, unit: &'static str) -> Self {
        Self::new(name, unit, Bar::None)
    }

    pub(crate) fn push(&mut self, value: f64) {
        assert!(
            value.is_finite() && value >= 0.0,
            "{}: {value} is no measurement",
            self.name
        );
        self.rounds.push(value);
    }

    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.rounds.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    }

    /// The value below which this part of the rounds lies.
    pub(crate) fn quantile(&self, part: f64) -> f64 {
        quantile(&self.sorted(), part)
    }

    /// The row's text.
    pub(crate) fn line(&self) -> String {
        let (least, median, most) = (self.quantile(0.0), self.quantile(0.5), self.quantile(1.0));
        let (bar, verdict) = match self.bar {
            Bar::AtLeast(bar) => (
                format!(">= {}", shown(bar)),
                if median >= bar { "met" } else { "MISSED" },
            ),
            Bar::AtMost(bar) => (
                format!("<= {}", shown(bar)),
                if median <= bar { "met" } else { "MISSED" },
            ),
            Bar::None => (String::new(), ""),
        };
        format!(
            "{:<66} {:>9} {:>9} {:>9} {:<6} {bar:>9} {verdict}",
            self.name,
            shown(median),
            shown(least),
            shown(most),
            self.unit
        )
    }
}

/// The heading of the lines of [`Figure::line`].
pub(crate) fn heading() -> String {
    format!(
        "{:<66} {:>9} {:>9} {:>9} {:<6} {:>9}",
        "what", "median", "least", "most", "unit", "bar"
    )
}

/// The value below which this part of sorted values lies.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a place in a short list"
)]
pub(crate) fn quantile(sorted: &[f64], part: f64) -> f64 {
    assert!(!sorted.is_empty(), "nothing was measured");
    let place = part * (sorted.len() - 1) as f64;
    let (low, high) = (place.floor() as usize, place.ceil() as usize);
    let (low, high) = (sorted[low], sorted[high]);
    low + (high - low) * place.fract()
}

#[expect(
    clippy::cast_precision_loss,
    reason = "counts and bytes of a measurement"
)]
pub(crate) fn float(count: u64) -> f64 {
    count as f64
}

pub(crate) fn megabytes(bytes: u64) -> f64 {
    float(bytes) / 1e6
}

fn shown(value: f64) -> String {
    match value {
        value if value >= 1000.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.3}"),
    }
}
