//! What an act prints, for people and for machines.

use super::super::list::tests::{LOOK, NOW};
use super::*;

fn row(id: i64, answer: Option<Result<EntryState, Refusal>>, paused: bool) -> Row {
    let key = ResourceKey::new("icfg_7Hd", &format!("res_{id}")).expect("ids");
    let (key, answer) = match answer {
        Some(Ok(state)) => (Some(key.clone()), Answer::Done { key, state }),
        Some(Err(refusal)) => (Some(key), Answer::Refused(refusal)),
        None => (None, Answer::Unknown),
    };
    Row {
        id: EntryId(id),
        key,
        answer,
        paused,
    }
}

fn plain(results: &Results) -> String {
    anstream::adapter::strip_str(&results.render(LOOK)).to_string()
}

#[test]
fn each_entry_is_answered_and_refusals_say_why() {
    let results = Results {
        order: Order::Retry,
        dry_run: false,
        rows: vec![
            row(1, Some(Ok(EntryState::Waiting)), false),
            row(2, Some(Ok(EntryState::Waiting)), true),
            row(3, Some(Err(Refusal::Held)), false),
            row(4, None, false),
        ],
    };
    insta::assert_snapshot!(plain(&results), @r"
    RETRIED   2 entries, 2 refused

    ID  RESOURCE        RESULT
    1   icfg_7Hd/res_1  waiting
    2   icfg_7Hd/res_2  waiting; its installation is paused
    3   icfg_7Hd/res_3  refused: the entry is held; release or discard it
    4                   refused: there is no such entry

    Next: reconciled outbox list
    ");
    let machine = results.to_json(NOW);
    assert_eq!(
        (&machine["done"], &machine["refused"]),
        (&json!(2), &json!(2))
    );
    assert_eq!(machine["entries"][2]["refusal"], "held");
    assert_eq!(machine["entries"][3]["refusal"], "unknown");
}

#[test]
fn a_rehearsal_says_that_nothing_was_changed() {
    let rows = vec![row(1, Some(Ok(EntryState::Discarded)), false)];
    let results = Results {
        order: Order::Discard,
        dry_run: true,
        rows,
    };
    insta::assert_snapshot!(plain(&results), @r"
    WOULD BE DISCARDED   1 entry; nothing was changed

    ID  RESOURCE        RESULT
    1   icfg_7Hd/res_1  discarded

    Next: the same without --dry-run
    ");
    let none = Results {
        rows: Vec::new(),
        ..results
    };
    assert_eq!(
        plain(&none),
        "No entry matches; nothing was changed.\nNext: reconciled outbox list\n"
    );
}

#[test]
fn what_was_done_is_good_and_a_refusal_is_not() {
    let results = |order, rows| Results {
        order,
        dry_run: false,
        rows,
    };
    let done = || row(1, Some(Ok(EntryState::Discarded)), false);
    let refused = || row(2, Some(Err(Refusal::InFlight)), false);
    let discarded = results(Order::Discard, vec![done()]);
    let text = plain(&discarded);
    assert!(text.starts_with("DISCARDED   1 entry\n"), "{text}");
    assert!(text.ends_with("\nNext: reconciled status\n"), "{text}");
    let head = |style, word: &str| styled(style, word).to_string();
    assert!(discarded.verdict().starts_with(&head(GOOD, "DISCARDED")));
    let partly = results(Order::Discard, vec![done(), refused()]);
    assert!(partly.verdict().starts_with(&head(BAD, "DISCARDED")));
    let nothing = results(Order::Retry, vec![refused()]);
    let verdict = nothing.verdict();
    assert!(verdict.starts_with(&head(BAD, "NOT RETRIED")), "{verdict}");
    assert!(verdict.ends_with("   0 entries, 1 refused"), "{verdict}");
}

#[test]
fn of_many_a_terminal_sees_the_first_and_every_refusal() {
    let mut rows: Vec<Row> = (1..=60)
        .map(|id| row(id, Some(Ok(EntryState::Waiting)), false))
        .collect();
    rows.push(row(61, Some(Err(Refusal::InFlight)), false));
    let text = plain(&Results {
        order: Order::Release,
        dry_run: false,
        rows,
    });
    assert!(
        text.contains("in flight") && text.contains("… and 10 lines more"),
        "{text}"
    );
}

#[test]
fn the_code_is_explained() {
    assert!(include_str!("../../../../docs/errors.md").contains(&format!("### {UNCONFIRMED} ")));
    assert_eq!(unconfirmed().exit, Exit::Usage);
}
