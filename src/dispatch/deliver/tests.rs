//! What a delivery sends, and what its answers come to.

use std::pin::pin;

use crate::dispatch::fixture::{
    LEASE, REQUEST_TIMEOUT, Reply, SECOND, START, Stand, answer, installation, key, lost, row,
    settings, unreachable_answer,
};
use crate::model::{Field, Json, Reason, SharedMap};
use crate::store::{ClaimRequest, Store as _};

use super::*;

mod places;
mod secrets;

pub(super) fn resource() -> ResourceKey {
    key("icfg_1", "res_1")
}

/// The only due entry, claimed.
fn claim_with(stand: &Stand, secrets: SecretsWay) -> Claimed {
    let now = stand.clock.time();
    let request = ClaimRequest {
        now,
        owner: "test".to_owned(),
        lease_expires_at: now.plus(LEASE),
        tokens: vec![crate::model::LeaseToken(now.as_millis())],
        limit: 1,
        per_installation: 1,
        in_flight: BTreeMap::new(),
        after: None,
        excluded: Vec::new(),
        rate: None,
        used: BTreeMap::new(),
        late_apply: SECOND * 60,
        secrets,
    };
    let claimed = stand.clock.run(stand.state.memory.claim(&request));
    let claimed = claimed.expect("a state in memory does not fail").pop();
    claimed.expect("something is due")
}

pub(super) fn claim(stand: &Stand) -> Claimed {
    claim_with(stand, SecretsWay::Together)
}

/// A resource that desires a status, and its claim.
pub(super) fn status(stand: &Stand) -> Claimed {
    stand.desires(&resource(), &[(Field::Status, "ready")]);
    claim(stand)
}

/// The worker has the installation's token in memory.
pub(super) fn remember(stand: &Stand, worker: &Worker) {
    let id = installation("icfg_1");
    let token = stand.clock.run(worker.tokens.get(&id));
    token.expect("the source can be read");
}

const ONE: &str = r#"{"URL":"one"}"#;
const TWO: &str = r#"{"URL":"two"}"#;

/// A resource that desires a secret, and its claim.
fn secret(stand: &Stand) -> Claimed {
    stand.desires(&resource(), &[(Field::Secrets, ONE)]);
    claim(stand)
}

fn deliver_with(worker: &Arc<Worker>, stand: &Stand, claimed: Claimed, supply: Supply) -> Answered {
    let allowance = worker.pace.hold(&claimed.key.installation_id);
    let over = CancellationToken::new();
    let worker = Arc::clone(worker);
    stand
        .clock
        .run(worker.deliver(claimed, supply, allowance, over))
}

pub(super) fn deliver(stand: &Stand, claimed: Claimed) -> Answered {
    deliver_with(&stand.worker(|_| {}), stand, claimed, Supply::None)
}

fn outcome(answered: &Answered) -> &Outcome {
    &answered.attempted.outcome
}

/// What a status that is sent comes to when Vercel answers so.
fn answered(replies: impl IntoIterator<Item = Reply>) -> (Stand, Answered) {
    let stand = Stand::new();
    let claimed = status(&stand);
    stand.vercel.replies(replies);
    let answered = deliver(&stand, claimed);
    (stand, answered)
}

#[test]
fn every_answer_has_its_outcome_and_says_whether_vercel_was_reached() {
    let http = answer;
    let cases = [
        (http(200), "acknowledged", Reached::Answered),
        (unreachable_answer(), "unreachable", Reached::Failed),
        (lost(), "lost", Reached::Failed),
        (http(504), "lost", Reached::Failed),
        (http(500), "failed", Reached::Failed),
        (http(429), "rate_limited", Reached::Answered),
        (http(422), "rejected", Reached::Answered),
        (http(302), "refused", Reached::Answered),
        (http(401), "token_refused", Reached::Answered),
    ];
    for (answer, name, reached) in cases {
        let (stand, answered) = answered([Reply::of(answer.clone())]);
        assert_eq!(outcome(&answered).name(), name, "{answer:?}");
        assert_eq!(answered.reached(), reached, "{answer:?}");
        assert_eq!(*answered.key(), resource());
        assert_eq!(stand.vercel.said(), ["PATCH icfg_1/res_1"]);
    }
}

