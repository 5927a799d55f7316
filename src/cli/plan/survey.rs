//! Walks the source page by page and decides on copies what the daemon would do with each row.
//!
//! The decisions are those of [`crate::plan`], so that a plan never says anything else than what is done.

use std::collections::BTreeMap;
use std::sync::Arc;

use chrono::DateTime;

use super::change::{Change, changes, unchanged};
use crate::model::{
    EntryState, Field, FingerprintKey, InstallationId, Mode, Origin, RawRow, Reason, Record,
    ResourceKey, RowHash, Snapshot, Timestamp, Unusable,
};
use crate::plan::diff::left_out;
use crate::plan::guard::{Found, Impact, impact};
use crate::plan::{Decision, decide, diff, pending};
use crate::reconcile::{self, PAGE_ROWS};
use crate::source::{CursorKind, Source};
use crate::store::console::{Console, Installations};
use crate::store::{Pause, PauseKind};

use super::super::fault::Fault;
use super::super::installation::{known, perhaps};

/// Unusable rows that are named; the rest is counted.
const UNUSABLE_MAX: usize = 100;

/// What to look at.
#[derive(Debug, Clone, Default)]
pub(super) struct Filter {
    pub(super) installation: Option<InstallationId>,
    pub(super) field: Option<Field>,
    /// What becomes of the difference; empty: anything.
    pub(super) states: Vec<State>,
    /// Changed, or else found, at or after this instant.
    pub(super) since: Option<Timestamp>,
    /// Resources to keep; the rest is counted.
    pub(super) limit: usize,
}

impl Filter {
    /// Whether it may leave out resources that differ.
    pub(super) const fn is_narrow(&self) -> bool {
        self.installation.is_some()
            || self.field.is_some()
            || !self.states.is_empty()
            || self.since.is_some()
    }

    fn admits(&self, standing: &Standing, since: Option<Since>) -> bool {
        let is_recent = |from| match since {
            Some(Since::Changed(at) | Since::Found(at)) => at >= from,
            None => false,
        };
        (self.states.is_empty() || self.states.contains(&State::of(standing)))
            && self.since.is_none_or(is_recent)
    }
}

/// What becomes of a difference, as coarsely as people ask for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// It is on its way, or would be sent or compared at once.
    Now,
    /// It waits for a time or for the end of a pause.
    Waiting,
    /// The guard keeps it back.
    Held,
    /// It is not sent until a person or the source does something.
    Dead,
    /// A person discarded it: it is not sent until the source changes it.
    Discarded,
}

impl State {
    pub(super) const ALL: [Self; 5] = [
        Self::Now,
        Self::Waiting,
        Self::Held,
        Self::Dead,
        Self::Discarded,
    ];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Now => "now",
            Self::Waiting => "waiting",
            Self::Held => "held",
            Self::Dead => "dead",
            Self::Discarded => "discarded",
        }
    }

    const fn of(standing: &Standing) -> Self {
        match standing {
            Standing::Now | Standing::ComparedFirst | Standing::InFlight => Self::Now,
            Standing::Waits { .. } => Self::Waiting,
            Standing::Held => Self::Held,
            Standing::Parked { .. } => Self::Dead,
            Standing::Discarded => Self::Discarded,
        }
    }
}

/// Everything that a plan depends on.
pub(super) struct Surveyor {
    pub(super) source: Arc<dyn Source>,
    /// `None`: there is no state yet.
    pub(super) console: Option<Arc<dyn Console>>,
    pub(super) key: FingerprintKey,
    pub(super) settings: reconcile::Settings,
    pub(super) filter: Filter,
    pub(super) now: Timestamp,
}

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Survey {
    /// Whether there is a state to compare with.
    pub(super) has_state: bool,
    /// Resources that differ, in the order of the source, up to the limit.
    pub(super) items: Vec<Item>,
    /// Rows that cannot be used, up to a limit.
    pub(super) unusable: Vec<UnusableRow>,
    pub(super) totals: Totals,
    /// What is known of the only installation that was asked for, if one was.
    pub(super) only: Option<Known>,
    /// The changes are more than `[guard]` lets one pass make.
    pub(super) guard: Option<Found>,
}

