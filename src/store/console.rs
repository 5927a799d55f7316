//! What people ask of a state and do to it: the command line's side of a store.
//!
//! Reading changes nothing. Every act is one transaction with the row that tells who did it, when and why.

use async_trait::async_trait;

use crate::model::{
    Entry, EntryId, EntryState, Field, FieldSet, InstallationId, Record, ResourceId, ResourceKey,
    Timestamp,
};
use crate::plan::manual::{self, Refusal};

use super::{Heartbeat, Pause, PauseKind, Quarantined, Store, StoreError};

/// A store as the command line sees it.
#[async_trait]
pub trait Console: Store {
    /// Entries that fit the filter, by number.
    async fn entries(&self, filter: &EntryFilter) -> Result<EntryPage, StoreError>;

    /// The numbers of all entries that fit the filter, whatever its limit, in order.
    async fn entry_ids(&self, filter: &EntryFilter) -> Result<Vec<EntryId>, StoreError>;

    /// The resource of each of these entries, in order; none for an entry that is not there.
    async fn keys_of(&self, ids: &[EntryId]) -> Result<Vec<Option<ResourceKey>>, StoreError>;

    /// One entry with its resource and its newest attempts, at most `attempts` of them, oldest first.
    async fn entry(&self, id: EntryId, attempts: u32) -> Result<Option<EntryDetail>, StoreError>;

    /// Everything about one resource; of its closed entries, attempts and acts the newest `limit` of each, oldest first.
    async fn story(&self, key: &ResourceKey, limit: u32) -> Result<Story, StoreError>;

    /// Unusable rows, the longest quarantined first, at most `limit`, and how many there are.
    async fn quarantined(&self, limit: u32) -> Result<(Vec<Quarantined>, u64), StoreError>;

    /// All pauses, also manual ones that have ended by themselves, by installation and kind.
    async fn pauses(&self) -> Result<Vec<Pause>, StoreError>;

    /// One line for each of these installations, by id.
    async fn installations(
        &self,
        which: Installations,
    ) -> Result<Vec<InstallationSummary>, StoreError>;

    /// How many installations the state knows: those with a resource or a pause.
    async fn installation_count(&self) -> Result<u64, StoreError>;

    /// The resources whose entries this hold keeps back, by key: those after `after`, at most `limit`.
    async fn kept_back(
        &self,
        hold: i64,
        after: Option<&ResourceKey>,
        limit: usize,
    ) -> Result<Vec<ResourceKey>, StoreError>;

    /// The daemon that works on the state, or the last one that did.
    async fn daemon(&self) -> Result<Daemon, StoreError>;

    /// How many attempts that ended at or after `since` had to be repeated.
    async fn retries_since(&self, since: Timestamp) -> Result<u64, StoreError>;

    /// How many resources differ from what Vercel acknowledged since a person discarded the change.
    async fn discarded(&self) -> Result<u64, StoreError>;

    /// Does the same to each of these entries, no number twice, in one transaction; one answer per entry, in order.
    async fn act(
        &self,
        ids: &[EntryId],
        order: Order,
        by: &Person,
        now: Timestamp,
    ) -> Result<Vec<Answer>, StoreError>;

    /// Ends a manual pause on a person's behalf; true if one was in effect.
    async fn resume_manually(
        &self,
        installation_id: &InstallationId,
        by: &Person,
        now: Timestamp,
    ) -> Result<bool, StoreError>;

    /// Leaves the row of an act that takes more than one transaction: a baseline, before its first row.
    async fn note(&self, act: &Act) -> Result<(), StoreError>;

    /// The oldest acts that no daemon has logged yet, at most `limit`.
    async fn untold_acts(&self, limit: u32) -> Result<Vec<(ActId, Act)>, StoreError>;

    /// These acts have been logged by a daemon.
    async fn acts_told(&self, ids: &[ActId], now: Timestamp) -> Result<(), StoreError>;
}

/// Which entries to list; an absent condition admits all.
#[derive(Debug, Clone, Default)]
pub struct EntryFilter {
    /// In one of these states; empty: open.
    pub states: Vec<EntryState>,
    /// Of this installation.
    pub installation_id: Option<InstallationId>,
    /// With this field to send, rejected, or sent.
    pub field: Option<Field>,
    /// Found at or after this instant.
    pub since: Option<Timestamp>,
    /// At most this many.
    pub limit: u32,
}

/// How a state finds the entries that a filter asks for: each as it is listed, or its number alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Filtered {
    pub(super) listed: &'static str,
    pub(super) ids: &'static str,
}

/// The same among the fewest entries that hold them. Those that wait for a person and those that are open have indexes of their own.
#[derive(Debug)]
pub(super) struct Among {
    /// Those that wait for a person.
    pub(super) resting: Filtered,
    /// Those that are open.
    pub(super) open: Filtered,
    /// All: there may be many.
    pub(super) all: Filtered,
}

impl Among {
    pub(super) fn of(&self, filter: &EntryFilter) -> Filtered {
        let is_resting = |state| matches!(state, EntryState::Held | EntryState::Dead);
        if filter.asked_for().all(is_resting) {
            self.resting
        } else if filter.asked_for().all(EntryState::is_open) {
            self.open
        } else {
            self.all
        }
    }
}

