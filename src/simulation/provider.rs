//! The provider's database: rows with a history, transactions that commit late, outages.
//!
//! What is visible to a reader and what the daemon was shown are kept apart, so that a change that no one read is noticed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::model::{
    AccessToken, Field, Fingerprint, FingerprintKey, InstallationId, Json, RawRow, RawText,
    ResourceKey, Row, Timestamp,
};
use crate::source::{Identity, PollFrom, PollPage, Position, RawKey, SweepPage};

use super::climate::Climate;

/// One thing of a resource that has a history of its own.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Item {
    Field(Field),
    Secret(String),
}

/// What an item was at some time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Version {
    Value(Json),
    Secret(Fingerprint),
    /// The secret was not in the set.
    Absent,
}

impl Version {
    /// The status of a resource whose row is gone.
    pub(super) fn uninstalled() -> Self {
        Self::Value(Json::from_text("uninstalled"))
    }
}

/// The columns of a row: `None` is NULL.
pub(super) type Columns = BTreeMap<Field, Option<String>>;

/// A row as readers see it.
#[derive(Debug, Clone)]
pub(super) struct StoredRow {
    pub(super) key: ResourceKey,
    /// Whether it is in the table now.
    pub(super) present: bool,
    pub(super) cursor: Option<i64>,
    pub(super) columns: Columns,
    /// What the columns mean; `None` when the row cannot be used.
    row: Option<Arc<Row>>,
    /// When this version became visible.
    pub(super) visible_at: Timestamp,
    /// When it was last not in the table.
    pub(super) absent_at: Option<Timestamp>,
    /// Whether the version is still to be found by the daemon.
    pub(super) unread: bool,
    /// Whether no poll can see that it changed.
    pub(super) silent: bool,
    /// Whether a transaction on it is open.
    pub(super) locked: bool,
}

impl StoredRow {
    /// The row of a resource that has not been in the table yet.
    pub(super) const fn absent(key: ResourceKey, now: Timestamp) -> Self {
        Self {
            key,
            present: false,
            cursor: None,
            columns: Columns::new(),
            row: None,
            visible_at: now,
            absent_at: Some(now),
            unread: false,
            silent: false,
            locked: false,
        }
    }

    fn sorts_as(&self) -> (Option<i64>, &ResourceKey) {
        (self.cursor, &self.key)
    }
}

/// A change that has been made and is not committed yet.
#[derive(Debug, Clone)]
pub(super) struct Open {
    pub(super) number: u64,
    pub(super) row: usize,
    pub(super) columns: Columns,
    pub(super) cursor: i64,
}

/// The provider's database.
pub(super) struct Provider {
    pub(super) rows: Vec<StoredRow>,
    pub(super) tokens: BTreeMap<InstallationId, String>,
    pub(super) open: Vec<Open>,
    /// How often the database was replaced by a backup of itself.
    pub(super) restored: u32,
    pub(super) backup: Option<Vec<StoredRow>>,
    pub(super) down_until: Timestamp,
    pub(super) empty_until: Timestamp,
    pub(super) history: BTreeMap<(ResourceKey, Item), Vec<Version>>,
    /// The resources that ever had a set of secrets.
    had_secrets: BTreeSet<ResourceKey>,
    key: FingerprintKey,
    step_ms: i64,
    overlap_ms: i64,
    has_cursor: bool,
    has_horizon: bool,
    managed: Vec<Field>,
}

impl Provider {
    pub(super) fn new(climate: &Climate, key: FingerprintKey) -> Self {
        Self {
            rows: Vec::new(),
            tokens: BTreeMap::new(),
            open: Vec::new(),
            restored: 0,
            backup: None,
            down_until: Timestamp::EPOCH,
            empty_until: Timestamp::EPOCH,
            history: BTreeMap::new(),
            had_secrets: BTreeSet::new(),
            key,
            step_ms: climate.cursor_step_ms,
            overlap_ms: climate.overlap_ms,
            has_cursor: climate.has_cursor,
            has_horizon: climate.has_horizon,
            managed: climate.managed.iter().collect(),
        }
    }

