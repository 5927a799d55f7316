//! `plan --held`: all of what the guard keeps back, as a diff. Asks the state alone, so that it also answers while the source is being
//! repaired.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::super::hold;
use super::super::out::{BAD, GOOD, Look, styled};
use super::super::standing::clock;
use super::super::text::{count, counted};
use super::change::changes;
use super::survey::{self, Filter, Item, Since, Standing, Totals};
use super::{json as plan_json, render};
use crate::model::{EntryState, Record, ResourceKey, Timestamp};
use crate::plan::pending;
use crate::store::console::{Console, EntryFilter};
use crate::store::{HoldReport, StoreError};

/// The version of the JSON's shape; it grows when a property changes its meaning or goes.
const SCHEMA: u32 = 1;
/// Records that are read at a time.
const RECORDS_PER_ROUND: usize = 500;

/// The open hold and its resources.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// `None`: nothing is held.
    hold: Option<HoldReport>,
    /// What fits the filter, in the order of the outbox, up to the limit.
    items: Vec<Item>,
    /// Counts over everything that fits the filter, shown or not.
    totals: Totals,
    /// Whether a filter leaves something out.
    filtered: bool,
}

impl Held {
    /// What is held now, as far as it fits the filter.
    pub(super) async fn gather(console: &dyn Console, filter: &Filter) -> Result<Self, StoreError> {
        let Some(open) = console.open_holds().await?.into_iter().next() else {
            return Ok(Self::default());
        };
        let mut held = Self {
            hold: console.hold(open.id).await?,
            filtered: filter.is_narrow(),
            ..Self::default()
        };
        let wanted = EntryFilter {
            states: vec![EntryState::Waiting, EntryState::Held],
            installation_id: filter.installation.clone(),
            field: filter.field,
            since: filter.since,
            ids: None,
            limit: u32::MAX,
        };
        let page = console.entries(&wanted).await?;
        let keys: Vec<ResourceKey> = page
            .entries
            .into_iter()
            .filter(|listed| listed.entry.hold == Some(open.id))
            .map(|listed| listed.key)
            .collect();
        for keys in keys.chunks(RECORDS_PER_ROUND) {
            for record in console.records(keys).await? {
                held.add(&record, open.id, filter);
            }
        }
        Ok(held)
    }

    fn add(&mut self, record: &Record, hold: i64, filter: &Filter) {
        let entry = record.entry.as_ref();
        // It may have been let go since it was listed.
        let Some(entry) = entry.filter(|entry| entry.hold == Some(hold)) else {
            return;
        };
        let (patch, _) = pending(record, &entry.desired);
        let patch = match filter.field {
            Some(field) => patch.only(field),
            None => patch,
        };
        if patch.is_empty() {
            return;
        }
        let changes = changes(record, &patch);
        let standing = if entry.in_flight.is_some() {
            Standing::InFlight
        } else {
            Standing::Held
        };
        self.totals.add(&changes, &standing);
        if self.items.len() < filter.limit {
            let since = Some(Since::Found(entry.created_at));
            self.items.push(survey::item(
                record,
                &entry.desired,
                changes,
                since,
                standing,
            ));
        }
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.totals.resources == 0
    }

    /// For people: what the hold is, each of its resources, counts, the next command.
    pub(super) fn render(&self, look: Look) -> String {
        let Some(report) = &self.hold else {
            return format!(
                "{}   the guard keeps nothing back\nNext: reconciled plan\n",
                styled(GOOD, "NOT HELD")
            );
        };
        let HoldReport {
            hold,
            entries,
            summary,
        } = report;
        let mut text = format!(
            "{}   {} kept back since {} by hold {}: {}\n       Nothing of it is sent until a person decides.\n\n",
            styled(BAD, "HELD"),
            counted(*entries, "resource"),
            clock(hold.opened_at, look),
            hold.id,
            hold::towards(summary)
        );
        for item in &self.items {
            // The first line says already that all of them are held.
            let noteless = Item {
                standing: match item.standing {
                    Standing::Held => Standing::Now,
                    ref other => other.clone(),
                },
                ..item.clone()
            };
            render::write_item(&mut text, &noteless, look);
            text.push('\n');
        }
        let hidden = self.totals.resources - self.items.len() as u64;
        if hidden > 0 {
            let _ = writeln!(
                text,
                "… {} more not shown; --limit 0 shows all.\n",
                count(hidden)
            );
        }
        let _ = writeln!(text, "{}", self.sum());
        text.push_str(
            "Next: reconciled outbox release --state held, or reconciled outbox discard --state held --reason TEXT; \
             or undo it in the source\n",
        );
        text
    }

    fn sum(&self) -> String {
        let Totals {
            resources,
            fields,
            secrets,
            in_flight,
            ..
        } = self.totals;
        let of = if self.filtered { " fit the filter" } else { "" };
        let secrets = match secrets {
            0 => String::new(),
            secrets => format!(" ({})", counted(secrets, "secret")),
        };
        let in_flight = match in_flight {
            0 => String::new(),
            some => format!(
                "; a request for {} of them was on its way when they were held",
                count(some)
            ),
        };
        format!(
            "{}, {}{secrets}{of}{in_flight}.",
            counted(resources, "resource"),
            counted(fields, "field")
        )
    }

