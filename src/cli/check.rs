//! `check`: is this configuration ready? Asks the source, the state and Vercel, and sends nothing that changes anything.

mod probe;
mod report;

use std::collections::BTreeSet;
use std::path::Path;

use clap::Args;

use super::context::{Session, state_exists};
use super::exit::Exit;
use super::fault::{Failure, Fault, code};
use super::text::{count, counted};
use crate::app;
use crate::app::StateProbe;
use crate::clock::SeededRandom;
use crate::config::{Config, ConfigError, DatabaseScheme, Loaded};
use crate::model::InstallationId;
use crate::reconcile::PAGE_ROWS;
use crate::source::{Description, Guarantee, Inspect, Shape, SourceError};
use crate::store::Access;
use report::{Level, Line, Report};

/// Is this configuration ready? Checks it as a whole, then the source, the state and Vercel.
///
/// Reports every configuration problem at once, before any connection. Then it connects: describes the source query's columns,
/// what the role may do, whether indexes serve the reads and what change detection guarantees; opens the state; and asks
/// Vercel for the resource lists of up to three installations, to see that their tokens are accepted.
///
/// It sends nothing but those GET requests (and, with `[source] listen`, one notification to itself), changes nothing, and creates
/// no state. Exit codes: 0 ready, 1 something cannot be
/// reached or refuses, 78 the configuration has to change.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Example:\n  reconciled --config ./reconciled.toml check\n\nNext: reconciled plan"
)]
pub(crate) struct Arguments {
    /// The report as JSON.
    #[arg(long)]
    json: bool,
    /// Check the configuration alone; connect to nothing.
    #[arg(long)]
    offline: bool,
}

pub(crate) async fn execute(arguments: Arguments, session: &mut Session) -> Result<Exit, Fault> {
    let Arguments { json, offline } = arguments;
    let loaded = match session.load() {
        Ok(loaded) => loaded,
        Err(Fault::Configuration(error)) if json => {
            session.out.json(report::problems(&error));
            return Ok(Exit::Configuration);
        }
        Err(fault) => return Err(fault),
    };
    session
        .log_to_stderr(&loaded.config.log, false)
        .map_err(|error| Failure::of(code::START, &error))?;
    let mut report = Report::new(&loaded, offline);
    if !offline {
        connect(&loaded.config, &mut report).await;
    }
    if json {
        session.out.json(report.to_json());
    } else {
        session.out.print(&report.render(session.look()));
    }
    Ok(report.exit())
}

/// Asks everybody; what fails becomes a line, and the rest is asked all the same.
async fn connect(config: &Config, report: &mut Report) {
    match app::source(config) {
        Err(error) => report.failed("source", &Failure::from(&error)),
        Ok(source) => match source.describe().await {
            Err(error) => {
                report.failed(topic(&error), &Failure::from(&error));
                report.add(Line::new(
                    Level::Skipped,
                    "vercel",
                    "not asked: whom to ask is in the source",
                ));
            }
            Ok(description) => {
                describe(&description, report);
                listen(config, report).await;
                match sample(&*source, report).await {
                    Ok(installations) => probe::ask(config, source, &installations, report).await,
                    Err(error) => report.failed("query", &Failure::from(&error)),
                }
            }
        },
    }
    match state(config).await {
        Ok(line) => report.add(line),
        Err(Fault::Failure(failure)) => report.failed("state", &failure),
        Err(Fault::Configuration(ConfigError { .. })) => {
            unreachable!("a state does not load a configuration")
        }
    }
    // An unsupported or contradictory client setting shows even when there was nobody to ask.
    if report.source.is_none()
        && let Err(error) = app::marketplace(config)
    {
        report.failed("vercel", &Failure::from(&error));
    }
}

/// What an error of the source concerns.
const fn topic(error: &SourceError) -> &'static str {
    match error {
        SourceError::Unreachable { .. }
        | SourceError::Login { .. }
        | SourceError::Replica { .. } => "source",
        SourceError::Timeout { .. } | SourceError::Query { .. } | SourceError::Shape { .. } => {
            "query"
        }
    }
}

