//! The plan for people: identity and changes first, then counts of what is hidden, the totals last.

use std::fmt::Write as _;

use serde_json::Value;

use super::super::out::{BAD, DIM, GOOD, HEAD, Look, WARN, styled};
use super::super::text::{count, counted, cut, duration, pad, visible};
use super::change::{Change, Side};
use super::survey::{Item, Known, LeftOut, Since, Standing, Survey, Totals, UnusableRow};
use crate::model::Field;

/// Where values begin, unless a path is longer.
const PATH_COLUMNS: usize = 22;
/// The most lines of one resource at a terminal.
const LINES_MAX: usize = 30;

pub(super) fn render(survey: &Survey, look: Look) -> String {
    let Survey {
        has_state,
        items,
        unusable,
        totals,
        only,
        guard,
    } = survey;
    let against = if *has_state {
        "Against what Vercel last acknowledged."
    } else {
        "There is no state yet, so every resource counts as never seen."
    };
    let mut text = format!("{against} Nothing was sent.\n\n");
    for item in items {
        write_item(&mut text, item, look);
        text.push('\n');
    }
    let hidden = totals.resources - items.len() as u64;
    if hidden > 0 {
        let _ = writeln!(
            text,
            "… {} more not shown; --limit 0 shows all.\n",
            count(hidden)
        );
    }
    for row in unusable {
        let _ = writeln!(text, "{}", unusable_row(row));
    }
    if totals.unusable > 0 {
        text.push('\n');
    }
    if let Some(found) = guard {
        let _ = writeln!(
            text,
            "{} {} changes, {} of them destructive: more than [guard] lets one pass make.\n     \
             The daemon would hold all of them until: reconciled outbox release --state held\n",
            styled(WARN, "held"),
            count(found.changes.into()),
            count(found.destructive.into())
        );
    }
    match only {
        None | Some(Known::InSource) => {}
        Some(Known::InStateOnly) => {
            text.push_str("The source has no row of this installation; the state knows it.\n")
        }
        Some(Known::Nowhere(perhaps)) => {
            let unknown = styled(BAD, "UNKNOWN");
            let _ = writeln!(
                text,
                "{unknown}   neither the source nor the state knows this installation{perhaps}\n\
                 Next: reconciled installation list"
            );
            return text;
        }
    }
    let _ = writeln!(text, "{}", summary(totals));
    let _ = writeln!(text, "Next: {}", next(totals));
    text
}

pub(super) fn write_item(text: &mut String, item: &Item, look: Look) {
    let Item {
        key,
        name,
        is_new,
        since,
        changes,
        unchanged_fields,
        unchanged_secrets,
        standing: _,
        left_out,
    } = item;
    let mark = if *is_new {
        styled(GOOD, "+")
    } else {
        styled(WARN, "~")
    };
    let identity = format!(
        "{} / {}",
        visible(key.installation_id.as_str()),
        visible(key.resource_id.as_str())
    );
    let name = name
        .as_ref()
        .map(|name| format!("  \"{}\"", visible(name)))
        .unwrap_or_default();
    let name = if look.terminal { cut(&name, 40) } else { name };
    let since = match since {
        Some(Since::Changed(at)) => format!("  changed {}", look.when(*at)),
        Some(Since::Found(at)) => format!("  found {}", look.when(*at)),
        None if *is_new => "  never sent".to_owned(),
        None => String::new(),
    };
    let head = pad(
        &format!("{identity}{name}"),
        if look.terminal { 38 } else { 0 },
    );
    let _ = writeln!(text, "{mark} {}{}", styled(HEAD, head), styled(DIM, since));
    let shown = if look.terminal {
        changes.len().min(LINES_MAX)
    } else {
        changes.len()
    };
    for change in &changes[..shown] {
        let _ = writeln!(text, "    {}", change_line(change, *is_new, look));
    }
    if shown < changes.len() {
        let _ = writeln!(
            text,
            "    … {} more",
            counted((changes.len() - shown) as u64, "property change")
        );
    }
    if let Some(hidden) = hidden(unchanged_fields, *unchanged_secrets) {
        let _ = writeln!(text, "    {}", styled(DIM, hidden));
    }
    for (label, line) in notes(item, look) {
        let _ = writeln!(text, "    {}   {line}", styled(WARN, label));
    }
    for (field, why) in left_out {
        let label = match why {
            LeftOut::Rejected(_) => styled(BAD, "dead"),
            LeftOut::Discarded => styled(WARN, "note"),
        };
        let _ = writeln!(
            text,
            "    {label}   {field} {}; not sent until the source changes it",
            why.why()
        );
    }
}

