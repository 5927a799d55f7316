//! The command line's side of the SQLite state.

use std::collections::BTreeMap;

use async_trait::async_trait;
use rusqlite::params;

use crate::model::{EntryId, InstallationId, Record, ResourceKey, Timestamp};
use crate::store::console::{
    Act, ActId, Among, Answer, Console, Daemon, EntryDetail, EntryFilter, EntryPage, Filtered,
    InstallationSummary, Installations, Order, Person, Story,
};
use crate::store::steps;
use crate::store::steps::order::carry_out;
use crate::store::summaries::{
    ALL_INSTALLATIONS, COUNT_INSTALLATIONS, NOTEWORTHY_INSTALLATIONS, summaries,
};
use crate::store::{Pause, PauseKind, Quarantined, StoreError};

use super::acts::{self, note};
use super::db::{Db, Row};
use super::guard::keys_under;
use super::{SqliteStore, file, read};
use crate::store::codec::{self, Cells as _, json, number};
use crate::store::fault::Fault;

/// A listed entry: itself, its resource, and the fields of its attempts.
macro_rules! listed {
    ($($conditions:tt)+) => {
        concat!(
            "SELECT entry.installation_id, entry.resource_id, entry.closed_at, ",
            codec::entry_columns!(),
            ", ",
            codec::resource_columns!(),
            ", (SELECT json_group_array(DISTINCT field.value)
                FROM attempt, json_each(attempt.fields) AS field
                WHERE attempt.entry_id = entry.id) AS sent
             FROM entry
             JOIN resource USING (installation_id, resource_id)
             WHERE ",
            $($conditions)+
        )
    };
}

/// What a filter asks for among these entries, by number.
macro_rules! conditions {
    ($among:literal) => {
        concat!(
            $among,
            " AND entry.state IN (SELECT value FROM json_each(?1))
             AND (?2 IS NULL OR entry.installation_id = ?2)
             AND (?3 IS NULL OR entry.created_at >= ?3)
             ORDER BY entry.id"
        )
    };
}

/// The statements that list the entries among these that a filter asks for, and their numbers alone.
macro_rules! filtered {
    ($among:literal) => {
        Filtered {
            listed: listed!(conditions!($among)),
            ids: concat!("SELECT entry.id FROM entry WHERE ", conditions!($among)),
        }
    };
}

/// The entries that a filter asks for.
const ENTRIES: Among = Among {
    resting: filtered!(
        "entry.id IN (SELECT id
                      FROM entry INDEXED BY entry_resting
                      WHERE state = 'held' OR state = 'dead')"
    ),
    open: filtered!(
        "entry.id IN (SELECT id
                      FROM entry INDEXED BY entry_open
                      WHERE closed_at IS NULL)"
    ),
    all: filtered!("true"),
};

const ATTEMPTS_BY_RESOURCE: &str = "
    SELECT entry_id, number, started_at, ended_at, method, fields, secret_names, outcome, status, error_code, message,
           vercel_id
    FROM attempt
    WHERE installation_id = ?1
      AND resource_id = ?2
    ORDER BY id DESC
    LIMIT 0 + ?3";
const ATTEMPTS_BY_ENTRY: &str = "
    SELECT entry_id, number, started_at, ended_at, method, fields, secret_names, outcome, status, error_code, message,
           vercel_id
    FROM attempt
    WHERE entry_id = ?1
    ORDER BY id DESC
    LIMIT 0 + ?2";

#[async_trait]
impl Console for SqliteStore {
    async fn entries(&self, filter: &EntryFilter) -> Result<EntryPage, StoreError> {
        let filter = filter.clone();
        self.read("list entries", move |db| entries(db, &filter))
            .await
    }

    async fn entry_ids(&self, filter: &EntryFilter) -> Result<Vec<EntryId>, StoreError> {
        let filter = filter.clone();
        self.read("list entries", move |db| entry_ids(db, &filter))
            .await
    }

