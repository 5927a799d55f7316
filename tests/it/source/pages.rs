//! Order, ties and completeness of pages.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use reconciled::model::{RawRow, RawText, ResourceKey};
use reconciled::source::{CursorKind, Overlap, PollFrom, Sieve, Suspects};
use sqlx::{AssertSqlSafe, Connection as _, MySqlConnection, PgConnection};

use super::bed::{
    Bed, ids, last_cursor, poll_all, poll_news, poll_pages, refusal, sweep_all, text,
};
use super::on_every_database;
use crate::support::database::Engine;
use crate::support::mariadb::MariaDb;
use crate::support::postgres::Postgres;

on_every_database!(
    ties_are_read_once_each_across_pages,
    cursors_keep_every_microsecond,
    an_integer_cursor_reads_its_overlap_in_units,
    a_text_cursor_sorts,
    ids_that_a_collation_takes_for_equal_are_all_read,
    equal_ids_are_never_torn_apart,
    rows_without_ids_are_in_the_first_page_of_a_sweep,
    integer_ids_are_ids,
    rows_without_cursor_are_seen_by_sweeps_alone,
    a_cursor_that_is_no_text_ends_no_pass,
    a_look_up_finds_exactly_the_resources_named,
    the_overlap_reads_what_committed_late,
    what_commits_behind_a_page_already_read_is_in_the_next_pass,
    rows_that_pass_take_no_memory_and_suspects_among_the_others_are_found,
    large_pages_end_early_and_lose_nothing,
);

async fn insert_many(bed: &Bed, count: usize, row: impl Fn(usize) -> String) {
    for chunk in (0..count).collect::<Vec<_>>().chunks(500) {
        let rows: Vec<String> = chunk.iter().map(|index| row(*index)).collect();
        bed.database
            .execute(&format!(
                "INSERT INTO resource (installation_id, resource_id, updated_at, status) VALUES {}",
                rows.join(", ")
            ))
            .await;
    }
}

async fn ties_are_read_once_each_across_pages(bed: Bed) {
    bed.create(bed.timestamp()).await;
    insert_many(&bed, 1_000, |index| {
        format!(
            "('i{}', 'r{index}', '2026-01-31 12:00:00.5', 'ready')",
            index % 3
        )
    })
    .await;
    let source = bed.source(&bed.query());
    let (rows, pages) = poll_all(&*source, PollFrom::Beginning, 7).await;
    assert_eq!(rows.len(), 1_000);
    assert_eq!(ids(&rows).into_iter().collect::<BTreeSet<_>>().len(), 1_000);
    assert!(pages >= 143, "{pages} pages");
    let swept = sweep_all(&*source, 7).await.concat();
    assert_eq!(swept.len(), 1_000);
    assert_eq!(
        ids(&swept).into_iter().collect::<BTreeSet<_>>().len(),
        1_000
    );
    // A pass that starts at a cursor reads all rows that have it.
    let from = PollFrom::Cursor(last_cursor(&rows));
    assert_eq!(poll_all(&*source, from, 7).await.0.len(), 1_000);
}

async fn cursors_keep_every_microsecond(bed: Bed) {
    let types: &[&str] = match bed.engine() {
        Engine::Postgres => &["timestamptz", "timestamp", "text"],
        Engine::MariaDb => &["DATETIME(6)", "TIMESTAMP(6)", "VARCHAR(40)"],
        Engine::Sqlite => &["TEXT", "DATETIME", "TIMESTAMP"],
    };
    for cursor_type in types {
        bed.database.execute("DROP TABLE IF EXISTS resource").await;
        bed.create(cursor_type).await;
        insert_many(&bed, 9, |index| {
            format!("('i', 'r{index}', '2026-01-31 12:00:00.12345{index}', 'ready')")
        })
        .await;
        let source = bed.source_with(&bed.query(), |settings| {
            settings.overlap = Overlap::Duration(Duration::ZERO);
        });
        let page = source
            .poll_page(&PollFrom::Beginning, 4, None)
            .await
            .expect("a page");
        assert_eq!(
            ids(&page.rows.to_rows()),
            ["r0", "r1", "r2", "r3"],
            "{cursor_type}"
        );
        let cursor = last_cursor(&page.rows.to_rows());
        assert!(cursor.contains("12:00:00.123453"), "{cursor_type} {cursor}");
        // From the cursor on, itself included; after the position, itself excluded.
        let (again, _) = poll_all(&*source, PollFrom::Cursor(cursor), 2).await;
        assert_eq!(
            ids(&again),
            ["r3", "r4", "r5", "r6", "r7", "r8"],
            "{cursor_type}"
        );
        let next = PollFrom::After(page.next.expect("there are more"));
        let (rest, _) = poll_all(&*source, next, 2).await;
        assert_eq!(ids(&rest), ["r4", "r5", "r6", "r7", "r8"], "{cursor_type}");
    }
}