#[test]
fn an_acknowledgement_counts_from_when_the_request_was_sent() {
    let (_, answered) = answered([Reply::status(200).after(SECOND * 3)]);
    assert_eq!(
        *outcome(&answered),
        Outcome::Acknowledged { sent_at: START }
    );
    let attempt = answered.attempted.attempt.expect("it was sent");
    assert_eq!(
        (attempt.started_at, attempt.ended_at),
        (START, START.plus(SECOND * 3))
    );
}

#[test]
fn a_limited_rate_holds_for_the_installation() {
    let (_, answered) = answered([Reply::status(429)]);
    let until = START.plus(SECOND * 5);
    assert_eq!(*outcome(&answered), Outcome::RateLimited { until });
    assert_eq!(answered.attempted.limit_until, Some(until));
}

#[test]
fn the_history_of_an_attempt_tells_what_was_sent_and_what_came_back() {
    let mut refused = answer(422);
    refused.kind = AnswerKind::Http {
        status: 422,
        code: Some("bad_status".to_owned()),
        message: Some("no such status".to_owned()),
        retry_after: None,
        rate_limit_reset: None,
    };
    refused.vercel_id = Some("fra1::1".to_owned());
    let (_, refused) = answered([Reply::of(refused)]);
    let code = Some("bad_status".to_owned());
    assert_eq!(
        *outcome(&refused),
        Outcome::Rejected {
            status: 422,
            code: code.clone()
        }
    );
    let attempt = refused.attempted.attempt.expect("it was sent");
    assert_eq!(attempt.method, "PATCH");
    assert_eq!(attempt.fields, [Field::Status]);
    assert_eq!((attempt.status, attempt.error_code), (Some(422), code));
    assert_eq!(attempt.message.as_deref(), Some("no such status"));
    assert_eq!(attempt.vercel_id.as_deref(), Some("fra1::1"));

    // What Vercel calls an error of a success is none, and one without a name has the name of its kind.
    let mut accepted = answer(200);
    accepted.kind = AnswerKind::Http {
        status: 200,
        code: Some("odd".to_owned()),
        message: None,
        retry_after: None,
        rate_limit_reset: None,
    };
    for (reply, code) in [
        (accepted, None),
        (answer(500), Some("server_error")),
        (lost(), Some("timeout")),
    ] {
        let (_, answered) = answered([Reply::of(reply)]);
        let attempt = answered.attempted.attempt.expect("it was sent");
        assert_eq!(attempt.error_code.as_deref(), code);
    }
    let (_, lost) = answered([Reply::of(lost())]);
    assert_eq!(answer_code(&super::super::fixture::lost()), None);
    assert_eq!(lost.attempted.attempt.expect("it was sent").status, None);
}

#[test]
fn a_request_leaves_while_there_is_time_for_it_and_for_its_record_before_the_lease_ends() {
    let of = |lease: u64, request_timeout: u64| {
        let mut settings = settings();
        settings.lease = Duration::from_millis(lease);
        settings.request_timeout = Duration::from_millis(request_timeout);
        settings.time_to_deliver().as_millis()
    };
    assert_eq!(of(60_000, 30_000), 31_000);
    assert_eq!(of(32_000, 30_000), 31_000);
    assert_eq!(of(31_000, 30_000), 30_500, "half of the little there is");
    assert_eq!(of(30_000, 30_000), 30_000);
    let enough = LEASE - REQUEST_TIMEOUT - SECOND;
    let moment = Duration::from_millis(1);
    for (waited, sent) in [
        (enough - moment, true),
        (enough, false),
        (enough + moment, false),
    ] {
        let stand = Stand::new();
        let claimed = status(&stand);
        stand.clock.pass(waited);
        let answered = deliver(&stand, claimed);
        assert_eq!(*outcome(&answered) != Outcome::Released, sent, "{waited:?}");
        assert_eq!(stand.vercel.said().len(), usize::from(sent));
    }
}

