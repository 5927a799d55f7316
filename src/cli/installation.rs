//! `installation`: which customers there are, and a person's word that one of them gets no requests for now.

use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use tracing::info;

use super::beside::{self, Actor, Why, parse_installation, parse_words, shell};
use super::context::{Session, parse_duration};
use super::exit::Exit;
use super::fault::Fault;
use super::out::{BAD, GOOD, Look, Table, WARN, styled};
use super::standing::{age_ms, ahead, in_effect, pause_json, paused, span};
use super::text::{count, counted, cut, visible};
use crate::model::{InstallationId, Timestamp};
use crate::store::console::{Console, InstallationSummary, Installations};
use crate::store::{Pause, PauseKind, StoreError};

/// Lists installations, pauses one, resumes one.
///
/// A paused installation gets no requests; its changes go on to be found and wait, and are sent when it is resumed. A pause is
/// durable: it outlives the daemon and works beside it, within a second. Every act is kept with who did it, when and why.
///
/// The daemon itself pauses an installation whose token is refused or that Vercel no longer knows, and probes it until it answers.
#[derive(Debug, Args)]
#[command(after_long_help = "Example:\n  \
    reconciled installation pause icfg_7Hd --reason \"customer migration\" --for 2h\n\n\
    Next: reconciled status")]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    List(ListArguments),
    Pause(PauseArguments),
    Resume(ResumeArguments),
}

/// One line per installation: its state, its resources and what is open.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Example:\n  reconciled installation list --json\n\nNext: reconciled outbox list --installation ID"
)]
struct ListArguments {
    /// The list as JSON.
    #[arg(long)]
    json: bool,
}

/// Sends nothing for an installation until it is resumed or the time is over.
#[derive(Debug, Args)]
#[command(after_long_help = "Example:\n  \
    reconciled installation pause icfg_7Hd --reason \"customer migration\" --for 2h\n\n\
    Next: reconciled installation resume icfg_7Hd")]
struct PauseArguments {
    /// The installation.
    #[arg(value_name = "INSTALLATION", value_parser = parse_installation)]
    id: InstallationId,
    /// Why; shown wherever the pause is.
    #[arg(long, value_name = "TEXT", value_parser = parse_words)]
    reason: String,
    /// End by itself after this long: from a second to ten years.
    #[arg(long = "for", value_name = "DURATION", value_parser = parse_period)]
    period: Option<Duration>,
    /// Also if the state knows no such installation.
    #[arg(long)]
    unknown: bool,
    #[command(flatten)]
    actor: Actor,
}

/// Ends a pause that a person made; what waits is sent at once.
///
/// A pause that the daemon made ends when a probe succeeds, not by this command. It exits with 1 if that is the only one, or if the
/// state knows no such installation.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Example:\n  reconciled installation resume icfg_7Hd\n\nNext: reconciled status"
)]
struct ResumeArguments {
    /// The installation.
    #[arg(value_name = "INSTALLATION", value_parser = parse_installation)]
    id: InstallationId,
    #[command(flatten)]
    why: Why,
    #[command(flatten)]
    actor: Actor,
}

/// The longest pause that ends by itself; whoever wants more leaves the end open.
const PERIOD_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 3_600);

/// How long a pause lasts.
fn parse_period(text: &str) -> Result<Duration, String> {
    let period = parse_duration(text)?;
    if (Duration::from_secs(1)..=PERIOD_MAX).contains(&period) {
        Ok(period)
    } else {
        Err("from 1s to 3650d; without --for the pause lasts until it is ended".to_owned())
    }
}

pub(crate) async fn execute(arguments: Arguments, session: &mut Session) -> Result<Exit, Fault> {
    let (_, console) = beside::open(session).await?;
    let look = session.look();
    let (text, exit) = match arguments.command {
        Command::List(ListArguments { json }) => {
            let installations = console.installations(Installations::All).await?;
            if json {
                let head = json!({ "schema": 1, "at": look.now.to_string() });
                let items = installations.iter().map(|one| to_json(one, look.now));
                session.out.json_with(head, "installations", items);
                return Ok(Exit::Done);
            }
            (list(&installations, look), Exit::Done)
        }
        Command::Pause(arguments) => pause(arguments, &console, look).await?,
        Command::Resume(arguments) => resume(arguments, &console, look).await?,
    };
    session.out.print(&text);
    Ok(exit)
}