async fn an_integer_cursor_reads_its_overlap_in_units(bed: Bed) {
    bed.create("BIGINT").await;
    // Beyond what a double can tell apart.
    let base: i64 = 9_007_199_254_740_993;
    insert_many(&bed, 6, |index| {
        format!(
            "('i', 'r{index}', {}, 'ready')",
            base + i64::try_from(index).expect("small")
        )
    })
    .await;
    let source = bed.source(&bed.query());
    assert_eq!(
        source.shape().await.expect("a shape").cursor,
        Some(CursorKind::Integer)
    );
    let from = PollFrom::Cursor((base + 3).to_string());
    let (rows, _) = poll_all(&*source, from.clone(), 2).await;
    assert_eq!(ids(&rows), ["r3", "r4", "r5"]);
    let source = bed.source_with(&bed.query(), |settings| {
        settings.overlap = Overlap::Units(2)
    });
    let (rows, _) = poll_all(&*source, from, 2).await;
    assert_eq!(ids(&rows), ["r1", "r2", "r3", "r4", "r5"]);
    // Below the lowest integer there is nothing, and no error.
    let lowest = PollFrom::Cursor(i64::MIN.to_string());
    assert_eq!(poll_all(&*source, lowest, 100).await.0.len(), 6);
    // A cursor of another type than the column's is the beginning.
    let foreign = PollFrom::Cursor("2026-01-31 12:00:00".to_owned());
    assert_eq!(poll_all(&*source, foreign, 100).await.0.len(), 6);
}

async fn a_text_cursor_sorts(bed: Bed) {
    bed.create(bed.text()).await;
    insert_many(&bed, 6, |index| {
        format!("('i', 'r{index}', 'v{index}', 'ready')")
    })
    .await;
    let source = bed.source(&bed.query());
    assert_eq!(
        source.shape().await.expect("a shape").cursor,
        Some(CursorKind::Text)
    );
    let (rows, _) = poll_all(&*source, PollFrom::Cursor("v2".to_owned()), 2).await;
    assert_eq!(ids(&rows), ["r2", "r3", "r4", "r5"]);
}

async fn ids_that_a_collation_takes_for_equal_are_all_read(bed: Bed) {
    bed.create("BIGINT").await;
    let all = ["a", "A", "a ", "ä", "A ", "b", "B", "b\u{301}", "a\t"];
    insert_many(&bed, all.len(), |index| {
        format!("('i', '{}', 1, 'ready')", all[index])
    })
    .await;
    // The servers compare as they were set up to; a file has what each of its columns declares.
    let tables: &[&str] = match bed.engine() {
        Engine::Sqlite => &["resource", "nocase", "rtrim"],
        Engine::Postgres | Engine::MariaDb => &["resource"],
    };
    for collation in &tables[1..] {
        bed.database
            .execute(&format!(
                "CREATE TABLE {collation} (
                    installation_id TEXT COLLATE {collation}, resource_id TEXT COLLATE {collation},
                    updated_at BIGINT, status TEXT, metadata TEXT
                );
                INSERT INTO {collation} SELECT * FROM resource"
            ))
            .await;
    }
    let expected: BTreeSet<&str> = all.into_iter().collect();
    for table in tables {
        let source = bed.source(
            &bed.query()
                .replace("FROM resource", &format!("FROM {table}")),
        );
        for limit in 1..=4 {
            let (rows, _) = poll_all(&*source, PollFrom::Beginning, limit).await;
            assert_eq!(rows.len(), all.len(), "poll of {table} by {limit}");
            assert_eq!(ids(&rows).into_iter().collect::<BTreeSet<_>>(), expected);
            let rows = sweep_all(&*source, limit).await.concat();
            assert_eq!(rows.len(), all.len(), "sweep of {table} by {limit}");
            assert_eq!(ids(&rows).into_iter().collect::<BTreeSet<_>>(), expected);
        }
    }
}

