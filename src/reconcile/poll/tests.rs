use super::*;
use crate::clock::Clock as _;
use crate::reconcile::Settings;
use crate::reconcile::fixture::{Bench, Failure, START, key, row, stepped, swept};
use crate::store::Store as _;

/// A poll, in pages of a hundred rows.
async fn polled(reconciler: &Reconciler) -> PollReport {
    let report = reconciler.poll().await.expect("it can be read");
    report.expect("there is a cursor")
}

fn rows(count: u32) -> impl Iterator<Item = RawRow> {
    (0..count).map(|id| row(&format!("res_{id:03}"), "a", id.into()))
}

fn in_one_page(settings: &mut Settings) {
    settings.page_rows = 100;
}

#[tokio::test]
async fn rows_of_the_overlap_are_passed_over_and_counted_as_known() {
    let bench = Bench::new(rows(3));
    let reconciler = bench.reconciler(in_one_page);
    let first = polled(&reconciler).await.counts;
    assert_eq!((first.rows, first.changed, first.adopted), (3, 3, 3));
    // From the last cursor on there is its row.
    let again = polled(&reconciler).await.counts;
    let expected = PageCounts {
        rows: 1,
        known: 1,
        ..PageCounts::default()
    };
    assert_eq!(again, expected);
    bench.table.puts(row("res_000", "b", 7));
    let changed = polled(&reconciler).await.counts;
    assert_eq!((changed.rows, changed.changed, changed.enqueued), (2, 1, 1));
    assert_eq!((changed.known, changed.folded), (2, 0));
}

#[tokio::test]
async fn a_few_changed_rows_are_looked_up_with_their_page_and_more_by_themselves() {
    for (changed, expected) in [(8_u32, None), (9, Some("ids of 9"))] {
        let bench = Bench::new(rows(20));
        let reconciler = bench.reconciler(in_one_page);
        polled(&reconciler).await;
        for id in 0..changed {
            bench
                .table
                .puts(row(&format!("res_{id:03}"), "b", 100 + i64::from(id)));
        }
        bench.table.asked();
        let counts = polled(&reconciler).await.counts;
        assert_eq!(counts.changed, u64::from(changed));
        let mut asked = vec!["poll 100"];
        asked.extend(expected);
        assert_eq!(bench.table.asked(), asked);
    }
}

#[tokio::test]
async fn where_most_rows_of_a_page_have_changed_those_of_later_pages_are_looked_up_with_them() {
    // The second page, of twice as many rows, is read before it is known what the first one held.
    for (changed_of_ten, apart) in [(10, 3), (6, 3), (5, 6)] {
        let bench = Bench::new(rows(60));
        let ten_a_page = |settings: &mut Settings| settings.page_rows = 10;
        polled(&bench.reconciler(ten_a_page)).await;
        for id in (0..60).filter(|id| id % 10 < changed_of_ten) {
            bench.table.puts(row(&format!("res_{id:03}"), "b", id));
        }
        // Of another database every row is read, and nothing is known after a start.
        bench.table.becomes("another");
        bench.table.asked();
        polled(&bench.reconciler(ten_a_page)).await;
        let asked = bench.table.asked();
        let looked_up: Vec<&String> = asked
            .iter()
            .filter(|what| what.starts_with("ids"))
            .collect();
        let expected = format!("ids of {changed_of_ten}");
        assert_eq!(looked_up, vec![&expected; apart], "{asked:?}");
    }
}

#[tokio::test]
async fn pages_of_a_long_pass_grow_fourfold_and_another_pass_begins_with_a_small_one() {
    let bench = Bench::new(rows(70));
    let reconciler = bench.reconciler(|_| {});
    let report = polled(&reconciler).await;
    assert_eq!((report.counts.rows, report.counts.adopted), (70, 70));
    let pages = |asked: Vec<String>| -> Vec<String> {
        let is_page = |what: &String| what.starts_with("poll");
        asked.into_iter().filter(is_page).collect()
    };
    let expected = [&["poll 2", "poll 4"][..], &["poll 8"; 8]].concat();
    assert_eq!(pages(bench.table.asked()), expected);
    polled(&bench.reconciler(|_| {})).await;
    assert_eq!(pages(bench.table.asked()), ["poll 2"]);
}

