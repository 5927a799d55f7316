//! Where the values of secrets come from, and when they are not sent.

use super::*;

#[test]
fn secrets_have_their_own_operation_where_they_go_alone() {
    for (way, columns, method) in [
        (SecretsWay::Together, &[(Field::Secrets, ONE)][..], "PATCH"),
        (SecretsWay::Alone, &[(Field::Secrets, ONE)][..], "PUT"),
        (SecretsWay::Alone, &[(Field::Status, "ready")][..], "PATCH"),
        (
            SecretsWay::Together,
            &[(Field::Status, "ready")][..],
            "PATCH",
        ),
    ] {
        let stand = Stand::new();
        stand.desires(&resource(), columns);
        let claimed = claim_with(&stand, way);
        let worker = stand.worker(|settings| settings.secrets = way);
        let answered = deliver_with(&worker, &stand, claimed, Supply::None);
        let attempt = answered.attempted.attempt.expect("it was sent");
        assert_eq!(attempt.method, method, "{way:?} {columns:?}");
    }
}

#[test]
fn secrets_are_sent_from_what_was_read_beforehand_or_again_or_now() {
    // Beforehand.
    let stand = Stand::new();
    let claimed = secret(&stand);
    let supply = Supply::Row(Box::new(row(&resource(), &[(Field::Secrets, ONE)])));
    let worker = stand.worker(|_| {});
    deliver_with(&worker, &stand, claimed, supply);
    assert_eq!(stand.vercel.sent()[0].secrets, ["one"]);
    assert_eq!(stand.source.fetched(), [] as [usize; 0]);

    // By the re-read that the claim was made for, though the row has changed since.
    let stand = Stand::new();
    let claimed = secret(&stand);
    let held = row(&resource(), &[(Field::Secrets, ONE)]).decode();
    let held = held.expect("a usable row").secrets.expect("secrets");
    stand.signals.reread.keep(&resource(), held);
    stand.source.puts(&resource(), &[(Field::Secrets, TWO)]);
    let supply = Supply::Row(Box::new(row(&resource(), &[(Field::Secrets, TWO)])));
    deliver_with(&stand.worker(|_| {}), &stand, claimed, supply);
    assert_eq!(stand.vercel.sent()[0].secrets, ["one"]);
    assert_eq!(stand.source.fetched(), [] as [usize; 0]);

    // Now: what was read again is another value.
    let stand = Stand::new();
    let claimed = secret(&stand);
    let held = row(&resource(), &[(Field::Secrets, TWO)]).decode();
    let held = held.expect("a usable row").secrets.expect("secrets");
    stand.signals.reread.keep(&resource(), held);
    deliver(&stand, claimed);
    assert_eq!(stand.vercel.sent()[0].secrets, ["one"]);
    assert_eq!(stand.source.fetched(), [1]);
}

#[test]
fn secrets_of_a_row_that_has_moved_on_are_not_sent() {
    let moved: [fn(&Stand); 4] = [
        |stand| stand.source.puts(&resource(), &[(Field::Secrets, TWO)]),
        |stand| stand.source.takes_away(&resource()),
        |stand| stand.source.doubles(&resource()),
        |stand| {
            stand
                .source
                .puts(&resource(), &[(Field::Secrets, "unusable")])
        },
    ];
    for moves in moved {
        let stand = Stand::new();
        let claimed = secret(&stand);
        moves(&stand);
        let answered = deliver(&stand, claimed);
        assert_eq!(*outcome(&answered), Outcome::SourceMoved);
        assert_eq!(answered.reached(), Reached::NotTried);
        assert_eq!(stand.vercel.said(), [] as [&str; 0]);
    }
}

#[test]
fn secrets_that_cannot_be_read_are_tried_again_later() {
    let stand = Stand::new();
    let claimed = secret(&stand);
    let worker = stand.worker(|_| {});
    // The token is remembered.
    remember(&stand, &worker);
    stand.source.fails(true);
    let answered = deliver_with(&worker, &stand, claimed, Supply::None);
    assert_eq!(*outcome(&answered), Outcome::SourceUnavailable);
}

#[test]
fn a_complete_set_is_held_only_as_a_whole_and_a_partial_one_by_its_names() {
    let stand = Stand::new();
    let worker = stand.worker(|_| {});
    let set = |text: &str| {
        let row = row(&resource(), &[(Field::Secrets, text)]).decode();
        row.expect("a usable row").secrets.expect("secrets")
    };
    let named = |text: &str| set(text).fingerprints(&stand.fingerprints);
    let both = r#"{"URL":"one","KEY":"k"}"#;
    let complete = SecretsPatch::Complete(named(ONE));
    let partial = SecretsPatch::Partial(named(ONE));
    let held = |wanted: &SecretsPatch| {
        [ONE, both, TWO, "{}"].map(|text| worker.are_held(wanted, &set(text)))
    };
    assert_eq!(held(&complete), [true, false, false, false]);
    assert_eq!(held(&partial), [true, true, false, false]);
}

#[test]
fn rows_are_read_together_and_one_that_is_not_clear_is_left_for_later() {
    let stand = Stand::new();
    let mut claims = Vec::new();
    for n in 0..3 {
        let resource = key("icfg_1", &format!("res_{n}"));
        stand.desires(&resource, &[(Field::Secrets, ONE)]);
        claims.push(claim(&stand));
        stand.clock.pass(Duration::from_millis(1));
    }
    stand.source.doubles(&key("icfg_1", "res_1"));
    stand.source.takes_away(&key("icfg_1", "res_2"));
    let worker = stand.worker(|_| {});
    let supplied = stand.clock.run(Arc::clone(&worker).supply(claims.clone()));
    let rows: Vec<_> = supplied
        .iter()
        .map(|(claimed, supply)| (claimed.key.clone(), matches!(supply, Supply::Row(_))))
        .collect();
    let expected = [0, 1, 2].map(|n| (key("icfg_1", &format!("res_{n}")), n == 0));
    assert_eq!(rows, expected);
    assert_eq!(stand.source.fetched(), [3]);
    stand.source.fails(true);
    let supplied = stand.clock.run(worker.supply(claims));
    assert!(
        supplied
            .iter()
            .all(|(_, supply)| matches!(supply, Supply::None))
    );
}
