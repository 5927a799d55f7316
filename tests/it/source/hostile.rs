//! Hostile queries: nothing is written, each is cut within its timeout and a second.

use std::time::{Duration, Instant};

use reconciled::model::{RawText, ResourceKey};
use reconciled::source::PollFrom;

use super::bed::{Bed, first_error, poll_all, sweep_all, text};
use super::on_every_database;
use crate::support::database::Engine;

on_every_database!(
    nothing_is_ever_written,
    a_statement_is_cut_within_its_timeout_and_a_second,
    an_error_repeats_no_value,
    a_huge_result_is_cut_and_yet_every_row_comes,
    every_kind_of_read_is_cut_in_time,
);

/// The statement timeout of the queries that would never end.
const LIMIT: Duration = Duration::from_millis(1_000);

async fn nothing_is_ever_written(bed: Bed) {
    bed.create("BIGINT").await;
    bed.database
        .execute(
            "INSERT INTO resource (installation_id, resource_id, updated_at) VALUES ('i', 'r', 1), ('i', 's', 2);
             CREATE TABLE bystander (a INTEGER);
             INSERT INTO bystander VALUES (4711)",
        )
        .await;
    // What a query would write goes beside the database of SQLite, and where the server of MariaDB may write.
    let target = match bed.engine() {
        Engine::Sqlite => format!("{}-target", bed.database.name),
        Engine::Postgres | Engine::MariaDb => {
            let directory = std::env::temp_dir();
            format!(
                "{}/reconciled-{}-target",
                directory.display(),
                bed.database.name
            )
        }
    };
    let good = "SELECT installation_id, resource_id FROM resource";
    let mut queries = vec![
        format!("{good}; DELETE FROM resource"),
        format!("{good}; DELETE FROM resource; {good}"),
        format!("{good}) AS x; DELETE FROM resource; SELECT * FROM ({good}"),
        format!("{good}\n) AS resource -- \n; DELETE FROM resource"),
        "DELETE FROM resource".to_owned(),
        "UPDATE resource SET status = 'x'".to_owned(),
        "INSERT INTO resource (installation_id) VALUES ('x')".to_owned(),
        "DROP TABLE resource".to_owned(),
        "CREATE TABLE other (a INTEGER)".to_owned(),
        "INSERT INTO bystander SELECT 1 FROM resource".to_owned(),
        "ALTER TABLE bystander ADD COLUMN b INTEGER".to_owned(),
        // One statement, and one that begins as a good one may; MariaDB does not take it, MySQL does.
        "WITH gone AS (SELECT 'i' AS installation_id) DELETE FROM resource WHERE installation_id IN (SELECT installation_id FROM gone)".to_owned(),
        "WITH gone AS (SELECT 'i' AS installation_id) UPDATE resource SET status = 'x' WHERE installation_id IN (SELECT installation_id FROM gone)".to_owned(),
        "WITH one AS (SELECT 1 AS a) INSERT INTO bystander SELECT a FROM one".to_owned(),
    ];
    match bed.engine() {
        Engine::Postgres => {
            bed.database
                .execute(
                    "CREATE SEQUENCE numbers;
                     CREATE FUNCTION writes() RETURNS text VOLATILE LANGUAGE sql AS
                        $$ DELETE FROM resource RETURNING resource_id $$;
                     CREATE FUNCTION loosens() RETURNS text VOLATILE LANGUAGE plpgsql AS
                        $$ BEGIN
                            PERFORM set_config('transaction_read_only', 'off', false);
                            DELETE FROM resource; RETURN 'x';
                        END $$;",
                )
                .await;
            queries.extend(
                [
                    "DELETE FROM resource RETURNING installation_id, resource_id",
                    "WITH gone AS (DELETE FROM resource RETURNING *) SELECT installation_id, resource_id FROM gone",
                    "WITH one AS (SELECT 1) DELETE FROM resource RETURNING installation_id, resource_id",
                    "SELECT 'i' AS installation_id, writes() AS resource_id",
                    "SELECT 'i' AS installation_id, loosens() AS resource_id",
                    "SELECT 'i' AS installation_id, nextval('numbers')::text AS resource_id",
                    "SELECT installation_id, resource_id FROM resource FOR UPDATE",
                    "SELECT installation_id, resource_id INTO other FROM resource",
                    "SELECT 'i' AS installation_id, set_config('transaction_read_only', 'off', true) AS resource_id",
                    "COPY resource TO STDOUT",
                ]
                .map(str::to_owned),
            );
            queries.push(format!("COPY resource TO '{target}'"));
        }
        Engine::MariaDb => {
            bed.database
                .execute(
                    "CREATE FUNCTION writes() RETURNS TEXT MODIFIES SQL DATA
                     BEGIN DELETE FROM resource; RETURN 'x'; END",
                )
                .await;
            queries.extend(
                [
                    "SELECT 'i' AS installation_id, writes() AS resource_id",
                    "SELECT /*! SQL_NO_CACHE */ installation_id, resource_id FROM resource",
                    "DELETE FROM resource RETURNING installation_id, resource_id",
                ]
                .map(str::to_owned),
            );
            // A read-only transaction does not forbid these.
            queries.extend(["OUTFILE", "DUMPFILE"].map(|file| {
                format!("SELECT installation_id, resource_id INTO {file} '{target}' FROM resource LIMIT 1")
            }));
            queries.push(format!(
                "SELECT installation_id, resource_id FROM resource INTO OUTFILE '{target}'"
            ));
        }
        Engine::Sqlite => {
            queries.extend(
                [
                    "DELETE FROM resource RETURNING installation_id, resource_id",
                    "WITH one AS (SELECT 1) DELETE FROM resource RETURNING installation_id, resource_id",
                    "PRAGMA query_only = OFF",
                    "PRAGMA user_version = 7",
                ]
                .map(str::to_owned),
            );
            queries.extend([
                format!("ATTACH DATABASE '{target}' AS other"),
                format!("ATTACH DATABASE '{target}' AS other; CREATE TABLE other.written (a)"),
                // From a database that may only be read it writes another.
                format!("VACUUM INTO '{target}'"),
            ]);
        }
    }
    // Written there by somebody who may, it would be seen.
    let control = format!("{target}-control");
    let write = bed.pick(
        "COPY bystander TO",
        "SELECT a FROM bystander INTO OUTFILE",
        "VACUUM INTO",
    );
    bed.database.execute(&format!("{write} '{control}'")).await;
    std::fs::remove_file(&control).expect("it was written");
    let before = content(&bed).await;
    for query in &queries {
        let error = match reconciled::source::connect(&bed.settings(query)) {
            Err(error) => error,
            Ok(source) => first_error(&*source).await,
        };
        assert!(
            matches!(error.code(), "shape" | "query"),
            "{query}: {error}"
        );
        assert_eq!(content(&bed).await, before, "{query}");
        assert!(!std::path::Path::new(&target).exists(), "{query}");
    }
    if bed.engine() == Engine::Postgres {
        // This one is harmless, and so it must stay: the next page is as read-only as before.
        let source = bed.source_with(
            "SELECT installation_id, resource_id, set_config('default_transaction_read_only', 'off', false)
                || set_config('TimeZone', 'Asia/Tokyo', false) || writes() AS name FROM resource",
            |settings| settings.max_connections = 1,
        );
        for _ in 0..3 {
            assert!(source.sweep_page(None, 10).await.is_err());
        }
        // What a query set is set back before the next page: the status is read before the name sets the zone.
        let read = bed.source_with(
            "SELECT installation_id, resource_id, current_setting('TimeZone') AS status,
                set_config('TimeZone', 'Asia/Tokyo', false) AS name FROM resource",
            |settings| settings.max_connections = 1,
        );
        for _ in 0..3 {
            let page = read.sweep_page(None, 10).await.expect("a page");
            assert_eq!(text(&page.rows[0].columns[0].1), Some("UTC"));
            assert_eq!(text(&page.rows[0].columns[1].1), Some("Asia/Tokyo"));
        }
        assert_eq!(content(&bed).await, before);
    }
}