/// So many rows that one statement changed: all have one cursor.
fn rows_of_one_cursor(count: u32) -> impl Iterator<Item = RawRow> {
    (0..count).map(|id| row(&format!("res_{id:03}"), "a", 7))
}

fn five_a_page(settings: &mut Settings) {
    settings.page_rows = 5;
}

#[tokio::test]
async fn what_the_pass_before_left_known_is_read_at_once_and_its_news_is_found() {
    let bench = Bench::new(rows_of_one_cursor(20));
    let reconciler = bench.reconciler(five_a_page);
    for (changed, is_at_once) in [(0, true), (5, true), (6, false), (0, true)] {
        polled(&reconciler).await;
        for id in 0..changed {
            let status = format!("b{changed}");
            bench.table.puts(row(&format!("res_{id:03}"), &status, 7));
        }
        bench.table.asked();
        let counts = polled(&reconciler).await.counts;
        assert_eq!((counts.rows, counts.known), (20, 20), "{changed}");
        assert_eq!(counts.changed, changed, "{changed}");
        let asked = bench.table.asked();
        let pages: Vec<&str> = asked
            .iter()
            .filter_map(|what| what.strip_prefix("poll "))
            .collect();
        let expected = match is_at_once {
            true => vec!["25"],
            false => vec!["25", "5", "10", "20"],
        };
        assert_eq!(pages, expected, "{changed}");
        let progress = bench.progress().await.poll.expect("there was one");
        assert_eq!(progress.cursor.as_deref(), Some("7"));
    }
    // A page's worth of rows is read as a page.
    let bench = Bench::new(rows_of_one_cursor(5));
    let reconciler = bench.reconciler(five_a_page);
    polled(&reconciler).await;
    bench.table.asked();
    polled(&reconciler).await;
    assert_eq!(bench.table.asked(), ["poll 5"]);
}

#[tokio::test]
async fn more_than_a_statement_can_read_in_its_time_is_read_in_pages_and_so_it_stays() {
    let bench = Bench::new(rows_of_one_cursor(20));
    let reconciler = bench.reconciler(five_a_page);
    polled(&reconciler).await;
    bench.table.is_slow_beyond(20);
    for first in ["poll 25", "poll 5", "poll 5"] {
        bench.table.asked();
        assert_eq!(polled(&reconciler).await.counts.rows, 20);
        assert_eq!(bench.table.asked()[0], first);
    }
}

#[tokio::test]
async fn a_second_row_of_a_known_resource_is_found_among_many_that_pass() {
    let bench = Bench::new(rows_of_one_cursor(20));
    let reconciler = bench.reconciler(five_a_page);
    polled(&reconciler).await;
    bench.table.doubles(row("res_007", "a", 7));
    let counts = polled(&reconciler).await.counts;
    assert_eq!((counts.quarantined, counts.changed), (2, 0));
    let kept = bench.store.glance(&[key("res_007")]).await;
    assert!(kept.expect("in memory")[0].quarantined.is_some());
}

#[tokio::test]
async fn rows_pass_by_what_this_process_knows_under_its_watch_alone() {
    let bench = Bench::new(rows_of_one_cursor(20));
    let mut reconciler = bench.reconciler(five_a_page);
    polled(&reconciler).await;
    reconciler.hold_watch(crate::model::LeaseToken(1));
    bench.table.asked();
    assert!(reconciler.sieve().is_none());
}

#[test]
fn a_page_grows_no_further_than_its_bytes_allow_and_shrinks_where_rows_are_long() {
    let bench = Bench::new([]);
    let reconciler = bench.reconciler(|settings| settings.page_rows = 100);
    for (limit, bytes, expected) in [
        (100, 0, 200),
        (200, PAGE_BYTES / 2, 400),
        (400, PAGE_BYTES / 2, 400),
        (200, PAGE_BYTES / 2 + 1, 200),
        (400, PAGE_BYTES, 400),
        (400, PAGE_BYTES + 1, 200),
        (100, PAGE_BYTES + 1, 100),
    ] {
        assert_eq!(reconciler.next_poll_rows(limit, bytes), expected);
    }
}

