//! The overview for machines.

use serde_json::{Value, json};

use super::super::hold;
use super::super::standing::age_ms;
use super::Overview;
use super::verdict::Verdict;
use crate::model::Timestamp;
use crate::store::{Counts, Quarantined, SweepAccount};

/// The version of this shape; it grows when a property changes its meaning or goes.
const SCHEMA: u32 = 1;

/// One object, but for its installations; lists are `[]` when empty, ages are in milliseconds.
pub(super) fn render(overview: &Overview) -> Value {
    let now = overview.now;
    let verdict = Verdict::of(overview);
    let Counts {
        waiting,
        in_flight,
        held,
        dead,
        quarantined: _,
        paused,
        missing,
        oldest_waiting,
        last_acknowledged,
    } = overview.counts;
    let age = |at: Option<Timestamp>| at.map(|at| age_ms(at, now));
    let alive = overview.alive();
    json!({
        "schema": SCHEMA,
        "at": now.to_string(),
        "verdict": verdict.word().to_lowercase().replace(' ', "_"),
        "daemon": daemon(overview),
        "poll": {
            "age_ms": age(overview.last_poll().map(|(at, _)| at)),
            "rows": overview.last_poll().map(|(_, rows)| rows),
            "schedule": overview.poll_schedule,
        },
        "sweep": sweep(overview),
        "state_problem": alive.and_then(|heartbeat| heartbeat.state_problem.as_deref()),
        "source_problem": alive.and_then(|heartbeat| heartbeat.source_problem.as_deref()),
        "vercel": {
            "last_acknowledged_age_ms": age(last_acknowledged),
            "retries_last_hour": overview.retries,
            "outage_age_ms": age(alive.and_then(|heartbeat| heartbeat.outage_since)),
        },
        "outbox": {
            "waiting": waiting,
            "in_flight": in_flight,
            "held": held,
            "dead": dead,
            "oldest_waiting_age_ms": age(oldest_waiting),
        },
        "installation_known": overview.only.is_some().then(|| overview.unknown().is_none()),
        "resources": overview.resources,
        "missing": missing,
        "discarded": overview.discarded,
        "paused_installations": paused,
        "quarantined": {
            "count": overview.unusable_total,
            "rows": overview.shown_unusable().map(|row| unusable(row, now)).collect::<Vec<_>>(),
            "cut": overview.unusable_cut(),
        },
        "holds": overview.holds.iter().map(|report| hold::to_json(report, now)).collect::<Vec<_>>(),
        "next": verdict.next(overview),
    })
}

fn daemon(overview: &Overview) -> Value {
    let heartbeat = overview.daemon.heartbeat.as_ref();
    json!({
        "running": overview.daemon.running,
        "pid": heartbeat.map(|heartbeat| heartbeat.pid),
        "version": heartbeat.map(|heartbeat| heartbeat.version.as_str()),
        "started_at": heartbeat.map(|heartbeat| heartbeat.started_at.to_string()),
        "last_sign_age_ms": heartbeat.map(|heartbeat| age_ms(heartbeat.at, overview.now)),
        "replicas": overview.daemon.replicas.iter().map(|replica| json!({
            "owner": replica.heartbeat.owner,
            "version": replica.heartbeat.version,
            "started_at": replica.heartbeat.started_at.to_string(),
            "last_sign_age_ms": age_ms(replica.heartbeat.at, overview.now),
            "reads_source": replica.watches,
        })).collect::<Vec<_>>(),
    })
}

fn sweep(overview: &Overview) -> Value {
    let progress = overview.progress.sweep.as_ref();
    let last = progress.and_then(|sweep| sweep.last).map(|(at, account)| {
        let SweepAccount { rows, equal, waiting, held, dead, quarantined, missing } = account;
        json!({
            "age_ms": age_ms(at, overview.now), "rows": rows, "equal": equal, "waiting": waiting, "held": held,
            "dead": dead, "quarantined": quarantined, "missing": missing,
        })
    });
    let under_way = progress.filter(|sweep| !sweep.complete).map(|sweep| {
        json!({ "age_ms": age_ms(sweep.started_at, overview.now), "rows": sweep.account.rows })
    });
    json!({ "schedule": overview.sweep_schedule, "last": last, "under_way": under_way })
}

fn unusable(row: &Quarantined, now: Timestamp) -> Value {
    let Quarantined {
        key: _,
        installation_id,
        resource_id,
        column,
        problem,
        accepted,
        row_hash: _,
        since,
    } = row;
    json!({
        "installation_id": installation_id,
        "resource_id": resource_id,
        "column": column,
        "problem": problem,
        "accepted": accepted,
        "age_ms": age_ms(*since, now),
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::{behind, in_sync, quarantined};
    use super::*;

    #[test]
    fn machines_get_the_verdict_ages_in_milliseconds_and_no_null_lists() {
        let shown = render(&behind());
        assert_eq!(shown["schema"], 1);
        assert_eq!(shown["verdict"], "behind");
        assert_eq!(shown["outbox"]["oldest_waiting_age_ms"], 134_000);
        assert_eq!(shown["daemon"]["last_sign_age_ms"], 2_000);
        assert_eq!(
            shown["poll"],
            json!({"age_ms": 3_000, "rows": 9, "schedule": "*/5 * * * * *"})
        );
        assert_eq!(shown["sweep"]["last"]["equal"], 41_207);
        assert_eq!(shown["sweep"]["under_way"], Value::Null);
        assert_eq!(shown["quarantined"]["rows"], json!([]));
        // They may be many, and are made while they are written.
        assert_eq!(shown["installations"], Value::Null);
    }

    #[test]
    fn cut_rows_are_counted() {
        let mut overview = in_sync();
        overview.unusable = vec![quarantined("res_1")];
        overview.unusable_total = 13;
        assert_eq!(render(&overview)["quarantined"]["cut"], 12);
        assert_eq!(render(&overview)["verdict"], "unusable");
        assert_eq!(render(&overview)["holds"], json!([]));
    }
}
