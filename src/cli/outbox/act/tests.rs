//! What an act prints, for people and for machines.

use super::super::list::tests::{LOOK, NOW};
use super::*;

/// What became of the entries from 1 on, the second of which is of a paused installation.
fn results(
    order: Order,
    dry_run: bool,
    shown_max: Option<usize>,
    outcomes: impl IntoIterator<Item = Option<Result<EntryState, Refusal>>>,
) -> Results {
    let mut ids = Vec::new();
    let mut answers = Vec::new();
    for (id, outcome) in (1..).zip(outcomes) {
        let installation = if id == 2 { "icfg_paused" } else { "icfg_7Hd" };
        let key = ResourceKey::new(installation, &format!("res_{id}")).expect("ids");
        ids.push(EntryId(id));
        answers.push(match outcome {
            Some(Ok(state)) => Answer::Done { key, state },
            Some(Err(refusal)) => Answer::Refused { key, refusal },
            None => Answer::Unknown,
        });
    }
    let mut results = Results::new(order, dry_run, shown_max);
    let paused = InstallationId::new("icfg_paused").expect("an id");
    results.add(&ids, answers, &[paused].into());
    results
}

fn plain_at(results: &Results, look: Look) -> String {
    let text: String = results.parts(look).collect();
    anstream::adapter::strip_str(&text).to_string()
}

fn plain(results: &Results) -> String {
    plain_at(results, LOOK)
}

#[test]
fn each_entry_is_answered_and_refusals_say_why() {
    let outcomes = [
        Some(Ok(EntryState::Waiting)),
        Some(Ok(EntryState::Waiting)),
        Some(Err(Refusal::Held)),
        None,
    ];
    let results = results(Order::Retry, false, Some(50), outcomes);
    insta::assert_snapshot!(plain(&results), @r"
    RETRIED   2 entries, 2 refused

    ID  RESOURCE           RESULT
    1   icfg_7Hd/res_1     waiting
    2   icfg_paused/res_2  waiting; its installation is paused
    3   icfg_7Hd/res_3     refused: the entry is held; release or discard it
    4                      refused: there is no such entry

    Next: reconciled outbox list
    ");
    let machine = results.to_json(NOW);
    assert_eq!(
        (
            &machine["done"],
            &machine["refused"],
            &machine["unanswered"]
        ),
        (&json!(2), &json!(2), &json!(0))
    );
    let rows: Vec<Value> = results.rows.iter().map(row_json).collect();
    let of = |name: &str| -> Vec<&Value> { rows.iter().map(|row| &row[name]).collect() };
    assert_eq!(
        of("refusal"),
        [
            &Value::Null,
            &Value::Null,
            &json!("held"),
            &json!("unknown")
        ]
    );
    assert_eq!(of("installation_paused"), [false, true, false, false]);
    assert_eq!(
        of("resource_id"),
        [
            &json!("res_1"),
            &json!("res_2"),
            &json!("res_3"),
            &Value::Null
        ]
    );
}

#[test]
fn a_rehearsal_says_that_nothing_was_changed() {
    let outcomes = [Some(Ok(EntryState::Discarded))];
    let one = results(Order::Discard, true, Some(50), outcomes);
    insta::assert_snapshot!(plain(&one), @r"
    WOULD BE DISCARDED   1 entry; nothing was changed

    ID  RESOURCE        RESULT
    1   icfg_7Hd/res_1  discarded

    Next: the same without --dry-run
    ");
    let none = results(Order::Discard, true, Some(50), []);
    assert_eq!(
        plain(&none),
        "No entry matches; nothing was changed.\nNext: reconciled outbox list\n"
    );
}

#[test]
fn what_was_done_is_good_and_a_refusal_or_an_end_before_the_last_is_not() {
    let done = Some(Ok(EntryState::Discarded));
    let refused = Some(Err(Refusal::InFlight));
    let results = |order, outcomes: &[_]| results(order, false, Some(50), outcomes.iter().copied());
    let discarded = results(Order::Discard, &[done]);
    let text = plain(&discarded);
    assert!(text.starts_with("DISCARDED   1 entry\n"), "{text}");
    assert!(text.ends_with("\nNext: reconciled status\n"), "{text}");
    let head = |style, word: &str| styled(style, word).to_string();
    assert!(discarded.verdict().starts_with(&head(GOOD, "DISCARDED")));
    let partly = results(Order::Discard, &[done, refused]);
    assert!(partly.verdict().starts_with(&head(BAD, "DISCARDED")));
    let nothing = results(Order::Retry, &[refused]);
    let verdict = nothing.verdict();
    assert!(verdict.starts_with(&head(BAD, "NOT RETRIED")), "{verdict}");
    assert!(verdict.ends_with("   0 entries, 1 refused"), "{verdict}");
    let broken_off = Results {
        unanswered: 1_200,
        ..discarded
    };
    let verdict = broken_off.verdict();
    assert!(verdict.starts_with(&head(BAD, "DISCARDED")), "{verdict}");
    assert!(
        verdict.ends_with("   1 entry, 1,200 without an answer"),
        "{verdict}"
    );
}

/// Sixty that were done and one that was refused.
fn many(order: Order, shown_max: Option<usize>) -> Results {
    let done = std::iter::repeat_n(Some(Ok(EntryState::Waiting)), 60);
    results(
        order,
        false,
        shown_max,
        done.chain([Some(Err(Refusal::InFlight))]),
    )
}

#[test]
fn of_many_a_terminal_sees_the_first_and_every_refusal() {
    let text = plain(&many(Order::Release, Some(50)));
    assert!(
        text.contains("in flight") && text.contains("… and 10 lines more"),
        "{text}"
    );
    assert!(
        text.contains("res_50") && !text.contains("res_51"),
        "{text}"
    );
    assert!(
        text.starts_with("RELEASED   60 entries, 1 refused"),
        "{text}"
    );
}

#[test]
fn a_pipe_gets_every_line_under_one_heading() {
    let done = std::iter::repeat_n(Some(Ok(EntryState::Waiting)), 2 * ROWS_PER_PIECE + 1);
    let all = results(Order::Release, false, None, done);
    let pipe = Look {
        terminal: false,
        ..LOOK
    };
    let text = plain_at(&all, pipe);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[2], "ID\tRESOURCE\tRESULT");
    let rows = &lines[3..lines.len() - 2];
    assert_eq!(rows.len(), 2 * ROWS_PER_PIECE + 1);
    for (number, row) in (1..).zip(rows) {
        assert!(row.starts_with(&format!("{number}\t")), "{row}");
    }
    assert!(!text.contains("more"), "nothing is left out");
}

#[test]
fn the_code_is_explained() {
    assert!(include_str!("../../../../docs/errors.md").contains(&format!("### {UNCONFIRMED} ")));
    assert_eq!(unconfirmed().exit, Exit::Usage);
}
