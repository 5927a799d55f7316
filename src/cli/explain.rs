//! `explain`: one resource's story. Facts first, then events from the oldest to the newest, then why and what next.

pub(crate) mod events;
mod json;
mod render;
mod verdict;

use clap::Args;

use super::beside;
use super::context::Session;
use super::exit::Exit;
use super::fault::{Failure, Fault};
use crate::app;
use crate::config::Config;
use crate::model::{FingerprintKey, ResourceKey, Snapshot, Timestamp, Unusable};
use crate::source::SourceError;
use crate::store::console::Story;
use verdict::Verdict;

/// What was given is no id.
const NO_ID: &str = "R043";
/// Closed entries, attempts and acts to show unless told otherwise.
const LIMIT_DEFAULT: u32 = 50;

/// What happened to a resource, field by field and event by event?
///
/// Reads the resource's row from the source now and lays it beside what Vercel last acknowledged, what is in doubt since a request
/// without an answer, and what is to be sent. Then every change, attempt and manual act, the oldest first, with the X-Vercel-Id
/// that Vercel's support asks for. Of a secret it shows the name and a short keyed fingerprint.
///
/// It sends nothing, changes nothing, and may run beside the daemon, also while the source cannot be reached. It exits with 1 if
/// neither the source nor the state knows the resource.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Example:\n  reconciled explain icfg_7Hd res_0412\n\nNext: the command in its last line"
)]
pub(crate) struct Arguments {
    /// The installation.
    #[arg(value_name = "INSTALLATION")]
    installation: String,
    /// The provider's own id of the resource.
    #[arg(value_name = "RESOURCE")]
    resource: String,
    /// The newest closed entries, attempts and acts to show, so many of each.
    #[arg(long, value_name = "N", default_value_t = LIMIT_DEFAULT, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    /// The story as JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn execute(arguments: Arguments, session: &mut Session) -> Result<Exit, Fault> {
    let Arguments {
        installation,
        resource,
        limit,
        json,
    } = arguments;
    let key = ResourceKey::new(&installation, &resource).map_err(|error| {
        let help = crate::model::InvalidId::accepted();
        Failure::new(NO_ID, format!("one of the two ids {error}"))
            .help(help)
            .exit(Exit::Usage)
    })?;
    let (config, console) = beside::open(session).await?;
    let look = session.look();
    let story = console.story(&key, limit).await?;
    let fingerprints = console.fingerprint_key().await?;
    let told = Told {
        source: ask(&config, &key, &fingerprints).await?,
        daemon_runs: console.daemon().await?.running,
        is_cut: is_cut(&story, limit),
        story,
        now: look.now,
    };
    if json {
        session.out.json(json::render(&told, look));
    } else {
        session.out.print(&render::render(&told, look));
    }
    Ok(if Verdict::of(&told) == Verdict::Unknown {
        Exit::Failed
    } else {
        Exit::Done
    })
}

/// Everything that the answer is made of.
#[derive(Debug, Clone)]
struct Told {
    story: Story,
    source: SourceRow,
    daemon_runs: bool,
    /// There may be older events than these.
    is_cut: bool,
    now: Timestamp,
}

/// The resource's row in the source, as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
enum SourceRow {
    /// What it desires.
    Usable(Snapshot),
    /// It cannot be used.
    Unusable(Unusable),
    /// There is none.
    Absent,
    /// The source could not be asked: why.
    Unreachable(String),
}

impl Told {
    /// What is desired, as far as it is known: by the row, or else by the open entry.
    fn desired(&self) -> Option<&Snapshot> {
        let entry = self.story.record.entry.as_ref().map(|entry| &entry.desired);
        match &self.source {
            SourceRow::Usable(desired) => Some(desired),
            SourceRow::Unusable(_) | SourceRow::Absent | SourceRow::Unreachable(_) => entry,
        }
    }
}

/// Reads the row; that the source cannot be reached is part of the answer, that it is misconfigured is not.
async fn ask(
    config: &Config,
    key: &ResourceKey,
    fingerprints: &FingerprintKey,
) -> Result<SourceRow, Fault> {
    let source = app::source(config)?;
    let rows = match source.fetch(std::slice::from_ref(key)).await {
        Ok(rows) => rows,
        Err(error @ SourceError::Shape { .. }) => return Err(error.into()),
        Err(error) => return Ok(SourceRow::Unreachable(error.to_string())),
    };
    // A database that compares without case may give another resource's row too.
    let mut rows = rows
        .into_iter()
        .filter(|row| row.key().is_ok_and(|found| found == *key));
    let Some(row) = rows.next() else {
        return Ok(SourceRow::Absent);
    };
    if rows.next().is_some() {
        return Ok(SourceRow::Unusable(Unusable::duplicate()));
    }
    Ok(match row.decode() {
        Ok(row) => SourceRow::Usable(row.desired(fingerprints, config.reconcile.ignore)),
        Err(unusable) => SourceRow::Unusable(unusable),
    })
}

fn is_cut(story: &Story, limit: u32) -> bool {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    [story.closed.len(), story.attempts.len(), story.acts.len()].contains(&limit)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::{Field, Fingerprint, Json, Record, SecretName};

    pub(super) const NOW: Timestamp = Timestamp::from_millis(1_777_903_331_000);

    pub(super) fn ago(seconds: u64) -> Timestamp {
        NOW.minus(Duration::from_secs(seconds))
    }

    pub(super) fn snapshot(status: &str, database_url: u8) -> Snapshot {
        let secret = |name: &str, byte| {
            (
                SecretName::new(name).expect("a name"),
                Fingerprint::from_bytes([byte; 16]),
            )
        };
        Snapshot {
            values: [(Field::Status, Json::from_text(status))].into(),
            secrets: Some(
                [
                    secret("DATABASE_URL", database_url),
                    secret("REDIS_URL", 0x11),
                ]
                .into(),
            ),
        }
    }

    #[test]
    fn the_code_is_explained() {
        assert!(include_str!("../../docs/errors.md").contains(&format!("### {NO_ID} ")));
    }

    /// Equal on both sides, acknowledged a while ago.
    pub(super) fn in_sync() -> Told {
        let key = ResourceKey::new("icfg_7Hd", "res_0412").expect("ids");
        let record = Record {
            acknowledged: snapshot("ready", 0x9f),
            acknowledged_at: Some(ago(171)),
            row_hash: Some(Fingerprint::from_bytes([1; 16])),
            ..Record::new(key)
        };
        Told {
            story: Story {
                record,
                quarantined: None,
                closed: Vec::new(),
                attempts: Vec::new(),
                acts: Vec::new(),
                pauses: Vec::new(),
                limited_until: None,
            },
            source: SourceRow::Usable(snapshot("ready", 0x9f)),
            daemon_runs: true,
            is_cut: false,
            now: NOW,
        }
    }
}
