//! The laws of the design, checked against what is true in the simulated worlds.
//!
//! Nothing here asks the daemon what it thinks it did: requests, rows and times are the worlds' own.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use crate::model::{
    Field, FingerprintKey, LeaseToken, Patch, Record, ResourceKey, SecretSet, SecretsPatch,
    Timestamp,
};

use super::provider::{Item, Version, secrets_of};

/// A law of the design, section 6, or limits that the configuration promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Law {
    Convergence,
    DoubtIsRemembered,
    LateApplicationHeals,
    Minimal,
    OneAtATime,
    NothingLost,
    NothingSecretAstray,
    FailureStays,
    RetryWhatMaySucceed,
    DeletionNeverInferred,
    OwnLimits,
}

impl fmt::Display for Law {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Convergence => "law 1, convergence",
            Self::DoubtIsRemembered => "law 2, doubt is remembered before it is created",
            Self::LateApplicationHeals => "law 2, a late application heals",
            Self::Minimal => "law 3, minimal",
            Self::OneAtATime => "law 4, one at a time, newest wins",
            Self::NothingLost => "law 5, nothing is lost",
            Self::NothingSecretAstray => "law 6, nothing secret at rest or astray",
            Self::FailureStays => "law 7, a failure stays where it happened",
            Self::RetryWhatMaySucceed => "law 8, retry what may succeed",
            Self::DeletionNeverInferred => "law 9, deletion is never inferred",
            Self::OwnLimits => "the limits that the client sets itself",
        })
    }
}

/// A law that was broken, and how.
#[derive(Debug, Clone)]
pub(super) struct Violation {
    pub(super) law: Law,
    pub(super) what: String,
    pub(super) at: Timestamp,
}

/// What the checks remember.
#[derive(Default)]
pub(super) struct Laws {
    pub(super) violation: Option<Violation>,
    /// Every token that was ever given out.
    pub(super) tokens: BTreeSet<i64>,
    /// Who may record an outcome, by resource.
    pub(super) holders: BTreeMap<ResourceKey, LeaseToken>,
    /// The longest that a process was made to stand still.
    pub(super) stood_still_max: Duration,
    /// The earliest version that the last acknowledgement of an item can have meant.
    acknowledged: BTreeMap<(ResourceKey, Item), usize>,
    /// The same of what Vercel applied.
    applied: BTreeMap<(ResourceKey, Item), usize>,
}

/// The histories of all items.
pub(super) type Histories = BTreeMap<(ResourceKey, Item), Vec<Version>>;

impl Laws {
    pub(super) fn broken(&mut self, law: Law, at: Timestamp, what: String) {
        if self.violation.is_none() {
            self.violation = Some(Violation { law, what, at });
        }
    }

    /// Checks a request against the state that was committed when it left.
    pub(super) fn leaving(
        &mut self,
        record: &Record,
        patch: &Patch,
        secrets: Option<&SecretSet>,
        key: &FingerprintKey,
        now: Timestamp,
    ) {
        if patch.is_empty() {
            let what = format!("an empty patch left for {}", record.key);
            self.broken(Law::Minimal, now, what);
        }
        if let Some(problem) = unmarked(record, patch) {
            let what = format!("a request for {} left while {problem}", record.key);
            self.broken(Law::DoubtIsRemembered, now, what);
        }
        if let Some(problem) = superfluous(record, patch) {
            let what = format!("a request for {} carries {problem}", record.key);
            self.broken(Law::Minimal, now, what);
        }
        if let Some(problem) = wrong_values(patch, secrets, key) {
            let what = format!("a request for {} carries {problem}", record.key);
            self.broken(Law::NothingSecretAstray, now, what);
        }
    }

