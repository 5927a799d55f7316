use super::super::lead::Turn;
use super::*;
use crate::clock::SeededRandom;
use crate::model::{Field, FieldSet, LeaseToken};
use crate::reconcile::PageCounts;
use crate::reconcile::fixture::{Bench, START, row, swept};

#[test]
fn a_source_or_a_state_that_fails_is_tried_again_after_fifteen_seconds_at_most() {
    let longest = (1..=100).map(|failures| SOURCE_BACKOFF.interval(failures, 1.0));
    assert_eq!(longest.max(), Some(Duration::from_secs(15)));
    assert!(SOURCE_BACKOFF.interval(1, 1.0) <= Duration::from_secs(1));
}

/// A watcher whose every step a test takes, and what it looks at.
fn watcher(bench: &Bench) -> (Watcher, watch::Sender<WatchSettings>) {
    let reconciler = bench.reconciler(|settings| settings.page_rows = 500);
    let settings = WatchSettings {
        reconcile: reconcile::Settings {
            page_rows: 500,
            ..reconcile::Settings::default()
        },
        rules: ReconcileConfig {
            first_sight: crate::config::FirstSight::Push,
            on_missing: crate::config::OnMissing::Ignore,
            on_drift: crate::config::OnDrift::Log,
            sweep_rows_per_second: None,
            ignore: FieldSet::EMPTY,
        },
        poll: None,
    };
    let (sender, followed) = watch::channel(settings.clone());
    let (_, turn) = watch::channel(Turn::Alone);
    let watcher = Watcher {
        reconciler,
        store: Arc::clone(&bench.store) as _,
        clock: Arc::clone(&bench.clock) as _,
        random: Arc::new(SeededRandom::new(1)),
        wake: Wake::default(),
        stop: CancellationToken::new(),
        progressed: Mark::default(),
        metrics: Arc::default(),
        settings,
        followed,
        leading: Leading::new(turn),
        heartbeat: Heartbeat {
            owner: "test".to_owned(),
            pid: 1,
            version: "1".to_owned(),
            started_at: START,
            at: START,
            last_poll: None,
            source_problem: None,
            state_problem: None,
            outage_since: None,
        },
        owes_sweep: true,
        sweep_first_until: Timestamp::EPOCH,
    };
    (watcher, sender)
}

/// What is done next, with a poll and a sweep to do.
async fn next_of_both(watcher: &mut Watcher, sweep: Option<&Sweep>) -> &'static str {
    watcher.wake.poll.notify_one();
    watcher.wake.sweep.notify_one();
    match watcher.next(sweep, &Trouble::default()).await {
        Step::Poll => "poll",
        Step::Sweep => "sweep",
        Step::SweepPage => "page",
        Step::Configure | Step::Recheck | Step::Idle | Step::Stop => "other",
    }
}

#[tokio::test]
async fn a_sweep_has_its_turn_after_a_poll_for_as_long_as_that_took_and_a_second_at_most() {
    let ms = Duration::from_millis;
    for (took, turn) in [(0, 0), (5, 5), (999, 999), (60_000, 1_000)] {
        let bench = Bench::new([row("res_1", "a", 1)]);
        let (mut watcher, _settings) = watcher(&bench);
        let clock = Arc::clone(&bench.clock);
        bench.table.when_asked(move |what, _| {
            if what.starts_with("poll") {
                clock.pass(ms(took));
            }
        });
        assert_eq!(next_of_both(&mut watcher, None).await, "poll");
        watcher.poll(&mut None).await.expect("it is read");
        if turn > 0 {
            assert_eq!(next_of_both(&mut watcher, None).await, "sweep");
            let sweep = watcher.reconciler.begin_sweep().await.expect("in memory");
            bench.clock.pass(ms(turn - 1));
            assert_eq!(next_of_both(&mut watcher, Some(&sweep)).await, "page");
            bench.clock.pass(ms(1));
            assert_eq!(next_of_both(&mut watcher, Some(&sweep)).await, "poll");
        }
        assert_eq!(next_of_both(&mut watcher, None).await, "poll", "{took}");
    }
}

