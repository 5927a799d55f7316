//! The durable record of the modelled resource, and the real steps that change it.
//!
//! Every step is the function of [`crate::plan`] that a store runs in its transaction. A step depends on nothing but the record
//! and its arguments, so each is computed once and looked up afterwards; records, patches and snapshots are numbered, which
//! keeps the states of the model small.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use crate::model::{
    Doubt, EntryState, Fingerprint, Lease, LeaseToken, Mark, Observed, Origin, Patch, Reason,
    Record, ResourceKey, RowHash, SecretsPatch, Snapshot, Timestamp,
};
use crate::plan::backoff::Backoff;
use crate::plan::claim::{Claim, abandon};
use crate::plan::{Outcome, Policy, RetryPolicy, advance, claim, decide, expire};
use crate::planted::{Bug, with_planted};

/// The present: every record is kept relative to it, so that time may go on for ever in finitely many states.
const NOW: i64 = 1_000_000;

/// The durations of the protocol, in ticks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms {
    /// `[retry] lease`.
    pub(super) lease: u8,
    /// `[vercel] request_timeout`, with the margin that dispatch adds to it.
    pub(super) timeout: u8,
    /// `[retry] late_apply`.
    pub(super) late_apply: u8,
}

impl Terms {
    /// The age past which a claim's exact age makes no difference: everything that it was compared with is past too.
    pub(super) const fn oldest(self) -> u8 {
        self.lease + self.late_apply + 2
    }
}

/// The number of something in the book; the kind keeps records, patches and snapshots apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Id<const KIND: char>(u32);

/// The number of a record.
pub(super) type RecordId = Id<'r'>;
/// The number of a patch.
pub(super) type PatchId = Id<'p'>;
/// The number of what Vercel holds.
pub(super) type HeldId = Id<'h'>;

/// The hasher of small keys: quick also without optimisation.
#[derive(Default)]
pub(super) struct Mix(u64);

/// Builds [`Mix`].
pub(super) type Mixed = BuildHasherDefault<Mix>;

impl Mix {
    fn mix(&mut self, word: u64) {
        // The multiplier of splitmix64; the rotation keeps the order of the words.
        self.0 = (self.0.rotate_left(23) ^ word).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        self.0 ^= self.0 >> 29;
    }
}

impl Hasher for Mix {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.mix((*byte).into()));
    }

    fn write_u8(&mut self, word: u8) {
        self.mix(word.into());
    }

    fn write_u32(&mut self, word: u32) {
        self.mix(word.into());
    }

    fn write_u64(&mut self, word: u64) {
        self.mix(word);
    }

    fn write_usize(&mut self, word: usize) {
        self.mix(word as u64);
    }

    fn write_isize(&mut self, word: isize) {
        self.mix(word.unsigned_abs() as u64);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// Gives equal things equal numbers.
struct Numbered<T, const KIND: char>(RwLock<Catalogue<T>>);

/// Things by number, and numbers by thing.
type Catalogue<T> = (HashMap<Arc<T>, u32>, Vec<Arc<T>>);

impl<T: Eq + Hash, const KIND: char> Numbered<T, KIND> {
    fn new() -> Self {
        Self(RwLock::new((HashMap::new(), Vec::new())))
    }

    fn id(&self, thing: T) -> Id<KIND> {
        let mut both = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let (ids, things) = &mut *both;
        if let Some(id) = ids.get(&thing) {
            return Id(*id);
        }
        let id = u32::try_from(things.len()).expect("far fewer than 2^32 different records");
        let thing = Arc::new(thing);
        ids.insert(Arc::clone(&thing), id);
        things.push(thing);
        Id(id)
    }

    fn get(&self, id: Id<KIND>) -> Arc<T> {
        let both = self.0.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&both.1[id.0 as usize])
    }

    fn len(&self) -> usize {
        let both = self.0.read().unwrap_or_else(PoisonError::into_inner);
        both.1.len()
    }
}

/// A step of the protocol on the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Step {
    /// One tick passes.
    Tick,
    /// A row with this value is decided on.
    Decide(u8),
    /// A worker claims what is due.
    Claim,
    /// Expired leases are ended.
    Expire,
    /// The only process starts again: every lease is ended.
    Abandon,
    /// The holder of the lease records how its attempt ended.
    Advance(Said),
}