    /// Checks that a request sends nothing older than what was acknowledged.
    pub(super) fn no_regress(
        &mut self,
        key: &ResourceKey,
        patch: &Patch,
        histories: &Histories,
        now: Timestamp,
    ) {
        for (item, version) in written(patch, key, histories) {
            let id = (key.clone(), item);
            let floor = self.acknowledged.get(&id).copied().unwrap_or(0);
            let newest = histories
                .get(&id)
                .and_then(|versions| versions.iter().rposition(|v| *v == version));
            let problem = match newest {
                Some(newest) if newest < floor => "older than one that was acknowledged",
                None => "which the source never had",
                Some(_) => continue,
            };
            let what = format!("a request for {} sends {:?}, {problem}", id.0, id.1);
            self.broken(Law::OneAtATime, now, what);
        }
    }

    /// An acknowledgement was recorded: from now on nothing older may be sent.
    pub(super) fn acknowledged(&mut self, key: &ResourceKey, patch: &Patch, histories: &Histories) {
        for (item, version) in written(patch, key, histories) {
            raise(
                &mut self.acknowledged,
                histories,
                (key.clone(), item),
                &version,
            );
        }
    }

    /// A request took effect in its time: what Vercel holds must not have gone back, but for the status of a resource that had no usable
    /// row when the request left: what was to be uninstalled may be given back the status that it had.
    pub(super) fn applied(
        &mut self,
        key: &ResourceKey,
        patch: &Patch,
        histories: &Histories,
        Effect { late, had_no_row }: Effect,
        now: Timestamp,
    ) {
        if late {
            // It may take back anything; what counts is that it heals, and how soon (`prompt`).
            return;
        }
        for (item, version) in written(patch, key, histories) {
            let id = (key.clone(), item);
            let floor = self.applied.get(&id).copied().unwrap_or(0);
            let versions = histories.get(&id).map_or(&[][..], Vec::as_slice);
            let newest = versions.iter().rposition(|v| *v == version);
            let is_given_back = had_no_row
                && id.1 == Item::Field(Field::Status)
                && versions.get(floor) == Some(&Version::uninstalled());
            match newest {
                Some(newest) if newest < floor && !is_given_back => {
                    let what = format!("{:?} of {key} went back at Vercel", id.1);
                    self.broken(Law::OneAtATime, now, what);
                }
                _ => raise(&mut self.applied, histories, id, &version),
            }
        }
    }
}

/// How a request took effect.
#[derive(Debug, Clone, Copy)]
pub(super) struct Effect {
    /// After it was answered or given up.
    pub(super) late: bool,
    /// The resource had no usable row when it left.
    pub(super) had_no_row: bool,
}

/// Raises a floor to the earliest version from there on that equals `version`.
fn raise(
    floors: &mut BTreeMap<(ResourceKey, Item), usize>,
    histories: &Histories,
    id: (ResourceKey, Item),
    version: &Version,
) {
    let floor = floors.get(&id).copied().unwrap_or(0);
    let further = histories
        .get(&id)
        .and_then(|versions| versions.iter().skip(floor).position(|v| v == version));
    if let Some(further) = further {
        floors.insert(id, floor + further);
    }
}

/// What a patch writes, item by item; a complete array also writes the absence of what it leaves out.
fn written(patch: &Patch, key: &ResourceKey, histories: &Histories) -> Vec<(Item, Version)> {
    let values = patch.values.iter();
    let mut written: Vec<(Item, Version)> = values
        .map(|(field, value)| (Item::Field(*field), Version::Value(value.clone())))
        .collect();
    let Some(secrets) = &patch.secrets else {
        return written;
    };
    let named = secrets.named();
    for (name, print) in named {
        let item = Item::Secret(name.as_str().to_owned());
        written.push((item, Version::Secret(*print)));
    }
    if matches!(secrets, SecretsPatch::Complete(_)) {
        for name in secrets_of(histories, key) {
            if !named.keys().any(|n| n.as_str() == name) {
                written.push((Item::Secret(name.clone()), Version::Absent));
            }
        }
    }
    written
}

/// Which item of a patch the committed state does not hold to be in doubt.
fn unmarked(record: &Record, patch: &Patch) -> Option<String> {
    let announced = record
        .entry
        .as_ref()
        .and_then(|entry| entry.in_flight.as_ref());
    if announced.is_none_or(|in_flight| in_flight.patch != *patch) {
        return Some("the state announces another request, or none".to_owned());
    }
    let field = patch
        .values
        .keys()
        .find(|field| !record.doubt.fields.contains_key(field));
    let name = patch
        .secret_names()
        .find(|name| !record.doubt.secrets.contains_key(name));
    match (field, name) {
        (Some(field), _) => Some(format!("{field} is not in doubt")),
        (_, Some(name)) => Some(format!("the secret {name} is not in doubt")),
        _ => None,
    }
}

