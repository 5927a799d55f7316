use super::*;
use crate::model::{Field, RawRows, RawText};
use crate::plan::decide::FirstSight;
use crate::reconcile::Settings;
use crate::reconcile::fixture::{Bench, START, row, stepped, swept};
use crate::store::Store as _;

fn rows(ids: impl IntoIterator<Item = u32>) -> impl Iterator<Item = RawRow> {
    let row = |id: u32| row(&format!("res_{id:03}"), "a", id.into());
    ids.into_iter().map(row)
}

#[tokio::test]
async fn each_sweep_has_the_number_after_that_of_the_one_before() {
    let bench = Bench::new(rows(0..1));
    let reconciler = bench.reconciler(|_| {});
    for number in 1..=3 {
        swept(&reconciler).await;
        assert_eq!(bench.marked().await.number, number);
    }
}

#[tokio::test]
async fn a_row_that_is_gone_is_missed_also_while_another_stands_there_twice() {
    let bench = Bench::new(rows(0..3));
    let reconciler = bench.reconciler(|settings| settings.page_rows = 100);
    swept(&reconciler).await;
    bench.table.deletes("res_001");
    bench.table.doubles(row("res_002", "a", 2));
    for newly in [1, 0] {
        let report = swept(&reconciler).await;
        assert_eq!((report.account.missing, report.newly_missing), (1, newly));
        assert_eq!((report.account.rows, report.unaccounted), (3, 0));
    }
}

#[tokio::test]
async fn what_was_never_usable_is_forgotten_once_it_is_gone() {
    let bench = Bench::new(rows(0..3));
    let reconciler = bench.reconciler(|settings| settings.page_rows = 100);
    let unusable = |id: &str, metadata: &str| {
        let mut row = row(id, "a", 9);
        row.columns = vec![(Field::Metadata, RawText::text(metadata))];
        row
    };
    let mut without_ids = unusable("", "no JSON");
    without_ids.resource_id = RawText::Null;
    bench.table.puts(without_ids);
    bench.table.puts(unusable("res_900", "no JSON"));
    bench.table.puts(unusable("res_901", "no JSON"));
    let sweep = async || {
        bench.table.asked();
        let report = swept(&reconciler).await;
        let asked = bench.table.asked();
        let has_searched = asked.iter().any(|asked| asked.starts_with("rows of"));
        let counts = bench.store.counts(START).await.expect("in memory");
        (report.account.quarantined, counts.quarantined, has_searched)
    };
    // Nothing is looked for while each of them is met, as it was or changed.
    assert_eq!(sweep().await, (3, 3, false));
    assert_eq!(sweep().await, (3, 3, false));
    bench.table.puts(unusable("res_900", "still none"));
    assert_eq!(sweep().await, (3, 3, false));
    bench.table.deletes("res_901");
    assert_eq!(sweep().await, (2, 2, true));
    assert_eq!(sweep().await, (2, 2, false));
}

#[tokio::test]
async fn a_sweep_that_was_cut_off_goes_on_where_it_was_written_down_under_its_number() {
    let bench = Bench::new(rows(0..6));
    let reconciler = bench.reconciler(|_| {});
    let mut sweep = reconciler.begin_sweep().await.expect("in memory");
    assert!(!sweep.is_resumed());
    assert_eq!(stepped(&reconciler, &mut sweep).await, None);
    drop(sweep);
    let mut sweep = reconciler.begin_sweep().await.expect("in memory");
    assert!(sweep.is_resumed());
    let marked = bench.marked().await;
    assert_eq!((marked.number, sweep.progress.number), (1, 1));
    let after = marked.after.expect("a place");
    assert_eq!(after.installation_id, "2", "after two rows");
    while stepped(&reconciler, &mut sweep).await.is_none() {}
    // It does not know what it read before, and so looks for what is missing: nothing is.
    let marked = bench.marked().await;
    assert_eq!((marked.number, marked.account.missing), (1, 0));
    assert!(marked.complete && marked.after.is_none());
}