    async fn keys_of(&self, ids: &[EntryId]) -> Result<Vec<Option<ResourceKey>>, StoreError> {
        let ids = ids.to_vec();
        self.read("find entries", move |db| {
            let key_of = |id: &EntryId| Ok(acts::find(db, *id)?.map(|(key, _)| key));
            ids.iter().map(key_of).collect()
        })
        .await
    }

    async fn entry(&self, id: EntryId, attempts: u32) -> Result<Option<EntryDetail>, StoreError> {
        self.read("read an entry", move |db| entry(db, id, attempts))
            .await
    }

    async fn story(&self, key: &ResourceKey, limit: u32) -> Result<Story, StoreError> {
        let key = key.clone();
        self.read("read a resource", move |db| story(db, &key, limit))
            .await
    }

    async fn quarantined(&self, limit: u32) -> Result<(Vec<Quarantined>, u64), StoreError> {
        self.read("list quarantined rows", move |db| quarantined(db, limit))
            .await
    }

    async fn pauses(&self) -> Result<Vec<Pause>, StoreError> {
        self.read("list pauses", move |db| pauses(db, None)).await
    }

    async fn installations(
        &self,
        which: Installations,
    ) -> Result<Vec<InstallationSummary>, StoreError> {
        self.read("list installations", move |db| installations(db, &which))
            .await
    }

    async fn installation_count(&self) -> Result<u64, StoreError> {
        self.read("count installations", |db| {
            let installations: i64 = db.value(COUNT_INSTALLATIONS, params![])?;
            number(installations, "installations")
        })
        .await
    }

    async fn kept_back(
        &self,
        hold: i64,
        after: Option<&ResourceKey>,
        limit: usize,
    ) -> Result<Vec<ResourceKey>, StoreError> {
        let after = after.cloned();
        self.read("list what is held", move |db| {
            keys_under(db, hold, after.as_ref(), limit)
        })
        .await
    }

    async fn daemon(&self) -> Result<Daemon, StoreError> {
        let running = file::daemon_runs(&self.path).map_err(|error| StoreError::Failed {
            operation: "see whether a daemon runs",
            problem: error.kind().to_string(),
            transient: false,
        })?;
        Ok(Daemon {
            running,
            heartbeat: file::read_heartbeat(&self.path),
            replicas: Vec::new(),
        })
    }

    async fn retries_since(&self, since: Timestamp) -> Result<u64, StoreError> {
        self.read("count retries", move |db| {
            let retries: i64 = db.value(
                "SELECT count(*)
                 FROM attempt
                 WHERE ended_at >= ?1
                   AND outcome IN ('lost', 'failed', 'unreachable', 'rate_limited', 'conflict', 'token_refused')",
                params![since.as_millis()],
            )?;
            number(retries, "retries")
        })
        .await
    }

    async fn discarded(&self) -> Result<u64, StoreError> {
        self.read("count what was discarded", |db| {
            let discarded: i64 = db.value(
                "SELECT count(*)
                 FROM resource INDEXED BY resource_dismissed
                 WHERE dismissed <> '{}'",
                params![],
            )?;
            number(discarded, "discarded")
        })
        .await
    }

    async fn act(
        &self,
        ids: &[EntryId],
        order: Order,
        by: &Person,
        now: Timestamp,
    ) -> Result<Vec<Answer>, StoreError> {
        let (ids, by) = (ids.to_vec(), by.clone());
        self.writer
            .write("carry out an order", move |rows| {
                Box::pin(async move { carry_out(rows, &ids, order, &by, now).await })
            })
            .await
    }

    async fn resume_manually(
        &self,
        installation_id: &InstallationId,
        by: &Person,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let (installation_id, by) = (installation_id.clone(), by.clone());
        self.writer
            .write("resume an installation", move |rows| {
                Box::pin(async move {
                    let resumed =
                        steps::resume(rows, &installation_id, PauseKind::Manual, now).await?;
                    if resumed {
                        let act = Act::new("resume", by, now).of_installation(installation_id);
                        note(rows, &act)?;
                    }
                    Ok(resumed)
                })
            })
            .await
    }

