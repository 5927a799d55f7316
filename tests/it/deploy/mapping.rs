//! The recipes of `docs/mapping.md`, as they stand there, on a real server.

use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Row as _};

use super::setting;
use crate::support::postgres::Postgres;

const PAGE: &str = include_str!("../../../docs/mapping.md");

/// The first block of that language after this text of the page.
fn block(language: &str, after: &str) -> &'static str {
    let (_, rest) = PAGE.split_once(after).expect("the page says it");
    let (_, block) = rest
        .split_once(&format!("```{language}\n"))
        .expect("a block follows");
    block.split_once("```").expect("the block ends").0
}

#[test]
fn the_recipe_with_plans_in_a_table_of_their_own_is_the_query_of_the_example() {
    assert_eq!(
        block("sql", "## PostgreSQL").trim(),
        setting("query").trim()
    );
}

/// Three resources: with an encrypted secret, with one that nobody can decrypt, and without any.
async fn encrypted() -> (Postgres, PgConnection) {
    let server = Postgres::dedicated();
    let mut admin = PgConnection::connect(&server.url("postgres"))
        .await
        .expect("root may connect");
    let schema = "CREATE EXTENSION pgcrypto;
        CREATE ROLE reconciled LOGIN;
        CREATE SCHEMA vault;
        CREATE TABLE vault.keys (id integer PRIMARY KEY, key text NOT NULL);
        INSERT INTO vault.keys VALUES (1, 'the-key');
        CREATE TABLE resources (
            installation_id text,
            id              text,
            updated_at      timestamptz DEFAULT now(),
            database_url    bytea
        );
        INSERT INTO resources (installation_id, id, database_url) VALUES
            ('icfg_1', 'res_1', pgp_sym_encrypt('postgres://one', 'the-key')),
            ('icfg_1', 'res_2', pgp_sym_encrypt('postgres://two', 'another key')),
            ('icfg_1', 'res_3', NULL)";
    let function = block("sql", "puts that row alone in quarantine");
    for sql in [schema, function] {
        sqlx::raw_sql(sql)
            .execute(&mut admin)
            .await
            .expect("root may do that");
    }
    (server, admin)
}

async fn secrets(connection: &mut PgConnection, query: String) -> Vec<Option<String>> {
    let rows = sqlx::query(AssertSqlSafe(query))
        .fetch_all(connection)
        .await
        .expect("the query runs");
    rows.iter().map(|row| row.get("secrets")).collect()
}

/// What each of the three rows gives: its secret, one that puts the row in quarantine, nothing to manage.
fn expected() -> [Option<String>; 3] {
    [
        Some("{\"DATABASE_URL\": \"postgres://one\"}".to_owned()),
        Some("{\"DATABASE_URL\": null}".to_owned()),
        None,
    ]
}

#[tokio::test]
async fn a_view_decrypts_for_a_role_that_sees_neither_key_nor_table() {
    let (server, mut admin) = encrypted().await;
    sqlx::raw_sql(block("sql", "*Key behind a view*"))
        .execute(&mut admin)
        .await
        .expect("root may do that");
    let url = server.url("postgres").replace("postgres@", "reconciled@");
    let mut role = PgConnection::connect(&url)
        .await
        .expect("the role may connect");
    let query = "SELECT secrets::text AS secrets FROM vercel.resources ORDER BY resource_id";
    assert_eq!(secrets(&mut role, query.to_owned()).await, expected());
    for hidden in ["SELECT key FROM vault.keys", "SELECT id FROM resources"] {
        let error = sqlx::query(hidden)
            .execute(&mut role)
            .await
            .expect_err("the role may not read it");
        let code = error
            .as_database_error()
            .and_then(|error| error.code().map(|code| code.into_owned()));
        assert_eq!(code.as_deref(), Some("42501"), "{hidden}: {error}");
    }
}

#[tokio::test]
async fn a_key_in_the_url_decrypts_without_being_in_the_database() {
    let (server, mut admin) = encrypted().await;
    sqlx::raw_sql("GRANT SELECT ON resources TO reconciled")
        .execute(&mut admin)
        .await
        .expect("root may do that");
    let column = block("sql", "*Key in the connection*");
    let column = column.trim().trim_end_matches(" AS secrets");
    let query = format!("SELECT ({column})::text AS secrets FROM resources ORDER BY resources.id");
    // The page's URL, with this server's address.
    let options = block("text", "*Key in the connection*")
        .trim()
        .split_once('&')
        .expect("the URL has options")
        .1
        .replace("KEY", "the-key");
    let url = server.url("postgres").replace("postgres@", "reconciled@");
    let mut role = PgConnection::connect(&format!("{url}?{options}"))
        .await
        .expect("the role may connect");
    assert_eq!(secrets(&mut role, query).await, expected());
}
