//! How often tokens are read, and whose they are.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

use crate::dispatch::fixture::{Stand, installation};

use super::*;

/// An origin whose tokens are numbered in the order in which they are given.
#[derive(Default)]
struct Numbered {
    given: AtomicUsize,
    renewed: AtomicUsize,
    remembers: bool,
    none: bool,
    /// It always gives the same.
    same: bool,
    /// It gives several at once.
    together: bool,
    /// What several wait for.
    gate: Option<Arc<Notify>>,
    /// How many at once are too many for it, and what it says then.
    too_many: Mutex<Option<(usize, SourceError)>>,
    asked_together: Mutex<Vec<usize>>,
}

#[async_trait]
impl TokenSource for Numbered {
    async fn token(&self, id: &InstallationId) -> Result<Option<AccessToken>, TokenError> {
        let number = self.given.fetch_add(1, Ordering::Relaxed);
        let number = if self.same { 0 } else { number };
        Ok((!self.none).then(|| AccessToken::new(&format!("{id} {number}"))))
    }

    async fn renew(
        &self,
        id: &InstallationId,
        _: &AccessToken,
    ) -> Result<Option<AccessToken>, TokenError> {
        self.renewed.fetch_add(1, Ordering::Relaxed);
        self.token(id).await
    }

    async fn tokens(
        &self,
        ids: &[InstallationId],
    ) -> Result<Vec<(InstallationId, AccessToken)>, TokenError> {
        self.asked_together
            .lock()
            .expect("no panic")
            .push(ids.len());
        let is_too_many = |(least, _): &mut (usize, SourceError)| ids.len() >= *least;
        let refused = self.too_many.lock().expect("no panic").take_if(is_too_many);
        if let Some((_, error)) = refused {
            return Err(error.into());
        }
        let mut tokens = Vec::new();
        for id in ids.iter().filter(|_| self.together) {
            let token = self.token(id).await?;
            tokens.extend(token.map(|token| (id.clone(), token)));
        }
        if let Some(gate) = &self.gate {
            gate.notified().await;
        }
        Ok(tokens)
    }

    fn remembers(&self) -> bool {
        self.remembers
    }
}

struct Kept {
    stand: Stand,
    origin: Arc<Numbered>,
    tokens: Tokens,
}

fn kept(origin: Numbered) -> Kept {
    let origin = Arc::new(origin);
    Kept {
        stand: Stand::new(),
        tokens: Tokens::new(Arc::clone(&origin) as Arc<dyn TokenSource>),
        origin,
    }
}

impl Kept {
    fn get(&self, id: &str) -> Option<String> {
        let id = installation(id);
        let token = self.stand.clock.run(self.tokens.get(&id));
        let token = token.expect("it gives one");
        token.map(|token| token.expose().to_owned())
    }

    fn read_together(&self, ids: &[&str]) {
        let ids: Vec<_> = ids.iter().map(|id| installation(id)).collect();
        self.stand.clock.run(self.tokens.read_together(&ids));
    }

    fn renew(&self, id: &str, refused: &str) -> Renewed {
        let (id, refused) = (installation(id), AccessToken::new(refused));
        let renewed = self.stand.clock.run(self.tokens.renew(&id, &refused));
        renewed.expect("it gives one")
    }

    /// How many were asked for together since this was asked last.
    fn asked_together(&self) -> Vec<usize> {
        std::mem::take(&mut *self.origin.asked_together.lock().expect("no panic"))
    }

    fn read(&self) -> (usize, usize) {
        let origin = &self.origin;
        let of = |count: &AtomicUsize| count.load(Ordering::Relaxed);
        (of(&origin.given), of(&origin.renewed))
    }
}

fn token(text: &str) -> Option<String> {
    Some(text.to_owned())
}

#[test]
fn a_token_is_read_once_and_kept_for_its_installation() {
    let kept = kept(Numbered::default());
    for _ in 0..2 {
        assert_eq!(kept.get("icfg_1"), token("icfg_1 0"));
        assert_eq!(kept.get("icfg_2"), token("icfg_2 1"));
    }
    assert_eq!(kept.read(), (2, 0));
}