async fn equal_ids_are_never_torn_apart(bed: Bed) {
    bed.create("BIGINT").await;
    insert_many(&bed, 30, |index| {
        format!("('i', 'r{:02}', 1, 'ready')", index / 5)
    })
    .await;
    let source = bed.source(&bed.query());
    for limit in 1..=7 {
        let pages = sweep_all(&*source, limit).await;
        assert_eq!(pages.concat().len(), 30, "by {limit}");
        let mut seen = BTreeSet::new();
        for page in &pages {
            let in_page: BTreeSet<&str> = ids(page).into_iter().collect();
            assert!(
                seen.is_disjoint(&in_page),
                "by {limit}: {seen:?} {in_page:?}"
            );
            seen.extend(in_page);
        }
        let (polled, _) = poll_all(&*source, PollFrom::Beginning, limit).await;
        assert_eq!(polled.len(), 30, "poll by {limit}");
    }
}

async fn rows_without_ids_are_in_the_first_page_of_a_sweep(bed: Bed) {
    bed.create("BIGINT").await;
    insert_many(&bed, 10, |index| match index {
        3 => "(NULL, 'r3', 1, 'ready')".to_owned(),
        5 => "('i', NULL, 1, 'ready')".to_owned(),
        7 => "(NULL, NULL, 1, 'ready')".to_owned(),
        8 => format!("('i', '{}', 1, 'ready')", "x".repeat(690)),
        _ => format!("('i', 'r{index}', 1, 'ready')"),
    })
    .await;
    let source = bed.source(&bed.query());
    let pages = sweep_all(&*source, 2).await;
    assert_eq!(pages.concat().len(), 10);
    let unusable = |page: &Vec<_>| {
        page.iter()
            .filter(|row: &&reconciled::model::RawRow| row.decode().is_err())
            .count()
    };
    assert_eq!(unusable(&pages[0]), 4);
    assert!(pages[1..].iter().all(|page| unusable(page) == 0));
    // Polls see them too: a row without an id is quarantined by the next poll, not by the next sweep.
    let (rows, _) = poll_all(&*source, PollFrom::Beginning, 2).await;
    assert_eq!(unusable(&rows), 4);
    assert_eq!(rows.len(), 10);
}

async fn integer_ids_are_ids(bed: Bed) {
    bed.database
        .execute("CREATE TABLE resource (installation_id BIGINT, resource_id BIGINT PRIMARY KEY, status VARCHAR(20))")
        .await;
    let rows: Vec<String> = (0..40)
        .map(|id| format!("({}, {id}, 'ready')", id % 3))
        .collect();
    bed.database
        .execute(&format!("INSERT INTO resource VALUES {}", rows.join(", ")))
        .await;
    for query in [
        "SELECT installation_id, resource_id, status FROM resource",
        "SELECT installation_id + 0 AS installation_id, resource_id * 1 AS resource_id, status FROM resource",
    ] {
        let source = bed.source(query);
        let swept = sweep_all(&*source, 7).await.concat();
        assert_eq!(swept.len(), 40, "{query}");
        let keys: Vec<ResourceKey> = [("1", "37"), ("2", "38"), ("2", "37"), ("x", "y")]
            .map(|(installation, resource)| ResourceKey::new(installation, resource).expect("ids"))
            .into();
        let mut found = source.fetch(&keys).await.expect("a look-up");
        found.sort_by_key(|row| row.key().expect("a key"));
        assert_eq!(ids(&found), ["37", "38"], "{query}");
    }
}

