//! One resource field by field: what the source says, what Vercel acknowledged, what is in doubt, what is to be sent. Pure.
//!
//! A secret is shown by its name and the first digits of its keyed fingerprint, in every format.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::out::{Look, Table};
use super::text::{cut, visible};
use crate::model::{
    Doubt, Field, Fingerprint, Mark, Record, SecretName, SecretsPatch, SharedMap, Snapshot,
};
use crate::plan::diff::left_out;
use crate::plan::pending;

/// One line: a field, a property in which the sides differ, or a secret.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Line {
    /// The field.
    pub(crate) field: Field,
    /// The field, the property or the secret: `billingPlan.cost`, `secrets.DATABASE_URL`.
    pub(crate) path: String,
    /// What is desired; `None`: not known.
    pub(crate) desired: Option<Side>,
    /// What Vercel last acknowledged.
    pub(crate) acknowledged: Side,
    /// Whether Vercel may hold something else.
    pub(crate) doubt: Option<Mark>,
    /// What the next request changes.
    pub(crate) to_send: ToSend,
}

/// One side's value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Side {
    /// Nothing there.
    Absent,
    /// A value.
    Value(Value),
    /// A secret, as far as it may be shown.
    Secret(Fingerprint),
}

/// What the next request does about a line.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum ToSend {
    /// Nothing.
    Nothing,
    /// It sends this.
    Value(Side),
    /// It takes it away.
    Removal,
    /// Nothing, although the sides differ: why.
    LeftOut(String),
}

/// Every managed field of a resource, secrets last. `desired` is `None` when the source could not be asked.
pub(crate) fn lines(record: &Record, desired: Option<&Snapshot>) -> Vec<Line> {
    let nothing = Snapshot::default();
    let known = desired.is_some();
    let context = Context {
        record,
        desired: desired.unwrap_or(&nothing),
        known,
    };
    let mut lines = Vec::new();
    for field in Field::ALL
        .into_iter()
        .filter(|field| *field != Field::Secrets)
    {
        context.field(field, &mut lines);
    }
    context.secrets(&mut lines);
    lines
}

struct Context<'a> {
    record: &'a Record,
    desired: &'a Snapshot,
    known: bool,
}

impl Context<'_> {
    fn field(&self, field: Field, lines: &mut Vec<Line>) {
        let Record {
            acknowledged,
            doubt,
            ..
        } = self.record;
        let side = |snapshot: &Snapshot| {
            snapshot
                .values
                .get(&field)
                .map(crate::model::Json::to_value)
        };
        let (new, old) = (side(self.desired), side(acknowledged));
        let mark = doubt.fields.get(&field).copied();
        if new.is_none() && old.is_none() && mark.is_none() {
            return;
        }
        let sent = self.patch().values.contains_key(&field);
        let line = |path: String, new: Option<&Value>, old: Option<&Value>, doubt| Line {
            field,
            path,
            desired: self.known.then(|| value(new)),
            acknowledged: value(old),
            doubt,
            to_send: self.to_send(field, sent, value(new), new != old),
        };
        match (&new, &old) {
            (Some(Value::Object(new)), Some(Value::Object(old))) if new != old => {
                let names: BTreeSet<&String> = new.keys().chain(old.keys()).collect();
                let differing = names
                    .into_iter()
                    .filter(|name| new.get(*name) != old.get(*name));
                lines.extend(differing.map(|name| {
                    let path = format!("{}.{}", field.wire_name(), name);
                    line(path, new.get(name), old.get(name), mark)
                }));
            }
            _ => lines.push(line(
                field.wire_name().to_owned(),
                new.as_ref(),
                old.as_ref(),
                mark,
            )),
        }
    }

    fn secrets(&self, lines: &mut Vec<Line>) {
        let Record {
            acknowledged,
            doubt,
            ..
        } = self.record;
        let wanted = self.desired.secrets.as_ref();
        let held = acknowledged.secrets.as_ref();
        let sent = self.patch().secrets;
        let names: BTreeSet<&SecretName> = wanted
            .into_iter()
            .flatten()
            .chain(held.into_iter().flatten())
            .map(|(name, _)| name)
            .chain(doubt.secrets.keys())
            .collect();
        let side = |set: Option<&SharedMap<SecretName, Fingerprint>>, name| {
            set.and_then(|set| set.get(name))
                .map_or(Side::Absent, |fingerprint| Side::Secret(*fingerprint))
        };
        for name in names {
            let (new, old) = (side(wanted, name), side(held, name));
            let touched = match &sent {
                // A complete array repeats what is equal; that is no change.
                Some(SecretsPatch::Complete(_)) => new != old || doubt.secrets.contains_key(name),
                Some(SecretsPatch::Partial(named)) => named.contains_key(name),
                None => false,
            };
            lines.push(Line {
                field: Field::Secrets,
                path: format!("secrets.{name}"),
                to_send: self.to_send(
                    Field::Secrets,
                    touched,
                    new.clone(),
                    wanted.is_some() && new != old,
                ),
                desired: self.known.then_some(new),
                acknowledged: old,
                doubt: doubt.secrets.get(name).copied(),
            });
        }
    }

    fn patch(&self) -> crate::model::Patch {
        pending(self.record, self.desired).0
    }

    fn to_send(&self, field: Field, sent: bool, new: Side, differs: bool) -> ToSend {
        if !self.known {
            ToSend::Nothing
        } else if sent && new == Side::Absent {
            ToSend::Removal
        } else if sent {
            ToSend::Value(new)
        } else if differs && left_out(self.record, self.desired).contains(field) {
            ToSend::LeftOut(why_left_out(self.record, field))
        } else {
            ToSend::Nothing
        }
    }
}