/// What is known of an installation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Known {
    /// The source has rows of it.
    InSource,
    /// The source has none; the state knows it.
    InStateOnly,
    /// Nobody knows it; with what was perhaps meant.
    Nowhere(String),
}

/// Counts over everything, shown or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Totals {
    /// Rows read.
    pub(super) rows: u64,
    /// Resources that differ.
    pub(super) resources: u64,
    /// Fields that differ, each secret counted for itself.
    pub(super) fields: u64,
    /// How many of those are secrets.
    pub(super) secrets: u64,
    pub(super) now: u64,
    pub(super) compared_first: u64,
    pub(super) in_flight: u64,
    pub(super) waiting: u64,
    pub(super) held: u64,
    pub(super) parked: u64,
    pub(super) discarded: u64,
    pub(super) unchanged: u64,
    /// How many of the unchanged ones are to be compared with what Vercel shows: it may be asked to change them all the same.
    pub(super) prepared: u64,
    /// Taken as acknowledged without sending.
    pub(super) adopted: u64,
    /// Rows that cannot be used.
    pub(super) unusable: u64,
    /// The resources that they name, each row without an id for itself.
    pub(super) unusable_resources: u64,
}

/// One resource that differs.
#[derive(Debug, Clone)]
pub(super) struct Item {
    pub(super) key: ResourceKey,
    pub(super) name: Option<String>,
    /// Nothing was ever acknowledged for it.
    pub(super) is_new: bool,
    pub(super) since: Option<Since>,
    pub(super) changes: Vec<Change>,
    pub(super) unchanged_fields: Vec<Field>,
    pub(super) unchanged_secrets: usize,
    pub(super) standing: Standing,
    /// Fields that Vercel rejected, or that a person dismissed: never sent as they are.
    pub(super) left_out: Vec<(Field, LeftOut)>,
}

/// Why a field is not sent as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum LeftOut {
    /// Vercel rejected it: with what.
    Rejected(String),
    /// A person discarded it.
    Discarded,
}

impl LeftOut {
    /// In words that follow the field's name.
    pub(super) fn why(&self) -> String {
        match self {
            Self::Rejected(answer) => format!("rejected by Vercel with {answer}"),
            Self::Discarded => "discarded by a person".to_owned(),
        }
    }
}

/// How old a change is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Since {
    /// By the row's own cursor.
    Changed(Timestamp),
    /// By the daemon, which found it then.
    Found(Timestamp),
}

/// What becomes of a difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Standing {
    /// It would be sent at once.
    Now,
    /// Vercel would be asked first, and only what differs there would be sent.
    ComparedFirst,
    /// A request is on its way.
    InFlight,
    /// It waits: why, and until when if that is known.
    Waits {
        why: String,
        until: Option<Timestamp>,
    },
    /// The guard holds it until a person releases it.
    Held,
    /// It is not sent: why.
    Parked { why: String },
    /// It is not sent, since a person discarded it.
    Discarded,
}

/// A row that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct UnusableRow {
    pub(super) installation_id: String,
    pub(super) resource_id: String,
    pub(super) problem: Unusable,
}