/// How an attempt ended, in the few words that the model needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Said {
    /// 2xx, to a request sent this long ago.
    Acknowledged {
        /// The age of the sending.
        sent_ago: u8,
    },
    /// No answer, or a gateway's.
    Lost,
    /// 500, 503.
    Failed,
    /// 429.
    RateLimited,
    /// 400, 422.
    Rejected,
    /// 409, and what GET showed then.
    Conflict {
        /// What Vercel held.
        observed: HeldId,
    },
    /// Nothing was sent, or only a 409 came back: the row is another one by now.
    SourceMoved,
    /// Nothing was sent: the lease ran short.
    Released,
}

/// What a step did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Done {
    /// The record after it.
    pub(super) record: RecordId,
    /// What a claim is to send.
    pub(super) claimed: Option<Claimed>,
    /// How the entry that it closed ended.
    pub(super) closed: Option<EntryState>,
}

/// What a worker keeps in memory of its claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Claimed {
    pub(super) patch: PatchId,
    /// The value that the patch leads to.
    pub(super) desired: u8,
}

/// A question about what is on both sides; answered once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Question {
    /// Whether everything that the patch names is in doubt.
    Covered(RecordId, PatchId),
    /// Whether all that was acknowledged is what Vercel holds, doubt apart.
    Agrees(RecordId, HeldId),
    /// Whether the patch, applied now, changes nothing but what is in doubt.
    Harmless(RecordId, HeldId, PatchId),
}

/// Everything that happens in the state database, and the numbers of what happens elsewhere.
pub(super) struct Book {
    pub(super) terms: Terms,
    values: Vec<Snapshot>,
    bug: Option<Bug>,
    records: Numbered<Record, 'r'>,
    patches: Numbered<Patch, 'p'>,
    held: Numbered<Snapshot, 'h'>,
    done: RwLock<HashMap<(RecordId, Step), Done, Mixed>>,
    answers: RwLock<HashMap<Question, bool, Mixed>>,
}

impl Book {
    pub(super) fn new(terms: Terms, values: Vec<Snapshot>, bug: Option<Bug>) -> Self {
        Self {
            terms,
            values,
            bug,
            records: Numbered::new(),
            patches: Numbered::new(),
            held: Numbered::new(),
            done: RwLock::default(),
            answers: RwLock::default(),
        }
    }

    /// A record on which both sides agreed, with value 0.
    pub(super) fn settled(&self) -> RecordId {
        let mut record = first_seen();
        record.acknowledged = self.values[0].clone();
        record.row_hash = Some(hash_of(0));
        self.records.id(record)
    }

    /// A resource that was never seen.
    pub(super) fn unseen(&self) -> RecordId {
        self.records.id(first_seen())
    }

    /// What Vercel holds when it holds this value.
    pub(super) fn holding(&self, value: u8) -> HeldId {
        self.held.id(self.values[usize::from(value)].clone())
    }

    pub(super) fn record(&self, id: RecordId) -> Arc<Record> {
        self.records.get(id)
    }

    pub(super) fn patch(&self, id: PatchId) -> Arc<Patch> {
        self.patches.get(id)
    }

    pub(super) fn held(&self, id: HeldId) -> Arc<Snapshot> {
        self.held.get(id)
    }

    pub(super) fn different_records(&self) -> usize {
        self.records.len()
    }

    /// Whether the row that was last decided on has this value.
    pub(super) fn is_polled(&self, record: RecordId, value: u8) -> bool {
        self.record(record).row_hash == Some(hash_of(value))
    }

    pub(super) fn is_leased(&self, record: RecordId) -> bool {
        let record = self.record(record);
        record
            .entry
            .as_ref()
            .is_some_and(|entry| entry.lease.is_some())
    }

    /// Whether the entry waits for its row to be read again.
    pub(super) fn is_to_be_read_again(&self, record: RecordId) -> bool {
        let record = self.record(record);
        record
            .entry
            .as_ref()
            .is_some_and(|entry| entry.reason == Reason::SourceMoved)
    }

    /// Vercel's side: what it holds once it has applied a patch.
    pub(super) fn apply(&self, held: HeldId, patch: PatchId) -> HeldId {
        let mut after = (*self.held(held)).clone();
        self.patch(patch).apply_to(&mut after);
        self.held.id(after)
    }

