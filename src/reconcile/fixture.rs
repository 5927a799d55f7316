//! What the tests of passes are written with: a table that tells what it was asked, a state in memory, a clock that stands still.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Notify;

use crate::clock::Clock;
use crate::model::{
    AccessToken, Field, FieldSet, FingerprintKey, InstallationId, RawRow, RawText, Record,
    ResourceKey, Timestamp,
};
use crate::plan::Policy;
use crate::plan::decide::FirstSight;
use crate::source::{
    CursorKind, FeedPage, Identity, PollFrom, PollPage, Position, RawKey, Shape, Source,
    SourceError, Suspects, SweepPage, rows_of,
};
use crate::store::{Drifted, MemoryStore, Progress, Store as _, SweepProgress};

use super::{Reconciler, Settings, Sweep, SweepReport, SweepStep};

/// When every test begins.
pub(crate) const START: Timestamp = Timestamp::from_millis(1_800_000_000_000);

pub(crate) fn key(resource_id: &str) -> ResourceKey {
    ResourceKey::new("icfg_1", resource_id).expect("ids")
}

/// A row of a resource that is ready and has a name, and where polls find it.
pub(crate) fn row(resource_id: &str, name: &str, cursor: i64) -> RawRow {
    RawRow {
        installation_id: RawText::text("icfg_1"),
        resource_id: RawText::text(resource_id),
        cursor: Some(cursor.to_string()),
        columns: vec![
            (Field::Status, RawText::text("ready")),
            (Field::Name, RawText::text(name)),
        ],
    }
}

/// Both sides of a pass.
pub(crate) struct Bench {
    pub(crate) table: Arc<Table>,
    pub(crate) store: Arc<MemoryStore>,
    pub(crate) clock: Arc<StillClock>,
}

impl Bench {
    pub(crate) fn new(rows: impl IntoIterator<Item = RawRow>) -> Self {
        let table = Table::default();
        table.lock().rows = rows.into_iter().collect();
        Self {
            table: Arc::new(table),
            store: Arc::new(MemoryStore::new(FingerprintKey::new([7; 32]))),
            clock: Arc::new(StillClock {
                now: Mutex::new(START),
                moved: Notify::new(),
            }),
        }
    }

    /// Passes that take what they never saw as acknowledged, two rows a page.
    pub(crate) fn reconciler(&self, change: impl FnOnce(&mut Settings)) -> Reconciler {
        let mut settings = Settings {
            policy: Policy {
                first_sight: FirstSight::Adopt,
            },
            page_rows: 2,
            ..Settings::default()
        };
        change(&mut settings);
        Reconciler::new(
            Arc::clone(&self.table) as _,
            Arc::clone(&self.store) as _,
            Arc::clone(&self.clock) as _,
            FingerprintKey::new([7; 32]),
            settings,
        )
    }

    pub(crate) async fn progress(&self) -> Progress {
        self.store.progress().await.expect("in memory")
    }

    /// Has these resources read again: Vercel was found to show other names.
    pub(crate) async fn wish(&self, resource_ids: &[&str]) {
        let keys: Vec<ResourceKey> = resource_ids.iter().map(|id| key(id)).collect();
        let records = self.store.records(&keys).await.expect("in memory");
        let drifted = |record: Record| Drifted {
            key: record.key,
            fields: FieldSet::from_iter([Field::Name]),
            acknowledged_at: record.acknowledged_at,
        };
        let drifted: Vec<Drifted> = records.into_iter().map(drifted).collect();
        let marked = self.store.mark_drifted(&drifted, None, self.clock.now());
        assert_eq!(marked.await.expect("in memory"), keys.len() as u64);
    }

    /// What is written down of the sweep.
    pub(crate) async fn marked(&self) -> SweepProgress {
        self.progress().await.sweep.expect("there was one")
    }
}

/// A whole sweep.
pub(crate) async fn swept(reconciler: &Reconciler) -> SweepReport {
    let mut sweep = reconciler.begin_sweep().await.expect("in memory");
    loop {
        if let Some(report) = stepped(reconciler, &mut sweep).await {
            return report;
        }
    }
}

