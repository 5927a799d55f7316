//! The role that `deploy/postgres-state.sql` makes is all that daemons need: they make their tables with it and work.

use rustix::process::Signal;

use super::{World, stop, watcher};
use crate::deploy::psql;
use crate::support::postgres::Postgres;

#[tokio::test]
async fn daemons_work_under_the_role_that_deploy_makes() {
    let server = Postgres::dedicated();
    let database = server.database().await;
    let file = format!("{}/deploy/postgres-state.sql", env!("CARGO_MANIFEST_DIR"));
    psql(&database.url, &["--single-transaction", "--file", &file]);
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
    let world = World::new(&url).await;
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
    stop(replicas).await;
    world.assert_clean();

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