    /// Whether dispatch finds the patch's secrets in the row as it is now.
    pub(super) fn has_secrets_of(&self, value: u8, patch: PatchId) -> bool {
        let held = self.values[usize::from(value)]
            .secrets
            .clone()
            .unwrap_or_default();
        match &self.patch(patch).secrets {
            None => true,
            Some(SecretsPatch::Complete(named)) => held == *named,
            Some(SecretsPatch::Partial(named)) => named
                .iter()
                .all(|(name, fingerprint)| held.get(name) == Some(fingerprint)),
        }
    }

    /// Carries out a step on a record.
    pub(super) fn step(&self, record: RecordId, step: Step) -> Done {
        let known = self
            .done
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&(record, step))
            .copied();
        known.unwrap_or_else(|| {
            let done = with_planted(self.bug, || self.carry_out(record, step));
            self.done
                .write()
                .unwrap_or_else(PoisonError::into_inner)
                .insert((record, step), done);
            done
        })
    }

    fn carry_out(&self, id: RecordId, step: Step) -> Done {
        let mut record = (*self.record(id)).clone();
        let late_apply = ticks(self.terms.late_apply);
        let (mut claimed, mut closed) = (None, None);
        match step {
            Step::Tick => shift(&mut record, -1),
            Step::Decide(value) => {
                let desired = &self.values[usize::from(value)];
                let decided = decide::decide(
                    &mut record,
                    desired,
                    hash_of(value),
                    Origin::Poll,
                    Policy::default(),
                    at(0),
                );
                closed = decided.closed;
            }
            Step::Claim => match claim(&mut record, at(0), &self.lease(), late_apply) {
                Claim::Claimed(claim) => {
                    let desired = self.values.iter().position(|value| *value == claim.desired);
                    claimed = Some(Claimed {
                        patch: self.patches.id(claim.patch),
                        desired: desired
                            .and_then(|index| u8::try_from(index).ok())
                            .expect("a value of the source"),
                    });
                }
                Claim::Closed(entry) => closed = Some(*entry),
                Claim::NotNow => {}
            },
            Step::Expire => {
                expire(&mut record, at(0), late_apply);
            }
            Step::Abandon => {
                abandon(&mut record, at(0), late_apply);
            }
            Step::Advance(said) => {
                let outcome = self.outcome(said);
                closed = advance(&mut record, &outcome, &self.retry(), at(0), 0.0)
                    .and_then(|advance| advance.closed);
            }
        }
        Done {
            record: self.records.id(canonical(record, self.terms)),
            claimed,
            closed: closed.map(|entry| entry.state),
        }
    }

    fn lease(&self) -> Lease {
        Lease {
            owner: "worker".to_owned(),
            token: LeaseToken(1),
            expires_at: at(i64::from(self.terms.lease)),
        }
    }

    /// Intervals of half a tick, which are none: a worker that waits longer is one that is slow.
    fn retry(&self) -> RetryPolicy {
        let tick = ticks(1);
        RetryPolicy {
            backoff: Backoff {
                initial: tick,
                multiplier: 1.0,
                max: tick,
            },
            max_elapsed: Duration::ZERO,
            max_conflicts: u32::MAX,
            late_apply: ticks(self.terms.late_apply),
        }
    }

    fn outcome(&self, said: Said) -> Outcome {
        match said {
            Said::Acknowledged { sent_ago } => Outcome::Acknowledged {
                sent_at: at(-i64::from(sent_ago)),
            },
            Said::Lost => Outcome::Lost,
            Said::Failed => Outcome::Failed,
            Said::RateLimited => Outcome::RateLimited { until: at(0) },
            Said::Rejected => Outcome::Rejected {
                status: 400,
                code: None,
            },
            Said::Conflict { observed } => {
                let values = self.held(observed).values.clone();
                Outcome::Conflict {
                    observed: Some(Observed {
                        values,
                        billing_plan_id: None,
                    }),
                }
            }
            Said::SourceMoved => Outcome::SourceMoved,
            Said::Released => Outcome::Released,
        }
    }

    /// Answers a question about a record.
    pub(super) fn ask(&self, question: Question) -> bool {
        let known = self
            .answers
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&question)
            .copied();
        known.unwrap_or_else(|| {
            let answer = self.answer(question);
            self.answers
                .write()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(question, answer);
            answer
        })
    }

    fn answer(&self, question: Question) -> bool {
        match question {
            Question::Covered(record, patch) => {
                covers(&self.record(record).doubt, &self.patch(patch))
            }
            Question::Agrees(record, held) => {
                let Record {
                    acknowledged,
                    doubt,
                    ..
                } = &*self.record(record);
                differs_in_doubt_alone(acknowledged, &self.held(held), doubt)
            }
            Question::Harmless(record, held, patch) => {
                let after = self.apply(held, patch);
                let Record {
                    acknowledged,
                    doubt,
                    ..
                } = &*self.record(record);
                differs_in_doubt_alone(acknowledged, &self.held(after), doubt)
            }
        }
    }
}