impl Surveyor {
    /// Reads everything; tells after each page how many rows that were.
    pub(super) async fn run(self, mut tell: impl FnMut(u64)) -> Result<Survey, Fault> {
        let cursor = self.source.shape().await?.cursor;
        let pauses = match &self.console {
            Some(console) => console.pauses().await?,
            None => Vec::new(),
        };
        let mut survey = Survey {
            has_state: self.console.is_some(),
            ..Survey::default()
        };
        let mut found = Found::default();
        let mut after = None;
        loop {
            let page = self.source.sweep_page(after.as_ref(), PAGE_ROWS).await?;
            survey.totals.rows += page.rows.len() as u64;
            let usable = self.sort(page.rows, &mut survey);
            let keys: Vec<ResourceKey> = usable.keys().cloned().collect();
            let records = match &self.console {
                Some(console) => console.records(&keys).await?,
                None => keys.into_iter().map(Record::new).collect(),
            };
            for (record, (desired, cursor_text)) in records.into_iter().zip(usable.into_values()) {
                let changed = cursor_text
                    .filter(|_| cursor == Some(CursorKind::Timestamp))
                    .and_then(|t| instant(&t));
                self.consider(record, &desired, changed, &pauses, &mut survey, &mut found);
            }
            tell(survey.totals.rows);
            match page.next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        if let Some(only) = &self.filter.installation
            && survey.only.is_none()
        {
            survey.only = Some(self.without_rows(only).await?);
        }
        survey.guard = self.settings.guard.are_exceeded(found).then_some(found);
        Ok(survey)
    }

    /// What is known of an installation of which the source has no row.
    async fn without_rows(&self, only: &InstallationId) -> Result<Known, Fault> {
        let Some(console) = &self.console else {
            return Ok(Known::Nowhere(perhaps(only, &[])));
        };
        Ok(match known(&**console, only).await? {
            Some(_) => Known::InStateOnly,
            None => Known::Nowhere(perhaps(
                only,
                &console.installations(Installations::All).await?,
            )),
        })
    }

    /// Decodes a page; rows that cannot be used are noted. Rows with equal ids are always in one page.
    fn sort(
        &self,
        rows: Vec<RawRow>,
        survey: &mut Survey,
    ) -> BTreeMap<ResourceKey, (Snapshot, Option<String>)> {
        let mut by_key: BTreeMap<ResourceKey, Vec<RawRow>> = BTreeMap::new();
        let mut usable = BTreeMap::new();
        let wanted = self.filter.installation.as_ref();
        for row in rows {
            if wanted.is_some_and(|wanted| wanted.as_str() == row.installation_id.shown_id()) {
                survey.only = Some(Known::InSource);
            }
            match row.key() {
                Ok(key) => by_key.entry(key).or_default().push(row),
                Err(problem) => self.note_unusable(&row, problem, 1, survey),
            }
        }
        for (key, rows) in by_key {
            let decoded = match &rows[..] {
                [row] => row.decode(),
                _ => Err(Unusable::duplicate()),
            };
            match (decoded, rows.first()) {
                (Ok(row), Some(raw)) if self.is_wanted(&key) => {
                    let desired = row.desired(&self.key, self.settings.ignored);
                    usable.insert(key, (desired, raw.cursor.clone()));
                }
                (Err(problem), Some(raw)) => {
                    self.note_unusable(raw, problem, rows.len() as u64, survey)
                }
                _ => {}
            }
        }
        usable
    }

    fn is_wanted(&self, key: &ResourceKey) -> bool {
        self.filter
            .installation
            .as_ref()
            .is_none_or(|wanted| *wanted == key.installation_id)
    }

    fn note_unusable(&self, row: &RawRow, problem: Unusable, rows: u64, survey: &mut Survey) {
        let installation_id = row.installation_id.shown_id();
        let wanted = self.filter.installation.as_ref();
        if wanted.is_some_and(|wanted| wanted.as_str() != installation_id) {
            return;
        }
        survey.totals.unusable += rows;
        survey.totals.unusable_resources += 1;
        if survey.unusable.len() < UNUSABLE_MAX {
            let resource_id = row.resource_id.shown_id();
            survey.unusable.push(UnusableRow {
                installation_id,
                resource_id,
                problem,
            });
        }
    }

    /// Decides on a copy what would become of the row.
    fn consider(
        &self,
        before: Record,
        desired: &Snapshot,
        changed: Option<Timestamp>,
        pauses: &[Pause],
        survey: &mut Survey,
        found: &mut Found,
    ) {
        let is_new = before.is_first_sight();
        let was_open = before.entry.is_some();
        let mut record = before;
        let row_hash = record.row_hash.unwrap_or(RowHash::from_bytes([0; 16]));
        let decided = decide(
            &mut record,
            desired,
            row_hash,
            Origin::Sweep,
            self.settings.policy,
            self.now,
        );
        if decided.decision == Decision::Adopted {
            survey.totals.adopted += 1;
            return;
        }
        let whole = diff(desired, &record.acknowledged, &record.doubt);
        let whole = match self.filter.field {
            Some(field) => whole.only(field),
            None => whole,
        };
        if whole.is_empty() {
            survey.totals.unchanged += 1;
            survey.totals.prepared += u64::from(self.is_prepared(&record));
            return;
        }
        match impact(&record) {
            _ if was_open => {}
            Impact::None => {}
            Impact::Change => found.changes += 1,
            Impact::Destructive => {
                found.changes += 1;
                found.destructive += 1;
            }
        }
        let standing = self.standing(&record, desired, pauses);
        let found_at = record
            .entry
            .as_ref()
            .filter(|_| was_open)
            .map(|entry| entry.created_at);
        let since = changed.map(Since::Changed).or(found_at.map(Since::Found));
        if !self.filter.admits(&standing, since) {
            return;
        }
        let changes = changes(&record, &whole);
        survey.totals.add(&changes, &standing);
        if survey.items.len() < self.filter.limit {
            let item = item(&record, desired, changes, since, standing);
            survey.items.push(Item { is_new, ..item });
        }
    }

    /// Whether Vercel is asked about a resource that is as it acknowledged, as `baseline compare --all` prepares.
    fn is_prepared(&self, record: &Record) -> bool {
        let compared = record
            .entry
            .as_ref()
            .filter(|entry| entry.state.is_open() && entry.mode == Mode::Compare);
        compared.is_some_and(|entry| {
            let since = Some(Since::Found(entry.created_at));
            self.filter.admits(&Standing::ComparedFirst, since)
        })
    }

    fn standing(&self, record: &Record, desired: &Snapshot, pauses: &[Pause]) -> Standing {
        let Some(entry) = &record.entry else {
            return Standing::Discarded;
        };
        match entry.state {
            EntryState::Held => return Standing::Held,
            EntryState::Dead => {
                return Standing::Parked {
                    why: entry.reason.sentence().to_owned(),
                };
            }
            _ => {}
        }
        if entry.in_flight.is_some() {
            return Standing::InFlight;
        }
        if pending(record, desired).0.is_empty() {
            let rejected = why_left_out(record, desired)
                .into_iter()
                .any(|(_, why)| why != LeftOut::Discarded);
            return if rejected {
                Standing::Parked {
                    why: Reason::Rejected.sentence().to_owned(),
                }
            } else {
                Standing::Discarded
            };
        }
        let in_effect = |pause: &&Pause| {
            pause.installation_id == record.key.installation_id
                && pause.until.is_none_or(|until| until > self.now)
        };
        if let Some(pause) = pauses.iter().find(in_effect) {
            return Standing::Waits {
                why: paused(pause, self.now),
                until: pause.until,
            };
        }
        if entry.due_at > self.now {
            return Standing::Waits {
                why: entry.reason.sentence().to_owned(),
                until: Some(entry.due_at),
            };
        }
        match entry.mode {
            Mode::Compare => Standing::ComparedFirst,
            Mode::Whole | Mode::Split => Standing::Now,
        }
    }
}

/// A resource that differs by these changes.
pub(super) fn item(
    record: &Record,
    desired: &Snapshot,
    changes: Vec<Change>,
    since: Option<Since>,
    standing: Standing,
) -> Item {
    let (unchanged_fields, unchanged_secrets) = unchanged(desired, &changes);
    Item {
        key: record.key.clone(),
        name: name(desired, record),
        is_new: record.is_first_sight(),
        since,
        unchanged_fields,
        unchanged_secrets,
        standing,
        left_out: why_left_out(record, desired),
        changes,
    }
}

impl Totals {
    pub(super) fn add(&mut self, changes: &[Change], standing: &Standing) {
        self.resources += 1;
        let secrets = changes
            .iter()
            .filter(|change| change.field == Field::Secrets)
            .count() as u64;
        let fields: std::collections::BTreeSet<Field> = changes
            .iter()
            .map(|change| change.field)
            .filter(|field| *field != Field::Secrets)
            .collect();
        self.fields += fields.len() as u64 + secrets;
        self.secrets += secrets;
        *match standing {
            Standing::Now => &mut self.now,
            Standing::ComparedFirst => &mut self.compared_first,
            Standing::InFlight => &mut self.in_flight,
            Standing::Waits { .. } => &mut self.waiting,
            Standing::Held => &mut self.held,
            Standing::Parked { .. } => &mut self.parked,
            Standing::Discarded => &mut self.discarded,
        } += 1;
    }
}

fn name(desired: &Snapshot, record: &Record) -> Option<String> {
    let of = |snapshot: &Snapshot| {
        snapshot
            .values
            .get(&Field::Name)?
            .to_value()
            .as_str()
            .map(str::to_owned)
    };
    of(desired).or_else(|| of(&record.acknowledged))
}

fn why_left_out(record: &Record, desired: &Snapshot) -> Vec<(Field, LeftOut)> {
    let rejected = record.entry.as_ref().map(|entry| &entry.rejected);
    let why = |field: Field| match rejected.and_then(|rejected| rejected.get(&field)) {
        Some(rejection) => {
            let code = rejection
                .code
                .as_deref()
                .map(|code| format!(" {code}"))
                .unwrap_or_default();
            LeftOut::Rejected(format!("{}{code}", rejection.status))
        }
        None => LeftOut::Discarded,
    };
    left_out(record, desired)
        .iter()
        .map(|field| (field, why(field)))
        .collect()
}

fn paused(pause: &Pause, now: Timestamp) -> String {
    let Pause {
        kind,
        by,
        reason,
        since,
        ..
    } = pause;
    match kind {
        PauseKind::Manual => {
            let since = super::super::text::moment(*since, now);
            let reason = super::super::text::visible(reason);
            format!("installation paused by {by} {since}: \"{reason}\"")
        }
        PauseKind::Token | PauseKind::Gone => {
            format!(
                "installation paused: {}",
                super::super::text::visible(reason)
            )
        }
    }
}

/// The instant of a timestamp cursor that says its zone, as the databases write it.
fn instant(cursor: &str) -> Option<Timestamp> {
    let formats = ["%Y-%m-%d %H:%M:%S%.f%#z", "%Y-%m-%dT%H:%M:%S%.f%#z"];
    let parsed = formats
        .iter()
        .find_map(|format| DateTime::parse_from_str(cursor, format).ok());
    let parsed = parsed.or_else(|| DateTime::parse_from_rfc3339(cursor).ok());
    parsed.map(|time| Timestamp::from_millis(time.timestamp_millis()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Entry, Json, Rejection};

    #[test]
    fn what_is_left_out_says_who_refused_it() {
        let key = ResourceKey::new("icfg_1", "res_1").expect("two ids");
        let values = [(Field::Status, "\"ready\""), (Field::Name, "\"a\"")];
        let desired = Snapshot {
            values: values
                .map(|(field, text)| (field, Json::from_text(text)))
                .into(),
            secrets: None,
        };
        let mut record = Record::new(key);
        let digest = |field| desired.digest(field).expect("it is desired");
        record.dismissed.insert(Field::Name, digest(Field::Name));
        let mut entry = Entry::new(desired.clone(), Origin::Poll, Mode::Whole, Timestamp::EPOCH);
        let mut rejection = Rejection {
            digest: digest(Field::Status),
            status: 422,
            code: Some("bad_status".to_owned()),
        };
        entry.rejected.insert(Field::Status, rejection.clone());
        record.entry = Some(entry);
        let said = |record: &Record| -> BTreeMap<Field, String> {
            let left_out = why_left_out(record, &desired).into_iter();
            left_out.map(|(field, why)| (field, why.why())).collect()
        };
        let rejected = "rejected by Vercel with 422 bad_status";
        let by_person = (Field::Name, "discarded by a person".to_owned());
        assert_eq!(
            said(&record),
            [(Field::Status, rejected.to_owned()), by_person.clone()].into()
        );
        rejection.code = None;
        let entry = record.entry.as_mut().expect("made above");
        entry.rejected.insert(Field::Status, rejection);
        let rejected = (Field::Status, "rejected by Vercel with 422".to_owned());
        assert_eq!(said(&record), [rejected, by_person].into());
    }

    #[test]
    fn only_a_cursor_that_says_its_zone_is_an_instant() {
        let expected = Some(Timestamp::from_millis(1_777_903_331_500));
        for text in [
            "2026-05-04 14:02:11.5+00",
            "2026-05-04T14:02:11.5Z",
            "2026-05-04 16:02:11.500+02:00",
        ] {
            assert_eq!(instant(text), expected, "{text}");
        }
        for text in ["2026-05-04 14:02:11", "1777903331", "infinity", ""] {
            assert_eq!(instant(text), None, "{text}");
        }
    }
}