async fn pause(
    arguments: PauseArguments,
    console: &Arc<dyn Console>,
    look: Look,
) -> Result<(String, Exit), Fault> {
    let PauseArguments {
        id,
        reason,
        period,
        unknown,
        actor,
    } = arguments;
    let known = known(&**console, &id).await?;
    if known.is_none() && !unknown {
        let installations = console.installations(Installations::All).await?;
        return Ok((refuse_unknown(&id, &installations), Exit::Failed));
    }
    let pause = Pause {
        installation_id: id,
        kind: PauseKind::Manual,
        by: actor.name(),
        reason,
        since: look.now,
        until: period.map(|period| look.now.plus(period)),
        probe_at: None,
        probes_failed: 0,
    };
    console.pause(&pause).await?;
    info!(
        event = "installation.paused_by_hand",
        installation_id = pause.installation_id.as_str(),
        actor = pause.by,
        reason = pause.reason,
        "Paused {} for {}",
        pause.installation_id,
        pause.by
    );
    Ok((tell_paused(&pause, known.as_ref(), look), Exit::Done))
}

fn tell_paused(pause: &Pause, known: Option<&InstallationSummary>, look: Look) -> String {
    let open = known.map_or(0, |known| known.waiting);
    let end = match pause.until {
        Some(until) => format!("ends by itself {}", ahead(until, look)),
        None => "until it is resumed".to_owned(),
    };
    let replaced = known.and_then(|known| manual(known, look.now));
    let replaced =
        replaced.map(|before| format!("It replaces this one: {}.\n", paused(before, look)));
    format!(
        "{}   {}: nothing is sent for it, {end}\n{}{} meanwhile; a request on its way ends by itself.\n\
         Next: reconciled installation resume {}\n",
        styled(WARN, "PAUSED"),
        visible(pause.installation_id.as_str()),
        replaced.unwrap_or_default(),
        if open == 1 {
            "1 entry waits".to_owned()
        } else {
            format!("{} entries wait", count(open))
        },
        shell(pause.installation_id.as_str()),
    )
}

fn refuse_unknown(id: &InstallationId, installations: &[InstallationSummary]) -> String {
    format!(
        "{}   {}\nNext: reconciled installation list, or the same with --unknown\n",
        styled(BAD, "NOT PAUSED"),
        unknown(id, installations),
    )
}

/// What the state knows of an installation.
pub(crate) async fn known(
    console: &dyn Console,
    id: &InstallationId,
) -> Result<Option<InstallationSummary>, StoreError> {
    let these = Installations::These(vec![id.clone()]);
    Ok(console.installations(these).await?.pop())
}

/// That the state knows no such installation, and which was perhaps meant.
pub(crate) fn unknown(id: &InstallationId, installations: &[InstallationSummary]) -> String {
    format!(
        "the state knows no installation {}{}",
        visible(id.as_str()),
        perhaps(id, installations),
    )
}

/// Which installation was perhaps meant, to end a sentence with.
pub(crate) fn perhaps(id: &InstallationId, installations: &[InstallationSummary]) -> String {
    let distance = |known: &&InstallationSummary| {
        strsim::damerau_levenshtein(known.installation_id.as_str(), id.as_str())
    };
    let nearest = installations
        .iter()
        .min_by_key(distance)
        .filter(|known| distance(known) <= 3);
    let nearest = nearest.map(|known| format!("; did you mean {}?", known.installation_id));
    visible(&nearest.unwrap_or_default())
}

async fn resume(
    arguments: ResumeArguments,
    console: &Arc<dyn Console>,
    look: Look,
) -> Result<(String, Exit), Fault> {
    let ResumeArguments { id, why, actor } = arguments;
    let by = actor.person(why.reason);
    let resumed = console.resume_manually(&id, &by, look.now).await?;
    if resumed {
        info!(
            event = "installation.resumed_by_hand",
            installation_id = id.as_str(),
            actor = by.name,
            reason = by.reason,
            "Resumed {id} for {}",
            by.name
        );
    }
    let pauses = console.pauses().await?;
    let automatic = pauses
        .into_iter()
        .find(|pause| pause.installation_id == id && pause.kind != PauseKind::Manual);
    if !resumed && automatic.is_none() && known(&**console, &id).await?.is_none() {
        let installations = console.installations(Installations::All).await?;
        return Ok((refuse_to_resume(&id, &installations), Exit::Failed));
    }
    Ok(tell_resumed(&id, resumed, automatic.as_ref(), look))
}

fn refuse_to_resume(id: &InstallationId, installations: &[InstallationSummary]) -> String {
    format!(
        "{}   {}\nNext: reconciled installation list\n",
        styled(BAD, "NOT RESUMED"),
        unknown(id, installations),
    )
}

