//! The overview for people: verdict, one line per part, what has something to say, the next command.

use super::super::hold;
use super::super::installation::{is_paused, table, unknown};
use super::super::out::{BAD, HEAD, Look, Table, WARN, styled};
use super::super::standing::{clock, span};
use super::super::text::{count, counted, cut, pad, visible};
use super::Overview;
use super::verdict::Verdict;
use crate::store::console::InstallationSummary;
use crate::store::{HoldReport, Quarantined, SweepAccount};

/// Where values begin.
const LABEL_COLUMNS: usize = 9;
/// Where the time stands in the first line, unless the verdict is longer.
const TIME_COLUMN: usize = 58;
/// Installations that a terminal shows.
const INSTALLATIONS_SHOWN: usize = 20;

pub(super) fn render(overview: &Overview, look: Look) -> String {
    let verdict = Verdict::of(overview);
    let mut lines = vec![head(verdict, overview, look)];
    for (label, value) in facts(overview, look) {
        lines.push(if look.terminal {
            format!("{}{value}", styled(HEAD, pad(label, LABEL_COLUMNS)))
        } else {
            format!("{label}\t{value}")
        });
    }
    let mut text = lines.join("\n");
    text.push('\n');
    text.push_str(&holds(overview, look));
    text.push_str(&unusable(overview, look));
    text.push_str(&installations(overview, look));
    text.push_str(&format!("\nNext: {}\n", verdict.next(overview)));
    text
}

fn head(verdict: Verdict, overview: &Overview, look: Look) -> String {
    let because = verdict.because(overview, look);
    if !look.terminal {
        return format!("{}\t{because}\t{}", verdict.word(), overview.now);
    }
    let sentence = format!("{}   {because}", verdict.word());
    let gap = TIME_COLUMN
        .saturating_sub(unicode_width::UnicodeWidthStr::width(sentence.as_str()))
        .max(3);
    format!(
        "{}   {because}{}{}",
        styled(verdict.style(), verdict.word()),
        " ".repeat(gap),
        overview.now
    )
}

fn facts(overview: &Overview, look: Look) -> Vec<(&'static str, String)> {
    let mut facts = vec![("daemon", daemon(overview, look))];
    let alive = overview.alive();
    if let Some(problem) = alive.and_then(|heartbeat| heartbeat.source_problem.as_ref()) {
        facts.push(("source", styled(BAD, visible(problem))));
    }
    if let Some(problem) = alive.and_then(|heartbeat| heartbeat.state_problem.as_ref()) {
        facts.push(("state", styled(BAD, visible(problem))));
    }
    facts.push(("poll", poll(overview, look)));
    facts.push(("sweep", sweep(overview, look)));
    facts.push(("vercel", vercel(overview, look)));
    if overview.discarded > 0 {
        let differ = counted(overview.discarded, "resource");
        let verb = if overview.discarded == 1 {
            "differs"
        } else {
            "differ"
        };
        let text = format!("{differ} {verb} since a person discarded the change");
        facts.push(("discards", text));
    }
    if overview.counts.missing > 0 {
        let missing = counted(overview.counts.missing, "resource");
        facts.push((
            "missing",
            format!("{missing} of the state no longer in the source"),
        ));
    }
    facts
}

/// Of several daemons the one that reads the source, and how many there are.
fn daemon(overview: &Overview, look: Look) -> String {
    let one = one_daemon(overview, look);
    match &overview.daemon.replicas[..] {
        [] | [_] => one,
        several => {
            let reads = several.iter().find(|replica| replica.watches);
            let reads = reads.map_or("none of them reads the source yet".to_owned(), |replica| {
                format!("{} reads the source", visible(&replica.heartbeat.owner))
            });
            format!(
                "{one}; {} in all, {reads}",
                counted(several.len() as u64, "daemon")
            )
        }
    }
}