#[tokio::test]
async fn a_large_page_is_committed_in_parts_and_its_position_with_the_last() {
    let bench = Bench::new(rows(5));
    let reconciler = bench.reconciler(|_| {});
    let position = || Position {
        poll: Some(PollProgress {
            cursor: Some("4".to_owned()),
            identity: "a database".to_owned(),
            completed_at: None,
            rows: 5,
        }),
        sweep: None,
        keep: true,
        ends_pass: true,
    };
    // The rows of the third part are asked for in vain, when the others are committed.
    bench.table.when_asked(move |what, rows| {
        if what == "ids of 1" {
            rows.clear();
        }
    });
    let found = BTreeMap::new;
    let cut_off = reconciler
        .commit_rows(rows(5).collect(), found(), position())
        .await;
    assert!(cut_off.is_err());
    let mut parts = bench.table.asked();
    parts.truncate(3);
    assert_eq!(parts, ["ids of 2", "ids of 2", "ids of 1"]);
    assert_eq!(bench.progress().await.poll, None);
    for row in rows(5) {
        bench.table.puts(row);
    }
    bench.table.when_asked(|_, _| {});
    let done = reconciler
        .commit_rows(rows(5).collect(), found(), position())
        .await
        .expect("it can be read");
    // Four were decided on before it was cut off.
    assert_eq!((done.counts.rows, done.counts.adopted), (5, 1));
    assert_eq!(bench.progress().await.poll, position().poll);
}

#[tokio::test]
async fn a_look_up_that_did_not_find_a_row_of_the_page_is_not_believed() {
    let (first, second, last) = (["res_000", "res_001"], ["res_002", "res_003"], ["res_003"]);
    for missed in [&first[..], &second, &last] {
        let bench = Bench::new(rows(4));
        let reconciler = bench.reconciler(|_| {});
        let found = |row: RawRow| {
            let key = row.key().expect("ids");
            let is_missed = missed.contains(&key.resource_id.as_str());
            (key, usize::from(!is_missed))
        };
        let found = rows(4).map(found).collect();
        let done = reconciler
            .commit_rows(rows(4).collect(), found, Position::default())
            .await
            .expect("it can be read");
        assert_eq!(done.counts.adopted, 4, "{missed:?}");
        assert_eq!(bench.table.asked(), ["rows of 2"], "{missed:?}");
    }
}

#[tokio::test]
async fn rows_of_one_resource_in_two_parts_of_a_page_are_unusable() {
    let bench = Bench::new(rows(3));
    let twice = row("res_000", "b", 3);
    bench.table.doubles(twice.clone());
    let reconciler = bench.reconciler(|_| {});
    let mut page: Vec<RawRow> = rows(3).collect();
    page[0] = twice.clone();
    page.push(twice);
    let keys = [key("res_000"), key("res_001")];
    for found in [BTreeMap::new(), [(key("res_000"), 2)].into()] {
        let done = reconciler.commit_rows(page.clone(), found, Position::default());
        done.await.expect("it can be read");
        let records = bench.store.records(&keys).await.expect("in memory");
        let decided: Vec<bool> = records.iter().map(|r| r.row_hash.is_some()).collect();
        assert_eq!(decided, [false, true]);
    }
}

#[tokio::test]
async fn a_poll_of_several_pages_counts_all_and_goes_on_from_the_last_row() {
    let bench = Bench::new(rows(5));
    let reconciler = bench.reconciler(|_| {});
    let report = polled(&reconciler).await;
    assert_eq!((report.counts.rows, report.counts.adopted), (5, 5));
    assert_eq!(report.needs_sweep, None);
    let progress = bench.progress().await.poll.expect("there was one");
    assert_eq!(progress.cursor.as_deref(), Some("4"));
    assert_eq!((progress.rows, progress.completed_at), (5, Some(START)));
}

