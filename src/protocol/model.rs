//! The protocol as states and steps: one resource, its source, its workers, the network and Vercel.
//!
//! Any worker may be as slow as it likes at any point: one that is frozen is one that takes no step while time passes. Only
//! changes of the source, crashes, lost answers and refusals are counted, and each is spent wherever it does most harm.

use std::collections::HashSet;
use std::hash::BuildHasher as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use stateright::{Model, Property};

use crate::model::{EntryState, Field, Snapshot};
use crate::planted::Bug;

use super::book::{Book, Mixed, Said, Step, Terms};
use super::laws;
use super::world::{
    Action, Answer, AtVercel, Budget, Claim, Late, Reply, Sent, Setting, State, Worker,
};

/// How long calm weather may take to bring both sides together, in steps.
const CALM_STEPS_MAX: usize = 100;

/// How much of calm weather is told, in steps.
const TOLD_STEPS_MAX: usize = 12;

/// The model that stateright checks.
pub(super) struct Protocol {
    pub(super) setting: Setting,
    pub(super) book: Book,
    /// Hashes of states from which calm weather is known to bring both sides together.
    converging: Mutex<HashSet<u64, Mixed>>,
    /// Whether a law was broken already.
    broken: AtomicBool,
}

impl Protocol {
    pub(super) fn new(setting: Setting) -> Self {
        let book = Book::new(setting.terms, setting.values.clone(), setting.bug);
        Self {
            setting,
            book,
            converging: Mutex::default(),
            broken: AtomicBool::new(false),
        }
    }

    /// Lets only the first broken law through: the checker keeps the last path that it was given, which is a longer one.
    pub(super) fn holds_or_was_broken(&self, holds: bool) -> bool {
        holds || self.broken.swap(true, Ordering::Relaxed)
    }

    fn has(&self, bug: Bug) -> bool {
        self.setting.bug == Some(bug)
    }

    /// Whether nothing is left to do, and Vercel holds what the source says, fields that it rejected by themselves apart.
    pub(super) fn is_settled(&self, state: &State) -> bool {
        self.is_at_rest(state) && self.is_equal(state)
    }

    fn is_equal(&self, state: &State) -> bool {
        let record = self.book.record(state.record);
        let Some(dead) = &record.entry else {
            return state.held == self.book.holding(state.source);
        };
        let held = self.book.held(state.held);
        let source = &self.setting.values[usize::from(state.source)];
        let rejected = |field: Field| {
            let rejection = dead.rejected.get(&field);
            rejection.is_some_and(|rejection| source.digest(field) == Some(rejection.digest))
        };
        let Snapshot { values, secrets } = source;
        values
            .iter()
            .all(|(field, value)| held.values.get(field) == Some(value) || rejected(*field))
            && (held.secrets == *secrets || rejected(Field::Secrets))
    }

    /// Whether no worker works, the row was read, and no entry waits.
    pub(super) fn is_at_rest(&self, state: &State) -> bool {
        let record = self.book.record(state.record);
        let waits = record
            .entry
            .as_ref()
            .is_some_and(|entry| entry.state != EntryState::Dead);
        let busy = state
            .workers
            .iter()
            .any(|worker| !matches!(worker, Worker::Idle | Worker::Absent));
        !busy && !waits && self.book.is_polled(state.record, state.source)
    }

    /// Whether both sides come together when nothing else goes wrong: law 1.
    pub(super) fn converges(&self, state: &State) -> bool {
        let hasher = Mixed::default();
        let mut trail = Vec::new();
        let mut state = state.clone();
        for _ in 0..CALM_STEPS_MAX {
            let hash = hasher.hash_one(&state);
            let known = self
                .converging
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .contains(&hash);
            if known || self.is_settled(&state) {
                trail.push(hash);
                self.converging
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .extend(trail);
                return true;
            }
            trail.push(hash);
            let Some((_, next)) = self.calm(&state) else {
                return false;
            };
            state = next;
        }
        false
    }

