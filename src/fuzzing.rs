//! What the fuzz targets in `fuzz/` drive, and a property test in every ordinary run: the real code behind bytes from outside,
//! with what must be true of whatever comes of them. It exists for tests and fuzzing alone.

use std::time::Duration;

use crate::config::Config;
use crate::model::{
    Doubt, Field, FieldSet, FingerprintKey, Json, RawRow, RawText, Snapshot, Timestamp,
};
use crate::plan::classify::{RATE_LIMIT_WAIT_MAX, RATE_LIMIT_WAIT_MIN};
use crate::plan::{AnswerKind, Verdict, classify, diff};
use crate::simulator::schema::{self, Rules};
use crate::vercel::{body_of, read_answer};

/// Stands between the columns of a row, and the parts of an answer.
const SEPARATOR: u8 = 0x1e;
/// The secret that the request of a fuzzed answer carried.
const SECRET: &str = "s3cret-of-the-request";
/// When a fuzzed answer comes.
const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_000);

/// A row of the source query: its two ids and a column for each field, each absent, NULL or text.
///
/// # Panics
/// The row decodes to what Vercel's schema refuses, to what is not its own canonical form, or an unusable one does not say why.
pub fn row(bytes: &[u8]) {
    let mut parts = bytes.split(|byte| *byte == SEPARATOR).map(column);
    let mut next = || parts.next().unwrap_or(RawText::Null);
    let (installation_id, resource_id) = (next(), next());
    let columns = Field::ALL
        .into_iter()
        .map(|field| (field, next()))
        .collect();
    let raw = RawRow {
        installation_id,
        resource_id,
        cursor: None,
        columns,
    };
    let row = match raw.decode() {
        Ok(row) => row,
        Err(unusable) => {
            let said = unusable.to_string();
            assert!(said.starts_with("column `"), "{said}");
            assert!(said.len() < 2_000, "{said}");
            assert!(!said.chars().any(char::is_control), "{said:?}");
            return;
        }
    };
    let key = FingerprintKey::new([7; 32]);
    assert_eq!(raw.hash(&key, 1), raw.clone().hash(&key, 1));
    for (field, value) in &row.values {
        assert_eq!(Json::from_value(&value.to_value()), *value, "{field}");
    }
    let desired = row.desired(&key, FieldSet::EMPTY);
    let none = Doubt::default();
    assert!(diff(&desired, &desired, &none).is_empty());
    let patch = diff(&desired, &Snapshot::default(), &none);
    let mut applied = Snapshot::default();
    patch.apply_to(&mut applied);
    assert!(diff(&desired, &applied, &none).is_empty());
    let Some(body) = body_of(&patch, row.secrets.as_ref()) else {
        assert!(patch.is_empty());
        return;
    };
    let body = serde_json::from_slice(&body).expect("a body is JSON");
    let refusal = schema::update(&body, Rules::default()).err();
    assert_eq!(refusal.map(|refusal| refusal.to_string()), None, "{body}");
}

/// Text as a source reads it: what is no UTF-8 cannot be read.
fn column(bytes: &[u8]) -> RawText {
    match std::str::from_utf8(bytes) {
        Ok("NULL") => RawText::Null,
        Ok(text) => RawText::text(text),
        Err(_) => RawText::Unreadable("is not valid UTF-8"),
    }
}

/// An answer: two bytes for the status, then `Retry-After`, `X-RateLimit-Reset`, `X-Vercel-Id` and the body.
///
/// # Panics
/// A wait is beyond its bounds, a text holds what no terminal should get, or the secret that was sent.
pub fn answer(bytes: &[u8]) {
    let Some((status, rest)) = bytes.split_first_chunk::<2>() else {
        return;
    };
    let status = 100 + u16::from_le_bytes(*status) % 500;
    let parts: Vec<&[u8]> = rest.splitn(4, |byte| *byte == SEPARATOR).collect();
    let part = |index: usize| parts.get(index).copied().unwrap_or_default();
    let headers = [
        ("retry-after", part(0)),
        ("x-ratelimit-reset", part(1)),
        ("x-vercel-id", part(2)),
    ];
    let answer = read_answer(status, &headers, part(3), SECRET, NOW);
    let success = (200..=299).contains(&status);
    match classify(&answer, NOW) {
        Verdict::Acknowledged => assert!(success),
        Verdict::RateLimited { until } => {
            assert_eq!(status, 429);
            let wait: Duration = until.since(NOW);
            assert!(
                (RATE_LIMIT_WAIT_MIN..=RATE_LIMIT_WAIT_MAX).contains(&wait),
                "{wait:?}"
            );
        }
        Verdict::Unsent => panic!("an answer came"),
        _ => assert!(!success),
    }
    let AnswerKind::Http { code, message, .. } = &answer.kind else {
        panic!("an answer came")
    };
    for text in [code, message, &answer.vercel_id].into_iter().flatten() {
        assert!(!text.contains(SECRET), "{text:?}");
        assert!(!text.chars().any(char::is_control), "{text:?}");
        assert!(text.chars().count() <= 500, "{text:?}");
    }
}

/// A configuration file.
///
/// # Panics
/// A refusal says nothing.
pub fn configuration(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Err(problems) = Config::from_toml(text) {
        assert!(!problems.to_string().is_empty());
    }
}

/// A cursor, or a place in a change feed, as the state gives it back.
///
/// # Panics
/// A statement depends on it instead of binding it, or reaches forward.
pub fn cursor(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    crate::source::fuzz::read_cursor(text);
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    type Target = fn(&[u8]);

    const TARGETS: [(&str, Target); 4] = [
        ("row", super::row),
        ("answer", super::answer),
        ("configuration", super::configuration),
        ("cursor", super::cursor),
    ];

    /// What fuzzing starts from, and what it once found.
    fn seeds(target: &str) -> Vec<Vec<u8>> {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("fuzz/seeds")
            .join(target);
        let files = std::fs::read_dir(&directory).expect("each target has seeds");
        files
            .map(|file| std::fs::read(file.expect("readable").path()).expect("readable"))
            .collect()
    }

    #[test]
    fn what_fuzzing_found_stays_found() {
        for (name, target) in TARGETS {
            let seeds = seeds(name);
            assert!(seeds.len() > 2, "{name} has seeds");
            seeds.iter().for_each(|seed| target(seed));
        }
    }

    proptest! {
        /// Seeds with some bytes changed: chance alone never gets past the first check.
        #[test]
        fn bytes_from_outside_are_understood_or_refused(
            target in 0..TARGETS.len(),
            from in any::<prop::sample::Index>(),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..3_u8), 0..6),
        ) {
            let (name, target) = TARGETS[target];
            let seeds = seeds(name);
            let mut bytes = seeds[from.index(seeds.len())].clone();
            for (at, byte, how) in changes {
                let at = at.index(bytes.len() + 1);
                match how {
                    0 if at < bytes.len() => bytes[at] = byte,
                    1 if at < bytes.len() => drop(bytes.remove(at)),
                    _ => bytes.insert(at, byte),
                }
            }
            target(&bytes);
        }
    }
}
