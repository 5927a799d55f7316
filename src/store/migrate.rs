//! The schemas of the state, embedded in the binary, and what to do with the one that is found.
//!
//! Migrations only ever go forward; a schema that a newer version made is refused, never touched.

use std::borrow::Cow;

use sqlx::SqlSafeStr as _;
use sqlx::migrate::{Migration, MigrationType, Migrator};

/// One migration: its version, what it is about, its SQL.
pub(super) struct Step {
    pub(super) version: i64,
    pub(super) description: &'static str,
    pub(super) sql: &'static str,
}

/// The migrations of the SQLite state, oldest first.
pub(super) const SQLITE: &[Step] = &[Step {
    version: 1,
    description: "state",
    sql: include_str!("../../migrations/sqlite/0001_state.sql"),
}];

/// The migrations of the PostgreSQL state, oldest first.
pub(super) const POSTGRES: &[Step] = &[Step {
    version: 1,
    description: "state",
    sql: include_str!("../../migrations/postgres/0001_state.sql"),
}];

/// The newest schema that `steps` know.
pub(super) const fn newest(steps: &[Step]) -> i64 {
    match steps {
        [] => 0,
        [.., last] => last.version,
    }
}

/// The migrations in the form that carries them out, each in a transaction of its own.
pub(super) fn migrator(steps: &[Step]) -> Migrator {
    let migration = |step: &Step| {
        Migration::new(
            step.version,
            Cow::Borrowed(step.description),
            MigrationType::Simple,
            step.sql.into_sql_str(),
            false,
        )
    };
    Migrator::with_migrations(steps.iter().map(migration).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_grow_by_one() {
        for steps in [SQLITE, POSTGRES] {
            let versions: Vec<i64> = steps.iter().map(|step| step.version).collect();
            assert_eq!(versions, (1..=newest(steps)).collect::<Vec<_>>());
        }
    }
}