    /// Appends to a path what follows in calm weather, until nothing is left to do or it has gone on long enough.
    pub(super) fn go_on_calmly(&self, path: &mut Vec<(State, Option<Action>)>) {
        for _ in 0..TOLD_STEPS_MAX {
            let Some((state, last)) = path.last_mut() else {
                return;
            };
            if self.is_at_rest(state) {
                return;
            }
            let Some((action, next)) = self.calm(state) else {
                return;
            };
            *last = Some(action);
            path.push((next, None));
        }
    }

    /// The next step in calm weather; `None` when there is none.
    fn calm(&self, state: &State) -> Option<(Action, State)> {
        let workers = state
            .workers
            .iter()
            .enumerate()
            .map(|(index, worker)| match worker {
                Worker::Idle | Worker::Absent => None,
                Worker::Down => Some(Action::Restart(index)),
                Worker::Claimed(_) => Some(Action::Send(index)),
                Worker::Waiting(_, sent) => Some(match sent.at_vercel {
                    AtVercel::Pending(_) => Action::Apply(index),
                    AtVercel::Applied => Action::Answer(index, Reply::Accepted),
                    AtVercel::Gone => Action::Answer(index, Reply::TimedOut),
                }),
                Worker::Answered(..) => Some(Action::Record(index)),
            });
        let unread = !self.book.is_polled(state.record, state.source);
        let polled =
            (unread || self.book.is_to_be_read_again(state.record)).then_some(Action::Poll);
        workers
            .flatten()
            .chain(polled)
            .chain([Action::Claim(0), Action::Tick])
            .find_map(|action| Some((action, self.next_state(state, action)?)))
    }

    fn claim(&self, state: &mut State, index: usize) {
        let done = self.book.step(state.record, Step::Claim);
        state.record = done.record;
        let Some(claimed) = done.claimed else {
            return;
        };
        if !self.has(Bug::LeaseTokenReused) {
            // The record's token is a new one.
            forget_tokens(state);
        }
        state.workers[index] = Worker::Claimed(Claim {
            patch: claimed.patch,
            desired: claimed.desired,
            token_matches: true,
            age: 0,
        });
    }

    /// What dispatch does between claim and request: looks at its lease, and at the row when secrets are to be sent.
    fn send(&self, state: &mut State, index: usize, claim: Claim) {
        let Terms {
            lease,
            timeout,
            late_apply,
        } = self.setting.terms;
        let runs_short = claim.age + timeout >= lease && !self.has(Bug::LeaseMayRunOut);
        state.workers[index] = if !self.book.has_secrets_of(state.source, claim.patch) {
            Worker::Answered(claim, Answer::Other(Said::SourceMoved))
        } else if runs_short {
            Worker::Answered(claim, Answer::Other(Said::Released))
        } else {
            let at_vercel = AtVercel::Pending(timeout + late_apply);
            Worker::Waiting(
                claim,
                Sent {
                    after: claim.age,
                    at_vercel,
                },
            )
        };
    }

    fn answer(
        &self,
        state: &mut State,
        index: usize,
        claim: Claim,
        sent: Sent,
        reply: Reply,
    ) -> Option<()> {
        if !replies(sent, state.budget).any(|possible| possible == reply) {
            return None;
        }
        match reply {
            Reply::Accepted | Reply::TimedOut => {}
            Reply::Lost => state.budget.lost -= 1,
            Reply::Failed | Reply::RateLimited | Reply::Rejected | Reply::Conflict => {
                state.budget.refusals -= 1
            }
        }
        if let (Reply::Lost, AtVercel::Pending(left)) = (reply, sent.at_vercel) {
            let left = left.min(self.setting.terms.late_apply);
            state.late.push(Late {
                patch: claim.patch,
                left,
            });
        }
        let said = match reply {
            Reply::Accepted => {
                state.workers[index] = Worker::Answered(
                    claim,
                    Answer::Acknowledged {
                        sent_after: sent.after,
                    },
                );
                return Some(());
            }
            Reply::Lost | Reply::TimedOut => Said::Lost,
            Reply::Failed => Said::Failed,
            Reply::RateLimited => Said::RateLimited,
            Reply::Rejected => Said::Rejected,
            // Vercel and the source are asked at once; what they said may be old when it is recorded.
            Reply::Conflict if claim.desired == state.source => Said::Conflict {
                observed: state.held,
            },
            Reply::Conflict => Said::SourceMoved,
        };
        state.workers[index] = Worker::Answered(claim, Answer::Other(said));
        Some(())
    }