    /// The cursor that a row written now is given.
    pub(super) fn cursor_at(&self, now: Timestamp) -> i64 {
        now.as_millis() / self.step_ms * self.step_ms
    }

    /// How long a transaction may stay open without polls missing it.
    pub(super) fn open_max(&self) -> Duration {
        let behind = if self.has_horizon {
            60_000
        } else {
            self.overlap_ms - self.step_ms
        };
        Duration::from_millis(u64::try_from(behind).unwrap_or(0))
    }

    /// Makes a new version of a row visible; `silent` when no poll can see that.
    pub(super) fn commit(
        &mut self,
        row: usize,
        columns: Columns,
        cursor: Option<i64>,
        silent: bool,
        now: Timestamp,
    ) {
        let stored = &mut self.rows[row];
        stored.silent = silent || cursor.is_none();
        stored.cursor = cursor;
        let before = std::mem::replace(&mut stored.columns, columns);
        stored.visible_at = now;
        stored.present = true;
        stored.unread = true;
        let meant = stored.row.take();
        let changed: Vec<Field> = match &meant {
            Some(_) => {
                let changed = |field: &Field| before.get(field) != stored.columns.get(field);
                self.managed.iter().copied().filter(changed).collect()
            }
            None => self.managed.clone(),
        };
        self.rows[row].row = self.decoded(row, meant, &changed);
        self.remember(row, &changed);
    }

    /// What the row means, of which only some columns are to be decoded: what the others mean is known.
    fn decoded(&self, row: usize, known: Option<Arc<Row>>, changed: &[Field]) -> Option<Arc<Row>> {
        let stored = &self.rows[row];
        let new = self.raw_of(stored, changed).decode().ok()?;
        let Some(mut meant) = known else {
            return Some(Arc::new(new));
        };
        let Row {
            key: _,
            mut values,
            secrets,
        } = new;
        let known = Arc::make_mut(&mut meant);
        for field in changed {
            match (field, values.remove(field)) {
                (Field::Secrets, _) => known.secrets = secrets.clone(),
                (_, Some(value)) => drop(known.values.insert(*field, value)),
                (_, None) => drop(known.values.remove(field)),
            }
        }
        Some(meant)
    }

    /// Appends what the row desires now to its items' histories; of columns that did not change it stands there.
    fn remember(&mut self, row: usize, changed: &[Field]) {
        let Some(usable) = self.usable(row) else {
            return;
        };
        let key = &usable.key;
        for (field, value) in &usable.values {
            // The status also changes by itself, when the row vanishes.
            if changed.contains(field) || *field == Field::Status {
                self.push(key, Item::Field(*field), Version::Value(value.clone()));
            }
        }
        let secrets = usable.secrets.as_ref();
        let Some(secrets) = secrets.filter(|_| changed.contains(&Field::Secrets)) else {
            return;
        };
        let prints = secrets.fingerprints(&self.key);
        let known: Vec<String> = secrets_of(&self.history, key).cloned().collect();
        let first = self.had_secrets.insert(key.clone());
        for name in known {
            let present = prints.keys().any(|print| print.as_str() == name);
            if !present {
                self.push(key, Item::Secret(name), Version::Absent);
            }
        }
        for (name, print) in prints {
            let item = Item::Secret(name.as_str().to_owned());
            let is_new = !self.history.contains_key(&(key.clone(), item.clone()));
            if is_new && !first {
                self.push(key, item.clone(), Version::Absent);
            }
            self.push(key, item, Version::Secret(print));
        }
    }

    /// A row is gone: from now on its resource may be uninstalled.
    pub(super) fn forget(&mut self, key: &ResourceKey) {
        self.push(key, Item::Field(Field::Status), Version::uninstalled());
    }