fn change_line(change: &Change, is_new: bool, look: Look) -> String {
    let Change {
        path,
        old,
        new,
        in_doubt,
        ..
    } = change;
    let path = pad(&visible(path), PATH_COLUMNS);
    let used = 4 + unicode_width::UnicodeWidthStr::width(path.as_str()) + 1;
    let room = look.width.saturating_sub(used);
    // Each value gets its part of the line.
    let value =
        |side: &Side, columns: usize| look.fit(&shown(side), look.width.saturating_sub(columns));
    let half = room.saturating_sub(3) / 2;
    let doubt = if *in_doubt {
        styled(WARN, "  in doubt")
    } else {
        String::new()
    };
    match (old, new) {
        (Side::Absent, new) if is_new => format!("{path} {}{doubt}", value(new, room)),
        (old, new) if old == new => format!(
            "{path} {}  sent again{doubt}",
            value(new, room.saturating_sub(24))
        ),
        (old, Side::Absent) => format!(
            "{path} {} → removed{doubt}",
            value(old, room.saturating_sub(10))
        ),
        (Side::Absent, new) => format!(
            "{path} none → {}{doubt}",
            value(new, room.saturating_sub(7))
        ),
        (old, new) => format!("{path} {} → {}{doubt}", value(old, half), value(new, half)),
    }
}

/// A value as people write it: plain words without quotes, everything else as JSON on one line.
fn shown(side: &Side) -> String {
    match side {
        Side::Absent => "none".to_owned(),
        Side::Secret(fingerprint) => fingerprint.short(),
        Side::Value(Value::Null) => "none".to_owned(),
        Side::Value(Value::String(text)) if is_plain(text) => text.clone(),
        Side::Value(value) => visible(&value.to_string()),
    }
}

fn is_plain(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-.:/@+$".contains(c);
    !text.is_empty()
        && text.chars().all(plain)
        && !matches!(text, "none" | "null" | "true" | "false" | "removed")
}

fn hidden(fields: &[Field], secrets: usize) -> Option<String> {
    let mut parts = Vec::new();
    if secrets > 0 {
        parts.push(counted(secrets as u64, "secret"));
    }
    parts.extend(fields.iter().map(|field| field.wire_name().to_owned()));
    (!parts.is_empty()).then(|| format!("({} unchanged)", parts.join(", ")))
}

fn notes(item: &Item, look: Look) -> Vec<(&'static str, String)> {
    let mut notes = Vec::new();
    match &item.standing {
        Standing::Now => {}
        Standing::ComparedFirst => notes.push((
            "wait",
            "Vercel is asked first; only what differs there is sent".to_owned(),
        )),
        Standing::InFlight => notes.push((
            "wait",
            "a request is on its way; its answer decides what is left".to_owned(),
        )),
        Standing::Waits { why, until } => {
            let until = until.map(|until| {
                if look.terminal {
                    format!("; in {}", duration(until.since(look.now)))
                } else {
                    format!("; until {until}")
                }
            });
            notes.push(("wait", format!("{why}{}", until.unwrap_or_default())));
        }
        Standing::Held => notes.push((
            "held",
            "its pass changes more than [guard] allows; a person has to release it".to_owned(),
        )),
        Standing::Parked { why } if item.left_out.is_empty() => notes.push(("dead", why.clone())),
        // Which fields those are is said below.
        Standing::Parked { .. } | Standing::Discarded => {}
    }
    let rotates = item.changes.iter().any(|change| {
        matches!((&change.old, &change.new), (Side::Secret(old), Side::Secret(new)) if old != new)
    });
    if rotates {
        notes.push((
            "note",
            "connected projects may keep the old value until they are redeployed".to_owned(),
        ));
    }
    notes
}