fn tell_resumed(
    id: &InstallationId,
    resumed: bool,
    automatic: Option<&Pause>,
    look: Look,
) -> (String, Exit) {
    let shown = visible(id.as_str());
    if let Some(pause) = automatic {
        let manual = if resumed {
            "its pause by hand has ended, but "
        } else {
            ""
        };
        let text = format!(
            "{}   {shown}: {manual}{}\n\
             It goes on by itself when a probe succeeds.\nNext: reconciled outbox list --installation {}\n",
            styled(BAD, "STILL PAUSED"),
            paused(pause, look),
            shell(id.as_str()),
        );
        return (text, if resumed { Exit::Done } else { Exit::Failed });
    }
    let verdict = if resumed {
        format!(
            "{}   {shown}: what waits is sent now",
            styled(GOOD, "RESUMED")
        )
    } else {
        format!(
            "{}   {shown} was not paused; nothing was changed",
            styled(GOOD, "ACTIVE")
        )
    };
    (format!("{verdict}\nNext: reconciled status\n"), Exit::Done)
}

fn list(installations: &[InstallationSummary], look: Look) -> String {
    let paused = installations
        .iter()
        .filter(|one| is_paused(one, look.now))
        .count() as u64;
    let verdict = match (installations.len() as u64, paused) {
        (0, _) => "No installations yet: nothing was read from the source.".to_owned(),
        (all, 0) => format!("{}, none paused.", counted(all, "installation")),
        (all, paused) => format!(
            "{}, {} paused.",
            counted(all, "installation"),
            count(paused)
        ),
    };
    let mut text = format!("{verdict}\n");
    if !installations.is_empty() {
        text.push('\n');
        text.push_str(&table(installations.iter(), look).render(look));
        text.push('\n');
    }
    let next = installations
        .iter()
        .find(|one| manual(one, look.now).is_some());
    let next = match next {
        Some(one) => format!(
            "reconciled installation resume {}",
            shell(one.installation_id.as_str())
        ),
        None => "reconciled status".to_owned(),
    };
    text.push_str(&format!("Next: {next}\n"));
    text
}

/// The table of installations, also for `status`.
pub(crate) fn table<'a>(
    installations: impl Iterator<Item = &'a InstallationSummary>,
    look: Look,
) -> Table {
    /// A longer reason is cut at a terminal.
    const REASON_COLUMNS: usize = 48;
    let oldest = if look.terminal {
        "OLDEST"
    } else {
        "OLDEST SINCE"
    };
    let mut table = Table::new(&[
        "INSTALLATION",
        "STATE",
        "RESOURCES",
        "WAITING",
        "HELD",
        "DEAD",
        oldest,
        "WHY",
    ]);
    for one in installations {
        let why = one.pauses.iter().find(|pause| in_effect(pause, look.now));
        let why = why
            .map(|pause| short_reason(pause, look))
            .unwrap_or_default();
        let number = |number: u64| {
            if look.terminal {
                count(number)
            } else {
                number.to_string()
            }
        };
        table.row(vec![
            visible(one.installation_id.as_str()),
            state(one, look.now).to_owned(),
            number(one.resources),
            number(one.waiting),
            number(one.held),
            number(one.dead),
            one.oldest.map(|at| span(at, look)).unwrap_or_default(),
            if look.terminal {
                cut(&why, REASON_COLUMNS)
            } else {
                why
            },
        ]);
    }
    table
}

fn short_reason(pause: &Pause, look: Look) -> String {
    let end = pause
        .until
        .map(|at| format!(", ends {}", ahead(at, look)))
        .unwrap_or_default();
    match pause.kind {
        PauseKind::Manual => format!("{}: {}{end}", visible(&pause.by), visible(&pause.reason)),
        PauseKind::Token | PauseKind::Gone => {
            pause
                .probe_at
                .map(|at| format!("probed {}: ", ahead(at, look)))
                .unwrap_or_default()
                + &visible(&pause.reason)
        }
    }
}

/// One word for what an installation is in.
fn state(one: &InstallationSummary, now: Timestamp) -> &'static str {
    let of = |kind| {
        one.pauses
            .iter()
            .any(|pause| pause.kind == kind && in_effect(pause, now))
    };
    match () {
        () if of(PauseKind::Gone) => "gone",
        () if of(PauseKind::Token) => "token refused",
        () if of(PauseKind::Manual) => "paused",
        () if one.limited_until.is_some_and(|until| until > now) => "rate limited",
        () => "active",
    }
}

