//! The proof at the end: both sides compared field by field, and a search for every secret where none may be.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::path::Path;

use secrecy::ExposeSecret as _;
use serde_json::Value;

use super::provider::{Database, Fleet};
use crate::model::Json;
use crate::simulator::{Entry, Field, Outcome, Remote, RemoteResource};

/// What differs between the provider's tables and the simulated Vercel; never with a secret's value.
pub(super) fn differences(fleet: &Fleet, remote: &Remote) -> Vec<String> {
    let mut held: HashMap<(String, String), RemoteResource> = remote
        .resources()
        .into_iter()
        .map(|(key, resource)| ((key.installation_id, key.resource_id), resource))
        .collect();
    let mut found = Vec::new();
    for (key, database) in fleet {
        match held.remove(key) {
            None => found.push(format!("{}/{} is not at Vercel", key.0, key.1)),
            Some(resource) => {
                let fields = fields_that_differ(database, &resource);
                found.extend(
                    fields
                        .into_iter()
                        .map(|field| format!("{}/{} differs in {field}", key.0, key.1)),
                );
            }
        }
    }
    found.extend(
        held.into_keys()
            .map(|key| format!("{}/{} is only at Vercel", key.0, key.1)),
    );
    found
}

fn fields_that_differ(database: &Database, resource: &RemoteResource) -> Vec<String> {
    let Database {
        name,
        state,
        plan,
        metadata,
        notification,
        secrets,
    } = database;
    let expected = [
        (Field::Name, Some(Value::from(name.as_str()))),
        (Field::Status, Some(Value::from(state.as_str()))),
        (Field::BillingPlan, Some(plan.clone())),
        (Field::Metadata, Some(metadata.clone())),
        (Field::Notification, notification.clone()),
    ];
    let same =
        |a: Option<&Value>, b: Option<&Value>| a.map(Json::from_value) == b.map(Json::from_value);
    let mut differ: Vec<String> = expected
        .iter()
        .filter(|(field, value)| !same(value.as_ref(), resource.field(*field)))
        .map(|(field, _)| field.as_str().to_owned())
        .collect();
    let names: BTreeSet<&String> = secrets.keys().chain(resource.secrets.keys()).collect();
    let differing = names.into_iter().filter(|name| {
        let held = resource
            .secrets
            .get(*name)
            .map(|secret| secret.value.expose_secret());
        held != secrets.get(*name).map(String::as_str)
    });
    differ.extend(differing.map(|name| format!("secrets.{name}")));
    differ
}

/// Looks for texts in files.
pub(super) struct Search {
    needles: Vec<Vec<u8>>,
    by_beginning: HashMap<[u8; 4], Vec<usize>>,
    found: HashSet<usize>,
    /// Files that were read.
    pub(super) files: u64,
    /// Bytes that were read.
    pub(super) bytes: u64,
}

impl Search {
    /// A search for these texts, each of at least four bytes.
    pub(super) fn new(needles: &[String]) -> Self {
        let mut by_beginning: HashMap<[u8; 4], Vec<usize>> = HashMap::new();
        for (index, needle) in needles.iter().enumerate() {
            let beginning = needle
                .as_bytes()
                .first_chunk()
                .copied()
                .expect("needles have four bytes");
            by_beginning.entry(beginning).or_default().push(index);
        }
        let needles = needles
            .iter()
            .map(|needle| needle.clone().into_bytes())
            .collect();
        Self {
            needles,
            by_beginning,
            found: HashSet::new(),
            files: 0,
            bytes: 0,
        }
    }