/// Everything that a hostile query could write to: each table with its columns and rows, and what else the database keeps.
async fn content(bed: &Bed) -> String {
    let sql = match bed.engine() {
        Engine::Postgres => {
            "SELECT concat_ws(' ',
                (SELECT string_agg(concat_ws(' ', c.oid, c.relname, c.relkind), ', ' ORDER BY c.oid)
                    FROM pg_class AS c WHERE c.relnamespace = 'public'::regnamespace),
                (SELECT string_agg(concat(s.sequencename, ' ', s.last_value), ', ' ORDER BY s.sequencename)
                    FROM pg_sequences AS s),
                schema_to_xml('public', true, false, ''))"
        }
        Engine::MariaDb => {
            "SELECT CONCAT_WS(' ',
                (SELECT GROUP_CONCAT(c.table_name, '.', c.column_name ORDER BY c.table_name, c.ordinal_position)
                    FROM information_schema.columns AS c WHERE c.table_schema = DATABASE()),
                (SELECT GROUP_CONCAT(JSON_ARRAY(installation_id, resource_id, updated_at, status, metadata) ORDER BY resource_id)
                    FROM resource),
                (SELECT GROUP_CONCAT(a) FROM bystander))"
        }
        Engine::Sqlite => {
            "SELECT concat_ws(' ',
                (SELECT group_concat(sql) FROM sqlite_master),
                (SELECT group_concat(json_array(installation_id, resource_id, updated_at, status, metadata) ORDER BY resource_id)
                    FROM resource),
                (SELECT group_concat(a) FROM bystander),
                (SELECT user_version FROM pragma_user_version))"
        }
    };
    let content = bed.database.text(sql).await;
    assert!(content.contains("4711"), "{content}");
    content
}