/// A step of a sweep; the account when it was the last.
pub(crate) async fn stepped(reconciler: &Reconciler, sweep: &mut Sweep) -> Option<SweepReport> {
    match reconciler.step(sweep).await.expect("it can be read") {
        SweepStep::Page { .. } => None,
        SweepStep::Complete { report, .. } => Some(*report),
    }
}

/// The source: a sweep reads its rows as they lie, a poll by their cursors.
#[derive(Default)]
pub(crate) struct Table(Mutex<Held>);

/// Why it cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// There is no way to it.
    Away,
    /// It refuses what it is asked but its identity.
    Refuses,
}

#[derive(Default)]
struct Held {
    rows: Vec<RawRow>,
    identity: String,
    failure: Option<Failure>,
    refuses_once: bool,
    /// Pages of more rows than this take too long.
    slow_beyond: Option<u32>,
    asked: Vec<String>,
    when_asked: Option<Hook>,
    /// Where a transaction that is still open keeps polls back.
    horizon: Option<i64>,
    /// The resources that the change feed names, if there is one.
    feed: Option<Vec<ResourceKey>>,
    /// Why the feed lacks changes.
    lost: Option<&'static str>,
}

type Hook = Box<dyn FnMut(&str, &mut Vec<RawRow>) + Send>;

impl Table {
    /// Writes a row over the one with its ids, or after all others.
    pub(crate) fn puts(&self, row: RawRow) {
        let mut held = self.lock();
        let is_it = |other: &&mut RawRow| {
            other.installation_id == row.installation_id && other.resource_id == row.resource_id
        };
        match held.rows.iter_mut().find(is_it) {
            Some(old) => *old = row,
            None => held.rows.push(row),
        }
    }

    pub(crate) fn deletes(&self, resource_id: &str) {
        let id = RawText::text(resource_id);
        self.lock().rows.retain(|row| row.resource_id != id);
    }

    /// A further row, with ids that another one may have.
    pub(crate) fn doubles(&self, row: RawRow) {
        let mut held = self.lock();
        let is_it = |other: &RawRow| {
            other.installation_id == row.installation_id && other.resource_id == row.resource_id
        };
        held.rows.retain(|other| !is_it(other));
        held.rows.extend([row.clone(), row]);
    }

    /// Is another database from now on.
    pub(crate) fn becomes(&self, identity: &str) {
        identity.clone_into(&mut self.lock().identity);
    }

    /// How it fails from now on, if it does.
    pub(crate) fn fails(&self, failure: Option<Failure>) {
        self.lock().failure = failure;
    }

    /// Takes too long for pages of more rows than this.
    pub(crate) fn is_slow_beyond(&self, rows: u32) {
        self.lock().slow_beyond = Some(rows);
    }

    /// Refuses the next thing that it is asked.
    pub(crate) fn refuses_once(&self) {
        self.lock().refuses_once = true;
    }

    pub(crate) fn is_held_back_at(&self, cursor: Option<i64>) {
        self.lock().horizon = cursor;
    }

    /// Has a change feed that names these.
    pub(crate) fn feeds(&self, resource_ids: &[&str], lost: Option<&'static str>) {
        let mut held = self.lock();
        held.feed = Some(resource_ids.iter().map(|id| key(id)).collect());
        held.lost = lost;
    }

    /// Has something happen whenever it is asked, before it answers.
    pub(crate) fn when_asked(&self, happens: impl FnMut(&str, &mut Vec<RawRow>) + Send + 'static) {
        self.lock().when_asked = Some(Box::new(happens));
    }

