//! What Vercel may hold besides what it acknowledged: the fields and single secrets of attempts without a known outcome.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::planted::{Bug, is_planted};

use super::{Field, Patch, SecretName, SecretsPatch, Snapshot, Timestamp};

/// Why an item is in doubt and until when a late application is possible.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Mark {
    /// A request whose answer was lost may still be applied until this instant: only a 2xx to a request that was sent
    /// after it settles the item. `None`: any 2xx settles it.
    #[serde(default, rename = "until", skip_serializing_if = "Option::is_none")]
    pub uncertain_until: Option<Timestamp>,
    /// A 2xx to a request sent before `uncertain_until` has confirmed the acknowledged value since: one more request, after
    /// that instant, is enough.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub confirmed: bool,
}

/// The items of one resource that are in doubt.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Doubt {
    /// Whole fields. For the secrets: a complete array, which when it is applied late also takes away what was added since; only
    /// another complete array settles it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub fields: BTreeMap<Field, Mark>,
    /// Single secrets, by name; the name may be one that the desired set no longer has.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<SecretName, Mark>,
}

impl Doubt {
    /// Whether nothing is in doubt.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.fields.is_empty() && self.secrets.is_empty()
    }

    /// Records, before a request leaves, that everything in its patch will be in doubt.
    ///
    /// A complete array of secrets touches every name that Vercel may hold, so all of those are marked.
    pub fn mark(&mut self, patch: &Patch, acknowledged: &Snapshot) {
        for field in patch.values.keys() {
            self.fields.entry(*field).or_default().confirmed = false;
        }
        if let Some(secrets) = &patch.secrets {
            for name in secrets.named().keys() {
                self.secrets.entry(name.clone()).or_default().confirmed = false;
            }
            if matches!(secrets, SecretsPatch::Complete(_)) {
                self.fields.entry(Field::Secrets).or_default().confirmed = false;
                for name in acknowledged.secrets.iter().flatten().map(|(name, _)| name) {
                    self.secrets.entry(name.clone()).or_default();
                }
                self.secrets
                    .values_mut()
                    .for_each(|mark| mark.confirmed = false);
            }
        }
    }

    /// Records that the answer to a request was lost: what was in its patch may still be applied until `until`.
    pub fn extend(&mut self, patch: &Patch, until: Timestamp) {
        let until = match is_planted(Bug::LateForTooLong) {
            true => until.plus(std::time::Duration::from_secs(600)),
            false => until,
        };
        self.touched(patch).for_each(|mark| {
            if is_planted(Bug::ConfirmationOutlivesLoss) && mark.uncertain_until.is_some() {
                mark.confirmed = true;
                return;
            }
            mark.uncertain_until = mark.uncertain_until.max(Some(until));
            mark.confirmed = false;
        });
    }

    /// Records a 2xx to a request that was sent at `sent_at`: settles what no late application can touch any more.
    pub fn settle(&mut self, patch: &Patch, sent_at: Timestamp) {
        self.touched(patch).for_each(|mark| mark.confirmed = true);
        let settled = |mark: &Mark| {
            mark.confirmed && mark.uncertain_until.is_none_or(|until| sent_at > until)
        };
        self.fields
            .retain(|field, mark| !(is_written_whole(patch, *field) && settled(mark)));
        match &patch.secrets {
            Some(SecretsPatch::Complete(_)) => self.secrets.retain(|_, mark| !settled(mark)),
            Some(SecretsPatch::Partial(named)) => {
                self.secrets
                    .retain(|name, mark| !(named.contains_key(name) && settled(mark)));
            }
            None => {}
        }
    }

    /// Brings marks back that a clock set far ahead pushed beyond what can be meant: those after `believed` end at `latest`.
    ///
    /// Marks a little ahead are believed: what is claimed now may have been asked for before an answer was lost that has been recorded
    /// since.
    pub fn clamp(&mut self, believed: Timestamp, latest: Timestamp) {
        self.fields
            .values_mut()
            .chain(self.secrets.values_mut())
            .filter_map(|mark| mark.uncertain_until.as_mut())
            .filter(|until| **until > believed)
            .for_each(|until| *until = latest);
    }

    /// The marks of what a request with this patch writes at Vercel.
    fn touched<'a>(&'a mut self, patch: &'a Patch) -> impl Iterator<Item = &'a mut Mark> {
        let fields = self
            .fields
            .iter_mut()
            .filter(|(field, _)| is_written_whole(patch, **field))
            .map(|(_, mark)| mark);
        let secrets = self
            .secrets
            .iter_mut()
            .filter(|(name, _)| match &patch.secrets {
                Some(SecretsPatch::Complete(_)) => true,
                Some(SecretsPatch::Partial(named)) => named.contains_key(*name),
                None => false,
            });
        fields.chain(secrets.map(|(_, mark)| mark))
    }
}

/// Whether the patch replaces the whole field at Vercel.
fn is_written_whole(patch: &Patch, field: Field) -> bool {
    match field {
        Field::Secrets => matches!(patch.secrets, Some(SecretsPatch::Complete(_))),
        other => patch.values.contains_key(&other),
    }
}