    /// For machines: whole, lists `[]` when empty.
    pub(super) fn to_json(&self, now: Timestamp) -> Value {
        let Totals {
            resources,
            fields,
            secrets,
            in_flight,
            held,
            ..
        } = self.totals;
        json!({
            "schema": SCHEMA,
            "at": now.to_string(),
            "hold": self.hold.as_ref().map(|report| hold::to_json(report, now)),
            "resources": self.items.iter().map(plan_json::item).collect::<Vec<_>>(),
            "hidden": resources - self.items.len() as u64,
            "totals": {
                "resources": resources, "fields": fields, "secrets": secrets, "held": held, "in_flight": in_flight,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::{
        Entry, EntryId, Field, Fingerprint, Json, Mode, Origin, SecretName, Snapshot,
    };
    use crate::plan::guard::{Found, Summary};
    use crate::store::{Hold, HoldState};

    const NOW: Timestamp = Timestamp::from_millis(1_777_903_331_000);
    const LOOK: Look = Look {
        terminal: true,
        width: 100,
        now: NOW,
    };

    fn snapshot(status: &str, secrets: &[(&str, u8)]) -> Snapshot {
        let secret = |(name, byte): &(&str, u8)| {
            (
                SecretName::new(name).expect("a name"),
                Fingerprint::from_bytes([*byte; 16]),
            )
        };
        Snapshot {
            values: [(Field::Status, Json::from_text(status))].into(),
            secrets: Some(secrets.iter().map(secret).collect()),
        }
    }

    fn record(resource: &str, desired: Snapshot) -> Record {
        let key = ResourceKey::new("icfg_7Hd", resource).expect("ids");
        let found_at = NOW.minus(Duration::from_secs(134));
        let entry = Entry::new(desired, Origin::Poll, Mode::Whole, found_at);
        Record {
            acknowledged: snapshot("ready", &[("DATABASE_URL", 0x9f)]),
            entry: Some(Entry {
                id: EntryId(1),
                state: EntryState::Held,
                hold: Some(3),
                ..entry
            }),
            ..Record::new(key)
        }
    }

    fn held(filter: &Filter) -> Held {
        let records = [
            record("res_1", snapshot("suspended", &[("DATABASE_URL", 0x9f)])),
            record("res_2", snapshot("suspended", &[])),
            record("res_3", snapshot("suspended", &[("DATABASE_URL", 0xb0)])),
        ];
        let mut summary = Summary::default();
        records.iter().for_each(|record| summary.add(record));
        let hold = Hold {
            id: 3,
            state: HoldState::Open,
            origin: Origin::Poll,
            opened_at: NOW.minus(Duration::from_secs(134)),
            closed_at: None,
            found: Found {
                destructive: 3,
                changes: 3,
            },
        };
        let mut held = Held {
            hold: Some(HoldReport {
                hold,
                entries: 3,
                summary,
            }),
            filtered: filter.is_narrow(),
            ..Held::default()
        };
        for record in &records {
            held.add(record, 3, filter);
        }
        held
    }

    fn plain(held: &Held) -> String {
        anstream::adapter::strip_str(&held.render(LOOK)).to_string()
    }

    #[test]
    fn every_resource_and_field_of_the_hold_is_shown_from_and_to() {
        let all = Filter {
            limit: usize::MAX,
            ..Filter::default()
        };
        let shown = plain(&held(&all));
        insta::assert_snapshot!(shown, @r"
        HELD   3 resources kept back since 13:59 by hold 3: secrets (1), secrets → none (1), status → suspended (3)
               Nothing of it is sent until a person decides.

        ~ icfg_7Hd / res_1                        found 2 min 14 s ago
            status                 ready → suspended
            (1 secret unchanged)

        ~ icfg_7Hd / res_2                        found 2 min 14 s ago
            secrets.DATABASE_URL   9f9f9f → removed
            status                 ready → suspended

        ~ icfg_7Hd / res_3                        found 2 min 14 s ago
            secrets.DATABASE_URL   9f9f9f → b0b0b0
            status                 ready → suspended
            note   connected projects may keep the old value until they are redeployed

        3 resources, 5 fields (2 secrets).
        Next: reconciled outbox release --state held, or reconciled outbox discard --state held --reason TEXT; or undo it in the source
        ");
    }

    #[test]
    fn a_filter_narrows_what_is_shown_and_counted() {
        let secrets = Filter {
            field: Some(Field::Secrets),
            limit: 1,
            ..Filter::default()
        };
        let shown = held(&secrets).to_json(NOW);
        assert_eq!(shown["resources"][0]["changes"][0]["field"], "secrets");
        assert_eq!(shown["totals"]["secrets"], 2);
        let resources = shown["resources"].as_array().map(Vec::len);
        assert_eq!(resources, Some(1), "no more than the limit");
        let shown = plain(&held(&secrets));
        assert!(shown.contains("\n… 1 more not shown"), "{shown}");
    }

    #[test]
    fn nothing_held_is_one_line() {
        let none = Held::default();
        assert_eq!(
            plain(&none),
            "NOT HELD   the guard keeps nothing back\nNext: reconciled plan\n"
        );
        assert_eq!(none.to_json(NOW)["hold"], Value::Null);
        assert_eq!(none.to_json(NOW)["resources"], json!([]));
        assert!(none.is_empty());
    }
}