    fn push(&mut self, key: &ResourceKey, item: Item, version: Version) {
        let versions = self.history.entry((key.clone(), item)).or_default();
        if versions.last() != Some(&version) {
            versions.push(version);
        }
    }

    /// The row as the daemon should understand it; `None` when it is not there or cannot be used.
    pub(super) fn usable(&self, row: usize) -> Option<Arc<Row>> {
        let stored = &self.rows[row];
        stored.row.clone().filter(|_| stored.present)
    }

    /// Whether the resource has a row that can be used.
    pub(super) fn has_usable(&self, key: &ResourceKey) -> bool {
        let row = self.rows.iter().find(|row| row.key == *key);
        row.is_some_and(|row| row.present && row.row.is_some())
    }

    pub(super) fn raw(&self, row: &StoredRow) -> RawRow {
        self.raw_of(row, &self.managed)
    }

    fn raw_of(&self, row: &StoredRow, fields: &[Field]) -> RawRow {
        let columns = fields.iter().map(|field| {
            let text = row.columns.get(field).and_then(Option::as_deref);
            (*field, text.map_or(RawText::Null, RawText::text))
        });
        RawRow {
            installation_id: RawText::text(row.key.installation_id.as_str()),
            resource_id: RawText::text(row.key.resource_id.as_str()),
            cursor: row
                .cursor
                .filter(|_| self.has_cursor)
                .map(|cursor| cursor.to_string()),
            columns: columns.collect(),
        }
    }

    fn visible(&self, now: Timestamp) -> Vec<&StoredRow> {
        let empty = now < self.empty_until;
        let shown = self.rows.iter().filter(|row| row.present && !empty);
        shown.collect()
    }

    pub(super) fn poll_page(&self, from: &PollFrom, limit: u32, now: Timestamp) -> PollPage {
        let number = |cursor: &str| cursor.parse::<i64>().unwrap_or(i64::MIN);
        let mut rows = self.visible(now);
        rows.retain(|row| row.cursor.is_some());
        // What may still commit behind the pass when it begins, told with each of its pages.
        let horizon = match from {
            PollFrom::After(position) => position.horizon.clone(),
            _ => {
                let newest = rows.iter().filter_map(|row| row.cursor).max();
                let open = self.open.iter().map(|open| open.cursor).min();
                let open = open.filter(|_| self.has_horizon);
                let horizon = newest.into_iter().chain(open).min();
                horizon.map(|cursor| cursor.to_string())
            }
        };
        rows.sort_by(|a, b| a.sorts_as().cmp(&b.sorts_as()));
        let newest = rows.last().and_then(|row| row.cursor);
        match from {
            PollFrom::Beginning => {}
            PollFrom::Cursor(cursor) | PollFrom::Until { cursor, .. } => {
                let from = number(cursor) - self.overlap_ms;
                rows.retain(|row| row.cursor.is_some_and(|cursor| cursor >= from));
            }
            PollFrom::Later(cursor)
            | PollFrom::After(Position {
                cursor, key: None, ..
            }) => {
                let after = number(cursor);
                rows.retain(|row| row.cursor.is_some_and(|cursor| cursor > after));
            }
            PollFrom::After(Position {
                cursor,
                key: Some(key),
                ..
            }) => {
                let after = (
                    number(cursor),
                    key.installation_id.as_str(),
                    key.resource_id.as_str(),
                );
                rows.retain(|row| {
                    let cursor = row.cursor.unwrap_or(i64::MIN);
                    let ids = (
                        row.key.installation_id.as_str(),
                        row.key.resource_id.as_str(),
                    );
                    (cursor, ids.0, ids.1) > after
                });
            }
        }
        let crowd = match from {
            PollFrom::Until { crowd, .. } => Some(number(crowd)),
            _ => None,
        };
        let crowd = crowd.filter(|crowd| rows.iter().any(|row| row.cursor == Some(*crowd)));
        rows.retain(|row| crowd.is_none_or(|crowd| row.cursor < Some(crowd)));
        let more = rows.len() > limit as usize;
        rows.truncate(limit as usize);
        let next = rows.last().filter(|_| more).map(|row| Position {
            cursor: row.cursor.unwrap_or_default().to_string(),
            key: Some(raw_key(&row.key)),
            horizon: horizon.clone(),
        });
        let crowd = crowd.filter(|_| next.is_none());
        let behind = crowd.map(|crowd| Position {
            cursor: crowd.to_string(),
            key: None,
            horizon: horizon.clone(),
        });
        let next = next.or(behind);
        let last = crowd.or(rows.last().and_then(|row| row.cursor));
        let told = newest.filter(|_| matches!(from, PollFrom::Later(_)));
        let settled = |horizon: &String| last.is_none_or(|last| last < number(horizon));
        PollPage {
            passed: 0,
            reached: last.or(told).map(|cursor| cursor.to_string()),
            rows: rows.into_iter().map(|row| self.raw(row)).collect(),
            next,
            horizon: horizon.filter(|horizon| !settled(horizon)),
            identity: (!matches!(from, PollFrom::After(_))).then(|| self.identity()),
            found: BTreeMap::new(),
        }
    }