#[tokio::test]
async fn a_throttled_sweep_and_a_clock_that_was_set_back_keep_no_poll_waiting() {
    let bench = Bench::new(["res_1", "res_2", "res_3"].map(|id| row(id, "a", 1)));
    let (mut watcher, _settings) = watcher(&bench);
    watcher.sweep_first_until = START.plus(Duration::from_secs(1));
    watcher.reconciler.configure(reconcile::Settings {
        sweep_rows_per_second: std::num::NonZeroU32::new(1),
        ..watcher.settings.reconcile
    });
    let mut sweep = watcher.reconciler.begin_sweep().await.expect("in memory");
    assert_eq!(next_of_both(&mut watcher, Some(&sweep)).await, "page");
    let step = watcher.reconciler.step(&mut sweep).await;
    assert!(matches!(step, Ok(SweepStep::Page { .. })));
    assert_eq!(next_of_both(&mut watcher, Some(&sweep)).await, "poll");
    bench.clock.set(START.minus(Duration::from_secs(60)));
    assert_eq!(next_of_both(&mut watcher, None).await, "poll");
}

#[tokio::test]
async fn that_another_reads_the_source_is_said_after_a_wait_by_who_still_does_not_lead() {
    for (waits, expected) in [(false, Contact::Untried), (true, Contact::Elsewhere)] {
        let bench = Bench::new([]);
        let (mut watcher, _settings) = watcher(&bench);
        let (turn, leading) = watch::channel(Turn::Waiting);
        watcher.leading = Leading::new(leading);
        let metrics = Arc::clone(&watcher.metrics);
        let mut waiting = std::pin::pin!(watcher.await_turn());
        assert!(futures_util::poll!(&mut waiting).is_pending());
        assert_eq!(metrics.contact(), Contact::Untried);
        if waits {
            bench.clock.pass(HEARTBEAT);
            assert!(futures_util::poll!(&mut waiting).is_pending());
        }
        turn.send_replace(Turn::Held(LeaseToken(1)));
        assert!(waiting.await, "it leads now");
        assert_eq!(metrics.contact(), expected);
    }
}

/// Whether a bell was rung since this was last asked.
async fn rang(bell: &Notify) -> bool {
    futures_util::poll!(std::pin::pin!(bell.notified())).is_ready()
}

#[tokio::test]
async fn a_wish_that_was_answered_is_a_reading_of_the_source_and_all_wishes_are() {
    let ids: Vec<String> = (0..201).map(|id| format!("res_{id:03}")).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    for (wished, expected, asked) in [
        (0, false, vec![]),
        (1, true, vec!["rows of 1"]),
        (200, true, vec!["rows of 200"]),
        (201, true, vec!["rows of 200", "rows of 1"]),
    ] {
        let bench = Bench::new(ids.iter().map(|id| row(id, "1", 1)));
        let (watcher, _settings) = watcher(&bench);
        swept(&watcher.reconciler).await;
        bench.wish(&ids[..wished]).await;
        bench.table.asked();
        let read = watcher.recheck().await.expect("it can be read");
        assert_eq!(read, expected, "{wished}");
        assert_eq!(bench.table.asked(), asked, "{wished}");
        assert!(rang(&watcher.wake.work).await);
    }
}

#[tokio::test]
async fn a_poll_leaves_its_sign_and_wakes_dispatch_and_the_sweep_that_it_needs() {
    let bench = Bench::new([row("a", "1", 1), row("b", "1", 2)]);
    let (mut watcher, _settings) = watcher(&bench);
    let mut sweep = None;
    assert!(watcher.poll(&mut sweep).await.expect("it can be read"));
    assert_eq!(watcher.heartbeat.last_poll, Some((START, 2)));
    assert!(sweep.is_none() && !rang(&watcher.wake.sweep).await);
    watcher.owes_sweep = false;
    bench.table.deletes("b");
    watcher.poll(&mut sweep).await.expect("it can be read");
    assert!(watcher.owes_sweep && rang(&watcher.wake.sweep).await);
    assert_eq!(watcher.metrics.polls.get()["completed"], 2);
}

#[tokio::test]
async fn a_sweep_that_is_owed_has_to_begin_with_the_first_row() {
    let bench = Bench::new((0..3).map(|id| row(&format!("res_{id}"), "1", id)));
    let (mut watcher, _settings) = watcher(&bench);
    watcher.reconciler = bench.reconciler(|_| {});
    let mut sweep = None;
    assert!(!watcher.begin(&mut sweep).await.expect("in memory"));
    assert!(!watcher.owes_sweep, "it is under way");
    assert!(watcher.page(&mut sweep).await.expect("it can be read"));
    // It is cut off, and goes on in the middle: not what is owed meanwhile.
    sweep = None;
    watcher.owes_sweep = true;
    watcher.begin(&mut sweep).await.expect("in memory");
    assert!(watcher.owes_sweep);
    while sweep.is_some() {
        assert!(!rang(&watcher.wake.sweep).await);
        assert!(watcher.page(&mut sweep).await.expect("it can be read"));
    }
    assert!(rang(&watcher.wake.sweep).await, "another one follows");
    assert!(!watcher.page(&mut sweep).await.expect("there is none"));
    watcher.begin(&mut sweep).await.expect("in memory");
    assert!(!watcher.owes_sweep);
}

