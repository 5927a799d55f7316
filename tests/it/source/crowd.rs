//! Many rows of one cursor: counted, and passed over.

use reconciled::source::{Overlap, PollFrom, Position};

use super::bed::{Bed, ids, poll_pages};
use super::on_every_database;
use crate::support::database::Engine;

on_every_database!(
    rows_of_one_cursor_are_counted_as_far_as_is_asked,
    what_is_later_than_a_cursor_is_read_without_its_rows,
    a_poll_that_finds_nothing_later_tells_the_newest_cursor,
    a_pass_reads_what_lies_before_a_crowd_and_behind_it,
    a_crowd_that_is_gone_bounds_no_pass,
);

/// The cursors of the rows before the crowd, of the crowd and of what is later.
const CURSORS: [i64; 4] = [40, 70, 80, 90];

/// Two rows before a crowd of six, and two behind it, told apart by an integer.
async fn crowded(bed: &Bed) {
    bed.create("BIGINT").await;
    let [before, crowd, later, last] = CURSORS;
    let mut rows = vec![("a0", before), ("a1", before + 1)];
    rows.extend(["c0", "c1", "c2", "c3", "c4", "c5"].map(|id| (id, crowd)));
    rows.extend([("l0", later), ("l1", last)]);
    for (id, cursor) in rows {
        bed.database
            .execute(&format!(
                "INSERT INTO resource (installation_id, resource_id, updated_at, status) VALUES ('i', '{id}', {cursor}, 'ready')"
            ))
            .await;
    }
}

/// Reads fifty units behind the cursor.
fn source(bed: &Bed) -> std::sync::Arc<dyn reconciled::source::Inspect> {
    bed.source_with(&bed.query(), |settings| {
        settings.overlap = Overlap::Units(50);
    })
}

fn until(cursor: i64, crowd: i64) -> PollFrom {
    PollFrom::Until {
        cursor: cursor.to_string(),
        crowd: crowd.to_string(),
    }
}

async fn rows_of_one_cursor_are_counted_as_far_as_is_asked(bed: Bed) {
    crowded(&bed).await;
    let source = source(&bed);
    for (cursor, most, expected) in [("70", 10, 6), ("70", 6, 6), ("70", 4, 4), ("71", 10, 0)] {
        let count = source.count_at(cursor, most).await.expect("it is counted");
        assert_eq!(count, expected, "{cursor} {most}");
    }
    let no_number = source.count_at("no number", 10).await;
    assert_eq!(no_number.expect("no row has it"), 0);
    // Of timestamps, too.
    bed.database.execute("DROP TABLE resource").await;
    bed.create(bed.timestamp()).await;
    bed.database
        .execute(
            "INSERT INTO resource (installation_id, resource_id, updated_at) VALUES
                ('i', 'a', '2026-01-31 12:00:00.5'), ('i', 'b', '2026-01-31 12:00:00.5')",
        )
        .await;
    let source = bed.source(&bed.query());
    let (rows, _) = poll_pages(&*source, PollFrom::Beginning, 10).await;
    let cursor = rows[0].cursor.as_deref().expect("it has one");
    assert_eq!(source.count_at(cursor, 10).await.expect("counted"), 2);
    let later = PollFrom::Later(cursor.to_owned());
    let page = source.poll_page(&later, 10, None).await.expect("a page");
    assert_eq!(
        (page.rows.len(), page.reached.as_deref()),
        (0, Some(cursor))
    );
    let shape = source.shape().await.expect("a shape");
    let is_time = bed.engine() != Engine::Sqlite;
    assert_eq!(shape.overlap.as_secs(), if is_time { 30 } else { 0 });
}

async fn what_is_later_than_a_cursor_is_read_without_its_rows(bed: Bed) {
    crowded(&bed).await;
    let source = source(&bed);
    for limit in [1, 2, 10] {
        let later = PollFrom::Later("70".to_owned());
        let (rows, _) = poll_pages(&*source, later, limit).await;
        assert_eq!(ids(&rows), ["l0", "l1"], "{limit}");
        let behind = PollFrom::After(Position {
            cursor: "70".to_owned(),
            key: None,
            horizon: None,
        });
        let (rows, _) = poll_pages(&*source, behind, limit).await;
        assert_eq!(ids(&rows), ["l0", "l1"], "{limit}");
    }
    let later = PollFrom::Later("70".to_owned());
    let page = source.poll_page(&later, 10, None).await.expect("a page");
    let identity = source.identity().await.expect("it has one");
    assert_eq!(page.identity, Some(identity));
}

async fn a_poll_that_finds_nothing_later_tells_the_newest_cursor(bed: Bed) {
    crowded(&bed).await;
    let source = source(&bed);
    let later = PollFrom::Later("90".to_owned());
    for (id, expected) in [("", Some("90")), ("l1", Some("80")), ("%", None)] {
        bed.database
            .execute(&format!(
                "DELETE FROM resource WHERE resource_id LIKE '{id}'"
            ))
            .await;
        let page = source.poll_page(&later, 10, None).await.expect("a page");
        assert_eq!((page.rows.len(), page.reached.as_deref()), (0, expected));
    }
}

async fn a_pass_reads_what_lies_before_a_crowd_and_behind_it(bed: Bed) {
    crowded(&bed).await;
    let source = source(&bed);
    let from = until(90, 70);
    let page = source.poll_page(&from, 10, None).await.expect("a page");
    assert_eq!(ids(&page.rows.to_rows()), ["a0", "a1"]);
    assert_eq!(page.reached.as_deref(), Some("70"));
    let next = page.next.expect("what is later");
    assert_eq!((&*next.cursor, &next.key), ("70", &None));
    let (rows, _) = poll_pages(&*source, from, 10).await;
    assert_eq!(ids(&rows), ["a0", "a1", "l0", "l1"]);
    // The overlap begins between the two rows before it, and behind both.
    for (cursor, expected) in [(91, &["a1", "l0", "l1"][..]), (92, &["l0", "l1"])] {
        let (rows, _) = poll_pages(&*source, until(cursor, 70), 10).await;
        assert_eq!(ids(&rows), expected);
    }
    // More rows before it than a page has are read like any.
    let page = source.poll_page(&until(90, 70), 1, None).await;
    let next = page.expect("a page").next.expect("the other one");
    assert_eq!(next.cursor, "40");
    assert!(next.key.is_some());
}

async fn a_crowd_that_is_gone_bounds_no_pass(bed: Bed) {
    crowded(&bed).await;
    let source = source(&bed);
    bed.database
        .execute("DELETE FROM resource WHERE updated_at = 70")
        .await;
    let (rows, _) = poll_pages(&*source, until(90, 70), 10).await;
    assert_eq!(ids(&rows), ["a0", "a1", "l0", "l1"]);
    let page = source.poll_page(&until(90, 70), 10, None).await;
    assert_eq!(page.expect("a page").next, None);
    let page = source.poll_page(&until(90, 75), 10, None).await;
    assert_eq!(page.expect("a page").next, None);
}