#[test]
fn what_has_used_the_allowance_up_is_not_sent() {
    let stand = Stand::new();
    let claimed = status(&stand);
    let worker = stand.worker(|settings| {
        settings.requests_per_minute_per_installation = Some(1);
    });
    worker.asks(&installation("icfg_1"));
    let answered = deliver_with(&worker, &stand, claimed, Supply::None);
    assert_eq!(*outcome(&answered), Outcome::Released);
    assert_eq!(answered.reached(), Reached::NotTried);
    assert_eq!(stand.vercel.said(), [] as [&str; 0]);
}

#[test]
fn what_an_answer_makes_dispatch_ask_counts_against_the_limit() {
    for (status_code, asked) in [(409, "GET icfg_1/res_1"), (404, "PROBE icfg_1")] {
        let stand = Stand::new();
        let claimed = status(&stand);
        let worker = stand.worker(|settings| {
            settings.requests_per_minute_per_installation = Some(60);
        });
        stand.vercel.answers(&answer(status_code), 1);
        deliver_with(&worker, &stand, claimed, Supply::None);
        assert_eq!(stand.vercel.said()[1..], [asked]);
        let used = worker.pace.used(START);
        assert_eq!(
            used,
            [(installation("icfg_1"), START.plus(SECOND * 2))].into()
        );
    }
}

#[test]
fn an_installation_without_a_token_is_paused_and_nothing_is_sent() {
    let stand = Stand::new();
    let claimed = status(&stand);
    stand.source.gives_token("icfg_1", None);
    let answered = deliver(&stand, claimed);
    assert_eq!(*outcome(&answered), Outcome::TokenRefused);
    let (kind, reason) = answered.attempted.pause.expect("it is paused");
    assert_eq!(kind, PauseKind::Token);
    assert_eq!(reason, "the source has no access token for it");
    assert_eq!(answered.attempted.reached, Reached::NotTried);
}

#[test]
fn a_source_that_cannot_be_read_pauses_nobody() {
    let stand = Stand::new();
    let claimed = status(&stand);
    stand.source.fails(true);
    let answered = deliver(&stand, claimed);
    assert_eq!(*outcome(&answered), Outcome::SourceUnavailable);
    assert!(answered.attempted.pause.is_none());
    let problem = answered.attempted.problem.expect("it says why");
    assert!(problem.contains("it is away"), "{problem}");
}

/// Why there is no token.
type Fails = fn() -> TokenError;

/// Tokens of an authorization server that refuses or is away.
struct Server(Fails, std::sync::atomic::AtomicUsize);

#[async_trait::async_trait]
impl crate::dispatch::TokenSource for Server {
    async fn token(&self, _: &InstallationId) -> Result<Option<AccessToken>, TokenError> {
        // The first one is given.
        match self.1.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
            0 => Ok(Some(AccessToken::new("first"))),
            _ => Err((self.0)()),
        }
    }
}

fn with_server(stand: &Stand, given: usize, error: Fails) -> Arc<Worker> {
    let server = Server(error, given.into());
    Arc::new(Worker::new(
        stand.worlds(),
        stand.fingerprints.clone(),
        Tokens::new(Arc::new(server)),
        Pace::new(None),
        settings(),
        &stand.signals,
    ))
}

fn is_unusable() -> TokenError {
    TokenError::Unusable
}

fn refuses() -> TokenError {
    TokenError::Refused {
        problem: "no grant".to_owned(),
    }
}

fn is_away() -> TokenError {
    TokenError::Unavailable {
        problem: "no route".to_owned(),
    }
}

#[test]
fn a_token_that_is_refused_or_cannot_be_sent_pauses_and_one_that_cannot_be_had_does_not() {
    for given in [1, 0] {
        let unusable = TokenError::Unusable.to_string();
        let cases = [
            (refuses as Fails, Outcome::TokenRefused, Some("no grant")),
            (is_unusable, Outcome::TokenRefused, Some(&*unusable)),
            (is_away, Outcome::SourceUnavailable, None),
        ];
        for (error, expected, pauses) in cases {
            let stand = Stand::new();
            let claimed = status(&stand);
            stand.vercel.answers(&answer(401), 1);
            let worker = with_server(&stand, given, error);
            let answered = deliver_with(&worker, &stand, claimed, Supply::None);
            assert_eq!(*outcome(&answered), expected);
            let Attempted { pause, problem, .. } = answered.attempted;
            let expected = pauses.map(|reason| (PauseKind::Token, reason.to_owned()));
            assert_eq!(pause, expected);
            assert_eq!(problem.is_some(), pauses.is_none());
        }
    }
}

