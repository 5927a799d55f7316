//! The command line's side of the PostgreSQL state.

use std::collections::BTreeMap;

use async_trait::async_trait;
use futures_util::TryStreamExt as _;
use sqlx::postgres::PgRow;

use crate::model::{EntryId, InstallationId, Record, ResourceKey, Timestamp};
use crate::store::codec::{self, Cells as _, number, parsed, time};
use crate::store::console::{
    Act, ActId, Among, Answer, Console, Daemon, EntryDetail, EntryFilter, EntryPage, Filtered,
    InstallationSummary, Installations, Order, Person, Replica, Story,
};
use crate::store::fault::Fault;
use crate::store::steps;
use crate::store::steps::order::carry_out;
use crate::store::summaries::{
    ALL_INSTALLATIONS, COUNT_INSTALLATIONS, NOTEWORTHY_INSTALLATIONS, summaries,
};
use crate::store::{Pause, PauseKind, Quarantined, StoreError};

use super::acts::{self, note};
use super::guard::keys_under;
use super::pool::{Purpose, Transaction};
use super::{PostgresStore, read};

/// After how long without a sign of life a daemon counts as gone, in seconds: it leaves one every few.
const GONE_AFTER_SECONDS: i64 = 20;

/// A listed entry: itself, its resource, and the fields of its attempts.
macro_rules! listed {
    ($($conditions:tt)+) => {
        concat!(
            "SELECT entry.installation_id, entry.resource_id, entry.closed_at, ",
            codec::entry_columns!(),
            ", ",
            codec::resource_columns!(),
            ", (SELECT coalesce(json_agg(DISTINCT field.value), '[]')::text
                FROM attempt
                CROSS JOIN LATERAL json_array_elements_text(attempt.fields::json) AS field (value)
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
            " AND entry.state = ANY ($1::text[])
             AND ($2::text IS NULL OR entry.installation_id = $2)
             AND ($3::bigint IS NULL OR entry.created_at >= $3)
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
    resting: filtered!("entry.state IN ('held', 'dead')"),
    open: filtered!("entry.closed_at IS NULL"),
    all: filtered!("true"),
};

const ATTEMPTS_BY_RESOURCE: &str = "
    SELECT entry_id, number, started_at, ended_at, method, fields, secret_names, outcome, status, error_code, message,
           vercel_id
    FROM attempt
    WHERE installation_id = $1
      AND resource_id = $2
    ORDER BY id DESC
    LIMIT $3";
const ATTEMPTS_BY_ENTRY: &str = "
    SELECT entry_id, number, started_at, ended_at, method, fields, secret_names, outcome, status, error_code, message,
           vercel_id
    FROM attempt
    WHERE entry_id = $1
    ORDER BY id DESC
    LIMIT $2";

#[async_trait]
impl Console for PostgresStore {
    async fn entries(&self, filter: &EntryFilter) -> Result<EntryPage, StoreError> {
        let filter = filter.clone();
        self.read("list entries", Purpose::Survey, move |transaction| {
            let filter = filter.clone();
            Box::pin(async move { entries(transaction, &filter).await })
        })
        .await
    }

    async fn entry_ids(&self, filter: &EntryFilter) -> Result<Vec<EntryId>, StoreError> {
        let filter = filter.clone();
        self.read("list entries", Purpose::Survey, move |transaction| {
            Box::pin(async move { entry_ids(transaction, &filter).await })
        })
        .await
    }

    async fn keys_of(&self, ids: &[EntryId]) -> Result<Vec<Option<ResourceKey>>, StoreError> {
        let ids = ids.to_vec();
        self.read("find entries", Purpose::Read, move |transaction| {
            Box::pin(async move {
                let found = acts::find(transaction, &ids).await?;
                let key_of = |id| found.get(id).map(|(key, _)| key.clone());
                Ok(ids.iter().map(key_of).collect())
            })
        })
        .await
    }

    async fn entry(&self, id: EntryId, attempts: u32) -> Result<Option<EntryDetail>, StoreError> {
        self.read("read an entry", Purpose::Survey, move |transaction| {
            Box::pin(entry(transaction, id, attempts))
        })
        .await
    }

    async fn story(&self, key: &ResourceKey, limit: u32) -> Result<Story, StoreError> {
        let key = key.clone();
        self.read("read a resource", Purpose::Survey, move |transaction| {
            let key = key.clone();
            Box::pin(async move { story(transaction, &key, limit).await })
        })
        .await
    }

    async fn quarantined(&self, limit: u32) -> Result<(Vec<Quarantined>, u64), StoreError> {
        self.read(
            "list quarantined rows",
            Purpose::Survey,
            move |transaction| Box::pin(quarantined(transaction, limit)),
        )
        .await
    }

    async fn pauses(&self) -> Result<Vec<Pause>, StoreError> {
        self.read("list pauses", Purpose::Survey, |transaction| {
            Box::pin(pauses(transaction, None))
        })
        .await
    }

    async fn installations(
        &self,
        which: Installations,
    ) -> Result<Vec<InstallationSummary>, StoreError> {
        self.read("list installations", Purpose::Survey, move |transaction| {
            Box::pin(installations(transaction, which))
        })
        .await
    }

    async fn installation_count(&self) -> Result<u64, StoreError> {
        self.read("count installations", Purpose::Survey, |transaction| {
            Box::pin(async move {
                let row = transaction
                    .query(COUNT_INSTALLATIONS)
                    .fetch_one(transaction.connection())
                    .await?;
                number(row.integer("installations")?, "installations")
            })
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
        self.read("list what is held", Purpose::Survey, move |transaction| {
            Box::pin(async move { keys_under(transaction, hold, after.as_ref(), limit).await })
        })
        .await
    }

    async fn daemon(&self) -> Result<Daemon, StoreError> {
        self.read(
            "see whether a daemon runs",
            Purpose::Survey,
            |transaction| Box::pin(daemon(transaction)),
        )
        .await
    }

    async fn retries_since(&self, since: Timestamp) -> Result<u64, StoreError> {
        self.read("count retries", Purpose::Survey, move |transaction| {
            Box::pin(async move {
                let row = transaction
                    .query(
                        "SELECT count(*) AS retries
                         FROM attempt
                         WHERE ended_at >= $1
                           AND outcome IN ('lost', 'failed', 'unreachable', 'rate_limited', 'conflict', 'token_refused')",
                    )
                    .bind(since.as_millis())
                    .fetch_one(transaction.connection())
                    .await?;
                number(row.integer("retries")?, "retries")
            })
        })
        .await
    }

    async fn discarded(&self) -> Result<u64, StoreError> {
        self.read("count what was discarded", Purpose::Survey, |transaction| {
            Box::pin(async move {
                let row = transaction
                    .query(
                        "SELECT count(*) AS discarded
                         FROM resource
                         WHERE dismissed <> '{}'",
                    )
                    .fetch_one(transaction.connection())
                    .await?;
                number(row.integer("discarded")?, "discarded")
            })
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
        self.write("carry out an order", move |rows| {
            let (ids, by) = (ids.clone(), by.clone());
            Box::pin(async move {
                rows.take_guard().await?;
                carry_out(rows, &ids, order, &by, now).await
            })
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
        self.write("resume an installation", move |rows| {
            let (installation_id, by) = (installation_id.clone(), by.clone());
            Box::pin(async move {
                let resumed = steps::resume(rows, &installation_id, PauseKind::Manual, now).await?;
                if resumed {
                    let act = Act::new("resume", by, now).of_installation(installation_id);
                    note(rows, &act).await?;
                }
                Ok(resumed)
            })
        })
        .await
    }

    async fn note(&self, act: &Act) -> Result<(), StoreError> {
        let act = act.clone();
        self.write("keep what a person does", move |rows| {
            let act = act.clone();
            Box::pin(async move { note(rows, &act).await })
        })
        .await
    }

    async fn untold_acts(&self, limit: u32) -> Result<Vec<(ActId, Act)>, StoreError> {
        self.read("read what people did", Purpose::Read, move |transaction| {
            Box::pin(acts::untold(transaction, limit))
        })
        .await
    }

    async fn acts_told(&self, ids: &[ActId], now: Timestamp) -> Result<(), StoreError> {
        let ids = ids.to_vec();
        self.write("keep that people's acts were logged", move |rows| {
            let ids = ids.clone();
            Box::pin(async move { acts::told(rows, &ids, now).await })
        })
        .await
    }
}

/// Each entry that fits the filter but for its field.
async fn each_filtered(
    transaction: &mut Transaction,
    sql: &'static str,
    filter: &EntryFilter,
    mut take: impl FnMut(&PgRow) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let EntryFilter {
        states: _,
        installation_id,
        field: _,
        since,
        limit: _,
    } = filter;
    let mut rows = transaction
        .query(sql)
        .bind(filter.state_names())
        .bind(installation_id.as_ref().map(InstallationId::as_str))
        .bind(since.map(Timestamp::as_millis))
        .fetch(transaction.connection());
    while let Some(row) = rows.try_next().await? {
        take(&row)?;
    }
    Ok(())
}

async fn entries(transaction: &mut Transaction, filter: &EntryFilter) -> Result<EntryPage, Fault> {
    let mut page = EntryPage {
        entries: Vec::new(),
        total: 0,
    };
    // The fields of an entry follow from its resource, so they are filtered here, row by row.
    let sql = ENTRIES.of(filter).listed;
    each_filtered(transaction, sql, filter, |row| {
        page.consider(filter.limit, filter.field, || codec::listed(row))
    })
    .await?;
    Ok(page)
}

async fn entry_ids(
    transaction: &mut Transaction,
    filter: &EntryFilter,
) -> Result<Vec<EntryId>, Fault> {
    let mut ids = Vec::new();
    let filtered = ENTRIES.of(filter);
    match filter.field {
        None => {
            each_filtered(transaction, filtered.ids, filter, |row| {
                ids.push(EntryId(row.integer("id")?));
                Ok(())
            })
            .await?;
        }
        Some(field) => {
            each_filtered(transaction, filtered.listed, filter, |row| {
                let listed = codec::listed(row)?;
                ids.extend(listed.fields.contains(field).then_some(listed.entry.id));
                Ok(())
            })
            .await?;
        }
    }
    Ok(ids)
}

async fn entry(
    transaction: &mut Transaction,
    id: EntryId,
    attempts: u32,
) -> Result<Option<EntryDetail>, Fault> {
    let row = transaction
        .query(listed!("entry.id = $1"))
        .bind(id.0)
        .fetch_optional(transaction.connection())
        .await?;
    let Some(row) = row else {
        return Ok(None);
    };
    let listed = codec::listed(&row)?;
    let record = record(transaction, &listed.key).await?;
    let rows = transaction
        .query(ATTEMPTS_BY_ENTRY)
        .bind(id.0)
        .bind(i64::from(attempts))
        .fetch_all(transaction.connection())
        .await?;
    Ok(Some(EntryDetail {
        listed,
        record,
        attempts: oldest_first(&rows, codec::attempt)?,
    }))
}

async fn record(transaction: &mut Transaction, key: &ResourceKey) -> Result<Record, Fault> {
    let mut records = read::records(transaction, std::slice::from_ref(key)).await?;
    Ok(records.pop().unwrap_or_else(|| Record::new(key.clone())))
}

async fn story(
    transaction: &mut Transaction,
    key: &ResourceKey,
    limit: u32,
) -> Result<Story, Fault> {
    let (installation_id, resource_id) = (key.installation_id.as_str(), key.resource_id.as_str());
    let record = record(transaction, key).await?;
    let unusable = transaction
        .query(
            "SELECT installation_id, resource_id, slot, column_name, problem, accepted, row_hash, since
             FROM quarantine
             WHERE installation_id = $1
               AND resource_id = $2
               AND slot = ''::bytea",
        )
        .bind(installation_id)
        .bind(resource_id)
        .fetch_optional(transaction.connection())
        .await?;
    let closed = transaction
        .query(listed!(
            "entry.installation_id = $1
             AND entry.resource_id = $2
             AND entry.closed_at IS NOT NULL
             ORDER BY entry.id DESC
             LIMIT $3"
        ))
        .bind(installation_id)
        .bind(resource_id)
        .bind(i64::from(limit))
        .fetch_all(transaction.connection())
        .await?;
    let attempts = transaction
        .query(ATTEMPTS_BY_RESOURCE)
        .bind(installation_id)
        .bind(resource_id)
        .bind(i64::from(limit))
        .fetch_all(transaction.connection())
        .await?;
    let acts = transaction
        .query(
            "SELECT at, actor, act, installation_id, resource_id, entry_id, reason
             FROM act
             WHERE (installation_id = $1 AND (resource_id = $2 OR resource_id IS NULL))
                OR installation_id IS NULL
             ORDER BY id DESC
             LIMIT $3",
        )
        .bind(installation_id)
        .bind(resource_id)
        .bind(i64::from(limit))
        .fetch_all(transaction.connection())
        .await?;
    let limited = transaction
        .query(
            "SELECT limited_until
             FROM installation
             WHERE installation_id = $1",
        )
        .bind(installation_id)
        .fetch_optional(transaction.connection())
        .await?;
    let limited_until = limited.map(|row| time(&row, "limited_until")).transpose()?;
    Ok(Story {
        record,
        quarantined: unusable.as_ref().map(codec::quarantined).transpose()?,
        closed: oldest_first(&closed, codec::listed)?,
        attempts: oldest_first(&attempts, codec::attempt)?,
        acts: oldest_first(&acts, codec::act)?,
        pauses: pauses(transaction, Some(&key.installation_id)).await?,
        limited_until: limited_until.flatten(),
    })
}

/// Rows that were read newest first, the other way round.
fn oldest_first<T>(
    rows: &[PgRow],
    read: impl Fn(&PgRow) -> Result<T, Fault>,
) -> Result<Vec<T>, Fault> {
    rows.iter().rev().map(read).collect()
}

async fn quarantined(
    transaction: &mut Transaction,
    limit: u32,
) -> Result<(Vec<Quarantined>, u64), Fault> {
    let total = transaction
        .query("SELECT count(*) AS rows FROM quarantine")
        .fetch_one(transaction.connection())
        .await?;
    let rows = transaction
        .query(
            "SELECT installation_id, resource_id, slot, column_name, problem, accepted, row_hash, since
             FROM quarantine
             ORDER BY since, installation_id, resource_id, slot
             LIMIT $1",
        )
        .bind(i64::from(limit))
        .fetch_all(transaction.connection())
        .await?;
    let rows: Vec<Quarantined> = rows
        .iter()
        .map(codec::quarantined)
        .collect::<Result<_, _>>()?;
    Ok((rows, number(total.integer("rows")?, "quarantined")?))
}

async fn pauses(
    transaction: &mut Transaction,
    installation_id: Option<&InstallationId>,
) -> Result<Vec<Pause>, Fault> {
    let rows = transaction
        .query(concat!(
            "SELECT ",
            codec::pause_columns!(),
            " FROM pause
             WHERE $1::text IS NULL OR installation_id = $1
             ORDER BY installation_id, kind COLLATE \"C\""
        ))
        .bind(installation_id.map(InstallationId::as_str))
        .fetch_all(transaction.connection())
        .await?;
    rows.iter().map(codec::pause).collect()
}

const THESE: &str = summaries!(
    "SELECT DISTINCT asked.installation_id COLLATE \"C\" AS installation_id
     FROM unnest($1::text[]) AS asked (installation_id)
     WHERE EXISTS (SELECT FROM resource WHERE resource.installation_id = asked.installation_id)
        OR EXISTS (SELECT FROM pause WHERE pause.installation_id = asked.installation_id)"
);

async fn installations(
    transaction: &mut Transaction,
    which: Installations,
) -> Result<Vec<InstallationSummary>, Fault> {
    let mut by_installation: BTreeMap<InstallationId, Vec<Pause>> = BTreeMap::new();
    for pause in pauses(transaction, None).await? {
        let of_installation = by_installation.entry(pause.installation_id.clone());
        of_installation.or_default().push(pause);
    }
    let query = match which {
        Installations::All => transaction.query(ALL_INSTALLATIONS),
        Installations::Noteworthy => transaction.query(NOTEWORTHY_INSTALLATIONS),
        Installations::These(ids) => {
            let ids: Vec<String> = ids.iter().map(|id| id.as_str().to_owned()).collect();
            transaction.query(THESE).bind(ids)
        }
    };
    let rows = query.fetch_all(transaction.connection()).await?;
    rows.iter()
        .map(|row| {
            let pauses = by_installation.remove(&codec::installation_id(row)?);
            codec::installation(row, pauses.unwrap_or_default())
        })
        .collect()
}

/// The daemons that left a sign of life; of those that are gone only the last.
async fn daemon(transaction: &mut Transaction) -> Result<Daemon, Fault> {
    let rows = transaction
        .query(
            "SELECT daemon.owner,
                    daemon.heartbeat,
                    daemon.seen_at > clock_timestamp() - make_interval(secs => $1) AS lives
             FROM daemon
             ORDER BY daemon.seen_at DESC, daemon.owner",
        )
        .bind(f64::from(
            i32::try_from(GONE_AFTER_SECONDS).unwrap_or(i32::MAX),
        ))
        .fetch_all(transaction.connection())
        .await?;
    let watcher = read::watch(transaction).await?.map(|lease| lease.owner);
    let mut daemon = Daemon {
        running: false,
        heartbeat: None,
        replicas: Vec::new(),
    };
    for row in &rows {
        let heartbeat: crate::store::Heartbeat = parsed(row.text("heartbeat")?, "heartbeat")?;
        if row.flag("lives")? {
            daemon.running = true;
            let watches = watcher.as_deref() == Some(row.text("owner")?);
            if watches || daemon.heartbeat.is_none() {
                daemon.heartbeat = Some(heartbeat.clone());
            }
            daemon.replicas.push(Replica { heartbeat, watches });
        } else if daemon.heartbeat.is_none() {
            daemon.heartbeat = Some(heartbeat);
        }
    }
    let owner = |replica: &Replica| replica.heartbeat.owner.clone();
    daemon.replicas.sort_by_key(owner);
    Ok(daemon)
}
