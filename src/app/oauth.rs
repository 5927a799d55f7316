//! Short-lived tokens of `[vercel.oauth]`: one per installation, in memory only, renewed before it expires.
//!
//! One grant at a time is asked for per installation, whoever waits for it. A server that gives none is asked again with backoff,
//! and the old token is used as long as it lasts.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;

use crate::clock::{Clock, Random};
use crate::dispatch::{TokenError, TokenSource};
use crate::model::{AccessToken, InstallationId, Timestamp};
use crate::plan::AnswerKind;
use crate::plan::backoff::Backoff;
use crate::vercel::{Grant, GrantError, TokenEndpoint};

/// The share of a token's life after which it is renewed.
const RENEWED_AFTER: f64 = 0.8;
/// How long a token is used whose server does not say how long it lasts.
const LIFETIME_UNSAID: Duration = Duration::from_secs(10 * 60);
/// The longest life that is believed.
const LIFETIME_MAX: Duration = Duration::from_secs(24 * 3600);
/// The longest wait that a server is granted.
const WAIT_MAX: Duration = Duration::from_secs(5 * 60);
/// Waits while the server gives no token.
const RETRIES: Backoff = Backoff {
    initial: Duration::from_secs(1),
    multiplier: 2.0,
    max: Duration::from_secs(60),
};
/// The most installations remembered; past it those whose tokens nobody has wanted for longest are forgotten.
const KEPT_MAX: usize = 50_000;
/// How many are forgotten at once: looking for them takes a look at all.
const FORGOTTEN: usize = KEPT_MAX / 8;

/// Asks for one token.
#[async_trait]
pub(super) trait Grants: Send + Sync {
    async fn grant(&self, installation_id: &InstallationId) -> Result<Grant, GrantError>;
}

#[async_trait]
impl Grants for TokenEndpoint {
    async fn grant(&self, installation_id: &InstallationId) -> Result<Grant, GrantError> {
        Self::grant(self, installation_id).await
    }
}

/// Tokens of `[vercel.oauth]`.
pub(super) struct OauthTokens {
    server: Box<dyn Grants>,
    clock: Arc<dyn Clock>,
    random: Arc<dyn Random>,
    slots: Mutex<HashMap<InstallationId, Known>>,
}

/// Where the token of one installation is kept.
struct Known {
    /// Whoever holds it is the one that asks for the token.
    slot: Arc<tokio::sync::Mutex<Slot>>,
    wanted_at: Timestamp,
}

/// What is known of one installation.
#[derive(Default)]
struct Slot {
    kept: Option<Kept>,
    /// The newest token was granted since Vercel refused the one before: if it is refused too, no other will do.
    after_refusal: bool,
    failures: u32,
    trouble: Option<Trouble>,
}

struct Kept {
    token: AccessToken,
    granted_at: Timestamp,
    renew_at: Timestamp,
    expires_at: Timestamp,
}

/// The server gave no token, and is left alone for a while.
struct Trouble {
    since: Timestamp,
    until: Timestamp,
    problem: String,
}

impl OauthTokens {
    pub(super) fn new(
        server: impl Grants + 'static,
        clock: Arc<dyn Clock>,
        random: Arc<dyn Random>,
    ) -> Self {
        Self {
            server: Box::new(server),
            clock,
            random,
            slots: Mutex::default(),
        }
    }

