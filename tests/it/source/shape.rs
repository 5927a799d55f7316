//! What a query may look like, and what is said of one that may not be used.

use std::time::Duration;

use reconciled::model::InstallationId;
use reconciled::source::{CursorKind, Guarantee, Overlap, PollFrom};

use super::bed::{Bed, ids, poll_all, refusal, sweep_all};
use super::on_every_database;
use crate::support::database::Engine;

on_every_database!(
    a_query_may_hold_comments_and_end_in_a_semicolon,
    columns_that_mean_nothing_are_refused,
    an_overlap_of_the_wrong_kind_is_refused,
    a_token_is_looked_up_by_its_exact_installation,
    an_identity_stays_the_same,
    a_source_describes_itself,
    a_query_without_cursor_is_swept,
    a_query_that_failed_is_understood_anew,
);

async fn a_query_may_hold_comments_and_end_in_a_semicolon(bed: Bed) {
    bed.create("BIGINT").await;
    bed.database
        .execute(
            "INSERT INTO resource (installation_id, resource_id, updated_at) VALUES ('i', 'r', 1)",
        )
        .await;
    let query = bed.query();
    for query in [
        format!("{query};"),
        format!("{query} ; ;\n"),
        format!("{query} -- the end"),
        format!("{query} -- the end;\n;"),
        format!("{query} /* ; */"),
        format!("-- first;\n/* ) */ {query}"),
        format!(
            "WITH r AS (SELECT * FROM resource) {}",
            query.replace("FROM resource", "FROM r")
        ),
        format!(
            "WITH r AS (SELECT * FROM resource) -- (\n {} -- ;",
            query.replace("FROM resource", "FROM r")
        ),
        format!("{query} ORDER BY resource_id LIMIT 10"),
        format!("{query} WHERE resource_id <> ';' -- it's"),
        format!("{query} UNION ALL SELECT 'a', 'b', 2, NULL, NULL"),
    ] {
        let source = bed.source(&query);
        let (rows, _) = poll_all(&*source, PollFrom::Beginning, 10).await;
        assert_eq!(ids(&rows)[0], "r", "{query}");
        let swept = sweep_all(&*source, 1).await.concat();
        assert_eq!(swept.len(), rows.len(), "{query}");
    }
}

async fn columns_that_mean_nothing_are_refused(bed: Bed) {
    bed.create("BIGINT").await;
    for (query, problem) in [
        (
            "SELECT installation_id, resource_id, status AS sttaus FROM resource",
            "has the unknown column `sttaus`; did you mean `status`?",
        ),
        (
            "SELECT installation_id, resource_id, updated_at FROM resource",
            "has the unknown column `updated_at`; the columns are installation_id, resource_id, cursor",
        ),
        (
            "SELECT resource_id FROM resource",
            "has no column `installation_id`",
        ),
        (
            "SELECT installation_id, status FROM resource",
            "has no column `resource_id`",
        ),
        (
            "SELECT installation_id, resource_id, status, status FROM resource",
            "has the column `status` twice",
        ),
    ] {
        let source = bed.source(query);
        let error = source.shape().await.expect_err(query);
        assert!(error.is_configuration());
        let refusal = refusal(error);
        assert!(refusal.contains(problem), "{refusal}");
        assert!(source.sweep_page(None, 1).await.is_err(), "{query}");
    }
    for cursor in [
        bed.pick("1.5::float8", "1.5e0", "1.5"),
        bed.pick("ARRAY[1]", "CAST('12:00:00' AS TIME)", "x'00'"),
    ] {
        let query = format!(
            "SELECT 'i' AS installation_id, 'r' AS resource_id, {cursor} {}",
            bed.as_cursor()
        );
        let refusal = refusal(bed.source(&query).shape().await.expect_err(&query));
        assert!(refusal.contains("has a cursor of type"), "{refusal}");
    }
}

async fn an_overlap_of_the_wrong_kind_is_refused(bed: Bed) {
    bed.create("BIGINT").await;
    let source = bed.source_with(&bed.query(), |settings| {
        settings.overlap = Overlap::Duration(Duration::from_secs(30));
    });
    let refused = refusal(source.shape().await.expect_err("refused"));
    assert!(refused.contains("integer cursor"), "{refused}");
    if bed.engine() != Engine::Sqlite {
        bed.database.execute("DROP TABLE resource").await;
        bed.create(bed.timestamp()).await;
        let source = bed.source_with(&bed.query(), |settings| {
            settings.overlap = Overlap::Units(3)
        });
        let refused = refusal(source.shape().await.expect_err("refused"));
        assert!(refused.contains("timestamp cursor"), "{refused}");
    }
}