#[tokio::test]
async fn a_sweep_writes_down_where_it_is_after_every_twenty_pages_of_unchanged_rows() {
    // Out of order a page does not grow.
    let bench = Bench::new(rows((0..100).rev()));
    let reconciler = bench.reconciler(|_| {});
    swept(&reconciler).await;
    let mut sweep = reconciler.begin_sweep().await.expect("in memory");
    for page in 1..50 {
        assert_eq!(stepped(&reconciler, &mut sweep).await, None);
        let marked = bench.marked().await;
        let after = marked.after.map(|after| after.installation_id);
        let expected = match page {
            0..20 => None,
            20..40 => Some("40"),
            _ => Some("80"),
        };
        assert_eq!(after.as_deref(), expected, "{page}");
        let number = if page < 20 { 1 } else { 2 };
        assert_eq!(marked.number, number, "{page}");
    }
    let report = stepped(&reconciler, &mut sweep).await.expect("the last");
    assert_eq!((report.account.rows, report.account.equal), (100, 100));
}

#[tokio::test]
async fn pages_in_order_grow_twofold_to_four_times_and_others_do_not() {
    let cases: [(Vec<u32>, &[&str]); 2] = [
        (
            (0..40).collect(),
            &["sweep 2", "sweep 4", "sweep 8", "sweep 8", "sweep 8"],
        ),
        ((0..6).rev().collect(), &["sweep 2", "sweep 2", "sweep 2"]),
    ];
    for (ids, expected) in cases {
        let bench = Bench::new(rows(ids));
        let reconciler = bench.reconciler(|_| {});
        swept(&reconciler).await;
        bench.table.asked();
        swept(&reconciler).await;
        let asked = bench.table.asked();
        assert_eq!(&asked[..expected.len()], expected);
    }
}

#[test]
fn a_page_of_long_rows_has_no_more_than_fit_and_no_less_than_the_least() {
    let bench = Bench::new([]);
    let reconciler = bench.reconciler(|settings| settings.page_rows = 10);
    let page = |count: usize, bytes: usize| {
        let name = "x".repeat(bytes);
        let rows: RawRows = (0..count).map(|_| row("res_1", &name, 0)).collect();
        SweepRows { rows, next: None }
    };
    for (page, limit, is_ordered, expected) in [
        (page(0, 0), 10, true, 10),
        (page(10, 1), 10, false, 10),
        (page(10, 1), 10, true, 20),
        (page(10, 1), 20, true, 40),
        (page(10, 1), 40, true, 40),
        // Some 16 kB each: 31 fit.
        (page(10, 16_500), 40, true, 31),
        (page(10, 1 << 17), 40, true, 10),
    ] {
        let rows = reconciler.next_page_rows(&page, limit, is_ordered);
        assert_eq!(rows, expected, "{limit} {is_ordered}");
    }
}

#[tokio::test]
async fn a_throttled_sweep_reads_no_more_in_a_second_than_it_may() {
    let most = |rows| std::num::NonZeroU32::new(rows);
    for (most, limit, rest_ms) in [
        (None, 2, 0),
        (most(8), 2, 250),
        (most(2), 2, 1_000),
        (most(1), 1, 1_000),
    ] {
        let bench = Bench::new(rows(0..10));
        let reconciler = bench.reconciler(|settings| settings.sweep_rows_per_second = most);
        let mut sweep = reconciler.begin_sweep().await.expect("in memory");
        assert_eq!(sweep.rest(START), Duration::ZERO);
        stepped(&reconciler, &mut sweep).await;
        // Unthrottled, the next page is read while this one is decided on.
        let mut asked = bench.table.asked();
        assert_eq!(asked.remove(0), format!("sweep {limit}"));
        assert_eq!(asked.is_empty(), most.is_some());
        let rest = Duration::from_millis(rest_ms);
        assert_eq!(sweep.rest(START), rest);
        let later = START.plus(Duration::from_millis(100));
        assert_eq!(
            sweep.rest(later),
            rest.saturating_sub(Duration::from_millis(100))
        );
        let set_back = START.minus(Duration::from_secs(3_600));
        assert!(sweep.rest(set_back) <= Duration::from_secs(1));
    }
}

