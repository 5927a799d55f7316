//! The table of every configuration key.
//!
//! It decides what is known, how text from the environment becomes a value, and what may be repeated in an error. The
//! annotated reference and the typed sections are tested against it; it never holds a value.

/// One configuration key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Key {
    /// Dotted path, e.g. `vercel.oauth.client_id`.
    pub(crate) path: &'static str,
    /// What its value looks like.
    pub(crate) kind: Kind,
    /// Whether the value may hold a secret and is therefore never repeated.
    pub(crate) sensitive: bool,
}

/// The shape of a key's value; how text from the environment or a flag is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A string.
    Text,
    /// A whole number.
    Integer,
    /// A number.
    Number,
    /// `true` or `false`.
    Switch,
    /// A list of strings.
    List,
    /// A table of strings with names of the operator's choice.
    Table,
    /// A duration as text, or a whole number.
    TextOrInteger,
}

impl Kind {
    /// What to write, for the help of a wrong type.
    pub(crate) fn accepted(self) -> &'static str {
        match self {
            Self::Text => "text in quotes",
            Self::Integer => "a whole number, without quotes",
            Self::Number => "a number, without quotes",
            Self::Switch => "true or false, without quotes",
            Self::List => "a list of texts: [\"a\", \"b\"]",
            Self::Table => "a table of texts: { name = \"value\" }",
            Self::TextOrInteger => "a duration in quotes (\"30s\") or a whole number",
        }
    }
}

/// Every key, in the order of the reference.
pub(crate) const KEYS: &[Key] = &[
    sensitive("source.url"),
    text("source.url_file"),
    text("source.query"),
    text("source.installations_query"),
    key("source.overlap", Kind::TextOrInteger),
    text("source.statement_timeout"),
    key("source.max_connections", Kind::Integer),
    text("source.listen"),
    text("source.feed"),
    key("source.allow_replica", Kind::Switch),
    sensitive("state.url"),
    text("state.url_file"),
    sensitive("vercel.base_url"),
    text("vercel.request_timeout"),
    text("vercel.connect_timeout"),
    key("vercel.max_in_flight", Kind::Integer),
    key("vercel.max_in_flight_per_installation", Kind::Integer),
    key("vercel.requests_per_minute_per_installation", Kind::Integer),
    text("vercel.secrets_endpoint"),
    text("vercel.clear_notification"),
    text("vercel.ca_file"),
    sensitive("vercel.proxy"),
    sensitive("vercel.oauth.token_url"),
    text("vercel.oauth.client_id"),
    sensitive("vercel.oauth.client_secret"),
    text("vercel.oauth.client_secret_file"),
    Key {
        path: FORM,
        kind: Kind::Table,
        sensitive: true,
    },
    text("reconcile.first_sight"),
    text("reconcile.on_missing"),
    text("reconcile.on_drift"),
    key("reconcile.sweep_rows_per_second", Kind::Integer),
    key("reconcile.ignore", Kind::List),
    key("guard.destructive_max", Kind::Integer),
    key("guard.changes_max", Kind::Integer),
    text("schedule.poll"),
    text("schedule.sweep"),
    text("schedule.drift"),
    text("schedule.prune"),
    text("retry.initial_interval"),
    key("retry.multiplier", Kind::Number),
    text("retry.max_interval"),
    text("retry.max_elapsed"),
    key("retry.max_conflicts", Kind::Integer),
    text("retry.lease"),
    text("retry.late_apply"),
    text("retention.delivered"),
    text("retention.attempts"),
    text("log.format"),
    text("log.filter"),
    text("log.summary_interval"),
    text("http.listen"),
];

/// The one key whose value is a table; names below it are the operator's own.
pub(crate) const FORM: &str = "vercel.oauth.form";

