//! What single values and values together must satisfy.

use super::*;

#[test]
fn wrong_values_are_reported_together_with_what_is_accepted() {
    insta::assert_snapshot!(report_on(r#"
overlap = -1
statement_timeout = 30
max_connections = 0
listen = "changed"
feed = "a.b.c"
[vercel]
base_url = "http://api.vercel.com"
request_timeout = "30"
connect_timeout = "0s"
max_in_flight = "64"
secrets_endpoint = "path"
proxy = "socks5://me:hunter2@proxy"
[reconcile]
ignore = ["billing_plan", "colour"]
[schedule]
poll = "*/5 * * * *"
drift = "0 61 * * * *"
[retry]
multiplier = 0.5
max_elapsed = "1ms"
max_interval = "10ms"
[log]
filter = "inof"
[http]
listen = "localhost:9464"
"#), @r#"
    error[C011]: `source.overlap` is out of range: -1
      --> reconciled.toml:7
       = help: 0 or more, in the cursor's own unit

    error[C005]: `source.statement_timeout` has the wrong type: a whole number
      --> reconciled.toml:8
       = help: text in quotes

    error[C011]: `source.max_connections` is out of range: 0
      --> reconciled.toml:9
       = help: from 1 to 100

    error[C019]: `source.listen` works with PostgreSQL only
      --> reconciled.toml:10
       = help: listen = "": the schedule polls without it

    error[C018]: `source.feed` is no table name: "a.b.c"
      --> reconciled.toml:11
       = help: table or schema.table: ASCII letters, digits and underscores

    error[C013]: `vercel.base_url` is no usable URL: plain http to api.vercel.com would show secrets to the network
      --> reconciled.toml:13
       = help: https://host, or http:// on 127.0.0.1, ::1 and localhost; no user, query or fragment

    error[C010]: `vercel.request_timeout` is no duration: "30"
      --> reconciled.toml:14
       = help: a number with its unit: "500ms", "30s", "10m", "2h", "7d"

    error[C011]: `vercel.connect_timeout` is out of range: "0s"
      --> reconciled.toml:15
       = help: from "10ms" to "10m"

    error[C005]: `vercel.max_in_flight` has the wrong type: text "64"
      --> reconciled.toml:16
       = help: a whole number, without quotes

    error[C012]: `vercel.secrets_endpoint` is not one of its words: "path"
      --> reconciled.toml:17
       = help: did you mean "patch"? accepted: "patch", "put"

    error[C013]: `vercel.proxy` is no usable URL: its scheme is not accepted
      --> reconciled.toml:18
       = help: http://host:port or https://host:port, with user:password@ where needed

    error[C015]: `reconcile.ignore` names a field that does not exist: "billing_plan"
      --> reconciled.toml:20
       = help: did you mean "billingPlan"? fields: secrets, status, billingPlan, name, notification, metadata, ownership, extras

    error[C015]: `reconcile.ignore` names a field that does not exist: "colour"
      --> reconciled.toml:20
       = help: fields: secrets, status, billingPlan, name, notification, metadata, ownership, extras

    error[C014]: `schedule.poll` is no cron expression: "*/5 * * * *"
      --> reconciled.toml:22
       = help: six fields, seconds first, UTC: "0 */5 * * * *" is the same with seconds

    error[C014]: `schedule.drift` is no cron expression: "0 61 * * * *" (number out of bounds)
      --> reconciled.toml:23
       = help: six fields, seconds first, UTC: "0 0 * * * *" is every hour

    error[C011]: `retry.multiplier` is out of range: 0.5
      --> reconciled.toml:25
       = help: from 1 to 100

    error[C011]: `retry.max_elapsed` is out of range: "1ms"
      --> reconciled.toml:26
       = help: from "1s" to "10years", or "0s" for none

    error[C019]: `retry.max_interval` 10ms is below `retry.initial_interval` 1s
      --> reconciled.toml:27
       = help: at least max_interval = "1s"

    error[C017]: `log.filter` names no level: "inof"
      --> reconciled.toml:29
       = help: a level (error, warn, info, debug, trace, off), then exceptions: "info,reconciled::dispatch=debug"

    error[C016]: `http.listen` is no address with a port: "localhost:9464"
      --> reconciled.toml:31
       = help: an IP address and a port: "127.0.0.1:9464", "[::]:9464"; "" for none

    20 errors. Connections were not tried.
    "#);
}

#[test]
fn a_value_of_the_wrong_type_is_called_by_its_own() {
    let overlong = "hunter2".repeat(40);
    for (value, found) in [
        ("\"1\"", "text \"1\""),
        ("true", "true or false"),
        ("1.5", "a number"),
        ("[1]", "a list"),
    ] {
        let text = report_on(&format!("[vercel]\nmax_in_flight = {value}"));
        let expected = format!("`vercel.max_in_flight` has the wrong type: {found}\n");
        assert!(text.contains(&expected), "{text}");
    }
    let text = report_on("[log]\nfilter = 7");
    assert!(
        text.contains("`log.filter` has the wrong type: a whole number\n"),
        "{text}"
    );
    let text = report_on(&format!("[vercel]\nmax_in_flight = \"{overlong}\""));
    assert!(!text.contains(&overlong), "{text}");
}

#[test]
fn oauth_needs_all_of_its_keys_and_no_installations_query() {
    let text = "[source]\nurl = \"postgres://db/app\"\nquery = \"Q\"\n[vercel.oauth]\nclient_id = \"oac_1\"\nform = { a = \"{x}\" }\n";
    insta::assert_snapshot!(report(text), @r#"
    error[C023]: `vercel.oauth.form` has an unknown placeholder in the value of `a`
      --> reconciled.toml:6
       = help: the only placeholder is {installation_id}

    error[C004]: `vercel.oauth.token_url` is required
      --> reconciled.toml
       = help: [vercel.oauth] token_url = "https://…", or RECONCILED__VERCEL__OAUTH__TOKEN_URL

    error[C004]: `vercel.oauth.client_secret_file` is required
      --> reconciled.toml
       = help: [vercel.oauth] client_secret_file = "/run/credentials/reconciled.service/client_secret", or RECONCILED__VERCEL__OAUTH__CLIENT_SECRET_FILE

    3 errors. Connections were not tried.
    "#);
}

#[test]
fn lease_must_outlast_a_request_with_room() {
    insta::assert_snapshot!(report_on("[retry]\nlease = \"30s\""), @r#"
    error[C019]: `retry.lease` 30s does not exceed `vercel.request_timeout` 30s
      --> reconciled.toml:7
       = help: lease = "60s"

    1 error. Connections were not tried.
    "#);
    insta::assert_snapshot!(report_on("[vercel]\nrequest_timeout = \"2m\""), @r#"
    error[C019]: `retry.lease` 60s does not exceed `vercel.request_timeout` 2m
      --> built-in default
       = help: lease = "4m"

    1 error. Connections were not tried.
    "#);
    let beside_another = report_on("[retry]\nmultiplier = -1.0\nlease = \"30s\"");
    assert!(
        beside_another.contains("`retry.lease` 30s does not exceed")
            && beside_another.contains("2 errors."),
        "{beside_another}"
    );
    insta::assert_snapshot!(Place::new(&least("[retry]\nlease = \"45s\"")).warnings(), @r#"
    warning[W021]: [retry] lease 45s leaves 15s beyond request_timeout 30s
      --> DIR/reconciled.toml:7
       = help: lease = "60s"

    1 warning.
    "#);
}

#[test]
fn risks_are_warnings() {
    let text = least(
        "[state]\nurl = \"sqlite::memory:\"\n[schedule]\npoll = \"\"\nsweep = \"\"\n[vercel]\nproxy = \"http://u:hunter2@p\"",
    );
    let place = Place::new(&text).with(&[("RECONCILED_LOG_FILTER", "debug")], &[]);
    place.file("reconciled.toml", &text, 0o644);
    insta::assert_snapshot!(place.warnings(), @r#"
    warning[W025]: [state] url keeps the state in memory: a restart pushes everything again
      --> DIR/reconciled.toml:7
       = help: sqlite:///var/lib/reconciled/state.db, or postgres://… for several replicas

    warning[W024]: [schedule] poll and sweep are both off: changes are only seen at start
      --> DIR/reconciled.toml:9
       = help: poll = "*/5 * * * * *"

    warning[W022]: `vercel.proxy` holds a password in a file that everyone can read
      --> DIR/reconciled.toml:12
       = help: chmod 0640 DIR/reconciled.toml

    warning[W023]: the variable RECONCILED_LOG_FILTER is not read
      --> RECONCILED_LOG_FILTER
       = help: sections and keys are joined by two underscores: RECONCILED__LOG__FILTER

    4 warnings.
    "#);
}

#[test]
fn share_of_one_installation_fits_into_the_whole() {
    let config =
        Config::from_toml(&least("[vercel]\nmax_in_flight = 2")).expect("the default gives way");
    assert_eq!(config.vercel.max_in_flight_per_installation.get(), 2);
    let report = report_on("[vercel]\nmax_in_flight = 2\nmax_in_flight_per_installation = 3");
    assert!(
        report.contains("error[C019]: `vercel.max_in_flight_per_installation` 3 exceeds"),
        "{report}"
    );
}

#[test]
fn state_never_lives_in_the_source() {
    let report = report_on("[state]\nurl = \"sqlite:/provider.db?mode=rwc\"");
    assert!(
        report.contains("error[C019]: `state.url` is the same file as `source.url`"),
        "{report}"
    );
}

#[test]
fn certificate_file_must_hold_a_certificate() {
    let place = Place::new(LEAST);
    let good = place.file("ca.pem", "-----BEGIN CERTIFICATE-----\n", 0o644);
    let bad = place.file("ca.txt", "x", 0o644);
    let flag = |path: &Path| format!("vercel.ca_file={}", path.display());
    let place = place.with(&[], &[&flag(&good)]);
    assert_eq!(place.load().config.vercel.ca_file, Some(good));
    let place = place.with(&[], &[&flag(&bad)]);
    insta::assert_snapshot!(place.report(), @r#"
    error[C022]: `vercel.ca_file` cannot be used: "DIR/ca.txt" (holds no certificate in PEM form)
      --> command line: vercel.ca_file=DIR/ca.txt
       = help: a readable PEM file of certificate authorities; "" for none beyond the system's

    1 error. Connections were not tried.
    "#);
}

#[test]
fn filter_accepts_levels_and_exceptions_only() {
    for filter in [
        "info",
        "OFF",
        "info,reconciled::dispatch=debug",
        "warn,[pass{id=1}]=trace",
    ] {
        let config = Config::from_toml(&least(&format!("[log]\nfilter = \"{filter}\"")));
        assert!(config.is_ok(), "{filter}: {config:?}");
    }
    for filter in ["", ",", "inof", "info,reconciled", "a=b=c"] {
        let report = report_on(&format!("[log]\nfilter = \"{filter}\""));
        assert!(report.starts_with("error[C017]"), "{filter}: {report}");
    }
}

#[test]
fn every_wait_stays_below_what_is_taken_for_a_clock_set_back() {
    for key in ["initial_interval", "max_interval", "late_apply"] {
        let load = |text: &str| {
            let others = if key == "initial_interval" {
                "max_interval = \"15m\"\n"
            } else {
                ""
            };
            Config::from_toml(&least(&format!("[retry]\n{others}{key} = \"{text}\"")))
        };
        assert!(load("15m").is_ok(), "{key}");
        assert!(load("16m").is_err(), "{key}");
    }
    let longest = Duration::from_secs(15 * 60);
    assert!(longest < crate::plan::claim::DUE_HORIZON);
}

#[test]
fn the_speed_of_sweeps_is_any_number_up_to_a_million_and_0_is_no_limit() {
    let speed = |value: i64| {
        let text = least(&format!("[reconcile]\nsweep_rows_per_second = {value}\n"));
        Config::from_toml(&text).map(|config| config.reconcile.sweep_rows_per_second)
    };
    for (value, expected) in [
        (0, None),
        (1, std::num::NonZeroU32::new(1)),
        (1_000_000, std::num::NonZeroU32::new(1_000_000)),
    ] {
        assert_eq!(speed(value).expect("it is accepted"), expected, "{value}");
    }
    for value in [-1, 1_000_001] {
        let refused = speed(value).expect_err("it is refused").to_string();
        assert!(
            refused.contains("`reconcile.sweep_rows_per_second` is out of range")
                && refused.contains("from 0 to 1000000"),
            "{refused}"
        );
    }
}