#[tokio::test]
async fn a_page_read_ahead_is_read_again_if_something_newer_was_committed_or_it_is_old() {
    for (waited_ms, changes, reads) in [
        (0, false, 1),
        (5_000, false, 1),
        (5_001, false, 2),
        (0, true, 2),
    ] {
        let bench = Bench::new(rows(0..6));
        let reconciler = bench.reconciler(|_| {});
        swept(&reconciler).await;
        let mut sweep = reconciler.begin_sweep().await.expect("in memory");
        stepped(&reconciler, &mut sweep).await;
        bench
            .clock
            .set(START.plus(Duration::from_millis(waited_ms)));
        if changes {
            bench.table.puts(row("res_000", "b", 100));
            reconciler.poll().await.expect("it can be read");
        }
        bench.table.asked();
        assert!(stepped(&reconciler, &mut sweep).await.is_some());
        let sweeps = bench.table.asked();
        let sweeps = sweeps.iter().filter(|asked| asked.starts_with("sweep"));
        // The page itself is the last: nothing is read ahead.
        assert_eq!(sweeps.count() + 1, reads, "{waited_ms} {changes}");
    }
}

#[tokio::test]
async fn the_account_says_of_each_row_where_it_stands() {
    let mut all: Vec<RawRow> = rows(0..7).collect();
    // Two rows of one resource, and one that cannot be used.
    all[1] = all[0].clone();
    all[6].columns[0].1 = RawText::Unreadable("is no text");
    let bench = Bench::new(all);
    let push = |settings: &mut Settings| settings.policy.first_sight = FirstSight::Push;
    let report = swept(&bench.reconciler(push)).await;
    let account = SweepAccount {
        rows: 7,
        waiting: 4,
        quarantined: 3,
        ..SweepAccount::default()
    };
    assert_eq!((report.account, report.unaccounted), (account, 0));
    assert!(!report.converged());
    let kept = bench.marked().await;
    assert_eq!(kept.last, Some((START, account)));
    // The same once more, row by row as it was.
    let report = swept(&bench.reconciler(push)).await;
    assert_eq!((report.account, report.unaccounted), (account, 0));
}

#[test]
fn both_sides_agree_if_every_row_is_equal_and_none_is_missing() {
    let with = |change: fn(&mut SweepAccount)| {
        let mut account = SweepAccount {
            rows: 3,
            equal: 3,
            ..SweepAccount::default()
        };
        change(&mut account);
        let report = SweepReport {
            account,
            unaccounted: 0,
            newly_missing: 0,
            uninstalled: 0,
            duration: Duration::ZERO,
        };
        report.converged()
    };
    assert!(with(|_| {}));
    assert!(!with(|account| account.waiting = 1));
    assert!(!with(|account| account.held = 1));
    assert!(!with(|account| account.dead = 1));
    assert!(!with(|account| account.quarantined = 1));
    assert!(!with(|account| account.missing = 1));
}

#[test]
fn the_account_grows_with_each_page() {
    let page = PageCounts {
        rows: 15,
        equal: 5,
        waiting: 4,
        held: 3,
        dead: 2,
        quarantined: 1,
        ..PageCounts::default()
    };
    let mut account = SweepAccount::default();
    add(&mut account, &page);
    add(&mut account, &page);
    let expected = SweepAccount {
        rows: 30,
        equal: 10,
        waiting: 8,
        held: 6,
        dead: 4,
        quarantined: 2,
        missing: 0,
    };
    assert_eq!(account, expected);
}