fn describe(description: &Description, report: &mut Report) {
    let Description {
        target,
        server,
        role,
        can_write,
        columns: _,
        shape,
        cursor_type,
        feed,
        rows,
        is_poll_indexed,
        is_sweep_indexed,
        is_token_indexed,
        guarantee,
        improvement,
        latency_ms,
        ..
    } = description;
    let role_shown = if role.is_empty() {
        String::new()
    } else {
        format!(" as {role}")
    };
    let may = match can_write {
        Some(false) => ", cannot write",
        Some(true) => ", can write",
        None => "",
    };
    report.add(Line::new(
        Level::Ok,
        "source",
        format!("{server} {target}{role_shown}{may}, {latency_ms} ms"),
    ));
    if *can_write == Some(true) && !role.is_empty() {
        let text = format!("the role {role} could change your data; reconciled never does");
        let warning = Line::warning(code::WRITABLE_SOURCE, text);
        report.add(
            read_only(server)
                .iter()
                .fold(warning, |warning, help| warning.help(*help)),
        );
    }
    let rows = rows.map_or_else(
        || "too many rows to count in time".to_owned(),
        |rows| counted(rows, "row"),
    );
    let cursor = match (feed, shape.cursor, cursor_type) {
        (Some(feed), ..) => format!("polls follow the change feed {feed}"),
        (None, None, _) => "no cursor: every poll reads every row".to_owned(),
        (None, Some(_), kind) => {
            let kind = kind
                .as_deref()
                .map(|kind| format!(" ({kind})"))
                .unwrap_or_default();
            let index = if *is_poll_indexed == Some(true) {
                ", indexed"
            } else {
                ""
            };
            format!("cursor{kind}{index}")
        }
    };
    report.add(Line::new(
        Level::Ok,
        "query",
        format!("{rows}; manages {}; {cursor}", managed(shape)),
    ));
    for (indexed, what, help) in [
        (
            is_poll_indexed,
            "polls: each page sorts the table",
            "an index on the cursor column, then the keys",
        ),
        (
            is_sweep_indexed,
            "sweeps: each page sorts the table",
            "an index on (installation_id, resource_id)",
        ),
        (
            is_token_indexed,
            "look-up of tokens: each reads the table",
            "an index on what installations_query gives as installation_id",
        ),
    ] {
        if *indexed == Some(false) {
            report.add(
                Line::warning(code::NO_INDEX, format!("no index serves the {what}")).help(help),
            );
        }
    }
    let promise = match guarantee {
        Guarantee::Exact if feed.is_some() => {
            "exact, by the change feed: polls miss nothing that its triggers record, however late it commits"
        }
        Guarantee::BoundedByOverlap if feed.is_some() => {
            "bounded, by the change feed: polls miss what commits later than the overlap after a later change; sweeps find it"
        }
        Guarantee::Exact => {
            "exact, if the database sets the cursor and not the application's clock: polls miss no committed row, however late it commits"
        }
        Guarantee::BoundedByOverlap => {
            "bounded: polls miss rows that commit later than the overlap; sweeps find those"
        }
        Guarantee::SweepOnly => "by sweeps: every poll reads every row",
    };
    report.add(Line::new(Level::Ok, "detect", promise));
    if let (Guarantee::BoundedByOverlap, Some(improvement)) = (guarantee, improvement) {
        let text = "a transaction longer than [source] overlap is noticed by the next sweep only";
        report.add(Line::warning(code::BOUNDED_DETECTION, text).help(improvement.clone()));
    }
    report.source = Some(description.clone());
}

/// How a role of this server becomes one that can only read.
fn read_only(server: &str) -> &'static [&'static str] {
    if server.starts_with("PostgreSQL") {
        &["give it SELECT alone, as in deploy/postgres-role.sql"]
    } else if server.starts_with("MariaDB") {
        &[
            "give it SELECT alone, as in deploy/mysql-role.sql; SHOW GRANTS, asked as it, names what it may do",
            "a new MariaDB lets everybody write to its database `test`: mariadb-secure-installation takes that away",
        ]
    } else {
        &[
            "give it SELECT alone, as in deploy/mysql-role.sql; SHOW GRANTS, asked as it, names what it may do",
        ]
    }
}

/// Whether notifications arrive, if `[source] listen` is set.
async fn listen(config: &Config, report: &mut Report) {
    let random = SeededRandom::from_system();
    let mut listener = match app::listener(config, &random) {
        Ok(Some(listener)) => listener,
        Ok(None) => return,
        Err(error) => return report.failed("listen", &Failure::from(&error)),
    };
    let channel = config.source.listen.as_deref().unwrap_or_default();
    match listener.open().await {
        Ok(()) => report.add(Line::new(
            Level::Ok,
            "listen",
            format!("notifications arrive; on channel {channel} they start a poll at once"),
        )),
        Err(problem) => report.add(
            Line::warning(code::DEAF, format!("no notifications: {problem}"))
                .help("connect to the server itself, or to a pooler in session mode; polls on schedule go on without"),
        ),
    }
}

fn managed(shape: &Shape) -> String {
    let names: Vec<&str> = shape
        .managed
        .iter()
        .map(|field| field.wire_name())
        .collect();
    if names.is_empty() {
        "nothing".to_owned()
    } else {
        names.join(", ")
    }
}