    fn slot(&self, installation_id: &InstallationId) -> Arc<tokio::sync::Mutex<Slot>> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if slots.len() >= KEPT_MAX && !slots.contains_key(installation_id) {
            forget(&mut slots);
        }
        let wanted_at = self.clock.now();
        let known = slots
            .entry(installation_id.clone())
            .or_insert_with(|| Known {
                slot: Arc::default(),
                wanted_at,
            });
        known.wanted_at = wanted_at;
        Arc::clone(&known.slot)
    }

    async fn ask(
        &self,
        slot: &mut Slot,
        installation_id: &InstallationId,
    ) -> Result<AccessToken, TokenError> {
        if let Some(trouble) = &slot.trouble {
            let now = self.clock.now();
            // Before its beginning the clock was set back.
            if now < trouble.until && now >= trouble.since {
                let problem = trouble.problem.clone();
                return Err(TokenError::Unavailable { problem });
            }
        }
        match self.server.grant(installation_id).await {
            Ok(grant) => {
                slot.failures = 0;
                slot.trouble = None;
                let kept = Kept::new(grant, self.clock.now());
                Ok(slot.kept.insert(kept).token.clone())
            }
            Err(GrantError::Refused { status, code }) => {
                slot.kept = None;
                let code = code.map(|code| format!(" ({code})")).unwrap_or_default();
                let problem =
                    format!("the authorization server refuses it a token: status {status}{code}");
                Err(TokenError::Refused { problem })
            }
            Err(error) => {
                let problem = error.to_string();
                slot.failures = slot.failures.saturating_add(1);
                slot.trouble = Some(self.trouble(slot.failures, &error, &problem));
                Err(TokenError::Unavailable { problem })
            }
        }
    }

    fn trouble(&self, failures: u32, error: &GrantError, problem: &str) -> Trouble {
        let since = self.clock.now();
        let wait = since.plus(RETRIES.interval(failures, self.random.fraction()));
        let announced = match error {
            GrantError::Unavailable { answer } => match answer.kind {
                AnswerKind::Http { retry_after, .. } => retry_after,
                _ => None,
            },
            GrantError::Refused { .. } | GrantError::Unusable { .. } => None,
        };
        let until = announced.map_or(wait, |at| at.max(wait).min(since.plus(WAIT_MAX)));
        Trouble {
            since,
            until,
            problem: problem.to_owned(),
        }
    }
}

/// Forgets those that nobody has wanted for longest; one that is being asked for stays, so that nobody asks beside him.
fn forget(slots: &mut HashMap<InstallationId, Known>) {
    let mut idle: Vec<(Timestamp, InstallationId)> = slots
        .iter()
        .filter(|(_, known)| Arc::strong_count(&known.slot) == 1)
        .map(|(id, known)| (known.wanted_at, id.clone()))
        .collect();
    idle.sort_unstable();
    for (_, id) in idle.iter().take(FORGOTTEN) {
        slots.remove(id);
    }
}

impl Kept {
    fn new(grant: Grant, now: Timestamp) -> Self {
        let Grant { token, expires_in } = grant;
        let lifetime = expires_in.unwrap_or(LIFETIME_UNSAID).min(LIFETIME_MAX);
        Self {
            token,
            granted_at: now,
            renew_at: now.plus(lifetime.mul_f64(RENEWED_AFTER)),
            expires_at: now.plus(lifetime),
        }
    }

    /// Whether it was granted for any time: one that was not could be renewed, and refused, without end.
    fn has_life(&self) -> bool {
        self.granted_at < self.renew_at
    }

    fn is_fresh(&self, now: Timestamp) -> bool {
        now >= self.granted_at && now < self.renew_at
    }
}

#[async_trait]
impl TokenSource for OauthTokens {
    async fn token(
        &self,
        installation_id: &InstallationId,
    ) -> Result<Option<AccessToken>, TokenError> {
        let slot = self.slot(installation_id);
        let mut slot = slot.lock().await;
        let now = self.clock.now();
        let old = match &slot.kept {
            Some(kept) if kept.is_fresh(now) => return Ok(Some(kept.token.clone())),
            Some(kept) => Some(kept.token.clone()).filter(|_| now < kept.expires_at),
            None => None,
        };
        let had_one = slot.kept.as_ref().is_some_and(Kept::has_life);
        let asked = self.ask(&mut slot, installation_id).await;
        match (asked, old) {
            (Ok(token), _) => {
                // A token that lived as long as it was meant to was not the problem.
                slot.after_refusal &= !had_one;
                Ok(Some(token))
            }
            (Err(TokenError::Unavailable { .. }), Some(old)) => Ok(Some(old)),
            (Err(error), _) => Err(error),
        }
    }

    async fn renew(
        &self,
        installation_id: &InstallationId,
        refused: &AccessToken,
    ) -> Result<Option<AccessToken>, TokenError> {
        let slot = self.slot(installation_id);
        let mut slot = slot.lock().await;
        if let Some(kept) = slot.kept.as_ref().filter(|kept| kept.token != *refused) {
            // Another delivery has renewed it already.
            return Ok(Some(kept.token.clone()));
        }
        slot.kept = None;
        if slot.after_refusal {
            // The next one who asks, a probe, is given a new one.
            return Ok(Some(refused.clone()));
        }
        let token = self.ask(&mut slot, installation_id).await?;
        slot.after_refusal = true;
        Ok(Some(token))
    }