#[tokio::test]
async fn every_row_is_to_be_read_if_the_cursor_cannot_be_trusted() {
    let bench = Bench::new(rows(3));
    let reconciler = bench.reconciler(in_one_page);
    assert_eq!(polled(&reconciler).await.needs_sweep, None);
    bench.table.becomes("restored");
    let report = polled(&reconciler).await;
    let why = "the source is another database than before";
    assert_eq!((report.needs_sweep, report.counts.rows), (Some(why), 3));
    assert_eq!(polled(&reconciler).await.needs_sweep, None);
    bench.table.deletes("res_002");
    let report = polled(&reconciler).await;
    let why = "the newest row of the source is older than before";
    assert_eq!((report.needs_sweep, report.counts.rows), (Some(why), 2));
    assert_eq!(polled(&reconciler).await.needs_sweep, None);
}

#[tokio::test]
async fn a_poll_that_fails_leaves_the_next_one_to_read_the_same_rows() {
    let bench = Bench::new(rows(3));
    let reconciler = bench.reconciler(in_one_page);
    polled(&reconciler).await;
    bench.table.puts(row("res_000", "b", 7));
    bench.table.fails(Some(Failure::Away));
    assert!(matches!(reconciler.poll().await, Err(PassError::Source(_))));
    bench.table.fails(None);
    assert_eq!(polled(&reconciler).await.counts.enqueued, 1);
}

#[tokio::test]
async fn the_time_that_a_poll_took_is_told() {
    let bench = Bench::new(rows(1));
    let reconciler = bench.reconciler(in_one_page);
    let (clock, later) = (bench.clock, START.plus(Duration::from_secs(3)));
    bench.table.when_asked(move |_, _| clock.set(later));
    assert_eq!(polled(&reconciler).await.duration, Duration::from_secs(3));
}

/// What a poll commits: whatever it does, nothing else runs here.
async fn commits(reconciler: &Reconciler) -> u64 {
    let before = reconciler.overtakes.load(Ordering::Relaxed);
    polled(reconciler).await;
    reconciler.overtakes.load(Ordering::Relaxed) - before
}

#[tokio::test]
async fn a_pass_without_news_notes_where_it_is_at_its_end_and_once_a_second() {
    let ms = Duration::from_millis;
    for (a_page, expected) in [(ms(0), 1), (ms(999), 2), (ms(1_000), 4)] {
        // Four pages, since each may have twice as many rows as the one before.
        let bench = Bench::new(rows(15));
        polled(&bench.reconciler(|_| {})).await;
        // One that knows nothing of them.
        let reconciler = bench.reconciler(|_| {});
        // The same rows again, found later.
        for id in 0..15 {
            bench.table.puts(row(&format!("res_{id:03}"), "a", 20 + id));
        }
        let clock = Arc::clone(&bench.clock);
        bench.table.when_asked(move |_, _| clock.pass(a_page));
        assert_eq!(commits(&reconciler).await, expected, "{a_page:?}");
        let progress = bench.progress().await.poll.expect("there was one");
        assert_eq!(progress.cursor.as_deref(), Some("34"));
        assert_eq!(commits(&reconciler).await, 0, "it has not moved");
    }
}

#[tokio::test]
async fn a_pass_without_news_notes_where_it_is_whenever_the_clock_was_set_back() {
    let bench = Bench::new(rows(15));
    polled(&bench.reconciler(|_| {})).await;
    let reconciler = bench.reconciler(|_| {});
    for id in 0..15 {
        bench.table.puts(row(&format!("res_{id:03}"), "a", 20 + id));
    }
    let clock = Arc::clone(&bench.clock);
    let a_moment = Duration::from_millis(1);
    bench
        .table
        .when_asked(move |_, _| clock.set(clock.now().minus(a_moment)));
    // Of the first page the clock says what it said at the beginning or less.
    assert_eq!(commits(&reconciler).await, 4);
}

#[tokio::test]
async fn the_first_poll_of_a_database_is_noted_although_it_is_empty() {
    let bench = Bench::new(rows(1));
    let reconciler = bench.reconciler(|_| {});
    assert_eq!(commits(&reconciler).await, 1);
    bench.table.deletes("res_000");
    bench.table.becomes("another");
    assert_eq!(commits(&reconciler).await, 1);
    let progress = bench.progress().await.poll.expect("there was one");
    assert_eq!(
        (progress.identity.as_str(), progress.cursor),
        ("another", None)
    );
}