#[tokio::test]
async fn other_rules_mean_that_every_row_is_looked_at_and_another_limit_does_not() {
    let bench = Bench::new([]);
    let (mut watcher, settings) = watcher(&bench);
    watcher.owes_sweep = false;
    settings.send_modify(|settings| settings.reconcile.guard.changes_max = Some(5));
    assert!(!watcher.configure().expect("nothing is read"));
    assert!(!watcher.owes_sweep && !rang(&watcher.wake.sweep).await);
    settings.send_modify(|settings| settings.rules.ignore = FieldSet::from_iter([Field::Name]));
    assert!(!watcher.configure().expect("nothing is read"));
    assert!(watcher.owes_sweep && rang(&watcher.wake.sweep).await);
}

#[tokio::test]
async fn a_step_that_failed_is_tried_again_unless_it_is_still_under_way() {
    let bench = Bench::new([]);
    let (watcher, _settings) = watcher(&bench);
    for (step, expected) in [
        (Step::Poll, [true, false, false]),
        (Step::Sweep, [false, true, false]),
        (Step::Recheck, [false, false, true]),
        (Step::SweepPage, [false, false, false]),
        (Step::Idle, [false, false, false]),
    ] {
        watcher.again(&step);
        let Wake {
            poll,
            sweep,
            recheck,
            ..
        } = &watcher.wake;
        let rung = [rang(poll).await, rang(sweep).await, rang(recheck).await];
        assert_eq!(rung, expected);
    }
}

#[tokio::test]
async fn only_a_reading_of_the_source_ends_its_outage_and_any_step_that_of_the_state() {
    let bench = Bench::new([]);
    let (mut watcher, _settings) = watcher(&bench);
    let mut trouble = Trouble::default();
    let source = PassError::Source(crate::source::SourceError::Unreachable {
        target: "the source".to_owned(),
        problem: "it is away".to_owned(),
    });
    let state = PassError::Store(StoreError::Failed {
        operation: "commit",
        problem: "the disk is full".to_owned(),
        transient: true,
    });
    let later = START.plus(Duration::from_secs(9));
    watcher.failed(&mut trouble, &source);
    bench.clock.set(later);
    watcher.failed(&mut trouble, &source);
    watcher.failed(&mut trouble, &state);
    assert_eq!((trouble.source, trouble.state), (Some(START), Some(later)));
    assert_eq!(trouble.failures, 3);
    let problem = watcher.heartbeat.source_problem.clone();
    assert_eq!(problem, Some(source_words()));
    watcher.recovered(&mut trouble, false);
    assert_eq!((trouble.source, trouble.state), (Some(START), None));
    assert_eq!(trouble.failures, 3, "the source is tried again ever later");
    watcher.recovered(&mut trouble, true);
    assert_eq!((trouble.source, trouble.failures), (None, 0));
    assert_eq!(watcher.heartbeat.source_problem, None);
    assert_eq!(watcher.metrics.contact(), Contact::Made);
}

#[tokio::test]
async fn that_the_state_fails_and_works_again_is_told_at_once() {
    let bench = Bench::new([]);
    let (mut watcher, _settings) = watcher(&bench);
    let mut trouble = Trouble::default();
    let full = PassError::Store(StoreError::Failed {
        operation: "commit",
        problem: "the disk is full".to_owned(),
        transient: true,
    });
    let told = async || {
        bench
            .store
            .last_heartbeat()
            .await
            .map(|sign| sign.state_problem)
    };
    watcher.beat().await;
    assert_eq!(told().await, None, "it is no time for a sign of life yet");
    watcher.failed(&mut trouble, &full);
    watcher.beat().await;
    assert_eq!(told().await, Some(Some(full.to_string())));
    watcher.recovered(&mut trouble, false);
    watcher.beat().await;
    assert_eq!(told().await, Some(None));
    watcher
        .metrics
        .state(StateUser::Dispatch, Some("it cannot claim".to_owned()));
    watcher.recovered(&mut trouble, true);
    watcher.beat().await;
    let of_dispatch = Some(Some("it cannot claim".to_owned()));
    assert_eq!(told().await, of_dispatch, "whoever found out");
}