async fn a_token_is_looked_up_by_its_exact_installation(bed: Bed) {
    bed.create("BIGINT").await;
    let text = bed.text();
    bed.database
        .execute(&format!(
            "CREATE TABLE installation (id {text}, token {text});
             INSERT INTO installation VALUES
                ('icfg_1', 'token-1'), ('ICFG_1', 'token-2'), ('icfg_1 ', 'token-3'), ('none', NULL), ('empty', ''),
                ('twice', 'a'), ('twice', 'b'), ('same', 'c'), ('same', 'c')"
        ))
        .await;
    let query = "SELECT id AS installation_id, token AS access_token FROM installation; -- tokens";
    let source = bed.source_with(&bed.query(), |settings| {
        settings.installations_query = Some(query.to_owned());
    });
    for (id, expected) in [
        ("icfg_1", Some("token-1")),
        ("ICFG_1", Some("token-2")),
        ("icfg_1 ", Some("token-3")),
        ("none", None),
        ("empty", None),
        ("other", None),
        ("same", Some("c")),
    ] {
        let id = InstallationId::new(id).expect("an id");
        let token = source.token(&id).await.expect("a look-up");
        assert_eq!(token.as_ref().map(|token| token.expose()), expected, "{id}");
    }
    // Several at once: those that have just one.
    bed.database
        .execute(&format!(
            "INSERT INTO installation {}",
            bed.pick(
                "SELECT 'crowd', 'd' FROM generate_series(1, 2100)",
                "SELECT 'crowd', 'd' FROM seq_1_to_2100",
                "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2100) SELECT 'crowd', 'd' FROM n",
            )
        ))
        .await;
    let others = (0..600).map(|n| format!("other-{n}"));
    let asked = [
        "icfg_1", "ICFG_1", "icfg_1 ", "none", "empty", "twice", "same", "crowd",
    ];
    let asked = asked.map(str::to_owned).into_iter().chain(others);
    let asked: Vec<InstallationId> = asked
        .map(|id| InstallationId::new(&id).expect("an id"))
        .collect();
    let tokens = source.tokens(&asked).await.expect("a look-up");
    let mut told: Vec<_> = tokens
        .iter()
        .map(|(id, token)| (id.as_str(), token.expose()))
        .collect();
    told.sort_unstable();
    assert_eq!(
        told,
        [
            ("ICFG_1", "token-2"),
            ("crowd", "d"),
            ("icfg_1", "token-1"),
            ("icfg_1 ", "token-3"),
            ("same", "c"),
        ]
    );
    assert!(source.tokens(&[]).await.expect("nothing to do").is_empty());
    let twice = InstallationId::new("twice").expect("an id");
    let error = source.token(&twice).await.expect_err("two tokens");
    assert!(
        error.to_string().contains("more than one access_token"),
        "{error}"
    );
    let is_indexed = async || {
        source
            .describe()
            .await
            .expect("a description")
            .is_token_indexed
    };
    assert_eq!(is_indexed().await, Some(false));
    bed.database
        .execute("CREATE INDEX by_id ON installation (id)")
        .await;
    assert_eq!(is_indexed().await, Some(true));
    for (query, problem) in [
        (
            "SELECT id AS installation_id, token FROM installation",
            "unknown column `token`",
        ),
        (
            "SELECT id AS installation_id FROM installation",
            "no column `access_token`",
        ),
    ] {
        let source = bed.source_with(&bed.query(), |settings| {
            settings.installations_query = Some(query.to_owned());
        });
        let refusal = refusal(source.shape().await.expect_err("refused"));
        assert!(refusal.starts_with("installations query"), "{refusal}");
        assert!(refusal.contains(problem), "{refusal}");
    }
}