impl EntryFilter {
    /// The names of the states that are asked for.
    pub(super) fn state_names(&self) -> Vec<&'static str> {
        self.asked_for().map(EntryState::name).collect()
    }

    fn asked_for(&self) -> impl Iterator<Item = EntryState> {
        EntryState::ALL
            .into_iter()
            .filter(|state| match self.states.is_empty() {
                true => state.is_open(),
                false => self.states.contains(state),
            })
    }
}

/// A page of entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryPage {
    /// The entries.
    pub entries: Vec<ListedEntry>,
    /// How many fit the filter; the rest was cut.
    pub total: u64,
}

impl EntryPage {
    /// Takes an entry that fits the other conditions, read only when it has to be looked at.
    pub(super) fn consider<E>(
        &mut self,
        limit: u32,
        field: Option<Field>,
        read: impl FnOnce() -> Result<ListedEntry, E>,
    ) -> Result<(), E> {
        let has_room = self.entries.len() < usize::try_from(limit).unwrap_or(usize::MAX);
        if field.is_none() && !has_room {
            self.total += 1;
            return Ok(());
        }
        let listed = read()?;
        if field.is_none_or(|field| listed.fields.contains(field)) {
            self.total += 1;
            if has_room {
                self.entries.push(listed);
            }
        }
        Ok(())
    }

    /// How many entries fit the filter but are not in the page.
    #[must_use]
    pub fn cut(&self) -> u64 {
        self.total.saturating_sub(self.entries.len() as u64)
    }
}

/// An entry and what it is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedEntry {
    /// The resource.
    pub key: ResourceKey,
    /// The entry.
    pub entry: Entry,
    /// Open: what is to be sent or was rejected. Closed: what was sent.
    pub fields: FieldSet,
    /// When it was closed.
    pub closed_at: Option<Timestamp>,
}

/// One entry with its surroundings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryDetail {
    /// The entry.
    pub listed: ListedEntry,
    /// The resource as it stands now.
    pub record: Record,
    /// The entry's newest attempts, oldest first.
    pub attempts: Vec<Attempt>,
}

/// Everything about one resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Story {
    /// The resource as it stands; [`Record::new`] when it was never seen.
    pub record: Record,
    /// Its row, if that cannot be used.
    pub quarantined: Option<Quarantined>,
    /// Its newest closed entries, oldest first.
    pub closed: Vec<ListedEntry>,
    /// Its newest attempts, oldest first.
    pub attempts: Vec<Attempt>,
    /// What people did to it last, oldest first.
    pub acts: Vec<Act>,
    /// The pauses of its installation.
    pub pauses: Vec<Pause>,
    /// Until when Vercel limits the installation, as last announced; may be past.
    pub limited_until: Option<Timestamp>,
}

/// One request in the history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// Its entry.
    pub entry_id: EntryId,
    /// Its number within the entry, from 1; attempts that do not count share theirs with the next.
    pub number: u32,
    /// When it was sent.
    pub started_at: Timestamp,
    /// When it ended.
    pub ended_at: Timestamp,
    /// The method and kind.
    pub method: String,
    /// The fields that it carried.
    pub fields: Vec<Field>,
    /// The names of the secrets that it carried.
    pub secret_names: Vec<String>,
    /// The stable name of how it ended.
    pub outcome: String,
    /// The status of the answer.
    pub status: Option<u16>,
    /// A stable code of what went wrong.
    pub error_code: Option<String>,
    /// What Vercel said, in safe words.
    pub message: Option<String>,
    /// `X-Vercel-Id` of the answer.
    pub vercel_id: Option<String>,
}

/// The number of an act in the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ActId(pub i64);

/// Something that a person did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Act {
    /// When.
    pub at: Timestamp,
    /// Who.
    pub actor: String,
    /// What: retry, discard, release, pause, resume, adopt, compare or fix.
    pub act: String,
    /// To which installation, unless to all of them.
    pub installation_id: Option<InstallationId>,
    /// To which resource, unless to all of them.
    pub resource_id: Option<ResourceId>,
    /// To which entry.
    pub entry_id: Option<EntryId>,
    /// Why.
    pub reason: Option<String>,
}

impl Act {
    /// A person paused an installation; `None` for automatic pauses, which are no acts.
    pub(super) fn paused(pause: &Pause) -> Option<Self> {
        let by = Person {
            name: pause.by.clone(),
            reason: Some(pause.reason.clone()),
        };
        let act = Self::new("pause", by, pause.since);
        let act = act.of_installation(pause.installation_id.clone());
        (pause.kind == PauseKind::Manual).then_some(act)
    }

    /// A person's order for an entry was carried out.
    pub(super) fn ordered(
        key: &ResourceKey,
        id: EntryId,
        order: Order,
        by: &Person,
        now: Timestamp,
    ) -> Self {
        Self {
            entry_id: Some(id),
            ..Self::new(order.name(), by.clone(), now).of_resource(key.clone())
        }
    }