#[tokio::test]
async fn a_poll_that_may_have_left_changes_undecided_ends_with_a_commit() {
    let bench = Bench::new(rows(1));
    let reconciler = bench.reconciler(|_| {});
    polled(&reconciler).await;
    assert_eq!(commits(&reconciler).await, 0);
    // As after a restart.
    assert_eq!(commits(&bench.reconciler(|_| {})).await, 1);
    let held = bench.reconciler(|settings| settings.guard.changes_max = Some(1));
    polled(&held).await;
    swept(&held).await;
    assert_eq!(commits(&held).await, 0, "a sweep leaves nothing to a poll");
}

#[tokio::test]
async fn the_cursor_is_not_moved_past_a_transaction_that_is_still_open() {
    let bench = Bench::new(rows(5));
    let reconciler = bench.reconciler(|_| {});
    bench.table.is_held_back_at(Some(1));
    polled(&reconciler).await;
    let cursor = async || {
        let progress = bench.progress().await.poll.expect("there was one");
        progress.cursor
    };
    assert_eq!(cursor().await.as_deref(), Some("1"));
    bench.table.is_held_back_at(None);
    polled(&reconciler).await;
    assert_eq!(cursor().await.as_deref(), Some("4"));
}

#[tokio::test]
async fn a_database_that_refuses_the_cursor_is_read_anew_only_if_it_is_another() {
    for (other, is_read) in [(true, true), (false, false)] {
        let bench = Bench::new(rows(3));
        let reconciler = bench.reconciler(in_one_page);
        polled(&reconciler).await;
        if other {
            bench.table.becomes("another");
        }
        bench.table.refuses_once();
        let report = reconciler.poll().await;
        assert_eq!(report.is_ok(), is_read);
        if let Ok(Some(report)) = report {
            assert_eq!(report.counts.rows, 3);
            assert!(report.needs_sweep.is_some());
        }
    }
    // Without a cursor it is the query that is refused.
    let bench = Bench::new(rows(3));
    let reconciler = bench.reconciler(in_one_page);
    bench.table.fails(Some(Failure::Refuses));
    assert!(matches!(reconciler.poll().await, Err(PassError::Source(_))));
    assert_eq!(bench.table.asked(), ["poll 100"]);
}

#[tokio::test]
async fn a_row_that_is_back_as_it_was_is_found_again_though_it_is_known() {
    let bench = Bench::new(rows(2));
    let reconciler = bench.reconciler(in_one_page);
    polled(&reconciler).await;
    polled(&reconciler).await;
    bench.table.deletes("res_001");
    assert_eq!(swept(&reconciler).await.newly_missing, 1);
    bench.table.puts(row("res_001", "a", 1));
    polled(&reconciler).await;
    let record = bench
        .store
        .records(&[key("res_001")])
        .await
        .expect("in memory");
    assert_eq!(record[0].missing, None);
}

#[tokio::test]
async fn a_sweep_that_a_poll_called_for_is_owed_until_one_has_read_every_row_since() {
    let bench = Bench::new(rows(60));
    let reconciler = bench.reconciler(|_| {});
    polled(&reconciler).await;
    let mut interrupted = reconciler.begin_sweep().await.expect("in memory");
    while bench.progress().await.sweep.is_none() {
        assert_eq!(stepped(&reconciler, &mut interrupted).await, None);
    }
    drop(interrupted);
    bench.table.becomes("another");
    assert!(polled(&reconciler).await.needs_sweep.is_some());
    // As after a kill: the database is the one that the state knows.
    let reconciler = bench.reconciler(|_| {});
    assert_eq!(polled(&reconciler).await.needs_sweep, None);
    let owes = async || reconciler.owes_sweep().await.expect("in memory");
    assert!(owes().await);
    let mut sweep = reconciler.begin_sweep().await.expect("in memory");
    assert!(!sweep.is_resumed());
    assert_eq!(stepped(&reconciler, &mut sweep).await, None);
    // It has not been written down yet where this one is.
    assert!(owes().await);
    while stepped(&reconciler, &mut sweep).await.is_none() {}
    assert!(!owes().await);
    // One that was under way when it was called for has read some rows before.
    let mut sweep = reconciler.begin_sweep().await.expect("in memory");
    assert_eq!(stepped(&reconciler, &mut sweep).await, None);
    bench.table.becomes("a third");
    assert!(polled(&reconciler).await.needs_sweep.is_some());
    sweep.owe();
    while stepped(&reconciler, &mut sweep).await.is_none() {}
    assert!(owes().await);
    swept(&reconciler).await;
    assert!(!owes().await);
}

