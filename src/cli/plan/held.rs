//! `plan --held`: all of what the guard keeps back, as a diff. Asks the state alone, so that it also answers while the source is being
//! repaired.

use std::fmt::Write as _;
use std::ops::ControlFlow;

use serde_json::{Value, json};

use super::super::hold;
use super::super::out::{BAD, GOOD, Look, styled};
use super::super::standing::clock;
use super::super::text::{count, counted};
use super::change::changes;
use super::render;
use super::survey::{self, Filter, Item, Since, Standing, Totals};
use crate::model::{Record, ResourceKey, Timestamp};
use crate::plan::pending;
use crate::store::console::Console;
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
    /// Counts over everything that fits the filter and was read, shown or not.
    totals: Totals,
    /// How many of them were shown.
    shown: u64,
    /// Whether a filter leaves something out.
    filtered: bool,
}

impl Held {
    /// The hold that is open now.
    pub(super) async fn find(console: &dyn Console, filter: &Filter) -> Result<Self, StoreError> {
        let hold = match console.open_holds().await?.into_iter().next() {
            Some(open) => console.hold(open.id).await?,
            None => None,
        };
        Ok(Self {
            hold,
            filtered: filter.is_narrow(),
            ..Self::default()
        })
    }

    /// Reads what it keeps back and fits the filter, by key, and gives it away piece by piece, up to the limit. There may be very much of it:
    /// once `give` wants no more, nothing is read any more.
    pub(super) async fn read(
        &mut self,
        console: &dyn Console,
        filter: &Filter,
        mut give: impl FnMut(Vec<Item>) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        let Some(id) = self.hold.as_ref().map(|report| report.hold.id) else {
            return Ok(());
        };
        let mut after: Option<ResourceKey> = None;
        loop {
            let mut keys = console
                .kept_back(id, after.as_ref(), RECORDS_PER_ROUND)
                .await?;
            let Some(last) = keys.last().cloned() else {
                return Ok(());
            };
            after = Some(last);
            if let Some(only) = &filter.installation {
                keys.retain(|key| key.installation_id == *only);
            }
            let records = console.records(&keys).await?;
            let items = records
                .iter()
                .filter_map(|record| self.add(record, id, filter))
                .collect();
            if give(items).is_break() {
                return Ok(());
            }
        }
    }

    /// Counts a record, if it fits; what is to be shown of it, up to the limit.
    fn add(&mut self, record: &Record, hold: i64, filter: &Filter) -> Option<Item> {
        let entry = record.entry.as_ref();
        // It may have been let go since it was listed.
        let entry = entry.filter(|entry| entry.hold == Some(hold))?;
        if filter.since.is_some_and(|since| entry.created_at < since) {
            return None;
        }
        let (patch, _) = pending(record, &entry.desired);
        let patch = match filter.field {
            Some(field) => patch.only(field),
            None => patch,
        };
        if patch.is_empty() {
            return None;
        }
        let changes = changes(record, &patch);
        let standing = if entry.in_flight.is_some() {
            Standing::InFlight
        } else {
            Standing::Held
        };
        self.totals.add(&changes, &standing);
        if self.shown >= u64::try_from(filter.limit).unwrap_or(u64::MAX) {
            return None;
        }
        self.shown += 1;
        let since = Some(Since::Found(entry.created_at));
        let item = survey::item(record, &entry.desired, changes, since, standing);
        Some(item)
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.totals.resources == 0
    }

    /// For people: what the hold is.
    pub(super) fn head(&self, look: Look) -> String {
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
        format!(
            "{}   {} kept back since {} by hold {}: {}\n       Nothing of it is sent until a person decides.\n\n",
            styled(BAD, "HELD"),
            counted(*entries, "resource"),
            clock(hold.opened_at, look),
            hold.id,
            hold::towards(summary, *entries)
        )
    }

    /// For people: some of its resources.
    pub(super) fn body(items: Vec<Item>, look: Look) -> String {
        let mut text = String::new();
        for item in items {
            // The first line says already that all of them are held.
            let noteless = Item {
                standing: match item.standing {
                    Standing::Held => Standing::Now,
                    other => other,
                },
                ..item
            };
            render::write_item(&mut text, &noteless, look);
            text.push('\n');
        }
        text
    }

    /// For people, after everything was read: counts, the next command.
    pub(super) fn tail(&self) -> String {
        if self.hold.is_none() {
            return String::new();
        }
        let mut text = String::new();
        let hidden = self.totals.resources - self.shown;
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

    /// For machines, after everything was read: all but the resources.
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
            "hidden": resources - self.shown,
            "totals": {
                "resources": resources, "fields": fields, "secrets": secrets, "held": held, "in_flight": in_flight,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::json;
    use super::*;
    use crate::model::{
        Entry, EntryId, EntryState, Field, Fingerprint, Json, Mode, Origin, SecretName, Snapshot,
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

    fn held(filter: &Filter) -> (Held, Vec<Item>) {
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
        let items = records
            .iter()
            .filter_map(|record| held.add(record, 3, filter));
        let items = items.collect();
        (held, items)
    }

    fn plain((held, items): (Held, Vec<Item>)) -> String {
        let text = held.head(LOOK) + &Held::body(items, LOOK) + &held.tail();
        anstream::adapter::strip_str(&text).to_string()
    }

    #[test]
    fn every_resource_and_field_of_the_hold_is_shown_from_and_to() {
        let all = Filter {
            limit: usize::MAX,
            ..Filter::default()
        };
        let shown = plain(held(&all));
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
        let (counted, items) = held(&secrets);
        assert_eq!(items.len(), 1, "no more than the limit");
        assert_eq!(json::item(&items[0])["changes"][0]["field"], "secrets");
        let shown = counted.to_json(NOW);
        assert_eq!(
            (&shown["totals"]["secrets"], &shown["hidden"]),
            (&json!(2), &json!(1))
        );
        let shown = plain(held(&secrets));
        assert!(shown.contains("\n… 1 more not shown"), "{shown}");
    }

    #[test]
    fn what_was_found_before_is_neither_shown_nor_counted() {
        let resources = |seconds| {
            let recent = Filter {
                since: Some(NOW.minus(Duration::from_secs(seconds))),
                limit: usize::MAX,
                ..Filter::default()
            };
            let (held, items) = held(&recent);
            (held.totals.resources, items.len())
        };
        assert_eq!((resources(134), resources(133)), ((3, 3), (0, 0)));
    }

    #[test]
    fn nothing_held_is_one_line() {
        let none = Held::default();
        assert_eq!(none.to_json(NOW)["hold"], Value::Null);
        assert!(none.is_empty());
        assert_eq!(
            plain((none, Vec::new())),
            "NOT HELD   the guard keeps nothing back\nNext: reconciled plan\n"
        );
    }
}