    /// Reads every file in a directory.
    pub(super) fn directory(&mut self, path: &Path) -> io::Result<()> {
        for entry in std::fs::read_dir(path)? {
            let path = entry?.path();
            if path.is_dir() {
                self.directory(&path)?;
                continue;
            }
            match std::fs::read(path) {
                Ok(content) => {
                    self.files += 1;
                    self.text(&content);
                }
                // A running daemon renames its sign of life into place.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Reads some bytes.
    pub(super) fn text(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        for start in 0..bytes.len().saturating_sub(3) {
            let beginning: [u8; 4] = [
                bytes[start],
                bytes[start + 1],
                bytes[start + 2],
                bytes[start + 3],
            ];
            let Some(candidates) = self.by_beginning.get(&beginning) else {
                continue;
            };
            let hits = candidates
                .iter()
                .filter(|index| bytes[start..].starts_with(&self.needles[**index]));
            self.found.extend(hits);
        }
    }

    /// How many of the texts were found.
    pub(super) fn found(&self) -> usize {
        self.found.len()
    }
}

/// What the simulator's journal says of the run.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) unavailable: u64,
    pub(super) rate_limited: u64,
    pub(super) conflicts: u64,
    pub(super) rejected: u64,
    pub(super) unauthorized: u64,
    pub(super) lost: u64,
    /// Requests that write.
    pub(super) writes: u64,
    /// Those that repeat the body of the one before for the same resource.
    pub(super) repeated: u64,
}

impl Tally {
    /// Counts the journal.
    pub(super) fn of(journal: &[Entry]) -> Self {
        let mut tally = Self::default();
        let mut last: HashMap<_, &Value> = HashMap::new();
        for entry in journal {
            match entry.outcome {
                Outcome::Answered(503) => tally.unavailable += 1,
                Outcome::Answered(429) => tally.rate_limited += 1,
                Outcome::Answered(409) => tally.conflicts += 1,
                Outcome::Answered(400) => tally.rejected += 1,
                Outcome::Answered(401) => tally.unauthorized += 1,
                Outcome::Closed | Outcome::Abandoned => tally.lost += 1,
                Outcome::Answered(_) => {}
            }
            if let (true, Some(key), Some(body)) =
                (entry.method == "PATCH", entry.key(), &entry.body)
            {
                tally.writes += 1;
                tally.repeated += u64::from(last.insert(key, body) == Some(body));
            }
        }
        tally
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_search_finds_what_is_there_once_each() {
        let needles = ["hunter2-hunter2", "correct horse", "nowhere at all"].map(str::to_owned);
        let mut search = Search::new(&needles);
        search.text(b"\0\0hunter2-hunter2\xff..correct horse, hunter2-hunter2");
        assert_eq!(search.found(), 2);
        search.text(b"hunter2-hunter");
        assert_eq!(search.found(), 2);
    }

    #[test]
    fn every_file_below_a_directory_is_read_and_one_that_went_meanwhile_is_passed_over() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path();
        std::fs::create_dir(path.join("below")).expect("a directory");
        std::fs::write(path.join("one"), "..hunter2-hunter2").expect("writable");
        std::fs::write(path.join("below/two"), "correct horse").expect("writable");
        // It is named by the directory and cannot be opened, as one that was renamed after the directory was read.
        std::os::unix::fs::symlink(path.join("gone"), path.join("renamed")).expect("writable");
        let mut search = Search::new(&["hunter2-hunter2", "correct horse"].map(str::to_owned));
        search.directory(path).expect("what went is passed over");
        assert_eq!((search.files, search.bytes, search.found()), (2, 30, 2));
        let gone = search.directory(&path.join("gone"));
        assert_eq!(
            gone.map_err(|error| error.kind()),
            Err(io::ErrorKind::NotFound)
        );
    }

    #[test]
    fn a_request_is_repeated_if_its_body_is_that_of_the_last_for_its_resource() {
        let entry = |method: &str, resource: &str, body: Option<&str>, outcome| Entry {
            number: 1,
            at: std::time::SystemTime::UNIX_EPOCH,
            vercel_id: String::new(),
            method: method.to_owned(),
            path: String::new(),
            operation: None,
            installation_id: Some("icfg_1".to_owned()),
            resource_id: Some(resource.to_owned()),
            fields: Vec::new(),
            secret_names: Vec::new(),
            body: body.map(|name| serde_json::json!({"name": name})),
            fault: None,
            outcome,
            applied: false,
            late: false,
            duration: std::time::Duration::ZERO,
            violations: Vec::new(),
        };
        let journal = [
            entry("PATCH", "res_1", Some("a"), Outcome::Answered(503)),
            entry("PATCH", "res_2", Some("a"), Outcome::Answered(200)),
            entry("GET", "res_1", Some("b"), Outcome::Answered(401)),
            entry("PATCH", "res_1", Some("a"), Outcome::Closed),
            entry("PATCH", "res_1", Some("b"), Outcome::Answered(429)),
            entry("PATCH", "res_1", None, Outcome::Abandoned),
            entry("PATCH", "res_1", Some("a"), Outcome::Answered(409)),
            entry("PATCH", "res_1", Some("a"), Outcome::Answered(400)),
        ];
        let expected = Tally {
            unavailable: 1,
            rate_limited: 1,
            conflicts: 1,
            rejected: 1,
            unauthorized: 1,
            lost: 2,
            writes: 6,
            repeated: 2,
        };
        assert_eq!(Tally::of(&journal), expected);
    }
}