async fn a_statement_is_cut_within_its_timeout_and_a_second(bed: Bed) {
    let endless = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)
        SELECT 'i' AS installation_id, 'r' AS resource_id, MAX(i) AS name FROM n";
    let mut queries = vec![];
    match bed.engine() {
        Engine::Postgres => queries.extend([
            endless.to_owned(),
            "SELECT 'i' AS installation_id, 'r' AS resource_id, pg_sleep(60)::text AS name".to_owned(),
            "SELECT a::text AS installation_id, b::text AS resource_id
                FROM generate_series(1, 100000) AS a, generate_series(1, 100000) AS b".to_owned(),
        ]),
        Engine::MariaDb => queries.extend([
            "SELECT 'i' AS installation_id, 'r' AS resource_id, SLEEP(60) AS name".to_owned(),
            "SELECT 'i' AS installation_id, 'r' AS resource_id, BENCHMARK(1000000000000, MD5('x')) AS name".to_owned(),
            "SELECT a.seq AS installation_id, b.seq AS resource_id FROM seq_1_to_100000 AS a, seq_1_to_100000 AS b ORDER BY MD5(CONCAT(a.seq, b.seq))".to_owned(),
        ]),
        Engine::Sqlite => queries.push(endless.to_owned()),
    }
    for query in queries {
        let source = bed.source_with(&query, |settings| settings.statement_timeout = LIMIT);
        source
            .shape()
            .await
            .expect("the columns are known without running it");
        let started = Instant::now();
        let error = source.sweep_page(None, 10).await.expect_err(&query);
        let elapsed = started.elapsed();
        assert_eq!(error.code(), "timeout", "{query}: {error}");
        assert!(
            elapsed < LIMIT + Duration::from_secs(1),
            "{query}: {elapsed:?}"
        );
        // Another call is not disturbed by what happened to this one.
        source.identity().await.expect("the source works");
    }
}

async fn an_error_repeats_no_value(bed: Bed) {
    bed.create("BIGINT").await;
    bed.database
        .execute("INSERT INTO resource (installation_id, resource_id, updated_at, status) VALUES ('i', 'hunter2', 1, 'hunter2')")
        .await;
    let mut queries = vec![
        "SELECT installation_id, resource_id, 'hunter2 FROM resource".to_owned(),
        "SELECT installation_id, resource_id 'hunter2' hunter2 FROM FROM resource".to_owned(),
        bed.pick(
            "SELECT installation_id, resource_id, status::int AS name FROM resource",
            "SELECT installation_id, resource_id, (SELECT 1 FROM resource WHERE CAST(status AS BINARY) = 1 / 0 UNION SELECT 2) AS name FROM no_such_table",
            "SELECT installation_id, resource_id, json_extract(status, '$.a') AS name FROM resource",
        )
        .to_owned(),
    ];
    if bed.engine() == Engine::Postgres {
        bed.database
            .execute(
                "CREATE FUNCTION raises(value text) RETURNS text LANGUAGE plpgsql AS
                    $$ BEGIN RAISE EXCEPTION 'bad %', value USING DETAIL = value, HINT = value; END $$",
            )
            .await;
        queries.push(
            "SELECT installation_id, resource_id, raises(status) AS name FROM resource".to_owned(),
        );
    }
    for query in queries {
        let error = match reconciled::source::connect(&bed.settings(&query)) {
            Err(error) => error,
            Ok(source) => first_error(&*source).await,
        };
        let said = format!("{error} {error:?}");
        assert!(!said.contains("hunter2"), "{query}: {said}");
    }
}