#[test]
fn an_origin_that_remembers_is_asked_each_time_and_renews_by_itself() {
    let kept = kept(Numbered {
        remembers: true,
        ..Numbered::default()
    });
    assert_eq!(kept.get("icfg_1"), token("icfg_1 0"));
    assert_eq!(kept.get("icfg_1"), token("icfg_1 1"));
    assert_eq!(kept.renew("icfg_1", "icfg_1 1"), Renewed::Changed);
    assert_eq!(kept.read(), (3, 1));
}

#[test]
fn a_refused_token_is_read_again_and_only_another_one_is_worth_a_request() {
    let changing = kept(Numbered::default());
    assert_eq!(changing.get("icfg_1"), token("icfg_1 0"));
    assert_eq!(changing.renew("icfg_1", "icfg_1 0"), Renewed::Changed);
    assert_eq!(changing.get("icfg_1"), token("icfg_1 1"));
    // Another delivery that was refused the old one need not read it again.
    assert_eq!(changing.renew("icfg_1", "icfg_1 0"), Renewed::Changed);
    assert_eq!(changing.read(), (2, 0));

    let same = kept(Numbered {
        same: true,
        ..Numbered::default()
    });
    assert_eq!(same.get("icfg_1"), token("icfg_1 0"));
    assert_eq!(same.renew("icfg_1", "icfg_1 0"), Renewed::Same);
    assert_eq!(same.read(), (2, 0));
}

#[test]
fn a_token_that_there_is_no_more_is_forgotten() {
    let mut kept = kept(Numbered::default());
    assert_eq!(kept.get("icfg_1"), token("icfg_1 0"));
    let none = Numbered {
        none: true,
        ..Numbered::default()
    };
    kept.tokens.origin = Arc::new(none);
    assert_eq!(kept.renew("icfg_1", "icfg_1 0"), Renewed::Same);
    assert_eq!(kept.get("icfg_1"), None);
}

#[test]
fn tokens_that_are_read_together_are_kept_and_none_takes_the_place_of_another() {
    let kept = kept(Numbered {
        together: true,
        ..Numbered::default()
    });
    assert_eq!(kept.get("icfg_1"), token("icfg_1 0"));
    kept.read_together(&["icfg_1", "icfg_2", "icfg_3"]);
    assert_eq!(kept.get("icfg_2"), token("icfg_2 1"));
    assert_eq!(kept.get("icfg_3"), token("icfg_3 2"));
    // Nothing is left to read.
    kept.read_together(&["icfg_1", "icfg_2", "icfg_3"]);
    assert_eq!(kept.read(), (3, 0));
}

#[test]
fn a_token_that_was_read_again_while_several_were_read_is_the_newer_one() {
    let gate = Arc::new(Notify::new());
    let kept = kept(Numbered {
        together: true,
        gate: Some(Arc::clone(&gate)),
        ..Numbered::default()
    });
    let ids = ["icfg_1", "icfg_2"].map(installation);
    let mut reading = Box::pin(kept.tokens.read_together(&ids));
    assert!(kept.stand.clock.turn(reading.as_mut()).is_none());
    assert_eq!(kept.get("icfg_1"), token("icfg_1 2"));
    gate.notify_one();
    kept.stand.clock.run(reading);
    assert_eq!(kept.get("icfg_1"), token("icfg_1 2"));
    assert_eq!(kept.get("icfg_2"), token("icfg_2 1"));
}

#[test]
fn as_many_are_read_together_as_there_is_time_for() {
    let timeout = || SourceError::Timeout {
        statement: "installations query",
        limit: "15s".to_owned(),
    };
    let away = || SourceError::Unreachable {
        target: "a server".to_owned(),
        problem: "it is away".to_owned(),
    };
    for (error, asked) in [
        (
            &timeout as &(dyn Fn() -> SourceError + Sync),
            [vec![20], vec![10], vec![5, 5, 5, 5]],
        ),
        (&away, [vec![20], vec![20], vec![20]]),
    ] {
        let kept = kept(Numbered {
            together: true,
            ..Numbered::default()
        });
        let ids: Vec<String> = (0..20).map(|n| format!("icfg_{n}")).collect();
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        for asked in asked {
            *kept.origin.too_many.lock().expect("no panic") = Some((7, error()));
            kept.read_together(&ids);
            assert_eq!(kept.asked_together(), asked);
        }
    }
}

