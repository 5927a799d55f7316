//! Proves that the files under `deploy/` do what they say, on real servers.

mod links;
mod mapping;

use std::process::Command;

use sqlx::{
    AssertSqlSafe, Column, Connection, Executor, MySqlConnection, PgConnection, Row, Statement,
};
use toml_edit::DocumentMut;

use crate::support::{mariadb::MariaDb, postgres::Postgres, server::find_program};

const EXAMPLE: &str = include_str!("../../deploy/reconciled.example.toml");
const MYSQL_ROLE: &str = include_str!("../../deploy/mysql-role.sql");

/// The columns that the source query may have, as the configuration's reference lists them.
const COLUMNS: [&str; 11] = [
    "installation_id",
    "resource_id",
    "cursor",
    "ownership",
    "name",
    "status",
    "metadata",
    "extras",
    "billing_plan",
    "notification",
    "secrets",
];

#[tokio::test]
async fn example_reads_the_compose_schema_with_the_role_that_deploy_creates() {
    let server = provider();
    let mut role = PgConnection::connect(&role_url(&server))
        .await
        .expect("the role may connect");

    let query = setting("query");
    let prepared = role
        .prepare(sqlx::SqlStr::from_static(query))
        .await
        .expect("the role may read what the query names");
    for column in prepared.columns() {
        assert!(
            COLUMNS.contains(&column.name()),
            "{} is no column of the contract",
            column.name()
        );
    }
    let rows = sqlx::query(query)
        .fetch_all(&mut role)
        .await
        .expect("the query runs");
    assert_eq!(rows.len(), 3);
    for row in rows {
        assert!(
            row.get::<Option<&str>, _>("status").is_some(),
            "every state has a status"
        );
    }
    let tokens = sqlx::query(setting("installations_query"))
        .fetch_all(&mut role)
        .await
        .expect("the query runs");
    assert_eq!(tokens.len(), 2);
}

#[tokio::test]
async fn postgres_role_cannot_write_even_where_it_lifts_its_own_settings() {
    let server = provider();
    let mut role = PgConnection::connect(&role_url(&server))
        .await
        .expect("the role may connect");
    role.execute("SELECT set_config('default_transaction_read_only', 'off', false)")
        .await
        .expect("anyone may");
    for statement in [
        "UPDATE resources SET name = 'other'",
        "DELETE FROM resource_secrets",
        "INSERT INTO plans (id, type, name, cost) VALUES ('x', 'subscription', 'x', 'x')",
        "CREATE TABLE public.other (id integer)",
    ] {
        let error = role
            .execute(statement)
            .await
            .expect_err("the role may only read");
        let code = error
            .as_database_error()
            .and_then(|error| error.code().map(|code| code.into_owned()));
        assert_eq!(code.as_deref(), Some("42501"), "{statement}: {error}");
    }
    let sees_transactions: bool =
        sqlx::query_scalar("SELECT pg_has_role(current_user, 'pg_read_all_stats', 'USAGE')")
            .fetch_one(&mut role)
            .await
            .expect("anyone may ask");
    assert!(sees_transactions);
}

#[tokio::test]
async fn every_change_of_what_a_resource_shows_moves_its_cursor() {
    let server = provider();
    let mut owner = PgConnection::connect(&server.url("provider"))
        .await
        .expect("the owner may connect");
    for change in [
        "UPDATE resources SET state = 'suspended' WHERE id = 'db_orders'",
        "UPDATE plans SET cost = '$25.00' WHERE id = 'pro'",
        "UPDATE resource_secrets SET value = 'rotated' WHERE resource_id = 'db_orders' AND name = 'DATABASE_URL'",
        "INSERT INTO resource_secrets (resource_id, name, value) VALUES ('db_orders', 'TOKEN', 'new')",
        "DELETE FROM resource_secrets WHERE resource_id = 'db_orders' AND name = 'TOKEN'",
    ] {
        let before = cursor(&mut owner).await;
        owner.execute(change).await.expect("the owner may write");
        assert!(cursor(&mut owner).await > before, "{change}");
    }
}

#[tokio::test]
async fn mysql_role_is_locked_until_it_has_a_password_and_then_only_reads() {
    let server = MariaDb::dedicated();
    let mut admin = MySqlConnection::connect(&server.url("mysql"))
        .await
        .expect("root may connect");
    let schema = "CREATE DATABASE provider;
        CREATE TABLE provider.installations (id integer);
        CREATE TABLE provider.plans (id integer);
        CREATE TABLE provider.resources (id integer);
        CREATE TABLE provider.resource_secrets (id integer);
        CREATE TABLE provider.staff (id integer)";
    sqlx::raw_sql(schema)
        .execute(&mut admin)
        .await
        .expect("root may create tables");
    sqlx::raw_sql(MYSQL_ROLE)
        .execute(&mut admin)
        .await
        .expect("root may create the account");

    let url = server
        .url("provider")
        .replace("root@", "reconciled:example@");
    MySqlConnection::connect(&url)
        .await
        .expect_err("it is locked");
    sqlx::raw_sql("ALTER USER 'reconciled'@'%' IDENTIFIED BY 'example' ACCOUNT UNLOCK")
        .execute(&mut admin)
        .await
        .expect("root may unlock it");
    let mut role = MySqlConnection::connect(&url)
        .await
        .expect("it is unlocked");
    for table in ["installations", "plans", "resources", "resource_secrets"] {
        role.execute(AssertSqlSafe(format!("SELECT id FROM {table}")))
            .await
            .expect("it may read");
        role.execute(AssertSqlSafe(format!("INSERT INTO {table} VALUES (1)")))
            .await
            .expect_err("it may not write");
    }
    role.execute("SELECT id FROM staff")
        .await
        .expect_err("it may read what it was granted");
}

/// A server with the database of the compose file, set up by the same files in the same order.
fn provider() -> Postgres {
    let server = Postgres::dedicated();
    psql(
        &server.url("postgres"),
        &["--command", "CREATE DATABASE provider"],
    );
    for file in [
        "compose/provider.sql",
        "postgres-role.sql",
        "compose/password.sql",
    ] {
        let path = format!("{}/deploy/{file}", env!("CARGO_MANIFEST_DIR"));
        psql(
            &server.url("provider"),
            &["--single-transaction", "--file", &path],
        );
    }
    server
}

fn role_url(server: &Postgres) -> String {
    server
        .url("provider")
        .replace("postgres@", "reconciled:example@")
}

/// The files are written for psql: they use its own commands.
pub(crate) fn psql(url: &str, arguments: &[&str]) {
    let output = Command::new(find_program("psql", &[]))
        .args([
            "--no-psqlrc",
            "--quiet",
            "--set",
            "ON_ERROR_STOP=1",
            "--dbname",
            url,
        ])
        .args(arguments)
        .output()
        .expect("psql was found a moment ago");
    assert!(
        output.status.success(),
        "{arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A `[source]` setting of the example; it lives as long as the tests do.
fn setting(key: &str) -> &'static str {
    let example: DocumentMut = EXAMPLE.parse().expect("the example is TOML");
    let value = example["source"][key]
        .as_str()
        .expect("the example sets it")
        .to_owned();
    value.leak()
}

async fn cursor(owner: &mut PgConnection) -> String {
    sqlx::query_scalar("SELECT updated_at::text FROM resources WHERE id = 'db_orders'")
        .fetch_one(owner)
        .await
        .expect("the resource is there")
}