#[tokio::test]
async fn what_the_source_no_longer_has_is_new_once_and_uninstalled_by_the_second_sweep() {
    let bench = Bench::new(rows(0..6));
    let reconciler = bench.reconciler(|settings| settings.on_missing = OnMissing::Uninstall);
    assert_eq!(swept(&reconciler).await.account.missing, 0);
    for id in ["res_001", "res_004", "res_005"] {
        bench.table.deletes(id);
    }
    let found = |report: &SweepReport| {
        (
            report.account.missing,
            report.newly_missing,
            report.uninstalled,
        )
    };
    let second = Duration::from_secs(1);
    for (seconds, expected) in [(1, (3, 3, 0)), (2, (3, 0, 3)), (3, (3, 0, 0))] {
        bench.clock.set(START.plus(second * seconds));
        assert_eq!(found(&swept(&reconciler).await), expected, "{seconds}");
    }
}

#[tokio::test]
async fn a_source_without_rows_proves_nothing() {
    let bench = Bench::new(rows(0..2));
    let reconciler = bench.reconciler(|_| {});
    swept(&reconciler).await;
    bench.table.deletes("res_000");
    bench.table.deletes("res_001");
    bench.table.asked();
    let report = swept(&reconciler).await;
    assert_eq!((report.account.rows, report.account.missing), (0, 0));
    assert_eq!(bench.table.asked(), ["sweep 2"], "nothing is looked for");
}

#[tokio::test]
async fn a_sweep_that_read_nothing_does_not_count_for_an_uninstallation() {
    let bench = Bench::new(rows(0..2));
    let reconciler = bench.reconciler(|settings| settings.on_missing = OnMissing::Uninstall);
    swept(&reconciler).await;
    let left = row("res_001", "a", 1);
    let mut uninstalled = Vec::new();
    for (seconds, is_empty) in [(1, false), (2, true), (3, false), (4, false)] {
        bench.clock.set(START.plus(Duration::from_secs(seconds)));
        bench.table.deletes("res_000");
        match is_empty {
            true => bench.table.deletes("res_001"),
            false => bench.table.puts(left.clone()),
        }
        uninstalled.push(swept(&reconciler).await.uninstalled);
    }
    // Missing in the first, not looked for in the second; the one before the third proves nothing.
    assert_eq!(uninstalled, [0, 0, 0, 1]);
}

#[tokio::test]
async fn a_sweep_that_was_cut_off_after_its_last_row_begins_anew() {
    let bench = Bench::new(rows(0..2));
    let reconciler = bench.reconciler(|_| {});
    swept(&reconciler).await;
    bench.table.deletes("res_000");
    bench.table.puts(row("res_001", "b", 1));
    let mut sweep = reconciler.begin_sweep().await.expect("in memory");
    assert_eq!(stepped(&reconciler, &mut sweep).await, None);
    let marked = bench.marked().await;
    assert_eq!(
        (marked.number, marked.complete, marked.after),
        (2, false, None)
    );
    let sweep = reconciler.begin_sweep().await.expect("in memory");
    assert!(!sweep.is_resumed());
    assert_eq!(sweep.progress.number, 3);
}

#[tokio::test]
async fn an_unusable_row_that_goes_or_doubles_under_a_sweep_leaves_its_account_whole() {
    for (copies, expected) in [(0, 1), (2, 3)] {
        let mut unusable = row("res_000", "a", 0);
        unusable.columns[0].1 = RawText::Unreadable("is no text");
        let bench = Bench::new([unusable.clone(), row("res_001", "a", 1)]);
        let reconciler = bench.reconciler(|_| {});
        swept(&reconciler).await;
        // Another value, so that it is looked up by key.
        bench.table.puts(row("res_000", "b", 0));
        bench.table.when_asked(move |what, rows| {
            if what == "ids of 1" {
                let found = rows.remove(0);
                (0..copies).for_each(|_| rows.insert(0, found.clone()));
            }
        });
        let report = swept(&reconciler).await;
        assert_eq!((report.account.rows, report.unaccounted), (expected, 0));
    }
}
