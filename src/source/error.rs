//! What a driver's error means, in a closed set of fields.
//!
//! A server's own words are kept only where they can hold nothing but names; everything else is said by its code. The text of a
//! statement, a row's value or a password never gets out of here.

use std::time::Duration;

use super::SourceError;

/// What went wrong, before it is known in which statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failure {
    /// The connection broke or the server cannot serve now.
    Unreachable(String),
    /// The server refused the login.
    Login(String),
    /// The statement ran into a limit of the server's.
    Timeout,
    /// The server refused the statement.
    Query(String),
}

impl Failure {
    /// Says it of one statement.
    pub(super) fn of(self, target: &str, statement: &'static str, limit: Duration) -> SourceError {
        let target = target.to_owned();
        match self {
            Self::Unreachable(problem) => SourceError::Unreachable { target, problem },
            Self::Login(problem) => SourceError::Login { target, problem },
            Self::Timeout => SourceError::Timeout {
                statement,
                limit: humantime::format_duration(limit).to_string(),
            },
            Self::Query(problem) => SourceError::Query { statement, problem },
        }
    }

    /// What an error means that no server sent.
    pub(super) fn of_driver(error: &sqlx::Error) -> Self {
        match error {
            sqlx::Error::Io(error) => Self::Unreachable(io(error)),
            sqlx::Error::Tls(_) => Self::Unreachable(
                "no TLS connection could be made (certificate, protocol or ssl settings)".into(),
            ),
            sqlx::Error::Configuration(_) => {
                Self::Login("the connection settings cannot be used".into())
            }
            sqlx::Error::Protocol(_) => {
                Self::Unreachable("the answer was not in the database's protocol".into())
            }
            sqlx::Error::WorkerCrashed => Self::Unreachable("the driver's thread ended".into()),
            sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => {
                Self::Query("a value could not be decoded".into())
            }
            sqlx::Error::TypeNotFound { .. } => {
                Self::Query("a column has a type that is not known".into())
            }
            _ => Self::Query("the driver could not run it".into()),
        }
    }
}

/// What an error of the operating system means.
pub(super) fn io(error: &std::io::Error) -> String {
    use std::io::ErrorKind;
    match error.kind() {
        ErrorKind::ConnectionRefused => "connection refused".into(),
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => "connection reset".into(),
        ErrorKind::UnexpectedEof | ErrorKind::ConnectionAborted => "connection closed".into(),
        ErrorKind::TimedOut => "no answer in time".into(),
        ErrorKind::NotFound => "no such host, socket or file".into(),
        // The standard library gives the resolver's failures no kind of their own; the text is the resolver's, without the name.
        _ if error.raw_os_error().is_none()
            && error
                .to_string()
                .contains("failed to lookup address information") =>
        {
            "the host's name cannot be resolved".into()
        }
        // What the operating system or the resolver says of a host; there is nothing of ours in it.
        kind => kind.to_string(),
    }
}

/// What a PostgreSQL SQLSTATE means; `message` is the server's primary message.
///
/// Codes: <https://www.postgresql.org/docs/current/errcodes-appendix.html>.
pub(super) fn postgres(code: &str, message: &str) -> Failure {
    /// Messages of these hold names of columns, tables, functions, types and roles, never values.
    const NAMES_ONLY: [&str; 12] = [
        "42703", "42P01", "42883", "42501", "42702", "42704", "42P02", "42809", "42725", "3F000",
        "25006", "0A000",
    ];
    let class = code.get(..2).unwrap_or_default();
    match (class, code) {
        ("28", _) | (_, "3D000") => Failure::Login(said(code, message)),
        ("08" | "53", _) | (_, "57P01" | "57P02" | "57P03" | "57P05" | "25P03") => {
            Failure::Unreachable(said(code, message))
        }
        (_, "57014" | "55P03" | "25P04") => Failure::Timeout,
        (_, known) if NAMES_ONLY.contains(&known) => Failure::Query(said(code, message)),
        (_, "42601") if message.contains("multiple commands") => {
            Failure::Query("42601: it holds several statements".into())
        }
        (_, "42601") => Failure::Query("42601: syntax error".into()),
        ("42", _) => Failure::Query(format!("{code}: types or names do not fit")),
        ("22", _) => Failure::Query(format!(
            "{code}: a value does not fit the type it is converted to"
        )),
        ("40", _) => Failure::Unreachable(format!("{code}: the transaction was rolled back")),
        ("54", _) => Failure::Query(format!("{code}: too complex or too large")),
        ("P0", _) => Failure::Query(format!("{code}: a function raised an error")),
        _ => Failure::Query(format!("the server's error {code}")),
    }
}

