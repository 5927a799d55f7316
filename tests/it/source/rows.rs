//! Values as the databases give them: JSON of every kind, and rows that cannot be used.

use reconciled::model::{Field, RawRow};

use super::bed::{Bed, ids, sweep_all, text};
use super::on_every_database;
use crate::support::database::Engine;

on_every_database!(
    json_is_json_in_every_column_type,
    each_unusable_row_names_its_column_and_disturbs_no_other,
    values_that_are_no_text_are_told_apart,
);

async fn json_is_json_in_every_column_type(bed: Bed) {
    let types: &[&str] = match bed.engine() {
        Engine::Postgres => &["json", "jsonb", "text"],
        Engine::MariaDb => &[
            "JSON",
            "LONGTEXT",
            "LONGTEXT CHARACTER SET latin1",
            "LONGBLOB",
        ],
        Engine::Sqlite => &["TEXT", "JSON", "BLOB"],
    };
    for json in types {
        bed.database.execute("DROP TABLE IF EXISTS resource").await;
        bed.database
            .execute(&format!(
                "CREATE TABLE resource (installation_id {0}, resource_id {0}, metadata {json});
                 INSERT INTO resource VALUES ('i', 'r', '{{\"a\": [1, 2.50, \"é\"], \"b\": null}}')",
                bed.text()
            ))
            .await;
        let source = bed.source("SELECT installation_id, resource_id, metadata FROM resource");
        let rows = sweep_all(&*source, 10).await.concat();
        let row = rows[0]
            .decode()
            .unwrap_or_else(|unusable| panic!("{json}: {unusable}"));
        let metadata = serde_json::to_value(&row.values[&Field::Metadata]).expect("JSON");
        assert_eq!(metadata["a"][2], "é", "{json}");
    }
}

/// What is wrong with a row: the columns to set, and the column and words that the reason must hold.
pub(crate) struct Unusable {
    pub(crate) set: &'static [(&'static str, &'static str)],
    pub(crate) column: &'static str,
    pub(crate) problem: &'static str,
}

const fn unusable(
    set: &'static [(&'static str, &'static str)],
    column: &'static str,
    problem: &'static str,
) -> Unusable {
    Unusable {
        set,
        column,
        problem,
    }
}

