//! Whatever changes is written, and no more than that.

use std::collections::BTreeMap;
use std::time::Duration;

use rusqlite::params_from_iter;
use rusqlite::types::Null;

use crate::model::record::Missing;
use crate::model::{
    EntryState, Field, Fingerprint, Json, Lease, LeaseToken, Mark, Mode, Origin, Patch, Reason,
    Rejection, ResourceKey, RowHash, Snapshot,
};
use crate::store::codec::Cells as _;
use crate::store::sqlite::read;

use super::*;

const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_000);

/// A resource with an entry that waits.
fn record() -> Record {
    let mut record = Record::new(ResourceKey::new("icfg_1", "res_1").expect("two ids"));
    record.row_hash = Some(RowHash::from_bytes([1; 16]));
    record.acknowledged = named("held");
    record.entry = Some(Entry::new(named("desired"), Origin::Poll, Mode::Whole, NOW));
    record
}

fn named(name: &str) -> Snapshot {
    Snapshot {
        values: [(Field::Name, Json::from_text(name))].into(),
        secrets: None,
    }
}

type Alter = fn(&mut Record);

fn entry(record: &mut Record) -> &mut Entry {
    record.entry.as_mut().expect("an open entry")
}

fn mark(record: &mut Record) {
    record.doubt.fields.insert(Field::Name, Mark::default());
}

fn lease(record: &mut Record) {
    let doubt_before = record.doubt.clone();
    let entry = entry(record);
    entry.lease = Some(Lease {
        owner: "w".to_owned(),
        token: LeaseToken(7),
        expires_at: NOW,
    });
    entry.in_flight = Some(InFlight {
        patch: Patch::default(),
        digests: BTreeMap::new(),
        generation: 3,
        doubt_before,
        claimed_at: NOW,
    });
}

/// One change of each kind, and of several at once.
const ALTERED: [Alter; 20] = [
    lease,
    |record| {
        lease(record);
        mark(record);
    },
    |record| {
        lease(record);
        entry(record).attempts = 1;
    },
    mark,
    |record| record.row_hash = Some(RowHash::from_bytes([2; 16])),
    |record| {
        record.row_hash = Some(RowHash::from_bytes([2; 16]));
        mark(record);
    },
    |record| {
        record.missing = Some(Missing {
            since: NOW,
            sweeps: 2,
        });
    },
    |record| record.acknowledged = named("other"),
    |record| record.acknowledged_at = Some(NOW),
    |record| {
        let digest = Fingerprint::from_bytes([3; 16]);
        record.dismissed.insert(Field::Name, digest);
    },
    |record| entry(record).desired = named("other"),
    |record| entry(record).generation = 1,
    |record| entry(record).mode = Mode::Split,
    |record| entry(record).reason = Reason::Backoff,
    |record| entry(record).due_at = NOW.plus(Duration::from_secs(1)),
    |record| entry(record).failures = 1,
    |record| entry(record).conflicts = 1,
    |record| {
        let rejection = Rejection {
            digest: Fingerprint::from_bytes([4; 16]),
            status: 400,
            code: None,
        };
        entry(record).rejected.insert(Field::Name, rejection);
    },
    |record| entry(record).hold = Some(1),
    |record| {
        entry(record).state = EntryState::Held;
        entry(record).hold = Some(1);
    },
];

#[test]
fn whatever_changes_of_a_record_is_written() {
    for (number, alter) in ALTERED.into_iter().enumerate() {
        let db = Db::of_state().expect("a state");
        db.run(
            "INSERT INTO hold (state, origin, opened_at) VALUES ('open', 'poll', 0)",
            params![],
        )
        .expect("a hold");
        let nothing = Record::new(record().key);
        let mut first = record();
        save(&db, &nothing, &mut first, None);
        let mut second = first.clone();
        alter(&mut second);
        assert_ne!(first, second, "{number}");
        save(&db, &first, &mut second, None);
        assert_eq!(stored(&db), second, "{number}");
        // And back.
        save(&db, &second, &mut first, None);
        assert_eq!(stored(&db), first, "{number}");
        // What closes it leaves room for the next.
        let mut closed = entry(&mut second).clone();
        closed.state = EntryState::Delivered;
        (closed.lease, closed.in_flight) = (None, None);
        let mut third = second.clone();
        third.entry = record().entry;
        save(&db, &first, &mut third, Some(&closed));
        assert_eq!(stored(&db), third, "{number}");
    }
}

fn save(db: &Db, before: &Record, after: &mut Record, closed: Option<&Entry>) {
    let change = Change {
        before,
        after,
        closed,
        now: NOW,
    };
    save_all(db, &mut [change]).expect("it is written");
}

fn stored(db: &Db) -> Record {
    let keys = [record().key];
    read::records(db, &keys).expect("it is read").remove(0)
}

#[test]
fn what_is_written_for_a_delivery_fills_no_table_for_its_constraints() {
    let db = Db::of_state().expect("a state");
    for sql in [
        INSERT_ENTRY,
        UPDATE_LEASE,
        UPDATE_COURSE,
        UPDATE_SEEN,
        UPDATE_DOUBT,
        PUT_RESOURCE,
        ADD_ATTEMPT,
    ] {
        let parameters = db.prepare(sql).expect("a statement").parameter_count();
        let params = params_from_iter(vec![Null; parameters]);
        let steps = db
            .rows(&format!("EXPLAIN {sql}"), params, |row| {
                Ok(row.text("opcode")?.to_owned())
            })
            .expect("its steps");
        assert!(steps.iter().any(|step| step == "OpenWrite"), "{sql}");
        assert!(!steps.iter().any(|step| step == "OpenEphemeral"), "{sql}");
    }
}
