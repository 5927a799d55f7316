//! The text of one log line.
//!
//! JSON: one flat object, `timestamp`, `level`, `event`, the fields, `message`. Pretty: `14:02:11.123 WARN  event  sentence  key=value`.
//! Neither can be broken or recoloured by a value: control characters and line breaks are escaped in both.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::time::SystemTime;

use anstyle::{AnsiColor, Style as Ansi};
use tracing::Level;

use super::field::{FieldValue, Fields, items};

/// The shape of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    Json,
    Pretty { colour: bool },
}

/// One event, ready to be written.
pub(super) struct Line<'a> {
    pub(super) time: SystemTime,
    pub(super) level: Level,
    pub(super) target: &'a str,
    pub(super) fields: Fields,
}

impl Line<'_> {
    /// The line with its newline.
    pub(super) fn render(mut self, style: Style) -> String {
        let message = self.fields.take_text("message").unwrap_or_default();
        let event = self.fields.take_text("event");
        match style {
            Style::Json => {
                let mut text = Vec::with_capacity(JSON_BYTES_USUAL);
                self.json(event.as_deref(), &message, &mut text)
                    .expect("memory takes every byte");
                String::from_utf8(text).expect("JSON is UTF-8")
            }
            Style::Pretty { colour } => self
                .pretty(event.as_deref(), &message, colour)
                .expect("writing to a string cannot fail"),
        }
    }

    /// Piece by piece into one text: there is a line for each delivery.
    fn json(&self, event: Option<&str>, message: &str, text: &mut Vec<u8>) -> io::Result<()> {
        let timestamp = humantime::format_rfc3339_millis(self.time);
        let level = self.level;
        write!(text, r#"{{"timestamp":"{timestamp}","level":"{level}""#)?;
        json_member(text, "event", event.unwrap_or(FOREIGN))?;
        if event.is_none() {
            json_member(text, "target", self.target)?;
        }
        for (name, value) in self.fields.iter() {
            if RESERVED.contains(&name) {
                json_name(text, &format!("{name}_"))?;
            } else {
                json_name(text, name)?;
            }
            match value {
                FieldValue::Text(value) => serde_json::to_writer(&mut *text, value)?,
                FieldValue::Integer(value) => write!(text, "{value}")?,
                FieldValue::Plain(json) | FieldValue::List(json) => write!(text, "{json}")?,
            }
        }
        json_member(text, "message", message)?;
        text.write_all(b"}\n")
    }

    fn pretty(
        &self,
        event: Option<&str>,
        message: &str,
        colour: bool,
    ) -> Result<String, std::fmt::Error> {
        let paint = |style: Ansi| if colour { style } else { Ansi::new() };
        let dim = paint(Ansi::new().dimmed());
        let level = paint(level_style(self.level));
        let mut text = String::with_capacity(160);
        let timestamp = humantime::format_rfc3339_millis(self.time).to_string();
        // `2026-05-04T14:02:11.123Z`: the time of day, UTC.
        write!(text, "{dim}{}{dim:#} ", &timestamp[11..23])?;
        write!(
            text,
            "{level}{:<5}{level:#} {}",
            self.level.as_str(),
            escaped(event.unwrap_or(self.target))
        )?;
        if !message.is_empty() {
            write!(text, "  {}", escaped(message))?;
        }
        for (index, (name, value)) in self.fields.iter().enumerate() {
            let gap = if index == 0 { "  " } else { " " };
            write!(text, "{gap}{dim}{name}={dim:#}{}", pretty_value(value))?;
        }
        text.push('\n');
        Ok(text)
    }
}

/// Room that most lines find enough.
const JSON_BYTES_USUAL: usize = 768;

/// What `event` says of a line that another library wrote.
const FOREIGN: &str = "log";

/// Names of the line itself; a field of the same name gets an underscore, so that no object holds a name twice.
const RESERVED: &[&str] = &["timestamp", "level", "target", "event", "message"];

fn level_style(level: Level) -> Ansi {
    let colour = match level {
        Level::ERROR => AnsiColor::Red,
        Level::WARN => AnsiColor::Yellow,
        Level::INFO => AnsiColor::Green,
        _ => AnsiColor::Blue,
    };
    colour.on_default()
}

fn json_member(text: &mut Vec<u8>, name: &str, value: &str) -> io::Result<()> {
    json_name(text, name)?;
    Ok(serde_json::to_writer(text, value)?)
}

fn json_name(text: &mut Vec<u8>, name: &str) -> io::Result<()> {
    text.push(b',');
    serde_json::to_writer(&mut *text, name)?;
    text.push(b':');
    Ok(())
}

fn pretty_value(value: &FieldValue) -> String {
    match value {
        FieldValue::Integer(value) => value.to_string(),
        FieldValue::Plain(text) => text.clone(),
        FieldValue::Text(text) if text.is_empty() || text.contains([' ', '"', '=']) => {
            format!(
                "\"{}\"",
                escaped(&text.replace('\\', "\\\\").replace('"', "\\\""))
            )
        }
        FieldValue::Text(text) => escaped(text),
        FieldValue::List(json) => {
            let items: Vec<String> = items(json).iter().map(|item| escaped(item)).collect();
            format!("[{}]", items.join(","))
        }
    }
}

/// Text that moves no cursor: control characters and marks that reverse the direction of text become escapes.
fn escaped(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for character in text.chars() {
        let reverses = matches!(character, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{2028}' | '\u{2029}');
        if character.is_control() || reverses {
            plain.extend(character.escape_default());
        } else {
            plain.push(character);
        }
    }
    plain
}