    fn remembers(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::atomic::{AtomicU32, Ordering};

    use crate::clock::SeededRandom;
    use crate::plan::{Answer, LostKind};

    use super::*;

    /// A clock that only the test moves.
    #[derive(Default)]
    struct Hands(Mutex<Timestamp>);

    impl Hands {
        fn pass(&self, duration: Duration) {
            let mut now = self.0.lock().expect("nobody panicked");
            *now = now.plus(duration);
        }
    }

    #[async_trait]
    impl Clock for Hands {
        fn now(&self) -> Timestamp {
            *self.0.lock().expect("nobody panicked")
        }

        async fn sleep(&self, duration: Duration) {
            self.pass(duration);
        }
    }

    /// A server with its answers in order; afterwards it grants for an hour.
    #[derive(Default)]
    struct Server {
        answers: Mutex<VecDeque<GrantError>>,
        asked: AtomicU32,
    }

    #[async_trait]
    impl Grants for Arc<Server> {
        async fn grant(&self, _: &InstallationId) -> Result<Grant, GrantError> {
            let number = self.asked.fetch_add(1, Ordering::Relaxed) + 1;
            tokio::task::yield_now().await;
            match self.answers.lock().expect("nobody panicked").pop_front() {
                Some(error) => Err(error),
                None => Ok(Grant {
                    token: AccessToken::new(&format!("t{number}")),
                    expires_in: Some(Duration::from_secs(3600)),
                }),
            }
        }
    }

    struct Setting {
        server: Arc<Server>,
        clock: Arc<Hands>,
        tokens: OauthTokens,
        installation_id: InstallationId,
    }

    impl Setting {
        fn answering(answers: impl IntoIterator<Item = GrantError>) -> Self {
            let server = Arc::new(Server {
                answers: Mutex::new(answers.into_iter().collect()),
                asked: AtomicU32::new(0),
            });
            let clock = Arc::new(Hands::default());
            let random = Arc::new(SeededRandom::new(1));
            let as_clock = Arc::clone(&clock) as Arc<dyn Clock>;
            Self {
                tokens: OauthTokens::new(Arc::clone(&server), as_clock, random),
                server,
                clock,
                installation_id: InstallationId::new("icfg_1").expect("an id"),
            }
        }

        async fn token(&self) -> Result<Option<AccessToken>, TokenError> {
            self.tokens.token(&self.installation_id).await
        }

        async fn gives(&self, token: &str) {
            let given = self.token().await.expect("a token");
            assert_eq!(given, Some(AccessToken::new(token)));
        }

        fn asked(&self) -> u32 {
            self.server.asked.load(Ordering::Relaxed)
        }
    }

    fn unavailable() -> GrantError {
        GrantError::Unavailable {
            answer: Answer {
                kind: AnswerKind::Lost(LostKind::Timeout),
                vercel_id: None,
            },
        }
    }

    #[tokio::test]
    async fn a_token_is_renewed_at_four_fifths_of_its_life() {
        let setting = Setting::answering([]);
        setting.gives("t1").await;
        setting.clock.pass(Duration::from_secs(2879));
        setting.gives("t1").await;
        setting.clock.pass(Duration::from_secs(1));
        setting.gives("t2").await;
    }

    #[tokio::test]
    async fn those_who_wait_for_a_token_share_one_grant() {
        let setting = Setting::answering([]);
        let all = (0..20).map(|_| setting.token());
        for token in futures_util::future::join_all(all).await {
            assert_eq!(token.expect("a token"), Some(AccessToken::new("t1")));
        }
        assert_eq!(setting.asked(), 1);
    }

    #[tokio::test]
    async fn of_too_many_installations_those_wanted_least_lately_are_forgotten() {
        let setting = Setting::answering([]);
        let id = |n: usize| InstallationId::new(&format!("icfg_{n}")).expect("an id");
        let asked = |n| {
            let (setting, id) = (&setting, id(n));
            async move {
                let before = setting.asked();
                setting.tokens.token(&id).await.expect("a token");
                setting.asked() - before
            }
        };
        for n in 0..KEPT_MAX {
            asked(n).await;
        }
        setting.clock.pass(Duration::from_secs(1));
        let busy = setting.tokens.slot(&id(1));
        setting.clock.pass(Duration::from_secs(1));
        // All but these are wanted again, the last ones first.
        for n in (FORGOTTEN + 1..KEPT_MAX).rev() {
            assert_eq!(asked(n).await, 0);
        }
        assert_eq!(asked(KEPT_MAX).await, 1, "a new one");
        drop(busy);
        assert_eq!(asked(1).await, 0, "it was being asked for");
        assert_eq!(asked(KEPT_MAX - 1).await, 0, "wanted not long ago");
        assert_eq!(asked(0).await, 1, "nobody had wanted it");
        assert_eq!(asked(FORGOTTEN).await, 1, "nor this one");
    }

    #[tokio::test]
    async fn the_old_token_serves_while_the_server_is_down_and_as_long_as_it_lasts() {
        let setting = Setting::answering([]);
        setting.gives("t1").await;
        {
            let mut answers = setting.server.answers.lock().expect("nobody panicked");
            answers.extend((0..2).map(|_| unavailable()));
        }
        setting.clock.pass(Duration::from_secs(3000));
        setting.gives("t1").await;
        setting.gives("t1").await;
        assert_eq!(setting.asked(), 2, "the server is left alone for a moment");
        setting.clock.pass(Duration::from_secs(600));
        let expired = setting.token().await;
        assert!(
            matches!(expired, Err(TokenError::Unavailable { .. })),
            "{expired:?}"
        );
        setting.clock.pass(Duration::from_secs(60));
        setting.gives("t4").await;
    }

    #[tokio::test]
    async fn a_refused_grant_is_told_apart_from_an_outage() {
        let refused = GrantError::Refused {
            status: 401,
            code: Some("invalid_client".to_owned()),
        };
        let setting = Setting::answering([refused]);
        let problem = setting.token().await.expect_err("refused").to_string();
        assert!(problem.contains("invalid_client"), "{problem}");
        setting.gives("t2").await;
    }

    #[tokio::test]
    async fn a_second_refusal_by_vercel_ends_the_renewals() {
        let setting = Setting::answering([]);
        setting.gives("t1").await;
        let renew = async |refused| {
            let refused = AccessToken::new(refused);
            let renewed = setting
                .tokens
                .renew(&setting.installation_id, &refused)
                .await;
            renewed.expect("an answer").expect("a token")
        };
        assert_eq!(renew("t1").await, AccessToken::new("t2"));
        assert_eq!(
            renew("t1").await,
            AccessToken::new("t2"),
            "it was renewed already"
        );
        assert_eq!(
            renew("t2").await,
            AccessToken::new("t2"),
            "no other will do"
        );
        setting.gives("t3").await;
        assert_eq!(renew("t3").await, AccessToken::new("t3"));
        setting.gives("t4").await;
        setting.clock.pass(Duration::from_secs(3000));
        setting.gives("t5").await;
        assert_eq!(
            renew("t5").await,
            AccessToken::new("t6"),
            "t4 had lived its life"
        );
    }

    /// Grants tokens that live for no time.
    struct Lifeless(AtomicU32);

    #[async_trait]
    impl Grants for Lifeless {
        async fn grant(&self, _: &InstallationId) -> Result<Grant, GrantError> {
            let number = self.0.fetch_add(1, Ordering::Relaxed);
            Ok(Grant {
                token: AccessToken::new(&format!("t{number}")),
                expires_in: Some(Duration::ZERO),
            })
        }
    }

    #[tokio::test]
    async fn a_token_without_life_is_given_up_when_it_is_refused_again() {
        let random = Arc::new(SeededRandom::new(1));
        let grants = Lifeless(AtomicU32::new(0));
        let tokens = OauthTokens::new(grants, Arc::new(Hands::default()), random);
        let id = InstallationId::new("icfg_1").expect("an id");
        let mut given_up = Vec::new();
        for _ in 0..2 {
            let used = tokens.token(&id).await.expect("granted").expect("one");
            let renewed = tokens
                .renew(&id, &used)
                .await
                .expect("granted")
                .expect("one");
            given_up.push(renewed == used);
        }
        assert_eq!(given_up, [false, true]);
    }
}
