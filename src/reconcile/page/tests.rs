use super::*;
use crate::model::RawText;
use crate::reconcile::fixture::{Bench, key, row, swept};

#[test]
fn the_counts_of_pages_add_up() {
    let page = PageCounts {
        rows: 1,
        changed: 2,
        enqueued: 3,
        folded: 4,
        withdrawn: 5,
        adopted: 6,
        equal: 7,
        waiting: 8,
        held: 9,
        dead: 10,
        quarantined: 11,
        known: 12,
        recovered: 13,
    };
    let mut sum = PageCounts::default();
    sum.add(&page);
    assert_eq!(sum, page);
    sum.add(&page);
    let twice = PageCounts {
        rows: 2,
        changed: 4,
        enqueued: 6,
        folded: 8,
        withdrawn: 10,
        adopted: 12,
        equal: 14,
        waiting: 16,
        held: 18,
        dead: 20,
        quarantined: 22,
        known: 24,
        recovered: 26,
    };
    assert_eq!(sum, twice);
}

/// The counts that are not zero.
fn told(counts: &PageCounts) -> String {
    let shown = format!("{counts:?}");
    let (_, fields) = shown.split_once("{ ").expect("a struct");
    let fields = fields.trim_end_matches(" }").split(", ");
    let counted: Vec<&str> = fields.filter(|field| !field.ends_with(": 0")).collect();
    counted.join(", ")
}

#[test]
fn each_decision_counts_once_as_what_was_done_and_once_as_where_the_row_stands() {
    use EntryState::{Dead, Held, Waiting};
    let cases = [
        (Decision::InSync, None, "equal: 1"),
        (Decision::Adopted, None, "adopted: 1, equal: 1"),
        (Decision::Withdrawn, Some(Waiting), "withdrawn: 1, equal: 1"),
        (Decision::Enqueued, None, "enqueued: 1, waiting: 1"),
        (Decision::Folded, Some(Waiting), "folded: 1, waiting: 1"),
        (Decision::Folded, Some(Held), "folded: 1, held: 1"),
        // A newer value revives what was dead.
        (Decision::Folded, Some(Dead), "folded: 1, waiting: 1"),
        (Decision::Unchanged, Some(Waiting), "waiting: 1"),
        (Decision::Unchanged, Some(Held), "held: 1"),
        (Decision::Unchanged, Some(Dead), "dead: 1"),
        (Decision::Unchanged, None, "equal: 1"),
    ];
    for (decision, before, expected) in cases {
        let mut counts = PageCounts::default();
        tally(&mut counts, decision, before);
        assert_eq!(told(&counts), expected, "{decision:?} {before:?}");
    }
}

#[tokio::test]
async fn a_sweep_looks_up_no_row_that_it_has_read_and_a_poll_each_that_changed() {
    let bench = Bench::new(["a", "b"].map(|id| row(id, "1", 1)));
    let reconciler = bench.reconciler(|settings| settings.page_rows = 100);
    swept(&reconciler).await;
    assert_eq!(bench.table.asked(), ["sweep 100"]);
    bench.table.puts(row("a", "2", 2));
    swept(&reconciler).await;
    assert_eq!(bench.table.asked(), ["sweep 100"]);
    let page = || vec![row("a", "3", 3), row("b", "1", 1)];
    for row in page() {
        bench.table.puts(row);
    }
    let nothing_found = Duplicates::Anywhere(BTreeMap::new());
    let position = Position::default;
    let done = reconciler
        .commit_page(page(), Origin::Poll, nothing_found, position())
        .await
        .expect("it can be read");
    assert_eq!(bench.table.asked(), ["ids of 1"]);
    assert_eq!((done.counts.rows, done.counts.changed), (2, 1));
    assert_eq!((done.counts.known, done.counts.equal), (2, 1));
    // Its rows were counted with the page.
    bench.table.puts(row("a", "4", 4));
    let found = Duplicates::Anywhere([(key("a"), 1)].into());
    let done = reconciler
        .commit_page(vec![row("a", "4", 4)], Origin::Poll, found, position())
        .await
        .expect("it can be read");
    assert_eq!(bench.table.asked(), Vec::<String>::new());
    assert_eq!(done.counts.changed, 1);
}

#[tokio::test]
async fn a_resource_of_two_rows_is_unusable_until_one_of_them_is_gone() {
    let bench = Bench::new([row("a", "1", 1), row("b", "1", 1)]);
    let reconciler = bench.reconciler(|settings| settings.page_rows = 100);
    swept(&reconciler).await;
    bench.table.asked();
    let page = vec![row("a", "2", 2)];
    bench.table.doubles(row("a", "2", 2));
    let poll = |page: Vec<RawRow>| {
        let found = Duplicates::Anywhere(BTreeMap::new());
        reconciler.commit_page(page, Origin::Poll, found, Position::default())
    };
    let done = poll(page.clone()).await.expect("it can be read");
    assert_eq!(bench.table.asked(), ["ids of 1", "rows of 1"]);
    assert_eq!(told(&done.counts), "rows: 1, quarantined: 2, known: 1");
    assert_eq!(done.notices.len(), 1);
    // The same once more is no news.
    let done = poll(page.clone()).await.expect("it can be read");
    assert_eq!(told(&done.counts), "rows: 1, quarantined: 2, known: 1");
    assert_eq!(done.notices.len(), 0);
    bench.table.deletes("a");
    bench.table.puts(row("a", "2", 2));
    let done = poll(page).await.expect("it can be read");
    assert_eq!(done.counts.recovered, 1);
    assert_eq!((done.counts.changed, done.counts.quarantined), (1, 0));
}