    /// What a person did, not yet said to what: to everything.
    #[must_use]
    pub fn new(act: &str, by: Person, at: Timestamp) -> Self {
        let Person { name, reason } = by;
        Self {
            at,
            actor: name,
            act: act.to_owned(),
            installation_id: None,
            resource_id: None,
            entry_id: None,
            reason,
        }
    }

    /// The same, to one installation.
    #[must_use]
    pub fn of_installation(self, installation_id: InstallationId) -> Self {
        Self {
            installation_id: Some(installation_id),
            ..self
        }
    }

    /// The same, to one resource.
    #[must_use]
    pub fn of_resource(self, key: ResourceKey) -> Self {
        Self {
            installation_id: Some(key.installation_id),
            resource_id: Some(key.resource_id),
            ..self
        }
    }
}

/// Who acts, and why: what the history keeps of a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Person {
    /// The person's name.
    pub name: String,
    /// Why; an order that holds something back from a customer must have one.
    pub reason: Option<String>,
}

/// Which installations are asked for; there may be many of which there is nothing to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Installations {
    /// All.
    All,
    /// Those with an open entry, a pause or a rate limit, also where the last two are over.
    Noteworthy,
    /// Those of these that the state knows.
    These(Vec<InstallationId>),
}

/// One installation at a glance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstallationSummary {
    /// The installation.
    pub installation_id: InstallationId,
    /// Its resources in the state.
    pub resources: u64,
    /// Entries that wait, those in flight included.
    pub waiting: u64,
    /// Entries held by the guard.
    pub held: u64,
    /// Dead letters.
    pub dead: u64,
    /// When the change of its oldest open entry was found.
    pub oldest: Option<Timestamp>,
    /// Its pauses.
    pub pauses: Vec<Pause>,
    /// Until when Vercel limits it, as last announced; may be past.
    pub limited_until: Option<Timestamp>,
}

/// A daemon, running or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Daemon {
    /// Whether it works on the state now.
    pub running: bool,
    /// Its last sign of life, if there ever was one. Of an earlier daemon, when the running one has given none yet; of several, that
    /// of the one with the watch, or else the newest.
    pub heartbeat: Option<Heartbeat>,
    /// All daemons that work on it now, where there may be several, by owner.
    pub replicas: Vec<Replica>,
}

/// One of several daemons on a state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replica {
    /// Its last sign of life.
    pub heartbeat: Heartbeat,
    /// Whether it has the watch: it reads the source for all of them.
    pub watches: bool,
}

/// What a person wants done to an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Try it at once, and forget what made it wait or die.
    Retry,
    /// Close it for good: what it wanted is not sent until the source changes it. It needs a reason.
    Discard,
    /// Let a held entry go.
    Release,
}

impl Order {
    /// The stable name in the history.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Discard => "discard",
            Self::Release => "release",
        }
    }

    /// Carries the order out on a resource's open entry, nowhere but in its record.
    ///
    /// # Errors
    /// The entry's state does not allow it.
    pub fn apply(self, record: &mut Record, now: Timestamp) -> Result<Applied, Refusal> {
        let closed = match self {
            Self::Retry => manual::retry(record, now).map(|()| None),
            Self::Release => manual::release(record, now).map(|()| None),
            Self::Discard => manual::discard(record).map(Some),
        }?;
        let entry = closed.as_ref().or(record.entry.as_ref());
        let state = entry.map_or(EntryState::Waiting, |entry| entry.state);
        Ok(Applied { state, closed })
    }
}

/// What an order makes of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// The entry's state now.
    pub state: EntryState,
    /// The entry, if it is closed now.
    pub closed: Option<Entry>,
}

/// What became of an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It was carried out.
    Done {
        /// The entry's resource.
        key: ResourceKey,
        /// The entry's state now.
        state: EntryState,
    },
    /// The entry's state does not allow it.
    Refused {
        /// The entry's resource.
        key: ResourceKey,
        /// Why not.
        refusal: Refusal,
    },
    /// There is no such entry.
    Unknown,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_looks_among_the_fewest_entries_that_hold_what_it_asks_for() {
        use EntryState::{Dead, Delivered, Held, Waiting};
        let open = ["waiting", "held", "dead"];
        let found = |listed| Filtered { listed, ids: "" };
        let among = Among {
            resting: found("resting"),
            open: found("open"),
            all: found("all"),
        };
        let cases: [(&[EntryState], &str, &[&str]); 6] = [
            (&[], "open", &open),
            (&[Dead], "resting", &["dead"]),
            (&[Dead, Held], "resting", &["held", "dead"]),
            (&[Waiting], "open", &["waiting"]),
            (&[Waiting, Held], "open", &["waiting", "held"]),
            (&[Dead, Delivered], "all", &["dead", "delivered"]),
        ];
        for (states, expected, names) in cases {
            let filter = EntryFilter {
                states: states.to_vec(),
                ..EntryFilter::default()
            };
            assert_eq!(among.of(&filter).listed, expected, "{states:?}");
            assert_eq!(filter.state_names(), names, "{states:?}");
        }
    }
}