/// Whether it gets no requests, whoever paused it.
pub(crate) fn is_paused(one: &InstallationSummary, now: Timestamp) -> bool {
    one.pauses.iter().any(|pause| in_effect(pause, now))
}

/// The pause that a person made, while it is in effect.
pub(crate) fn manual(one: &InstallationSummary, now: Timestamp) -> Option<&Pause> {
    one.pauses
        .iter()
        .find(|pause| pause.kind == PauseKind::Manual && in_effect(pause, now))
}

/// One installation for machines, also in `status`.
pub(crate) fn to_json(one: &InstallationSummary, now: Timestamp) -> Value {
    let InstallationSummary {
        installation_id,
        resources,
        waiting,
        held,
        dead,
        oldest,
        pauses,
        limited_until,
    } = one;
    json!({
        "installation_id": installation_id.as_str(),
        "state": state(one, now).replace(' ', "_"),
        "resources": resources,
        "waiting": waiting,
        "held": held,
        "dead": dead,
        "oldest_open_age_ms": oldest.map(|at| age_ms(at, now)),
        "limited_until": limited_until.filter(|until| *until > now).map(|until| until.to_string()),
        "pauses": pauses.iter().map(|pause| pause_json(pause, now)).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_777_903_331_000);
    const LOOK: Look = Look {
        terminal: true,
        width: 100,
        now: NOW,
    };

    fn ago(seconds: u64) -> Timestamp {
        NOW.minus(Duration::from_secs(seconds))
    }

    fn one(id: &str, pauses: Vec<(PauseKind, Option<Timestamp>)>) -> InstallationSummary {
        let installation_id = InstallationId::new(id).expect("an id");
        let pause = |(kind, until): (PauseKind, Option<Timestamp>)| Pause {
            installation_id: installation_id.clone(),
            kind,
            by: if kind == PauseKind::Manual {
                "ana"
            } else {
                "reconciled"
            }
            .into(),
            reason: if kind == PauseKind::Manual {
                "customer migration"
            } else {
                "Vercel refuses its access token"
            }
            .into(),
            since: ago(120),
            until,
            probe_at: (kind != PauseKind::Manual).then(|| NOW.plus(Duration::from_secs(40))),
            probes_failed: 0,
        };
        InstallationSummary {
            pauses: pauses.into_iter().map(pause).collect(),
            installation_id,
            resources: 1_112,
            waiting: 1,
            held: 0,
            dead: 0,
            oldest: Some(ago(134)),
            limited_until: None,
        }
    }

    fn plain(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    #[test]
    fn an_installation_that_vercel_limits_is_said_to_be_until_the_limit_ends() {
        let mut limited = one("icfg_1", vec![]);
        for (until, said) in [(0, "active"), (1, "rate limited")] {
            limited.limited_until = Some(NOW.plus(Duration::from_secs(until)));
            assert_eq!(state(&limited, NOW), said);
        }
        assert!(!is_paused(&limited, NOW));
        // What a person did is said first.
        limited.pauses = one("icfg_1", vec![(PauseKind::Manual, None)]).pauses;
        assert_eq!(state(&limited, NOW), "paused");
    }

    #[test]
    fn the_list_says_who_is_paused_by_whom_and_why() {
        let fleet = [
            one("icfg_7Hd", vec![]),
            one("icfg_9aQ", vec![(PauseKind::Manual, None)]),
            one("icfg_over", vec![(PauseKind::Manual, Some(ago(1)))]),
            one("icfg_tok", vec![(PauseKind::Token, None)]),
        ];
        insta::assert_snapshot!(plain(&list(&fleet, LOOK)), @r"
        4 installations, 2 paused.

        INSTALLATION  STATE          RESOURCES  WAITING  HELD  DEAD  OLDEST      WHY
        icfg_7Hd      active         1,112      1        0     0     2 min 14 s
        icfg_9aQ      paused         1,112      1        0     0     2 min 14 s  ana: customer migration
        icfg_over     active         1,112      1        0     0     2 min 14 s
        icfg_tok      token refused  1,112      1        0     0     2 min 14 s  probed in 40 s: Vercel refuses its access token

        Next: reconciled installation resume icfg_9aQ
        ");
        let pipe = plain(&list(
            &fleet,
            Look {
                terminal: false,
                ..LOOK
            },
        ));
        assert!(pipe.contains("icfg_9aQ\tpaused\t1112\t1\t0\t0\t2026-05-04T13:59:57.000Z\tana: customer migration\n"), "{pipe}");
    }

    #[test]
    fn a_mistyped_installation_is_not_paused() {
        let text = plain(&refuse_unknown(
            &InstallationId::new("icfg_7hd").expect("an id"),
            &[one("icfg_7Hd", vec![])],
        ));
        insta::assert_snapshot!(text, @r"
        NOT PAUSED   the state knows no installation icfg_7hd; did you mean icfg_7Hd?
        Next: reconciled installation list, or the same with --unknown
        ");
        let text = refuse_to_resume(&InstallationId::new("other").expect("an id"), &[]);
        insta::assert_snapshot!(plain(&text), @r"
        NOT RESUMED   the state knows no installation other
        Next: reconciled installation list
        ");
    }

    #[test]
    fn a_pause_says_what_it_means_and_how_it_ends() {
        let fleet = one(
            "icfg_9aQ",
            vec![(PauseKind::Manual, Some(NOW.plus(Duration::from_secs(7200))))],
        );
        let free = one("icfg_9aQ", vec![]);
        insta::assert_snapshot!(plain(&tell_paused(&fleet.pauses[0], Some(&free), LOOK)), @r"
        PAUSED   icfg_9aQ: nothing is sent for it, ends by itself in 2 h
        1 entry waits meanwhile; a request on its way ends by itself.
        Next: reconciled installation resume icfg_9aQ
        ");
        let text = plain(&tell_paused(&fleet.pauses[0], Some(&fleet), LOOK));
        insta::assert_snapshot!(text, @r#"
        PAUSED   icfg_9aQ: nothing is sent for it, ends by itself in 2 h
        It replaces this one: installation paused by ana 14:00: "customer migration", ends in 2 h.
        1 entry waits meanwhile; a request on its way ends by itself.
        Next: reconciled installation resume icfg_9aQ
        "#);
    }

    #[test]
    fn only_a_probe_ends_a_pause_that_the_daemon_made() {
        let id = InstallationId::new("icfg_tok").expect("an id");
        let fleet = one("icfg_tok", vec![(PauseKind::Token, None)]);
        let (text, exit) = tell_resumed(&id, false, fleet.pauses.first(), LOOK);
        assert_eq!(exit, Exit::Failed);
        insta::assert_snapshot!(plain(&text), @r"
        STILL PAUSED   icfg_tok: installation paused 14:00: Vercel refuses its access token; probed again in 40 s
        It goes on by itself when a probe succeeds.
        Next: reconciled outbox list --installation icfg_tok
        ");
        assert_eq!(tell_resumed(&id, true, None, LOOK).1, Exit::Done);
        assert_eq!(tell_resumed(&id, false, None, LOOK).1, Exit::Done);
    }

    #[test]
    fn machines_get_numbers_units_and_no_null_lists() {
        let shown = to_json(&one("icfg_7Hd", vec![]), NOW);
        assert_eq!(shown["oldest_open_age_ms"], 134_000);
        assert_eq!(shown["pauses"], json!([]));
    }

    #[test]
    fn gone_is_said_before_a_refused_token_and_that_before_a_pause_by_hand() {
        use PauseKind::{Gone, Manual, Token};
        let (past, ahead) = (Some(ago(1)), Some(NOW.plus(Duration::from_secs(1))));
        let cases = [
            (vec![], "active"),
            (vec![(Manual, None)], "paused"),
            (vec![(Manual, ahead)], "paused"),
            (vec![(Manual, past)], "active"),
            (vec![(Token, None)], "token refused"),
            (vec![(Manual, None), (Token, None)], "token refused"),
            (vec![(Gone, None)], "gone"),
            (vec![(Manual, None), (Token, None), (Gone, None)], "gone"),
        ];
        for (pauses, expected) in cases {
            let one = one("icfg_1", pauses);
            assert_eq!(state(&one, NOW), expected);
            let shown = to_json(&one, NOW);
            assert_eq!(shown["state"], expected.replace(' ', "_"));
            assert_eq!(is_paused(&one, NOW), expected != "active");
        }
    }

    #[test]
    fn only_the_pause_that_a_person_made_and_that_has_not_ended_is_a_persons() {
        use PauseKind::{Gone, Manual, Token};
        let of = |pauses| manual(&one("icfg_1", pauses), NOW).map(|pause| pause.kind);
        assert_eq!(of(vec![(Token, None), (Gone, None)]), None);
        assert_eq!(of(vec![(Manual, Some(ago(1)))]), None);
        assert_eq!(of(vec![(Token, None), (Manual, None)]), Some(Manual));
    }
}