/// What an error number of MySQL or MariaDB means.
///
/// Numbers: <https://mariadb.com/kb/en/mariadb-error-code-reference/>.
pub(super) fn mysql(number: u16, message: &str) -> Failure {
    let said = |message: &str| said(&number.to_string(), message);
    match number {
        1044 | 1045 | 1049 | 1130 | 1251 | 1524 | 1698 | 1862 | 4151 => {
            Failure::Login(said(message))
        }
        1040 | 1053 | 1077..=1079 | 1129 | 1152 | 1159 | 1161 | 1184 | 1203 | 1226 | 1927 => {
            Failure::Unreachable(said(message))
        }
        1969 | 3024 | 1317 | 1205 => Failure::Timeout,
        1213 => Failure::Unreachable(said("the transaction was rolled back by a deadlock")),
        1064 | 1149 => Failure::Query(said(
            "syntax error (`cursor` is a reserved word there and needs its backticks)",
        )),
        // Names of columns, tables and functions only.
        1052 | 1054 | 1060 | 1142 | 1143 | 1146 | 1227 | 1290 | 1305 | 1370 | 1792 => {
            Failure::Query(said(message))
        }
        1243 | 1295 => Failure::Query(said("not a statement that can be prepared")),
        _ => Failure::Query(format!("the server's error {number}")),
    }
}

/// Whether an extended result code of SQLite says that the file or its journal has to be recovered, which a reader may not do:
/// `SQLITE_READONLY_RECOVERY`, `…_CANTLOCK`, `…_ROLLBACK` and `…_CANTINIT`.
///
/// Codes: <https://www.sqlite.org/rescode.html>.
pub(super) const fn needs_recovery(extended: i32) -> bool {
    matches!(extended, 264 | 520 | 776 | 1288)
}

/// What an SQLite result code means.
///
/// Codes: <https://www.sqlite.org/rescode.html>.
pub(super) fn sqlite(extended: i32, message: &str) -> Failure {
    const NAMES_ONLY: [&str; 5] = [
        "no such column",
        "no such table",
        "no such function",
        "ambiguous column name",
        "wrong number of arguments to function",
    ];
    match extended & 0xff {
        9 => Failure::Timeout,
        5 | 6 => Failure::Unreachable("the file is locked".into()),
        8 if needs_recovery(extended) => Failure::Unreachable(
            "a transaction was cut off in the file, and a program that may write it has to open it first".into(),
        ),
        8 => Failure::Query("it would write, and the file is open for reading only".into()),
        10 => Failure::Unreachable("the file cannot be read".into()),
        11 | 26 => Failure::Unreachable("the file is damaged or no SQLite database".into()),
        14 => Failure::Unreachable("the file cannot be opened".into()),
        3 | 23 => Failure::Login("the file may not be read".into()),
        18 => Failure::Query("a value is too big".into()),
        1 if message.contains("syntax error") || message.contains("incomplete input") => {
            Failure::Query("syntax error".into())
        }
        1 if NAMES_ONLY.iter().any(|known| message.starts_with(known)) => {
            Failure::Query(clipped(message))
        }
        1 if message.contains("malformed JSON") => {
            Failure::Query("a JSON function was given text that is no JSON".into())
        }
        other => Failure::Query(format!("SQLite's error {other}")),
    }
}

fn said(code: &str, message: &str) -> String {
    format!("{code}: {}", clipped(message))
}