fn one_daemon(overview: &Overview, look: Look) -> String {
    match (&overview.daemon.heartbeat, overview.daemon.running) {
        (Some(heartbeat), true) => {
            let since = if look.terminal { "" } else { "since " };
            format!(
                "running {since}{}, pid {}, {}",
                span(heartbeat.started_at, look),
                heartbeat.pid,
                visible(&heartbeat.version)
            )
        }
        (None, true) => "running; it has given no sign of life yet".to_owned(),
        (Some(heartbeat), false) => {
            format!(
                "not running; pid {} gave its last sign of life {}",
                heartbeat.pid,
                look.when(heartbeat.at)
            )
        }
        (None, false) => "not running; none has ever run on this state".to_owned(),
    }
}

fn poll(overview: &Overview, look: Look) -> String {
    let last = match overview.last_poll() {
        Some((at, rows)) => format!("{}, {}", look.when(at), counted(rows, "row")),
        None => "none yet".to_owned(),
    };
    format!("{last}{}", rhythm(overview.poll_schedule.as_deref()))
}

fn sweep(overview: &Overview, look: Look) -> String {
    let progress = overview.progress.sweep.as_ref();
    let last = match progress.and_then(|sweep| sweep.last) {
        Some((at, account)) => format!("{}: {}", look.when(at), sum(account)),
        None => "none complete yet".to_owned(),
    };
    let under_way = progress.filter(|sweep| !sweep.complete).map(|sweep| {
        format!(
            "; another began {}, {} so far",
            look.when(sweep.started_at),
            counted(sweep.account.rows, "row")
        )
    });
    match under_way {
        Some(under_way) => format!("{last}{under_way}"),
        None if overview.sweep_schedule.is_none() => format!("{last}; not scheduled"),
        None => last,
    }
}

fn sum(account: SweepAccount) -> String {
    let SweepAccount {
        rows,
        equal,
        waiting,
        held,
        dead,
        quarantined,
        missing: _,
    } = account;
    format!(
        "{} = {} equal + {} waiting + {} held + {} dead + {} quarantined",
        counted(rows, "row"),
        count(equal),
        count(waiting),
        count(held),
        count(dead),
        count(quarantined)
    )
}

fn vercel(overview: &Overview, look: Look) -> String {
    let acknowledged = match overview.counts.last_acknowledged {
        Some(at) => format!("last acknowledged {}", look.when(at)),
        None => "nothing acknowledged yet".to_owned(),
    };
    let retries = match overview.retries {
        1 => "1 retry".to_owned(),
        retries => format!("{} retries", count(retries)),
    };
    let outage = overview
        .alive()
        .and_then(|heartbeat| heartbeat.outage_since);
    let outage = outage.map(|at| {
        format!(
            "; {}",
            styled(
                BAD,
                format_args!(
                    "failing {} {}",
                    if look.terminal { "for" } else { "since" },
                    span(at, look)
                )
            )
        )
    });
    format!(
        "{acknowledged}; {retries} in the last hour{}",
        outage.unwrap_or_default()
    )
}

/// A cron expression in words, where there are short ones.
fn rhythm(expression: Option<&str>) -> String {
    let Some(expression) = expression else {
        return "; not scheduled".to_owned();
    };
    let fields: Vec<&str> = expression.split_whitespace().collect();
    let every = |field: &str| {
        field
            .strip_prefix("*/")
            .and_then(|every| every.parse::<u8>().ok())
    };
    match fields.as_slice() {
        ["*", "*", "*", "*", "*", "*"] => ", every second".to_owned(),
        [seconds, "*", "*", "*", "*", "*"] if every(seconds).is_some() => {
            format!(", every {} s", every(seconds).unwrap_or_default())
        }
        ["0", minutes, "*", "*", "*", "*"] if every(minutes).is_some() => {
            format!(", every {} min", every(minutes).unwrap_or_default())
        }
        _ => format!(", on \"{expression}\""),
    }
}