async fn rows_without_cursor_are_seen_by_sweeps_alone(bed: Bed) {
    bed.create(bed.timestamp()).await;
    insert_many(&bed, 4, |index| match index % 2 {
        0 => format!("('i', 'r{index}', NULL, 'ready')"),
        _ => format!("('i', 'r{index}', '2026-01-31 12:00:00', NULL)"),
    })
    .await;
    let source = bed.source(&bed.query());
    let (rows, _) = poll_all(&*source, PollFrom::Beginning, 10).await;
    assert_eq!(ids(&rows), ["r1", "r3"]);
    let swept = sweep_all(&*source, 10).await.concat();
    assert_eq!(ids(&swept), ["r0", "r1", "r2", "r3"]);
    assert!(swept[0].cursor.is_none());
    assert_eq!(swept[1].columns[0].1, RawText::Null);
}

async fn a_cursor_that_is_no_text_ends_no_pass(bed: Bed) {
    // A database of PostgreSQL whose texts are UTF-8 has none.
    let byte = bed.pick("", "X'80'", "CAST(X'80' AS TEXT)");
    if byte.is_empty() {
        return;
    }
    bed.create(bed.pick("", "VARBINARY(40)", "TEXT")).await;
    // Between "a" and "é" in the order of bytes, twice with each.
    let cursors = [
        "'a0'",
        "'a1'",
        byte,
        byte,
        "'\u{e9}0'",
        "'\u{e9}1'",
        byte,
        byte,
    ];
    let rows = cursors.iter().enumerate();
    let rows = rows.map(|(index, cursor)| format!("('i', 'r{index}', {cursor}, 'ready')"));
    let rows = rows.collect::<Vec<_>>().join(", ");
    bed.database
        .execute(&format!(
            "INSERT INTO resource (installation_id, resource_id, updated_at, status) VALUES {rows}"
        ))
        .await;
    let source = bed.source(&bed.query());
    let all: BTreeSet<_> = (0..cursors.len())
        .map(|index| format!("r{index}"))
        .collect();
    for limit in [5, 6, 7, 8, 9] {
        let (rows, _) = poll_pages(&*source, PollFrom::Beginning, limit).await;
        let read: BTreeSet<_> = ids(&rows).into_iter().map(str::to_owned).collect();
        assert_eq!(read, all, "in pages of {limit}");
    }
    let whole = source.poll_page(&PollFrom::Beginning, 9, None).await;
    let whole = whole.expect("a page is read");
    assert_eq!(
        (whole.reached.as_deref(), whole.next),
        (Some("\u{e9}1"), None)
    );
    // Four in a row fill a page: there is no place behind them from which to go on.
    let mut from = PollFrom::Beginning;
    let refused = loop {
        match source.poll_page(&from, 2, None).await {
            Ok(page) => from = PollFrom::After(page.next.expect("more follows")),
            Err(error) => break refusal(error),
        }
    };
    assert!(
        refused.contains("none of whose cursors is UTF-8"),
        "{refused}"
    );
    // What passes a sieve does not hide how far the pass came.
    let (page, _) = poll_news(&*source, "a0", 20).await.expect("there is room");
    assert_eq!(page.reached.as_deref(), Some("\u{e9}1"));
}

async fn a_look_up_finds_exactly_the_resources_named(bed: Bed) {
    bed.create("BIGINT").await;
    insert_many(&bed, 400, |index| {
        format!("('i', 'r{index}', {index}, 'ready')")
    })
    .await;
    bed.database
        .execute("INSERT INTO resource (installation_id, resource_id, updated_at) VALUES ('i', 'R1', 1), ('I', 'r1', 1), ('i', 'r1 ', 1), ('i', 'r2', 9)")
        .await;
    let source = bed.source(&bed.query());
    let key = |id: &str| ResourceKey::new("i", id).expect("an id");
    let found = source
        .fetch(&[key("r1"), key("r2"), key("none")])
        .await
        .expect("a look-up");
    let mut found = ids(&found);
    found.sort_unstable();
    assert_eq!(found, ["r1", "r2", "r2"]);
    let many: Vec<ResourceKey> = (0..350).map(|index| key(&format!("r{index}"))).collect();
    assert_eq!(source.fetch(&many).await.expect("a look-up").len(), 351);
    let mut named = source.fetch_ids(&many).await.expect("a look-up");
    named.sort_unstable();
    assert_eq!(named.len(), 351);
    named.dedup();
    assert_eq!(named.len(), 350);
    assert!(source.fetch(&[]).await.expect("nothing").is_empty());
}