fn unusable_row(row: &UnusableRow) -> String {
    let UnusableRow {
        installation_id,
        resource_id,
        problem,
    } = row;
    let id = |id: &str| {
        if id.is_empty() {
            "(no id)".to_owned()
        } else {
            visible(id)
        }
    };
    format!(
        "{} {} / {}  column `{}` {}\n    {}   {}",
        styled(BAD, "!"),
        id(installation_id),
        id(resource_id),
        problem.column,
        visible(&problem.problem),
        styled(WARN, "help"),
        problem.accepted
    )
}

fn summary(totals: &Totals) -> String {
    let Totals {
        rows: _,
        resources,
        fields,
        secrets,
        now,
        compared_first,
        in_flight,
        waiting,
        held,
        parked,
        discarded,
        unchanged,
        prepared,
        adopted,
        unusable,
        unusable_resources,
    } = *totals;
    let mut rest = Vec::new();
    if adopted > 0 {
        rest.push(format!(
            "{} would be taken as acknowledged without sending.",
            count(adopted)
        ));
    }
    if unusable > 0 {
        // Several rows may name one resource, as which status counts them.
        let of = if unusable == unusable_resources {
            String::new()
        } else {
            format!(" of {}", counted(unusable_resources, "resource"))
        };
        rest.push(format!("{}{of} cannot be used.", counted(unusable, "row")));
    }
    if resources == 0 {
        let agree = match unchanged {
            0 => "Nothing to send.".to_owned(),
            1 => "Nothing to send: 1 resource is unchanged.".to_owned(),
            _ => format!(
                "Nothing to send: {} resources are unchanged.",
                count(unchanged)
            ),
        };
        rest.insert(0, agree);
        rest.extend(prepared_words(prepared));
        return rest.join(" ");
    }
    let verb = |number: u64, one: &str, many: &str| {
        let words = if number == 1 { one } else { many };
        (number > 0).then(|| format!("{} {words}", count(number)))
    };
    let parts: Vec<String> = [
        verb(now, "would be sent now", "would be sent now"),
        verb(
            compared_first,
            "would be compared first",
            "would be compared first",
        ),
        verb(in_flight, "is being sent", "are being sent"),
        verb(waiting, "waits", "wait"),
        verb(held, "is held", "are held"),
        verb(parked, "is dead", "are dead"),
        verb(
            discarded,
            "was discarded by a person",
            "were discarded by a person",
        ),
    ]
    .into_iter()
    .flatten()
    .collect();
    let secrets = if secrets > 0 {
        format!(" ({})", counted(secrets, "secret"))
    } else {
        String::new()
    };
    rest.insert(0, format!("{} unchanged.", count(unchanged)));
    rest.extend(prepared_words(prepared));
    format!(
        "{}, {}{secrets}: {}. {}",
        counted(resources, "resource"),
        counted(fields, "field"),
        parts.join(", "),
        rest.join(" ")
    )
}

/// What is unchanged is no reason to send anything, unless Vercel shows it otherwise.
fn prepared_words(prepared: u64) -> Option<String> {
    let words = match prepared {
        0 => return None,
        1 => "1 of the unchanged is",
        _ => {
            return Some(format!(
                "{} of the unchanged are compared with what Vercel shows first, and sent where it differs.",
                count(prepared)
            ));
        }
    };
    Some(format!(
        "{words} compared with what Vercel shows first, and sent where it differs."
    ))
}