fn value(value: Option<&Value>) -> Side {
    value.map_or(Side::Absent, |value| Side::Value(value.clone()))
}

fn why_left_out(record: &Record, field: Field) -> String {
    let rejection = record
        .entry
        .as_ref()
        .and_then(|entry| entry.rejected.get(&field));
    match rejection {
        Some(rejection) => format!("rejected ({})", rejection.status),
        None => "discarded".to_owned(),
    }
}

/// The lines as a table; `left` heads the desired side.
pub(crate) fn render(lines: &[Line], left: &str, look: Look) -> String {
    let paths = lines.iter().map(|line| line.path.chars().count());
    let widest = paths.chain(["FIELD".len()]).max().unwrap_or_default();
    // What the three values share once the path, the doubt and the gaps have their room.
    let room = look.width.saturating_sub(widest + "IN DOUBT".len() + 8) / 3;
    let fit = |text: String| {
        if look.terminal {
            cut(&text, room.max(10))
        } else {
            text
        }
    };
    let mut table = Table::new(&["FIELD", left, "ACKNOWLEDGED", "IN DOUBT", "TO SEND"]);
    for Line {
        field,
        path,
        desired,
        acknowledged,
        doubt,
        to_send,
    } in lines
    {
        let side = |side: &Side| fit(shown(*field, side, look));
        table.row(vec![
            visible(path),
            desired.as_ref().map_or_else(|| "?".to_owned(), side),
            side(acknowledged),
            doubt
                .map(|mark| doubt_words(mark, look))
                .unwrap_or_default(),
            match to_send {
                ToSend::Nothing => String::new(),
                ToSend::Value(value) => side(value),
                ToSend::Removal => "removal".to_owned(),
                ToSend::LeftOut(why) => why.clone(),
            },
        ]);
    }
    table.render(look)
}

fn doubt_words(mark: Mark, look: Look) -> String {
    match mark.uncertain_until.filter(|until| *until > look.now) {
        Some(until) => format!("until {}", super::standing::clock_seconds(until, look)),
        None => "yes".to_owned(),
    }
}

/// A value as people write it: a plan by its id, plain words without quotes, everything else as JSON.
fn shown(field: Field, side: &Side, look: Look) -> String {
    match side {
        Side::Absent => String::new(),
        Side::Secret(fingerprint) => fingerprint.short(),
        Side::Value(Value::Null) => "none".to_owned(),
        Side::Value(Value::String(text)) if is_plain(text) => text.clone(),
        Side::Value(value) => {
            let id = value
                .get("id")
                .and_then(Value::as_str)
                .filter(|id| is_plain(id));
            match id {
                Some(id) if field == Field::BillingPlan && look.terminal => id.to_owned(),
                _ => visible(&value.to_string()),
            }
        }
    }
}