/// What each hold would do, so that a person can tell a bad migration from a large one.
fn holds(overview: &Overview, look: Look) -> String {
    let mut text = String::new();
    for HoldReport {
        hold,
        entries,
        summary,
    } in &overview.holds
    {
        let examples: Vec<String> = summary
            .examples
            .iter()
            .map(|key| visible(&key.to_string()))
            .collect();
        // At a terminal a line holds a few; in a pipe all stand on one.
        let a_line = if look.terminal {
            3
        } else {
            examples.len().max(1)
        };
        let examples: Vec<String> = examples
            .chunks(a_line)
            .map(|some| some.join(", "))
            .collect();
        let found = &hold.found;
        text.push_str(&format!(
            "\n{} {} kept back since {}, {} destructive of {} found\n         would change {}\n         for example {}\n         all of it: reconciled plan --held\n",
            styled(BAD, format_args!("hold {}", hold.id)),
            counted(*entries, "resource"),
            clock(hold.opened_at, look),
            count(found.destructive.into()),
            counted(found.changes.into(), "change"),
            hold::towards(summary, *entries),
            examples.join(",\n                     ")
        ));
    }
    text
}

fn unusable(overview: &Overview, look: Look) -> String {
    let rows: Vec<&Quarantined> = overview.shown_unusable().collect();
    if rows.is_empty() {
        return String::new();
    }
    let since = if look.terminal { "FOR" } else { "SINCE" };
    let mut table = Table::new(&["UNUSABLE ROW", "COLUMN", "PROBLEM", since]);
    for row in rows {
        let problem = visible(&row.problem);
        table.row(vec![
            format!("{} / {}", id(&row.installation_id), id(&row.resource_id)),
            visible(&row.column),
            if look.terminal {
                cut(&problem, 60)
            } else {
                problem
            },
            span(row.since, look),
        ]);
    }
    let hidden = overview.unusable_cut();
    let more = if hidden > 0 {
        format!("… and {} more\n", count(hidden))
    } else {
        String::new()
    };
    format!("\n{}{more}", table.render(look))
}

fn id(id: &str) -> String {
    if id.is_empty() {
        "(no id)".to_owned()
    } else {
        visible(id)
    }
}