#[test]
fn an_origin_that_remembers_lacks_nothing() {
    for remembers in [true, false] {
        let kept = kept(Numbered {
            together: true,
            remembers,
            ..Numbered::default()
        });
        assert_eq!(kept.tokens.lacks(&installation("icfg_1")), !remembers);
        kept.read_together(&["icfg_1", "icfg_2"]);
        assert_eq!(kept.read(), (if remembers { 0 } else { 2 }, 0));
        assert!(!kept.tokens.lacks(&installation("icfg_1")));
    }
}

#[test]
fn past_so_many_tokens_all_are_forgotten() {
    let kept = kept(Numbered::default());
    kept.tokens.kept(|kept| {
        for n in 0..KEPT_MAX - 1 {
            let id = installation(&format!("icfg_x{n}"));
            kept.insert(id, AccessToken::new("kept"));
        }
    });
    assert_eq!(kept.get("icfg_1"), token("icfg_1 0"));
    assert_eq!(kept.tokens.kept(|kept| kept.len()), KEPT_MAX);
    assert_eq!(kept.get("icfg_2"), token("icfg_2 1"));
    assert_eq!(kept.tokens.kept(|kept| kept.len()), 1);
    assert_eq!(kept.get("icfg_1"), token("icfg_1 2"), "it is read again");
}

#[test]
fn tokens_read_together_take_no_more_room_than_there_is() {
    let kept = kept(Numbered {
        together: true,
        ..Numbered::default()
    });
    kept.tokens.kept(|kept| {
        for n in 0..KEPT_MAX - 2 {
            let id = installation(&format!("icfg_x{n}"));
            kept.insert(id, AccessToken::new("kept"));
        }
    });
    kept.read_together(&["icfg_1", "icfg_2"]);
    assert_eq!(kept.tokens.kept(|kept| kept.len()), KEPT_MAX);
    kept.read_together(&["icfg_3", "icfg_4", "icfg_5"]);
    assert_eq!(kept.tokens.kept(|kept| kept.len()), 3);
}

#[test]
fn the_installations_query_gives_what_the_source_has() {
    let stand = Stand::new();
    let query = InstallationsQuery(Arc::clone(&stand.source) as Arc<dyn Source>);
    let id = installation("icfg_1");
    let read = || {
        let token = stand.clock.run(query.token(&id));
        token.map(|token| token.map(|token| token.expose().to_owned()))
    };
    stand.source.gives_token("icfg_1", Some("secret"));
    assert_eq!(read().expect("it can be read"), token("secret"));
    stand.source.gives_token("icfg_1", None);
    assert_eq!(read().expect("it can be read"), None);
    stand.source.gives_token("icfg_1", Some("secret\n"));
    assert!(matches!(read(), Err(TokenError::Unusable)));
    stand.source.gives_token("icfg_2", Some("another"));
    let both = [installation("icfg_1"), installation("icfg_2")];
    let together = stand.clock.run(query.tokens(&both));
    let together = together.expect("they can be read");
    let together = together.iter().map(|(id, token)| (id, token.expose()));
    assert_eq!(together.collect::<Vec<_>>(), [(&both[1], "another")]);
    stand.source.fails(true);
    assert!(matches!(read(), Err(TokenError::Source(_))));
    assert!(!query.remembers());
    // It has no way of its own to renew one.
    stand.source.fails(false);
    stand.source.gives_token("icfg_1", Some("fresh"));
    let refused = AccessToken::new("secret");
    let renewed = stand.clock.run(query.renew(&id, &refused));
    let renewed = renewed.expect("it can be read").expect("there is one");
    assert_eq!(renewed.expose(), "fresh");
}