fn is_plain(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-.:/@+$".contains(c);
    !text.is_empty()
        && text.chars().all(plain)
        && !matches!(text, "none" | "null" | "true" | "false" | "removal")
}

/// The lines for machines. Absent is not null: the property is left out.
pub(crate) fn to_json(lines: &[Line]) -> Vec<Value> {
    lines.iter().map(line_json).collect()
}

fn line_json(line: &Line) -> Value {
    let Line {
        field,
        path,
        desired,
        acknowledged,
        doubt,
        to_send,
    } = line;
    let mut shown = Map::new();
    shown.insert("field".into(), field.wire_name().into());
    shown.insert("path".into(), path.as_str().into());
    if let Some(name) = path
        .strip_prefix("secrets.")
        .filter(|_| *field == Field::Secrets)
    {
        shown.insert("secret_name".into(), name.into());
    }
    put(
        &mut shown,
        "desired",
        desired.as_ref().unwrap_or(&Side::Absent),
    );
    put(&mut shown, "acknowledged", acknowledged);
    shown.insert("in_doubt".into(), doubt.is_some().into());
    if let Some(until) = doubt.and_then(|mark| mark.uncertain_until) {
        shown.insert("uncertain_until".into(), until.to_string().into());
    }
    let verb = match to_send {
        ToSend::Nothing => "nothing",
        ToSend::Value(value) => {
            put(&mut shown, "to_send", value);
            "value"
        }
        ToSend::Removal => "removal",
        ToSend::LeftOut(why) => {
            shown.insert("why".into(), why.as_str().into());
            "left_out"
        }
    };
    shown.insert("sends".into(), verb.into());
    Value::Object(shown)
}

fn put(shown: &mut Map<String, Value>, name: &str, side: &Side) {
    match side {
        Side::Absent => {}
        Side::Value(value) => drop(shown.insert(name.into(), value.clone())),
        Side::Secret(fingerprint) => {
            drop(shown.insert(format!("{name}_fingerprint"), json!(fingerprint.short())))
        }
    }
}

/// What a request would carry or carried, as `outbox list` names it: fields, each secret by its name.
pub(crate) fn field_names(fields: impl Iterator<Item = Field>, secret_names: &[String]) -> String {
    let mut names: Vec<String> = Vec::new();
    let mut has_secrets = false;
    for field in fields {
        if field == Field::Secrets {
            has_secrets = true;
        } else {
            names.push(field.wire_name().to_owned());
        }
    }
    if has_secrets && secret_names.is_empty() {
        names.push("secrets".to_owned());
    }
    if has_secrets {
        names.extend(
            secret_names
                .iter()
                .map(|name| format!("secrets.{}", visible(name))),
        );
    }
    names.join(", ")
}

/// How many fields and how many secrets differ or are in doubt, in words: `2 fields and 1 secret`.
pub(crate) fn counted_differences(lines: &[Line]) -> Option<String> {
    let open = lines
        .iter()
        .filter(|line| matches!(line.to_send, ToSend::Value(_) | ToSend::Removal));
    let (secrets, others): (Vec<&Line>, Vec<&Line>) =
        open.partition(|line| line.field == Field::Secrets);
    let fields: BTreeSet<Field> = others.iter().map(|line| line.field).collect();
    let mut parts = Vec::new();
    if !fields.is_empty() {
        parts.push(super::text::counted(fields.len() as u64, "field"));
    }
    if !secrets.is_empty() {
        parts.push(super::text::counted(secrets.len() as u64, "secret"));
    }
    (!parts.is_empty()).then(|| parts.join(" and "))
}