#[tokio::test]
async fn a_sweep_that_a_poll_called_for_before_it_failed_is_owed_all_the_same() {
    let bench = Bench::new(rows(60));
    let reconciler = bench.reconciler(|_| {});
    polled(&reconciler).await;
    let mut under_way = reconciler.begin_sweep().await.expect("in memory");
    assert_eq!(stepped(&reconciler, &mut under_way).await, None);
    bench.table.becomes("another");
    // The second page, of more rows, is not read any more; the first is noted, with the database that it is of.
    bench.table.is_slow_beyond(2);
    let clock = Arc::clone(&bench.clock);
    let second = Duration::from_secs(1);
    bench.table.when_asked(move |_, _| clock.pass(second));
    assert!(reconciler.poll().await.is_err());
    let noted = bench.progress().await.poll.expect("the first page");
    assert_eq!(noted.identity, "another");
    let owes = async || reconciler.owes_sweep().await.expect("in memory");
    assert!(owes().await);
    // The one under way, which has read some rows before, does not cover that up.
    while stepped(&reconciler, &mut under_way).await.is_none() {}
    assert!(owes().await);
    bench.table.is_slow_beyond(u32::MAX);
    assert!(polled(&reconciler).await.needs_sweep.is_some());
    assert_eq!(polled(&reconciler).await.needs_sweep, None);
    swept(&reconciler).await;
    assert!(!owes().await);
}

/// What a source is asked by a poll: `poll 5 later than 7` where the overlap is left unread.
async fn asked_by_a_poll(bench: &Bench, reconciler: &Reconciler) -> Vec<String> {
    bench.table.asked();
    polled(reconciler).await;
    bench.table.asked()
}

/// Polls twenty rows of one cursor until nothing more is expected among them.
async fn calm() -> (Bench, Reconciler) {
    let bench = Bench::new(rows_of_one_cursor(20));
    let reconciler = bench.reconciler(|settings| {
        five_a_page(settings);
        settings.rest_per_row = Duration::from_secs(1);
    });
    polled(&reconciler).await;
    bench.clock.pass(Duration::from_secs(60));
    assert_eq!(asked_by_a_poll(&bench, &reconciler).await, ["poll 25"]);
    (bench, reconciler)
}

const LATER: &str = "poll 5 later than 7";

#[tokio::test]
async fn where_nothing_more_is_expected_polls_read_what_is_later_and_the_rest_at_a_pace() {
    let (bench, reconciler) = calm().await;
    for (passes, expected) in [(0, LATER), (19, LATER), (1, "poll 25"), (1, LATER)] {
        bench.clock.pass(Duration::from_secs(passes));
        assert_eq!(asked_by_a_poll(&bench, &reconciler).await, [expected]);
    }
    // News is found by the next poll, and waited for anew.
    bench.table.puts(row("res_003", "b", 8));
    let report = polled(&reconciler).await;
    assert_eq!((report.counts.rows, report.counts.changed), (1, 1));
    let progress = bench.progress().await.poll.expect("there was one");
    assert_eq!(progress.cursor.as_deref(), Some("8"));
    // What the state has of the others is known all the while.
    for id in (0..20).filter(|id| *id != 3) {
        bench.table.puts(row(&format!("res_{id:03}"), "a", 8));
    }
    assert_eq!(asked_by_a_poll(&bench, &reconciler).await, ["poll 25"]);
    let report = polled(&reconciler).await;
    assert_eq!((report.counts.rows, report.counts.known), (20, 20));
}