#[test]
fn a_refused_token_that_has_changed_is_worth_another_attempt_and_an_equal_one_is_not() {
    let stand = Stand::new();
    let claimed = status(&stand);
    let worker = stand.worker(|_| {});
    stand.vercel.replies([Reply::status(403).after(SECOND)]);
    let allowance = worker.pace.hold(&claimed.key.installation_id);
    let over = CancellationToken::new();
    let mut delivery = pin!(worker.deliver(claimed, Supply::None, allowance, over));
    assert!(stand.clock.turn(delivery.as_mut()).is_none());
    stand.source.gives_token("icfg_1", Some("fresh"));
    let changed = stand.clock.run(delivery);
    assert_eq!(*outcome(&changed), Outcome::TokenRefused);
    assert!(changed.attempted.pause.is_none());

    let (_, same) = answered([Reply::status(403)]);
    assert_eq!(*outcome(&same), Outcome::TokenRefused);
    let (kind, reason) = same.attempted.pause.expect("it is paused");
    assert_eq!(kind, PauseKind::Token);
    assert_eq!(reason, "Vercel refuses its access token");
}

#[test]
fn after_a_404_the_installation_tells_what_is_gone() {
    let until = START.plus(SECOND * 5);
    let cases = [
        (answer(200), Outcome::NotFound, None),
        (
            answer(404),
            Outcome::InstallationGone,
            Some(PauseKind::Gone),
        ),
        (answer(401), Outcome::TokenRefused, Some(PauseKind::Token)),
        (answer(429), Outcome::RateLimited { until }, None),
        (answer(500), Outcome::Unreachable, None),
        (lost(), Outcome::Unreachable, None),
    ];
    for (probe, expected, pause) in cases {
        let (stand, answered) = answered([Reply::status(404), Reply::of(probe)]);
        assert_eq!(stand.vercel.said(), ["PATCH icfg_1/res_1", "PROBE icfg_1"]);
        let limited = matches!(expected, Outcome::RateLimited { .. });
        assert_eq!(*outcome(&answered), expected);
        assert_eq!(answered.attempted.limit_until, limited.then_some(until));
        assert_eq!(answered.attempted.pause.map(|(kind, _)| kind), pause);
    }
}

fn shows(status: &str) -> Observed {
    Observed {
        values: SharedMap::from([(Field::Status, Json::from_text(status))]),
        billing_plan_id: None,
    }
}

#[test]
fn after_a_409_vercel_and_the_source_are_looked_at() {
    let observed = shows("error");
    let replies = || {
        let shown = Reply::status(200).showing(shows("error"));
        [Reply::status(409), shown]
    };
    let (stand, answered) = answered(replies());
    let expected = Outcome::Conflict {
        observed: Some(observed),
    };
    assert_eq!(*outcome(&answered), expected);
    assert_eq!(stand.source.fetched(), [1]);
    // What comes with another status than 200 is not what Vercel shows.
    let (_, failed) = self::answered([
        Reply::status(409),
        Reply::status(206).showing(shows("error")),
    ]);
    assert_eq!(*outcome(&failed), Outcome::Conflict { observed: None });

    let stand = Stand::new();
    let claimed = status(&stand);
    stand.source.puts(&resource(), &[(Field::Status, "error")]);
    stand.vercel.replies(replies());
    assert_eq!(*outcome(&deliver(&stand, claimed)), Outcome::SourceMoved);

    let stand = Stand::new();
    let claimed = status(&stand);
    stand.source.takes_away(&resource());
    stand.vercel.replies(replies());
    assert_eq!(*outcome(&deliver(&stand, claimed)), Outcome::SourceMoved);
}

#[test]
fn after_a_409_a_source_that_cannot_be_read_says_so() {
    let stand = Stand::new();
    let claimed = status(&stand);
    let worker = stand.worker(|_| {});
    stand.vercel.replies([Reply::status(409).after(SECOND)]);
    let allowance = worker.pace.hold(&claimed.key.installation_id);
    let over = CancellationToken::new();
    let mut delivery = pin!(worker.deliver(claimed, Supply::None, allowance, over));
    assert!(stand.clock.turn(delivery.as_mut()).is_none());
    stand.source.fails(true);
    let answered = stand.clock.run(delivery);
    assert_eq!(*outcome(&answered), Outcome::SourceUnavailable);
    assert!(answered.attempted.problem.is_some());
}

