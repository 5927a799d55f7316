//! The story for people.

use super::super::matrix;
use super::super::out::{Look, WARN, styled};
use super::super::text::visible;
use super::events::{events, table};
use super::verdict::Verdict;
use super::{SourceRow, Told};

pub(super) fn render(told: &Told, look: Look) -> String {
    let verdict = Verdict::of(told);
    let lines = matrix::lines(&told.story.record, told.desired());
    let because = verdict.because(told, &lines, look);
    let mut text = format!("{}   {because}\n", styled(verdict.style(), verdict.word()));
    if let Some(note) = source_note(told) {
        text.push_str(&format!("{}\n", styled(WARN, note)));
    }
    if !lines.is_empty() {
        let left = if matches!(told.source, SourceRow::Usable(_)) {
            "SOURCE"
        } else {
            "LAST READ"
        };
        text.push_str(&format!("\n{}", matrix::render(&lines, left, look)));
    }
    let events = events(&told.story);
    if !events.is_empty() {
        text.push('\n');
        if told.is_cut {
            text.push_str("… older events may exist; --limit shows more\n");
        }
        text.push_str(&table(&events, look).render(look));
    }
    text.push_str(&format!(
        "\nWhy: {}.\nNext: {}\n",
        verdict.why(told, look),
        verdict.next(told)
    ));
    text
}

/// What has to be known of the left column when it is not the row as it is now.
fn source_note(told: &Told) -> Option<String> {
    let entry = told.story.record.entry.is_some();
    match &told.source {
        // With nothing open this is the verdict's own reason.
        SourceRow::Unreachable(problem) if entry => Some(format!(
            "The source could not be asked: {}.",
            visible(problem)
        )),
        SourceRow::Absent if entry => Some("The source has no such row any more.".to_owned()),
        SourceRow::Unreachable(_)
        | SourceRow::Usable(_)
        | SourceRow::Unusable(_)
        | SourceRow::Absent => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::events::tests::attempt;
    use super::super::tests::{NOW, ago, in_sync, snapshot};
    use super::*;
    use crate::model::{Entry, EntryId, Mark, Mode, Origin, Reason, SecretName};

    const LOOK: Look = Look {
        terminal: true,
        width: 100,
        now: NOW,
    };

    fn waiting() -> Told {
        let mut told = in_sync();
        told.source = SourceRow::Usable(snapshot("ready", 0xb0));
        let record = &mut told.story.record;
        record.doubt.secrets.insert(
            SecretName::new("DATABASE_URL").expect("a name"),
            Mark::default(),
        );
        record.entry = Some(Entry {
            id: EntryId(58_213),
            reason: Reason::Backoff,
            attempts: 2,
            due_at: NOW.plus(std::time::Duration::from_secs(12)),
            ..Entry::new(snapshot("ready", 0xb0), Origin::Poll, Mode::Whole, ago(38))
        });
        told.story.attempts = vec![
            attempt(1, 37, "failed", Some(503)),
            attempt(2, 21, "failed", Some(503)),
        ];
        told
    }

    fn plain(told: &Told, look: Look) -> String {
        anstream::adapter::strip_str(&render(told, look)).to_string()
    }

    #[test]
    fn the_story_is_facts_then_events_then_why_and_what_next() {
        insta::assert_snapshot!(plain(&waiting(), LOOK), @r"
        WAITING   1 secret not yet acknowledged; attempt 3 in 12 s

        FIELD                 SOURCE  ACKNOWLEDGED  IN DOUBT  TO SEND
        status                ready   ready
        secrets.DATABASE_URL  b0b0b0  9f9f9f        yes       b0b0b0
        secrets.REDIS_URL     111111  111111

        TIME      EVENT    WHAT                                                 TOOK    X-VERCEL-ID
        14:01:33  changed  secrets.DATABASE_URL (poll)
        14:01:34  failed   ×2 over 16 s  503 server_error secrets.DATABASE_URL  400 ms  iad1::q2

        Why: a temporary error at Vercel; its outcome is in doubt, so the value is sent until it is acknowledged.
        Next: wait, or reconciled outbox retry 58213
        ");
    }

    #[test]
    fn without_the_source_the_last_reading_is_shown_as_such() {
        let mut told = waiting();
        told.source =
            SourceRow::Unreachable("cannot reach the source at db/app: connection refused".into());
        let text = plain(&told, LOOK);
        assert!(text.contains(
            "The source could not be asked: cannot reach the source at db/app: connection refused."
        ));
        assert!(
            text.contains("LAST READ") && text.contains("b0b0b0"),
            "{text}"
        );
    }

    #[test]
    fn a_row_that_is_gone_is_said_beside_what_is_open() {
        let mut told = waiting();
        told.source = SourceRow::Absent;
        assert_eq!(
            source_note(&told).as_deref(),
            Some("The source has no such row any more.")
        );
        // With nothing open it is the verdict that says so.
        told.story.record.entry = None;
        assert_eq!(source_note(&told), None);
        told.source = SourceRow::Unreachable("no answer".into());
        assert_eq!(source_note(&told), None);
    }

    #[test]
    fn a_pipe_gets_exact_times_and_tabs() {
        let text = plain(
            &waiting(),
            Look {
                terminal: false,
                ..LOOK
            },
        );
        assert!(
            text.contains("secrets.DATABASE_URL\tb0b0b0\t9f9f9f\tyes\tb0b0b0\n"),
            "{text}"
        );
        assert!(
            text.contains("2026-05-04T14:01:34.000Z\tfailed\t×2 over 16 s  503 server_error"),
            "{text}"
        );
    }
}