    async fn note(&self, act: &Act) -> Result<(), StoreError> {
        let act = act.clone();
        self.writer
            .write("keep what a person does", move |rows| {
                Box::pin(async move { note(rows, &act) })
            })
            .await
    }

    async fn untold_acts(&self, limit: u32) -> Result<Vec<(ActId, Act)>, StoreError> {
        self.read("read what people did", move |db| acts::untold(db, limit))
            .await
    }

    async fn acts_told(&self, ids: &[ActId], now: Timestamp) -> Result<(), StoreError> {
        let ids = ids.to_vec();
        self.writer
            .write("keep that people's acts were logged", move |rows| {
                Box::pin(async move { acts::told(rows, &ids, now) })
            })
            .await
    }
}

/// Each entry that fits the filter but for its field.
fn each_filtered(
    db: &Db,
    sql: &'static str,
    filter: &EntryFilter,
    take: impl FnMut(&Row<'_>) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let EntryFilter {
        states: _,
        installation_id,
        field: _,
        since,
        limit: _,
    } = filter;
    db.each(
        sql,
        params![
            json(&filter.state_names()),
            installation_id.as_ref().map(InstallationId::as_str),
            since.map(Timestamp::as_millis),
        ],
        take,
    )
}

fn entries(db: &Db, filter: &EntryFilter) -> Result<EntryPage, Fault> {
    let mut page = EntryPage {
        entries: Vec::new(),
        total: 0,
    };
    // The fields of an entry follow from its resource, so they are filtered here, row by row.
    let sql = ENTRIES.of(filter).listed;
    each_filtered(db, sql, filter, |row| {
        page.consider(filter.limit, filter.field, || codec::listed(row))
    })?;
    Ok(page)
}

fn entry_ids(db: &Db, filter: &EntryFilter) -> Result<Vec<EntryId>, Fault> {
    let mut ids = Vec::new();
    let filtered = ENTRIES.of(filter);
    match filter.field {
        None => each_filtered(db, filtered.ids, filter, |row| {
            ids.push(EntryId(row.integer("id")?));
            Ok(())
        })?,
        Some(field) => each_filtered(db, filtered.listed, filter, |row| {
            let listed = codec::listed(row)?;
            ids.extend(listed.fields.contains(field).then_some(listed.entry.id));
            Ok(())
        })?,
    }
    Ok(ids)
}

fn entry(db: &Db, id: EntryId, attempts: u32) -> Result<Option<EntryDetail>, Fault> {
    let found = db.find_row(listed!("entry.id = ?1"), params![id.0], |row| {
        codec::listed(row)
    })?;
    let Some(listed) = found else {
        return Ok(None);
    };
    let record = read::records(db, std::slice::from_ref(&listed.key))?
        .pop()
        .unwrap_or_else(|| Record::new(listed.key.clone()));
    let params = params![id.0, i64::from(attempts)];
    let attempts = db.rows(ATTEMPTS_BY_ENTRY, params, |row| codec::attempt(row))?;
    Ok(Some(EntryDetail {
        listed,
        record,
        attempts: oldest_first(attempts),
    }))
}

