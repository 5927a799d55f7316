//! The layer that turns each event into one line.
//!
//! A line is written whole under one lock. A write that fails is counted and forgotten: a daemon outlives its log.

use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

use super::field::Fields;
use super::line::{Line, Style};

pub(super) struct LineLayer {
    style: Style,
    writer: Mutex<Box<dyn Write + Send>>,
    lost: Arc<AtomicU64>,
}

impl LineLayer {
    pub(super) fn new(style: Style, writer: Box<dyn Write + Send>, lost: Arc<AtomicU64>) -> Self {
        Self {
            style,
            writer: Mutex::new(writer),
            lost,
        }
    }

    fn write(&self, line: &str) {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        if writer
            .write_all(line.as_bytes())
            .and_then(|()| writer.flush())
            .is_err()
        {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl<S> Layer<S> for LineLayer
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        span.extensions_mut().insert(fields);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        if let Some(fields) = span.extensions_mut().get_mut::<Fields>() {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::with_capacity(event.metadata().fields().len());
        event.record(&mut fields);
        // From the innermost span outwards, so that the nearest value of a name wins.
        for span in context.event_scope(event).into_iter().flatten() {
            if let Some(outer) = span.extensions().get::<Fields>() {
                fields.add_outer(outer);
            }
        }
        let metadata = event.metadata();
        let line = Line {
            time: written_at(),
            level: *metadata.level(),
            target: metadata.target(),
            fields,
        };
        self.write(&line.render(self.style));
    }
}

/// The wall clock, which log lines tell whatever clock the program runs on.
#[expect(
    clippy::disallowed_methods,
    reason = "a log line tells real time, also in a simulation"
)]
fn written_at() -> SystemTime {
    SystemTime::now()
}