fn installations(overview: &Overview, look: Look) -> String {
    let speaks = |one: &&InstallationSummary| {
        overview.only.is_some()
            || one.waiting + one.held + one.dead > 0
            || is_paused(one, overview.now)
            || one.limited_until.is_some_and(|until| until > overview.now)
    };
    let speaking: Vec<&InstallationSummary> =
        overview.shown_installations().filter(speaks).collect();
    if let Some(id) = overview.unknown() {
        let sentence = unknown(id, &overview.installations);
        return format!("\n{}   {sentence}\n", styled(BAD, "UNKNOWN"));
    }
    if speaking.is_empty() {
        return String::new();
    }
    let shown = if look.terminal {
        speaking.len().min(INSTALLATIONS_SHOWN)
    } else {
        speaking.len()
    };
    let mut text = format!(
        "\n{}",
        table(speaking[..shown].iter().copied(), look).render(look)
    );
    if shown < speaking.len() {
        let hidden = (speaking.len() - shown) as u64;
        text.push_str(&format!(
            "… and {} more with something open: reconciled installation list\n",
            styled(WARN, count(hidden))
        ));
    }
    let silent = match overview.only {
        Some(_) => 0,
        None => overview
            .installations_total
            .saturating_sub(speaking.len() as u64),
    };
    if silent > 0 {
        text.push_str(&format!(
            "{} with nothing open\n",
            counted(silent, "other installation")
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::tests::{NOW, ago, behind, hold, in_sync, installation, quarantined};
    use super::*;
    use crate::model::InstallationId;

    const LOOK: Look = Look {
        terminal: true,
        width: 100,
        now: NOW,
    };

    fn plain(overview: &Overview, look: Look) -> String {
        anstream::adapter::strip_str(&render(overview, look)).to_string()
    }

    #[test]
    fn one_installation_is_shown_alone_also_when_it_is_quiet() {
        let mut overview = behind();
        overview.unusable = vec![quarantined("res_1")];
        overview.unusable_total = 1;
        let quiet = InstallationId::new("icfg_9aQ").expect("an id");
        overview.installations[1] = installation("icfg_9aQ", 0, 0);
        overview.only = Some(quiet);
        let text = plain(&overview, LOOK);
        assert!(text.contains("icfg_9aQ"), "{text}");
        assert!(!text.contains("icfg_7Hd"), "{text}");
        assert!(
            text.starts_with("BEHIND"),
            "the verdict is of the whole: {text}"
        );
    }

    #[test]
    fn an_installation_that_the_state_knows_nothing_of_is_not_passed_over() {
        let mut overview = in_sync();
        overview.only = Some(InstallationId::new("icfg_7hd").expect("an id"));
        let text = plain(&overview, LOOK);
        let said = "\nUNKNOWN   the state knows no installation icfg_7hd; did you mean icfg_7Hd?\n";
        assert!(text.contains(said), "{text}");
        let mut row = quarantined("res_1");
        row.installation_id = "icfg_7hd".into();
        overview.unusable = vec![row];
        overview.unusable_total = 1;
        assert_eq!(overview.unknown(), None, "it has rows that cannot be used");
        overview.unusable.clear();
        assert_eq!(overview.unknown(), None, "it may have some");
    }

    #[test]
    fn in_sync_is_five_lines_and_nothing_to_do() {
        insta::assert_snapshot!(plain(&in_sync(), LOOK), @r"
        IN SYNC   nothing is open; every row compared 40 s ago    2026-05-04T14:02:11.000Z
        daemon   running 6 d 2 h, pid 812, 0.1.0
        poll     3 s ago, 9 rows, every 5 s
        sweep    40 s ago: 41,207 rows = 41,207 equal + 0 waiting + 0 held + 0 dead + 0 quarantined
        vercel   last acknowledged 3 s ago; 3 retries in the last hour

        Next: nothing to do; reconciled plan compares every row now
        ");
    }

    #[test]
    fn behind_shows_whom_it_waits_for() {
        let mut overview = behind();
        let account = SweepAccount {
            rows: 41_207,
            equal: 41_205,
            waiting: 2,
            ..SweepAccount::default()
        };
        let sweep = overview.progress.sweep.as_mut().expect("there is one");
        (sweep.last, sweep.complete, sweep.account.rows) =
            (Some((ago(3_640), account)), false, 12_000);
        overview.installations_total = 3;
        insta::assert_snapshot!(plain(&overview, LOOK), @r"
        BEHIND   2 waiting; oldest 2 min 14 s                     2026-05-04T14:02:11.000Z
        daemon   running 6 d 2 h, pid 812, 0.1.0
        poll     3 s ago, 9 rows, every 5 s
        sweep    1 h ago: 41,207 rows = 41,205 equal + 2 waiting + 0 held + 0 dead + 0 quarantined; another began 50 s ago, 12,000 rows so far
        vercel   last acknowledged 3 s ago; 3 retries in the last hour

        INSTALLATION  STATE   RESOURCES  WAITING  HELD  DEAD  OLDEST  WHY
        icfg_7Hd      active  300        1        0     0     9 s
        icfg_9aQ      paused  300        1        0     0     9 s     ana: customer migration
        1 other installation with nothing open

        Next: reconciled outbox list
        ");
    }

    #[test]
    fn a_hold_says_what_it_would_change_and_for_whom() {
        let mut overview = in_sync();
        overview.holds = vec![hold()];
        overview.counts.held = 120;
        insta::assert_snapshot!(plain(&overview, LOOK), @r"
        HELD   120 held                                           2026-05-04T14:02:11.000Z
        daemon   running 6 d 2 h, pid 812, 0.1.0
        poll     3 s ago, 9 rows, every 5 s
        sweep    40 s ago: 41,207 rows = 41,207 equal + 0 waiting + 0 held + 0 dead + 0 quarantined
        vercel   last acknowledged 3 s ago; 3 retries in the last hour

        hold 3 120 resources kept back since 13:59, 120 destructive of 125 changes found
                 would change status → error (2), status → suspended (118)
                 for example icfg_7Hd/res_1, icfg_7Hd/res_2
                 all of it: reconciled plan --held

        Next: reconciled plan --held
        ");
    }

    #[test]
    fn what_a_person_discarded_is_no_agreement() {
        let mut overview = in_sync();
        overview.discarded = 300;
        let shown = plain(&overview, LOOK);
        assert!(
            shown.starts_with("IN SYNC   nothing is open, 300 discarded; every row compared "),
            "{shown}"
        );
        assert!(
            shown.contains("\ndiscards 300 resources differ since a person discarded the change\n"),
            "{shown}"
        );
    }

    #[test]
    fn trouble_is_named_where_it_is() {
        let mut overview = in_sync();
        let heartbeat = overview.daemon.heartbeat.as_mut().expect("there is one");
        heartbeat.source_problem =
            Some("cannot reach the source at db/app: connection refused".into());
        heartbeat.outage_since = Some(ago(300));
        overview.unusable = vec![quarantined("res_1")];
        overview.unusable_total = 13;
        overview.counts.missing = 2;
        insta::assert_snapshot!(plain(&overview, LOOK), @r"
        BLIND   the source cannot be read; changes are not seen; nothing is open   2026-05-04T14:02:11.000Z
        daemon   running 6 d 2 h, pid 812, 0.1.0
        source   cannot reach the source at db/app: connection refused
        poll     3 s ago, 9 rows, every 5 s
        sweep    40 s ago: 41,207 rows = 41,207 equal + 0 waiting + 0 held + 0 dead + 0 quarantined
        vercel   last acknowledged 3 s ago; 3 retries in the last hour; failing for 5 min
        missing  2 resources of the state no longer in the source

        UNUSABLE ROW      COLUMN        PROBLEM      FOR
        icfg_7Hd / res_1  billing_plan  has no `id`  3 min
        … and 12 more

        Next: reconciled check
        ");
    }

    #[test]
    fn a_pipe_gets_tabs_exact_times_and_every_row() {
        let expected = [
            "BEHIND\t2 waiting; oldest 2026-05-04T13:59:57.000Z\t2026-05-04T14:02:11.000Z\n",
            "daemon\trunning since 2026-04-28T12:02:11.000Z, pid 812, 0.1.0\n",
            "poll\t2026-05-04T14:02:08.000Z, 9 rows, every 5 s\n",
            "sweep\t2026-05-04T14:01:31.000Z: 41,207 rows = 41,207 equal + 0 waiting + 0 held + 0 dead + 0 quarantined\n",
            "vercel\tlast acknowledged 2026-05-04T14:02:08.000Z; 3 retries in the last hour\n",
            "\n",
            "INSTALLATION\tSTATE\tRESOURCES\tWAITING\tHELD\tDEAD\tOLDEST SINCE\tWHY\n",
            "icfg_7Hd\tactive\t300\t1\t0\t0\t2026-05-04T14:02:02.000Z\t\n",
            "icfg_9aQ\tpaused\t300\t1\t0\t0\t2026-05-04T14:02:02.000Z\tana: customer migration\n",
            "\n",
            "Next: reconciled outbox list\n",
        ];
        assert_eq!(
            plain(
                &behind(),
                Look {
                    terminal: false,
                    ..LOOK
                }
            ),
            expected.concat()
        );
    }

    #[test]
    fn a_schedule_is_told_in_words_where_there_are_any() {
        let cases = [
            (Some("* * * * * *"), ", every second"),
            (Some("*/5 * * * * *"), ", every 5 s"),
            (Some("0 */10 * * * *"), ", every 10 min"),
            (Some("0 0 3 * * 1"), ", on \"0 0 3 * * 1\""),
            (None, "; not scheduled"),
        ];
        for (expression, words) in cases {
            assert_eq!(rhythm(expression), words);
        }
    }
}