fn story(db: &Db, key: &ResourceKey, limit: u32) -> Result<Story, Fault> {
    let (installation_id, resource_id) = (key.installation_id.as_str(), key.resource_id.as_str());
    let record = read::records(db, std::slice::from_ref(key))?
        .pop()
        .unwrap_or_else(|| Record::new(key.clone()));
    let unusable = db.find_row(
        "SELECT installation_id, resource_id, slot, column_name, problem, accepted, row_hash, since
         FROM quarantine
         WHERE installation_id = ?1
           AND resource_id = ?2
           AND slot = x''",
        params![installation_id, resource_id],
        |row| codec::quarantined(row),
    )?;
    let closed = db.rows(
        listed!(
            "entry.installation_id = ?1
         AND entry.resource_id = ?2
         AND entry.closed_at IS NOT NULL
         ORDER BY entry.id DESC
         LIMIT 0 + ?3"
        ),
        params![installation_id, resource_id, i64::from(limit)],
        |row| codec::listed(row),
    )?;
    let attempts = db.rows(
        ATTEMPTS_BY_RESOURCE,
        params![installation_id, resource_id, i64::from(limit)],
        |row| codec::attempt(row),
    )?;
    let acts = db.rows(
        "SELECT at, actor, act, installation_id, resource_id, entry_id, reason
         FROM act
         WHERE (installation_id = ?1 AND (resource_id = ?2 OR resource_id IS NULL))
            OR installation_id IS NULL
         ORDER BY id DESC
         LIMIT 0 + ?3",
        params![installation_id, resource_id, i64::from(limit)],
        |row| codec::act(row),
    )?;
    let limited_until: Option<i64> = db.find_value(
        "SELECT limited_until
         FROM installation
         WHERE installation_id = ?1",
        params![installation_id],
    )?;
    Ok(Story {
        record,
        quarantined: unusable,
        closed: oldest_first(closed),
        attempts: oldest_first(attempts),
        acts: oldest_first(acts),
        pauses: pauses(db, Some(&key.installation_id))?,
        limited_until: limited_until.map(Timestamp::from_millis),
    })
}

/// What was read newest first, the other way round.
fn oldest_first<T>(mut found: Vec<T>) -> Vec<T> {
    found.reverse();
    found
}

fn quarantined(db: &Db, limit: u32) -> Result<(Vec<Quarantined>, u64), Fault> {
    let total: i64 = db.value("SELECT count(*) FROM quarantine", params![])?;
    let rows = db.rows(
        "SELECT installation_id, resource_id, slot, column_name, problem, accepted, row_hash, since
         FROM quarantine
         ORDER BY since, installation_id, resource_id, slot
         LIMIT 0 + ?1",
        params![i64::from(limit)],
        |row| codec::quarantined(row),
    )?;
    Ok((rows, number(total, "quarantined")?))
}

fn pauses(db: &Db, installation_id: Option<&InstallationId>) -> Result<Vec<Pause>, Fault> {
    db.rows(
        concat!(
            "SELECT ",
            codec::pause_columns!(),
            " FROM pause
         WHERE ?1 IS NULL OR installation_id = ?1
         ORDER BY installation_id, kind"
        ),
        params![installation_id.map(InstallationId::as_str)],
        |row| codec::pause(row),
    )
}

const THESE: &str = summaries!(
    "SELECT DISTINCT asked.value AS installation_id
     FROM json_each(?1) AS asked
     WHERE EXISTS (SELECT 1 FROM resource WHERE resource.installation_id = asked.value)
        OR EXISTS (SELECT 1 FROM pause WHERE pause.installation_id = asked.value)"
);

fn installations(db: &Db, which: &Installations) -> Result<Vec<InstallationSummary>, Fault> {
    let mut by_installation: BTreeMap<InstallationId, Vec<Pause>> = BTreeMap::new();
    for pause in pauses(db, None)? {
        let of_installation = by_installation.entry(pause.installation_id.clone());
        of_installation.or_default().push(pause);
    }
    let read = |row: &Row<'_>| {
        let pauses = by_installation.remove(&codec::installation_id(row)?);
        codec::installation(row, pauses.unwrap_or_default())
    };
    match which {
        Installations::All => db.rows(ALL_INSTALLATIONS, params![], read),
        Installations::Noteworthy => db.rows(NOTEWORTHY_INSTALLATIONS, params![], read),
        Installations::These(ids) => {
            let ids: Vec<&str> = ids.iter().map(InstallationId::as_str).collect();
            db.rows(THESE, params![json(&ids)], read)
        }
    }
}