/// What a path in a file, variable or flag refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// A key of the table.
    Key(&'static Key),
    /// One entry of a table of the operator's own names.
    Entry(&'static Key),
    /// A section that holds keys.
    Section,
    /// Nothing known.
    Unknown,
}

/// Looks a dotted path up.
pub(crate) fn meaning(path: &str) -> Meaning {
    if let Some(key) = KEYS.iter().find(|key| key.path == path) {
        return Meaning::Key(key);
    }
    let entry = KEYS
        .iter()
        .find(|key| key.kind == Kind::Table && below(path, key.path));
    if let Some(key) = entry {
        return Meaning::Entry(key);
    }
    if KEYS.iter().any(|key| below(key.path, path)) {
        return Meaning::Section;
    }
    Meaning::Unknown
}

/// The help for an unknown path: the key that was probably meant, or else what its section accepts.
pub(crate) fn suggestion(path: &str) -> String {
    if let Some(near) = nearest(path) {
        return format!("did you mean `{near}`?");
    }
    let section = path.rsplit_once('.').map_or("", |(section, _)| section);
    let siblings: Vec<&str> = KEYS
        .iter()
        .filter(|key| !section.is_empty() && below(key.path, section))
        .map(|key| &key.path[section.len() + 1..])
        .collect();
    if siblings.is_empty() {
        return format!("sections are {}", sections().join(", "));
    }
    format!("[{section}] accepts {}", siblings.join(", "))
}

/// The name of the environment variable that sets a key.
pub(crate) fn variable(path: &str) -> String {
    format!("{PREFIX}{}", path.replace('.', "__").to_uppercase())
}

/// What the name of every variable begins with.
pub(crate) const PREFIX: &str = "RECONCILED__";

/// The known key or section nearest to a path, when one is near enough to be a typo of it.
fn nearest(path: &str) -> Option<&'static str> {
    let last = path.rsplit('.').next().unwrap_or(path);
    let misplaced: Vec<&'static str> = KEYS
        .iter()
        .map(|key| key.path)
        .filter(|known| known.rsplit('.').next() == Some(last))
        .collect();
    let candidates = if misplaced.is_empty() {
        KEYS.iter().map(|key| key.path).chain(sections()).collect()
    } else {
        misplaced.clone()
    };
    let (distance, known) = candidates
        .into_iter()
        .map(|known| (strsim::damerau_levenshtein(path, known), known))
        .min()?;
    let misplaced_alone = misplaced.len() == 1;
    (misplaced_alone || distance <= typo_limit(path)).then_some(known)
}

/// How many edits still count as a typo of a word this long.
fn typo_limit(path: &str) -> usize {
    (path.chars().count() / 4).clamp(1, 5)
}

/// The names of all sections, nested ones too, in the order of the table.
fn sections() -> Vec<&'static str> {
    let mut sections = Vec::new();
    for key in KEYS {
        if let Some((section, _)) = key.path.rsplit_once('.')
            && !sections.contains(&section)
        {
            sections.push(section);
        }
    }
    sections
}

/// Whether `path` lies below `section`.
fn below(path: &str, section: &str) -> bool {
    path.strip_prefix(section)
        .is_some_and(|rest| rest.starts_with('.'))
}

const fn key(path: &'static str, kind: Kind) -> Key {
    Key {
        path,
        kind,
        sensitive: false,
    }
}

const fn text(path: &'static str) -> Key {
    key(path, Kind::Text)
}

const fn sensitive(path: &'static str) -> Key {
    Key {
        path,
        kind: Kind::Text,
        sensitive: true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_is_key_entry_section_or_unknown() {
        assert!(
            matches!(meaning("schedule.poll"), Meaning::Key(key) if key.path == "schedule.poll")
        );
        assert!(
            matches!(meaning("vercel.oauth.form.scope"), Meaning::Entry(key) if key.path == FORM)
        );
        assert_eq!(meaning("vercel"), Meaning::Section);
        assert_eq!(meaning("vercel.oauth"), Meaning::Section);
        assert_eq!(meaning("schedule.pol"), Meaning::Unknown);
        assert_eq!(meaning("schedule.poll.x"), Meaning::Unknown);
        assert_eq!(meaning(""), Meaning::Unknown);
    }

    #[test]
    fn suggestion_names_the_typo_the_misplaced_key_or_what_is_accepted() {
        let cases = [
            ("schedule.pol", "did you mean `schedule.poll`?"),
            ("shedule.poll", "did you mean `schedule.poll`?"),
            ("shedule", "did you mean `schedule`?"),
            (
                "retry.request_timeout",
                "did you mean `vercel.request_timeout`?",
            ),
            ("source.quary", "did you mean `source.query`?"),
            (
                "vercel.oauth.client_sekret",
                "did you mean `vercel.oauth.client_secret`?",
            ),
            (
                "retention.colour",
                "[retention] accepts delivered, attempts",
            ),
            (
                "zebra",
                "sections are source, state, vercel, vercel.oauth, reconcile, guard, schedule, retry, retention, log, http",
            ),
        ];
        for (path, expected) in cases {
            assert_eq!(suggestion(path), expected, "{path}");
        }
    }

    #[test]
    fn variable_is_the_path_in_capitals_with_double_underscores() {
        assert_eq!(
            variable("vercel.oauth.client_id"),
            "RECONCILED__VERCEL__OAUTH__CLIENT_ID"
        );
    }
}