async fn an_identity_stays_the_same(bed: Bed) {
    bed.create("BIGINT").await;
    let first = bed
        .source(&bed.query())
        .identity()
        .await
        .expect("an identity");
    bed.database
        .execute("INSERT INTO resource (installation_id, resource_id) VALUES ('i', 'r')")
        .await;
    let second = bed
        .source(&bed.query())
        .identity()
        .await
        .expect("an identity");
    assert_eq!(first, second);
    assert!(first.id.len() > 8, "{first:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_right_to_the_identity_that_is_taken_away_ends_no_poll() {
    let bed = Bed::postgres().await;
    bed.create("BIGINT").await;
    let mut settings = bed.settings(&bed.query());
    settings.url = bed.database.reader().await.into();
    let source = reconciled::source::connect(&settings).expect("settings");
    let poll = async || {
        let page = source.poll_page(&PollFrom::Beginning, 10, None).await;
        let page = page.expect("a page");
        page.identity.expect("with the first page of a pass").id
    };
    // Asked for with the beginning of the transaction, once it is known what may be asked.
    let whole = [poll().await, poll().await];
    assert!(whole[0].contains("system="), "{whole:?}");
    assert_eq!(whole[0], whole[1]);
    bed.database
        .execute("REVOKE EXECUTE ON FUNCTION pg_catalog.pg_control_system() FROM PUBLIC")
        .await;
    let less = poll().await;
    assert!(
        whole[0].starts_with(&less) && !less.contains("system="),
        "{less}"
    );
    assert_eq!(less, source.identity().await.expect("an identity").id);
}

async fn a_source_describes_itself(bed: Bed) {
    bed.create(bed.timestamp()).await;
    bed.database
        .execute(
            "CREATE INDEX by_cursor ON resource (updated_at);
             INSERT INTO resource (installation_id, resource_id, updated_at)
             VALUES ('i', 'r', '2026-01-31 12:00:00'), ('i', 's', NULL)",
        )
        .await;
    let mut settings = bed.settings(&bed.query());
    settings.url = bed.database.reader().await.into();
    let source = reconciled::source::connect(&settings).expect("settings");
    let description = source.describe().await.expect("a description");
    assert_eq!(description.rows, Some(2));
    assert_eq!(description.can_write, Some(false), "{description:?}");
    assert_eq!(description.columns.len(), 5);
    assert_eq!(description.is_poll_indexed, Some(true), "{description:?}");
    assert!(
        !format!("{description:?}").contains(":reader@"),
        "{description:?}"
    );
    let (guarantee, advice) = match bed.engine() {
        Engine::Postgres => (Guarantee::BoundedByOverlap, "GRANT pg_read_all_stats TO"),
        Engine::MariaDb => (Guarantee::BoundedByOverlap, "overlap"),
        Engine::Sqlite => (Guarantee::Exact, ""),
    };
    assert_eq!(description.guarantee, guarantee);
    assert!(description.improvement.unwrap_or_default().contains(advice));
    if bed.engine() == Engine::Postgres {
        let owner = bed
            .source(&bed.query())
            .describe()
            .await
            .expect("a description");
        assert_eq!(owner.guarantee, Guarantee::Exact);
        assert_eq!(owner.can_write, Some(true));
        assert_eq!(owner.cursor_type.as_deref(), Some("timestamptz"));
    }
    bed.database
        .execute(bed.pick(
            "DROP INDEX by_cursor",
            "DROP INDEX by_cursor ON resource",
            "DROP INDEX by_cursor",
        ))
        .await;
    let description = source.describe().await.expect("a description");
    assert_eq!(description.is_poll_indexed, Some(false));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_is_exact_for_a_role_that_may_see_every_session_whoever_is_there() {
    let bed = Bed::postgres().await;
    bed.create("timestamptz").await;
    let mut settings = bed.settings(&bed.query());
    settings.url = bed.database.reader().await.into();
    let source = reconciled::source::connect(&settings).expect("settings");
    let promise = async || {
        let description = source.describe().await.expect("a description");
        (description.guarantee, description.improvement)
    };
    let role = bed.reader_role();
    let bounded = |advice: String| (Guarantee::BoundedByOverlap, Some(advice));
    let grant = bounded(format!("GRANT pg_read_all_stats TO {role}"));
    // Nobody is there who could hide; somebody may come.
    bed.is_quiet().await;
    assert_eq!(promise().await, grant);
    let mut other = bed.database.session().await;
    assert_eq!(promise().await, grant);
    for right in ["pg_read_all_stats", "pg_monitor"] {
        other.execute(&format!("GRANT {right} TO {role}")).await;
        assert_eq!(promise().await, (Guarantee::Exact, None), "{right}");
        other.execute(&format!("REVOKE {right} FROM {role}")).await;
        assert_eq!(promise().await, grant);
    }
    // A right to see helps nothing with what is not shown.
    other
        .execute(&format!(
            "GRANT pg_monitor TO {role}; SET track_activities = off"
        ))
        .await;
    let (guarantee, improvement) = promise().await;
    assert_eq!(guarantee, Guarantee::BoundedByOverlap);
    assert!(improvement.is_some_and(|advice| advice.contains("track_activities")));
}

async fn a_query_without_cursor_is_swept(bed: Bed) {
    bed.create("BIGINT").await;
    let source = bed.source("SELECT installation_id, resource_id, status FROM resource");
    assert_eq!(source.shape().await.expect("a shape").cursor, None);
    let description = source.describe().await.expect("a description");
    assert_eq!(description.guarantee, Guarantee::SweepOnly);
    assert!(sweep_all(&*source, 1).await.concat().is_empty());
}

async fn a_query_that_failed_is_understood_anew(bed: Bed) {
    bed.create("BIGINT").await;
    let source = bed.source(&bed.query());
    assert_eq!(
        source.shape().await.expect("a shape").cursor,
        Some(CursorKind::Integer)
    );
    bed.database.execute("DROP TABLE resource").await;
    let error = source.sweep_page(None, 1).await.expect_err("no table");
    assert_eq!(error.code(), "query");
    assert!(error.to_string().contains("resource"), "{error}");
    bed.create(bed.text()).await;
    bed.database
        .execute("INSERT INTO resource (installation_id, resource_id, updated_at) VALUES ('i', 'r', 'x')")
        .await;
    assert_eq!(sweep_all(&*source, 1).await.concat().len(), 1);
    assert_eq!(
        source.shape().await.expect("a shape").cursor,
        Some(CursorKind::Text)
    );
}
