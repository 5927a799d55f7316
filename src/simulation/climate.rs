//! What a seed decides before anything happens: settings, rates of faults, how long the storm lasts.
//!
//! A quarter of the seeds are calm, and in the others about half of the faults never happen: constant storms hide the bugs of
//! long calm.

use std::time::Duration;

use crate::dispatch;
use crate::model::{Field, FieldSet};
use crate::plan::backoff::Backoff;
use crate::plan::decide::FirstSight;
use crate::plan::{Policy, RetryPolicy, SecretsWay, guard};
use crate::reconcile::{self, OnMissing};

use super::chance::Chance;

/// Everything that a seed fixes beforehand.
#[derive(Debug, Clone)]
pub(super) struct Climate {
    /// Customers.
    pub(super) installations: u64,
    /// Resources at the start, over all customers.
    pub(super) resources: u64,
    /// The fields that the source query has columns for.
    pub(super) managed: FieldSet,
    /// Whether the source query has a cursor.
    pub(super) has_cursor: bool,
    /// The step of the cursor: rows changed within one step have equal cursors.
    pub(super) cursor_step_ms: i64,
    /// How far polls read behind the cursor.
    pub(super) overlap_ms: i64,
    /// Whether polls can see which transactions are open.
    pub(super) has_horizon: bool,
    pub(super) poll_every: Duration,
    pub(super) sweep_every: Duration,
    pub(super) reconcile: reconcile::Settings,
    pub(super) dispatch: dispatch::Settings,
    /// How long faults and changes go on.
    pub(super) storm: Duration,
    /// The mean time between two things that the provider does.
    pub(super) turn_every: Duration,
    pub(super) latency: Latency,
    /// Processes over one state; only the first reads the source.
    pub(super) processes: usize,
    /// The mean number of await points until a process is killed; 0: never.
    pub(super) crash_after: u64,
    pub(super) rates: Rates,
}

/// How long each call takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Latency {
    /// Every call ends where it begins.
    None,
    /// Every call lets others run.
    Yields,
    /// Some calls take a while.
    Slow,
}

/// How often what goes wrong, in so many of a thousand cases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Rates {
    pub(super) unsent: u64,
    pub(super) dropped: u64,
    pub(super) timeout: u64,
    pub(super) gateway: u64,
    pub(super) server_error: u64,
    pub(super) rate_limited: u64,
    pub(super) conflict: u64,
    pub(super) rejected: u64,
    pub(super) refused: u64,
    pub(super) unauthorized: u64,
    pub(super) slow_answer: u64,
    pub(super) source_error: u64,
    pub(super) store_error: u64,
    // Of a thousand turns of the provider.
    pub(super) late_commit: u64,
    pub(super) silent_edit: u64,
    pub(super) vanish: u64,
    pub(super) unusable: u64,
    pub(super) unacceptable: u64,
    pub(super) rotate_token: u64,
    pub(super) uninstall: u64,
    pub(super) lose_resource: u64,
    pub(super) source_outage: u64,
    pub(super) source_empty: u64,
    pub(super) store_outage: u64,
    pub(super) api_outage: u64,
    pub(super) stop: u64,
    pub(super) suspend: u64,
    pub(super) restore: u64,
}

const SECOND: Duration = Duration::from_secs(1);