async fn the_overlap_reads_what_committed_late(bed: Bed) {
    if bed.engine() == Engine::Sqlite {
        // A text cursor has no overlap, and writers exclude each other: nothing commits late.
        bed.create("TEXT").await;
        let source = bed.source_with(&bed.query(), |settings| {
            settings.overlap = Overlap::Duration(Duration::from_secs(1));
        });
        let refusal = super::bed::refusal(source.shape().await.expect_err("refused"));
        assert!(refusal.contains("takes no overlap"), "{refusal}");
        return;
    }
    bed.create(bed.timestamp()).await;
    insert_many(&bed, 60, |index| {
        format!("('i', 'r{index:02}', '2026-01-31 12:00:{index:02}', 'ready')")
    })
    .await;
    let cursor = bed.pick("2026-01-31 12:00:50+00", "2026-01-31 12:00:50", "");
    for (overlap, first) in [
        (Overlap::Unset, "r20"),
        (Overlap::Duration(Duration::from_secs(5)), "r45"),
        (Overlap::Duration(Duration::from_micros(1)), "r50"),
        (Overlap::Duration(Duration::ZERO), "r50"),
    ] {
        let source = bed.source_with(&bed.query(), |settings| settings.overlap = overlap);
        let (rows, _) = poll_all(&*source, PollFrom::Cursor(cursor.to_owned()), 7).await;
        assert_eq!(ids(&rows)[0], first, "{overlap:?}");
        assert_eq!(ids(&rows).last(), Some(&"r59"), "{overlap:?}");
    }
}

async fn what_commits_behind_a_page_already_read_is_in_the_next_pass(bed: Bed) {
    // An integer cursor: no database can say what is still open behind it.
    bed.create("BIGINT").await;
    let row = |index: usize| format!("('i', 'r{index}', {index}, 'ready')");
    insert_many(&bed, 5, |index| row(100 + index)).await;
    let source = bed.source_with(&bed.query(), |settings| {
        settings.overlap = Overlap::Units(10);
    });
    let first = source.poll_page(&PollFrom::Beginning, 2, None).await;
    let first = first.expect("a page");
    assert_eq!(ids(&first.rows.to_rows()), ["r100", "r101"]);
    // Behind the page, but not further behind the newest row than the overlap; and then so much that the pass goes far.
    insert_many(&bed, 1, |_| row(95)).await;
    insert_many(&bed, 5, |index| row(200 + index)).await;
    let mut page = first;
    let mut seen = Vec::new();
    let mut kept = None;
    loop {
        // As a poll does: what holds the cursor back counts, then the last row.
        let last = page
            .rows
            .last()
            .and_then(|row| row.cursor().map(str::to_owned));
        kept = page.horizon.clone().or(last).or(kept);
        seen.extend(ids(&page.rows.to_rows()).into_iter().map(str::to_owned));
        let Some(next) = page.next else { break };
        let next = source.poll_page(&PollFrom::After(next), 2, None).await;
        page = next.expect("a page");
    }
    let kept = kept.expect("rows were read");
    assert!(seen.contains(&"r204".to_owned()), "{seen:?}");
    assert!(!seen.contains(&"r95".to_owned()), "{seen:?}");
    let (rows, _) = poll_all(&*source, PollFrom::Cursor(kept), 100).await;
    assert!(ids(&rows).contains(&"r95"), "{:?}", ids(&rows));
    // A pass of one page was read at one instant: its last row is where the next one starts.
    let from = PollFrom::Cursor("204".to_owned());
    let page = source.poll_page(&from, 100, None).await.expect("a page");
    assert_eq!((page.next, page.horizon), (None, None));
}