#[tokio::test]
async fn a_row_that_should_not_have_come_is_found_when_the_rest_is_read_again() {
    let (bench, reconciler) = calm().await;
    bench.table.puts(row("res_003", "b", 7));
    assert_eq!(polled(&reconciler).await.counts.changed, 0);
    bench.clock.pass(Duration::from_secs(20));
    assert_eq!(polled(&reconciler).await.counts.changed, 1);
}

#[tokio::test]
async fn a_newest_row_that_is_older_than_before_is_noticed_while_the_rest_is_left_unread() {
    let why = Some("the newest row of the source is older than before");
    let (bench, reconciler) = calm().await;
    for id in 0..20 {
        bench.table.puts(row(&format!("res_{id:03}"), "b", 6));
    }
    let report = polled(&reconciler).await;
    assert_eq!((report.needs_sweep, report.counts.changed), (why, 20));
    // One that went, while others have its cursor, is a sweep's business.
    let (bench, reconciler) = calm().await;
    bench.table.deletes("res_003");
    assert_eq!(polled(&reconciler).await.needs_sweep, None);
    let (bench, reconciler) = calm().await;
    bench.table.becomes("another");
    let report = polled(&reconciler).await;
    assert!(report.needs_sweep.is_some());
    assert_eq!(report.counts.rows, 20);
    // Of that database it is not known how long its newest row has been the newest.
    assert_eq!(asked_by_a_poll(&bench, &reconciler).await, ["poll 25"]);
    assert_eq!(asked_by_a_poll(&bench, &reconciler).await, ["poll 25"]);
}

#[tokio::test]
async fn a_crowd_of_another_database_is_counted_anew() {
    let bench = Bench::new(rows_of_one_cursor(11));
    let reconciler = bench.reconciler(crowded_beyond_ten);
    polled(&reconciler).await;
    bench.table.becomes("another");
    let asked = asked_by_a_poll(&bench, &reconciler).await;
    assert!(asked.iter().any(|what| what == "count at 7"), "{asked:?}");
}

#[tokio::test]
async fn nothing_is_left_unread_where_a_transaction_holds_the_cursor_back_or_the_watch_is_new() {
    let (bench, mut reconciler) = calm().await;
    let is_calm = |reconciler: &Reconciler| {
        let patience = calm::patience(Duration::ZERO);
        let calm = reconciler.calm();
        calm.ends_at(bench.clock.now(), patience, reconciler.pace())
            .is_some()
    };
    assert!(is_calm(&reconciler));
    reconciler.hold_watch(crate::model::LeaseToken(1));
    assert!(!is_calm(&reconciler));
    let (bench, reconciler) = calm().await;
    bench.table.is_held_back_at(Some(6));
    bench.clock.pass(Duration::from_secs(20));
    for _ in 0..2 {
        assert_eq!(asked_by_a_poll(&bench, &reconciler).await, ["poll 25"]);
    }
}

fn crowded_beyond_ten(settings: &mut Settings) {
    settings.page_rows = 5;
    settings.crowd_rows = 10;
}

#[tokio::test]
async fn more_rows_of_one_cursor_than_polls_read_are_left_to_a_sweep_and_what_is_later_is_read() {
    let why = Some("one cursor has more rows than a poll reads");
    for (count, expected) in [(10, (None, 12)), (11, (why, 2))] {
        let bench = Bench::new(rows_of_one_cursor(count));
        bench.table.puts(row("earlier", "a", 6));
        bench.table.puts(row("later", "a", 8));
        let reconciler = bench.reconciler(crowded_beyond_ten);
        let report = polled(&reconciler).await;
        let (needs_sweep, rows) = expected;
        assert_eq!(report.needs_sweep, needs_sweep, "{count}");
        assert_eq!(report.counts.rows, rows, "{count}");
        let progress = bench.progress().await.poll.expect("there was one");
        assert_eq!(progress.cursor.as_deref(), Some("8"));
        // It is owed before the place behind them counts.
        let owes = reconciler.owes_sweep().await.expect("in memory");
        assert_eq!(owes, needs_sweep.is_some());
        swept(&reconciler).await;
        let first = bench.store.records(&[key("res_000")]).await;
        assert!(first.expect("in memory")[0].row_hash.is_some());
    }
}