impl Climate {
    /// The climate of a seed.
    pub(super) fn of(seed: u64) -> Self {
        let chance = &mut Chance::new(seed);
        let calm = chance.one_in(4);
        let rates = if calm {
            Rates::default()
        } else {
            Rates::of(chance)
        };
        let request_timeout = SECOND * pick(chance, &[2, 5, 20]);
        let late_apply = SECOND * pick(chance, &[3, 12, 40]);
        let retry = RetryPolicy {
            backoff: Backoff {
                initial: Duration::from_millis(u64::from(pick(chance, &[100, 1000]))),
                multiplier: 2.0,
                max: SECOND * pick(chance, &[2, 10, 40]),
            },
            max_elapsed: Duration::ZERO,
            max_conflicts: pick(chance, &[2, 8]),
            late_apply,
        };
        let first_sight = match chance.below(4) {
            0 => FirstSight::Compare,
            _ => FirstSight::Push,
        };
        let processes = if chance.one_in(4) { 2 } else { 1 };
        // Drawn apart, so that it moves nothing else of the seed.
        let reading = &mut Chance::new(seed ^ 0xca11);
        Self {
            installations: chance.between(1, 3),
            resources: chance.between(1, 7),
            managed: managed(chance),
            has_cursor: !chance.one_in(8),
            cursor_step_ms: *chance.pick(&[1, 1000, 5000]),
            overlap_ms: *chance.pick(&[0, 10_000, 30_000]),
            has_horizon: chance.one_in(3),
            poll_every: SECOND * pick(chance, &[2, 5]),
            sweep_every: SECOND * pick(chance, &[20, 60, 120]),
            reconcile: reconcile::Settings {
                policy: Policy { first_sight },
                ignored: FieldSet::EMPTY,
                guard: guard::Limits::default(),
                on_missing: match chance.one_in(3) {
                    true => OnMissing::Uninstall,
                    false => OnMissing::Ignore,
                },
                page_rows: pick(chance, &[1, 2, 3, 500]),
                sweep_rows_per_second: None,
                crowd_rows: pick(reading, &[2, 4, reconcile::CROWD_ROWS]),
                rest_per_row: SECOND * pick(reading, &[0, 5, 60]),
            },
            dispatch: dispatch::Settings {
                owner: String::new(),
                max_in_flight: pick(chance, &[1, 2, 64]),
                max_in_flight_per_installation: pick(chance, &[1, 4]),
                requests_per_minute_per_installation: chance.one_in(8).then(|| limit(seed)),
                lease: request_timeout + SECOND * pick(chance, &[4, 30]),
                request_timeout,
                retry,
                ignored: FieldSet::EMPTY,
                secrets: match chance.one_in(4) {
                    true => SecretsWay::Alone,
                    false => SecretsWay::Together,
                },
            },
            storm: SECOND * pick(chance, &[30, 60, 150]),
            turn_every: Duration::from_millis(u64::from(pick(chance, &[500, 2000, 6000]))),
            latency: *chance.pick(&[Latency::None, Latency::Yields, Latency::Slow]),
            processes,
            crash_after: match calm {
                true => 0,
                false => *chance.pick(&[0, 0, 40, 200, 1000]),
            },
            rates,
        }
    }
}

impl Rates {
    fn of(chance: &mut Chance) -> Self {
        let mut rate = |max: u64| match chance.one_in(2) {
            true => 0,
            false => chance.between(1, max),
        };
        Self {
            unsent: rate(200),
            dropped: rate(300),
            timeout: rate(300),
            gateway: rate(200),
            server_error: rate(300),
            rate_limited: rate(150),
            conflict: rate(300),
            rejected: rate(30),
            refused: rate(30),
            unauthorized: rate(60),
            slow_answer: rate(500),
            source_error: rate(60),
            store_error: rate(40),
            late_commit: rate(300),
            silent_edit: rate(150),
            vanish: rate(60),
            unusable: rate(80),
            unacceptable: rate(80),
            rotate_token: rate(50),
            uninstall: rate(40),
            lose_resource: rate(20),
            source_outage: rate(40),
            source_empty: rate(30),
            store_outage: rate(30),
            api_outage: rate(30),
            stop: rate(30),
            suspend: rate(30),
            restore: rate(15),
        }
    }
}

/// The limit of requests a minute of a seed that has one: from one request that waits long for the next to one that is hardly met. It is
/// drawn apart, so that it moves nothing else of the seed.
fn limit(seed: u64) -> u32 {
    pick(&mut Chance::new(seed ^ 0x3c), &[6, 20, 60, 60, 300])
}

fn pick(chance: &mut Chance, choices: &[u32]) -> u32 {
    *chance.pick(choices)
}

fn managed(chance: &mut Chance) -> FieldSet {
    let some: FieldSet = Field::ALL
        .into_iter()
        .filter(|_| chance.one_in(2))
        .collect();
    let base = some.with(Field::Status);
    match chance.below(3) {
        0 => base,
        _ => base.with(Field::Secrets),
    }
}