async fn large_pages_end_early_and_lose_nothing(bed: Bed) {
    bed.database
        .execute(&format!(
            "CREATE TABLE resource (installation_id {0}, resource_id {0}, updated_at BIGINT, name {1})",
            bed.text(),
            bed.long()
        ))
        .await;
    // 60 MB in rows of 1 MB: more than one statement may bring in. The 34th row is the last that it does, and the 35th has the same place.
    let name = bed.pick(
        "repeat('x', 1000000)",
        "repeat('x', 1000000)",
        "printf('%.*c', 1000000, 'x')",
    );
    for place in (1..=60).map(|index| index / 2) {
        bed.database
            .execute(&format!(
                "INSERT INTO resource VALUES ('i', 'r{place:02}', {place}, {name})"
            ))
            .await;
    }
    let query = format!(
        "SELECT installation_id, resource_id, updated_at {}, name FROM resource",
        bed.as_cursor()
    );
    let source = bed.source(&query);
    let (rows, pages) = poll_all(&*source, PollFrom::Beginning, 1_000).await;
    assert_eq!(rows.len(), 60);
    assert!((2..6).contains(&pages), "{pages} pages");
    assert!(
        rows.iter()
            .all(|row| text(&row.columns[0].1).is_some_and(|name| name.len() == 1_000_000))
    );
    // What is looked up with a page that was cut short is looked up on another connection.
    let all: Suspects = Arc::new(|rows| rows.to_rows().iter().flat_map(RawRow::key).collect());
    let page = source.poll_page(&PollFrom::Beginning, 1_000, Some(all));
    let page = page.await.expect("a page");
    assert!(page.next.is_some());
    // Both rows of the last place are in it.
    assert_eq!(page.rows.len(), 35);
    let found: Vec<usize> = page.found.into_values().collect();
    assert_eq!(found, [vec![1], vec![2; 17]].concat());
    let swept = sweep_all(&*source, 1_000).await;
    assert_eq!(swept.concat().len(), 60);
    assert!(swept.len() > 1);
}