/// One line of bounded length.
fn clipped(message: &str) -> String {
    message
        .chars()
        .map(|character| {
            if character.is_control() {
                ' '
            } else {
                character
            }
        })
        .take(200)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_that_may_hold_a_value_is_not_repeated() {
        let secret = "invalid input syntax for type integer: \"hunter2\"";
        let failures = [
            postgres("22P02", secret),
            postgres("42601", secret),
            postgres("P0001", secret),
            postgres("XX000", secret),
            postgres("23505", secret),
            mysql(1064, secret),
            mysql(1366, secret),
            mysql(1644, secret),
            sqlite(1, secret),
            sqlite(1, "near \"hunter2\": syntax error"),
            sqlite(19, secret),
            Failure::of_driver(&sqlx::Error::Protocol(secret.to_owned())),
            Failure::of_driver(&sqlx::Error::Decode(secret.into())),
            Failure::of_driver(&sqlx::Error::Configuration(secret.into())),
        ];
        for failure in failures {
            assert!(!format!("{failure:?}").contains("hunter2"), "{failure:?}");
        }
    }

    #[test]
    fn what_a_code_of_postgresql_means_is_told_in_words_of_ours() {
        let unreachable = |problem: &str| Failure::Unreachable(problem.into());
        let query = |problem: &str| Failure::Query(problem.into());
        let cases = [
            ("P0001", query("P0001: a function raised an error")),
            ("54001", query("54001: too complex or too large")),
            (
                "22012",
                query("22012: a value does not fit the type it is converted to"),
            ),
            ("42804", query("42804: types or names do not fit")),
            ("XX000", query("the server's error XX000")),
            (
                "40001",
                unreachable("40001: the transaction was rolled back"),
            ),
            (
                "40P01",
                unreachable("40P01: the transaction was rolled back"),
            ),
            ("57014", Failure::Timeout),
            ("55P03", Failure::Timeout),
            ("25P04", Failure::Timeout),
        ];
        for (code, expected) in cases {
            assert_eq!(postgres(code, "hunter2"), expected, "{code}");
        }
    }

    #[test]
    fn what_the_driver_says_is_told_in_words_of_ours() {
        let unreachable = |problem: &str| Failure::Unreachable(problem.into());
        let query = |problem: &str| Failure::Query(problem.into());
        let type_name = "hunter2".to_owned();
        let cases = [
            (
                sqlx::Error::Tls("hunter2".into()),
                unreachable(
                    "no TLS connection could be made (certificate, protocol or ssl settings)",
                ),
            ),
            (
                sqlx::Error::Configuration("hunter2".into()),
                Failure::Login("the connection settings cannot be used".into()),
            ),
            (
                sqlx::Error::Protocol("hunter2".into()),
                unreachable("the answer was not in the database's protocol"),
            ),
            (
                sqlx::Error::WorkerCrashed,
                unreachable("the driver's thread ended"),
            ),
            (
                sqlx::Error::Decode("hunter2".into()),
                query("a value could not be decoded"),
            ),
            (
                sqlx::Error::TypeNotFound { type_name },
                query("a column has a type that is not known"),
            ),
            (
                sqlx::Error::RowNotFound,
                query("the driver could not run it"),
            ),
        ];
        for (error, expected) in cases {
            assert_eq!(Failure::of_driver(&error), expected);
        }
        use std::io::ErrorKind;
        for (kind, expected) in [
            (ErrorKind::ConnectionRefused, "connection refused"),
            (ErrorKind::ConnectionReset, "connection reset"),
            (ErrorKind::BrokenPipe, "connection reset"),
            (ErrorKind::UnexpectedEof, "connection closed"),
            (ErrorKind::ConnectionAborted, "connection closed"),
            (ErrorKind::TimedOut, "no answer in time"),
            (ErrorKind::NotFound, "no such host, socket or file"),
        ] {
            let error = sqlx::Error::Io(kind.into());
            assert_eq!(Failure::of_driver(&error), unreachable(expected));
        }
    }

    #[test]
    fn a_name_that_cannot_be_resolved_is_called_so() {
        let error = std::io::Error::other(
            "failed to lookup address information: Name or service not known",
        );
        let Failure::Unreachable(problem) = Failure::of_driver(&sqlx::Error::Io(error)) else {
            panic!("a host that cannot be found cannot be reached");
        };
        assert_eq!(problem, "the host's name cannot be resolved");
    }

    #[test]
    fn codes_tell_what_is_worth_another_try() {
        assert_eq!(postgres("57014", ""), Failure::Timeout);
        assert!(matches!(postgres("28P01", "x"), Failure::Login(_)));
        assert!(matches!(postgres("57P01", "x"), Failure::Unreachable(_)));
        assert!(matches!(postgres("53300", "x"), Failure::Unreachable(_)));
        assert!(matches!(postgres("25006", "x"), Failure::Query(_)));
        assert_eq!(mysql(1969, ""), Failure::Timeout);
        assert!(matches!(mysql(1045, "x"), Failure::Login(_)));
        assert!(matches!(mysql(1053, "x"), Failure::Unreachable(_)));
        assert_eq!(sqlite(9, ""), Failure::Timeout);
        assert!(matches!(sqlite(261, ""), Failure::Unreachable(_)));
        assert!(matches!(sqlite(1032, ""), Failure::Query(_)));
        for recovery in [264, 520, 776, 1288] {
            assert!(matches!(sqlite(recovery, ""), Failure::Unreachable(_)));
        }
    }

    #[test]
    fn what_a_number_of_mysql_means_is_told_in_words_of_ours() {
        let cases = [
            (1045, "Login: 1045: said"),
            (1040, "Unreachable: 1040: said"),
            (1205, "Timeout"),
            (1969, "Timeout"),
            (
                1213,
                "Unreachable: 1213: the transaction was rolled back by a deadlock",
            ),
            (
                1064,
                "Query: 1064: syntax error (`cursor` is a reserved word there and needs its backticks)",
            ),
            (
                1149,
                "Query: 1149: syntax error (`cursor` is a reserved word there and needs its backticks)",
            ),
            (1054, "Query: 1054: said"),
            (1146, "Query: 1146: said"),
            (1243, "Query: 1243: not a statement that can be prepared"),
            (1295, "Query: 1295: not a statement that can be prepared"),
            (1366, "Query: the server's error 1366"),
        ];
        for (number, expected) in cases {
            let shown = match mysql(number, "said") {
                Failure::Login(problem) => format!("Login: {problem}"),
                Failure::Unreachable(problem) => format!("Unreachable: {problem}"),
                Failure::Query(problem) => format!("Query: {problem}"),
                Failure::Timeout => "Timeout".to_owned(),
            };
            assert_eq!(shown, expected, "{number}");
        }
    }
}