    /// What a store does with an outcome: nothing, unless the token is the record's.
    fn record(&self, state: &mut State, index: usize, claim: Claim, answer: Answer) {
        state.workers[index] = Worker::Idle;
        if !claim.token_matches && !self.has(Bug::LeaseTokenNotChecked) {
            return;
        }
        let said = match answer {
            Answer::Acknowledged { sent_after } => Said::Acknowledged {
                sent_ago: claim.age - sent_after,
            },
            Answer::Other(said) => said,
        };
        let after = self.book.step(state.record, Step::Advance(said)).record;
        state.intruded |= !claim.token_matches && after != state.record;
        state.record = after;
    }

    /// Brings states that cannot behave differently into one form.
    fn reduce(&self, state: &mut State) {
        let State { workers, late, .. } = state;
        if !self.setting.explicit {
            for worker in &mut *workers {
                let Some(claim) = worker.claim().filter(|claim| !claim.token_matches) else {
                    continue;
                };
                if let Worker::Waiting(
                    _,
                    Sent {
                        at_vercel: AtVercel::Pending(left),
                        ..
                    },
                ) = *worker
                {
                    late.push(Late {
                        patch: claim.patch,
                        left,
                    });
                }
                *worker = Worker::Idle;
            }
            if workers[0] == Worker::Idle {
                workers.reverse();
            }
        }
        late.sort_unstable();
    }

    fn crash(&self, state: &mut State, index: usize) -> Option<()> {
        let worker = state.workers[index];
        worker.claim()?;
        state.budget.crashes = state.budget.crashes.checked_sub(1)?;
        if let Worker::Waiting(
            Claim { patch, .. },
            Sent {
                at_vercel: AtVercel::Pending(left),
                ..
            },
        ) = worker
        {
            let left = left.min(self.setting.terms.late_apply);
            state.late.push(Late { patch, left });
        }
        state.workers[index] = if self.setting.alone {
            Worker::Down
        } else {
            Worker::Idle
        };
        Some(())
    }

    fn tick(&self, state: &mut State) {
        let oldest = self.setting.terms.oldest();
        state.record = self.book.step(state.record, Step::Tick).record;
        for worker in &mut state.workers {
            match worker {
                Worker::Idle | Worker::Absent | Worker::Down => {}
                Worker::Claimed(claim) | Worker::Answered(claim, _) => {
                    claim.age = oldest.min(claim.age + 1)
                }
                Worker::Waiting(claim, sent) => {
                    claim.age = oldest.min(claim.age + 1);
                    if let AtVercel::Pending(left) = sent.at_vercel {
                        sent.at_vercel = left
                            .checked_sub(1)
                            .map_or(AtVercel::Gone, AtVercel::Pending);
                    }
                }
            }
        }
        state
            .late
            .retain_mut(|late| match late.left.checked_sub(1) {
                Some(left) => {
                    late.left = left;
                    true
                }
                None => false,
            });
    }

    fn act(&self, state: &mut State, action: Action) -> Option<()> {
        match action {
            Action::Change(value) => {
                state.budget.changes = state.budget.changes.checked_sub(1)?;
                state.source = value;
                state.used = state.used.max(value + 1);
            }
            Action::Poll => {
                state.record = self
                    .book
                    .step(state.record, Step::Decide(state.source))
                    .record
            }
            Action::Tick => self.tick(state),
            Action::Expire => state.record = self.book.step(state.record, Step::Expire).record,
            Action::Claim(index) => self.claim(state, index),
            Action::Send(index) => match state.workers[index] {
                Worker::Claimed(claim) => self.send(state, index, claim),
                _ => return None,
            },
            Action::Apply(index) => match &mut state.workers[index] {
                Worker::Waiting(
                    claim,
                    sent @ Sent {
                        at_vercel: AtVercel::Pending(_),
                        ..
                    },
                ) => {
                    sent.at_vercel = AtVercel::Applied;
                    state.held = self.book.apply(state.held, claim.patch);
                }
                _ => return None,
            },
            Action::Answer(index, reply) => match state.workers[index] {
                Worker::Waiting(claim, sent) => self.answer(state, index, claim, sent, reply)?,
                _ => return None,
            },
            Action::Record(index) => match state.workers[index] {
                Worker::Answered(claim, answer) => self.record(state, index, claim, answer),
                _ => return None,
            },
            Action::Crash(index) => self.crash(state, index)?,
            Action::Restart(index) => {
                state.workers[index] = Worker::Idle;
                state.record = self.book.step(state.record, Step::Abandon).record;
            }
            Action::ApplyLate(index) => {
                let late = state.late.remove(index);
                state.held = self.book.apply(state.held, late.patch);
            }
        }
        Some(())
    }
}