#[test]
fn a_409_to_an_uninstallation_of_a_row_that_is_gone_is_no_news_of_the_source() {
    let stand = Stand::new();
    stand.desires(&resource(), &[(Field::Status, "uninstalled")]);
    let claimed = claim(&stand);
    stand.source.takes_away(&resource());
    stand.vercel.answers(&answer(409), 1);
    let answered = deliver(&stand, claimed);
    assert_eq!(*outcome(&answered), Outcome::Conflict { observed: None });
}

#[test]
fn a_first_sight_that_is_compared_asks_and_sends_nothing() {
    for observed in [None, Some(shows("ready"))] {
        let stand = Stand::new();
        let mut claimed = status(&stand);
        claimed.mode = Mode::Compare;
        let reply = Reply::status(200);
        stand.vercel.replies([match observed.clone() {
            Some(observed) => reply.showing(observed),
            None => reply,
        }]);
        let answered = deliver(&stand, claimed);
        assert_eq!(stand.vercel.said(), ["GET icfg_1/res_1"]);
        let expected = match observed {
            Some(observed) => Outcome::Compared { observed },
            None => Outcome::Failed,
        };
        assert_eq!(*outcome(&answered), expected);
        let attempt = answered.attempted.attempt.expect("it was sent");
        assert_eq!(attempt.method, "GET");
    }
}

fn delivery(effect: Effect) -> Delivery {
    let stand = Stand::new();
    Delivery {
        key: resource(),
        claimed: Some(Box::new(status(&stand))),
        attempt: None,
        effect,
        problem: None,
        reached: Reached::Answered,
    }
}

fn advanced(state: EntryState) -> Option<Advanced> {
    Some(Advanced {
        state,
        reason: Reason::Due,
        due_at: START,
    })
}

#[test]
fn what_a_delivery_did_has_a_name_and_so_has_how_its_request_ended() {
    let settled = |outcome, advanced| Effect::Settled { outcome, advanced };
    let waiting = || advanced(EntryState::Waiting);
    let acknowledged = || Outcome::Acknowledged { sent_at: START };
    let compared = Outcome::Compared {
        observed: Observed::default(),
    };
    let paused = Effect::Paused {
        kind: PauseKind::Gone,
        reason: "it is gone".to_owned(),
        outcome: Outcome::InstallationGone,
    };
    let resumed = Effect::Resumed {
        kind: PauseKind::Gone,
    };
    let dead = advanced(EntryState::Dead);
    let cases = [
        (
            settled(acknowledged(), None),
            "acknowledged",
            "acknowledged",
        ),
        (
            settled(acknowledged(), dead),
            "acknowledged",
            "acknowledged",
        ),
        (settled(Outcome::Lost, None), "lease_lost", "lost"),
        (settled(compared, waiting()), "compared", "compared"),
        (
            settled(Outcome::Released, waiting()),
            "released",
            "released",
        ),
        (
            settled(Outcome::SourceMoved, waiting()),
            "released",
            "source_moved",
        ),
        (settled(Outcome::NotFound, dead), "dead", "not_found"),
        (settled(Outcome::Lost, waiting()), "retrying", "lost"),
        (Effect::Unrecorded, "unrecorded", "unrecorded"),
        (paused, "paused", "installation_gone"),
        (resumed, "resumed", "unrecorded"),
        (Effect::StillPaused, "still_paused", "unrecorded"),
    ];
    for (effect, name, verdict) in cases {
        let delivery = delivery(effect);
        assert_eq!((delivery.outcome(), delivery.verdict()), (name, verdict));
        let moved = matches!(
            delivery.effect,
            Effect::Settled {
                outcome: Outcome::SourceMoved,
                ..
            }
        );
        assert_eq!(delivery.wants_recheck(), moved);
        assert!(!delivery.is_probe());
    }
    let mut probe = delivery(Effect::StillPaused);
    probe.claimed = None;
    assert!(probe.is_probe());
}