async fn rows_that_pass_take_no_memory_and_suspects_among_the_others_are_found(bed: Bed) {
    let name = bed.text();
    bed.database
        .execute(&format!(
            "CREATE TABLE resource (
                installation_id {name}, resource_id {name}, updated_at BIGINT, name {}
            )",
            bed.pick("TEXT", "LONGTEXT", "TEXT")
        ))
        .await;
    // 60 MB in rows of 1 MB: more than one statement may bring in, of which all but three rows pass.
    let name = bed.pick(
        "repeat('x', 1000000)",
        "repeat('x', 1000000)",
        "printf('%.*c', 1000000, 'x')",
    );
    for place in 1..=60 {
        bed.database
            .execute(&format!(
                "INSERT INTO resource VALUES ('i', 'r{place:02}', 7, {name})"
            ))
            .await;
    }
    bed.database
        .execute("INSERT INTO resource VALUES ('i', 'r30', 8, 'again'), (NULL, 'nobody', 8, 'new')")
        .await;
    let query = format!(
        "SELECT installation_id, resource_id, updated_at {}, name FROM resource",
        bed.as_cursor()
    );
    let source = bed.source(&query);
    let sieve = |passing_max, news_max| Sieve {
        passes: Box::new(|row| {
            row.cursor() == Some("7") && row.ids().is_none_or(|(_, id)| id != "r02")
        }),
        passing_max,
        news_max,
    };
    let all: Suspects = Arc::new(|rows| rows.to_rows().iter().flat_map(RawRow::key).collect());
    let news = source.poll_news("7", sieve(59, 3), Some(Arc::clone(&all)));
    let page = news.await.expect("it is read").expect("no more than that");
    let rows = page.rows.to_rows();
    assert_eq!(ids(&rows)[..1], ["r02"]);
    assert_eq!(
        ids(&rows).into_iter().collect::<BTreeSet<_>>(),
        ["r02", "r30", "nobody"].into()
    );
    assert_eq!((page.passed, page.reached.as_deref()), (59, Some("8")));
    let found: Vec<(&str, usize)> = page
        .found
        .iter()
        .map(|(key, rows)| (key.resource_id.as_str(), *rows))
        .collect();
    assert_eq!(found, [("r02", 1), ("r30", 2)]);
    // More news, or more rows, than is allowed for; the connection goes on.
    for (passing_max, news_max) in [(59, 2), (58, 3)] {
        let news = source.poll_news("7", sieve(passing_max, news_max), None);
        assert_eq!(news.await.expect("it is read"), None);
    }
    let news = source.poll_news("9", sieve(0, 0), Some(all));
    let page = news.await.expect("it is read").expect("there is nothing");
    assert_eq!((page.rows.len(), page.passed, page.reached), (0, 0, None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_one_after_another_take_one_connection() {
    let sessions = "SELECT COUNT(*) FROM pg_stat_activity
        WHERE datname = current_database() AND application_name = 'reconciled-test'";
    let bed = Bed::postgres().await;
    bed.create("BIGINT").await;
    let source = bed.source(&bed.query());
    for _ in 0..20 {
        source.sweep_page(None, 2).await.expect("a page");
        let poll = source.poll_page(&PollFrom::Beginning, 2, None).await;
        poll.expect("a page");
        assert_eq!(bed.database.integer(sessions).await, 1);
    }
}

/// All rows change at once, and until the server collects statistics again, a minute later or never, none of them lies after the cursor by
/// what it knows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_pass_reads_each_row_once_though_the_server_knows_nothing_of_the_change() {
    const ROWS: usize = 3_000;
    let read = "SELECT idx_tup_read FROM pg_stat_user_indexes WHERE indexrelname = 'by_cursor'";
    let bed = Bed::postgres().await;
    bed.create(bed.timestamp()).await;
    insert_many(&bed, ROWS, |index| {
        format!(
            "('i', 'r{index:04}', '2026-01-31 12:{:02}:{:02}', 'ready')",
            index / 60,
            index % 60
        )
    })
    .await;
    let prepare = "CREATE INDEX by_cursor ON resource (updated_at);
                   ALTER TABLE resource SET (autovacuum_enabled = off)";
    bed.database.execute(prepare).await;
    bed.database.execute("VACUUM ANALYZE resource").await;
    let change = "UPDATE resource SET updated_at = updated_at + interval '1 day'";
    bed.database.execute(change).await;
    let source = bed.source_with(&bed.query(), |settings| {
        settings.overlap = Overlap::Duration(Duration::ZERO);
    });
    let sessions = "SELECT count(*) FROM (
            SELECT pg_terminate_backend(pid) FROM pg_stat_activity
            WHERE datname = current_database() AND application_name = 'reconciled-test'
        ) AS ended";
    let mut before = bed.database.integer(read).await;
    // The first page of the first pass may have to sort them all.
    let from = "2026-01-31 12:59:59+00";
    for (is_at_once, most) in [
        (false, 2 * ROWS + ROWS / 10),
        (false, ROWS + ROWS / 10),
        (true, ROWS + ROWS / 10),
    ] {
        if is_at_once {
            let news = poll_news(&*source, from, 3_000).await;
            assert_eq!(news.expect("all").1.len(), ROWS);
        } else {
            let from = PollFrom::Cursor(from.to_owned());
            let (rows, pages) = poll_pages(&*source, from, 100).await;
            assert_eq!((rows.len(), pages), (ROWS, ROWS / 100 + 1));
        }
        // A session that has ended has told what it read.
        while bed.database.integer(sessions).await > 0 {}
        let after = bed.database.integer(read).await;
        let looked_at = usize::try_from(after - before).expect("it grows");
        assert!((ROWS..=most).contains(&looked_at), "{looked_at}");
        before = after;
    }
}

#[tokio::test]
async fn a_number_among_texts_of_sqlite_keeps_its_type() {
    let bed = Bed::sqlite();
    bed.database
        .execute(
            "CREATE TABLE word (installation_id TEXT, id TEXT, status TEXT);
             CREATE TABLE number (installation_id TEXT, id INTEGER, status TEXT);
             INSERT INTO word VALUES ('i', 'x', 'ready'), ('i', 'y', 'ready');
             INSERT INTO number VALUES ('i', 5, 'ready'), ('i', 10, 'ready'), ('i', 30, 'ready'), ('i', 1.5, 'ready')",
        )
        .await;
    // The column is a text by its first table, and a number in it would be compared as one.
    let query = "SELECT installation_id, id AS resource_id, status FROM word
        UNION ALL SELECT installation_id, id, status FROM number";
    let source = bed.source(query);
    for limit in 1..=4 {
        let pages = sweep_all(&*source, limit).await;
        // What is neither integer nor text is in the first page alone.
        assert!(ids(&pages[0]).contains(&"1.5"), "by {limit}");
        assert_eq!(pages.concat().len(), 6, "by {limit}");
    }
}

