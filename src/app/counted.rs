//! Counts every request to Vercel's API by its answer: patches, the questions that an answer leads to, probes, drift checks.

use std::sync::Arc;

use async_trait::async_trait;

use crate::metrics::Metrics;
use crate::model::{AccessToken, InstallationId, Observed, Patch, ResourceKey, SecretSet};
use crate::plan::{Answer, AnswerKind};
use crate::vercel::{Listed, Marketplace};

/// A marketplace whose requests are counted.
pub(super) struct Counted {
    inner: Arc<dyn Marketplace>,
    metrics: Arc<Metrics>,
}

impl Counted {
    pub(super) fn new(inner: Arc<dyn Marketplace>, metrics: Arc<Metrics>) -> Self {
        Self { inner, metrics }
    }

    fn count(&self, answer: &Answer) {
        let value = match answer.kind {
            AnswerKind::Unsent(_) => "unsent",
            AnswerKind::Lost(_) => "lost",
            AnswerKind::Http { status, .. } => match status {
                200..=299 => "2xx",
                300..=399 => "3xx",
                429 => "429",
                400..=499 => "4xx",
                500..=599 => "5xx",
                _ => "other",
            },
        };
        self.metrics.requests.add(value);
    }
}

#[async_trait]
impl Marketplace for Counted {
    async fn update(
        &self,
        token: &AccessToken,
        key: &ResourceKey,
        patch: &Patch,
        secrets: Option<&SecretSet>,
    ) -> Answer {
        let answer = self.inner.update(token, key, patch, secrets).await;
        self.count(&answer);
        answer
    }

    async fn observe(&self, token: &AccessToken, key: &ResourceKey) -> (Answer, Option<Observed>) {
        let (answer, observed) = self.inner.observe(token, key).await;
        self.count(&answer);
        (answer, observed)
    }

    async fn probe(&self, token: &AccessToken, installation_id: &InstallationId) -> Answer {
        let answer = self.inner.probe(token, installation_id).await;
        self.count(&answer);
        answer
    }

    async fn list(
        &self,
        token: &AccessToken,
        installation_id: &InstallationId,
    ) -> (Answer, Option<Vec<Listed>>) {
        let (answer, listed) = self.inner.list(token, installation_id).await;
        self.count(&answer);
        (answer, listed)
    }
}
