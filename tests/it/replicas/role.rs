//! The roles that `deploy/postgres-state.sql` and `deploy/postgres-role.sql` make are all that daemons need: with the one they make
//! their tables and work, with the other they read the provider's.

use rustix::process::Signal;

use super::{INSTALLATIONS, RESOURCES, World, stop, watcher};
use crate::deploy::psql;
use crate::support::postgres::Postgres;

/// The daemons that the roles' limits of connections have to be enough for, one that replaces another included.
const DAEMONS: i64 = 4 + 1;
/// Commands that people run beside them.
const COMMANDS: i64 = 2;
/// `[source] max_connections` and `[state] max_connections` by default.
const MAX_CONNECTIONS: i64 = 4;
/// What `[source] listen` takes besides: one connection, and for a moment one more to find out whether it hears anything.
const LISTENING: i64 = 2;

fn run_file(url: &str, name: &str) {
    let file = format!("{}/deploy/{name}", env!("CARGO_MANIFEST_DIR"));
    psql(url, &["--single-transaction", "--file", &file]);
}

/// A provider's database whose reader is the role of `deploy/postgres-role.sql`, and replicas that read with it.
async fn world_of_the_role(server: &Postgres, state: &str) -> World {
    let world = World::on(server, state, RESOURCES, INSTALLATIONS, "").await;
    // The tables that the file names, which a provider would replace by its own.
    let tables = "CREATE TABLE installations (id text); CREATE TABLE plans (id text);
                  CREATE TABLE resources (id text); CREATE TABLE resource_secrets (id text)";
    world.provider.execute(tables).await;
    run_file(&world.provider.url, "postgres-role.sql");
    let grant = "GRANT SELECT ON installation, resource TO reconciled";
    world.provider.execute(grant).await;
    let file = world.replicas[0].configuration();
    let configuration = std::fs::read_to_string(file).expect("it was written");
    let of_role = world.provider.url.replace("postgres@", "reconciled@");
    let configuration = configuration.replace(&world.provider.url, &of_role);
    assert!(configuration.contains(&of_role));
    for replica in &world.replicas {
        replica.configure(&configuration);
    }
    world
}

#[tokio::test]
async fn daemons_work_under_the_roles_that_deploy_makes() {
    let server = Postgres::dedicated();
    let database = server.database().await;
    run_file(&database.url, "postgres-state.sql");
    // Nobody may do anything here but what the file grants; the tests' server asks for no password.
    psql(
        &database.url,
        &[
            "--command",
            &format!(
                "REVOKE ALL ON DATABASE {0} FROM PUBLIC; REVOKE ALL ON SCHEMA public FROM PUBLIC;
                 CREATE TABLE public.staff (name text)",
                database.name
            ),
        ],
    );
    let url = database.url.replace("postgres@", "reconciled_state@");
    let world = world_of_the_role(&server, &url).await;
    let check = world.replicas[0].output(&["check"]).await;
    let said = String::from_utf8_lossy(&check.stdout).into_owned();
    assert_eq!(check.status.code(), Some(0), "{said}");
    assert!(said.contains("created by the first run"), "{said}");

    world.rotate(0).await;
    let mut replicas = world.run();
    let reader = watcher(&mut replicas).await;
    world.agreed(0).await;
    replicas[reader].end_with(Signal::KILL).await;
    replicas.remove(reader);
    world.rotate(1).await;
    world.agreed(1).await;
    let check = world.replicas[0].output(&["check"]).await;
    let said = String::from_utf8_lossy(&check.stdout).into_owned();
    assert!(said.contains("schema 1, writable"), "{said}");
    // Both sides are asked as the roles, by nobody else.
    let others = "SELECT count(*) FROM pg_stat_activity
                  WHERE application_name = 'reconciled' AND usename NOT IN ('reconciled', 'reconciled_state')";
    assert_eq!(database.integer(others).await, 0);
    stop(replicas).await;
    world.assert_clean();

    for (role, each) in [
        ("reconciled_state", MAX_CONNECTIONS),
        ("reconciled", MAX_CONNECTIONS + LISTENING),
    ] {
        let limit = format!("SELECT rolconnlimit::bigint FROM pg_roles WHERE rolname = '{role}'");
        let needed = DAEMONS * each + COMMANDS * MAX_CONNECTIONS;
        let limit = database.integer(&limit).await;
        assert!(limit >= needed, "{role}: {limit} of {needed}");
    }

    // It owns its schema and all in it, and nothing else.
    for (what, sql) in [
        (
            "relations of others",
            "SELECT count(*) FROM pg_class
             WHERE relowner = 'reconciled_state'::regrole AND relnamespace <> 'reconciled'::regnamespace
               AND relnamespace <> 'pg_toast'::regnamespace",
        ),
        (
            "relations in its schema that another owns",
            "SELECT count(*) FROM pg_class
             WHERE relnamespace = 'reconciled'::regnamespace AND relowner <> 'reconciled_state'::regrole",
        ),
        (
            "the right to read the provider's tables, or to make a schema",
            "SELECT (has_table_privilege('reconciled_state', 'public.staff', 'SELECT')
                     OR has_database_privilege('reconciled_state', current_database(), 'CREATE'))::int::bigint",
        ),
    ] {
        assert_eq!(database.integer(sql).await, 0, "{what}");
    }
}