/// Whether the doubt of a record is all that is left.
pub(crate) fn is_doubt_alone(lines: &[Line], doubt: &Doubt) -> bool {
    !doubt.is_empty()
        && lines
            .iter()
            .filter(|line| line.to_send != ToSend::Nothing)
            .all(|line| line.desired.as_ref() == Some(&line.acknowledged))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Entry, Json, Mode, Origin, Rejection, ResourceKey, Timestamp};

    const NOW: Timestamp = Timestamp::from_millis(1_777_903_331_000);
    const LOOK: Look = Look {
        terminal: true,
        width: 110,
        now: NOW,
    };

    fn snapshot(values: Value, secrets: &[(&str, u8)]) -> Snapshot {
        let value = |(name, value): (&String, &Value)| {
            (
                Field::from_wire_name(name).expect("a field"),
                Json::from_value(value),
            )
        };
        let secret = |(name, byte): &(&str, u8)| {
            (
                SecretName::new(name).expect("a name"),
                Fingerprint::from_bytes([*byte; 16]),
            )
        };
        Snapshot {
            values: values
                .as_object()
                .expect("an object")
                .iter()
                .map(value)
                .collect(),
            secrets: Some(secrets.iter().map(secret).collect()),
        }
    }

    fn record(acknowledged: Snapshot) -> Record {
        Record {
            acknowledged,
            ..Record::new(ResourceKey::new("icfg_7Hd", "res_0412").expect("ids"))
        }
    }

    fn plain(lines: &[Line], look: Look) -> String {
        anstream::adapter::strip_str(&render(lines, "SOURCE", look)).to_string()
    }

    #[test]
    fn each_side_of_each_field_is_shown_and_secrets_by_fingerprint() {
        let plan = |name: &str| json!({"id": "pro", "type": "subscription", "name": name});
        let mut record = record(snapshot(
            json!({"status": "ready", "billingPlan": plan("Pro"), "metadata": {"region": "fra", "size": 1}}),
            &[("DATABASE_URL", 0x9f), ("OLD", 0x01), ("REDIS_URL", 0x11)],
        ));
        record.doubt.secrets.insert(
            SecretName::new("DATABASE_URL").expect("a name"),
            Mark::default(),
        );
        let desired = snapshot(
            json!({"status": "ready", "billingPlan": plan("Pro"), "metadata": {"region": "iad", "size": 1}}),
            &[("DATABASE_URL", 0xb0), ("REDIS_URL", 0x11)],
        );
        let lines = lines(&record, Some(&desired));
        insta::assert_snapshot!(plain(&lines, LOOK), @r"
        FIELD                 SOURCE  ACKNOWLEDGED  IN DOUBT  TO SEND
        status                ready   ready
        billingPlan           pro     pro
        metadata.region       iad     fra                     iad
        secrets.DATABASE_URL  b0b0b0  9f9f9f        yes       b0b0b0
        secrets.OLD                   010101                  removal
        secrets.REDIS_URL     111111  111111
        ");
        assert_eq!(
            counted_differences(&lines).as_deref(),
            Some("1 field and 2 secrets")
        );
        let machine = to_json(&lines);
        let secret = machine
            .iter()
            .find(|line| line["path"] == "secrets.DATABASE_URL")
            .expect("it is there");
        assert_eq!(secret["secret_name"], "DATABASE_URL");
        assert_eq!(machine[0].get("secret_name"), None);
        assert_eq!(secret["desired_fingerprint"], "b0b0b0");
        assert_eq!(secret["acknowledged_fingerprint"], "9f9f9f");
        assert_eq!(secret["sends"], "value");
    }

    #[test]
    fn a_table_of_long_values_takes_the_terminal_and_no_more() {
        let long = |letter: &str| json!({"name": letter.repeat(200)});
        let mut record = record(snapshot(long("a"), &[]));
        let mark = Mark::default();
        record.doubt.fields.insert(Field::Name, mark);
        let lines = lines(&record, Some(&snapshot(long("b"), &[])));
        for width in [80, 81, 120] {
            let shown = plain(&lines, Look { width, ..LOOK });
            let widths = shown.lines().map(|line| line.chars().count());
            let widest = widths.max().expect("lines");
            assert!(
                (width - 2..=width).contains(&widest),
                "{widest} of {width}:\n{shown}"
            );
        }
    }

    #[test]
    fn what_was_rejected_or_discarded_says_so_instead_of_being_sent() {
        let desired = snapshot(json!({"status": "ready", "name": "b"}), &[]);
        let mut record = record(snapshot(json!({"status": "pending", "name": "a"}), &[]));
        let rejection = Rejection {
            digest: desired.digest(Field::Name).expect("managed"),
            status: 422,
            code: None,
        };
        record.dismissed.insert(
            Field::Status,
            desired.digest(Field::Status).expect("managed"),
        );
        record.entry = Some(Entry {
            rejected: [(Field::Name, rejection)].into(),
            ..Entry::new(desired.clone(), Origin::Poll, Mode::Split, NOW)
        });
        insta::assert_snapshot!(plain(&lines(&record, Some(&desired)), LOOK), @r"
        FIELD   SOURCE  ACKNOWLEDGED  IN DOUBT  TO SEND
        status  ready   pending                 discarded
        name    b       a                       rejected (422)
        ");
    }

    #[test]
    fn a_source_that_cannot_be_asked_is_a_question_mark_and_nothing_to_send() {
        let record = record(snapshot(json!({"status": "ready"}), &[("A", 1)]));
        let lines = lines(&record, None);
        assert!(
            lines
                .iter()
                .all(|line| line.desired.is_none() && line.to_send == ToSend::Nothing)
        );
        let expected = [
            "FIELD\tSOURCE\tACKNOWLEDGED\tIN DOUBT\tTO SEND\n",
            "status\t?\tready\t\t\n",
            "secrets.A\t?\t010101\t\t\n",
        ];
        assert_eq!(
            plain(
                &lines,
                Look {
                    terminal: false,
                    ..LOOK
                }
            ),
            expected.concat()
        );
    }

    #[test]
    fn an_equal_value_in_doubt_is_sent_again() {
        let same = snapshot(json!({"status": "ready"}), &[]);
        let mut record = record(same.clone());
        let until = NOW.plus(std::time::Duration::from_secs(60));
        record.doubt.fields.insert(
            Field::Status,
            Mark {
                uncertain_until: Some(until),
                confirmed: false,
            },
        );
        let lines = lines(&record, Some(&same));
        assert!(is_doubt_alone(&lines, &record.doubt));
        insta::assert_snapshot!(plain(&lines, LOOK), @r"
        FIELD   SOURCE  ACKNOWLEDGED  IN DOUBT        TO SEND
        status  ready   ready         until 14:03:11  ready
        ");
    }

    #[test]
    fn only_a_text_that_can_be_taken_for_nothing_else_stands_without_quotes() {
        let cases = [
            (json!("ready"), "ready"),
            (json!("eu-west_1/a.b:c@d+$"), "eu-west_1/a.b:c@d+$"),
            (json!("two words"), r#""two words""#),
            (json!(""), r#""""#),
            (json!("none"), r#""none""#),
            (json!("null"), r#""null""#),
            (json!("true"), r#""true""#),
            (json!("false"), r#""false""#),
            (json!("removal"), r#""removal""#),
            (json!(true), "true"),
            (Value::Null, "none"),
            (json!({"id": "pro"}), r#"{"id":"pro"}"#),
        ];
        for (value, expected) in cases {
            let side = Side::Value(value);
            assert_eq!(shown(Field::Name, &side, LOOK), expected);
        }
        assert_eq!(shown(Field::Name, &Side::Absent, LOOK), "");
    }

    #[test]
    fn only_a_terminal_shows_a_plan_by_its_id_and_only_a_plain_one() {
        let pipe = Look {
            terminal: false,
            ..LOOK
        };
        let plan = |id: &str| Side::Value(json!({"id": id}));
        let field = Field::BillingPlan;
        assert_eq!(shown(field, &plan("pro"), LOOK), "pro");
        assert_eq!(shown(field, &plan("pro"), pipe), r#"{"id":"pro"}"#);
        assert_eq!(shown(field, &plan("a b"), LOOK), r#"{"id":"a b"}"#);
    }

    #[test]
    fn doubt_is_said_to_end_only_while_its_end_lies_ahead() {
        let second = std::time::Duration::from_secs(1);
        for (until, said) in [
            (None, "yes"),
            (Some(NOW.minus(second)), "yes"),
            (Some(NOW), "yes"),
            (Some(NOW.plus(second)), "until 14:02:12"),
        ] {
            let mark = Mark {
                uncertain_until: until,
                confirmed: false,
            };
            assert_eq!(doubt_words(mark, LOOK), said, "{until:?}");
        }
    }

    #[test]
    fn differences_are_counted_by_field_and_by_secret_if_they_are_sent() {
        let line = |field, path: &str, to_send| Line {
            field,
            path: path.to_owned(),
            desired: Some(Side::Absent),
            acknowledged: Side::Absent,
            doubt: None,
            to_send,
        };
        let value = || ToSend::Value(Side::Value(json!("b")));
        let name = |to_send| line(Field::Name, "name", to_send);
        let part = |path, to_send| line(Field::Metadata, path, to_send);
        let secret = |path, to_send| line(Field::Secrets, path, to_send);
        let left_out = || ToSend::LeftOut("discarded".to_owned());
        let cases = [
            (vec![], None),
            (
                vec![name(ToSend::Nothing), secret("secrets.A", left_out())],
                None,
            ),
            (vec![name(value())], Some("1 field")),
            (vec![name(ToSend::Removal)], Some("1 field")),
            // Parts of one field are one.
            (
                vec![part("metadata.a", value()), part("metadata.b", value())],
                Some("1 field"),
            ),
            (
                vec![name(value()), part("metadata.a", value())],
                Some("2 fields"),
            ),
            (vec![secret("secrets.A", value())], Some("1 secret")),
            (
                vec![
                    secret("secrets.A", value()),
                    secret("secrets.B", ToSend::Removal),
                ],
                Some("2 secrets"),
            ),
        ];
        for (lines, expected) in cases {
            assert_eq!(
                counted_differences(&lines).as_deref(),
                expected,
                "{lines:?}"
            );
        }
    }

    #[test]
    fn doubt_is_all_that_is_left_only_where_nothing_that_is_sent_differs() {
        let line = |desired: &str, to_send| Line {
            field: Field::Name,
            path: "name".to_owned(),
            desired: Some(Side::Value(json!(desired))),
            acknowledged: Side::Value(json!("a")),
            doubt: Some(Mark::default()),
            to_send,
        };
        let sent = |desired: &str| line(desired, ToSend::Value(Side::Value(json!(desired))));
        let mut doubt = Doubt::default();
        assert!(!is_doubt_alone(&[sent("a")], &doubt));
        doubt.fields.insert(Field::Name, Mark::default());
        assert!(is_doubt_alone(&[sent("a")], &doubt));
        assert!(is_doubt_alone(
            &[sent("a"), line("b", ToSend::Nothing)],
            &doubt
        ));
        assert!(!is_doubt_alone(&[sent("a"), sent("b")], &doubt));
    }

    #[test]
    fn a_request_is_named_by_its_fields_and_its_secrets() {
        let named = |fields: &[Field], secrets: &[&str]| {
            let secrets: Vec<String> = secrets.iter().map(|name| (*name).to_owned()).collect();
            field_names(fields.iter().copied(), &secrets)
        };
        assert_eq!(named(&[], &[]), "");
        assert_eq!(named(&[Field::Status, Field::Name], &[]), "status, name");
        assert_eq!(named(&[Field::Secrets], &[]), "secrets");
        assert_eq!(
            named(&[Field::Secrets, Field::Name], &["A", "B"]),
            "name, secrets.A, secrets.B"
        );
        assert_eq!(named(&[Field::Name], &["A"]), "name");
    }

    #[test]
    fn of_secrets_that_were_discarded_only_those_that_differ_say_so() {
        let mut record = record(snapshot(json!({}), &[("A", 1), ("B", 9)]));
        let desired = snapshot(json!({}), &[("A", 1), ("B", 2)]);
        record.dismissed.insert(
            Field::Secrets,
            desired.digest(Field::Secrets).expect("managed"),
        );
        insta::assert_snapshot!(plain(&lines(&record, Some(&desired)), LOOK), @r"
        FIELD      SOURCE  ACKNOWLEDGED  IN DOUBT  TO SEND
        secrets.A  010101  010101
        secrets.B  020202  090909                  discarded
        ");
    }
}