    pub(super) fn count_at(&self, cursor: &str, most: u32, now: Timestamp) -> u32 {
        let cursor = cursor.parse().ok();
        let rows = self.visible(now).into_iter();
        let count = rows.filter(|row| row.cursor.is_some() && row.cursor == cursor);
        u32::try_from(count.count()).map_or(most, |count| count.min(most))
    }

    pub(super) fn sweep_page(
        &self,
        after: Option<&RawKey>,
        limit: u32,
        now: Timestamp,
    ) -> SweepPage {
        let mut rows = self.visible(now);
        rows.sort_by(|a, b| a.key.cmp(&b.key));
        if let Some(after) = after {
            rows.retain(|row| {
                let ids = (
                    row.key.installation_id.as_str(),
                    row.key.resource_id.as_str(),
                );
                ids > (after.installation_id.as_str(), after.resource_id.as_str())
            });
        }
        let more = rows.len() > limit as usize;
        rows.truncate(limit as usize);
        let next = rows.last().filter(|_| more).map(|row| raw_key(&row.key));
        SweepPage {
            rows: rows.into_iter().map(|row| self.raw(row)).collect(),
            next,
        }
    }

    pub(super) fn fetch(&self, keys: &[ResourceKey], now: Timestamp) -> Vec<RawRow> {
        let rows = self.visible(now).into_iter();
        rows.filter(|row| keys.contains(&row.key))
            .map(|row| self.raw(row))
            .collect()
    }

    pub(super) fn token(&self, installation_id: &InstallationId) -> Option<AccessToken> {
        let token = self.tokens.get(installation_id)?;
        Some(AccessToken::new(token))
    }

    pub(super) fn identity(&self) -> Identity {
        Identity {
            id: format!("database-{}", self.restored),
        }
    }
}

/// The names of the secrets that a resource ever had.
pub(super) fn secrets_of<'a>(
    history: &'a BTreeMap<(ResourceKey, Item), Vec<Version>>,
    key: &'a ResourceKey,
) -> impl Iterator<Item = &'a String> {
    let first = (key.clone(), Item::Secret(String::new()));
    history
        .range(first..)
        .take_while(move |((of, _), _)| of == key)
        .filter_map(|((_, item), _)| match item {
            Item::Secret(name) => Some(name),
            Item::Field(_) => None,
        })
}

fn raw_key(key: &ResourceKey) -> RawKey {
    RawKey {
        installation_id: key.installation_id.as_str().to_owned(),
        resource_id: key.resource_id.as_str().to_owned(),
    }
}
