//! How often tokens are read, and whose they are.

use std::sync::atomic::{AtomicUsize, Ordering};

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

    fn renew(&self, id: &str, refused: &str) -> Renewed {
        let (id, refused) = (installation(id), AccessToken::new(refused));
        let renewed = self.stand.clock.run(self.tokens.renew(&id, &refused));
        renewed.expect("it gives one")
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