/// What a patch carries that neither differed nor was in doubt.
fn superfluous(record: &Record, patch: &Patch) -> Option<String> {
    let in_flight = record.entry.as_ref()?.in_flight.as_ref()?;
    let (before, acknowledged) = (&in_flight.doubt_before, &record.acknowledged);
    let field = patch.values.iter().find(|(field, value)| {
        acknowledged.values.get(field) == Some(value) && !before.fields.contains_key(field)
    });
    if let Some((field, _)) = field {
        return Some(format!("{field}, which was known to be there"));
    }
    let held = acknowledged.secrets.as_ref();
    match &patch.secrets {
        None => None,
        Some(SecretsPatch::Partial(named)) => {
            let held = held?;
            let name = named.iter().find(|(name, print)| {
                held.get(name) == Some(print) && !before.secrets.contains_key(name)
            });
            name.map(|(name, _)| format!("the secret {name}, which was known to be there"))
        }
        Some(SecretsPatch::Complete(named)) => {
            let held = held?;
            let removed = before.fields.contains_key(&Field::Secrets)
                || held
                    .keys()
                    .chain(before.secrets.keys())
                    .any(|name| !named.contains_key(name));
            (!removed).then(|| "all secrets, although none was removed".to_owned())
        }
    }
}

/// Which secret of a patch comes without its value, or with another.
fn wrong_values(
    patch: &Patch,
    secrets: Option<&SecretSet>,
    key: &FingerprintKey,
) -> Option<String> {
    let named = patch.secrets.as_ref()?.named();
    let Some(secrets) = secrets else {
        return Some("secrets without values".to_owned());
    };
    let prints = secrets.fingerprints(key);
    let wrong = named
        .iter()
        .find(|(name, print)| prints.get(name) != Some(print));
    wrong.map(|(name, _)| format!("another value of the secret {name} than was claimed"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Json, SharedMap};

    const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_000);

    fn version(text: &str) -> Version {
        Version::Value(Json::from_text(text))
    }

    /// Whether it breaks a law that the newer version took effect, and then the older one in this way.
    fn goes_back(field: Field, versions: [&str; 2], effect: Effect) -> bool {
        let key = ResourceKey::new("icfg_1", "res_1").expect("ids");
        let item = (key.clone(), Item::Field(field));
        let histories: Histories = [(item, versions.map(version).to_vec())].into();
        let writes = |text: &str| Patch {
            values: SharedMap::from([(field, Json::from_text(text))]),
            secrets: None,
        };
        let mut laws = Laws::default();
        let in_time = Effect {
            late: false,
            had_no_row: false,
        };
        let [older, newer] = versions;
        laws.applied(&key, &writes(newer), &histories, in_time, NOW);
        assert!(laws.violation.is_none(), "{versions:?}");
        laws.applied(&key, &writes(older), &histories, effect, NOW);
        laws.violation.is_some()
    }

    #[test]
    fn nothing_goes_back_but_an_uninstallation_of_what_has_no_usable_row() {
        let cases = [
            (Field::Status, ["ready", "uninstalled"], true, false),
            (Field::Status, ["ready", "uninstalled"], false, true),
            (Field::Status, ["ready", "suspended"], true, true),
            (Field::Name, ["ready", "uninstalled"], true, true),
            (Field::Name, ["a", "b"], false, true),
        ];
        for (field, versions, had_no_row, in_time) in cases {
            // What takes effect late may take back anything.
            for (late, expected) in [(false, in_time), (true, false)] {
                let is_broken = goes_back(field, versions, Effect { late, had_no_row });
                assert_eq!(
                    is_broken, expected,
                    "{field:?} {versions:?} {had_no_row} {late}"
                );
            }
        }
    }
}