    /// What it was asked since this was last called.
    pub(crate) fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.lock().asked)
    }

    fn asks(&self, what: String) -> Result<MutexGuard<'_, Held>, SourceError> {
        let mut held = self.lock();
        let Held {
            rows, when_asked, ..
        } = &mut *held;
        if let Some(happens) = when_asked {
            happens(&what, rows);
        }
        held.asked.push(what);
        let once = std::mem::take(&mut held.refuses_once).then_some(Failure::Refuses);
        match once.or(held.failure) {
            None => Ok(held),
            Some(Failure::Away) => Err(SourceError::Unreachable {
                target: "the test's table".to_owned(),
                problem: "it is away".to_owned(),
            }),
            Some(Failure::Refuses) => Err(SourceError::Query {
                statement: "source query",
                problem: "it knows no such cursor".to_owned(),
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    fn of(&self, keys: &[ResourceKey]) -> Vec<RawRow> {
        let is_asked = |row: &&RawRow| row.key().is_ok_and(|key| keys.contains(&key));
        self.rows.iter().filter(is_asked).cloned().collect()
    }
}

fn size(limit: u32) -> usize {
    usize::try_from(limit).expect("it fits")
}

fn place(index: usize) -> RawKey {
    RawKey {
        installation_id: index.to_string(),
        resource_id: String::new(),
    }
}

fn cursor(row: &RawRow) -> i64 {
    let cursor = row.cursor.as_ref().expect("each has one");
    cursor.parse().expect("a number")
}

#[async_trait]
impl Source for Table {
    async fn shape(&self) -> Result<Shape, SourceError> {
        Ok(Shape {
            managed: FieldSet::from_iter([Field::Status, Field::Name]),
            cursor: Some(CursorKind::Integer),
            overlap: Duration::ZERO,
            feed: self.lock().feed.is_some(),
        })
    }

    async fn poll_page(
        &self,
        from: &PollFrom,
        limit: u32,
        suspects: Option<Suspects>,
    ) -> Result<PollPage, SourceError> {
        let held = self.asks(match from {
            PollFrom::Later(cursor) => format!("poll {limit} later than {cursor}"),
            PollFrom::Until { crowd, .. } => format!("poll {limit} until {crowd}"),
            PollFrom::Beginning | PollFrom::Cursor(_) | PollFrom::After(_) => {
                format!("poll {limit}")
            }
        })?;
        if held.slow_beyond.is_some_and(|most| limit > most) {
            return Err(SourceError::Timeout {
                statement: "source query",
                limit: "30 s".to_owned(),
            });
        }
        let mut rows: Vec<(usize, &RawRow)> = held.rows.iter().enumerate().collect();
        rows.sort_by_key(|(index, row)| (cursor(row), *index));
        let newest = rows.last().map(|(_, row)| cursor(row));
        let newest = newest.filter(|_| matches!(from, PollFrom::Later(_)));
        match from {
            PollFrom::Beginning => {}
            PollFrom::Cursor(from) | PollFrom::Until { cursor: from, .. } => {
                let from: i64 = from.parse().expect("a number");
                rows.retain(|(_, row)| cursor(row) >= from);
            }
            PollFrom::Later(from) => {
                let from: i64 = from.parse().expect("a number");
                rows.retain(|(_, row)| cursor(row) > from);
            }
            PollFrom::After(position) => {
                let from: i64 = position.cursor.parse().expect("a number");
                let key = position.key.as_ref();
                let last = key.map_or(usize::MAX, |key| {
                    key.installation_id.parse().expect("a number")
                });
                rows.retain(|(index, row)| (cursor(row), *index) > (from, last));
            }
        }
        let crowd = match from {
            PollFrom::Until { crowd, .. } => crowd.parse().ok(),
            _ => None,
        };
        let crowd = crowd.filter(|crowd| rows.iter().any(|(_, row)| cursor(row) == *crowd));
        rows.retain(|(_, row)| crowd.is_none_or(|crowd: i64| cursor(row) < crowd));
        let more = rows.len() > size(limit);
        rows.truncate(size(limit));
        let last = rows.last().filter(|_| more);
        let next = last.map(|(index, row)| Position {
            cursor: cursor(row).to_string(),
            key: Some(place(*index)),
            horizon: None,
        });
        let crowd = crowd.filter(|_| next.is_none());
        let behind = crowd.map(|crowd| Position {
            cursor: crowd.to_string(),
            key: None,
            horizon: None,
        });
        let next = next.or(behind);
        let mut page = PollPage {
            passed: 0,
            reached: crowd
                .or(rows.last().map(|(_, row)| cursor(row)))
                .or(newest)
                .map(|cursor| cursor.to_string()),
            rows: rows.into_iter().map(|(_, row)| row.clone()).collect(),
            next,
            horizon: held.horizon.map(|horizon| horizon.to_string()),
            identity: Some(Identity {
                id: held.identity.clone(),
            }),
            found: BTreeMap::new(),
        };
        let suspects = suspects.map_or_else(Vec::new, |suspects| suspects(&page.rows));
        let ids: Vec<ResourceKey> = held.of(&suspects).iter().flat_map(RawRow::key).collect();
        page.found = rows_of(suspects, &ids);
        Ok(page)
    }

    async fn count_at(&self, at: &str, most: u32) -> Result<u32, SourceError> {
        let held = self.asks(format!("count at {at}"))?;
        let at: i64 = at.parse().expect("a number");
        let count = held.rows.iter().filter(|row| cursor(row) == at).count();
        Ok(most.min(count.try_into().expect("few")))
    }

    async fn feed_page(&self, from: Option<&str>, limit: u32) -> Result<FeedPage, SourceError> {
        let held = self.asks(format!("feed {limit} from {from:?}"))?;
        let entries = held.feed.as_deref().expect("there is one");
        let start = from.map_or(0, |from| from.parse().expect("a number"));
        let rest = entries.get(start..).unwrap_or_default();
        let named = &rest[..size(limit).min(rest.len())];
        Ok(FeedPage {
            rows: held.of(named),
            position: (start + named.len()).to_string(),
            more: named.len() < rest.len(),
            lost: held.lost,
        })
    }

    async fn sweep_page(
        &self,
        after: Option<&RawKey>,
        limit: u32,
    ) -> Result<SweepPage, SourceError> {
        let held = self.asks(format!("sweep {limit}"))?;
        let start = after.map_or(0, |after| after.installation_id.parse().expect("a number"));
        let rest = held.rows.get(start..).unwrap_or_default();
        let rows = &rest[..size(limit).min(rest.len())];
        let next = (rows.len() < rest.len()).then(|| place(start + rows.len()));
        Ok(SweepPage {
            rows: rows.to_vec(),
            next,
        })
    }

    async fn fetch_ids(&self, keys: &[ResourceKey]) -> Result<Vec<ResourceKey>, SourceError> {
        let held = self.asks(format!("ids of {}", keys.len()))?;
        Ok(held.of(keys).iter().flat_map(RawRow::key).collect())
    }

    async fn fetch(&self, keys: &[ResourceKey]) -> Result<Vec<RawRow>, SourceError> {
        let held = self.asks(format!("rows of {}", keys.len()))?;
        Ok(held.of(keys))
    }

    async fn token(&self, _: &InstallationId) -> Result<Option<AccessToken>, SourceError> {
        unreachable!("passes never send")
    }

    async fn identity(&self) -> Result<Identity, SourceError> {
        let answer = self.asks("identity".to_owned()).map(drop);
        if let Err(error) = answer
            && !matches!(error, SourceError::Query { .. })
        {
            return Err(error);
        }
        let id = self.lock().identity.clone();
        Ok(Identity { id })
    }
}

/// A clock that a test sets, and that wakes who waits when it does.
pub(crate) struct StillClock {
    now: Mutex<Timestamp>,
    moved: Notify,
}

impl StillClock {
    pub(crate) fn set(&self, now: Timestamp) {
        *self.now.lock().unwrap_or_else(PoisonError::into_inner) = now;
        self.moved.notify_waiters();
    }

    pub(crate) fn pass(&self, duration: Duration) {
        self.set(self.now().plus(duration));
    }
}

#[async_trait]
impl Clock for StillClock {
    fn now(&self) -> Timestamp {
        *self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn sleep(&self, duration: Duration) {
        let until = self.now().plus(duration);
        loop {
            let moved = self.moved.notified();
            if self.now() >= until {
                return;
            }
            moved.await;
        }
    }
}