/// What may come back, by what has become of the request and what may still go wrong.
fn replies(sent: Sent, budget: Budget) -> impl Iterator<Item = Reply> {
    let applied = sent.at_vercel == AtVercel::Applied;
    let gone = sent.at_vercel == AtVercel::Gone;
    let refused = budget.refusals > 0;
    [
        (Reply::Accepted, applied),
        (Reply::TimedOut, gone),
        (Reply::Lost, !gone && budget.lost > 0),
        (Reply::Failed, refused),
        (Reply::RateLimited, refused && !applied),
        (Reply::Rejected, refused && !applied),
        (Reply::Conflict, refused && !applied),
    ]
    .into_iter()
    .filter_map(|(reply, possible)| possible.then_some(reply))
}

/// After the record's lease ended or passed to another, no token matches any more.
fn forget_tokens(state: &mut State) {
    for worker in &mut state.workers {
        if let Worker::Claimed(claim) | Worker::Waiting(claim, _) | Worker::Answered(claim, _) =
            worker
        {
            claim.token_matches = false;
        }
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let record = if self.setting.first_sight {
            self.book.unseen()
        } else {
            self.book.settled()
        };
        let second = if self.setting.alone {
            Worker::Absent
        } else {
            Worker::Idle
        };
        vec![State {
            record,
            source: 0,
            used: 1,
            held: self.book.holding(0),
            workers: [Worker::Idle, second],
            late: Vec::new(),
            budget: self.setting.budget,
            intruded: false,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.budget.changes > 0 {
            let all = u8::try_from(self.setting.values.len()).expect("a handful of values");
            let known = if self.setting.interchangeable {
                all.min(state.used + 1)
            } else {
                all
            };
            actions.extend(
                (0..known)
                    .filter(|value| *value != state.source)
                    .map(Action::Change),
            );
        }
        if !self.book.is_polled(state.record, state.source)
            || self.book.is_to_be_read_again(state.record)
        {
            actions.push(Action::Poll);
        }
        let may_crash = state.budget.crashes > 0;
        for (index, worker) in state.workers.iter().enumerate() {
            if may_crash && worker.claim().is_some() {
                actions.push(Action::Crash(index));
            }
            match worker {
                Worker::Idle => actions.push(Action::Claim(index)),
                Worker::Absent => {}
                Worker::Down => actions.push(Action::Restart(index)),
                Worker::Claimed(_) => actions.push(Action::Send(index)),
                Worker::Waiting(_, sent) => {
                    if matches!(sent.at_vercel, AtVercel::Pending(_)) {
                        actions.push(Action::Apply(index));
                    }
                    actions.extend(
                        replies(*sent, state.budget).map(|reply| Action::Answer(index, reply)),
                    );
                }
                Worker::Answered(..) => actions.push(Action::Record(index)),
            }
        }
        actions.extend((0..state.late.len()).map(Action::ApplyLate));
        actions.extend([Action::Expire, Action::Tick]);
    }

    fn next_state(&self, last_state: &State, action: Action) -> Option<State> {
        let mut state = last_state.clone();
        self.act(&mut state, action)?;
        if !self.book.is_leased(state.record) && !self.has(Bug::LeaseTokenReused) {
            forget_tokens(&mut state);
        }
        self.reduce(&mut state);
        (state != *last_state).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        laws::properties()
    }
}