/// Reads one page: which installations to ask about, and whether its rows can be used.
async fn sample(
    source: &dyn Inspect,
    report: &mut Report,
) -> Result<Vec<InstallationId>, SourceError> {
    let page = source.sweep_page(None, PAGE_ROWS).await?;
    let mut installations = BTreeSet::new();
    let (mut unusable, mut first) = (0_u64, None);
    for row in &page.rows {
        if let Ok(key) = row.key() {
            installations.insert(key.installation_id);
        }
        if let Err(problem) = row.decode() {
            unusable += 1;
            first.get_or_insert((
                row.installation_id.shown_id(),
                row.resource_id.shown_id(),
                problem,
            ));
        }
    }
    if let Some((installation_id, resource_id, problem)) = first {
        let text = format!(
            "{} of the first {} cannot be used, first {}/{}: column `{}` {}",
            count(unusable),
            counted(page.rows.len() as u64, "row"),
            super::text::visible(&installation_id),
            super::text::visible(&resource_id),
            problem.column,
            problem.problem
        );
        let help = format!("accepted: {}; every other row goes on", problem.accepted);
        report.add(Line::warning(code::UNUSABLE_ROWS, text).help(help));
    }
    Ok(installations.into_iter().collect())
}

/// Connects to a state on PostgreSQL; its schema may not be there yet.
async fn postgres_state(config: &Config) -> Result<Line, Fault> {
    let way = |pooled| match pooled {
        true => ", through a pooler",
        false => "",
    };
    match app::probe_state(config).await? {
        StateProbe::Absent { pooled } => Ok(Line::new(
            Level::Ok,
            "state",
            format!(
                "{}{}, created by the first run",
                config.state.url,
                way(pooled)
            ),
        )),
        StateProbe::Ready {
            schema,
            pooled,
            writable: true,
            resources,
            daemons,
        } => {
            let text = format!(
                "{}{}, schema {schema}, writable, {}, {}",
                config.state.url,
                way(pooled),
                counted(resources, "resource"),
                match daemons {
                    0 => "no daemon works on it".to_owned(),
                    1 => "a daemon works on it".to_owned(),
                    several => format!("{several} daemons work on it"),
                }
            );
            Ok(Line::new(Level::Ok, "state", text))
        }
        StateProbe::Ready { .. } => Err(Failure::new(
            code::STATE_OPEN,
            format!(
                "the role may not write to the state at {}",
                config.state.url
            ),
        )
        .help("it needs to own the schema `reconciled`: see deploy/postgres-state.sql")
        .into()),
    }
}

/// Opens a state that exists; of one that does not, looks whether it could be created.
async fn state(config: &Config) -> Result<Line, Fault> {
    if config.state.url.scheme() == DatabaseScheme::Postgres {
        return postgres_state(config).await;
    }
    if state_exists(config) {
        let console = app::open_state(config, Access::Beside).await?;
        let daemon = console.daemon().await?;
        let resources = console.resources().await?;
        let running = if daemon.running {
            "a daemon works on it"
        } else {
            "no daemon works on it"
        };
        let text = format!(
            "{}, {}, {running}",
            config.state.url,
            counted(resources, "resource")
        );
        return Ok(Line::new(Level::Ok, "state", text));
    }
    debug_assert_eq!(
        config.state.url.scheme(),
        DatabaseScheme::Sqlite,
        "others are taken to exist"
    );
    let path = config.state.url.sqlite_path();
    let Some(path) = path else {
        // In memory: opening it tells whether that can be.
        app::open_state(config, Access::Beside).await?;
        return Ok(Line::new(Level::Ok, "state", "in memory"));
    };
    let directory = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let problem = if !directory.is_dir() {
        Some("does not exist")
    } else if rustix::fs::access(directory, rustix::fs::Access::WRITE_OK).is_err() {
        Some("cannot be written by this user")
    } else {
        None
    };
    match problem {
        None => Ok(Line::new(
            Level::Ok,
            "state",
            format!("{}, created by the first run", config.state.url),
        )),
        Some(problem) => {
            let message = format!(
                "the directory {} of the state {problem}",
                directory.display()
            );
            let failure = Failure::new(code::STATE_OPEN, message);
            Err(failure
                .help(format!(
                    "install -d -m 0700 -o USER {}",
                    directory.display()
                ))
                .into())
        }
    }
}

/// What a loaded configuration says of itself.
fn config_line(loaded: &Loaded) -> String {
    let Loaded {
        path,
        keys_total,
        keys_from_file,
        ..
    } = loaded;
    let place = if path.is_some() {
        "from this file"
    } else {
        "from a file"
    };
    format!("{keys_total} keys, {keys_from_file} {place}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_that_can_write_is_told_the_file_of_its_own_server() {
        for (server, file) in [
            ("PostgreSQL 15.18", "deploy/postgres-role.sql"),
            ("MariaDB 10.11.6", "deploy/mysql-role.sql"),
            ("MySQL 8.0.36", "deploy/mysql-role.sql"),
        ] {
            assert!(read_only(server)[0].contains(file), "{server}");
            let of_test = read_only(server).iter().any(|help| help.contains("`test`"));
            assert_eq!(of_test, server.starts_with("MariaDB"), "{server}");
        }
    }
}