#[tokio::test]
async fn a_crowd_is_counted_and_called_for_once_and_once_more_when_nothing_can_join_it() {
    let bench = Bench::new(rows_of_one_cursor(11));
    let reconciler = bench.reconciler(crowded_beyond_ten);
    let first = asked_by_a_poll(&bench, &reconciler).await;
    assert_eq!(first, ["poll 5", "count at 7", "poll 10"]);
    bench.clock.pass(Duration::from_millis(59_999));
    let report = polled(&reconciler).await;
    assert_eq!(report.left_to_sweeps, ["7"]);
    assert_eq!(report.needs_sweep, None);
    bench.clock.pass(Duration::from_millis(1));
    let why = "rows may have joined those of one cursor since a sweep read them";
    assert_eq!(polled(&reconciler).await.needs_sweep, Some(why));
    // The source is not to put the crowd in order again.
    let without_it = ["poll 5 until 7", "poll 10"];
    assert_eq!(asked_by_a_poll(&bench, &reconciler).await, without_it);
    bench.table.puts(row("res_001", "b", 8));
    assert_eq!(polled(&reconciler).await.counts.changed, 1);
    let progress = bench.progress().await.poll.expect("there was one");
    assert_eq!(progress.cursor.as_deref(), Some("8"));
    // The new watch may be of a process that knows nothing of sweeps that were called for.
    let other = bench.reconciler(crowded_beyond_ten);
    bench.table.puts(row("res_001", "b", 7));
    assert!(polled(&other).await.needs_sweep.is_some());
}

#[tokio::test]
async fn a_crowd_that_is_gone_is_passed_over_no_more() {
    let bench = Bench::new(rows_of_one_cursor(11));
    let reconciler = bench.reconciler(crowded_beyond_ten);
    polled(&reconciler).await;
    for id in 1..11 {
        bench.table.puts(row(&format!("res_{id:03}"), "b", 6));
    }
    // One row is left of it.
    let report = polled(&reconciler).await;
    assert_eq!((report.counts.rows, report.needs_sweep), (0, None));
    bench.table.deletes("res_000");
    let why = "the newest row of the source is older than before";
    assert_eq!(polled(&reconciler).await.needs_sweep, Some(why));
}

#[tokio::test]
async fn a_crowd_that_lies_behind_the_place_of_an_open_transaction_is_put_in_order_once() {
    let bench = Bench::new(rows_of_one_cursor(11));
    bench.table.puts(row("earlier", "a", 5));
    let reconciler = bench.reconciler(crowded_beyond_ten);
    bench.table.is_held_back_at(Some(5));
    polled(&reconciler).await;
    let first = async || asked_by_a_poll(&bench, &reconciler).await.remove(0);
    let firsts = [first().await, first().await];
    assert_eq!(firsts, ["poll 5", "poll 5 until 7"]);
    bench.table.puts(row("earlier", "b", 5));
    assert_eq!(polled(&reconciler).await.counts.changed, 1);
    bench.table.is_held_back_at(None);
    polled(&reconciler).await;
    let progress = bench.progress().await.poll.expect("there was one");
    assert_eq!(progress.cursor.as_deref(), Some("7"));
}

#[tokio::test]
async fn many_rows_of_one_cursor_that_are_no_crowd_are_counted_once_a_pass() {
    let bench = Bench::new(rows_of_one_cursor(10));
    let reconciler = bench.reconciler(|settings| {
        crowded_beyond_ten(settings);
        settings.page_rows = 2;
    });
    let asked = asked_by_a_poll(&bench, &reconciler).await;
    let counts = asked.iter().filter(|what| what.starts_with("count"));
    assert_eq!(counts.count(), 1);
    // A page that only ends with a row of another cursor shows none.
    let bench = Bench::new(rows(4));
    let reconciler = bench.reconciler(|settings| settings.page_rows = 3);
    let asked = asked_by_a_poll(&bench, &reconciler).await;
    assert!(asked.iter().all(|what| !what.starts_with("count")));
}