async fn a_huge_result_is_cut_and_yet_every_row_comes(bed: Bed) {
    const ROWS: usize = 60;
    let (id, long) = (bed.text(), bed.long());
    bed.database
        .execute(&format!(
            "CREATE TABLE resource (installation_id {id}, resource_id {id}, version BIGINT, name {long})"
        ))
        .await;
    // 54 MB in all; one statement brings in 32 MiB at most.
    let large = bed.pick(
        "repeat('x', 900000)",
        "REPEAT('x', 900000)",
        "replace(hex(zeroblob(450000)), '0', 'x')",
    );
    let huge = bed.pick(
        "repeat('x', 12000000)",
        "REPEAT('x', 12000000)",
        "replace(hex(zeroblob(6000000)), '0', 'x')",
    );
    for n in 0..ROWS {
        let value = if n == 30 { huge } else { large };
        let insert = format!("INSERT INTO resource VALUES ('i', 'r{n:02}', {n}, {value})");
        bed.database.execute(&insert).await;
    }
    let query = format!(
        "SELECT installation_id, resource_id, version {}, name FROM resource",
        bed.as_cursor()
    );
    let source = bed.source(&query);
    let keys: Vec<ResourceKey> = (0..ROWS)
        .map(|n| ResourceKey::new("i", &format!("r{n:02}")).expect("two ids"))
        .collect();
    let swept = sweep_all(&*source, 500).await;
    assert!(swept.len() > 1, "no page holds it all");
    let (polled, pages) = poll_all(&*source, PollFrom::Beginning, 500).await;
    assert!(pages > 1, "no page holds it all");
    // What a look-up did not come to would be taken for missing.
    let fetched = source.fetch(&keys).await.expect("they are there");
    for rows in [swept.concat(), polled, fetched] {
        let mut found: Vec<&str> = rows
            .iter()
            .map(|row| text(&row.resource_id).expect("an id"))
            .collect();
        found.sort_unstable();
        found.dedup();
        assert_eq!(found.len(), ROWS);
        for row in &rows {
            let is_huge = text(&row.resource_id) == Some("r30");
            let is_unreadable = matches!(row.columns[0].1, RawText::Unreadable(_));
            assert_eq!(is_huge, is_unreadable);
        }
    }
}

async fn every_kind_of_read_is_cut_in_time(bed: Bed) {
    let endless = bed.pick(
        "SELECT pg_sleep(60)::text",
        "SELECT SLEEP(60)",
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT MAX(i) FROM n",
    );
    let query = format!(
        "SELECT 'i' AS installation_id, 'r' AS resource_id, 1 {}, ({endless}) AS name",
        bed.as_cursor()
    );
    let source = bed.source_with(&query, |settings| {
        settings.statement_timeout = LIMIT;
        settings.installations_query = Some(format!(
            "SELECT 'i' AS installation_id, ({endless}) AS access_token"
        ));
    });
    let key = ResourceKey::new("i", "r").expect("two ids");
    for kind in ["poll", "sweep", "fetch", "token", "tokens"] {
        let started = Instant::now();
        let error = match kind {
            "poll" => source
                .poll_page(&PollFrom::Beginning, 10, None)
                .await
                .map(drop),
            "sweep" => source.sweep_page(None, 10).await.map(drop),
            "fetch" => source.fetch(std::slice::from_ref(&key)).await.map(drop),
            "token" => source.token(&key.installation_id).await.map(drop),
            _ => {
                let asked = std::slice::from_ref(&key.installation_id);
                source.tokens(asked).await.map(drop)
            }
        }
        .expect_err(kind);
        let elapsed = started.elapsed();
        assert_eq!(error.code(), "timeout", "{kind}: {error}");
        assert!(
            elapsed < LIMIT + Duration::from_secs(1),
            "{kind}: {elapsed:?}"
        );
    }
}