/// Values are SQL expressions that all databases share; `LONG(n)` becomes n characters, `RAW(hex)` bytes.
pub(crate) const UNUSABLE: [Unusable; 46] = [
    unusable(&[("installation_id", "NULL")], "installation_id", "is NULL"),
    unusable(&[("installation_id", "''")], "installation_id", "is empty"),
    unusable(
        &[("installation_id", "'  '")],
        "installation_id",
        "is empty",
    ),
    unusable(
        &[("installation_id", "'..'")],
        "installation_id",
        "no URL can carry",
    ),
    unusable(
        &[("installation_id", "LONG(513)")],
        "installation_id",
        "513 bytes",
    ),
    unusable(&[("resource_id", "NULL")], "resource_id", "is NULL"),
    unusable(&[("resource_id", "''")], "resource_id", "is empty"),
    unusable(&[("resource_id", "'.'")], "resource_id", "no URL can carry"),
    unusable(
        &[("resource_id", "'..'")],
        "resource_id",
        "no URL can carry",
    ),
    unusable(
        &[("resource_id", "'a\r\nb'")],
        "resource_id",
        "control character U+000D",
    ),
    unusable(
        &[("resource_id", "'a\u{7}'")],
        "resource_id",
        "control character U+0007",
    ),
    unusable(
        &[("resource_id", "'a\u{85}b'")],
        "resource_id",
        "control character U+0085",
    ),
    unusable(
        &[("resource_id", "LONG(10000)")],
        "resource_id",
        "10000 bytes",
    ),
    unusable(
        &[("resource_id", "LONG(10000000)")],
        "resource_id",
        "longer than 1 MiB",
    ),
    unusable(&[("status", "'Ready'")], "status", "not a known value"),
    unusable(&[("status", "''")], "status", "not a known value"),
    unusable(&[("status", "'ready '")], "status", "not a known value"),
    unusable(
        &[("status", "LONG(10000000)")],
        "status",
        "longer than 1 MiB",
    ),
    unusable(
        &[("ownership", "'rented'")],
        "ownership",
        "not a known value",
    ),
    unusable(&[("name", "''")], "name", "is empty"),
    unusable(&[("name", "'a\nb'")], "name", "control character"),
    unusable(&[("name", "LONG(5000)")], "name", "5000 bytes"),
    unusable(&[("name", "LONG(2000000)")], "name", "longer than 1 MiB"),
    unusable(&[("metadata", "'{'")], "metadata", "is no JSON"),
    unusable(&[("metadata", "''")], "metadata", "is no JSON"),
    unusable(&[("metadata", "'NaN'")], "metadata", "is no JSON"),
    unusable(&[("metadata", "'{\"a\":NaN}'")], "metadata", "is no JSON"),
    unusable(&[("metadata", "'[]'")], "metadata", "is a JSON array"),
    unusable(&[("metadata", "'null'")], "metadata", "is JSON null"),
    unusable(&[("metadata", "'5'")], "metadata", "is a JSON number"),
    unusable(&[("metadata", "'{} {}'")], "metadata", "is no JSON"),
    unusable(&[("extras", "'\"text\"'")], "extras", "is a JSON string"),
    unusable(
        &[("extras", "LONG(10000000)")],
        "extras",
        "longer than 1 MiB",
    ),
    unusable(
        &[(
            "billing_plan",
            "'{\"type\":\"subscription\",\"name\":\"P\"}'",
        )],
        "billing_plan",
        "has no `id`",
    ),
    unusable(
        &[(
            "billing_plan",
            "'{\"id\":\"p\",\"type\":\"monthly\",\"name\":\"P\"}'",
        )],
        "billing_plan",
        "unknown `type`",
    ),
    unusable(
        &[(
            "billing_plan",
            "'{\"id\":1,\"type\":\"subscription\",\"name\":\"P\"}'",
        )],
        "billing_plan",
        "a JSON number",
    ),
    unusable(
        &[("billing_plan", "'{\"id\":\"p\",\"type\":\"subscription\"}'")],
        "billing_plan",
        "has no `name`",
    ),
    unusable(
        &[("billing_plan", "'[]'")],
        "billing_plan",
        "is a JSON array",
    ),
    unusable(
        &[("notification", "'\"text\"'")],
        "notification",
        "is a JSON string",
    ),
    unusable(
        &[("notification", "'{\"level\":\"warn\"}'")],
        "notification",
        "has no `title`",
    ),
    unusable(
        &[("notification", "'{\"level\":\"loud\",\"title\":\"t\"}'")],
        "notification",
        "unknown `level`",
    ),
    unusable(&[("secrets", "'null'")], "secrets", "is JSON null"),
    unusable(&[("secrets", "'{\"A\":5}'")], "secrets", "a JSON number"),
    unusable(&[("secrets", "'[{\"name\":\"A\"}]'")], "secrets", "item 0"),
    unusable(
        &[(
            "secrets",
            "'[{\"name\":\"A\",\"value\":\"x\"},{\"name\":\"A\",\"value\":\"y\"}]'",
        )],
        "secrets",
        "twice",
    ),
    unusable(
        &[("secrets", "LONG(10000000)")],
        "secrets",
        "longer than 1 MiB",
    ),
];

/// The same for columns that hold any bytes: what is no text, or holds a NUL.
pub(crate) const NO_TEXT: [Unusable; 14] = [
    unusable(
        &[("installation_id", "RAW(69ff)")],
        "installation_id",
        "is no UTF-8",
    ),
    unusable(
        &[("installation_id", "RAW(6900)")],
        "installation_id",
        "control character U+0000",
    ),
    unusable(&[("resource_id", "RAW(ff)")], "resource_id", "is no UTF-8"),
    unusable(
        &[("resource_id", "RAW(6100)")],
        "resource_id",
        "control character U+0000",
    ),
    unusable(&[("name", "RAW(61ff62)")], "name", "is no UTF-8"),
    // A surrogate, and a slash in two bytes: no UTF-8 either.
    unusable(&[("name", "RAW(eda080)")], "name", "is no UTF-8"),
    unusable(&[("name", "RAW(c0af)")], "name", "is no UTF-8"),
    unusable(&[("name", "RAW(610062)")], "name", "control character"),
    unusable(&[("status", "RAW(7265616479ff)")], "status", "is no UTF-8"),
    unusable(
        &[("status", "RAW(726561647900)")],
        "status",
        "not a known value",
    ),
    unusable(
        &[("metadata", "RAW(7b2261223a22ff227d)")],
        "metadata",
        "is no UTF-8",
    ),
    unusable(&[("metadata", "RAW(7b7d00)")], "metadata", "is no JSON"),
    unusable(
        &[("secrets", "RAW(7b2241223a22ff227d)")],
        "secrets",
        "is no UTF-8",
    ),
    unusable(
        &[("secrets", "RAW(7b2241223a220061227d)")],
        "secrets",
        "is no JSON",
    ),
];