#[tokio::test]
async fn a_page_whose_rows_are_gone_a_moment_later_fails_unless_another_row_is_there() {
    let bench = Bench::new([row("a", "1", 1)]);
    let reconciler = bench.reconciler(|_| {});
    swept(&reconciler).await;
    bench.table.deletes("a");
    let found = Duplicates::Anywhere(BTreeMap::new());
    let page = vec![row("a", "2", 2)];
    let done = reconciler.commit_page(
        page.clone(),
        Origin::Poll,
        found.clone(),
        Position::default(),
    );
    let Err(PassError::Source(SourceError::Query { problem, .. })) = done.await else {
        panic!("nothing proves that it is gone");
    };
    assert!(problem.contains("shows no rows"), "{problem}");
    // Another row proves it: the resource is for a sweep to find missing.
    bench.table.puts(row("b", "1", 1));
    let done = reconciler.commit_page(page, Origin::Poll, found, Position::default());
    let done = done.await.expect("it can be read");
    assert_eq!(told(&done.counts), "rows: 1, known: 1");
    let asked = bench.table.asked();
    let last = asked[asked.len() - 4..].join(", ");
    assert_eq!(last, "ids of 1, rows of 1, sweep 10, rows of 2");
}

#[tokio::test]
async fn an_unusable_row_keeps_no_other_of_its_page_back() {
    let mut unusable = row("b", "1", 1);
    unusable.columns[0].1 = RawText::Unreadable("is no text");
    let bench = Bench::new([row("a", "1", 1), unusable, row("c", "1", 1)]);
    let reconciler = bench.reconciler(|settings| settings.page_rows = 100);
    let report = swept(&reconciler).await;
    assert_eq!((report.account.equal, report.account.quarantined), (2, 1));
}

#[tokio::test]
async fn no_statement_asks_for_so_many_that_their_witness_would_be_in_another() {
    let bench = Bench::new([row("w", "1", 1)]);
    let reconciler = bench.reconciler(|_| {});
    let keys: Vec<ResourceKey> = (0..500).map(|id| key(&format!("res_{id:03}"))).collect();
    let rows = reconciler.fetch_or_prove_absent(&keys).await;
    let rows = rows.expect("it can be read").expect("there is a witness");
    assert!(rows.is_empty());
    let proof = |absent: usize| {
        let with_witness = absent + 1;
        [
            format!("rows of {absent}"),
            "sweep 10".to_owned(),
            format!("rows of {with_witness}"),
        ]
    };
    assert_eq!(bench.table.asked(), [proof(499), proof(1)].concat());
}

#[tokio::test]
async fn what_came_or_went_while_its_absence_was_proved_is_taken_as_it_is_then() {
    let keys = ["a", "b"].map(key);
    for (coming, when, expected) in [
        // Nothing came: both are absent.
        (None, "", vec![]),
        // One came before the witness was looked for, and is the witness itself.
        (Some("a"), "sweep 10", vec!["a"]),
        // One came after that.
        (Some("b"), "rows of 3", vec!["b"]),
    ] {
        let bench = Bench::new([row("w", "1", 1)]);
        let reconciler = bench.reconciler(|_| {});
        bench.table.when_asked(move |what, rows| {
            if let Some(id) = coming.filter(|_| what == when) {
                rows.insert(0, row(id, "1", 1));
            }
        });
        let rows = reconciler.fetch_or_prove_absent(&keys).await;
        let rows = rows.expect("it can be read").expect("there is a witness");
        let ids = rows.iter().map(|row| row.resource_id.shown_id());
        assert_eq!(ids.collect::<Vec<_>>(), expected, "{coming:?}");
    }
    // What is there at once needs no witness, and without one nothing is proved.
    let bench = Bench::new([row("a", "1", 1)]);
    let reconciler = bench.reconciler(|_| {});
    let rows = reconciler.fetch_or_prove_absent(&keys).await;
    assert_eq!(
        rows.expect("it can be read").map(|rows| rows.len()),
        Some(1)
    );
    assert_eq!(bench.table.asked(), ["rows of 2"]);
    bench.table.deletes("a");
    let rows = reconciler.fetch_or_prove_absent(&keys).await;
    assert_eq!(rows.expect("it can be read"), None);
}

#[tokio::test]
async fn a_known_resource_counts_once_however_many_rows_it_has() {
    let bench = Bench::new([row("a", "1", 1)]);
    let reconciler = bench.reconciler(|settings| settings.page_rows = 100);
    swept(&reconciler).await;
    let twice = vec![row("a", "1", 1), row("a", "1", 1)];
    let alone = Duplicates::InThisPage;
    let done = reconciler.commit_page(twice, Origin::Sweep, alone, Position::default());
    let counts = done.await.expect("it can be read").counts;
    assert_eq!(told(&counts), "rows: 2, quarantined: 2, known: 1");
}

#[tokio::test]
async fn as_many_wishes_are_answered_as_were_asked_for_and_a_missing_row_answers_one_too() {
    let bench = Bench::new(["a", "b", "c"].map(|id| row(id, "1", 1)));
    let reconciler = bench.reconciler(|settings| settings.page_rows = 100);
    swept(&reconciler).await;
    bench.wish(&["a", "b", "c"]).await;
    bench.table.deletes("c");
    bench.table.asked();
    for (limit, expected) in [(2, 2), (2, 1), (2, 0)] {
        let answered = reconciler.recheck(limit).await.expect("it can be read");
        assert_eq!(answered, expected);
    }
    let asked = bench.table.asked();
    assert_eq!(asked, ["rows of 2", "rows of 1", "sweep 10", "rows of 2"]);
}
