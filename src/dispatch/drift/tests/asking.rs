//! Whom the check asks, how often, and when it gives up.

use super::*;

#[test]
fn an_installation_is_visited_once_with_one_list_also_over_pages() {
    let count = PAGE_RESOURCES as usize + 1;
    let stand = stand(&[("icfg_1", count)]);
    stand.vercel.replies([list()]);
    let moment = Duration::from_millis(1);
    stand
        .vercel
        .replies((0..count).map(|_| agreeing().after(moment)));
    let told = run(&stand, settings());
    assert_eq!(told.report.compared, count as u64);
    assert_eq!(told.pages, [count as u64 - 1, count as u64]);
    let said = stand.vercel.said();
    let lists = said.iter().filter(|what| what.starts_with("LIST"));
    assert_eq!(lists.count(), 1);
    assert_eq!(stand.vercel.out_max(), 4, "as many at once as may be");
}

#[test]
fn with_an_interval_requests_go_one_by_one() {
    let stand = stand(&[("icfg_1", 3)]);
    let slow = |reply: Reply| reply.after(SECOND);
    stand.vercel.replies([list()]);
    stand.vercel.replies((0..3).map(|_| slow(agreeing())));
    let mut settings = settings();
    settings.interval = Some(SECOND * 10);
    run(&stand, settings);
    let sent = stand.vercel.sent();
    let at: Vec<_> = sent
        .iter()
        .map(|sent| sent.at.since(START).as_secs())
        .collect();
    assert_eq!(at, [0, 0, 11, 22]);
    assert_eq!(stand.vercel.out_max(), 1);
}

#[test]
fn nobody_waits_for_what_is_not_asked() {
    let stand = stand(&[("icfg_1", 3)]);
    pauses(&stand, "icfg_1");
    let mut settings = settings();
    settings.interval = Some(SECOND * 10);
    run(&stand, settings);
    assert_eq!(stand.clock.time(), START);
}

#[test]
fn no_concurrency_at_all_is_one_request_at_a_time() {
    let stand = stand(&[("icfg_1", 2)]);
    stand.vercel.replies([list(), agreeing(), agreeing()]);
    let mut settings = settings();
    settings.concurrency = 0;
    assert_eq!(run(&stand, settings).report.compared, 2);
}

#[test]
fn the_answer_to_the_list_says_why_an_installation_is_not_looked_at() {
    let cases = [
        (answer(404), "installation_gone"),
        (answer(429), "rate_limited"),
        (answer(401), "token"),
        (answer(500), "unavailable"),
        (answer(422), "unavailable"),
        (lost(), "unavailable"),
    ];
    for (reply, skip) in cases {
        let stand = stand(&[("icfg_1", 2)]);
        stand.vercel.answers(&reply, 1);
        let told = run(&stand, settings());
        assert_eq!(skipped(&told.report), [(skip, 2)], "{reply:?}");
        assert_eq!(stand.vercel.said(), ["LIST icfg_1"], "{reply:?}");
        assert!(told.report.complete);
    }
}

#[test]
fn a_list_that_cannot_be_read_is_no_reason_not_to_look() {
    let stand = stand(&[("icfg_1", 1)]);
    stand.vercel.replies([Reply::status(200), agreeing()]);
    assert_eq!(run(&stand, settings()).report.compared, 1);
}

#[test]
fn a_refused_token_is_read_again_once() {
    let stand = stand(&[("icfg_1", 1)]);
    let list_late = Reply::status(401).after(SECOND);
    stand.vercel.replies([list_late, list(), agreeing()]);
    let check = check(&stand, settings());
    let stop = CancellationToken::new();
    let mut tell = |_: DriftEvent<'_>| {};
    let mut run = Box::pin(check.run(&stop, &mut tell));
    assert!(stand.clock.turn(run.as_mut()).is_none());
    stand.source.gives_token("icfg_1", Some("fresh"));
    let report = stand.clock.run(run).expect("does not fail");
    assert_eq!(report.compared, 1);
    let sent = stand.vercel.sent().into_iter();
    let tokens: Vec<_> = sent.map(|sent| sent.token).collect();
    assert_eq!(tokens, ["token", "fresh", "fresh"]);
}

