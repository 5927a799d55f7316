//! A path through the model, told in words.

use std::fmt::Write as _;

use crate::model::{Patch, SecretsPatch, Snapshot};

use super::model::Protocol;
use super::world::{Action, Reply, State, Worker};

/// The path's steps, a line each.
pub(super) fn tell(model: &Protocol, path: Vec<(State, Option<Action>)>) -> String {
    let mut tale = String::new();
    for (number, (state, action)) in path.iter().enumerate() {
        let Some(action) = action else { continue };
        let after = path.get(number + 1).map_or(state, |(after, _)| after);
        let _ = writeln!(
            tale,
            "  {:>2}. {}",
            number + 1,
            sentence(model, state, *action, after)
        );
    }
    tale
}

fn sentence(model: &Protocol, before: &State, action: Action, after: &State) -> String {
    let patch_of = |index: usize| {
        let claim = before.workers[index].claim();
        claim.map_or_else(String::new, |claim| patch(&model.book.patch(claim.patch)))
    };
    match action {
        Action::Change(value) => format!(
            "The source's row becomes {}.",
            snapshot(&model.setting.values[usize::from(value)])
        ),
        Action::Poll => "The row is read and decided on.".to_owned(),
        Action::Tick => "A tick passes.".to_owned(),
        Action::Expire => "The expired lease is ended.".to_owned(),
        Action::Claim(_) => {
            let claimed =
                after
                    .workers
                    .iter()
                    .enumerate()
                    .find_map(|(index, worker)| match worker {
                        Worker::Claimed(claim) if claim.age == 0 && claim.token_matches => {
                            Some((index, claim.patch))
                        }
                        _ => None,
                    });
            claimed.map_or_else(
                || {
                    "Nothing is claimed; the lease is ended, or the entry is put off or closed."
                        .to_owned()
                },
                |(index, claimed)| {
                    format!(
                        "Worker {index} claims, to send {}.",
                        patch(&model.book.patch(claimed))
                    )
                },
            )
        }
        Action::Send(index) => match after.workers[index] {
            Worker::Waiting(..) => format!("Worker {index} sends {}.", patch_of(index)),
            _ => format!(
                "Worker {index} sends nothing: the lease runs short or the row has moved on."
            ),
        },
        Action::Apply(index) => format!(
            "Vercel applies worker {index}'s request: {}.",
            patch_of(index)
        ),
        Action::Answer(index, reply) => {
            format!("Worker {index}'s request is answered: {}.", words(reply))
        }
        Action::Record(index) => format!("Worker {index} records the outcome."),
        Action::Crash(index) => format!("Worker {index}'s process is killed."),
        Action::Restart(index) => {
            format!("Worker {index}'s process starts again and ends every lease.")
        }
        Action::ApplyLate(index) => {
            format!(
                "Vercel applies a request late: {}.",
                patch(&model.book.patch(before.late[index].patch))
            )
        }
    }
}

const fn words(reply: Reply) -> &'static str {
    match reply {
        Reply::Accepted => "accepted",
        Reply::Lost => "the answer is lost",
        Reply::TimedOut => "it has timed out",
        Reply::Failed => "500",
        Reply::RateLimited => "429",
        Reply::Rejected => "400",
        Reply::Conflict => "409, then GET shows what Vercel holds",
    }
}

fn snapshot(snapshot: &Snapshot) -> String {
    let fields = snapshot
        .values
        .iter()
        .map(|(field, value)| format!("{field} {value}"));
    let secrets = snapshot
        .secrets
        .iter()
        .map(|named| format!("secrets {{{}}}", names(named.iter())));
    fields.chain(secrets).collect::<Vec<_>>().join(", ")
}

fn patch(patch: &Patch) -> String {
    let fields = patch
        .values
        .iter()
        .map(|(field, value)| format!("{field} {value}"));
    let secrets = patch.secrets.iter().map(|secrets| {
        let kind = match secrets {
            SecretsPatch::Complete(_) => "all secrets",
            SecretsPatch::Partial(_) => "some secrets",
        };
        format!("{kind} {{{}}}", names(secrets.named().iter()))
    });
    fields.chain(secrets).collect::<Vec<_>>().join(", ")
}

fn names<'a>(
    named: impl Iterator<Item = (&'a crate::model::SecretName, &'a crate::model::Fingerprint)>,
) -> String {
    named
        .map(|(name, fingerprint)| format!("{name}={}", fingerprint.short()))
        .collect::<Vec<_>>()
        .join(" ")
}
