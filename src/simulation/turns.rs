//! What the provider and Vercel do by themselves: edits, late commits, rotations, outages.

use std::fmt;
use std::time::Duration;

use crate::model::{Field, InstallationId, ResourceKey};
use crate::reconcile::SweepReport;
use crate::source::{PollFrom, Position};
use crate::store::Glance;

use super::laws::Law;
use super::provider::{Columns, Open, StoredRow};
use super::remote::{Held, Installation};
use super::trial::Happening;
use super::world::World;

/// Something that happens to the world by chance.
type Event = fn(&mut World);

impl World {
    /// Customers, tokens and the first rows.
    pub(super) fn populate(&mut self) {
        for number in 0..self.climate.installations {
            let id = installation(number);
            let token = format!("token of {id}, 0");
            self.provider.tokens.insert(id.clone(), token.clone());
            let installation = Installation { token, gone: false };
            self.remote.installations.insert(id, installation);
        }
        for _ in 0..self.climate.resources {
            self.insert();
        }
    }

    /// A new resource: a row, and what Vercel has had of it since it was provisioned.
    pub(super) fn insert(&mut self) {
        let number = self.provider.rows.len();
        let id = installation(self.chance.below(self.climate.installations));
        let key = ResourceKey::new(id.as_str(), &format!("r{number}")).expect("an id");
        let mut held = Held::default();
        let ready = crate::model::Json::from_text("pending");
        held.values.insert(Field::Status, ready);
        self.remote.resources.insert(key.clone(), held);
        let columns: Columns = self
            .climate
            .managed
            .iter()
            .map(|field| (field, self.fresh(field)))
            .collect();
        let now = self.now();
        self.provider.rows.push(StoredRow::absent(key.clone(), now));
        let cursor = self.provider.cursor_at(now);
        self.say(format_args!("row {key} appears: {}", told(&columns)));
        self.provider
            .commit(number, columns, Some(cursor), false, now);
    }

