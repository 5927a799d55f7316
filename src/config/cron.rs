//! Cron expressions, accepted exactly as the scheduler accepts them.
//!
//! Six fields with the seconds first, in UTC. A value of this type is one that tokio-cron-scheduler will not refuse; it
//! never says when it fires.

use std::fmt;
use std::str::FromStr;

use croner::parser::{CronParser, Seconds};

/// A cron expression of six fields, seconds first, in UTC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cron(String);

impl Cron {
    /// The expression as the scheduler takes it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Cron {
    type Err = CronError;

    fn from_str(text: &str) -> Result<Self, CronError> {
        let expression = text.trim();
        let fields = expression.split_whitespace().count();
        if fields != FIELDS {
            let with_seconds = format!("0 {expression}");
            let suggestion =
                (fields + 1 == FIELDS && parses(&with_seconds).is_ok()).then_some(with_seconds);
            return Err(CronError {
                reason: None,
                suggestion,
            });
        }
        parses(expression).map_err(|reason| CronError {
            reason: Some(reason),
            suggestion: None,
        })?;
        Ok(Self(expression.to_owned()))
    }
}

impl fmt::Display for Cron {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why text is no cron expression.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no cron expression of six fields")]
pub struct CronError {
    /// What is wrong with one of the six fields, if there are six.
    pub reason: Option<String>,
    /// The same expression with seconds, if only they are missing.
    pub suggestion: Option<String>,
}

/// Seconds, minutes, hours, day of the month, month, day of the week.
const FIELDS: usize = 6;

/// Parses with the settings of tokio-cron-scheduler 0.15 (`JobLocked::new_cron_job_async_tz`), and refuses what never comes.
fn parses(expression: &str) -> Result<(), String> {
    let cron = CronParser::builder()
        .seconds(Seconds::Required)
        .dom_and_dow(true)
        .build()
        .parse(expression)
        .map_err(|error| {
            // "Component error: Number out of bounds." without its category.
            let text = error.to_string();
            let reason = text
                .split_once(": ")
                .map_or(text.as_str(), |(_, reason)| reason);
            reason.trim_end_matches('.').to_lowercase()
        })?;
    if comes(&cron) {
        Ok(())
    } else {
        Err("no such day ever comes".to_owned())
    }
}

/// The calendar's weekdays and leap years repeat after 28 years.
const CALENDAR: std::ops::Range<i32> = 2000..2028;

/// Whether any day of the calendar matches; 31 February does not.
fn comes(cron: &croner::Cron) -> bool {
    let pattern = &cron.pattern;
    let months = || (1..=12).filter(|month| pattern.month_match(*month).unwrap_or(false));
    let day_matches = |year, month, day| pattern.day_match(year, month, day).unwrap_or(false);
    CALENDAR
        .into_iter()
        .any(|year| months().any(|month| (1..=31).any(|day| day_matches(year, month, day))))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio_cron_scheduler::Job;

    use super::*;

    #[test]
    fn six_fields_are_accepted() {
        for text in [
            "*/5 * * * * *",
            "0 30 3 * * *",
            " 0 0 * * * MON-FRI ",
            "0 0 0 L * *",
        ] {
            assert!(text.parse::<Cron>().is_ok(), "{text}");
        }
        for text in [
            "",
            "hourly",
            "@hourly",
            "* * * * *",
            "0 60 * * * *",
            "0 0 * * * * 2030",
            "a b c d e f",
        ] {
            assert!(text.parse::<Cron>().is_err(), "{text}");
        }
    }

    #[test]
    fn five_fields_are_answered_with_six() {
        let error = "*/5 * * * *".parse::<Cron>().expect_err("five fields");
        assert_eq!(error.suggestion.as_deref(), Some("0 */5 * * * *"));
        let error = "61 * * * *".parse::<Cron>().expect_err("five fields");
        assert_eq!(error.suggestion, None);
    }

    #[test]
    fn day_that_never_comes_is_refused_and_a_rare_one_is_not() {
        for text in ["0 0 0 31 2 *", "0 0 0 31 4,6 *"] {
            let error = text.parse::<Cron>().expect_err("no such day");
            assert_eq!(
                error.reason.as_deref(),
                Some("no such day ever comes"),
                "{text}"
            );
        }
        for text in [
            "0 0 0 29 2 *",
            "0 0 0 29 2 MON",
            "0 0 0 L 2 *",
            "0 0 0 * * MON#5",
        ] {
            assert!(text.parse::<Cron>().is_ok(), "{text}");
        }
    }

    proptest! {
        /// Whatever is accepted here, the scheduler accepts.
        #[test]
        fn scheduler_accepts_what_is_accepted(text in "([*0-9/,L#+?-]{1,4} ){5}[*0-9/,L#+?A-Z-]{1,4}") {
            if let Ok(cron) = text.parse::<Cron>() {
                prop_assert!(Job::new(cron.as_str(), |_, _| {}).is_ok(), "{}", cron);
            }
        }
    }
}