#[test]
fn without_a_token_nothing_is_asked() {
    let stand = stand(&[("icfg_1", 1), ("icfg_2", 1)]);
    stand.source.gives_token("icfg_1", None);
    stand.vercel.replies([list(), agreeing()]);
    let told = run(&stand, settings());
    assert_eq!(skipped(&told.report), [("token", 1)]);
    assert_eq!(told.report.compared, 1);
    let stand = self::stand(&[("icfg_1", 1)]);
    stand.source.fails(true);
    let told = run(&stand, settings());
    assert_eq!(skipped(&told.report), [("unavailable", 1)]);
}

#[test]
fn an_answer_that_closes_an_installation_closes_it_for_the_rest() {
    for (reply, first, rest) in [
        (answer(429), "rate_limited", "rate_limited"),
        (answer(401), "token", "token"),
    ] {
        let stand = stand(&[("icfg_1", 3), ("icfg_2", 1)]);
        stand.vercel.replies([list(), Reply::of(reply)]);
        stand.vercel.replies([list(), agreeing()]);
        let mut settings = settings();
        settings.concurrency = 1;
        let told = run(&stand, settings);
        assert_eq!(first, rest);
        assert_eq!(skipped(&told.report), [(first, 3)]);
        assert_eq!(told.report.compared, 1, "the other is looked at");
        assert_eq!(stand.vercel.said().len(), 4);
    }
}

#[test]
fn what_shows_nothing_that_can_be_read_is_not_compared() {
    let stand = stand(&[("icfg_1", 1)]);
    stand.vercel.replies([list(), Reply::status(200)]);
    assert_eq!(
        skipped(&run(&stand, settings()).report),
        [("unavailable", 1)]
    );
}

#[test]
fn after_five_failures_in_a_row_the_rest_is_given_up() {
    let stand = stand(&[("icfg_1", 8), ("icfg_2", 1)]);
    stand.vercel.replies([list()]);
    stand.vercel.answers(&answer(500), 4);
    stand.vercel.replies([agreeing()]);
    stand.vercel.answers(&answer(500), 100);
    let mut one = settings();
    one.concurrency = 1;
    let told = run(&stand, one);
    // Four failures, an answer, and three more of the first installation; the list of the other is the fourth.
    assert_eq!(stand.vercel.said().len(), 1 + 8 + 1);
    assert_eq!(skipped(&told.report), [("unavailable", 8)]);

    let stand = self::stand(&[("icfg_1", 8), ("icfg_2", 1)]);
    stand.vercel.replies([list()]);
    stand.vercel.answers(&answer(500), 100);
    let mut one = settings();
    one.concurrency = 1;
    let told = run(&stand, one);
    assert_eq!(stand.vercel.said().len(), 1 + 5, "and no list of the other");
    assert_eq!(skipped(&told.report), [("unavailable", 9)]);
    assert!(told.report.complete);
}

#[test]
fn lists_that_fail_count_and_one_that_is_answered_ends_the_count() {
    let installations: Vec<String> = (0..9).map(|n| format!("icfg_{n}")).collect();
    let resources: Vec<(&str, usize)> = installations.iter().map(|id| (id.as_str(), 1)).collect();
    let stand = stand(&resources);
    stand.vercel.answers(&answer(500), 100);
    let told = run(&stand, settings());
    assert_eq!(stand.vercel.said().len(), 5);
    assert_eq!(skipped(&told.report), [("unavailable", 9)]);

    let stand = self::stand(&resources);
    stand.vercel.answers(&answer(500), 4);
    stand.vercel.replies([list(), Reply::status(404)]);
    stand.vercel.answers(&answer(500), 100);
    run(&stand, settings());
    assert_eq!(stand.vercel.said().len(), 4 + 2 + 4);

    // A refused list is an answer, and ends no count either.
    let stand = self::stand(&resources);
    stand.vercel.answers(&answer(401), 100);
    run(&stand, settings());
    assert_eq!(stand.vercel.said().len(), 9);
}