const fn next(totals: &Totals) -> &'static str {
    if totals.held + totals.parked > 0 {
        "reconciled outbox list"
    } else if totals.resources + totals.prepared > totals.discarded {
        "reconciled run, or reconciled once"
    } else {
        "reconciled status"
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::{Fingerprint, ResourceKey, Timestamp, Unusable};

    const NOW: Timestamp = Timestamp::from_millis(1_777_903_331_000);

    fn look(terminal: bool) -> Look {
        Look {
            terminal,
            width: 80,
            now: NOW,
        }
    }

    fn change(field: Field, path: &str, old: Side, new: Side) -> Change {
        Change {
            field,
            path: path.to_owned(),
            old,
            new,
            in_doubt: false,
        }
    }

    fn survey() -> Survey {
        let secret = |byte| Side::Secret(Fingerprint::from_bytes([byte; 16]));
        let value = |value: Value| Side::Value(value);
        let item = |installation, resource, name: &str, seconds, changes, standing| Item {
            key: ResourceKey::new(installation, resource).expect("ids"),
            name: Some(name.to_owned()),
            is_new: false,
            since: Some(Since::Changed(
                NOW.minus(std::time::Duration::from_secs(seconds)),
            )),
            changes,
            unchanged_fields: Vec::new(),
            unchanged_secrets: 0,
            standing,
            left_out: Vec::new(),
        };
        let rotation = Item {
            unchanged_fields: vec![Field::Status, Field::BillingPlan, Field::Name],
            unchanged_secrets: 2,
            ..item(
                "icfg_7Hd",
                "res_0412",
                "orders-db",
                38,
                vec![change(
                    Field::Secrets,
                    "secrets.DATABASE_URL",
                    secret(0x9f),
                    secret(0xb0),
                )],
                Standing::Now,
            )
        };
        let paused = item(
            "icfg_9aQ",
            "res_0077",
            "cache-eu",
            120,
            vec![
                change(
                    Field::Status,
                    "status",
                    value(json!("ready")),
                    value(json!("suspended")),
                ),
                change(
                    Field::Metadata,
                    "metadata.note",
                    value(json!("x".repeat(200))),
                    Side::Absent,
                ),
            ],
            Standing::Waits {
                why: "installation paused by ana 14:00: \"customer migration\"".to_owned(),
                until: None,
            },
        );
        let rejected = Item {
            is_new: true,
            since: None,
            left_out: vec![(
                Field::BillingPlan,
                LeftOut::Rejected("400 bad_request".to_owned()),
            )],
            ..item(
                "icfg_9aQ",
                "res_0078",
                "cache\u{1b}[31m",
                0,
                vec![change(
                    Field::BillingPlan,
                    "billingPlan",
                    Side::Absent,
                    value(json!({"id": "pro"})),
                )],
                Standing::Parked {
                    why: "…".to_owned(),
                },
            )
        };
        let totals = Totals {
            rows: 41_210,
            resources: 4,
            fields: 5,
            secrets: 1,
            now: 1,
            waiting: 2,
            parked: 1,
            unchanged: 41_205,
            unusable: 1,
            unusable_resources: 1,
            ..Totals::default()
        };
        let unusable = UnusableRow {
            installation_id: "icfg_9aQ".to_owned(),
            resource_id: String::new(),
            problem: Unusable {
                column: "resource_id",
                problem: "is NULL".to_owned(),
                accepted: "1 to 512 bytes",
            },
        };
        Survey {
            has_state: true,
            items: vec![rotation, paused, rejected],
            unusable: vec![unusable],
            totals,
            only: None,
            guard: None,
        }
    }

    fn plain(survey: &Survey, terminal: bool) -> String {
        anstream::adapter::strip_str(&render(survey, look(terminal))).to_string()
    }

    #[test]
    fn a_person_sees_identity_changes_and_counts_of_what_is_hidden() {
        insta::assert_snapshot!(plain(&survey(), true), @r#"
        Against what Vercel last acknowledged. Nothing was sent.

        ~ icfg_7Hd / res_0412  "orders-db"        changed 38 s ago
            secrets.DATABASE_URL   9f9f9f → b0b0b0
            (2 secrets, status, billingPlan, name unchanged)
            note   connected projects may keep the old value until they are redeployed

        ~ icfg_9aQ / res_0077  "cache-eu"         changed 2 min ago
            status                 ready → suspended
            metadata.note          xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx… → removed
            wait   installation paused by ana 14:00: "customer migration"

        + icfg_9aQ / res_0078  "cache\u{1b}[31m"  never sent
            billingPlan            {"id":"pro"}
            dead   billingPlan rejected by Vercel with 400 bad_request; not sent until the source changes it

        … 1 more not shown; --limit 0 shows all.

        ! icfg_9aQ / (no id)  column `resource_id` is NULL
            help   1 to 512 bytes

        4 resources, 5 fields (1 secret): 1 would be sent now, 2 wait, 1 is dead. 41,205 unchanged. 1 row cannot be used.
        Next: reconciled outbox list
        "#);
    }

    #[test]
    fn with_nothing_to_send_it_says_how_much_agrees() {
        let said = |unchanged| {
            summary(&Totals {
                unchanged,
                ..Totals::default()
            })
        };
        assert_eq!(said(0), "Nothing to send.");
        assert_eq!(said(1), "Nothing to send: 1 resource is unchanged.");
        assert_eq!(
            said(1200),
            "Nothing to send: 1,200 resources are unchanged."
        );
    }

    #[test]
    fn what_a_person_discarded_is_told_from_what_is_dead() {
        let mut survey = survey();
        let mut discarded = survey.items.remove(2);
        discarded.standing = Standing::Discarded;
        discarded.left_out = vec![(Field::BillingPlan, LeftOut::Discarded)];
        survey.items = vec![discarded];
        survey.unusable.clear();
        survey.totals = Totals {
            resources: 1,
            fields: 1,
            discarded: 1,
            ..Totals::default()
        };
        let text = plain(&survey, true);
        assert!(!text.contains("dead"), "{text}");
        let end = "    note   billingPlan discarded by a person; not sent until the source changes it\n\n\
                   1 resource, 1 field: 1 was discarded by a person. 0 unchanged.\nNext: reconciled status\n";
        assert!(text.ends_with(end), "{text}");
    }

    #[test]
    fn what_is_prepared_to_be_compared_is_told_although_it_is_unchanged() {
        let prepared = |prepared| Totals {
            unchanged: 1_200,
            prepared,
            ..Totals::default()
        };
        assert_eq!(
            summary(&prepared(1_190)),
            "Nothing to send: 1,200 resources are unchanged. 1,190 of the unchanged are compared with what Vercel shows first, and \
             sent where it differs."
        );
        assert!(summary(&prepared(1)).contains(" 1 of the unchanged is compared "));
        assert_eq!(next(&prepared(1)), "reconciled run, or reconciled once");
        assert_eq!(next(&prepared(0)), "reconciled status");
        let some = Totals {
            resources: 1,
            now: 1,
            ..prepared(2)
        };
        assert!(summary(&some).contains(" 2 of the unchanged are compared "));
    }

    #[test]
    fn a_pipe_gets_exact_times_and_whole_values() {
        let text = plain(&survey(), false);
        assert!(text.contains("changed 2026-05-04T14:01:33.000Z"), "{text}");
        assert!(text.contains(&"x".repeat(200)), "{text}");
    }

    #[test]
    fn an_installation_that_nobody_knows_is_no_agreement() {
        let of = |known| Survey {
            has_state: true,
            only: Some(known),
            ..Survey::default()
        };
        let nowhere = Known::Nowhere("; did you mean icfg_7Hd?".to_owned());
        let text = plain(&of(nowhere), true);
        let end = "\nUNKNOWN   neither the source nor the state knows this installation; did you mean icfg_7Hd?\n\
                   Next: reconciled installation list\n";
        assert!(text.ends_with(end), "{text}");
        let text = plain(&of(Known::InStateOnly), true);
        let end = "\nThe source has no row of this installation; the state knows it.\nNothing to send.\n\
                   Next: reconciled status\n";
        assert!(text.ends_with(end), "{text}");
    }

    #[test]
    fn nothing_to_send_is_said_in_a_line() {
        let totals = Totals {
            rows: 3,
            unchanged: 3,
            ..Totals::default()
        };
        let survey = Survey {
            has_state: true,
            totals,
            ..Survey::default()
        };
        assert_eq!(
            plain(&survey, true),
            "Against what Vercel last acknowledged. Nothing was sent.\n\n\
             Nothing to send: 3 resources are unchanged.\nNext: reconciled status\n"
        );
    }

    #[test]
    fn what_a_known_resource_did_not_have_is_told_from_what_a_new_one_has() {
        let value = |text: &str| Side::Value(Value::String(text.to_owned()));
        let line = |old: Side, new: Side, is_new| {
            let change = change(Field::Name, "name", old, new);
            let line =
                anstream::adapter::strip_str(&change_line(&change, is_new, look(true))).to_string();
            line.split_once(' ')
                .expect("a path")
                .1
                .trim_start()
                .to_owned()
        };
        assert_eq!(line(Side::Absent, value("b"), true), "b");
        assert_eq!(line(Side::Absent, value("b"), false), "none → b");
        assert_eq!(line(value("a"), Side::Absent, false), "a → removed");
        assert_eq!(line(value("a"), value("b"), false), "a → b");
        assert_eq!(line(value("b"), value("b"), false), "b  sent again");
    }
}