/// A page whose limit the planner of SQLite took no account of read every row after the cursor, where `ANALYZE` had counted them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_of_sqlite_looks_at_no_row_far_behind_it() {
    const ROWS: usize = 20_000;
    let bed = Bed::sqlite();
    bed.create("INTEGER").await;
    insert_many(&bed, ROWS, |index| {
        format!("('i', 'r{index}', {index}, 'ready')")
    })
    .await;
    let prepare = "CREATE INDEX by_cursor ON resource (updated_at); ANALYZE";
    bed.database.execute(prepare).await;
    // Whoever looks at a row behind the 300th, but for the newest ones, is told that a number has overflowed.
    let query = format!(
        "{} WHERE CASE WHEN updated_at BETWEEN 300 AND 19000 THEN abs(-9223372036854775807 - (updated_at > 0)) ELSE 1 END",
        bed.query()
    );
    let source = bed.source(&query);
    let first = source
        .poll_page(&PollFrom::Beginning, 100, None)
        .await
        .expect("a page");
    assert_eq!(first.rows.len(), 100);
    let next = PollFrom::After(first.next.expect("there are more"));
    let second = source.poll_page(&next, 100, None).await.expect("a page");
    assert_eq!(second.rows.len(), 100);
    let from = PollFrom::Cursor("150".to_owned());
    let again = source.poll_page(&from, 100, None).await.expect("a page");
    assert_eq!(last_cursor(&again.rows.to_rows()), "249");
    source
        .poll_page(&PollFrom::Cursor("250".to_owned()), 100, None)
        .await
        .map(drop)
        .expect_err("that page ends behind it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_page_leaves_a_transaction_open() {
    for bed in [Bed::postgres().await, Bed::mariadb().await] {
        bed.create("BIGINT").await;
        for n in 0..6 {
            let insert = format!(
                "INSERT INTO resource (installation_id, resource_id, updated_at) VALUES ('i', 'r{n}', {n})"
            );
            bed.database.execute(&insert).await;
        }
        // The test's own sessions there take a moment to end.
        while sessions(&bed).await.0 > 0 {}
        let source = bed.source(&bed.query());
        let mut after = None;
        loop {
            let page = source.sweep_page(after.as_ref(), 2).await.expect("a page");
            // A sweep of hours holds back no vacuum and no purge; the transaction ends beside what comes next.
            while sessions(&bed).await.1 > 0 {}
            let poll = source.poll_page(&PollFrom::Beginning, 2, None).await;
            assert!(poll.is_ok_and(|page| page.next.is_some()));
            while sessions(&bed).await.1 > 0 {}
            // PostgreSQL would end a session that stays in its transaction: the session is still there.
            assert_eq!(sessions(&bed).await.0, 1, "in {:?}", bed.engine());
            match page.next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
    }
}

/// How many sessions there are in the database, and how many of them have a transaction open. Asked from another database: whoever asks
/// is not counted, also while his session is ending.
async fn sessions(bed: &Bed) -> (i64, i64) {
    let name = &bed.database.name;
    match bed.engine() {
        Engine::Postgres => {
            let ask = format!(
                "SELECT count(*), count(*) FILTER (WHERE state <> 'idle') FROM pg_stat_activity
                 WHERE datname = '{name}' AND backend_type = 'client backend'"
            );
            let elsewhere = Postgres::shared().url("postgres");
            let mut elsewhere = PgConnection::connect(&elsewhere).await.expect("it answers");
            let asked = sqlx::query_as(AssertSqlSafe(ask)).fetch_one(&mut elsewhere);
            asked.await.expect("an answer")
        }
        _ => {
            let ask = format!(
                "SELECT COUNT(*), COUNT(t.trx_id) FROM information_schema.processlist AS p
                 LEFT JOIN information_schema.innodb_trx AS t ON t.trx_mysql_thread_id = p.id
                 WHERE p.db = '{name}'"
            );
            let elsewhere = MariaDb::shared().url("mysql");
            let mut elsewhere = MySqlConnection::connect(&elsewhere)
                .await
                .expect("it answers");
            let asked = sqlx::query_as(AssertSqlSafe(ask)).fetch_one(&mut elsewhere);
            asked.await.expect("an answer")
        }
    }
}
