//! Log lines: one per event, JSON or for a terminal.
//!
//! The shape is fixed here: time, level, `event`, the fields of the event and of the spans around it, then the sentence. Libraries
//! that could show statements, addresses or headers are capped whatever the filter says, and a line that cannot be
//! written is counted, never a panic. Nothing here decides what is logged.

mod event;
mod field;
#[cfg(test)]
pub(crate) mod heard;
mod layer;
mod line;
mod panic;

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::filter::{EnvFilter, FilterExt, filter_fn};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{Registry, reload};

pub use event::EVENTS;
pub use field::JsonList;

use crate::config::{LogConfig, LogFormat};
use event::EventCounts;
use layer::LineLayer;
use line::Style;

/// Installs logging for the whole process, and the panic hook.
///
/// Fails when logging was installed before or the filter does not parse.
pub fn init(config: &LogConfig, output: Output) -> Result<LogHandle, TelemetryError> {
    let style = match config.format {
        LogFormat::Json => Style::Json,
        LogFormat::Pretty => Style::Pretty {
            colour: output.wants_colour(),
        },
    };
    install(&config.filter, style, output.writer())
}

/// Like [`init`], for lines that go elsewhere: one `write_all` per line, never in colour.
///
/// Fails when logging was installed before or the filter does not parse.
pub fn init_with_writer(
    config: &LogConfig,
    writer: Box<dyn Write + Send>,
) -> Result<LogHandle, TelemetryError> {
    let style = match config.format {
        LogFormat::Json => Style::Json,
        LogFormat::Pretty => Style::Pretty { colour: false },
    };
    install(&config.filter, style, writer)
}

fn install(
    directives: &str,
    style: Style,
    writer: Box<dyn Write + Send>,
) -> Result<LogHandle, TelemetryError> {
    let (layer, handle) = build::<Registry>(directives, style, writer)?;
    let subscriber = tracing_subscriber::registry().with(layer);
    tracing::subscriber::set_global_default(subscriber)
        .map_err(|_| TelemetryError::AlreadyInstalled)?;
    panic::install_hook();
    Ok(handle)
}

/// Where log lines go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// For `run`, whose output is its log.
    Stdout,
    /// For commands, whose output is their answer.
    Stderr,
}

impl Output {
    fn writer(self) -> Box<dyn Write + Send> {
        match self {
            Self::Stdout => Box::new(io::stdout()),
            Self::Stderr => Box::new(io::stderr()),
        }
    }

    fn wants_colour(self) -> bool {
        let terminal = match self {
            Self::Stdout => io::stdout().is_terminal(),
            Self::Stderr => io::stderr().is_terminal(),
        };
        let forbidden = anstream::ColorChoice::global() == anstream::ColorChoice::Never;
        let variable = |name| std::env::var_os(name).unwrap_or_default();
        !forbidden
            && colour_suits(
                terminal,
                variable("NO_COLOR").is_empty(),
                variable("TERM") == "dumb",
            )
    }
}

/// Changes the filter while the process runs, and knows what was lost.
#[derive(Clone)]
pub struct LogHandle {
    filter: Arc<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync>,
    lost: Arc<AtomicU64>,
    events: EventCounts,
}

impl LogHandle {
    /// Replaces the filter; the caps on libraries stay.
    pub fn set_filter(&self, directives: &str) -> Result<(), TelemetryError> {
        let filter = parse_filter(directives)?;
        (self.filter)(filter).map_err(TelemetryError::Reload)
    }

    /// How many lines could not be written, because the output was closed or its disk full.
    pub fn lost_lines(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// How many events of level WARN and ERROR there were, by name, whatever the filter hid.
    pub fn events(&self) -> Vec<(&'static str, u64)> {
        self.events.get()
    }
}

impl std::fmt::Debug for LogHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogHandle")
            .field("lost_lines", &self.lost_lines())
            .finish_non_exhaustive()
    }
}

/// Why logging could not be installed or changed.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// Something else installed a subscriber first.
    #[error("logging is already installed")]
    AlreadyInstalled,
    /// The filter's directives do not parse.
    #[error("\"{}\" is no log filter", .directives.escape_debug())]
    Filter {
        /// The directives as given.
        directives: String,
    },
    /// The filter could not be replaced.
    #[error("the log filter could not be replaced")]
    Reload(#[source] reload::Error),
}

/// Libraries that log statements, addresses or headers below `warn`, by the beginning of their targets.
const CAPPED: &[&str] = &[
    "sqlx",
    "reqwest",
    "hyper",
    "h2",
    "rustls",
    "tower",
    "tokio_cron_scheduler",
];

/// Targets that show the text of statements at every level (sqlx's slow-statement warning among them).
const SILENCED: &[&str] = &["sqlx::query"];

/// The filtered layer and its handle, for any subscriber.
fn build<S>(
    directives: &str,
    style: Style,
    writer: Box<dyn Write + Send>,
) -> Result<(impl Layer<S> + use<S>, LogHandle), TelemetryError>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let (filter, reload_handle) = reload::Layer::new(parse_filter(directives)?);
    let lost = Arc::new(AtomicU64::new(0));
    let lines = LineLayer::new(style, writer, Arc::clone(&lost));
    let layer = lines.with_filter(FilterExt::<S>::and(filter, filter_fn(is_harmless)));
    let replace = move |filter| reload_handle.reload(filter);
    let events = EventCounts::new();
    let counting = events.clone().with_filter(filter_fn(event::is_ours));
    Ok((
        layer.and_then(counting),
        LogHandle {
            filter: Arc::new(replace),
            lost,
            events,
        },
    ))
}

/// Whether an event's or span's origin may be shown at its level.
fn is_harmless(metadata: &Metadata<'_>) -> bool {
    let from = |names: &[&str]| names.iter().any(|name| metadata.target().starts_with(name));
    let capped = from(CAPPED) && *metadata.level() > Level::WARN;
    !capped && !from(SILENCED)
}

fn parse_filter(directives: &str) -> Result<EnvFilter, TelemetryError> {
    EnvFilter::try_new(directives).map_err(|_| TelemetryError::Filter {
        directives: directives.to_owned(),
    })
}

/// Colour is for a terminal that can show it and a person who has not refused it (no-color.org).
fn colour_suits(terminal: bool, no_color_is_empty: bool, dumb: bool) -> bool {
    terminal && no_color_is_empty && !dumb
}

#[cfg(test)]
mod tests;