pub(crate) const COLUMNS: [&str; 10] = [
    "installation_id",
    "resource_id",
    "ownership",
    "name",
    "status",
    "metadata",
    "extras",
    "billing_plan",
    "notification",
    "secrets",
];

impl Unusable {
    /// The id by which the row of that index is told, where the row's own is unusable and yet can be shown too.
    pub(crate) fn shown_id(&self, index: usize) -> Option<String> {
        let Some((_, id)) = self.set.iter().find(|(name, _)| *name == "resource_id") else {
            return Some(format!("bad{index}"));
        };
        if *id == "NULL" {
            return Some(String::new());
        }
        let literal = id.strip_prefix('\'')?.strip_suffix('\'')?;
        Some(literal.replace(|c: char| c.is_control(), "\u{fffd}"))
    }

    /// The statement that inserts the row, with the values of further columns at its end.
    pub(crate) fn insert(&self, bed: &Bed, index: usize, more: &str) -> String {
        let values: Vec<String> = COLUMNS
            .iter()
            .map(|column| {
                let set = self.set.iter().find(|(name, _)| name == column);
                match (set, *column) {
                    (Some((_, value)), _) => expression(bed, value),
                    (None, "installation_id") => "'i'".to_owned(),
                    (None, "resource_id") => format!("'bad{index}'"),
                    (None, _) => "NULL".to_owned(),
                }
            })
            .collect();
        format!("INSERT INTO resource VALUES ({}{more})", values.join(", "))
    }
}

fn expression(bed: &Bed, value: &str) -> String {
    let argument = |name: &str| value.strip_prefix(name)?.strip_suffix(')');
    match (argument("LONG("), argument("RAW("), bed.engine()) {
        (Some(length), _, Engine::Sqlite) => format!("printf('%.*c', {length}, 'x')"),
        (Some(length), ..) => format!("repeat('x', {length})"),
        (_, Some(bytes), Engine::Sqlite) => format!("CAST(x'{bytes}' AS TEXT)"),
        (_, Some(bytes), Engine::MariaDb) => format!("x'{bytes}'"),
        (_, Some(bytes), Engine::Postgres) => {
            panic!("text of PostgreSQL cannot hold {bytes}")
        }
        (None, None, _) => value.to_owned(),
    }
}

async fn each_unusable_row_names_its_column_and_disturbs_no_other(bed: Bed) {
    let long = bed.long();
    let columns = COLUMNS.map(|column| format!("{column} {long}")).join(", ");
    bed.database
        .execute(&format!("CREATE TABLE resource ({columns})"))
        .await;
    for (index, unusable) in UNUSABLE.iter().enumerate() {
        bed.database
            .execute(&unusable.insert(&bed, index, ""))
            .await;
        bed.database
            .execute(&format!(
                "INSERT INTO resource (installation_id, resource_id, status) VALUES ('i', 'good{index}', 'ready')"
            ))
            .await;
    }
    let source = bed.source(&format!("SELECT {} FROM resource", COLUMNS.join(", ")));
    for limit in [5, 1_000] {
        let rows = sweep_all(&*source, limit).await.concat();
        assert_eq!(rows.len(), 2 * UNUSABLE.len(), "by {limit}");
        let (good, bad): (Vec<&RawRow>, Vec<&RawRow>) =
            rows.iter().partition(|row| row.decode().is_ok());
        assert_eq!(good.len(), UNUSABLE.len());
        let mut reasons: Vec<String> = bad
            .iter()
            .map(|row| row.decode().expect_err("a bad row").to_string())
            .collect();
        for Unusable {
            column, problem, ..
        } in &UNUSABLE
        {
            let found = reasons.iter().position(|reason| {
                reason.starts_with(&format!("column `{column}`")) && reason.contains(problem)
            });
            let found = found.unwrap_or_else(|| panic!("{column} {problem}: {reasons:#?}"));
            reasons.swap_remove(found);
        }
        assert!(reasons.is_empty(), "{reasons:#?}");
    }
}