fn first_seen() -> Record {
    Record::new(ResourceKey::new("icfg_1", "res_1").expect("two ids"))
}

fn hash_of(value: u8) -> RowHash {
    Fingerprint::from_bytes([value; 16])
}

fn ticks(ticks: u8) -> Duration {
    Duration::from_millis(ticks.into())
}

fn at(offset: i64) -> Timestamp {
    Timestamp::from_millis(NOW + offset)
}

fn covers(doubt: &Doubt, patch: &Patch) -> bool {
    patch
        .values
        .keys()
        .all(|field| doubt.fields.contains_key(field))
        && patch
            .secret_names()
            .all(|name| doubt.secrets.contains_key(name))
}

/// Whether `held` is what was acknowledged in every field and secret that was ever acknowledged, those in doubt apart.
fn differs_in_doubt_alone(acknowledged: &Snapshot, held: &Snapshot, doubt: &Doubt) -> bool {
    let fields = acknowledged.values.iter().all(|(field, value)| {
        held.values.get(field) == Some(value) || doubt.fields.contains_key(field)
    });
    let Some(ours) = &acknowledged.secrets else {
        return fields;
    };
    let theirs = held.secrets.clone().unwrap_or_default();
    let mut names = ours.keys().chain(theirs.keys());
    fields
        && names.all(|name| ours.get(name) == theirs.get(name) || doubt.secrets.contains_key(name))
}

fn marks(doubt: &mut Doubt) -> impl Iterator<Item = &mut Mark> {
    doubt.fields.values_mut().chain(doubt.secrets.values_mut())
}

/// Moves every instant of a record.
fn shift(record: &mut Record, by: i64) {
    let moved = |time: &mut Timestamp| *time = Timestamp::from_millis(time.as_millis() + by);
    marks(&mut record.doubt).for_each(|mark| mark.uncertain_until.iter_mut().for_each(moved));
    let Some(entry) = &mut record.entry else {
        return;
    };
    moved(&mut entry.due_at);
    if let Some(lease) = &mut entry.lease {
        moved(&mut lease.expires_at);
    }
    if let Some(in_flight) = &mut entry.in_flight {
        moved(&mut in_flight.claimed_at);
        marks(&mut in_flight.doubt_before)
            .for_each(|mark| mark.uncertain_until.iter_mut().for_each(moved));
    }
}

/// The record without what no decision depends on: counters, the past order of what is compared with nothing any more.
fn canonical(mut record: Record, terms: Terms) -> Record {
    record.acknowledged_at = None;
    let claimed_at = record
        .entry
        .as_ref()
        .and_then(|entry| Some(entry.in_flight.as_ref()?.claimed_at));
    // While a claim lasts, marks are compared with the time of its sending; otherwise only with times to come.
    let reference = claimed_at.unwrap_or(at(0)).min(at(0));
    let raise = |mark: &mut Mark| {
        let floor = Timestamp::from_millis(reference.as_millis() - 1);
        mark.uncertain_until = mark.uncertain_until.map(|until| until.max(floor));
    };
    marks(&mut record.doubt).for_each(raise);
    if let Some(entry) = &mut record.entry {
        entry.attempts = 0;
        entry.failures = 0;
        entry.conflicts = 0;
        entry.origin = Origin::Poll;
        entry.created_at = at(0);
        let generation = entry.generation;
        entry.generation = 0;
        if let Some(in_flight) = &mut entry.in_flight {
            entry.generation = u32::from(in_flight.generation != generation);
            in_flight.generation = 0;
            marks(&mut in_flight.doubt_before).for_each(raise);
        }
    }
    let too_old = at(-i64::from(terms.oldest())).as_millis() - reference.as_millis();
    if too_old > 0 {
        shift(&mut record, too_old);
    }
    if let Some(entry) = &mut record.entry {
        entry.due_at = entry.due_at.max(at(0));
    }
    record
}
