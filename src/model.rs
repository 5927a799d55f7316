//! The types that carry meaning: ids, fields, values, patches, doubt and the record kept per resource.
//!
//! Constructors reject what a type cannot mean, so code past them does not check again. Nothing here does I/O, reads a
//! clock or draws randomness, and nothing here that can be stored or printed holds a secret's value.

pub mod doubt;
pub mod entry;
pub mod field;
pub mod id;
pub mod json;
pub mod observed;
pub mod patch;
pub mod record;
pub mod row;
pub mod rows;
pub mod secret;
pub mod shared;
pub mod snapshot;
pub mod time;
pub mod value;

pub use doubt::{Doubt, Mark};
pub use entry::{
    Entry, EntryId, EntryState, InFlight, Lease, LeaseToken, Mode, Origin, Reason, Rejection,
};
pub use field::{Field, FieldSet};
pub use id::{InstallationId, InvalidId, ResourceId, ResourceKey};
pub use json::Json;
pub use observed::Observed;
pub use patch::{Patch, SecretsPatch};
pub use record::{Record, RowHash};
pub use row::{RawRow, RawText, Row, Unusable};
pub use rows::{CellText, RawRowRef, RawRows, RowHasher};
pub use secret::{AccessToken, Fingerprint, FingerprintKey, Secret, SecretName, SecretSet};
pub use shared::SharedMap;
pub use snapshot::Snapshot;
pub use time::Timestamp;