async fn values_that_are_no_text_are_told_apart(bed: Bed) {
    let (columns, rows) = match bed.engine() {
        // PostgreSQL's text is UTF-8 without NUL; other types are written as text.
        Engine::Postgres => (
            "installation_id uuid, resource_id char(4), name int",
            "('6E8BC430-9C3A-11D9-9669-0800200C9A66', 'r1', 5)",
        ),
        Engine::MariaDb => (
            "installation_id VARCHAR(20) CHARACTER SET latin1, resource_id VARBINARY(20), name LONGBLOB",
            "('é', 'r1', 'é'), ('i', x'ff', 'n'), ('i', x'6100', 'n'), ('i', 'r2', x'c328')",
        ),
        Engine::Sqlite => (
            "installation_id TEXT, resource_id, name",
            "('é', 'r1', 'é'), ('i', CAST(x'ff' AS TEXT), 'n'), ('i', CAST(x'6100' AS TEXT), 'n'), ('i', 'r2', x'c328'),
             ('i', x'ff', 'n'), ('i', 7, 'n'), ('i', 7.5, 8.5)",
        ),
    };
    bed.database
        .execute(&format!(
            "CREATE TABLE resource ({columns}); INSERT INTO resource VALUES {rows}"
        ))
        .await;
    let source = bed.source("SELECT installation_id, resource_id, name FROM resource");
    for limit in 1..4 {
        let rows = sweep_all(&*source, limit).await.concat();
        let mut said: Vec<String> = rows
            .iter()
            .map(|row| match row.decode() {
                Ok(row) => row.key.to_string(),
                Err(unusable) => format!("{} {}", unusable.column, unusable.problem),
            })
            .collect();
        said.sort();
        let expected: &[&str] = match bed.engine() {
            Engine::Postgres => &["6e8bc430-9c3a-11d9-9669-0800200c9a66/r1"],
            Engine::MariaDb => &[
                "name is no UTF-8",
                "resource_id holds the control character U+0000",
                "resource_id is no UTF-8",
                "é/r1",
            ],
            Engine::Sqlite => &[
                "i/7",
                "i/7.5",
                "name is no UTF-8",
                "resource_id holds the control character U+0000",
                "resource_id is no UTF-8",
                "resource_id is no UTF-8",
                "é/r1",
            ],
        };
        assert_eq!(said, expected, "by {limit}");
        assert!(text(&rows[0].installation_id).is_some(), "{:?}", ids(&rows));
    }
}

/// A text's own character set, and whether its collation is binary, make no difference; other types are written as text.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mariadb_gives_texts_of_every_character_set_and_values_of_every_type_in_utf8() {
    let long = "é".repeat(200);
    for id_type in [
        "VARCHAR(250) CHARACTER SET latin1",
        "VARCHAR(250) CHARACTER SET latin1 COLLATE latin1_bin",
        "VARCHAR(250) CHARACTER SET ucs2",
        "VARCHAR(250) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin",
        "VARBINARY(500)",
    ] {
        for (name_type, written, name) in [
            ("TEXT CHARACTER SET latin1", "'naïve'", "naïve"),
            ("VARCHAR(20) CHARACTER SET utf16", "'naïve 😀'", "naïve 😀"),
            ("DECIMAL(10, 3)", "1.5", "1.500"),
            ("DOUBLE", "0.25", "0.25"),
            (
                "BIGINT UNSIGNED",
                "18446744073709551615",
                "18446744073709551615",
            ),
            (
                "DATETIME(3)",
                "'2026-01-31 12:00:00.5'",
                "2026-01-31 12:00:00.500",
            ),
            (
                "ENUM('naïve', 'b') CHARACTER SET latin1",
                "'naïve'",
                "naïve",
            ),
            ("BLOB", "'naïve'", "naïve"),
        ] {
            let bed = Bed::mariadb().await;
            bed.database
                .execute(&format!(
                    "CREATE TABLE resource (
                         installation_id {id_type}, resource_id {id_type}, name {name_type}, PRIMARY KEY (installation_id, resource_id));
                     INSERT INTO resource VALUES ('i', '{long}', {written}), ('é', 'a', {written}), ('é', 'b', {written})"
                ))
                .await;
            let source = bed.source("SELECT installation_id, resource_id, name FROM resource");
            let mut found = Vec::new();
            for row in sweep_all(&*source, 1).await.concat() {
                let row = row
                    .decode()
                    .unwrap_or_else(|unusable| panic!("{id_type}, {name_type}: {unusable}"));
                found.push((row.key.to_string(), row.values[&Field::Name].to_string()));
            }
            found.sort();
            let name = serde_json::to_string(name).expect("JSON");
            let expected = [format!("i/{long}"), "é/a".to_owned(), "é/b".to_owned()]
                .map(|key| (key, name.clone()));
            assert_eq!(found, expected, "{id_type}, {name_type}");
        }
    }
}