#[tokio::test]
async fn who_does_not_lead_any_more_does_not_say_for_ever_that_the_state_fails() {
    let bench = Bench::new([]);
    let (mut watcher, _settings) = watcher(&bench);
    let (turn, leading) = watch::channel(Turn::Waiting);
    watcher.leading = Leading::new(leading);
    let metrics = Arc::clone(&watcher.metrics);
    metrics.state(StateUser::Watch, Some("it was away".to_owned()));
    let mut waiting = std::pin::pin!(watcher.await_turn());
    assert!(futures_util::poll!(&mut waiting).is_pending());
    bench.clock.pass(HEARTBEAT);
    assert!(futures_util::poll!(&mut waiting).is_pending());
    assert_eq!(metrics.state_problem(), None);
    turn.send_replace(Turn::Held(LeaseToken(1)));
    assert!(waiting.await, "it leads now");
}

fn source_words() -> String {
    "cannot reach the source at the source: it is away".to_owned()
}

#[tokio::test]
async fn what_failed_is_counted_as_the_sources_or_the_states() {
    let bench = Bench::new([]);
    let (watcher, _settings) = watcher(&bench);
    let source = PassError::Source(crate::source::SourceError::Replica {
        target: "the source".to_owned(),
    });
    let state = PassError::Store(StoreError::WatchLost);
    watcher.measure_failure(&Step::Poll, &source);
    watcher.measure_failure(&Step::Sweep, &source);
    watcher.measure_failure(&Step::Poll, &state);
    let metrics = &watcher.metrics;
    assert_eq!(metrics.polls.get()["failed"], 2);
    assert_eq!(metrics.state_failures.get(), 1);
    assert!(matches!(metrics.contact(), Contact::Failed(_)));
}

#[tokio::test]
async fn a_sign_of_life_is_left_every_second_and_when_the_clock_was_set_back() {
    let bench = Bench::new([]);
    let (mut watcher, _settings) = watcher(&bench);
    let signs = [(999, None), (1_000, Some(1_000)), (1_999, Some(1_000))];
    for (ms, expected) in signs
        .into_iter()
        .chain([(2_000, Some(2_000)), (500, Some(500))])
    {
        bench.clock.set(START.plus(Duration::from_millis(ms)));
        watcher.beat().await;
        let sign = bench.store.last_heartbeat().await;
        let expected = expected.map(|ms| START.plus(Duration::from_millis(ms)));
        assert_eq!(sign.map(|sign| sign.at), expected, "{ms}");
    }
}

#[tokio::test]
async fn a_poll_that_left_something_to_send_or_took_something_back_wakes_dispatch() {
    let bench = Bench::new([]);
    let (watcher, _settings) = watcher(&bench);
    let report = |change: fn(&mut PageCounts)| {
        let mut report = PollReport::default();
        change(&mut report.counts);
        report
    };
    for (report, expected) in [
        (report(|counts| counts.enqueued = 1), true),
        (report(|counts| counts.folded = 1), true),
        (report(|counts| counts.withdrawn = 1), true),
        (report(|counts| counts.adopted = 1), true),
        (report(|counts| counts.changed = 1), false),
        (report(|counts| counts.rows = 1), false),
    ] {
        watcher.tell_poll(&report);
        assert_eq!(rang(&watcher.wake.work).await, expected, "{report:?}");
    }
}

/// A renewal that waited for a page's own transaction comes too late, and the watch is taken anew while that step goes on.
#[tokio::test]
async fn a_step_under_an_older_watch_does_not_give_up_the_new_one() {
    use crate::model::Lease;
    let bench = Bench::new([row("a", "1", 1)]);
    let (mut watcher, _settings) = watcher(&bench);
    let (turn, leading) = watch::channel(Turn::Waiting);
    watcher.leading = Leading::new(leading);
    let takes = async |number: i64, at: Timestamp| {
        let lease = Lease {
            owner: "one".to_owned(),
            token: LeaseToken(number),
            expires_at: at.plus(Duration::from_secs(6)),
        };
        let taken = bench.store.acquire_watch(&lease, at).await;
        assert!(taken.expect("in memory"));
        turn.send_replace(Turn::Held(lease.token));
    };
    takes(1, START).await;
    let begun = watcher.leading.begun().expect("anew");
    watcher.reconciler.hold_watch(begun);
    turn.send_replace(Turn::Waiting);
    takes(2, START.plus(Duration::from_secs(12))).await;
    let ended = watcher.poll(&mut None).await;
    let is_lost = matches!(ended, Err(PassError::Store(StoreError::WatchLost)));
    assert!(is_lost, "{ended:?}");
    watcher.leading.lose();
    assert!(watcher.leading.leads());
    assert_eq!(watcher.leading.begun(), Some(LeaseToken(2)));
    // The one under which it read just now is not led on.
    watcher.leading.lose();
    assert!(!watcher.leading.leads());
}