    /// A value for a column: sometimes one that was there before, sometimes one that never was.
    fn fresh(&mut self, field: Field) -> Option<String> {
        let n = self.chance.below(1_000_000);
        let few = self.chance.below(3);
        let n = if self.chance.one_in(2) { few } else { n };
        Some(match field {
            Field::Status => (*self.chance.pick(&["ready", "suspended", "error"])).to_owned(),
            Field::Ownership => (*self.chance.pick(&["owned", "linked", "sandbox"])).to_owned(),
            Field::Name => format!("name-{n}"),
            Field::Metadata => format!(r#"{{"n":{n},"region":"fra1"}}"#),
            Field::Extras => format!(r#"{{"x":[{n}]}}"#),
            Field::BillingPlan => {
                format!(r#"{{"id":"plan-{n}","type":"subscription","name":"Plan {n}"}}"#)
            }
            Field::Notification if self.chance.one_in(3) => return None,
            Field::Notification => format!(r#"{{"level":"warn","title":"t-{n}"}}"#),
            Field::Secrets => {
                let names = ["URL", "USER", "PASSWORD"];
                let mut set: Vec<String> = Vec::new();
                for name in names {
                    if !self.chance.one_in(4) {
                        set.push(self.secret(name));
                    }
                }
                format!("{{{}}}", set.join(","))
            }
        })
    }

    fn secret(&mut self, name: &str) -> String {
        let n = self.chance.below(1_000_000);
        let few = self.chance.below(2);
        let n = if self.chance.one_in(2) { few } else { n };
        format!(r#""{name}":"v{n}""#)
    }

    /// The provider's turn: something changes somewhere.
    pub(super) fn turn(&mut self) {
        let rates = self.climate.rates;
        let events: [(u64, Event); 10] = [
            (rates.rotate_token, Self::rotate_token),
            (rates.uninstall, Self::uninstall),
            (rates.lose_resource, Self::lose_resource),
            (rates.source_outage, Self::source_outage),
            (rates.source_empty, Self::source_empty),
            (rates.store_outage, Self::store_outage),
            (rates.api_outage, Self::api_outage),
            (rates.vanish, Self::vanish),
            (rates.restore, Self::restore),
            (rates.stop, Self::stop),
        ];
        for (rate, event) in events {
            if self.strikes(rate) {
                return event(self);
            }
        }
        if self.strikes(rates.suspend) {
            return self.suspend();
        }
        if self.chance.one_in(12) && self.provider.rows.len() < 12 {
            return self.insert();
        }
        if self.chance.one_in(15) {
            for row in 0..self.provider.rows.len() {
                self.edit(row);
            }
            return;
        }
        let row = self.chance.index(self.provider.rows.len());
        self.edit(row);
    }

    /// Changes a row, now or in a transaction that commits later.
    pub(super) fn edit(&mut self, row: usize) {
        if self.provider.rows[row].locked {
            return;
        }
        let was_present = self.provider.rows[row].present;
        let before = self.provider.rows[row].columns.clone();
        let columns = self.changed(&before);
        let now = self.now();
        let cursor = self.provider.cursor_at(now);
        let rates = self.climate.rates;
        let open_max = self.provider.open_max();
        if was_present && !open_max.is_zero() && self.strikes(rates.late_commit) {
            let open = self.chance.duration(Duration::from_millis(1), open_max);
            return self.open(row, columns, cursor, open);
        }
        let silent = was_present && self.strikes(rates.silent_edit);
        let cursor = if silent {
            self.provider.rows[row].cursor
        } else {
            Some(cursor)
        };
        self.commit(row, columns, cursor, silent);
        // Every third change is taken back soon.
        if was_present && self.chance.one_in(3) {
            let wait = self
                .chance
                .duration(Duration::from_millis(50), Duration::from_secs(8));
            self.handle.after(wait, Happening::Revert(row, before));
        }
    }

    /// Puts back what a row was.
    pub(super) fn revert(&mut self, row: usize, columns: Columns) {
        let stored = &self.provider.rows[row];
        if stored.locked || !stored.present {
            return;
        }
        let cursor = self.provider.cursor_at(self.now());
        self.commit(row, columns, Some(cursor), false);
    }

    pub(super) fn commit(
        &mut self,
        row: usize,
        columns: Columns,
        cursor: Option<i64>,
        silent: bool,
    ) {
        let now = self.now();
        let key = self.provider.rows[row].key.clone();
        let how = if silent { ", cursor unmoved" } else { "" };
        self.say(format_args!(
            "row {key}: {}, cursor {cursor:?}{how}",
            told(&columns)
        ));
        self.provider.commit(row, columns, cursor, silent, now);
    }

    /// Changes one column of a row.
    pub(super) fn put(&mut self, row: usize, field: Field, text: &str) {
        let mut columns = self.provider.rows[row].columns.clone();
        columns.insert(field, Some(text.to_owned()));
        let cursor = self.provider.cursor_at(self.now());
        self.commit(row, columns, Some(cursor), false);
    }

    pub(super) fn open(&mut self, row: usize, columns: Columns, cursor: i64, wait: Duration) {
        let number = self.chance.next();
        let key = self.provider.rows[row].key.clone();
        let millis = wait.as_millis();
        self.say(format_args!(
            "row {key}: {}, cursor {cursor}, commits in {millis} ms",
            told(&columns)
        ));
        self.provider.rows[row].locked = true;
        self.provider.open.push(Open {
            number,
            row,
            columns,
            cursor,
        });
        self.handle.after(wait, Happening::Commit(number));
    }

    /// An open transaction commits.
    pub(super) fn close(&mut self, number: u64) {
        let open = self
            .provider
            .open
            .iter()
            .position(|open| open.number == number);
        let Some(open) = open.map(|index| self.provider.open.remove(index)) else {
            return;
        };
        self.provider.rows[open.row].locked = false;
        self.commit(open.row, open.columns, Some(open.cursor), false);
    }

    fn changed(&mut self, before: &Columns) -> Columns {
        let mut columns = before.clone();
        let fields: Vec<Field> = self.climate.managed.iter().collect();
        let rates = self.climate.rates;
        for _ in 0..self.chance.between(1, 3) {
            let field = *self.chance.pick(&fields);
            let text = match field {
                Field::Secrets if self.chance.one_in(2) => {
                    let old = before.get(&field).cloned().flatten().unwrap_or_default();
                    Some(self.rotated(&old))
                }
                // Without a value the field is left alone, but for the notification.
                Field::Name | Field::Metadata if self.chance.one_in(8) => None,
                _ => self.fresh(field),
            };
            columns.insert(field, text);
        }
        // What made the row unusable or unacceptable before is mended first.
        for field in fields.clone() {
            let bad = columns.get(&field).and_then(Option::as_deref);
            if bad.is_some_and(|text| text.contains("unusable") || text.contains("unacceptable")) {
                let fresh = self.fresh(field);
                columns.insert(field, fresh);
            }
        }
        if self.strikes(rates.unusable) {
            let field = *self.chance.pick(&fields);
            let text = if field == Field::Name {
                "unusable\n"
            } else {
                "unusable"
            };
            columns.insert(field, Some(text.to_owned()));
        } else if self.strikes(rates.unacceptable) {
            let field = *self.chance.pick(&fields);
            let text = match field {
                Field::Name => "unacceptable".to_owned(),
                Field::Metadata | Field::Extras => r#"{"a":"unacceptable"}"#.to_owned(),
                Field::BillingPlan => {
                    r#"{"id":"unacceptable","type":"subscription","name":"P"}"#.to_owned()
                }
                _ => return columns,
            };
            columns.insert(field, Some(text));
        }
        columns
    }

    /// A set of secrets with one of them rotated, added or removed.
    fn rotated(&mut self, old: &str) -> String {
        let mut parts: Vec<String> = old
            .trim_matches(['{', '}'])
            .split(',')
            .filter(|part| part.contains(':'))
            .map(str::to_owned)
            .collect();
        let name = *self.chance.pick(&["URL", "USER", "PASSWORD", "TOKEN"]);
        parts.retain(|part| !part.starts_with(&format!("\"{name}\"")));
        if !self.chance.one_in(4) {
            parts.push(self.secret(name));
        }
        format!("{{{}}}", parts.join(","))
    }

    fn rotate_token(&mut self) {
        let id = installation(self.chance.below(self.climate.installations));
        let number = self.chance.below(1_000_000);
        let token = format!("token of {id}, {number}");
        self.say(format_args!("the token of {id} is rotated"));
        let installation = self.remote.installations.get_mut(&id);
        installation.expect("it was installed").token = token.clone();
        if self.chance.one_in(2) {
            self.provider.tokens.insert(id, token);
        } else {
            let wait = self
                .chance
                .duration(Duration::from_secs(1), Duration::from_secs(60));
            self.handle.after(wait, Happening::LearnToken(id));
        }
    }

    /// The provider's table has the token that Vercel takes.
    pub(super) fn learn_token(&mut self, id: &InstallationId) {
        if let Some(installation) = self.remote.installations.get(id) {
            let token = installation.token.clone();
            self.say(format_args!("the source has the token of {id}"));
            self.provider.tokens.insert(id.clone(), token);
        }
    }

    fn uninstall(&mut self) {
        let id = installation(self.chance.below(self.climate.installations));
        self.set_gone(&id, true);
        let wait = self
            .chance
            .duration(Duration::from_secs(2), Duration::from_secs(90));
        self.handle.after(wait, Happening::Reinstall(id));
    }

    pub(super) fn set_gone(&mut self, id: &InstallationId, gone: bool) {
        if let Some(installation) = self.remote.installations.get_mut(id) {
            installation.gone = gone;
            let what = if gone { "uninstalled" } else { "there" };
            self.say(format_args!("the installation {id} is {what}"));
        }
    }

    fn lose_resource(&mut self) {
        let row = self.chance.index(self.provider.rows.len());
        let key = self.provider.rows[row].key.clone();
        self.say(format_args!("{key} is gone at Vercel"));
        self.remote.resources.entry(key).or_default().gone = true;
    }

    fn source_outage(&mut self) {
        let wait = self
            .chance
            .duration(Duration::from_secs(1), Duration::from_secs(60));
        self.say(format_args!("the source is down for {wait:?}"));
        self.provider.down_until = self.now().plus(wait);
    }

    fn source_empty(&mut self) {
        let wait = self
            .chance
            .duration(Duration::from_secs(1), Duration::from_secs(60));
        self.say(format_args!("the source shows no rows for {wait:?}"));
        self.provider.empty_until = self.now().plus(wait);
    }

    fn store_outage(&mut self) {
        let wait = self
            .chance
            .duration(Duration::from_secs(1), Duration::from_secs(60));
        self.say(format_args!("the state is down for {wait:?}"));
        self.store_down_until = self.now().plus(wait);
    }

    fn api_outage(&mut self) {
        let wait = self
            .chance
            .duration(Duration::from_secs(1), Duration::from_secs(90));
        self.say(format_args!("Vercel is down for {wait:?}"));
        self.remote.down_until = self.now().plus(wait);
    }

    fn vanish(&mut self) {
        let row = self.chance.index(self.provider.rows.len());
        if self.take_away(row) && self.chance.one_in(2) {
            let wait = self
                .chance
                .duration(Duration::from_secs(1), Duration::from_secs(60));
            self.handle.after(wait, Happening::Return(row));
        }
    }

    /// A row is deleted; false when it is not there, or a transaction holds it.
    pub(super) fn take_away(&mut self, row: usize) -> bool {
        let now = self.now();
        let stored = &mut self.provider.rows[row];
        if !stored.present || stored.locked {
            return false;
        }
        stored.present = false;
        stored.unread = false;
        stored.absent_at = Some(now);
        let key = stored.key.clone();
        self.provider.forget(&key);
        self.say(format_args!("row {key} vanishes"));
        true
    }

    /// A row that vanished is there again, as it was or changed.
    pub(super) fn return_row(&mut self, row: usize) {
        let stored = &mut self.provider.rows[row];
        if stored.present {
            return;
        }
        stored.absent_at = Some(self.handle.now());
        let (columns, cursor) = (stored.columns.clone(), stored.cursor);
        if self.chance.one_in(2) {
            self.commit(row, columns, cursor, true);
        } else {
            self.edit(row);
        }
    }

    /// The database is replaced by a backup of itself; the next backup is taken then.
    fn restore(&mut self) {
        let now = self.now();
        let backup = self.provider.backup.replace(self.provider.rows.clone());
        let Some(backup) = backup else {
            self.say(format_args!("a backup of the source is taken"));
            return;
        };
        if self.provider.rows.iter().any(|row| row.locked) {
            return;
        }
        self.provider.restored += 1;
        self.say(format_args!("the source is restored from a backup"));
        for row in 0..self.provider.rows.len() {
            let old = backup.get(row).filter(|old| old.present && !old.locked);
            match old {
                Some(old) => self.commit(row, old.columns.clone(), old.cursor, false),
                None => {
                    let stored = &mut self.provider.rows[row];
                    stored.present = false;
                    stored.unread = false;
                    stored.absent_at = Some(now);
                    let key = stored.key.clone();
                    self.provider.forget(&key);
                }
            }
        }
    }

    fn stop(&mut self) {
        self.handle.after(Duration::ZERO, Happening::Stop(0));
    }

    fn suspend(&mut self) {
        let process = self.chance.index(self.climate.processes);
        let most = self.climate.dispatch.lease * 3;
        let wait = self.chance.duration(Duration::from_secs(1), most);
        self.handle
            .after(Duration::ZERO, Happening::Suspend(process, wait));
    }

    /// Faults and changes end; what was away is back, and what was parked gets a value that can be delivered.
    pub(super) fn clear(&mut self) {
        self.say(format_args!("the weather clears"));
        self.restless = None;
        let now = self.now();
        self.provider.down_until = now;
        self.provider.empty_until = now;
        self.store_down_until = now;
        self.remote.down_until = now;
        let open: Vec<u64> = self.provider.open.iter().map(|open| open.number).collect();
        open.into_iter().for_each(|number| self.close(number));
        let installations: Vec<InstallationId> =
            self.remote.installations.keys().cloned().collect();
        for id in installations {
            self.set_gone(&id, false);
            self.learn_token(&id);
        }
        let by_chance = std::mem::take(&mut self.stormy);
        for row in 0..self.provider.rows.len() {
            let key = self.provider.rows[row].key.clone();
            let held = self.remote.resources.get_mut(&key);
            let was_gone = held.is_some_and(|held| std::mem::take(&mut held.gone));
            if was_gone || (by_chance && self.chance.one_in(2)) {
                self.mend(row);
            }
        }
    }

    /// Gives every column of a row a value that differs from all before it.
    fn mend(&mut self, row: usize) {
        if !self.provider.rows[row].present {
            return;
        }
        let key = self.provider.rows[row].key.clone();
        let mut columns = Columns::new();
        let fields: Vec<Field> = self.climate.managed.iter().collect();
        let n = 1_000_000 + self.chance.below(1_000_000);
        let old = self.provider.rows[row].columns.clone();
        for field in fields {
            let text = match field {
                Field::Name => format!("name-{n}"),
                Field::Metadata => format!(r#"{{"n":{n}}}"#),
                Field::Extras => format!(r#"{{"x":{n}}}"#),
                Field::BillingPlan => {
                    format!(r#"{{"id":"plan-{n}","type":"prepayment","name":"P"}}"#)
                }
                Field::Notification => format!(r#"{{"level":"info","title":"t-{n}"}}"#),
                Field::Secrets => format!(r#"{{"URL":"v{n}"}}"#),
                Field::Status if old.get(&field) == Some(&Some("ready".to_owned())) => {
                    "suspended".to_owned()
                }
                Field::Status => "ready".to_owned(),
                Field::Ownership if old.get(&field) == Some(&Some("owned".to_owned())) => {
                    "linked".to_owned()
                }
                Field::Ownership => "owned".to_owned(),
            };
            columns.insert(field, Some(text));
        }
        // Of these there are too few values to be sure that the new one was never rejected, or that it is another one than a dead
        // letter has: what is read between two polls alone never was desired.
        let few = |field: &Field| matches!(field, Field::Status | Field::Ownership);
        if columns.keys().any(|field| !few(field)) {
            self.remote.last_status.remove(&key);
            self.remote.not_shown.remove(&key);
        }
        let rejected = &mut self.remote.rejected;
        rejected.retain(|(of, field), _| *of != key || few(field));
        let cursor = self.provider.cursor_at(self.now());
        self.commit(row, columns, Some(cursor), false);
    }

    /// A poll that goes on from there passes over rows of one cursor: it leaves them to sweeps.
    pub(super) fn passed_over(&mut self, from: &PollFrom) {
        if let PollFrom::After(Position {
            cursor, key: None, ..
        }) = from
        {
            let now = self.now();
            self.left_to_sweeps.insert(cursor.clone(), now);
        }
    }

    /// The rows that a pass that began at `started_at` must have decided on: a poll on those that have moved, and were not left to sweeps.
    pub(super) fn unread(
        &self,
        started_at: crate::model::Timestamp,
        swept: bool,
    ) -> Vec<(usize, ResourceKey)> {
        // While the source shows no rows a pass proves nothing, nor does one that began then.
        if self.provider.empty_until > started_at {
            return Vec::new();
        }
        let rows = self.provider.rows.iter().enumerate();
        let is_left = |row: &StoredRow| {
            let cursor = row.cursor.map(|cursor| cursor.to_string());
            cursor.is_some_and(|cursor| self.left_to_sweeps.contains_key(&cursor))
        };
        rows.filter(|(_, row)| row.present && row.unread)
            .filter(|(_, row)| swept || !(row.silent || is_left(row)))
            .filter(|(_, row)| row.visible_at < started_at)
            .map(|(index, row)| (index, row.key.clone()))
            .collect()
    }

    /// Compares what a pass should have decided on with what was committed.
    pub(super) fn decided(
        &mut self,
        unread: &[(usize, ResourceKey)],
        glances: &[Glance],
        kind: &str,
    ) {
        for ((row, key), glance) in unread.iter().zip(glances) {
            let stored = &self.provider.rows[*row];
            let hash = self
                .provider
                .raw(stored)
                .hash(&self.key, self.climate.reconcile.epoch());
            if glance.row_hash == Some(hash) || glance.quarantined == Some(hash) {
                self.provider.rows[*row].unread = false;
            } else {
                let what = format!("a {kind} ended without deciding on the row of {key}");
                self.broken(Law::NothingLost, what);
            }
        }
    }

    /// A sweep gave its account.
    pub(super) fn swept(&mut self, report: &SweepReport, started_at: crate::model::Timestamp) {
        // From then on nothing joins them any more.
        let overlap = Duration::from_millis(self.climate.overlap_ms.unsigned_abs());
        let patience = (overlap * 2).max(Duration::from_secs(60));
        self.left_to_sweeps
            .retain(|_, left_at| left_at.plus(patience) > started_at);
        let account = report.account;
        self.say(format_args!("sweep complete: {account:?}"));
    }
}

pub(super) fn installation(number: u64) -> InstallationId {
    InstallationId::new(&format!("i{number}")).expect("an id")
}

/// Columns in words; the values of secrets are the simulation's own.
fn told(columns: &Columns) -> impl fmt::Display {
    fmt::from_fn(move |f| {
        let mut between = "";
        columns.iter().try_for_each(|(field, text)| {
            let text = text.as_deref().unwrap_or("NULL");
            write!(f, "{}{field}={text}", std::mem::replace(&mut between, ", "))
        })
    })
}
