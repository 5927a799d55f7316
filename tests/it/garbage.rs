//! Input that nobody thought of: rows and configurations made by chance are used or refused, and never a panic.
//!
//! `PROPTEST_CASES` sets how many are tried.

use proptest::prelude::*;
use reconciled::{
    config::Config,
    model::{Field, RawRow, RawText},
};

/// Words that mean something somewhere, so that chance gets past the first check.
const WORDS: [&str; 24] = [
    "{",
    "}",
    "[",
    "]",
    "\"",
    ":",
    ",",
    "null",
    "1e999",
    "-0",
    "\"id\"",
    "\"type\"",
    "\"subscription\"",
    "\"name\"",
    "\"value\"",
    "\"level\"",
    "\"title\"",
    "\"details\"",
    "\"label\"",
    "\\u0000",
    "\\ud800",
    "ready",
    "..",
    "\u{feff}",
];

fn text() -> impl Strategy<Value = String> {
    let word = prop_oneof![
        4 => prop::sample::select(&WORDS[..]).prop_map(str::to_owned),
        1 => any::<String>(),
    ];
    prop::collection::vec(word, 0..20).prop_map(|words| words.concat())
}

fn raw() -> impl Strategy<Value = RawText> {
    prop_oneof![6 => text().prop_map(RawText::text), 1 => Just(RawText::Null)]
}

/// Keys of every section, with values of every type.
fn toml() -> impl Strategy<Value = String> {
    let section = prop::sample::select(
        &[
            "source",
            "state",
            "vercel",
            "vercel.oauth",
            "retry",
            "schedule",
            "guard",
            "log",
        ][..],
    );
    let key = prop::sample::select(
        &[
            "url",
            "query",
            "overlap",
            "poll",
            "lease",
            "filter",
            "form",
            "destructive_max",
            "base_url",
            "ca_file",
            "client_secret",
        ][..],
    );
    let value = prop_oneof![
        text().prop_map(|text| format!("{text:?}")),
        any::<i64>().prop_map(|number| number.to_string()),
        any::<f64>().prop_map(|number| number.to_string()),
        Just("[]".to_owned()),
        Just("{ a = 1 }".to_owned()),
        "[0-9]{1,20}(ms|s|m|h|d|y)".prop_map(|span| format!("{span:?}")),
        Just("\"*/0 * * * * *\"".to_owned()),
        text(),
    ];
    prop::collection::vec((section, key, value), 0..8).prop_map(|lines| {
        let lines = lines
            .into_iter()
            .map(|(section, key, value)| format!("{section}.{key} = {value}\n"));
        lines.collect::<String>()
    })
}

proptest! {
    #[test]
    fn a_row_of_garbage_is_decoded_or_refused(
        installation_id in raw(),
        resource_id in raw(),
        values in prop::collection::vec(raw(), Field::ALL.len()),
    ) {
        let columns = Field::ALL.into_iter().zip(values).collect();
        let row = RawRow { installation_id, resource_id, cursor: None, columns };
        if let Err(unusable) = row.decode() {
            let said = unusable.to_string();
            prop_assert!(said.starts_with("column `"), "{}", said);
            prop_assert!(said.len() < 2_000, "{}", said);
        }
    }

    #[test]
    fn a_configuration_of_garbage_is_used_or_refused(text in prop_oneof![toml(), text()]) {
        if let Err(problems) = Config::from_toml(&text) {
            prop_assert!(!problems.to_string().is_empty());
        }
    }
}
